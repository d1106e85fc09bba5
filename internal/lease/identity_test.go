package lease

import (
	"bytes"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/tenure-csi/tenure/provider"
)

// TestRefusedSecretIsNotSentAtEveryRepublish: a login by Secret is refused, and the
// driver republishes the same Secret every minute, then another.
func TestRefusedSecretIsNotSentAtEveryRepublish(t *testing.T) {
	scene(t, func(t *testing.T, n *node) {
		n.backend.auth = role{ttl: 20 * time.Minute, max: 20 * time.Minute, fixed: true}
		p := n.withOrders(time.Hour, 24*time.Hour)
		p.expires = time.Now().Add(24 * time.Hour)
		p.secrets = map[string]provider.Secret{"secret_id": "used up"}
		require.NoError(t, p.mount())
		var tries atomic.Int32
		n.backend.set(func(op, _ string) error {
			if op == "login" {
				tries.Add(1)
				return broken(provider.Denied, "invalid role or secret ID", Wrong, false)
			}
			return nil
		})
		for range 19 {
			pause(time.Minute)
			require.NoError(t, p.mount())
		}
		require.Equal(t, NeedsIdentity, p.status().State)
		require.EqualValues(t, 1, tries.Load())
		pause(16 * time.Minute)
		require.InDelta(t, 2.5, tries.Load(), 0.5, "the role may have changed, and the credential ended")
		n.backend.set(nil)
		p.secrets = map[string]provider.Secret{"secret_id": "new"}
		require.NoError(t, p.mount())
		pause(time.Second)
		require.True(t, p.works())
		require.Equal(t, Live, p.status().State)
	})
}

const cert = "pki/issue/x"

// withCert is a pod whose certificate lives for a day, under a token of an hour.
func (n *node) withCert() *pod {
	n.backend.auth = role{ttl: time.Hour, max: time.Hour, fixed: true}
	n.backend.roles[cert] = role{ttl: 24 * time.Hour, bare: true, fixed: true}
	return n.pod("p", db("cert", cert))
}

// inState counts the volumes that the metric shows in a state.
func (n *node) inState(t *testing.T, state string) int {
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(newCollector(n.m))
	families, err := registry.Gather()
	require.NoError(t, err)
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if f.GetName() == "tenure_volumes" && m.GetLabel()[0].GetValue() == state {
				return int(m.GetGauge().GetValue())
			}
		}
	}
	return -1
}

// TestMissingIdentityIsForeseen: what can't be replaced is told at half of its
// life, by status, metric and log, while there is time to mend it.
func TestMissingIdentityIsForeseen(t *testing.T) {
	scene(t, func(t *testing.T, n *node) {
		var log bytes.Buffer
		n.stop()
		n.log = &log
		n.start(0)
		p := n.withCert()
		require.NoError(t, p.mount()) // the driver's rotation is off: no other follows
		pause(12*time.Hour - time.Second)
		require.Equal(t, Live, p.status().State)
		pause(2 * time.Second)
		require.Equal(t, NeedsIdentity, p.status().State)
		require.Equal(t, 1, n.inState(t, NeedsIdentity))
		require.Contains(t, p.status().Problem, `object "cert-user", field "audience": the pod's service account token for audience "vault" expired at`)
		require.Contains(t, p.status().Problem, "enableSecretRotation: true")
		require.Equal(t, 1, strings.Count(log.String(), "no usable identity"))
		require.Equal(t, 1, n.backend.logins)
		require.True(t, p.works())

		require.NoError(t, p.mount())
		require.Equal(t, Live, p.status().State)
		pause(59 * time.Minute)
		require.Equal(t, Live, p.status().State, "what the token in hand can do once more is open: the driver has come again")
		pause(2 * time.Minute)
		require.Equal(t, NeedsIdentity, p.status().State, "and has stopped")
		require.Equal(t, 1, n.backend.minted("p "+cert))
	})
}

