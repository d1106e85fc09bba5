//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	core "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	driver "sigs.k8s.io/secrets-store-csi-driver/apis/v1"

	"github.com/tenure-csi/tenure/test/fixture"
)

// cases are run one after the other: some stop what all of them need.
var cases = []struct {
	name string
	run  func(t *testing.T)
}{
	{"a pod reads KV and logs in to PostgreSQL; both end with it", firstPod},
	{"a lease at its max TTL is replaced under a pod that logs in every second", replacement},
	{"an application that is not root uses its own 0600 service file", nonRoot},
	{"a file is synced to a Kubernetes Secret", syncedSecret},
	{"two classes in one pod are two volumes", twoClasses},
	{"each pod of a Deployment has a user; scaling down takes users back", deployment},
	{"a StatefulSet's pod comes back under its name with another user", statefulSet},
	{"a Job's user ends 2 minutes after its volume, while the pod stays as a record", job},
	{"a CronJob's run gives its user back", cronJob},
	{"a pod deleted by force gives its user back", forceDelete},
	{"a namespace deleted gives all of its users back", namespaceDelete},
	{"what the pod's Event says", failedMounts},
	{"provider: vault", hashicorpCases},
	{"no pod starts with an empty volume", emptyVolumes},
	{"no pod starts with an empty volume: the driver is killed in mid-Mount", driverKilled},
	{"no pod starts with an empty volume: kubelet is killed in mid-Mount", kubeletKilled},
	{"no pod starts with an empty volume: the daemon is away", daemonAway},
	{"the daemon's pod killed: nothing is issued anew, and leases go on", daemonKilled},
	{"helm upgrade and rollback: nothing is issued anew, files stay", upgrade},
	{"an upgrade from the journal's first schema: nothing is issued anew, files stay", firstSchema},
	{"helm uninstall: files stay; installed again, the daemon goes on with them", uninstall},
	{"the driver's pod replaced: nothing is issued anew, and republishes go on", driverReplaced},
	{"kubelet restarted: nothing is issued anew, and republishes go on", kubeletRestarted},
	{"the API server stopped for 5 minutes: leases are renewed and replaced all the same", apiServerStopped},
	{"without a Kubernetes permission or token: mounted and revoked", noPermission},
	{"tokenRequests and rotation on", rotationOn},
	{"rotation off", rotationOff},
	{"rotation off, with Kubernetes permissions", permissions},
	{"the node rebooted: pods come back with other users, the old ones end with their TTL", reboot},
	{"60 pods at once", manyPods},
	{"every manifest and example is taken by the API server", manifestsTaken},
	{"what the daemon's process may do, and where it listens", posture},
	{"the memory that the files of 100 volumes take", volumeMemory},
	{"volumes that fill the budget at once: the daemon lives", fullBudget},
}

func TestE2E(t *testing.T) {
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			report.note(t, c.name)
			c.run(t)
		})
	}
}

// shortLived is a database credential that is replaced within a minute: at 20 s
// renewed at 12 to 14 s, and near its 60 s replaced with 4 s of overlap.
var shortLived = fixture.ScopeOptions{TTL: 20 * time.Second, MaxTTL: time.Minute}

// replaced is more than a shortLived credential lives.
const replaced = 80 * time.Second

func firstPod(t *testing.T) {
	s := newScene(t, fixture.ScopeOptions{})
	s.orders(t)
	p := s.run(t, template(idle, "orders"))
	require.Equal(t, motto, exec(t, p, "cat", secrets+"/motto"))
	require.Contains(t, user(t, p), s.Name, "Vault puts the role's name into the user's")
	s.holds(t, 1)
	s.remove(t, p)
	awaitGone(t, p)
	s.holds(t, 0)
}

// busy logs in every second, and writes down as whom and what went wrong.
const busy = "trap exit TERM; while :; do psql -XAtc 'select current_user' >>/tmp/users 2>>/tmp/errors; sleep 1; done"

func replacement(t *testing.T) {
	s := newScene(t, shortLived)
	s.orders(t)
	p := s.run(t, template(busy, "orders"))
	s.awaitUsers(t, p, 2)
	require.Empty(t, exec(t, p, "cat", "/tmp/errors"), "every login went well")
	s.holds(t, 1)
	s.remove(t, p)
	s.holds(t, 0)
}

