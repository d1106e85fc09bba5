package main

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// secretProviderClass is what a Mount takes of the Kubernetes object.
type secretProviderClass struct {
	name, namespace, provider string
	parameters                map[string]string
}

// spcGroup begins the apiVersion of every SecretProviderClass.
const spcGroup = "secrets-store.csi.x-k8s.io/"

// specFields are all that the driver's v1 type has below spec. The API server
// drops others, or refuses them, before a provider could.
var specFields = []string{"provider", "parameters", "secretObjects"}

// readSPC finds the SPC of that name, or the only one, in a text of YAML
// documents; objects of other kinds are passed over.
func readSPC(text io.Reader, name string) (*secretProviderClass, error) {
	var found []*secretProviderClass
	var names []string
	decoder := yaml.NewDecoder(text)
	for {
		var doc yaml.Node
		err := decoder.Decode(&doc)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, errors.New(strings.TrimPrefix(err.Error(), "yaml: "))
		}
		spc, err := decodeSPC(&doc)
		if err != nil {
			return nil, err
		}
		if spc == nil {
			continue
		}
		names = append(names, spc.name)
		if name == "" || spc.name == name {
			found = append(found, spc)
		}
	}
	switch {
	case len(names) == 0:
		return nil, errors.New("there is no SecretProviderClass in it")
	case len(found) == 0:
		return nil, fmt.Errorf("there is no SecretProviderClass %q in it, but %s; correct --name", name, strings.Join(names, ", "))
	case len(found) > 1:
		return nil, fmt.Errorf("there are several SecretProviderClasses in it (%s); choose one with --name", strings.Join(names, ", "))
	}
	return found[0], nil
}

// decodeSPC returns nil for a document of another kind.
func decodeSPC(doc *yaml.Node) (*secretProviderClass, error) {
	var head struct {
		APIVersion string `yaml:"apiVersion"`
		Kind       string
		Metadata   struct{ Name, Namespace string }
		Spec       yaml.Node
	}
	if err := doc.Decode(&head); err != nil || head.Kind != "SecretProviderClass" || !strings.HasPrefix(head.APIVersion, spcGroup) {
		return nil, nil //nolint:nilerr // whatever it is, it is no SPC
	}
	fail := func(cause string, args ...any) (*secretProviderClass, error) {
		return nil, fmt.Errorf("SecretProviderClass %q: "+cause, append([]any{head.Metadata.Name}, args...)...)
	}
	spec := map[string]yaml.Node{}
	if err := head.Spec.Decode(&spec); err != nil {
		return fail("spec is no mapping")
	}
	for _, field := range slices.Sorted(maps.Keys(spec)) {
		if !slices.Contains(specFields, field) {
			return fail("spec.%s is no field that the API server knows; what the provider reads stands below spec.parameters", field)
		}
	}
	p, parameters := spec["provider"], spec["parameters"]
	out := &secretProviderClass{name: head.Metadata.Name, namespace: head.Metadata.Namespace, provider: p.Value, parameters: map[string]string{}}
	values := map[string]yaml.Node{}
	if err := parameters.Decode(&values); err != nil {
		return fail("spec.parameters is no mapping")
	}
	for _, key := range slices.Sorted(maps.Keys(values)) {
		value := values[key]
		if value.Kind != yaml.ScalarNode || value.ShortTag() != "!!str" {
			return fail("spec.parameters.%s is no text, and the API server takes nothing else; put it in quotes, or write | after the colon for several lines", key)
		}
		out.parameters[key] = value.Value
	}
	return out, nil
}

// input reads files that a person names, where "-" is the standard input, which
// can be read only once.
type input struct{ stdin []byte }

func (i *input) read(path string) ([]byte, error) {
	if path != "-" {
		return os.ReadFile(path)
	}
	if i.stdin == nil {
		text, err := io.ReadAll(os.Stdin)
		if err != nil {
			return nil, fmt.Errorf("reading the standard input: %w", err)
		}
		i.stdin = text
	}
	return i.stdin, nil
}
