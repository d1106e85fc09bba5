package integration

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/tenure-csi/tenure/internal/lease"
	"github.com/tenure-csi/tenure/test/fixture"
)

// pool is a site whose daemon has tenant bindings, with a database role and a
// secret for each of its tenants.
type pool struct {
	*site
	bindings string // the file
}

func newPool(t *testing.T, o fixture.ScopeOptions) *pool {
	t.Helper()
	p := &pool{bindings: filepath.Join(t.TempDir(), "bindings.yaml")}
	require.NoError(t, os.WriteFile(p.bindings, []byte("rules: []\n"), 0o600))
	p.site = newSite(t, o, "--tenant-bindings="+p.bindings)
	require.NoError(t, stack.Vault.Policy(t.Context(), p.Name, fixture.ReadPolicy("db-"+p.Name+"/creds/*", p.KV+"/*")+
		fmt.Sprintf("path \"%s/\" { capabilities = [\"list\"] }\n", p.KV)))
	return p
}

// tenant is a name whose database users count as the site's: Vault puts the first
// eight characters of a role's name into them.
func (p *pool) tenant(i int) string { return fmt.Sprintf("%s-%03d", p.Name, i) }

func (p *pool) tenants(from, to int) []string {
	var names []string
	for i := from; i < to; i++ {
		names = append(names, p.tenant(i))
	}
	return names
}

// furnish writes what the tenants have at Vault.
func (p *pool) furnish(t *testing.T, o fixture.ScopeOptions, names ...string) {
	t.Helper()
	group, ctx := errgroup.WithContext(t.Context())
	group.SetLimit(8)
	for _, name := range names {
		group.Go(func() error {
			if err := stack.Vault.CreateDBRole(ctx, "db-"+p.Name, name, o.TTL, o.MaxTTL); err != nil {
				return err
			}
			return stack.Vault.WriteKV1(ctx, p.KV, name, map[string]any{"owner": name})
		})
	}
	require.NoError(t, group.Wait())
}

// bind replaces the file of rules as kubelet replaces a ConfigMap's.
func (p *pool) bind(t *testing.T, more string, names ...string) {
	t.Helper()
	text := fmt.Sprintf("rules:\n- name: pool\n  namespaces: [shop]\n  serviceAccounts: [app]\n  tenants: [%s]\n%s", strings.Join(names, ", "), more)
	require.NoError(t, os.WriteFile(p.bindings+".tmp", []byte(text), 0o600))
	require.NoError(t, os.Rename(p.bindings+".tmp", p.bindings))
}

func (p *pool) spc(more map[string]string) fixture.SPC {
	return p.SPC(list(
		"{objectName: '{tenant}/db', secretPath: 'db-"+p.Name+"/creds/{tenant}', format: keys}",
		"{objectName: '{tenant}/owner', secretPath: '"+p.KV+"/{tenant}', secretKey: owner, refreshInterval: 1h}",
	)).With(map[string]string{"tenants": "['" + p.Name + "-*']"}).With(more)
}

// requireTenants checks that each directory of the volume is whole and its own
// tenant's, and that every credential logs in.
func (p *pool) requireTenants(t *testing.T, v *fixture.Volume, names ...string) {
	t.Helper()
	files, err := v.Files()
	require.NoError(t, err)
	require.Len(t, files, 3*len(names), "%v", files)
	for _, name := range names {
		require.Equal(t, name, read(t, v, name+"/owner"), "a value of one tenant in another's directory")
		require.NoError(t, stack.Postgres.Login(t.Context(), read(t, v, name+"/db/username"), read(t, v, name+"/db/password")))
	}
}

// appears waits until a file is there, or is not, and answers how long it took.
func appears(t *testing.T, v *fixture.Volume, file string, there bool) time.Duration {
	t.Helper()
	begin := time.Now()
	require.NoError(t, fixture.Eventually(within(t, 2*time.Minute), there, func(context.Context) (bool, error) {
		_, err := os.Stat(filepath.Join(v.Target, file))
		return err == nil, nil
	}))
	return time.Since(begin)
}

