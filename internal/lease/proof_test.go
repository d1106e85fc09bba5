package lease

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tenure-csi/tenure/provider"
)

// withSession makes the backend one without tokens, and a pod that mounts a
// session of it.
func (n *node) withSession(ttl time.Duration) *pod {
	n.backend.proofs = true
	n.backend.roles["sts"] = role{ttl: ttl, bare: true, fixed: true, headroom: 20 * time.Minute}
	return n.pod("p", db("aws", "sts"))
}

// TestEachReadProvesTheIdentity: a session is replaced by one more login and read
// with the last Mount's identity, in time for its readers, also over a restart.
func TestEachReadProvesTheIdentity(t *testing.T) {
	scene(t, func(t *testing.T, n *node) {
		p := n.withSession(time.Hour)
		require.NoError(t, p.mount())
		w := n.m.volumes[p.target]
		require.Empty(t, w.rec.Grants, "nothing to renew or to end")
		for i := range 12 * 60 {
			pause(time.Minute)
			if i%100 == 99 {
				n.stop()
				n.start(0)
			}
			require.NoError(t, p.mount())
			require.Greater(t, time.Until(p.lease().Expires), 20*time.Minute, "the headroom outlives restarts")
		}
		require.InDelta(t, 12*60/35+1, n.backend.minted("p sts"), 1, "one each 34 to 36 minutes")
		require.Equal(t, n.backend.minted("p sts"), n.backend.logins, "no login stands for another")
		require.Zero(t, n.backend.renewals)

		p.delete()
		pause(5 * time.Second)
		require.Empty(t, n.m.Status(), "nothing is owed")
		require.Zero(t, n.backend.ends)
	})
}

// TestBriefTokenIsReplacedInTime: a database token of RDS, of 15 minutes, is
// replaced with a third of its life left, time and again.
func TestBriefTokenIsReplacedInTime(t *testing.T) {
	scene(t, func(t *testing.T, n *node) {
		p := n.withSession(15 * time.Minute)
		n.backend.roles["sts"] = role{ttl: 15 * time.Minute, bare: true, fixed: true}
		require.NoError(t, p.mount())
		for range 6 * 60 * 4 {
			pause(15 * time.Second)
			require.NoError(t, p.mount())
			require.Greater(t, time.Until(p.lease().Expires), 4*time.Minute)
		}
		require.InDelta(t, 6*60/9.75, n.backend.minted("p sts"), 2, "one each 9 to 10.5 minutes")
	})
}

// TestSessionWithoutAFreshIdentity: the tokens of the only Mount expire before the
// session is due; the volume says so, and the next Mount mends it.
func TestSessionWithoutAFreshIdentity(t *testing.T) {
	scene(t, func(t *testing.T, n *node) {
		p := n.withSession(time.Hour)
		p.expires = time.Now().Add(20 * time.Minute)
		require.NoError(t, p.mount())
		pause(40 * time.Minute)
		require.Equal(t, NeedsIdentity, p.status().State)
		require.Equal(t, 1, n.backend.minted("p sts"))

		p.expires = time.Time{}
		require.NoError(t, p.mount())
		pause(time.Second)
		require.Equal(t, Live, p.status().State)
		require.Equal(t, 2, n.backend.minted("p sts"))
	})
}

// TestSessionAfterAFailedRead: what a Mount could not get it asks for again with a
// login of its own, and nothing is left of the tries.
func TestSessionAfterAFailedRead(t *testing.T) {
	scene(t, func(t *testing.T, n *node) {
		p := n.withSession(time.Hour)
		tries := 0
		n.backend.set(func(op, _ string) error {
			if op == "read" {
				if tries++; tries < 4 {
					return broken(provider.Exhausted, "throttled", Retry, false)
				}
			}
			return nil
		})
		require.NoError(t, p.mount())
		require.Equal(t, 4, n.backend.logins)
		require.Equal(t, 1, n.backend.minted("p sts"))
		require.Empty(t, n.m.volumes[p.target].rec.Grants)
	})
}
