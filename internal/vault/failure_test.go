package vault

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/stretchr/testify/require"

	"github.com/tenure-csi/tenure/internal/lease"
	"github.com/tenure-csi/tenure/provider"
)

// requireClean is the canary: no failure shows a secret or a control character.
func requireClean(t *testing.T, f *lease.Failure) {
	t.Helper()
	text := f.Error()
	for _, secret := range []string{canaryToken, canaryPass, podJWT().Reveal(), "hvs.", "eyJ"} {
		require.NotContains(t, text, secret)
	}
	require.False(t, strings.ContainsFunc(text, unicode.IsControl), text)
	require.Less(t, len(text), 2048)
}

// refusing is a Vault that answers every call with one status and one error.
func refusing(t *testing.T, status int, text string) *Source {
	t.Helper()
	body, err := json.Marshal(map[string]any{"errors": []string{text}})
	require.NoError(t, err)
	return served(t, answering(status, string(body)))
}

func TestRenewalTexts(t *testing.T) {
	const (
		dead   = "2 errors occurred:\n\t* permission denied\n\t* invalid token\n\n"
		denied = "1 error occurred:\n\t* permission denied\n\n"
		dbDown = "failed to renew entry: resp: (*logical.Response)(nil) err: 1 error occurred:\n\t* failed to connect to `host=db.internal user=postgres database=postgres`: dial error (dial tcp 10.1.2.3:5432: connect: connection refused)\n\n"
	)
	for _, row := range []struct {
		name    string
		status  int
		text    string
		verdict lease.Verdict
		says    string
	}{
		{"gone", 400, "lease not found", lease.Gone, "lease not found"},
		{"expired", 400, "lease expired", lease.Gone, "lease expired"},
		{"failed revocation", 400, "lease is expired and has failed previous revocation attempts", lease.Gone, ""},
		{"gone, other case", 400, "Lease Not Found", lease.Gone, ""},
		{"not renewable", 400, "lease is not renewable", lease.Final, ""},
		{"batch", 400, "batch tokens cannot be renewed", lease.Final, ""},
		{"database down", 400, dbDown, lease.Retry, "failed to connect to [redacted]: connection refused"},
		{"any other 400", 400, "something new", lease.Retry, "something new"},
		{"dead token", 403, dead, lease.DeadAuth, "expired or was revoked"},
		{"denied", 403, denied, lease.Refused, `add path "sys/leases/renew" { capabilities = ["update"] }`},
		{"sealed", 503, "Vault is sealed", lease.Retry, "sealed"},
		{"uninitialised", 501, "", lease.Retry, "not initialised"},
		{"no leader", 500, "local node not active but active cluster node not found", lease.Retry, "no active node"},
		{"standby without a leader", 474, "", lease.Retry, "standby"},
		{"not found", 404, "", lease.Retry, "404"},
	} {
		t.Run(row.name, func(t *testing.T) {
			s := refusing(t, row.status, row.text)
			_, err := s.RenewLease(t.Context(), mount, opened(), "database/creds/orders/x", time.Hour)
			f := failure(t, err)
			require.Equal(t, row.verdict, f.Verdict, f.Error())
			require.Contains(t, f.Error(), row.says)
			require.NotContains(t, f.Error(), "db.internal")
			require.NotContains(t, f.Error(), "10.1.2.3")
			requireClean(t, f)
		})
	}
}

// TestUnknownRefusal: where the text of a 403 is none that is known, the token is asked about.
func TestUnknownRefusal(t *testing.T) {
	for _, row := range []struct {
		name    string
		status  int // of the look-up
		text    string
		verdict lease.Verdict
	}{
		{"alive", 200, "", lease.Refused},
		{"may not look itself up", 403, "1 error occurred:\n\t* permission denied\n\n", lease.Refused},
		{"dead", 403, "2 errors occurred:\n\t* permission denied\n\t* invalid token\n\n", lease.DeadAuth},
		{"dead, in new words", 403, "no such bearer", lease.DeadAuth},
		{"no answer of use", 503, "Vault is sealed", lease.Refused},
	} {
		t.Run(row.name, func(t *testing.T) {
			var asked []string
			s := served(t, func(w http.ResponseWriter, r *http.Request) {
				asked = append(asked, r.Method+" "+r.URL.Path)
				status, text := 403, "this is refused"
				if strings.HasSuffix(r.URL.Path, "/lookup-self") {
					status, text = row.status, row.text
				}
				answering(status, fmt.Sprintf(`{"errors":[%q]}`, text))(w, r)
			})
			_, err := s.RenewLease(t.Context(), mount, opened(), "database/creds/orders/x", time.Hour)
			require.Equal(t, row.verdict, failure(t, err).Verdict)
			require.Equal(t, []string{"PUT /v1/sys/leases/renew", "GET /v1/auth/token/lookup-self"}, asked)
		})
	}
}

