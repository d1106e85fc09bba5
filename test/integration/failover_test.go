package integration

import (
	"context"
	"fmt"
	"strings"
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
	require.NoError(t, fixture.Eventually(within(t, 5*time.Minute), true, func(ctx context.Context) (bool, error) {
		_, err := s.volume(t, s.db("db")).Mount(ctx)
		for _, part := range []string{a.URL(), b.URL(), "before that http", "the connection is refused"} {
			if !strings.Contains(fmt.Sprint(err), part) { // as when a kept connection breaks under a call
				return false, err
			}
		}
		return true, nil
	}))

	require.NoError(t, b.Up())
	require.NoError(t, s.node.DeletePod(v.Pod))
	s.requireHeld(t, 0, 0)
}
