package lease

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/tenure-csi/tenure/provider"
)

// Binder is the cluster's word on who may be which tenant, and what the daemon's
// own identity is used for. *tenant.File implements it. It is called from many
// goroutines at once. A change of its mind takes effect with TenantsChanged.
type Binder interface {
	// Names returns the tenants that patterns of a pod's SPC can mean. The error
	// is a *provider.Error and says that nothing is known.
	Names(pod provider.Pod) ([]string, error)
	// Bind completes or only allows a read in a tenant's name. What was issued
	// before rotateAfter is to be replaced; zero: nothing. The error is a
	// *provider.Error: of class Denied it takes away what the volume has.
	Bind(pod provider.Pod, r provider.Read) (bound provider.Read, rotateAfter time.Time, err error)
}

const (
	listEvery    = time.Minute      // a list of tenants is read so often
	listTwice    = 10 * time.Second // and a name must be absent for so long to be believed gone
	rotateOver   = 5 * time.Minute  // replacements that rotateAfter asks for are spread over this
	leftOutCap   = 5 * time.Minute  // a tenant that was left out is tried again at least so often
	skipsAfter   = 5 * time.Second  // without any answer for so long, tenants that may be left out are not waited for any longer
	gatherWithin = time.Minute      // a pool's replacements that are due within this, or 1/60 of the lease, are one; of rotateAfter's, a thirtieth
	reviewAgain  = 10 * time.Second // the first retry of a review that failed
)

// tenancy is what a volume with tenants remembers of them. Only the worker's
// goroutine changes it, under mu; due is set by others too.
type tenancy struct {
	due    time.Time // when to look who is a tenant; zero: nothing has changed
	tries  int       // of a review that fails
	rotate time.Time // the next rotateAfter that lies ahead; zero: none

	list    string               // fingerprint of the read that asks for names; empty: there is none
	next    time.Time            // when to ask it again
	listed  []string             // the names in force; nil: never heard
	missing map[string]time.Time // names in force that the list lacks, since when
	problem error                // why the list was not heard last time
	failed  error                // why the last review could not be carried out

	out map[string]*failure // tenants that are left out
}

// tenants resolves for whom a spec's objects are read now.
func (w *worker) tenants(t *provider.Tenants, o order) ([]string, error) {
	names := slices.Clone(t.Names)
	var found []string
	switch {
	case o.asHeld:
		return slices.Sorted(maps.Keys(w.heldTenants())), nil
	case len(t.Globs) == 0:
		return names, nil
	case t.List.Path != "":
		var err error
		if found, err = w.listed(t, o); err != nil {
			return nil, err
		}
	case w.m.Tenants == nil:
		return nil, &provider.Error{
			Class: provider.Precondition, Field: "tenants", Cause: "has patterns, and the daemon has no tenant bindings that tell their names",
			Remedy: "list names, set tenantsFrom to a path to LIST in Vault, or have the operator set --tenant-bindings",
		}
	default:
		var err error
		if found, err = w.m.Tenants.Names(w.rec.Pod); err != nil {
			return nil, err
		}
	}
	taken := map[string]bool{}
	for _, name := range names {
		taken[strings.ToLower(name)] = true
	}
	// Of names that differ in case only, the one that the volume has already wins:
	// whoever can add a name must not be able to take another's place.
	held := w.heldTenants()
	slices.SortStableFunc(found, func(a, b string) int {
		switch {
		case held[a] == held[b]:
			return strings.Compare(a, b)
		case held[a]:
			return -1
		}
		return 1
	})
	for _, name := range found {
		if folded := strings.ToLower(name); t.Match(name) && !taken[folded] {
			taken[folded] = true
			names = append(names, name)
		}
	}
	if len(names) == 0 && !o.live {
		return nil, &provider.Error{
			Class: provider.Precondition, Field: "tenants", Cause: "no tenant has a name that " + strings.Join(t.Globs, ", ") + " means",
			Remedy: "add one where tenantsFrom says, or correct the patterns",
		}
	}
	slices.Sort(names[len(t.Names):])
	return names, nil
}

// heldTenants are those whose files the volume has.
func (w *worker) heldTenants() map[string]bool {
	held := map[string]bool{}
	for _, l := range w.rec.current() {
		if l.Tenant != "" {
			held[l.Tenant] = true
		}
	}
	return held
}

