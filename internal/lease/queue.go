package lease

import (
	"container/heap"
	"context"
	"slices"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// tick bounds how late a suspend or a step of the wall clock is noticed, but in
// simulations of long times.
const tick = 5 * time.Second

// queue is the one heap of what is due when.
type queue struct {
	tick    time.Duration
	mu      sync.Mutex
	heap    dueHeap
	scanned time.Time     // when all entries were last looked at
	changed chan struct{} // a nudge when the first entry has moved nearer
}

type entry struct {
	at    time.Time
	w     *worker       // in the queue
	gate  chan struct{} // in the pacer; closed when it is the waiter's turn
	index int           // in the heap; -1 outside
}

func newQueue(tick time.Duration) *queue { return &queue{tick: tick, changed: make(chan struct{}, 1)} }

// set puts the entry at a time, or takes it out when at is zero.
func (q *queue) set(e *entry, at time.Time) {
	q.mu.Lock()
	defer q.mu.Unlock()
	e.at = at
	switch {
	case at.IsZero() && e.index >= 0:
		heap.Remove(&q.heap, e.index)
	case at.IsZero():
	case e.index >= 0:
		heap.Fix(&q.heap, e.index)
	default:
		heap.Push(&q.heap, e)
	}
	if e.index == 0 {
		select {
		case q.changed <- struct{}{}:
		default:
		}
	}
}

// until returns how long nothing is due, at most one tick.
func (q *queue) until(now time.Time) time.Duration {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.heap) == 0 {
		return q.tick
	}
	return min(max(q.heap[0].at.Sub(now), 0), q.tick)
}

// due takes out what has come due.
func (q *queue) due(now time.Time) []*worker {
	q.mu.Lock()
	defer q.mu.Unlock()
	var ws []*worker
	for len(q.heap) > 0 && passed(now, q.heap[0].at) {
		ws = append(ws, heap.Pop(&q.heap).(*entry).w)
	}
	if now.Sub(q.scanned) < q.tick {
		return ws
	}
	// After a suspend an entry may be due by the wall clock that is not the first
	// by the other one.
	q.scanned = now
	for i := 0; i < len(q.heap); i++ {
		if e := q.heap[i]; passed(now, e.at) {
			heap.Remove(&q.heap, i)
			ws = append(ws, e.w)
			i-- // another entry has come to its place
		}
	}
	return ws
}

type dueHeap []*entry

func (h dueHeap) Len() int           { return len(h) }
func (h dueHeap) Less(i, j int) bool { return h[i].at.Before(h[j].at) }
func (h dueHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}

// Push implements heap.Interface.
func (h *dueHeap) Push(x any) {
	e := x.(*entry)
	e.index = len(*h)
	*h = append(*h, e)
}

// Pop implements heap.Interface.
func (h *dueHeap) Pop() any {
	old := *h
	e := old[len(old)-1]
	e.index = -1
	*h = old[:len(old)-1]
	return e
}

// backgroundRate bounds what renewals, replacements and ends ask of the
// backends together, so that leases due at once make no burst. Vault's
// PostgreSQL plugin does about 190 writes a second, one at a time; mounts, which
// pods wait for, are not counted here.
const backgroundRate = 20

// What is near its deadline goes before the turns, but for one call in turnEvery:
// whoever has leases that always end soon must not keep all others out.
const (
	urgentWithin = 5 * time.Minute
	turnEvery    = 4
)

// pacer lets background calls pass at backgroundRate: the nearest deadline first
// where one is near, else one namespace after the other, each by its deadlines.
type pacer struct {
	mu      sync.Mutex
	lines   []*line // those with waiters, the next turn first
	opened  int
	arrived chan struct{}
	limit   *rate.Limiter
}

// line is what waits of a namespace.
type line struct {
	namespace string
	heap      dueHeap
}

func newPacer() *pacer {
	return &pacer{arrived: make(chan struct{}, 1), limit: rate.NewLimiter(backgroundRate, 1)}
}

// wait returns nil when it is the caller's turn.
func (p *pacer) wait(ctx context.Context, namespace string, deadline time.Time) error {
	e := &entry{at: deadline, gate: make(chan struct{}), index: -1}
	p.mu.Lock()
	l := p.line(namespace)
	heap.Push(&l.heap, e)
	p.mu.Unlock()
	select {
	case p.arrived <- struct{}{}:
	default:
	}
	select {
	case <-e.gate:
		return nil
	case <-ctx.Done():
		p.mu.Lock()
		defer p.mu.Unlock()
		if e.index >= 0 {
			heap.Remove(&l.heap, e.index)
		}
		p.lines = slices.DeleteFunc(p.lines, func(l *line) bool { return len(l.heap) == 0 })
		return ctx.Err()
	}
}

// line returns a namespace's line, at the end where it is new. mu is held.
func (p *pacer) line(namespace string) *line {
	for _, l := range p.lines {
		if l.namespace == namespace {
			return l
		}
	}
	l := &line{namespace: namespace}
	p.lines = append(p.lines, l)
	return l
}

// run opens the gates until ctx ends.
func (p *pacer) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-p.arrived:
		}
		for p.limit.Wait(ctx) == nil && p.open() {
		}
	}
}

// open lets the first waiter pass and reports whether there was one.
func (p *pacer) open() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.lines) == 0 {
		return false
	}
	i := 0
	if p.opened++; p.opened%turnEvery != 0 {
		i = p.nearest(time.Now().Add(urgentWithin))
	}
	l := p.lines[i]
	close(heap.Pop(&l.heap).(*entry).gate)
	if p.lines = slices.Delete(p.lines, i, i+1); len(l.heap) > 0 {
		p.lines = append(p.lines, l)
	}
	return true
}

// nearest returns whose deadline is the nearest one before a time; without any,
// whose turn it is. mu is held.
func (p *pacer) nearest(before time.Time) (i int) {
	for j, l := range p.lines {
		if at := l.heap[0].at; at.Before(before) {
			i, before = j, at
		}
	}
	return i
}