// TestRefusalOfSomebodyElse: a 403 of a proxy on the way says nothing about the token.
func TestRefusalOfSomebodyElse(t *testing.T) {
	s := served(t, answering(http.StatusForbidden, "<html>blocked</html>"))
	_, err := s.RenewLease(t.Context(), mount, opened(), "database/creds/orders/x", time.Hour)
	require.NotEqual(t, lease.DeadAuth, failure(t, err).Verdict)
}

func TestEnds(t *testing.T) {
	for _, row := range []struct {
		name           string
		status         int
		text           string
		session, lease bool // whether it counts as ended
	}{
		{"ended", 204, "", true, false},
		{"accepted", 202, "", true, false},
		{"dead token", 403, "2 errors occurred:\n\t* permission denied\n\t* invalid token\n\n", true, false},
		{"denied", 403, "1 error occurred:\n\t* permission denied\n\n", false, false},
		{"batch", 400, "batch tokens cannot be revoked", false, true},
		{"gone", 400, "lease not found", false, true},
		{"not renewable", 400, "lease is not renewable", false, true},
		{"database down", 400, "failed to revoke entry: resp: (*logical.Response)(nil) err: failed to connect to", false, false},
		{"sealed", 503, "Vault is sealed", false, false},
	} {
		t.Run(row.name, func(t *testing.T) {
			s := refusing(t, row.status, row.text)
			err := s.EndSession(t.Context(), mount, opened())
			require.Equal(t, row.session, err == nil, "session: %v", err)
			err = s.EndLease(t.Context(), mount, opened(), "id")
			require.Equal(t, row.lease, err == nil, "lease: %v", err)
		})
	}
	var body map[string]any
	s := served(t, func(w http.ResponseWriter, r *http.Request) {
		_ = json.NewDecoder(r.Body).Decode(&body)
		answering(200, `{"lease_id":"id","lease_duration":1,"renewable":true}`)(w, r)
	})
	require.NoError(t, s.EndLease(t.Context(), mount, opened(), "id"))
	require.Equal(t, map[string]any{"lease_id": "id", "increment": 1.0}, body)
}

func TestLoginTexts(t *testing.T) {
	const validating = "error validating token: "
	for _, row := range []struct {
		name   string
		status int
		text   string
		class  provider.Class
		field  string
		says   string
	}{
		{"audience", 400, validating + "invalid audience (aud) claim: audience claim does not match any expected audience", provider.Precondition, "audience", "tokenRequests"},
		{"expired", 400, validating + "invalid expiration time (exp) claim: token is expired", provider.Precondition, "", "new token"},
		{"not yet", 400, validating + "invalid not before (nbf) claim: token not yet valid", provider.Precondition, "", "clocks"},
		{"subject", 400, validating + "invalid subject (sub) claim", provider.Denied, "roleName", "system:serviceaccount:shop:orders"},
		{"issuer", 400, validating + "invalid issuer (iss) claim", provider.Denied, "", "auth/kubernetes/config"},
		{"signature", 400, validating + "error verifying token signature: no known key successfully validated the token signature", provider.Denied, "", "signing keys"},
		{"role", 400, `role "orders" could not be found`, provider.Denied, "roleName", "auth/kubernetes/role/orders"},
		{"kubernetes role", 400, `invalid role name "orders"`, provider.Denied, "roleName", "auth/kubernetes/role/orders"},
		{"service account", 403, "service account name not authorized", provider.Denied, "roleName", "add orders to bound_service_account_names"},
		{"namespace", 403, "namespace not authorized", provider.Denied, "roleName", "add shop to bound_service_account_namespaces"},
		{"no such mount", 403, "permission denied", provider.Denied, "roleName", "auth/kubernetes is enabled"},
		{"no such namespace", 404, "no handler for route \"auth/kubernetes/login\". route entry not found.", provider.Invalid, "vaultAuthMountPath", "vaultNamespace"},
		{"echo of the JWT", 400, "bad: " + podJWT().Reveal() + " " + canaryToken, provider.Denied, "roleName", "bad: [redacted] [redacted]"},
	} {
		t.Run(row.name, func(t *testing.T) {
			s := refusing(t, row.status, row.text)
			_, err := s.Login(t.Context(), mount, login(), identity())
			f := failure(t, err)
			require.Contains(t, []lease.Verdict{lease.Wrong, lease.Refused}, f.Verdict)
			require.Equal(t, row.class, f.Problem.Class, f.Error())
			require.Equal(t, row.field, f.Problem.Field)
			require.Contains(t, f.Error(), row.says)
			require.Contains(t, f.Error(), `role "orders"`)
			require.False(t, f.MayHaveMinted)
			requireClean(t, f)
		})
	}
}

