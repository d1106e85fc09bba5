package lease

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tenure-csi/tenure/provider"
)

func TestChangedSpec(t *testing.T) {
	scene(t, func(t *testing.T, n *node) {
		n.backend.roles["secret/data/a"] = role{kind: Polled}
		p := n.withOrders(time.Hour, 24*time.Hour)
		require.NoError(t, p.mount())
		before := p.files()

		good := p.objects
		p.objects = "- {objectName: x"
		require.NoError(t, p.mount(), "a broken edit leaves the old files")
		require.Equal(t, before, p.files())
		require.Contains(t, p.status().Problem, "objects")

		p.objects = good + kv("kv", "secret/data/nothing")
		require.NoError(t, p.mount())
		require.Equal(t, before, p.files())

		p.objects = good + kv("kv", "secret/data/a")
		n.backend.kv["secret/data/a"] = "v"
		require.NoError(t, p.mount())
		require.Equal(t, before["db-user"], p.files()["db-user"], "the read that did not change is carried over")
		require.Equal(t, "v", p.files()["kv"])
		require.Equal(t, 1, n.backend.mints["p "+orders])

		p.objects = kv("kv", "secret/data/a")
		require.NoError(t, p.mount())
		require.Len(t, p.files(), 1)
		pause(11 * time.Minute)
		require.Zero(t, n.backend.count(), "what the edit removed is ended after the overlap")
	})
}

// TestMountAfterTheDriverDied: its successor finds the volume mounted, and so hides
// a failure from kubelet.
func TestMountAfterTheDriverDied(t *testing.T) {
	scene(t, func(t *testing.T, n *node) {
		p := n.withOrders(time.Hour, 24*time.Hour)
		n.backend.set(func(_, _ string) error { return errDown })
		died, kill := context.WithTimeout(context.Background(), time.Second)
		defer kill()
		_, err := n.m.Mount(died, p.request())
		require.ErrorContains(t, err, "stopped waiting")

		waits, cancel := context.WithTimeout(context.Background(), 2*time.Minute) // kubelet's
		defer cancel()
		_, err = n.m.Mount(waits, p.request())
		require.Error(t, err)
		require.Error(t, waits.Err(), "it did not give up before")

		time.AfterFunc(time.Minute, func() { n.backend.set(nil) })
		require.NoError(t, p.mount())
		require.True(t, p.works())
		require.Equal(t, 1, n.backend.reads)
	})
	t.Run("until it is unmounted", func(t *testing.T) {
		scene(t, func(t *testing.T, n *node) {
			p := n.withOrders(time.Hour, 24*time.Hour)
			n.backend.set(func(_, _ string) error { return errDenied })
			_, err := n.daemon.Claim(p.target)
			require.NoError(t, err)
			time.AfterFunc(time.Minute, p.delete)
			require.ErrorContains(t, p.mount(), "denied")
		})
	})
}

func TestFailedFirstMount(t *testing.T) {
	t.Run("down", func(t *testing.T) {
		scene(t, func(t *testing.T, n *node) {
			p := n.withOrders(time.Hour, 24*time.Hour)
			calls, start := 0, time.Now()
			n.backend.set(func(_, _ string) error { calls++; return errDown })
			require.ErrorContains(t, p.mount(), "connection refused")
			require.Less(t, time.Since(start), 35*time.Second)
			require.Greater(t, calls, 5, "it may pass")
			require.Empty(t, p.files())
			n.backend.set(nil)
			require.NoError(t, p.mount())
			require.Equal(t, 1, n.backend.reads)
		})
	})
	t.Run("a certificate that does not fit is told at once", func(t *testing.T) {
		scene(t, func(t *testing.T, n *node) {
			p := n.withOrders(time.Hour, 24*time.Hour)
			calls, start := 0, time.Now()
			n.backend.set(func(_, _ string) error { calls++; return errTLS })
			require.ErrorContains(t, p.mount(), "unknown authority")
			require.Zero(t, time.Since(start))
			require.Equal(t, 1, calls)
			n.backend.set(nil)
			require.NoError(t, p.mount())
		})
	})
	t.Run("denied is answered from memory", func(t *testing.T) {
		scene(t, func(t *testing.T, n *node) {
			p := n.withOrders(time.Hour, 24*time.Hour)
			calls := 0
			n.backend.set(func(_, _ string) error { calls++; return errDenied })
			for range 5 {
				require.ErrorContains(t, p.mount(), "permission denied")
			}
			require.Equal(t, 1, calls)
			n.backend.set(nil)
			pause(deniedMemory)
			require.NoError(t, p.mount())
		})
	})
	t.Run("the reads that succeeded are kept for the retry", func(t *testing.T) {
		scene(t, func(t *testing.T, n *node) {
			n.backend.roles["secret/data/a"] = role{kind: Polled}
			p := n.withOrders(time.Hour, 24*time.Hour)
			p.objects += kv("kv", "secret/data/a")
			n.backend.set(func(_, path string) error {
				if path == "secret/data/a" {
					return errDenied
				}
				return nil
			})
			require.Error(t, p.mount())
			n.backend.set(nil)
			pause(deniedMemory)
			require.NoError(t, p.mount())
			require.Equal(t, 1, n.backend.mints["p "+orders])
			require.Equal(t, 1, n.backend.logins)
		})
	})
	t.Run("what was kept is ended when nobody comes back", func(t *testing.T) {
		scene(t, func(t *testing.T, n *node) {
			p := n.withOrders(time.Hour, 24*time.Hour)
			p.objects += kv("kv", "secret/data/nothing")
			require.Error(t, p.mount())
			require.Equal(t, 1, n.backend.count())
			pause(keepAttempt + time.Second)
			require.Zero(t, n.backend.count())
			require.Zero(t, n.backend.tokenCount())
		})
	})
	t.Run("a slow read is taken up by the next Mount", func(t *testing.T) {
		scene(t, func(t *testing.T, n *node) {
			p := n.withOrders(time.Hour, 24*time.Hour)
			n.backend.lag = 40 * time.Second
			start := time.Now()
			require.Error(t, p.mount())
			require.Less(t, time.Since(start), 45*time.Second)
			for p.mount() != nil {
				pause(time.Second)
			}
			require.Equal(t, 1, n.backend.mints["p "+orders])
			require.Equal(t, 1, n.backend.logins)
		})
	})
}

