package lease

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/tenure-csi/tenure/internal/volume"
	"github.com/tenure-csi/tenure/provider"
)

// worker owns one volume. One goroutine at a time does its slow work; Mount
// calls, edits, the bindings and the clock only ask for it.
type worker struct {
	m     *Manager
	log   *slog.Logger
	entry entry // in the manager's queue

	// mu guards the next two groups of fields.
	mu sync.Mutex

	// Others change them too, so that they are read and changed under mu alone. Of
	// the second group, tenancy.due, an attempt's reads' waits and a grant's inFlight
	// are so too.
	running     bool
	gone        bool               // the volume has ended; the record may not say so yet
	identity    provider.Identity  // of the last Mount
	answered    time.Time          // the last Mount that was answered with versions
	asked       *ask               // waits to be served
	interrupt   context.CancelFunc // ends the waiting of background work when somebody asks
	change      *failure           // an edit of the SPC that could not be carried out
	refusal     *failure           // a first Mount that was refused
	away        bool               // the volume was found unmounted; Mount or its end decides
	needsID     error              // why nothing can be replaced before the next Mount; nil: it can
	fresh       bool               // a Mount brought an identity since
	republished bool               // a Mount has come for a live volume, so the driver's rotation is on
	holds       int64              // bytes of answers that the manager's budget has for the volume

	// The goroutine alone changes them, under mu, with all below them; it reads them
	// without.
	rec      *Record
	versions []provider.Version // of the present generation
	serving  *ask               // is being served
	parsed   *parsedSpec        // of the present generation; nil until it is needed
	attempt  *attempt           // under way, or kept for a retry; what it has is the goroutine's own
	strays   []*reading         // reads of dropped attempts that have not returned
	tenancy  tenancy

	// The goroutine's own: nobody else reads them.
	recent  *recent           // what was just written
	counted int64             // bytes of files that the manager's budget has for the volume
	guards  map[string]*guard // by read
	told    map[Notice]string // the conditions that were announced, by what they are about
}

func newWorker(m *Manager, r *Record) *worker {
	w := &worker{
		m: m, rec: r, answered: time.Now(), guards: map[string]*guard{},
		log: m.Log.With("namespace", r.Pod.Namespace, "pod", r.Pod.Name, "pod_uid", r.Pod.UID, "target", r.Target),
	}
	w.entry = entry{w: w, index: -1}
	w.versions = versions(r.current())
	if r.ruled() {
		w.tenancy.due = w.answered // what the bindings say may have changed meanwhile
	}
	return w
}

// newID returns a name for a record.
func newID() string {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

// live reports whether the volume shows the present generation. While a swap
// runs it may show the one about to become it.
func (w *worker) live() bool {
	if w.rec.Current == nil {
		return false
	}
	dir, err := w.m.Files.Current(w.rec.Target)
	return err == nil && (dir == w.rec.Current.Dir || w.rec.Pending != nil && dir == w.rec.Pending.Dir)
}

// quietFor reports whether the last Mount was answered longer than d ago and
// nobody waits for one.
func (w *worker) quietFor(now time.Time, d time.Duration) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.asked == nil && w.serving == nil && passed(now, w.answered.Add(d))
}

// markEnded lets the worker end the volume.
func (w *worker) markEnded() {
	w.mu.Lock()
	w.gone = true
	if w.interrupt != nil {
		w.interrupt()
	}
	w.mu.Unlock()
	w.kick()
}

// kick makes the worker look what there is to do.
func (w *worker) kick() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.start()
}

// start begins the worker's goroutine where it does not run. mu is held.
func (w *worker) start() {
	if w.running {
		return
	}
	w.running = true
	w.m.work.Go(w.run)
}

// run does what is due, then leaves the time of the next work in the queue.
func (w *worker) run() {
	for w.step() {
	}
}

