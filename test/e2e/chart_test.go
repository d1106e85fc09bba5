//go:build e2e

package e2e

import (
	"context"
	"errors"
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
	apps "k8s.io/api/apps/v1"
	core "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/tenure-csi/tenure/test/fixture"
	"github.com/tenure-csi/tenure/test/node"
)

// release is the name of the Helm release and so of Tenure's DaemonSet.
const (
	release          = node.Release
	releaseNamespace = node.ReleaseNamespace
)

// chart is the packed chart.
var chart string

// prepareTenure makes the application's image and packs the chart.
func prepareTenure(ctx context.Context) error {
	root, err := fixture.Root()
	if err != nil {
		return err
	}
	if err := cluster.Import(ctx, applicationImage()); err != nil {
		return err
	}
	dir := os.TempDir() // the node's own, which ends with it
	out, err := cluster.Helm(ctx, "", "package", "--destination="+dir, filepath.Join(root, "bin", "chart", "tenure"))
	if err != nil {
		return err
	}
	_, chart, _ = strings.Cut(strings.TrimSpace(out), "saved it to: ")
	return nil
}

// installTenure installs the chart, with the driver, and waits until both are ready.
func installTenure(ctx context.Context) error {
	values := fmt.Sprintf(`
hostNetwork: true # Vault is on the node's loopback
providerNames: [tenure, vault]
vault: {addrs: [%q]}
readinessProbe: {periodSeconds: 1}
secrets-store-csi-driver:
  syncSecret: {enabled: true}
`, stack.Vault.Addr)
	if err := cluster.Install(ctx, chart, values); err != nil {
		return err
	}
	return await(ctx, 2*time.Minute, daemonReady)
}

// daemonReady succeeds when the DaemonSet's pod is up to date and ready.
func daemonReady(ctx context.Context) error {
	var set apps.DaemonSet
	if err := cluster.Client.Get(ctx, client.ObjectKey{Namespace: releaseNamespace, Name: release}, &set); err != nil {
		return err
	}
	if s := set.Status; s.NumberReady != 1 || s.UpdatedNumberScheduled != 1 || s.ObservedGeneration != set.Generation {
		return fmt.Errorf("the daemon's pod is not ready: %+v", s)
	}
	return nil
}

// daemons answers the daemon's pods: one, unless it is being replaced.
func daemons(ctx context.Context) ([]core.Pod, error) {
	var list core.PodList
	err := cluster.Client.List(ctx, &list, client.InNamespace(releaseNamespace), client.MatchingLabels{"app.kubernetes.io/name": "tenure"})
	return list.Items, err
}

// replaceDaemon waits until what is done has brought another pod of the daemon,
// and that has answered a Mount.
func replaceDaemon(t *testing.T, do func(ctx context.Context, old *core.Pod) error) {
	t.Helper()
	require.NoError(t, newDaemon(t.Context(), do))
	awaitMount(t)
}

// newDaemon waits until what is done has brought another pod of the daemon.
func newDaemon(ctx context.Context, do func(ctx context.Context, old *core.Pod) error) error {
	before, err := daemons(ctx)
	if err != nil {
		return err
	}
	if len(before) != 1 {
		return fmt.Errorf("the daemon has %d pods", len(before))
	}
	if err := do(ctx, &before[0]); err != nil {
		return err
	}
	return await(ctx, 2*soon, func(ctx context.Context) error {
		now, err := daemons(ctx)
		if err != nil {
			return err
		}
		if len(now) != 1 || now[0].UID == before[0].UID {
			return errors.New("the daemon's old pod is still there")
		}
		return daemonReady(ctx)
	})
}

// awaitMount waits until the daemon, since its start, has answered a Mount.
func awaitMount(t *testing.T) {
	t.Helper()
	awaitMounts(t, 1)
}

// awaitMounts waits until the daemon, since its start, has answered so many Mounts.
func awaitMounts(t *testing.T, want int) {
	t.Helper()
	require.NoError(t, await(t.Context(), soon, func(ctx context.Context) error {
		got, err := mounts(ctx)
		if err == nil && got < want {
			err = fmt.Errorf("the daemon has answered %d Mounts since its start, not %d", got, want)
		}
		return err
	}))
}

