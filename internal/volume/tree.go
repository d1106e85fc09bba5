package volume

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

const labelAttr = "security.selinux"

func fd(f *os.File) int { return int(f.Fd()) }

// openat opens name below dir. No symbolic link is followed and no mount point
// crossed: a privileged pod can put either into its volume.
func openat(dir int, name string, flags int, mode uint32) (*os.File, error) {
	h, err := unix.Openat2(dir, name, &unix.OpenHow{
		Flags: uint64(flags) | unix.O_CLOEXEC, Mode: uint64(mode),
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV,
	})
	if err != nil {
		return nil, fmt.Errorf("opening %s: %w", name, err)
	}
	return os.NewFile(uintptr(h), name), nil
}

// notThere reports errors of a path that does not lead to the kind of thing
// that was expected, a symbolic link in it included.
func notThere(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP)
}

// list returns the names in dir.
func list(dir *os.File) ([]string, error) {
	names, err := dir.Readdirnames(maxEntries + 1)
	if err != nil && err != io.EOF {
		return nil, fmt.Errorf("listing %s: %w", dir.Name(), err)
	}
	if len(names) > maxEntries {
		return nil, fmt.Errorf("listing %s: over %d names: %w", dir.Name(), maxEntries, errForeign)
	}
	return names, nil
}

// remove removes name in dir with all below it, whatever it is; missing is no
// error. Symbolic links are removed, not followed; mounts are an error. Where
// a directory's mode or owner stands in the way, both are changed.
func remove(dir *os.File, name string, depth int) error {
	err := unix.Unlinkat(fd(dir), name, 0)
	if err == nil || errors.Is(err, unix.ENOENT) {
		return nil
	}
	if !errors.Is(err, unix.EISDIR) {
		return fmt.Errorf("removing %s: %w", name, err)
	}
	if depth >= maxDepth {
		return fmt.Errorf("removing %s: %d directories deep: %w", name, depth, errForeign)
	}
	sub, err := openToEmpty(dir, name)
	if err != nil {
		return err
	}
	defer sub.Close()
	names, err := list(sub)
	if err != nil {
		return err
	}
	for _, n := range names {
		if err := remove(sub, n, depth+1); err != nil {
			return err
		}
	}
	if err := unix.Unlinkat(fd(dir), name, unix.AT_REMOVEDIR); err != nil && err != unix.ENOENT {
		return fmt.Errorf("removing %s: %w", name, err)
	}
	return nil
}

// openToEmpty opens a directory that is to be emptied. Without
// CAP_DAC_OVERRIDE, uid 0 is bound to modes like everybody else.
func openToEmpty(dir *os.File, name string) (*os.File, error) {
	h, err := openat(fd(dir), name, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	defer h.Close()
	var st unix.Stat_t
	if err := unix.Fstat(fd(h), &st); err != nil {
		return nil, fmt.Errorf("examining %s: %w", name, err)
	}
	if uid := os.Geteuid(); int(st.Uid) != uid || st.Mode&0o700 != 0o700 {
		// Refusals are of no interest: what follows shows whether it was needed.
		_ = unix.Fchownat(fd(h), "", uid, -1, unix.AT_EMPTY_PATH)
		_ = unix.Chmod(self(h), 0o700)
	}
	return openat(fd(h), ".", unix.O_RDONLY|unix.O_DIRECTORY, 0)
}

// symlink makes a symbolic link in the volume's root.
func (v *volume) symlink(to, name string) error {
	if err := unix.Symlinkat(to, fd(v.File), name); err != nil {
		return fmt.Errorf("linking %s: %w", name, err)
	}
	if v.label != nil { // there is no call for a link's attributes below a handle
		_ = unix.Lsetxattr(self(v.File)+"/"+name, labelAttr, v.label, 0)
	}
	return nil
}

// readlink returns where a symbolic link in the volume's root leads, "" when
// there is none of that name.
func (v *volume) readlink(name string) (string, error) {
	var buf [4096]byte
	n, err := unix.Readlinkat(fd(v.File), name, buf[:])
	if err == unix.ENOENT || err == unix.EINVAL {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("reading link %s: %w", name, err)
	}
	return string(buf[:n]), nil
}

// labelOf returns the SELinux label of f, nil where there is none. A file made
// by us carries our process's category, which the pod may not read: the
// volume's root has the right one.
func labelOf(f *os.File) []byte {
	var buf [4096]byte
	n, err := unix.Fgetxattr(fd(f), labelAttr, buf[:])
	if err != nil || n == 0 {
		return nil
	}
	return buf[:n]
}

// labelFile gives f the volume's label, where there are labels at all.
func (v *volume) labelFile(f *os.File) {
	if v.label != nil {
		_ = unix.Fsetxattr(fd(f), labelAttr, v.label, 0)
	}
}

// self is a path to what f has open, for calls that take no handle.
func self(f *os.File) string { return "/proc/self/fd/" + strconv.Itoa(fd(f)) }
