package lease

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tenure-csi/tenure/internal/tenant"
	"github.com/tenure-csi/tenure/provider"
)

const folder = "secret/metadata/pool"

func (n *node) list(names ...any) {
	n.backend.mu.Lock()
	defer n.backend.mu.Unlock()
	n.backend.lists[folder] = names
}

func TestListOnboardsAtOnceAndOffboardsAtTheSecondLook(t *testing.T) {
	scene(t, func(t *testing.T, n *node) {
		n.serve(hour, "t-a", "t-b", "t-c")
		n.list("t-a/", "t-b", "x", "..", "T-A", "%2f")
		p := n.pool("[t-*]", "tenantsFrom", folder)
		require.NoError(t, p.mount())
		p.has("t-a", "t-b")
		before := p.files()
		n.list("t-a", "t-b", "t-c")
		pause(70 * time.Second)
		p.has("t-a", "t-b", "t-c")
		require.Equal(t, 3, n.backend.reads)

		n.list("t-b", "t-c")
		gone := 0
		for ; gone < 100 && len(p.files()) == 6; gone++ {
			pause(time.Second)
		}
		require.Greater(t, gone, 10, "a name that one answer lacks stays")
		require.Less(t, gone, 80)
		p.has("t-b", "t-c")
		p.untouched(before, "t-b")
		n.backend.mu.Lock()
		require.True(t, n.backend.leaseAlive(leaseOf([]byte(before["t-a/db-user"]))), "who leaves has an overlap")
		n.backend.mu.Unlock()
		p.settled(2)
	})
}

func TestListThatFailsChangesNothing(t *testing.T) {
	for name, broken := range map[string]func(n *node){
		"denied":      func(n *node) { n.backend.set(onList(errDenied)) },
		"unreachable": func(n *node) { n.backend.set(onList(errDown)) },
		"empty":       func(n *node) { n.list() },
		"no names":    func(n *node) { n.list("x", "y") },
		"gone":        func(n *node) { n.backend.set(onList(errNothing)) },
		"endless":     func(n *node) { n.list(endless...) },
	} {
		t.Run(name, func(t *testing.T) {
			scene(t, func(t *testing.T, n *node) {
				n.serve(hour, "t-a", "t-b")
				n.list("t-a", "t-b")
				p := n.pool("[t-*]", "tenantsFrom", folder)
				require.NoError(t, p.mount())
				before := p.files()
				broken(n)
				pause(5 * time.Minute)
				require.Equal(t, before, p.files())
				require.Contains(t, p.status().Problem, "tenants stay as they are: ")
				n.stop()
				n.start(0) // and is not to be had at the next start
				pause(5 * time.Minute)
				require.Equal(t, before, p.files())
				require.Equal(t, map[string]int{"pool database/creds/t-a": 1, "pool database/creds/t-b": 1}, n.backend.mints)
				require.Contains(t, p.status().Problem, "tenants stay as they are: ")
				n.backend.set(nil)
				n.list("t-a", "t-b")
				pause(2 * time.Minute)
				require.Empty(t, p.status().Problem)
				require.Equal(t, before, p.files())
			})
		})
	}
}

// endless is a folder as an author can fill one, without t-a.
var endless = func() (names []any) {
	for i := range 200_000 {
		names = append(names, fmt.Sprintf("t-%06d", i))
	}
	return names
}()

var errNothing = broken(provider.Invalid, "nothing is there", Wrong, false)

func onList(err error) func(op, path string) error {
	return func(op, _ string) error {
		if op == "list" {
			return err
		}
		return nil
	}
}

func TestListAtFirstMountMustAnswer(t *testing.T) {
	scene(t, func(t *testing.T, n *node) {
		n.serve(hour, "t-a")
		p := n.pool("[t-*]", "tenantsFrom", folder)
		n.list()
		require.EqualError(t, p.mount(), `field "tenantsFrom": the list has no name that t-* means; write the tenants' secrets, or correct tenantsFrom and the patterns`)
		n.list("t-a")
		require.NoError(t, p.mount())
		require.Equal(t, 1, n.backend.logins, "the retry uses the login")
		p.settled(1)
	})
}

