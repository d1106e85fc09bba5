package integration

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tenure-csi/tenure/internal/lease"
	"github.com/tenure-csi/tenure/internal/vault"
	"github.com/tenure-csi/tenure/internal/volume"
	"github.com/tenure-csi/tenure/provider"
	"github.com/tenure-csi/tenure/test/fixture"
)

// standIn stands in for Vault where a real one can't be brought to answer so:
// it takes every login, answers every read alike, and keeps what it was asked.
type standIn struct {
	*httptest.Server
	read string // the body of every read's answer; empty: 204

	mu    sync.Mutex
	asked []string // method, path and namespace
}

func newStandIn(t *testing.T, read string) *standIn {
	t.Helper()
	s := &standIn{read: read}
	s.Server = httptest.NewServer(http.HandlerFunc(s.answer))
	t.Cleanup(s.Close)
	return s
}

// newStandInTLS serves HTTPS with a certificate that clients are to refuse.
func newStandInTLS(t *testing.T, c fixture.Certificate) *standIn {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(c.Cert, c.Key)
	require.NoError(t, err)
	s := &standIn{}
	s.Server = httptest.NewUnstartedServer(http.HandlerFunc(s.answer))
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	s.TLS = &tls.Config{Certificates: []tls.Certificate{pair}}
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}

func (s *standIn) answer(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.asked = append(s.asked, r.Method+" "+r.URL.Path+" "+r.Header.Get("X-Vault-Namespace"))
	s.mu.Unlock()
	switch {
	case strings.HasSuffix(r.URL.Path, "/login"):
		_, _ = w.Write([]byte(`{"auth": {"client_token": "t", "lease_duration": 3600, "renewable": true}}`))
	case strings.HasPrefix(r.URL.Path, "/v1/auth/"), s.read == "":
		w.WriteHeader(http.StatusNoContent)
	default:
		_, _ = w.Write([]byte(s.read))
	}
}

func (s *standIn) requests() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.asked)
}

// TestFaultsStayWithTheirMount brings the errors on that are known to have
// crashed other providers, beside a pod whose credential must go on.
func TestFaultsStayWithTheirMount(t *testing.T) {
	t.Parallel()
	empty := newStandIn(t, "")
	s := newSite(t, fixture.ScopeOptions{}, "--allowed-vault-addrs="+empty.URL)
	neighbour := s.mounted(t, s.db("db"))
	tests := []struct {
		name, objects, address string
		code                   codes.Code
		says                   []string
	}{
		{"an empty answer", list("{objectName: a, secretPath: kv/app}"), empty.URL, codes.InvalidArgument, []string{`object "a", field "secretPath"`, "the answer holds no data", "name a path that gives data"}},
		{"an empty entry", "- objectName: a\n  secretPath: kv/app\n- \n", stack.Vault.Addr, codes.InvalidArgument, []string{`object "#2"`, "is empty or no mapping of fields"}},
		{"no entry", "[]", stack.Vault.Addr, codes.InvalidArgument, []string{`field "objects"`, "is empty"}},
	}
	pid := s.daemon.Pid()
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			v := s.volumeOf(t, newPod(), s.SPC(tt.objects).With(map[string]string{"vaultAddress": tt.address}))
			_, err := v.Mount(t.Context())
			require.Equal(t, tt.code, status.Code(err), "got %v", err)
			for _, part := range tt.says {
				require.ErrorContains(t, err, part)
			}
			mount(t, neighbour)
			mount(t, s.volume(t, s.db("db")))
		})
	}
	require.True(t, s.daemon.Running())
	require.Equal(t, pid, s.daemon.Pid())
	s.requireAsked(t, 1+len(tests), 1+len(tests))
	s.requireHeld(t, 1+len(tests), 1+len(tests))
}

// faulty is the Vault source with a fault of Tenure's own in one method, for one pod.
type faulty struct {
	*vault.Source
	method, pod string
}

func (f faulty) panics(method string, by lease.Caller) {
	if f.method == method && f.pod == by.Pod.Name {
		panic("a value that might be a secret")
	}
}

func (f faulty) Login(ctx context.Context, by lease.Caller, login provider.Login, id provider.Identity) (lease.Session, error) {
	f.panics("login", by)
	return f.Source.Login(ctx, by, login, id)
}

func (f faulty) Read(ctx context.Context, by lease.Caller, s lease.Session, r provider.Read) (lease.Issued, error) {
	f.panics("read", by)
	return f.Source.Read(ctx, by, s, r)
}

