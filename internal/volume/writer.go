package volume

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tenure-csi/tenure/provider"
)

// Writer writes volumes and looks at them. It keeps no handle between calls,
// because an open one makes the driver's umount fail (EBUSY). All methods may
// be called at once for different targets; calls that change one target
// (Write, Remove) must be serialised by the caller.
type Writer struct {
	// Step is nil in production. Tests set it before the first Write, which then
	// calls it with the name of each point that it has reached:
	//
	//	opened   the target is a tmpfs that we may change
	//	swept    leftovers of other writes are gone
	//	file     one file is complete (once for each)
	//	filled   the new directory is complete
	//	staged   ..data_tmp names the new directory
	//	linked   every visible link of the new generation exists
	//	swapped  ..data names the new directory
	//	trimmed  links of removed objects are gone
	//	done     the modification time is set back
	//
	// After a process that dies at a point before swapped the old generation is
	// whole, from swapped on the new one is; the next Write clears the rest.
	Step func(point string)

	pods string // <kubelet>/pods
}

// Mark identifies the pods directory: which one it is, not what it holds.
type Mark struct {
	Dev uint64 `json:"dev"`
	Ino uint64 `json:"ino"`
}

// NewWriter makes a Writer for the volumes below kubeletDir (/var/lib/kubelet),
// an absolute path, the same as on the node. The directory need not exist yet.
// It is an error when the kernel (Linux < 5.6) or a seccomp profile lacks
// openat2, without which no path can be opened safely.
func NewWriter(kubeletDir string) (*Writer, error) {
	if !filepath.IsAbs(kubeletDir) {
		return nil, invalid("opening the kubelet directory: %q is not an absolute path", kubeletDir)
	}
	root, err := openat(unix.AT_FDCWD, ".", unix.O_PATH, 0)
	if err != nil {
		return nil, fmt.Errorf("trying openat2 (Linux 5.6): %w", err)
	}
	return &Writer{pods: filepath.Join(kubeletDir, "pods")}, root.Close()
}

// NewDirName returns a name for a generation's directory as kubelet forms them:
// ..2026_11_21_10_04_05.<random>, in UTC. Two calls in one second give the same
// name with a probability of 2⁻⁶⁴.
func NewDirName(now time.Time) string {
	return now.UTC().Format("..2006_01_02_15_04_05.") + strconv.FormatUint(rand.Uint64(), 10)
}

// Write makes g the volume's present generation, in one swap: a reader that
// opens ..data finds the files of one generation, all of them. The replaced
// directory stays until Remove or a later Write without it in Retain; every
// other name beginning with ".." is removed, whoever made it, and so is
// whatever stands at a visible name that g needs. Visible names that are no
// links into ..data are otherwise left alone.
//
// On an error the old generation is what it was, and nothing new is left. The
// error is a *provider.Error; errors.Is tells ErrNotMounted and ErrLost, class
// Exhausted a full tmpfs or a generation over MaxBytes. After the swap nothing
// fails: a link of a removed object that can't be removed is left to the next
// Write. The directory's modification time is 1971-01-01 afterwards, so that
// the driver skips no republish.
//
// Owners other than uid 0 need CAP_CHOWN, keeping their files CAP_FOWNER;
// nothing else needs a capability.
func (w *Writer) Write(target string, g Generation) error {
	if err := g.check(); err != nil {
		return err
	}
	v, err := w.open(target, unix.O_RDONLY)
	if err != nil {
		return explain(err)
	}
	defer v.Close()
	return explain(v.write(g))
}

// Current returns the name of the directory that ..data names. It promises that
// the target was a tmpfs and the name a directory in it at the time of the
// call, and nothing about the files. ErrNotMounted and ErrEmpty as they say;
// ErrEmpty also when ..data is no link to a directory of the volume. It takes
// some microseconds: cheap enough for every republish.
func (w *Writer) Current(target string) (string, error) {
	v, err := w.open(target, unix.O_PATH)
	if err != nil {
		return "", err
	}
	defer v.Close()
	dir, err := v.current()
	if err == nil && dir == "" {
		err = ErrEmpty
	}
	return dir, err
}

// Claim makes an empty volume look old, and reports whether it did already: then
// a Mount was begun before this one, and the driver that called has died in it.
// Its successor would answer kubelet for a volume younger than its rotation
// interval without a Mount, and takes whatever a Mount answers for success where
// it finds the volume mounted. ErrNotMounted as it says. It may be called while
// another call changes the target.
func (w *Writer) Claim(target string) (again bool, err error) {
	v, err := w.open(target, unix.O_RDONLY)
	if err != nil {
		return false, err
	}
	defer v.Close()
	info, err := v.Stat()
	if err != nil {
		return false, fmt.Errorf("examining the volume: %w", err)
	}
	switch _, err := v.Readdirnames(1); {
	case err == nil:
		return false, nil
	case !errors.Is(err, io.EOF):
		return false, fmt.Errorf("listing the volume: %w", err)
	}
	return info.ModTime().Equal(longAgo), v.touch()
}

