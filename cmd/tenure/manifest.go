package main

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/tenure-csi/tenure/provider"
)

// kind is what SecretProviderClasses are, and what a text must hold to have one.
const kind = "SecretProviderClass"

// group begins the apiVersion of each.
const group = "secrets-store.csi.x-k8s.io/"

// specFields are all that the driver's v1 type has below spec. The API server
// drops others, or refuses them, before a provider could.
var specFields = []string{"provider", "parameters", "secretObjects"}

// class is a SecretProviderClass as it stands in a file.
type class struct {
	Metadata struct{ Name, Namespace string }
	Spec     struct {
		Provider   string
		Parameters map[string]yaml.Node
	}

	file       string
	start      int               // its first line in file
	broken     *finding          // why it can't be read; then it has nothing but this
	parameters map[string]string // as a Mount call has them
	problems   []finding         // what in it the API server would refuse or drop
}

// namespace is where pods can use it.
func (c *class) namespace() string {
	if c.Metadata.Namespace == "" {
		return "default"
	}
	return c.Metadata.Namespace
}

// parameter answers where a parameter was really written.
func (c *class) parameter(name string) *yaml.Node {
	node := c.Spec.Parameters[name]
	if node.Kind == yaml.AliasNode {
		return node.Alias
	}
	return &node
}

// line finds where in the file a problem is, and its cause without the line
// within a parameter that it may name. The text of a literal block (|) begins on
// the line behind its key; in other styles only the key's line is known.
func (c *class) line(p *provider.Error) (line int, cause string) {
	name := p.Field
	switch {
	case p.Object != "":
		name = "objects"
	case strings.HasPrefix(p.Field, "defaults."):
		name = "defaults"
	}
	if _, set := c.Spec.Parameters[name]; !set {
		return c.start, p.Cause
	}
	node := c.parameter(name)
	if p.Line == 0 || node.Style&yaml.LiteralStyle == 0 {
		return node.Line, p.Cause
	}
	return node.Line + p.Line, strings.Replace(p.Cause, fmt.Sprintf("line %d: ", p.Line), "", 1)
}

// place says where a finding about c is; without a line it is about the whole of it.
func (c *class) place(f finding) finding {
	f.File, f.SPC = c.file, c.namespace()+"/"+c.Metadata.Name
	if f.Line == 0 {
		f.Line = c.start
	}
	return f
}

// readManifest finds the SecretProviderClasses in a text of YAML or JSON
// documents, those of lists too, and counts the objects of other kinds. A text
// that is no YAML is nothing to us unless it speaks of our kind.
func readManifest(file string, text []byte) (found []*class, others int) {
	if filepath.Ext(file) == ".json" {
		text = bytes.ReplaceAll(text, []byte("\t"), []byte(" ")) // the YAML library refuses JSON's tabs
	}
	decoder := yaml.NewDecoder(bytes.NewReader(text))
	for {
		var document yaml.Node
		err := decoder.Decode(&document)
		switch {
		case errors.Is(err, io.EOF):
			return found, others
		case err == nil:
			more, left := readNode(file, document.Content[0])
			found, others = append(found, more...), others+left
			continue
		case bytes.Contains(text, []byte(kind)):
			found = append(found, &class{broken: noYAML(file, text, err)})
		default:
			others++
		}
		return found, others // the decoder does not find the next document behind an error
	}
}

func noYAML(file string, text []byte, err error) *finding {
	line, cause := provider.YAMLFault(string(text), err)
	return &finding{File: file, Line: line, Cause: "is no YAML: " + cause, Remedy: "indent with spaces; a chart's templates must be rendered first"}
}

// readNode reads one object, or the objects of a list.
func readNode(file string, node *yaml.Node) (found []*class, others int) {
	var head struct {
		APIVersion string `yaml:"apiVersion"`
		Kind       string
		Items      []yaml.Node
	}
	_ = node.Decode(&head) // what has no such fields is of another kind
	switch {
	case head.Kind == kind && strings.HasPrefix(head.APIVersion, group):
		return []*class{readClass(file, node)}, 0
	case strings.HasSuffix(head.Kind, "List") && head.Items != nil:
		for i := range head.Items {
			more, left := readNode(file, &head.Items[i])
			found, others = append(found, more...), others+left
		}
	case node.Kind != yaml.ScalarNode: // "---" alone is no object
		others++
	}
	return found, others
}

// readClass reads one SecretProviderClass, with what the API server would not
// take as it stands.
func readClass(file string, node *yaml.Node) *class {
	c := &class{file: file, start: node.Line, parameters: map[string]string{}}
	var fields struct{ Spec map[string]yaml.Node }
	if err := cmp.Or(node.Decode(c), node.Decode(&fields)); err != nil {
		c.broken = &finding{
			File: file, Line: node.Line, Cause: "is no SecretProviderClass: " + mistyped(err),
			Remedy: "write each field in the type that the API server takes; render a chart's templates first",
		}
		return c
	}
	for _, name := range slices.Sorted(maps.Keys(fields.Spec)) {
		if !slices.Contains(specFields, name) {
			c.problems = append(c.problems, finding{
				Line: fields.Spec[name].Line, Field: "spec." + name, Cause: "is no field that the API server knows", Remedy: "put what the provider reads below spec.parameters",
			})
		}
	}
	for _, name := range slices.Sorted(maps.Keys(c.Spec.Parameters)) {
		c.read(name)
	}
	return c
}

// mismatch is the YAML library's text for a value of another type than its field.
var mismatch = regexp.MustCompile("cannot unmarshal !!(\\w+)(?: `.*`)? into (string)?.*")

// mistyped puts the library's errors of types into an author's words.
func mistyped(err error) string {
	var all *yaml.TypeError
	if !errors.As(err, &all) {
		return strings.TrimPrefix(err.Error(), "yaml: ")
	}
	words := map[string]string{"seq": "a list", "map": "a mapping"}
	var causes []string
	for _, text := range all.Errors {
		if m := mismatch.FindStringSubmatch(text); m != nil {
			wanted := "a mapping"
			if m[2] != "" {
				wanted = "a text"
			}
			text = strings.Replace(text, m[0], cmp.Or(words[m[1]], "a single value")+" stands where "+wanted+" belongs", 1)
		}
		causes = append(causes, text)
	}
	return strings.Join(causes, ", ")
}

// read takes over a parameter. One that is no text is a problem, and is read all
// the same, as it is probably meant.
func (c *class) read(name string) {
	node := c.parameter(name)
	c.parameters[name] = node.Value
	remedy := "put the value in quotes"
	switch {
	case node.Kind != yaml.ScalarNode:
		text, _ := yaml.Marshal(node)
		c.parameters[name] = string(text)
		remedy = "write | behind " + name + ": and leave the lines below as they are"
	case node.ShortTag() == "!!str":
		return
	}
	c.problems = append(c.problems, finding{Line: node.Line, Field: name, Cause: "is not a string", Remedy: remedy})
}
