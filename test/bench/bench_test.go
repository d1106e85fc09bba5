// Package bench measures the real daemon against a real Vault and PostgreSQL.
// Machines are noisy: what counts are the ratios within one run.
package bench

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"
	driver "sigs.k8s.io/secrets-store-csi-driver/pkg/secrets-store"
	"sigs.k8s.io/secrets-store-csi-driver/provider/v1alpha1"

	"github.com/tenure-csi/tenure/test/fixture"
)

var stack *fixture.Stack

func TestMain(m *testing.M) {
	os.Exit(fixture.Run(m.Run, func(s *fixture.Stack) { stack = s }, nil))
}

const (
	pods     = 110 // kubelet's default limit for a node
	inFlight = 16  // what the daemon allows itself
)

func newPod() fixture.Pod {
	id := strings.ToLower(rand.Text())
	return fixture.Pod{Namespace: "shop", Name: "app-" + id[:5], UID: id, ServiceAccount: "app"}
}

type site struct {
	*fixture.Scope
	node   *fixture.Node
	daemon *fixture.Daemon
}

func newSite(b *testing.B) *site {
	b.Helper()
	s := &site{Scope: fixture.Scoped(b, stack, fixture.ScopeOptions{}), node: fixture.NodeFor(b, fixture.NodeOptions{Issuer: stack.Issuer})}
	s.daemon = fixture.DaemonFor(b, fixture.DaemonOptions{Node: s.node, VaultAddr: stack.Vault.Addr, Args: []string{"--log-level=warn"}})
	return s
}

func (s *site) volume(b *testing.B, objects string) *fixture.Volume {
	b.Helper()
	v, err := s.node.Volume(newPod(), "secrets", s.SPC(objects), nil)
	require.NoError(b, err)
	return v
}

func (s *site) database(name string) string {
	return fmt.Sprintf("- {objectName: %s, secretPath: %s, format: json}\n", name, s.Creds)
}

// mountAll mounts all volumes at once and returns how long it took.
func mountAll(b *testing.B, vs []*fixture.Volume) time.Duration {
	b.Helper()
	start := time.Now()
	var all errgroup.Group
	for _, v := range vs {
		all.Go(func() error { _, err := v.Mount(context.WithoutCancel(b.Context())); return err })
	}
	require.NoError(b, all.Wait())
	return time.Since(start)
}

// drain ends all volumes and waits until their users are gone, so that their
// removal does not slow down what is measured next.
func (s *site) drain(b *testing.B, vs []*fixture.Volume) {
	b.Helper()
	for _, v := range vs {
		require.NoError(b, s.node.DeletePod(v.Pod))
	}
	s.empty(b)
}

func (s *site) empty(b *testing.B) {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.Context(), 3*time.Minute)
	defer cancel()
	require.NoError(b, fixture.Eventually(ctx, 0, s.Users))
	require.NoError(b, fixture.Eventually(ctx, 0, s.Tokens))
}

// BenchmarkFirstMounts mounts the volumes of a full node at once, each with a
// database credential of its own, beside a bare client that makes the same calls
// to Vault as fast as it can be done: one transport, 16 requests in flight.
func BenchmarkFirstMounts(b *testing.B) {
	s := newSite(b)
	var ours, bare []float64
	var cpu time.Duration
	for b.Loop() {
		bare = append(bare, s.bareClient(b).Seconds())
		vs := make([]*fixture.Volume, pods)
		for i := range vs {
			vs[i] = s.volume(b, s.database("db.json"))
		}
		before := cpuTime(b, s.daemon.Pid())
		ours = append(ours, mountAll(b, vs).Seconds())
		cpu += cpuTime(b, s.daemon.Pid()) - before
		s.drain(b, vs)
	}
	b.ReportMetric(float64(cpu.Microseconds())/float64(len(ours)*pods), "µs-cpu/mount")
	slices.Sort(ours)
	slices.Sort(bare)
	o, c := ours[len(ours)/2], bare[len(bare)/2]
	b.ReportMetric(o, "s/tenure")
	b.ReportMetric(c, "s/bare")
	b.ReportMetric(o/c, "ratio")
	b.ReportMetric(0, "ns/op")
}

// bareClient logs in and reads for each pod, and returns how long that took; then
// it revokes.
func (s *site) bareClient(b *testing.B) time.Duration {
	b.Helper()
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: inFlight}}
	call := func(method, path, token string, in any) (map[string]any, error) {
		body, err := json.Marshal(in)
		if err != nil {
			return nil, err
		}
		req, err := http.NewRequestWithContext(b.Context(), method, stack.Vault.Addr+"/v1/"+path, bytes.NewReader(body))
		if err != nil {
			return nil, err
		}
		req.Header.Set("X-Vault-Token", token)
		resp, err := client.Do(req)
		if err != nil {
			return nil, err
		}
		defer resp.Body.Close()
		raw, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode >= 300 {
			return nil, fmt.Errorf("%s: %s %w", path, resp.Status, err)
		}
		out := map[string]any{}
		if len(raw) > 0 {
			err = json.Unmarshal(raw, &out)
		}
		return out, err
	}
	tokens := make([]string, pods)
	start := time.Now()
	var all errgroup.Group
	all.SetLimit(inFlight)
	for i := range pods {
		all.Go(func() error {
			jwt, _, err := stack.Issuer.Token(newPod(), "vault", time.Hour)
			if err != nil {
				return err
			}
			out, err := call("POST", "auth/"+s.Name+"/login", "", map[string]any{"role": s.Name, "jwt": jwt})
			if err != nil {
				return err
			}
			tokens[i] = out["auth"].(map[string]any)["client_token"].(string)
			_, err = call("GET", s.Creds, tokens[i], nil)
			return err
		})
	}
	require.NoError(b, all.Wait())
	took := time.Since(start)
	for _, token := range tokens {
		_, err := call("PUT", "auth/token/revoke-self", token, nil)
		require.NoError(b, err)
	}
	s.empty(b)
	client.CloseIdleConnections()
	return took
}

