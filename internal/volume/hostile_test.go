package volume

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/tenure-csi/tenure/provider"
)

// A privileged pod can put anything into its volume. None of it may lead a
// write or a removal out of the volume.
func TestHostileContent(t *testing.T) {
	for name, plant := range map[string]func(t *testing.T, target, outside string){
		"data is a directory": func(t *testing.T, target, _ string) {
			require.NoError(t, os.RemoveAll(filepath.Join(target, dataLink)))
			require.NoError(t, os.MkdirAll(filepath.Join(target, dataLink, "a/b"), 0o700))
		},
		"data leads outside": func(t *testing.T, target, outside string) {
			relink(t, outside, filepath.Join(target, dataLink))
		},
		"data leads to its parent": func(t *testing.T, target, _ string) {
			relink(t, "..", filepath.Join(target, dataLink))
		},
		"data leads to itself": func(t *testing.T, target, _ string) {
			relink(t, dataLink, filepath.Join(target, dataLink))
		},
		"data leads to a link": func(t *testing.T, target, outside string) {
			relink(t, outside, filepath.Join(target, "..elsewhere"))
			relink(t, "..elsewhere", filepath.Join(target, dataLink))
		},
		"data is a fifo": func(t *testing.T, target, _ string) {
			require.NoError(t, os.RemoveAll(filepath.Join(target, dataLink)))
			require.NoError(t, unix.Mkfifo(filepath.Join(target, dataLink), 0o600))
		},
		"data dangles": func(t *testing.T, target, _ string) {
			relink(t, "..2020_01_01_00_00_00.1", filepath.Join(target, dataLink))
		},
		"tmp is a link": func(t *testing.T, target, outside string) {
			relink(t, outside, filepath.Join(target, dataTmp))
		},
		"tmp is a full directory": func(t *testing.T, target, outside string) {
			require.NoError(t, os.MkdirAll(filepath.Join(target, dataTmp, "x/y"), 0o700))
			relink(t, outside, filepath.Join(target, dataTmp, "x/out"))
		},
		"tmp is a fifo": func(t *testing.T, target, _ string) {
			require.NoError(t, unix.Mkfifo(filepath.Join(target, dataTmp), 0o600))
		},
		"visible name leads outside": func(t *testing.T, target, outside string) {
			relink(t, outside, filepath.Join(target, "a"))
		},
		"visible name leads to an old directory": func(t *testing.T, target, _ string) {
			relink(t, "..old/a", filepath.Join(target, "a"))
		},
		"visible name is a file": func(t *testing.T, target, _ string) {
			require.NoError(t, os.RemoveAll(filepath.Join(target, "a")))
			require.NoError(t, os.WriteFile(filepath.Join(target, "a"), []byte("theirs"), 0o600))
		},
		"visible name is a directory with links": func(t *testing.T, target, outside string) {
			require.NoError(t, os.RemoveAll(filepath.Join(target, "d")))
			require.NoError(t, os.MkdirAll(filepath.Join(target, "d/e"), 0o700))
			relink(t, outside, filepath.Join(target, "d/e/out"))
			require.NoError(t, unix.Mkfifo(filepath.Join(target, "d/fifo"), 0o600))
		},
		"directories without permissions": func(t *testing.T, target, _ string) {
			require.NoError(t, os.MkdirAll(filepath.Join(target, "..old/x/y"), 0o700))
			require.NoError(t, os.Chmod(filepath.Join(target, "..old/x/y"), 0))
			require.NoError(t, os.Chmod(filepath.Join(target, "..old/x"), 0o500))
			require.NoError(t, os.Chmod(filepath.Join(target, "..old"), 0))
		},
		"a generation that is a link": func(t *testing.T, target, outside string) {
			relink(t, outside, filepath.Join(target, "..2020_01_01_00_00_00.1"))
		},
		"an old generation full of links": func(t *testing.T, target, outside string) {
			require.NoError(t, os.MkdirAll(filepath.Join(target, "..2020_01_01_00_00_00.1/x"), 0o700))
			relink(t, outside, filepath.Join(target, "..2020_01_01_00_00_00.1/x/out"))
			relink(t, "..", filepath.Join(target, "..2020_01_01_00_00_00.1/up"))
		},
		"half a write of another writer": func(t *testing.T, target, _ string) {
			require.NoError(t, os.MkdirAll(filepath.Join(target, "..2020_01_01_00_00_00.1/x"), 0o755))
			relink(t, "..2020_01_01_00_00_00.1", filepath.Join(target, dataTmp))
		},
	} {
		t.Run(name, func(t *testing.T) {
			w, target := newVolume(t)
			outside := t.TempDir()
			require.NoError(t, os.WriteFile(filepath.Join(outside, "b"), []byte("precious"), 0o600))
			first := gen(file("a", "1"), file("d/b", "1"))
			require.NoError(t, w.Write(target, first))
			plant(t, target, outside)

			g := gen(file("a", "2"), file("d/b", "2"))
			require.NoError(t, w.Write(target, g))
			require.Equal(t, map[string]string{"a": "2", "d/b": "2"}, content(t, target))
			left := names(t, target)
			require.Subset(t, left, []string{g.Dir, dataLink, "a", "d"})
			require.Subset(t, []string{g.Dir, first.Dir, dataLink, "a", "d"}, left)
			for _, top := range []string{"a", "d"} {
				to, err := os.Readlink(filepath.Join(target, top))
				require.NoError(t, err)
				require.Equal(t, "..data/"+top, to)
			}
			require.NoError(t, w.Remove(target, first.Dir))
			requireLongAgo(t, target)
			require.Equal(t, []string{"b"}, names(t, outside), "nothing outside is touched")
		})
	}
}

