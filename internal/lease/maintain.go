package lease

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/tenure-csi/tenure/provider"
)

// backgroundWait is how long a rotation waits for all of its reads together;
// those that have answered by then are swapped in without the others. It is longer
// than a source commonly holds a new AWS key back.
const backgroundWait = 15 * time.Second

// looksInARow is how many failed looks at what has no lease follow each other at
// the pace of retries.
const looksInARow = 3

// maintain does what is due: renewals, replacements, looks, ends. ctx ends when
// a Mount or the volume's end wants the worker.
func (w *worker) maintain(ctx context.Context) {
	now := time.Now()
	dirty := w.collectStrays(now)
	dirty = w.lapse(now) || dirty
	if !w.rec.Ended {
		w.welcome()
		w.reviewDue(ctx)
		failed, renewed := w.renewDue(ctx, now)
		dirty = dirty || renewed
		w.foresee(time.Now())
		w.replaceDue(ctx, failed)
		w.retryChange(ctx)
	}
	if dirty {
		w.settle(time.Now())
		w.saveBestEffort()
	}
	if w.endDue(ctx) {
		w.settle(time.Now())
		w.saveBestEffort()
	}
	if w.rec.Ended && len(w.rec.Grants) == 0 && len(w.strays) == 0 {
		if err := w.m.Store.Remove(w.rec.ID); err != nil {
			w.log.Warn("removing an ended volume from the journal", "error", err)
		}
		w.m.forget(w)
	}
}

// settle lets go of what nothing needs.
func (w *worker) settle(now time.Time) {
	held := w.held()
	w.locked(func() {
		w.rec.settle(now, held)
		w.letGo()
	})
	_ = w.count(w.rec.written(nil), true)
}

// lapse drops what was kept for a while: attempts, bytes, replaced directories
// and leases. It reports whether the record changed.
func (w *worker) lapse(now time.Time) (changed bool) {
	if a := w.attempt; a != nil && !a.keep.IsZero() && passed(now, a.keep) {
		waits := false
		w.locked(func() { waits = a.waits() })
		if waits { // anew they would wait longer
			a.keep = now.Add(keepAttempt)
		} else {
			w.dropAttempt()
			changed = true
		}
	}
	if w.recent != nil && passed(now, w.recent.until) {
		w.locked(w.forgetRecent)
	}
	w.forgetGuards(now)
	var stay []retired
	for _, d := range w.rec.Retired {
		if !passed(now, d.Until) {
			stay = append(stay, d)
			continue
		}
		changed = true
		if w.live() { // an unmounted volume has nothing to remove
			if err := w.m.Files.Remove(w.rec.Target, d.Dir); err != nil {
				w.log.Warn("removing a replaced directory; it is tried again", "error", err)
				stay = append(stay, retired{Dir: d.Dir, Until: now.Add(retryCap)})
			}
		}
	}
	w.locked(func() { w.rec.Retired = stay })
	return changed || slices.ContainsFunc(w.rec.Leases, func(l *lease) bool { return !l.Until.IsZero() && passed(now, l.Until) })
}

// extension is one renewal under way.
type extension struct {
	g    *grant
	l    *lease // nil: the grant's token
	sent time.Time
	got  Granted
	err  error
	late bool // it was not sent: the worker was wanted elsewhere
}

// renewDue renews tokens, then leases. It returns the leases whose renewal
// failed just now, and whether anything was done.
func (w *worker) renewDue(ctx context.Context, now time.Time) (failed []*lease, did bool) {
	var tokens, leases []*extension
	for _, g := range w.rec.Grants {
		if g.Ending || g.Pending || !isDue(now, g.at(), g.Opened) {
			continue
		}
		did = true
		if g.final() {
			w.succeed(ctx, g, now)
		} else {
			tokens = append(tokens, &extension{g: g})
		}
	}
	w.extend(ctx, tokens)
	for _, e := range tokens {
		w.locked(func() { w.tokenExtended(e, time.Now()) })
	}
	for _, l := range w.rec.current() {
		if g := w.rec.grant(l.Grant); g != nil && l.Kind == Leased && !l.Final && isDue(now, l.at(), l.Issued) {
			leases = append(leases, &extension{g: g, l: l})
		}
	}
	w.extend(ctx, leases)
	for _, e := range leases {
		w.locked(func() { w.leaseExtended(e, time.Now()) })
		if e.err != nil && !e.late {
			failed = append(failed, e.l)
		}
	}
	return failed, did || len(leases) > 0
}

// extend makes the calls, each in its turn.
func (w *worker) extend(ctx context.Context, es []*extension) {
	var calls sync.WaitGroup
	for _, e := range es {
		calls.Go(func() {
			end, src := e.g.Expires, w.m.Sources[e.g.Source]
			if e.l != nil {
				end = w.rec.end(e.l)
			}
			if e.err = w.turn(ctx, end); e.err != nil {
				e.late = true
				return
			}
			e.sent = time.Now()
			if e.l == nil {
				e.got, e.err = src.RenewSession(w.m.ctx, w.caller(Background), e.g.session())
			} else {
				e.got, e.err = src.RenewLease(w.m.ctx, w.caller(w.hurry(e.l)), e.g.session(), e.l.LeaseID, e.l.Length)
			}
			w.m.metrics.renewals.WithLabelValues(outcome(e.err)).Inc()
		})
	}
	calls.Wait()
}

