package faults

import (
	"context"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tenure-csi/tenure/test/fixture"
)

// steps are the points of a swap, see volume.Writer.Step.
var steps = []string{"opened", "swept", "file", "filled", "staged", "linked", "swapped", "trimmed", "done"}

// lives are what a volume goes through when the daemon is killed.
var lives = []struct {
	name string
	live func(k *killed)
}{
	{"first mount", (*killed).first},
	{"replaced in a new grant", (*killed).rotated},
	{"replaced under the living token", (*killed).rotated},
	{"SPC edited", (*killed).edited},
	{"pod deleted", (*killed).deleted},
}

// killed is one life and the point at which it is cut.
type killed struct {
	*scene
	fate
	v              *fixture.Volume
	user, password string // before the replacement
}

// points are the fates of a life.
func points(life string) (all []fate) {
	n := 2
	switch life {
	case "pod deleted":
		return []fate{
			{Point: "save ended", N: 1},
			{Point: "save ended", N: 1, After: true},
			{Point: "end grant", N: 1},
			{Point: "end grant", N: 1, After: true},
			{Point: "remove", N: 1},
			{Point: "remove", N: 1, After: true},
		}
	case "SPC edited":
		return []fate{{Point: "read", N: 2, After: true}, {Point: "end lease", N: 1}, {Point: "end lease", N: 1, After: true}}
	case "first mount":
		n = 1
	}
	if life != "replaced under the living token" {
		all = append(all, fate{Point: "login", N: n}, fate{Point: "login", N: n, After: true}, fate{Point: "save granted", N: n, After: true})
	}
	all = append(all, fate{Point: "read", N: n, After: true}, fate{Point: "save minted", N: n, After: true}, fate{Point: "save pending", N: n, After: true})
	for _, step := range steps {
		all = append(all, fate{Point: "step " + step, N: n})
	}
	all = append(all, fate{Point: "save adopted", N: n, After: true})
	if life == "replaced in a new grant" {
		all = append(all, fate{Point: "end grant", N: 1}, fate{Point: "end grant", N: 1, After: true})
	}
	return all
}

// TestKill kills the daemon between any two effects of a volume's life and
// starts it again: nothing may be left over, and no file may be mixed. The
// exceptions are named where they are counted.
func TestKill(t *testing.T) {
	t.Parallel()
	for _, life := range lives {
		for _, f := range points(life.name) {
			when := "before "
			if f.After {
				when = "after "
			}
			t.Run(life.name+"/"+when+f.Point, func(t *testing.T) {
				k := &killed{fate: f}
				o := fixture.ScopeOptions{}
				if k.tokenLost() {
					o.Auth = fixture.AuthRole{TTL: 2 * time.Minute, Max: 24 * time.Hour}
				}
				k.TTL = time.Hour
				if life.name == "SPC edited" && f.Point == "read" {
					o.TTL, k.TTL = time.Minute, time.Minute
				}
				replaced := life.name == lives[1].name || life.name == lives[2].name
				if replaced {
					o.TTL, o.MaxTTL = 10*time.Second, 10*time.Second // until the second read
				}
				if life.name == lives[2].name && f.Point == "read" {
					k.TTL = time.Minute
				}
				k.scene = newScene(t, o)
				if replaced {
					k.Lengthen = k.Creds
				}
				k.v = k.volume(k.objects(", overlap: 2s"))
				if life.name == lives[2].name {
					k.v.TokenTTL = 6 * time.Second
				}
				self, err := os.Executable()
				require.NoError(t, err)
				k.run(fixture.DaemonOptions{Binary: self, Env: k.env()})
				life.live(k)
			})
		}
	}
}

// tokenLost is the one place where a token is answered that nothing records: it
// has no leases, and lives to its TTL.
func (k *killed) tokenLost() bool { return k.Point == "login" && k.After }

// leaseLost is a lease answered under a token that lives on, and not recorded:
// nobody renews it.
func (k *killed) leaseLost() bool {
	return k.Point == "read" && k.After && k.TTL < time.Hour
}

func (k *killed) first() {
	k.cut(k.v)
	k.survived()
}

func (k *killed) rotated() {
	k.mount(k.v)
	k.remember()
	k.survived()
}

func (k *killed) edited() {
	k.mount(k.v)
	k.remember()
	k.v.Attributes["objects"] = k.objects(", overlap: 1s, filePermission: 0600")
	if k.Point == "read" {
		k.cut(k.v)
	} else {
		k.mount(k.v)
	}
	k.survived()
}

func (k *killed) deleted() {
	k.mount(k.v)
	require.NoError(k.t, k.node.DeletePod(k.v.Pod))
	k.dead()
	k.start()
	k.settles(5*time.Minute, held{})
	k.journalEmpty()
}

