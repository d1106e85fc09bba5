package gate

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/tenure-csi/tenure/internal/lease"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// queue starts n calls that go in when they may and stay in until told to go.
type queue struct {
	t     *testing.T
	g     *Gates
	in    []string // in the order they went in
	errs  []error
	leave map[string][]func()
	login bool // what is added next
}

func newQueue(t *testing.T) *queue {
	t.Helper()
	return &queue{t: t, g: &Gates{}, leave: map[string][]func(){}}
}

func (q *queue) add(ctx context.Context, namespace string, work lease.Work, n int) {
	login := q.login
	for range n {
		go func() {
			leave, err := q.g.Enter(ctx, "addr", namespace, work, login)
			q.g.mu.Lock() // the gate's own lock orders the record too
			defer q.g.mu.Unlock()
			if err != nil {
				q.errs = append(q.errs, err)
				return
			}
			q.in = append(q.in, namespace+map[bool]string{true: " login"}[login])
			q.leave[namespace] = append(q.leave[namespace], leave)
		}()
		synctest.Wait()
	}
}

// free lets n calls of a namespace leave.
func (q *queue) free(namespace string, n int) {
	for range n {
		require.NotEmpty(q.t, q.leave[namespace])
		leave := q.leave[namespace][0]
		q.leave[namespace] = q.leave[namespace][1:]
		leave()
		synctest.Wait()
	}
}

func (q *queue) freeAll() {
	for left := true; left; {
		left = false
		for ns := range q.leave {
			left = left || len(q.leave[ns]) > 0
			q.free(ns, len(q.leave[ns]))
		}
	}
	require.Empty(q.t, q.g.at, "an unused gate is forgotten")
}

func TestGateKeepsRoom(t *testing.T) {
	for _, row := range []struct {
		name string
		work lease.Work
		most int
	}{
		{"mounts leave the urgent quarter", lease.Mounting, Slots - urgentSlots},
		{"background leaves room for mounts", lease.Background, backgroundSlots},
		{"urgent work may use all", lease.Urgent, Slots},
	} {
		t.Run(row.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				q := newQueue(t)
				for i := range 10 {
					q.add(t.Context(), fmt.Sprint("ns", i), row.work, 4)
				}
				require.Len(t, q.in, row.most)
				if row.work != lease.Urgent {
					q.add(t.Context(), "late", lease.Urgent, urgentSlots)
					require.Len(t, q.in, row.most+urgentSlots, "urgent work passes")
				}
				q.freeAll()
			})
		})
	}
}

func TestGateServesNamespacesInTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue(t)
		q.add(t.Context(), "flood", lease.Mounting, 100)
		require.Len(t, q.in, namespaceSlots, "one namespace leaves room for others")
		q.add(t.Context(), "b", lease.Mounting, 10)
		require.Len(t, q.in, Slots-urgentSlots)
		q.add(t.Context(), "c", lease.Mounting, 10)
		before := len(q.in)
		for range 6 {
			q.free("b", 1)
		}
		require.Equal(t, []string{"b", "c", "b", "c", "b", "c"}, q.in[before:], "flood holds its share, the others alternate")
		before = len(q.in)
		q.free("flood", 3)
		require.Contains(t, q.in[before:], "c")
		q.freeAll()
	})
}

func TestGateOrdersWork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue(t)
		q.add(t.Context(), "a", lease.Mounting, 8)
		q.add(t.Context(), "b", lease.Mounting, 4)
		q.add(t.Context(), "background", lease.Background, 1)
		q.add(t.Context(), "mount", lease.Mounting, 1)
		q.free("a", 2)
		require.Equal(t, []string{"mount", "background"}, q.in[12:], "a Mount first, though it came last")
		q.freeAll()
	})
}

func TestGateLetsReadsPassLogins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue(t)
		q.login = true
		q.add(t.Context(), "a", lease.Mounting, namespaceSlots+2)
		q.login = false
		q.add(t.Context(), "a", lease.Mounting, 2)
		q.free("a", 3)
		require.Equal(t, []string{"a", "a", "a login"}, q.in[namespaceSlots:], "the backend has work while others log in")
		q.freeAll()
	})
}

func TestGateSlowCallsGiveTheirSlotBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue(t)
		q.add(t.Context(), "hang", lease.Mounting, 30)
		require.Len(t, q.in, 8)
		q.add(t.Context(), "good", lease.Mounting, 1)
		require.Len(t, q.in, 9, "another namespace is not delayed")

		time.Sleep(SlowAfter + time.Millisecond)
		synctest.Wait()
		require.Len(t, q.errs, 22, "the waiting Mounts of the namespace fail")
		for _, err := range q.errs {
			require.ErrorIs(t, err, ErrSlowed)
		}
		_, err := q.g.Enter(t.Context(), "addr", "hang", lease.Mounting, false)
		require.ErrorIs(t, err, ErrSlowed)
		q.add(t.Context(), "hang", lease.Background, 1)
		require.Len(t, q.in, 10, "renewals of the namespace go on")

		q.free("hang", 2)
		q.add(t.Context(), "hang", lease.Mounting, 1)
		require.Len(t, q.in, 11, "with slow calls back, its Mounts go again")
		q.freeAll()
	})
}

func TestGateBoundsSlowCallsOfAnAddress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue(t)
		for i := range 20 {
			q.add(t.Context(), fmt.Sprint("ns", i), lease.Mounting, 8)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		require.Len(t, q.in, slowCalls+Slots-urgentSlots, "64 slow ones, and the slots")
		q.freeAll()
	})
}

func TestGateCancelledWaitLeavesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue(t)
		q.add(t.Context(), "a", lease.Mounting, 8)
		ctx, cancel := context.WithCancel(t.Context())
		q.add(ctx, "a", lease.Mounting, 3)
		require.Len(t, q.in, 8)
		cancel()
		synctest.Wait()
		require.Len(t, q.errs, 3)
		require.ErrorIs(t, q.errs[0], context.Canceled)
		q.freeAll()
		_, err := q.g.Enter(ctx, "addr", "a", lease.Urgent, false)
		require.ErrorIs(t, err, context.Canceled, "a dead context takes no slot")
	})
}
