package volume

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/tenure-csi/tenure/provider"
)

func TestFirstWrite(t *testing.T) {
	w, target := newVolume(t)
	_, err := w.Current(target)
	require.ErrorIs(t, err, ErrEmpty)

	old := unix.Umask(0o077)
	defer unix.Umask(old)
	g := gen(
		File{Path: "a", Mode: 0o400, UID: -1, GID: -1, Data: []byte("one\x00\n")},
		File{Path: "-x/y/z", Mode: 0o666, UID: os.Getuid(), GID: os.Getgid(), Data: []byte("two")},
		File{Path: "empty", Mode: 0, UID: -1, GID: -1},
	)
	require.NoError(t, w.Write(target, g))

	me, my := uint32(os.Getuid()), uint32(os.Getgid())
	if os.Getuid() != 0 {
		require.NoError(t, os.Chmod(filepath.Join(target, "empty"), 0o400))
	}
	found := readAll(t, target)
	require.Equal(t, seen{"one\x00\n", 0o400, me, my}, found["a"])
	require.Equal(t, seen{"two", 0o666, me, my}, found["-x/y/z"])
	require.Empty(t, found["empty"].Data)
	require.Len(t, found, 3)
	require.ElementsMatch(t, []string{g.Dir, dataLink, "a", "-x", "empty"}, names(t, target))
	for _, top := range []string{"a", "-x", "empty"} {
		to, err := os.Readlink(filepath.Join(target, top))
		require.NoError(t, err)
		require.Equal(t, "..data/"+top, to)
	}
	current, err := w.Current(target)
	require.NoError(t, err)
	require.Equal(t, g.Dir, current)
	requireLongAgo(t, target)
}

func TestClaim(t *testing.T) {
	w, target := newVolume(t)
	claim := func() bool {
		again, err := w.Claim(target)
		require.NoError(t, err)
		return again
	}
	require.False(t, claim())
	requireLongAgo(t, target)
	require.True(t, claim())

	require.NoError(t, w.Write(target, gen(file("a", "1"))))
	require.False(t, claim(), "it is written")
	require.NoError(t, os.Remove(target+"/a"))
	require.NoError(t, os.Remove(target+"/..data"))
	written, err := os.Stat(target)
	require.NoError(t, err)
	require.False(t, claim(), "somebody has written it")
	after, err := os.Stat(target)
	require.NoError(t, err)
	require.Equal(t, written.ModTime(), after.ModTime())

	_, err = w.Claim(strings.Replace(target, podUID, "gone", 1))
	require.ErrorIs(t, err, ErrNotMounted)
}

func TestUpdate(t *testing.T) {
	w, target := newVolume(t)
	first := gen(file("a", "1"), file("t1/user", "u1"), file("t1/pass", "p1"), file("t2/x", "x"), file("gone", "g"))
	require.NoError(t, w.Write(target, first))
	reader, err := os.OpenRoot(filepath.Join(target, dataLink))
	require.NoError(t, err)
	defer reader.Close()
	inode := func(path string) uint64 {
		var st unix.Stat_t
		require.NoError(t, unix.Stat(filepath.Join(target, path), &st))
		return st.Ino
	}
	before := inode("t2/x")

	second := gen(file("a", "2"), file("t1/user", "u2"), file("t1/pass", "p2"), kept("t2/x"), file("new/n", "n"))
	require.NoError(t, w.Write(target, second))
	require.Equal(t, map[string]string{"a": "2", "t1/user": "u2", "t1/pass": "p2", "t2/x": "x", "new/n": "n"}, content(t, target))
	require.Equal(t, before, inode("t2/x"), "a kept file is the same file")
	require.ElementsMatch(t, []string{first.Dir, second.Dir, dataLink, "a", "t1", "t2", "new"}, names(t, target))
	old, err := reader.ReadFile("t1/pass")
	require.NoError(t, err, "the replaced directory stays for whoever has it open")
	require.Equal(t, "p1", string(old))

	third := gen(kept("a"))
	third.Retain = []string{first.Dir}
	require.NoError(t, w.Write(target, third))
	require.ElementsMatch(t, []string{first.Dir, second.Dir, third.Dir, dataLink, "a"}, names(t, target), "retained, replaced and present")
	fourth := gen(file("a", "4"))
	fourth.Retain = []string{third.Dir}
	require.NoError(t, w.Write(target, fourth))
	require.ElementsMatch(t, []string{third.Dir, fourth.Dir, dataLink, "a"}, names(t, target))
	fifth := gen()
	require.NoError(t, w.Write(target, fifth))
	require.ElementsMatch(t, []string{fourth.Dir, fifth.Dir, dataLink}, names(t, target), "a volume without files")
	requireLongAgo(t, target)
}

func TestPresentDirectoryIsNotReused(t *testing.T) {
	w, target := newVolume(t)
	g := gen(file("a", "1"))
	require.NoError(t, w.Write(target, g))
	requireClass(t, provider.Invalid, w.Write(target, g))
	require.Equal(t, map[string]string{"a": "1"}, content(t, target))
}

