package lease

import (
	"context"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tenure-csi/tenure/provider"
)

func TestPolicyNumbers(t *testing.T) {
	t0 := time.Unix(0, 0)
	after := func(d time.Duration) time.Time { return t0.Add(d) }

	// Sessions of AWS, of which 20 minutes are to be left.
	for _, row := range []struct{ length, most time.Duration }{
		{12 * time.Hour, 7*time.Hour + 12*time.Minute},
		{time.Hour, 36 * time.Minute},
		{40 * time.Minute, 20 * time.Minute},
		{30 * time.Minute, 12 * time.Minute},
		{15 * time.Minute, 6 * time.Minute},
	} {
		require.Equal(t, row.most, ahead(row.length, 20*time.Minute), row.length)
	}

	// A lease of 20 s under a maximum of 60 s.
	require.Equal(t, 4*time.Second, overlapOf(0, 20*time.Second))
	require.Equal(t, after(17*time.Second), hardDeadline(after(20*time.Second), 20*time.Second))
	require.Equal(t, after(51*time.Second), replacement(after(40*time.Second), t0, after(time.Minute), 20*time.Second, 4*time.Second, 0))
	require.Equal(t, after(54*time.Second), replacement(after(40*time.Second), t0, after(time.Minute), 20*time.Second, 4*time.Second, 1))
	require.Equal(t, after(54*time.Second), staggered(after(51*time.Second), after(54*time.Second), after(time.Minute), 20*time.Second, 0))
	require.Equal(t, after(55*time.Second), staggered(after(51*time.Second), after(54*time.Second), after(time.Minute), 20*time.Second, 1))
	// Of a day's lease of an hour: from its last hour on, and at the latest 16 minutes before the end.
	require.Equal(t, after(23*time.Hour), replacement(after(23*time.Hour), t0, after(24*time.Hour), time.Hour, 10*time.Minute, 0))
	require.Equal(t, after(23*time.Hour+44*time.Minute), replacement(after(23*time.Hour), t0, after(24*time.Hour), time.Hour, 10*time.Minute, 1))

	require.Equal(t, 10*time.Minute, overlapOf(0, time.Hour))
	require.Equal(t, time.Minute, overlapOf(time.Minute, time.Hour))
	require.Equal(t, 12*time.Minute, overlapOf(time.Hour, time.Hour), "at most a fifth")
	require.Equal(t, after(54*time.Minute), hardDeadline(after(time.Hour), time.Hour))

	require.False(t, truncated(20*time.Second, 20*time.Second))
	require.False(t, truncated(19700*time.Millisecond, 20*time.Second), "whole seconds are no truncation")
	require.True(t, truncated(19*time.Second, 20*time.Second))
	require.False(t, truncated(time.Hour-2*time.Second, time.Hour))
	require.True(t, truncated(time.Hour-3*time.Second, time.Hour))

	require.Equal(t, []time.Duration{10 * time.Second, 20 * time.Second, 40 * time.Second, 15 * time.Minute},
		[]time.Duration{guardIn(1, 20*time.Second), guardIn(2, 20*time.Second), guardIn(3, 20*time.Second), guardIn(30, 20*time.Second)})
	require.Equal(t, 30*time.Second, guardIn(1, time.Hour))
	require.Equal(t, 30*time.Second, guardIn(1, 0))
	require.Equal(t, []time.Duration{10 * time.Second, 20 * time.Second, 10 * time.Minute}, []time.Duration{endRetryIn(1), endRetryIn(2), endRetryIn(20)})
}

