package main

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/tenure-csi/tenure/internal/lease"
	"github.com/tenure-csi/tenure/provider"
)

// witness sees a trial's calls to one source.
type witness struct {
	lease.Source
	*ledger
}

// ledger tells what a trial's calls wait for and what is left when it is over.
type ledger struct {
	mu      sync.Mutex
	trouble error           // of the last call; nil when that went well
	held    map[string]held // by token, by lease id under a borrowed one, or by subject and end
	out     int             // logins and reads that have not returned
}

// held is what lives at a backend until it is ended.
type held struct {
	what, command string // the command ends it; empty: nothing does
	until         time.Time
	fixed         bool // it can't be ended early
}

// saw notes how a call went and changes what is held after a good one. What
// lived under a dead token is dead.
func (w *ledger) saw(s lease.Session, err error, change func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.trouble = err
	var f *lease.Failure
	switch {
	case err == nil:
		change()
	case !errors.As(err, &f) || f.Verdict != lease.DeadAuth:
	case s.Borrowed:
		clear(w.held)
	default:
		delete(w.held, s.Token.Reveal())
	}
}

// sends notes a call that may make something.
func (w *ledger) sends() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.out++
}

func (w *ledger) returned() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.out--
}

// idle reports whether nothing that can be ended is held at Vault, or about to be.
func (w *ledger) idle() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, h := range w.held {
		if !h.fixed {
			return false
		}
	}
	return w.out == 0
}

// last is why the last call failed; empty when it did not.
func (w *ledger) last() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.trouble == nil {
		return ""
	}
	return provider.EventText(w.trouble)
}

// left says what is still held, one line each.
func (w *ledger) left(now time.Time) []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var lines []string
	for _, h := range w.held {
		if !h.until.IsZero() && h.until.Before(now) {
			continue
		}
		line := h.what + " lives until " + clock(h.until, now)
		if h.command != "" {
			line += "; to end it now: " + h.command
		}
		lines = append(lines, line)
	}
	slices.Sort(lines)
	return lines
}

func (w *ledger) prolong(key string, ttl time.Duration) {
	if h, ok := w.held[key]; ok {
		h.until = time.Now().Add(ttl)
		w.held[key] = h
	}
}

// Login implements lease.Source.
func (w *witness) Login(ctx context.Context, by lease.Caller, login provider.Login, id provider.Identity) (lease.Session, error) {
	w.sends()
	defer w.returned()
	s, err := w.Source.Login(ctx, by, login, id)
	w.saw(s, err, func() {
		if s.Borrowed || s.Token == "" {
			return
		}
		h := held{what: "the token with accessor " + s.Accessor, command: "vault token revoke -accessor " + s.Accessor}
		if !s.Revocable {
			h = held{what: "a token that can't be revoked", fixed: true}
		}
		if s.TTL > 0 {
			h.until = time.Now().Add(s.TTL)
		}
		w.held[s.Token.Reveal()] = h
	})
	return s, err
}

// Read implements lease.Source.
func (w *witness) Read(ctx context.Context, by lease.Caller, s lease.Session, r provider.Read) (lease.Issued, error) {
	w.sends()
	defer w.returned()
	issued, err := w.Source.Read(ctx, by, s, r)
	w.saw(s, err, func() {
		until := time.Now().Add(issued.TTL)
		switch {
		case issued.LeaseID == "" && issued.Kind == lease.Leased:
			w.held[r.Subject()+until.String()] = held{what: "what " + r.Subject() + " gave, which has no lease", until: until, fixed: true}
		case s.Borrowed && issued.LeaseID != "":
			w.held[issued.LeaseID] = held{
				what: "the lease " + issued.LeaseID, command: "vault lease revoke " + issued.LeaseID, until: until, fixed: !issued.Renewable,
			}
		}
	})
	return issued, err
}

// RenewSession implements lease.Source.
func (w *witness) RenewSession(ctx context.Context, by lease.Caller, s lease.Session) (lease.Granted, error) {
	g, err := w.Source.RenewSession(ctx, by, s)
	w.saw(s, err, func() { w.prolong(s.Token.Reveal(), g.TTL) })
	return g, err
}

// RenewLease implements lease.Source.
func (w *witness) RenewLease(ctx context.Context, by lease.Caller, s lease.Session, id string, increment time.Duration) (lease.Granted, error) {
	g, err := w.Source.RenewLease(ctx, by, s, id, increment)
	w.saw(s, err, func() { w.prolong(id, g.TTL) })
	return g, err
}

// EndSession implements lease.Source.
func (w *witness) EndSession(ctx context.Context, by lease.Caller, s lease.Session) error {
	err := w.Source.EndSession(ctx, by, s)
	w.saw(s, err, func() { delete(w.held, s.Token.Reveal()) })
	return err
}

// EndLease implements lease.Source.
func (w *witness) EndLease(ctx context.Context, by lease.Caller, s lease.Session, id string) error {
	err := w.Source.EndLease(ctx, by, s, id)
	w.saw(s, err, func() {
		if !w.held[id].fixed {
			delete(w.held, id)
		}
	})
	return err
}
