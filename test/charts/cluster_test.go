package charts

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// cluster stands in for an API server: it answers what Helm asks before it looks
// objects up, and has the objects given by their path.
func cluster(t *testing.T, objects map[string]any) (kubeconfig string) {
	t.Helper()
	resource := func(name, kind string, namespaced bool) map[string]any {
		return map[string]any{"name": name, "kind": kind, "namespaced": namespaced, "verbs": []string{"get"}}
	}
	list := func(group string, resources ...map[string]any) map[string]any {
		return map[string]any{"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group, "resources": resources}
	}
	group := func(name string) map[string]any {
		version := map[string]any{"groupVersion": name + "/v1", "version": "v1"}
		return map[string]any{"name": name, "versions": []any{version}, "preferredVersion": version}
	}
	answers := map[string]any{
		"/version":                map[string]any{"major": "1", "minor": "34", "gitVersion": "v1.34.0"},
		"/api":                    map[string]any{"kind": "APIVersions", "versions": []string{"v1"}},
		"/apis":                   map[string]any{"kind": "APIGroupList", "apiVersion": "v1", "groups": []any{group("apps"), group("storage.k8s.io"), group("rbac.authorization.k8s.io")}},
		"/api/v1":                 list("v1", resource("secrets", "Secret", true), resource("serviceaccounts", "ServiceAccount", true)),
		"/apis/apps/v1":           list("apps/v1", resource("daemonsets", "DaemonSet", true)),
		"/apis/storage.k8s.io/v1": list("storage.k8s.io/v1", resource("csidrivers", "CSIDriver", false)),
		"/apis/rbac.authorization.k8s.io/v1": list("rbac.authorization.k8s.io/v1",
			resource("clusterroles", "ClusterRole", false), resource("clusterrolebindings", "ClusterRoleBinding", false)),
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		answer, ok := answers[r.URL.Path]
		if !ok {
			answer, ok = objects[r.URL.Path]
		}
		w.Header().Set("Content-Type", "application/json")
		if !ok {
			w.WriteHeader(http.StatusNotFound)
			answer = map[string]any{"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404}
		}
		_ = json.NewEncoder(w).Encode(answer)
	}))
	t.Cleanup(server.Close)
	path := filepath.Join(t.TempDir(), "kubeconfig")
	require.NoError(t, os.WriteFile(path, fmt.Appendf(nil, `{apiVersion: v1, kind: Config, current-context: c,
contexts: [{name: c, context: {cluster: c, user: u}}], clusters: [{name: c, cluster: {server: %q}}], users: [{name: u, user: {}}]}`, server.URL), 0o600))
	return path
}

// installed is what `helm install` would do to the cluster, and its notes.
func installed(t *testing.T, values string, objects map[string]any) (rendered manifests, notes string) {
	t.Helper()
	out, err := helm(t, values, "install", "tenure", chart, "--namespace", "kube-system", needed,
		"--dry-run=server", "--disable-openapi-validation", "--kubeconfig", cluster(t, objects))
	require.NoError(t, err)
	out, notes, ok := strings.Cut(out, "\nNOTES:\n")
	require.True(t, ok, out)
	_, out, ok = strings.Cut(out, "\nMANIFEST:\n")
	require.True(t, ok, out)
	return decode(t, out), notes
}

// TestVersionKeyIsKept upgrades a cluster that has a key.
func TestVersionKeyIsKept(t *testing.T) {
	t.Parallel()
	const path = "/api/v1/namespaces/kube-system/secrets/tenure-version-key"
	kept := map[string]any{
		"kind": "Secret", "apiVersion": "v1", "metadata": map[string]any{
			"name": "tenure-version-key", "namespace": "kube-system", "labels": map[string]any{"app.kubernetes.io/managed-by": "Helm"},
			"annotations": map[string]any{"meta.helm.sh/release-name": "tenure", "meta.helm.sh/release-namespace": "kube-system"},
		},
		"data": map[string]any{"key": "bXkta2VwdC1rZXk="},
	}
	m, _ := installed(t, "", map[string]any{path: kept})
	require.Equal(t, "my-kept-key", string(m.secret.Data["key"]))
	m, _ = installed(t, "", nil)
	require.Len(t, m.secret.Data["key"], 40, "there was none")
}

// TestNotes holds the notes for a cluster whose driver lacks what Tenure needs.
func TestNotes(t *testing.T) {
	t.Parallel()
	const path = "/apis/storage.k8s.io/v1/csidrivers/secrets-store.csi.k8s.io"
	driver := func(spec map[string]any) map[string]any {
		return map[string]any{path: map[string]any{
			"kind": "CSIDriver", "apiVersion": "storage.k8s.io/v1", "metadata": map[string]any{"name": "secrets-store.csi.k8s.io"}, "spec": spec,
		}}
	}
	ready := map[string]any{"requiresRepublish": true, "tokenRequests": []any{map[string]any{"audience": "vault"}}}
	const vault = "vault: {addrs: ['https://vault:8200']}"
	for _, row := range []struct {
		name, values string
		driver       map[string]any
		warnings     []string
	}{
		{"ready", vault, driver(ready), nil},
		{"no address", "", driver(ready), []string{"vault.addrs is empty"}},
		{"no driver", vault, nil, []string{"the driver was not found"}},
		{"driver as it comes", vault, driver(map[string]any{"requiresRepublish": false}), []string{"it has no tokenRequests now", "it has no requiresRepublish now"}},
		{"the driver is installed along", vault + "\nsecrets-store-csi-driver: {install: true}", nil, nil},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			_, notes := installed(t, row.values, row.driver)
			require.Equal(t, len(row.warnings), strings.Count(notes, "WARNING:"), notes)
			for _, warning := range row.warnings {
				require.Contains(t, notes, warning)
			}
			require.Contains(t, notes, "kubectl --namespace kube-system exec daemonset/tenure -- /tenure status\n")
			require.Contains(t, notes, "BEFORE YOU UNINSTALL")
			require.Equal(t, strings.Contains(row.values, "install: true"), strings.Contains(notes, "The driver goes too"))
		})
	}
}
