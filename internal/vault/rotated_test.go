package vault

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// mutual is a Vault in a synctest bubble that shows its certificate and wants one. Each
// connection is for one request, so that each request sees what holds now.
type mutual struct {
	t      *testing.T
	dir    string // of the daemon's files: ca.pem, tls.crt and tls.key
	shows  atomic.Pointer[tls.Certificate]
	trusts atomic.Pointer[x509.CertPool]
	source *Source
}

func newMutual(t *testing.T) *mutual {
	m := &mutual{t: t, dir: t.TempDir()}
	m.rotateServer()
	m.rotateClient()
	p := newPipe()
	srv := &http.Server{
		Handler: answering(http.StatusOK, dbAnswer), ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError), ReadHeaderTimeout: time.Minute,
	}
	srv.SetKeepAlivesEnabled(false)
	listener := tls.NewListener(eager{p}, &tls.Config{MinVersion: tls.VersionTLS12, GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
		return &tls.Config{
			MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{*m.shows.Load()},
			ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: m.trusts.Load(),
		}, nil
	}})
	go func() { _ = srv.Serve(listener) }()
	var err error
	m.source, err = New(Config{
		Addr: "https://127.0.0.1:8200", CACert: m.path("ca.pem"), ClientCert: m.path("tls.crt"), ClientKey: m.path("tls.key"),
	})
	require.NoError(t, err)
	m.source.clients.dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := p.dial(ctx, network, addr)
		return eagerly(c), err
	}
	t.Cleanup(func() {
		m.source.Close()
		_ = srv.Close()
		time.Sleep(time.Minute) // handlers that still look at the clock end
	})
	return m
}

// eager accepts connections whose writes never wait. A TLS connection that is closed
// writes, under locks of net/http's, and over net.Pipe would wait for its reader; a
// goroutine that waits for a lock keeps the bubble's clock from going on.
type eager struct{ net.Listener }

func (e eager) Accept() (net.Conn, error) {
	c, err := e.Listener.Accept()
	return eagerly(c), err
}

type eagerConn struct {
	net.Conn
	out  chan []byte
	done chan struct{}
	once sync.Once
}

// eagerly writes to c what is written to its answer, and closes it after that.
func eagerly(c net.Conn) net.Conn {
	if c == nil {
		return nil
	}
	e := &eagerConn{Conn: c, out: make(chan []byte, 1000), done: make(chan struct{})}
	go func() {
		defer c.Close()
		for {
			select {
			case b := <-e.out:
				e.write(b)
				continue
			default:
			}
			select {
			case b := <-e.out:
				e.write(b)
			case <-e.done:
				return
			}
		}
	}()
	return e
}

// write gives up on a peer that does not read.
func (e *eagerConn) write(b []byte) {
	_ = e.Conn.SetWriteDeadline(time.Now().Add(time.Second))
	_, _ = e.Conn.Write(b)
}

func (e *eagerConn) Write(b []byte) (int, error) {
	select {
	case <-e.done:
		return 0, net.ErrClosed
	case e.out <- bytes.Clone(b):
		return len(b), nil
	}
}

func (e *eagerConn) SetDeadline(t time.Time) error    { return e.SetReadDeadline(t) }
func (e *eagerConn) SetWriteDeadline(time.Time) error { return nil }
func (e *eagerConn) Close() error                     { e.once.Do(func() { close(e.done) }); return nil }

func (m *mutual) path(file string) string { return filepath.Join(m.dir, file) }

func (m *mutual) write(file string, content []byte) {
	require.NoError(m.t, os.WriteFile(m.path(file), content, 0o600))
}

// rotateServer gives the server a certificate of a new authority, whose own is returned
// and is on the daemon's disk only where there was none.
func (m *mutual) rotateServer() (ca []byte) {
	a := newAuthority(m.t)
	if m.shows.Swap(a.server(m.t, time.Now().Add(time.Hour))) == nil {
		m.write("ca.pem", a.pem)
	}
	return a.pem
}

// rotateClient has the server trust a new authority alone, and returns a certificate of
// it with its key; they are on the daemon's disk only where there were none.
func (m *mutual) rotateClient() (cert, key []byte) {
	a := newAuthority(m.t)
	cert, key = a.issue(m.t, time.Now().Add(time.Hour))
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	if m.trusts.Swap(pool) == nil {
		m.write("tls.crt", cert)
		m.write("tls.key", key)
	}
	return cert, key
}

// read asks once the files may be looked at again.
func (m *mutual) read() error {
	time.Sleep(recheckTLS)
	_, err := m.source.Read(m.t.Context(), mount, opened(), creds)
	return err
}

// TestFilesThatChangeOnDiskArePickedUp: nobody restarts the daemon for them.
func TestFilesThatChangeOnDiskArePickedUp(t *testing.T) {
	for _, row := range []struct {
		name   string
		rotate func(m *mutual) (pickUp func())
	}{
		{"CA", func(m *mutual) func() {
			ca := m.rotateServer()
			return func() { m.write("ca.pem", ca) }
		}},
		{"CA, half written at first", func(m *mutual) func() {
			ca := m.rotateServer()
			m.write("ca.pem", ca[:len(ca)/2])
			return func() { m.write("ca.pem", ca) }
		}},
		{"client certificate and key", func(m *mutual) func() {
			cert, key := m.rotateClient()
			return func() { m.write("tls.crt", cert); m.write("tls.key", key) }
		}},
		{"client certificate, and later its key", func(m *mutual) func() {
			cert, key := m.rotateClient()
			m.write("tls.crt", cert)
			return func() { m.write("tls.key", key) }
		}},
	} {
		t.Run(row.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := newMutual(t)
				require.NoError(t, m.read())
				pickUp := row.rotate(m)
				require.Error(t, m.read(), "the other side has moved on")
				pickUp()
				require.NoError(t, m.read())
			})
		})
	}
}

// TestFileInTheMiddleOfAChangeLeavesTheOldOneInUse as long as the server takes it.
func TestFileInTheMiddleOfAChangeLeavesTheOldOneInUse(t *testing.T) {
	for _, file := range []string{"ca.pem", "tls.crt", "tls.key"} {
		t.Run(file, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := newMutual(t)
				require.NoError(t, m.read())
				m.write(file, []byte("half a fi"))
				require.NoError(t, m.read())
				require.NoError(t, os.Remove(m.path(file)))
				require.NoError(t, m.read())
			})
		})
	}
}
