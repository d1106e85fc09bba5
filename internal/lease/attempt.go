package lease

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"strings"
	"time"

	"github.com/tenure-csi/tenure/internal/format"
	"github.com/tenure-csi/tenure/internal/volume"
	"github.com/tenure-csi/tenure/provider"
)

// attempt is one try to give a volume what a spec asks for. When it fails, or
// the time of a Mount is over with reads still out, it is kept for the retry, so
// that what was issued is used and not issued again.
type attempt struct {
	hash   string
	reads  map[string]*reading // by fingerprint
	grants map[int]bool        // opened for it
	keep   time.Time           // dropped then; zero while under way
	cancel context.CancelFunc  // lets reads that were not sent yet give up
	ctx    context.Context
}

// wanted is one read with all objects that are made of it.
type wanted struct {
	key     string // fingerprint of the read
	print   string // fingerprint of the read and of all objects on it
	read    provider.Read
	objects []provider.Object
	reason  Reason
	prior   *lease // what the volume holds for the same fingerprint; nil: nothing

	rotateAfter time.Time // what was issued before is to be replaced; zero: nothing
}

// lookPace is how long a volume's looks are apart on average, at the least.
const lookPace = 250 * time.Millisecond

// looks reports whether the read is known to make nothing.
func (want *wanted) looks() bool {
	return want.prior != nil && (want.prior.Kind == Polled || want.prior.Kind == Static)
}

// inTurn reports whether the read is for a lease whose replacement was due, which
// nothing has hurried.
func (want *wanted) inTurn() bool {
	return want.prior != nil && (want.reason == Scheduled || want.reason == Truncated || want.reason == TokenEnd)
}

// reading is a read that was sent.
type reading struct {
	want  *wanted
	grant *grant
	sent  time.Time
	done  chan struct{}
	waits bool // for its turn; under mu

	// After done:
	issued  Issued // without the secret once the files are made of it
	err     error
	refused error // the answer was too much to be kept; what it brought must be ended
	holds   int64 // bytes of memory that the answer, then its files take
	// Set by the worker when it has taken the answer:
	lease *lease
	files []volume.File
}

func (r *reading) returned() bool {
	select {
	case <-r.done:
		return true
	default:
		return false
	}
}

// waits reports whether reads of the attempt wait for their turn. The worker's mu is held.
func (a *attempt) waits() bool {
	for _, r := range a.reads {
		if r.waits {
			return true
		}
	}
	return false
}

// answered counts the reads that have returned.
func (a *attempt) answered() (n int) {
	for _, r := range a.reads {
		if r.returned() {
			n++
		}
	}
	return n
}

// parsedSpec is a spec as reconciling needs it.
type parsedSpec struct {
	warnings []string
	reads    []wanted // without reason and prior
	tenants  *provider.Tenants
	refused  map[string]error // by tenant: who the bindings refuse, and why
}

// wantedReads groups a spec's objects by what is read for them.
func wantedReads(s *provider.Spec) []wanted {
	var all []wanted
	byRead := map[string]int{}
	for _, o := range s.Objects {
		key := digest(o.Read)
		i, known := byRead[key]
		if !known {
			i = len(all)
			byRead[key] = i
			all = append(all, wanted{key: key, read: o.Read})
		}
		all[i].objects = append(all[i].objects, o)
	}
	least := time.Duration(len(all)) * lookPace
	for i := range all {
		var prints strings.Builder
		for j, o := range all[i].objects {
			all[i].objects[j].Refresh = max(o.Refresh, least)
			o.Refresh, o.Overlap = 0, 0 // they change when to act, not what is written
			prints.WriteString(digest(o))
		}
		all[i].print = digest(prints.String())
	}
	return all
}

// digest fingerprints a value of the model.
func digest(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // the model is plain data
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:16])
}

// held names the grants and leases that belong to the attempt.
func (w *worker) held() map[int]bool {
	ids := map[int]bool{}
	if w.attempt == nil {
		return ids
	}
	for id := range w.attempt.grants {
		ids[id] = true
	}
	for _, r := range w.attempt.reads {
		if r.lease != nil {
			ids[r.lease.ID] = true
			ids[r.lease.Grant] = true
		} else if !r.returned() {
			ids[r.grant.ID] = true
		}
	}
	return ids
}

