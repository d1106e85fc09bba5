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

// Read implements lease.Source. A read that is not known to mint nothing waits
// for room under ctx and then runs to Vault's own limit whatever ctx says.
func (s *Source) Read(ctx context.Context, by lease.Caller, se lease.Session, r provider.Read) (lease.Issued, error) {
	c, f := s.call(opRead, by, se, r.Method, r.Path)
	if f != nil {
		return lease.Issued{}, f
	}
	key := knownKey(s.cluster(c), c.to.namespace, r.Path)
	c.query = r.Query
	switch r.Method {
	case provider.MethodList:
	case http.MethodGet:
		c.mints = !s.known.has(key)
	default:
		c.mints, c.body = true, r.Args
	}
	a, f := s.do(ctx, c)
	if f != nil {
		return lease.Issued{}, f
	}
	issued, f := issue(c, a, time.Now())
	if f != nil {
		return lease.Issued{}, f
	}
	if _, user := awsKeys(a); user {
		select {
		case <-time.After(s.cfg.KeyDelay):
		case <-ctx.Done(): // nobody wants the key any more
		}
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
