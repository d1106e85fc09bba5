package lease

import "github.com/prometheus/client_golang/prometheus"

// metrics counts what the manager does. No label holds a name of a pod, a
// tenant or a lease: their number is bounded.
type metrics struct {
	issued        *prometheus.CounterVec // by reason and kind
	readErrors    *prometheus.CounterVec // by class
	logins        *prometheus.CounterVec // by outcome
	renewals      *prometheus.CounterVec // by outcome
	ends          *prometheus.CounterVec // by what and outcome
	listErrors    *prometheus.CounterVec // by class
	orphans       prometheus.Counter
	journalErrors prometheus.Counter
	recordsLeft   prometheus.Gauge
	panics        prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) *metrics {
	vec := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "tenure", Name: name, Help: help}, labels)
	}
	m := &metrics{
		issued:     vec("issued_total", "Answers to reads, by why they were asked for and how they are kept fresh.", "reason", "kind"),
		readErrors: vec("read_errors_total", "Reads that failed, by class of the error.", "class"),
		logins:     vec("logins_total", "Logins with pods' identities, by ok or the class of the error.", "outcome"),
		renewals:   vec("renewals_total", "Renewals of leases and tokens, by ok or the class of the error.", "outcome"),
		ends:       vec("ends_total", "Ends of grants and of single leases asked of the backend, by ok or the class of the error.", "what", "outcome"),
		listErrors: vec("tenant_list_errors_total", "Lists of tenants that could not be read, by class of the error.", "class"),
		orphans: prometheus.NewCounter(prometheus.CounterOpts{
			Namespace: "tenure", Name: "orphaned_possible_total",
			Help: "Reads of unknown outcome: a credential may exist that nobody holds, until its own end.",
		}),
		journalErrors: prometheus.NewCounter(prometheus.CounterOpts{
			Namespace: "tenure", Name: "journal_errors_total", Help: "Records that could not be written.",
		}),
		recordsLeft: prometheus.NewGauge(prometheus.GaugeOpts{
			Namespace: "tenure", Name: "journal_records_left",
			Help: "Records of volumes found at the start that only a later version can work with; nobody keeps their leases fresh.",
		}),
		panics: prometheus.NewCounter(prometheus.CounterOpts{
			Namespace: "tenure", Name: "volume_panics_total", Help: "Panics that were kept to one volume.",
		}),
	}
	if reg != nil {
		reg.MustRegister(m.panics, m.issued, m.readErrors, m.logins, m.renewals, m.ends, m.listErrors, m.orphans, m.journalErrors, m.recordsLeft)
	}
	return m
}

// collector reports the manager's present state when it is asked for.
type collector struct {
	m       *Manager
	volumes *prometheus.Desc
	expired *prometheus.Desc
	failing *prometheus.Desc
	owed    *prometheus.Desc
	tenants *prometheus.Desc
	bytes   *prometheus.Desc
}

// Describe implements prometheus.Collector.
func (c collector) Describe(ch chan<- *prometheus.Desc) { prometheus.DescribeByCollect(c, ch) }

// Collect implements prometheus.Collector.
func (c collector) Collect(ch chan<- prometheus.Metric) {
	states := map[string]int{Live: 0, Waiting: 0, Away: 0, NeedsIdentity: 0, Expired: 0, Ending: 0}
	expired, failing, owed, held, leftOut := 0, 0, 0, 0, 0
	for _, v := range c.m.Status() {
		states[v.State]++
		owed += v.Owed
		leftOut += len(v.LeftOut)
		held += len(v.tenants())
		for _, l := range v.Leases {
			if l.State == Expired {
				expired++
			}
			if l.Failing {
				failing++
			}
		}
	}
	for state, n := range states {
		ch <- prometheus.MustNewConstMetric(c.volumes, prometheus.GaugeValue, float64(n), state)
	}
	ch <- prometheus.MustNewConstMetric(c.expired, prometheus.GaugeValue, float64(expired))
	ch <- prometheus.MustNewConstMetric(c.failing, prometheus.GaugeValue, float64(failing))
	ch <- prometheus.MustNewConstMetric(c.owed, prometheus.GaugeValue, float64(owed))
	ch <- prometheus.MustNewConstMetric(c.tenants, prometheus.GaugeValue, float64(held), "held")
	ch <- prometheus.MustNewConstMetric(c.tenants, prometheus.GaugeValue, float64(leftOut), "left-out")
	ch <- prometheus.MustNewConstMetric(c.bytes, prometheus.GaugeValue, float64(c.m.budget.total()))
}

func newCollector(m *Manager) collector {
	return collector{
		m:       m,
		volumes: prometheus.NewDesc("tenure_volumes", "Volumes by state.", []string{"state"}, nil),
		expired: prometheus.NewDesc("tenure_leases_expired", "Leases in live files that are past their end.", nil, nil),
		failing: prometheus.NewDesc("tenure_leases_failing", "Leases that could not be kept fresh through half of the life that was left when they fell due, and have not ended.", nil, nil),
		owed:    prometheus.NewDesc("tenure_owed_ends", "Grants and leases whose end at the backend is still owed.", nil, nil),
		tenants: prometheus.NewDesc("tenure_tenants", "Tenants of all volumes, by whether their files are there.", []string{"state"}, nil),
		bytes:   prometheus.NewDesc("tenure_volume_bytes", "Memory that the files of all volumes take; --volume-budget bounds it.", nil, nil),
	}
}

// outcome is the label for how a call went.
func outcome(err error) string {
	if err == nil {
		return "ok"
	}
	return classOf(err).String()
}
