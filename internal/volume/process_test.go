package volume

import (
	"errors"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/tenure-csi/tenure/provider"
)

// childEnv tells a copy of the test binary which test it is to run, as the child.
const childEnv = "TENURE_VOLUME_CHILD"

// child is the command that runs the present test in a process of its own.
func child(t *testing.T, arg string) *exec.Cmd {
	self, err := os.Executable()
	require.NoError(t, err)
	cmd := exec.Command(self, "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), childEnv+"="+arg, "GORACE=atexit_sleep_ms=0")
	return cmd
}

func requireSuccess(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.NotContains(t, string(out), "SKIP", "%s", out)
}

func skipUnlessRoot(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("SKIPPED: mounts, owners and capabilities can be tested by root only")
	}
}

// A process killed at any point leaves one generation whole; the next Write
// succeeds and clears the rest.
func TestKillAtEveryPoint(t *testing.T) {
	first := []File{file("a", "1"), file("t/user", "1"), file("t/pass", "1"), file("old/x", "1")}
	second := []File{file("a", "2"), kept("t/user"), file("t/pass", "2"), file("new/x", "2")}
	if arg := os.Getenv(childEnv); arg != "" {
		killAt(t, arg, second)
		return
	}
	points := []string{"opened", "swept", "file", "file", "file", "file", "filled", "staged", "linked", "swapped", "trimmed", "done"}
	for n, point := range points {
		for _, empty := range []bool{false, true} {
			w, target := newVolume(t)
			present, before, after := "", map[string]string{}, map[string]string{"a": "2", "t/user": "1", "t/pass": "2", "new/x": "2"}
			if empty {
				after["t/user"] = "2"
			} else {
				g := gen(first...)
				require.NoError(t, w.Write(target, g))
				present, before = g.Dir, map[string]string{"a": "1", "t/user": "1", "t/pass": "1", "old/x": "1"}
			}
			cmd := child(t, strings.Join([]string{strconv.Itoa(n), strconv.FormatBool(empty), target}, " "))
			out, err := cmd.CombinedOutput()
			var exit *exec.ExitError
			require.ErrorAs(t, err, &exit, "%s", out)
			require.Equal(t, syscall.SIGKILL, exit.Sys().(syscall.WaitStatus).Signal(), "%s at %s", out, point)

			current, err := w.Current(target)
			switch swapped := n >= len(points)-3; {
			case swapped:
				require.NotEqual(t, present, current)
				require.Equal(t, after, content(t, target), point)
			case empty:
				require.ErrorIs(t, err, ErrEmpty)
			default:
				require.Equal(t, present, current)
				require.Equal(t, before, content(t, target), point)
			}
			third := gen(file("a", "3"), file("last", "3"))
			third.Retain = []string{present}
			require.NoError(t, w.Write(target, third))
			require.Equal(t, map[string]string{"a": "3", "last": "3"}, content(t, target))
			want := map[string]bool{third.Dir: true, dataLink: true, "a": true, "last": true, present: true, current: true}
			delete(want, "") // an empty volume had neither
			require.ElementsMatch(t, slices.Collect(maps.Keys(want)), names(t, target), "killed at %s", point)
			requireLongAgo(t, target)
		}
	}
}

// killAt writes the generation and kills its own process at the nth point.
func killAt(t *testing.T, arg string, files []File) {
	parts := strings.Fields(arg)
	n, err := strconv.Atoi(parts[0])
	require.NoError(t, err)
	target := parts[2]
	if parts[1] == "true" { // an empty volume has nothing to keep
		files[1] = file("t/user", "2")
	}
	kubelet, _, _ := strings.Cut(target, "/pods/")
	w, err := NewWriter(kubelet)
	require.NoError(t, err)
	w.Step = func(string) {
		if n--; n < 0 {
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
	}
	require.NoError(t, w.Write(target, gen(files...)))
	t.Fatal("still alive")
}

// inMountNamespace runs f in a child process with mounts of its own, so that
// none can be left behind, and with a small tmpfs at the target.
func inMountNamespace(t *testing.T, options string, f func(t *testing.T, w *Writer, target string)) {
	skipUnlessRoot(t)
	if os.Getenv(childEnv) == "" {
		cmd := child(t, "mounts")
		cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS}
		requireSuccess(t, cmd)
		return
	}
	w, target := volumeIn(t, t.TempDir())
	require.NoError(t, unix.Mount("tmpfs", target, "tmpfs", 0, options))
	t.Cleanup(func() { _ = unix.Unmount(target, unix.MNT_DETACH) })
	f(t, w, target)
}

func TestFullVolume(t *testing.T) {
	inMountNamespace(t, "size=64k,mode=1777", func(t *testing.T, w *Writer, target string) {
		first := gen(file("a", strings.Repeat("1", 20_000)), file("b", "1"))
		require.NoError(t, w.Write(target, first))
		for range 3 {
			big := gen(kept("b"), file("a", strings.Repeat("2", 30_000)), file("c/d", strings.Repeat("2", 30_000)))
			err := w.Write(target, big)
			require.ErrorIs(t, err, unix.ENOSPC)
			requireClass(t, provider.Exhausted, err)
			require.Equal(t, map[string]string{"a": strings.Repeat("1", 20_000), "b": "1"}, content(t, target))
			require.ElementsMatch(t, []string{first.Dir, dataLink, "a", "b"}, names(t, target))
			requireLongAgo(t, target)
		}
		require.NoError(t, w.Write(target, gen(kept("b"), file("a", strings.Repeat("2", 30_000)))), "the space was given back")
	})
}

