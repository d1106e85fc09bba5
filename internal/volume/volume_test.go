package volume

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/tenure-csi/tenure/provider"
)

const podUID = "0f6dbb4c-5b5c-4f35-9f6b-000000000001"

// newVolume makes a kubelet directory in memory with one volume in it.
func newVolume(t testing.TB) (*Writer, string) {
	t.Helper()
	var st unix.Statfs_t
	if err := unix.Statfs("/dev/shm", &st); err != nil || st.Type != unix.TMPFS_MAGIC {
		t.Skip("SKIPPED: /dev/shm is no tmpfs, so nothing about writing is tested")
	}
	kubelet, err := os.MkdirTemp("/dev/shm", "tenure-volume-")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(kubelet)) })
	return volumeIn(t, kubelet)
}

func volumeIn(t testing.TB, kubelet string) (*Writer, string) {
	t.Helper()
	target := filepath.Join(kubelet, "pods", podUID, "volumes/kubernetes.io~csi/creds/mount")
	require.NoError(t, os.MkdirAll(target, 0o755))
	require.NoError(t, os.Chmod(target, 0o777|fs.ModeSticky))
	w, err := NewWriter(kubelet)
	require.NoError(t, err)
	return w, target
}

// file is a File with our own mode and owner.
func file(path, data string) File {
	return File{Path: path, Mode: 0o640, UID: -1, GID: -1, Data: []byte(data)}
}

func kept(path string) File { return File{Path: path, UID: -1, GID: -1, Keep: true} }

// gen makes a generation with a name of its own.
func gen(files ...File) Generation {
	return Generation{Dir: NewDirName(time.Unix(1_800_000_000, 0)), Files: files}
}

// seen is a file as a reader finds it.
type seen struct {
	Data     string
	Mode     fs.FileMode
	UID, GID uint32
}

// readAll opens ..data once and reads the generation behind it.
func readAll(t testing.TB, target string) map[string]seen {
	t.Helper()
	root, err := os.OpenRoot(filepath.Join(target, dataLink))
	require.NoError(t, err)
	defer root.Close()
	found := map[string]seen{}
	require.NoError(t, fs.WalkDir(root.FS(), ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if d.IsDir() {
			require.Equal(t, fs.FileMode(0o755), info.Mode().Perm(), "mode of directory %s", path)
			return nil
		}
		require.True(t, info.Mode().IsRegular(), "%s is %s", path, info.Mode())
		data, err := root.ReadFile(path)
		st := info.Sys().(*syscall.Stat_t)
		found[path] = seen{string(data), info.Mode(), st.Uid, st.Gid}
		return err
	}))
	return found
}

// content is readAll without modes and owners.
func content(t testing.TB, target string) map[string]string {
	t.Helper()
	text := map[string]string{}
	for path, f := range readAll(t, target) {
		text[path] = f.Data
	}
	return text
}

// names lists the volume's root.
func names(t testing.TB, target string) []string {
	t.Helper()
	entries, err := os.ReadDir(target)
	require.NoError(t, err)
	all := make([]string, 0, len(entries))
	for _, e := range entries {
		all = append(all, e.Name())
	}
	return all
}

// requireLongAgo checks that the driver would not skip a republish.
func requireLongAgo(t testing.TB, target string) {
	t.Helper()
	info, err := os.Stat(target)
	require.NoError(t, err)
	require.Equal(t, time.Date(1971, 1, 1, 0, 0, 0, 0, time.UTC), info.ModTime().UTC())
}

func requireClass(t testing.TB, want provider.Class, err error) {
	t.Helper()
	var e *provider.Error
	require.ErrorAs(t, err, &e)
	require.Equal(t, want, e.Class, "%v", err)
}

func TestNewWriterWantsAbsolutePath(t *testing.T) {
	_, err := NewWriter("var/lib/kubelet")
	requireClass(t, provider.Invalid, err)
}