// step does one piece of work and reports whether to look for more. It ends the
// goroutine's hold on the volume when there is none.
func (w *worker) step() (more bool) {
	defer func() {
		if p := recover(); p != nil {
			more = w.survive(p)
		}
	}()
	w.mu.Lock()
	stopping := w.m.ctx.Err() != nil
	gone, a := w.gone && !w.rec.Ended, w.asked
	switch {
	case stopping:
		if w.asked != nil {
			w.refuseAsked()
		}
		w.mu.Unlock()
		w.leave()
		w.mu.Lock()
		defer w.mu.Unlock()
		w.running = w.asked != nil || w.arrived()
		return w.running
	case gone || a == nil:
	default:
		w.asked, w.serving = nil, a
	}
	ctx, cancel := context.WithCancel(w.m.ctx)
	w.interrupt = cancel
	w.mu.Unlock()
	defer cancel()

	if w.rec.Pending != nil { // a killed process left it, or a panic
		w.decide()
	}
	switch {
	case gone:
		w.endVolume()
		return true
	case a != nil:
		w.serve(a)
		return true
	}
	w.maintain(ctx)

	now := time.Now()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.announce(now)
	next := w.next()
	w.interrupt = nil
	if w.asked != nil || w.gone && !w.rec.Ended || w.fresh || w.arrived() || (!next.IsZero() && passed(now, next)) {
		return true
	}
	w.running = false
	w.m.queue.set(&w.entry, next)
	return false
}

// survive keeps a panic to the volume that it happened in: whoever waits gets an
// error, and the worker looks again later.
func (w *worker) survive(p any) bool {
	err := w.m.panicked(w.log, p)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.serving != nil {
		w.serving.answer(nil, err)
		w.serving = nil
	}
	if w.asked != nil {
		return true
	}
	w.running = false
	w.m.queue.set(&w.entry, time.Now().Add(retryCap))
	return false
}

// leave takes what has arrived when the daemon stops: what nobody will use is
// journaled as owed. Reads still out wake the worker once more.
func (w *worker) leave() {
	now := time.Now()
	w.dropAttempt()
	w.collectStrays(now)
	w.settle(now)
	w.saveBestEffort()
}

// arrived reports whether a stray read has returned. mu is held.
func (w *worker) arrived() bool {
	for _, r := range w.strays {
		if r.returned() {
			return true
		}
	}
	return false
}

// turn waits until the pacer lets a background call of the volume pass.
func (w *worker) turn(ctx context.Context, deadline time.Time) error {
	return w.m.pacer.wait(ctx, w.rec.Pod.Namespace, deadline)
}

func (w *worker) setAway() { w.locked(func() { w.away = true }) }

// locked runs f, which changes what others may read.
func (w *worker) locked(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f()
}

// save journals the record. What depends on it must not happen when it fails.
func (w *worker) save() error {
	if err := w.m.Store.Save(w.rec); err != nil {
		w.m.metrics.journalErrors.Inc()
		w.log.Error("journal not writable", "error", err)
		return &provider.Error{
			Class: provider.Exhausted, Cause: "writing the journal: " + err.Error(),
			Remedy: "make room in the state directory; until then nothing new is issued and what lives goes on", Err: err,
		}
	}
	return nil
}

// saveBestEffort journals what a lost write only makes less exact.
func (w *worker) saveBestEffort() { _ = w.save() }

// recover takes up what a killed process left.
func (w *worker) recover() {
	w.decide()
	if w.rec.Pending == nil {
		for _, g := range w.rec.Grants {
			g.Pending = false
		}
	}
	w.versions = versions(w.rec.current())
}

// decide finds out whether a killed process had swapped the pending generation
// in, and ends what is not in the files. While the volume can't be looked at,
// nothing is decided: the files may name either.
func (w *worker) decide() {
	p := w.rec.Pending
	if p != nil {
		dir, err := w.m.Files.Current(w.rec.Target)
		if err != nil && !errors.Is(err, volume.ErrNotMounted) && !errors.Is(err, volume.ErrEmpty) || w.m.checkRoot() != nil {
			return
		}
		w.mu.Lock()
		w.rec.Pending = nil
		if err == nil && dir == p.Dir {
			w.adoptGeneration(p, time.Now())
		}
		w.mu.Unlock()
	}
	w.settle(time.Now())
	w.saveBestEffort()
}