func (k *killed) remember() {
	var err error
	k.user, k.password, err = pair(k.v)
	require.NoError(k.t, err)
}

// cut sends Mounts that the daemon does not live to answer; the driver would wait
// for the next daemon, for as long as kubelet lets it.
func (s *scene) cut(vs ...*fixture.Volume) {
	s.t.Helper()
	ctx, cancel := context.WithCancel(s.t.Context())
	defer cancel()
	var mounts sync.WaitGroup
	for _, v := range vs {
		mounts.Go(func() { _, _ = v.Mount(ctx) })
	}
	s.dead()
	cancel()
	mounts.Wait()
}

func (s *scene) dead() {
	s.t.Helper()
	s.eventually(3*time.Minute, func(c *assert.CollectT) { require.False(c, s.d.Running(), "the daemon should have died") })
}

// whole checks that the files are of one read: the old one or one that works.
func (k *killed) whole() {
	user, password, err := pair(k.v)
	require.NoError(k.t, err)
	if user == k.user {
		require.Equal(k.t, k.password, password, "user and password of different leases")
		return
	}
	require.NoError(k.t, k.stack.Postgres.Login(k.t.Context(), user, password))
}

// survived starts the real daemon after the kill and checks what is left.
func (k *killed) survived() {
	k.dead()
	if k.user != "" {
		k.whole()
	}
	k.start()
	if k.user != "" {
		k.whole()
	}
	if k.v.TokenTTL > time.Minute {
		k.mount(k.v) // kubelet's retry, or the driver's republish: it brings an identity
		k.whole()
	}
	want := held{1, 1, 1}
	if k.leaseLost() {
		k.eventually(time.Minute, func(c *assert.CollectT) { require.GreaterOrEqual(c, k.count(c).leases, 2) })
		report.loss("lease answered under a living token and not yet journaled, gone after its TTL", 1, 1)
	}
	k.settles(4*time.Minute, k.withLost(want))
	k.works(k.t, k.v)
	require.NoError(k.t, k.node.DeletePod(k.v.Pod))
	k.settles(5*time.Minute, k.withLost(held{}))
	k.journalEmpty()
	if k.tokenLost() {
		report.loss("token answered and not yet journaled, without leases, gone after its TTL", 1, 1)
		k.settles(5*time.Minute, held{})
	}
}

// withLost adds the token that nobody knows of.
func (k *killed) withLost(h held) held {
	if k.tokenLost() {
		h.tokens++
	}
	return h
}

func (k *killed) journalEmpty() {
	k.eventually(2*time.Minute, func(c *assert.CollectT) {
		left, err := records(k.scene)
		require.NoError(c, err)
		require.Empty(c, left)
	})
}

// TestKillWithReadsInFlight kills the daemon while Vault is making users. What is
// left of them nobody can know: a user works until VALID UNTIL at the most.
func TestKillWithReadsInFlight(t *testing.T) {
	t.Parallel()
	const volumes, ttl = 8, 10 * time.Second
	for _, later := range []time.Duration{1 * time.Millisecond, 10 * time.Millisecond, 20 * time.Millisecond, 40 * time.Millisecond} {
		t.Run(later.String(), func(t *testing.T) {
			s := newScene(t, fixture.ScopeOptions{TTL: ttl})
			self, err := os.Executable()
			require.NoError(t, err)
			f := fate{Point: "read", N: volumes, Later: later}
			s.run(fixture.DaemonOptions{Binary: self, Env: f.env()})
			vs := make([]*fixture.Volume, volumes)
			for i := range vs {
				vs[i] = s.volume(s.objects(""))
			}
			s.cut(vs...)
			s.start()
			for _, v := range vs {
				require.NoError(t, s.node.DeletePod(v.Pod))
			}
			s.eventually(3*time.Minute, func(c *assert.CollectT) {
				require.Zero(c, s.count(c).tokens)
				require.Zero(c, s.usable(c), "users that still work")
			})
			left, err := s.Users(t.Context())
			require.NoError(t, err)
			require.LessOrEqual(t, left, volumes)
			report.loss("user whose read was in flight, of no use after VALID UNTIL", left, volumes)
		})
	}
}

// usable is how many users of the scope PostgreSQL still lets in.
func (s *scene) usable(t require.TestingT) (n int) {
	conn, err := s.stack.Postgres.Admin(s.t.Context())
	require.NoError(t, err)
	defer func() { _ = conn.Close(s.t.Context()) }()
	rows, err := conn.Query(s.t.Context(), `SELECT count(*) FROM pg_roles WHERE rolname LIKE '%-' || $1 || '-%' AND rolvaliduntil > now()`, s.Name)
	require.NoError(t, err)
	n, err = pgx.CollectOneRow(rows, pgx.RowTo[int])
	require.NoError(t, err)
	return n
}
