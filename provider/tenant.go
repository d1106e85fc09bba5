package provider

import (
	"encoding/json"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

const (
	// MaxTenants is how many tenants one volume may have.
	MaxTenants = 500
	maxGlobs   = 64   // each is tried with each name of a list
	maxFiles   = 1024 // objects of all tenants together
	maxReads   = 512  // different questions of one volume

	// FromBindings is the tenantsFrom that stands for the cluster's own rules.
	FromBindings = "bindings"
	// MethodList is the Method of the Read that asks for the names below a path.
	MethodList = "LIST"
)

var (
	tenantName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$`)
	tenantGlob = regexp.MustCompile(`^[A-Za-z0-9*][A-Za-z0-9._*-]{0,62}$`)
)

// Tenants say for whom an SPC's objects are resolved.
type Tenants struct {
	Names     []string // the tenants that are listed themselves, in the SPC's order
	Globs     []string // patterns for further ones, in the SPC's order
	List      Read     // asks for the names that globs can mean; zero: the bindings tell them
	OnFailure string   // "skip" or "fail"; empty: fail for Names, skip for what a glob meant
}

// Match reports whether one of the globs means the name.
func (t *Tenants) Match(name string) bool {
	return slices.ContainsFunc(t.Globs, func(g string) bool { return Glob(g, name) })
}

// Skips reports whether a tenant whose secrets can't be had is left out, so that
// the others get theirs.
func (t *Tenants) Skips(name string) bool {
	if t.OnFailure == "" {
		return !slices.Contains(t.Names, name)
	}
	return t.OnFailure == "skip"
}

// TenantFault says why name can't be a tenant's, "" when it can. The rule keeps
// a name whole wherever it is put: one part of a file name or a Vault path, a
// role's name, a text in a policy.
func TenantFault(name string) string { return wordFault(tenantName, name) }

// GlobFault says why pattern can't stand for tenants' names, "" when it can. A
// name is a pattern too.
func GlobFault(pattern string) string { return wordFault(tenantGlob, pattern) }

func wordFault(rule *regexp.Regexp, word string) string {
	switch {
	case word == "":
		return "is empty"
	case len(word) > 63:
		return "is longer than 63 characters"
	case !rule.MatchString(word):
		return "is not made of letters, digits and . _ - behind a letter or digit"
	case strings.Contains(word, ".."):
		return "has two dots in a row"
	}
	return ""
}

// Glob reports whether pattern means name: * stands for any characters, also
// none, and everything else for itself, upper and lower case apart.
func Glob(pattern, name string) bool {
	first, rest, star := strings.Cut(pattern, "*")
	if !star {
		return pattern == name
	}
	name, ok := strings.CutPrefix(name, first)
	for ok {
		var part string
		part, rest, star = strings.Cut(rest, "*")
		if !star {
			return strings.HasSuffix(name, part)
		}
		_, name, ok = strings.Cut(name, part)
	}
	return false
}

// tenants reads who the SPC is for, and by whose names it is parsed now.
func (p *parser) tenants(expanded []string) {
	p.names = []string{""}
	if _, set := p.request.Attributes["tenants"]; !set {
		for _, name := range []string{"tenantsFrom", "onTenantFailure"} {
			if _, set := p.request.Attributes[name]; set {
				p.fail("", name, "is set without tenants", "list tenants, or patterns like team-*, in tenants")
			}
		}
		return
	}
	t := &Tenants{OnFailure: p.parameter("onTenantFailure")}
	p.spec.Tenants = t
	if t.OnFailure != "" && !slices.Contains(tenantFailures, t.OnFailure) {
		p.fail("", "onTenantFailure", quote(t.OnFailure)+" is unknown", didYouMean(t.OnFailure, tenantFailures))
	}
	list, ok := p.load("tenants", yaml.SequenceNode, "list", "write it like [tenant-a, tenant-b] or [team-*]")
	if ok && (list == nil || len(list.Content) == 0) {
		p.fail("", "tenants", "is empty", "list at least one tenant, or a pattern like team-*")
	} else if ok {
		p.tenantList(t, list.Content)
	}
	if expanded == nil {
		expanded = t.Names
	}
	if n := len(expanded); n > MaxTenants {
		p.fail("", "tenants", "are "+strconv.Itoa(n)+", more than "+strconv.Itoa(MaxTenants), "split them over several volumes")
		expanded = nil
	}
	if p.names = expanded; len(expanded) == 0 { // a name like any other shows what else is wrong
		p.names, p.sample = []string{"tenant"}, true
	}
}

// tenantList sorts the entries of tenants into names and patterns.
func (p *parser) tenantList(t *Tenants, entries []*yaml.Node) {
	seen := map[string]string{}
	for _, n := range entries {
		word, folded := n.Value, strings.ToLower(n.Value)
		fault := GlobFault(word)
		if n.Kind != yaml.ScalarNode || isNull(n) {
			fault = "is no plain name"
		}
		twin, twice := seen[folded]
		seen[folded] = word
		switch {
		case fault != "":
			p.at(n.Line).fail("", "tenants", quote(word)+" "+fault, "write a name like tenant-a, or a pattern like team-*")
		case twice && twin == word:
			p.at(n.Line).fail("", "tenants", quote(word)+" is there twice", "list each tenant once")
		case strings.Contains(word, "*"):
			t.Globs = append(t.Globs, word)
		case twice:
			p.at(n.Line).fail("", "tenants", quote(word)+" differs from "+quote(twin)+" in case only", "give each tenant a name of its own")
		default:
			t.Names = append(t.Names, word)
		}
	}
	if len(t.Globs) > maxGlobs {
		p.fail("", "tenants", "has more than "+strconv.Itoa(maxGlobs)+" patterns", "merge some, or list names")
		t.Globs = nil
	}
}

// tenantsFrom reads where patterns find their names. It needs the login.
func (p *parser) tenantsFrom(login Login) {
	t, from := p.spec.Tenants, p.parameter("tenantsFrom")
	if t == nil || from == "" {
		return
	}
	fail := func(cause, remedy string) { p.fail("", "tenantsFrom", cause, remedy) }
	if len(t.Globs) == 0 {
		p.warn("parameter tenantsFrom has no effect: tenants has no pattern like team-*")
	}
	if from == FromBindings {
		return
	}
	if strings.Contains(from, "{tenant}") || strings.Contains(p.request.Attributes["roleName"], "{tenant}") {
		fail("is read before the tenants are known, and {tenant} stands in it or in roleName", "leave {tenant} out of both, or set tenantsFrom: bindings")
		return
	}
	const remedy = "write bindings, or the path to LIST in Vault, like secret/metadata/pool"
	path, query, fault := vaultPath(p.replace(from, fail))
	if fault == "" && query != nil {
		fault = "has a query behind ?"
	}
	if fault != "" {
		fail(fault, remedy)
	}
	t.List = Read{Source: vaultSource, Login: login, Method: MethodList, Path: path}
}

// bounded looks at what the tenants' objects come to together.
func (p *parser) bounded() {
	if p.spec.Tenants == nil {
		return
	}
	if p.sample {
		p.spec.Objects = nil
		return
	}
	reads := map[string]bool{}
	for _, o := range p.spec.Objects {
		text, err := json.Marshal(o.Read)
		if err != nil {
			panic(err) // texts, numbers and maps of them always marshal
		}
		reads[string(text)] = true
	}
	if len(reads) > maxReads {
		p.fail("", "tenants", "ask for "+strconv.Itoa(len(reads))+" reads together, more than "+strconv.Itoa(maxReads), "split the tenants over several volumes")
	}
}
