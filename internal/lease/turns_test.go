package lease

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// crowd mounts 200 leases of one kind at once: as tenants of one volume, or each
// in a pod of its own, as after a reboot of the node.
func (n *node) crowd(r role, pods int) []*pod {
	var ps []*pod
	var names []string
	for i := range 200 {
		names = append(names, fmt.Sprintf("t-%03d", i))
	}
	n.serve(r, names...)
	n.backend.lag = 5 * time.Millisecond
	if pods == 1 {
		n.bind(rule("r", "", names...))
		ps = append(ps, n.pool("[t-*]"))
	} else {
		for _, name := range names {
			ps = append(ps, n.pod(name, db("db", "database/creds/"+name)))
		}
	}
	for _, p := range ps {
		require.NoError(n.t, p.mount())
	}
	pause(time.Minute) // the mounts' own calls are in a minute of their own
	return ps
}

// day lets a time pass, with republishes, in which every file works.
func (n *node) day(ps []*pod, d time.Duration) (from time.Time) {
	from = time.Now()
	for time.Since(from) < d {
		pause(30 * time.Minute)
		for _, p := range ps {
			require.NoError(n.t, p.mount())
			require.True(n.t, p.works())
		}
	}
	return from
}

// TestCrowdFallsDueEvenly: 200 leases that were issued at once are renewed or
// replaced without a burst from their first turn on, also after an outage.
func TestCrowdFallsDueEvenly(t *testing.T) {
	session := role{ttl: time.Hour, fixed: true, bare: true, headroom: SessionHeadroom}
	for _, row := range []struct {
		name  string
		role  role
		proof bool // there are no tokens, as at STS
		pods  int
	}{
		{"sessions of STS in one volume", session, true, 1},
		{"sessions of STS in 200 pods", session, true, 200},
		{"database leases in one volume", role{ttl: time.Hour, max: 768 * time.Hour}, false, 1},
		{"database leases in 200 pods", role{ttl: time.Hour, max: 768 * time.Hour}, false, 200},
		{"certificates in one volume", role{ttl: time.Hour, fixed: true, bare: true}, false, 1},
	} {
		t.Run(row.name, func(t *testing.T) {
			if testing.Short() && !row.proof {
				t.Skip("each crowd takes seconds; -short shows those of sessions")
			}
			scene(t, func(t *testing.T, n *node) {
				n.backend.proofs, n.backend.auth.max = row.proof, 768*time.Hour
				ps := n.crowd(row.role, row.pods)
				even := func(what string, d time.Duration) {
					reads, swaps := n.asked(), n.swaps()
					peak, mean := n.load(n.day(ps, d), d, 5*time.Minute)
					t.Logf("%s: %.1f calls in 5 minutes, peak to mean %.2f; %d reads, %d swaps", what, mean, peak/mean, n.asked()-reads, n.swaps()-swaps)
					require.LessOrEqual(t, peak/mean, 1.5, what)
				}
				first := 24 * time.Hour
				if testing.Short() {
					first = 3 * time.Hour
				}
				even("the first day", first)
				n.backend.set(down)
				pause(15 * time.Minute)
				n.backend.set(nil)
				pause(5 * time.Minute) // what was due in it is done
				even("after an outage", 3*time.Hour)
			})
		})
	}
}

// TestCrowdAtItsMaxTTL: that lives end together shows itself only in their last hour,
// where each lease asks for its last renewal, then a read and an end beside: three calls
// in place of the 1.5 of other hours, so that no order within this hour is below twice the
// mean. To replace some of them hours before would make more users and, since each has
// to come from a fresh login to live on, many more tokens to renew.
func TestCrowdAtItsMaxTTL(t *testing.T) {
	if testing.Short() {
		t.Skip("two simulated days take seconds; -short shows the crowds of sessions")
	}
	scene(t, func(t *testing.T, n *node) {
		n.backend.auth.max = 768 * time.Hour
		from := n.day(n.crowd(hour, 1), 48*time.Hour)
		require.Equal(t, 600, n.asked(), "mounted, and replaced twice")
		for _, row := range []struct {
			span time.Duration
			most float64
		}{{5 * time.Minute, 4.5}, {time.Hour, 2.5}, {3 * time.Hour, 1.5}} {
			peak, mean := n.load(from, 48*time.Hour, row.span)
			t.Logf("in %v: %.1f calls, peak to mean %.2f", row.span, mean, peak/mean)
			require.LessOrEqual(t, peak/mean, row.most)
		}
	})
}
