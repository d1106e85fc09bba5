//go:build e2e

package e2e

import (
	"context"
	"errors"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tenure-csi/tenure/test/fixture"
)

// restarted has something restarted under a running pod: it keeps what it has, and
// the driver goes on asking the daemon about it.
func restarted(t *testing.T, restart func(t *testing.T)) {
	t.Helper()
	s := newScene(t, fixture.ScopeOptions{})
	s.orders(t)
	p := s.run(t, template(idle, "orders"))
	before := keeps(t, p)
	restart(t)
	asked, err := mounts(t.Context())
	require.NoError(t, err)
	awaitMounts(t, asked+1)
	s.stays(t, p, before)
	s.remove(t, p)
	s.holds(t, 0)
}

func driverReplaced(t *testing.T) {
	restarted(t, func(t *testing.T) {
		t.Helper()
		old, err := cluster.Driver.Pod(t.Context())
		require.NoError(t, err)
		require.NoError(t, cluster.Client.Delete(t.Context(), old))
		require.NoError(t, await(t.Context(), 2*soon, func(ctx context.Context) error {
			now, err := cluster.Driver.Pod(ctx)
			if err == nil && now.UID == old.UID {
				err = errors.New("the driver's old pod is still there")
			}
			return err
		}))
		require.NoError(t, cluster.Driver.Start(t.Context()))
	})
}

func driverCrashed(t *testing.T) {
	restarted(t, func(t *testing.T) {
		t.Helper()
		require.NoError(t, cluster.Driver.Kill())
		require.NoError(t, cluster.Driver.Start(t.Context()))
	})
}

func kubeletRestarted(t *testing.T) {
	restarted(t, func(t *testing.T) {
		t.Helper()
		require.NoError(t, cluster.Kubelet.Kill())
		require.NoError(t, cluster.Kubelet.Start(t.Context()))
	})
}
