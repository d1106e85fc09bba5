package lease

import (
	"context"
	"errors"
	"maps"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/tenure-csi/tenure/provider"
)

// TenantsChanged makes every volume that the bindings have a say in look at once
// who is a tenant.
func (m *Manager) TenantsChanged() {
	m.mu.Lock()
	if m.closed {
		m.mu.Unlock()
		return
	}
	m.work.Add(1) // Close waits for it
	defer m.work.Done()
	all := slices.Collect(maps.Values(m.volumes)) // a busy volume must hold up no others
	m.mu.Unlock()
	for _, w := range all {
		w.locked(func() {
			if w.interrupt != nil {
				w.interrupt() // what is withdrawn must not wait for what is slow
			}
			now := time.Now()
			if w.rec.ruled() {
				w.tenancy.due = now
			}
			if w.change != nil && !w.change.next.IsZero() {
				w.change.next = now
			}
			w.refusal = nil
			w.start()
		})
	}
}

// reviewDue looks who is a tenant, when something may have changed: takes away
// what was withdrawn, before anything else; then issues for those who are new,
// lets go of those who left, and tries again those who were left out.
func (w *worker) reviewDue(ctx context.Context) {
	now := time.Now()
	w.listDue(ctx, now)
	if !w.reviewIsDue(now) || ctx.Err() != nil {
		return
	}
	if !w.live() {
		w.setAway()
		return
	}
	o := order{
		spec: w.rec.Current.Spec, due: map[*lease]Reason{}, live: true, work: Background, deadline: now.Add(mountBudget), ctx: ctx,
	}
	// Whoever else is to come, and whatever is wrong with them: what is held goes by
	// the present rules from now on.
	asHeld := o
	asHeld.asHeld = true
	held, unbound := w.parse(asHeld)
	w.locked(func() { w.tenancy.due, w.parsed = time.Time{}, held })
	var left error
	if gone := w.withdrawn(held); gone != nil {
		left = w.withdraw(gone, o)
	}
	parsed, err := w.parse(o)
	if err == nil {
		o.parsed = parsed
		err = w.reconcile(o)
	}
	if err != nil && unbound == nil { // an error may be of the newcomers' alone
		w.locked(func() { w.parsed = held })
		if w.rebound(held) && ctx.Err() == nil {
			o.parsed = held
			err = errors.Join(err, w.reconcile(o))
		}
	}
	if err == nil {
		w.rotateAfter(time.Now())
	}
	w.reviewed(errors.Join(err, left), ctx.Err() != nil)
}

// reviewed sets when to review again; at once where it was interrupted.
func (w *worker) reviewed(err error, interrupted bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	y := &w.tenancy
	y.failed = err
	switch {
	case err == nil:
		y.tries = 0
		return
	case interrupted:
		y.due = time.Now()
		return
	}
	y.tries++
	again := time.Now().Add(backoff(y.tries, reviewAgain, leftOutCap))
	y.due = earlier(y.due, again)
	for _, f := range y.out {
		f.next = later(f.next, again)
	}
	if !y.rotate.IsZero() {
		y.rotate = later(y.rotate, again)
	}
	w.log.Warn("a change of tenants could not be carried out; it is tried again", "tries", y.tries, "error", err)
}

func (w *worker) reviewIsDue(now time.Time) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	at := w.reviewAt()
	return w.rec.Current != nil && !at.IsZero() && passed(now, at)
}

// reviewAt is when to review next; zero: nothing in sight. mu is held.
func (w *worker) reviewAt() time.Time {
	at := earlier(w.tenancy.due, w.tenancy.rotate)
	for _, f := range w.tenancy.out {
		at = earlier(at, f.next)
	}
	return at
}

