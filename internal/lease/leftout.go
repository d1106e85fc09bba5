package lease

import (
	"maps"
	"math/rand/v2"
	"slices"
	"time"
)

// skippable are the tenants without an answer, when leaving them out lets all
// others have their files, and why; nil when it does not help. Tenants whose files
// the volume has are never left out.
func (w *worker) skippable(a *attempt, wants, missing []*wanted, o order, err error) map[string]error {
	if o.parsed.tenants == nil || o.ctx.Err() != nil {
		return nil
	}
	held := map[string]bool{}
	if o.live {
		held = w.heldTenants()
	}
	out := map[string]error{}
	for _, want := range missing {
		r, name := a.reads[want.print], want.read.Tenant
		if r != nil && r.returned() && r.err == nil && r.lease != nil {
			continue
		}
		if name == "" || held[name] || !o.parsed.tenants.Skips(name) {
			return nil
		}
		out[name] = err
		if r != nil && r.returned() && r.err != nil {
			out[name] = blame(want, r.err)
		}
	}
	if !slices.ContainsFunc(wants, func(want *wanted) bool { return out[want.read.Tenant] == nil }) {
		return nil // nobody would get anything
	}
	return out
}

// gather makes due what other tenants' leases will be in a moment: each switch of a
// pool's files costs a link for every file that stays.
func (w *worker) gather(due map[*lease]Reason, now time.Time) {
	for _, l := range w.rec.current() {
		within := min(gatherWithin, l.Length/60)
		if l.Next == TenantChange {
			within = min(within, rotateOver/30)
		}
		if l.Tenant != "" && l.Final && isDue(now.Add(within), l.at(), l.Issued) {
			due[l] = l.Next
		}
	}
}

// leave takes the tenants out of what is wanted.
func leave(out map[string]error, wants []*wanted) []*wanted {
	return slices.DeleteFunc(slices.Clone(wants), func(want *wanted) bool { return out[want.read.Tenant] != nil })
}

// skips reports whether a read is of a tenant that may be left out.
func (o order) skips(want *wanted) bool {
	return want.read.Tenant != "" && o.parsed.tenants != nil && o.parsed.tenants.Skips(want.read.Tenant)
}

// leftOut remembers who was left out of a reconciliation that is done and when
// to try them again, and forgets who got their files or is no tenant any more.
// mu is held.
func (w *worker) leftOut(out map[string]error, o order) {
	if o.withdraw {
		return
	}
	y, held := &w.tenancy, w.heldTenants()
	maps.DeleteFunc(y.out, func(name string, _ *failure) bool {
		return held[name] || !slices.ContainsFunc(o.parsed.reads, func(r wanted) bool { return r.read.Tenant == name })
	})
	for name, err := range out {
		f := y.out[name]
		if f == nil {
			f = &failure{}
			w.log.Warn("a tenant is left out of the volume; it is tried again", "tenant", name, "error", err)
			w.tell(NoticeTenant, "tenant "+name+" is left out, and tried again: "+err.Error())
		}
		if y.out == nil {
			y.out = map[string]*failure{}
		}
		f.tries, f.err = f.tries+1, err
		f.next = time.Now().Add(scale(backoff(f.tries, deniedMemory, leftOutCap), 0.9+0.2*rand.Float64()))
		y.out[name] = f
	}
}

// awaited reports whether a tenant was left out and is not to be tried yet.
func (w *worker) awaited(name string, o order) bool {
	f := w.tenancy.out[name]
	return name != "" && f != nil && o.live && !f.due(time.Now())
}
