package integration

import (
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tenure-csi/tenure/test/fixture"
)

// TestLogins logs in in every way, and is refused in every way that a user meets.
func TestLogins(t *testing.T) {
	t.Parallel()
	s := newSite(t, fixture.ScopeOptions{})
	ctx, vault := t.Context(), stack.Vault
	require.NoError(t, vault.WriteKV1(ctx, s.KV, "app", map[string]any{"k": "v"}))
	reviewer, err := fixture.StartTokenReviewer(stack.Issuer)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, reviewer.Stop()) })
	// The methods' default mounts: no other test has them.
	require.NoError(t, vault.EnableJWT(ctx, "jwt", stack.Issuer))
	require.NoError(t, vault.EnableKubernetesAuth(ctx, "kubernetes", reviewer))
	role := fixture.AuthRole{Policies: []string{s.Name}, TTL: time.Hour}
	custom, bound := role, role
	custom.Audience, bound.Subject = "custom", "system:serviceaccount:shop:app"
	require.NoError(t, vault.JWTRole(ctx, "jwt", "app", role))
	require.NoError(t, vault.JWTRole(ctx, "jwt", "custom", custom))
	require.NoError(t, vault.JWTRole(ctx, "jwt", "bound", bound))
	require.NoError(t, vault.KubernetesRole(ctx, "kubernetes", "app", "app", role))
	require.NoError(t, vault.KubernetesRole(ctx, "kubernetes", "custom", "app", custom))

	with := func(name, value string) func(*fixture.Volume) {
		return func(v *fixture.Volume) { v.Attributes[name] = value }
	}
	tests := []struct {
		name  string
		edits []func(*fixture.Volume)
		login string // the mount that is to have had the login
		code  codes.Code
		says  []string
	}{
		{"kubernetes method at its default mount", nil, "kubernetes", codes.OK, nil},
		{"kubernetes method by name", []func(*fixture.Volume){with("vaultAuthMethod", "kubernetes")}, "kubernetes", codes.OK, nil},
		{"kubernetes method, custom audience", []func(*fixture.Volume){with("roleName", "custom"), with("audience", "custom"), audiences("custom")}, "kubernetes", codes.OK, nil},
		{"jwt method at its default mount", []func(*fixture.Volume){with("vaultAuthMethod", "jwt")}, "jwt", codes.OK, nil},
		{"jwt by its mount alone", []func(*fixture.Volume){with("vaultAuthMountPath", "jwt")}, "jwt", codes.OK, nil},
		{"jwt method, one of two audiences", []func(*fixture.Volume){with("vaultAuthMethod", "jwt"), with("roleName", "custom"), with("audience", "custom"), audiences("vault", "custom")}, "jwt", codes.OK, nil},

		{"jwt, wrong audience", []func(*fixture.Volume){with("vaultAuthMethod", "jwt"), with("roleName", "custom")}, "jwt", codes.FailedPrecondition, []string{
			`object "value", field "audience"`, "audience claim does not match any expected audience", "set audience to one in bound_audiences of Vault role custom", "tokenRequests of CSIDriver secrets-store.csi.k8s.io",
		}},
		{"kubernetes, wrong audience", []func(*fixture.Volume){with("roleName", "custom")}, "kubernetes", codes.FailedPrecondition, []string{
			`object "value", field "audience"`, "audience", "set audience to one in bound_audiences of Vault role custom",
		}},
		{"kubernetes, wrong service account", []func(*fixture.Volume){account("other")}, "kubernetes", codes.PermissionDenied, []string{
			`object "value", field "roleName"`, "service account name not authorized", "add other to bound_service_account_names of Vault role app",
		}},
		{"jwt, wrong service account", []func(*fixture.Volume){with("vaultAuthMethod", "jwt"), with("roleName", "bound"), account("other")}, "jwt", codes.PermissionDenied, []string{
			`object "value", field "roleName"`, "invalid subject (sub) claim", "bind Vault role bound to subject system:serviceaccount:shop:other",
		}},
		{"no such role", []func(*fixture.Volume){with("vaultAuthMethod", "jwt"), with("roleName", "nobody")}, "jwt", codes.PermissionDenied, []string{
			`object "value", field "roleName"`, `role "nobody" could not be found`, "write the role at auth/jwt/role/nobody",
		}},
		{"no such auth mount", []func(*fixture.Volume){with("vaultAuthMountPath", "nowhere-"+s.Name)}, "nowhere-" + s.Name, codes.PermissionDenied, []string{
			`object "value"`, "permission denied", "check that auth/nowhere-" + s.Name + " is enabled", "service account app of namespace shop",
		}},
		{"no token", []func(*fixture.Volume){audiences()}, "", codes.FailedPrecondition, []string{
			`object "value", field "audience"`, `audience "vault" did not come with the Mount call (audiences that came: none)`, `tokenRequests: [{audience: "vault"}]`, "requiresRepublish: true",
		}},
		{"no token of that audience", []func(*fixture.Volume){with("audience", "custom")}, "", codes.FailedPrecondition, []string{
			`audience "custom" did not come with the Mount call (audiences that came: "vault")`, `tokenRequests: [{audience: "custom"}]`,
		}},
		{"expired token", []func(*fixture.Volume){func(v *fixture.Volume) { v.TokenTTL = -time.Hour }}, "", codes.FailedPrecondition, []string{
			`audience "vault" expired at 20`, "enableSecretRotation: true",
		}},
	}
	for _, tt := range tests { // one after the other: logins are counted
		t.Run(tt.name, func(t *testing.T) {
			v := s.volumeOf(t, newPod(), fixture.SPC{Name: "s", Provider: "tenure", Parameters: map[string]string{
				"roleName": "app", "objects": "[{objectName: value, secretPath: " + s.KV + "/app, secretKey: k}]",
			}})
			for _, edit := range tt.edits {
				edit(v)
			}
			all, here := logins(t, "kubernetes", "jwt", "nowhere-"+s.Name), logins(t, tt.login)
			_, err := v.Mount(ctx)
			require.Equal(t, tt.code, status.Code(err), "got %v", err)
			for _, part := range tt.says {
				require.ErrorContains(t, err, part)
			}
			want := 1
			if tt.login == "" {
				want = 0 // it was seen before Vault was asked
			}
			require.Equal(t, want, logins(t, "kubernetes", "jwt", "nowhere-"+s.Name)-all, "one login, nothing repeated")
			if tt.login != "" {
				require.Equal(t, 1, logins(t, tt.login)-here)
			}
			if tt.code == codes.OK {
				require.Equal(t, "v", read(t, v, "value"))
			}
		})
	}
}

