package lease

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tenure-csi/tenure/provider"
)

// lend makes every login answer one token that is somebody's own.
func (b *backend) lend() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.lent = b.id("token")
	b.tokens[b.lent] = &fakeToken{made: time.Now(), expires: time.Now().Add(1000 * time.Hour)}
	return b.lent
}

// TestBorrowedTokenOutlivesItsLeases: replacements, an edit and the volume's end
// end every lease under somebody's own token, and never the token.
func TestBorrowedTokenOutlivesItsLeases(t *testing.T) {
	scene(t, func(t *testing.T, n *node) {
		token := n.backend.lend()
		p := n.withOrders(time.Hour, 3*time.Hour)
		require.NoError(t, p.mount())
		for range 12 * 60 {
			pause(time.Minute)
			require.NoError(t, p.mount())
			require.True(t, p.works())
			require.LessOrEqual(t, n.backend.count(), 2, "the present one and one in its overlap")
		}
		require.Greater(t, n.backend.minted("p "+orders), 3, "there were replacements")

		n.backend.roles["database/creds/other"] = role{ttl: time.Hour, max: 3 * time.Hour}
		p.objects = db("db", "database/creds/other")
		require.NoError(t, p.mount())
		pause(time.Hour)
		require.Equal(t, 1, n.backend.count())

		p.delete()
		pause(time.Minute)
		require.Zero(t, n.backend.count())
		require.Empty(t, n.m.Status(), "nothing is owed")
		require.True(t, n.backend.alive(token))
	})
}

// TestBorrowedTokenAfterARestart: the ends owed under a borrowed token are in the
// journal, and are tried until the backend takes them.
func TestBorrowedTokenAfterARestart(t *testing.T) {
	scene(t, func(t *testing.T, n *node) {
		token := n.backend.lend()
		p := n.withOrders(time.Hour, 24*time.Hour)
		require.NoError(t, p.mount())
		n.backend.set(func(op, _ string) error {
			if op == "end-lease" {
				return errDown
			}
			return nil
		})
		p.delete()
		pause(time.Minute)
		require.Equal(t, 1, n.m.Status()[0].Owed)
		n.kill()
		n.start(0)
		n.backend.set(nil)
		pause(15 * time.Minute)
		require.Zero(t, n.backend.count())
		require.Empty(t, n.m.Status())
		require.True(t, n.backend.alive(token))
	})
}

// TestBorrowedTokenThatDies: nothing can be ended under a dead token, and nothing stays owed.
func TestBorrowedTokenThatDies(t *testing.T) {
	scene(t, func(t *testing.T, n *node) {
		token := n.backend.lend()
		p := n.withOrders(time.Hour, 24*time.Hour)
		require.NoError(t, p.mount())
		n.backend.mu.Lock()
		n.backend.tokens[token].dead = true
		n.backend.mu.Unlock()
		p.delete()
		pause(time.Minute)
		require.Empty(t, n.m.Status())
	})
}

// TestBorrowedTokenOfAFailedMount: what the first of two reads made is ended when the volume never comes.
func TestBorrowedTokenOfAFailedMount(t *testing.T) {
	scene(t, func(t *testing.T, n *node) {
		token := n.backend.lend()
		p := n.withOrders(time.Hour, 24*time.Hour)
		p.objects += kv("kv", "secret/data/nothing")
		require.Error(t, p.mount())
		require.Equal(t, 1, n.backend.count())
		p.delete()
		pause(time.Minute)
		require.Zero(t, n.backend.count())
		require.Empty(t, n.m.Status())
		require.True(t, n.backend.alive(token))
	})
}

func (b *backend) borrowed() Session {
	return Session{Token: provider.Secret(b.lent), Accessor: "a-" + b.lent, Borrowed: true}
}
