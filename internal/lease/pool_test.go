package lease

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tenure-csi/tenure/internal/tenant"
	"github.com/tenure-csi/tenure/provider"
)

// bindings are the real rules, without a file.
type bindings struct {
	mu    sync.Mutex
	rules *tenant.Rules
}

func (b *bindings) Names(pod provider.Pod) ([]string, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.rules.Names(pod), nil
}

func (b *bindings) Bind(pod provider.Pod, r provider.Read) (provider.Read, time.Time, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.rules.Bind(pod, r)
}

// rule is one for every pod of the model, in the YAML of the file.
func rule(name, more string, tenants ...string) string {
	return fmt.Sprintf("- {name: %s, namespaces: [ns], serviceAccounts: [sa], tenants: ['%s']%s}\n", name, strings.Join(tenants, "', '"), more)
}

// bind puts rules into force, as the daemon does when the file has changed.
func (n *node) bind(rules ...string) {
	parsed, err := tenant.Parse([]byte("rules: [" + "]\n"))
	if len(rules) > 0 {
		parsed, err = tenant.Parse([]byte("rules:\n" + strings.Join(rules, "")))
	}
	require.NoError(n.t, err)
	b, known := n.binder.(*bindings)
	if !known { // the daemon starts with them
		n.stop()
		n.binder = &bindings{rules: parsed}
		n.start(0)
		return
	}
	b.mu.Lock()
	b.rules = parsed
	b.mu.Unlock()
	n.m.TenantsChanged()
	synctest.Wait()
}

// poolObjects are a database credential in two files for each tenant.
const poolObjects = "- {objectName: '{tenant}/db-user', secretPath: 'database/creds/{tenant}', secretKey: username}\n" +
	"- {objectName: '{tenant}/db-pass', secretPath: 'database/creds/{tenant}', secretKey: password}\n"

// pool is a pod whose SPC is for tenants, in the YAML of the parameter.
func (n *node) pool(tenants string, more ...string) *pod {
	p := n.pod("pool", poolObjects)
	p.more = map[string]string{"tenants": tenants}
	for i := 0; i < len(more); i += 2 {
		p.more[more[i]] = more[i+1]
	}
	return p
}

// serve gives tenants their database role.
func (n *node) serve(r role, names ...string) {
	n.backend.mu.Lock()
	defer n.backend.mu.Unlock()
	for _, name := range names {
		n.backend.roles["database/creds/"+name] = r
	}
}

var hour = role{ttl: time.Hour, max: 24 * time.Hour}

// has makes sure that the volume is whole for exactly these tenants: each has both
// files, of one living lease of its own role.
func (p *pod) has(names ...string) {
	p.n.t.Helper()
	files := p.files()
	var found []string
	for path, data := range files {
		name, file, _ := strings.Cut(path, "/")
		l := p.n.backend.leases[leaseOf([]byte(data))]
		require.NotNil(p.n.t, l, path)
		require.Equal(p.n.t, "database/creds/"+name, l.path, "a value of one tenant in another's directory")
		require.Equal(p.n.t, leaseOf([]byte(files[name+"/db-user"])), leaseOf([]byte(files[name+"/db-pass"])), name)
		if file == "db-user" {
			found = append(found, name)
		}
	}
	require.Len(p.n.t, files, 2*len(found), "half a tenant")
	require.ElementsMatch(p.n.t, names, found)
	require.True(p.n.t, p.works())
}

// untouched makes sure that what was there is there with the same bytes.
func (p *pod) untouched(before map[string]string, names ...string) {
	p.n.t.Helper()
	after := p.files()
	for path, data := range before {
		if name, _, _ := strings.Cut(path, "/"); slices.Contains(names, name) {
			require.Equal(p.n.t, data, after[path], path)
		}
	}
}

// settled lets overlaps pass and makes sure that nothing is there twice or too much.
func (p *pod) settled(leases int) {
	p.n.t.Helper()
	pause(20 * time.Minute)
	require.Equal(p.n.t, leases, p.n.backend.count())
	p.delete()
	pause(5 * time.Second)
	require.Zero(p.n.t, p.n.backend.count())
	require.Zero(p.n.t, p.n.backend.tokenCount())
}

func TestListedTenants(t *testing.T) {
	scene(t, func(t *testing.T, n *node) {
		n.serve(hour, "a", "b", "c")
		p := n.pool("[a, b]")
		require.NoError(t, p.mount())
		p.has("a", "b")
		require.Equal(t, 1, n.backend.logins)
		before := p.files()
		pause(30 * time.Minute)

		p.more["tenants"] = "[c, a]" // an edit of the SPC
		require.NoError(t, p.mount())
		p.has("a", "c")
		p.untouched(before, "a")
		require.Equal(t, 3, n.backend.reads, "only the new tenant's secrets are read")
		p.settled(2)
	})
}

