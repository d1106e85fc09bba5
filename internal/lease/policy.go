package lease

import (
	"math"
	"math/rand/v2"
	"sync"
	"time"
)

// The numbers of the lease policy. Fractions are of L, the duration that the
// first answer gave; it stays the measure for the lease's whole life.
const (
	turnMost = 0.70 // a renewable lease is renewed, any other replaced, by this part of L

	aheadMost  = 0.60 // what readers refuse before its end is replaced earlier
	aheadLeast = 0.40 // but not by less than this part of L

	turnPart  = 0.95 // a turn is this part of what is allowed
	turnLeast = 0.05 // and nobody's turn comes again before this part of one

	crowdGap   = time.Minute // what is issued one after the other within this
	crowdLeast = 4           // is a crowd when it is more than this

	defaultOverlap = 10 * time.Minute // how long a replaced credential goes on working, at most L/5
	replaceMargin  = 0.10             // a known end is met this far before the overlap must begin
	replaceSpread  = 0.05
	replaceEarly   = 0.05 // what ends together is replaced apart: earlier by at most this part of its life

	retryFirst = 5 * time.Second
	retryCap   = time.Minute
	retryFloor = time.Second

	mintGuard    = 30 * time.Second // the least time between two mints of one read, or L/2 where that is shorter
	mintGuardCap = 15 * time.Minute

	endRetryFirst = 10 * time.Second
	endRetryCap   = 10 * time.Minute
	endGiveUp     = 5 * time.Minute // after the credential's own end nothing is owed any more

	relogin       = 0.10 // a token whose last end is known is followed by a new one this far before it
	reloginSpread = 0.05

	keepAttempt = 2 * time.Minute  // how long what was issued for a Mount that failed waits for its retry
	minRetain   = 10 * time.Second // a replaced directory stays this long at least: a reader may be between two files
)

// phases draws u for what is issued: once for each lease or grant, which keeps it.
// Each number is the golden ratio after the one before, so that any of them in a
// row are even over [0, 1), and whatever was issued together, in one volume or
// after a reboot of the node, falls due evenly. Of numbers drawn at random, 200
// would in 5 minutes often be half as many again as on average. Who comes alone
// has no reason to hurry: u is in the last tenth.
type phases struct {
	mu    sync.Mutex
	u     float64
	last  time.Time
	crowd int // drawn with less than crowdGap between any two
}

func newPhases() *phases { return &phases{u: rand.Float64()} }

func (p *phases) next(now time.Time) float64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	_, p.u = math.Modf(p.u + 1/math.Phi)
	if now.Sub(p.last) > crowdGap {
		p.crowd = 0
	}
	p.last = now
	if p.crowd++; p.crowd <= crowdLeast {
		return 0.9 + 0.1*p.u
	}
	return p.u
}

// passed reports whether t is reached, by the monotonic clock where both times
// carry one and by the wall clock: a suspend moves only the wall clock, a step
// back only hides it.
func passed(now, t time.Time) bool {
	return !now.Before(t) || !now.Round(0).Before(t.Round(0))
}

// scale returns f·d.
func scale(d time.Duration, f float64) time.Duration { return time.Duration(float64(d) * f) }

// truncated reports whether a renewal gave clearly less than was asked for: the
// end is then known and final. Vault counts in whole seconds.
func truncated(granted, length time.Duration) bool {
	return granted < length-min(2*time.Second, scale(length, 0.02))
}

// turn returns when it is the turn again of what was issued or renewed at a time,
// which must be at most later. due is when that was to be done: turns go on from
// there, so that what is spread stays spread whatever comes late, and all of it
// after an outage. Where nothing was due (zero), or long not yet, as when the clock
// was set back, u says where in the first turn.
//
// The price: what is issued in a crowd, or was late, is issued or renewed once more
// than it must be, by half of them on average.
func turn(due, at time.Time, most time.Duration, u float64) time.Time {
	length := scale(most, turnPart)
	from := at.Add(scale(length, turnLeast))
	if due.IsZero() || due.After(from) || length <= 0 {
		return from.Add(scale(length, u))
	}
	return due.Add(scale(length, math.Ceil(from.Sub(due).Seconds()/length.Seconds())))
}

// ahead returns how soon to replace what was issued for length so that headroom
// is left of it, as its readers want.
func ahead(length, headroom time.Duration) time.Duration {
	return max(min(scale(length, aheadMost), length-headroom), scale(length, aheadLeast))
}

// latest returns when to replace at the latest what ends at end.
func latest(end time.Time, length, overlap time.Duration) time.Time {
	return end.Add(-overlap - scale(length, replaceMargin))
}

// replacement returns when to replace what was made at a time and whose end has
// become known. Leases that end together take the time since the end can be known,
// which part says where in.
func replacement(since, made, end time.Time, length, overlap time.Duration, part float64) time.Time {
	at := latest(end, length, overlap)
	span := min(at.Sub(since), scale(end.Sub(made), replaceEarly))
	return at.Add(-scale(max(span, 0), 1-part))
}

// lastResort returns when to replace a lease whose renewal is refused: not before
// the hard deadline, as after any other failure.
func lastResort(now, end time.Time, length time.Duration, u float64) time.Time {
	return staggered(hardDeadline(end, length), now, end, length, u)
}

// staggered moves a replacement behind now, and away from others due at the same time.
func staggered(at, now, end time.Time, length time.Duration, u float64) time.Time {
	if at.Before(now) {
		at = now
	}
	spread := min(scale(length, replaceSpread), end.Sub(at)/4)
	return at.Add(scale(max(spread, 0), u))
}

// overlapOf returns how long the replaced credential goes on working: what the
// object asks for, or the default, and never more than a fifth of the lease.
func overlapOf(asked, length time.Duration) time.Duration {
	if asked == 0 {
		asked = defaultOverlap
	}
	return min(asked, length/5)
}

// hardDeadline is the moment from which a lease that can't be renewed may be
// replaced by a new one.
func hardDeadline(end time.Time, length time.Duration) time.Time {
	return end.Add(-min(max(30*time.Second, length/10), scale(length, 0.15)))
}

// retryIn returns the pause before attempt number n+1 (n counts from 1) of a
// call that must succeed before end: at least three fit in whatever the length.
func retryIn(n int, now, end time.Time, asked time.Duration) time.Duration {
	pause := scale(backoff(n, retryFirst, retryCap), 0.5+rand.Float64())
	if left := end.Sub(now); left > 0 {
		pause = min(pause, max(left/6, retryFloor))
	}
	return max(min(pause, retryCap), asked, retryFloor)
}

// endRetryIn returns the pause before attempt n+1 to end a grant or a lease.
func endRetryIn(n int) time.Duration { return backoff(n, endRetryFirst, endRetryCap) }

// guardIn returns how long the n-th mint in a row keeps the next one waiting.
func guardIn(n int, length time.Duration) time.Duration {
	first := mintGuard
	if length > 0 {
		first = min(first, length/2)
	}
	return backoff(n, first, mintGuardCap)
}

// backoff doubles from first with every attempt after the first, up to most.
func backoff(n int, first, most time.Duration) time.Duration {
	for ; n > 1 && first < most; n-- {
		first *= 2
	}
	return min(first, most)
}
