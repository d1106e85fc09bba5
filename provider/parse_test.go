package provider

import (
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// param is attributes with one parameter changed.
func param(name, value string) map[string]string { return map[string]string{name: value} }

// fieldsOf is attributes whose one good object has the lines of more, too.
func fieldsOf(more ...string) map[string]string {
	return param("objects", objects+"  "+strings.Join(more, "\n  ")+"\n")
}

func named(names ...string) map[string]string {
	var list strings.Builder
	for _, n := range names {
		fmt.Fprintf(&list, "- {objectName: %q, secretPath: secret/data/a, secretKey: k}\n", n)
	}
	return param("objects", list.String())
}

func secretPath(path string) map[string]string {
	return param("objects", fmt.Sprintf("- {objectName: a, secretPath: %q}", path))
}

func TestParseRefuses(t *testing.T) {
	bomb := "a: &a [x,x,x,x]\nb: &b [*a,*a,*a,*a]\nc: [*b,*b,*b,*b]\n"
	rows, inputs := []string{}, []string{}
	for _, tc := range []struct {
		name string
		more map[string]string
	}{
		{"no role", param("roleName", "-")},
		{"role with control characters", param("roleName", "a\nb")},
		{"role of a tenant", param("roleName", "{tenant}-reader")},
		{"role with unknown placeholder", param("roleName", "{podName}")},
		{"misspelt parameter", map[string]string{"roleNam": "x"}},
		{"parameter in other case", map[string]string{"VaultAddress": "https://v"}},
		{"tenants", param("tenants", "[a]")},
		{"tenantsFrom", param("tenantsFrom", "bindings")},
		{"onTenantFailure", param("onTenantFailure", "skip")},
		{"awsIdentity without auth aws", param("awsIdentity", "pod")},
		{"vaultAwsRoleArn without auth aws", map[string]string{"vaultAwsRoleArn": awsRole, "vaultAuthMethod": "approle"}},
		{"auth aws without a role", awsAuth(nil)},
		{"auth aws with another identity", awsAuth(param("awsIdentity", "nodes"))},
		{"auth aws, role of a user", awsAuth(param("vaultAwsRoleArn", "arn:aws:iam::123456789012:user/x"))},
		{"auth aws, role with a short account", awsAuth(param("vaultAwsRoleArn", "arn:aws:iam::1:role/x"))},
		{"auth aws, role of another cloud", awsAuth(param("vaultAwsRoleArn", "arn:evil:iam::123456789012:role/x"))},
		{"auth aws, role with a newline", awsAuth(param("vaultAwsRoleArn", awsRole+"\n"))},
		{"auth aws, role with a parameter", awsAuth(param("vaultAwsRoleArn", awsRole+"&Action=x"))},
		{"auth aws, role with an unknown placeholder", awsAuth(param("vaultAwsRoleArn", "arn:aws:iam::123456789012:role/{pod}"))},
		{"node with a role", awsAuth(map[string]string{"awsIdentity": "node", "vaultAwsRoleArn": awsRole})},
		{"node with an audience", awsAuth(map[string]string{"awsIdentity": "node", "audience": "x"})},
		{"node without a Vault role", awsAuth(map[string]string{"awsIdentity": "node", "roleName": "-"})},
		{"auth unknown", param("vaultAuthMethod", "kuberntes")},
		{"both mounts", map[string]string{"vaultKubernetesMountPath": "a", "vaultAuthMountPath": "a"}},
		{"mount climbing", param("vaultAuthMountPath", "../sys")},
		{"mount with query", param("vaultAuthMountPath", "jwt?x=1")},
		{"address without scheme", param("vaultAddress", "vault:8200")},
		{"address of a socket", param("vaultAddress", "unix:///run/vault.sock")},
		{"address with user", param("vaultAddress", "https://vault.example.com@evil.com")},
		{"address with fragment", param("vaultAddress", "https://evil.com#.example.com")},
		{"address with empty query", param("vaultAddress", "https://evil.com?")},
		{"address without host", param("vaultAddress", "https://:8200")},
		{"address with climbing path", param("vaultAddress", "https://vault/a/../b")},
		{"address with escaped path", param("vaultAddress", "https://vault/a%2fb")},
		{"address with bad port", param("vaultAddress", "https://vault:port")},
		{"skip verify unclear", param("vaultSkipTLSVerify", "maybe")},
		{"namespace with control characters", param("vaultNamespace", "a\r\nb")},
		{"CA path climbing", param("vaultCACertPath", "../../etc/passwd")},
		{"client certificate alone", param("vaultTLSClientCertPath", "tls.crt")},
		{"mountPath relative", param("mountPath", "run/secrets")},
		{"mountPath climbing", param("mountPath", "/run/../secrets")},

		{"objects missing", param("objects", "-")},
		{"objects empty", param("objects", "")},
		{"objects []", param("objects", "[]")},
		{"objects null", param("objects", "null")},
		{"objects a scalar", param("objects", "secret")},
		{"objects a mapping", param("objects", "array:\n- a")},
		{"objects a bomb", param("objects", bomb)},
		{"objects with anchor", param("objects", "- &x {objectName: a, secretPath: b}")},
		{"objects with merge key", param("objects", "- {objectName: a, secretPath: b, <<: {method: PUT}}")},
		{"objects with own tag", param("objects", "- !mine {objectName: a, secretPath: b}")},
		{"objects binary", param("objects", "- {objectName: !!binary YQ==, secretPath: b}")},
		{"objects with tabs", param("objects", "-\tobjectName: a\n\tsecretPath: b")},
		{"objects of two documents", param("objects", objects+"---\n"+objects)},
		{"objects with nil element", param("objects", objects+"- \n")},
		{"objects with a scalar element", param("objects", objects+"- a\n")},
		{"objects with a key twice", param("objects", objects+"  secretKey: k\n")},
		{"objects with a list as key", param("objects", "- ? [a]\n  : b")},
		{"objects too many", param("objects", strings.Repeat("- {objectName: a}\n", MaxObjects+1))},
		{"objects ten thousand", param("objects", strings.Repeat("- {}\n", 10_000))},
		{"objects with a large mapping", fieldsOf("secretArgs:", strings.Repeat("  a: b\n  ", maxKeys+1))},
		{"objects with too many values", param("objects", "["+strings.Repeat("1,", maxNodes)+"]")},

		{"unknown field", fieldsOf("secretPaht: x")},
		{"unknown field, nothing near", fieldsOf("objectVersion: x")},
		{"ttl", fieldsOf("ttl: 1h")},
		{"roleArn", fieldsOf("roleArn: arn:aws:iam::1:role/x")},
		{"sessionPolicy", fieldsOf("sessionPolicy: {}")},
		{"sessionTags", fieldsOf("sessionTags: {}")},
		{"region", fieldsOf("region: us-east-1.evil.com")},
		{"identity", fieldsOf("identity: node")},
		{"source aws-sts", fieldsOf("source: aws-sts")},
		{"source rds-iam", fieldsOf("source: rds-iam")},
		{"source unknown", fieldsOf("source: valut")},
		{"format unknown", fieldsOf("format: jsn")},
		{"format a list", fieldsOf("format: [json]")},
		{"template missing", fieldsOf("format: template")},
		{"template without format", fieldsOf("template: x")},
		{"template too long", fieldsOf("format: template", "template: "+strings.Repeat("x", maxTemplate+1))},
		{"connection a scalar", fieldsOf("connection: db")},
		{"connection with unknown field", fieldsOf("connection: {hots: db}")},
		{"connection host with newline", fieldsOf(`connection: {host: "a\nb"}`)},
		{"connection port 0", fieldsOf("connection: {host: db, port: 0}")},
		{"connection port text", fieldsOf("connection: {host: db, port: pg}")},
		{"connection params a list", fieldsOf("connection: {params: [a]}")},
		{"connection params nested", fieldsOf("connection: {params: {a: {b: c}}}")},
		{"connection params with newline", fieldsOf(`connection: {params: {a: "b\nc"}}`)},
		{"method LIST", fieldsOf("method: LIST")},
		{"encoding unknown", fieldsOf("encoding: base46")},
		{"secretKey with newline", param("objects", `- {objectName: a, secretPath: b, secretKey: "k\n"}`)},
		{"secretArgs a list", fieldsOf("method: PUT", "secretArgs: [a]")},
		{"secretArgs not for JSON", fieldsOf("method: PUT", "secretArgs: {a: .nan}")},
		{"secretArgs with odd keys", fieldsOf("method: PUT", "secretArgs: {a: {1: x}}")},
		{"owner by name", fieldsOf("owner: postgres")},
		{"owner negative", fieldsOf("owner: -1")},
		{"group too large", fieldsOf("group: 4294967295")},
		{"group octal", fieldsOf("group: 01750")},
		{"mode 4755", fieldsOf("filePermission: 04755")},
		{"mode decimal 644", fieldsOf("filePermission: 644")},
		{"mode 40000777", fieldsOf("filePermission: 040000777")},
		{"mode -1", fieldsOf("filePermission: -1")},
		{"mode 8", fieldsOf("filePermission: 8")},
		{"mode 089", fieldsOf("filePermission: 089")},
		{"mode text", fieldsOf("filePermission: rw-r--r--")},
		{"mode decimal in quotes", fieldsOf(`filePermission: "420"`)},
		{"mode setuid in quotes", fieldsOf(`filePermission: "04755"`)},
		{"mode float", fieldsOf("filePermission: 420.0")},
		{"mode a list", fieldsOf("filePermission: [0644]")},
		{"refreshInterval too short", fieldsOf("refreshInterval: 1s")},
		{"refreshInterval negative", fieldsOf("refreshInterval: -1m")},
		{"refreshInterval without unit", fieldsOf("refreshInterval: 1.5")},
		{"refreshInterval huge", fieldsOf("refreshInterval: 99999999999999999")},
		{"overlap 0", fieldsOf("overlap: 0")},
		{"overlap text", fieldsOf("overlap: soon")},

		{"defaults a list", param("defaults", "[a]")},
		{"defaults no YAML", param("defaults", "{")},
		{"defaults wrong for all", map[string]string{"defaults": "{format: awscredentials, filePermission: 644, connection: {port: x}}", "objects": named("a", "b", "c")["objects"]}},
		{"defaults unknown field", param("defaults", "{formt: json}")},

		{"path of the token itself", secretPath("auth/token/lookup-self")},
		{"path of another token", secretPath("/v1/auth/token/create-orphan")},
		{"path of another token below a namespace", secretPath("ns/auth/token/create/role")},

		{"name missing", param("objects", "- {secretPath: a}")},
		{"name of a tenant", named("{tenant}/credentials")},
		{"name ..", named("..")},
		{"name ../x", named("../x")},
		{"name a/../b", named("a/../b")},
		{"name a/..b", named("a/..b")},
		{"name absolute", named("/etc/passwd")},
		{"name ..data", named("..data")},
		{"name with trailing slash", named("a/")},
		{"name with doubled slash", named("a//b")},
		{"name ./a", named("./a")},
		{"name with NUL", named("a\x00b")},
		{"name with newline", named("a\nb")},
		{"name with backslash", named(`a\b`)},
		{"name with look-alike", named("pаsswd")},
		{"name with 256 characters", named(strings.Repeat("a", 256))},
		{"name of 4097 characters", named(strings.Repeat("a/", 2048) + "b")},
		{"names equal", named("a", "a")},
		{"names differ in case", named("Tls.key", "tls.key")},
		{"name below another", named("a/b/c", "A")},
		{"path missing", param("objects", "- {objectName: a}")},
		{"path only prefix", secretPath("/v1/")},
		{"path climbing", secretPath("secret/data/../../sys/leases/lookup")},
		{"path with newline", secretPath("secret/data/a\nb")},
		{"path with bad query", secretPath("secret/data/a?%zz")},
		{"path of a tenant", secretPath("secret/data/{tenant}")},
		{"path renew-self", secretPath("auth/token/renew-self")},
		{"path revoke-self", secretPath("/v1//auth/token/./revoke-self/")},
		{"path revoke-self with query", secretPath("auth/token/revoke-self?x=y")},
		{"path revoke-self of a namespace", secretPath("team/auth/token/revoke-self")},
		{"path sys/leases", secretPath("sys/leases/revoke/database/creds/a")},
		{"path sys/leases alone", secretPath("v1/sys/leases")},
		{"path sys/renew", secretPath("sys/renew/database/creds/a")},
		{"path sys/revoke-prefix", secretPath("sys/revoke-prefix/database")},
		{"many problems", named("..", "/a", "b/", "c//d", "e", "e", "", "f/../g")},
	} {
		spec, err := Parse(request("tenure", tc.more))
		require.Error(t, err, tc.name)
		require.Nil(t, spec, tc.name)
		var all Errors
		require.ErrorAs(t, err, &all, tc.name)
		for _, e := range all {
			require.Equal(t, Invalid, e.Class, tc.name)
			require.True(t, e.Field != "" || e.Object != "", "%s: %v", tc.name, e)
			require.NotEmpty(t, e.Remedy, tc.name)
		}
		require.Equal(t, clean(err.Error()), err.Error(), tc.name)
		rows = append(rows, tc.name+": "+err.Error())
		inputs = append(inputs, input(t, tc.name, tc.more)...)
	}
	golden(t, "parse.golden", rows)
	golden(t, "parse.inputs", inputs) // test/integration mounts them
}

func TestParseDefaults(t *testing.T) {
	spec, err := Parse(request("tenure", nil))
	require.NoError(t, err)
	require.Equal(t, &Spec{Objects: []Object{{
		Name: "a",
		Read: Read{Source: "vault", Login: Login{Method: "kubernetes", Role: "web"}, Method: "GET", Path: "secret/data/a"},
		Key:  "k", Mode: 0o644, UID: -1, GID: -1, Refresh: 2 * time.Minute,
	}}}, spec)
}

func TestParseAppRole(t *testing.T) {
	for _, row := range []struct {
		name     string
		more     map[string]string
		mount    string
		warnings []string
	}{
		{"no roleName", map[string]string{"roleName": "-"}, "", nil},
		{"own mount", map[string]string{"roleName": "-", "vaultAuthMountPath": "auth-x"}, "auth-x", nil},
		{"what means nothing", map[string]string{"audience": "x"}, "", []string{
			"parameter roleName is ignored: an AppRole login takes role_id and secret_id of nodePublishSecretRef",
			"parameter audience is ignored: an AppRole login takes role_id and secret_id of nodePublishSecretRef",
		}},
	} {
		t.Run(row.name, func(t *testing.T) {
			row.more["vaultAuthMethod"] = "approle"
			spec, err := Parse(request("tenure", row.more))
			require.NoError(t, err)
			require.Equal(t, Login{Method: "approle", Mount: row.mount}, spec.Objects[0].Read.Login)
			require.Equal(t, row.warnings, spec.Warnings)
		})
	}
}

func TestParseEverything(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("testdata", "everything.yaml"))
	require.NoError(t, err)
	spec, err := Parse(request("tenure", map[string]string{
		"roleName": "{namespace}-{serviceAccount}", "vaultAddress": "HTTPS://Vault.Example.com:8200/", "vaultNamespace": "team",
		"vaultAuthMethod": "jwt", "vaultAuthMountPath": "/clusters/one/", "audience": "https://vault", "vaultSkipTLSVerify": "true",
		"vaultCACertPath": "ca.crt", "vaultCADirectory": "cas", "vaultTLSServerName": "vault",
		"vaultTLSClientCertPath": "c.crt", "vaultTLSClientKeyPath": "c.key", "mountPath": "/run/db",
		"defaults": "{filePermission: 0600, owner: 1000, connection: {host: db, params: {sslmode: require}}}", "objects": string(text),
	}))
	require.NoError(t, err)
	login := Login{
		Method: "jwt", Address: "https://vault.example.com:8200", Namespace: "team", Mount: "clusters/one", Role: "shop-web", Audience: "https://vault",
		CACertPath: "ca.crt", CADirectory: "cas", ClientCertPath: "c.crt", ClientKeyPath: "c.key", TLSServerName: "vault", SkipTLSVerify: true,
	}
	connection := Connection{Host: "db", Params: map[string]string{"sslmode": "require"}}
	require.Equal(t, []Object{{
		Name: "shop/service.conf", Format: "pg-service", Mode: 0o640, UID: 1000, GID: 2000, MountPath: "/run/db",
		Connection: Connection{Host: "other", Port: 5433, DBName: "orders", Params: map[string]string{"sslmode": "verify-full"}},
		Refresh:    90 * time.Second, Overlap: 5 * time.Minute,
		Read: Read{Source: "vault", Login: login, Method: "GET", Path: "database/creds/shop"},
	}, {
		Name: "tls", Format: "pem", Mode: 0o600, UID: 1000, GID: -1, MountPath: "/run/db", Connection: connection, Refresh: 2 * time.Minute,
		Read: Read{Source: "vault", Login: login, Method: "PUT", Path: "pki/issue/web", Args: map[string]any{
			"common_name": "web.shop", "ttl": json.Number("86400"), "exclude_cn_from_sans": true, "sans": []any{"a", "b"},
		}},
	}, {
		Name: "app.conf", Format: "template", Template: "user={{ .username }}\n", Mode: 0o600, UID: 0, GID: -1, MountPath: "/run/db",
		Connection: connection, Refresh: 2 * time.Minute,
		Read: Read{Source: "vault", Login: login, Method: "GET", Path: "secret/data/web", Query: url.Values{"version": {"2"}}},
	}, {
		Name: "key", Key: "1", Encoding: "base64", Mode: 0o644, UID: 1000, GID: -1, MountPath: "/run/db", Connection: connection, Refresh: 2 * time.Minute,
		Read: Read{Source: "vault", Login: login, Method: "GET", Path: "secret/data/web"},
	}}, spec.Objects)
	require.Empty(t, spec.Warnings)
}

