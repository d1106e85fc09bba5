// Up runs the tests' Kubernetes node, with Tenure and the driver, until it is
// interrupted, for a person to look around in: it says how. `make node-down` finds it by bin/node.pid.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/tenure-csi/tenure/test/fixture"
	"github.com/tenure-csi/tenure/test/node"
)

func main() {
	if code, ran := node.Isolate(); ran {
		os.Exit(code)
	}
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "node:", err)
		os.Exit(1)
	}
}

func run() error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	root, err := fixture.Root()
	if err != nil {
		return err
	}
	say := func(what string) { fmt.Println("node: starting", what) }
	n, err := node.Start(ctx, node.Options{Progress: say})
	if err != nil {
		return err
	}
	say("Tenure and the driver")
	chart := filepath.Join(root, "bin", "chart", "tenure")
	if err := n.Install(ctx, chart, "hostNetwork: true"); err != nil { // for a Vault on the node's loopback
		return errors.Join(err, n.Stop())
	}
	pid := filepath.Join(root, "bin", "node.pid")
	if err := os.WriteFile(pid, []byte(node.Pid()), 0o600); err != nil {
		return errors.Join(err, n.Stop())
	}
	defer func() { _ = os.Remove(pid) }()
	fmt.Printf(`node: ready. In another terminal:
  on='nsenter --target %s --all env KUBECONFIG=%s'
  alias kubectl="$on %s kubectl" helm="$on %s"
  kubectl get pods -A
  helm upgrade %s %s --namespace %s --reuse-values --set 'vault.addrs={http://127.0.0.1:8200}'
To end it: make node-down, or Ctrl-C here.
`, node.Pid(), node.Kubeconfig, filepath.Join(root, "bin", "kube"), filepath.Join(root, "bin", "helm"), node.Release, chart, node.ReleaseNamespace)
	<-ctx.Done()
	return n.Stop()
}
