package provider

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"sigs.k8s.io/secrets-store-csi-driver/provider/v1alpha1"
)

// fake is a Mounter that is one function.
type fake func(ctx context.Context, r Request) ([]Version, error)

func (f fake) Mount(ctx context.Context, r Request) ([]Version, error) { return f(ctx, r) }

// buffer is a log that many goroutines write.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// running is a Server on a socket of its own, with a client.
type running struct {
	server *Server
	client v1alpha1.CSIDriverProviderClient
	conn   *grpc.ClientConn
	log    *buffer
	end    context.CancelFunc // ends Serve
	served chan error         // Serve's answer
	socket string

	metrics *prometheus.Registry
}

func serve(t *testing.T, m Mounter, drain time.Duration) *running {
	t.Helper()
	dir := t.TempDir()
	l, err := Listen(dir, "tenure")
	require.NoError(t, err)
	r := &running{log: &buffer{}, served: make(chan error, 1), socket: dir + "/tenure.sock", metrics: prometheus.NewRegistry()}
	r.server = NewServer(ServerConfig{
		Name: "tenure", KubeletDir: kubelet, Version: "1.2.3", Mounter: m, Drain: drain,
		Log: slog.New(slog.NewJSONHandler(r.log, nil)), Metrics: r.metrics,
	})
	ctx, cancel := context.WithCancel(context.Background())
	r.end = cancel
	go func() { r.served <- r.server.Serve(ctx, l) }()
	r.conn, err = grpc.NewClient("unix:"+r.socket, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithAuthority("localhost"))
	require.NoError(t, err)
	r.client = v1alpha1.NewCSIDriverProviderClient(r.conn)
	t.Cleanup(func() {
		cancel()
		r.conn.Close()
		select {
		case err := <-r.served:
			require.NoError(t, err)
		default: // the test took it
		}
	})
	return r
}

// stop ends Serve and waits for it.
func (r *running) stop(t *testing.T) {
	t.Helper()
	r.end()
	require.NoError(t, <-r.served)
}

// metric is the value of a counter, or a histogram's number of values; labels
// are its values in the order of their names.
func (r *running) metric(t *testing.T, name string, labels ...string) float64 {
	t.Helper()
	families, err := r.metrics.Gather()
	require.NoError(t, err)
	for _, family := range families {
		for _, m := range family.GetMetric() {
			var values []string
			for _, l := range m.GetLabel() {
				values = append(values, l.GetValue())
			}
			if family.GetName() == name && slices.Equal(values, labels) {
				return m.GetCounter().GetValue() + float64(m.GetHistogram().GetSampleCount())
			}
		}
	}
	return 0
}

func (r *running) mounts(t *testing.T, code codes.Code, reason string) float64 {
	t.Helper()
	return r.metric(t, "tenure_mounts_total", code.String(), reason)
}

func TestServerAnswers(t *testing.T) {
	var got Request
	r := serve(t, fake(func(_ context.Context, r Request) ([]Version, error) {
		got = r
		return []Version{{ID: "a", Version: "v1"}, {ID: "b", Version: "v2"}}, nil
	}), 0)
	defer r.stop(t)

	version, err := r.client.Version(t.Context(), &v1alpha1.VersionRequest{Version: "v1alpha1"})
	require.NoError(t, err)
	require.Equal(t, "v1alpha1 tenure 1.2.3", version.Version+" "+version.RuntimeName+" "+version.RuntimeVersion)

	req := mountRequest(t, attributes(map[string]string{tokensKey: `{"vault":{"token":"canary"}}`}))
	req.Secrets = `{"secret_id":"canary"}`
	response, err := r.client.Mount(t.Context(), req)
	require.NoError(t, err)
	require.Empty(t, response.Files)
	require.Nil(t, response.Error)
	require.Len(t, response.ObjectVersion, 2)
	require.Equal(t, "b v2", response.ObjectVersion[1].Id+" "+response.ObjectVersion[1].Version)
	require.Equal(t, testPod, got.Pod)
	require.Equal(t, "canary", got.Identity.Tokens["vault"].Value.Reveal())

	require.InDelta(t, 1, r.mounts(t, codes.OK, "ok"), 0)
	require.InDelta(t, 1, r.metric(t, "tenure_mount_duration_seconds"), 0)
	require.Contains(t, r.log.String(), `"pod":"web-0","namespace":"shop","spc":"shop-secrets"`)
	require.Equal(t, 1, strings.Count(r.log.String(), "\n"), "one line a mount")
	require.NotContains(t, r.log.String(), "canary")
}

