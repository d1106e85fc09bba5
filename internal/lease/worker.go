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
// calls and the clock only ask for it. rec and all below it are changed by that
// goroutine alone, under mu; it reads them without.
type worker struct {
	m     *Manager
	log   *slog.Logger
	entry entry // in the manager's queue

	mu        sync.Mutex
	running   bool
	gone      bool // the volume has ended; the record may not say so yet
	rec       *Record
	versions  []provider.Version // of the present generation
	identity  provider.Identity  // of the last Mount
	answered  time.Time          // the last Mount that was answered with versions
	asked     *ask               // waits to be served
	serving   *ask               // is being served
	interrupt context.CancelFunc // ends the waiting of background work when somebody asks

	parsed  *parsedSpec       // of the present generation; nil until it is needed
	attempt *attempt          // under way, or kept for a retry
	strays  []*reading        // reads of dropped attempts that have not returned
	change  *failure          // an edit of the SPC that could not be carried out
	refusal *failure          // a first Mount that was refused
	recent  *recent           // what was just written
	away    bool              // the volume was found unmounted; Mount or its end decides
	needsID error             // why nothing can be replaced before the next Mount; nil: it can
	fresh   bool              // a Mount brought an identity since
	guards  map[string]*guard // by read
	tenancy tenancy
}

// ask is a Mount that must wait.
type ask struct {
	spec     spec
	deadline time.Time
	done     chan struct{}
	versions []provider.Version
	err      error
}

// failure is a remembered one.
type failure struct {
	hash  string
	err   error
	spec  spec
	tries int
	next  time.Time // when to try again, until then it is answered from memory; zero: never
}

// due reports whether to try again now.
func (f *failure) due(now time.Time) bool { return !f.next.IsZero() && passed(now, f.next) }

// recent is a generation whose bytes are still in memory, for a driver that
// unmounts after a failure of its own and mounts again.
type recent struct {
	dir   string
	files []volume.File
	until time.Time
}

func newWorker(m *Manager, r *Record) *worker {
	w := &worker{
		m: m, rec: r, answered: time.Now(), guards: map[string]*guard{},
		log: m.Log.With("namespace", r.Pod.Namespace, "pod", r.Pod.Name, "pod_uid", r.Pod.UID, "target", r.Target),
	}
	w.entry = entry{w: w, index: -1}
	w.versions = versions(r.current())
	if r.Current.tenanted() || r.Pending.tenanted() {
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

// ask answers a Mount of a live and unchanged volume at once. Else it returns
// the ask that will be answered.
func (w *worker) ask(r provider.Request) (*ask, []provider.Version, error) {
	now := time.Now()
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.gone {
		return nil, nil, &provider.Error{Class: provider.Precondition, Cause: "the volume is gone from the node", Remedy: "kubelet tries again"}
	}
	same := w.sameSecret(r.Identity)
	w.identity = r.Identity
	if w.needsID != nil && !same {
		w.needsID, w.fresh = nil, true
		w.start()
	}
	if w.live() {
		same := w.rec.Current.Spec.Hash == r.SpecHash
		known := w.change != nil && w.change.hash == r.SpecHash && !w.change.due(now)
		if same && w.change != nil {
			w.change = nil // the edit was taken back
		}
		if same || known {
			w.answered = now
			if w.away { // it could not be looked at for a while
				w.away = false
				w.start()
			}
			return nil, w.versions, nil
		}
	} else if f := w.refusal; f != nil && f.hash == r.SpecHash && !f.due(now) {
		return nil, nil, f.err
	}
	for _, a := range []*ask{w.serving, w.asked} {
		if a != nil && a.spec.Hash == r.SpecHash {
			return a, nil, nil
		}
	}
	if w.asked != nil {
		w.asked.answer(nil, &provider.Error{Class: provider.Precondition, Cause: "a newer version of the SecretProviderClass was mounted meanwhile"})
	}
	w.asked = &ask{
		spec:     spec{Hash: r.SpecHash, Provider: r.Provider, Mode: r.Mode, Attributes: r.Attributes},
		deadline: now.Add(mountBudget), done: make(chan struct{}),
	}
	if w.interrupt != nil {
		w.interrupt()
	}
	a := w.asked
	w.start()
	return a, nil, nil
}

func (a *ask) answer(vs []provider.Version, err error) {
	a.versions, a.err = vs, err
	close(a.done)
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

// refuseAsked answers the waiting Mount when the daemon stops. mu is held.
func (w *worker) refuseAsked() {
	w.asked.answer(nil, &provider.Error{Class: provider.Unavailable, Cause: "the daemon is stopping", Remedy: "kubelet tries again"})
	w.asked = nil
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

// serve answers one Mount: the volume is brought to its spec, or stays as it is.
func (w *worker) serve(a *ask) {
	started := time.Now()
	vs, err := w.mount(a, started)
	now := time.Now()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.serving = nil
	if err == nil {
		w.answered, w.refusal = now, nil
		if w.recent != nil {
			w.recent.until = now.Add(keepAttempt)
		}
	}
	a.answer(vs, err)
}

// mount does the slow work of a Mount.
func (w *worker) mount(a *ask, now time.Time) ([]provider.Version, error) {
	live, review := w.live(), false
	w.locked(func() { w.away, review = false, !w.tenancy.due.IsZero() })
	if live && w.rec.Current.Spec.Hash == a.spec.Hash {
		return w.versions, nil
	}
	if !live && !review && w.rewrite(a.spec.Hash, now) {
		return w.versions, nil
	}
	err := w.mountSpec(order{spec: a.spec, live: live, work: Mounting, deadline: a.deadline, ctx: w.m.ctx})
	switch {
	case err == nil:
		return w.versions, nil
	case live:
		// The old files go on: a Mount of a live volume never fails.
		w.remember(&w.change, a.spec, err)
		w.log.Warn("SecretProviderClass changed and could not be carried out; the old files stay", "error", err)
		return w.versions, nil
	}
	if classOf(err) == provider.Denied {
		w.mu.Lock()
		w.refusal = &failure{hash: a.spec.Hash, err: err, next: now.Add(deniedMemory)}
		w.mu.Unlock()
	}
	return nil, err
}

// remember keeps a failed spec with the time of the next try.
func (w *worker) remember(f **failure, s spec, err error) {
	now := time.Now()
	w.mu.Lock()
	defer w.mu.Unlock()
	tries := 1
	if *f != nil && (*f).hash == s.Hash {
		tries = (*f).tries + 1
	}
	next := now.Add(backoff(tries, deniedMemory, mintGuardCap))
	if errors.As(err, &specError{}) {
		next = time.Time{} // the same text gives the same error
	}
	*f = &failure{hash: s.Hash, err: err, spec: s, tries: tries, next: next}
}

// classOf returns the class of the first *provider.Error in err.
func classOf(err error) provider.Class {
	var e *provider.Error
	if errors.As(err, &e) {
		return e.Class
	}
	return provider.Internal
}

// rewrite puts back what was just written and is still in memory.
func (w *worker) rewrite(hash string, now time.Time) bool {
	if w.recent == nil || w.rec.Current == nil || w.recent.dir != w.rec.Current.Dir ||
		w.rec.Current.Spec.Hash != hash || passed(now, w.recent.until) {
		return false
	}
	if err := w.m.Files.Write(w.rec.Target, volume.Generation{Dir: w.recent.dir, Files: w.recent.files}); err != nil {
		w.log.Warn("writing the recent files again", "error", err)
		return false
	}
	return true
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
