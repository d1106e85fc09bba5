package examples

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tenure-csi/tenure/provider"
	"github.com/tenure-csi/tenure/test/fixture"
)

// parsed are the objects of an example's SPC for its own service account.
func parsed(t *testing.T, file string) []provider.Object {
	t.Helper()
	spc, err := fixture.ReadSPC(file)
	require.NoError(t, err)
	spec, err := provider.Parse(provider.Request{
		Provider: spc.Provider, Pod: provider.Pod{Namespace: spc.Namespace, ServiceAccount: "products"}, Mode: 0o644, Attributes: spc.Parameters,
	})
	require.NoError(t, err)
	return spec.Objects
}

// TestDynamoDBPolicies: the policy that a reader gives to Vault or IAM and the one
// that an SPC sends to STS say the same of a tenant. No DynamoDB judges them here.
func TestDynamoDBPolicies(t *testing.T) {
	dir := filepath.Join(root, "dynamodb-isolation")
	policy := text(t, filepath.Join(dir, "policy.json"))

	silo := parsed(t, filepath.Join(dir, "sts-silo.yaml"))[0].Read.AWS
	require.JSONEq(t, strings.ReplaceAll(policy, "TENANT", "acme"), silo.SessionPolicy)
	require.Equal(t, "arn:aws:iam::123456789012:role/products-acme", silo.RoleARN)

	pool := parsed(t, filepath.Join(dir, "sts-pool.yaml"))
	require.Len(t, pool, 2)
	for _, o := range pool {
		require.JSONEq(t, strings.ReplaceAll(policy, "TENANT", o.Tenant), o.Read.AWS.SessionPolicy)
	}

	byVault := parsed(t, filepath.Join(dir, "vault-silo.yaml"))[0].Read
	require.Equal(t, "aws/sts/products-acme", byVault.Path)
	require.Equal(t, "products-acme", byVault.Login.Role)
	for _, o := range parsed(t, filepath.Join(dir, "vault-pool.yaml")) {
		require.Equal(t, "aws/sts/products-"+o.Tenant, o.Read.Path)
	}
}
