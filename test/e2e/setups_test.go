//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	osexec "os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	authorization "k8s.io/api/authorization/v1"
	core "k8s.io/api/core/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	driver "sigs.k8s.io/secrets-store-csi-driver/apis/v1"

	"github.com/tenure-csi/tenure/internal/lease"
	"github.com/tenure-csi/tenure/test/fixture"
	"github.com/tenure-csi/tenure/test/node"
)

// row is a cell or more of the README's table of set-ups. start makes a pod, and
// what it answers is done once the daemon has been replaced under it.
type row struct {
	name  string
	start func(t *testing.T) (then func(t *testing.T))
}

// setUp runs the rows of one set-up side by side. Between start and then the
// daemon is replaced, which keeps no pod's identity.
func setUp(t *testing.T, name string, rows []row) {
	t.Helper()
	var then []func(t *testing.T)
	for _, r := range rows {
		then = append(then, r.start(t))
	}
	require.NoError(t, newDaemon(t.Context(), func(ctx context.Context, old *core.Pod) error {
		return cluster.Client.Delete(ctx, old, client.GracePeriodSeconds(0))
	}))
	t.Run("rows", func(t *testing.T) {
		for i, r := range rows {
			t.Run(r.name, func(t *testing.T) {
				t.Parallel()
				report.note(t, name+": "+r.name)
				then[i](t)
			})
		}
	})
}

// withoutRotation switches the driver's rotation off until the test's end.
func withoutRotation(t *testing.T) {
	t.Helper()
	require.NoError(t, cluster.SetRotation(t.Context(), false))
	t.Cleanup(func() { require.NoError(t, cluster.SetRotation(context.WithoutCancel(t.Context()), true)) })
}

// configure gives the chart further values until the test's end.
func configure(t *testing.T, values string) {
	t.Helper()
	restore, err := upgradeTenure(t.Context(), values)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, restore(context.WithoutCancel(t.Context()))) })
}

// upgradeTenure gives the chart further values. They must change the daemon's pod.
func upgradeTenure(ctx context.Context, values string) (restore func(context.Context) error, err error) {
	helm := func(ctx context.Context, values string, args ...string) error {
		return newDaemon(ctx, func(ctx context.Context, _ *core.Pod) error {
			_, err := cluster.Helm(ctx, values, append(args, "--namespace="+releaseNamespace, "--no-hooks")...) // see node.SetDriver
			return err
		})
	}
	restore = func(ctx context.Context) error { return helm(ctx, "", "rollback", release) }
	return restore, helm(ctx, values, "upgrade", release, chart, "--reuse-values", "--values=-")
}

func rotationOn(t *testing.T) {
	setUp(t, "tokenRequests and rotation on", []row{
		{"AppRole: replaced with a fresh login", func(t *testing.T) func(*testing.T) {
			s := newScene(t, shortLived)
			p := s.runAppRole(t, 30*time.Second)
			return func(t *testing.T) { s.isReplaced(t, p) }
		}},
		{"an edited SecretProviderClass is carried out at the next republish", edited},
		{"a synced Secret follows at the next republish", syncedUser},
	})
}

func rotationOff(t *testing.T) {
	withoutRotation(t)
	setUp(t, "rotation off", []row{
		{"replaced under the living Vault token", func(t *testing.T) func(*testing.T) {
			s := newScene(t, shortLived)
			s.orders(t)
			p := s.run(t, template(busy, "orders"))
			return func(t *testing.T) { s.isReplaced(t, p) }
		}},
		{"needs-identity when the Vault token has come to its end", func(t *testing.T) func(*testing.T) {
			s := newScene(t, halfAMinute)
			s.orders(t)
			s.tokensLive(t, 40*time.Second)
			p := s.run(t, template(idle, "orders"))
			return func(t *testing.T) { s.needsIdentity(t, p, `audience "vault"`, "requiresRepublish: true") }
		}},
		{"AppRole: replaced with the Secret of the first Mount; needs-identity after a restart", func(t *testing.T) func(*testing.T) {
			s := newScene(t, halfAMinute)
			p := s.runAppRole(t, 40*time.Second)
			s.awaitUsers(t, p, 2)
			return func(t *testing.T) { s.needsIdentity(t, p, "nodePublishSecretRef", "enableSecretRotation: true") }
		}},
	})
}