func TestTenantThatFailsFailsTheVolume(t *testing.T) {
	scene(t, func(t *testing.T, n *node) {
		n.serve(hour, "a")
		p := n.pool("[a, nobody]")
		require.ErrorContains(t, p.mount(), `object "nobody/db-user", tenant "nobody": nothing at database/creds/nobody`)
		require.Empty(t, p.files())
		pause(5 * time.Minute)
		require.Zero(t, n.backend.count())
	})
}

func TestTenantThatFailsIsSkippedAndTakenUp(t *testing.T) {
	scene(t, func(t *testing.T, n *node) {
		n.serve(hour, "a", "c")
		p := n.pool("[a, late, c]", "onTenantFailure", "skip")
		require.NoError(t, p.mount())
		p.has("a", "c")
		before := p.files()
		out := p.status().LeftOut
		require.Len(t, out, 1)
		require.Equal(t, "late", out[0].Tenant)
		require.Contains(t, out[0].Problem, "nothing at database/creds/late")
		pause(10 * time.Minute)
		p.has("a", "c")
		n.serve(hour, "late")
		pause(6 * time.Minute)
		p.has("a", "late", "c")
		p.untouched(before, "a", "c")
		require.Empty(t, p.status().LeftOut)
		require.Equal(t, TenantChange, p.status().Leases[1].Reason)
		p.settled(3)
	})
}

// TestHangingTenantDelaysNobodyForLong: a tenant's read has no answer.
func TestHangingTenantDelaysNobodyForLong(t *testing.T) {
	scene(t, func(t *testing.T, n *node) {
		n.serve(hour, "a", "slow", "c")
		n.backend.set(func(op, path string) error {
			if strings.HasSuffix(path, "slow") {
				n.backend.mu.Unlock()
				time.Sleep(80 * time.Second)
				n.backend.mu.Lock()
			}
			return nil
		})
		p := n.pool("[a, slow, c]", "onTenantFailure", "skip")
		start := time.Now()
		require.NoError(t, p.mount())
		require.LessOrEqual(t, time.Since(start), 11*time.Second)
		p.has("a", "c")
		pause(2 * time.Minute)
		p.has("a", "slow", "c")
		require.Equal(t, 1, n.backend.mints["pool database/creds/slow"], "the answer that came late is used")
		p.settled(3)
	})
}

// TestSlowBackendLeavesNobodyOut: answers come one after the other, for longer than
// anybody is waited for alone.
func TestSlowBackendLeavesNobodyOut(t *testing.T) {
	scene(t, func(t *testing.T, n *node) {
		names := make([]string, 100)
		for i := range names {
			names[i] = fmt.Sprintf("t-%02d", i)
		}
		n.serve(hour, names...)
		n.bind(rule("r", "", names...))
		n.backend.set(func(op, path string) error {
			var i int
			if _, err := fmt.Sscanf(path, "database/creds/t-%d", &i); err == nil && op == "read" {
				n.backend.mu.Unlock()
				time.Sleep(time.Duration(i*200) * time.Millisecond)
				n.backend.mu.Lock()
			}
			return nil
		})
		p := n.pool("[t-*]")
		require.NoError(t, p.mount())
		p.has(names...)
		require.Empty(t, p.status().LeftOut)
	})
}

func TestBindingsOnboardAndWithdraw(t *testing.T) {
	scene(t, func(t *testing.T, n *node) {
		n.serve(hour, "t-a", "t-b", "t-c", "other")
		n.bind(rule("r", "", "t-a", "t-b", "other"))
		p := n.pool("[t-*]")
		require.NoError(t, p.mount())
		p.has("t-a", "t-b")
		before := p.files()
		pause(20 * time.Minute)

		n.bind(rule("r", "", "t-a", "t-b", "t-c"))
		pause(2 * time.Second)
		p.has("t-a", "t-b", "t-c")
		p.untouched(before, "t-a", "t-b")
		require.Equal(t, 3, n.backend.reads)

		gone := leaseOf([]byte(before["t-a/db-user"]))
		dirs := func() (dirs []string) {
			n.mu.Lock()
			defer n.mu.Unlock()
			for dir, files := range n.mounts[p.target].dirs {
				if _, there := files["t-a/db-user"]; there {
					dirs = append(dirs, dir)
				}
			}
			return dirs
		}
		require.NotEmpty(t, dirs())
		n.backend.set(func(op, _ string) error {
			if op == "read" || op == "login" {
				return errDown // taking away needs no backend
			}
			return nil
		})
		n.bind(rule("r", "", "t-b", "t-c", "t-new"))
		require.Empty(t, dirs(), "no directory of the volume has the withdrawn files")
		p.has("t-b", "t-c")
		p.untouched(before, "t-b")
		pause(2 * time.Second)
		n.backend.mu.Lock()
		require.False(t, n.backend.leaseAlive(gone), "its lease is ended without an overlap")
		n.backend.mu.Unlock()
		n.backend.set(nil)
		require.NoError(t, p.mount())
		p.settled(2)
	})
}