func TestVolumeUnmountedAndMountedAgain(t *testing.T) {
	for _, after := range []time.Duration{time.Second, 3 * time.Minute} {
		t.Run(after.String(), func(t *testing.T) {
			scene(t, func(t *testing.T, n *node) {
				p := n.withOrders(time.Hour, 24*time.Hour)
				require.NoError(t, p.mount())
				before := p.files()
				n.mu.Lock()
				delete(n.mounts, p.target)
				n.mu.Unlock()
				pause(after)
				n.pod("p", p.objects)
				require.NoError(t, p.mount())
				require.True(t, p.works())
				if after < goneAfter {
					require.Equal(t, before, p.files(), "the credential just issued is handed out again")
					require.Equal(t, 1, n.backend.reads)
				} else {
					require.Equal(t, 2, n.backend.reads)
					pause(5 * time.Second)
					require.Equal(t, 1, n.backend.count(), "the old grant is ended")
				}
			})
		})
	}
}

func TestTokenThatIsDeadAtOnceIsFollowedByAnother(t *testing.T) {
	scene(t, func(t *testing.T, n *node) {
		p := n.withOrders(time.Hour, 24*time.Hour)
		first := true
		n.backend.set(func(op, _ string) error {
			if op == "read" && first {
				first = false
				return errDead
			}
			return nil
		})
		require.NoError(t, p.mount())
		require.True(t, p.works())
		require.Equal(t, 2, n.backend.logins)
	})
}

func TestEqualContentSwapsNothing(t *testing.T) {
	scene(t, func(t *testing.T, n *node) {
		n.backend.roles["secret/data/a"] = role{kind: Polled}
		n.backend.kv["secret/data/a"] = "one"
		p := n.pod("p", kv("kv", "secret/data/a"))
		require.NoError(t, p.mount())
		pause(23 * time.Hour)
		require.Equal(t, 1, n.writes)
		require.InDelta(t, 690, n.backend.reads, 20)
		require.Equal(t, 1, n.backend.tokenCount())
	})
}

// crowded is a Source whose logins wait for room that there is never.
type crowded struct{ Source }

func (crowded) Login(ctx context.Context, _ Caller, _ provider.Login, _ provider.Identity) (Session, error) {
	<-ctx.Done()
	return Session{}, broken(provider.Deadline, "too many other calls", Retry, false)
}

func TestMountIsAnsweredThoughItsLoginWaits(t *testing.T) {
	scene(t, func(t *testing.T, n *node) {
		p := n.withOrders(time.Hour, 24*time.Hour)
		room := n.m.Sources["vault"]
		n.m.Sources["vault"] = crowded{room}
		kubelet, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		defer cancel()
		start := time.Now()
		_, err := n.m.Mount(kubelet, p.request())
		require.ErrorContains(t, err, "too many other calls")
		require.LessOrEqual(t, time.Since(start), 35*time.Second)
		n.m.Sources["vault"] = room
		require.NoError(t, p.mount())
	})
}
