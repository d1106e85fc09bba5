package lease

import (
	"context"
	"fmt"
	"maps"
	"math"
	"strings"
	"sync"
	"time"

	"github.com/tenure-csi/tenure/internal/format"
	"github.com/tenure-csi/tenure/provider"
)

// backend behaves as Vault does with tokens and leases, as far as this package
// can tell: TTLs, caps at max TTL, leases that die with their token, and the
// faults that a test switches on. Times are those of the synctest bubble.
type backend struct {
	mu     sync.Mutex
	roles  map[string]role // by path
	auth   role            // the tokens' TTLs
	lag    time.Duration   // every call takes so long
	tokens map[string]*fakeToken
	leases map[string]*fakeLease
	kv     map[string]string
	lists  map[string][]any // names below a path
	lastID int
	lent   string // the token that every login answers; empty: each has its own
	proofs bool   // there are no tokens: each read proves the pod's identity
	batch  bool   // tokens can't be revoked

	fault func(op, path string) error // nil: none
	after func(op, path string) error // after the effect: the reply is lost

	logins, reads, renewals, ends int
	as                            []string       // the roles that logged in
	mints                         map[string]int // by path
	writes                        map[int64]int  // by minute
}

// role is how long what a path gives lives.
type role struct {
	ttl, max time.Duration
	kind     Kind
	bare     bool // no lease id (PKI)
	headroom time.Duration
	fixed    bool // not renewable
}

type fakeToken struct {
	made, expires time.Time
	dead          bool
	lost          time.Time // the backend forgot it
	leases        []*fakeLease
}

type fakeLease struct {
	token, path, pod string
	made, expires    time.Time
	role             role
	revoked, ended   bool // with its token or by somebody else; shortened by the daemon
}

// died returns when a lease that is not alive died by itself, or with its token;
// zero: it was ended.
func (b *backend) died(id string) time.Time {
	l := b.leases[id]
	if l == nil || l.revoked || l.ended {
		return time.Time{}
	}
	at := l.expires
	if t := b.tokens[l.token]; t != nil && !l.role.bare {
		at = earlier(earlier(at, t.expires), t.lost)
	}
	return at
}

func newBackend() *backend {
	return &backend{
		roles: map[string]role{}, auth: role{ttl: time.Hour, max: 24 * time.Hour},
		tokens: map[string]*fakeToken{}, leases: map[string]*fakeLease{}, kv: map[string]string{}, lists: map[string][]any{},
		mints: map[string]int{}, writes: map[int64]int{},
	}
}

// enter does what every call has in common. It returns with mu held, or an error.
func (b *backend) enter(ctx context.Context, op, path string) error {
	if err := ctx.Err(); err != nil {
		return broken(provider.Unavailable, "cancelled before it was sent", Retry, false)
	}
	if b.lag > 0 {
		time.Sleep(b.lag)
	}
	b.mu.Lock()
	if b.fault != nil {
		if err := b.fault(op, path); err != nil {
			b.mu.Unlock()
			return err
		}
	}
	if (op != "read" || b.roles[path].kind == Leased) && (op != "login" || !b.proofs) {
		b.writes[time.Now().Unix()/60]++
	}
	return nil
}

func (b *backend) leave(op, path string) error {
	defer b.mu.Unlock()
	if b.after != nil {
		return b.after(op, path)
	}
	return nil
}

func broken(c provider.Class, cause string, v Verdict, minted bool) error {
	return &Failure{Problem: provider.Error{Class: c, Cause: cause}, Verdict: v, MayHaveMinted: minted}
}

var (
	errDown   = broken(provider.Unavailable, "connection refused", Retry, false)
	errTLS    = broken(provider.Precondition, "certificate signed by an unknown authority", Retry, false)
	errNoDB   = broken(provider.Unavailable, "the database behind Vault does not answer", Retry, true)
	errGone   = broken(provider.Precondition, "lease not found", Gone, false)
	errDead   = broken(provider.Denied, "invalid token", DeadAuth, false)
	errDenied = broken(provider.Denied, "permission denied", Refused, false)
)

func (b *backend) id(kind string) string {
	b.lastID++
	return fmt.Sprintf("%s-%d", kind, b.lastID)
}

func (b *backend) alive(token string) bool {
	t := b.tokens[token]
	return t != nil && !t.dead && time.Now().Before(t.expires)
}

// leaseAlive says whether a lease works, and so the credential that it made.
func (b *backend) leaseAlive(id string) bool {
	l := b.leases[id]
	return l != nil && !l.revoked && time.Now().Before(l.expires) && (l.role.bare || b.alive(l.token))
}

// minted returns how often a pod's read made something.
func (b *backend) minted(podAndPath string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.mints[podAndPath]
}

// forget drops what is long dead, so that a simulated month stays fast.
func (b *backend) forget() {
	b.mu.Lock()
	defer b.mu.Unlock()
	maps.DeleteFunc(b.leases, func(id string, l *fakeLease) bool {
		return !b.leaseAlive(id) && time.Since(l.expires) > 24*time.Hour
	})
	maps.DeleteFunc(b.tokens, func(id string, t *fakeToken) bool {
		return !b.alive(id) && time.Since(t.expires) > 24*time.Hour
	})
}

// count returns the working leases with a lease id.
func (b *backend) count() (n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for id, l := range b.leases {
		if !l.role.bare && b.leaseAlive(id) {
			n++
		}
	}
	return n
}

// tokenCount returns the living tokens.
func (b *backend) tokenCount() (n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for id := range b.tokens {
		if b.alive(id) {
			n++
		}
	}
	return n
}

// proven reports whether an identity is good now.
func proven(id provider.Identity) bool {
	t, ok := id.Tokens["vault"]
	return ok && (t.Expires.IsZero() || !time.Now().After(t.Expires))
}

