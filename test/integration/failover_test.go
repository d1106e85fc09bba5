package integration

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tenure-csi/tenure/test/fixture"
)

// TestSeveralAddresses reaches one Vault at two addresses, of which one is always
// away: what was issued at one lives on by the other.
func TestSeveralAddresses(t *testing.T) {
	t.Parallel()
	a, b := fixture.ProxyFor(t, stack.Vault.Addr), fixture.ProxyFor(t, stack.Vault.Addr)
	a.Down()
	s := siteAt(t, a.URL()+","+b.URL(), fixture.ScopeOptions{TTL: 10 * time.Second, MaxTTL: 20 * time.Second})
	v := s.mounted(t, s.db("db"))
	seen := map[string]bool{}
	changes(t, v, seen)
	s.requireAsked(t, 1, 1)
	require.Contains(t, s.daemon.Logs(), "asking Vault at another address from now on")

	require.NoError(t, a.Up())
	b.Down()
	changes(t, v, seen)
	s.requireAsked(t, 2, 2)
	s.requireHeld(t, 1, 1)

	a.Down()
	_, err := s.volume(t, s.db("db")).Mount(within(t, 3*time.Minute))
	for _, part := range []string{"Vault at " + b.URL(), "before that " + a.URL() + " after ", "the connection is refused"} {
		require.ErrorContains(t, err, part)
	}

	require.NoError(t, b.Up())
	require.NoError(t, s.node.DeletePod(v.Pod))
	s.requireHeld(t, 0, 0)
}
