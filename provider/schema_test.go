package provider

import (
	"encoding/json"
	"maps"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestSchemaDescribesEveryWord(t *testing.T) {
	for name, row := range map[string]struct {
		words []string
		texts map[string]string
	}{
		"parameters": {parameters, parameterTexts}, "fields": {fields, fieldTexts}, "connection": {connectionFields, connectionTexts},
	} {
		require.ElementsMatch(t, row.words, slices.Collect(maps.Keys(row.texts)), "%s: describe each word in schema.go", name)
	}
	var decoded map[string]any
	require.NoError(t, json.Unmarshal(Schema(), &decoded))
}

func TestValidate(t *testing.T) {
	asked := []string{}
	check := func(o Object) error {
		asked = append(asked, o.Name)
		return &Error{Class: Invalid, Object: o.Name, Field: "format", Cause: "is not for " + o.Name, Remedy: "use another"}
	}
	warnings, problems := Validate(request("tenure", map[string]string{
		"roleName": "-", "vaultColour": "x",
		"defaults": "filePermission: 0600\nformat: raw\n",
		"objects":  "- objectName: a\n  secretPath: p\n- objectName: b\n  secretPath: p\n  format: json\n- objectName: c\n  frmat: x\n- objectName: a\n  secretPath: p\n",
	}), check)
	require.Equal(t, []string{`parameter "vaultColour" is unknown and ignored`}, warnings)
	require.Equal(t, []string{"a", "b", "a"}, asked, "an object with problems of its own is not asked about")

	type found struct {
		object, field, cause string
		line                 int
	}
	var got []found
	for _, p := range problems {
		got = append(got, found{p.Object, p.Field, p.Cause, p.Line})
	}
	require.Equal(t, []found{
		{"", "roleName", "is missing", 0},
		{"", "defaults.format", "is not for a", 2},
		{"b", "format", "is not for b", 5},
		{"c", "frmat", "is no field of an object", 7},
		{"c", "secretPath", "is missing", 6},
		{"a", "objectName", "is there twice", 8},
	}, got)
}

func TestValidateNamesTheLineOfBrokenYAML(t *testing.T) {
	for text, line := range map[string]int{
		"- objectName: a\n  x: *a\n":                   0,
		"- objectName: a\n  x: [\n":                    2,
		"- {objectName: a, secretPath: b}\n\n- just\n": 3,
		"- {a: b}\n---\n- {a: b}\n":                    0,
		"- objectName: a\n  a: &b c\n":                 2,
	} {
		_, problems := Validate(request("tenure", param("objects", text)), func(Object) error { return nil })
		require.NotEmpty(t, problems, text)
		require.Equal(t, line, problems[0].Line, "%q: %v", text, problems[0])
	}
}
