package faults

import (
	"bufio"
	"context"
	"crypto/rand"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/tenure-csi/tenure/internal/admin"
	"github.com/tenure-csi/tenure/internal/lease"
	"github.com/tenure-csi/tenure/test/fixture"
)

// scene is a test's own node, login and database role, with a network that can
// fail between the daemon and Vault, and between Vault and PostgreSQL.
type scene struct {
	*fixture.Scope
	t         *testing.T
	stack     *fixture.Stack
	node      *fixture.Node
	vault, pg *fixture.Proxy
	d         *fixture.Daemon
}

// newScene makes a scene on the shared stack and lets it run beside others.
func newScene(t *testing.T, o fixture.ScopeOptions) *scene {
	t.Helper()
	t.Parallel()
	return sceneOn(t, stack, o)
}

func sceneOn(t *testing.T, st *fixture.Stack, o fixture.ScopeOptions) *scene {
	t.Helper()
	report.Note(t, t.Name())
	s := &scene{
		t: t, stack: st, node: fixture.NodeFor(t, fixture.NodeOptions{Issuer: st.Issuer, Mounts: os.Getuid() == 0}),
		vault: fixture.ProxyFor(t, st.Vault.Addr), pg: fixture.ProxyFor(t, st.Postgres.Addr),
	}
	o.PostgresAddr = s.pg.Addr()
	s.Scope = fixture.Scoped(t, st, o)
	return s
}

// ownVault is a stack whose Vault may be killed and sealed.
func ownVault(t *testing.T) *fixture.Stack {
	t.Helper()
	v, err := fixture.StartVault(t.Context(), fixture.VaultOptions{})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, v.Stop()) })
	return &fixture.Stack{Vault: v, Postgres: stack.Postgres, Issuer: stack.Issuer}
}

// start runs the real daemon.
func (s *scene) start(args ...string) {
	s.t.Helper()
	s.run(fixture.DaemonOptions{Args: args})
}

func (s *scene) run(o fixture.DaemonOptions) {
	s.t.Helper()
	o.Node, o.VaultAddr = s.node, s.vault.URL()
	d := fixture.DaemonFor(s.t, o)
	s.d = d
	s.node.Reconnect()
	s.t.Cleanup(func() {
		if s.t.Failed() {
			s.t.Log(d.Logs())
		}
	})
}

// object is an object of the database credential; more holds further fields.
func (s *scene) object(name, key, more string) string {
	return fmt.Sprintf("- {objectName: %s, secretPath: %s, secretKey: %s%s}\n", name, s.Creds, key, more)
}

// objects are a user and its password, of one read.
func (s *scene) objects(more string) string {
	return s.object("user", "username", more) + s.object("password", "password", more)
}

// volume describes a volume of a new pod.
func (s *scene) volume(objects string) *fixture.Volume {
	s.t.Helper()
	id := strings.ToLower(rand.Text())
	v, err := s.node.Volume(fixture.Pod{Namespace: "shop", Name: "app-" + id[:5], UID: id, ServiceAccount: "app"}, "creds", s.SPC(objects), nil)
	require.NoError(s.t, err)
	return v
}

// mounted is a volume with a database credential in it.
func (s *scene) mounted() *fixture.Volume {
	s.t.Helper()
	v := s.volume(s.objects(""))
	s.mount(v)
	return v
}

// mountedAll are so many volumes like mounted, with further fields of the objects.
// They are mounted a few at a time, and again where Vault was too busy to answer, as
// kubelet does: how fast so many users are made is no matter here.
func (s *scene) mountedAll(n int, more string) []*fixture.Volume {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), 10*time.Minute)
	defer cancel()
	vs := make([]*fixture.Volume, n)
	var mounts errgroup.Group
	mounts.SetLimit(8)
	for i := range vs {
		v := s.volume(s.objects(more))
		vs[i] = v
		mounts.Go(func() error {
			return fixture.Eventually(ctx, true, func(context.Context) (bool, error) {
				err := s.try(v)
				return err == nil, err
			})
		})
	}
	require.NoError(s.t, mounts.Wait())
	return vs
}

func (s *scene) mount(v *fixture.Volume) {
	s.t.Helper()
	require.NoError(s.t, s.try(v))
}

// try is a Mount with kubelet's patience.
func (s *scene) try(v *fixture.Volume) error {
	ctx, cancel := context.WithTimeout(s.t.Context(), 2*time.Minute)
	defer cancel()
	_, err := v.Mount(ctx)
	return err
}

// pair reads user and password of one generation.
func pair(v *fixture.Volume) (user, password string, err error) {
	dir, err := os.OpenRoot(filepath.Join(v.Target, "..data"))
	if err != nil {
		return "", "", err
	}
	defer dir.Close()
	u, err := dir.ReadFile("user")
	if err != nil {
		return "", "", err
	}
	p, err := dir.ReadFile("password")
	return string(u), string(p), err
}

// works logs in at PostgreSQL with what is in the pod's files.
func (s *scene) works(t require.TestingT, v *fixture.Volume) { require.NoError(t, s.login(v)) }

func (s *scene) login(v *fixture.Volume) error {
	user, password, err := pair(v)
	if err != nil {
		return err
	}
	return s.stack.Postgres.Login(s.t.Context(), user, password)
}

