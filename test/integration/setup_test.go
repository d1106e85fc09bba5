package integration

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	driver "sigs.k8s.io/secrets-store-csi-driver/pkg/secrets-store"
	"sigs.k8s.io/secrets-store-csi-driver/provider/v1alpha1"

	"github.com/tenure-csi/tenure/internal/lease"
	"github.com/tenure-csi/tenure/test/fixture"
)

// site is one test's own node with a daemon, and its own corner of Vault.
type site struct {
	*fixture.Scope
	node   *fixture.Node
	daemon *fixture.Daemon
}

func newSite(t *testing.T, o fixture.ScopeOptions, flags ...string) *site {
	t.Helper()
	return siteAt(t, stack.Vault.Addr, o, flags...)
}

// siteAt is newSite with Vault's address as the daemon knows it.
func siteAt(t *testing.T, vault string, o fixture.ScopeOptions, flags ...string) *site {
	t.Helper()
	s := &site{Scope: fixture.Scoped(t, stack, o)}
	s.node = fixture.NodeFor(t, fixture.NodeOptions{Issuer: stack.Issuer, Mounts: os.Getuid() == 0})
	s.daemon = fixture.DaemonFor(t, fixture.DaemonOptions{Node: s.node, VaultAddr: vault, Args: flags})
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(s.daemon.Logs())
		}
	})
	return s
}

// allow lets the site's login read and write the paths too.
func (s *site) allow(t *testing.T, paths ...string) {
	t.Helper()
	rules := fixture.ReadPolicy(append(paths, s.Creds, s.KV+"/*")...)
	require.NoError(t, stack.Vault.Policy(t.Context(), s.Name, rules))
}

// versioned makes the site a key-value engine with versions and answers its mount.
func (s *site) versioned(t *testing.T) string {
	t.Helper()
	mount := "kv2-" + s.Name
	require.NoError(t, stack.Vault.EnableKV2(t.Context(), mount))
	return mount
}

// certificates makes the site a PKI engine and answers the path that issues.
func (s *site) certificates(t *testing.T, leases bool) string {
	t.Helper()
	mount := "pki-" + s.Name
	require.NoError(t, stack.Vault.EnablePKI(t.Context(), mount, "web", "example.com", leases))
	return mount + "/issue/web"
}

// db is an object with a database credential as a file that libpq reads.
func (s *site) db(name string) string {
	host, port, _ := strings.Cut(stack.Postgres.Addr, ":")
	return fmt.Sprintf("{objectName: %s, secretPath: %s, format: pg-service, connection: {host: %s, port: %s, dbname: postgres}}", name, s.Creds, host, port)
}

func list(objects ...string) string { return "[" + strings.Join(objects, ", ") + "]" }

// newPod answers a pod that nobody else has.
func newPod() fixture.Pod {
	id := strings.ToLower(rand.Text())
	return fixture.Pod{Namespace: "shop", Name: "app-" + id[:5], UID: id, ServiceAccount: "app"}
}

// volume describes a volume of a new pod with the given objects.
func (s *site) volume(t *testing.T, objects ...string) *fixture.Volume {
	t.Helper()
	return s.volumeOf(t, newPod(), s.SPC(list(objects...)))
}

func (s *site) volumeOf(t *testing.T, pod fixture.Pod, spc fixture.SPC) *fixture.Volume {
	t.Helper()
	v, err := s.node.Volume(pod, "secrets-"+strings.ToLower(rand.Text()[:4]), spc, nil)
	require.NoError(t, err)
	return v
}

// mounted is volume with its first Mount done.
func (s *site) mounted(t *testing.T, objects ...string) *fixture.Volume {
	t.Helper()
	v := s.volume(t, objects...)
	mount(t, v)
	return v
}

// mount mounts or republishes, which must not fail.
func mount(t *testing.T, v *fixture.Volume) map[string]string {
	t.Helper()
	versions, err := v.Mount(t.Context())
	require.NoError(t, err)
	return versions
}

// within bounds what has to be waited for.
func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// requireHeld waits until Vault and PostgreSQL hold exactly this for the site.
func (s *site) requireHeld(t *testing.T, users, tokens int) {
	t.Helper()
	ctx := within(t, 3*time.Minute)
	require.NoError(t, fixture.Eventually(ctx, users, s.Users), "database users")
	require.NoError(t, fixture.Eventually(ctx, users, s.Leases), "leases")
	require.NoError(t, fixture.Eventually(ctx, tokens, s.Tokens), "tokens")
}

