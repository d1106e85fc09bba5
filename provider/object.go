package provider

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"io/fs"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// The bounds of an object's fields.
const (
	maxTemplate    = 64 << 10
	maxParams      = 64
	defaultRefresh = 2 * time.Minute
	minRefresh     = 10 * time.Second // a pod's author must not be able to flood Vault with polls
	minOverlap     = time.Second      // 0 would not mean "none" but "the default"
	maxDuration    = 365 * 24 * time.Hour
	noID           = 1<<32 - 1 // -1 as an unsigned number, which chown takes for "as it is"
)

var (
	wholeNumber = regexp.MustCompile(`^(0|[1-9][0-9]{0,17})$`)
	octalText   = regexp.MustCompile(`^0o?[0-7]{1,11}$`)
)

// entry is one entry of objects, laid over the defaults field by field.
type entry struct {
	*parser
	line   int    // in objects
	name   string // for errors: objectName, or "#3" without a good one
	fields map[string]field
	faulty map[string]bool // fields that were reported: the first problem of each is enough
}

// field is a field's value and where it was written.
type field struct {
	*yaml.Node
	inherited bool
}

// newEntry merges and checks the names of the fields.
func (p *parser) newEntry(label string, node, defaults *yaml.Node) *entry {
	e := &entry{parser: p, line: node.Line, name: label, fields: map[string]field{}, faulty: map[string]bool{}}
	if defaults != nil {
		e.add(defaults, true)
	}
	e.add(node, false)
	return e
}

func (e *entry) add(mapping *yaml.Node, inherited bool) {
	for i := 0; i+1 < len(mapping.Content); i += 2 {
		e.fields[mapping.Content[i].Value] = field{mapping.Content[i+1], inherited}
	}
}

// fault reports a problem of one field, or of a part of it ("connection.port"),
// at the place where it was written.
func (e *entry) fault(name, cause, remedy string) {
	if e.faulty[name] {
		return
	}
	e.faulty[name] = true
	object, where, line := e.name, brief(name), e.line
	outer, _, _ := strings.Cut(name, ".")
	if e.fields[outer].inherited {
		object, where = "", "defaults."+where
	}
	for _, known := range [...]string{outer, name} {
		if f, ok := e.fields[known]; ok {
			line = f.Line
		}
	}
	e.at(line).fail(object, where, cause, remedy)
}

// check asks the caller of Validate about an object in which nothing is wrong yet.
func (e *entry) check(o Object) {
	if len(e.faulty) > 0 {
		return
	}
	if err, ok := errors.AsType[*Error](e.parser.check(o)); ok {
		e.fault(err.Field, err.Cause, err.Remedy)
	}
}

// object reads all fields.
func (e *entry) object(login Login) Object {
	name := e.replaced("objectName")
	e.tenanted = false
	if fault := nameFault(name); name == "" {
		e.fault("objectName", fault, "set the name of the file to write")
	} else if fault != "" {
		e.fault("objectName", quote(name)+" "+fault, "use a relative file name of letters, digits and . _ - with / between directories")
	} else if e.name = name; e.spec.Tenants != nil {
		e.nameForAll()
	}
	e.checkWords()
	connection := e.connection()
	o := Object{
		Name:       name,
		Tenant:     e.tenant,
		Key:        e.text("secretKey"),
		Encoding:   strings.ToLower(e.oneOf("encoding", encodings)),
		Format:     e.oneOf("format", formats),
		Template:   e.text("template"),
		Mode:       e.mode(),
		UID:        e.id("owner"),
		GID:        e.id("group"),
		Connection: connection,
		Refresh:    e.duration("refreshInterval", minRefresh),
		Overlap:    e.duration("overlap", minOverlap),
		Read:       e.read(login, connection),
	}
	if o.Encoding == "utf-8" {
		o.Encoding = ""
	}
	if o.Refresh == 0 {
		o.Refresh = defaultRefresh
	}
	e.checkFormat(o)
	if e.tenant != "" && !e.tenanted && !o.Read.ByNode() && !strings.Contains(e.request.Attributes["roleName"], "{tenant}") {
		e.warn("object %s: nothing of what is read depends on {tenant}: every tenant gets the same", quote(e.name))
	}
	return o
}

// nameForAll names the object as its author wrote it, for all tenants, and makes
// sure that it is a file of its own for each.
func (e *entry) nameForAll() {
	e.name = strings.NewReplacer("{namespace}", e.request.Pod.Namespace, "{serviceAccount}", e.request.Pod.ServiceAccount).Replace(e.text("objectName"))
	if !strings.Contains(e.name, "{tenant}") {
		e.fault("objectName", "has no {tenant}, and the files of all tenants would be one", "name it like {tenant}/"+brief(e.name))
	}
}