// mounts answers how many Mounts the daemon says that it has answered well.
func mounts(ctx context.Context) (count int, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://127.0.0.1:8080/metrics", http.NoBody)
	if err != nil {
		return 0, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	page, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(page)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), "} ")
		if !strings.HasPrefix(name, `tenure_mounts_total{code="OK"`) {
			continue
		}
		n, err := strconv.Atoi(value)
		if err != nil {
			return 0, err
		}
		count += n
	}
	return count, nil
}

// kept is what a pod has that must outlast whatever happens to the daemon.
type kept struct{ file, user string }

func keeps(t *testing.T, p *core.Pod) kept {
	t.Helper()
	return kept{file: exec(t, p, "cat", secrets+"/orders.conf", secrets+"/motto"), user: user(t, p)}
}

// stays requires that a pod has what it had, and that Vault was asked once in all.
func (s *scene) stays(t *testing.T, p *core.Pod, before kept) {
	t.Helper()
	require.Equal(t, before, keeps(t, p))
	reads, err := s.Reads()
	require.NoError(t, err)
	require.Equal(t, 1, reads, "credentials read")
}

func daemonKilled(t *testing.T) {
	s := newScene(t, fixture.ScopeOptions{})
	s.orders(t)
	p := s.run(t, template(idle, "orders"))
	before := keeps(t, p)
	replaceDaemon(t, func(ctx context.Context, old *core.Pod) error {
		return cluster.Client.Delete(ctx, old, client.GracePeriodSeconds(0))
	})
	s.stays(t, p, before)
	s.remove(t, p)
	s.holds(t, 0)
}

func upgrade(t *testing.T) {
	s := newScene(t, fixture.ScopeOptions{})
	s.orders(t)
	p := s.run(t, template(idle, "orders"))
	before := keeps(t, p)
	for _, args := range [][]string{
		{"upgrade", release, chart, "--reuse-values", "--set=logVerbosity=debug"},
		{"rollback", release},
	} {
		replaceDaemon(t, func(ctx context.Context, _ *core.Pod) error {
			_, err := cluster.Helm(ctx, "", append(args, "--namespace="+releaseNamespace)...)
			return err
		})
		s.stays(t, p, before)
	}
	s.remove(t, p)
	s.holds(t, 0)
}

func uninstall(t *testing.T) {
	s := newScene(t, fixture.ScopeOptions{})
	s.orders(t)
	p := s.run(t, template(idle, "orders"))
	before := keeps(t, p)
	notes, err := cluster.Helm(t.Context(), "", "get", "notes", release, "--namespace="+releaseNamespace)
	require.NoError(t, err)
	require.Contains(t, notes, "BEFORE YOU UNINSTALL: pods keep their files, but nobody renews, replaces or revokes")
	s.class(t, "motto", s.motto())
	deleted := pod(template(idle, "motto"))
	deleted.Name = "deleted"
	s.create(t, deleted)
	s.awaitRunning(t, deleted)
	_, err = cluster.Helm(t.Context(), "", "uninstall", release, "--namespace="+releaseNamespace)
	require.NoError(t, err)
	require.NoError(t, await(t.Context(), 2*soon, func(ctx context.Context) error {
		var left core.PodList
		err := cluster.Client.List(ctx, &left, client.InNamespace(releaseNamespace), client.MatchingLabels{"app.kubernetes.io/instance": release})
		if err == nil && len(left.Items) > 0 {
			err = fmt.Errorf("pod %s is still there", left.Items[0].Name)
		}
		return err
	}))
	s.stays(t, p, before)

	// The driver, which kubelet needs to unmount, is gone with the release.
	s.remove(t, deleted)
	awaitStuck(t, deleted)
	require.NoError(t, installTenure(t.Context()))
	awaitGone(t, deleted)
	awaitMount(t)
	s.stays(t, p, before)
	s.remove(t, p)
	s.holds(t, 0)
}

// awaitStuck waits until kubelet has failed to unmount a deleted pod's volume, and
// requires that the pod is still there.
func awaitStuck(t *testing.T, p *core.Pod) {
	t.Helper()
	require.NoError(t, await(t.Context(), soon, func(context.Context) error {
		for line := range strings.Lines(cluster.Kubelet.Logs()) {
			if strings.Contains(line, string(p.UID)) && strings.Contains(line, "UnmountVolume.TearDown failed") {
				return nil
			}
		}
		return errors.New("kubelet has not tried")
	}))
	require.NoError(t, cluster.Client.Get(t.Context(), client.ObjectKeyFromObject(p), p))
}
