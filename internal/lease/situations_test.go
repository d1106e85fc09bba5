package lease

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tenure-csi/tenure/provider"
)

// These are situations that once went wrong, each as small as it could be made.

// TestPendingGrantPastItsDueIsNotSpunOn: a grant that no swap has adopted comes due while its attempt is kept.
func TestPendingGrantPastItsDueIsNotSpunOn(t *testing.T) {
	scene(t, func(t *testing.T, n *node) {
		n.backend.auth = role{ttl: time.Minute, max: time.Hour}
		p := n.withOrders(time.Hour, 24*time.Hour)
		p.objects += kv("kv", "secret/data/nothing")
		require.Error(t, p.mount())
		pause(100 * time.Second)
	})
}

// TestKeptAttemptIsNotHandedOutDead: a first mount is tried again for longer than what it once issued lives.
func TestKeptAttemptIsNotHandedOutDead(t *testing.T) {
	scene(t, func(t *testing.T, n *node) {
		n.backend.auth = role{ttl: 10 * time.Hour, max: 100 * time.Hour}
		p := n.withOrders(time.Hour, 24*time.Hour)
		p.objects += kv("kv", "secret/data/a")
		for range 90 {
			require.Error(t, p.mount())
			pause(time.Minute)
		}
		n.backend.mu.Lock()
		n.backend.roles["secret/data/a"] = role{kind: Polled}
		n.backend.mu.Unlock()
		require.NoError(t, p.mount())
		require.True(t, p.works(), "first mount hands out a dead credential")
	})
}

// TestDeniedReadsHealWhenAllowedAgain: reads are denied for longer than a token lives, while logins work.
func TestDeniedReadsHealWhenAllowedAgain(t *testing.T) {
	scene(t, func(t *testing.T, n *node) {
		n.backend.auth = role{ttl: 30 * time.Minute, max: 100 * time.Hour}
		n.backend.roles["pki/x"] = role{ttl: 2 * time.Hour, bare: true, fixed: true}
		p := n.pod("p", db("c", "pki/x"))
		require.NoError(t, p.mount())
		n.backend.set(func(op, _ string) error {
			if op == "read" {
				return errDenied
			}
			return nil
		})
		for range 180 {
			require.NoError(t, p.mount())
			pause(time.Minute)
		}
		n.backend.set(nil)
		for range 60 {
			require.NoError(t, p.mount())
			pause(time.Minute)
		}
		require.True(t, p.works(), p.status().Problem)
	})
}

// TestFailedEditOfAnEmptiedVolume: the driver empties a volume whose edit waits for its retry.
func TestFailedEditOfAnEmptiedVolume(t *testing.T) {
	scene(t, func(t *testing.T, n *node) {
		p := n.withOrders(time.Hour, 24*time.Hour)
		require.NoError(t, p.mount())
		p.objects += kv("kv", "secret/data/nothing")
		require.NoError(t, p.mount())
		n.mu.Lock()
		n.mounts[p.target].current = "" // the driver empties the volume
		n.mu.Unlock()
		pause(time.Minute)
	})
}

// TestEditWithoutEffectThatFailedAtTheJournal: an edit that changes no file fails at the journal, then succeeds.
func TestEditWithoutEffectThatFailedAtTheJournal(t *testing.T) {
	scene(t, func(t *testing.T, n *node) {
		p := n.withOrders(time.Hour, 24*time.Hour)
		require.NoError(t, p.mount())
		p.objects = strings.ReplaceAll(p.objects, "}", ", refreshInterval: 5m}")
		n.mu.Lock()
		n.saveErr = errors.New("no space")
		n.mu.Unlock()
		require.NoError(t, p.mount())
		n.mu.Lock()
		n.saveErr = nil
		n.mu.Unlock()
		pause(time.Minute)
	})
}

// TestEditTakenBackAfterAFailedWrite: an edit whose write failed is taken back.
func TestEditTakenBackAfterAFailedWrite(t *testing.T) {
	scene(t, func(t *testing.T, n *node) {
		n.backend.roles["secret/data/a"] = role{kind: Polled}
		n.backend.kv["secret/data/a"] = "v"
		p := n.withOrders(20*time.Second, time.Minute)
		require.NoError(t, p.mount())
		old := p.objects
		p.objects += kv("kv", "secret/data/a")
		n.mu.Lock()
		n.writeErr = errors.New("no space")
		n.mu.Unlock()
		require.NoError(t, p.mount())
		n.mu.Lock()
		n.writeErr = nil
		n.mu.Unlock()
		p.objects = old
		require.NoError(t, p.mount())
		pause(3 * time.Minute)
		require.NoError(t, p.mount())
		require.Len(t, p.files(), 2, "the volume shows files of the SPC that was taken back")
	})
}