func TestServerErrors(t *testing.T) {
	of := func(c Class, cause string) *Error {
		return &Error{Class: c, Object: "db", Cause: cause, Remedy: "do this"}
	}
	var err error
	r := serve(t, fake(func(context.Context, Request) ([]Version, error) { return nil, err }), 0)
	defer r.stop(t)
	for _, tc := range []struct {
		name string
		err  error
		code codes.Code
		text string
	}{
		{"internal", of(Internal, "x"), codes.Internal, `object "db": x; do this`},
		{"unavailable", of(Unavailable, "x"), codes.FailedPrecondition, `unavailable: object "db": x; do this`},
		{"deadline", of(Deadline, "x"), codes.FailedPrecondition, `deadline exceeded: object "db": x; do this`},
		{"exhausted", of(Exhausted, "x"), codes.FailedPrecondition, `resource exhausted: object "db": x; do this`},
		{"invalid", of(Invalid, "x"), codes.InvalidArgument, `object "db": x; do this`},
		{"denied", of(Denied, "x"), codes.PermissionDenied, `object "db": x; do this`},
		{"precondition", of(Precondition, "x"), codes.FailedPrecondition, `object "db": x; do this`},
		{"wrapped", fmt.Errorf("mounting: %w", of(Denied, "x")), codes.PermissionDenied, `mounting: object "db": x; do this`},
		{"several", Errors{of(Invalid, "x"), of(Invalid, "y")}, codes.InvalidArgument, `object "db": x; do this | object "db": y; do this`},
		{"a change before a passing one", errors.Join(of(Unavailable, "x"), of(Denied, "y")), codes.PermissionDenied, `object "db": x; do this object "db": y; do this`},
		{"context cancelled", fmt.Errorf("mounting: %w", context.Canceled), codes.FailedPrecondition, "deadline exceeded: the call ended before the volume was written; kubelet tries again"},
		{"context deadline", context.DeadlineExceeded, codes.FailedPrecondition, "deadline exceeded: the call ended before the volume was written; kubelet tries again"},
		{"a status of another", status.Error(codes.Unavailable, "x"), codes.Internal, "mounting ended in a fault of Tenure itself; report it with Tenure's log of this node"},
		{"no versions", nil, codes.Internal, "mounting ended in a fault of Tenure itself; report it with Tenure's log of this node"},
		{"control characters", of(Invalid, "a\r\nb\x00c\u202ed\xff"), codes.InvalidArgument, `object "db": a  b c d; do this`},
	} {
		err = tc.err
		_, got := r.client.Mount(t.Context(), mountRequest(t, attributes(nil)))
		require.Equal(t, tc.code.String(), status.Code(got).String(), tc.name)
		require.Equal(t, tc.text, status.Convert(got).Message(), tc.name)
	}
	require.InDelta(t, 3, r.mounts(t, codes.PermissionDenied, "denied"), 0)
	require.InDelta(t, 1, r.mounts(t, codes.FailedPrecondition, "unavailable"), 0)

	err = of(Invalid, strings.Repeat("é", maxText))
	_, got := r.client.Mount(t.Context(), mountRequest(t, attributes(nil)))
	require.LessOrEqual(t, len(status.Convert(got).Message()), maxText)
	require.True(t, strings.HasSuffix(status.Convert(got).Message(), "é…"))
}

func TestServerRefusesBadRequests(t *testing.T) {
	r := serve(t, fake(func(context.Context, Request) ([]Version, error) { panic("not reached") }), 0)
	defer r.stop(t)
	_, err := r.client.Mount(t.Context(), &v1alpha1.MountRequest{})
	require.Equal(t, codes.InvalidArgument, status.Code(err))
	// Too large for us, but not for gRPC, whose code would not be final.
	_, err = r.client.Mount(t.Context(), mountRequest(t, attributes(map[string]string{"x": strings.Repeat("x", 3<<20)})))
	require.Equal(t, codes.InvalidArgument, status.Code(err))
	_, err = r.client.Mount(t.Context(), mountRequest(t, attributes(map[string]string{"x": strings.Repeat("x", 10<<20)})))
	require.Equal(t, codes.ResourceExhausted, status.Code(err))
	require.Zero(t, r.metric(t, "tenure_mount_panics_total"))
}