// The HashiCorp provider's own end-to-end cases must mean the same here, under
// either name.
func TestParseHashiCorpCases(t *testing.T) {
	for _, tc := range []struct {
		name string
		more map[string]string
		want []string
	}{
		{"kv", param("objects", `
- objectName: "secret-1"
  secretPath: "secret/data/kv1"
  secretKey: "bar1"
  filePermission: 0624
- objectName: "secret-2"
  secretPath: "secret/data/kv2"
  secretKey: "bar2"
`), []string{"secret-1 GET secret/data/kv1 bar1 -rw--w-r-- ", "secret-2 GET secret/data/kv2 bar2 -rw-r--r-- "}},
		{"kv-sync", param("objects", `
- {objectName: secret-1, secretPath: /v1/secret/data/kv-sync1, secretKey: bar1}
- {objectName: secret-2, secretPath: v1/secret/data/kv-sync2, secretKey: bar2}
- {objectName: secret-3, secretPath: /v1/secret/data/kv-sync3, secretKey: bar3, encoding: base64}
`), []string{
			"secret-1 GET secret/data/kv-sync1 bar1 -rw-r--r-- ", "secret-2 GET secret/data/kv-sync2 bar2 -rw-r--r-- ",
			"secret-3 GET secret/data/kv-sync3 bar3 -rw-r--r-- base64",
		}},
		{"pki", param("objects", `
- objectName: "certs"
  secretPath: "pki/issue/example-dot-com"
  secretArgs:
    common_name: "test.example.com"
    ttl: "24h"
  method: "PUT"
`), []string{"certs PUT pki/issue/example-dot-com  -rw-r--r-- "}},
		{"db", param("objects", `
- {objectName: dbUsername, secretPath: database/creds/test-role, secretKey: username}
- {objectName: dbPassword, secretPath: database/creds/test-role, secretKey: password}
`), []string{"dbUsername GET database/creds/test-role username -rw-r--r-- ", "dbPassword GET database/creds/test-role password -rw-r--r-- "}},
		{"jwt mount", map[string]string{"vaultAuthMountPath": "jwt"}, []string{"a GET secret/data/a k -rw-r--r-- "}},
		{"custom audience", map[string]string{"audience": "custom-audience"}, []string{"a GET secret/data/a k -rw-r--r-- "}},
		{"slashes and dots that a URL drops", secretPath("//secret/./data//a/?version=1"), []string{"a GET secret/data/a  -rw-r--r-- "}},
	} {
		for _, provider := range []string{"tenure", "vault"} {
			spec, err := Parse(request(provider, tc.more))
			require.NoError(t, err, tc.name)
			require.Empty(t, spec.Warnings, tc.name)
			var got []string
			for _, o := range spec.Objects {
				got = append(got, fmt.Sprintf("%s %s %s %s %s %s", o.Name, o.Read.Method, o.Read.Path, o.Key, o.Mode, o.Encoding))
			}
			require.Equal(t, tc.want, got, tc.name)
		}
	}
}

