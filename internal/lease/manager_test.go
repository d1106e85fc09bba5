package lease

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// scene runs a test in a synctest bubble with a fresh node, and stops the daemon.
func scene(t *testing.T, f func(t *testing.T, n *node)) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t)
		defer n.stop()
		f(t, n)
		require.Empty(t, n.wrong)
	})
}

// orders is the usual database role.
const orders = "database/creds/orders"

func (n *node) withOrders(ttl, max time.Duration) *pod {
	n.backend.roles[orders] = role{ttl: ttl, max: max}
	return n.pod("p", db("db", orders))
}

func TestFirstMountIssuesOncePerRead(t *testing.T) {
	scene(t, func(t *testing.T, n *node) {
		p := n.withOrders(time.Hour, 24*time.Hour)
		require.NoError(t, p.mount())
		require.True(t, p.works())
		require.Equal(t, 1, n.backend.logins)
		require.Equal(t, 1, n.backend.reads)
		require.Len(t, p.files(), 2)
		for range 100 {
			require.NoError(t, p.mount())
		}
		require.Equal(t, 1, n.backend.reads, "a republish of a live volume reads nothing")
	})
}

func TestManyMountsAtOnceShareOneIssue(t *testing.T) {
	scene(t, func(t *testing.T, n *node) {
		p := n.withOrders(time.Hour, 24*time.Hour)
		n.backend.lag = 100 * time.Millisecond
		var calls sync.WaitGroup
		for i := range 50 {
			calls.Go(func() {
				ctx, cancel := context.WithCancel(context.Background())
				defer cancel()
				if i%10 == 0 {
					time.AfterFunc(50*time.Millisecond, cancel)
				}
				_, err := n.m.Mount(ctx, p.request())
				if i%10 != 0 {
					require.NoError(t, err)
				}
			})
		}
		calls.Wait()
		require.Equal(t, 1, n.backend.logins)
		require.Equal(t, 1, n.backend.reads)
	})
}

func TestLeaseLivesThroughRenewalsAndReplacements(t *testing.T) {
	scene(t, func(t *testing.T, n *node) {
		p := n.withOrders(20*time.Second, time.Minute)
		require.NoError(t, p.mount())
		first := p.files()["db-user"]
		for range 600 {
			pause(time.Second)
			require.True(t, p.works(), "a file names a dead lease after %v", time.Now())
		}
		require.NotEqual(t, first, p.files()["db-user"])
		require.InDelta(t, 600/55, n.backend.reads, 2, "replaced about every 55 s")
		require.LessOrEqual(t, n.backend.count(), 2)
		require.Equal(t, n.backend.logins, n.backend.reads, "each replacement has a grant of its own")
	})
}

func TestReplacedLeaseWorksThroughItsOverlapAndNoLonger(t *testing.T) {
	scene(t, func(t *testing.T, n *node) {
		p := n.withOrders(20*time.Second, time.Minute)
		require.NoError(t, p.mount())
		old := leaseOf([]byte(p.files()["db-user"]))
		for leaseOf([]byte(p.files()["db-user"])) == old {
			pause(100 * time.Millisecond)
		}
		pause(3500 * time.Millisecond)
		n.backend.mu.Lock()
		require.True(t, n.backend.leaseAlive(old), "the overlap of 4 s")
		n.backend.mu.Unlock()
		pause(2 * time.Second)
		n.backend.mu.Lock()
		require.False(t, n.backend.leaseAlive(old))
		n.backend.mu.Unlock()
	})
}

func TestPodsEndRevokesWithinSeconds(t *testing.T) {
	scene(t, func(t *testing.T, n *node) {
		p := n.withOrders(time.Hour, 24*time.Hour)
		require.NoError(t, p.mount())
		p.delete()
		pause(3 * time.Second)
		require.Zero(t, n.backend.count())
		require.Zero(t, n.backend.tokenCount())
		require.Empty(t, n.m.Status())
		require.Empty(t, n.records)
	})
}
