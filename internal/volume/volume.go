// Package volume puts files into a pod's tmpfs: one writer, one swap, one
// sweep, and the question whether the volume is still there. It knows nothing
// of leases.
//
// A volume looks as kubelet's own do: each visible name is a symbolic link to
// ..data/<name>, and ..data a link to the directory of the present generation,
// switched by renaming ..data_tmp over it.
package volume

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/tenure-csi/tenure/provider"
)

// MaxBytes is how much one generation may hold, kept files included. It is the
// driver's own limit for a volume (4 MiB, its gRPC response limit).
const MaxBytes = 4 << 20

// Limits against trees built to exhaust us.
const (
	maxDepth   = 32   // directories below a generation, ours and those that we remove; each costs a handle
	maxEntries = 8192 // names in one directory of a volume
)

// The reasons that a caller tells apart with errors.Is.
var (
	// ErrNotMounted means that the target is gone, or is not a tmpfs (any more):
	// the volume has not come yet, or is going.
	ErrNotMounted = errors.New("volume is not mounted")
	// ErrEmpty means that the volume is mounted and holds no generation.
	ErrEmpty = errors.New("volume holds no generation")
	// ErrLost means that a file with Keep is not in the present generation, or
	// is no regular file there: it must be issued anew.
	ErrLost = errors.New("file to keep is not in the volume")
)

// errForeign is for trees beyond what any provider writes.
var errForeign = errors.New("not written by a provider")

// File is one file of a generation.
type File struct {
	Path     string      // relative to the volume, "a" or "a/b"
	Mode     fs.FileMode // 0–0777
	UID, GID int         // -1: left as created
	Data     []byte      // ignored when Keep
	Keep     bool        // hard-link the file of this path from the present generation, with the mode and owner it has
}

// Generation is one complete set of a volume's files.
type Generation struct {
	Dir    string   // the new directory's name, from NewDirName: chosen before, so that it can be journaled
	Files  []File   // in any order; empty: a volume without files
	Retain []string // older directories to leave alone, because their overlap has not ended
}

// Presence says what is left of a volume.
type Presence int

// What Look can find.
const (
	Unknown    Presence = iota // the pods directory can't be trusted or read: keep everything
	Here                       // the pod's and the volume's directories exist
	VolumeGone                 // the pod's directory exists, the volume's CSI directory does not
	PodGone                    // the pod's directory is gone
)

// check refuses what no volume may hold, whatever the caller has checked before.
func (g Generation) check() error {
	if !dirName(g.Dir) || slices.Contains(g.Retain, g.Dir) {
		return invalid("naming a generation: %q is not a new directory's name", g.Dir)
	}
	kinds := map[string]bool{} // path → is a file
	for _, f := range g.Files {
		if err := f.check(); err != nil {
			return err
		}
		if _, taken := kinds[f.Path]; taken {
			return invalid("placing file %q: the path is used twice", f.Path)
		}
		kinds[f.Path] = true
		for d := path.Dir(f.Path); d != "."; d = path.Dir(d) {
			if kinds[d] {
				return invalid("placing file %q: %q is a file too", f.Path, d)
			}
			kinds[d] = false
		}
	}
	if n := g.newBytes(); n > MaxBytes {
		return tooLarge(n)
	}
	return nil
}

// newBytes is the size of the files that are not kept.
func (g Generation) newBytes() int {
	n := 0
	for _, f := range g.Files {
		if !f.Keep {
			n += len(f.Data)
		}
	}
	return n
}

func (f File) check() error {
	parts := strings.Split(f.Path, "/")
	if len(f.Path) > 4096 || len(parts) > maxDepth || slices.ContainsFunc(parts, func(p string) bool {
		return strings.HasPrefix(p, "..") || p == "." || !element(p)
	}) {
		return invalid("placing a file: %q is not a relative path of [A-Za-z0-9._-] elements (≤ 255 bytes each, none beginning with ..)", f.Path)
	}
	if f.Mode&^0o777 != 0 {
		return invalid("placing file %q: mode %o is not within 0–0777", f.Path, uint32(f.Mode))
	}
	for _, id := range []int{f.UID, f.GID} {
		if id < -1 || int64(id) >= math.MaxUint32 {
			return invalid("placing file %q: %d is not a user or group id", f.Path, id)
		}
	}
	return nil
}

// element reports whether s can be one element of a path below a volume.
func element(s string) bool {
	return s != "" && len(s) <= 255 && strings.Trim(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-") == ""
}

// dirName reports whether s can be the name of a generation's directory.
func dirName(s string) bool {
	return element(s) && len(s) > len("..") && strings.HasPrefix(s, "..") && s != dataLink && s != dataTmp
}

func tooLarge(n int) error {
	return &provider.Error{
		Class: provider.Exhausted, Cause: fmt.Sprintf("adding up the volume: %d bytes are over the limit of %d", n, MaxBytes),
		Remedy: "split the objects over several volumes",
	}
}

func invalid(format string, args ...any) error {
	return &provider.Error{Class: provider.Invalid, Cause: fmt.Sprintf(format, args...)}
}

// explain gives an error of Write the class and the remedy that its cause
// calls for. Errors that have a class keep it.
func explain(err error) error {
	if had := (*provider.Error)(nil); err == nil || errors.As(err, &had) {
		return err
	}
	is := func(targets ...error) bool {
		return slices.ContainsFunc(targets, func(t error) bool { return errors.Is(err, t) })
	}
	e := &provider.Error{Class: provider.Internal, Err: err, Cause: err.Error()}
	switch {
	case is(ErrLost):
		e.Class, e.Remedy = provider.Unavailable, "mount again to have it issued anew"
	case is(ErrNotMounted):
		e.Class = provider.Precondition
	case is(unix.ENOENT): // our own directory was taken away under us: the driver empties a volume before it unmounts
		e.Class, e.Err = provider.Precondition, fmt.Errorf("%w: %w", ErrNotMounted, err)
	case is(unix.ENOSPC, unix.EDQUOT, unix.ENOMEM, unix.EMFILE, unix.ENFILE):
		e.Class, e.Remedy = provider.Exhausted, "free memory on the node or raise the provider's limits"
	case is(unix.EROFS, unix.EACCES, unix.EPERM):
		e.Class, e.Remedy = provider.Precondition, "check that the volume is writable, and that the provider runs as uid 0 with CAP_CHOWN and CAP_FOWNER where objects have an owner"
	case is(unix.ELOOP, unix.EXDEV, unix.EBUSY, unix.ENOTEMPTY, errForeign):
		e.Class, e.Remedy = provider.Precondition, "restart the pod, and find out what else writes into its volume"
	case is(unix.EIO):
		e.Class = provider.Unavailable
	}
	return e
}