// TestOneFailingLookDoesNotStopAVolume: a look at the volume fails for a while.
func TestOneFailingLookDoesNotStopAVolume(t *testing.T) {
	scene(t, func(t *testing.T, n *node) {
		p := n.withOrders(20*time.Second, time.Minute)
		require.NoError(t, p.mount())
		n.mu.Lock()
		n.currentErr = errors.New("too many open files")
		n.mu.Unlock()
		for p.status().State != Away {
			pause(time.Second)
		}
		n.mu.Lock()
		n.currentErr = nil
		n.mu.Unlock()
		for range 60 {
			require.NoError(t, p.mount())
			pause(5 * time.Second)
		}
		require.True(t, p.works(), p.status().State)
	})
}

// TestRestartWhileTheVolumeCannotBeLookedAt: after a kill behind the swap nobody can say which generation is shown.
func TestRestartWhileTheVolumeCannotBeLookedAt(t *testing.T) {
	scene(t, func(t *testing.T, n *node) {
		p := n.withOrders(time.Hour, 24*time.Hour)
		require.NoError(t, p.mount())
		p.objects += kv("kv", "secret/data/a")
		n.backend.roles["secret/data/a"] = role{kind: Polled}
		// an edit of the read's format re-issues it
		p.objects = strings.Replace(p.objects, "secretKey: username", "secretKey: username, filePermission: 0600", 1)
		// die right after the swap
		n.stop()
		base := n.writes
		for at := 1; at < 60; at++ {
			n.start(at)
			_ = p.mount()
			n.kill()
			if n.writes > base {
				break
			}
			n.start(0)
			n.stop()
		}
		require.Greater(t, n.writes, base)
		require.True(t, p.works())
		n.mu.Lock()
		n.currentErr = errors.New("too many open files")
		n.mu.Unlock()
		n.start(0)
		pause(3 * time.Second)
		n.mu.Lock()
		n.currentErr = nil
		n.mu.Unlock()
		require.True(t, p.works(), "what the files name was ended on missing information")
	})
}

// TestStopKeepsNoteOfALateRead: SIGTERM with a read out under a token that lives on.
func TestStopKeepsNoteOfALateRead(t *testing.T) {
	scene(t, func(t *testing.T, n *node) {
		n.backend.auth = role{ttl: 100 * time.Hour, max: 1000 * time.Hour}
		n.backend.roles["database/creds/b"] = role{ttl: 10 * time.Hour, max: 24 * time.Hour}
		p := n.withOrders(10*time.Hour, 24*time.Hour)
		require.NoError(t, p.mount())
		p.objects += db("b", "database/creds/b")
		n.backend.mu.Lock()
		n.backend.lag = 8 * time.Second
		n.backend.mu.Unlock()
		go func() { _, _ = n.m.Mount(context.Background(), p.request()) }() // the newest token was opened a moment ago, so the read goes under it
		pause(time.Second)
		n.stop()
		n.backend.mu.Lock()
		n.backend.lag = 0
		n.backend.mu.Unlock()
		require.Equal(t, 2, n.backend.count(), "the read was answered")
		n.start(0)
		require.NoError(t, p.mount())
		pause(time.Hour)
		require.Equal(t, 2, n.backend.count(), "a lease that nobody knows lives on")
	})
}

// TestMountThatFoundAnEndedVolume: a Mount found the worker just before the volume ended.
func TestMountThatFoundAnEndedVolume(t *testing.T) {
	scene(t, func(t *testing.T, n *node) {
		p := n.withOrders(time.Hour, 24*time.Hour)
		require.NoError(t, p.mount())
		w := n.m.volumes[p.target]
		n.mu.Lock()
		n.mounts[p.target] = nil
		delete(n.mounts, p.target)
		n.mu.Unlock()
		pause(3 * time.Minute)
		n.pod("p", p.objects)
		a, _, _ := w.ask(p.request()) // a Mount that found the worker just before it was retired
		if a != nil {
			<-a.done
		}
		require.NoError(t, p.mount())
		p.delete()
		pause(5 * time.Minute)
		require.Zero(t, n.backend.count())
	})
}

