package lease

import (
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tenure-csi/tenure/internal/volume"
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

// many are objects of one value of the given length for 16 tenants.
func (n *node) many(objects, length int, fields string) *pod {
	n.backend.roles["secret/data/big"] = role{kind: Polled}
	n.backend.kv["secret/data/big"] = strings.Repeat("v", length)
	var text strings.Builder
	for i := range objects {
		fmt.Fprintf(&text, "- {objectName: '{tenant}/%d', secretPath: 'secret/data/big%s}\n", i, strings.ReplaceAll(fields, "#", fmt.Sprint(i)))
	}
	p := n.pod("many", text.String())
	p.namespace = "greedy"
	p.more = map[string]string{"tenants": "[a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p]"}
	return p
}

// allocated returns the bytes that f takes from the heap, freed ones included.
func allocated(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

// TestVolumeOverTheLimitIsNotRendered: a value of 1 MiB in 1024 files would be 1 GiB
// before anything is written.
func TestVolumeOverTheLimitIsNotRendered(t *testing.T) {
	for _, row := range []struct {
		name string
		kind Kind
	}{{"looks", Polled}, {"what is issued once", Once}} {
		t.Run(row.name, func(t *testing.T) {
			scene(t, func(t *testing.T, n *node) {
				p := n.many(64, 1<<20, "', secretKey: value")
				n.backend.roles["secret/data/big"] = role{kind: row.kind}
				for range 3 {
					var err error
					bytes := allocated(func() { err = p.mount() })
					require.Equal(t, provider.Exhausted, classOf(err))
					require.ErrorContains(t, err, "the volume's files are over the limit of 4194304 bytes; split the objects over several volumes")
					require.Less(t, bytes, uint64(256<<20))
					require.LessOrEqual(t, n.m.answers.total(), int64(volume.MaxBytes))
				}
				require.Empty(t, p.files())
				pause(keepAttempt + time.Minute)
				require.Zero(t, n.m.answers.total())
			})
		})
	}
}

// TestAnswersAreBounded: 256 answers of 1 MiB, of which little is written, are read
// in several Mounts, and other namespaces have theirs meanwhile.
func TestAnswersAreBounded(t *testing.T) {
	scene(t, func(t *testing.T, n *node) {
		p := n.many(16, 1<<20, "?n=#', format: template, template: '{{ len .Data.value }}'")
		small := n.bigPod("small", "other")
		err := p.mount()
		require.Equal(t, provider.Exhausted, classOf(err))
		require.ErrorContains(t, err, "the answers of namespace greedy on this node would take")
		require.ErrorContains(t, err, "and one namespace may have 33554432; read fewer or smaller secrets at once")
		require.NoError(t, small.mount())
		require.Less(t, n.m.answers.total(), int64(1<<20), "what was answered is rendered and let go of")
		tries := 1
		for ; p.mount() != nil; tries++ {
			require.Less(t, tries, 10)
		}
		require.Len(t, p.files(), 256)
		require.Equal(t, "1048576", p.files()["a/0"])
		require.Greater(t, tries, 7)
		p.delete()
		small.delete()
		pause(3 * time.Minute)
		require.Zero(t, n.m.answers.total())
	})
}

// TestAnswersRefusedAreEnded: what an answer brought that there is no room for is owed.
func TestAnswersRefusedAreEnded(t *testing.T) {
	scene(t, func(t *testing.T, n *node) {
		n.m.answers.most = 1
		p := n.withOrders(time.Hour, 24*time.Hour)
		require.ErrorContains(t, p.mount(), "the answers of namespace ns")
		require.Equal(t, 1, n.backend.minted("p "+orders))
		pause(3 * time.Minute)
		require.Zero(t, n.backend.count())
		n.m.answers.most = maxAnswers
		require.NoError(t, p.mount())
		require.True(t, p.works())
	})
}

// TestRecentFilesAreBounded: what was just written is kept in memory for a while,
// but what is too much for that is read again.
func TestRecentFilesAreBounded(t *testing.T) {
	scene(t, func(t *testing.T, n *node) {
		n.m.recents.most = 2 * big
		first, second, third := n.bigPod("first", "greedy"), n.bigPod("second", "greedy"), n.bigPod("third", "other")
		for _, p := range []*pod{first, second, third} {
			require.NoError(t, p.mount())
		}
		require.EqualValues(t, 2*big, n.m.recents.total(), "second is not kept")
		first.delete()
		pause(sweepEvery + time.Second)
		require.EqualValues(t, big, n.m.recents.total())
		pause(keepAttempt)
		require.Zero(t, n.m.recents.total())
	})
}

func TestSizeOfFiles(t *testing.T) {
	for bytes, want := range map[int]int64{0: page, 1: page, page: page, page + 1: 2 * page} {
		require.Equal(t, want, size([]volume.File{{Data: make([]byte, bytes)}}), bytes)
	}
}