// listed returns the names in force, asking the list where nothing is known of
// it. After a restart the tenants that the volume has are in force.
func (w *worker) listed(t *provider.Tenants, o order) ([]string, error) {
	y := &w.tenancy
	if print := digest(t.List); y.list != print {
		w.locked(func() {
			y.list, y.listed, y.missing, y.problem = print, nil, nil, nil
			y.next = time.Now()
			if o.work != Mounting {
				y.next = y.next.Add(scale(listEvery, rand.Float64()))
			}
		})
	}
	if y.listed == nil && o.work == Mounting {
		if err := w.askList(t, o); err != nil && len(w.heldTenants()) == 0 {
			return nil, err
		}
	}
	if y.listed != nil {
		return slices.Clone(y.listed), nil
	}
	return slices.DeleteFunc(slices.Collect(maps.Keys(w.heldTenants())), func(name string) bool { return !t.Match(name) }), nil
}

// askList reads the list and draws its conclusions: a name is taken up at once,
// and given up only when two good answers in a row lack it.
func (w *worker) askList(t *provider.Tenants, o order) error {
	found, err := w.readList(t, o)
	now := time.Now()
	w.mu.Lock()
	defer w.mu.Unlock()
	y := &w.tenancy
	y.problem, y.next = err, now.Add(scale(listEvery, 0.9+0.2*rand.Float64()))
	if err != nil {
		w.m.metrics.listErrors.WithLabelValues(outcome(err)).Inc()
		w.log.Warn("the list of tenants can't be read: the volume keeps those it has", "error", err)
		return err
	}
	missing := map[string]time.Time{}
	for _, name := range slices.Concat(y.listed, slices.Sorted(maps.Keys(w.heldTenants()))) {
		if _, there := slices.BinarySearch(found, name); there || !t.Match(name) {
			continue
		}
		since, again := y.missing[name]
		if !again {
			since = now
		}
		if !again || !passed(now, since.Add(listTwice)) {
			missing[name] = since
			y.next = now.Add(listTwice + scale(time.Second, rand.Float64()))
		}
	}
	y.missing = missing
	y.listed = slices.AppendSeq(found, maps.Keys(missing))
	slices.Sort(y.listed)
	return nil
}

// readList asks the backend with the pod's identity. An empty answer is an error:
// it is more likely a mistake than the end of all tenants. The names are sorted.
func (w *worker) readList(t *provider.Tenants, o order) ([]string, error) {
	list := t.List
	if list.ByNode() && w.m.Tenants != nil {
		var err error
		if list, _, err = w.m.Tenants.Bind(w.rec.Pod, list); err != nil {
			return nil, err
		}
	}
	// That it is known to make nothing lets the volume's newest token serve.
	want := &wanted{read: list, objects: []provider.Object{{}}, reason: First, prior: &lease{Kind: Polled}}
	a := w.attemptFor(o.spec.Hash)
	grants, err := w.grantsFor(a, []*wanted{want}, o)
	a.keep = time.Now().Add(keepAttempt)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithDeadline(o.ctx, o.deadline)
	defer cancel()
	if o.work != Mounting {
		if err := w.turn(ctx, time.Now().Add(listEvery)); err != nil {
			return nil, &provider.Error{Class: provider.Unavailable, Cause: "asking for the list of tenants made way for a Mount", Err: err}
		}
	}
	issued, err := w.m.Sources[t.List.Source].Read(ctx, w.caller(o.work), grants[0].session(), list)
	if err != nil {
		if verdict, _ := verdictOf(err); verdict == DeadAuth {
			w.locked(func() { w.tokenDied(grants[0], time.Now()) })
		}
		failed := blame(want, err)
		failed.Field = "tenantsFrom"
		return nil, failed
	}
	keys, _ := issued.Secret.Data["keys"].([]any)
	found := map[string]bool{}
	for _, k := range keys {
		text, _ := k.(string)
		if name := strings.TrimSuffix(text, "/"); provider.TenantFault(name) == "" && t.Match(name) {
			found[name] = true
		}
		if len(found) > provider.MaxTenants { // whoever writes the folder sets how long the list is
			return nil, &provider.Error{
				Class: provider.Precondition, Field: "tenantsFrom", Cause: fmt.Sprintf("the list has more than %d names that %s mean", provider.MaxTenants, strings.Join(t.Globs, ", ")),
				Remedy: "split the tenants over several volumes by narrower patterns",
			}
		}
	}
	if len(found) == 0 {
		return nil, &provider.Error{
			Class: provider.Precondition, Field: "tenantsFrom", Cause: "the list has no name that " + strings.Join(t.Globs, ", ") + " means",
			Remedy: "write the tenants' secrets, or correct tenantsFrom and the patterns",
		}
	}
	return slices.Sorted(maps.Keys(found)), nil
}
