package lease

import (
	"errors"
	"time"

	"github.com/tenure-csi/tenure/provider"
)

// errGuarded marks what was not tried because of a guard: it is tried when the guard
// ends, as its text says.
var errGuarded = errors.New("guarded")

// guard keeps a read from being minted in a loop, whatever keeps asking for it.
type guard struct {
	mints  int       // in a row
	next   time.Time // not before
	failed bool      // the last one's outcome is unknown
	err    error     // and this is what is known of it
}

// minted counts an answer that brought something new into the world.
func (w *worker) minted(want *wanted, i Issued) {
	w.m.metrics.issued.WithLabelValues(string(want.reason), i.Kind.String()).Inc()
	if i.Kind == Polled || i.Kind == Static {
		return
	}
	w.raise(want, i.TTL, nil)
}

// failed counts a read that failed and may still have made something.
func (w *worker) failed(want *wanted, err error) {
	w.m.metrics.readErrors.WithLabelValues(outcome(err)).Inc()
	var f *Failure
	if !errors.As(err, &f) || !f.MayHaveMinted {
		return
	}
	w.m.metrics.orphans.Inc()
	var length time.Duration
	if want.prior != nil {
		length = want.prior.Length
	}
	w.raise(want, length, err)
}

func (w *worker) raise(want *wanted, length time.Duration, err error) {
	now := time.Now()
	g := w.guards[want.key]
	if g == nil || passed(now, g.next.Add(mintGuardCap)) || (err == nil && want.planned()) {
		g = &guard{}
		w.guards[want.key] = g
	}
	g.mints++
	g.failed, g.err = err != nil, err
	g.next = now.Add(guardIn(g.mints, length))
}

// planned reports whether the replacement was foreseen when the lease was issued.
func (want *wanted) planned() bool {
	return want.reason != Lost
}

// guarded returns an error while a read must not be minted: after a mint of
// unknown outcome, or when what was minted got lost again at once.
func (w *worker) guarded(want *wanted) error {
	g := w.guards[want.key]
	if g == nil || passed(time.Now(), g.next) || (!g.failed && want.planned()) {
		return nil
	}
	cause := "it was issued a moment ago and lost again"
	if g.failed {
		cause = "the last read may have made a credential, and failed: " + g.err.Error()
	}
	return blame(want, &Failure{Problem: provider.Error{
		Class: provider.Unavailable, Cause: cause, Remedy: "it is tried again at " + g.next.UTC().Format(time.TimeOnly) + " UTC, so that no credentials pile up",
		Err: errGuarded,
	}, Verdict: Retry, RetryAfter: time.Until(g.next), MayHaveMinted: true})
}

// forgetGuards drops what has long been quiet.
func (w *worker) forgetGuards(now time.Time) {
	for key, g := range w.guards {
		if passed(now, g.next.Add(mintGuardCap)) {
			delete(w.guards, key)
		}
	}
}
