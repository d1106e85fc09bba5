package aws

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"strconv"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/smithy-go"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/tenure-csi/tenure/internal/lease"
	"github.com/tenure-csi/tenure/provider"
)

// errNoSession is an answer without the session that was asked for.
var errNoSession = errors.New("the answer holds no session")

// ask makes one call for credentials once it has room, and says what a failed one
// means. Those that have ended already are a failure too.
func (s *Source) ask(ctx context.Context, q question, call func(context.Context) (aws.Credentials, error)) (aws.Credentials, *lease.Failure) {
	leave, err := s.gates.Enter(ctx, s.address(q), q.by.Pod.Namespace, q.by.Work, false)
	if err != nil {
		return aws.Credentials{}, q.crowded(err)
	}
	defer leave()
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	start := time.Now()
	keys, err := call(ctx)
	if err == nil && !keys.CanExpire && q.op != opNode {
		err = errNoSession
	}
	took := time.Since(start)
	status := statusOf(err)
	s.metrics.done(q.op, status, took)
	s.log.LogAttrs(ctx, slog.LevelDebug, "asked AWS", slog.String("op", string(q.op)), slog.String("region", q.Region), slog.String("role", q.RoleARN),
		slog.String("namespace", q.by.Pod.Namespace), slog.String("pod", q.by.Pod.Name), slog.Int("status", status), slog.Duration("took", took))
	if told := smithy.APIError(nil); q.Identity == provider.NodeIdentity && errors.As(err, &told) {
		s.log.Warn("AWS refuses the node's identity", "namespace", q.by.Pod.Namespace, "pod", q.by.Pod.Name, "role", q.RoleARN, "reason", q.answer(told))
	}
	switch {
	case err != nil:
		return aws.Credentials{}, q.classify(err)
	case keys.CanExpire && !keys.Expires.After(time.Now()):
		return aws.Credentials{}, q.fail(lease.Retry, provider.Unavailable, "", "the session that it gave has expired already", "compare the clocks of this node and of AWS")
	}
	return keys, nil
}

// address names what is asked, for the gate.
func (s *Source) address(q question) string {
	switch {
	case q.op == opAgent || q.op == opNode:
		return string(q.op)
	case s.cfg.STSEndpoint != "":
		return s.cfg.STSEndpoint
	}
	return q.Region
}

// statusOf is the HTTP status of a call; 0 for one without an answer.
func statusOf(err error) int {
	if err == nil || errors.Is(err, errNoSession) {
		return http.StatusOK
	}
	var told interface{ HTTPStatusCode() int }
	if errors.As(err, &told) {
		return told.HTTPStatusCode()
	}
	return 0
}

// metrics count calls. Labels are bounded: four operations, and the statuses that
// HTTP knows.
type metrics struct {
	requests *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
}

// newMetrics registers at reg, where nil means nowhere.
func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "tenure_aws_requests_total",
			Help: "Requests to AWS by operation and HTTP status; code \"none\" had no answer.",
		}, []string{"op", "code"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "tenure_aws_request_seconds",
			Help:    "Time from asking AWS to having read the answer.",
			Buckets: []float64{.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10},
		}, []string{"op"}),
	}
	if reg == nil {
		return m, nil
	}
	return m, errors.Join(reg.Register(m.requests), reg.Register(m.seconds))
}

func (m *metrics) done(op operation, status int, took time.Duration) {
	code := "other"
	switch {
	case status == 0:
		code = "none"
	case http.StatusText(status) != "":
		code = strconv.Itoa(status)
	}
	m.requests.WithLabelValues(string(op), code).Inc()
	m.seconds.WithLabelValues(string(op)).Observe(took.Seconds())
}
