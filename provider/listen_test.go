package provider

import (
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func noFile(path string) bool {
	_, err := os.Lstat(path)
	return errors.Is(err, fs.ErrNotExist)
}

func TestListen(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "tenure.sock")
	l, err := Listen(dir, "tenure")
	require.NoError(t, err)
	info, err := os.Lstat(path)
	require.NoError(t, err)
	require.Equal(t, fs.ModeSocket|0o600, info.Mode())

	_, err = Listen(dir, "tenure")
	require.ErrorContains(t, err, "another process answers", "a second instance")
	conn, err := l.Accept()
	require.NoError(t, err, "our own user may connect")
	require.NoError(t, conn.Close())

	require.NoError(t, l.Close())
	require.True(t, noFile(path))
	require.ErrorIs(t, l.Close(), net.ErrClosed)
}

func TestListenReplacesStale(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "tenure.sock")
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	require.NoError(t, err)
	dead.SetUnlinkOnClose(false)
	require.NoError(t, dead.Close())
	l, err := Listen(dir, "tenure")
	require.NoError(t, err)

	// What took our path meanwhile is not ours to remove.
	require.NoError(t, os.Remove(path))
	require.NoError(t, os.WriteFile(path, nil, 0o600))
	require.NoError(t, l.Close())
	require.False(t, noFile(path))
}

func TestListenRefuses(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file.sock")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	require.NoError(t, os.Symlink(file, filepath.Join(dir, "link.sock")))
	for name, tc := range map[string]struct{ dir, name, text string }{
		"empty name":        {dir, "", "must be 1 to 30"},
		"climbing name":     {dir, "../x", "must be 1 to 30"},
		"long name":         {dir, strings.Repeat("a", 31), "must be 1 to 30"},
		"long path":         {filepath.Join(dir, strings.Repeat("d", 100)), "tenure", "longer than 107 bytes"},
		"missing directory": {filepath.Join(dir, "none"), "tenure", "mount the directory that the driver watches"},
		"no directory":      {file, "tenure", "is no directory"},
		"a file there":      {dir, "file", "is there and no socket"},
		"a link there":      {dir, "link", "is there and no socket"},
		"read-only":         {"/proc/self", "tenure", "must be writable"},
	} {
		_, err := Listen(tc.dir, tc.name)
		require.ErrorContains(t, err, tc.text, name)
	}
	require.FileExists(t, file)
}

// A peer of another user is dropped, even where the mode lets it in.
func TestListenDropsStrangers(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root to become another user")
	}
	dir, err := os.MkdirTemp("/dev/shm", "tenure-listen-") // the way there is open to everyone
	require.NoError(t, err)
	defer os.RemoveAll(dir)
	require.NoError(t, os.Chmod(dir, 0o755))
	l, err := Listen(dir, "tenure")
	require.NoError(t, err)
	defer l.Close()
	path := filepath.Join(dir, "tenure.sock")
	require.NoError(t, os.Chmod(path, 0o666))

	accepted := make(chan net.Conn, 1)
	go func() {
		conn, _ := l.Accept()
		accepted <- conn
	}()
	fd := dialAs(t, path, 65534)
	defer unix.Close(fd)
	n, err := unix.Read(fd, make([]byte, 1))
	require.True(t, n == 0 && err == nil || errors.Is(err, unix.ECONNRESET), "closed without a word: %d %v", n, err)

	ours, err := net.Dial("unix", path)
	require.NoError(t, err)
	defer ours.Close()
	conn := <-accepted
	require.NotNil(t, conn)
	require.NoError(t, conn.Close())
	_, err = ours.Read(make([]byte, 1))
	require.ErrorIs(t, err, io.EOF, "the connection let in was ours")
}

// dialAs connects as another user: credentials are those of the thread, so only
// this one changes, and back.
func dialAs(t *testing.T, path string, uid uintptr) int {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	require.NoError(t, err)
	keep := ^uintptr(0)
	_, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, keep, uid, keep)
	require.Zero(t, errno)
	err = unix.Connect(fd, &unix.SockaddrUnix{Name: path})
	_, _, errno = unix.RawSyscall(unix.SYS_SETRESUID, keep, 0, keep)
	require.Zero(t, errno)
	require.NoError(t, err)
	return fd
}