// TestPoolOfTwoHundredTenants mounts 200 tenants with a database role each into one
// volume, adds one and takes one away while it lives, and restarts the daemon.
func TestPoolOfTwoHundredTenants(t *testing.T) {
	t.Parallel()
	const tenants = 200
	o := fixture.ScopeOptions{TTL: time.Hour, MaxTTL: 24 * time.Hour}
	p := newPool(t, o)
	p.furnish(t, o, p.tenants(0, tenants+1)...)
	p.bind(t, "", p.tenants(0, tenants)...)
	idle := fixture.RSS(t, p.daemon.Pid())
	v := p.volumeOf(t, newPod(), p.spc(map[string]string{"onTenantFailure": "fail"})) // all or none, and then again
	begin := time.Now()
	require.NoError(t, fixture.Eventually(within(t, 5*time.Minute), true, func(ctx context.Context) (bool, error) {
		begin = time.Now()
		_, err := v.Mount(ctx) // refused until the daemon has seen the rules
		return err == nil, err
	}))
	took := time.Since(begin)
	p.requireTenants(t, v, p.tenants(0, tenants)...)
	creds := func() int { return asked(t, "db-"+p.Name+"/creds/", "read") }
	require.Equal(t, tenants, creds())
	p.requireHeldUsers(t, tenants, 1)
	figures.note(t, "pool: %d tenants with %d reads mounted in %v; the daemon holds %.0f MiB, idle %.0f", tenants, 2*tenants, took.Round(time.Millisecond), fixture.RSS(t, p.daemon.Pid()), idle)

	before := map[string]uint64{}
	for _, name := range p.tenants(1, tenants) {
		before[name+"/db/password"], before[name+"/owner"] = inode(t, v, name+"/db/password"), inode(t, v, name+"/owner")
	}
	untouched := func() {
		t.Helper()
		for file, ino := range before {
			require.Equal(t, ino, inode(t, v, file), file)
		}
	}
	p.bind(t, "", p.tenants(0, tenants+1)...)
	onboarded := appears(t, v, p.tenant(tenants)+"/owner", true)
	p.requireTenants(t, v, p.tenants(0, tenants+1)...)
	untouched()
	require.Equal(t, tenants+1, creds(), "only the new tenant's credential is issued")

	user, password := read(t, v, p.tenant(0)+"/db/username"), read(t, v, p.tenant(0)+"/db/password")
	p.bind(t, "", p.tenants(1, tenants+1)...)
	gone := appears(t, v, p.tenant(0)+"/owner", false)
	require.NoError(t, fixture.Eventually(within(t, 2*time.Minute), 0, func(context.Context) (int, error) {
		left, err := filepath.Glob(filepath.Join(v.Target, "..2*", p.tenant(0)))
		return len(left), err
	}), "no older directory keeps the files")
	p.requireHeldUsers(t, tenants, 2)
	require.Error(t, stack.Postgres.Login(t.Context(), user, password))
	p.requireTenants(t, v, p.tenants(1, tenants+1)...)
	untouched()
	require.Equal(t, tenants+1, creds())
	figures.note(t, "pool: a tenant came %v after its rule, and was gone %v after it", onboarded.Round(10*time.Millisecond), gone.Round(10*time.Millisecond))

	require.NoError(t, p.daemon.Kill())
	begin = time.Now()
	require.NoError(t, p.daemon.Restart(t.Context()))
	restarted := time.Since(begin)
	mount(t, v)
	require.NoError(t, fixture.Eventually(within(t, 2*time.Minute), tenants, func(ctx context.Context) (int, error) {
		s, err := p.status(ctx, v)
		named := map[string]bool{}
		for _, l := range s.Leases {
			named[l.Tenant] = true
		}
		return len(named), err
	}))
	untouched()
	require.Equal(t, tenants+1, creds(), "a restart issues nothing")
	figures.note(t, "pool: restarted in %v, and then holds %.0f MiB", restarted.Round(time.Millisecond), fixture.RSS(t, p.daemon.Pid()))
	require.NoError(t, p.node.DeletePod(v.Pod))
	p.requireHeldUsers(t, 0, 0)
}

