// Package faults runs the real daemon against a real Vault and PostgreSQL in
// trouble: kills, outages, lost answers, refusals. What happened is read from
// Vault's audit log and listings, PostgreSQL's roles and the pods' files. It
// prints a line a case, and what the daemon can't prevent, counted. These are not all
// faults that are tested: what a model can show, and a month of it, is in
// internal/lease, a network's and a backend's answers in internal/vault and
// internal/aws, file systems' in internal/volume, the Kubernetes API's in
// internal/kube and test/kubeapi.
package faults

import (
	"flag"
	"fmt"
	"maps"
	"os"
	"slices"
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
	if fate, ok := os.LookupEnv(fateVariable); ok { // we were started as a daemon that dies, see doomed_test.go
		fmt.Fprintln(os.Stderr, serveDoomed(fate, os.Args[2:]))
		os.Exit(1)
	}
	flag.Parse()
	if flag.NArg() > 0 { // nobody is to start the tests in place of a daemon's command
		fmt.Fprintln(os.Stderr, "unexpected argument", flag.Arg(0))
		os.Exit(2)
	}
	if p := flag.Lookup("test.parallel"); p.Value.String() == p.DefValue {
		_ = flag.Set("test.parallel", "16") // the tests wait for leases, they do not compute
	}
	code := fixture.Run(func() int {
		code := m.Run()
		report.print()
		return code
	}, func(s *fixture.Stack) { stack = s }, func() error { return goleak.Find() })
	os.Exit(code)
}

// results are the cases, and what was lost that no daemon can keep.
type results struct {
	fixture.Cases

	mu     sync.Mutex
	losses map[string][2]int // what → how many, of how many
}

// loss counts what a kill left behind until its own end, of as much as it could have.
func (r *results) loss(what string, n, of int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.losses == nil {
		r.losses = map[string][2]int{}
	}
	sum := r.losses[what]
	r.losses[what] = [2]int{sum[0] + n, sum[1] + of}
}

func (r *results) print() {
	passed, all := r.Print()
	for _, what := range slices.Sorted(maps.Keys(r.losses)) {
		fmt.Printf("left until its own end: %d of %d: %s\n", r.losses[what][0], r.losses[what][1], what)
	}
	fmt.Printf("faults: %d of %d cases pass\n", passed, all)
}