// A tmpfs can also run out of files: at each of them in turn, links included.
func TestOutOfInodes(t *testing.T) {
	inMountNamespace(t, "nr_inodes=40,mode=1777", func(t *testing.T, w *Writer, target string) {
		first := gen(file("a", "1"))
		require.NoError(t, w.Write(target, first))
		full := 0
		for free := range 12 {
			spare := filepath.Join(target, "spare")
			require.NoError(t, os.Mkdir(spare, 0o700))
			var st unix.Statfs_t
			require.NoError(t, unix.Statfs(target, &st))
			for i := range int(st.Ffree) - free {
				require.NoError(t, os.WriteFile(filepath.Join(spare, strconv.Itoa(i)), nil, 0o600))
			}
			next := gen(kept("a"), file("b/c", "2"), file("d/e", "2"))
			err := w.Write(target, next)
			requireLongAgo(t, target)
			require.NoError(t, os.RemoveAll(spare))
			if err != nil {
				full++
				require.ErrorIs(t, err, unix.ENOSPC)
				require.Equal(t, map[string]string{"a": "1"}, content(t, target))
				require.ElementsMatch(t, []string{first.Dir, dataLink, "a"}, names(t, target), "with %d free", free)
				continue
			}
			require.Equal(t, map[string]string{"a": "1", "b/c": "2", "d/e": "2"}, content(t, target))
			require.ElementsMatch(t, []string{first.Dir, next.Dir, dataLink, "a", "b", "d"}, names(t, target))
			first = gen(kept("a"))
			require.NoError(t, w.Write(target, first))
			require.NoError(t, w.Remove(target, next.Dir))
		}
		require.Greater(t, full, 5, "the files, directories and links of one generation")
	})
}

func TestReadOnlyVolume(t *testing.T) {
	inMountNamespace(t, "mode=1777", func(t *testing.T, w *Writer, target string) {
		require.NoError(t, w.Write(target, gen(file("a", "1"))))
		remount := func(flags uintptr) { require.NoError(t, unix.Mount("", target, "", unix.MS_REMOUNT|flags, "")) }
		remount(unix.MS_RDONLY)
		err := w.Write(target, gen(file("a", "2")))
		require.ErrorIs(t, err, unix.EROFS)
		requireClass(t, provider.Precondition, err)
		require.Equal(t, map[string]string{"a": "1"}, content(t, target))

		remount(0)
		w.Step = func(point string) {
			if point == "staged" {
				remount(unix.MS_RDONLY)
			}
		}
		require.ErrorIs(t, w.Write(target, gen(file("a", "2"), file("b", "2"))), unix.EROFS)
		require.Equal(t, map[string]string{"a": "1"}, content(t, target))
		w.Step = nil
		remount(0)
		g := gen(file("a", "3"))
		require.NoError(t, w.Write(target, g))
		require.Subset(t, names(t, target), []string{g.Dir, dataLink, "a"})
		require.Len(t, names(t, target), 4, "what could not be removed then is swept now")
	})
}

// No handle outlives a call: the driver's umount gets no EBUSY from us.
func TestUnmount(t *testing.T) {
	inMountNamespace(t, "mode=1777", func(t *testing.T, w *Writer, target string) {
		require.NoError(t, w.Write(target, gen(file("a/b", "1"))))
		require.NoError(t, w.Write(target, gen(kept("a/b"), file("c", "1"))))
		requireClass(t, provider.Invalid, w.Write(target, gen(file("..", ""))))
		require.ErrorIs(t, w.Write(target, gen(kept("missing/b"))), ErrLost)
		require.NoError(t, w.Remove(target, "..none"))
		_, err := w.Current(target)
		require.NoError(t, err)
		_, err = w.Root()
		require.NoError(t, err)
		require.NoError(t, unix.Unmount(target, 0))

		require.ErrorIs(t, w.Write(target, gen(file("a", "2"))), ErrNotMounted)
		_, err = w.Current(target)
		require.ErrorIs(t, err, ErrNotMounted)
		require.Empty(t, names(t, target))
	})
}

// While a Write runs the driver's umount is refused; right after it works.
func TestUnmountDuringWrite(t *testing.T) {
	inMountNamespace(t, "mode=1777", func(t *testing.T, w *Writer, target string) {
		busy := 0
		w.Step = func(string) {
			if unix.Unmount(target, 0) == unix.EBUSY {
				busy++
			}
		}
		require.NoError(t, w.Write(target, gen(file("a/b", "1"))))
		require.Equal(t, 9, busy, "at each point")
		require.NoError(t, unix.Unmount(target, 0))
	})
}

// A mount that a privileged pod puts into its volume is not entered.
func TestForeignMount(t *testing.T) {
	inMountNamespace(t, "mode=1777", func(t *testing.T, w *Writer, target string) {
		require.NoError(t, w.Write(target, gen(file("a", "1"))))
		precious := t.TempDir()
		require.NoError(t, os.WriteFile(filepath.Join(precious, "file"), nil, 0o600))
		for _, at := range []string{"..old", dataTmp, "..old2/below", "b"} {
			dir := filepath.Join(target, at)
			require.NoError(t, os.MkdirAll(dir, 0o700))
			require.NoError(t, unix.Mount(precious, dir, "", unix.MS_BIND, ""))
			err := w.Write(target, gen(file("a", "2"), file("b", "2")))
			require.True(t, errors.Is(err, unix.EXDEV) || errors.Is(err, unix.EBUSY), "%v", err)
			requireClass(t, provider.Precondition, err)
			require.Equal(t, map[string]string{"a": "1"}, content(t, target))
			require.Equal(t, []string{"file"}, names(t, precious))
			require.NoError(t, unix.Unmount(dir, 0))
			require.NoError(t, os.RemoveAll(dir))
		}
	})
}
