package lease

import (
	"context"
	"time"

	"github.com/tenure-csi/tenure/internal/format"
	"github.com/tenure-csi/tenure/provider"
)

// Source is a backend that issues. It is called from many goroutines at once.
// Every error it returns is a *Failure. A Source never retries by itself, never
// logs a value, and bounds each call by its own time-out beside the context.
type Source interface {
	// Login opens a session with the pod's identity. A source without sessions
	// answers a Session with an empty Token. The deadline of ctx is for the wait: a
	// login that was sent is not cut by it, since its token would be nobody's.
	Login(ctx context.Context, by Caller, login provider.Login, id provider.Identity) (Session, error)
	// Read asks once. A read that was sent is not cancelled by ctx when it may
	// mint: the source goes on for its own long time-out; the caller who does not
	// want to wait must run it in a goroutine of its own.
	Read(ctx context.Context, by Caller, s Session, r provider.Read) (Issued, error)
	// RenewSession prolongs the token by its own period and reports what is granted.
	RenewSession(ctx context.Context, by Caller, s Session) (Granted, error)
	// RenewLease asks for increment more and reports what is granted.
	RenewLease(ctx context.Context, by Caller, s Session, leaseID string, increment time.Duration) (Granted, error)
	// EndSession revokes the token and with it every lease under it. nil means
	// that the backend has taken the duty: the end itself may come later.
	EndSession(ctx context.Context, by Caller, s Session) error
	// EndLease ends one lease of a session that lives on, by shortening it to a
	// second. nil means done, also when the lease is gone or can't be shortened.
	EndLease(ctx context.Context, by Caller, s Session, leaseID string) error
}

// Caller says for whom and how urgently a call is made, for fairness and logs.
type Caller struct {
	Pod  provider.Pod
	Work Work
}

// Work is the kind of a call. Mounts are bounded in flight per namespace;
// background work leaves them room; urgent work has room of its own.
type Work int

// The kinds of work.
const (
	Mounting   Work = iota // a pod waits for it
	Background             // renewals, replacements and ends in good time
	Urgent                 // in the last third of a lease's life
)

// Session is an opened login: what further calls need. Only its Login and Token
// are needed to go on after a restart.
type Session struct {
	Login     provider.Login  // as the SPC said it; the source resolves flags at each use
	Token     provider.Secret // empty: the source has none
	Accessor  string          // plain name of the token in the audit log; empty: none
	TTL       time.Duration   // life from now on; 0: without end
	Renewable bool
	Revocable bool          // false for batch tokens: EndSession must not be called
	Borrowed  bool          // somebody's own token, with Revocable false: it is never ended, the leases under it are, one by one
	MaxTTL    time.Duration // last possible end from now on; 0: not known or none
	// Identity is what the pod can prove now, for sources without a token: they
	// prove it at each read. In memory only; set by the worker.
	Identity provider.Identity
}

// Issued is the answer to a read.
type Issued struct {
	Secret    format.Secret
	LeaseID   string        // empty: nothing to renew, to end, or to die with the token
	TTL       time.Duration // life of what was issued; 0: no end known
	Renewable bool
	Kind      Kind
	// Headroom is how much of its life must be left when it is replaced, because
	// readers refuse what is about to end; 0: what the policy leaves anyway.
	Headroom time.Duration
	// Next is when a static role's backend rotates next, from now on; 0: not static.
	Next time.Duration
}

// SessionHeadroom is the Headroom of AWS sessions: botocore, AWS's SDK for Python,
// asks for new credentials from 15 minutes before the end on, and waits for them
// from 10.
const SessionHeadroom = 20 * time.Minute

// Kind says how a read is kept fresh.
type Kind int

// The kinds of answers.
const (
	Leased Kind = iota // has an end: renewed where renewable, else replaced before it
	Polled             // no end, and asking again costs nothing: looked at every Refresh (KV)
	Static             // the backend rotates by itself: looked at shortly after Next
	Once               // no end, and asking again would make another: never asked again (a PUT without TTL)
)

// String returns the word for the kind in metrics and status.
func (k Kind) String() string { return [...]string{"leased", "polled", "static", "once"}[k] }

// Granted is what a renewal was given.
type Granted struct {
	TTL       time.Duration
	Renewable bool
}

// Verdict is what a failed call means for what is held.
type Verdict int

// The verdicts.
const (
	Retry    Verdict = iota // a fault of the backend or the way to it: try again
	Gone                    // the lease does not exist any more
	Final                   // the lease can't be renewed; it lives to its end
	DeadAuth                // the token is dead, and so is all under it
	Refused                 // the token is alive and may not do this
	Wrong                   // the request will never succeed as it is
)

// Failure is a failed call to a Source.
type Failure struct {
	Problem provider.Error // Object and Tenant are filled in by the caller
	Verdict Verdict
	// MayHaveMinted is true when the request may have taken effect at the
	// backend: the answer was cut, timed out, or was a 5xx other than 503.
	MayHaveMinted bool
	RetryAfter    time.Duration // what the backend asked for; 0: nothing
}

// Error gives the Problem's text.
func (f *Failure) Error() string { return f.Problem.Error() }

// Unwrap makes the Failure's *provider.Error visible to errors.As.
func (f *Failure) Unwrap() error { return &f.Problem }
