package volume

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	dataLink = "..data"
	dataTmp  = "..data_tmp"
)

// longAgo is the modification time of a volume's root: the driver skips a
// republish while it is younger than its rotation interval, and our own
// changes move it.
var longAgo = time.Date(1971, 1, 1, 0, 0, 0, 0, time.UTC)

// volume is the opened root of a pod's tmpfs, for the length of one call.
type volume struct {
	*os.File
	label []byte // SELinux label to give what we make; nil: none
	step  func(string)
}

func (v *volume) reached(point string) {
	if v.step != nil {
		v.step(point)
	}
}

// write is Write on an opened volume.
func (v *volume) write(g Generation) error {
	if err := v.touch(); err != nil { // before the first change: shows that we may make any
		return err
	}
	v.label = labelOf(v.File)
	v.reached("opened")
	names, err := v.replace(g)
	if err == nil {
		v.reached("swapped")
		v.trim(names, g)
		v.reached("trimmed")
	}
	_ = v.touch() // it worked a moment ago, and after the swap there is no way back
	v.reached("done")
	return err
}

// replace sweeps, builds the generation and swaps it in, or leaves nothing of
// it. It returns the names that were in the volume before.
func (v *volume) replace(g Generation) ([]string, error) {
	current, err := v.current()
	if err != nil {
		return nil, err
	}
	if current == g.Dir {
		return nil, invalid("naming a generation: %q is the present one", g.Dir)
	}
	names, err := list(v.File)
	if err != nil {
		return nil, err
	}
	if err := v.sweep(names, append([]string{dataLink, current}, g.Retain...)); err != nil {
		return nil, err
	}
	v.reached("swept")

	links, err := v.build(g, current)
	if err == nil {
		v.reached("linked")
		err = v.swap()
	}
	if err != nil {
		for _, name := range append(links, dataTmp, g.Dir) {
			_ = remove(v.File, name, 0) // what stays is swept by the next Write
		}
	}
	return names, err
}

// build makes all that the swap needs, and returns the visible names that it
// added, also with an error. They come before the swap, so that it is the last
// step that can fail and whoever sees it finds every name: a new one leads
// nowhere for that moment.
func (v *volume) build(g Generation, current string) (links []string, err error) {
	if err := v.fill(g, current); err != nil {
		return nil, err
	}
	v.reached("filled")
	if err := v.symlink(g.Dir, dataTmp); err != nil {
		return nil, err
	}
	v.reached("staged")
	return v.link(g)
}

// sweep removes every name that begins with ".." but those to keep: what a
// killed or failed write of ours or of another writer has left.
func (v *volume) sweep(names, keep []string) error {
	for _, name := range names {
		if !strings.HasPrefix(name, "..") || slices.Contains(keep, name) {
			continue
		}
		if err := remove(v.File, name, 0); err != nil {
			return err
		}
	}
	return nil
}

// fill makes the new directory and all that is in it. from is the present
// generation's directory, "" when there is none.
func (v *volume) fill(g Generation, from string) error {
	dirs := map[string][]File{"/": nil}
	for _, f := range g.Files {
		d := path.Dir("/" + f.Path)
		dirs[d] = append(dirs[d], f)
		for ; d != "/"; d = path.Dir(d) {
			dirs[d] = append(dirs[d], nil...) // one that holds directories only
		}
	}
	size := g.newBytes()
	for _, d := range slices.Sorted(maps.Keys(dirs)) { // parents come first
		kept, err := v.fillDir(path.Join(g.Dir, d), from, d, dirs[d])
		if err != nil {
			return err
		}
		if size += kept; size > MaxBytes {
			return tooLarge(size)
		}
	}
	return nil
}

// fillDir makes directory to with its files, and returns the size of those
// kept from the present generation's directory d.
func (v *volume) fillDir(to, from, d string, files []File) (kept int, err error) {
	dir, err := v.mkdir(to)
	if err != nil {
		return 0, err
	}
	defer dir.Close()
	var old *os.File
	if slices.ContainsFunc(files, func(f File) bool { return f.Keep }) {
		if old, err = v.oldDir(from, d); err != nil {
			return 0, err
		}
		defer old.Close()
	}
	for _, f := range files {
		if f.Keep {
			var n int
			n, err = keep(old, dir, f)
			kept += n
		} else {
			err = v.create(dir, f)
		}
		if err != nil {
			return 0, err
		}
		v.reached("file")
	}
	return kept, nil
}