// attemptFor returns the attempt for a spec: the kept one, or a new one after
// dropping what was kept for another.
func (w *worker) attemptFor(hash string) *attempt {
	if w.attempt != nil && (w.attempt.hash != hash || w.stale(w.attempt)) {
		w.dropAttempt()
	}
	if w.attempt == nil {
		a := &attempt{hash: hash, reads: map[string]*reading{}, grants: map[int]bool{}}
		a.ctx, a.cancel = context.WithCancel(w.m.ctx)
		w.locked(func() { w.attempt = a })
	}
	w.attempt.keep = time.Time{}
	return w.attempt
}

// stale reports whether something of a kept attempt is due by now: nobody has
// renewed it, and it must not be handed out.
func (w *worker) stale(a *attempt) bool {
	now := time.Now()
	for id := range a.grants {
		if g := w.rec.grant(id); g == nil || g.Ending || isDue(now, g.at(), g.Opened) {
			return true
		}
	}
	for _, r := range a.reads {
		if l := r.lease; l != nil && l.Kind == Leased && isDue(now, l.at(), l.Issued) {
			return true
		}
	}
	return false
}

// dropAttempt lets go of what was kept: settle ends it. Reads still out are
// followed until they return.
func (w *worker) dropAttempt() {
	a := w.attempt
	if a == nil {
		return
	}
	a.cancel()
	w.locked(func() {
		for _, r := range a.reads {
			if r.lease == nil {
				w.strays = append(w.strays, r)
			}
		}
		w.attempt = nil
	})
}

// collectStrays takes the answers of reads whose attempt is gone: what they
// brought is ended, with its grant or by itself.
func (w *worker) collectStrays(now time.Time) bool {
	var out []*reading
	took := false
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, r := range w.strays {
		switch {
		case !r.returned():
			out = append(out, r)
			continue
		case r.err == nil && r.issued.LeaseID != "" && !r.grant.Ending:
			r.grant.Ends = append(r.grant.Ends, leaseEnd{LeaseID: r.issued.LeaseID, Retry: now, Until: r.sent.Add(r.issued.TTL)})
		}
		took = true
	}
	w.strays = out
	return took
}

// send starts a read of its own goroutine: neither the Mount nor the worker
// cancels it once it is sent.
func (w *worker) send(a *attempt, want *wanted, g *grant, by Caller, urgency time.Time) {
	r := &reading{want: want, grant: g, sent: time.Now(), done: make(chan struct{})}
	src := w.m.Sources[want.read.Source]
	w.mu.Lock()
	a.reads[want.print] = r
	g.inFlight++
	r.waits = by.Work != Mounting
	s := g.session()
	if g.Token == "" {
		s.Identity = w.identity
	}
	w.mu.Unlock()
	w.m.work.Go(func() {
		defer w.kick()
		defer close(r.done)
		if by.Work != Mounting {
			r.err = w.turn(a.ctx, urgency)
			w.locked(func() { r.waits = false })
		}
		if r.err == nil {
			r.sent = time.Now()
			r.issued, r.err = src.Read(a.ctx, by, s, want.read)
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		g.inFlight--
		w.receive(a, r, by)
	})
}

// receive keeps an answer until it is rendered, where there is room and anybody
// wants it. What the pod has soon ends without an answer is never refused. mu is held.
func (w *worker) receive(a *attempt, r *reading, by Caller) {
	if w.attempt == a && r.err == nil {
		r.holds = r.issued.Secret.Memory()
		if r.refused = w.hold(w.holds+r.holds, by.Work == Urgent); r.refused == nil {
			return
		}
	}
	r.issued.Secret, r.holds = format.Secret{}, 0
}

// hold enters how much memory the volume's answers take by now. mu is held.
func (w *worker) hold(n int64, must bool) error {
	err := w.m.answers.move(w.rec.Pod.Namespace, w.holds, n, must)
	if err == nil {
		w.holds = n
	}
	return err
}

// letGo counts again what is kept of answers. mu is held.
func (w *worker) letGo() {
	n := int64(0)
	if w.attempt != nil {
		for _, r := range w.attempt.reads {
			n += r.holds
		}
	}
	_ = w.hold(n, true)
}
