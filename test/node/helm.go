package node

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
)

// Helm runs Helm as the cluster's administrator, with values (YAML) as what
// --values=- reads, and answers what it prints.
func (n *Node) Helm(ctx context.Context, values string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(n.bin, "helm"), args...) //nolint:gosec // the tests' own arguments
	cmd.Env = append(cmd.Env, environment...)
	cmd.Env = append(cmd.Env, "KUBECONFIG="+Kubeconfig)
	cmd.Stdin = strings.NewReader(values)
	var problem strings.Builder
	cmd.Stderr = &problem
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("running helm %s: %w: %s", args[0], err, strings.TrimSpace(problem.String()))
	}
	return string(out), nil
}
