// Package charts has a kube-apiserver take what this repository gives to one: the
// chart, the manifests and the examples.
//
// Its tests render the chart with Helm itself and check what comes out against the
// types of the Kubernetes API, strictly, and against the daemon's flags. Where the
// chart looks into the cluster, a stand-in answers (cluster_test.go); a real API
// server sees it where one is built (apiserver_test.go), and on a node in test/e2e.
package charts

import (
	"cmp"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	core "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"
)

// Everything are the chart's values with all that adds objects switched on but for
// the PodMonitor, whose type is the Prometheus operator's.
const Everything = `
vault: {addrs: ['https://vault:8200']}
kubernetes: {events: true, podWatch: true, spcWatch: true, statusSync: true, tokenRequest: true}
tenantBindings: {rules: [{namespaces: [shop]}]}
networkPolicy: {enabled: true, metricsFrom: [{namespaceSelector: {}}], egress: [{ports: [{port: 8200}]}]}
`

// WithDriver are the values that install the driver along.
const WithDriver = "secrets-store-csi-driver: {install: true}"

// Server is a kube-apiserver as an administrator's kubectl reaches it.
type Server struct {
	Kube       string // path of bin/kube, which is kubectl too
	Kubeconfig string // path of a file in a directory of the test's own
}

// Kubectl runs kubectl; what it prints is both of its outputs.
func (s Server) Kubectl(t *testing.T, stdin string, args ...string) (string, error) {
	t.Helper()
	ctx := context.WithoutCancel(t.Context()) // it also cleans up
	args = append([]string{"kubectl", "--kubeconfig", s.Kubeconfig}, args...)
	cmd := exec.CommandContext(ctx, s.Kube, args...) //nolint:gosec // the tests' own arguments
	// There it keeps what it has learned of the server.
	cmd.Env = []string{"HOME=" + filepath.Dir(s.Kubeconfig)}
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// MustKubectl is Kubectl for what has to succeed.
func (s Server) MustKubectl(t *testing.T, args ...string) string {
	t.Helper()
	out, err := s.Kubectl(t, "", args...)
	require.NoError(t, err, out)
	return out
}

// Apply has the server apply a file, "-" for the text. A field that it does not know
// is an error. flags are further ones of kubectl apply, such as --dry-run=server.
func (s Server) Apply(t *testing.T, file, text string, flags ...string) {
	t.Helper()
	out, err := s.Kubectl(t, text, append([]string{"apply", "--server-side", "--validate=strict", "--filename", file}, flags...)...)
	require.NoError(t, err, "%s: %s", file, out)
}

// ApplyExamples applies the objects of all examples of the repository. The namespaces
// that they name and their pods' service accounts, without which no pod is taken, are
// made whatever the flags are, and deleted when the test ends. The server needs the
// driver's types.
func (s Server) ApplyExamples(t *testing.T, repository string, flags ...string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(repository, "examples/*/*.yaml"))
	require.NoError(t, err)
	require.NotEmpty(t, files)
	slices.SortStableFunc(files, func(a, b string) int { // the policy refuses some of the others
		return strings.Count(a, "/admission-policy/") - strings.Count(b, "/admission-policy/")
	})
	made := map[string]bool{"default": true}
	for _, file := range files {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		for _, namespace := range regexp.MustCompile(`(?m)^  namespace: (\S+)`).FindAllStringSubmatch(string(text), -1) {
			if !made[namespace[1]] {
				s.MustKubectl(t, "create", "namespace", namespace[1])
				t.Cleanup(func() { s.MustKubectl(t, "delete", "namespace", namespace[1], "--wait=false") })
				made[namespace[1]] = true
			}
		}
		for _, document := range regexp.MustCompile(`(?m)^---$`).Split(string(text), -1) {
			var pod core.Pod
			if err := yaml.Unmarshal([]byte(document), &pod); err == nil && pod.Kind == "Pod" && pod.Spec.ServiceAccountName != "" {
				account := []string{"serviceaccount", pod.Spec.ServiceAccountName, "--namespace", cmp.Or(pod.Namespace, "default")}
				s.MustKubectl(t, append([]string{"create"}, account...)...)
				t.Cleanup(func() { s.MustKubectl(t, append([]string{"delete", "--ignore-not-found"}, account...)...) })
			}
		}
		if filepath.Base(file) != "values.yaml" {
			s.Apply(t, file, "", flags...)
		}
	}
}
