package vault

import (
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics count calls at any Vault address. Labels are bounded: seven operations,
// and the codes of code().
type metrics struct {
	requests *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
	inFlight prometheus.Gauge
}

// newMetrics registers at reg, where nil means nowhere.
func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "tenure_vault_requests_total",
			Help: "Requests sent to Vault by operation and HTTP status; code \"none\" had no answer.",
		}, []string{"op", "code"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "tenure_vault_request_seconds",
			Help:    "Time from sending a request to having read Vault's answer.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 90},
		}, []string{"op"}),
		inFlight: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "tenure_vault_requests_in_flight",
			Help: "Requests at Vault now.",
		}),
	}
	if reg == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{m.requests, m.seconds, m.inFlight} {
		if err := reg.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

func (m *metrics) done(op operation, status int, took time.Duration) {
	m.requests.WithLabelValues(string(op), code(status)).Inc()
	m.seconds.WithLabelValues(string(op)).Observe(took.Seconds())
}

// code is the status as Vault uses it, and the class of any other.
func code(status int) string {
	switch status {
	case 0:
		return "none"
	case 200, 202, 204, 307, 400, 403, 404, 405, 412, 429, 472, 473, 474, 500, 501, 502, 503, 504:
		return strconv.Itoa(status)
	}
	if status < 100 || status > 599 {
		return "other"
	}
	return strconv.Itoa(status/100) + "xx"
}