// An unfinished write of the same name is done again from the start.
func TestPendingDirectoryIsMadeAnew(t *testing.T) {
	w, target := newVolume(t)
	g := gen(file("a", "1"))
	require.NoError(t, os.MkdirAll(filepath.Join(target, g.Dir, "rest"), 0o700))
	require.NoError(t, w.Write(target, g))
	require.Equal(t, map[string]string{"a": "1"}, content(t, target))
}

func TestKeepWhatIsNotThere(t *testing.T) {
	for name, tc := range map[string]struct {
		prepare func(t *testing.T, dir string)
		keep    string
	}{
		"no such file":      {keep: "b"},
		"no such directory": {keep: "d/b"},
		"file as directory": {keep: "a/b"},
		"a directory":       {keep: "sub"},
		"a link": {keep: "link", prepare: func(t *testing.T, dir string) {
			require.NoError(t, os.Symlink("/etc/passwd", filepath.Join(dir, "link")))
		}},
		"a linked directory": {keep: "linked/x", prepare: func(t *testing.T, dir string) {
			require.NoError(t, os.Symlink("sub", filepath.Join(dir, "linked")))
		}},
		"a fifo": {keep: "fifo", prepare: func(t *testing.T, dir string) {
			require.NoError(t, unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600))
		}},
	} {
		t.Run(name, func(t *testing.T) {
			w, target := newVolume(t)
			first := gen(file("a", "1"), file("sub/x", "x"))
			require.NoError(t, w.Write(target, first))
			if tc.prepare != nil {
				tc.prepare(t, filepath.Join(target, first.Dir))
			}
			err := w.Write(target, gen(file("new", "n"), kept(tc.keep)))
			if tc.keep == "sub" {
				require.ErrorIs(t, err, unix.EPERM, "directories have no hard links")
			} else {
				require.ErrorIs(t, err, ErrLost)
			}
			require.NotErrorIs(t, err, ErrNotMounted)
			current, err := w.Current(target)
			require.NoError(t, err)
			require.Equal(t, first.Dir, current)
			require.ElementsMatch(t, []string{first.Dir, dataLink, "a", "sub"}, names(t, target))
			requireLongAgo(t, target)
		})
	}
	t.Run("empty volume", func(t *testing.T) {
		w, target := newVolume(t)
		require.ErrorIs(t, w.Write(target, gen(kept("a"))), ErrLost)
		require.Empty(t, names(t, target))
		requireLongAgo(t, target)
	})
}

func TestRemove(t *testing.T) {
	w, target := newVolume(t)
	first, second := gen(file("a/b", "1")), gen(file("a/b", "2"))
	require.NoError(t, w.Write(target, first))
	require.NoError(t, w.Write(target, second))
	requireClass(t, provider.Invalid, w.Remove(target, second.Dir))
	for _, bad := range []string{"", ".", "..", "a", dataLink, dataTmp, "../x", "..x/y"} {
		requireClass(t, provider.Invalid, w.Remove(target, bad))
	}
	require.NoError(t, w.Remove(target, first.Dir))
	require.ElementsMatch(t, []string{second.Dir, dataLink, "a"}, names(t, target))
	requireLongAgo(t, target)
	require.NoError(t, w.Remove(target, first.Dir), "missing is no error")
	require.NoError(t, os.RemoveAll(target))
	require.NoError(t, w.Remove(target, first.Dir), "a missing volume neither")
	require.Empty(t, names(t, filepath.Dir(target)), "and nothing is made")
}

func TestVolumeGone(t *testing.T) {
	gone := func(t *testing.T, w *Writer, target string) {
		err := w.Write(target, gen(file("a", "1")))
		require.ErrorIs(t, err, ErrNotMounted)
		requireClass(t, provider.Precondition, err)
		_, err = w.Current(target)
		require.ErrorIs(t, err, ErrNotMounted)
		require.NoError(t, w.Remove(target, "..2026"))
	}
	t.Run("removed", func(t *testing.T) {
		w, target := newVolume(t)
		require.NoError(t, os.RemoveAll(filepath.Join(w.pods, podUID)))
		gone(t, w, target)
		require.Empty(t, names(t, w.pods))
	})
	t.Run("a file", func(t *testing.T) {
		w, target := newVolume(t)
		require.NoError(t, os.Remove(target))
		require.NoError(t, os.WriteFile(target, nil, 0o600))
		gone(t, w, target)
	})
	t.Run("on disk", func(t *testing.T) {
		w, target := volumeIn(t, t.TempDir())
		var st unix.Statfs_t
		require.NoError(t, unix.Statfs(target, &st))
		if st.Type == unix.TMPFS_MAGIC {
			t.Skip("SKIPPED: the temporary directory is a tmpfs too")
		}
		gone(t, w, target)
		require.Empty(t, names(t, target))
	})
	t.Run("emptied in the middle", func(t *testing.T) {
		w, target := newVolume(t)
		w.Step = func(point string) {
			if point != "file" {
				return
			}
			for _, name := range names(t, target) {
				require.NoError(t, os.RemoveAll(filepath.Join(target, name)))
			}
		}
		require.ErrorIs(t, w.Write(target, gen(file("a", "1"), file("b", "2"))), ErrNotMounted)
		require.Empty(t, names(t, target))
	})
	t.Run("no pods directory", func(t *testing.T) {
		w, target := newVolume(t)
		require.NoError(t, os.RemoveAll(w.pods))
		err := w.Write(target, gen())
		requireClass(t, provider.Precondition, err)
		require.NotErrorIs(t, err, ErrNotMounted, "it says nothing about the volume")
	})
}

