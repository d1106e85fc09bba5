package lease

import (
	"math/rand/v2"
	"time"
)

// begin sets a grant's times at its login or after a renewal at now.
func (g *grant) begin(now time.Time, ttl time.Duration) {
	g.Tries, g.Retry = 0, time.Time{}
	if ttl == 0 {
		return
	}
	g.Expires = now.Add(ttl)
	switch {
	case !g.End.IsZero() && g.End.Before(g.Expires):
	case !g.Renewable, truncated(ttl, g.Length):
		g.End = g.Expires
	default:
		g.Due = turn(g.Due, now, scale(g.Length, turnMost), g.Jitter)
		return
	}
	g.Due = g.End.Add(-scale(g.Length, relogin+reloginSpread*g.Jitter))
	if g.Due.Before(now) {
		g.Due = now
	}
}

// final reports whether the grant's last end is known and nothing prolongs it.
func (g *grant) final() bool { return !g.End.IsZero() && !g.End.After(g.Expires) }

// schedule sets when to act next on a lease whose terms were given at start, when
// that was due; zero: it was not. The clock of a look (Polled, Static) is set by look.
func (r *Record) schedule(l *lease, due, start, now time.Time) {
	l.Tries, l.Retry, l.Problem = 0, time.Time{}, ""
	if l.Kind != Leased || l.Length == 0 {
		return
	}
	end := r.end(l)
	switch {
	case end.Before(l.Expires) && start.Equal(l.Made): // its token's end was known when it was issued
		most := latest(end, l.Length, l.Overlap).Add(scale(l.Length, replaceSpread)).Sub(start)
		l.finish(TokenEnd, turn(due, start, min(most, scale(l.Length, turnMost)), l.Jitter))
	case end.Before(l.Expires):
		l.finish(TokenEnd, l.lastTurn(start, now, end))
	case l.Renewable && truncated(l.Expires.Sub(start), l.Length):
		l.finish(Truncated, l.lastTurn(start, now, end))
	case l.Renewable:
		l.Due = turn(due, start, scale(l.Length, turnMost), l.Jitter)
	case l.Headroom > 0:
		l.finish(Scheduled, turn(due, start, ahead(l.Length, l.Headroom), l.Jitter))
	default:
		l.finish(Scheduled, turn(due, start, scale(l.Length, turnMost), l.Jitter))
	}
}

// lastTurn returns when to replace a lease whose renewal at start has shown its
// end. That can be seen from L before it on: those that end together see it one
// after the other in their turns, and are replaced in this order.
func (l *lease) lastTurn(start, now, end time.Time) time.Time {
	since := end.Add(-l.Length)
	part := min(start.Sub(since).Seconds()/scale(l.Length, turnMost*turnPart).Seconds(), 1)
	return staggered(replacement(since, l.Made, end, l.Length, l.Overlap, part), now, end, l.Length, l.Jitter)
}

// soonest returns when to replace a lease whose end has become known at now, to
// others as well.
func (l *lease) soonest(now, end time.Time) time.Time {
	return staggered(replacement(now, l.Made, end, l.Length, l.Overlap, l.Jitter), now, end, l.Length, l.Jitter)
}

// slot returns when it was a lease's turn, for its replacement to go on from there.
func (l *lease) slot() time.Time {
	if l.Issued.After(l.Made) { // renewed
		return l.Issued
	}
	return l.Due
}

// finish makes a lease's end known: it is replaced at the given time.
func (l *lease) finish(why Reason, at time.Time) { l.Final, l.Next, l.Due = true, why, at }

// look sets when to look again at what has no lease. Static roles are looked at
// shortly after the backend's own rotation, which may come late.
func (l *lease) look(now time.Time, next time.Duration) {
	l.Tries, l.Retry, l.Problem = 0, time.Time{}, ""
	switch l.Kind {
	case Polled:
		l.Due = now.Add(scale(l.Refresh, 0.9+0.2*rand.Float64()))
	case Static:
		l.Due = now.Add(next + time.Second + scale(time.Second, rand.Float64()))
	}
}

// at returns when to act on the lease; zero: never.
func (l *lease) at() time.Time {
	if !l.Retry.IsZero() {
		return l.Retry
	}
	return l.Due
}

func (g *grant) at() time.Time {
	if !g.Retry.IsZero() {
		return g.Retry
	}
	return g.Due
}

// isDue reports whether to act now; a clock that stands before the issue counts
// as due, since no deadline can be trusted then.
func isDue(now, at, issued time.Time) bool {
	return !at.IsZero() && (passed(now, at) || now.Round(0).Before(issued.Round(0)))
}

// earlier returns the earlier of two times, either of which may be zero.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

// later returns the later of two times.
func later(a, b time.Time) time.Time {
	if a.Before(b) {
		return b
	}
	return a
}

// next returns when the worker has something to do; zero: nothing in sight. mu is held.
func (w *worker) next() time.Time {
	var at time.Time
	soon := func(t time.Time) { at = earlier(at, t) }
	if w.rec.Pending != nil {
		soon(time.Now().Add(tick)) // undecided
	}
	if w.attempt != nil {
		soon(w.attempt.keep)
	}
	if w.recent != nil {
		soon(w.recent.until)
	}
	for _, d := range w.rec.Retired {
		soon(d.Until)
	}
	for _, g := range w.rec.Grants {
		switch {
		case g.Ending && g.inFlight > 0: // its reads wake the worker
		case g.Ending:
			soon(g.Retry)
		default:
			if !g.Pending { // an attempt that outlives it is dropped, not renewed
				soon(g.at())
			}
			for _, e := range g.Ends {
				soon(e.Retry)
			}
		}
	}
	for _, l := range w.rec.Leases {
		soon(l.Until)
	}
	for _, l := range w.rec.current() {
		soon(w.rec.worsens(l, time.Now()))
	}
	if w.away || w.rec.Ended {
		// Renewals go on; what would write files waits for a Mount or the end.
		for _, l := range w.rec.current() {
			if !l.Final && l.Kind == Leased {
				soon(l.at())
			}
		}
		return at
	}
	for _, l := range w.rec.current() {
		soon(l.at())
		if from, why := w.lacking(l); why != nil && from.After(time.Now()) {
			soon(from)
		}
	}
	if w.change != nil {
		soon(w.change.next)
	}
	if w.rec.Current != nil {
		soon(w.reviewAt())
		if w.lists() {
			soon(w.tenancy.next)
		}
	}
	return at
}