func TestAllTenantsWithdrawnAndGivenBack(t *testing.T) {
	scene(t, func(t *testing.T, n *node) {
		n.serve(hour, "t-a")
		n.bind(rule("r", "", "t-a"))
		p := n.pool("[t-*]")
		require.NoError(t, p.mount())
		n.bind()
		require.Empty(t, p.files())
		pause(time.Minute)
		require.Zero(t, n.backend.count())
		require.NoError(t, p.mount(), "a live volume's Mount succeeds")
		require.Empty(t, p.files())
		n.bind(rule("r", "", "t-a"))
		pause(2 * time.Second)
		p.has("t-a")
		p.settled(1)
	})
}

// TestWithdrawnWhileTheDaemonWasAway: the rules change during a restart, and the
// volume was unmounted and mounted again during another.
func TestWithdrawnWhileTheDaemonWasAway(t *testing.T) {
	scene(t, func(t *testing.T, n *node) {
		n.serve(hour, "t-a", "t-b", "t-c")
		n.bind(rule("r", "", "t-a", "t-b", "t-c"))
		p := n.pool("[t-*]")
		require.NoError(t, p.mount())
		before := p.files()
		n.stop()
		n.binder.(*bindings).rules, _ = tenant.Parse([]byte("rules:\n" + rule("r", "", "t-b", "t-c")))
		n.start(0)
		pause(time.Second)
		p.has("t-b", "t-c")
		p.untouched(before, "t-b", "t-c")
		require.Equal(t, 3, n.backend.reads)
		n.mu.Lock()
		n.mounts[p.target].current = "" // the driver unmounts and mounts again
		n.mu.Unlock()
		n.bind(rule("r", "", "t-c"))
		require.NoError(t, p.mount())
		p.has("t-c")
		p.settled(1)
	})
}

func TestBindingsRefuse(t *testing.T) {
	for _, row := range []struct {
		name, tenants, more, rule, want string
	}{
		{
			"tenant without a rule", "[t-a, x]", "", rule("r", "", "t-*"),
			`object "x/db-user", field "tenants", tenant "x": rule "r" of the tenant bindings is for service account ns/sa and lacks tenant "x"; have the cluster's operator add it to a rule`,
		},
		{
			"no rules", "[t-a]", "", "",
			`object "t-a/db-user", field "tenants", tenant "t-a": no rule of the tenant bindings is for service account ns/sa; have the cluster's operator add it to a rule`,
		},
		{
			"other service account", "[t-a]", "", "- {name: r, namespaces: [ns], serviceAccounts: [else], tenants: [t-a]}\n",
			`object "t-a/db-user", field "tenants", tenant "t-a": no rule of the tenant bindings is for service account ns/sa; have the cluster's operator add it to a rule`,
		},
		{
			"other namespace", "[t-a]", "", "- {name: r, namespaces: [else], serviceAccounts: [sa], tenants: [t-a]}\n",
			`object "t-a/db-user", field "tenants", tenant "t-a": no rule of the tenant bindings is for service account ns/sa; have the cluster's operator add it to a rule`,
		},
		{
			"nobody behind a pattern", "[x-*]", "", rule("r", "", "t-a"),
			`field "tenants": no tenant has a name that x-* means; add one where tenantsFrom says, or correct the patterns`,
		},
		{
			"nobody left", "[x]", "skip", rule("r", "", "t-a"),
			`object "x/db-user", field "tenants", tenant "x": rule "r" of the tenant bindings is for service account ns/sa and lacks tenant "x"; have the cluster's operator add it to a rule`,
		},
	} {
		t.Run(row.name, func(t *testing.T) {
			scene(t, func(t *testing.T, n *node) {
				n.serve(hour, "t-a", "x")
				if row.rule == "" {
					n.bind()
				} else {
					n.bind(row.rule)
				}
				p := n.pool(row.tenants)
				if row.more != "" {
					p.more["onTenantFailure"] = row.more
				}
				require.EqualError(t, p.mount(), row.want)
				require.Zero(t, n.backend.reads+n.backend.logins, "nothing is asked")
			})
		})
	}
}