// hurry returns how urgent work on a lease is: the last third of its life is.
func (w *worker) hurry(l *lease) Work {
	if end := w.rec.end(l); !end.IsZero() && time.Until(end) < l.Length/3 {
		return Urgent
	}
	return Background
}

// tokenExtended applies the answer to a token's renewal.
func (w *worker) tokenExtended(e *extension, now time.Time) {
	g := e.g
	verdict, after := verdictOf(e.err)
	switch {
	case e.late:
	case e.err == nil:
		if e.sent.Round(0).Before(g.Opened.Round(0)) { // the clock was set back: once is enough
			g.Opened = e.sent
		}
		g.begin(e.sent, e.got.TTL)
		w.tokenEnds(g, now)
	case verdict == DeadAuth || verdict == Gone:
		w.tokenDied(g, now)
	case verdict == Retry:
		g.Tries++
		g.Retry = now.Add(retryIn(g.Tries, now, g.Expires, after))
		w.log.Warn("renewing the token failed; it is tried again", "tries", g.Tries, "error", e.err)
	default:
		w.log.Error("the token can't be renewed: it lives to its end", "expires", g.Expires, "error", e.err)
		w.tell(NoticeToken, "Vault does not renew the volume's token, so that each lease is replaced in place of renewed: "+e.err.Error())
		g.Renewable = false
		g.begin(now, g.Expires.Sub(now))
		w.tokenEnds(g, now)
	}
}

// tokenEnds schedules the replacement of leases that a token whose end has
// become known will take with it. mu is held.
func (w *worker) tokenEnds(g *grant, now time.Time) {
	if !g.final() {
		return
	}
	for _, l := range w.rec.current() {
		if l.Grant != g.ID || l.LeaseID == "" || l.Kind != Leased || !w.rec.end(l).Before(l.Expires) {
			continue
		}
		if at := l.soonest(now, g.End); !l.Final || at.Before(l.Due) {
			l.finish(TokenEnd, at)
		}
	}
}

// tokenDied drops a grant that the backend does not know any more: what lived
// under it is lost. mu is held.
func (w *worker) tokenDied(g *grant, now time.Time) {
	w.log.Warn("the token is dead: its leases are issued anew", "accessor", g.Accessor)
	g.Ending, g.Revocable = true, false
	for _, l := range w.rec.current() {
		if l.Grant == g.ID && l.LeaseID != "" {
			l.lose(now)
		}
	}
}

// lose makes a lease due for replacement because it is gone.
func (l *lease) lose(now time.Time) {
	l.Retry, l.Renewable = time.Time{}, false
	l.finish(Lost, now)
}

// leaseExtended applies the answer to a lease's renewal. mu is held.
func (w *worker) leaseExtended(e *extension, now time.Time) {
	l := e.l
	verdict, after := verdictOf(e.err)
	switch {
	case e.late:
	case e.err == nil:
		l.Issued, l.Expires = e.sent, e.sent.Add(e.got.TTL)
		w.rec.schedule(l, l.Due, e.sent, now)
		if !e.got.Renewable && !l.Final {
			l.finish(Scheduled, l.soonest(now, w.rec.end(l)))
		}
	case verdict == DeadAuth:
		w.tokenDied(e.g, now)
	case verdict == Gone:
		w.log.Warn("the lease is gone: it is issued anew", "tenant", l.Tenant, "error", e.err)
		l.lose(now)
	case verdict == Final || verdict == Refused:
		w.log.Warn("the lease can't be renewed: it lives to its end", "expires", l.Expires, "error", e.err)
		l.Renewable, l.Problem = false, e.err.Error()
		at := l.soonest(now, w.rec.end(l))
		if verdict == Refused {
			at = lastResort(now, w.rec.end(l), l.Length, l.Jitter)
			w.tell(NoticeToken, l.named()+"the token may not renew its lease, which is replaced at its end instead: "+l.Problem)
		}
		l.finish(Scheduled, at)
	default:
		w.postpone(l, now, after, e.err)
	}
}

// postpone sets the next try after a failure. mu is held.
func (w *worker) postpone(l *lease, now time.Time, after time.Duration, err error) {
	l.Tries++
	l.Retry = now.Add(retryIn(l.Tries, now, w.rec.end(l), after))
	l.Problem = err.Error()
	w.log.Warn("keeping a credential fresh failed; it is tried again", "tenant", l.Tenant,
		"tries", l.Tries, "expires", l.Expires, "error", err)
}

// verdictOf returns what a Source's error means.
func verdictOf(err error) (Verdict, time.Duration) {
	var f *Failure
	if errors.As(err, &f) {
		return f.Verdict, f.RetryAfter
	}
	return Retry, 0
}

