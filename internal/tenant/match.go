package tenant

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/tenure-csi/tenure/provider"
)

// Names returns the tenants that the rules list by name for a pod, sorted: what
// the patterns of an SPC can mean. A rule's own patterns allow names that come
// from elsewhere, and tell none.
func (rs *Rules) Names(pod provider.Pod) []string {
	var names []string
	for i := range rs.rules {
		if r := &rs.rules[i]; r.isFor(pod) {
			names = append(names, r.names()...)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

func (r *rule) names() []string {
	return slices.DeleteFunc(slices.Clone(r.Tenants), func(t string) bool { return strings.Contains(t, "*") })
}

// Bind completes a read that uses the daemon's own identity by the first rule
// that matches pod and tenant: role, session policy, tags and region, or Vault's
// role, mount and namespace are the rule's alone. Every other read of a tenant is only
// allowed by it, and one without tenant is answered as it is. What is issued
// before rotateAfter has to be replaced; zero: nothing. The error is a
// *provider.Error of class Denied that names the rule that lacks something, or would
// ask AWS for what it does not take.
func (rs *Rules) Bind(pod provider.Pod, read provider.Read) (bound provider.Read, rotateAfter time.Time, err error) {
	if read.Tenant == "" && !read.ByNode() {
		return read, time.Time{}, nil
	}
	r := rs.find(pod, read.Tenant)
	if r == nil {
		return read, time.Time{}, rs.refusal(pod, read.Tenant)
	}
	bound, no := r.bind(pod, read)
	if no != nil {
		return read, time.Time{}, no
	}
	return bound, r.rotate, nil
}

// bind completes a read that uses the daemon's own identity.
func (r *rule) bind(pod provider.Pod, read provider.Read) (bound provider.Read, no *provider.Error) {
	if no = r.lacks(read); no != nil {
		return read, no
	}
	if read.AWS.Identity == provider.NodeIdentity {
		read.AWS, no = r.session(pod, read)
	}
	if read.Login.AWSIdentity == provider.NodeIdentity {
		read.Login.Role, read.Login.Mount, read.Login.Namespace = replacer(pod, read.Tenant)(r.Vault.Role), r.Vault.Mount, r.Vault.Namespace
	}
	return read, no
}

// session makes the rule's templates into what one read asks AWS for. That a tenant's
// or a pod's name makes them into what AWS does not take refuses that one alone.
func (r *rule) session(pod provider.Pod, read provider.Read) (filled provider.AWS, no *provider.Error) {
	s := r.AWS.session
	s.Region = cmp.Or(s.Region, read.AWS.Region)
	filled = s.Fill(r.filler(pod, read.Tenant), func(field, cause, remedy string) {
		if no == nil {
			no = denied(read.Tenant, "identity", fmt.Sprintf("aws.%s of rule %q of the tenant bindings: %s", field, r.Name, cause), "have the cluster's operator mend that rule: "+remedy)
		}
	})
	filled.Identity, filled.TTL, filled.Endpoint, filled.User = read.AWS.Identity, read.AWS.TTL, read.AWS.Endpoint, read.AWS.User
	return filled, no
}

// find returns the first rule for a pod and a tenant; nil: there is none.
func (rs *Rules) find(pod provider.Pod, tenant string) *rule {
	for i := range rs.rules {
		if r := &rs.rules[i]; r.isFor(pod) && r.means(tenant) {
			return r
		}
	}
	return nil
}

// Lacks says what no rule has for any service account of a namespace to make a
// read, for those who check an SPC without a pod; nil: there is a rule.
func (rs *Rules) Lacks(namespace string, read provider.Read) *provider.Error {
	var lacks *provider.Error
	pod := provider.Pod{Namespace: namespace, ServiceAccount: "x"} // as short as one can be
	for i := range rs.rules {
		r := &rs.rules[i]
		if !matches(r.Namespaces, namespace) || !r.means(read.Tenant) {
			continue
		}
		if _, lacks = r.bind(pod, read); lacks == nil {
			return nil
		}
	}
	if lacks != nil {
		return lacks
	}
	return rs.refusal(provider.Pod{Namespace: namespace}, read.Tenant)
}

// lacks says what a rule that matches has not for a read by the daemon's identity.
func (r *rule) lacks(read provider.Read) *provider.Error {
	lacks := func(field, part, remedy string) *provider.Error {
		return denied(read.Tenant, field, fmt.Sprintf("rule %q of the tenant bindings lacks %s, and %s: node uses what stands there alone", r.Name, part, field),
			"have the cluster's operator add "+remedy+" to that rule")
	}
	switch {
	case read.AWS.Identity == provider.NodeIdentity && r.AWS == nil:
		return lacks("identity", "aws", "aws.roleArn")
	case read.Login.AWSIdentity == provider.NodeIdentity && r.Vault == nil:
		return lacks("awsIdentity", "vault", "vault.role")
	case read.Login.AWSIdentity == provider.NodeIdentity && strings.Contains(r.Vault.Role, "{tenant}") && strings.ToLower(read.Tenant) != read.Tenant:
		return denied(read.Tenant, "tenants", "Vault's aws method knows roles by their lower case letters, and vault.role of rule "+strconv.Quote(r.Name)+" would be that of another tenant",
			"write the tenant's name in lower case")
	}
	return nil
}

// AllowLogin reports why a pod may not log in to Vault as the daemon does at AWS: no
// rule for it gives this role at this mount. It is asked at each login, whatever
// was bound before.
func (rs *Rules) AllowLogin(pod provider.Pod, login provider.Login) error {
	for i := range rs.rules {
		r := &rs.rules[i]
		if r.Vault == nil || !r.isFor(pod) || r.Vault.Mount != login.Mount || r.Vault.Namespace != login.Namespace {
			continue
		}
		tenants := r.Tenants
		if len(tenants) == 0 {
			tenants = []string{""}
		}
		for _, name := range tenants {
			if provider.Glob(replacer(pod, name)(r.Vault.Role), login.Role) {
				return nil
			}
		}
	}
	return denied("", "awsIdentity", fmt.Sprintf("no rule of the tenant bindings lets service account %s/%s log in as %q with the node's identity", pod.Namespace, pod.ServiceAccount, login.Role),
		"have the cluster's operator add vault.role to a rule, or use awsIdentity: pod")
}

// replacer fills in a rule's placeholders.
func replacer(pod provider.Pod, tenant string) func(string) string {
	return strings.NewReplacer("{namespace}", pod.Namespace, "{serviceAccount}", pod.ServiceAccount, "{tenant}", tenant).Replace
}

// Listed reports whether a rule for any service account of a namespace lists a
// name that one of the globs means.
func (rs *Rules) Listed(namespace string, t *provider.Tenants) bool {
	return slices.ContainsFunc(rs.rules, func(r rule) bool {
		return matches(r.Namespaces, namespace) && slices.ContainsFunc(r.names(), t.Match)
	})
}

func (r *rule) isFor(pod provider.Pod) bool {
	return matches(r.Namespaces, pod.Namespace) && matches(r.ServiceAccounts, pod.ServiceAccount)
}

// means reports whether the rule is about a tenant; an empty one: about volumes
// without tenants.
func (r *rule) means(tenant string) bool {
	return tenant == "" && len(r.Tenants) == 0 || tenant != "" && matches(r.Tenants, tenant)
}

func matches(globs []string, word string) bool {
	return slices.ContainsFunc(globs, func(g string) bool { return provider.Glob(g, word) })
}

// refusal names a rule for the pod, and what it lacks. A pod without service account
// stands for any of its namespace, for those who have the rules before them: they are
// told the nearest rule of others too, which no pod's author is.
func (rs *Rules) refusal(pod provider.Pod, tenant string) *provider.Error {
	who := "service account " + pod.Namespace + "/" + pod.ServiceAccount
	if pod.ServiceAccount == "" {
		who = "service accounts of namespace " + pod.Namespace
	}
	what := fmt.Sprintf("tenant %q", tenant)
	if tenant == "" {
		what = "volumes without tenants"
	}
	cause := "no rule of the tenant bindings is for " + who
	best := 0
	for i := range rs.rules {
		r := &rs.rules[i]
		namespace, account := matches(r.Namespaces, pod.Namespace), pod.ServiceAccount == "" || matches(r.ServiceAccounts, pod.ServiceAccount)
		nearest := func(rank int, has, lacks string) {
			if rank > best {
				best, cause = rank, fmt.Sprintf("rule %q of the tenant bindings is for %s and lacks %s", r.Name, has, lacks)
			}
		}
		switch {
		case namespace && account:
			nearest(3, who, what)
		case pod.ServiceAccount == "" && r.means(tenant):
			nearest(2, what, "namespace "+pod.Namespace)
		}
	}
	return denied(tenant, "tenants", cause, "have the cluster's operator add it to a rule")
}

func denied(tenant, field, cause, remedy string) *provider.Error {
	return &provider.Error{Class: provider.Denied, Field: field, Tenant: tenant, Cause: cause, Remedy: remedy}
}
