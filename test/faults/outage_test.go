package faults

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tenure-csi/tenure/internal/lease"
	"github.com/tenure-csi/tenure/test/fixture"
)

// troubles are what can keep a lease from being renewed.
var troubles = []struct {
	name, text string // text: what the daemon says of it
	own        bool   // it needs a Vault of its own
	begin, end func(s *scene) error
}{
	{
		"Vault refuses connections", "the connection is refused", false,
		func(s *scene) error { s.vault.Down(); return nil }, func(s *scene) error { return s.vault.Up() },
	},
	{
		"Vault's answers are cut", "the connection broke", false,
		func(s *scene) error { s.vault.Set(fixture.Fault{Cut: true}); return nil }, func(s *scene) error { s.vault.Set(fixture.Fault{}); return nil },
	},
	{
		"Vault is killed", "the connection", true,
		func(s *scene) error { return s.stack.Vault.Kill() }, func(s *scene) error { return s.stack.Vault.Restart(s.t.Context()) },
	},
	{
		"Vault is sealed", "sealed", true,
		func(s *scene) error { return s.stack.Vault.Client().Sys().SealWithContext(s.t.Context()) },
		func(s *scene) error { return s.stack.Vault.Restart(s.t.Context()) },
	},
	{
		"PostgreSQL refuses connections", "Vault answers 400", false,
		func(s *scene) error { s.pg.Down(); return nil }, func(s *scene) error { return s.pg.Up() },
	},
}

// TestTroubleAtRenewal lets a trouble last from before a lease is due until its
// renewal has failed: nothing is issued, no file is touched, and it recovers. The
// lease is long enough to begin and end it between the renewal, at 72 to 84 s, and
// the hard deadline at 102 s.
func TestTroubleAtRenewal(t *testing.T) {
	t.Parallel()
	for _, tt := range troubles {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			st := stack
			if tt.own {
				st = ownVault(t)
			}
			s := sceneOn(t, st, fixture.ScopeOptions{TTL: 2 * time.Minute})
			s.start()
			v := s.mounted()
			before, mounted := files(t, v), time.Now()
			logins, reads := s.logins(), s.reads()
			require.NoError(t, tt.begin(s))
			s.eventually(3*time.Minute, func(c *assert.CollectT) { require.Contains(c, s.problem(c, v), tt.text) })
			require.Greater(t, time.Since(mounted), time.Minute, "it was not due before")
			require.NoError(t, tt.end(s))
			s.eventually(3*time.Minute, func(c *assert.CollectT) { require.Empty(c, s.problem(c, v)) })
			require.Equal(t, before, files(t, v))
			require.Equal(t, logins, s.logins())
			require.Equal(t, reads, s.reads())
			s.works(t, v)
			s.ends(v)
		})
	}
}

// TestFailedRenewalMintsNothingBeforeTheHardDeadline lets renewals fail for good.
// At 60 s the hard deadline is 9 s before the end.
func TestFailedRenewalMintsNothingBeforeTheHardDeadline(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, text string
		fail       func(s *scene) error
	}{
		{"refused", "permission denied", func(s *scene) error {
			return s.stack.Vault.Policy(s.t.Context(), s.Name, fixture.ReadPolicy(s.Creds)+`path "sys/leases/renew" { capabilities = ["deny"] }`)
		}},
		{"database down", "Vault answers 400", func(s *scene) error { s.pg.Down(); return nil }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newScene(t, fixture.ScopeOptions{TTL: time.Minute})
			s.start()
			begin := time.Now()
			v := s.mounted()
			require.NoError(t, tt.fail(s))
			s.eventually(3*time.Minute, func(c *assert.CollectT) { require.Contains(c, s.problem(c, v), tt.text) })
			s.eventually(3*time.Minute, func(c *assert.CollectT) { require.Len(c, s.readTimes(c), 2) })
			at := s.readTimes(t)
			require.GreaterOrEqual(t, at[1].Sub(begin), 50*time.Second)
			require.NoError(t, s.pg.Up())
			s.eventually(3*time.Minute, func(c *assert.CollectT) { s.works(c, v) })
			s.ends(v)
		})
	}
}

// TestVaultDownBeyondExpiry keeps Vault away until the lease is past its end.
func TestVaultDownBeyondExpiry(t *testing.T) {
	s := newScene(t, fixture.ScopeOptions{TTL: 20 * time.Second})
	s.start()
	v := s.mounted()
	before := files(t, v)
	s.vault.Down()
	s.eventually(3*time.Minute, func(c *assert.CollectT) {
		require.Equal(c, lease.Expired, s.statusCommand(c)[0].State)
		require.Equal(c, 1, s.metric(c, "tenure_leases_expired"))
	})
	require.Equal(t, before, files(t, v), "stale files are better than none")
	require.NoError(t, s.try(v), "a republish of a live volume never fails")
	require.Equal(t, before, files(t, v))
	s.settles(3*time.Minute, held{0, 0, 1}) // Vault has taken the credential back
	require.NoError(t, s.vault.Up())
	s.eventually(4*time.Minute, func(c *assert.CollectT) {
		s.works(c, v)
		require.Equal(c, lease.Live, s.statusCommand(c)[0].State)
		require.Zero(c, s.metric(c, "tenure_leases_expired"))
	})
	require.Equal(t, 2, s.reads(), "one mint after the recovery")
	require.Equal(t, 2, s.logins(), "with the identity of the republish")
	s.ends(v)
}

// statusCommand is what an operator sees.
func (s *scene) statusCommand(t require.TestingT) (all []lease.VolumeStatus) {
	out, err := s.d.Status(s.t.Context())
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(out, &all))
	require.NotEmpty(t, all)
	return all
}

// TestReplyLost cuts Vault's answer to a read after the user was made.
func TestReplyLost(t *testing.T) {
	s := newScene(t, fixture.ScopeOptions{})
	s.start()
	v := s.volume(s.objects(""))
	s.pg.Set(fixture.Fault{Delay: time.Hour}) // until it is let go of
	done := make(chan error, 1)
	go func() { done <- s.try(v) }()
	s.eventually(time.Minute, func(c *assert.CollectT) {
		require.Equal(c, 1, s.metric(c, `tenure_vault_requests_total{code="200",op="login"}`))
		require.Equal(c, 1, s.metric(c, "tenure_vault_requests_in_flight"))
	})
	s.vault.Set(fixture.Fault{Cut: true})
	s.pg.Set(fixture.Fault{})
	require.ErrorContains(t, <-done, "connection broke")
	s.vault.Set(fixture.Fault{})
	require.Equal(t, held{1, 1, 1}, s.count(t), "the user was made, and nobody heard of it")
	require.Equal(t, 1, s.metric(t, "tenure_orphaned_possible_total"))
	for range 3 {
		require.ErrorContains(t, s.try(v), "may have made a credential")
	}
	require.Equal(t, 1, s.reads(), "no second user in a loop")
	s.eventually(3*time.Minute, func(c *assert.CollectT) { require.NoError(c, s.try(v)) })
	at := s.readTimes(t)
	require.Len(t, at, 2)
	require.GreaterOrEqual(t, at[1].Sub(at[0]), 29*time.Second)
	require.Equal(t, 1, s.logins(), "in the same grant")
	s.works(t, v)
	s.ends(v) // with the user that nobody heard of
}
