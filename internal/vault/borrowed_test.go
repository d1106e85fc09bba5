package vault

import (
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tenure-csi/tenure/internal/lease"
	"github.com/tenure-csi/tenure/provider"
)

func TestBorrowedLogin(t *testing.T) {
	session := lease.Session{Login: login(), Token: canaryToken, Accessor: "acc", TTL: time.Hour, Borrowed: true}
	with := func(change func(*lease.Session)) lease.Session {
		s := session
		change(&s)
		return s
	}
	const begin = "looking up the token at Vault at "
	for _, row := range []struct {
		name   string
		status int
		body   string
		want   lease.Session
		error  string // after the address
	}{
		{"service", 200, `{"data":{"accessor":"acc","ttl":3600,"renewable":true,"num_uses":0}}`, with(func(s *lease.Session) { s.Renewable = true }), ""},
		{"not renewable", 200, `{"data":{"accessor":"acc","ttl":3600,"renewable":false}}`, with(func(s *lease.Session) { s.MaxTTL = time.Hour }), ""},
		{"root", 200, `{"data":{"accessor":"acc","ttl":0,"expire_time":null}}`, with(func(s *lease.Session) { s.TTL = 0 }), ""},
		{"few uses", 200, `{"data":{"accessor":"acc","ttl":3600,"num_uses":3}}`, lease.Session{}, ": the token may be used a few times only; use one without num_uses"},
		{"no token", 200, `{"data":{"x":"y"}}`, lease.Session{}, ": the answer tells nothing of the token; check that vaultAddress is that of Vault"},
		{"odd", 200, `{"data":{"ttl":"long"}}`, lease.Session{}, ": the answer tells nothing of the token; check that vaultAddress is that of Vault"},
		{"dead", 403, `{"errors":["permission denied","invalid token"]}`, lease.Session{}, ": the token has expired or was revoked; log in to Vault again and use the new token"},
		{"denied", 403, `{"errors":["permission denied"]}`, lease.Session{}, `: Vault answers 403: permission denied; add path "auth/token/lookup-self" { capabilities = ["read"] } to a policy of this token; Vault's default policy has it, unless the role has token_no_default_policy`},
	} {
		t.Run(row.name, func(t *testing.T) {
			s := served(t, func(w http.ResponseWriter, r *http.Request) {
				if r.Method != http.MethodGet || r.URL.Path != "/v1/auth/token/lookup-self" || r.Header.Get("X-Vault-Token") != canaryToken {
					w.WriteHeader(http.StatusTeapot)
					return
				}
				answering(row.status, row.body)(w, r)
			})
			got, err := Borrowed{s, canaryToken}.Login(t.Context(), mount, login(), provider.Identity{})
			require.Equal(t, row.want, got)
			if row.error == "" {
				require.NoError(t, err)
				return
			}
			require.ErrorContains(t, failure(t, err), begin+s.addrs.pick()+row.error)
		})
	}
}

func TestBorrowedReadBlamesNoRole(t *testing.T) {
	s := served(t, answering(403, `{"errors":["permission denied"]}`))
	se := lease.Session{Login: login(), Token: canaryToken, Borrowed: true}
	_, err := Borrowed{s, canaryToken}.Read(t.Context(), mount, se, creds)
	require.EqualError(t, failure(t, err), `field "secretPath": asking Vault at `+s.addrs.pick()+` for "database/creds/orders" with this token: `+
		`Vault answers 403: permission denied; add path "database/creds/orders" { capabilities = ["read"] } to a policy of this token`)
}
