package lease

import (
	"errors"
	"time"

	"github.com/tenure-csi/tenure/internal/volume"
	"github.com/tenure-csi/tenure/provider"
)

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
	tries int       // 0: an edit that was not tried yet
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
	bytes int64
}

// keepRecent keeps what was just written, where there is room for it. mu is held.
func (w *worker) keepRecent(r *recent) {
	w.forgetRecent()
	r.bytes = int64(dataBytes(r.files))
	if w.m.recents.move(w.rec.Pod.Namespace, 0, r.bytes, false) == nil {
		w.recent = r
	}
}

// forgetRecent lets go of what was just written. mu is held.
func (w *worker) forgetRecent() {
	if w.recent != nil {
		_ = w.m.recents.move(w.rec.Pod.Namespace, w.recent.bytes, 0, true)
		w.recent = nil
	}
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
			w.answered, w.republished = now, true
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

// refuseAsked answers the waiting Mount when the daemon stops. mu is held.
func (w *worker) refuseAsked() {
	w.asked.answer(nil, &provider.Error{Class: provider.Unavailable, Cause: "the daemon is stopping", Remedy: "kubelet tries again"})
	w.asked = nil
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
