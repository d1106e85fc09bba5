package faults

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tenure-csi/tenure/test/fixture"
)

// records are the journal's files, of volumes.
func records(s *scene) ([]string, error) {
	return filepath.Glob(filepath.Join(s.node.State, "*.json"))
}

// TestRestart kills the daemon under 100 volumes and starts it again. No Mount
// comes afterwards: the driver's rotation is off.
func TestRestart(t *testing.T) {
	const ttl, maxTTL = 40 * time.Second, 240 * time.Second // replaced 12 s before the end
	s := newScene(t, fixture.ScopeOptions{TTL: ttl, MaxTTL: maxTTL})
	s.start()
	vs := s.mountedAll(100, "")
	s.settles(3*time.Minute, held{100, 100, 100})
	logins, reads := s.logins(), s.reads()
	var before, users []string
	for _, v := range vs {
		user, _, err := pair(v)
		require.NoError(t, err)
		before, users = append(before, files(t, v)), append(users, user)
	}

	require.NoError(t, s.d.Kill())
	gone := vs[0]
	require.NoError(t, s.node.DeletePod(gone.Pod))
	vs, before, users = vs[1:], before[1:], users[1:]
	restarted := time.Now()
	require.NoError(t, s.d.Restart(t.Context()))
	s.settles(3*time.Minute, held{99, 99, 99}) // the one that ended meanwhile is ended now

	since := map[string]time.Time{}
	for id := range s.renewed(t) {
		since[id] = restarted
	}
	for range 2 { // renewals of every lease
		s.renewedSince(t, since, 3*ttl)
		since = s.renewed(t)
	}
	for i, v := range vs {
		require.Equal(t, before[i], files(t, v), "a restart and renewals touch no file")
	}
	require.Equal(t, logins, s.logins())
	require.Equal(t, reads, s.reads())

	// Then each is replaced, under the token that lives on.
	s.eventually(2*maxTTL, func(c *assert.CollectT) {
		for i, v := range vs {
			user, _, err := pair(v)
			require.NoError(c, err)
			require.NotEqual(c, users[i], user, v.Pod.UID)
		}
	})
	for _, v := range vs {
		s.works(t, v)
	}
	require.Equal(t, logins, s.logins())
	require.Equal(t, reads+99, s.reads())
	s.settles(3*time.Minute, held{99, 99, 99})
	s.ends(vs...)
}

// renewedSince waits until every lease was renewed after the time given for it.
func (s *scene) renewedSince(t *testing.T, since map[string]time.Time, limit time.Duration) {
	t.Helper()
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		now := s.renewed(c)
		for id, at := range since {
			require.Contains(c, now, id, "the lease is gone")
			require.True(c, now[id].After(at), "%s: renewed at %v, want after %v", id, now[id], at)
		}
	}, limit, 2*time.Second)
}

// TestTermination shows that SIGTERM takes nothing back.
func TestTermination(t *testing.T) {
	s := newScene(t, fixture.ScopeOptions{TTL: 20 * time.Second})
	s.start()
	v, w := s.mounted(), s.mounted()
	before := files(t, v)
	logins, reads := s.logins(), s.reads()
	require.NoError(t, s.d.Stop())
	require.Zero(t, s.d.ExitCode())
	require.Equal(t, held{2, 2, 2}, s.count(t))
	require.Equal(t, before, files(t, v))
	require.NoFileExists(t, s.socket())
	require.NoFileExists(t, filepath.Join(s.node.Providers, "tenure.sock"))
	s.works(t, v)

	require.NoError(t, s.d.Restart(t.Context()))
	since := map[string]time.Time{}
	for id := range s.renewed(t) {
		since[id] = time.Now()
	}
	s.renewedSince(t, since, 2*time.Minute)
	require.Equal(t, before, files(t, v))
	require.Equal(t, logins, s.logins())
	require.Equal(t, reads, s.reads())
	s.ends(v, w)
}

// TestTerminationWaitsForReads stops the daemon while Vault is making a user.
func TestTerminationWaitsForReads(t *testing.T) {
	t.Parallel()
	for name, patient := range map[string]bool{"the driver waits": true, "the driver has gone": false} {
		t.Run(name, func(t *testing.T) {
			s := newScene(t, fixture.ScopeOptions{})
			s.start()
			v := s.volume(s.objects(""))
			s.pg.Set(fixture.Fault{Delay: time.Hour}) // until it is let go of
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			done := make(chan error, 1)
			go func() {
				_, err := v.Mount(ctx)
				done <- err
			}()
			s.eventually(2*time.Minute, func(c *assert.CollectT) {
				require.Equal(c, 1, s.metric(c, `tenure_vault_requests_total{code="200",op="login"}`))
				require.Equal(c, 1, s.metric(c, "tenure_vault_requests_in_flight"))
			})
			if !patient {
				cancel()
				require.Error(t, <-done)
			}
			stopped := make(chan error, 1)
			go func() { stopped <- s.d.Stop() }()
			s.eventually(2*time.Minute, func(c *assert.CollectT) { require.Contains(c, s.d.Logs(), "stopping: no new mounts") })
			s.pg.Set(fixture.Fault{})
			require.NoError(t, <-stopped)
			require.Zero(t, s.d.ExitCode())
			require.Equal(t, 1, s.reads(), "it was waited for")
			if patient {
				require.NoError(t, <-done)
				s.works(t, v)
				require.Equal(t, held{1, 1, 1}, s.count(t))
			}
			require.NoError(t, s.d.Restart(t.Context()))
			if patient {
				require.Equal(t, 1, s.reads())
				s.works(t, v)
				s.ends(v)
			} else {
				s.settles(5*time.Minute, held{}) // nobody came back for it
			}
		})
	}
}

// TestCorruptRecord damages one volume's record between two starts.
func TestCorruptRecord(t *testing.T) {
	s := newScene(t, fixture.ScopeOptions{})
	s.start()
	hurt := s.mounted()
	recs, err := records(s)
	require.NoError(t, err)
	require.Len(t, recs, 1)
	well := s.mounted()
	require.NoError(t, s.d.Kill())
	require.NoError(t, os.WriteFile(recs[0], []byte(`{"schema":1,"id":`), 0o600))
	before := files(t, well)

	require.NoError(t, s.d.Restart(t.Context()))
	require.FileExists(t, recs[0]+".bad")
	require.Equal(t, 1, s.metric(t, "tenure_journal_records_damaged"))
	require.Equal(t, before, files(t, well))
	require.Equal(t, "live", s.status(t, well).State)
	s.works(t, hurt) // its files stay
	logins := s.logins()
	s.mount(well)
	require.Equal(t, logins, s.logins())
	s.mount(hurt) // begins anew
	s.works(t, hurt)
	third := s.mounted()
	for _, v := range []*fixture.Volume{hurt, well, third} {
		require.NoError(t, s.node.DeletePod(v.Pod))
	}
	s.settles(3*time.Minute, held{1, 1, 1})
	report.loss("token with its lease whose record was damaged", 1, 1)
}
