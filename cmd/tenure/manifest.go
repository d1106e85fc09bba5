package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/tenure-csi/tenure/provider"
)

// kind is what SecretProviderClasses are, and what a text must hold to have one.
const kind = "SecretProviderClass"

// class is a SecretProviderClass as it stands in a file.
type class struct {
	APIVersion string `yaml:"apiVersion"`
	Kind       string
	Metadata   struct{ Name, Namespace string }
	Spec       struct {
		Provider   string
		Parameters map[string]yaml.Node
	}

	file  string
	start int // its first line in file
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

// read checks what path names. An error means that the path itself is wrong; what
// can't be read below it is a finding.
func (r *report) read(path string, stdin io.Reader) error {
	if path == "-" {
		text, err := io.ReadAll(stdin)
		r.readText("standard input", text, err)
		return nil
	}
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return err
	case info.IsDir():
		return fs.WalkDir(os.DirFS(path), ".", func(name string, entry fs.DirEntry, err error) error {
			file := filepath.Join(path, name)
			switch {
			case err != nil:
				r.readText(file, nil, err)
			case !entry.IsDir() && slices.Contains([]string{".yaml", ".yml", ".json"}, filepath.Ext(name)):
				r.readFile(file)
			}
			return nil
		})
	default:
		r.readFile(path)
		return nil
	}
}

func (r *report) readFile(path string) {
	text, err := os.ReadFile(path)
	r.readText(path, text, err)
}

// readText checks each document of a file. A file that is no YAML is nothing to us
// unless it speaks of our kind.
func (r *report) readText(file string, text []byte, err error) {
	if err != nil {
		r.note(finding{File: file, Cause: "can't be read: " + err.Error(), Remedy: "make it readable, or leave it out"})
		return
	}
	if filepath.Ext(file) == ".json" {
		text = bytes.ReplaceAll(text, []byte("\t"), []byte(" ")) // the YAML library refuses JSON's tabs
	}
	decoder := yaml.NewDecoder(bytes.NewReader(text))
	for {
		var document yaml.Node
		err := decoder.Decode(&document)
		switch {
		case errors.Is(err, io.EOF):
			return
		case err == nil:
			r.readNode(file, document.Content[0])
			continue
		case bytes.Contains(text, []byte(kind)):
			f := finding{File: file, Cause: "is no YAML: " + strings.TrimPrefix(err.Error(), "yaml: "), Remedy: "mend it; a chart's templates must be rendered first"}
			_, _ = fmt.Sscanf(err.Error(), "yaml: line %d:", &f.Line) // the library's errors have no other form
			r.note(f)
		default:
			r.Others++
		}
		return // the decoder does not find the next document behind an error
	}
}

// readNode checks one object, or the objects of a list.
func (r *report) readNode(file string, node *yaml.Node) {
	var head struct {
		APIVersion string `yaml:"apiVersion"`
		Kind       string
		Items      []yaml.Node
	}
	_ = node.Decode(&head) // what has no such fields is of another kind
	switch {
	case head.Kind == kind && strings.HasPrefix(head.APIVersion, "secrets-store.csi.x-k8s.io/"):
		c := &class{file: file, start: node.Line}
		if err := node.Decode(c); err != nil {
			cause := strings.ReplaceAll(strings.TrimPrefix(err.Error(), "yaml: unmarshal errors:\n  "), "\n  ", ", ")
			r.note(finding{File: file, Line: node.Line, Cause: "is no SecretProviderClass: " + cause, Remedy: "write each field in the type that the API server takes; render a chart's templates first"})
			return
		}
		r.check(c)
	case strings.HasSuffix(head.Kind, "List") && head.Items != nil:
		for i := range head.Items {
			r.readNode(file, &head.Items[i])
		}
	case node.Kind != yaml.ScalarNode: // "---" alone is no object
		r.Others++
	}
}
