// Package conformance runs SecretProviderClasses as users of HashiCorp's
// provider have them through the real daemon, the CSI driver's own client, a
// real Vault and a real PostgreSQL, once with `provider:` changed to ours alone
// and once unchanged with --provider-name=vault. It prints a line a case.
package conformance

import (
	"fmt"
	"os"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"github.com/tenure-csi/tenure/test/fixture"
)

var (
	stack  *fixture.Stack
	report results
)

func TestMain(m *testing.M) {
	code := fixture.Run(func() int {
		code := m.Run()
		report.print()
		return code
	}, func(s *fixture.Stack) { stack = s }, func() error { return goleak.Find() })
	os.Exit(code)
}

// needsCluster lists what of the cases can't be seen without an API server.
var needsCluster = []string{
	"vault-kv-sync: the synced Kubernetes Secret (the files it is made of are checked here)",
	"wrong service account: the FailedMount Event (its text is checked here)",
	"SecretProviderClass of another namespace: the driver's look-up",
}

// results collects how the cases went.
type results struct {
	mu     sync.Mutex
	lines  []string
	passed int
}

// note adds a case's result at its end.
func (r *results) note(t *testing.T, name string) {
	t.Helper()
	t.Cleanup(func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		verdict := "FAIL"
		if !t.Failed() {
			verdict = "ok"
			r.passed++
		}
		r.lines = append(r.lines, fmt.Sprintf("%-4s  %s", verdict, name))
	})
}

func (r *results) print() {
	for _, line := range r.lines {
		fmt.Println(line)
	}
	for _, name := range needsCluster {
		fmt.Println("needs a cluster:", name)
	}
	fmt.Printf("conformance: %d of %d cases pass, %d need a cluster\n", r.passed, len(r.lines), len(needsCluster))
}