func permissions(t *testing.T) {
	withoutRotation(t)
	configure(t, "kubernetes: {events: true, podWatch: true, spcWatch: true, statusSync: true, tokenRequest: true}")
	setUp(t, "rotation off, with Kubernetes permissions", []row{
		{"replaced with a requested token when the Vault token has come to its end", func(t *testing.T) func(*testing.T) {
			s := newScene(t, shortLived)
			s.orders(t)
			s.tokensLive(t, 30*time.Second)
			p := s.run(t, template(busy, "orders"))
			return func(t *testing.T) { s.isReplaced(t, p) }
		}},
		{"an edited SecretProviderClass is carried out in seconds", edited},
		{"a synced Secret follows at once", syncedUser},
		{"AppRole after a restart: the pod's Event says NeedsIdentity", func(t *testing.T) func(*testing.T) {
			s := newScene(t, shortLived)
			p := s.runAppRole(t, 30*time.Second)
			return func(t *testing.T) {
				require.NoError(t, await(t.Context(), replaced, func(ctx context.Context) error {
					told, err := s.events(ctx, p.Name, "NeedsIdentity")
					if err == nil && len(told) == 0 {
						err = errors.New("the pod has no such Event")
					}
					return err
				}))
				s.end(t, p)
			}
		}},
	})
}

// tokensLive gives the scene's role tokens that end for good after d.
func (s *scene) tokensLive(t *testing.T, d time.Duration) {
	t.Helper()
	role := fixture.AuthRole{Namespace: s.namespace, Policies: []string{s.Name}, TTL: d, Max: d}
	require.NoError(t, stack.Vault.KubernetesRole(t.Context(), "kubernetes", s.Name, account, role))
}

// runAppRole runs a busy pod that logs in to Vault with an AppRole, whose tokens
// end for good after d.
func (s *scene) runAppRole(t *testing.T, d time.Duration) *core.Pod {
	t.Helper()
	ctx, mount := t.Context(), "approle-"+s.Name
	require.NoError(t, stack.Vault.EnableAppRole(ctx, mount))
	id, err := stack.Vault.AppRole(ctx, mount, s.Name, "", fixture.AuthRole{Policies: []string{s.Name}, TTL: d, Max: d})
	require.NoError(t, err)
	secret, err := stack.Vault.SecretID(ctx, mount, s.Name, 0)
	require.NoError(t, err)
	s.create(t, &core.Secret{
		ObjectMeta: meta.ObjectMeta{Name: "approle"}, StringData: map[string]string{"role_id": id, "secret_id": secret},
	})
	s.class(t, "orders", s.database(""), func(c *driver.SecretProviderClass) {
		delete(c.Spec.Parameters, "roleName")
		c.Spec.Parameters["vaultAuthMethod"], c.Spec.Parameters["vaultAuthMountPath"] = "approle", mount
	})
	of := template(busy, "orders")
	of.Spec.Volumes[0].CSI.NodePublishSecretRef = &core.LocalObjectReference{Name: "approle"}
	return s.run(t, of)
}

// isReplaced waits until a busy pod logs in as another user than up to now, and
// requires that every login went well.
func (s *scene) isReplaced(t *testing.T, p *core.Pod) {
	t.Helper()
	s.awaitUsers(t, p, len(s.awaitUsers(t, p, 1))+1)
	require.Empty(t, exec(t, p, "cat", "/tmp/errors"), "every login went well")
	s.end(t, p)
}

// end deletes a pod, and waits until it has left nothing.
func (s *scene) end(t *testing.T, p *core.Pod) {
	t.Helper()
	s.remove(t, p)
	s.holds(t, 0)
}

// halfAMinute is a database credential that is replaced for the end of a token of
// 40 s between its 29th and 33rd second.
var halfAMinute = fixture.ScopeOptions{TTL: 30 * time.Second, MaxTTL: time.Hour}

// needsIdentity waits until `tenure status` says so of a pod's volume, what lacks
// and the way out.
func (s *scene) needsIdentity(t *testing.T, p *core.Pod, lacks, remedy string) {
	t.Helper()
	require.NoError(t, await(t.Context(), replaced, func(ctx context.Context) error {
		volumes, err := status(ctx)
		if err != nil {
			return err
		}
		for _, v := range volumes {
			if v.PodUID == string(p.UID) && v.State == lease.NeedsIdentity {
				require.Contains(t, v.Problem, lacks)
				require.Contains(t, v.Problem, remedy)
				return nil
			}
		}
		return fmt.Errorf("the volumes are %+v", volumes)
	}))
	s.end(t, p)
}

// status asks the daemon as a person on the node would.
func status(ctx context.Context) (volumes []lease.VolumeStatus, err error) {
	root, err := fixture.Root()
	if err != nil {
		return nil, err
	}
	out, err := osexec.CommandContext(ctx, filepath.Join(root, "bin", "tenure"), "status", "-o", "json").Output()
	if err != nil {
		return nil, fmt.Errorf("running tenure status: %w", err)
	}
	return volumes, json.Unmarshal(out, &volumes)
}

