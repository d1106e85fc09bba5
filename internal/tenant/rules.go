// Package tenant holds the cluster's own rules of which pods may be which
// tenants, and what the daemon's identity is used for in their name. Pods'
// authors have no say in them: the rules come from a file that the cluster's
// operator gives each daemon.
package tenant

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/tenure-csi/tenure/provider"
)

// The bounds of a file. A ConfigMap holds at most 1 MiB.
const (
	maxBytes = 1 << 20
	maxRules = 1000
)

// Rules are one version of the file, checked. They never change and may be used
// from many goroutines at once. The zero value allows nothing.
type Rules struct{ rules []rule }

// rule allows pods that match it to be its tenants.
type rule struct {
	Name            string   `yaml:"name"`
	Namespaces      []string `yaml:"namespaces"`
	ServiceAccounts []string `yaml:"serviceAccounts"`
	Tenants         []string `yaml:"tenants"` // empty: the rule is for volumes without tenants
	RotateAfter     string   `yaml:"rotateAfter"`
	AWS             *aws     `yaml:"aws"`
	Vault           *vault   `yaml:"vault"`

	line   int
	rotate time.Time // RotateAfter; zero: never
}

// aws is what the daemon's own AWS identity is used for.
type aws struct {
	RoleARN       string            `yaml:"roleArn"`
	SessionPolicy yaml.Node         `yaml:"sessionPolicy"` // a mapping, or YAML or JSON as text
	SessionTags   map[string]string `yaml:"sessionTags"`
	Region        string            `yaml:"region"`

	session provider.Session // all of it
}

// vault is as what the daemon's own AWS identity logs in to the daemon's Vault.
type vault struct {
	Role      string `yaml:"role"`
	Mount     string `yaml:"mount"`     // empty: that of the login method
	Namespace string `yaml:"namespace"` // empty: the daemon's
}

// Problem is one mistake in a file of rules.
type Problem struct {
	Line   int // 0: not known
	Cause  string
	Remedy string
}

// Error renders: line 3: cause; remedy.
func (p Problem) Error() string {
	text := p.Cause + "; " + p.Remedy
	if p.Line > 0 {
		text = "line " + strconv.Itoa(p.Line) + ": " + text
	}
	return text
}

