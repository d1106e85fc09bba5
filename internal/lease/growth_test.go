package lease

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// held is what the daemon holds, by itself and in its journal.
type held struct {
	goroutines, volumes, ended, queued, waiting int
	files, answers                              int64
	journal                                     []string
}

func (n *node) held(dir string) (h held, objects uint64) {
	// The rest of the model holds nothing of volumes that are gone.
	n.backend.mu.Lock()
	clear(n.backend.tokens)
	clear(n.backend.leases)
	clear(n.backend.mints)
	n.backend.as = nil
	n.backend.mu.Unlock()
	n.m.mu.Lock()
	h.volumes, h.ended = len(n.m.volumes), len(n.m.ended)
	n.m.mu.Unlock()
	n.m.queue.mu.Lock()
	h.queued = len(n.m.queue.heap)
	n.m.queue.mu.Unlock()
	n.m.pacer.mu.Lock()
	h.waiting = len(n.m.pacer.lines)
	n.m.pacer.mu.Unlock()
	h.files, h.answers, h.goroutines = n.m.budget.total(), n.m.answers.total(), runtime.NumGoroutine()
	entries, err := os.ReadDir(dir)
	require.NoError(n.t, err)
	for _, e := range entries {
		info, err := e.Info()
		require.NoError(n.t, err)
		h.journal = append(h.journal, fmt.Sprint(e.Name(), " ", info.Size()))
	}
	var m runtime.MemStats
	runtime.GC()
	runtime.GC() // what had a finalizer
	runtime.ReadMemStats(&m)
	return h, m.HeapObjects
}

// TestThousandVolumesLeaveNothing: after 1000 mounts and ends, some in between
// refused, edited or replaced, the daemon holds what it held before them.
func TestThousandVolumesLeaveNothing(t *testing.T) {
	dir := filepath.Join(tmpfsDir(t), "state")
	scene(t, func(t *testing.T, n *node) {
		n.stop()
		journal, err := OpenJournal(t.Context(), dir, quiet)
		require.NoError(t, err)
		defer journal.Close()
		n.journal = journal
		n.backend.roles = fleetRoles
		n.backend.kv["secret/data/a"], n.backend.kv["database/static/s"] = "v", "s"
		n.start(0)
		next := 0
		live := func(volumes int) {
			var ps []*pod
			for range volumes {
				p := n.pod(fmt.Sprint("pod", next), fleetSPC(next))
				next++
				ps = append(ps, p)
				if next%7 == 0 {
					good := p.objects
					p.objects += kv("no", "secret/data/nothing")
					require.Error(t, p.mount())
					p.objects = good
				}
				require.NoError(t, p.mount())
			}
			pause(time.Hour) // renewals
			for i, p := range ps {
				if i%5 == 0 {
					p.objects = kv("kv", "secret/data/a")
					require.NoError(t, p.mount())
				}
				p.delete()
			}
			pause(30 * time.Second)
		}
		live(50)
		before, objects := n.held(dir)
		require.Zero(t, before.volumes+before.ended+before.queued)
		for range 20 {
			live(50)
		}
		after, more := n.held(dir)
		require.LessOrEqual(t, after.goroutines, before.goroutines+5, "the test's own come and go")
		after.goroutines = before.goroutines
		require.Equal(t, before, after)
		require.Less(t, int(more)-int(objects), 500, "objects on the heap: half a one for each volume")
		t.Logf("1000 volumes: %d objects on the heap before, %d after", objects, more)
	})
}
