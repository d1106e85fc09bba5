package conformance

import (
	"encoding/base64"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tenure-csi/tenure/test/fixture"
)

// kv is what the key-value secrets hold: path → key → value.
var kv = map[string][2]string{
	"kv1":                {"bar1", "hello1"},
	"kv2":                {"bar2", "hello2"},
	"kv-sync1":           {"bar1", "hello-sync1"},
	"kv-sync2":           {"bar2", "hello-sync2"},
	"kv-sync3":           {"bar3", base64.StdEncoding.EncodeToString([]byte("hello-sync3"))},
	"kv-custom-audience": {"bar", "hello-custom-audience"},
}

// roles are the logins of the cases: which engines each may read, for which audience.
var roles = []struct {
	name, audience string
	policies       []string
}{
	{"kv-role", "vault", []string{"kv"}},
	{"pki-role", "vault", []string{"pki"}},
	{"db-role", "vault", []string{"db"}},
	{"all-role", "vault", []string{"kv", "pki", "db"}},
	{"custom-audience", "custom-audience", []string{"kv"}},
}

// serviceAccount is the only one that the roles accept.
const serviceAccount = "app"

// prepare fills Vault as the cases expect it. The default auth mount is Vault's
// own kubernetes method; only the API server that it asks is a stand-in.
func prepare(t *testing.T) {
	t.Helper()
	ctx, v := t.Context(), stack.Vault
	require.NoError(t, v.EnableKV2(ctx, "secret"))
	for path, pair := range kv {
		require.NoError(t, v.WriteKV2(ctx, "secret", path, map[string]any{pair[0]: pair[1]}))
	}
	require.NoError(t, v.EnablePKI(ctx, "pki", "example-dot-com", "example.com", false))
	require.NoError(t, v.EnableDatabase(ctx, "database", stack.Postgres, stack.Postgres.Addr))
	require.NoError(t, v.CreateDBRole(ctx, "database", "test-role", time.Hour, 24*time.Hour))
	for name, path := range map[string]string{"kv": "secret/data/*", "pki": "pki/issue/*", "db": "database/creds/*"} {
		require.NoError(t, v.Policy(ctx, name, fixture.ReadPolicy(path)))
	}
	reviewer, err := fixture.StartTokenReviewer(stack.Issuer)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, reviewer.Stop()) })
	require.NoError(t, v.EnableKubernetesAuth(ctx, "kubernetes", reviewer))
	require.NoError(t, v.EnableJWT(ctx, "jwt", stack.Issuer))
	for _, r := range roles {
		role := fixture.AuthRole{Audience: r.audience, Policies: r.policies, TTL: time.Hour, Max: 24 * time.Hour}
		require.NoError(t, v.KubernetesRole(ctx, "kubernetes", r.name, serviceAccount, role))
		require.NoError(t, v.JWTRole(ctx, "jwt", r.name, role))
	}
}
