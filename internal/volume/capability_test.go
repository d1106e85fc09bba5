package volume

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/tenure-csi/tenure/provider"
)

const (
	capChown  = 1 << unix.CAP_CHOWN
	capFowner = 1 << unix.CAP_FOWNER
	user      = 1000 // an application that is neither root nor has a capability
)

// secretFile is a file that only the application can read.
func secretFile(path, data string) File {
	return File{Path: path, Mode: 0o600, UID: user, GID: user, Data: []byte(data)}
}

// withCapabilities runs the test a second time, in a process of uid 0 that has
// exactly these capabilities, as a container's, and can gain no other. There
// it answers true. The volume is the same for both.
func withCapabilities(t *testing.T, mask uint64) (w *Writer, target string, inChild bool) {
	skipUnlessRoot(t)
	hard, err := os.ReadFile("/proc/sys/fs/protected_hardlinks")
	require.NoError(t, err)
	require.Equal(t, "1\n", string(hard), "fs.protected_hardlinks, which makes CAP_FOWNER necessary")
	if target := os.Getenv(childEnv); target != "" {
		requireExactly(t, mask)
		kubelet := filepath.Join(target, "../../../../../..")
		w, err := NewWriter(kubelet)
		require.NoError(t, err)
		return w, target, true
	}
	w, target = newVolume(t)
	require.NoError(t, os.Chmod(filepath.Dir(w.pods), 0o755))
	cmd := child(t, target)
	finished := make(chan struct{})
	var out []byte
	go func() {
		defer close(finished)
		runtime.LockOSThread() // and never unlocked: the thread ends with what it gave up
		for c := range unix.CAP_LAST_CAP + 1 {
			if mask&(1<<c) == 0 && err == nil {
				err = unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(c), 0, 0, 0)
			}
		}
		if err == nil {
			err = unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
		}
		if err == nil {
			out, err = cmd.CombinedOutput()
		}
	}()
	<-finished
	require.NoError(t, err, "%s", out)
	require.NotContains(t, string(out), "SKIP")
	return w, target, false
}

// requireExactly checks that every thread of this process has the capabilities, no more and no less.
func requireExactly(t *testing.T, mask uint64) {
	threads, err := filepath.Glob("/proc/self/task/*/status")
	require.NoError(t, err)
	require.NotEmpty(t, threads)
	for _, thread := range threads {
		text, err := os.ReadFile(thread)
		if os.IsNotExist(err) {
			continue // ended since
		}
		require.NoError(t, err)
		for _, set := range []string{"CapPrm", "CapEff", "CapBnd"} {
			require.Contains(t, string(text), fmt.Sprintf("%s:\t%016x\n", set, mask))
		}
		require.Contains(t, string(text), fmt.Sprintf("CapAmb:\t%016x\n", 0))
		require.Contains(t, string(text), "NoNewPrivs:\t1\n")
		require.Contains(t, string(text), "Uid:\t0\t0\t0\t0\n")
	}
}

// catAs reads a file as a process of another uid without capabilities.
func catAs(t *testing.T, uid uint32, path string) (string, error) {
	cat, err := exec.LookPath("cat")
	require.NoError(t, err)
	cmd := exec.Command(cat, path)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	out, err := cmd.Output()
	return string(out), err
}

// uid 0 with CAP_CHOWN and CAP_FOWNER alone does all that a Writer does, and
// the application reads its files.
func TestTwoCapabilitiesSuffice(t *testing.T) {
	w, target, inChild := withCapabilities(t, capChown|capFowner)
	if !inChild {
		found := readAll(t, target)
		require.Equal(t, seen{"secret", 0o600, user, user}, found["key"])
		require.Equal(t, seen{"tenant", 0o400, user, 0}, found["t/key"])
		require.Equal(t, seen{"3", 0o640, 0, 0}, found["plain"])
		text, err := catAs(t, user, filepath.Join(target, "key"))
		require.NoError(t, err)
		require.Equal(t, "secret", text)
		_, err = catAs(t, user+1, filepath.Join(target, "key"))
		require.Error(t, err, "another uid can't read it")
		require.Len(t, names(t, target), 6, "two generations, ..data and three names")
		return
	}
	first := gen(secretFile("key", "secret"), file("plain", "1"), File{Path: "t/key", Mode: 0o400, UID: user, GID: -1, Data: []byte("tenant")})
	require.NoError(t, w.Write(target, first))
	_, err := os.ReadFile(filepath.Join(target, "key"))
	require.ErrorIs(t, err, os.ErrPermission, "it could not be copied")
	require.NoError(t, w.Write(target, gen(kept("key"), kept("t/key"), file("plain", "2"))))

	old := filepath.Join(target, "..old", "x")
	require.NoError(t, os.MkdirAll(filepath.Join(old, "y"), 0o700))
	for _, dir := range []string{filepath.Join(old, "y"), old, filepath.Dir(old)} {
		require.NoError(t, os.Chmod(dir, 0))
		require.NoError(t, os.Chown(dir, user, user))
		if _, err := os.ReadDir(dir); err == nil {
			t.Fatal("the directory is no obstacle")
		}
	}
	restarted, err := NewWriter(filepath.Dir(w.pods))
	require.NoError(t, err)
	require.NoError(t, restarted.Remove(target, first.Dir))
	require.NoError(t, restarted.Write(target, gen(kept("key"), kept("t/key"), file("plain", "3"))))
	requireLongAgo(t, target)
	_, err = restarted.Current(target)
	require.NoError(t, err)
	require.Equal(t, Here, restarted.Look(target, podUID))
	_, err = restarted.Root()
	require.NoError(t, err)
}

// Files without an owner need no capability at all.
func TestNoCapabilityForPlainFiles(t *testing.T) {
	w, target, inChild := withCapabilities(t, 0)
	if !inChild {
		require.Equal(t, map[string]string{"a": "1", "b/c": "2"}, content(t, target))
		return
	}
	first := gen(file("a", "1"), file("b/c", "1"))
	require.NoError(t, w.Write(target, first))
	require.NoError(t, w.Write(target, gen(kept("a"), file("b/c", "2"))))
	require.NoError(t, w.Remove(target, first.Dir))
	requireLongAgo(t, target)
}

func TestWithoutChown(t *testing.T) {
	w, target, inChild := withCapabilities(t, capFowner)
	if !inChild {
		require.Equal(t, map[string]string{"a": "1"}, content(t, target))
		return
	}
	require.NoError(t, w.Write(target, gen(file("a", "1"))))
	before := names(t, target)
	err := w.Write(target, gen(secretFile("key", "secret")))
	require.ErrorIs(t, err, unix.EPERM)
	require.ErrorContains(t, err, "setting the owner")
	requireClass(t, provider.Precondition, err)
	require.Equal(t, before, names(t, target))
	requireLongAgo(t, target)
}

func TestWithoutFowner(t *testing.T) {
	w, target, inChild := withCapabilities(t, capChown)
	if !inChild {
		require.Equal(t, seen{"secret", 0o600, user, user}, readAll(t, target)["key"])
		return
	}
	require.NoError(t, w.Write(target, gen(secretFile("key", "secret"), file("a", "1"))), "new files need CAP_CHOWN alone")
	before := names(t, target)
	err := w.Write(target, gen(kept("key"), file("a", "2")))
	require.ErrorIs(t, err, unix.EPERM)
	require.ErrorContains(t, err, "keeping key: linking")
	require.NotErrorIs(t, err, ErrLost)
	requireClass(t, provider.Precondition, err)
	require.Equal(t, before, names(t, target))
	requireLongAgo(t, target)
}