// checkWords looks at the names of the fields.
func (e *entry) checkWords() {
	for _, word := range slices.Sorted(maps.Keys(e.fields)) {
		switch {
		case slices.Contains(fields, word):
		case e.request.Provider != ownName:
			e.warn("object %s: field %s is unknown and ignored", quote(e.name), quote(word))
		default:
			e.fault(word, "is no field of an object", didYouMean(word, fields))
		}
	}
}

// read takes the question to a backend out of the fields.
func (e *entry) read(login Login, c Connection) Read {
	source := cmp.Or(e.oneOf("source", sources), vaultSource)
	if source != vaultSource {
		e.meaningless("source "+source, vaultFields...)
		r := e.awsRead(source, c)
		r.Tenant = e.tenant
		return r
	}
	e.meaningless("source "+source, append([]string{"connection.user"}, awsFields...)...)
	return e.vaultRead(login)
}

// meaningless refuses fields that have no use beside another. A default is meant
// for those objects that can use it.
func (e *entry) meaningless(beside string, names ...string) {
	for _, name := range names {
		if e.node(name) == nil || e.fields[name].inherited {
			continue
		}
		remedy := "leave it out"
		if name == "ttl" && beside == "source "+vaultSource {
			remedy += ": the role in Vault says how long, and some engines take it in the path, like aws/sts/orders?ttl=1h"
		}
		e.fault(name, "has no effect with "+beside, remedy)
	}
}

// vaultRead takes the question to Vault out of the fields.
func (e *entry) vaultRead(login Login) Read {
	r := Read{Source: vaultSource, Tenant: e.tenant, Login: login, Method: "GET", Args: e.args()}
	if m := e.oneOf("method", methods); m != "" {
		r.Method = strings.ToUpper(m)
	}
	if r.Method == http.MethodGet && r.Args != nil {
		e.warn("object %s: secretArgs have no effect on a GET; set method: PUT", quote(e.name))
		r.Args = nil
	}
	var fault string
	r.Path, r.Query, fault = vaultPath(e.replaced("secretPath"))
	if fault != "" {
		e.fault("secretPath", fault, "write the path to read in Vault, like secret/data/app or database/creds/app")
	}
	return r
}

// checkFormat finds a template that is missing or has no effect, and the like.
// What each format needs of its fields is for those who render it to check.
func (e *entry) checkFormat(o Object) {
	switch {
	case o.Format == "template" && o.Template == "":
		e.fault("template", "is missing, but format is template", "set template or another format")
	case o.Format != "template" && o.Template != "":
		e.fault("template", "is set, but format is not template", "set format: template")
	case len(o.Template) > maxTemplate:
		e.fault("template", "is longer than 64 KiB", "shorten it")
	case o.Format == "" && o.Key == "" && o.Read.Source != vaultSource:
		e.fault("format", "is missing, and source "+o.Read.Source+" gives several values", "set format, or secretKey for one of the values")
	case o.Encoding != "" && o.Key == "" && o.Format == "":
		e.warn("object %s: encoding has no effect without secretKey", quote(e.name))
	}
}

// node returns a field's value; absent and null are the same.
func (e *entry) node(name string) *yaml.Node {
	if f, ok := e.fields[name]; ok && !isNull(f.Node) {
		return f.Node
	}
	return nil
}

// text reads a field as it is written: a number or bool is text too.
func (e *entry) text(name string) string {
	n := e.node(name)
	if n == nil {
		return ""
	}
	if n.Kind != yaml.ScalarNode {
		e.fault(name, "is no plain value", "write it on one line, or as a block behind |")
		return ""
	}
	if name != "template" && !Printable(n.Value) {
		e.fault(name, "has control characters", "remove them")
		return ""
	}
	return n.Value
}

// replaced is text with its placeholders filled in.
func (e *entry) replaced(name string) string {
	return e.replace(e.text(name), func(cause, remedy string) { e.fault(name, cause, remedy) })
}

// oneOf reads a field that has a few known words, whatever the case.
func (e *entry) oneOf(name string, known []string) string {
	word := e.text(name)
	isWord := func(w string) bool { return strings.EqualFold(w, word) }
	switch {
	case word == "" || slices.ContainsFunc(known, isWord):
		return strings.ToLower(word)
	default:
		e.fault(name, quote(word)+" is unknown", didYouMean(word, known))
	}
	return ""
}

