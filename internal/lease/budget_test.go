package lease

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tenure-csi/tenure/provider"
)

const big = 100 << 10 // bytes of a value: 25 pages

// withBudget restarts the daemon with room for so many big files.
func (n *node) withBudget(files int64) {
	n.stop()
	n.maxBytes = files * big
	n.start(0)
}

// bigPod has one file of a big value, in a namespace of its own or shared.
func (n *node) bigPod(name, namespace string) *pod {
	path := "secret/data/" + name
	n.backend.roles[path] = role{kind: Polled}
	n.backend.kv[path] = strings.Repeat("v", big)
	p := n.pod(name, kv("kv", path))
	p.namespace = namespace
	return p
}

func TestBudgetOfANode(t *testing.T) {
	scene(t, func(t *testing.T, n *node) {
		n.withBudget(4)
		var pods []*pod
		for _, ns := range []string{"a", "a", "b", "b"} {
			p := n.bigPod(fmt.Sprint("p", len(pods)), ns)
			require.NoError(t, p.mount())
			pods = append(pods, p)
		}
		late, other := n.bigPod("late", "a"), n.bigPod("other", "c")
		err := late.mount()
		require.EqualError(t, err, "the files of namespace a on this node would take 307200 bytes of memory, and one namespace may have 204800; "+
			"mount less on this node, or have the operator raise --volume-budget")
		require.Equal(t, provider.Exhausted, classOf(err))
		require.ErrorContains(t, other.mount(), "the files of all volumes on this node would take 512000 bytes of memory, and they may have 409600")
		require.Empty(t, late.files())

		n.kill()
		n.start(0)
		require.Equal(t, int64(4*big), n.m.budget.total(), "the journal tells what the volumes take")
		require.Error(t, late.mount())
		for _, p := range pods {
			require.NoError(t, p.mount())
		}

		pods[0].delete()
		pause(5 * time.Second)
		require.NoError(t, late.mount(), "what has ended makes room")
		for _, p := range append(pods, late) {
			p.delete()
		}
		pause(5 * time.Second)
		require.Zero(t, n.m.budget.total())
		require.Empty(t, n.m.budget.spaces)
	})
}

// TestBudgetBoundsNewTenants: who comes to a running pod takes memory as a new
// volume does.
func TestBudgetBoundsNewTenants(t *testing.T) {
	scene(t, func(t *testing.T, n *node) {
		n.serve(hour, "t-a", "t-b")
		n.bind(rule("r", "", "t-a"))
		p := n.pool("[t-*]")
		require.NoError(t, p.mount())
		n.maxBytes = n.m.budget.total() // and no byte more
		n.stop()
		n.start(0)
		n.bind(rule("r", "", "t-a", "t-b"))
		pause(5 * time.Second)
		p.has("t-a")

		n.maxBytes = 0
		n.stop()
		n.start(0)
		pause(time.Hour)
		p.has("t-a", "t-b")
		p.settled(2)
	})
}

// TestBudgetKeepsWhatLives: a full node goes on replacing credentials, and takes
// no content that grew.
func TestBudgetKeepsWhatLives(t *testing.T) {
	scene(t, func(t *testing.T, n *node) {
		n.withBudget(2)
		full := n.bigPod("full", "a")
		require.NoError(t, full.mount())
		n.maxBytes = big / 2 // the operator lowered it
		n.stop()
		n.start(0)
		require.NoError(t, full.mount())
		n.backend.mu.Lock()
		n.backend.kv["secret/data/full"] = strings.Repeat("w", 2*big)
		n.backend.mu.Unlock()
		pause(5 * time.Minute)
		require.Len(t, full.files()["kv"], big)
		require.Contains(t, full.status().Leases[0].Problem, "--volume-budget")
		n.backend.mu.Lock()
		n.backend.kv["secret/data/full"] = "small"
		n.backend.mu.Unlock()
		pause(5 * time.Minute)
		require.Equal(t, "small", full.files()["kv"])
		full.delete()
	})
	scene(t, func(t *testing.T, n *node) {
		p := n.withOrders(time.Minute, 5*time.Minute)
		require.NoError(t, p.mount())
		n.maxBytes = 1
		n.stop()
		n.start(0)
		for range 60 {
			require.NoError(t, p.mount())
			pause(time.Minute)
			require.True(t, p.works())
		}
	})
}