// TestListedNameMustMatchARule: the list is the backend's, the rules the cluster's.
func TestListedNameMustMatchARule(t *testing.T) {
	scene(t, func(t *testing.T, n *node) {
		n.serve(hour, "t-a", "t-evil")
		n.list("t-a", "t-evil")
		n.bind(rule("r", "", "t-a"))
		p := n.pool("[t-*]", "tenantsFrom", folder)
		require.NoError(t, p.mount())
		p.has("t-a")
		require.Len(t, p.status().LeftOut, 1)
		require.Contains(t, p.status().LeftOut[0].Problem, `rule "r" of the tenant bindings is for service account ns/sa and lacks tenant "t-evil"`)
		require.Zero(t, n.backend.mints["pool database/creds/t-evil"])
	})
}

// TestNameOfOtherCaseTakesNobodysPlace: file systems of developers fold case.
func TestNameOfOtherCaseTakesNobodysPlace(t *testing.T) {
	scene(t, func(t *testing.T, n *node) {
		n.serve(hour, "t-a", "T-a", "t-A")
		n.list("t-a")
		p := n.pool("[t-*, T-*]", "tenantsFrom", folder)
		require.NoError(t, p.mount())
		before := p.files()
		n.list("T-a", "t-A", "t-a")
		pause(3 * time.Minute)
		require.Equal(t, before, p.files())
	})
}

func TestRotateAfterReplacesEverythingOfItsTenants(t *testing.T) {
	scene(t, func(t *testing.T, n *node) {
		n.serve(hour, "t-a", "t-b", "u-c")
		n.bind(rule("t", "", "t-a", "t-b"), rule("u", "", "u-c"))
		p := n.pool("['*']")
		require.NoError(t, p.mount())
		before := p.files()
		pause(20 * time.Minute)
		n.bind(rule("t", ", rotateAfter: '"+time.Now().Add(time.Hour).Format(time.RFC3339)+"'", "t-a", "t-b"), rule("u", "", "u-c"))
		pause(59 * time.Minute)
		require.Equal(t, before, p.files(), "renewed, and not yet replaced")
		n.stop()
		n.start(0) // it is remembered by the rule, not by the process
		pause(7 * time.Minute)
		after := p.files()
		for _, name := range []string{"t-a", "t-b"} {
			require.NotEqual(t, before[name+"/db-user"], after[name+"/db-user"])
		}
		p.untouched(before, "u-c")
		p.has("t-a", "t-b", "u-c")
		require.Equal(t, TenantChange, p.status().Leases[0].Reason)
		pause(3 * time.Hour)
		require.Equal(t, 5, n.backend.reads, "once")
		p.settled(3)
	})
}

// TestTenantsSurviveKillBeforeAnyEffect kills the daemon before every single
// effect of a tenant that comes, one that goes and one that is withdrawn.
func TestTenantsSurviveKillBeforeAnyEffect(t *testing.T) {
	long := role{ttl: 10 * time.Minute, max: 24 * time.Hour}
	rules := [][]string{{"t-a", "t-b"}, {"t-a", "t-b", "t-c"}, {"t-b", "t-c"}}
	change := func(n *node, i int) {
		parsed, err := tenant.Parse([]byte("rules:\n" + rule("r", "", rules[i]...)))
		require.NoError(n.t, err)
		b := n.binder.(*bindings)
		b.mu.Lock()
		b.rules = parsed
		b.mu.Unlock()
		n.m.TenantsChanged()
		pause(3 * time.Second)
	}
	live := func(n *node, p *pod) {
		for range 8 {
			if p.mount() == nil {
				break
			}
			pause(time.Second)
		}
		for i := range rules {
			change(n, i)
		}
		pause(time.Minute)
	}
	total := 0
	scene(t, func(t *testing.T, n *node) {
		n.serve(long, "t-a", "t-b", "t-c")
		n.bind(rule("r", "", rules[0]...))
		p := n.pool("[t-*]")
		live(n, p)
		total = n.effects
	})
	require.Greater(t, total, 15)
	orphans := 0
	for at := 1; at <= total; at++ {
		scene(t, func(t *testing.T, n *node) {
			n.serve(long, "t-a", "t-b", "t-c")
			n.bind(rule("r", "", rules[0]...))
			n.stop()
			n.start(at)
			p := n.pool("[t-*]")
			live(n, p)
			n.kill()
			before := p.files()
			n.start(0)
			pause(2 * time.Second)
			require.NoError(t, p.mount())
			pause(15 * time.Second)
			p.has("t-b", "t-c")
			p.untouched(before, slices.DeleteFunc([]string{"t-b", "t-c"}, func(name string) bool { return before[name+"/db-user"] == "" })...)
			require.LessOrEqual(t, n.backend.count(), 3, "effect %d", at)
			pause(10 * time.Minute)
			require.Equal(t, 2, n.backend.count(), "effect %d", at)
			p.has("t-b", "t-c")
			p.delete()
			pause(5 * time.Second)
			require.Zero(t, n.backend.count(), "effect %d", at)
			require.Empty(t, n.records)
			orphans += n.backend.tokenCount()
		})
	}
	require.LessOrEqual(t, orphans, 4, "tokens whose login was not yet journaled")
	t.Logf("%d kill points; %d of them left an empty token until its TTL", total, orphans)
}