// mode reads filePermission as YAML has it: 0644 and 0o644 are octal, 420 is
// decimal. In quotes it must be octal with the leading zero. 0 means the request's.
func (e *entry) mode() fs.FileMode {
	const name = "filePermission"
	n := e.node(name)
	if n == nil || n.Kind == yaml.ScalarNode && n.Value == "" {
		return e.request.Mode
	}
	var mode int64
	var err error
	if n.ShortTag() == "!!str" && octalText.MatchString(n.Value) {
		mode, err = strconv.ParseInt(strings.TrimPrefix(n.Value, "0o"), 8, 64)
	} else if err = n.Decode(&mode); n.ShortTag() != "!!int" {
		err = strconv.ErrSyntax
	}
	switch {
	case err != nil:
		e.fault(name, "is no octal number", "write it like 0640, with a leading zero")
	case mode < 0 || mode > maxPermission:
		e.fault(name, "is outside of 0000 to 0777", "write it like 0640, with a leading zero: without one YAML reads a decimal number")
	case mode == 0:
		return e.request.Mode
	case mode&0o444 == 0:
		e.fault(name, "lets nobody read the file", "write it like 0640, with a leading zero: without one YAML reads a decimal number")
	case n.Value[0] != '0':
		e.warn("object %s: filePermission %s is decimal and means 0%o", quote(e.name), n.Value, mode)
	}
	return fs.FileMode(mode)
}

// id reads a numeric user or group; -1 without one.
func (e *entry) id(name string) int {
	text := e.text(name)
	if text == "" {
		return -1
	}
	id, err := strconv.Atoi(text)
	if err != nil || !wholeNumber.MatchString(text) || id >= noID {
		e.fault(name, quote(text)+" is no number from 0 to 4294967294", "write the number that the application's container runs as, like 1000")
		return -1
	}
	return id
}

// duration reads Go's form or bare seconds; 0 without one.
func (e *entry) duration(name string, least time.Duration) time.Duration {
	text := e.text(name)
	if text == "" {
		return 0
	}
	if wholeNumber.MatchString(text) {
		text += "s"
	}
	d, err := time.ParseDuration(text)
	switch {
	case err != nil:
		e.fault(name, quote(text)+" is no duration", "write it like 90, 90s or 2m30s")
	case d < least:
		e.fault(name, "is shorter than "+least.String(), "choose a longer one, or leave it out for the default")
	case d > maxDuration:
		e.fault(name, "is longer than a year", "choose a shorter one, or leave it out for the default")
	}
	return d
}

// args reads secretArgs into what JSON gives back, with json.Number for numbers,
// so that equal reads are equal; nil when there are none.
func (e *entry) args() map[string]any {
	n := e.node("secretArgs")
	if n == nil {
		return nil
	}
	var args map[string]any
	err := n.Decode(&args)
	if err == nil && len(args) == 0 {
		return nil
	}
	text, jsonErr := json.Marshal(args)
	args = nil
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.UseNumber()
	if err != nil || jsonErr != nil || decoder.Decode(&args) != nil {
		e.fault("secretArgs", "is no mapping that JSON can carry", "write it like secretArgs: {common_name: app.example.com, ttl: 24h}")
	}
	return args
}

// connection reads the parts of a database connection.
func (e *entry) connection() (c Connection) {
	n := e.node("connection")
	if n == nil {
		return c
	}
	if n.Kind != yaml.MappingNode {
		e.fault("connection", "is no mapping", "write it like connection: {host: db.example.com, port: 5432, dbname: app}")
		return c
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		word := n.Content[i].Value
		if !slices.Contains(connectionFields, word) {
			e.fault("connection."+word, "is no field of a connection", didYouMean(word, connectionFields))
		}
		e.fields["connection."+word] = field{n.Content[i+1], e.fields["connection"].inherited}
	}
	c.Host, c.DBName, c.User = e.text("connection.host"), e.text("connection.dbname"), e.text("connection.user")
	if port := e.text("connection.port"); port != "" {
		var err error
		if c.Port, err = strconv.Atoi(port); err != nil || !wholeNumber.MatchString(port) || c.Port < 1 || c.Port > 65535 {
			e.fault("connection.port", "is no number from 1 to 65535", "write it like port: 5432")
		}
	}
	c.Params = e.connectionParams()
	return c
}

func (e *entry) connectionParams() map[string]string {
	n := e.node("connection.params")
	if n == nil {
		return nil
	}
	var params map[string]string
	if n.Kind != yaml.MappingNode || len(n.Content) > 2*maxParams || n.Decode(&params) != nil {
		e.fault("connection.params", "is no mapping of at most 64 plain values", "write it like params: {sslmode: verify-full}")
	}
	for k, v := range params {
		if k == "" || !Printable(k) || !Printable(v) {
			e.fault("connection.params", "has control characters or a value without a name", "remove them")
		}
	}
	return params
}
