package integration

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tenure-csi/tenure/internal/lease"
	"github.com/tenure-csi/tenure/test/fixture"
)

// TestOldIdentityLivingToken mounts with a service account token that expires
// soon and is not followed by another: the driver's rotation is off. What ends is
// issued again under the Vault token that the volume still has.
func TestOldIdentityLivingToken(t *testing.T) {
	t.Parallel()
	s := newSite(t, fixture.ScopeOptions{TTL: 10 * time.Second, MaxTTL: 20 * time.Second})
	v := s.volume(t, s.db("db"))
	v.TokenTTL = 10 * time.Second
	mount(t, v)
	users := map[string]bool{}
	require.NoError(t, fixture.Eventually(within(t, 2*time.Minute), 3, func(context.Context) (int, error) {
		user, _ := logIn(t, 2*time.Second, func() (string, string) { return readService(t, v) })
		users[user] = true
		return len(users), nil
	}))
	s.requireAsked(t, 1, 3)
	said, err := s.status(t.Context(), v)
	require.NoError(t, err)
	require.Equal(t, lease.Live, said.State)
	s.requireHeld(t, 1, 1)
}

// TestOldIdentity is the same where Vault's token ends after a minute.
func TestOldIdentity(t *testing.T) {
	t.Parallel()
	s := newSite(t, fixture.ScopeOptions{
		TTL: 20 * time.Second, MaxTTL: time.Hour, Auth: fixture.AuthRole{TTL: time.Minute, Max: time.Minute},
	})
	v := s.volume(t, s.db("db"))
	v.TokenTTL = 10 * time.Second
	begin := time.Now()
	mount(t, v)
	values := service(read(t, v, "db"))
	works := func() error { return stack.Postgres.Login(t.Context(), values["user"], values["password"]) }

	var said lease.VolumeStatus
	require.NoError(t, fixture.Eventually(within(t, 2*time.Minute), lease.NeedsIdentity, func(ctx context.Context) (_ string, err error) {
		require.NoError(t, works(), "after %v", time.Since(begin))
		said, err = s.status(ctx, v)
		return said.State, err
	}))
	warned := time.Since(begin)
	require.Greater(t, time.Until(said.Leases[0].Next), time.Duration(0), "it is told before the replacement is tried")
	require.Contains(t, said.Problem, `audience "vault" expired at 20`)
	require.Contains(t, said.Problem, "see that the driver runs with enableSecretRotation: true")
	for time.Since(begin) < 50*time.Second {
		require.NoError(t, works(), "after %v", time.Since(begin))
		<-time.After(100 * time.Millisecond)
	}
	require.Equal(t, values, service(read(t, v, "db")), "the files keep")
	require.NoError(t, fixture.Eventually(within(t, time.Minute), 0, s.Users), "the lease dies with its token")
	require.Equal(t, values, service(read(t, v, "db")), "stale is better than absent")

	v.TokenTTL = time.Hour
	republished := time.Now()
	mount(t, v)
	require.NoError(t, fixture.Eventually(within(t, time.Minute), true, func(context.Context) (bool, error) {
		now := service(read(t, v, "db"))
		return now["user"] != values["user"], stack.Postgres.Login(t.Context(), now["user"], now["password"])
	}), "the next republish heals")
	figures.note(t, "old identity: needs-identity after %v of the token's minute, healed %v after the republish", warned.Round(time.Second), time.Since(republished).Round(time.Millisecond))
	require.NoError(t, fixture.Eventually(within(t, time.Minute), lease.Live, func(ctx context.Context) (string, error) {
		said, err := s.status(ctx, v)
		return said.State, err
	}))
	s.requireAsked(t, 2, 2)
	s.requireHeld(t, 1, 1)
}
