package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tenure-csi/tenure/provider"
)

const schemaFile = "../../examples/schema/secretproviderclass.json"

// validated runs validate and shows its exit code, output and errors as a
// terminal would.
func validated(t *testing.T, args ...string) (code int, shown string) {
	t.Helper()
	var stdout, stderr bytes.Buffer
	code = command(t.Context(), append([]string{"validate"}, args...), &stdout, &stderr)
	return code, stdout.String() + stderr.String()
}

func TestValidateShowsAllProblems(t *testing.T) {
	for _, row := range []struct {
		golden string
		code   int
		args   []string
	}{
		{"validate", 1, []string{"-f=testdata/validate"}},
		{"validate-strict", 1, []string{"-f=testdata/validate/dumps/spcs.yaml", "--provider-name=vault", "--strict"}},
		{"validate-warnings", 0, []string{"-f=testdata/validate/dumps/spcs.yaml", "-f=testdata/validate/good.yaml", "--provider-name=vault, tenure"}},
		{"validate-good", 0, []string{"-f=testdata/validate/good.yaml"}},
		{"validate-none", 0, []string{"-f=testdata/validate/chart/other.yml", "-o=text"}},
		{"validate-tenants", 1, []string{"-f=testdata/tenants/spcs.yaml", "--tenant-bindings=testdata/tenants/bindings.yaml"}},
		{"validate-bindings", 1, []string{"--tenant-bindings=testdata/tenants/broken.yaml"}},
		{"validate-bindings-aws", 1, []string{"--tenant-bindings=testdata/tenants/aws.yaml"}},
		{"validate-json", 1, []string{"-f=testdata/validate/dumps", "--provider-name=tenure", "--provider-name=vault", "-o=json"}},
	} {
		t.Run(row.golden, func(t *testing.T) {
			code, shown := validated(t, row.args...)
			require.Equal(t, row.code, code)
			golden(t, row.golden+".golden", []byte(shown))
		})
	}
}

func TestValidateReadsStandardInput(t *testing.T) {
	text, err := os.ReadFile("testdata/validate/good.yaml")
	require.NoError(t, err)
	var out bytes.Buffer
	require.NoError(t, validate([]string{"-f", "-"}, bytes.NewReader(text), &out))
	require.Equal(t, "1 SecretProviderClass checked: 0 errors, 0 warnings; left out: 1 object of other kinds\n", out.String())

	err = validate([]string{"-f", "-"}, strings.NewReader("kind: SecretProviderClass\n\tx"), &out)
	require.ErrorContains(t, err, "1 error")
	require.Contains(t, out.String(), "standard input:2: is no YAML: ")
}

func TestValidateSaysHowFilesAreNamed(t *testing.T) {
	code, shown := validated(t, "spc.yaml")
	require.Equal(t, exitUsage, code)
	require.Contains(t, shown, `unexpected argument "spc.yaml"; a file is named with -f`)
}

func TestValidateWithoutProblemsGivesAnEmptyList(t *testing.T) {
	code, shown := validated(t, "-f=testdata/validate/good.yaml", "-o=json")
	require.Zero(t, code)
	var got map[string]any
	require.NoError(t, json.Unmarshal([]byte(shown), &got))
	require.Equal(t, []any{}, got["problems"])
}

func TestValidateReportsWhatItCantRead(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.Symlink("nowhere", filepath.Join(dir, "a.yaml")))
	require.NoError(t, os.Symlink(dir, dir+"-link"))
	t.Cleanup(func() { os.Remove(dir + "-link") })
	for _, named := range []string{dir, dir + "-link"} {
		code, shown := validated(t, "-f", named)
		require.Equal(t, 1, code)
		require.Contains(t, shown, "a.yaml: can't be read: ")
	}
}

func TestValidateKeepsTheLimitsOfARequest(t *testing.T) {
	spc := "apiVersion: secrets-store.csi.x-k8s.io/v1\nkind: SecretProviderClass\nmetadata: {name: a}\nspec:\n  provider: tenure\n  parameters:\n    roleName: r\n"
	for want, more := range map[string]string{
		"more than 256 KiB": "    objects: '" + strings.Repeat("x", 256<<10) + "'\n",
		"more than 64":      "    objects: |\n" + strings.Repeat("      - {objectName: a, secretPath: b}\n", provider.MaxObjects+1),
	} {
		var out bytes.Buffer
		require.ErrorContains(t, validate([]string{"-f=-"}, strings.NewReader(spc+more), &out), "1 error")
		require.Contains(t, out.String(), want)
	}
}

func TestExamplesAreValid(t *testing.T) {
	code, shown := validated(t, "-f=../../examples", "--strict")
	require.Zero(t, code, shown)
	require.Regexp(t, `^[1-9][0-9]* SecretProviderClass`, shown, "nothing but the summary")
}

var yamlBlock = regexp.MustCompile("(?s)\n```yaml\n(.*?)\n```\n")

func TestSecretProviderClassesInDocumentsAreValid(t *testing.T) {
	documents, err := filepath.Glob("../../examples/*/README.md")
	require.NoError(t, err)
	checked := 0
	for _, document := range append(documents, "../../README.md") {
		text, err := os.ReadFile(document)
		require.NoError(t, err)
		for _, block := range yamlBlock.FindAllSubmatch(text, -1) {
			if bytes.Contains(block[1], []byte("kind: "+kind)) {
				checked++
				var out bytes.Buffer
				require.NoError(t, validate([]string{"-f=-", "--strict"}, bytes.NewReader(block[1]), &out), "%s: %s", document, &out)
			}
		}
	}
	require.NotZero(t, checked)
}

// The schema in the repository is what editors are pointed at; -update writes it.
func TestSchemaFileIsFresh(t *testing.T) {
	code, schema := validated(t, "--schema")
	require.Zero(t, code)
	if *update {
		require.NoError(t, os.WriteFile(schemaFile, []byte(schema), 0o644))
	}
	kept, err := os.ReadFile(schemaFile)
	require.NoError(t, err)
	require.Equal(t, string(kept), schema)
}

// Whatever a file holds, validate ends, and says something of every
// SecretProviderClass that it does not check.
func FuzzValidate(f *testing.F) {
	files, err := filepath.Glob("testdata/validate/*.yaml")
	require.NoError(f, err)
	for _, file := range files {
		text, err := os.ReadFile(file)
		require.NoError(f, err)
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		r := &report{Foreign: map[string]int{}, providers: []string{"tenure"}}
		r.readText("fuzz.yaml", text, nil)
		lines := bytes.Count(text, []byte("\n")) + 1
		for _, p := range r.Problems {
			require.LessOrEqual(t, p.Line, lines, "%q: %v", text, p)
			require.NotEmpty(t, p.Cause)
		}
	})
}
