package lease

import (
	"errors"
	"io/fs"
	"slices"
	"strings"
	"time"

	"github.com/tenure-csi/tenure/provider"
)

// schema is the version of the journal's records. It is raised only for what an older
// version must not work on, see unknown.
const schema = 1

// Record is all that is known of one volume and must outlive the process: the
// record that a Store keeps. It is opaque outside this package. Only
// the volume's worker changes it.
type Record struct {
	Schema  int          `json:"schema"`
	ID      string       `json:"id"` // the journal's file name
	Pod     provider.Pod `json:"pod"`
	Target  string       `json:"target"`
	Ended   bool         `json:"ended,omitempty"` // the volume is gone; what is left is owed
	LastID  int          `json:"lastID"`          // the last number given to a grant or lease
	Current *generation  `json:"current,omitempty"`
	Pending *generation  `json:"pending,omitempty"` // about to be swapped in
	Retired []retired    `json:"retired,omitempty"` // replaced directories whose overlap has not ended
	Grants  []*grant     `json:"grants,omitempty"`
	Leases  []*lease     `json:"leases,omitempty"`

	unknown unknown
}

// generation is one complete set of the volume's files.
type generation struct {
	Dir    string `json:"dir"`
	Spec   spec   `json:"spec"`
	Leases []int  `json:"leases"` // in the SPC's order
	// Withdraws says that the files which were taken out must not stay anywhere.
	Withdraws bool `json:"withdraws,omitempty"`

	unknown unknown
}

// spec is what an SPC is parsed from.
type spec struct {
	Hash       string            `json:"hash"`
	Provider   string            `json:"provider"`
	Mode       fs.FileMode       `json:"mode"`
	Attributes map[string]string `json:"attributes"`
}

type retired struct {
	Dir   string    `json:"dir"`
	Until time.Time `json:"until"`
}

// grant is what one login gave.
type grant struct {
	ID        int            `json:"id"`
	Source    string         `json:"source"`
	Login     provider.Login `json:"login"`
	Token     string         `json:"token,omitempty"` // the only secret in the journal
	Accessor  string         `json:"accessor,omitempty"`
	Opened    time.Time      `json:"opened"`
	Length    time.Duration  `json:"length"`       // the token's period of renewal; 0: without end
	Expires   time.Time      `json:"expires"`      // zero: without end
	End       time.Time      `json:"end,omitzero"` // the last possible end; zero: not known
	Due       time.Time      `json:"due,omitzero"` // of the renewal, or of the new login before End
	Retry     time.Time      `json:"retry,omitzero"`
	Tries     int            `json:"tries,omitempty"`
	Jitter    float64        `json:"jitter"`
	Renewable bool           `json:"renewable,omitempty"`
	Revocable bool           `json:"revocable,omitempty"`
	Borrowed  bool           `json:"borrowed,omitempty"`
	Pending   bool           `json:"pending,omitempty"` // no swap has adopted it yet
	Ending    bool           `json:"ending,omitempty"`  // its end is owed
	Ends      []leaseEnd     `json:"ends,omitempty"`    // ends owed of single leases under it

	unknown  unknown
	inFlight int // reads under it that have not returned: it must not be ended meanwhile
}

// leaseEnd is the owed end of one lease whose grant lives on.
type leaseEnd struct {
	LeaseID string    `json:"leaseID"`
	Retry   time.Time `json:"retry"`
	Tries   int       `json:"tries,omitempty"`
	Until   time.Time `json:"until"` // the lease's own end
}

