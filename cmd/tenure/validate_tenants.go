package main

import (
	"errors"
	"os"
	"strings"

	"github.com/tenure-csi/tenure/internal/tenant"
	"github.com/tenure-csi/tenure/provider"
)

// readBindings checks the file of the cluster's rules by itself, and keeps them
// for the SecretProviderClasses. An error means that the path itself is wrong.
func (r *report) readBindings(path string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	r.rules, err = tenant.Parse(text)
	for _, err := range split(err) {
		f := finding{File: path, Cause: err.Error()}
		if p, ok := errors.AsType[tenant.Problem](err); ok {
			f.Line, f.Cause, f.Remedy = p.Line, p.Cause, p.Remedy
		}
		r.note(f)
	}
	if err == nil {
		for _, p := range r.rules.Warnings() {
			r.note(finding{File: path, Line: p.Line, Severity: "warning", Cause: p.Cause, Remedy: p.Remedy})
		}
	}
	return nil
}

// split undoes errors.Join.
func split(err error) []error {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		return joined.Unwrap()
	}
	if err == nil {
		return nil
	}
	return []error{err}
}

// checkTenants finds tenants of an SPC that no rule allows in its namespace,
// whatever the service account.
func (r *report) checkTenants(c *class, request provider.Request) {
	spec, err := provider.Parse(request)
	if r.rules == nil || err != nil {
		return
	}
	said := map[string]bool{}
	for _, o := range spec.Objects {
		if o.Tenant == "" && !o.Read.ByNode() {
			continue
		}
		if p := r.rules.Lacks(request.Pod.Namespace, o.Read); p != nil && !said[p.Cause] {
			said[p.Cause] = true
			r.add(c, finding{Field: p.Field, Cause: p.Cause, Remedy: p.Remedy})
		}
	}
	if t := spec.Tenants; t != nil && len(t.Globs) > 0 && t.List.Path == "" && !r.rules.Listed(request.Pod.Namespace, t) {
		r.add(c, finding{
			Field: "tenants", Severity: "warning", Cause: "no rule for namespace " + request.Pod.Namespace + " lists a name that " + strings.Join(t.Globs, ", ") + " means",
			Remedy: "add names to a rule, or correct the patterns",
		})
	}
}
