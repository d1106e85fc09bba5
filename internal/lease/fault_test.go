package lease

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tenure-csi/tenure/provider"
)

// down makes every call fail as if nobody listened.
func down(_, _ string) error { return errDown }

func (b *backend) set(fault func(op, path string) error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.fault = fault
}

func TestBackendDownLongerThanARenewalInterval(t *testing.T) {
	scene(t, func(t *testing.T, n *node) {
		p := n.withOrders(time.Hour, 24*time.Hour)
		require.NoError(t, p.mount())
		before, writes := p.files(), n.writes
		pause(30 * time.Minute)
		n.backend.set(down)
		pause(20 * time.Minute) // past the renewal, before the hard deadline
		n.backend.set(nil)
		pause(30 * time.Minute)
		require.Equal(t, before, p.files())
		require.Equal(t, writes, n.writes)
		require.True(t, p.works())
		require.Equal(t, 1, n.backend.reads)
	})
}

func TestBackendDownLongerThanALease(t *testing.T) {
	scene(t, func(t *testing.T, n *node) {
		p := n.withOrders(time.Hour, 24*time.Hour)
		require.NoError(t, p.mount())
		before := p.files()
		n.backend.set(down)
		pause(3 * time.Hour)
		require.Equal(t, before, p.files(), "stale files are better than none")
		require.Equal(t, Expired, p.status().State)
		require.NoError(t, p.mount(), "a republish of a live volume never fails")
		n.backend.set(nil)
		pause(2 * time.Minute)
		require.NotEqual(t, before, p.files())
		require.True(t, p.works())
		require.Equal(t, 2, n.backend.reads, "one mint per read after the recovery")
		require.Equal(t, Live, p.status().State)
	})
}

func TestRenewalThatFailsMintsNothingBeforeTheHardDeadline(t *testing.T) {
	scene(t, func(t *testing.T, n *node) {
		p := n.withOrders(time.Hour, 24*time.Hour)
		require.NoError(t, p.mount())
		n.backend.set(func(op, _ string) error {
			if op == "renew" {
				return errNoDB
			}
			return nil
		})
		pause(54 * time.Minute) // the hard deadline is at 54 min
		require.Equal(t, 1, n.backend.reads)
		tries := p.status().Leases[0].Problem
		require.Contains(t, tries, "database")
		pause(2 * time.Minute)
		require.Equal(t, 2, n.backend.reads, "then one mint is tried")
		require.True(t, p.works())
	})
}

func TestRetriesBeforeExpiryWhateverTheLength(t *testing.T) {
	for _, ttl := range []time.Duration{20 * time.Second, 5 * time.Minute, time.Hour, 24 * time.Hour} {
		t.Run(ttl.String(), func(t *testing.T) {
			scene(t, func(t *testing.T, n *node) {
				n.backend.auth = role{ttl: 240 * time.Hour, max: 1000 * time.Hour}
				p := n.withOrders(ttl, 100*ttl)
				require.NoError(t, p.mount())
				tries := 0
				n.backend.set(func(op, _ string) error {
					if op == "renew" {
						tries++
						return errNoDB
					}
					return nil
				})
				l := p.lease()
				pause(time.Until(hardDeadline(l.Expires, l.Length)) - time.Millisecond)
				require.GreaterOrEqual(t, tries, 3)
			})
		})
	}
}

func TestDatabaseDownMintsNothingInALoop(t *testing.T) {
	scene(t, func(t *testing.T, n *node) {
		p := n.withOrders(20*time.Second, time.Minute)
		require.NoError(t, p.mount())
		reads := 0
		n.backend.set(func(op, path string) error {
			if op == "read" {
				reads++
			}
			if op == "read" || op == "renew" {
				return errNoDB
			}
			return nil
		})
		pause(time.Hour)
		// 10, 20, 40, … 640 s and then every 15 minutes.
		require.LessOrEqual(t, reads, 11)
		require.GreaterOrEqual(t, reads, 8)
		n.backend.set(nil)
		pause(16 * time.Minute)
		require.True(t, p.works())
		require.LessOrEqual(t, n.backend.count(), 2)
	})
}

func TestLostLeaseIsReplacedAtOnceAndOnlyOnce(t *testing.T) {
	scene(t, func(t *testing.T, n *node) {
		p := n.withOrders(time.Hour, 24*time.Hour)
		require.NoError(t, p.mount())
		n.backend.mu.Lock()
		for _, l := range n.backend.leases {
			l.revoked = true // by an operator
		}
		n.backend.mu.Unlock()
		pause(43 * time.Minute)
		require.True(t, p.works())
		require.Equal(t, 2, n.backend.reads)
		require.Equal(t, Lost, p.status().Leases[0].Reason)
	})
}

