//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	core "k8s.io/api/core/v1"

	"github.com/tenure-csi/tenure/test/fixture"
)

// outage is for how long the API server is away.
const outage = 5 * time.Minute

// apiServerStopped stops the API server under a daemon that watches pods and
// SecretProviderClasses and reports Events. Meanwhile leases of 20 s to a minute are
// renewed and replaced, leases of two minutes are renewed, an hour's go on, and a
// secret changes.
func apiServerStopped(t *testing.T) {
	configure(t, "kubernetes: {events: true, podWatch: true, spcWatch: true, statusSync: true}")
	short, long, lasting := newScene(t, shortLived), newScene(t, fixture.ScopeOptions{TTL: 2 * time.Minute}), newScene(t, fixture.ScopeOptions{})
	short.orders(t)
	long.orders(t)
	lasting.class(t, "orders", lasting.database("")+lasting.mottoEvery("20s"))
	var replacing []*core.Pod
	for _, name := range []string{"one", "two", "three"} {
		p := pod(template(busy, "orders"))
		p.Name = name
		short.create(t, p)
		replacing = append(replacing, p)
	}
	for _, p := range replacing {
		short.awaitRunning(t, p)
	}
	renewing, keeping := long.run(t, template(busy, "orders")), lasting.run(t, template(busy, "orders"))
	for _, p := range append(replacing, renewing, keeping) {
		short.awaitUsers(t, p, 1)
	}
	kept := exec(t, keeping, "cat", secrets+"/orders.conf")
	daemon := daemonProcess(t)
	before, goroutines, warned := daemon.charge(t), metric(t, "go_goroutines"), warnings(t)

	require.NoError(t, cluster.APIServer.Kill())
	began := time.Now()
	require.NoError(t, stack.Vault.WriteKV1(t.Context(), lasting.KV, "app", map[string]any{"motto": "respice finem"}))
	require.NoError(t, await(t.Context(), outage+soon, func(context.Context) error {
		if left := outage - time.Since(began); left > 0 {
			return fmt.Errorf("the API server is to stay away for another %s", left)
		}
		return nil
	}))
	for _, p := range replacing {
		users := short.awaitUsers(t, p, 5)
		require.LessOrEqual(t, len(users), 2+int(time.Since(began)/(40*time.Second)), "replaced without need: %q", users)
		require.Empty(t, exec(t, p, "cat", "/tmp/errors"))
	}
	for _, p := range []*core.Pod{renewing, keeping} {
		require.Len(t, long.awaitUsers(t, p, 1), 1)
		require.Empty(t, exec(t, p, "cat", "/tmp/errors"))
	}
	require.Equal(t, kept, exec(t, keeping, "cat", secrets+"/orders.conf"))
	require.Equal(t, "respice finem", exec(t, keeping, "cat", secrets+"/motto"))
	grown, more, said := daemon.charge(t).minus(before), metric(t, "go_goroutines")-goroutines, warnings(t)-warned
	report.figure("%s of it: %s; %v goroutines more, and %d warnings", time.Since(began).Round(time.Second), grown, more, said)
	require.LessOrEqual(t, more, 10.0, "goroutines")
	require.LessOrEqual(t, grown.process, int64(16<<20), "memory")
	require.LessOrEqual(t, said, 40*int(outage/time.Minute), "warnings")
	require.NoError(t, cluster.APIServer.Start(t.Context()))

	for _, s := range []*scene{long, lasting} {
		reads, err := s.Reads()
		require.NoError(t, err)
		require.Equal(t, 1, reads, "nothing is issued anew, by the API server's return neither")
	}
	for _, p := range append(replacing, renewing, keeping) {
		short.remove(t, p)
	}
	for _, s := range []*scene{short, long, lasting} {
		s.holdsWithin(t, 2*soon, 0) // kubelet looks for the API server once a minute at last
	}
}

// metric answers the value of the daemon's metric without labels.
func metric(t *testing.T, name string) float64 {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://127.0.0.1:8080/metrics", http.NoBody)
	require.NoError(t, err)
	resp, err := http.DefaultClient.Do(req)
	require.NoError(t, err)
	defer resp.Body.Close()
	page, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	for line := range strings.Lines(string(page)) {
		if value, ok := strings.CutPrefix(line, name+" "); ok {
			number, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
			require.NoError(t, err)
			return number
		}
	}
	require.Fail(t, "the daemon has no metric "+name)
	return 0
}

// warnings answers how many lines of level WARN or above the daemons have logged.
func warnings(t *testing.T) (lines int) {
	t.Helper()
	logs, err := filepath.Glob("/var/log/pods/" + releaseNamespace + "_" + release + "-*/tenure/*.log")
	require.NoError(t, err)
	for _, log := range logs {
		text, err := os.ReadFile(log)
		require.NoError(t, err)
		lines += strings.Count(string(text), "level=WARN") + strings.Count(string(text), "level=ERROR")
	}
	return lines
}
