//go:build e2e

// Package e2e runs Tenure on a real Kubernetes node (see package node): the
// daemon and the Secrets Store CSI driver in pods of one Helm release, a real
// Vault whose kubernetes auth method asks the real API server, and a real
// PostgreSQL that pods log in to. It prints a line a case.
package e2e

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	core "k8s.io/api/core/v1"
	rbac "k8s.io/api/rbac/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/tenure-csi/tenure/test/fixture"
	"github.com/tenure-csi/tenure/test/node"
)

var update = flag.Bool("update", false, "write the golden files anew")

var (
	cluster *node.Node
	stack   *fixture.Stack
	report  results
)

func TestMain(m *testing.M) {
	if code, ran := node.Isolate(); ran {
		os.Exit(code)
	}
	flag.Parse()
	_ = flag.Set("test.parallel", "8") // what runs side by side waits, as a rule
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		code = 1
	}
	os.Exit(code)
}

// run starts all parts, runs the tests and stops the parts.
func run(m *testing.M) (code int, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Minute)
	defer cancel()
	began := time.Now()
	say := func(what string) { fmt.Printf("e2e: %4.0f s: %s\n", time.Since(began).Seconds(), what) }
	if cluster, err = node.Start(ctx, node.Options{Progress: func(what string) { say("starting " + what) }}); err != nil {
		return 1, err
	}
	defer func() { err = errors.Join(err, cluster.Stop()) }()
	say("starting Vault and PostgreSQL")
	if stack, err = fixture.StartStack(ctx); err != nil {
		return 1, err
	}
	defer func() { err = errors.Join(err, stack.Close()) }()
	if err := trustCluster(ctx); err != nil {
		return 1, err
	}
	say("installing Tenure")
	if err := prepareTenure(ctx); err != nil {
		return 1, err
	}
	if err := installTenure(ctx); err != nil {
		return 1, err
	}
	say("running the cases")
	code = m.Run()
	report.print()
	return code, nil
}

// trustCluster lets Vault ask the API server whom a pod's token belongs to, as
// Vault's own documentation has it: with a service account that may review tokens.
func trustCluster(ctx context.Context) error {
	const account = "vault"
	for _, object := range []client.Object{
		&core.ServiceAccount{ObjectMeta: meta.ObjectMeta{Namespace: "default", Name: account}},
		&rbac.ClusterRoleBinding{
			ObjectMeta: meta.ObjectMeta{Name: account},
			RoleRef:    rbac.RoleRef{APIGroup: rbac.GroupName, Kind: "ClusterRole", Name: "system:auth-delegator"},
			Subjects:   []rbac.Subject{{Kind: "ServiceAccount", Namespace: "default", Name: account}},
		},
	} {
		if err := cluster.Client.Create(ctx, object); err != nil {
			return fmt.Errorf("giving Vault an account: %w", err)
		}
	}
	token, err := cluster.Token(ctx, "default", account)
	if err != nil {
		return err
	}
	return stack.Vault.EnableKubernetesAuth(ctx, "kubernetes", &fixture.TokenReviewer{URL: node.URL, CA: cluster.CA(), Bearer: token})
}

// await calls probe until it answers nil, at most for limit, and answers its
// last error then.
func await(ctx context.Context, limit time.Duration, probe func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	var last error
	for {
		err := probe(ctx)
		if err == nil {
			return nil
		}
		if ctx.Err() == nil || last == nil {
			last = err // one that ctx's end has caused says nothing
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("waiting %s: %w", limit, last)
		}
	}
}

// results counts how the cases went, and says so of each at its end. Some run at once.
type results struct {
	mu            sync.Mutex
	cases, passed int
	figures       []string // of the case that ends next
}

// figure adds what the running case has measured to what is said of it.
func (r *results) figure(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.figures = append(r.figures, fmt.Sprintf(format, args...))
}

// note adds a case's result at its end.
func (r *results) note(t *testing.T, name string) {
	t.Helper()
	began := time.Now()
	t.Cleanup(func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.cases++
		verdict := "FAIL"
		if !t.Failed() {
			verdict = "ok"
			r.passed++
		}
		fmt.Printf("%-4s  %s (%.0f s)\n", verdict, name, time.Since(began).Seconds())
		for _, figure := range r.figures {
			fmt.Println("      " + figure)
		}
		r.figures = nil
	})
}

func (r *results) print() { fmt.Printf("e2e: %d of %d cases pass\n", r.passed, r.cases) }