// succeed logs in anew before the volume's newest token ends, for polls and
// replacements to come. What needs no token waits for the next need of one.
func (w *worker) succeed(ctx context.Context, g *grant, now time.Time) {
	looks := slices.ContainsFunc(w.rec.current(), func(l *lease) bool {
		return l.Kind != Leased && l.Source == g.Source && l.Login == g.Login
	})
	if w.rec.newest(g.Source, g.Login) != g || !looks {
		w.locked(func() { g.Due, g.Retry = time.Time{}, time.Time{} })
		return
	}
	fresh := &grant{}
	want := &wanted{reason: TokenEnd, objects: []provider.Object{{}}, read: provider.Read{Source: g.Source, Login: g.Login}}
	err := w.login(fresh, want, order{work: Background, ctx: ctx})
	w.mu.Lock()
	defer w.mu.Unlock()
	if err != nil {
		if ctx.Err() == nil {
			g.Tries++
			after := time.Duration(0)
			if w.needsID != nil {
				after = mintGuardCap
			}
			g.Retry = now.Add(retryIn(g.Tries, now, g.Expires, after))
		}
		return
	}
	w.rec.LastID++
	fresh.ID, fresh.Pending = w.rec.LastID, false
	w.rec.Grants = append(w.rec.Grants, fresh)
}

// replaceDue issues again what is due, and swaps it in. When a part of it fails,
// the rest is swapped in all the same.
func (w *worker) replaceDue(ctx context.Context, failed []*lease) {
	now := time.Now()
	due := map[*lease]Reason{}
	work := Background
	for _, l := range w.rec.current() {
		switch {
		case l.Final && isDue(now, l.at(), l.Issued):
			if w.tooSoon(l, now) {
				continue
			}
			due[l] = l.Next
		case slices.Contains(failed, l) && !l.Final && passed(now, hardDeadline(w.rec.end(l), l.Length)):
			due[l] = Lost
		case l.Kind != Leased && isDue(now, l.at(), l.Issued):
			due[l] = Content
		default:
			continue
		}
		if w.hurry(l) == Urgent {
			work = Urgent
		}
	}
	if len(due) == 0 || ctx.Err() != nil {
		return
	}
	w.gather(due, now)
	if !w.live() {
		w.setAway()
		return
	}
	if w.parsed == nil {
		parsed, err := w.parse(order{spec: w.rec.Current.Spec, asHeld: true, live: true, work: work, ctx: ctx})
		if err != nil { // it was parsed before: only an older version of Tenure fails here
			w.postponeAll(due, err)
			return
		}
		w.locked(func() { w.parsed = parsed })
	}
	o := order{spec: w.rec.Current.Spec, parsed: w.parsed, due: due, live: true, work: work, deadline: now.Add(backgroundWait), ctx: ctx}
	err := w.reconcile(o)
	for err != nil && ctx.Err() == nil {
		w.postponeAll(w.unanswered(due), err)
		if len(due) == 0 {
			return
		}
		err = w.reconcile(o)
	}
}

// unanswered takes what has no usable answer out of due and returns it; all of
// it when there is nothing usable.
func (w *worker) unanswered(due map[*lease]Reason) map[*lease]Reason {
	out := map[*lease]Reason{}
	for l, why := range due {
		r := w.attempt.reads[l.Print]
		if r == nil || !r.returned() || r.err != nil {
			out[l] = why
		}
	}
	if len(out) == 0 { // the swap itself failed
		for l, why := range due {
			out[l] = why
		}
	}
	for l := range out {
		delete(due, l)
	}
	return out
}

// postponeAll sets the next try of what could not be replaced.
func (w *worker) postponeAll(due map[*lease]Reason, err error) {
	now := time.Now()
	w.mu.Lock()
	defer w.mu.Unlock()
	for l := range due {
		if l.Kind == Leased && !l.Final {
			continue // its renewal goes on at its own pace
		}
		why, out := err, false
		if w.attempt != nil {
			if r := w.attempt.reads[l.Print]; r != nil && r.returned() && r.err != nil {
				why = r.err
			} else {
				out = r != nil && !r.returned()
			}
		}
		_, after := verdictOf(why)
		if w.needsID != nil {
			after = max(after, mintGuardCap) // the same credential is refused again
		}
		w.postpone(l, now, after, why)
		if errors.Is(why, errGuarded) {
			l.Retry = now.Add(max(after, retryFloor))
		}
		if l.Kind == Polled && l.Tries > looksInARow && !out { // its answer is not kept for so long
			l.Retry = now.Add(l.Refresh)
		}
	}
}

// retryChange tries again an edit of the SPC that could not be carried out.
func (w *worker) retryChange(ctx context.Context) {
	now := time.Now()
	var c *failure
	due := false
	w.locked(func() { c = w.change; due = c != nil && c.due(now) })
	if !due || ctx.Err() != nil {
		return
	}
	if !w.live() {
		w.setAway()
		return
	}
	err := w.mountSpec(order{spec: c.spec, live: true, work: Background, deadline: now.Add(mountBudget), ctx: ctx})
	if err != nil && ctx.Err() == nil && w.wants(c) {
		w.remember(&w.change, c.spec, err)
	}
}
