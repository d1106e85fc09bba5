package lease

import (
	"reflect"
	"time"

	"github.com/tenure-csi/tenure/provider"
)

// republishWithin is how long after the daemon's start a driver with rotation on
// has brought the pods' identities again: kubelet calls it every 61–90 s, and the
// documentation asks for a rotationPollInterval of at most 2 minutes.
const republishWithin = 3 * time.Minute

// sameSecret reports whether an identity with a Secret is the one that the last
// Mount brought. Refused once, it is not tried at every republish: after some
// refusals Vault locks the role for all who have it. mu is held.
func (w *worker) sameSecret(id provider.Identity) bool {
	return len(id.Secrets) > 0 && reflect.DeepEqual(w.identity, id)
}

// refusesIdentity reports whether a failed login says that this identity can't
// log in, and not that the way to the backend is disturbed.
func refusesIdentity(err error) bool {
	verdict, _ := verdictOf(err)
	return verdict != Retry
}

// lackIdentity remembers that only the next Mount can help. mu is held.
func (w *worker) lackIdentity(err error) {
	if w.needsID != nil {
		return
	}
	w.needsID = err
	w.log.Warn("no usable identity: waiting for the driver's next republish", "reason", err)
}

// welcome lets what waited for an identity go on, when a Mount has brought one.
func (w *worker) welcome() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.fresh {
		return
	}
	w.fresh = false
	for _, l := range w.rec.current() {
		if l.Final || l.Kind != Leased {
			l.Retry = time.Time{}
		}
	}
	for _, g := range w.rec.Grants {
		if g.final() && !g.Ending {
			g.Retry = time.Time{}
		}
	}
}

// foresee tells in good time that something can't be replaced: at half of its
// remaining life, when somebody can still mend it.
func (w *worker) foresee(now time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, l := range w.rec.current() {
		if from, why := w.lacking(l); why != nil && passed(now, from) {
			w.lackIdentity(blame(&wanted{objects: []provider.Object{{Name: l.Objects[0].ID, Tenant: l.Tenant}}}, why))
			return
		}
	}
}

// lacking returns from when on it is told that a lease's replacement, planned and
// not tried yet, will lack an identity, by what is known now. nil: it won't. Where
// republishes come, only an identity that has really ended counts: each brings a
// newer one. mu is held.
func (w *worker) lacking(l *lease) (from time.Time, why error) {
	if w.needsID != nil || l.Kind != Leased || !l.Final || l.Tries > 0 {
		return from, nil //nolint:nilerr // what has been told is not told again
	}
	if g := w.rec.newest(l.Source, l.Login); g != nil && (g.Borrowed || w.serves(g, l)) {
		return from, nil // a login is not needed
	}
	if w.m.Cluster.Identities != nil && l.Login.ByToken() {
		return from, nil // a fresh token is asked for when it is
	}
	until, why := w.identity.Until(l.Login, w.rec.Pod)
	if until.After(l.Due) {
		why = nil // it lasts
	}
	if !w.republished {
		until = time.Time{}
	}
	if w.identity.Tokens == nil && w.identity.Secrets == nil { // no Mount has brought one since the start
		until = w.m.opened.Add(republishWithin)
	}
	return later(w.rec.half(l), until), why
}

// half is when half of what is left of a lease since it was issued or renewed is over.
func (r *Record) half(l *lease) time.Time { return l.Issued.Add(r.end(l).Sub(l.Issued) / 2) }

// tooSoon puts a replacement whose turn has come early, and which would lack an
// identity, off until half of the lease's life: somebody may bring one until then.
func (w *worker) tooSoon(l *lease, now time.Time) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, why := w.lacking(l); why == nil || l.Next != Scheduled && l.Next != TokenEnd || passed(now, w.rec.half(l)) {
		return false
	}
	l.Due = w.rec.half(l)
	return true
}
