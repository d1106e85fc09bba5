package lease

import (
	"container/heap"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestClockSteps(t *testing.T) {
	now := time.Now()
	require.True(t, passed(now, now))
	require.False(t, passed(now, now.Add(time.Second)))
	require.True(t, passed(now, now.Round(0).Add(-time.Second)))
	require.True(t, isDue(now, now.Add(time.Hour), now.Add(time.Minute)), "issued in the future: the clock was set back")
	require.False(t, isDue(now, now.Add(time.Hour), now.Add(-time.Minute)))
	require.False(t, isDue(now, time.Time{}, now.Add(time.Minute)), "never due")
}

// stepClock moves the wall clock under a running daemon: what it has stored is then
// as much earlier, or later where d is negative.
func (n *node) stepClock(d time.Duration) {
	step := func(at *time.Time) {
		if !at.IsZero() {
			*at = at.Round(0).Add(-d)
		}
	}
	for _, w := range n.m.volumes {
		w.locked(func() {
			for _, g := range w.rec.Grants {
				step(&g.Opened)
				step(&g.Expires)
				step(&g.End)
				step(&g.Due)
			}
			for _, l := range w.rec.Leases {
				step(&l.Issued)
				step(&l.Expires)
				step(&l.Due)
			}
		})
	}
	n.m.queue.mu.Lock()
	defer n.m.queue.mu.Unlock()
	for _, e := range n.m.queue.heap {
		step(&e.at)
	}
	heap.Init(&n.m.queue.heap)
}

// fleet mounts as many volumes, of one database credential each.
func (n *node) fleet(size int) (pods []*pod) {
	n.backend.roles[orders] = role{ttl: 4 * time.Hour, max: 240 * time.Hour}
	for i := range size {
		p := n.pod(fmt.Sprint("p", i), db("db", orders))
		p.namespace = fmt.Sprint("ns", i%5)
		require.NoError(n.t, p.mount())
		pods = append(pods, p)
	}
	return pods
}

// renewed counts the renewals that were asked for.
func (b *backend) renewed() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.renewals
}

// TestClockStepForwardIsSpread: three hours are gone at once, as after a suspend, and
// with them the due times of all leases and tokens.
func TestClockStepForwardIsSpread(t *testing.T) {
	scene(t, func(t *testing.T, n *node) {
		const size = 200
		n.backend.auth = role{ttl: 4 * time.Hour, max: 1000 * time.Hour}
		pods := n.fleet(size)
		pause(time.Minute)
		before := n.backend.renewed()
		n.stepClock(3 * time.Hour)
		peak, last := 0, before
		for range 60 {
			pause(time.Second)
			now := n.backend.renewed()
			peak, last = max(peak, now-last), now
		}
		require.Equal(t, 2*size, last-before, "every token and every lease once")
		require.LessOrEqual(t, peak, backgroundRate+1, "calls in a second")
		require.Equal(t, size, n.backend.count(), "nothing is issued for it")
		for range 5 {
			pause(time.Hour)
			for _, p := range pods {
				require.True(t, p.works())
			}
		}
	})
}

// TestClockStepBackIsLookedAt: what was issued in what is now the future is renewed
// at the next look, once, and then in turns that are spread.
func TestClockStepBackIsLookedAt(t *testing.T) {
	scene(t, func(t *testing.T, n *node) {
		const size = 20
		n.backend.auth = role{ttl: 4 * time.Hour, max: 1000 * time.Hour}
		pods := n.fleet(size)
		pause(time.Minute)
		before := n.backend.renewed()
		n.stepClock(-3 * time.Hour)
		for _, p := range pods {
			require.NoError(t, p.mount(), "a republish")
			n.m.volumes[p.target].kick()
		}
		pause(time.Minute)
		require.Equal(t, 2*size, n.backend.renewed()-before, "every token and every lease once")
		require.Equal(t, size, n.backend.count())
		pause(time.Hour) // of a turn of 2:40
		require.InDelta(t, 2*size*4/3, n.backend.renewed()-before, size/2)
		for range 5 {
			pause(time.Hour)
			for _, p := range pods {
				require.True(t, p.works())
			}
		}
	})
}
