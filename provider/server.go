package provider

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"runtime"
	"runtime/debug"
	"strings"
	"time"
	"unicode"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"sigs.k8s.io/secrets-store-csi-driver/provider/v1alpha1"
)

const (
	// maxReceive is gRPC's own default, above what the API server stores of an SPC,
	// a pod and a Secret together. A request over it gets ResourceExhausted from
	// gRPC, which kubelet does not take for final; one below gets our own answer.
	maxReceive = 4 << 20
	// maxStreams lets every volume of a full node be mounted at once: a slow one
	// must not keep the others waiting in the driver's one connection.
	maxStreams = 1024
	// maxText bounds an error's text: it becomes an Event, which the API server
	// cuts at 1 KiB, and a line of the driver's log.
	maxText = 4 << 10
	// defaultDrain is how long Serve waits for Mounts when it ends.
	defaultDrain = 20 * time.Second
)

// ServerConfig is what a Server needs.
type ServerConfig struct {
	Name       string  // provider name, as in Listen; it becomes Request.Provider
	KubeletDir string  // kubelet's root directory, see Decode
	Version    string  // answered to the driver's Version call
	Mounter    Mounter // called from many goroutines at once

	Log     *slog.Logger          // nil: slog.Default
	Metrics prometheus.Registerer // nil: not registered
	// Drain is how long Serve lets Mounts finish when it ends; zero: 20 s.
	Drain time.Duration
}

// Server answers the driver's calls. Its methods may be called from many
// goroutines at once.
type Server struct {
	v1alpha1.UnimplementedCSIDriverProviderServer
	config  ServerConfig
	drained context.Context // done when Mounts must give up
	giveUp  context.CancelFunc

	mounts   *prometheus.CounterVec
	duration prometheus.Histogram
	panics   prometheus.Counter
}

// NewServer returns a Server for one Serve. It panics when config.Metrics holds
// its metrics already: give each of two servers a registry wrapped with a label.
func NewServer(config ServerConfig) *Server {
	if config.Log == nil {
		config.Log = slog.Default()
	}
	if config.Drain == 0 {
		config.Drain = defaultDrain
	}
	s := &Server{
		config: config,
		mounts: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "tenure_mounts_total",
			Help: "Mount calls of the CSI driver by gRPC code and reason (ok, or the class of the error).",
		}, []string{"code", "reason"}),
		duration: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "tenure_mount_duration_seconds",
			Help:    "Time a Mount call took; republishes of live volumes are in the lowest buckets.",
			Buckets: []float64{.0005, .001, .005, .025, .1, .25, .5, 1, 2.5, 5, 10, 20, 40},
		}),
		panics: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "tenure_mount_panics_total",
			Help: "Mount calls that ended in a panic: faults of Tenure.",
		}),
	}
	s.drained, s.giveUp = context.WithCancel(context.Background())
	if config.Metrics != nil {
		config.Metrics.MustRegister(s.mounts, s.duration, s.panics)
	}
	return s
}

// Serve answers calls on l until ctx is done. Then it closes l, lets running
// Mounts finish for ServerConfig.Drain, cancels the contexts of those that are
// left, and closes the connections a second later, leaving a Mounter that does not
// heed its context behind. It returns nil after such an end. It may be called once.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	g := grpc.NewServer(grpc.MaxRecvMsgSize(maxReceive), grpc.MaxConcurrentStreams(maxStreams))
	v1alpha1.RegisterCSIDriverProviderServer(g, s)
	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(stopped)
		s.stop(g)
	})
	defer s.giveUp()
	err := g.Serve(l)
	if stop() {
		g.Stop()
		return fmt.Errorf("serving the CSI driver: %w", err)
	}
	<-stopped
	return nil
}

// stop ends g in steps. A call that gRPC cuts ends in Unavailable, one that gives
// up with a final code.
func (s *Server) stop(g *grpc.Server) {
	done := make(chan struct{})
	go func() { // in the background, as it waits for handlers even after Stop
		defer close(done)
		g.GracefulStop()
	}()
	select {
	case <-done:
		return
	case <-time.After(s.config.Drain):
		s.giveUp()
	}
	select {
	case <-done:
	case <-time.After(time.Second):
		g.Stop()
	}
}

// Version answers the driver's health check.
func (s *Server) Version(context.Context, *v1alpha1.VersionRequest) (*v1alpha1.VersionResponse, error) {
	return &v1alpha1.VersionResponse{Version: "v1alpha1", RuntimeName: s.config.Name, RuntimeVersion: s.config.Version}, nil
}