// eventually looks until check finds nothing wrong.
func (s *scene) eventually(limit time.Duration, check func(c *assert.CollectT)) {
	s.t.Helper()
	require.EventuallyWithT(s.t, check, limit, 200*time.Millisecond)
}

// held is how much of the scope lives.
type held struct{ leases, users, tokens int }

func (s *scene) count(t require.TestingT) (h held) {
	var err error
	h.leases, err = s.Leases(s.t.Context())
	require.NoError(t, err)
	h.users, err = s.Users(s.t.Context())
	require.NoError(t, err)
	h.tokens, err = s.Tokens(s.t.Context())
	require.NoError(t, err)
	return h
}

// settles waits until exactly so much lives.
func (s *scene) settles(limit time.Duration, want held) {
	s.t.Helper()
	s.eventually(limit, func(c *assert.CollectT) { require.Equal(c, want, s.count(c)) })
}

// ends deletes the pods and waits until nothing of the scope lives.
func (s *scene) ends(vs ...*fixture.Volume) {
	s.t.Helper()
	for _, v := range vs {
		require.NoError(s.t, s.node.DeletePod(v.Pod))
	}
	s.settles(5*time.Minute, held{})
}

func (s *scene) reads() int {
	s.t.Helper()
	n, err := s.Reads()
	require.NoError(s.t, err)
	return n
}

func (s *scene) logins() int {
	s.t.Helper()
	n, err := s.Logins()
	require.NoError(s.t, err)
	return n
}

// readTimes is when Vault answered reads of the credential, refused ones included.
func (s *scene) readTimes(t require.TestingT) (at []time.Time) {
	all, err := s.stack.Vault.Audit()
	require.NoError(t, err)
	for _, a := range all {
		if a.Path == s.Creds && a.Operation == "read" {
			when, err := time.Parse(time.RFC3339Nano, a.Time)
			require.NoError(t, err)
			at = append(at, when)
		}
	}
	return at
}

// renewed is when each lease of the scope was last renewed; zero: never.
func (s *scene) renewed(t require.TestingT) map[string]time.Time {
	ids, err := s.stack.Vault.Leases(s.t.Context(), s.Creds)
	require.NoError(t, err)
	at := map[string]time.Time{}
	for _, id := range ids {
		l, err := s.stack.Vault.Client().Logical().WriteWithContext(s.t.Context(), "sys/leases/lookup", map[string]any{"lease_id": id})
		require.NoError(t, err)
		at[id] = time.Time{}
		if text, ok := l.Data["last_renewal"].(string); ok {
			at[id], err = time.Parse(time.RFC3339Nano, text)
			require.NoError(t, err)
		}
	}
	return at
}

func (s *scene) socket() string { return filepath.Join(s.node.State, "status.sock") }

// status is what the daemon says of a volume.
func (s *scene) status(t require.TestingT, v *fixture.Volume) lease.VolumeStatus {
	var all []lease.VolumeStatus
	require.NoError(t, admin.Fetch(s.t.Context(), s.socket(), &all))
	for _, one := range all {
		if one.PodUID == v.Pod.UID {
			return one
		}
	}
	require.Fail(t, "the daemon does not know the volume")
	return lease.VolumeStatus{}
}

// problem is what goes wrong with the volume's one lease, as the daemon says it.
func (s *scene) problem(t require.TestingT, v *fixture.Volume) string {
	st := s.status(t, v)
	require.Len(t, st.Leases, 1)
	return st.Leases[0].Problem
}

// metrics is the text of the daemon's metrics.
func (s *scene) metrics(t require.TestingT) string {
	req, err := http.NewRequestWithContext(s.t.Context(), http.MethodGet, s.d.Health+"/metrics", nil)
	require.NoError(t, err)
	req.Close = true
	resp, err := http.DefaultClient.Do(req)
	require.NoError(t, err)
	defer resp.Body.Close()
	var text strings.Builder
	_, err = bufio.NewReader(resp.Body).WriteTo(&text)
	require.NoError(t, err)
	return text.String()
}

// metric adds up the samples whose lines begin with prefix.
func (s *scene) metric(t require.TestingT, prefix string) (sum int) {
	for line := range strings.Lines(s.metrics(t)) {
		if strings.HasPrefix(line, prefix) {
			f := strings.Fields(line)
			n, err := strconv.ParseFloat(f[len(f)-1], 64)
			require.NoError(t, err)
			sum += int(n)
		}
	}
	return sum
}

// files is all that can be seen of a volume's files from outside: a rewrite or a
// swap, even of equal bytes, changes it.
func files(t *testing.T, v *fixture.Volume) string {
	t.Helper()
	var all strings.Builder
	require.NoError(t, filepath.WalkDir(v.Target, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st syscall.Stat_t
		if err := syscall.Lstat(path, &st); err != nil {
			return err
		}
		to, _ := os.Readlink(path)
		var data []byte
		if st.Mode&syscall.S_IFMT == syscall.S_IFREG {
			if data, err = os.ReadFile(path); err != nil {
				return err
			}
		}
		fmt.Fprintln(&all, path, st.Ino, st.Mode, st.Mtim, st.Ctim, to, string(data))
		return nil
	}))
	return all.String()
}
