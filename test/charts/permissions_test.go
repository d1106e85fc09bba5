package charts

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	core "k8s.io/api/core/v1"
	rbac "k8s.io/api/rbac/v1"
)

// TestPermissions switches on one permission at a time: its rule, its flag, and
// nothing else.
func TestPermissions(t *testing.T) {
	t.Parallel()
	const csi = "secrets-store.csi.x-k8s.io"
	pods := rbac.PolicyRule{APIGroups: []string{""}, Resources: []string{"pods"}, Verbs: []string{"get", "list", "watch"}}
	for _, row := range []struct {
		values string
		flags  []string
		rules  []rbac.PolicyRule
	}{
		{"events: true", []string{"--kube-events"}, []rbac.PolicyRule{{APIGroups: []string{""}, Resources: []string{"events"}, Verbs: []string{"create"}}}},
		{"podWatch: true", []string{"--kube-pods"}, []rbac.PolicyRule{pods}},
		{"podWatch: true, spcWatch: true", []string{"--kube-pods", "--kube-spcs"}, []rbac.PolicyRule{
			pods,
			{APIGroups: []string{csi}, Resources: []string{"secretproviderclasses"}, Verbs: []string{"list", "watch"}},
		}},
		{"statusSync: true", []string{"--kube-status"}, []rbac.PolicyRule{{APIGroups: []string{csi}, Resources: []string{"secretproviderclasspodstatuses"}, Verbs: []string{"get", "update"}}}},
		{"tokenRequest: true", []string{"--kube-token-requests"}, []rbac.PolicyRule{{APIGroups: []string{""}, Resources: []string{"serviceaccounts/token"}, Verbs: []string{"create"}}}},
	} {
		t.Run(row.values, func(t *testing.T) {
			t.Parallel()
			m := render(t, "kubernetes: {"+row.values+"}")
			var flags []string
			for _, arg := range m.container(t).Args {
				if strings.HasPrefix(arg, "--kube-") {
					flags = append(flags, arg)
				}
			}
			require.Equal(t, row.flags, flags)
			requireKnown(t, m.container(t).Args)
			require.Equal(t, row.rules, m.role.Rules)
			require.Equal(t, rbac.RoleRef{APIGroup: "rbac.authorization.k8s.io", Kind: "ClusterRole", Name: m.role.Name}, m.binding.RoleRef)
			require.Equal(t, []rbac.Subject{{Kind: "ServiceAccount", Name: m.account.Name, Namespace: "kube-system"}}, m.binding.Subjects)
			pod := m.daemonSet.Spec.Template.Spec
			require.Equal(t, m.account.Name, pod.ServiceAccountName)
			require.Equal(t, new(true), pod.AutomountServiceAccountToken)
			require.Contains(t, m.container(t).Args, "--node-name=$(NODE_NAME)")
			require.Equal(t, []core.EnvVar{{Name: "NODE_NAME", ValueFrom: &core.EnvVarSource{FieldRef: &core.ObjectFieldSelector{FieldPath: "spec.nodeName"}}}}, m.container(t).Env)
		})
	}
}

func TestPermissionsOfOnesOwn(t *testing.T) {
	t.Parallel()
	m := render(t, "{rbac: {install: false}, kubernetes: {events: true}}")
	require.Nil(t, m.role)
	require.Nil(t, m.binding)
	require.Contains(t, m.container(t).Args, "--kube-events")
}
