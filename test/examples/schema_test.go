package examples

import (
	"bytes"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/stretchr/testify/require"
	"sigs.k8s.io/yaml"

	"github.com/tenure-csi/tenure/provider"
)

// A validator of the schema and Parse must agree on what authors write wrong.
func TestSchemaAgreesWithParse(t *testing.T) {
	document, err := jsonschema.UnmarshalJSON(bytes.NewReader(provider.Schema()))
	require.NoError(t, err)
	compiler := jsonschema.NewCompiler()
	require.NoError(t, compiler.AddResource("spc.json", document))
	whole := compiler.MustCompile("spc.json")
	parts := map[string]*jsonschema.Schema{
		"objects": compiler.MustCompile("spc.json#/$defs/objects"), "defaults": compiler.MustCompile("spc.json#/$defs/defaults"),
	}
	accepts := func(parameters map[string]string) bool {
		valid := whole.Validate(instance(t, asText(t, map[string]any{
			"apiVersion": "secrets-store.csi.x-k8s.io/v1", "kind": "SecretProviderClass", "metadata": map[string]any{"name": "a"},
			"spec": map[string]any{"provider": "tenure", "parameters": parameters},
		}))) == nil
		for name, part := range parts {
			if parameters[name] != "" {
				valid = valid && part.Validate(instance(t, parameters[name])) == nil
			}
		}
		return valid
	}
	const object = "- {objectName: a, secretPath: b"
	for _, row := range []struct {
		name, parameter, value string
		right                  bool
	}{
		{"plain", "audience", "vault", true},
		{"other login", "vaultAuthMethod", "jwt", true},
		{"unknown login", "vaultAuthMethod", "ldap", false},
		{"legacy parameter", "vaultCAPem", "x", true},
		{"misspelt parameter", "vaultAddres", "x", false},
		{"unknown identity", "awsIdentity", "host", false},
		{"failure of tenants", "onTenantFailure", "ignore", false},
		{"relative mount path", "mountPath", "run", false},
		{"no objects", "objects", "[]", false},
		{"objects no list", "objects", "objectName: a", false},
		{"no name", "objects", "- {secretPath: b}", false},
		{"every field", "objects", object + `, secretKey: k, encoding: hex, method: GET, source: vault, filePermission: "0640", owner: 1, group: 2, refreshInterval: 2m30s, overlap: 90}`, true},
		{"args", "objects", object + ", method: PUT, secretArgs: {ttl: 1h}}", true},
		{"connection", "objects", object + ", format: uri, connection: {host: db, port: 5432, dbname: d, params: {sslmode: require}}}", true},
		{"misspelt field", "objects", object + ", frmat: raw}", false},
		{"field of AWS for Vault", "objects", object + ", roleArn: x}", false},
		{"session", "objects", "- {objectName: a, source: aws-sts, format: aws-credentials, roleArn: 'arn:aws:iam::123456789012:role/a', region: eu-central-1, ttl: 3600, sessionPolicy: {Statement: []}, audience: a}", true},
		{"session with tags", "objects", "- {objectName: a, source: aws-sts, format: json, identity: pod-identity, roleArn: 'arn:aws:iam::123456789012:role/a', sessionTags: {a: 1}, sessionPolicy: '{\"Statement\": []}'}", true},
		{"unknown identity", "objects", "- {objectName: a, source: aws-sts, format: json, identity: daemon}", false},
		{"region that is a host", "objects", "- {objectName: a, source: aws-sts, format: json, roleArn: 'arn:aws:iam::123456789012:role/a', region: us-east-1.example.com}", false},
		{"database token", "objects", "- {objectName: a, source: rds-iam, format: uri, roleArn: 'arn:aws:iam::123456789012:role/a', connection: {host: db.example.com, user: app}}", true},
		{"unknown format", "objects", object + ", format: yaml}", false},
		{"unknown method", "objects", object + ", method: LIST}", false},
		{"port out of range", "objects", object + ", connection: {port: 65536}}", false},
		{"misspelt field of a connection", "objects", object + ", connection: {hots: db}}", false},
		{"owner by name", "objects", object + ", owner: app}", false},
		{"no duration", "objects", object + ", overlap: soon}", false},
		{"args no mapping", "objects", object + ", method: PUT, secretArgs: [a]}", false},
		{"defaults", "defaults", "{filePermission: 420, format: json}", true},
		{"misspelt default", "defaults", "{frmat: json}", false},
	} {
		parameters := map[string]string{"roleName": "r", "objects": object + "}"}
		parameters[row.parameter] = row.value
		require.Equal(t, row.right, accepts(parameters), "schema: %s", row.name)

		_, problems := provider.Validate(provider.Request{
			Provider: "tenure", Mode: 0o644, Attributes: parameters, Pod: provider.Pod{Name: "p", Namespace: "n", UID: "u", ServiceAccount: "s"},
		}, func(provider.Object) error { return nil })
		require.Equal(t, row.right, len(problems) == 0, "Parse: %s: %v", row.name, problems)
	}
}

func asText(t *testing.T, object any) string {
	t.Helper()
	text, err := yaml.Marshal(object)
	require.NoError(t, err)
	return string(text)
}

// instance decodes YAML into what the validator takes.
func instance(t *testing.T, text string) any {
	t.Helper()
	asJSON, err := yaml.YAMLToJSON([]byte(text))
	require.NoError(t, err)
	decoded, err := jsonschema.UnmarshalJSON(bytes.NewReader(asJSON))
	require.NoError(t, err)
	return decoded
}