func TestParseModes(t *testing.T) {
	for text, want := range map[string]string{
		"0644": "0644", "0o644": "0644", "420": "0644", "0420": "0420", `"0624"`: "0624", `"0o600"`: "0600", "0": "0640", `""`: "0640", "~": "0640", "0777": "0777",
	} {
		r := request("tenure", fieldsOf("filePermission: "+text))
		r.Mode = 0o640
		spec, err := Parse(r)
		require.NoError(t, err, text)
		require.Equal(t, want, fmt.Sprintf("%04o", spec.Objects[0].Mode), text)
		require.Equal(t, text == "420", len(spec.Warnings) == 1, "%s: %v", text, spec.Warnings)
	}
}

func TestParseWarnings(t *testing.T) {
	spec, err := Parse(request("vault", map[string]string{
		"vaultCAPem": "x", "KubernetesServiceAccountPath": "x", "whatever\n": "x",
		"objects": "- {objectName: a, secretPath: b, secretPaht: x, method: get, secretArgs: {a: b}, encoding: HEX}",
	}))
	require.NoError(t, err)
	require.Equal(t, []string{
		"parameter KubernetesServiceAccountPath is ignored, as by the HashiCorp provider",
		"parameter vaultCAPem is ignored, as by the HashiCorp provider",
		`parameter "whatever\n" is unknown and ignored`,
		`object "a": field "secretPaht" is unknown and ignored`,
		`object "a": secretArgs have no effect on a GET; set method: PUT`,
		`object "a": encoding has no effect without secretKey`,
	}, spec.Warnings)
	require.Nil(t, spec.Objects[0].Read.Args)
}