// requireHeldUsers is requireHeld without the leases, which have a path each.
func (p *pool) requireHeldUsers(t *testing.T, users, tokens int) {
	t.Helper()
	ctx := within(t, 3*time.Minute)
	require.NoError(t, fixture.Eventually(ctx, users, p.Users), "database users")
	require.NoError(t, fixture.Eventually(ctx, true, func(ctx context.Context) (bool, error) {
		n, err := p.Tokens(ctx)
		return n <= tokens, err
	}), "tokens")
}

// TestTenantsFromAList lets a KV folder in Vault tell the tenants: one comes, one
// goes, and the folder is emptied.
func TestTenantsFromAList(t *testing.T) {
	t.Parallel()
	o := fixture.ScopeOptions{TTL: time.Hour, MaxTTL: 24 * time.Hour}
	p := newPool(t, o)
	p.furnish(t, o, p.tenants(0, 2)...)
	p.bind(t, "", p.Name+"-*") // the rule allows, the folder tells
	v := p.volumeOf(t, newPod(), p.spc(map[string]string{"tenantsFrom": p.KV}))
	require.NoError(t, fixture.Eventually(within(t, 5*time.Minute), true, func(ctx context.Context) (bool, error) {
		_, err := v.Mount(ctx)
		return err == nil, err
	}))
	p.requireTenants(t, v, p.tenants(0, 2)...)
	kept := inode(t, v, p.tenant(1)+"/db/password")

	p.furnish(t, o, p.tenant(2))
	listed := func(name string, there bool) {
		t.Helper()
		require.NoError(t, fixture.Eventually(within(t, 4*time.Minute), there, func(context.Context) (bool, error) {
			_, err := v.Stat(name + "/owner")
			return err == nil, nil
		}))
	}
	listed(p.tenant(2), true)
	p.requireTenants(t, v, p.tenants(0, 3)...)
	remove := func(name string) {
		t.Helper()
		require.NoError(t, stack.Vault.Client().KVv1(p.KV).Delete(t.Context(), name))
	}
	remove(p.tenant(0))
	listed(p.tenant(0), false)
	p.requireTenants(t, v, p.tenants(1, 3)...)
	for _, name := range p.tenants(1, 3) {
		remove(name)
	}
	require.NoError(t, fixture.Eventually(within(t, 4*time.Minute), true, func(ctx context.Context) (bool, error) {
		s, err := p.status(ctx, v)
		return strings.HasPrefix(s.Problem, "tenants stay as they are: "), err
	}), "an empty folder takes nobody away")
	require.Equal(t, kept, inode(t, v, p.tenant(1)+"/db/password"))
	require.Equal(t, 3, asked(t, "db-"+p.Name+"/creds/", "read"))
}

// TestRotateAfterOnRealParts has a rule replace what was issued before.
func TestRotateAfterOnRealParts(t *testing.T) {
	t.Parallel()
	o := fixture.ScopeOptions{TTL: time.Minute, MaxTTL: time.Hour}
	p := newPool(t, o)
	p.furnish(t, o, p.tenants(0, 5)...)
	p.bind(t, "", p.tenants(0, 5)...)
	v := p.volumeOf(t, newPod(), p.spc(nil))
	require.NoError(t, fixture.Eventually(within(t, 5*time.Minute), true, func(ctx context.Context) (bool, error) {
		_, err := v.Mount(ctx)
		return err == nil, err
	}))
	users := map[string]string{}
	for _, name := range p.tenants(0, 5) {
		users[name] = read(t, v, name+"/db/username")
	}
	begin := time.Now()
	p.bind(t, "  rotateAfter: "+begin.Add(time.Second).UTC().Format(time.RFC3339)+"\n", p.tenants(0, 5)...)
	require.NoError(t, fixture.Eventually(within(t, 3*time.Minute), 5, func(context.Context) (int, error) {
		replaced := 0
		for name, user := range users {
			now, err := v.Read(name + "/db/username")
			if err != nil {
				return 0, err
			}
			if string(now) != user {
				replaced++
			}
		}
		return replaced, nil
	}))
	figures.note(t, "rotateAfter: 5 credentials of 1m replaced %v after the rule", time.Since(begin).Round(100*time.Millisecond))
	s, err := p.status(t.Context(), v)
	require.NoError(t, err)
	for _, l := range s.Leases {
		if l.Kind == "leased" {
			require.Equal(t, lease.TenantChange, l.Reason)
		}
	}
	p.requireTenants(t, v, p.tenants(0, 5)...)
	p.requireHeldUsers(t, 5, 6) // the overlap of 12 s is over
	require.Equal(t, 10, asked(t, "db-"+p.Name+"/creds/", "read"))
}