// TestCrowdWithoutIdentityWaitsForHalfItsLife: a turn that comes early is no reason
// to complain early.
func TestCrowdWithoutIdentityWaitsForHalfItsLife(t *testing.T) {
	scene(t, func(t *testing.T, n *node) {
		n.withCert()
		n.backend.auth = role{ttl: 2 * time.Minute, max: 2 * time.Minute, fixed: true}
		var names []string
		for i := range 20 {
			names = append(names, fmt.Sprintf("t-%02d", i))
		}
		n.serve(n.backend.roles[cert], names...)
		p := n.pool("[" + strings.Join(names, ", ") + "]")
		p.expires = time.Now().Add(2 * time.Minute)
		require.NoError(t, p.mount())
		pause(12*time.Hour - time.Minute)
		require.Equal(t, Live, p.status().State)
		require.Equal(t, 20, n.asked())
		pause(2 * time.Minute)
		require.Equal(t, NeedsIdentity, p.status().State)
		p.expires = time.Time{}
		require.NoError(t, p.mount())
		pause(time.Minute)
		require.Equal(t, Live, p.status().State)
		require.Greater(t, n.asked(), 20)
	})
}

func TestIdentityThatComesInTimeIsNotMissed(t *testing.T) {
	for _, row := range []struct {
		name  string
		setUp func(n *node, p *pod)
		every bool // republish
	}{
		{"the driver republishes", func(*node, *pod) {}, true},
		{"the pod's token outlives the replacement", func(_ *node, p *pod) { p.expires = time.Now().Add(17 * time.Hour) }, false},
		{"the living token does", func(n *node, _ *pod) { n.backend.auth = role{ttl: time.Hour, max: 1000 * time.Hour} }, false},
		{"every login answers somebody's own token", func(n *node, _ *pod) { n.backend.lend() }, false},
	} {
		t.Run(row.name, func(t *testing.T) {
			scene(t, func(t *testing.T, n *node) {
				p := n.withCert()
				row.setUp(n, p)
				require.NoError(t, p.mount())
				until := time.Now().Add(14 * time.Hour)
				for time.Now().Before(until) {
					if row.every {
						require.NoError(t, p.mount())
					}
					pause(75 * time.Second)
					require.Equal(t, Live, p.status().State)
				}
			})
		})
	}
}

// TestRestartWaitsForARepublish: identities are not journaled, and with the
// driver's rotation on each comes back in a while.
func TestRestartWaitsForARepublish(t *testing.T) {
	for name, comes := range map[string]bool{"it comes": true, "it does not": false} {
		t.Run(name, func(t *testing.T) {
			scene(t, func(t *testing.T, n *node) {
				p := n.withCert()
				p.expires = time.Now().Add(100 * time.Hour)
				require.NoError(t, p.mount())
				pause(13 * time.Hour)
				n.kill()
				n.start(0)
				pause(republishWithin - time.Second)
				require.Equal(t, Live, p.status().State)
				if comes {
					require.NoError(t, p.mount())
				}
				pause(2 * time.Second)
				if comes {
					require.Equal(t, Live, p.status().State)
					return
				}
				require.Equal(t, NeedsIdentity, p.status().State)
				require.Contains(t, p.status().Problem, "did not come with the Mount call")
			})
		})
	}
}

// TestForeseenEndOfAToken: leases die with a token whose end is known.
func TestForeseenEndOfAToken(t *testing.T) {
	scene(t, func(t *testing.T, n *node) {
		n.backend.auth = role{ttl: 3 * time.Hour, max: 3 * time.Hour, fixed: true}
		p := n.withOrders(time.Hour, 24*time.Hour)
		require.NoError(t, p.mount())
		for p.status().State == Live {
			pause(time.Minute)
		}
		require.Equal(t, NeedsIdentity, p.status().State)
		l := p.lease()
		require.Equal(t, TokenEnd, l.Next)
		half := l.Issued.Add(p.status().Leases[0].Expires.Sub(l.Issued) / 2)
		require.WithinDuration(t, earlier(half, l.Due), time.Now(), time.Minute, "at half of what is left, or when the replacement is tried")
		require.True(t, p.works())
	})
}
