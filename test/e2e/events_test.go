//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	core "k8s.io/api/core/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	driver "sigs.k8s.io/secrets-store-csi-driver/apis/v1"

	"github.com/tenure-csi/tenure/test/fixture"
	"github.com/tenure-csi/tenure/test/node"
)

// refusals are pods that can't start. What their author is told is in
// testdata/events, a file each.
var refusals = []struct {
	name  string
	class func(*driver.SecretProviderClass)
	spec  func(*core.PodSpec)
	while func(t *testing.T) (restore func(context.Context) error)
}{
	{
		name:  "no-such-role",
		class: func(c *driver.SecretProviderClass) { c.Spec.Parameters["roleName"] = "nobody" },
	},
	{
		name: "another-service-account",
		spec: func(p *core.PodSpec) { p.ServiceAccountName = "other" },
	},
	{
		name: "path-not-allowed",
		class: func(c *driver.SecretProviderClass) {
			c.Spec.Parameters["objects"] = "- {objectName: other, secretPath: secret/data/other}"
		},
	},
	{
		name: "unknown-field",
		class: func(c *driver.SecretProviderClass) {
			c.Spec.Parameters["objects"] = "- {objectName: motto, secretPth: kv/app}"
		},
	},
	{
		name: "no-token",
		while: func(t *testing.T) func(context.Context) error {
			t.Helper()
			require.NoError(t, cluster.SetDriver(t.Context(), node.Options{Audiences: []string{}}))
			return func(ctx context.Context) error { return cluster.SetDriver(ctx, node.Options{}) }
		},
	},
	{
		name: "tenant-not-bound",
		class: func(c *driver.SecretProviderClass) {
			c.Spec.Parameters["tenants"] = "[acme]"
			c.Spec.Parameters["objects"] = `- {objectName: "{tenant}", secretPath: "kv/{tenant}", secretKey: motto}`
		},
		while: func(t *testing.T) func(context.Context) error {
			t.Helper()
			restore, err := upgradeTenure(t.Context(), `
tenantBindings:
  rules:
    - {name: shop, namespaces: [shop], serviceAccounts: [orders], tenants: [acme]}
`)
			require.NoError(t, err)
			return restore
		},
	},
	{
		name: "vault-down",
		while: func(t *testing.T) func(context.Context) error {
			t.Helper()
			require.NoError(t, stack.Vault.Kill())
			return stack.Vault.Restart
		},
	},
}

func failedMounts(t *testing.T) {
	for _, r := range refusals {
		t.Run(r.name, func(t *testing.T) {
			report.note(t, "what the pod's Event says: "+r.name)
			s := newScene(t, fixture.ScopeOptions{})
			s.create(t, &core.ServiceAccount{ObjectMeta: meta.ObjectMeta{Name: "other"}})
			s.class(t, "orders", s.motto(), func(c *driver.SecretProviderClass) {
				if r.class != nil {
					r.class(c)
				}
			})
			of := template(idle, "orders")
			if r.spec != nil {
				r.spec(&of.Spec)
			}
			if r.while != nil {
				restore := r.while(t)
				defer func() { require.NoError(t, restore(context.WithoutCancel(t.Context()))) }()
			}
			p := pod(of)
			s.create(t, p)
			s.golden(t, r.name, s.failedMount(t, p))
		})
	}
}

// failedMount waits for the Event that says why a pod does not start.
func (s *scene) failedMount(t *testing.T, p *core.Pod) string {
	t.Helper()
	var text string
	require.NoError(t, await(t.Context(), soon, func(ctx context.Context) error {
		messages, err := s.events(ctx, p.Name, "FailedMount")
		if err != nil {
			return err
		}
		for _, m := range messages {
			if strings.Contains(m, "rpc error:") { // the driver says it, not kubelet
				text = m
				return nil
			}
		}
		return fmt.Errorf("the pod's FailedMount events are %q", messages)
	}))
	return text
}

// golden compares an Event's text, with the scene's own names taken out.
func (s *scene) golden(t *testing.T, name, text string) {
	t.Helper()
	text = strings.NewReplacer(s.Name, "SCENE", strings.TrimPrefix(stack.Vault.Addr, "http://"), "VAULT").Replace(text) + "\n"
	path := filepath.Join("testdata", "events", name+".txt")
	if *update {
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, os.WriteFile(path, []byte(text), 0o644))
	}
	want, err := os.ReadFile(path)
	require.NoError(t, err, "write it with -update")
	require.Equal(t, string(want), text)
}