func relink(t *testing.T, to, at string) {
	require.NoError(t, os.RemoveAll(at))
	require.NoError(t, os.Symlink(to, at))
}

// What can't be the directory of a generation is none.
func TestCurrentIsChecked(t *testing.T) {
	w, target := newVolume(t)
	require.NoError(t, os.Mkdir(filepath.Join(target, "visible"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(target, "..file"), nil, 0o600))
	require.NoError(t, os.Symlink("visible", filepath.Join(target, "..link")))
	for _, to := range []string{"visible", "..", ".", "..data", "/etc", "..file", "..link", "..missing", "..a/../visible", "./..file"} {
		relink(t, to, filepath.Join(target, dataLink))
		_, err := w.Current(target)
		require.ErrorIs(t, err, ErrEmpty, to)
	}
}

// Links in the path to the volume are refused, wherever they lead.
func TestHostilePath(t *testing.T) {
	for _, part := range []string{"", "volumes", "volumes/kubernetes.io~csi", "volumes/kubernetes.io~csi/creds", "volumes/kubernetes.io~csi/creds/mount"} {
		t.Run("link at "+part, func(t *testing.T) {
			w, target := newVolume(t)
			real := filepath.Join(w.pods, podUID, part)
			require.NoError(t, os.Rename(real, filepath.Join(w.pods, "moved")))
			require.NoError(t, os.Symlink(filepath.Join(w.pods, "moved"), real))
			err := w.Write(target, gen(file("a", "1")))
			require.ErrorIs(t, err, unix.ELOOP)
			requireClass(t, provider.Precondition, err)
			_, err = w.Current(target)
			require.ErrorIs(t, err, unix.ELOOP)
			require.ErrorIs(t, w.Remove(target, "..2026"), unix.ELOOP)
			_, err = os.Stat(filepath.Join(target, "a"))
			require.ErrorIs(t, err, os.ErrNotExist)
		})
	}
}

// The kubelet directory itself may be a link: the node's owner made it.
func TestKubeletDirectoryMayBeALink(t *testing.T) {
	w, target := newVolume(t)
	link := filepath.Join(t.TempDir(), "kubelet")
	require.NoError(t, os.Symlink(filepath.Dir(w.pods), link))
	linked, err := NewWriter(link)
	require.NoError(t, err)
	require.NoError(t, linked.Write(strings.Replace(target, filepath.Dir(w.pods), link, 1), gen(file("a", "1"))))
	require.Equal(t, map[string]string{"a": "1"}, content(t, target))
}

// Trees built to exhaust us are refused, and the old generation stays whole.
func TestHostileSize(t *testing.T) {
	for name, plant := range map[string]func(t *testing.T, target string){
		"deep": func(t *testing.T, target string) {
			require.NoError(t, os.MkdirAll(filepath.Join(target, "..old"+strings.Repeat("/d", 100)), 0o700))
		},
		"wide below": func(t *testing.T, target string) {
			require.NoError(t, os.Mkdir(filepath.Join(target, "..old"), 0o700))
			fillDirectory(t, filepath.Join(target, "..old"))
		},
		"wide": fillDirectory,
	} {
		t.Run(name, func(t *testing.T) {
			w, target := newVolume(t)
			first := gen(file("a", "1"))
			require.NoError(t, w.Write(target, first))
			plant(t, target)
			err := w.Write(target, gen(file("a", "2")))
			require.ErrorIs(t, err, errForeign)
			requireClass(t, provider.Precondition, err)
			require.Equal(t, map[string]string{"a": "1"}, content(t, target))
			requireLongAgo(t, target)
		})
	}
}

func fillDirectory(t *testing.T, dir string) {
	for i := range maxEntries {
		require.NoError(t, os.Symlink("x", filepath.Join(dir, fmt.Sprint("x", i))))
	}
	require.NoError(t, os.Symlink("x", filepath.Join(dir, "x")))
}

// The deepest path that a generation may have can be written, kept and removed.
func TestDeepestOwnPath(t *testing.T) {
	w, target := newVolume(t)
	path := strings.Repeat("d/", maxDepth-1) + "f"
	first, second := gen(file(path, "1")), gen(kept(path))
	require.NoError(t, w.Write(target, first))
	require.NoError(t, w.Write(target, second))
	require.NoError(t, w.Remove(target, first.Dir))
	require.Equal(t, map[string]string{path: "1"}, content(t, target))
}
