//go:build e2e

package e2e

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tenure-csi/tenure/test/charts"
	"github.com/tenure-csi/tenure/test/fixture"
	"github.com/tenure-csi/tenure/test/node"
)

// manifestsTaken asks the API server whether it would take what the chart renders,
// the plain manifests and the examples. It keeps nothing of them.
func manifestsTaken(t *testing.T) {
	root, err := fixture.Root()
	require.NoError(t, err)
	const image = "--set=image.repository=registry.example.com/tenure"
	_, err = cluster.Helm(t.Context(), "", "lint", "--strict", chart, image)
	require.NoError(t, err)

	rendered := map[string]string{"default": "", "everything": charts.Everything, "with the driver": charts.WithDriver}
	examples, err := filepath.Glob(filepath.Join(root, "examples/*/values.yaml"))
	require.NoError(t, err)
	for _, file := range examples {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		rendered[file] = string(text)
	}
	server := charts.Server{Kube: filepath.Join(root, "bin", "kube"), Kubeconfig: node.Kubeconfig}
	dry := []string{"--dry-run=server", "--force-conflicts"} // with the release that is installed
	for name, values := range rendered {
		text, err := cluster.Helm(t.Context(), values, "template", release, chart, "--namespace="+releaseNamespace, "--values=-", image)
		require.NoError(t, err, name)
		server.Apply(t, "-", text, dry...)
	}
	server.Apply(t, filepath.Join(root, "manifests", "tenure.yaml"), "", dry...)
	server.ApplyExamples(t, root, dry...)
}
