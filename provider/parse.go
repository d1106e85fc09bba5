package provider

import (
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

const (
	// MaxObjects is how many objects one SPC may have.
	MaxObjects = 64
	// maxWarnings bounds what an SPC with many unknown words makes others read.
	maxWarnings = 16
	// ownName is the provider name under which unknown object fields are errors.
	ownName = "tenure"
)

// Parse reads the SPC's parameters. It needs a Request's Provider, Pod, Mode and
// Attributes only, so that a Request out of the journal gives the same Spec, and
// depends on nothing else. It finds all problems at once: an error is Errors, all
// of class Invalid. It may be called from many goroutines at once. Of an SPC with
// tenants it gives the objects of those that are listed by name, which may be none.
func Parse(r Request) (*Spec, error) { return ParseFor(r, nil) }

// ParseFor is Parse with exactly these tenants, which whoever found out what the
// SPC's patterns mean has checked; nil: those that are listed by name.
func ParseFor(r Request, tenants []string) (*Spec, error) {
	p := parse(r, tenants, func(Object) error { return nil })
	if len(p.errs) > 0 {
		return nil, p.errs
	}
	return p.spec, nil
}

// Validate finds what Parse finds, and in the same pass what check says of each
// object that Parse takes, so that an author sees all problems at once. check's
// errors must be *Error; others are ignored. It may be called from many goroutines
// at once.
func Validate(r Request, check func(Object) error) (warnings []string, problems Errors) {
	p := parse(r, nil, check)
	return p.spec.Warnings, p.errs
}

func parse(r Request, tenants []string, check func(Object) error) *parser {
	p := &parser{request: r, spec: &Spec{}, check: check, lines: map[string]int{}, policies: map[*yaml.Node]*yaml.Node{}, noRole: -1, found: map[string]bool{}}
	p.checkWords()
	p.tenants(tenants)
	logins := make([]Login, len(p.names))
	for i, name := range p.names {
		p.forTenant(name)
		logins[i] = p.login()
	}
	p.tenantsFrom(logins[0])
	p.parseObjects(logins, p.mountPath())
	p.requireRole()
	p.bounded()
	return p
}

// forTenant sets by whose name placeholders are replaced from now on.
func (p *parser) forTenant(name string) {
	p.tenant = name
	known := []string{"{namespace}", p.request.Pod.Namespace, "{serviceAccount}", p.request.Pod.ServiceAccount}
	if name != "" {
		known = append(known, "{tenant}", name)
	}
	p.placeholders = strings.NewReplacer(known...)
}

// parser collects what it finds in one SPC.
type parser struct {
	request      Request
	placeholders *strings.Replacer
	spec         *Spec
	check        func(Object) error
	lines        map[string]int // of the last object of a name
	line         int            // of the next fault, see at
	errs         Errors
	policies     map[*yaml.Node]*yaml.Node // as they are written, to what they say
	noRole       int                       // where in errs the lack of a roleName belongs; -1: there is none
	found        map[string]bool           // texts in errs: a wrong default is reported once, not for each object

	names    []string // of the tenants that objects are made for; one empty name without tenants
	sample   bool     // the name is made up, to check what patterns will be resolved for
	tenant   string   // whose objects are made now
	tenanted bool     // {tenant} was replaced since this was last set back
}

func (p *parser) fail(object, field, cause, remedy string) {
	err := &Error{Class: Invalid, Object: object, Field: field, Cause: cause, Remedy: remedy, Line: p.line}
	p.line = 0
	if text := err.Error(); !p.found[text] {
		p.found[text] = true
		p.errs = append(p.errs, err)
	}
}

// at says in which line of objects or defaults the next fault is.
func (p *parser) at(line int) *parser {
	p.line = line
	return p
}

func (p *parser) warn(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	if len(p.spec.Warnings) < maxWarnings && !slices.Contains(p.spec.Warnings, text) {
		p.spec.Warnings = append(p.spec.Warnings, text)
	}
}

// checkWords looks at the names of all parameters.
func (p *parser) checkWords() {
	for _, word := range slices.Sorted(maps.Keys(p.request.Attributes)) {
		isWord := func(w string) bool { return strings.EqualFold(w, word) }
		switch {
		case drivers(word) || slices.Contains(parameters, word):
		case slices.ContainsFunc(legacyParameters, isWord):
			p.warn("parameter %s is ignored, as by the HashiCorp provider", word)
		case nearest(word, parameters) != "":
			p.fail("", brief(word), "is no parameter", "did you mean "+nearest(word, parameters)+"?")
		default:
			p.warn("parameter %s is unknown and ignored", quote(word))
		}
	}
}

// parameter returns a parameter's value, checked for control characters.
func (p *parser) parameter(name string) string {
	value := p.request.Attributes[name]
	if !Printable(value) {
		p.fail("", name, "has control characters", "remove them")
		return ""
	}
	return value
}

func (p *parser) login() Login {
	l := Login{
		Method:        p.loginMethod(),
		Address:       p.parameter("vaultAddress"),
		Namespace:     p.parameter("vaultNamespace"),
		Mount:         p.authMount(),
		TLSServerName: p.parameter("vaultTLSServerName"),
	}
	p.proof(&l)
	if l.Address != "" {
		address, fault := vaultAddress(l.Address)
		if fault != "" {
			p.fail("", "vaultAddress", fault, "write it like https://vault.example.com:8200")
		}
		l.Address = address
	}
	p.tls(&l)
	return l
}

// proof reads who logs in: a role that is named here, or one that a Secret tells.
func (p *parser) proof(l *Login) {
	defer p.awsProof(l)
	if l.Method == AppRoleMethod {
		for _, name := range []string{"roleName", "audience"} {
			if _, set := p.request.Attributes[name]; set {
				p.warn("parameter %s is ignored: an AppRole login takes role_id and secret_id of nodePublishSecretRef", name)
			}
		}
		return
	}
	role := p.parameter("roleName")
	if p.request.Attributes["roleName"] == "" {
		p.noRole = len(p.errs)
	}
	l.Role = p.replace(role, func(cause, remedy string) { p.fail("", "roleName", cause, remedy) })
	l.Audience = p.parameter("audience")
}

// requireRole reports a missing roleName, unless no object asks Vault.
func (p *parser) requireRole() {
	asksVault := func(o Object) bool { return o.Read.Source == vaultSource }
	lists := p.spec.Tenants != nil && p.spec.Tenants.List.Path != ""
	if p.noRole >= 0 && (lists || len(p.spec.Objects) == 0 || slices.ContainsFunc(p.spec.Objects, asksVault)) {
		p.errs = slices.Insert(p.errs, p.noRole, &Error{Class: Invalid, Field: "roleName", Cause: "is missing", Remedy: "set the Vault role to log in with"})
	}
}

func (p *parser) loginMethod() string {
	method := p.parameter("vaultAuthMethod")
	switch {
	case method == "":
		return logins[0]
	case !slices.Contains(logins, method):
		p.fail("", "vaultAuthMethod", quote(method)+" is unknown", didYouMean(method, logins))
	}
	return method
}

// authMount reads the auth mount path, which has two names; empty: the default.
func (p *parser) authMount() string {
	_, old := p.request.Attributes["vaultKubernetesMountPath"]
	_, both := p.request.Attributes["vaultAuthMountPath"]
	if both = both && old; both {
		p.fail("", "vaultAuthMountPath", "is set together with vaultKubernetesMountPath", "keep vaultAuthMountPath alone")
	}
	name := "vaultAuthMountPath"
	if old {
		name = "vaultKubernetesMountPath"
	}
	mount, fault := AuthMount(p.parameter(name))
	if fault != "" {
		p.fail("", name, fault, "write it like kubernetes or clusters/one, without auth/ in front")
	}
	return mount
}

func (p *parser) tls(l *Login) {
	file := func(name string) string {
		path := p.parameter(name)
		if climbs(path) {
			p.fail("", name, "has a part ..", "write the path below Tenure's TLS directory")
		}
		return path
	}
	l.CACertPath, l.CADirectory = file("vaultCACertPath"), file("vaultCADirectory")
	l.ClientCertPath, l.ClientKeyPath = file("vaultTLSClientCertPath"), file("vaultTLSClientKeyPath")
	if (l.ClientCertPath == "") != (l.ClientKeyPath == "") {
		p.fail("", "vaultTLSClientCertPath", "is set without vaultTLSClientKeyPath, or the other way round", "set both or neither")
	}
	if skip, set := p.request.Attributes["vaultSkipTLSVerify"]; set {
		var err error
		if l.SkipTLSVerify, err = strconv.ParseBool(skip); err != nil {
			p.fail("", "vaultSkipTLSVerify", quote(skip)+" is neither true nor false", `write "true" or "false"`)
		}
	}
}

func (p *parser) mountPath() string {
	mount := p.parameter("mountPath")
	if mount != "" && (!path.IsAbs(mount) || path.Clean(mount) != mount) {
		p.fail("", "mountPath", "is no plain absolute path", "write the container's mountPath of the volume, like /var/run/secrets/db")
	}
	return mount
}

// replace fills in the placeholders of text and reports those that it can't.
func (p *parser) replace(text string, report func(cause, remedy string)) string {
	for _, found := range placeholder.FindAllString(text, -1) {
		switch found {
		case "{namespace}", "{serviceAccount}":
		case "{tenant}":
			if p.tenanted = true; p.spec.Tenants == nil {
				report("has {tenant}, but the SPC has no tenants", "set tenants, or write the name itself")
			}
		default:
			report("has the unknown placeholder "+brief(found), "use {namespace} or {serviceAccount}")
		}
	}
	return p.placeholders.Replace(text)
}

// parseObjects reads objects, each laid over defaults, for each tenant.
func (p *parser) parseObjects(logins []Login, mountPath string) {
	defaults, _ := p.load("defaults", yaml.MappingNode, "mapping", "write object fields in it, like format: json")
	list, ok := p.load("objects", yaml.SequenceNode, "list", "begin each object with - objectName:")
	if !ok {
		return
	}
	if list == nil || len(list.Content) == 0 {
		p.fail("", "objects", "is empty", "list at least one object with objectName and secretPath")
		return
	}
	if n := len(list.Content); n > MaxObjects {
		p.fail("", "objects", "has "+strconv.Itoa(n)+" entries, more than "+strconv.Itoa(MaxObjects), "split the SPC into several volumes")
		return
	}
	if n := len(list.Content) * len(p.names); n > maxFiles {
		p.fail("", "tenants", "and objects make "+strconv.Itoa(n)+" files, more than "+strconv.Itoa(maxFiles), "split the tenants over several volumes")
		return
	}
	for i, name := range p.names {
		p.forTenant(name)
		p.tenantsObjects(list.Content, defaults, logins[i], mountPath)
		if name != "" && len(p.errs) > 0 {
			return // the others have the same
		}
	}
	p.checkNames()
}

// tenantsObjects reads objects for the tenant of now, or for none.
func (p *parser) tenantsObjects(list []*yaml.Node, defaults *yaml.Node, login Login, mountPath string) {
	for i, node := range list {
		label := "#" + strconv.Itoa(i+1)
		if node.Kind != yaml.MappingNode {
			p.at(node.Line).fail(label, "", "is empty or no mapping of fields", "write objectName and secretPath, each on a line indented alike")
			continue
		}
		e := p.newEntry(label, node, defaults)
		object := e.object(login)
		object.MountPath = mountPath
		e.check(object)
		p.lines[object.Name] = node.Line
		p.spec.Objects = append(p.spec.Objects, object)
	}
}

// load reads a parameter that holds YAML of one kind; nil when it is empty. ok is
// false when it is wrong and said so.
func (p *parser) load(name string, kind yaml.Kind, kindName, remedy string) (node *yaml.Node, ok bool) {
	node, err := loadYAML(p.request.Attributes[name])
	var wrong *yamlError
	switch {
	case errors.As(err, &wrong):
		p.at(wrong.line).fail("", name, "can't be read as YAML: "+wrong.Error(), wrong.remedy)
		return nil, false
	case node != nil && node.Kind != kind:
		p.fail("", name, "is not a YAML "+kindName, remedy)
		return nil, false
	}
	return node, true
}

// checkNames finds files that would be one, or a file where another needs a directory.
func (p *parser) checkNames() {
	files := map[string]string{}
	named := slices.DeleteFunc(slices.Clone(p.spec.Objects), func(o Object) bool { return nameFault(o.Name) != "" })
	for _, o := range named {
		folded := strings.ToLower(o.Name)
		if other, taken := files[folded]; taken {
			cause := "is there twice"
			if other != o.Name {
				cause = "differs from object " + quote(other) + " in case only"
			}
			p.at(p.lines[o.Name]).fail(o.Name, "objectName", cause, "give each object a name of its own")
		}
		files[folded] = o.Name
	}
	for _, o := range named {
		for dir := path.Dir(strings.ToLower(o.Name)); dir != "."; dir = path.Dir(dir) {
			if other, taken := files[dir]; taken {
				p.at(p.lines[o.Name]).fail(o.Name, "objectName", "lies below object "+quote(other), "give one of them another name: a file can't be a directory too")
			}
		}
	}
}