// Remove removes the directory of an older generation, and sets the volume's
// modification time back. That it is missing already, or the whole volume, is
// no error; that it is the present one is.
func (w *Writer) Remove(target, dir string) error {
	if !dirName(dir) {
		return invalid("removing a generation: %q is not a directory's name", dir)
	}
	v, err := w.open(target, unix.O_RDONLY)
	if errors.Is(err, ErrNotMounted) {
		return nil
	}
	if err != nil {
		return err
	}
	defer v.Close()
	current, err := v.current()
	if err != nil {
		return err
	}
	if current == dir {
		return invalid("removing a generation: %q is the present one", dir)
	}
	return errors.Join(remove(v.File, dir, 0), v.touch())
}

// Look says what is left of the pod's volume at target. Absence is ENOENT and
// nothing else, and is only as good as the pods directory: trust it when Root,
// asked after Look, gives the Mark recorded earlier. A target that is not one of
// podUID is Unknown.
func (w *Writer) Look(target, podUID string) Presence {
	rel, err := w.rel(target)
	if uid, _, _ := strings.Cut(rel, "/"); err != nil || uid != podUID {
		return Unknown
	}
	if p := look(filepath.Join(w.pods, podUID), PodGone); p != Here {
		return p
	}
	return look(filepath.Dir(target), VolumeGone)
}

func look(path string, gone Presence) Presence {
	var st unix.Stat_t
	switch unix.Lstat(path, &st) {
	case nil:
		return Here
	case unix.ENOENT:
		return gone
	}
	return Unknown
}

// Root reads the pods directory through and returns its Mark. The caller keeps
// the Mark beside its journal: a kubelet directory that is not mounted, or
// another one, looks like a node without pods. A directory that was deleted on
// the node beneath a bind mount of ours can't be read.
func (w *Writer) Root() (Mark, error) {
	dir, err := os.Open(w.pods)
	if err != nil {
		return Mark{}, fmt.Errorf("opening the pods directory: %w", err)
	}
	defer dir.Close()
	if _, err := dir.Readdirnames(-1); err != nil {
		return Mark{}, fmt.Errorf("listing the pods directory: %w", err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(dir.Fd()), &st); err != nil {
		return Mark{}, fmt.Errorf("examining the pods directory: %w", err)
	}
	return Mark{Dev: st.Dev, Ino: st.Ino}, nil
}

// open opens the volume's root, following no symbolic link below the pods
// directory, and makes sure that it is a tmpfs: after an unmount the same path
// is a directory on the node's disk.
func (w *Writer) open(target string, flags int) (*volume, error) {
	rel, err := w.rel(target)
	if err != nil {
		return nil, err
	}
	pods, err := unix.Open(w.pods, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &provider.Error{
			Class: provider.Precondition, Cause: "opening the pods directory: " + err.Error(), Err: err,
			Remedy: "mount the node's " + w.pods + " into the provider's container at the same path",
		}
	}
	defer unix.Close(pods)
	fd, err := unix.Openat2(pods, rel, &unix.OpenHow{
		Flags:   uint64(flags) | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS,
	})
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return nil, fmt.Errorf("opening the volume: %w: %w", ErrNotMounted, err)
	}
	if err != nil {
		return nil, fmt.Errorf("opening the volume: %w", err)
	}
	v := &volume{File: os.NewFile(uintptr(fd), target), step: w.Step}
	var st unix.Statfs_t
	if err := unix.Fstatfs(fd, &st); err != nil {
		v.Close()
		return nil, fmt.Errorf("examining the volume: %w", err)
	}
	if st.Type != unix.TMPFS_MAGIC {
		v.Close()
		return nil, fmt.Errorf("examining the volume: no tmpfs: %w", ErrNotMounted)
	}
	return v, nil
}

// rel returns target relative to the pods directory.
func (w *Writer) rel(target string) (string, error) {
	rel, ok := strings.CutPrefix(target, w.pods+"/")
	p := strings.Split(rel, "/")
	name := func(s string) bool { return s != "" && s != "." && s != ".." && !strings.Contains(s, "\x00") }
	if !ok || len(p) != 5 || !name(p[0]) || p[1] != "volumes" || p[2] != "kubernetes.io~csi" || !name(p[3]) || p[4] != "mount" {
		return "", invalid("opening the volume: %q is not %s/<pod UID>/volumes/kubernetes.io~csi/<name>/mount", target, w.pods)
	}
	return rel, nil
}