// TestPollUnderADeadToken: the token of a volume without leases is revoked.
func TestPollUnderADeadToken(t *testing.T) {
	scene(t, func(t *testing.T, n *node) {
		n.backend.auth = role{ttl: 768 * time.Hour, max: 768 * time.Hour}
		n.backend.roles["secret/data/a"] = role{kind: Polled}
		n.backend.kv["secret/data/a"] = "one"
		p := n.pod("p", kv("kv", "secret/data/a"))
		require.NoError(t, p.mount())
		n.backend.mu.Lock()
		for _, tok := range n.backend.tokens {
			tok.dead = true
		}
		n.backend.kv["secret/data/a"] = "two"
		n.backend.mu.Unlock()
		for range 24 * 60 {
			require.NoError(t, p.mount())
			pause(time.Minute)
		}
		require.Equal(t, "two", p.files()["kv"], p.status().Problem)
	})
}

// TestRefusedLoginIsNotHammered: a login is refused, and no Mount brings another credential.
func TestRefusedLoginIsNotHammered(t *testing.T) {
	scene(t, func(t *testing.T, n *node) {
		n.backend.roles["pki/x"] = role{ttl: time.Hour, bare: true, fixed: true}
		n.backend.auth = role{ttl: 20 * time.Minute, max: 20 * time.Minute, fixed: true}
		p := n.pod("p", db("c", "pki/x"))
		p.expires = time.Now().Add(1000 * time.Hour)
		require.NoError(t, p.mount())
		logins := 0
		n.backend.set(func(op, _ string) error {
			if op == "login" {
				logins++
				return broken(provider.Denied, "permission denied", Wrong, false)
			}
			return nil
		})
		pause(24 * time.Hour)
		require.Less(t, logins, 100, "a refused login, no Mount in between")
	})
}

// TestMintGuardDoesNotDelayRenewals: past the hard deadline renewals go on while mints wait.
func TestMintGuardDoesNotDelayRenewals(t *testing.T) {
	scene(t, func(t *testing.T, n *node) {
		n.backend.auth = role{ttl: 100 * time.Hour, max: 1000 * time.Hour}
		lost := 0
		for i := range 20 {
			p := n.pod(fmt.Sprint("p", i), db("db", orders))
			n.backend.roles[orders] = role{ttl: time.Hour, max: 24 * time.Hour}
			require.NoError(t, p.mount())
			l := p.lease()
			var last time.Time
			n.backend.set(func(op, _ string) error {
				if op == "renew" {
					last = time.Now()
				}
				if op == "read" || op == "renew" {
					return errNoDB
				}
				return nil
			})
			pause(time.Until(l.Expires))
			if gap := l.Expires.Sub(last); gap > 61*time.Second {
				lost++
			}
			n.backend.set(nil)
			p.delete()
			pause(time.Minute)
		}
		require.Zero(t, lost)
	})
}

// TestFullVolumeIsNoLackOfIdentity: a swap fails for another reason than identity.
func TestFullVolumeIsNoLackOfIdentity(t *testing.T) {
	scene(t, func(t *testing.T, n *node) {
		n.backend.auth = role{ttl: 10 * time.Hour, max: 100 * time.Hour}
		n.backend.roles["pki/x"] = role{ttl: 10 * time.Hour, bare: true, fixed: true}
		p := n.pod("p", db("c", "pki/x"))
		p.expires = time.Now().Add(1000 * time.Hour)
		require.NoError(t, p.mount())
		n.mu.Lock()
		n.writeErr = errors.New("no space left on device")
		n.mu.Unlock()
		pause(8 * time.Hour)
		require.NotEqual(t, NeedsIdentity, p.status().State, p.status().Problem)
	})
}

// TestSwapThatFailsLongHandsOutNothingDead: swaps fail for longer than a lease.
func TestSwapThatFailsLongHandsOutNothingDead(t *testing.T) {
	scene(t, func(t *testing.T, n *node) {
		n.backend.auth = role{ttl: 10 * time.Hour, max: 100 * time.Hour}
		n.backend.roles["pki/x"] = role{ttl: 10 * time.Minute, bare: true, fixed: true}
		p := n.pod("p", db("c", "pki/x"))
		require.NoError(t, p.mount())
		n.mu.Lock()
		n.writeErr = errors.New("no space left on device")
		n.mu.Unlock()
		pause(40 * time.Minute)
		n.mu.Lock()
		writes := n.writes
		n.writeErr = nil
		n.mu.Unlock()
		for n.swaps() == writes {
			pause(time.Second)
		}
		require.True(t, p.works(), "a dead credential was swapped in")
	})
}

