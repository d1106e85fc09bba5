package provider

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// maxSocketPath is what sun_path of unix(7) holds, without its final zero.
	maxSocketPath = 107
	// dialTimeout is how long a socket that is there already may take to answer.
	dialTimeout = time.Second
)

// providerName is the driver's own rule, without its empty name.
var providerName = regexp.MustCompile(`^[a-zA-Z0-9_-]{1,30}$`)

// Listen opens the socket <dir>/<name>.sock, on which the driver looks for the
// provider of that name, with mode 0600. A socket that is there is replaced only
// when nobody answers on it: the driver keeps the path. Two processes that do
// this at the same instant are not told apart; a lock elsewhere must. Connections
// of peers other than root and our own user are dropped unseen. Closing the
// listener removes the socket, unless it has been replaced.
func Listen(dir, name string) (net.Listener, error) {
	if !providerName.MatchString(name) {
		return nil, fmt.Errorf("listening for the CSI driver: provider name %s must be 1 to 30 letters, digits, - or _", quote(name))
	}
	path := filepath.Join(dir, name+".sock")
	if len(path) > maxSocketPath {
		return nil, fmt.Errorf("listening for the CSI driver: socket path %s is longer than %d bytes; choose a shorter providers directory", path, maxSocketPath)
	}
	if info, err := os.Stat(dir); err != nil {
		return nil, fmt.Errorf("listening for the CSI driver: providers directory: %w; mount the directory that the driver watches", err)
	} else if !info.IsDir() {
		return nil, fmt.Errorf("listening for the CSI driver: providers directory %s is no directory", dir)
	}
	if err := removeStale(path); err != nil {
		return nil, fmt.Errorf("listening for the CSI driver: %w", err)
	}
	inner, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listening for the CSI driver: %w; the providers directory must be writable", err)
	}
	inner.SetUnlinkOnClose(false)
	// Until here the mode was the umask's; connections of that instant meet Accept's check.
	info, err := os.Lstat(path)
	if err == nil {
		err = os.Chmod(path, 0o600)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("listening for the CSI driver: %w", err), inner.Close(), os.Remove(path))
	}
	return &listener{UnixListener: inner, path: path, made: info}, nil
}

// removeStale removes a socket that a dead process left at path.
func removeStale(path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.Mode().Type() != fs.ModeSocket:
		return fmt.Errorf("%s is there and no socket; remove it", path)
	}
	conn, err := (&net.Dialer{Timeout: dialTimeout}).DialContext(context.Background(), "unix", path)
	if err == nil {
		return errors.Join(fmt.Errorf("another process answers on %s; end it first", path), conn.Close())
	}
	if !errors.Is(err, unix.ECONNREFUSED) {
		return fmt.Errorf("finding out who holds %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("removing a stale socket: %w", err)
	}
	return nil
}

// listener is a unix listener that lets only root and our own user in.
type listener struct {
	*net.UnixListener
	path   string
	made   fs.FileInfo
	remove sync.Once
}

// Accept returns the next connection of an allowed peer.
func (l *listener) Accept() (net.Conn, error) {
	for {
		conn, err := l.AcceptUnix()
		if err != nil {
			return nil, err
		}
		if uid, err := peer(conn); err == nil && (uid == 0 || uid == uint32(os.Getuid())) {
			return conn, nil
		}
		_ = conn.Close() // whoever it is
	}
}

// Close stops listening and removes the socket if it is still ours.
func (l *listener) Close() error {
	l.remove.Do(func() {
		if now, err := os.Lstat(l.path); err == nil && os.SameFile(now, l.made) {
			_ = os.Remove(l.path) // the next start removes a stale one
		}
	})
	return l.UnixListener.Close()
}

// peer returns the uid that connected.
func peer(conn *net.UnixConn) (uid uint32, err error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, err
	}
	var credentials *unix.Ucred
	var optErr error
	if err := raw.Control(func(fd uintptr) {
		credentials, optErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return 0, err
	}
	if optErr != nil {
		return 0, optErr
	}
	return credentials.Uid, nil
}
