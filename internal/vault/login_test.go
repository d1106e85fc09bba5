package vault

import (
	"encoding/json"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tenure-csi/tenure/internal/lease"
	"github.com/tenure-csi/tenure/provider"
)

const (
	canaryRole   = "4d1f0cf0-canary-role"
	canarySecret = "4d1f0cf0-canary-\"secret"
)

var appRoleLogin = provider.Login{Method: provider.AppRoleMethod}

func appRoleIdentity() provider.Identity {
	return provider.Identity{Secrets: map[string]provider.Secret{"role_id": canaryRole + "\n", "secret_id": canarySecret, "other": "x"}}
}

func TestAppRoleLogin(t *testing.T) {
	for _, row := range []struct {
		name  string
		cfg   Config
		login provider.Login
		path  string
	}{
		{"default mount", Config{}, appRoleLogin, "/v1/auth/approle/login"},
		{"the operator's mount is for tokens", Config{Mount: "k8s"}, appRoleLogin, "/v1/auth/approle/login"},
		{"own mount", Config{Mount: "k8s"}, provider.Login{Method: provider.AppRoleMethod, Mount: "apps/one"}, "/v1/auth/apps/one/login"},
	} {
		t.Run(row.name, func(t *testing.T) {
			var path string
			var body map[string]any
			s := served(t, func(w http.ResponseWriter, r *http.Request) {
				path = r.URL.Path
				_ = json.NewDecoder(r.Body).Decode(&body)
				answering(200, `{"auth":{"client_token":"`+canaryToken+`","accessor":"acc","lease_duration":3600,"renewable":true}}`)(w, r)
			})
			s.cfg.Mount = row.cfg.Mount
			got, err := s.Login(t.Context(), mount, row.login, appRoleIdentity())
			require.NoError(t, err)
			require.Equal(t, lease.Session{Login: row.login, Token: canaryToken, Accessor: "acc", TTL: time.Hour, Renewable: true, Revocable: true}, got)
			require.Equal(t, row.path, path)
			require.Equal(t, map[string]any{"role_id": canaryRole, "secret_id": canarySecret}, body, "without the editor's newline, and nothing else")
		})
	}
}

// TestAppRoleWithoutSecretID: an AppRole with bind_secret_id=false has none to send.
func TestAppRoleWithoutSecretID(t *testing.T) {
	var body map[string]any
	s := served(t, func(w http.ResponseWriter, r *http.Request) {
		_ = json.NewDecoder(r.Body).Decode(&body)
		answering(200, `{"auth":{"client_token":"`+canaryToken+`","lease_duration":3600}}`)(w, r)
	})
	_, err := s.Login(t.Context(), mount, appRoleLogin, provider.Identity{Secrets: map[string]provider.Secret{"role_id": canaryRole}})
	require.NoError(t, err)
	require.Equal(t, map[string]any{"role_id": canaryRole}, body)
}

func TestAppRoleTexts(t *testing.T) {
	for _, row := range []struct {
		name   string
		status int
		text   string
		class  provider.Class
		says   []string
	}{
		{"wrong, expired or used up", 400, "invalid role or secret ID", provider.Denied, []string{
			"with the pod's AppRole at auth/approle", "Vault does not tell", "secret_id_ttl", "secret_id_num_uses: each login is one use",
		}},
		{"CIDR of the role", 400, `source address "127.0.0.1" unauthorized by CIDR restrictions on the role: %!w(<nil>)`, provider.Denied, []string{
			`source address "[redacted]" unauthorized by CIDR restrictions on the role; add`, "secret_id_bound_cidrs",
		}},
		{"CIDR of the secret_id", 400, `source address "127.0.0.1" unauthorized through CIDR restrictions on the secret ID`, provider.Denied, []string{"cidr_list of the secret_id"}},
		{"no such mount, or locked", 403, "permission denied", provider.Denied, []string{"check that auth/approle is enabled", "user_lockout"}},
		{"no secret_id", 400, "missing secret_id", provider.Precondition, []string{"put a secret_id into the pod's Secret", "bind_secret_id=false"}},
		{"no such namespace", 404, `no handler for route "auth/approle/login". route entry not found.`, provider.Invalid, []string{"vaultNamespace"}},
		{"echo", 400, `invalid secret_id "4d1f0cf0-canary-"secret" of ` + canaryRole, provider.Denied, []string{`invalid secret_id "[redacted]" of [redacted]`}},
		{"echo, quoted", 400, `invalid secret_id "4d1f0cf0-canary-\"secret"`, provider.Denied, []string{`invalid secret_id "[redacted]"`}},
	} {
		t.Run(row.name, func(t *testing.T) {
			s := refusing(t, row.status, row.text)
			_, err := s.Login(t.Context(), mount, appRoleLogin, appRoleIdentity())
			f := failure(t, err)
			require.Contains(t, []lease.Verdict{lease.Wrong, lease.Refused}, f.Verdict)
			require.Equal(t, row.class, f.Problem.Class, f.Error())
			if row.class == provider.Denied {
				require.Equal(t, "nodePublishSecretRef", f.Problem.Field)
			}
			for _, part := range row.says {
				require.Contains(t, f.Error(), part)
			}
			require.NotContains(t, f.Error(), "4d1f0cf0")
			require.False(t, f.MayHaveMinted)
		})
	}
}

func TestAppRoleWithoutItsSecret(t *testing.T) {
	for _, row := range []struct {
		name    string
		secrets map[string]provider.Secret
		says    string
	}{
		{"no Secret", nil, "no Secret with role_id and secret_id came with the Mount call"},
		{"one key", map[string]provider.Secret{"secret_id": canarySecret}, "has no role_id (keys that came: secret_id)"},
		{"other keys", map[string]provider.Secret{"password": canaryPass, "roleId": canaryRole}, "has no secret_id and no role_id (keys that came: password, roleId)"},
		{"empty value", map[string]provider.Secret{"role_id": canaryRole, "secret_id": " \n"}, "has no secret_id (keys that came: role_id, secret_id)"},
	} {
		t.Run(row.name, func(t *testing.T) {
			s := served(t, func(http.ResponseWriter, *http.Request) { t.Error("Vault was asked") })
			id := identity()
			id.Secrets = row.secrets
			_, err := s.Login(t.Context(), mount, appRoleLogin, id)
			f := failure(t, err)
			require.Equal(t, provider.Precondition, f.Problem.Class)
			require.Equal(t, "nodePublishSecretRef", f.Problem.Field)
			require.Contains(t, f.Error(), row.says)
			require.Contains(t, f.Error(), "name a Secret with the keys role_id and secret_id in nodePublishSecretRef of the pod's CSI volume")
			require.NotContains(t, f.Error(), canaryRole)
			requireClean(t, f)
		})
	}
}

func TestAppRoleIsNamedInLaterTexts(t *testing.T) {
	s := refusing(t, 403, "1 error occurred:\n\t* permission denied\n\n")
	se := opened()
	se.Login = appRoleLogin
	_, err := s.Read(t.Context(), mount, se, creds)
	require.Contains(t, failure(t, err).Error(), `capabilities = ["read"] } to a policy of the pod's AppRole`)
}
