package vault

import (
	"context"
	"errors"
	"net/http"

	"github.com/tenure-csi/tenure/internal/lease"
	"github.com/tenure-csi/tenure/provider"
)

// Login implements lease.Source for the methods kubernetes and jwt, which are
// the same request, approle, and aws, which asks STS first where the identity is
// the pod's. It makes one call to Vault: what the answer does not tell (period,
// explicit max TTL) is left unknown, MaxTTL 0, and shows as truncated renewals. A
// login given up by ctx may leave a token without leases until its TTL, and has
// used up a use of a limited secret_id.
func (s *Source) Login(ctx context.Context, by lease.Caller, login provider.Login, id provider.Identity) (lease.Session, error) {
	body, secrets, err := s.proof(ctx, by, login, id)
	if f, ok := errors.AsType[*lease.Failure](err); ok {
		return lease.Session{}, f
	}
	if err != nil {
		f := &lease.Failure{Verdict: lease.Wrong, Problem: provider.Error{Class: provider.Precondition, Cause: "the pod has no usable identity", Err: err}}
		var known *provider.Error
		if errors.As(err, &known) {
			f.Problem = *known
		}
		return lease.Session{}, f
	}
	c, f := s.call(opLogin, by, lease.Session{Login: login}, http.MethodPost, "")
	if f != nil {
		return lease.Session{}, f
	}
	c.proof, c.body, c.path = secrets, body, "auth/"+c.to.mount+"/login"
	a, f := s.do(ctx, c)
	if f == nil {
		f = unusable(c, a.Auth)
	}
	if f != nil {
		return lease.Session{}, f
	}
	return session(login, a.Auth), nil
}

// proof is what a login sends, and what of it must not be seen.
func (s *Source) proof(ctx context.Context, by lease.Caller, login provider.Login, id provider.Identity) (body map[string]any, secrets []provider.Secret, err error) {
	switch login.Method {
	case provider.AppRoleMethod:
		return appRole(id)
	case provider.AWSMethod:
		return s.awsProof(ctx, by, login, id)
	}
	jwt, err := id.TokenFor(login.Audience, by.Pod)
	return map[string]any{"role": login.Role, "jwt": jwt.Value.Reveal()}, []provider.Secret{jwt.Value}, err
}

// appRole is proof out of the nodePublishSecretRef Secret.
func appRole(id provider.Identity) (body map[string]any, secrets []provider.Secret, err error) {
	roleID, secretID, err := id.AppRole()
	body = map[string]any{"role_id": roleID.Reveal()}
	if secretID != "" {
		body["secret_id"] = secretID.Reveal()
	}
	return body, []provider.Secret{roleID, secretID}, err
}

// unusable is the Failure for a login's answer without a token that Tenure can work with.
func unusable(c call, a *auth) *lease.Failure {
	switch {
	case a != nil && a.ClientToken == "" && len(a.MFA) > 0 && string(a.MFA) != "null":
		return c.fail(lease.Wrong, provider.Precondition, "roleName", "Vault asks for a second factor", "exempt this auth mount from login MFA")
	case a == nil || a.ClientToken == "" || a.LeaseDuration < 0:
		return c.fail(lease.Retry, provider.Unavailable, "vaultAddress", "the answer holds no token", "check that vaultAddress is that of Vault")
	case a.NumUses > 0:
		return c.fail(lease.Wrong, provider.Precondition, "roleName", "the token may be used a few times only, and could not be renewed",
			"set token_num_uses of the Vault role to 0")
	}
	return nil
}

// session reads a login's auth. A batch token can't be renewed or revoked.
func session(login provider.Login, a *auth) lease.Session {
	batch := a.TokenType == "batch"
	out := lease.Session{
		Login: login, Token: provider.Secret(a.ClientToken), Accessor: a.Accessor,
		TTL: seconds(a.LeaseDuration), Renewable: a.Renewable && !batch, Revocable: !batch,
	}
	if !out.Renewable {
		out.MaxTTL = out.TTL
	}
	return out
}
