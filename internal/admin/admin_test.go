package admin

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type held struct {
	Pod   string `json:"pod"`
	State string `json:"state"`
}

var discard = slog.New(slog.DiscardHandler)

// serve runs a handler on a loopback port, or on the unix socket when a path is
// given, and stops it with the test. It returns the URL for client.
func serve(t *testing.T, socket string, h http.Handler) string {
	t.Helper()
	network, address := "tcp", "127.0.0.1:0"
	if socket != "" {
		network, address = "unix", socket
	}
	l, err := net.Listen(network, address)
	require.NoError(t, err)
	s := Serve(l, h, discard)
	t.Cleanup(func() { require.NoError(t, s.Close(context.Background())) })
	if socket != "" {
		return "http://localhost"
	}
	return "http://" + l.Addr().String()
}

func get(t *testing.T, client *http.Client, url string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	require.NoError(t, err)
	resp, err := client.Do(req)
	require.NoError(t, err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	return resp.StatusCode, string(body)
}

// client returns a client without kept connections: over TCP, or over the
// socket when one is given.
func client(socket string) *http.Client {
	transport := &http.Transport{DisableKeepAlives: true}
	if socket != "" {
		transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		}
	}
	return &http.Client{Transport: transport}
}

func TestHealth(t *testing.T) {
	metrics := prometheus.NewRegistry()
	metrics.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "tenure_test", Help: "A gauge."}, func() float64 { return 42 }))
	var problem error
	health := serve(t, "", Health(func() error { return problem }, metrics, discard))
	c := client("")

	for _, path := range []string{"/healthz", "/readyz"} {
		code, body := get(t, c, health+path)
		require.Equal(t, http.StatusOK, code, path)
		require.Equal(t, "ok\n", body, path)
	}

	problem = errors.New("the pods directory can't be read")
	code, body := get(t, c, health+"/readyz")
	require.Equal(t, http.StatusServiceUnavailable, code)
	require.Equal(t, "the pods directory can't be read\n", body, "the body says why")
	code, _ = get(t, c, health+"/healthz")
	require.Equal(t, http.StatusOK, code, "a daemon that is not ready must not be killed for it")

	code, body = get(t, c, health+"/metrics")
	require.Equal(t, http.StatusOK, code)
	require.Contains(t, body, "tenure_test 42\n")
}

func TestHealthShowsNothingElse(t *testing.T) {
	health := serve(t, "", Health(func() error { return nil }, prometheus.NewRegistry(), discard))
	for _, path := range []string{"/", "/status", "/debug/pprof/", "/debug/pprof/heap"} {
		code, _ := get(t, client(""), health+path)
		require.Equal(t, http.StatusNotFound, code, path)
	}
	resp, err := client("").Post(health+"/healthz", "text/plain", nil)
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	require.Equal(t, http.StatusMethodNotAllowed, resp.StatusCode)
}

func TestStatus(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "status.sock")
	url := serve(t, socket, Status(func() any { return []held{{Pod: "orders-0", State: "live"}} }, discard))

	var got []held
	require.NoError(t, Fetch(t.Context(), socket, &got))
	require.Equal(t, []held{{Pod: "orders-0", State: "live"}}, got)

	code, body := get(t, client(socket), url+"/debug/pprof/goroutine?debug=1")
	require.Equal(t, http.StatusOK, code)
	require.Contains(t, body, "goroutine profile:")
}

func TestFetchSaysWhatIsWrong(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "none.sock")
	err := Fetch(t.Context(), missing, new(any))
	require.ErrorIs(t, err, fs.ErrNotExist)
	require.EqualError(t, err, "asking for the status: dial unix "+missing+": connect: no such file or directory")

	for _, row := range []struct {
		name    string
		handler http.HandlerFunc
		want    string
	}{
		{"an error", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTeapot) }, "asking for the status: answered 418 I'm a teapot"},
		{"no JSON", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "<html>") }, "reading the status: invalid character '<' looking for beginning of value"},
	} {
		t.Run(row.name, func(t *testing.T) {
			socket := filepath.Join(t.TempDir(), "s.sock")
			serve(t, socket, row.handler)
			require.EqualError(t, Fetch(t.Context(), socket, new(any)), row.want)
		})
	}
}

// A request that hangs must not keep the daemon from ending.
func TestCloseDropsWhatHangs(t *testing.T) {
	entered, left := make(chan struct{}), make(chan struct{})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	s := Serve(l, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		close(entered)
		<-r.Context().Done()
		close(left)
	}), discard)
	answered := make(chan error, 1)
	go func() {
		resp, err := client("").Get("http://" + l.Addr().String())
		if err == nil {
			resp.Body.Close()
		}
		answered <- err
	}()
	<-entered

	over, cancel := context.WithCancel(t.Context())
	cancel()
	require.NoError(t, s.Close(over))
	<-left
	require.Error(t, <-answered)
	_, err = net.Dial("tcp", l.Addr().String())
	require.ErrorIs(t, err, syscall.ECONNREFUSED)
}
