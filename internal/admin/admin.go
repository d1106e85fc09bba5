// Package admin shows what the daemon is doing: health, readiness and metrics
// for kubelet and Prometheus, the status and profiles for the operator on the
// node. It changes nothing and knows nothing of leases.
package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Limits on what a caller can cost.
const (
	readTimeout    = 5 * time.Second  // the whole request: none has a body
	writeTimeout   = time.Minute      // the answer: a CPU profile takes 30 s by default
	scrapeTimeout  = 10 * time.Second // Prometheus' own default
	scrapes        = 4                // at once
	idleTimeout    = 2 * time.Minute
	maxHeaderBytes = 8 << 10
	// maxStatus bounds what Fetch reads: 500 volumes of 500 tenants stay far below.
	maxStatus = 256 << 20
)

// Health answers GET /healthz: the process serves, /readyz: it can do its work,
// and if not the body says why, and /metrics. ready is called from many
// goroutines at once and must not wait; its error's text is public.
func Health(ready func() error, metrics prometheus.Gatherer, log *slog.Logger) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { answer(w, nil) })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) { answer(w, ready()) })
	mux.Handle("GET /metrics", promhttp.HandlerFor(metrics, promhttp.HandlerOpts{
		ErrorLog:            slog.NewLogLogger(log.Handler(), slog.LevelWarn),
		MaxRequestsInFlight: scrapes,
		Timeout:             scrapeTimeout,
	}))
	return mux
}

// answer says ok, or why not.
func answer(w http.ResponseWriter, problem error) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	text := "ok\n"
	if problem != nil {
		w.WriteHeader(http.StatusServiceUnavailable)
		text = problem.Error() + "\n"
	}
	_, _ = io.WriteString(w, text) // the caller is gone: nobody to tell
}

// Status answers GET /status with what status returns, as JSON, and the profiles
// of net/http/pprof below /debug/pprof/. Both name pods and flags: serve it to
// the node's operator only. status is called from many goroutines at once and
// must not wait; what it returns holds no secret.
func Status(status func() any, log *slog.Logger) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		if err := json.NewEncoder(w).Encode(status()); err != nil {
			log.Warn("answering a status request", "error", err)
		}
	})
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	return mux
}

// Server is a running HTTP server.
type Server struct {
	http *http.Server
	done chan struct{}
}

// Serve answers on l until Close. It takes l over.
func Serve(l net.Listener, h http.Handler, log *slog.Logger) *Server {
	s := &Server{
		http: &http.Server{
			Handler:        h,
			ReadTimeout:    readTimeout,
			WriteTimeout:   writeTimeout,
			IdleTimeout:    idleTimeout,
			MaxHeaderBytes: maxHeaderBytes,
			ErrorLog:       slog.NewLogLogger(log.Handler(), slog.LevelWarn),
		},
		done: make(chan struct{}),
	}
	go func() {
		defer close(s.done)
		if err := s.http.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			log.Error("serving ended", "address", l.Addr().String(), "error", err)
		}
	}()
	return s
}

// Close stops listening, waits for requests in flight until ctx ends, and drops
// those that are left.
func (s *Server) Close(ctx context.Context) error {
	err := s.http.Shutdown(ctx)
	if err != nil {
		err = s.http.Close()
	}
	<-s.done
	return err
}

// Fetch asks the daemon behind the unix socket for its status and decodes it into
// v. The error keeps the system's cause, such as fs.ErrNotExist.
func Fetch(ctx context.Context, socket string, v any) error {
	client := http.Client{
		Timeout: writeTimeout,
		Transport: &http.Transport{
			DisableKeepAlives: true,
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, "unix", socket)
			},
		},
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://localhost/status", nil)
	if err != nil {
		return fmt.Errorf("asking for the status: %w", err)
	}
	resp, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("asking for the status: %w", errors.Unwrap(err)) // without the made-up URL
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("asking for the status: answered %s", resp.Status)
	}
	if err := json.NewDecoder(http.MaxBytesReader(nil, resp.Body, maxStatus)).Decode(v); err != nil {
		return fmt.Errorf("reading the status: %w", err)
	}
	return nil
}