// mkdir makes the directory, whose parent exists, and opens it.
func (v *volume) mkdir(name string) (*os.File, error) {
	parent, err := openat(fd(v.File), path.Dir(name), unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	defer parent.Close()
	base := path.Base(name)
	if err := unix.Mkdirat(fd(parent), base, 0o700); err != nil {
		return nil, fmt.Errorf("making directory %s: %w", name, err)
	}
	dir, err := openat(fd(parent), base, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	v.labelFile(dir)
	if err := unix.Fchmod(fd(dir), 0o755); err != nil { // mkdir's mode is cut by the umask
		dir.Close()
		return nil, fmt.Errorf("setting the mode of directory %s: %w", name, err)
	}
	return dir, nil
}

// oldDir opens directory d of the present generation, to keep files of it.
func (v *volume) oldDir(from, d string) (*os.File, error) {
	if from == "" {
		return nil, fmt.Errorf("keeping files: %w: %w", ErrLost, ErrEmpty)
	}
	old, err := openat(fd(v.File), path.Join(from, d), unix.O_PATH|unix.O_DIRECTORY, 0)
	if err == nil {
		return old, nil
	}
	return nil, lost(err, d)
}

// keep hard-links the file from the old into the new directory, and returns
// its size. It is never copied: we may not read what we gave to another uid.
func keep(old, dir *os.File, f File) (int, error) {
	base := path.Base(f.Path)
	if err := unix.Linkat(fd(old), base, fd(dir), base, 0); err != nil {
		return 0, lost(fmt.Errorf("linking: %w", err), f.Path)
	}
	var st unix.Stat_t
	if err := unix.Fstatat(fd(dir), base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return 0, fmt.Errorf("examining file %s: %w", f.Path, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return 0, fmt.Errorf("keeping %s: no regular file: %w", f.Path, ErrLost)
	}
	return int(min(st.Size, MaxBytes+1)), nil
}

// lost marks the errors that mean that a thing to keep is not there.
func lost(err error, name string) error {
	if notThere(err) {
		return fmt.Errorf("keeping %s: %w: %w", name, ErrLost, err)
	}
	return fmt.Errorf("keeping %s: %w", name, err)
}

// create writes a new file. The owner comes last, so that only chown itself
// needs a capability.
func (v *volume) create(dir *os.File, f File) (err error) {
	file, err := openat(fd(dir), path.Base(f.Path), unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if closing := file.Close(); err == nil {
			err = closing
		}
		if err != nil {
			err = fmt.Errorf("writing file %s: %w", f.Path, err)
		}
	}()
	v.labelFile(file)
	if _, err := file.Write(f.Data); err != nil {
		return err
	}
	if err := unix.Fchmod(fd(file), uint32(f.Mode)); err != nil {
		return fmt.Errorf("setting the mode: %w", err)
	}
	if f.UID == -1 && f.GID == -1 {
		return nil
	}
	if err := unix.Fchown(fd(file), f.UID, f.GID); err != nil {
		return fmt.Errorf("setting the owner: %w", err)
	}
	return nil
}

// swap puts ..data_tmp in ..data's place.
func (v *volume) swap() error {
	err := unix.Renameat(fd(v.File), dataTmp, fd(v.File), dataLink)
	if err == unix.EISDIR { // somebody else made ..data a directory
		if err := remove(v.File, dataLink, 0); err != nil {
			return err
		}
		err = unix.Renameat(fd(v.File), dataTmp, fd(v.File), dataLink)
	}
	if err != nil {
		return fmt.Errorf("renaming %s: %w", dataTmp, err)
	}
	return nil
}

// link makes the visible names of the generation lead into ..data and returns
// those that it made. Anything else at such a name is removed.
func (v *volume) link(g Generation) (made []string, err error) {
	for top := range tops(g) {
		want := path.Join(dataLink, top)
		to, err := v.readlink(top)
		if err != nil {
			return made, err
		}
		if to == want {
			continue
		}
		if err := remove(v.File, top, 0); err != nil {
			return made, err
		}
		if err := v.symlink(want, top); err != nil {
			return made, err
		}
		made = append(made, top)
	}
	return made, nil
}

// trim removes visible links into ..data that the generation does not have.
func (v *volume) trim(names []string, g Generation) {
	wanted := tops(g)
	for _, name := range names {
		if to, err := v.readlink(name); err == nil && !wanted[name] && strings.HasPrefix(to, dataLink+"/") {
			_ = unix.Unlinkat(fd(v.File), name, 0)
		}
	}
}

// tops is the set of the generation's visible names.
func tops(g Generation) map[string]bool {
	set := map[string]bool{}
	for _, f := range g.Files {
		top, _, _ := strings.Cut(f.Path, "/")
		set[top] = true
	}
	return set
}

// current returns the name of the directory that ..data names, "" when it
// names none in this volume.
func (v *volume) current() (string, error) {
	dir, err := v.readlink(dataLink)
	if err != nil || !dirName(dir) {
		return "", err
	}
	var st unix.Stat_t
	err = unix.Fstatat(fd(v.File), dir, &st, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) || (err == nil && st.Mode&unix.S_IFMT != unix.S_IFDIR) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("examining the present generation: %w", err)
	}
	return dir, nil
}

// touch sets the modification time of the volume's root to longAgo.
func (v *volume) touch() error {
	at := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, {Sec: longAgo.Unix()}}
	if err := unix.UtimesNanoAt(fd(v.File), ".", at, 0); err != nil {
		return fmt.Errorf("setting the volume's modification time: %w", err)
	}
	return nil
}
