// Package conformance runs SecretProviderClasses as users of HashiCorp's
// provider have them through the real daemon, the CSI driver's own client, a
// real Vault and a real PostgreSQL, once with `provider:` changed to ours alone
// and once unchanged with --provider-name=vault. It prints a line a case.
package conformance

import (
	"fmt"
	"os"
	"testing"

	"go.uber.org/goleak"

	"github.com/tenure-csi/tenure/test/fixture"
)

var (
	stack  *fixture.Stack
	report fixture.Cases
)

func TestMain(m *testing.M) {
	code := fixture.Run(func() int {
		code := m.Run()
		printReport()
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

func printReport() {
	passed, all := report.Print()
	for _, name := range needsCluster {
		fmt.Println("needs a cluster:", name)
	}
	fmt.Printf("conformance: %d of %d cases pass, %d need a cluster\n", passed, all, len(needsCluster))
}
