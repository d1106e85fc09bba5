package faults

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tenure-csi/tenure/test/fixture"
)

// TestDatabaseDownAtReplacement keeps PostgreSQL away from before the renewal
// until two tries to mint have failed: they must not come in a loop. The first
// mount's mint counts, so that the pauses are 20 and 40 s after L/2 = 10 s.
func TestDatabaseDownAtReplacement(t *testing.T) {
	s := newScene(t, fixture.ScopeOptions{TTL: 20 * time.Second})
	s.start()
	begin := time.Now() // a lease is counted from before it is asked for, and Vault notes when it answers
	v := s.mounted()
	before := files(t, v)
	s.pg.Down()
	s.eventually(4*time.Minute, func(c *assert.CollectT) { require.Len(c, s.readTimes(c), 3) })
	at := s.readTimes(t)
	require.GreaterOrEqual(t, at[1].Sub(begin), 16*time.Second, "before the first try")
	require.GreaterOrEqual(t, at[2].Sub(at[1]), 15*time.Second, "before the second")
	require.Equal(t, before, files(t, v))
	require.NoError(t, s.pg.Up())
	s.eventually(4*time.Minute, func(c *assert.CollectT) { s.works(c, v) }) // the guard, and up to a minute to the next look
	at = s.readTimes(t)
	require.Len(t, at, 4, "one mint after the recovery")
	require.GreaterOrEqual(t, at[3].Sub(at[2]), 30*time.Second)
	s.settles(3*time.Minute, held{1, 1, 1})
	s.ends(v)
}

// TestDatabaseDownAtTheEnd shows whose duty the end is: Vault's, once it has
// answered the revocation of the token; ours, while it has not taken it.
func TestDatabaseDownAtTheEnd(t *testing.T) {
	t.Parallel()
	t.Run("of a volume", func(t *testing.T) {
		s := newScene(t, fixture.ScopeOptions{})
		s.start()
		v := s.mounted()
		s.pg.Down()
		require.NoError(t, s.node.DeletePod(v.Pod))
		s.eventually(3*time.Minute, func(c *assert.CollectT) {
			h := s.count(c)
			require.Equal(c, held{1, 1, 0}, h, "the token is dead, the user can't be dropped yet")
			left, err := records(s)
			require.NoError(c, err)
			require.Empty(c, left, "we owe nothing any more")
		})
		require.NoError(t, s.pg.Up())
		s.settles(6*time.Minute, held{}) // Vault tries again after 20, 40, 80 s ± 50 %
	})
	t.Run("of one lease", func(t *testing.T) {
		s := newScene(t, fixture.ScopeOptions{})
		s.start()
		v := s.volume(s.objects(", overlap: 10s"))
		s.mount(v)
		v.Attributes["objects"] = s.objects(", overlap: 10s, filePermission: 0600")
		s.mount(v)
		s.pg.Down()
		require.Equal(t, 1, s.logins(), "both leases are under one token")
		require.Equal(t, held{2, 2, 1}, s.count(t))
		s.eventually(3*time.Minute, func(c *assert.CollectT) {
			require.Equal(c, 1, s.status(c, v).Owed)
			require.GreaterOrEqual(c, s.metric(c, `tenure_ends_total{outcome="unavailable",what="lease"}`), 1)
		})
		require.Equal(t, held{2, 2, 1}, s.count(t))
		require.NoError(t, s.pg.Up())
		s.settles(4*time.Minute, held{1, 1, 1})
		s.eventually(3*time.Minute, func(c *assert.CollectT) { require.Zero(c, s.status(c, v).Owed) })
		s.works(t, v)
		s.ends(v)
	})
}
