package lease

import (
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/tenure-csi/tenure/internal/format"
	"github.com/tenure-csi/tenure/provider"
)

// specError is an error that only another SPC can mend.
type specError struct{ error }

func (e specError) Unwrap() error { return e.error }

// parse reads an order's spec, finds out for whom it is, and checks all that can
// be known before anything is issued.
func (w *worker) parse(o order) (*parsedSpec, error) {
	s := o.spec
	request := provider.Request{
		Pod: w.rec.Pod, Target: w.rec.Target, Provider: s.Provider, Mode: s.Mode, Attributes: s.Attributes, SpecHash: s.Hash,
	}
	parsed, err := provider.Parse(request)
	if err != nil {
		return nil, specError{err}
	}
	if t := parsed.Tenants; t != nil && (len(t.Globs) > 0 || o.asHeld) {
		names, err := w.tenants(t, o)
		if err != nil {
			return nil, err
		}
		if parsed, err = provider.ParseFor(request, names); err != nil {
			return nil, err // other names may mend it
		}
	}
	var errs provider.Errors
	for _, o := range parsed.Objects {
		if len(errs) > provider.MaxObjects {
			break // other tenants have the same
		}
		var e *provider.Error
		if errors.As(format.Check(o), &e) {
			errs = append(errs, e)
		}
		if w.m.Sources[o.Read.Source] == nil {
			errs = append(errs, &provider.Error{Class: provider.Invalid, Object: o.Name, Field: "source", Cause: o.Read.Source + " is not served by this daemon", Remedy: "use source vault"})
		}
	}
	if len(errs) > 0 {
		return nil, specError{errs}
	}
	return w.bind(parsed, o.asHeld)
}

// bind asks the bindings about each object. Objects of a tenant that they refuse
// are left away and the reason is kept. While the bindings know nothing, tenants
// that are held go on where a rule would only allow them.
func (w *worker) bind(s *provider.Spec, held bool) (*parsedSpec, error) {
	p := &parsedSpec{warnings: s.Warnings, tenants: s.Tenants, refused: map[string]error{}}
	rotate := make([]time.Time, len(s.Objects))
	for i := range s.Objects {
		o := &s.Objects[i]
		if w.m.Tenants == nil {
			if o.Read.ByNode() {
				field := "identity"
				if o.Read.AWS.Identity != provider.NodeIdentity {
					field = "awsIdentity"
				}
				no := &provider.Error{
					Class: provider.Denied, Object: o.Name, Field: field, Tenant: o.Tenant, Cause: "the daemon has no tenant bindings, and without a rule its identity is used for nobody",
					Remedy: "have the operator set --tenant-bindings",
				}
				if !held {
					return nil, no
				}
				p.refused[o.Tenant] = no // what the pod's own identity reads goes on
			}
			continue
		}
		bound, after, err := w.m.Tenants.Bind(w.rec.Pod, o.Read)
		if held && classOf(err) == provider.Unavailable && !o.Read.ByNode() {
			continue
		}
		if err != nil && classOf(err) != provider.Denied {
			return nil, err
		}
		if err != nil && p.refused[o.Tenant] == nil {
			p.refused[o.Tenant] = blame(&wanted{objects: []provider.Object{*o}}, err)
		}
		o.Read, rotate[i] = bound, after
	}
	allowed := *s
	allowed.Objects = nil
	after := map[string]time.Time{}
	for i, o := range s.Objects {
		_, no := p.refused[o.Tenant]
		if o.Tenant == "" { // without tenants only what the daemon's identity reads is anybody's to refuse
			no = no && o.Read.ByNode()
		}
		if !no {
			allowed.Objects = append(allowed.Objects, o)
			after[digest(o.Read)] = rotate[i]
		}
	}
	p.reads = wantedReads(&allowed)
	for i := range p.reads {
		p.reads[i].rotateAfter = after[p.reads[i].key]
	}
	return p, nil
}

// refusal is why a Mount of the spec fails: a tenant without a rule that must
// not be left out, or nobody at all with one.
func (p *parsedSpec) refusal() error {
	var errs provider.Errors
	for _, name := range slices.Sorted(maps.Keys(p.refused)) {
		if name == "" || len(p.reads) == 0 || !p.tenants.Skips(name) {
			var e *provider.Error
			errors.As(p.refused[name], &e)
			errs = append(errs, e)
		}
	}
	if len(errs) == 0 {
		return nil
	}
	return errs
}
