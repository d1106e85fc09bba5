//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"net"
	"testing"

	"github.com/stretchr/testify/require"
	core "k8s.io/api/core/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	driver "sigs.k8s.io/secrets-store-csi-driver/apis/v1"

	"github.com/tenure-csi/tenure/test/fixture"
	"github.com/tenure-csi/tenure/test/node"
)

// vaultCases are those of the HashiCorp provider that need a cluster. Their
// SecretProviderClasses say provider: vault.
var vaultCases = []struct {
	name string
	run  func(t *testing.T, s *scene)
}{
	{"synced to a Kubernetes Secret", vaultSynced},
	{"a SecretProviderClass of another namespace", vaultOtherNamespace},
	{"two SecretProviderClasses in one pod", vaultTwo},
	{"wrong service account", vaultWrongAccount},
	{"custom audience", vaultCustomAudience},
}

func hashicorpCases(t *testing.T) {
	for _, c := range vaultCases {
		t.Run(c.name, func(t *testing.T) {
			report.note(t, "provider: vault: "+c.name)
			c.run(t, newScene(t, fixture.ScopeOptions{}))
		})
	}
}

// vaultClass is a class of the scene's key-value secret for the provider vault.
func (s *scene) vaultClass(t *testing.T, name string, edits ...func(*driver.SecretProviderClass)) {
	t.Helper()
	s.class(t, name, s.motto(), append(edits, asVault)...)
}

func asVault(c *driver.SecretProviderClass) { c.Spec.Provider = "vault" }

func vaultSynced(t *testing.T, s *scene) {
	s.vaultClass(t, "motto", syncs)
	p := s.run(t, template(idle, "motto"))
	secret := s.synced(t)
	s.remove(t, p)
	awaitGone(t, secret)
}

func vaultOtherNamespace(t *testing.T, s *scene) {
	s.vaultClass(t, "motto")
	other := newScene(t, fixture.ScopeOptions{})
	p := pod(template(idle, "motto"))
	other.create(t, p)
	require.Contains(t, other.failedMount(t, p), `"motto" not found`)
}

func vaultTwo(t *testing.T, s *scene) {
	s.vaultClass(t, "motto")
	s.class(t, "orders", fmt.Sprintf(`
- {objectName: dbUsername, secretPath: %[1]s, secretKey: username}
- {objectName: dbPassword, secretPath: %[1]s, secretKey: password}
`, s.Creds), asVault)
	p := s.run(t, template(idle, "motto", "orders"))
	require.Equal(t, motto, exec(t, p, "cat", secrets+"/motto"))
	host, port, err := net.SplitHostPort(stack.Postgres.Addr)
	require.NoError(t, err)
	login := fmt.Sprintf(`unset PGSERVICE; cd %s-orders
PGPASSWORD=$(cat dbPassword) psql -XAtc 'select current_user' "host=%s port=%s dbname=postgres user=$(cat dbUsername)"`, secrets, host, port)
	require.Equal(t, exec(t, p, "cat", secrets+"-orders/dbUsername"), exec(t, p, "sh", "-c", login))
	s.holds(t, 1)
	s.remove(t, p)
	s.holds(t, 0)
}

func vaultWrongAccount(t *testing.T, s *scene) {
	s.vaultClass(t, "motto")
	s.create(t, &core.ServiceAccount{ObjectMeta: meta.ObjectMeta{Name: "other"}})
	of := template(idle, "motto")
	of.Spec.ServiceAccountName = "other"
	p := pod(of)
	s.create(t, p)
	require.Contains(t, s.failedMount(t, p), "service account name not authorized")
}

func vaultCustomAudience(t *testing.T, s *scene) {
	const audience = "custom-audience"
	role := fixture.AuthRole{Namespace: s.namespace, Audience: audience, Policies: []string{s.Name}}
	require.NoError(t, stack.Vault.KubernetesRole(t.Context(), "kubernetes", s.Name, account, role))
	require.NoError(t, cluster.SetDriver(t.Context(), node.Options{Audiences: []string{node.Audience, audience}}))
	defer func() { require.NoError(t, cluster.SetDriver(context.WithoutCancel(t.Context()), node.Options{})) }()
	s.vaultClass(t, "motto", func(c *driver.SecretProviderClass) { c.Spec.Parameters["audience"] = audience })
	p := s.run(t, template(idle, "motto"))
	require.Equal(t, motto, exec(t, p, "cat", secrets+"/motto"))
	s.remove(t, p)
	awaitGone(t, p)
}