func TestLeaseThatIsLostAgainAndAgainIsGuarded(t *testing.T) {
	scene(t, func(t *testing.T, n *node) {
		p := n.withOrders(time.Minute, 24*time.Hour)
		require.NoError(t, p.mount())
		n.backend.set(func(op, _ string) error {
			if op == "renew" {
				return errGone
			}
			return nil
		})
		pause(time.Hour)
		require.LessOrEqual(t, n.backend.reads, 12, "30 s doubling to 15 min between mints")
	})
}

func TestDeadTokenIsFollowedByOneLoginAndOneMint(t *testing.T) {
	scene(t, func(t *testing.T, n *node) {
		p := n.withOrders(time.Hour, 24*time.Hour)
		require.NoError(t, p.mount())
		n.backend.mu.Lock()
		for _, tok := range n.backend.tokens {
			tok.dead = true
		}
		n.backend.mu.Unlock()
		pause(45 * time.Minute)
		require.True(t, p.works())
		require.Equal(t, 2, n.backend.logins)
		require.Equal(t, 2, n.backend.reads)
	})
}

func TestRefusedRenewalKeepsTheFilesAndReplacesBeforeTheEnd(t *testing.T) {
	scene(t, func(t *testing.T, n *node) {
		p := n.withOrders(time.Hour, 24*time.Hour)
		require.NoError(t, p.mount())
		n.backend.set(func(op, _ string) error {
			if op == "renew" {
				return errDenied
			}
			return nil
		})
		for range 58 {
			pause(time.Minute)
			require.True(t, p.works())
		}
		require.Equal(t, 2, n.backend.reads)
	})
}

func TestShortTokenBoundsItsLeases(t *testing.T) {
	scene(t, func(t *testing.T, n *node) {
		n.backend.auth = role{ttl: 20 * time.Minute, max: 2 * time.Hour}
		p := n.withOrders(time.Hour, 24*time.Hour)
		for range 5 * 60 {
			require.NoError(t, p.mount()) // the driver republishes
			pause(time.Minute)
			require.True(t, p.works())
		}
		require.InDelta(t, 3, n.backend.reads, 1)
		require.Equal(t, TokenEnd, p.status().Leases[0].Reason)
	})
}

func TestWithoutRepublishTheVolumeLivesAsFarAsItsTokenAllows(t *testing.T) {
	scene(t, func(t *testing.T, n *node) {
		n.backend.auth = role{ttl: 20 * time.Minute, max: 3 * time.Hour}
		p := n.withOrders(20*time.Minute, time.Hour)
		p.expires = time.Now().Add(time.Minute)
		require.NoError(t, p.mount())
		for range 3*60 - 20 {
			pause(time.Minute)
			require.True(t, p.works())
		}
		for p.status().State != NeedsIdentity {
			require.True(t, p.works(), "it is told before the end")
			pause(10 * time.Second)
		}
		require.True(t, p.works())
		require.Contains(t, p.status().Problem, "service account token")
		require.Equal(t, 1, n.backend.logins)
		reads := n.backend.reads
		pause(5 * time.Hour)
		require.Equal(t, Expired, p.status().State)
		require.LessOrEqual(t, n.backend.reads, reads+1)
		p.expires = time.Time{}
		require.NoError(t, p.mount())
		pause(time.Minute)
		require.True(t, p.works(), "a fresh identity heals it")
	})
}

func TestCertificateAndPollDoNotDisturbEachOther(t *testing.T) {
	scene(t, func(t *testing.T, n *node) {
		b := n.backend
		b.roles[orders] = role{ttl: 20 * time.Second, max: time.Minute}
		b.roles["pki/issue/x"] = role{ttl: 24 * time.Hour, bare: true, fixed: true}
		b.roles["secret/data/a"] = role{kind: Polled}
		b.kv["secret/data/a"] = "one"
		p := n.pod("p", db("db", orders)+db("cert", "pki/issue/x")+kv("kv", "secret/data/a"))
		require.NoError(t, p.mount())
		cert := p.files()["cert-user"]
		mints := func() int { return b.mints["p "+orders] }
		for range 10 {
			pause(time.Minute)
			require.True(t, p.works())
		}
		require.Equal(t, cert, p.files()["cert-user"], "only what is due is replaced")
		require.Equal(t, 1, b.mints["p pki/issue/x"])
		require.InDelta(t, 11, mints(), 1)

		before := mints()
		b.mu.Lock()
		b.kv["secret/data/a"] = "two"
		b.mu.Unlock()
		for p.files()["kv"] != "two" {
			pause(time.Second)
		}
		require.LessOrEqual(t, mints(), before+3, "within two minutes and some, and it mints nothing by itself")
		require.Equal(t, cert, p.files()["cert-user"])
	})
}