// requireRenewed waits until PostgreSQL will let a user in at a later time.
func requireRenewed(t *testing.T, user string, until time.Time) {
	t.Helper()
	require.NoError(t, fixture.Eventually(within(t, 3*time.Minute), true, func(ctx context.Context) (bool, error) {
		conn, err := stack.Postgres.Admin(ctx)
		if err != nil {
			return false, err
		}
		defer func() { _ = conn.Close(ctx) }()
		var later bool
		err = conn.QueryRow(ctx, "SELECT rolvaliduntil > $2 FROM pg_roles WHERE rolname = $1", user, until).Scan(&later)
		return later, err
	}), "the renewal of %s", user)
}

// requireAsked checks how often Vault was asked to log in and for credentials.
func (s *site) requireAsked(t *testing.T, logins, reads int) {
	t.Helper()
	got, err := s.Logins()
	require.NoError(t, err)
	require.Equal(t, logins, got, "logins")
	got, err = s.Reads()
	require.NoError(t, err)
	require.Equal(t, reads, got, "reads of database credentials")
}

// asked answers how often Vault was asked for exactly this path.
func asked(t *testing.T, path, operation string) int {
	t.Helper()
	n, err := stack.Vault.AuditCount(path, operation)
	require.NoError(t, err)
	return n
}

// status is what the daemon says of the volume.
func (s *site) status(ctx context.Context, v *fixture.Volume) (lease.VolumeStatus, error) {
	text, err := s.daemon.Status(ctx)
	if err != nil {
		return lease.VolumeStatus{}, err
	}
	var all []lease.VolumeStatus
	if err := json.Unmarshal(text, &all); err != nil {
		return lease.VolumeStatus{}, err
	}
	for _, one := range all {
		if one.Target == v.Target {
			return one, nil
		}
	}
	return lease.VolumeStatus{}, fmt.Errorf("no volume at %s", v.Target)
}

func read(t *testing.T, v *fixture.Volume, file string) string {
	t.Helper()
	text, err := v.Read(file)
	require.NoError(t, err)
	return string(text)
}

// inode tells one file from another with the same bytes.
func inode(t *testing.T, v *fixture.Volume, file string) uint64 {
	t.Helper()
	info, err := v.Stat(file)
	require.NoError(t, err)
	return info.Sys().(*syscall.Stat_t).Ino
}

// service parses what libpq reads from a service file.
func service(text string) map[string]string {
	values := map[string]string{}
	for line := range strings.Lines(text) {
		if key, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok {
			values[key] = value
		}
	}
	return values
}

// logIn logs in at PostgreSQL with what read answers, as an application does, and
// answers it. Who took longer for that than the overlap, for which a replaced
// credential works on, has broken the rules and reads again.
func logIn(t *testing.T, overlap time.Duration, read func() (user, password string)) (user, password string) {
	t.Helper()
	for {
		begin := time.Now()
		user, password = read()
		err := stack.Postgres.Login(t.Context(), user, password)
		if err != nil && time.Since(begin) > overlap {
			continue
		}
		require.NoError(t, err)
		return user, password
	}
}

// wire is a Mount call as the driver sends it, ready to be sent many times.
type wire struct {
	client                     v1alpha1.CSIDriverProviderClient
	attributes, secret, target string
}

// wire renders a volume's Mount with a token for the audience "vault".
func (s *site) wire(t *testing.T, v *fixture.Volume) wire {
	t.Helper()
	clients := driver.NewPluginClientBuilder([]string{s.node.Providers})
	t.Cleanup(clients.Cleanup)
	client, err := clients.Get(t.Context(), v.Provider)
	require.NoError(t, err)
	token, expires, err := stack.Issuer.Token(v.Pod, "vault", time.Hour)
	require.NoError(t, err)
	tokens, err := json.Marshal(map[string]any{"vault": map[string]any{"token": token, "expirationTimestamp": expires}})
	require.NoError(t, err)
	all := maps.Clone(v.Attributes)
	all["csi.storage.k8s.io/serviceAccount.tokens"] = string(tokens)
	text, err := json.Marshal(all)
	require.NoError(t, err)
	return wire{client, string(text), "null", v.Target}
}

func (w wire) send(ctx context.Context) (map[string]string, error) {
	versions, _, err := driver.MountContent(ctx, w.client, w.attributes, w.secret, w.target, "420", nil)
	return versions, err
}
