// Package examples checks every YAML file in examples/, as far as that goes
// without a cluster: its type, strictly; SecretProviderClasses by `tenure validate`
// and by a mount; the admission policy's expressions, in the interpreter that API
// servers use; and the JSON schema against what Parse says.
package examples

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	admission "k8s.io/api/admissionregistration/v1"
	apps "k8s.io/api/apps/v1"
	core "k8s.io/api/core/v1"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	driver "sigs.k8s.io/secrets-store-csi-driver/apis/v1"
	"sigs.k8s.io/yaml"

	"github.com/tenure-csi/tenure/test/fixture"
)

const root = "../../examples"

// documents are the YAML documents of a file.
func documents(t *testing.T, file string) [][]byte {
	t.Helper()
	text, err := os.ReadFile(file)
	require.NoError(t, err)
	reader := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(text)))
	var all [][]byte
	for {
		document, err := reader.Read()
		if errors.Is(err, io.EOF) {
			return all
		}
		require.NoError(t, err, file)
		all = append(all, document)
	}
}

// each calls f for every YAML document of an example that an API server would get.
func each(t *testing.T, f func(file string, kind string, document []byte)) {
	t.Helper()
	err := filepath.WalkDir(root, func(file string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || filepath.Ext(file) != ".yaml" && filepath.Ext(file) != ".yml" {
			return err
		}
		if entry.Name() == "values.yaml" {
			return nil // of the chart, whose tests render it
		}
		for _, document := range documents(t, file) {
			var head struct{ APIVersion, Kind string }
			require.NoError(t, yaml.Unmarshal(document, &head), file)
			f(file, head.APIVersion+" "+head.Kind, document)
		}
		return nil
	})
	require.NoError(t, err)
}

const spcKind = "secrets-store.csi.x-k8s.io/v1 SecretProviderClass"

// TestTypes fails for a kind that it does not know: add it, with a test of its own.
func TestTypes(t *testing.T) {
	each(t, func(file, kind string, document []byte) {
		into := map[string]any{
			spcKind:              &driver.SecretProviderClass{},
			"v1 Pod":             &core.Pod{},
			"v1 ServiceAccount":  &core.ServiceAccount{},
			"apps/v1 Deployment": &apps.Deployment{},
			"admissionregistration.k8s.io/v1 ValidatingAdmissionPolicy":        &admission.ValidatingAdmissionPolicy{},
			"admissionregistration.k8s.io/v1 ValidatingAdmissionPolicyBinding": &admission.ValidatingAdmissionPolicyBinding{},
		}[kind]
		require.NotNil(t, into, "%s: nothing checks a %s", file, kind)
		require.NoError(t, yaml.UnmarshalStrict(document, into), file)
	})
}

// TestValidate runs the command on the directory, as a pipeline would, with
// warnings taken for errors.
func TestValidate(t *testing.T) {
	c, err := fixture.StartCommand("validate", "--strict", "--provider-name=tenure,vault", "-f", root)
	require.NoError(t, err)
	code, output, err := c.Wait(t.Context())
	require.NoError(t, err)
	require.Zero(t, code, output)
	classes := 0
	each(t, func(_, kind string, _ []byte) {
		if kind == spcKind {
			classes++
		}
	})
	require.Contains(t, output, fmt.Sprintf("%d SecretProviderClasses checked: 0 errors, 0 warnings", classes))
}