// Mount answers with the versions of the volume's objects and no files: the
// Mounter has written them. Its error is a gRPC status with a final code.
func (s *Server) Mount(ctx context.Context, req *v1alpha1.MountRequest) (*v1alpha1.MountResponse, error) {
	start := time.Now()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.drained, cancel)()

	r, versions, err := s.mount(ctx, req)
	code, reason, text := answer(err)
	took := time.Since(start)
	s.mounts.WithLabelValues(code.String(), reason).Inc()
	s.duration.Observe(took.Seconds())
	log := s.config.Log.With("pod", r.Pod.Name, "namespace", r.Pod.Namespace, "spc", r.Attributes[spcKey], "duration", took, "outcome", reason)
	if err != nil {
		log.Warn("mount failed", "code", code.String(), "error", clean(err.Error()))
		return nil, status.Error(code, text)
	}
	log.Info("mounted", "objects", len(versions))
	response := &v1alpha1.MountResponse{ObjectVersion: make([]*v1alpha1.ObjectVersion, 0, len(versions))}
	for _, v := range versions {
		response.ObjectVersion = append(response.ObjectVersion, &v1alpha1.ObjectVersion{Id: v.ID, Version: v.Version})
	}
	return response, nil
}

// mount does the work; a panic in it ends this call only.
func (s *Server) mount(ctx context.Context, req *v1alpha1.MountRequest) (r Request, versions []Version, err error) {
	defer func() {
		if p := recover(); p != nil {
			s.panics.Inc()
			// A panic's value may hold anything; only the runtime's own are known to be harmless.
			what := fmt.Sprintf("%T", p)
			if fault, ok := p.(runtime.Error); ok {
				what = fault.Error()
			}
			s.config.Log.Error("mount panicked", "panic", what, "stack", string(debug.Stack()))
			err = &Error{Class: Internal, Cause: "mounting ended in a fault of Tenure itself", Remedy: "report it with Tenure's log of this node"}
		}
	}()
	if r, err = Decode(req, s.config.Name, s.config.KubeletDir); err != nil {
		return r, nil, err
	}
	if versions, err = s.config.Mounter.Mount(ctx, r); err == nil && len(versions) == 0 {
		// The wire has no empty list, and the driver refuses an answer without one.
		err = errors.New("mounting gave no object versions")
	}
	return r, versions, err
}

// EventText is the text of a Mounter's error as the pod's Event shows it.
func EventText(err error) string {
	_, _, text := answer(err)
	return text
}

// answer turns an error into what goes on the wire: the only place where classes
// become codes. All codes are final for kubelet: on another one it would start the
// pod with an empty volume. reason is a word of a small set, for metrics.
func answer(err error) (code codes.Code, reason, text string) {
	if err == nil {
		return codes.OK, "ok", ""
	}
	class, known := classOf(err)
	switch {
	case known:
		reason, text = class.String(), err.Error()
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		class, reason = Deadline, "cancelled"
		text = "the call ended before the volume was written; kubelet tries again"
	default:
		reason, text = class.String(), "mounting ended in a fault of Tenure itself; report it with Tenure's log of this node"
	}
	if class.Passing() {
		text = class.String() + ": " + text
	}
	return classCodes[class], reason, clean(text)
}

var classCodes = [...]codes.Code{
	Internal:     codes.Internal,
	Unavailable:  codes.FailedPrecondition,
	Deadline:     codes.FailedPrecondition,
	Exhausted:    codes.FailedPrecondition,
	Invalid:      codes.InvalidArgument,
	Denied:       codes.PermissionDenied,
	Precondition: codes.FailedPrecondition,
}

// foremost orders the classes of joined errors: one that needs a change comes
// before one that passes, so that the user sees what to do.
var foremost = [...]Class{Internal, Invalid, Denied, Precondition, Exhausted, Unavailable, Deadline}

// classOf finds the class of an error that may join several.
func classOf(err error) (class Class, known bool) {
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		if e, ok := errors.AsType[*Error](err); ok {
			return e.Class, true
		}
		return Internal, false
	}
	found := map[Class]bool{}
	for _, e := range joined.Unwrap() {
		if c, ok := classOf(e); ok {
			found[c] = true
		}
	}
	for _, c := range foremost {
		if found[c] {
			return c, true
		}
	}
	return Internal, false
}

// clean makes a text fit for a terminal and an Event: one line of printable
// characters, bounded.
func clean(text string) string {
	if len(text) > maxText {
		text = text[:maxText-len("…")] + "…"
	}
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(text, ""))
}
