// Up runs the tests' Kubernetes node until it is interrupted, for a person to
// look around in: it says how. `make node-down` finds it by bin/node.pid.
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
	n, err := node.Start(ctx, node.Options{Progress: func(what string) { fmt.Println("node: starting", what) }})
	if err != nil {
		return err
	}
	root, err := fixture.Root()
	if err != nil {
		return errors.Join(err, n.Stop())
	}
	pid := filepath.Join(root, "bin", "node.pid")
	if err := os.WriteFile(pid, []byte(node.Pid()), 0o600); err != nil {
		return errors.Join(err, n.Stop())
	}
	defer func() { _ = os.Remove(pid) }()
	fmt.Printf(`node: ready. In another terminal:
  alias kubectl='nsenter --target %s --all env KUBECONFIG=%s %s kubectl'
  kubectl get pods -A
To end it: make node-down, or Ctrl-C here.
`, node.Pid(), node.Kubeconfig, filepath.Join(root, "bin", "kube"))
	<-ctx.Done()
	return n.Stop()
}