// Equal questions must be equal values, so that their objects share one lease.
func TestParseSharesReads(t *testing.T) {
	spec, err := Parse(request("tenure", param("objects", `
- {objectName: a, secretPath: /v1/pki/issue/x, method: put, secretArgs: {n: 0x10, s: a}}
- {objectName: b, secretPath: pki/issue/x, method: PUT, secretArgs: {s: "a", n: 16}}
- {objectName: c, secretPath: pki/issue/x, method: PUT, secretArgs: {s: "b", n: 16}}
`)))
	require.NoError(t, err)
	require.Equal(t, spec.Objects[0].Read, spec.Objects[1].Read)
	require.NotEqual(t, spec.Objects[0].Read, spec.Objects[2].Read)
}

func FuzzParse(f *testing.F) {
	everything, err := os.ReadFile(filepath.Join("testdata", "everything.yaml"))
	require.NoError(f, err)
	f.Add("tenure", "web", string(everything), "{format: json}", "https://vault")
	f.Add("vault", "{namespace}", objects, "", "http://127.0.0.1:8200")
	f.Add("tenure", "", "- {objectName: a, source: aws-sts, format: json, identity: pod-identity, roleArn: '"+role+"', sessionPolicy: '{\"Statement\": [\"{namespace}\"]}', sessionTags: {a: b}, ttl: 1h}", "", "")
	f.Add("tenure", "", "- {objectName: a, source: rds-iam, format: uri, connection: {host: a.b.eu-central-1.rds.amazonaws.com, user: app}}", "{roleArn: '"+role+"'}", "")
	f.Add("tenure", "x", "- &a {objectName: a}\n- *a", "", "")
	f.Add("tenure", "x", "- {objectName: a/..b, secretPath: '%2e%2e/x?a=b'}", "{filePermission: 0o777}", "https://a@b")
	f.Fuzz(func(t *testing.T, provider, role, objects, defaults, address string) {
		spec, err := Parse(request(provider, map[string]string{"roleName": role, "objects": objects, "defaults": defaults, "vaultAddress": address}))
		if err != nil {
			class, known := classOf(err)
			require.True(t, known && class == Invalid)
			require.Nil(t, spec)
			return
		}
		require.NotEmpty(t, spec.Objects)
		require.LessOrEqual(t, len(spec.Objects), MaxObjects)
		for _, o := range spec.Objects {
			// The driver's own rules for the names of files, see its fileutil.Validate.
			require.True(t, filepath.IsLocal(o.Name) && filepath.Clean(o.Name) == o.Name && !strings.HasPrefix(o.Name, ".."), o.Name)
			require.LessOrEqual(t, len(o.Name), 4096)
			for part := range strings.SplitSeq(o.Name, "/") {
				require.LessOrEqual(t, len(part), 255)
			}
			require.Equal(t, o.Mode&0o777, o.Mode)
			require.Equal(t, o.Read.Source == "vault", o.Read.Path != "")
			require.NotContains(t, "/"+o.Read.Path+"/", "/../")
			require.NotContains(t, o.Read.Path+"/", "//")
			require.NotContains(t, o.Read.Path, "auth/token/revoke-self/")
			require.False(t, strings.HasPrefix(o.Read.Path, "sys/leases"+"/"))
			require.GreaterOrEqual(t, o.Refresh, minRefresh)
			_, err := json.Marshal(o.Read.Args)
			require.NoError(t, err)
			require.True(t, o.Read.AWS.Region == "" || IsRegion(o.Read.AWS.Region))
			fault, _ := RoleFault(o.Read.AWS.RoleARN, o.Read.AWS.Region)
			require.True(t, o.Read.AWS.RoleARN == "" || fault == "" && o.Read.AWS.Identity != NodeIdentity)
			require.True(t, o.Read.AWS.SessionPolicy == "" || json.Valid([]byte(o.Read.AWS.SessionPolicy)))
		}
		for _, w := range spec.Warnings {
			require.Equal(t, clean(w), w)
		}
	})
}