func TestTurns(t *testing.T) {
	t0 := time.Unix(1_000_000, 0)
	const most = 100 * time.Minute // a turn is 95
	for _, row := range []struct {
		name     string
		due, at  time.Duration // since t0
		expected time.Duration
	}{
		{"in its turn", 0, 0, 95 * time.Minute},
		{"late, and in its turn again", 0, 30 * time.Minute, 95 * time.Minute},
		{"so late that the turn is about to come", 0, 91 * time.Minute, 190 * time.Minute},
		{"many turns late", 0, 10 * 95 * time.Minute, 11 * 95 * time.Minute},
		{"early, with others", 0, -3 * time.Minute, 95 * time.Minute},
		{"the clock was put back", 0, -time.Hour, 285*time.Second - 750*time.Second},
	} {
		require.Equal(t, t0.Add(row.expected), turn(t0.Add(row.due), t0.Add(row.at), most, 0.5), row.name)
	}
	require.Equal(t, t0.Add(285*time.Second), turn(time.Time{}, t0, most, 0))
	require.Equal(t, t0.Add(285*time.Second+95*time.Minute), turn(time.Time{}, t0, most, 1), "never later than allowed")
	require.Equal(t, t0, turn(t0, t0, 0, 0.5))
	for range 10_000 {
		due, at := t0.Add(-rand.N(24*time.Hour)), t0.Add(-rand.N(24*time.Hour))
		length := 1 + rand.N(24*time.Hour)
		next := turn(due, at, length, rand.Float64())
		require.True(t, next.After(at) && !next.After(at.Add(length)), "%v %v %v: %v", due, at, length, next)
	}
}

// TestPhasesAreEven: of any numbers that a crowd draws in a row, each part of
// [0, 1) has its share.
func TestPhasesAreEven(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	for range 100 {
		p := newPhases()
		for range 50 {
			require.GreaterOrEqual(t, p.next(now), 0.9, "alone")
			now = now.Add(crowdGap + 1)
		}
		for range crowdLeast + rand.IntN(1000) {
			p.next(now)
		}
		for _, n := range []int{8, 50, 200} {
			parts := make([]int, n/4)
			for range n {
				parts[int(p.next(now)*float64(len(parts)))]++
			}
			require.LessOrEqual(t, slices.Max(parts), 6, "a share is 4")
			require.GreaterOrEqual(t, slices.Min(parts), 2)
		}
	}
}

func TestRetryStaysWithinBounds(t *testing.T) {
	now := time.Unix(1000, 0)
	for n := 1; n < 12; n++ {
		for _, left := range []time.Duration{-time.Hour, 0, time.Second, time.Minute, time.Hour} {
			for range 20 {
				in := retryIn(n, now, now.Add(left), 0)
				require.GreaterOrEqual(t, in, retryFloor)
				require.LessOrEqual(t, in, retryCap)
				if left > 6*time.Second {
					require.LessOrEqual(t, in, left/6)
				}
			}
		}
	}
	require.Equal(t, 2*time.Hour, retryIn(1, now, now.Add(time.Hour), 2*time.Hour), "the backend's own word is honoured")
}

func TestPacerLetsTheNearestDeadlinePassFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPacer()
		ctx, cancel := context.WithCancel(t.Context())
		var mu sync.Mutex
		var order []int
		start := time.Now()
		for i := range 40 {
			go func() {
				if p.wait(ctx, "ns", start.Add(time.Duration(40-i)*time.Minute)) == nil {
					mu.Lock()
					order = append(order, i)
					mu.Unlock()
				}
			}()
		}
		gaveUp, stop := context.WithCancel(ctx)
		stop()
		require.Error(t, p.wait(gaveUp, "ns", start))
		synctest.Wait()
		go p.run(ctx)
		time.Sleep(1900 * time.Millisecond)
		synctest.Wait()
		mu.Lock()
		require.InDelta(t, 38, len(order), 2, "20 a second")
		require.IsDecreasing(t, order)
		mu.Unlock()
		cancel()
		synctest.Wait()
	})
}

// A changed fingerprint makes every volume of every node issue anew at the first
// look after an upgrade. A new field must not change those of specs without it.
func TestFingerprintsOutliveUpgrades(t *testing.T) {
	o := provider.Object{
		Name: "a", Key: "username", Mode: 0o644, UID: -1, GID: -1, Refresh: time.Minute,
		Read: provider.Read{Source: "vault", Method: "GET", Path: "database/creds/a", Login: provider.Login{Method: "kubernetes", Role: "r"}},
	}
	reads := wantedReads(&provider.Spec{Objects: []provider.Object{o}})
	require.Equal(t, "81db664387b5a6fa61c3f296a931568a", reads[0].key)
	require.Equal(t, "d4fd402e8dad9246f4cf40c1cec5afb0", reads[0].print)
}
