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
	"maps"
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
	maxTags  = 50 // session tags that AWS takes
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
	SessionPolicy yaml.Node         `yaml:"sessionPolicy"` // a mapping, or JSON as text
	SessionTags   map[string]string `yaml:"sessionTags"`
	Region        string            `yaml:"region"`

	policy any // SessionPolicy decoded; nil: none
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
		return nil, unreadable(err)
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

// yamlLine is how the YAML library begins a text about a line.
var yamlLine = regexp.MustCompile(`line (\d+): (.*)`)

// unreadable puts the library's words into ours: those name Go's types.
func unreadable(err error) error {
	var errs []error
	for _, found := range yamlLine.FindAllStringSubmatch(err.Error(), -1) {
		line, _ := strconv.Atoi(found[1]) // digits, by the pattern
		cause, _, _ := strings.Cut(found[2], " in type ")
		cause, _, _ = strings.Cut(cause, " into ")
		errs = append(errs, Problem{Line: line, Cause: "it is not the YAML of rules: " + cause, Remedy: "write rules: and below it a list of rules with the documented fields"})
	}
	if errs == nil {
		return Problem{Cause: "it is no YAML: " + strings.TrimPrefix(err.Error(), "yaml: "), Remedy: "indent with spaces"}
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
	roleARN       = regexp.MustCompile(`^arn:aws(-[a-z]+)*:iam::[0-9]{12}:role/[\w+=,.@/{}-]{1,512}$`)
	region        = regexp.MustCompile(`^[a-z]{2}(-[a-z]+)+-[0-9]{1,2}$`)
	tag           = regexp.MustCompile(`^[\p{L}\p{Z}\p{N}_.:/=+\-@{}]{1,256}$`) // of AWS's TagSession
	placeholder   = regexp.MustCompile(`\{[A-Za-z]+\}`)
)

// check finds everything wrong with the rule and fills what is derived of it.
func (r *rule) check(problem func(cause, remedy string)) {
	for _, list := range [...]struct {
		field  string
		words  []string
		good   func(string) bool
		remedy string
	}{
		{"namespaces", r.Namespaces, namespaceGlob.MatchString, "list names of namespaces, or patterns like team-*"},
		{"serviceAccounts", r.ServiceAccounts, accountGlob.MatchString, "list names of service accounts, or patterns like app-*"},
		{"tenants", r.Tenants, func(w string) bool { return provider.GlobFault(w) == "" }, "list names of tenants, or patterns like team-*"},
	} {
		if len(list.words) == 0 && list.field != "tenants" {
			problem(list.field+" are missing", list.remedy)
		}
		for _, w := range list.words {
			if !list.good(w) {
				problem(fmt.Sprintf("%s: %q is no name and no pattern", list.field, w), list.remedy)
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
		if r.Vault.Role == "" || strings.Contains(r.Vault.Role, "*") {
			problem("vault.role: is missing or a pattern", "name the Vault role to log in with, like reader-{tenant}")
		}
		if strings.ToLower(r.Vault.Role) != r.Vault.Role {
			problem("vault.role: has upper case letters, which Vault's aws method takes for lower case ones", "write it in lower case")
		}
		r.placeholders("vault.role", r.Vault.Role, problem)
	}
}

func (r *rule) checkAWS(problem func(cause, remedy string)) {
	a := r.AWS
	if !roleARN.MatchString(a.RoleARN) {
		problem("aws.roleArn: is no ARN of a role", "write it like arn:aws:iam::123456789012:role/tenant-{tenant}")
	}
	r.placeholders("aws.roleArn", a.RoleARN, problem)
	if a.Region != "" && !region.MatchString(a.Region) {
		problem("aws.region: is no region", "write it like eu-central-1, or leave it out for the daemon's")
	}
	if len(a.SessionTags) > maxTags {
		problem(fmt.Sprintf("aws.sessionTags: are more than %d", maxTags), "leave some out")
	}
	for _, k := range slices.Sorted(maps.Keys(a.SessionTags)) {
		v := a.SessionTags[k]
		if !tag.MatchString(k) || len(k) > 128 || v != "" && !tag.MatchString(v) || placeholder.MatchString(k) {
			problem(fmt.Sprintf("aws.sessionTags: %q is no tag that AWS takes", k), "use letters, digits, spaces and _.:/=+-@")
		}
		r.placeholders("aws.sessionTags", v, problem)
	}
	if a.SessionPolicy.IsZero() {
		return
	}
	node := &a.SessionPolicy
	if node.Kind == yaml.ScalarNode { // JSON, or YAML, as text
		node = &yaml.Node{}
		if yaml.Unmarshal([]byte(a.SessionPolicy.Value), node) == nil && node.Kind == yaml.DocumentNode {
			node = node.Content[0]
		}
	}
	policy, err := plain(node)
	if _, mapping := policy.(map[string]any); !mapping || err != nil {
		problem("aws.sessionPolicy: is no mapping that JSON can carry", "write the policy as YAML without anchors, or as JSON behind |")
		return
	}
	a.policy = each(policy, func(s string) string { r.placeholders("aws.sessionPolicy", s, problem); return s })
}

// plain is a part of a policy as JSON has it. A text without quotes stays one: YAML
// takes Version: 2012-10-17 for a date.
func plain(n *yaml.Node) (part any, err error) {
	switch n.Kind {
	case yaml.MappingNode:
		out := make(map[string]any, len(n.Content)/2)
		for i := 0; i+1 < len(n.Content) && err == nil; i += 2 {
			out[n.Content[i].Value], err = plain(n.Content[i+1])
		}
		return out, err
	case yaml.SequenceNode:
		out := make([]any, len(n.Content))
		for i := 0; i < len(n.Content) && err == nil; i++ {
			out[i], err = plain(n.Content[i])
		}
		return out, err
	case yaml.ScalarNode:
		if n.ShortTag() == "!!timestamp" {
			return n.Value, nil
		}
		if err = n.Decode(&part); err == nil {
			_, err = compact(part) // not every number is one of JSON's
		}
		return part, err
	}
	return nil, errors.New("an alias or nothing")
}

// placeholders reports those of text that the rule can't fill in.
func (r *rule) placeholders(field, text string, problem func(cause, remedy string)) {
	known := []string{"{namespace}", "{serviceAccount}"}
	if len(r.Tenants) > 0 {
		known = append(known, "{tenant}")
	}
	for _, p := range placeholder.FindAllString(text, -1) {
		if !slices.Contains(known, p) {
			problem(field+": has the unknown placeholder "+p, "use "+strings.Join(known, ", "))
		}
	}
}
