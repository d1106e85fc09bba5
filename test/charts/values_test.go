package charts

import (
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"sigs.k8s.io/yaml"
)

func TestLint(t *testing.T) {
	t.Parallel()
	out, err := helm(t, "", "lint", "--strict", chart, needed)
	require.NoError(t, err, out)
}

// TestRefused says what is refused before anything reaches the cluster, and that
// the message names it.
func TestRefused(t *testing.T) {
	t.Parallel()
	for _, row := range []struct{ name, values, want string }{
		{"no image", "", "image.repository is not set: there is no published image yet"},
		{"misspelt at the top", "tolerance: []", "tolerance"},
		{"misspelt below", "vault: {adrs: ['https://a']}", "adrs"},
		{"misspelt in the depth", "vault: {tls: {ca: {confgMap: x}}}", "confgMap"},
		{"unknown permission", "kubernetes: {secrets: true}", "secrets"},
		{"text for a switch", "kubernetes: {events: 'yes'}", "/kubernetes/events"},
		{"address without scheme", "vault: {addrs: ['vault:8200']}", "/vault/addrs/0"},
		{"two addresses in one", "vault: {addrs: ['https://a,https://b']}", "/vault/addrs/0"},
		{"one address for a list", "vault: {addrs: 'https://a'}", "/vault/addrs"},
		{"surge", "updateStrategy: {rollingUpdate: {maxSurge: 1}}", "maxSurge"},
		{"short grace", "terminationGracePeriodSeconds: 30", "/terminationGracePeriodSeconds"},
		{"relative directory", "stateDir: run/tenure", "/stateDir"},
		{"directory with a slash at its end", "kubeletRootDir: /var/lib/kubelet/", "/kubeletRootDir"},
		{"level", "logVerbosity: trace", "/logVerbosity"},
		{"name that the driver refuses", "providerNames: ['a b']", "/providerNames/0"},
		{"no name", "providerNames: []", "/providerNames"},
		{"path that the daemon does not serve", "healthzPath: /health", "/healthzPath"},
		{"digest cut short", "image: {digest: 'sha256:12'}", "/image/digest"},
		{"two ports", "healthzPort: 9000", "healthzPort and metrics.port differ, but one server answers both"},
		{"SPCs without pods", "kubernetes: {spcWatch: true}", "kubernetes.spcWatch is on without kubernetes.podWatch"},
		{"two CAs", "vault: {tls: {ca: {configMap: a, secret: b}}}", "vault.tls.ca names both"},
		{"another kubelet for the driver", "{kubeletRootDir: /k, secrets-store-csi-driver: {install: true}}", "secrets-store-csi-driver.linux.kubeletRootDir differ"},
		{"sockets where the driver does not look", "{providersDir: /p, secrets-store-csi-driver: {install: true}}", "providersDir is none of the driver's"},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			args := []string{"template", "tenure", chart}
			if row.name != "no image" {
				args = append(args, needed)
			}
			_, err := helm(t, row.values, args...)
			require.ErrorContains(t, err, row.want)
		})
	}
}

// leaves are the paths of all values: a.b.c.
func leaves(prefix string, value any) (paths []string) {
	below, ok := value.(map[string]any)
	if !ok || len(below) == 0 {
		return []string{prefix}
	}
	for _, name := range slices.Sorted(maps.Keys(below)) {
		paths = append(paths, leaves(strings.TrimPrefix(prefix+"."+name, "."), below[name])...)
	}
	return paths
}

func readYAML(t *testing.T, path string, into any) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(repository, path))
	require.NoError(t, err)
	require.NoError(t, yaml.Unmarshal(text, into))
}

// TestSchemaIsStrict checks that the schema knows each value, and closes each
// object that values.yaml spells out: one left open takes every typing mistake.
func TestSchemaIsStrict(t *testing.T) {
	t.Parallel()
	var schema, values map[string]any
	readYAML(t, "charts/tenure/values.schema.json", &schema)
	readYAML(t, "charts/tenure/values.yaml", &values)
	// What Kubernetes or another chart defines is theirs to check.
	open := []string{"affinity", "resources.requests", "resources.limits", "securityContext", "secrets-store-csi-driver"}
	var closed func(path string, node, value map[string]any)
	closed = func(path string, node, value map[string]any) {
		if ref, ok := node["$ref"].(string); ok {
			node = schema["$defs"].(map[string]any)[filepath.Base(ref)].(map[string]any)
		}
		if slices.Contains(open, path) {
			return
		}
		require.Equal(t, false, node["additionalProperties"], path)
		properties := node["properties"].(map[string]any)
		for name, v := range value {
			require.Contains(t, properties, name, path)
			if below, ok := v.(map[string]any); ok && len(below) > 0 {
				closed(strings.TrimPrefix(path+"."+name, "."), properties[name].(map[string]any), below)
			}
		}
	}
	closed("", schema, values)
}

// TestReadmeNamesEachValue keeps the table and values.yaml together.
func TestReadmeNamesEachValue(t *testing.T) {
	t.Parallel()
	var values map[string]any
	readYAML(t, "charts/tenure/values.yaml", &values)
	text, err := os.ReadFile(repository + "/charts/tenure/README.md")
	require.NoError(t, err)
	// `a.b`, `.c` in one row's first column means a.b and a.c; `a.*` or `a` all below.
	var named []string
	for _, row := range regexp.MustCompile("(?m)^\\| (`.*?) \\|").FindAllStringSubmatch(string(text), -1) {
		parent := ""
		for _, cell := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(row[1], -1) {
			name := strings.TrimSuffix(cell[1], ".*")
			if strings.HasPrefix(name, ".") {
				name = parent + name
			} else if dot := strings.LastIndex(name, "."); dot >= 0 {
				parent = name[:dot]
			}
			named = append(named, name)
		}
	}
	for _, path := range leaves("", values) {
		require.True(t, slices.ContainsFunc(named, func(name string) bool {
			return path == name || strings.HasPrefix(path, name+".")
		}), "README.md does not name %s", path)
	}
	for _, name := range named {
		require.True(t, slices.ContainsFunc(leaves("", values), func(path string) bool {
			return path == name || strings.HasPrefix(path, name+".")
		}), "README.md names %s, which there is not", name)
	}
}

// TestManifestsAreFresh compares manifests/ with what the chart gives.
func TestManifestsAreFresh(t *testing.T) {
	t.Parallel()
	committed, err := os.ReadFile(repository + "/manifests/tenure.yaml")
	require.NoError(t, err)
	rendered, err := script(t, "manifests.sh")
	require.NoError(t, err)
	require.Equal(t, rendered, string(committed), "run: make manifests")
	m := decode(t, rendered)
	require.Nil(t, m.secret, "a key that everybody has would be none")
	require.Nil(t, m.role)
	require.Equal(t, 2, strings.Count(rendered, " # CHANGE\n"), "image and address")
}

// TestExamplesRender renders the values that examples give.
func TestExamplesRender(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob(repository + "/examples/*/values.yaml")
	require.NoError(t, err)
	require.NotEmpty(t, files)
	for _, file := range files {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		out, err := helm(t, string(text), "template", "tenure", chart)
		require.NoError(t, err, file)
		requireKnown(t, decode(t, out).container(t).Args)
	}
}
