// Package gate bounds what is in flight at backends, fairly: one namespace's
// flood or hang leaves room for the others.
package gate

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/tenure-csi/tenure/internal/lease"
)

// How many calls are in flight at one address. Vault's PostgreSQL plugin makes
// one role at a time: four calls in flight reach all of its rate, and sixteen
// leave room for several databases and for the network.
const (
	// Slots is how many calls are in flight at one address.
	Slots           = 16
	urgentSlots     = Slots / 4 // kept for Urgent work
	backgroundSlots = Slots / 4 // the most that Background work takes: it has time, Mounts have not
	namespaceSlots  = Slots / 2 // the most that one namespace holds, so that its hang leaves room at once; slow Mounts count

	// SlowAfter is how long a call may be out before it gives its slot back.
	SlowAfter = 5 * time.Second
	slowCalls = 64 // such calls at one address
	// NamespaceSlowed is how many such calls of one namespace there may be; its
	// Mounts fail beyond.
	NamespaceSlowed = 8
)

// ErrSlowed says that a namespace has too many calls out that are not answered.
var ErrSlowed = errors.New("too many slow calls of this namespace")

// Gates bounds what is in flight at each address. Waiting calls are served
// Urgent first, then Mounts, then Background, and within each kind one
// namespace after the other. Of a namespace's calls a login goes last: who is
// logged in keeps the backend busy while the others log in. Background work may
// starve under Mounts until it is Urgent. Addresses and namespaces are forgotten
// when nothing of theirs is in flight or waits. The zero value is ready;
// its method may be called at once.
type Gates struct {
	mu sync.Mutex
	at map[string]*gate
}

type gate struct {
	held   [3]int // slots taken, by Work
	slow   int
	spaces map[string]*space
	turn   [3][]*space // namespaces with waiting calls, by Work; the next one first
}

// space is one namespace at one address.
type space struct {
	held, slow int
	waiting    [3][]*pass // by Work
}

// pass is one call's way through a gate.
type pass struct {
	addr, namespace string
	work            lease.Work
	login           bool
	ready           chan struct{} // closed when the call may go, or err is set
	err             error
	granted, slow   bool
	timer           *time.Timer
}

// Enter waits for a slot. The caller must call leave once when its call is
// over. The error is ctx's, or ErrSlowed.
func (g *Gates) Enter(ctx context.Context, addr, namespace string, work lease.Work, login bool) (leave func(), err error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	p := &pass{addr: addr, namespace: namespace, work: work, login: login, ready: make(chan struct{})}
	if err := g.wait(p); err != nil {
		return nil, err
	}
	select {
	case <-p.ready:
		if p.err != nil {
			return nil, p.err
		}
		return func() { g.leave(p) }, nil
	case <-ctx.Done():
		g.leave(p)
		return nil, ctx.Err()
	}
}

func (g *Gates) wait(p *pass) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	at, sp := g.find(p)
	if p.work == lease.Mounting && sp.slow >= NamespaceSlowed {
		return ErrSlowed
	}
	if len(sp.waiting[p.work]) == 0 {
		at.turn[p.work] = append(at.turn[p.work], sp)
	}
	place := len(sp.waiting[p.work])
	if first := slices.IndexFunc(sp.waiting[p.work], func(w *pass) bool { return w.login }); first >= 0 && !p.login {
		place = first
	}
	sp.waiting[p.work] = slices.Insert(sp.waiting[p.work], place, p)
	g.serve(at)
	return nil
}

func (g *Gates) find(p *pass) (*gate, *space) {
	if g.at == nil {
		g.at = map[string]*gate{}
	}
	at := g.at[p.addr]
	if at == nil {
		at = &gate{spaces: map[string]*space{}}
		g.at[p.addr] = at
	}
	sp := at.spaces[p.namespace]
	if sp == nil {
		sp = &space{}
		at.spaces[p.namespace] = sp
	}
	return at, sp
}

// serve lets waiting calls go while there is room.
func (g *Gates) serve(at *gate) {
	for _, work := range []lease.Work{lease.Urgent, lease.Mounting, lease.Background} {
		for at.room(work) {
			p := at.next(work)
			if p == nil {
				break
			}
			p.granted = true
			p.timer = time.AfterFunc(SlowAfter, func() { g.slowed(p) })
			close(p.ready)
		}
	}
}

func (at *gate) room(work lease.Work) bool {
	others := at.held[lease.Mounting] + at.held[lease.Background]
	if work == lease.Urgent {
		return at.held[lease.Urgent]+others < Slots
	}
	if work == lease.Background && at.held[lease.Background] >= backgroundSlots {
		return false
	}
	return at.held[lease.Urgent]+others < Slots && others < Slots-urgentSlots
}

// next takes the first waiting call of the next namespace that has not taken
// its share, and puts that namespace last; nil when there is none.
func (at *gate) next(work lease.Work) *pass {
	for i, sp := range at.turn[work] {
		out := sp.held
		if work == lease.Mounting {
			out += sp.slow
		}
		if out >= namespaceSlots {
			continue
		}
		p := sp.waiting[work][0]
		sp.waiting[work] = sp.waiting[work][1:]
		at.turn[work] = slices.Delete(at.turn[work], i, i+1)
		if len(sp.waiting[work]) > 0 {
			at.turn[work] = append(at.turn[work], sp)
		}
		sp.held++
		at.held[work]++
		return p
	}
	return nil
}

// slowed gives back the slot of a call that has been out for too long, while
// not too many are. A namespace that reached its bound has its waiting Mounts failed.
func (g *Gates) slowed(p *pass) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !p.granted {
		return
	}
	at, sp := g.find(p)
	if at.slow >= slowCalls || sp.slow >= NamespaceSlowed {
		return
	}
	p.slow = true
	at.slow++
	sp.slow++
	at.held[p.work]--
	sp.held--
	if sp.slow == NamespaceSlowed {
		for _, w := range sp.waiting[lease.Mounting] {
			w.err = ErrSlowed
			close(w.ready)
		}
		at.drop(sp, lease.Mounting, len(sp.waiting[lease.Mounting]))
	}
	g.serve(at)
}

// drop removes the first n waiting calls of a namespace.
func (at *gate) drop(sp *space, work lease.Work, n int) {
	sp.waiting[work] = slices.Delete(sp.waiting[work], 0, n)
	if len(sp.waiting[work]) == 0 {
		at.turn[work] = slices.DeleteFunc(at.turn[work], func(o *space) bool { return o == sp })
	}
}

// leave ends a call, or the wait of one that was never let go.
func (g *Gates) leave(p *pass) {
	g.mu.Lock()
	defer g.mu.Unlock()
	at, sp := g.find(p)
	switch i := slices.Index(sp.waiting[p.work], p); {
	case i >= 0:
		sp.waiting[p.work] = slices.Delete(sp.waiting[p.work], i, i+1)
		at.drop(sp, p.work, 0)
	case p.slow:
		at.slow--
		sp.slow--
	case p.granted:
		at.held[p.work]--
		sp.held--
	}
	if p.granted {
		p.granted = false
		p.timer.Stop()
	}
	g.serve(at)
	if sp.held+sp.slow == 0 && len(sp.waiting[0])+len(sp.waiting[1])+len(sp.waiting[2]) == 0 {
		delete(at.spaces, p.namespace)
	}
	if len(at.spaces) == 0 {
		delete(g.at, p.addr)
	}
}