func TestNewDirName(t *testing.T) {
	at := time.Date(2026, 11, 21, 11, 4, 5, 0, time.FixedZone("", 3600))
	require.Regexp(t, `^\.\.2026_11_21_10_04_05\.[0-9]+$`, NewDirName(at))
	other := NewDirName(at)
	require.NotEqual(t, other, NewDirName(at))
	require.True(t, dirName(NewDirName(at)))
}

func TestTargetPath(t *testing.T) {
	w, target := newVolume(t)
	rest := "/volumes/kubernetes.io~csi/creds/mount"
	for name, path := range map[string]string{
		"empty":               "",
		"relative":            "pods/" + podUID + rest,
		"elsewhere":           "/etc",
		"pods itself":         w.pods,
		"sibling of pods":     w.pods + "2/" + podUID + rest,
		"parent element":      w.pods + "/../pods/" + podUID + rest,
		"pod is a parent":     w.pods + "/.." + rest,
		"volume is a parent":  w.pods + "/" + podUID + "/volumes/kubernetes.io~csi/../mount",
		"volume is itself":    w.pods + "/" + podUID + "/volumes/kubernetes.io~csi/./mount",
		"double slash":        w.pods + "//" + podUID + rest,
		"trailing slash":      target + "/",
		"below the volume":    target + "/a",
		"above the volume":    filepath.Dir(target),
		"another plugin":      strings.Replace(target, "csi", "secret", 1),
		"NUL in the name":     strings.Replace(target, "creds", "cr\x00eds", 1),
		"empty name":          strings.Replace(target, "creds", "", 1),
		"not the mount point": strings.Replace(target, "/mount", "/other", 1),
	} {
		t.Run(name, func(t *testing.T) {
			requireClass(t, provider.Invalid, w.Write(path, gen(file("a", "1"))))
			_, err := w.Current(path)
			requireClass(t, provider.Invalid, err)
			requireClass(t, provider.Invalid, w.Remove(path, "..2026"))
			require.Equal(t, Unknown, w.Look(path, podUID))
		})
	}
	require.Empty(t, names(t, target))
}

func TestBadGeneration(t *testing.T) {
	w, target := newVolume(t)
	long := strings.Repeat("a", 256)
	for name, g := range map[string]Generation{
		"no directory name":   {Files: []File{file("a", "1")}},
		"directory is data":   {Dir: dataLink},
		"directory is tmp":    {Dir: dataTmp},
		"directory is parent": {Dir: ".."},
		"directory is a path": {Dir: "..a/b"},
		"directory visible":   {Dir: "a"},
		"directory retained":  {Dir: "..a", Retain: []string{"..a"}},
		"empty path":          gen(file("", "")),
		"absolute":            gen(file("/a", "")),
		"parent":              gen(file("..", "")),
		"parent first":        gen(file("../a", "")),
		"parent inside":       gen(file("a/../b", "")),
		"parent last":         gen(file("a/..", "")),
		"data":                gen(file("..data", "")),
		"dots below":          gen(file("a/..x", "")),
		"dot":                 gen(file(".", "")),
		"dot inside":          gen(file("a/./b", "")),
		"double slash":        gen(file("a//b", "")),
		"trailing slash":      gen(file("a/", "")),
		"NUL":                 gen(file("a\x00b", "")),
		"newline":             gen(file("a\nb", "")),
		"backslash":           gen(file(`a\b`, "")),
		"space":               gen(file("a b", "")),
		"look-alike":          gen(file("․․/a", "")),
		"long element":        gen(file(long, "")),
		"long path":           gen(file(strings.Repeat(long[:200]+"/", 21)+"a", "")),
		"deep path":           gen(file(strings.Repeat("a/", maxDepth)+"a", "")),
		"twice":               gen(file("a", ""), file("a", "")),
		"file and directory":  gen(file("a", ""), file("a/b", "")),
		"directory and file":  gen(file("a/b/c", ""), file("a", "")),
		"setuid":              gen(File{Path: "a", Mode: fs.ModeSetuid | 0o755, UID: -1, GID: -1}),
		"raw setuid bits":     gen(File{Path: "a", Mode: 0o4755, UID: -1, GID: -1}),
		"negative user":       gen(File{Path: "a", UID: -2, GID: -1}),
		"huge group":          gen(File{Path: "a", UID: -1, GID: 1<<32 - 1}),
	} {
		t.Run(name, func(t *testing.T) {
			requireClass(t, provider.Invalid, w.Write(target, g))
			require.Empty(t, names(t, target), "nothing is touched")
		})
	}
}