// edited adds a file to a class that names a role which does not exist, so that
// it is only carried out as long as the role that the pod overrides it with stays.
func edited(t *testing.T) func(*testing.T) {
	s := newScene(t, fixture.ScopeOptions{})
	class := s.class(t, "orders", s.motto(), func(c *driver.SecretProviderClass) { c.Spec.Parameters["roleName"] = "nobody" })
	of := template(idle, "orders")
	of.Spec.Volumes[0].CSI.VolumeAttributes["roleName"] = s.Name
	p := s.run(t, of)
	return func(t *testing.T) {
		class.Spec.Parameters["objects"] += s.database("")
		began := time.Now()
		require.NoError(t, cluster.Client.Update(t.Context(), class))
		require.NoError(t, await(t.Context(), soon, func(ctx context.Context) error {
			_, err := cluster.Exec(ctx, p, "app", "cat", secrets+"/orders.conf")
			return err
		}))
		t.Logf("the edit was in the volume after %s", time.Since(began).Round(100*time.Millisecond))
		require.Contains(t, user(t, p), s.Name)
		s.end(t, p)
	}
}

// syncedUser replaces a database user that the driver syncs to a Kubernetes Secret.
func syncedUser(t *testing.T) func(*testing.T) {
	s := newScene(t, fixture.ScopeOptions{TTL: 10 * time.Second, MaxTTL: 30 * time.Second})
	s.class(t, "orders", fmt.Sprintf("- {objectName: user, secretPath: %s, secretKey: username}", s.Creds), func(c *driver.SecretProviderClass) {
		c.Spec.SecretObjects = []*driver.SecretObject{{
			SecretName: "synced", Type: "Opaque", Data: []*driver.SecretObjectData{{ObjectName: "user", Key: "user"}},
		}}
	})
	p := s.run(t, template(idle, "orders"))
	before := exec(t, p, "cat", secrets+"/user")
	return func(t *testing.T) {
		var now string
		require.NoError(t, await(t.Context(), replaced, func(ctx context.Context) (err error) {
			if now, err = cluster.Exec(ctx, p, "app", "cat", secrets+"/user"); err == nil && now == before {
				err = errors.New("the user is still the first")
			}
			return err
		}))
		began := time.Now()
		require.NoError(t, await(t.Context(), soon, func(ctx context.Context) error {
			var secret core.Secret
			err := cluster.Client.Get(ctx, client.ObjectKey{Namespace: s.namespace, Name: "synced"}, &secret)
			if got := string(secret.Data["user"]); err == nil && got != now {
				err = fmt.Errorf("the Secret says %q, the file %q", got, now)
			}
			return err
		}))
		t.Logf("the Secret followed within %s", time.Since(began).Round(100*time.Millisecond))
		s.end(t, p)
	}
}

// noPermission is about the daemon that all cases work with, but for those that
// configure another: its service account may do what any may, and its pod has no
// token of it.
func noPermission(t *testing.T) {
	s := newScene(t, fixture.ScopeOptions{})
	pods, err := daemons(t.Context())
	require.NoError(t, err)
	require.Len(t, pods, 1)
	require.Equal(t, new(bool), pods[0].Spec.AutomountServiceAccountToken)
	for _, v := range pods[0].Spec.Volumes {
		require.Nil(t, v.Projected, v.Name)
	}
	mine := rules(t, releaseNamespace, pods[0].Spec.ServiceAccountName, s.namespace)
	require.ElementsMatch(t, rules(t, s.namespace, account, s.namespace), mine)

	s.orders(t)
	p := s.run(t, template(idle, "orders"))
	s.holds(t, 1)
	s.end(t, p)
}

// rules answers what a service account may do in a namespace.
func rules(t *testing.T, of, name, namespace string) []authorization.ResourceRule {
	t.Helper()
	token, err := cluster.Token(t.Context(), of, name)
	require.NoError(t, err)
	as, err := rest.HTTPClientFor(&rest.Config{
		BearerToken: token, TLSClientConfig: rest.TLSClientConfig{CAData: []byte(cluster.CA())},
	})
	require.NoError(t, err)
	body, err := json.Marshal(map[string]any{"spec": map[string]any{"namespace": namespace}})
	require.NoError(t, err)
	url := node.URL + "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews"
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, bytes.NewReader(body))
	require.NoError(t, err)
	req.Header.Set("Content-Type", "application/json")
	resp, err := as.Do(req)
	require.NoError(t, err)
	defer resp.Body.Close()
	require.Equal(t, http.StatusCreated, resp.StatusCode)
	var review authorization.SelfSubjectRulesReview
	require.NoError(t, json.NewDecoder(resp.Body).Decode(&review))
	require.NotEmpty(t, review.Status.ResourceRules, "it may ask this, at least")
	return review.Status.ResourceRules
}
