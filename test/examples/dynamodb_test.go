package examples

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tenure-csi/tenure/provider"
	"github.com/tenure-csi/tenure/test/fixture"
)

// TestDynamoDBPolicies: the policy that a reader gives to Vault and the one that
// the SPC sends to STS say the same of the tenant. No DynamoDB judges them here.
func TestDynamoDBPolicies(t *testing.T) {
	dir := filepath.Join(root, "dynamodb-isolation")
	text, err := os.ReadFile(filepath.Join(dir, "policy.json"))
	require.NoError(t, err)
	spc, err := fixture.ReadSPC(filepath.Join(dir, "sts-silo.yaml"))
	require.NoError(t, err)
	spec, err := provider.Parse(provider.Request{
		Provider: spc.Provider, Pod: provider.Pod{Namespace: spc.Namespace, ServiceAccount: "products"}, Mode: 0o644, Attributes: spc.Parameters,
	})
	require.NoError(t, err)
	require.JSONEq(t, strings.ReplaceAll(string(text), "TENANT", spc.Namespace), spec.Objects[0].Read.AWS.SessionPolicy)
	require.Equal(t, "arn:aws:iam::123456789012:role/products-acme", spec.Objects[0].Read.AWS.RoleARN)

	spc, err = fixture.ReadSPC(filepath.Join(dir, "vault-silo.yaml"))
	require.NoError(t, err)
	spec, err = provider.Parse(provider.Request{
		Provider: spc.Provider, Pod: provider.Pod{Namespace: spc.Namespace, ServiceAccount: "products"}, Mode: 0o644, Attributes: spc.Parameters,
	})
	require.NoError(t, err)
	require.Equal(t, "aws/sts/products-acme", spec.Objects[0].Read.Path)
	require.Equal(t, "products-acme", spec.Objects[0].Read.Login.Role)
}
