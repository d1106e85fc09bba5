package main

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/tenure-csi/tenure/internal/lease"
	"github.com/tenure-csi/tenure/internal/tenant"
	"github.com/tenure-csi/tenure/internal/volume"
	"github.com/tenure-csi/tenure/provider"
)

// described is a registry that takes down what is registered: a metric with labels has
// no sample, and is not gathered, before it was counted first.
type described struct {
	prometheus.Registerer
	all   map[string]string // "type labels…" by name
	label string            // of all of them, beside their own
}

func (d described) Register(c prometheus.Collector) error {
	descs := make(chan *prometheus.Desc)
	go func() { c.Describe(descs); close(descs) }()
	for desc := range descs {
		m := regexp.MustCompile(`^Desc{fqName: "(\w+)", .*constLabels: {(.*?)}, variableLabels: {(.*?)}}$`).FindStringSubmatch(desc.String())
		of := []string{typeOf(c)}
		for _, label := range strings.FieldsFunc(d.label+","+m[2]+","+m[3], func(r rune) bool { return r == ',' }) {
			name, _, _ := strings.Cut(label, "=")
			of = append(of, name)
		}
		d.all[m[1]] = strings.Join(of, " ")
	}
	return d.Registerer.Register(c)
}

func (d described) MustRegister(cs ...prometheus.Collector) {
	for _, c := range cs {
		if err := d.Register(c); err != nil {
			panic(err)
		}
	}
}

func typeOf(c prometheus.Collector) string {
	switch c.(type) {
	case *prometheus.HistogramVec, prometheus.Histogram:
		return "histogram"
	case prometheus.Gauge: // it has a counter's methods too
		return "gauge"
	case *prometheus.CounterVec, prometheus.Counter:
		return "counter"
	}
	return "gauge" // what is reported as it is when it is asked for
}

// TestMetricsAreDocumented compares docs/metrics.md with what the daemon registers.
func TestMetricsAreDocumented(t *testing.T) {
	n, log := newNode(t), slog.New(slog.DiscardHandler)
	reg := described{prometheus.NewRegistry(), map[string]string{"tenure_build_info": "gauge version"}, ""} // newMetrics registers that
	source, err := vaultFlags{}.source(nil, log, reg)
	require.NoError(t, err)
	t.Cleanup(source.Close)
	cloud, err := awsFlags{}.source(nil, log, reg)
	require.NoError(t, err)
	t.Cleanup(cloud.Close)
	_, err = tenant.Open(filepath.Join(n.root, "no such file"), log, reg)
	require.Error(t, err)
	files, err := volume.NewWriter(n.kubelet)
	require.NoError(t, err)
	journal, err := lease.OpenJournal(t.Context(), n.state, log)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, journal.Close()) })
	journal.Register(reg)
	manager, err := lease.Open(lease.Config{Files: files, Store: journal, VersionKey: []byte("key"), Log: log, Registerer: reg})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, manager.Close(context.Background())) })
	provider.NewServer(provider.ServerConfig{Metrics: described{prometheus.WrapRegistererWith(prometheus.Labels{"provider": "x"}, reg.Registerer), reg.all, "provider"}})

	page, err := os.ReadFile("../../docs/metrics.md")
	require.NoError(t, err)
	documented := map[string]string{}
	for _, m := range regexp.MustCompile("(?m)^\\| `(\\w+)` \\| (\\w+) \\| (.*?) ?\\|").FindAllStringSubmatch(string(page), -1) {
		documented[m[1]] = strings.Join(append([]string{m[2]}, regexp.MustCompile(`\w+`).FindAllString(m[3], -1)...), " ")
	}
	require.Equal(t, documented, reg.all)
	for _, name := range regexp.MustCompile(`tenure_\w+`).FindAllString(string(page), -1) {
		require.Contains(t, reg.all, name, "as in an alert")
	}
}