// TestSlowReadIsUsedAndNotSentAgain: a slow read beside a poll that answers at once.
func TestSlowReadIsUsedAndNotSentAgain(t *testing.T) {
	scene(t, func(t *testing.T, n *node) {
		n.backend.auth = role{ttl: 100 * time.Hour, max: 1000 * time.Hour}
		n.backend.roles["secret/data/a"] = role{kind: Polled}
		p := n.pod("p", db("db", orders)+kv("kv", "secret/data/a"))
		p.objects = strings.Replace(p.objects, "secretPath: secret/data/a", "secretPath: secret/data/a, refreshInterval: 10s", 1)
		n.backend.roles[orders] = role{ttl: 10 * time.Minute, max: 10 * time.Minute, fixed: true}
		require.NoError(t, p.mount())
		n.backend.set(func(op, path string) error {
			if op == "read" && path == orders {
				n.backend.mu.Unlock()
				time.Sleep(15 * time.Second)
				n.backend.mu.Lock()
			}
			return nil
		})
		pause(60 * time.Minute)
		require.Less(t, n.backend.minted("p "+orders), 15)
		require.True(t, p.works())
	})
}

// TestRotationRemembersAFailedEdit: a rotation of the old spec passes while an edit is broken.
func TestRotationRemembersAFailedEdit(t *testing.T) {
	scene(t, func(t *testing.T, n *node) {
		p := n.withOrders(20*time.Second, time.Minute)
		require.NoError(t, p.mount())
		p.objects = "- {objectName: x"
		require.NoError(t, p.mount())
		require.Contains(t, p.status().Problem, "objects")
		pause(2 * time.Minute)
		require.Contains(t, p.status().Problem, "objects", "a rotation of the old spec forgot the edit")
	})
}

// TestNeedsIdentityEndsWithALogin: logins work again without a Mount.
func TestNeedsIdentityEndsWithALogin(t *testing.T) {
	scene(t, func(t *testing.T, n *node) {
		n.backend.auth = role{ttl: 20 * time.Minute, max: 20 * time.Minute, fixed: true}
		p := n.withOrders(time.Hour, 24*time.Hour)
		require.NoError(t, p.mount())
		n.backend.set(func(op, _ string) error {
			if op == "login" {
				return broken(provider.Denied, "permission denied", Wrong, false)
			}
			return nil
		})
		pause(18 * time.Minute)
		require.Equal(t, NeedsIdentity, p.status().State)
		n.backend.set(nil)
		pause(20 * time.Minute)
		require.True(t, p.works())
		require.Equal(t, Live, p.status().State)
	})
}

// TestExpiredTokenShows: a token expires while Vault is down.
func TestExpiredTokenShows(t *testing.T) {
	scene(t, func(t *testing.T, n *node) {
		n.backend.auth = role{ttl: 10 * time.Minute, max: 24 * time.Hour}
		p := n.withOrders(8*time.Hour, 24*time.Hour)
		require.NoError(t, p.mount())
		n.backend.set(down)
		pause(time.Hour)
		require.False(t, p.works())
		require.Equal(t, Expired, p.status().State)
	})
}

// TestGuardedReadDelaysNoOther: a read waits for its guard beside a healthy one.
func TestGuardedReadDelaysNoOther(t *testing.T) {
	scene(t, func(t *testing.T, n *node) {
		n.backend.auth = role{ttl: 30 * time.Minute, max: 1000 * time.Hour}
		n.backend.roles["database/creds/b"] = role{ttl: 10 * time.Hour, max: 24 * time.Hour}
		p := n.withOrders(10*time.Hour, 24*time.Hour)
		p.objects += db("b", "database/creds/b")
		require.NoError(t, p.mount())
		w := n.m.volumes[p.target]
		// orders was guarded by earlier trouble
		w.locked(func() {
			w.guards[w.parsed.reads[0].key] = &guard{mints: 6, next: time.Now().Add(15*time.Minute + 22*time.Minute), failed: true, err: errNoDB}
		})
		n.backend.mu.Lock()
		for _, tok := range n.backend.tokens {
			tok.dead = true
		}
		n.backend.mu.Unlock()
		pause(22 * time.Minute) // the token's renewal tells
		require.NoError(t, p.mount())
		pause(time.Minute)
		require.Equal(t, 2, n.backend.mints["p database/creds/b"], "the healthy read waits for the guard of the other")
	})
}