func (f faulty) RenewSession(ctx context.Context, by lease.Caller, s lease.Session) (lease.Granted, error) {
	f.panics("renew the token", by)
	return f.Source.RenewSession(ctx, by, s)
}

func (f faulty) RenewLease(ctx context.Context, by lease.Caller, s lease.Session, id string, increment time.Duration) (lease.Granted, error) {
	f.panics("renew the lease", by)
	return f.Source.RenewLease(ctx, by, s, id, increment)
}

func (f faulty) EndSession(ctx context.Context, by lease.Caller, s lease.Session) error {
	f.panics("end", by)
	return f.Source.EndSession(ctx, by, s)
}

// TestPanics lets each call to Vault panic for one pod. The daemon's parts run
// in this process: a panic that nobody holds ends the test.
func TestPanics(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		method string
		mounts bool // the faulty pod's Mount succeeds: the fault comes later
	}{{"login", false}, {"read", false}, {"renew the token", true}, {"renew the lease", true}, {"end", true}} {
		t.Run(tt.method, func(t *testing.T) {
			t.Parallel()
			victim := newPod()
			s, metrics := inProcess(t, tt.method, victim.Name)
			neighbour := s.mounted(t, s.db("db"))
			v := s.volumeOf(t, victim, s.SPC(list(s.db("db"))))
			_, err := v.Mount(t.Context())
			if tt.mounts {
				require.NoError(t, err)
			} else {
				require.Equal(t, codes.Internal, status.Code(err), "got %v", err)
				require.ErrorContains(t, err, "a fault in Tenure itself")
				require.NotContains(t, err.Error(), "secret")
			}
			if tt.method == "end" {
				require.NoError(t, s.node.DeletePod(victim))
			}
			require.NoError(t, fixture.Eventually(within(t, 2*time.Minute), true, func(context.Context) (bool, error) {
				n, err := counted(metrics, "tenure_volume_panics_total")
				return n > 0, err
			}), "counted")
			begin := time.Now()
			mount(t, neighbour)
			mount(t, s.volume(t, s.db("db")))
			values := service(read(t, neighbour, "db"))
			requireRenewed(t, values["user"], begin.Add(31*time.Second)) // past the credential's first life
			require.NoError(t, stack.Postgres.Login(t.Context(), values["user"], values["password"]))
			mount(t, neighbour)
		})
	}
}

// counted sums a counter.
func counted(metrics prometheus.Gatherer, name string) (sum float64, err error) {
	families, err := metrics.Gather()
	for _, f := range families {
		if f.GetName() == name {
			for _, m := range f.GetMetric() {
				sum += m.GetCounter().GetValue()
			}
		}
	}
	return sum, err
}

// inProcess wires the daemon's parts as serve does, with a faulty source.
func inProcess(t *testing.T, method, pod string) (*site, prometheus.Gatherer) {
	t.Helper()
	s := &site{Scope: fixture.Scoped(t, stack, fixture.ScopeOptions{
		TTL: 30 * time.Second, MaxTTL: time.Hour, Auth: fixture.AuthRole{TTL: 40 * time.Second, Max: time.Hour},
	})}
	s.node = fixture.NodeFor(t, fixture.NodeOptions{Issuer: stack.Issuer})
	log, metrics := slog.New(slog.DiscardHandler), prometheus.NewRegistry()
	source, err := vault.New(vault.Config{Addr: stack.Vault.Addr})
	require.NoError(t, err)
	t.Cleanup(source.Close)
	files, err := volume.NewWriter(s.node.Kubelet)
	require.NoError(t, err)
	journal, err := lease.OpenJournal(t.Context(), s.node.State, log)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, journal.Close()) })
	manager, err := lease.Open(lease.Config{
		Sources: map[string]lease.Source{"vault": faulty{source, method, pod}}, Files: files, Store: journal,
		VersionKey: []byte("0123456789abcdef"), Log: log, Registerer: metrics,
	})
	require.NoError(t, err)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		defer cancel()
		require.NoError(t, manager.Close(ctx))
	})
	listener, err := provider.Listen(s.node.Providers, "tenure")
	require.NoError(t, err)
	server := provider.NewServer(provider.ServerConfig{Name: "tenure", KubeletDir: s.node.Kubelet, Mounter: manager, Log: log})
	ctx, stop := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- server.Serve(ctx, listener) }()
	t.Cleanup(func() {
		stop()
		require.NoError(t, <-served)
	})
	return s, metrics
}