// BenchmarkRepublish sends Mounts of a live, unchanged volume through the driver's
// client: one after the other, beside the cheapest call of the same service, and
// from several callers at once.
func BenchmarkRepublish(b *testing.B) {
	s := newSite(b)
	v := s.volume(b, s.database("db.json"))
	mountAll(b, []*fixture.Volume{v})
	clients := driver.NewPluginClientBuilder([]string{s.node.Providers})
	defer clients.Cleanup()
	client, err := clients.Get(b.Context(), v.Provider)
	require.NoError(b, err)
	token, expires, err := stack.Issuer.Token(v.Pod, "vault", time.Hour)
	require.NoError(b, err)
	tokens, err := json.Marshal(map[string]any{"vault": map[string]any{"token": token, "expirationTimestamp": expires}})
	require.NoError(b, err)
	all := maps.Clone(v.Attributes)
	all["csi.storage.k8s.io/serviceAccount.tokens"] = string(tokens)
	attributes, err := json.Marshal(all)
	require.NoError(b, err)

	mount := func() error {
		_, _, err := driver.MountContent(b.Context(), client, string(attributes), "null", v.Target, "420", nil)
		return err
	}
	version := func() error {
		_, err := client.Version(b.Context(), &v1alpha1.VersionRequest{Version: "v1alpha1"})
		return err
	}
	var rate float64
	for b.Loop() {
		for _, row := range []struct {
			name string
			call func() error
		}{{"mount", mount}, {"version", version}} {
			took := make([]time.Duration, 5000)
			for i := range took {
				start := time.Now()
				require.NoError(b, row.call())
				took[i] = time.Since(start)
			}
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)/2].Microseconds()), "µs/p50-"+row.name)
			b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "µs/p99-"+row.name)
		}
		start := time.Now()
		var many errgroup.Group
		for range inFlight {
			many.Go(func() error {
				var err error
				for i := 0; i < 1000 && err == nil; i++ {
					err = mount()
				}
				return err
			})
		}
		require.NoError(b, many.Wait())
		rate = inFlight * 1000 / time.Since(start).Seconds()
	}
	b.ReportMetric(rate, "republishes/s")
	b.ReportMetric(0, "ns/op")
}

// BenchmarkNode measures a node with 500 volumes of four leases, a database user each:
// what the daemon holds in memory, and how long a restart takes until it serves again.
func BenchmarkNode(b *testing.B) {
	s := newSite(b)
	idle := fixture.RSS(b, s.daemon.Pid())
	var objects strings.Builder
	for i := range 4 { // each is a read of its own
		fmt.Fprintf(&objects, "- {objectName: db%d.json, secretPath: '%s?of=%[1]d', format: json}\n", i, s.Creds)
	}
	vs := make([]*fixture.Volume, 500)
	for i := range vs {
		vs[i] = s.volume(b, objects.String())
	}
	mounting := time.Duration(0)
	for batch := range slices.Chunk(vs, 50) {
		mounting += mountAll(b, batch)
	}
	leases, err := s.Leases(b.Context())
	require.NoError(b, err)
	require.Equal(b, 4*len(vs), leases)
	full := fixture.RSS(b, s.daemon.Pid())
	var took []float64
	for b.Loop() {
		require.NoError(b, s.daemon.Kill())
		start := time.Now()
		require.NoError(b, s.daemon.Restart(b.Context()))
		took = append(took, time.Since(start).Seconds())
	}
	slices.Sort(took)
	b.ReportMetric(float64(leases)/mounting.Seconds(), "leases/s")
	b.ReportMetric(idle, "MiB/idle")
	b.ReportMetric(full, "MiB/500")
	b.ReportMetric(took[len(took)/2], "s/restart")
	b.ReportMetric(fixture.RSS(b, s.daemon.Pid()), "MiB/restarted")
	b.ReportMetric(0, "ns/op")
}

// cpuTime returns what a process has used of the processors, in steps of 10 ms.
func cpuTime(b *testing.B, pid int) time.Duration {
	b.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	require.NoError(b, err)
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:])) // from field 3 on, see proc(5)
	user, err := strconv.Atoi(fields[11])
	require.NoError(b, err)
	system, err := strconv.Atoi(fields[12])
	require.NoError(b, err)
	return time.Duration(user+system) * 10 * time.Millisecond
}
