// Package aws runs the daemon against a real Vault with its aws secrets engine and
// its aws auth method, and a real STS and object store, MinIO's, behind the front
// of package fixture. What the front alone answers (IAM's users, GetCallerIdentity,
// GetFederationToken, GetSessionToken) is no proof of what AWS does: the tests that
// rest on it say so.
package aws

import (
	"context"
	"fmt"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/tenure-csi/tenure/test/fixture"
)

var (
	stack *fixture.Stack
	cloud *fixture.AWS
)

// roleOf is an IAM role of one tenant, pool-<tenant>, that a service account of
// namespace shop may assume, and the daemon's own identity. It reads and writes the
// tenant's prefix and nothing else.
func roleOf(tenant, account string) fixture.Role {
	return fixture.Role{
		Name:   "pool-" + tenant,
		Trusts: []string{"system:serviceaccount:shop:" + account, "arn:aws:iam::" + fixture.Account + ":user/vaultuser"},
		Policy: `{"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": ["s3:GetObject", "s3:PutObject"], "Resource": "arn:aws:s3:::tenants/` + tenant + `/*"}]}`,
	}
}

func TestMain(m *testing.M) {
	os.Exit(fixture.Run(func() int {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		defer cancel()
		var err error
		if cloud, err = fixture.StartAWS(ctx, stack.Issuer, roleOf("acme", "app"), roleOf("globex", "other")); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		code := m.Run()
		if err := cloud.Stop(); err != nil {
			fmt.Fprintln(os.Stderr, "stopping MinIO:", err)
			return max(code, 1)
		}
		return code
	}, func(s *fixture.Stack) { stack = s }, func() error { return goleak.Find() }))
}