func TestLoginAnswers(t *testing.T) {
	base := lease.Session{Login: login(), Token: canaryToken, Accessor: "acc", TTL: time.Hour}
	with := func(change func(*lease.Session)) lease.Session { s := base; change(&s); return s }
	for _, row := range []struct {
		name, auth string
		want       lease.Session
		says       string
	}{
		{"service", `"lease_duration":3600,"renewable":true,"token_type":"service"`, with(func(s *lease.Session) { s.Renewable, s.Revocable = true, true }), ""},
		{"batch", `"lease_duration":3600,"renewable":false,"token_type":"batch"`, with(func(s *lease.Session) { s.MaxTTL = time.Hour }), ""},
		{"not renewable", `"lease_duration":3600,"renewable":false,"token_type":"service"`, with(func(s *lease.Session) { s.Revocable, s.MaxTTL = true, time.Hour }), ""},
		{"limited uses", `"lease_duration":3600,"renewable":true,"num_uses":3`, lease.Session{}, "token_num_uses"},
		{"negative life", `"lease_duration":-5,"renewable":true`, lease.Session{}, "holds no token"},
		{"endless life", `"lease_duration":9223372036854775807,"renewable":true`, with(func(s *lease.Session) {
			s.TTL, s.Renewable, s.Revocable = maxSeconds*time.Second, true, true
		}), ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			s := served(t, answering(200, `{"auth":{"client_token":"`+canaryToken+`","accessor":"acc",`+row.auth+`}}`))
			got, err := s.Login(t.Context(), mount, login(), identity())
			if row.says != "" {
				f := failure(t, err)
				require.Contains(t, f.Error(), row.says)
				requireClean(t, f)
				return
			}
			require.NoError(t, err)
			require.Equal(t, row.want, got)
		})
	}
	s := served(t, answering(200, `{"auth":{"client_token":"","mfa_requirement":{"mfa_request_id":"x"}}}`))
	_, err := s.Login(t.Context(), mount, login(), identity())
	require.Contains(t, failure(t, err).Error(), "second factor")
	_, err = s.Login(t.Context(), mount, login(), provider.Identity{})
	require.Equal(t, provider.Precondition, failure(t, err).Problem.Class)
}