func audiences(names ...string) func(*fixture.Volume) {
	return func(v *fixture.Volume) { v.Audiences = names }
}

func account(name string) func(*fixture.Volume) {
	return func(v *fixture.Volume) {
		v.Pod.ServiceAccount = name
		v.Attributes["csi.storage.k8s.io/serviceAccount.name"] = name
	}
}

func logins(t *testing.T, mounts ...string) (n int) {
	t.Helper()
	for _, mount := range mounts {
		n += asked(t, "auth/"+mount+"/login", "")
	}
	return n
}

// TestNamespace uses a stand-in: namespaces are a feature of Vault Enterprise.
func TestNamespace(t *testing.T) {
	t.Parallel()
	other := newStandIn(t, `{"data": {"k": "v"}}`)
	s := newSite(t, fixture.ScopeOptions{}, "--allowed-vault-addrs="+other.URL)
	spc := s.SPC("[{objectName: value, secretPath: kv/app, secretKey: k}]").With(map[string]string{"vaultAddress": other.URL, "vaultNamespace": "team/a"})
	v := s.volumeOf(t, newPod(), spc)
	mount(t, v)
	require.Equal(t, "v", read(t, v, "value"))
	require.Equal(t, []string{"POST /v1/auth/" + s.Name + "/login team/a", "GET /v1/kv/app team/a"}, other.requests())
	require.Zero(t, logins(t, s.Name))
}

