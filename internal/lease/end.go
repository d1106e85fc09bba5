package lease

import (
	"context"
	"slices"
	"time"

	"github.com/tenure-csi/tenure/provider"
)

// endVolume leaves nothing of the volume but what it owes.
func (w *worker) endVolume() {
	w.dropAttempt()
	w.mu.Lock()
	r := w.rec
	r.Ended, r.Current, r.Pending, r.Retired = true, nil, nil, nil
	for _, l := range r.Leases {
		l.Until = time.Time{} // no overlap: nobody reads any more
	}
	r.settle(time.Now(), nil)
	_ = w.count(0, true)
	w.letGo()
	w.forgetRecent()
	w.versions, w.change, w.identity = nil, nil, provider.Identity{}
	if w.asked != nil {
		w.asked.answer(nil, &provider.Error{Class: provider.Precondition, Cause: "the volume is gone from the node"})
		w.asked = nil
	}
	w.mu.Unlock()
	w.saveBestEffort()
	w.m.retire(w)
	w.log.Info("volume ended", "grants_to_end", len(r.Grants))
}

// endDue makes the owed ends whose time has come. It reports whether the record
// changed.
func (w *worker) endDue(ctx context.Context) (changed bool) {
	for _, g := range slices.Clone(w.rec.Grants) {
		now := time.Now()
		switch {
		case g.Ending:
			if w.inFlight(g) || !passed(now, g.Retry) {
				continue
			}
			changed = w.endGrant(ctx, g) || changed
		case len(g.Ends) > 0:
			changed = w.endLeases(ctx, g, now) || changed
		}
	}
	return changed
}

// inFlight reports whether reads under a grant have not returned. Ending the
// token now would leave their leases alive under a dead token.
func (w *worker) inFlight(g *grant) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return g.inFlight > 0
}

// endGrant ends a grant with all leases under it.
func (w *worker) endGrant(ctx context.Context, g *grant) (changed bool) {
	var err error
	if g.Token != "" && g.Revocable {
		if w.turn(ctx, time.Now().Add(time.Hour)) != nil {
			return false
		}
		err = w.m.Sources[g.Source].EndSession(w.m.ctx, w.caller(Background), g.session())
		w.m.metrics.ends.WithLabelValues("grant", outcome(err)).Inc()
	}
	now := time.Now()
	w.mu.Lock()
	defer w.mu.Unlock()
	verdict, _ := verdictOf(err)
	given := !g.Expires.IsZero() && passed(now, g.Expires.Add(endGiveUp))
	if err != nil && verdict != DeadAuth && !given {
		g.Tries++
		g.Retry = now.Add(endRetryIn(g.Tries))
		w.log.Warn("ending a grant failed; it stays owed", "accessor", g.Accessor, "tries", g.Tries, "error", err)
		return true
	}
	if given && err != nil {
		w.log.Warn("a grant ended by itself before it could be ended", "accessor", g.Accessor, "error", err)
	}
	w.rec.Grants = slices.DeleteFunc(w.rec.Grants, func(o *grant) bool { return o == g })
	return true
}

// endLeases ends single leases of a grant that lives on.
func (w *worker) endLeases(ctx context.Context, g *grant, now time.Time) (changed bool) {
	var left []leaseEnd
	for _, e := range g.Ends {
		if !passed(now, e.Retry) || w.turn(ctx, e.Until) != nil {
			left = append(left, e)
			continue
		}
		changed = true
		err := w.m.Sources[g.Source].EndLease(w.m.ctx, w.caller(Background), g.session(), e.LeaseID)
		w.m.metrics.ends.WithLabelValues("lease", outcome(err)).Inc()
		verdict, _ := verdictOf(err)
		if err == nil || verdict == DeadAuth || !e.Until.IsZero() && passed(time.Now(), e.Until.Add(endGiveUp)) {
			continue
		}
		e.Tries++
		e.Retry = time.Now().Add(endRetryIn(e.Tries))
		w.log.Warn("ending a lease failed; it stays owed", "tries", e.Tries, "error", err)
		left = append(left, e)
	}
	w.locked(func() { g.Ends = left })
	return changed
}