// awaitUsers waits until a busy pod has logged in as so many users, and answers them.
func (s *scene) awaitUsers(t *testing.T, p *core.Pod, want int) []string {
	t.Helper()
	var users []string
	require.NoError(t, await(t.Context(), time.Duration(want)*replaced, func(ctx context.Context) error {
		out, err := cluster.Exec(ctx, p, "app", "cat", "/tmp/users")
		if err != nil {
			return err
		}
		users = nil
		for line := range strings.Lines(out) {
			if line = strings.TrimSpace(line); len(users) == 0 || users[len(users)-1] != line {
				users = append(users, line)
			}
		}
		if len(users) < want {
			return fmt.Errorf("logged in as %q", users)
		}
		return nil
	}))
	return users
}

func nonRoot(t *testing.T) {
	s := newScene(t, fixture.ScopeOptions{})
	s.class(t, "orders", s.database("  owner: 1000\n  group: 1000\n  filePermission: 0600\n"))
	of := template(idle, "orders")
	id, yes := int64(1000), true
	of.Spec.SecurityContext = &core.PodSecurityContext{RunAsUser: &id, RunAsGroup: &id, RunAsNonRoot: &yes}
	p := s.run(t, of)
	require.Equal(t, "1000 1000 600", exec(t, p, "stat", "-Lc", "%u %g %a", secrets+"/orders.conf"))
	require.Contains(t, user(t, p), s.Name)
}

func syncedSecret(t *testing.T) {
	s := newScene(t, fixture.ScopeOptions{})
	s.class(t, "orders", s.motto(), syncs)
	p := s.run(t, template(idle, "orders"))
	secret := s.synced(t)
	s.remove(t, p)
	awaitGone(t, secret)
}

// syncs has the driver sync a class' motto to a Kubernetes Secret.
func syncs(c *driver.SecretProviderClass) {
	c.Spec.SecretObjects = []*driver.SecretObject{{
		SecretName: "synced", Type: "Opaque", Data: []*driver.SecretObjectData{{ObjectName: "motto", Key: "motto"}},
	}}
}

// synced waits for the Secret of a class that syncs.
func (s *scene) synced(t *testing.T) *core.Secret {
	t.Helper()
	secret := &core.Secret{}
	secret.Namespace, secret.Name = s.namespace, "synced"
	require.NoError(t, await(t.Context(), soon, func(ctx context.Context) error {
		err := cluster.Client.Get(ctx, client.ObjectKeyFromObject(secret), secret)
		if err == nil && len(secret.OwnerReferences) == 0 { // the driver adds the owner a little later
			err = errors.New("the secret has no owner yet")
		}
		return err
	}))
	require.Equal(t, motto, string(secret.Data["motto"]))
	return secret
}

func twoClasses(t *testing.T) {
	s := newScene(t, fixture.ScopeOptions{})
	s.orders(t)
	s.class(t, "again", s.database(""))
	p := s.run(t, template(idle, "orders", "again"))
	s.holds(t, 2)
	one := exec(t, p, "cat", secrets+"/orders.conf")
	two := exec(t, p, "cat", secrets+"-again/orders.conf")
	require.NotEqual(t, one, two, "each volume has a user of its own")
	s.remove(t, p)
	s.holds(t, 0)
}

func forceDelete(t *testing.T) {
	s := newScene(t, fixture.ScopeOptions{})
	s.orders(t)
	p := s.run(t, template(idle, "orders"))
	s.holds(t, 1)
	s.remove(t, p, client.GracePeriodSeconds(0))
	s.holds(t, 0)
}

func namespaceDelete(t *testing.T) {
	s := newScene(t, fixture.ScopeOptions{})
	s.orders(t)
	s.run(t, template(idle, "orders"))
	s.holds(t, 1)
	space := &core.Namespace{}
	space.Name = s.namespace
	s.remove(t, space)
	awaitGone(t, space)
	s.holds(t, 0)
}

func reboot(t *testing.T) {
	s := newScene(t, shortLived)
	s.orders(t)
	p := s.run(t, template(idle, "orders"))
	uid, before := p.UID, user(t, p)
	require.NoError(t, cluster.Reboot(t.Context()))
	require.NoError(t, await(t.Context(), 2*soon, func(ctx context.Context) error {
		if err := cluster.Client.Get(ctx, client.ObjectKeyFromObject(p), p); err != nil {
			return err
		}
		switch out, err := cluster.Exec(ctx, p, "app", "psql", "-XAtc", "select current_user"); {
		case err != nil:
			return err
		case strings.TrimSpace(out) == before:
			return errors.New("the pod still has its old user")
		}
		return nil
	}))
	require.Equal(t, uid, p.UID)
	s.holds(t, 1)
	s.remove(t, p)
	s.holds(t, 0)
}
