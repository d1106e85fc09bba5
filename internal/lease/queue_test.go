package lease

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// TestPacerGivesNamespacesTheirTurn tells who has passed how soon when two
// namespaces have a long line.
func TestPacerGivesNamespacesTheirTurn(t *testing.T) {
	for _, row := range []struct {
		name   string
		greedy time.Duration // deadlines of the long lines
		later  time.Duration // that of the one who comes later
		within time.Duration
	}{
		{"nobody is near a deadline", time.Hour, time.Hour, 200 * time.Millisecond},
		{"the one who comes later is", time.Hour, time.Minute, 150 * time.Millisecond},
		{"all others always are", 15 * time.Second, time.Hour, 700 * time.Millisecond},
		{"all are, and the others more", 15 * time.Second, time.Minute, 700 * time.Millisecond},
	} {
		t.Run(row.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPacer()
				ctx, cancel := context.WithCancel(t.Context())
				var callers sync.WaitGroup
				for i := range 800 {
					callers.Go(func() { _ = p.wait(ctx, fmt.Sprint("greedy", i%2), time.Now().Add(row.greedy)) })
				}
				callers.Go(func() { p.run(ctx) })
				time.Sleep(time.Second)
				begin := time.Now()
				require.NoError(t, p.wait(ctx, "later", begin.Add(row.later)))
				require.LessOrEqual(t, time.Since(begin), row.within)
				cancel()
				callers.Wait()
				require.Empty(t, p.lines)
			})
		})
	}
}

// TestGreedyNamespaceDelaysNobody: the looks of eight pools ask for more than the
// node's rate. Another namespace sees its changes and its pods' ends all the same.
func TestGreedyNamespaceDelaysNobody(t *testing.T) {
	scene(t, func(t *testing.T, n *node) {
		var text, names strings.Builder
		for i := range 32 {
			fmt.Fprintf(&text, "- {objectName: '{tenant}/%d', secretPath: 'secret/data/a?n=%[1]d', secretKey: value, refreshInterval: 10s}\n", i)
		}
		for i := range 16 {
			fmt.Fprintf(&names, "t%d, ", i)
		}
		n.backend.roles["secret/data/a"] = role{kind: Polled}
		n.backend.kv["secret/data/a"] = "v"
		n.backend.roles["secret/data/b"] = role{kind: Polled}
		n.backend.roles[orders] = role{ttl: time.Hour, max: 24 * time.Hour}
		for i := range 8 {
			p := n.pod(fmt.Sprint("greedy", i), text.String())
			p.namespace = "greedy"
			p.more = map[string]string{"tenants": "[" + names.String() + "]"}
			require.NoError(t, p.mount())
		}
		pause(4 * time.Minute)
		reads := n.asked()
		pause(time.Minute)
		require.InDelta(t, 60*backgroundRate, n.asked()-reads, 100, "the rate is used up")

		modest := n.pod("modest", strings.ReplaceAll(kv("kv", "secret/data/b"), "}", ", refreshInterval: 10s}"))
		modest.namespace = "modest"
		require.NoError(t, modest.mount())
		for i := range 8 {
			n.backend.mu.Lock()
			n.backend.kv["secret/data/b"] = fmt.Sprint(i)
			n.backend.mu.Unlock()
			pause(15 * time.Second)
			require.Equal(t, fmt.Sprint(i), modest.files()["kv"])
		}
		leases := n.pod("p", db("db", orders))
		require.NoError(t, leases.mount())
		leases.delete()
		pause(3 * time.Second)
		require.Zero(t, n.backend.count())
	})
}

// TestLateAnswersAreUsed: reads that wait for their turn for longer than an attempt
// is kept are not sent to the end of the line again.
func TestLateAnswersAreUsed(t *testing.T) {
	scene(t, func(t *testing.T, n *node) {
		n.backend.roles["secret/data/a"] = role{kind: Polled}
		p := n.pod("p", kv("kv", "secret/data/a"))
		require.NoError(t, p.mount())
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var others sync.WaitGroup
		arrive := func(calls int) {
			for range calls {
				others.Go(func() { _ = n.m.pacer.wait(ctx, "ns", time.Now().Add(time.Hour)) })
			}
		}
		arrive(10 * 60 * backgroundRate)
		n.backend.mu.Lock()
		n.backend.kv["secret/data/a"] = "new"
		n.backend.mu.Unlock()
		for i := range 15 * 60 { // the line stays as long as it is
			pause(time.Second)
			arrive(backgroundRate)
			if i == 10*60 {
				require.Equal(t, 1, n.asked())
			}
		}
		require.Equal(t, "new", p.files()["kv"])
		cancel()
		others.Wait()
	})
}

func TestLooksOfAPoolAreApart(t *testing.T) {
	scene(t, func(t *testing.T, n *node) {
		p := n.many(8, 1, "?n=#', secretKey: value, refreshInterval: 10s")
		require.NoError(t, p.mount())
		pause(2 * time.Minute)
		reads := n.asked()
		pause(5 * time.Minute)
		require.InDelta(t, 5*60*4, n.asked()-reads, 130, "128 reads, four a second")
	})
}
