package provider

import (
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"

	"go.yaml.in/yaml/v3"
)

// The bounds of a YAML text: 64 objects with every field and generous secretArgs
// stay far below. The library's check for double keys is quadratic in a mapping's.
const (
	maxNodes = 8 << 10
	maxKeys  = 256
)

// plainTags are the types of YAML that JSON can carry.
var plainTags = map[string]bool{
	"!!str": true, "!!int": true, "!!float": true, "!!bool": true, "!!null": true, "!!timestamp": true, "!!map": true, "!!seq": true,
}

// yamlError is what is wrong with a YAML text, and the way out.
type yamlError struct {
	line          int // from 1; 0: not known
	cause, remedy string
}

func (e *yamlError) Error() string {
	if e.line == 0 {
		return e.cause
	}
	return fmt.Sprintf("line %d: %s", e.line, e.cause)
}

// tabbed is an indentation with a tab, at which the library fails with a text
// that does not name it.
var tabbed = regexp.MustCompile(`(?m)^ *\t`)

// YAMLFault puts what the YAML library says of a text that is no YAML into words, by
// which its author finds the place: the line, from 1 (0: not known), and the cause,
// which quotes no value. It may be called from many goroutines at once.
func YAMLFault(text string, err error) (line int, cause string) {
	cause = strings.TrimPrefix(err.Error(), "yaml: ")
	if _, scanErr := fmt.Sscanf(cause, "line %d:", &line); scanErr == nil { // its errors have no other form
		_, cause, _ = strings.Cut(cause, ": ")
	}
	if at := tabbed.FindStringIndex(text); at != nil {
		return 1 + strings.Count(text[:at[0]], "\n"), "a tab stands in the indentation"
	}
	return line, cause
}

// loadYAML parses one document into nodes and refuses what makes YAML surprising:
// anchors and aliases (they can grow without bound), merge keys, tags, keys that
// are twice there or no plain words, and further documents. A nil node is an
// empty document. An error is a *yamlError and never quotes values.
func loadYAML(text string) (*yaml.Node, error) {
	decoder := yaml.NewDecoder(strings.NewReader(text))
	var document, more yaml.Node
	if err := decoder.Decode(&document); errors.Is(err, io.EOF) {
		return nil, nil
	} else if err != nil {
		line, cause := YAMLFault(text, err)
		return nil, &yamlError{line, cause, "indent with spaces, and the fields of an object below each other"}
	}
	if !errors.Is(decoder.Decode(&more), io.EOF) {
		return nil, &yamlError{0, "there is more than one YAML document", "remove the line with ---"}
	}
	nodes := 0
	if err := checkYAML(&document, &nodes); err != nil {
		return nil, err
	}
	root := document.Content[0]
	if isNull(root) {
		return nil, nil
	}
	return root, nil
}

func checkYAML(n *yaml.Node, nodes *int) error {
	if *nodes++; *nodes > maxNodes {
		return &yamlError{0, fmt.Sprintf("there are more than %d YAML values", maxNodes), "split the SPC into several volumes"}
	}
	const plain = "keep to plain lists and mappings"
	switch {
	case n.Kind == yaml.AliasNode || n.Anchor != "":
		return &yamlError{n.Line, "anchors and aliases are not allowed", plain}
	case n.ShortTag() == "!!merge":
		return &yamlError{n.Line, "merge keys are not allowed", plain}
	case n.Kind != yaml.DocumentNode && !plainTags[n.ShortTag()]:
		return &yamlError{n.Line, "tags are not allowed", plain}
	}
	if n.Kind == yaml.MappingNode {
		if len(n.Content)/2 > maxKeys {
			return &yamlError{n.Line, fmt.Sprintf("a mapping has more than %d keys", maxKeys), "split it"}
		}
		seen := make(map[string]bool, len(n.Content)/2)
		for i := 0; i < len(n.Content); i += 2 {
			key := n.Content[i]
			if key.Kind != yaml.ScalarNode {
				return &yamlError{key.Line, "a key must be a plain word", plain}
			}
			if seen[key.Value] {
				return &yamlError{key.Line, "key " + quote(key.Value) + " is there twice", "remove one of them; each object of a list begins with -"}
			}
			seen[key.Value] = true
		}
	}
	for _, child := range n.Content {
		if err := checkYAML(child, nodes); err != nil {
			return err
		}
	}
	return nil
}

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" }
