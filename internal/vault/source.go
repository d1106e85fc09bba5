package vault

import (
	"context"
	"errors"
	"math"
	"net/http"
	"time"

	"github.com/tenure-csi/tenure/internal/lease"
	"github.com/tenure-csi/tenure/provider"
)

// Login implements lease.Source for the methods kubernetes and jwt, which are
// the same request. It makes one call: what the answer does not tell (period,
// explicit max TTL) is left unknown, MaxTTL 0, and shows as
// truncated renewals. A login given up by ctx may leave a token without leases
// until its TTL.
func (s *Source) Login(ctx context.Context, by lease.Caller, login provider.Login, id provider.Identity) (lease.Session, error) {
	jwt, err := id.TokenFor(login.Audience, by.Pod)
	if err != nil {
		f := &lease.Failure{Verdict: lease.Wrong, Problem: provider.Error{Class: provider.Precondition, Cause: "the pod has no usable service account token", Err: err}}
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
	c.jwt, c.path = jwt.Value, "auth/"+c.to.mount+"/login"
	c.body = map[string]any{"role": login.Role, "jwt": jwt.Value.Reveal()}
	a, f := s.do(ctx, c)
	if f == nil {
		f = unusable(c, a.Auth)
	}
	if f != nil {
		return lease.Session{}, f
	}
	return session(login, a.Auth), nil
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

// Read implements lease.Source. A read that is not known to mint nothing waits
// for room under ctx and then runs to Vault's own limit whatever ctx says.
func (s *Source) Read(ctx context.Context, by lease.Caller, se lease.Session, r provider.Read) (lease.Issued, error) {
	c, f := s.call(opRead, by, se, r.Method, r.Path)
	if f != nil {
		return lease.Issued{}, f
	}
	key := knownKey(c.to.addr, c.to.namespace, r.Path)
	c.mints = r.Method != http.MethodGet || !s.known.has(key)
	c.query = r.Query
	if r.Method != http.MethodGet {
		c.body = r.Args
	}
	a, f := s.do(ctx, c)
	if f != nil {
		return lease.Issued{}, f
	}
	issued, f := issue(c, a, time.Now())
	if f != nil {
		return lease.Issued{}, f
	}
	if r.Method == http.MethodGet {
		s.known.set(key, issued.Kind == lease.Polled || issued.Kind == lease.Static)
	}
	return issued, nil
}

// RenewSession implements lease.Source with auth/token/renew-self. It asks for
// no increment: Vault takes the token's own TTL or period.
func (s *Source) RenewSession(ctx context.Context, by lease.Caller, se lease.Session) (lease.Granted, error) {
	c, f := s.call(opRenewToken, by, se, http.MethodPost, "auth/token/renew-self")
	if f != nil {
		return lease.Granted{}, f
	}
	a, f := s.do(ctx, c)
	if f != nil {
		return lease.Granted{}, f
	}
	if a.Auth == nil || a.Auth.LeaseDuration <= 0 {
		return lease.Granted{}, senseless(c)
	}
	return lease.Granted{TTL: seconds(a.Auth.LeaseDuration), Renewable: a.Auth.Renewable}, nil
}

// RenewLease implements lease.Source with sys/leases/renew.
func (s *Source) RenewLease(ctx context.Context, by lease.Caller, se lease.Session, leaseID string, increment time.Duration) (lease.Granted, error) {
	return s.renew(ctx, opRenewLease, by, se, leaseID, increment)
}

// renew asks for increment more of a lease. The lease id goes in the body: the
// default policy does not allow it in the path.
func (s *Source) renew(ctx context.Context, op operation, by lease.Caller, se lease.Session, leaseID string, increment time.Duration) (lease.Granted, error) {
	c, f := s.call(op, by, se, http.MethodPut, "sys/leases/renew")
	if f != nil {
		return lease.Granted{}, f
	}
	c.body = map[string]any{"lease_id": leaseID, "increment": int64(math.Ceil(increment.Seconds()))}
	a, f := s.do(ctx, c)
	if f != nil {
		return lease.Granted{}, f
	}
	if a.LeaseID != leaseID || a.LeaseDuration < 0 {
		return lease.Granted{}, senseless(c)
	}
	return lease.Granted{TTL: seconds(a.LeaseDuration), Renewable: a.Renewable}, nil
}

// EndSession implements lease.Source with auth/token/revoke-self. Vault drops
// what the token's leases stand for afterwards, in its own time. A token that is
// dead already counts as ended. Must not be called for a Session that is not Revocable.
func (s *Source) EndSession(ctx context.Context, by lease.Caller, se lease.Session) error {
	c, f := s.call(opEndToken, by, se, http.MethodPost, "auth/token/revoke-self")
	if f == nil {
		_, f = s.do(ctx, c)
	}
	if f == nil || f.Verdict == lease.DeadAuth {
		return nil
	}
	return f
}

// EndLease implements lease.Source by asking for one second more of the lease,
// which shortens it: the default policy allows no revocation of a lease.
func (s *Source) EndLease(ctx context.Context, by lease.Caller, se lease.Session, leaseID string) error {
	_, err := s.renew(ctx, opEndLease, by, se, leaseID, time.Second)
	var f *lease.Failure
	if errors.As(err, &f) && (f.Verdict == lease.Gone || f.Verdict == lease.Final) {
		return nil
	}
	return err
}

// call makes a call under a session, with the daemon's settings of now.
func (s *Source) call(op operation, by lease.Caller, se lease.Session, method, path string) (call, *lease.Failure) {
	to, err := s.resolve(se.Login)
	if err != nil {
		return call{}, &lease.Failure{Problem: *err, Verdict: lease.Wrong}
	}
	return call{op: op, by: by, login: se.Login, to: to, token: se.Token, borrowed: se.Borrowed, accessor: se.Accessor, method: method, path: path}, nil
}

// senseless is the Failure of a renewal that answered 200 without what it was asked.
func senseless(c call) *lease.Failure {
	return c.fail(lease.Retry, provider.Unavailable, "vaultAddress", "the answer tells no new end", "check that vaultAddress is that of Vault")
}

// maxSeconds is the longest life that is believed: more than Vault's own
// largest TTL of 2^31-1 s would overflow a Duration or a date.
const maxSeconds = math.MaxInt32

func seconds(n int) time.Duration {
	return time.Duration(min(max(n, 0), maxSeconds)) * time.Second
}
