package provider

import (
	"errors"
	"fmt"
	"io"
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

// loadYAML parses one document into nodes and refuses what makes YAML surprising:
// anchors and aliases (they can grow without bound), merge keys, tags, keys that
// are twice there or no plain words, and further documents. A nil node is an
// empty document. The text of an error names lines and never quotes values.
func loadYAML(text string) (*yaml.Node, error) {
	decoder := yaml.NewDecoder(strings.NewReader(text))
	var document, more yaml.Node
	if err := decoder.Decode(&document); errors.Is(err, io.EOF) {
		return nil, nil
	} else if err != nil {
		return nil, errors.New(strings.TrimPrefix(err.Error(), "yaml: "))
	}
	if !errors.Is(decoder.Decode(&more), io.EOF) {
		return nil, errors.New("there is more than one YAML document")
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
		return fmt.Errorf("there are more than %d YAML values", maxNodes)
	}
	switch {
	case n.Kind == yaml.AliasNode || n.Anchor != "":
		return fmt.Errorf("line %d: anchors and aliases are not allowed", n.Line)
	case n.ShortTag() == "!!merge":
		return fmt.Errorf("line %d: merge keys are not allowed", n.Line)
	case n.Kind != yaml.DocumentNode && !plainTags[n.ShortTag()]:
		return fmt.Errorf("line %d: tags are not allowed", n.Line)
	}
	if n.Kind == yaml.MappingNode {
		if len(n.Content)/2 > maxKeys {
			return fmt.Errorf("line %d: a mapping has more than %d keys", n.Line, maxKeys)
		}
		seen := make(map[string]bool, len(n.Content)/2)
		for i := 0; i < len(n.Content); i += 2 {
			key := n.Content[i]
			if key.Kind != yaml.ScalarNode {
				return fmt.Errorf("line %d: a key must be a plain word", key.Line)
			}
			if seen[key.Value] {
				return fmt.Errorf("line %d: key %s is there twice", key.Line, quote(key.Value))
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
