package vault

import (
	"context"
	"encoding/json"
	"net/http"

	"github.com/tenure-csi/tenure/internal/lease"
	"github.com/tenure-csi/tenure/provider"
)

// Borrowed is a Source that works under somebody's own token in place of logins,
// for trying an SPC before a role for its pods exists. What a pod proves is not
// looked at. The token is never revoked; the leases under it are ended one by
// one. Its methods may be called at once.
type Borrowed struct {
	*Source
	Token provider.Secret // sent to whatever address an SPC may name: allow one only
}

var _ lease.Source = Borrowed{}

// Login implements lease.Source: it looks the token up and logs nobody in.
func (b Borrowed) Login(ctx context.Context, by lease.Caller, login provider.Login, _ provider.Identity) (lease.Session, error) {
	c, f := b.call(opLookup, by, lease.Session{Login: login, Token: b.Token, Borrowed: true}, http.MethodGet, "auth/token/lookup-self")
	if f != nil {
		return lease.Session{}, f
	}
	a, f := b.do(ctx, c)
	if f != nil {
		if f.Verdict == lease.DeadAuth {
			f.Problem.Remedy = "log in to Vault again and use the new token"
		}
		return lease.Session{}, f
	}
	var token struct {
		Accessor  string `json:"accessor"`
		TTL       *int   `json:"ttl"`
		Renewable bool   `json:"renewable"`
		NumUses   int    `json:"num_uses"`
	}
	if raw, err := json.Marshal(a.Data); err != nil || json.Unmarshal(raw, &token) != nil || token.TTL == nil {
		return lease.Session{}, c.fail(lease.Retry, provider.Unavailable, "vaultAddress", "the answer tells nothing of the token", "check that vaultAddress is that of Vault")
	}
	if token.NumUses > 0 {
		return lease.Session{}, c.fail(lease.Wrong, provider.Precondition, "", "the token may be used a few times only", "use one without num_uses")
	}
	s := lease.Session{
		Login: login, Token: b.Token, Accessor: token.Accessor, TTL: seconds(*token.TTL), Renewable: token.Renewable, Borrowed: true,
	}
	if !s.Renewable {
		s.MaxTTL = s.TTL
	}
	return s, nil
}
