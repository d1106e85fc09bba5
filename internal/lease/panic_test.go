package lease

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tenure-csi/tenure/provider"
)

func TestPanicIsOneVolumesError(t *testing.T) {
	for _, call := range []string{"login", "read", "renew", "renew-token", "end"} {
		t.Run(call, func(t *testing.T) {
			scene(t, func(t *testing.T, n *node) {
				p := n.withOrders(time.Hour, 24*time.Hour)
				n.backend.set(func(op, _ string) error {
					if op == call {
						n.backend.mu.Unlock() // as the panicking call leaves it
						panic("secret")
					}
					return nil
				})
				err := p.mount()
				if call == "login" || call == "read" {
					require.ErrorContains(t, err, "a fault in Tenure itself")
				} else {
					require.NoError(t, err)
				}
				pause(mintGuard + 45*time.Minute) // renewals come due
				n.backend.set(nil)
				other := n.pod("other", db("db", orders))
				require.NoError(t, other.mount())
				require.NoError(t, p.mount())
				require.True(t, p.works())
				p.delete()
				other.delete()
				pause(time.Hour)
				require.Zero(t, n.backend.tokenCount())
			})
		})
	}
}

// explosive is data whose rendering panics.
type explosive struct{}

func (explosive) MarshalJSON() ([]byte, error) { panic("secret") }

// mined is a Source whose answers for one path are explosive.
type mined struct {
	Source
	path string
}

func (m *mined) Read(ctx context.Context, by Caller, s Session, r provider.Read) (Issued, error) {
	i, err := m.Source.Read(ctx, by, s, r)
	if r.Path == m.path {
		i.Secret.Data = map[string]any{"value": explosive{}}
	}
	return i, err
}

func TestPanicWhileRenderingLeavesNoFileOut(t *testing.T) {
	scene(t, func(t *testing.T, n *node) {
		n.backend.roles[orders] = role{ttl: time.Hour, max: 24 * time.Hour}
		n.backend.roles["kv/a"] = role{kind: Polled}
		p := n.pod("p", db("db", orders)+kv("a", "kv/a"))
		m := &mined{n.m.Sources["vault"], "kv/a"}
		n.m.Sources["vault"] = m
		for range 3 {
			require.ErrorContains(t, p.mount(), "a fault in Tenure itself")
		}
		m.path = ""
		require.NoError(t, p.mount())
		require.Len(t, p.files(), 3)
		require.Equal(t, 1, n.backend.mints["p "+orders], "what was issued is used")
	})
}