func (b *backend) Login(ctx context.Context, by Caller, login provider.Login, id provider.Identity) (Session, error) {
	if login.AWSIdentity != provider.NodeIdentity && !proven(id) {
		return Session{}, broken(provider.Precondition, "the pod has no usable service account token", Wrong, false)
	}
	if err := b.enter(ctx, "login", by.Pod.Name); err != nil {
		return Session{}, err
	}
	b.logins++
	b.as = append(b.as, login.Role)
	if b.proofs {
		return Session{}, b.leave("login", by.Pod.Name)
	}
	if b.lent != "" {
		return b.borrowed(), b.leave("login", by.Pod.Name)
	}
	token := b.id("token")
	b.tokens[token] = &fakeToken{made: time.Now(), expires: time.Now().Add(b.auth.ttl)}
	s := Session{Token: provider.Secret(token), Accessor: "a-" + token, TTL: b.auth.ttl, Renewable: !b.auth.fixed, Revocable: !b.batch}
	return s, b.leave("login", by.Pod.Name)
}

func (b *backend) Read(ctx context.Context, by Caller, s Session, r provider.Read) (Issued, error) {
	op := "read"
	if r.Method == provider.MethodList {
		op = "list"
	}
	if err := b.enter(ctx, op, r.Path); err != nil {
		return Issued{}, err
	}
	if !b.alive(s.Token.Reveal()) && !(b.proofs && proven(s.Identity)) {
		b.mu.Unlock()
		return Issued{}, errDead
	}
	if keys, known := b.lists[r.Path]; known && r.Method == provider.MethodList {
		return Issued{Kind: Once, Secret: format.Secret{Data: map[string]any{"keys": keys}}}, b.leave("list", r.Path)
	}
	b.reads++
	role, known := b.roles[r.Path]
	if !known {
		b.mu.Unlock()
		return Issued{}, broken(provider.Invalid, "nothing at "+r.Path, Wrong, false)
	}
	if role.kind != Leased {
		v := b.kv[r.Path]
		return Issued{Kind: role.kind, Next: role.ttl, Secret: format.Secret{Data: map[string]any{"value": v}}}, b.leave("read", r.Path)
	}
	b.mints[by.Pod.Name+" "+r.Path]++
	id := b.id("lease")
	now := time.Now()
	l := &fakeLease{token: s.Token.Reveal(), path: r.Path, pod: by.Pod.Name, made: now, expires: now.Add(role.ttl), role: role}
	b.leases[id] = l
	if token := b.tokens[l.token]; token != nil {
		token.leases = append(token.leases, l)
	}
	i := Issued{
		LeaseID: id, TTL: role.ttl, Renewable: !role.fixed, Kind: Leased, Headroom: role.headroom,
		Secret: format.Secret{Data: map[string]any{"username": id + ":user", "password": id + ":pass", "access_key": id + ":key"}},
	}
	if role.bare {
		i.LeaseID = ""
	}
	return i, b.leave("read", r.Path)
}

// extend is Vault's arithmetic: what is asked for, up to the max TTL, in whole
// seconds.
func extend(made time.Time, asked, most time.Duration) time.Duration {
	left := time.Until(made.Add(most))
	return time.Duration(math.Floor(min(asked, left).Seconds())) * time.Second
}

func (b *backend) RenewSession(ctx context.Context, by Caller, s Session) (Granted, error) {
	if err := b.enter(ctx, "renew-token", by.Pod.Name); err != nil {
		return Granted{}, err
	}
	b.renewals++
	t := b.tokens[s.Token.Reveal()]
	if !b.alive(s.Token.Reveal()) {
		b.mu.Unlock()
		return Granted{}, errDead
	}
	ttl := extend(t.made, b.auth.ttl, b.auth.max)
	t.expires = time.Now().Add(ttl)
	return Granted{TTL: ttl, Renewable: true}, b.leave("renew-token", by.Pod.Name)
}

func (b *backend) RenewLease(ctx context.Context, _ Caller, s Session, id string, inc time.Duration) (Granted, error) {
	path := ""
	b.mu.Lock()
	if l := b.leases[id]; l != nil {
		path = l.path
	}
	b.mu.Unlock()
	if err := b.enter(ctx, "renew", path); err != nil {
		return Granted{}, err
	}
	b.renewals++
	l := b.leases[id]
	switch {
	case !b.alive(s.Token.Reveal()):
		b.mu.Unlock()
		return Granted{}, errDead
	case !b.leaseAlive(id):
		b.mu.Unlock()
		return Granted{}, errGone
	}
	ttl := extend(l.made, inc, l.role.max)
	l.expires = time.Now().Add(ttl)
	return Granted{TTL: ttl, Renewable: true}, b.leave("renew", path)
}

func (b *backend) EndSession(ctx context.Context, by Caller, s Session) error {
	if err := b.enter(ctx, "end", by.Pod.Name); err != nil {
		return err
	}
	b.ends++
	if t := b.tokens[s.Token.Reveal()]; t != nil {
		t.dead = true
		for _, l := range t.leases {
			l.revoked = l.revoked || !l.role.bare
		}
	}
	return b.leave("end", by.Pod.Name)
}

func (b *backend) EndLease(ctx context.Context, by Caller, _ Session, id string) error {
	if err := b.enter(ctx, "end-lease", by.Pod.Name); err != nil {
		return err
	}
	b.ends++
	if l := b.leases[id]; l != nil && l.expires.After(time.Now().Add(time.Second)) {
		l.expires, l.ended = time.Now().Add(time.Second), true
	}
	return b.leave("end-lease", by.Pod.Name)
}

// leaseOf returns the lease that a file's content names.
func leaseOf(content []byte) string { id, _, _ := strings.Cut(string(content), ":"); return id }
