package lease

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestKillBetweenAnyTwoEffects kills the daemon before every single effect of a
// volume's life (login, journal, read, journal, swap, renewals, replacement, the
// end of the overlap, the end of the volume), restarts it, and looks what is
// left in the end. Once replacements log in, once they use the living token.
func TestKillBetweenAnyTwoEffects(t *testing.T) {
	for name, identity := range map[string]time.Duration{"logs in": time.Hour, "living token": 20 * time.Second} {
		t.Run(name, func(t *testing.T) {
			total := 0
			scene(t, func(t *testing.T, n *node) {
				p := n.withOrders(20*time.Second, time.Minute)
				p.expires = time.Now().Add(identity)
				live(n, p)
				p.delete()
				pause(5 * time.Second)
				total = n.effects
			})
			require.Greater(t, total, 20)
			orphans := 0
			for at := 1; at <= total; at++ {
				scene(t, func(t *testing.T, n *node) {
					n.stop()
					p := n.withOrders(20*time.Second, time.Minute)
					p.expires = time.Now().Add(identity)
					n.start(at)
					orphans += dieAndLook(t, n, p, at)
				})
			}
			require.LessOrEqual(t, orphans, 6, "tokens whose login was not yet journaled")
			t.Logf("%d kill points; %d of them left an empty token until its TTL", total, orphans)
		})
	}
}

// live mounts as kubelet does and lets a replacement and its overlap pass.
func live(n *node, p *pod) {
	for range 8 {
		if p.mount() == nil {
			break
		}
		pause(time.Second)
	}
	for range 900 {
		if n.killed() {
			return
		}
		pause(100 * time.Millisecond)
	}
}

// dieAndLook lives up to the kill point, restarts, and returns how many tokens
// are left when all is over.
func dieAndLook(t *testing.T, n *node, p *pod, at int) int {
	live(n, p)
	ended := at%2 == 0
	if ended { // the volume may end while the daemon is away, too
		p.delete()
		pause(5 * time.Second)
	}
	n.kill()
	n.start(0)
	p.expires = time.Time{}
	if !ended {
		require.NoError(t, p.mount())
		for range 120 {
			pause(time.Second)
			require.True(t, p.works(), "effect %d: a file names a dead lease", at)
		}
		require.LessOrEqual(t, n.backend.count(), 2, "effect %d: more than the present lease and one in its overlap", at)
	}
	p.delete()
	pause(5 * time.Second)
	require.Zero(t, n.backend.count(), "effect %d: leases are left", at)
	require.Empty(t, n.records)
	// A login that was answered and not yet journaled leaves an empty token
	// until its TTL: the one exception.
	left := n.backend.tokenCount()
	require.LessOrEqual(t, left, 1, "effect %d", at)
	return left
}
