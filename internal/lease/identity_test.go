package lease

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tenure-csi/tenure/provider"
)

// TestRefusedSecretIsNotSentAtEveryRepublish: a login by Secret is refused, and the
// driver republishes the same Secret every minute, then another.
func TestRefusedSecretIsNotSentAtEveryRepublish(t *testing.T) {
	scene(t, func(t *testing.T, n *node) {
		n.backend.auth = role{ttl: 20 * time.Minute, max: 20 * time.Minute, fixed: true}
		p := n.withOrders(time.Hour, 24*time.Hour)
		p.expires = time.Now().Add(24 * time.Hour)
		p.secrets = map[string]provider.Secret{"secret_id": "used up"}
		require.NoError(t, p.mount())
		var tries atomic.Int32
		n.backend.set(func(op, _ string) error {
			if op == "login" {
				tries.Add(1)
				return broken(provider.Denied, "invalid role or secret ID", Wrong, false)
			}
			return nil
		})
		for range 19 {
			pause(time.Minute)
			require.NoError(t, p.mount())
		}
		require.Equal(t, NeedsIdentity, p.status().State)
		require.EqualValues(t, 1, tries.Load())
		pause(16 * time.Minute)
		require.InDelta(t, 2.5, tries.Load(), 0.5, "the role may have changed, and the credential ended")
		n.backend.set(nil)
		p.secrets = map[string]provider.Secret{"secret_id": "new"}
		require.NoError(t, p.mount())
		pause(time.Second)
		require.True(t, p.works())
		require.Equal(t, Live, p.status().State)
	})
}
