package lease

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/tenure-csi/tenure/provider"
)

// grantsFor gives each read the grant that it is issued under, logging in where
// needed: once for each login, all at once. Beside an error, those whose login
// failed have none.
func (w *worker) grantsFor(a *attempt, send []*wanted, o order) ([]*grant, error) {
	type key struct {
		source string
		login  provider.Login
	}
	byLogin := map[key][]*wanted{}
	for _, want := range send {
		k := key{want.read.Source, want.read.Login}
		byLogin[k] = append(byLogin[k], want)
	}
	chosen := map[key]*grant{}
	for k, wants := range byLogin {
		if chosen[k] = w.usable(a, wants, o); chosen[k] == nil {
			chosen[k] = &grant{}
		}
	}
	var mu sync.Mutex
	var logins errgroup.Group
	for k, wants := range byLogin {
		mu.Lock()
		g := chosen[k]
		mu.Unlock()
		if g.ID != 0 {
			continue
		}
		logins.Go(func() error {
			err := w.login(g, wants[0], o)
			if err == nil || !refusesIdentity(err) || wants[0].read.Login.AWSIdentity == provider.NodeIdentity && classOf(err) == provider.Denied {
				return err // a role that the rules took back must not go on under its last token
			}
			old := w.fallback(wants)
			if old == nil {
				return err
			}
			w.log.Info("no fresh identity: issuing under the volume's living token", "reason", err)
			w.locked(func() {
				if errors.Is(err, w.needsID) {
					w.needsID = nil // it can be replaced all the same
				}
			})
			mu.Lock()
			defer mu.Unlock()
			chosen[k] = old
			return nil
		})
	}
	err := logins.Wait()
	for _, g := range chosen {
		if g.ID == 0 && !g.Opened.IsZero() { // a login that succeeded counts, whatever the others did
			w.enter(a, g)
		}
	}
	grants := make([]*grant, len(send))
	for i, want := range send {
		if g := chosen[key{want.read.Source, want.read.Login}]; g.ID != 0 {
			grants[i] = g
		}
	}
	return grants, err
}

// usable returns a grant that needs no new login: the attempt's own, the
// volume's newest for looks that mint nothing, or one opened a moment ago.
func (w *worker) usable(a *attempt, wants []*wanted, o order) *grant {
	read := wants[0].read
	for _, g := range w.rec.Grants {
		if a.grants[g.ID] && g.reusable() && g.Source == read.Source && g.Login == read.Login {
			return g
		}
	}
	newest := w.rec.newest(read.Source, read.Login)
	if newest == nil {
		return nil
	}
	looks, length := o.live, newest.Length
	for _, want := range wants {
		looks = looks && want.looks()
		if want.prior != nil && want.prior.Length > 0 {
			length = min(length, want.prior.Length)
		}
	}
	if looks || (!newest.final() && time.Since(newest.Opened) < length/10) {
		return newest
	}
	return nil
}

// login opens a grant with the pod's identity.
func (w *worker) login(g *grant, want *wanted, o order) error {
	if o.work != Mounting {
		if err := w.turn(o.ctx, w.urgency(want.prior)); err != nil {
			return &provider.Error{Class: provider.Unavailable, Cause: "the rotation made way for a Mount; it is taken up again", Err: err}
		}
	}
	var id provider.Identity
	w.locked(func() { id = w.identity })
	ctx := w.m.ctx
	if o.work == Mounting { // whoever waits is answered, though there is no room for a login
		within, cancel := context.WithDeadline(ctx, o.deadline)
		defer cancel()
		ctx = within
	}
	sent := time.Now()
	src := w.m.Sources[want.read.Source]
	s, err := src.Login(ctx, w.caller(o.work), want.read.Login, id)
	if fresh, ok := w.fresher(want.read.Login, id, o, err); ok {
		sent = time.Now()
		if s, err = src.Login(w.m.ctx, w.caller(o.work), want.read.Login, fresh); err == nil {
			w.locked(func() { w.learn(want.read.Login.TokenAudience(), fresh) }) // reads may have to prove it too
		}
	}
	w.m.metrics.logins.WithLabelValues(outcome(err)).Inc()
	if err != nil {
		if refusesIdentity(err) {
			w.locked(func() { w.lackIdentity(err) })
		}
		return blame(want, err)
	}
	w.locked(func() { w.needsID = nil })
	*g = grant{
		Source: want.read.Source, Login: want.read.Login, Token: s.Token.Reveal(), Accessor: s.Accessor,
		Opened: sent, Length: s.TTL, Jitter: w.m.grants.next(sent), Renewable: s.Renewable, Revocable: s.Revocable, Borrowed: s.Borrowed, Pending: true,
	}
	if s.MaxTTL > 0 {
		g.End = sent.Add(s.MaxTTL)
	}
	g.begin(sent, s.TTL)
	return nil
}

// enter adds a new grant to the record.
func (w *worker) enter(a *attempt, g *grant) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.rec.LastID++
	g.ID = w.rec.LastID
	w.rec.Grants = append(w.rec.Grants, g)
	a.grants[g.ID] = true
	if !g.Revocable && !g.Borrowed && g.Token != "" {
		w.log.Warn("the token can't be revoked: its credentials live to their end; "+
			"set token_type=service on the Vault role to have them end with the pod", "role", g.Login.Role)
		w.tell(NoticeToken, "Vault gave a token that can't be revoked, so that credentials outlive the pod to their own end; "+
			"set token_type=service on the Vault role "+strconv.Quote(g.Login.Role))
	}
}

// fallback returns a living grant for a replacement without fresh identity: one
// under which a new lease would clearly outlive the present one.
func (w *worker) fallback(wants []*wanted) *grant {
	g := w.rec.newest(wants[0].read.Source, wants[0].read.Login)
	if g == nil || slices.ContainsFunc(wants, func(want *wanted) bool { return !w.serves(g, want.prior) }) {
		return nil
	}
	return g
}

// serves reports whether a grant lives and can replace a lease; nil: there is none yet.
func (w *worker) serves(g *grant, l *lease) bool {
	if !g.Expires.IsZero() && passed(time.Now(), g.Expires) {
		return false
	}
	return l == nil || l.Kind != Leased || g.End.IsZero() || !g.End.Before(w.rec.end(l).Add(scale(l.Length, replaceMargin)))
}