func TestReadTexts(t *testing.T) {
	quoted := func(text string) string { return fmt.Sprintf(`{"errors":[%q]}`, text) }
	for _, row := range []struct {
		name    string
		status  int
		body    string
		verdict lease.Verdict
		minted  bool
		says    string
	}{
		{"denied", 403, quoted("1 error occurred:\n\t* permission denied\n\n"), lease.Refused, false, `add path "database/creds/orders" { capabilities = ["read"] } to a policy of Vault role "orders"`},
		{"dead token", 403, quoted("2 errors occurred:\n\t* permission denied\n\t* invalid token\n\n"), lease.DeadAuth, false, "revoked"},
		{"unknown role", 400, quoted("unknown role: orders"), lease.Wrong, false, "unknown role: orders"},
		{"missing", 404, `{"errors":[]}`, lease.Wrong, false, "nothing is there"},
		{"deleted", 404, `{"data":{"data":null,"metadata":{"version":2,"created_time":"t","deletion_time":"2026-11-20T10:00:00Z","destroyed":false}}}`, lease.Wrong, false, "deleted since 2026-11-20T10:00:00Z"},
		{"destroyed", 404, `{"data":{"data":null,"metadata":{"version":2,"created_time":"t","deletion_time":"","destroyed":true}}}`, lease.Wrong, false, "is destroyed"},
		{"path without data/", 404, `{"warnings":["Invalid path for a versioned K/V secrets engine. See the API docs for the appropriate API endpoints to use."]}`, lease.Wrong, false, `"database/data/creds/orders"`},
		{"no engine", 404, quoted(`no handler for route "x". route entry not found.`), lease.Wrong, false, "no secrets engine is mounted there"},
		{"method", 405, quoted("unsupported operation"), lease.Wrong, false, "does not take GET"},
		{"database down", 500, quoted("1 error occurred:\n\t* unable to start transaction: failed to connect to `host=db.internal user=postgres database=postgres`: no such host"), lease.Retry, true, "unable to start transaction: failed to connect to [redacted]: no such host"},
		{"gateway", 502, "<html>", lease.Retry, true, "502 bad gateway"},
		{"sealed", 503, quoted("Vault is sealed"), lease.Retry, false, "sealed"},
		{"starting", 500, quoted("local node not active but active cluster node not found"), lease.Retry, false, "no active node"},
	} {
		t.Run(row.name, func(t *testing.T) {
			s := served(t, answering(row.status, row.body))
			_, err := s.Read(t.Context(), mount, opened(), creds)
			f := failure(t, err)
			require.Equal(t, row.verdict, f.Verdict, f.Error())
			require.Equal(t, row.minted, f.MayHaveMinted)
			require.Contains(t, f.Error(), row.says)
			require.NotContains(t, f.Error(), "db.internal")
			requireClean(t, f)
		})
	}
}

func TestVaultSaysHides(t *testing.T) {
	for _, row := range []struct{ name, text, want string }{
		{"plain", "common name x.example.com not allowed by this role", "common name x.example.com not allowed by this role"},
		{"own token", "token " + canaryToken + " is odd", "token [redacted] is odd"},
		{"foreign tokens", "hvs.abc s.abcdefghijklmnopqrstuvwx hvb.AAAA-b_c", "[redacted] [redacted] [redacted]"},
		{"jwt", "got eyJhbGciOi.eyJzdWIi.c2ln", "got [redacted]"},
		{"url", "parse mysql://root:pw@db:3306/x", "parse mysql://[redacted]"},
		{"newer pgx", "failed to connect to `user=postgres database=app`:\n\tdb.internal:5432 (10.0.0.1): dial error", "failed to connect to [redacted]"},
		{"mysql", "Error 1045 (28000): Access denied for user 'root'@'172.17.0.1' (using password: YES)", "Error 1045 (28000): Access denied for user [redacted] (using password: YES)"},
		{"dial", "dial tcp db.internal:3306: connect: connection refused", "[redacted]: connect: connection refused"},
		{"lookup", "dial tcp: lookup db.internal on 10.0.0.10:53: no such host", "[redacted]: [redacted]: no such host"},
		{"postgres", `ERROR: role "v-admin" does not exist (SQLSTATE 42704)`, `ERROR: role [redacted] does not exist (SQLSTATE 42704)`},
		{"controls", "a\x00b\x1b[31mc\u202ed\r\n\te", "ab[31mcd e"},
		{"long", strings.Repeat("é", 1000), strings.Repeat("é", 254) + "…"},
	} {
		t.Run(row.name, func(t *testing.T) {
			a := answer{response: response{Errors: []string{row.text}}}
			require.Equal(t, row.want, vaultSays(a, canaryToken, podJWT()))
		})
	}
}

func FuzzVaultSays(f *testing.F) {
	f.Add("failed to connect to `host=a user=b`", "")
	f.Add("hvs.abc", canaryToken)
	f.Fuzz(func(t *testing.T, before, after string) {
		text := vaultSays(answer{response: response{Errors: []string{before + canaryToken + after}}}, canaryToken)
		require.NotContains(t, text, canaryToken)
		require.LessOrEqual(t, len(text), provider.MaxText)
		require.False(t, strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) }), "%q", text)
	})
}