// lease is what one read was granted, with what was made of its answer.
type lease struct {
	ID      int            `json:"id"`
	Grant   int            `json:"grant"` // under which it was issued; it dies with it only if it has a LeaseID
	Source  string         `json:"source"`
	Login   provider.Login `json:"login"`
	Print   string         `json:"print"` // fingerprint of the read and of all objects on it
	Tenant  string         `json:"tenant,omitempty"`
	Node    bool           `json:"node,omitempty"` // issued with the daemon's own identity
	Reason  Reason         `json:"reason"`         // why it was issued
	Made    time.Time      `json:"made,omitzero"`  // when it was issued
	LeaseID string         `json:"leaseID,omitempty"`
	Kind    Kind           `json:"kind"`
	Length  time.Duration  `json:"length,omitempty"` // L; 0: no end
	Overlap time.Duration  `json:"overlap,omitempty"`
	Refresh time.Duration  `json:"refresh,omitempty"` // between two looks
	Issued  time.Time      `json:"issued"`
	Expires time.Time      `json:"expires,omitzero"` // zero: no end
	// Due is when to act next: replace when Final, else renew, or look again.
	Due       time.Time `json:"due,omitzero"`
	Final     bool      `json:"final,omitempty"` // its end is known: Due is when to replace it
	Next      Reason    `json:"next,omitempty"`  // why it will be replaced
	Retry     time.Time `json:"retry,omitzero"`  // set after a failure; overrides Due
	Tries     int       `json:"tries,omitempty"`
	Jitter    float64   `json:"jitter"`
	Renewable bool      `json:"renewable,omitempty"`
	Until     time.Time `json:"until,omitzero"`  // replaced: works until then
	Bytes     int64     `json:"bytes,omitempty"` // of memory that its files take
	Objects   []object  `json:"objects"`
	Problem   string    `json:"problem,omitempty"`
	// Headroom is how much of L must be left when it is replaced; 0: what the policy leaves.
	Headroom time.Duration `json:"headroom,omitempty"`

	unknown unknown
}

// object is one object of a generation: its version and its files.
type object struct {
	ID      string `json:"id"`
	Version string `json:"version"`
	Files   []file `json:"files"`
}

type file struct {
	Path string      `json:"path"`
	Mode fs.FileMode `json:"mode"`
	UID  int         `json:"uid"`
	GID  int         `json:"gid"`
}

// Reason says why something was issued.
type Reason string

// The reasons.
const (
	First     Reason = "first"     // the volume had nothing for it
	Scheduled Reason = "scheduled" // it was due, as planned at issue
	Truncated Reason = "truncated" // a renewal gave less than asked: the end is near
	Lost      Reason = "lost"      // the backend does not know it any more, or renewals failed up to the hard deadline
	TokenEnd  Reason = "token"     // it would have died with its token
	SpecEdit  Reason = "spec"      // the SPC, or the pod's overlay of it, changed
	Content   Reason = "content"   // a look at the backend found other data
	// TenantChange is the reason of what a new tenant gets, and of what is issued
	// again because a tenant's rule says so.
	TenantChange Reason = "tenant"
)

func (r *Record) grant(id int) *grant {
	for _, g := range r.Grants {
		if g.ID == id {
			return g
		}
	}
	return nil
}

func (r *Record) lease(id int) *lease {
	for _, l := range r.Leases {
		if l.ID == id {
			return l
		}
	}
	return nil
}

// current returns the leases of the present generation, in the SPC's order.
func (r *Record) current() []*lease {
	if r.Current == nil {
		return nil
	}
	held := make([]*lease, len(r.Current.Leases))
	for i, id := range r.Current.Leases {
		held[i] = r.lease(id)
	}
	return held
}

// versions lists the object versions of a generation's leases.
func versions(held []*lease) []provider.Version {
	vs := []provider.Version{}
	for _, l := range held {
		for _, o := range l.Objects {
			vs = append(vs, provider.Version{ID: o.ID, Version: o.Version})
		}
	}
	return vs
}

// end returns when the lease ends for certain: its own end or its token's last.
// Zero means that it has none.
func (r *Record) end(l *lease) time.Time {
	g := r.grant(l.Grant)
	if l.LeaseID == "" || g == nil || g.End.IsZero() || (!l.Expires.IsZero() && l.Expires.Before(g.End)) {
		return l.Expires
	}
	return g.End
}

// session returns what a Source needs of a grant.
func (g *grant) session() Session {
	return Session{
		Login: g.Login, Token: provider.Secret(g.Token), Accessor: g.Accessor,
		TTL: g.Length, Renewable: g.Renewable, Revocable: g.Revocable, Borrowed: g.Borrowed,
	}
}

