package lease

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tenure-csi/tenure/internal/tenant"
)

// byNode is a pool that logs in to Vault as the daemon does at AWS.
func (n *node) byNode(tenants string, more ...string) *pod {
	return n.pool(tenants, append(more, "vaultAuthMethod", "aws", "awsIdentity", "node")...)
}

// loginsAs returns the roles of the logins since the first of them.
func (n *node) loginsAs(from int) string {
	n.backend.mu.Lock()
	defer n.backend.mu.Unlock()
	return strings.Join(n.backend.as[from:], " ")
}

// directories returns how many directories the volume has.
func (p *pod) directories() int {
	p.n.mu.Lock()
	defer p.n.mu.Unlock()
	return len(p.n.mounts[p.target].dirs)
}

// TestRulesCountForWhatIsHeldWhateverElseFails: an author can make every review of
// a volume fail. What the rules take back or narrow goes by them all the same.
func TestRulesCountForWhatIsHeldWhateverElseFails(t *testing.T) {
	const old, narrow = ", vault: {role: 'old-{tenant}'}", ", vault: {role: 'narrow-{tenant}'}"
	crowd := []string{"t-a"}
	for i := range 600 {
		crowd = append(crowd, fmt.Sprintf("t-%03d", i))
	}
	for _, row := range []struct {
		name, onFailure string
		names           []string
	}{
		{"too many names match", "skip", crowd},
		{"a new tenant has no secret", "fail", []string{"t-a", "t-missing"}},
	} {
		t.Run(row.name, func(t *testing.T) {
			scene(t, func(t *testing.T, n *node) {
				n.serve(hour, "t-a")
				n.bind(rule("r", old, "t-a"))
				p := n.byNode("[t-*]", "onTenantFailure", row.onFailure)
				require.NoError(t, p.mount())
				require.Equal(t, "old-t-a", n.loginsAs(0))
				before := p.files()

				n.bind(rule("r", old, row.names...))
				pause(time.Minute)
				require.Equal(t, before, p.files(), "the review fails, and all stays")
				from := len(n.backend.as)
				n.bind(rule("r", narrow, row.names...))
				pause(5 * time.Second)
				p.has("t-a")
				require.NotEqual(t, before["t-a/db-user"], p.files()["t-a/db-user"])
				require.Equal(t, 1, p.directories(), "what the old role gave is in no directory any more")
				for range 48 {
					pause(time.Hour)
					require.NoError(t, p.mount())
				}
				require.NotContains(t, n.loginsAs(from), "old-")
				require.Contains(t, n.loginsAs(from), "narrow-t-a")

				from = len(n.backend.as)
				n.bind(rule("r", "", row.names...))
				pause(5 * time.Second)
				require.Empty(t, p.files(), "no rule lends the daemon's identity any more")
				pause(24 * time.Hour)
				require.Empty(t, n.loginsAs(from))
				require.Zero(t, n.backend.count())
			})
		})
	}
}

// TestRefusedRoleOfTheNodeIsNotReplacedByItsToken: a living token stands in for a
// pod's missing identity, never for the node's that is refused.
func TestRefusedRoleOfTheNodeIsNotReplacedByItsToken(t *testing.T) {
	scene(t, func(t *testing.T, n *node) {
		n.serve(role{ttl: time.Hour, max: 2 * time.Hour}, "t-a")
		n.bind(rule("r", ", vault: {role: '{tenant}'}", "t-a"))
		p := n.byNode("[t-a]")
		require.NoError(t, p.mount())
		n.backend.set(func(op, _ string) error {
			if op == "login" {
				return errDenied
			}
			return nil
		})
		pause(110 * time.Minute)
		require.Equal(t, 1, n.backend.minted("pool database/creds/t-a"))
	})
}

// TestRestartReviewsWhatTheNodeRead: what the journal says counts, however the SPC
// spells it.
func TestRestartReviewsWhatTheNodeRead(t *testing.T) {
	const rule = "- {name: r, namespaces: [ns], serviceAccounts: [sa], aws: {roleArn: 'arn:aws:iam::123456789012:role/r'}, vault: {role: r}}\n"
	for _, row := range []struct {
		name, objects string
		more          map[string]string
	}{
		{"identity", `- {objectName: keys, source: aws-sts, "\u0069dentity": node, secretKey: access_key}`, nil},
		{"awsIdentity", db("db", "database/creds/app"), map[string]string{"vaultAuthMethod": "aws", "awsIdentity": "node"}},
	} {
		t.Run(row.name, func(t *testing.T) {
			scene(t, func(t *testing.T, n *node) {
				n.serve(hour, "app")
				n.backend.roles[""] = hour // what AWS is asked has no path
				n.bind(rule)
				p := n.pod("silo", row.objects)
				p.more = row.more
				require.NoError(t, p.mount())
				require.NotEmpty(t, p.files())
				n.stop()
				n.binder.(*bindings).rules, _ = tenant.Parse([]byte("rules: []\n"))
				n.start(0)
				pause(time.Second)
				require.Empty(t, p.files(), "withdrawn while the daemon was away")
				n.stop()
				n.binder.(*bindings).rules, _ = tenant.Parse([]byte("rules:\n" + rule))
				n.start(0)
				p = n.pod("silo2", row.objects)
				p.more = row.more
				require.NoError(t, p.mount())
				n.stop()
				n.binder = nil
				n.start(0)
				pause(time.Second)
				require.Empty(t, p.files(), "started without rules")
			})
		})
	}
}

// TestBusyVolumeHoldsUpNoOthers: rules that change while a volume is busy don't
// stop the manager. It runs in real time: a bubble's stands while a lock is awaited.
func TestBusyVolumeHoldsUpNoOthers(t *testing.T) {
	n := newNode(t)
	defer n.stop()
	busy, err := n.m.worker(n.pod("busy", "").request())
	require.NoError(t, err)
	busy.mu.Lock()
	told := make(chan struct{})
	go func() { n.m.TenantsChanged(); close(told) }()
	for range 1000 { // wherever it is by now
		require.NoError(t, n.m.Ready())
		time.Sleep(100 * time.Microsecond)
	}
	busy.mu.Unlock()
	<-told
}

// TestListIsReadAsTheRulesSay: an SPC can't choose as what the node lists.
func TestListIsReadAsTheRulesSay(t *testing.T) {
	scene(t, func(t *testing.T, n *node) {
		n.serve(hour, "t-a")
		n.list("t-a")
		n.bind(rule("r", ", vault: {role: '{tenant}'}", "t-a"))
		p := n.byNode("[t-*]", "tenantsFrom", folder)
		require.ErrorContains(t, p.mount(), "lacks volumes without tenants")
		require.Empty(t, n.loginsAs(0))
		n.bind(rule("r", ", vault: {role: '{tenant}'}", "t-a"), "- {name: list, namespaces: [ns], serviceAccounts: [sa], vault: {role: lister}}\n")
		require.NoError(t, p.mount())
		p.has("t-a")
		require.Equal(t, "lister t-a", n.loginsAs(0))
	})
}

func TestWithdrawnDirectoryIsRemovedInTheEnd(t *testing.T) {
	scene(t, func(t *testing.T, n *node) {
		n.serve(hour, "t-a")
		n.bind(rule("r", "", "t-a"))
		p := n.pool("[t-*]")
		require.NoError(t, p.mount())
		n.removeErr = errDown
		n.bind()
		require.Equal(t, 2, p.directories())
		n.mu.Lock()
		n.removeErr = nil
		n.mu.Unlock()
		pause(2 * time.Minute)
		require.Equal(t, 1, p.directories())
	})
}
