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

// release is the name of Tenure's Helm release and so of its DaemonSet, in the
// namespace that the chart's documentation names.
const (
	release          = "tenure"
	releaseNamespace = "kube-system"
)

// chart is the packed chart.
var chart string

// prepareTenure makes the images and packs the chart.
func prepareTenure(ctx context.Context) error {
	root, err := fixture.Root()
	if err != nil {
		return err
	}
	for _, image := range []node.Image{
		{
			Name: "localhost/tenure:e2e", Files: map[string]string{"/tenure": filepath.Join(root, "bin", "tenure")},
			Entrypoint: []string{"/tenure"}, Command: []string{"serve"},
		},
		applicationImage(),
	} {
		if err := cluster.Import(ctx, image); err != nil {
			return err
		}
	}
	dir := os.TempDir() // the node's own, which ends with it
	out, err := cluster.Helm(ctx, "", "package", "--destination="+dir, filepath.Join(root, "bin", "chart", "tenure"))
	if err != nil {
		return err
	}
	_, chart, _ = strings.Cut(strings.TrimSpace(out), "saved it to: ")
	return nil
}

// installTenure installs the chart and waits until the daemon's pod is ready.
func installTenure(ctx context.Context) error {
	values := fmt.Sprintf(`
image: {repository: localhost/tenure, tag: e2e, pullPolicy: Never}
hostNetwork: true # the tests' pods have no other network
providerNames: [tenure, vault]
vault: {addrs: [%q]}
readinessProbe: {periodSeconds: 1}
`, stack.Vault.Addr)
	if _, err := cluster.Helm(ctx, values, "install", release, chart, "--namespace="+releaseNamespace, "--values=-"); err != nil {
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
	err := cluster.Client.List(ctx, &list, client.InNamespace(releaseNamespace), client.MatchingLabels{"app.kubernetes.io/instance": release})
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
	require.NoError(t, await(t.Context(), soon, func(ctx context.Context) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://127.0.0.1:8080/metrics", http.NoBody)
		if err != nil {
			return err
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		page, err := io.ReadAll(resp.Body)
		if err == nil && !strings.Contains(string(page), `tenure_mounts_total{code="OK"`) {
			err = errors.New("the daemon has answered no Mount since its start")
		}
		return err
	}))
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
	_, err := cluster.Helm(t.Context(), "", "uninstall", release, "--namespace="+releaseNamespace)
	require.NoError(t, err)
	require.NoError(t, await(t.Context(), 2*soon, func(ctx context.Context) error {
		left, err := daemons(ctx)
		if err == nil && len(left) > 0 {
			err = fmt.Errorf("pod %s is still there", left[0].Name)
		}
		return err
	}))
	s.stays(t, p, before)
	require.NoError(t, installTenure(t.Context()))
	awaitMount(t)
	s.stays(t, p, before)
	s.remove(t, p)
	s.holds(t, 0)
}