// reusable reports whether a grant can stand for another login. One without a
// token can't: each read proves the pod's identity anew.
func (g *grant) reusable() bool { return g.Token != "" && !g.Ending }

// newest returns the grant that further reads of this login may use.
func (r *Record) newest(source string, login provider.Login) *grant {
	var best *grant
	for _, g := range r.Grants {
		if g.reusable() && g.Source == source && g.Login == login && !g.Pending && (best == nil || g.ID > best.ID) {
			best = g
		}
	}
	return best
}

// settle lets go of all that no present, pending or overlapping file needs: it
// drops leases and turns grants into owed ends. held are the leases and grants
// of an attempt that is still under way or kept for a retry.
func (r *Record) settle(now time.Time, held map[int]bool) {
	keep := map[int]bool{}
	for _, g := range [...]*generation{r.Current, r.Pending} {
		if g != nil {
			for _, id := range g.Leases {
				keep[id] = true
			}
		}
	}
	needed := map[int]bool{} // grants
	for _, l := range r.Leases {
		if g := r.newest(l.Source, l.Login); keep[l.ID] && g != nil {
			needed[g.ID] = true // polls and replacements use it
		}
		keep[l.ID] = keep[l.ID] || held[l.ID] || (!l.Until.IsZero() && !passed(now, l.Until))
		if keep[l.ID] && l.LeaseID != "" {
			needed[l.Grant] = true
		}
	}
	for _, g := range r.Grants {
		if !needed[g.ID] && !held[g.ID] && !g.Ending && !g.Borrowed {
			g.Ending, g.Tries, g.Retry, g.Ends = true, 0, now, nil
		}
	}
	for _, l := range r.Leases {
		if g := r.grant(l.Grant); !keep[l.ID] && l.LeaseID != "" && g != nil && !g.Ending {
			g.Ends = append(g.Ends, leaseEnd{LeaseID: l.LeaseID, Retry: now, Until: l.Expires})
		}
	}
	r.Leases = slices.DeleteFunc(r.Leases, func(l *lease) bool { return !keep[l.ID] })
	// A token that can't be revoked lives to its end; nothing more can be done. A
	// borrowed one is let go of once the leases under it have ended.
	r.Grants = slices.DeleteFunc(r.Grants, func(g *grant) bool {
		idle := g.Ending || g.Borrowed && !needed[g.ID] && !held[g.ID] && len(g.Ends) == 0
		return idle && g.inFlight == 0 && (g.Token == "" || !g.Revocable)
	})
}

// forgo ends the overlap of those who are no tenants any more, and of every older
// directory, which may hold their files.
func (r *Record) forgo(stays map[string]bool, now time.Time) {
	for _, l := range r.Leases {
		if l.Tenant != "" && !stays[l.Tenant] {
			l.Until = time.Time{}
		}
	}
	for i := range r.Retired {
		r.Retired[i].Until = now
	}
}

// check reports whether a loaded record is whole: no entry is empty, and every
// lease that a generation names is there.
func (r *Record) check() error {
	if slices.Contains(r.Grants, nil) || slices.Contains(r.Leases, nil) {
		return errors.New("a grant or lease in it is empty")
	}
	for _, g := range []*generation{r.Current, r.Pending} {
		if g == nil {
			continue
		}
		for _, id := range g.Leases {
			if r.lease(id) == nil {
				return errors.New("a generation names a lease that is not in it")
			}
		}
	}
	return nil
}

// ruled reports whether the bindings or a list have a say in the volume: by what it
// holds, or by what its SPC may ask for once they allow it.
func (r *Record) ruled() bool {
	return slices.ContainsFunc(r.Leases, func(l *lease) bool { return l.Node || l.Tenant != "" }) || r.Current.mayBeRuled() || r.Pending.mayBeRuled()
}

func (g *generation) mayBeRuled() bool {
	return g != nil && (g.Spec.Attributes["tenants"] != "" || g.Spec.Attributes["awsIdentity"] != "" || strings.Contains(g.Spec.Attributes["objects"]+g.Spec.Attributes["defaults"], "identity"))
}