// Parse reads a file of rules and refuses it as a whole when anything in it is
// wrong or not known: a rule that is half understood would allow what nobody
// meant. The error joins all Problems that were found.
func Parse(text []byte) (*Rules, error) {
	if len(text) > maxBytes {
		return nil, Problem{Cause: "the file is larger than 1 MiB", Remedy: "merge rules by patterns"}
	}
	var document struct {
		Rules []rule `yaml:"rules"`
	}
	decoder := yaml.NewDecoder(bytes.NewReader(text))
	decoder.KnownFields(true)
	if err := decoder.Decode(&document); err != nil && !errors.Is(err, io.EOF) {
		return nil, unreadable(text, err)
	}
	if !errors.Is(decoder.Decode(&struct{}{}), io.EOF) {
		return nil, Problem{Cause: "there is more than one YAML document", Remedy: "put all rules into one list"}
	}
	if len(document.Rules) > maxRules {
		return nil, Problem{Cause: fmt.Sprintf("there are more than %d rules", maxRules), Remedy: "merge rules by patterns"}
	}
	if document.Rules == nil {
		return nil, Problem{Cause: "there are no rules", Remedy: "write rules: and below it a list; rules: [] if nobody is to be any tenant"}
	}
	lines(text, document.Rules)
	var errs []error
	names := map[string]bool{}
	for i := range document.Rules {
		r := &document.Rules[i]
		problem := func(cause, remedy string) {
			errs = append(errs, Problem{Line: r.line, Cause: fmt.Sprintf("rule %q: %s", r.Name, cause), Remedy: remedy})
		}
		if r.Name == "" || names[r.Name] || len(r.Name) > 63 {
			problem("its name is missing, longer than 63 characters or another rule's", "give each rule a short name of its own: refusals show it")
		}
		names[r.Name] = true
		r.check(problem)
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	return &Rules{document.Rules}, nil
}

// Warnings returns what the rules allow and hardly anybody means: tenants that all
// get one AWS session, and so each other's data.
func (rs *Rules) Warnings() []Problem {
	var all []Problem
	for _, rule := range rs.rules {
		if rule.AWS == nil || len(rule.Tenants) < 2 && !strings.Contains(strings.Join(rule.Tenants, ""), "*") {
			continue
		}
		if text, err := yaml.Marshal(rule.AWS); err != nil || bytes.Contains(text, []byte("{tenant}")) {
			continue
		}
		all = append(all, Problem{
			Line: rule.line, Cause: fmt.Sprintf("rule %q: aws: all of its tenants get the same session", rule.Name),
			Remedy: "write {tenant} into roleArn, sessionPolicy or sessionTags, or one rule for each tenant",
		})
	}
	return all
}

// unreadable puts the library's words into ours: those name Go's types.
func unreadable(text []byte, err error) error {
	var mistyped *yaml.TypeError
	if !errors.As(err, &mistyped) {
		line, cause := provider.YAMLFault(string(text), err)
		return Problem{Line: line, Cause: "it is no YAML: " + cause, Remedy: "indent with spaces"}
	}
	var errs []error
	for _, text := range mistyped.Errors {
		line, cause := provider.YAMLFault("", errors.New(text))
		cause, _, _ = strings.Cut(cause, " in type ")
		cause, _, _ = strings.Cut(cause, " into ")
		errs = append(errs, Problem{Line: line, Cause: "it is not the YAML of rules: " + cause, Remedy: "write rules: and below it a list of rules with the documented fields"})
	}
	return errors.Join(errs...)
}

// lines finds where each rule begins.
func lines(text []byte, rules []rule) {
	var document yaml.Node
	if yaml.Unmarshal(text, &document) != nil || len(document.Content) == 0 {
		return // an empty file
	}
	top := document.Content[0].Content
	for i := 0; i+1 < len(top); i += 2 {
		for j, n := range top[i+1].Content {
			if j < len(rules) {
				rules[j].line = n.Line
			}
		}
	}
}

var (
	namespaceGlob = regexp.MustCompile(`^[a-z0-9*][-a-z0-9*]{0,62}$`)
	accountGlob   = regexp.MustCompile(`^[a-z0-9*][-a-z0-9.*]{0,252}$`)
)

// fits makes the fault of a word out of the form that it must have.
func fits(form *regexp.Regexp) func(word string) (fault string) {
	return func(word string) string {
		if form.MatchString(word) {
			return ""
		}
		return "is no name and no pattern"
	}
}

// check finds everything wrong with the rule and fills what is derived of it.
func (r *rule) check(problem func(cause, remedy string)) {
	for _, list := range [...]struct {
		field  string
		words  []string
		fault  func(string) string
		remedy string
	}{
		{"namespaces", r.Namespaces, fits(namespaceGlob), "list names of namespaces, or patterns like team-*"},
		{"serviceAccounts", r.ServiceAccounts, fits(accountGlob), "list names of service accounts, or patterns like app-*"},
		{"tenants", r.Tenants, provider.GlobFault, "list names of tenants, or patterns like team-*"},
	} {
		if len(list.words) == 0 && list.field != "tenants" {
			problem(list.field+" are missing", list.remedy)
		}
		for _, w := range list.words {
			if fault := list.fault(w); fault != "" {
				problem(fmt.Sprintf("%s: %q %s", list.field, w, fault), list.remedy)
			}
		}
	}
	if r.RotateAfter != "" {
		var err error
		if r.rotate, err = time.Parse(time.RFC3339, r.RotateAfter); err != nil {
			problem(fmt.Sprintf("rotateAfter: %q is no time", r.RotateAfter), "write it like 2026-11-22T10:00:00Z")
		}
	}
	if r.AWS != nil {
		r.checkAWS(problem)
	}
	if r.Vault != nil {
		r.checkVault(problem)
	}
}

// checkAWS lets provider check the session as an SPC's, with names in the place of
// the placeholders that make it as long as it will be at least.
func (r *rule) checkAWS(problem func(cause, remedy string)) {
	told := map[string]bool{} // the first problem of each field is enough
	report := func(field, cause, remedy string) {
		if !told[field] {
			told[field] = true
			problem("aws."+field+": "+cause, remedy)
		}
	}
	a := r.AWS
	if a.RoleARN == "" {
		report("roleArn", "is missing", "write it like arn:aws:iam::123456789012:role/tenant-{tenant}")
	}
	a.session = provider.Session{RoleARN: a.RoleARN, Tags: a.SessionTags, Region: a.Region}
	if !a.SessionPolicy.IsZero() {
		policy, err := provider.ReadPolicy(&a.SessionPolicy)
		if err != nil {
			report(err.Field, err.Cause, err.Remedy)
		}
		a.session.Policy = policy
	}
	pod := provider.Pod{Namespace: longest(r.Namespaces), ServiceAccount: longest(r.ServiceAccounts)}
	a.session.Fill(r.filler(pod, longest(r.Tenants)), report)
}

// longest returns the longest of names; of a pattern, what all its names have.
func longest(globs []string) string {
	longest := "x"
	for _, g := range globs {
		if name := strings.ReplaceAll(g, "*", ""); len(name) > len(longest) {
			longest = name
		}
	}
	return longest
}

func (r *rule) checkVault(problem func(cause, remedy string)) {
	v := r.Vault
	switch {
	case v.Role == "" || strings.Contains(v.Role, "*"):
		problem("vault.role: is missing or a pattern", "name the Vault role to log in with, like reader-{tenant}")
	case !provider.Printable(v.Role):
		problem("vault.role: has control characters", "remove them")
	case strings.ToLower(v.Role) != v.Role:
		problem("vault.role: has upper case letters, which Vault's aws method takes for lower case ones", "write it in lower case")
	}
	r.filler(provider.Pod{}, "")(v.Role, func(cause, remedy string) { problem("vault.role: "+cause, remedy) })
	mount, fault := provider.AuthMount(v.Mount)
	if fault != "" {
		problem("vault.mount: "+fault, "write it like aws or clusters/one, without auth/ in front")
	}
	v.Mount = mount
	if !provider.Printable(v.Namespace) {
		problem("vault.namespace: has control characters", "remove them")
	}
}

// filler returns what fills in a text of the rule, and reports the placeholders that
// the rule does not know.
func (r *rule) filler(pod provider.Pod, tenant string) func(text string, report func(cause, remedy string)) string {
	known := []string{"{namespace}", "{serviceAccount}"}
	if len(r.Tenants) > 0 {
		known = append(known, "{tenant}")
	}
	replace := replacer(pod, tenant)
	return func(text string, report func(cause, remedy string)) string {
		for _, p := range provider.Placeholders(text) {
			if !slices.Contains(known, p) {
				report("has the unknown placeholder "+p, "use "+strings.Join(known, ", "))
			}
		}
		return replace(text)
	}
}