// TestPoolOfTwoHundred holds 200 tenants in one volume: what a day asks of the
// backend, one more and one less, and a rotation of all.
func TestPoolOfTwoHundred(t *testing.T) {
	scene(t, func(t *testing.T, n *node) {
		const tenants = 200
		names := make([]string, tenants)
		for i := range names {
			names[i] = fmt.Sprintf("t-%03d", i)
		}
		n.serve(hour, append(names, "t-new")...)
		n.bind(rule("r", "", names...))
		p := n.pool("[t-*]")
		require.NoError(t, p.mount())
		require.Equal(t, tenants, n.backend.reads)
		require.Equal(t, 1, n.backend.logins)
		p.has(names...)
		before := p.files()

		swaps := n.swaps()
		n.bind(rule("r", "", append(names[1:], "t-new")...))
		pause(time.Second)
		p.has(append(names[1:], "t-new")...)
		p.untouched(before, names[1:]...)
		require.Equal(t, tenants+1, n.backend.reads)
		require.LessOrEqual(t, n.swaps()-swaps, 2)
		n.bind(rule("r", "", names...))
		pause(20 * time.Minute)

		day := func(d time.Duration) {
			for end := time.Now().Add(d); time.Now().Before(end); pause(30 * time.Minute) {
				require.NoError(t, p.mount())
			}
		}
		day(22 * time.Hour)
		peak, mean := n.load(time.Now().Add(-22*time.Hour), 22*time.Hour, 5*time.Minute)
		t.Logf("200 tenants, renewals from the first turn on: %.1f calls in 5 minutes, peak to mean %.2f", mean, peak/mean)
		require.LessOrEqual(t, peak/mean, 1.5)

		had := n.asked()
		swaps = n.swaps()
		day(6 * time.Hour) // with the end of all first leases
		require.Equal(t, tenants, n.asked()-had)
		require.LessOrEqual(t, n.swaps()-swaps, 60)

		reads, before := n.asked(), p.files()
		begin := time.Now()
		seen := []int{}
		n.bind(rule("r", ", rotateAfter: '"+begin.Format(time.RFC3339)+"'", names...))
		for range 10 {
			was := n.asked()
			pause(rotateOver / 10)
			seen = append(seen, n.asked()-was)
		}
		pause(30 * time.Second)
		require.Equal(t, tenants, n.asked()-reads)
		ratio := float64(slices.Max(seen)) / (float64(tenants) / 10)
		t.Logf("200 tenants rotated by rotateAfter in %v: reads in each tenth %v, peak to mean %.2f, %d logins", rotateOver, seen, ratio, n.backend.logins)
		require.LessOrEqual(t, ratio, 1.5)
		after := p.files()
		for path := range maps.Keys(before) {
			require.NotEqual(t, before[path], after[path], path)
		}
		p.has(names...)
		p.settled(tenants)
	})
}

// asked returns how many reads there were.
func (n *node) asked() int {
	n.backend.mu.Lock()
	defer n.backend.mu.Unlock()
	return n.backend.reads
}

// load returns the most and the mean of calls that are no looks, over spans of a time.
func (n *node) load(from time.Time, length, span time.Duration) (peak, mean float64) {
	n.backend.mu.Lock()
	defer n.backend.mu.Unlock()
	var sums []int
	for at := from; at.Before(from.Add(length)); at = at.Add(span) {
		sum := 0
		for m := range int64(span / time.Minute) {
			sum += n.backend.writes[at.Unix()/60+m]
		}
		sums = append(sums, sum)
		mean += float64(sum) * float64(span) / float64(length)
	}
	return float64(slices.Max(sums)), mean
}

// unknowing are bindings of which no good version was read yet.
type unknowing struct{}

var errUnknowing = &provider.Error{Class: provider.Unavailable, Cause: "nothing is known"}

