package vault

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/tenure-csi/tenure/internal/lease"
	"github.com/tenure-csi/tenure/provider"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	canaryToken = "hvs.CAESICanaryCanaryCanaryCanary"
	canaryPass  = "canary-password-7Qw"
)

var (
	pod   = provider.Pod{Name: "p-0", Namespace: "shop", UID: "uid-1", ServiceAccount: "orders"}
	mount = lease.Caller{Pod: pod, Work: lease.Mounting}
	creds = provider.Read{Source: "vault", Method: "GET", Path: "database/creds/orders"}
)

// podJWT is an unsigned token of pod, as far as the daemon looks at one.
func podJWT() provider.Secret {
	part := func(v any) string {
		raw, _ := json.Marshal(v)
		return base64.RawURLEncoding.EncodeToString(raw)
	}
	claims := map[string]any{"sub": "system:serviceaccount:shop:orders", "aud": []string{"vault"}, "kubernetes.io": map[string]any{
		"namespace": "shop", "serviceaccount": map[string]any{"name": "orders"}, "pod": map[string]any{"uid": "uid-1"},
	}}
	return provider.Secret(part(map[string]string{"alg": "RS256"}) + "." + part(claims) + ".c2lnbmF0dXJl")
}

func identity() provider.Identity {
	return provider.Identity{Tokens: map[string]provider.Token{"vault": {Value: podJWT()}}}
}

func login() provider.Login { return provider.Login{Method: "kubernetes", Role: "orders"} }

func opened() lease.Session {
	return lease.Session{Login: login(), Token: canaryToken, Accessor: "acc", Revocable: true, Renewable: true}
}

// served is a source whose Vault is the handler.
func served(t *testing.T, h http.HandlerFunc) *Source {
	t.Helper()
	srv := httptest.NewServer(h)
	s := source(t, Config{Addr: srv.URL})
	t.Cleanup(func() { s.Close(); srv.Close() })
	return s
}

func source(t *testing.T, cfg Config) *Source {
	t.Helper()
	s, err := New(cfg)
	require.NoError(t, err)
	t.Cleanup(s.Close)
	return s
}

// refusedURL answers the URL of a port that refuses connections until the test ends:
// it is taken, so that no other server can get it, and nobody listens.
func refusedURL(t *testing.T) string {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	t.Cleanup(func() { _ = unix.Close(fd) })
	require.NoError(t, unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}))
	at, err := unix.Getsockname(fd)
	require.NoError(t, err)
	return fmt.Sprint("http://127.0.0.1:", at.(*unix.SockaddrInet4).Port)
}

// answering is a handler that always gives one status and body.
func answering(status int, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		_, _ = w.Write([]byte(body))
	}
}

func failure(t *testing.T, err error) *lease.Failure {
	t.Helper()
	var f *lease.Failure
	require.ErrorAs(t, err, &f)
	var p *provider.Error
	require.ErrorAs(t, err, &p)
	return f
}

// counted is the value of one of the source's counters with one label value, or of one without labels.
func counted(t *testing.T, c prometheus.Collector, label string) int {
	t.Helper()
	reg := prometheus.NewPedanticRegistry()
	require.NoError(t, reg.Register(c))
	families, err := reg.Gather()
	require.NoError(t, err)
	for _, family := range families {
		for _, m := range family.GetMetric() {
			if label == "" || strings.Contains(m.String(), `"`+label+`"`) {
				return int(m.GetCounter().GetValue())
			}
		}
	}
	return 0
}

// pipe is a network inside a synctest bubble: what dials it is served by the handler.
type pipe struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func newPipe() *pipe { return &pipe{conns: make(chan net.Conn), done: make(chan struct{})} }

// bubbled is a source whose Vault is the handler, over an in-memory network.
func bubbled(t *testing.T, h http.HandlerFunc) *Source {
	t.Helper()
	p := newPipe()
	srv := &http.Server{Handler: h}
	go func() { _ = srv.Serve(p) }()
	s, err := New(Config{Addr: "http://vault:8200"})
	require.NoError(t, err)
	s.clients.dial = p.dial
	t.Cleanup(func() {
		s.Close()
		_ = srv.Close()
		time.Sleep(time.Minute) // handlers that still look at the clock end
	})
	return s
}

func (p *pipe) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	ours, theirs := net.Pipe()
	select {
	case p.conns <- theirs:
		return ours, nil
	case <-p.done:
		return nil, errors.New("closed")
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (p *pipe) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}

func (p *pipe) Close() error   { p.once.Do(func() { close(p.done) }); return nil }
func (p *pipe) Addr() net.Addr { return &net.UnixAddr{Name: "pipe"} }
