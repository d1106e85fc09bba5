package lease

import (
	"math/rand/v2"
	"time"
)

// The numbers of the lease policy. Fractions are of L, the duration that the
// first answer gave; it stays the measure for the lease's whole life.
const (
	renewAt     = 0.60 // a renewable lease is renewed, any other replaced, at L·(renewAt + renewSpread·u)
	renewSpread = 0.10

	aheadLeast  = 0.40 // what readers refuse before its end is replaced earlier, but not before this part of L
	aheadSpread = 0.05

	defaultOverlap = 10 * time.Minute // how long a replaced credential goes on working, at most L/5
	replaceMargin  = 0.10             // a known end is met this far before the overlap must begin
	replaceSpread  = 0.05

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

// jitter is drawn once for a lease or grant and kept for its life, so that what
// was issued together does not fall due together.
func jitter() float64 { return rand.Float64() }

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

// renewal returns when to renew what was granted at start for length.
func renewal(start time.Time, length time.Duration, u float64) time.Time {
	return start.Add(scale(length, renewAt+renewSpread*u))
}

// ahead returns when to replace what was issued at start so that headroom is left
// of its length, as its readers want.
func ahead(start time.Time, length, headroom time.Duration, u float64) time.Time {
	latest := min(scale(length, renewAt), length-headroom)
	earliest := max(scale(latest, 1-aheadSpread), scale(length, aheadLeast))
	return start.Add(scale(earliest, 1+aheadSpread*u))
}

// replacement returns when to replace a lease whose end has become known at now.
func replacement(now, end time.Time, length, overlap time.Duration, u float64) time.Time {
	return staggered(end.Add(-overlap-scale(length, replaceMargin)), now, end, length, u)
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