func (unknowing) Names(provider.Pod) ([]string, error) { return nil, errUnknowing }
func (unknowing) Bind(_ provider.Pod, r provider.Read) (provider.Read, time.Time, error) {
	return r, time.Time{}, errUnknowing
}

// TestWhatIsHeldGoesOnWhileNothingIsKnown: the daemon starts again with a file of
// rules that it can't read, and the leases reach their ends.
func TestWhatIsHeldGoesOnWhileNothingIsKnown(t *testing.T) {
	scene(t, func(t *testing.T, n *node) {
		n.serve(role{ttl: 20 * time.Second, max: time.Minute}, "t-a", "t-b")
		n.bind(rule("r", "", "t-a", "t-b"))
		p := n.pool("[t-*]")
		require.NoError(t, p.mount())
		before := p.files()
		n.stop()
		n.binder = unknowing{}
		n.start(0)
		for range 180 {
			pause(time.Second)
			require.True(t, p.works())
		}
		p.has("t-a", "t-b")
		require.NotEqual(t, before["t-a/db-user"], p.files()["t-a/db-user"])
		require.Contains(t, p.status().Problem, "a change of tenants is not carried out, the old files stay: nothing is known")
		late := n.pod("late", poolObjects)
		late.more = map[string]string{"tenants": "[t-a]"}
		require.EqualError(t, late.mount(), "nothing is known", "nobody is given anything new")
	})
}

// TestNodeIdentityNeedsARule: what the daemon's own identity reads is the rules'
// to give and to take, with tenants and without.
func TestNodeIdentityNeedsARule(t *testing.T) {
	pod := provider.Pod{Namespace: "ns", ServiceAccount: "sa"}
	read := provider.Read{Tenant: "t-a", AWS: provider.AWS{Identity: provider.NodeIdentity, RoleARN: "arn:aws:iam::1:role/author-says", TTL: time.Hour}}
	w := &worker{m: &Manager{}, rec: &Record{Pod: pod}}
	spec := func() *provider.Spec {
		return &provider.Spec{Objects: []provider.Object{{Name: "t-a/aws", Tenant: "t-a", Read: read}}, Tenants: &provider.Tenants{Names: []string{"t-a"}}}
	}
	_, err := w.bind(spec(), false)
	require.EqualError(t, err, `object "t-a/aws", field "identity", tenant "t-a": the daemon has no tenant bindings, and without a rule its identity is used for nobody; have the operator set --tenant-bindings`)

	rules, err := tenant.Parse([]byte("rules:\n" + rule("r", "", "t-a")))
	require.NoError(t, err)
	w.m.Tenants = &bindings{rules: rules}
	parsed, err := w.bind(spec(), false)
	require.NoError(t, err)
	require.ErrorContains(t, parsed.refusal(), `rule "r" of the tenant bindings lacks aws`)

	rules, err = tenant.Parse([]byte("rules:\n" + rule("r", ", aws: {roleArn: 'arn:aws:iam::123456789012:role/{tenant}'}", "t-a")))
	require.NoError(t, err)
	w.m.Tenants = &bindings{rules: rules}
	parsed, err = w.bind(spec(), false)
	require.NoError(t, err)
	require.NoError(t, parsed.refusal())
	require.Equal(t, "arn:aws:iam::123456789012:role/t-a", parsed.reads[0].read.AWS.RoleARN)
	require.NotContains(t, fmt.Sprint(parsed.reads[0].read), "author-says")

	// A name that AWS would not take in the rule's role is nobody else's fault.
	rules, err = tenant.Parse([]byte("rules:\n" + rule("r", ", aws: {roleArn: 'arn:aws:iam::123456789012:role/pool-{tenant}'}", "*")))
	require.NoError(t, err)
	w.m.Tenants = &bindings{rules: rules}
	long := strings.Repeat("a", 63)
	both := spec()
	both.Tenants.OnFailure = "skip"
	both.Objects = append(both.Objects, provider.Object{Name: long + "/aws", Tenant: long, Read: provider.Read{Tenant: long, AWS: read.AWS}})
	parsed, err = w.bind(both, false)
	require.NoError(t, err)
	require.NoError(t, parsed.refusal())
	require.Len(t, parsed.reads, 1)
	require.ErrorContains(t, parsed.refused[long], `aws.roleArn of rule "r" of the tenant bindings: has the role name "pool-`+long+`" of 68 characters`)
}