func TestSizeLimit(t *testing.T) {
	w, target := newVolume(t)
	half := strings.Repeat("x", MaxBytes/2)
	requireClass(t, provider.Exhausted, w.Write(target, gen(file("a", half), file("b", half), file("c", "x"))))
	require.Empty(t, names(t, target))

	first := gen(file("a", half), file("b", half))
	require.NoError(t, w.Write(target, first), "the limit itself is allowed")
	requireClass(t, provider.Exhausted, w.Write(target, gen(kept("a"), kept("b"), file("0", "x"))))
	require.Equal(t, map[string]string{"a": half, "b": half}, content(t, target))
	require.ElementsMatch(t, []string{first.Dir, dataLink, "a", "b"}, names(t, target))
}

func TestLook(t *testing.T) {
	w, target := newVolume(t)
	require.Equal(t, Here, w.Look(target, podUID))
	require.Equal(t, Unknown, w.Look(target, "another-pod"))
	require.Equal(t, Unknown, w.Look(target, podUID+"/volumes"))
	require.Equal(t, Unknown, w.Look(target, ""))

	csi := filepath.Dir(target)
	require.NoError(t, os.Remove(target))
	require.Equal(t, Here, w.Look(target, podUID), "an unmounted target alone ends nothing")
	require.NoError(t, os.Remove(csi))
	require.Equal(t, VolumeGone, w.Look(target, podUID))
	require.NoError(t, os.RemoveAll(filepath.Join(w.pods, podUID)))
	require.Equal(t, PodGone, w.Look(target, podUID))

	require.NoError(t, os.Remove(w.pods))
	require.NoError(t, os.WriteFile(w.pods, nil, 0o600))
	require.Equal(t, Unknown, w.Look(target, podUID), "ENOTDIR is no absence")
}

func TestRoot(t *testing.T) {
	w, _ := newVolume(t)
	mark, err := w.Root()
	require.NoError(t, err)
	require.NotZero(t, mark.Ino)
	again, err := w.Root()
	require.NoError(t, err)
	require.Equal(t, mark, again)

	require.NoError(t, os.Rename(w.pods, w.pods+".old"))
	_, err = w.Root()
	require.ErrorIs(t, err, fs.ErrNotExist)
	require.NoError(t, os.Mkdir(w.pods, 0o755))
	other, err := w.Root()
	require.NoError(t, err)
	require.NotEqual(t, mark, other)
}

// A container's bind mount goes on showing a directory that the node deleted.
func TestRootOfDeletedDirectory(t *testing.T) {
	if _, err := os.Stat("/proc/self/fd"); err != nil {
		t.Skip("SKIPPED: no /proc")
	}
	w, _ := newVolume(t)
	dir, err := os.Open(w.pods)
	require.NoError(t, err)
	defer dir.Close()
	require.NoError(t, os.RemoveAll(w.pods))
	w.pods = self(dir)
	_, err = w.Root()
	require.ErrorIs(t, err, fs.ErrNotExist)
}

func FuzzPath(f *testing.F) {
	for _, s := range []string{"a", "a/b", "-x/y", "..", "../x", "a/../b", "..data", "/a", "a//b", "", ".", "a\nb"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, path string) {
		if file(path, "").check() != nil {
			return
		}
		require.True(t, filepath.IsLocal(path))
		require.Equal(t, path, filepath.Clean(path))
		require.NotContains(t, "/"+path, "/..")
		require.LessOrEqual(t, strings.Count(path, "/"), maxDepth)
		require.Regexp(t, `^[A-Za-z0-9._/-]+$`, path)
		require.LessOrEqual(t, len(path), 4096)
	})
}