// TestTLS checks a real Vault's certificate by a CA that the SPC names.
func TestTLS(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	vault, err := fixture.StartVault(ctx, fixture.VaultOptions{TLS: true})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, vault.Stop()) })
	require.NoError(t, vault.EnableJWT(ctx, "kubernetes", stack.Issuer))
	require.NoError(t, vault.Policy(ctx, "app", fixture.ReadPolicy("kv/*")))
	require.NoError(t, vault.JWTRole(ctx, "kubernetes", "app", fixture.AuthRole{Policies: []string{"app"}}))
	require.NoError(t, vault.EnableKV1(ctx, "kv"))
	require.NoError(t, vault.WriteKV1(ctx, "kv", "app", map[string]any{"k": "v"}))

	dir, old := t.TempDir(), t.TempDir()
	expired, err := fixture.NewCertificateUntil(old, "127.0.0.1", time.Now().Add(-time.Hour))
	require.NoError(t, err)
	stale := newStandInTLS(t, expired)
	for name, from := range map[string]string{"ca.pem": vault.CACert, "expired.pem": expired.CACert} {
		text, err := os.ReadFile(from)
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), text, 0o600))
	}
	s := siteAt(t, vault.Addr, fixture.ScopeOptions{}, "--tls-dir="+dir, "--allowed-vault-addrs="+stale.URL+",http"+strings.TrimPrefix(vault.Addr, "https"))
	bare := siteAt(t, vault.Addr, fixture.ScopeOptions{})

	tests := []struct {
		name       string
		site       *site
		parameters map[string]string
		code       codes.Code
		says       []string
	}{
		{"the CA is below --tls-dir", s, map[string]string{"vaultCACertPath": "ca.pem"}, codes.OK, nil},
		{"no CA", s, nil, codes.FailedPrecondition, []string{`field "vaultCACertPath"`, "Vault's TLS certificate is signed by an unknown authority", "set vaultCACertPath to the CA that signed it"}},
		{"another name", s, map[string]string{"vaultCACertPath": "ca.pem", "vaultTLSServerName": "vault.example.com"}, codes.FailedPrecondition, []string{
			`field "vaultTLSServerName"`, "for another host name", "use a name of the certificate",
		}},
		{"http where TLS is spoken", s, map[string]string{"vaultAddress": "http" + strings.TrimPrefix(vault.Addr, "https")}, codes.FailedPrecondition, []string{
			`field "vaultAddress"`, "the server there speaks TLS; begin the address with https://",
		}},
		{"a CA that is not there", s, map[string]string{"vaultCACertPath": "none.pem"}, codes.FailedPrecondition, []string{`field "vaultCACertPath"`, "put a readable PEM file there"}},
		{"without --tls-dir", bare, map[string]string{"vaultCACertPath": "ca.pem"}, codes.FailedPrecondition, []string{`field "vaultCACertPath"`}},
		{"expired certificate", s, map[string]string{"vaultCACertPath": "expired.pem", "vaultAddress": stale.URL}, codes.FailedPrecondition, []string{
			`object "value"`, "Vault's TLS certificate is valid from 20", "renew Vault's certificate",
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			parameters := map[string]string{"roleName": "app", "objects": "[{objectName: value, secretPath: kv/app, secretKey: k}]"}
			maps.Copy(parameters, tt.parameters)
			v := tt.site.volumeOf(t, newPod(), fixture.SPC{Name: "s", Provider: "tenure", Parameters: parameters})
			_, err := v.Mount(within(t, 30*time.Second)) // told at once: a passing fault is given 35 s
			require.Equal(t, tt.code, status.Code(err), "got %v", err)
			for _, part := range tt.says {
				require.ErrorContains(t, err, part)
			}
			if tt.code == codes.OK {
				require.Equal(t, "v", read(t, v, "value"))
			}
		})
	}
}