func TestSteps(t *testing.T) {
	w, target := newVolume(t)
	var steps []string
	var links []string
	w.Step = func(point string) {
		steps = append(steps, point)
		if point == "swapped" { // whoever sees the swap finds every name
			links, _ = filepath.Glob(filepath.Join(target, "[a-z]*"))
		}
	}
	require.NoError(t, w.Write(target, gen(file("a", "1"), file("b/c", "2"))))
	require.Equal(t, []string{"opened", "swept", "file", "file", "filled", "staged", "linked", "swapped", "trimmed", "done"}, steps)
	require.Len(t, links, 2)
}

// The label of the volume's root is given to all that we make. Without SELinux
// the attribute is plain data, so the calls can be checked by a privileged test.
func TestLabels(t *testing.T) {
	w, target := newVolume(t)
	label := []byte("system_u:object_r:container_file_t:s0:c1,c2\x00")
	if err := unix.Setxattr(target, labelAttr, label, 0); err != nil {
		t.Skipf("SKIPPED: can't set %s here: %v", labelAttr, err)
	}
	g := gen(file("a", "1"), file("b/c", "2"))
	require.NoError(t, w.Write(target, g))
	for _, name := range []string{dataLink, "a", "b", g.Dir, g.Dir + "/a", g.Dir + "/b", g.Dir + "/b/c"} {
		buf := make([]byte, 256)
		n, err := unix.Lgetxattr(filepath.Join(target, name), labelAttr, buf)
		require.NoError(t, err, name)
		require.Equal(t, label, buf[:n], name)
	}
}

// Four readers loop while 200 generations are swapped in, and more until each has
// looked ten times. Each opens ..data once: all that it finds there is of one
// generation, and as long as the replaced directory is retained it finds everything.
func TestReadersNeverSeeAMix(t *testing.T) {
	w, target := newVolume(t)
	files := func(n int) []File {
		text := strings.Repeat("v", n)
		return []File{file("user", text), file("t/pass", text), file("t/deep/key", text)}
	}
	past := []string{}
	write := func(n int) {
		g := gen(files(n)...)
		g.Retain = past
		require.NoError(t, w.Write(target, g))
		past = append(past, g.Dir)
	}
	write(1)
	const readers, looks = 4, 10
	var behind atomic.Int32 // readers that a busy machine has not let look so often yet
	behind.Store(readers)
	stop := make(chan struct{})
	faults := make([]error, readers)
	var wg sync.WaitGroup
	for i := range faults {
		wg.Go(func() {
			for round := 1; faults[i] == nil; round++ {
				select {
				case <-stop:
					return
				default:
					faults[i] = readPair(target)
				}
				if round == looks || round < looks && faults[i] != nil {
					behind.Add(-1)
				}
			}
		})
	}
	for n := 0; n < 200 || behind.Load() > 0; n++ {
		write(n + 2)
	}
	close(stop)
	wg.Wait()
	for _, err := range faults {
		require.NoError(t, err)
	}
}

func readPair(target string) error {
	root, err := os.OpenRoot(filepath.Join(target, dataLink))
	if err != nil {
		return err
	}
	defer root.Close()
	var all []string
	for _, path := range []string{"user", "t/pass", "t/deep/key"} {
		data, err := root.ReadFile(path)
		if err != nil {
			return err
		}
		all = append(all, string(data))
	}
	if len(slices.Compact(all)) != 1 {
		return os.ErrInvalid
	}
	return nil
}

func BenchmarkCurrent(b *testing.B) {
	w, target := newVolume(b)
	require.NoError(b, w.Write(target, gen(file("a", "1"))))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := w.Current(target); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkWrite(b *testing.B) {
	w, target := newVolume(b)
	require.NoError(b, w.Write(target, gen(file("a", "1"), file("b/c", "2"), file("b/d", "3"))))
	b.ReportAllocs()
	for b.Loop() {
		if err := w.Write(target, gen(file("a", "1"), kept("b/c"), kept("b/d"))); err != nil {
			b.Fatal(err)
		}
	}
}