// listDue asks the list again when its time has come. Another answer makes a
// review due.
func (w *worker) listDue(ctx context.Context, now time.Time) {
	y := &w.tenancy
	if !w.lists() || !passed(now, y.next) {
		return
	}
	if !w.live() {
		w.setAway()
		return
	}
	was := slices.Clone(y.listed)
	o := order{spec: w.rec.Current.Spec, live: true, work: Background, deadline: now.Add(backgroundWait), ctx: ctx}
	err := w.askList(w.parsed.tenants, o)
	if a := w.attempt; a != nil && len(a.reads) == 0 { // a login for the list alone serves the volume from now on
		w.locked(func() {
			for _, g := range w.rec.Grants {
				g.Pending = g.Pending && !a.grants[g.ID]
			}
		})
		w.dropAttempt()
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if err != nil && ctx.Err() != nil {
		y.next = now
	} else if !slices.Equal(was, y.listed) {
		y.due = now
	}
}

// lists reports whether the present generation's tenants come from a list.
func (w *worker) lists() bool {
	return w.rec.Current != nil && w.parsed != nil && w.parsed.tenants != nil && w.parsed.tenants.List.Path != "" && w.tenancy.list != ""
}

// withdrawn tells the leases of tenants that no rule allows any more; nil: there
// are none. What is not known is not withdrawn.
func (w *worker) withdrawn(p *parsedSpec) func(*lease) bool {
	if w.m.Tenants == nil { // nobody lends the daemon's identity
		if !slices.ContainsFunc(w.rec.current(), func(l *lease) bool { return l.Node }) {
			return nil
		}
		return func(l *lease) bool { return l.Node }
	}
	gone := map[string]bool{}
	for name := range w.heldTenants() {
		_, _, err := w.m.Tenants.Bind(w.rec.Pod, provider.Read{Tenant: name})
		gone[name] = err != nil && classOf(err) == provider.Denied
		gone[name] = gone[name] || p != nil && p.refused[name] != nil
	}
	node := p != nil && p.refused[""] != nil
	is := func(l *lease) bool { return gone[l.Tenant] || l.Tenant == "" && l.Node && node }
	if !slices.ContainsFunc(w.rec.current(), is) {
		return nil
	}
	return is
}

// rebound reports whether the rules give the daemon's identity another role, policy
// or region for something that is held than it was issued with.
func (w *worker) rebound(p *parsedSpec) bool {
	return slices.ContainsFunc(w.rec.current(), func(l *lease) bool {
		return l.Node && !slices.ContainsFunc(p.reads, func(r wanted) bool { return r.print == l.Print })
	})
}

// withdraw takes files away at once, with every older directory that may hold
// them too, and lets their leases end. All else stays as it is: nothing is read.
func (w *worker) withdraw(gone func(*lease) bool, o order) error {
	w.dropAttempt()
	o.parsed, o.withdraw = &parsedSpec{}, true
	told := map[string]bool{}
	for _, l := range w.rec.current() {
		if !gone(l) {
			o.parsed.reads = append(o.parsed.reads, wanted{print: l.Print, read: provider.Read{Tenant: l.Tenant}})
		} else if !told[l.Tenant] {
			told[l.Tenant] = true
			w.log.Warn("the tenant bindings withdraw a tenant: its files are removed and its leases ended", "tenant", l.Tenant)
			w.locked(func() {
				w.tell(NoticeTenant, "no rule of the cluster allows tenant "+l.Tenant+" any more: its files are removed and its leases ended")
			})
		}
	}
	err := w.reconcile(o)
	w.lapse(time.Now())
	return err
}

// rotateAfter makes due what was issued before its rule's rotateAfter, spread
// evenly, and notes the next such time that lies ahead.
func (w *worker) rotateAfter(now time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.parsed == nil {
		return
	}
	after := map[string]time.Time{}
	w.tenancy.rotate = time.Time{}
	for _, r := range w.parsed.reads {
		after[r.print] = r.rotateAfter
		if r.rotateAfter.After(now) {
			w.tenancy.rotate = earlier(w.tenancy.rotate, r.rotateAfter)
		}
	}
	var due []*lease
	for _, l := range w.rec.current() {
		at := after[l.Print]
		if !at.IsZero() && !at.After(now) && l.Made.Before(at) && l.Next != TenantChange && (l.Kind == Leased || l.Kind == Once) {
			due = append(due, l)
		}
	}
	phase := rand.Float64()
	for i, l := range due {
		over := rotateOver
		if l.Length > 0 {
			over = min(over, l.Length/5)
		}
		at := now.Add(scale(over, (float64(i)+phase)/float64(len(due))))
		if l.Final && !l.Due.IsZero() && l.Due.Before(at) {
			at = l.Due
		}
		l.finish(TenantChange, at)
	}
}