func TestServerSurvivesPanics(t *testing.T) {
	value := any("canary")
	r := serve(t, fake(func(_ context.Context, r Request) ([]Version, error) {
		if r.Attributes["roleName"] == "panic" {
			panic(value)
		}
		return []Version{{ID: "a", Version: "v"}}, nil
	}), 0)
	defer r.stop(t)
	bad := mountRequest(t, attributes(map[string]string{"roleName": "panic"}))
	_, err := r.client.Mount(t.Context(), bad)
	require.Equal(t, codes.Internal, status.Code(err))
	require.NotContains(t, err.Error()+r.log.String(), "canary")
	_, err = r.client.Mount(t.Context(), mountRequest(t, attributes(nil)))
	require.NoError(t, err)
	require.InDelta(t, 1, r.metric(t, "tenure_mount_panics_total"), 0)
	require.Contains(t, r.log.String(), "server_test.go", "the stack is logged")
}

func TestServerCancelledCall(t *testing.T) {
	entered, left := make(chan struct{}), make(chan error, 1)
	r := serve(t, fake(func(ctx context.Context, _ Request) ([]Version, error) {
		close(entered)
		<-ctx.Done()
		left <- ctx.Err()
		return nil, ctx.Err()
	}), 0)
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-entered; cancel() }()
	_, err := r.client.Mount(ctx, mountRequest(t, attributes(nil)))
	require.Equal(t, codes.Canceled, status.Code(err), "the client's own word for its own doing")
	require.ErrorIs(t, <-left, context.Canceled)
	r.stop(t)
	require.InDelta(t, 1, r.mounts(t, codes.FailedPrecondition, "cancelled"), 0)
}

// While it ends, a Server lets Mounts finish; those that are left get a final code.
func TestServerDrains(t *testing.T) {
	for _, row := range []struct {
		name  string
		drain time.Duration
		last  bool // the Mount takes longer than that
		code  codes.Code
	}{
		{"what finishes in time", time.Hour, false, codes.OK},
		{"what does not", time.Millisecond, true, codes.FailedPrecondition},
	} {
		t.Run(row.name, func(t *testing.T) {
			entered, finish := make(chan struct{}), make(chan struct{})
			r := serve(t, fake(func(ctx context.Context, _ Request) ([]Version, error) {
				close(entered)
				select {
				case <-finish:
					return []Version{{ID: "a", Version: "v"}}, nil
				case <-ctx.Done():
					return nil, ctx.Err()
				}
			}), row.drain)
			answer := make(chan error, 1)
			req := mountRequest(t, attributes(nil))
			go func() {
				_, err := r.client.Mount(context.Background(), req)
				answer <- err
			}()
			<-entered
			r.end()
			require.Eventually(t, func() bool { return noFile(r.socket) }, time.Minute, time.Millisecond, "the socket goes first")
			if !row.last {
				close(finish)
			}
			err := <-answer
			require.Equal(t, row.code, status.Code(err), err)
			require.NoError(t, <-r.served)
		})
	}
}

// A Mounter that never comes back can't keep the process.
func TestServerCutsTheDeaf(t *testing.T) {
	entered, release := make(chan struct{}), make(chan struct{})
	r := serve(t, fake(func(context.Context, Request) ([]Version, error) {
		close(entered)
		<-release
		return nil, context.Canceled
	}), time.Millisecond)
	answer := make(chan error, 1)
	req := mountRequest(t, attributes(nil))
	go func() {
		_, err := r.client.Mount(context.Background(), req)
		answer <- err
	}()
	<-entered
	r.stop(t)
	require.Equal(t, codes.Unavailable, status.Code(<-answer))
	close(release)
}

func TestServerWithoutListener(t *testing.T) {
	l, err := Listen(t.TempDir(), "tenure")
	require.NoError(t, err)
	require.NoError(t, l.Close())
	s := NewServer(ServerConfig{Log: slog.New(slog.DiscardHandler)})
	require.ErrorContains(t, s.Serve(t.Context(), l), "serving the CSI driver")

	ended, cancel := context.WithCancel(t.Context())
	cancel()
	l, err = Listen(t.TempDir(), "tenure")
	require.NoError(t, err)
	require.NoError(t, NewServer(ServerConfig{}).Serve(ended, l), "ended before it began")
}
