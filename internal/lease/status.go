package lease

import (
	"slices"
	"strings"
	"time"
)

// The states of volumes and leases, as status and metrics show them.
const (
	Waiting       = "waiting"        // nothing was mounted yet
	Live          = "live"           // files are there and kept fresh
	Away          = "away"           // the volume is not mounted; a Mount or its end decides
	NeedsIdentity = "needs-identity" // nothing can be replaced before the next republish
	Expired       = "expired"        // a credential in the files is past its end
	Ending        = "ending"         // the volume is gone, ends are owed
)

// VolumeStatus is what is held for one volume. It holds no secret.
type VolumeStatus struct {
	Namespace string        `json:"namespace"`
	Pod       string        `json:"pod"`
	PodUID    string        `json:"podUID"`
	Target    string        `json:"target"`
	State     string        `json:"state"`
	Answered  time.Time     `json:"answered"` // the last Mount answered, or the daemon's start
	Leases    []LeaseStatus `json:"leases"`
	Owed      int           `json:"owed"`              // ends owed to the backend
	Problem   string        `json:"problem,omitempty"` // what goes wrong now, and the way out
	Warnings  []string      `json:"warnings,omitempty"`
	// LeftOut are tenants of the SPC that the volume has no files for, by name.
	LeftOut []TenantStatus `json:"leftOut,omitempty"`
}

// TenantStatus is a tenant without files.
type TenantStatus struct {
	Tenant  string    `json:"tenant"`
	Problem string    `json:"problem"`
	Next    time.Time `json:"next,omitzero"` // when it is tried again; zero: when the bindings change
}

// LeaseStatus is what one read gave.
type LeaseStatus struct {
	ID        int       `json:"id"` // within the volume: another one after a replacement
	Objects   []string  `json:"objects"`
	Tenant    string    `json:"tenant,omitempty"`
	State     string    `json:"state"` // live or expired
	Kind      string    `json:"kind"`
	Reason    Reason    `json:"reason"` // why it was issued
	Issued    time.Time `json:"issued"` // or last renewed
	Expires   time.Time `json:"expires,omitzero"`
	Next      time.Time `json:"next,omitzero"` // when it is renewed, replaced or looked at
	Renewable bool      `json:"renewable"`
	// Failing says that keeping it fresh has failed through half of the life that was
	// left when it fell due. One that is expired does not fail any more.
	Failing bool `json:"failing,omitempty"`
	// Unrevocable says that nobody can end it before Expires: it outlives its pod.
	Unrevocable bool   `json:"unrevocable,omitempty"`
	Problem     string `json:"problem,omitempty"`
}

// Status tells what is held until when, in no order.
func (m *Manager) Status() []VolumeStatus {
	m.mu.Lock()
	all := make([]*worker, 0, len(m.volumes)+len(m.ended))
	for _, w := range m.volumes {
		all = append(all, w)
	}
	for _, w := range m.ended {
		all = append(all, w)
	}
	m.mu.Unlock()
	out := make([]VolumeStatus, len(all))
	for i, w := range all {
		out[i] = w.status(time.Now())
	}
	return out
}

func (w *worker) status(now time.Time) VolumeStatus {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.report(now)
}

// report is status with mu held.
func (w *worker) report(now time.Time) VolumeStatus {
	r := w.rec
	v := VolumeStatus{Namespace: r.Pod.Namespace, Pod: r.Pod.Name, PodUID: r.Pod.UID, Target: r.Target, State: Live, Answered: w.answered, Leases: []LeaseStatus{}}
	for _, l := range r.current() {
		s := LeaseStatus{
			ID: l.ID, Tenant: l.Tenant, State: Live, Kind: l.Kind.String(), Reason: l.Reason, Issued: l.Issued,
			Expires: r.end(l), Next: l.at(), Renewable: l.Renewable, Problem: l.Problem,
		}
		for _, o := range l.Objects {
			s.Objects = append(s.Objects, o.ID)
		}
		g := r.grant(l.Grant)
		s.Unrevocable = l.Kind == Leased && (l.LeaseID == "" || g != nil && !g.Revocable && !g.Borrowed)
		if !s.Expires.IsZero() && passed(now, s.Expires) || l.LeaseID != "" && g != nil && !g.Expires.IsZero() && passed(now, g.Expires) {
			s.State, v.State = Expired, Expired
		}
		s.Failing = s.State != Expired && l.failing(s.Expires, now)
		v.Leases = append(v.Leases, s)
	}
	for _, g := range r.Grants {
		v.Owed += len(g.Ends)
		if g.Ending {
			v.Owed++
		}
	}
	if w.parsed != nil {
		v.Warnings = w.parsed.warnings
		for name, err := range w.parsed.refused {
			v.LeftOut = append(v.LeftOut, TenantStatus{Tenant: name, Problem: err.Error()})
		}
	}
	for name, f := range w.tenancy.out {
		v.LeftOut = append(v.LeftOut, TenantStatus{Tenant: name, Problem: f.err.Error(), Next: f.next})
	}
	slices.SortFunc(v.LeftOut, func(a, b TenantStatus) int { return strings.Compare(a.Tenant, b.Tenant) })
	w.describe(&v)
	return v
}

// describe sets the state and the problem. mu is held.
func (w *worker) describe(v *VolumeStatus) {
	switch {
	case w.rec.Ended:
		v.State = Ending
	case w.rec.Current == nil:
		v.State = Waiting
		if w.refusal != nil {
			v.Problem = w.refusal.err.Error()
		}
	case v.State == Expired:
	case w.away:
		v.State = Away
	case w.needsID != nil:
		v.State = NeedsIdentity
	}
	switch {
	case w.needsID != nil:
		v.Problem = w.needsID.Error()
	case w.change != nil && w.change.tries > 0:
		v.Problem = "the changed SecretProviderClass is not carried out, the old files stay: " + w.change.err.Error()
	case w.tenancy.failed != nil:
		v.Problem = "a change of tenants is not carried out, the old files stay: " + w.tenancy.failed.Error()
	case w.tenancy.problem != nil:
		v.Problem = "tenants stay as they are: " + w.tenancy.problem.Error()
	}
}

// HasTenants reports whether the volume is for tenants.
func (v VolumeStatus) HasTenants() bool { return len(v.LeftOut) > 0 || len(v.tenants()) > 0 }

// tenants are those whose files the volume has.
func (v VolumeStatus) tenants() map[string]bool {
	held := map[string]bool{}
	for _, l := range v.Leases {
		if l.Tenant != "" {
			held[l.Tenant] = true
		}
	}
	return held
}