// TestCertificateThatDoesNotFitLater: what lives is tried again all the same, and
// no identity is blamed.
func TestCertificateThatDoesNotFitLater(t *testing.T) {
	scene(t, func(t *testing.T, n *node) {
		p := n.withCert()
		p.expires = time.Now().Add(100 * time.Hour)
		require.NoError(t, p.mount())
		pause(14 * time.Hour)
		n.backend.set(func(_, _ string) error { return errTLS })
		pause(3 * time.Hour)
		require.Equal(t, Live, p.status().State)
		require.Contains(t, p.status().Leases[0].Problem, "unknown authority")
		n.backend.set(nil)
		pause(2 * time.Minute)
		require.Equal(t, 2, n.backend.minted("p "+cert), "soon after it is mended")
	})
}

func TestEndsStayOwed(t *testing.T) {
	scene(t, func(t *testing.T, n *node) {
		p := n.withOrders(time.Hour, 24*time.Hour)
		require.NoError(t, p.mount())
		n.backend.set(down)
		p.delete()
		pause(10 * time.Minute)
		require.Equal(t, 1, n.backend.count())
		require.Equal(t, 1, n.m.Status()[0].Owed)
		n.kill()
		n.start(0)
		n.backend.set(nil)
		pause(11 * time.Minute)
		require.Zero(t, n.backend.count())
		require.Empty(t, n.records)
	})
}

func TestRestartChangesNothing(t *testing.T) {
	scene(t, func(t *testing.T, n *node) {
		var pods []*pod
		n.backend.roles[orders] = role{ttl: time.Hour, max: 24 * time.Hour}
		for i := range 100 {
			p := n.pod(fmt.Sprint("p", i), db("db", orders))
			require.NoError(t, p.mount())
			pods = append(pods, p)
		}
		pause(10 * time.Minute)
		n.kill()
		gone := pods[0]
		gone.delete()
		logins, reads, writes := n.backend.logins, n.backend.reads, n.writes
		n.start(0)
		pause(5 * time.Second)
		require.LessOrEqual(t, n.backend.count(), 99, "a volume that ended meanwhile is ended after the start")
		// No Mount comes: the driver's rotation is off.
		for range 100 {
			pause(time.Minute)
			for _, p := range pods[1:] {
				require.True(t, p.works())
			}
		}
		require.Equal(t, logins, n.backend.logins)
		require.Equal(t, reads, n.backend.reads)
		require.Equal(t, writes, n.writes)
		require.GreaterOrEqual(t, n.backend.renewals, 2*2*99, "two renewals of every token and lease")
	})
}

// TestJournalThatCannotBeWritten refuses what is new, keeps what lives, and
// forgets nothing once there is room again.
func TestJournalThatCannotBeWritten(t *testing.T) {
	scene(t, func(t *testing.T, n *node) {
		p := n.withOrders(time.Hour, 24*time.Hour)
		require.NoError(t, p.mount())
		n.mu.Lock()
		n.saveErr = errors.New("no space left on device")
		n.mu.Unlock()
		logins, reads, renewals := n.backend.logins, n.backend.reads, n.backend.renewed()

		refused := n.pod("new", p.objects)
		var e *provider.Error
		require.ErrorAs(t, refused.mount(), &e)
		require.Equal(t, provider.Exhausted, e.Class)
		require.Contains(t, e.Error(), "writing the journal: no space left on device")
		require.Contains(t, e.Error(), "make room in the state directory")
		require.Equal(t, reads, n.backend.reads, "nothing is minted under a token that is not journaled")
		require.Positive(t, gauge(t, n.metrics, "tenure_journal_errors_total"))
		require.NoError(t, p.mount(), "a republish of a live volume never fails")
		for range 10 * 60 {
			pause(time.Minute)
			require.True(t, p.works())
		}
		require.GreaterOrEqual(t, n.backend.renewed()-renewals, 2*10, "token and lease are renewed")
		require.Equal(t, reads, n.backend.reads)
		require.LessOrEqual(t, n.backend.logins, logins+1)
		require.Equal(t, 1, n.backend.tokenCount(), "the refused Mount's token is ended")

		n.mu.Lock()
		n.saveErr = nil
		n.mu.Unlock()
		require.NoError(t, refused.mount())
		pause(time.Hour)
		n.kill()
		n.start(0)
		pause(time.Minute)
		require.True(t, p.works())
		require.True(t, refused.works())
		require.Equal(t, 2, n.backend.count())
	})
}