// TestTenantsAreRefused is a pod author's attack on the provider: each is refused
// before Vault is asked, with a text that says why.
func TestTenantsAreRefused(t *testing.T) {
	t.Parallel()
	p := newPool(t, fixture.ScopeOptions{TTL: time.Hour, MaxTTL: 24 * time.Hour})
	p.furnish(t, fixture.ScopeOptions{TTL: time.Hour, MaxTTL: 24 * time.Hour}, p.tenants(0, 2)...)
	p.bind(t, "", p.tenant(0))
	mine := p.volumeOf(t, newPod(), p.spc(nil))
	require.NoError(t, fixture.Eventually(within(t, 5*time.Minute), true, func(ctx context.Context) (bool, error) {
		_, err := mine.Mount(ctx)
		return err == nil, err
	}))
	reads := func() int { return asked(t, "db-"+p.Name+"/creds/", "") + asked(t, p.KV+"/", "read") }
	logins, err := p.Logins()
	require.NoError(t, err)
	before := reads()
	other := newPod()
	other.ServiceAccount = "else"
	foreign := newPod()
	foreign.Namespace = "evil"
	for _, row := range []struct {
		name   string
		pod    fixture.Pod
		author map[string]string // volumeAttributes
		want   string
	}{
		{"another tenant, through volumeAttributes", newPod(), map[string]string{"tenants": "[" + p.tenant(1) + "]"}, `lacks tenant "` + p.tenant(1) + `"; have the cluster's operator add it to a rule`},
		{"every tenant there is", newPod(), map[string]string{"tenants": "['*', " + p.tenant(1) + "]"}, `lacks tenant "` + p.tenant(1) + `"`},
		{"another service account", other, nil, `no tenant has a name that ` + p.Name + `-* means`},
		{"another service account by name", other, map[string]string{"tenants": "[" + p.tenant(0) + "]"}, `no rule of the tenant bindings is for service account shop/else`},
		{"another namespace", foreign, map[string]string{"tenants": "[" + p.tenant(0) + "]"}, `no rule of the tenant bindings is for service account evil/`},
		{"a path", newPod(), map[string]string{"tenants": "[" + p.tenant(0) + "/../" + p.tenant(1) + "]"}, `is not made of letters, digits and . _ - behind a letter or digit`},
		{"an escaped path", newPod(), map[string]string{"tenants": "['" + p.tenant(0) + "%2f..']"}, `is not made of letters`},
		{"a list of another's", newPod(), map[string]string{"tenantsFrom": "sys/leases/lookup"}, `is one that tells, makes, renews or revokes tokens or leases, which is Tenure's own work`},
		{"no tenants", newPod(), map[string]string{"tenants": "[]"}, `field "tenants": is empty`},
	} {
		v, err := p.node.Volume(row.pod, "secrets", p.spc(nil), row.author)
		require.NoError(t, err)
		_, err = v.Mount(t.Context())
		require.ErrorContains(t, err, row.want, row.name)
	}
	require.Equal(t, before, reads(), "nothing was read")
	now, err := p.Logins()
	require.NoError(t, err)
	require.Equal(t, logins, now, "nobody logged in")
}
