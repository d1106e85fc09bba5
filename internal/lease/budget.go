package lease

import (
	"fmt"
	"sync"

	"github.com/tenure-csi/tenure/internal/volume"
	"github.com/tenure-csi/tenure/provider"
)

// page is the unit in which a tmpfs takes memory.
const page = 4 << 10

// maxAnswers bounds what is kept of the backends' answers until it is in files. A
// pool of 512 reads of 8 KiB is 4 MiB; one answer of Vault's may be as long.
const maxAnswers = 64 << 20

// maxRecent bounds what is kept of files that were just written, in case the driver
// has lost them. Credentials are small; what is large has no lease and is read again.
const maxRecent = 16 << 20

// budget bounds the bytes of all volumes together: pages that the daemon writes
// are charged to it, and pods could have it killed. A namespace may take half.
type budget struct {
	most       int64  // 0: no bound
	of, remedy string // for errors

	mu     sync.Mutex
	used   int64
	spaces map[string]int64 // of used, by namespace
}

// move counts a volume of a namespace with other bytes than before. Growth beyond
// the bounds is refused, unless it must be; nothing is counted then.
func (b *budget) move(namespace string, before, after int64, must bool) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	used, space := b.used-before+after, b.spaces[namespace]-before+after
	if !must && b.most > 0 && after > before {
		if share := b.most / 2; space > share {
			return &provider.Error{Class: provider.Exhausted, Remedy: b.remedy, Cause: fmt.Sprintf(
				"the %s of namespace %s on this node would take %d bytes of memory, and one namespace may have %d", b.of, namespace, space, share)}
		}
		if used > b.most {
			return &provider.Error{Class: provider.Exhausted, Remedy: b.remedy, Cause: fmt.Sprintf(
				"the %s of all volumes on this node would take %d bytes of memory, and they may have %d", b.of, used, b.most)}
		}
	}
	b.used, b.spaces[namespace] = used, space
	if space == 0 {
		delete(b.spaces, namespace)
	}
	return nil
}

func (b *budget) total() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.used
}

// size is what files take of a tmpfs. One that is empty counts like the smallest: the
// kernel's own memory for its name and inode is charged to the daemon too.
func size(files []volume.File) (n int64) {
	for _, f := range files {
		n += max(1, (int64(len(f.Data))+page-1)/page) * page
	}
	return n
}

// written returns what the volume's files take, those of next included, nil for
// none. A file that generations share is there once.
func (r *Record) written(next *generation) (n int64) {
	there := map[int]bool{}
	for _, g := range [...]*generation{r.Current, r.Pending, next} {
		if g != nil {
			for _, id := range g.Leases {
				there[id] = true
			}
		}
	}
	for _, l := range r.Leases {
		if there[l.ID] || !l.Until.IsZero() {
			n += l.Bytes
		}
	}
	return n
}

// bytes returns what the files of a generation take; of none, nothing.
func (r *Record) bytes(g *generation) (n int64) {
	if g != nil {
		for _, id := range g.Leases {
			n += r.lease(id).Bytes
		}
	}
	return n
}

// grow makes room for a generation before it is written. What only replaces
// credentials that the pod has, or makes a volume smaller, is never refused: what
// lives goes on, and the limit of a volume bounds it.
func (w *worker) grow(next *generation, o order) error {
	replaces := len(o.due) > 0
	for _, why := range o.due {
		replaces = replaces && why != Content
	}
	return w.count(w.rec.written(next), replaces || w.rec.bytes(next) <= w.rec.bytes(w.rec.Current))
}

// count enters what the volume takes now.
func (w *worker) count(n int64, must bool) error {
	err := w.m.budget.move(w.rec.Pod.Namespace, w.counted, n, must)
	if err == nil {
		w.counted = n
	}
	return err
}
