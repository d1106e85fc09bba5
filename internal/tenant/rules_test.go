package tenant

import (
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/tenure-csi/tenure/provider"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var update = flag.Bool("update", false, "rewrite the golden files")

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		require.NoError(t, os.WriteFile(path, []byte(got), 0o644))
	}
	want, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, string(want), got)
}

// with is a file of one good rule and more fields of it.
func with(more string) string {
	return "rules:\n- name: pool\n  namespaces: [shop]\n  serviceAccounts: [orders]\n  tenants: [t-a, team-*]\n" + more
}

const awsRule = "  aws:\n    roleArn: arn:aws:iam::123456789012:role/tenants/{tenant}\n"

func TestParseRefuses(t *testing.T) {
	var rows []string
	for _, row := range []struct{ name, text string }{
		{"empty", ""},
		{"only a comment", "# nothing\n"},
		{"no YAML", "rules: ["},
		{"tabs", "rules:\n\t- name: a"},
		{"a list", "- name: a"},
		{"two documents", with("") + "---\nrules: []\n"},
		{"unknown field", with("  tennants: [a]\n")},
		{"unknown field at the top", "ruls: []\n"},
		{"field twice", with("  name: b\n")},
		{"a text for a list", with("  rotateAfter: [a]\n")},
		{"too many", "rules:\n" + strings.Repeat("- {}\n", maxRules+1)},
		{"too large", "#" + strings.Repeat("x", maxBytes)},
		{"no name", "rules:\n- namespaces: [a]\n  serviceAccounts: [b]\n"},
		{"same name", with("- name: pool\n  namespaces: [a]\n  serviceAccounts: [b]\n")},
		{"nothing in it", "rules:\n- name: a\n"},
		{"namespace", strings.Replace(with(""), "[shop]", "[Shop, 'a/b', '']", 1)},
		{"service account", strings.Replace(with(""), "[orders]", "['system:node']", 1)},
		{"tenants", strings.Replace(with(""), "[t-a, team-*]", "['../x', a/b, '%2f', '', a..b, '${aws:username}', '?', '+', 'ä']", 1)},
		{"rotateAfter", with("  rotateAfter: tomorrow\n")},
		{"rotateAfter without time", with("  rotateAfter: 2026-11-22\n")},
		{"role missing", with("  aws: {region: eu-central-1}\n")},
		{"role of another form", with("  aws: {roleArn: 'arn:aws:iam::1:user/x'}\n")},
		{"role with unknown placeholder", with("  aws: {roleArn: 'arn:aws:iam::123456789012:role/{pod}'}\n")},
		{"tenant in a rule without tenants", strings.Replace(with(awsRule), "  tenants: [t-a, team-*]\n", "", 1)},
		{"region", with(awsRule + "    region: us-east-1.evil.com\n")},
		{"region of a partition that is not the role's", with(awsRule + "    region: eusc-de-east-1\n")},
		{"role too long with a name that is listed", strings.Replace(with("  aws: {roleArn: 'arn:aws:iam::123456789012:role/pool-{tenant}'}\n"), "t-a", strings.Repeat("a", 60), 1)},
		{"tag with a placeholder in its key", with(awsRule + "    sessionTags: {'a{tenant}': b}\n")},
		{"tag with a newline", with(awsRule + "    sessionTags: {c: \"d\\n\"}\n")},
		{"tag of AWS", with(awsRule + "    sessionTags: {'aws:a': b}\n")},
		{"tags in two cases", with(awsRule + "    sessionTags: {a: b, A: c}\n")},
		{"tag too long", with(awsRule + "    sessionTags: {a: '" + strings.Repeat("x", 257) + "'}\n")},
		{"tag too long with the names that are listed", with(awsRule + "    sessionTags: {a: '" + strings.Repeat("{tenant}", 64) + "x'}\n")},
		{"vault without role", with("  vault: {mount: aws}\n")},
		{"vault with upper case", with("  vault: {role: Reader}\n")},
		{"vault with a newline", with("  vault: {role: \"a\\nb\", namespace: \"a\\nb\", mount: \"a\\nb\"}\n")},
		{"vault with a mount elsewhere", with("  vault: {role: r, mount: ../sys}\n")},
		{"vault with a pattern", with("  vault: {role: '*'}\n")},
		{"vault at an address", with("  vault: {role: r, address: 'https://vault'}\n")},
		{"policy a list", with(awsRule + "    sessionPolicy: [a]\n")},
		{"policy no JSON", with(awsRule + "    sessionPolicy: '{'\n")},
		{"policy empty", with(awsRule + "    sessionPolicy: {}\n")},
		{"policy with a key twice", with(awsRule + "    sessionPolicy: {Statement: [], Statement: [{}]}\n")},
		{"policy with null", with(awsRule + "    sessionPolicy: {Statement: [{Effect: }]}\n")},
		{"policy with a newline", with(awsRule + "    sessionPolicy: {Statement: [\"a\\nb\"]}\n")},
		{"policy too long", with(awsRule + "    sessionPolicy: {Statement: [" + strings.Repeat("x", 2048) + "]}\n")},
		{"policy too long with a name that is listed", with(awsRule + "    sessionPolicy: {Statement: ['" + strings.Repeat("x", 2026) + "{serviceAccount}']}\n")},
		{"policy far too long", with(awsRule + "    sessionPolicy: {Statement: [" + strings.Repeat("x", 8<<10) + "]}\n")},
		{"policy with a number of YAML's", with(awsRule + "    sessionPolicy: {Statement: [.nan]}\n")},
		{"policy with an anchor", with(awsRule + "    sessionPolicy: {a: &x {}, b: *x}\n")},
		{"policy with unknown placeholder", with(awsRule + "    sessionPolicy: {Statement: [{Resource: 'arn:aws:s3:::x/{tennant}/*'}]}\n")},
	} {
		rules, err := Parse([]byte(row.text))
		require.Error(t, err, row.name)
		require.Nil(t, rules, row.name)
		rows = append(rows, row.name+":\n  "+strings.ReplaceAll(err.Error(), "\n", "\n  "))
	}
	golden(t, "refused.golden", strings.Join(rows, "\n")+"\n")
}

var orders = provider.Pod{Namespace: "shop", ServiceAccount: "orders"}

func parsed(t *testing.T, text string) *Rules {
	t.Helper()
	rules, err := Parse([]byte(text))
	require.NoError(t, err)
	return rules
}

func TestWarnsOfOneSessionForAll(t *testing.T) {
	rule := func(tenants, more string) string {
		return "rules:\n- name: files\n  namespaces: [shop]\n  serviceAccounts: [files]\n  tenants: " + tenants + "\n" + more
	}
	const role = "  aws: {roleArn: 'arn:aws:iam::123456789012:role/files'"
	for _, row := range []struct {
		name, text string
		warns      bool
	}{
		{"a pattern", rule("['*']", role+"}"), true},
		{"two names", rule("[a, b]", role+", sessionTags: {team: x}, sessionPolicy: {Statement: [{Resource: '{namespace}'}]}}"), true},
		{"one name", rule("[a]", role+"}"), false},
		{"no tenants", rule("[]", role+"}"), false},
		{"no AWS", rule("['*']", ""), false},
		{"in the role", rule("['*']", "  aws: {roleArn: 'arn:aws:iam::123456789012:role/files-{tenant}'}"), false},
		{"in the policy", rule("['*']", role+", sessionPolicy: {Statement: [{Resource: '{tenant}'}]}}"), false},
		{"in a tag", rule("['*']", role+", sessionTags: {tenant: '{tenant}'}}"), false},
	} {
		t.Run(row.name, func(t *testing.T) {
			rules, err := Parse([]byte(row.text))
			require.NoError(t, err)
			if !row.warns {
				require.Empty(t, rules.Warnings())
				return
			}
			require.Len(t, rules.Warnings(), 1)
			require.EqualError(t, rules.Warnings()[0], `line 2: rule "files": aws: all of its tenants get the same session; write {tenant} into roleArn, sessionPolicy or sessionTags, or one rule for each tenant`)
		})
	}
}

func TestNames(t *testing.T) {
	rules := parsed(t, with("")+"- {name: more, namespaces: ['*'], serviceAccounts: ['or*'], tenants: [x, t-a]}\n- {name: other, namespaces: [b], serviceAccounts: ['*'], tenants: [y]}\n")
	require.Equal(t, []string{"t-a", "x"}, rules.Names(orders))
	require.Equal(t, []string{"y"}, rules.Names(provider.Pod{Namespace: "b", ServiceAccount: "c"}))
	require.Empty(t, rules.Names(provider.Pod{Namespace: "a", ServiceAccount: "c"}))
}

func TestBindGivesWhatTheRuleSays(t *testing.T) {
	rules := parsed(t, with(awsRule+`    region: eu-central-1
    sessionTags: {tenant: '{tenant}', account: '{namespace}/{serviceAccount}'}
    sessionPolicy:
      Version: 2012-10-17
      Statement: [{Effect: Allow, Action: ['s3:*'], Resource: 'arn:aws:s3:::data/{tenant}/<x>'}]
  rotateAfter: 2026-11-22T10:00:00+01:00
`))
	read := provider.Read{Source: "aws-sts", Tenant: "team-1", AWS: provider.AWS{
		Identity: provider.NodeIdentity, RoleARN: "arn:aws:iam::123456789012:role/authors", SessionPolicy: "{}", SessionTags: map[string]string{"a": "b"}, TTL: time.Hour,
	}}
	bound, after, err := rules.Bind(orders, read)
	require.NoError(t, err)
	require.True(t, after.Equal(time.Date(2026, 11, 22, 9, 0, 0, 0, time.UTC)))
	require.Equal(t, provider.AWS{
		Identity: provider.NodeIdentity, RoleARN: "arn:aws:iam::123456789012:role/tenants/team-1", Region: "eu-central-1", TTL: time.Hour,
		SessionTags:   map[string]string{"tenant": "team-1", "account": "shop/orders"},
		SessionPolicy: `{"Statement":[{"Action":["s3:*"],"Effect":"Allow","Resource":"arn:aws:s3:::data/team-1/<x>"}],"Version":"2012-10-17"}`,
	}, bound.AWS)

	_, _, err = rules.Bind(orders, provider.Read{Tenant: "team-" + strings.Repeat("1", 58), AWS: read.AWS})
	require.NoError(t, err, "a name as long as one may be")

	read = provider.Read{Source: "vault", Tenant: "t-a", Path: "database/creds/t-a"}
	bound, after, err = rules.Bind(orders, read)
	require.NoError(t, err)
	require.Equal(t, read, bound, "with the pod's identity the rule only allows")
	require.False(t, after.IsZero())

	bound, after, err = rules.Bind(orders, provider.Read{Path: "secret/data/a"})
	require.NoError(t, err)
	require.Equal(t, provider.Read{Path: "secret/data/a"}, bound)
	require.Zero(t, after, "no rule is about what has no tenant and needs no rule")
}

// TestRegionsOfAllPartitions: what an SPC may name, a rule may.
func TestRegionsOfAllPartitions(t *testing.T) {
	for region, partition := range map[string]string{"eu-central-1": "aws", "us-gov-west-1": "aws-us-gov", "us-isob-east-1": "aws-iso-b", "eusc-de-east-1": "aws-eusc"} {
		rules := parsed(t, with(strings.Replace(awsRule, "arn:aws:", "arn:"+partition+":", 1)+"    region: "+region+"\n"))
		bound, _, err := rules.Bind(orders, provider.Read{Tenant: "t-a", AWS: provider.AWS{Identity: provider.NodeIdentity}})
		require.NoError(t, err, region)
		require.Equal(t, region, bound.AWS.Region)
	}
}

func TestBindRefuses(t *testing.T) {
	rules := parsed(t, with("")+`- name: templates
  namespaces: [shop]
  serviceAccounts: [templates]
  tenants: ["*"]
  aws:
    roleArn: arn:aws:iam::123456789012:role/pool-{tenant}
    sessionPolicy: {Statement: "`+strings.Repeat("{tenant}", 40)+`"}
`)
	templates := provider.Pod{Namespace: "shop", ServiceAccount: "templates"}
	node := provider.AWS{Identity: provider.NodeIdentity}
	var rows []string
	for _, row := range []struct {
		name string
		pod  provider.Pod
		read provider.Read
	}{
		{"tenant", orders, provider.Read{Tenant: "t-b"}},
		{"tenant in other case", orders, provider.Read{Tenant: "T-A"}},
		{"namespace", provider.Pod{Namespace: "shop2", ServiceAccount: "orders"}, provider.Read{Tenant: "t-a"}},
		{"service account", provider.Pod{Namespace: "shop", ServiceAccount: "default"}, provider.Read{Tenant: "t-a"}},
		{"nothing fits", provider.Pod{Namespace: "evil", ServiceAccount: "default"}, provider.Read{Tenant: "x"}},
		{"no tenant with the daemon's identity", orders, provider.Read{AWS: node}},
		{"no aws", orders, provider.Read{Tenant: "t-a", AWS: node}},
		{"role name too long for the tenant", templates, provider.Read{Tenant: strings.Repeat("a", 60), AWS: node}},
		{"policy too long for the tenant", templates, provider.Read{Tenant: strings.Repeat("a", 59), AWS: node}},
		{"region of another partition", templates, provider.Read{Tenant: "t-a", AWS: provider.AWS{Identity: provider.NodeIdentity, Region: "cn-north-1"}}},
	} {
		_, _, err := rules.Bind(row.pod, row.read)
		var e *provider.Error
		require.ErrorAs(t, err, &e)
		require.Equal(t, provider.Denied, e.Class)
		require.Equal(t, row.read.Tenant, e.Tenant)
		rows = append(rows, row.name+": "+err.Error())
	}
	golden(t, "bind.golden", strings.Join(rows, "\n")+"\n")
}

// TestNodeLogin: the daemon logs in at Vault as the rule says, whatever the SPC.
func TestNodeLogin(t *testing.T) {
	rules := parsed(t, with("  vault: {role: 'reader-{tenant}', mount: aws-pools}\n")+"- {name: silo, namespaces: [shop], serviceAccounts: [silo], vault: {role: silo}}\n")
	read := provider.Read{Source: "vault", Tenant: "team-1", Path: "kv/team-1", Login: provider.Login{
		Method: "aws", AWSIdentity: provider.NodeIdentity, Role: "admin", Mount: "aws-admin", Namespace: "root",
	}}
	bound, _, err := rules.Bind(orders, read)
	require.NoError(t, err)
	want := provider.Login{Method: "aws", AWSIdentity: provider.NodeIdentity, Role: "reader-team-1", Mount: "aws-pools"}
	require.Equal(t, want, bound.Login)
	read.Tenant = "team-A"
	_, _, err = rules.Bind(orders, read)
	require.ErrorContains(t, err, "vault.role of rule \"pool\" would be that of another tenant")

	silo := provider.Pod{Namespace: "shop", ServiceAccount: "silo"}
	bound, _, err = rules.Bind(silo, provider.Read{Login: provider.Login{AWSIdentity: provider.NodeIdentity}})
	require.NoError(t, err)
	require.Equal(t, "silo", bound.Login.Role)

	for _, row := range []struct {
		name  string
		pod   provider.Pod
		login provider.Login
		ok    bool
	}{
		{"what was bound", orders, want, true},
		{"a listed tenant", orders, provider.Login{Role: "reader-t-a", Mount: "aws-pools"}, true},
		{"without tenant", silo, provider.Login{Role: "silo"}, true},
		{"another tenant", orders, provider.Login{Role: "reader-t-b", Mount: "aws-pools"}, false},
		{"another role", orders, provider.Login{Role: "admin", Mount: "aws-pools"}, false},
		{"another mount", orders, provider.Login{Role: "reader-t-a"}, false},
		{"another namespace of Vault", orders, provider.Login{Role: "reader-t-a", Mount: "aws-pools", Namespace: "x"}, false},
		{"another service account", provider.Pod{Namespace: "shop", ServiceAccount: "x"}, want, false},
	} {
		err := rules.AllowLogin(row.pod, row.login)
		require.Equal(t, row.ok, err == nil, "%s: %v", row.name, err)
	}
	require.EqualError(t, rules.AllowLogin(orders, provider.Login{Role: "admin"}),
		`field "awsIdentity": no rule of the tenant bindings lets service account shop/orders log in as "admin" with the node's identity; have the cluster's operator add vault.role to a rule, or use awsIdentity: pod`)
}

func TestLacks(t *testing.T) {
	rules := parsed(t, with("")+"- {name: silo, namespaces: [shop], serviceAccounts: [s], aws: {roleArn: 'arn:aws:iam::123456789012:role/silo'}}\n")
	node := provider.AWS{Identity: provider.NodeIdentity}
	require.Nil(t, rules.Lacks("shop", provider.Read{Tenant: "team-x"}))
	require.Nil(t, rules.Lacks("shop", provider.Read{AWS: node}))
	require.EqualError(t, rules.Lacks("shop", provider.Read{Tenant: "t-a", AWS: node}),
		`field "identity", tenant "t-a": rule "pool" of the tenant bindings lacks aws, and identity: node uses what stands there alone; have the cluster's operator add aws.roleArn to that rule`)
	require.EqualError(t, rules.Lacks("else", provider.Read{Tenant: "t-a"}),
		`field "tenants", tenant "t-a": rule "pool" of the tenant bindings is for tenant "t-a" and lacks namespace else; have the cluster's operator add it to a rule`)
	require.True(t, rules.Listed("shop", &provider.Tenants{Globs: []string{"t-*"}}))
	require.False(t, rules.Listed("shop", &provider.Tenants{Globs: []string{"team-*"}}), "a rule's patterns tell no names")
}

// FuzzPolicy holds that a tenant's name changes nothing of a policy but the texts
// that name it, whatever the template and the name, or is refused.
func FuzzPolicy(f *testing.F) {
	f.Add(`{"Statement": [{"Resource": "arn:aws:s3:::x/{tenant}/*"}]}`, "team-1")
	f.Add(`{"Statement": "{tenant}{tenant}", "{tenant}": ["{tenant}", 1, true]}`, `","Effect":"Allow`)
	f.Fuzz(func(t *testing.T, template, name string) {
		var policy map[string]any
		if json.Unmarshal([]byte(template), &policy) != nil {
			return
		}
		text, err := json.Marshal(template)
		require.NoError(t, err)
		rules, err := Parse([]byte(strings.Replace(with(awsRule+"    sessionPolicy: "), "team-*", "*", 1) + string(text)))
		if err != nil {
			return
		}
		bound, _, err := rules.Bind(orders, provider.Read{Tenant: name, AWS: provider.AWS{Identity: provider.NodeIdentity}})
		if err != nil {
			return
		}
		require.Regexp(t, `^[A-Za-z0-9._-]{1,63}$`, name)
		var got map[string]any
		require.NoError(t, json.Unmarshal([]byte(bound.AWS.SessionPolicy), &got))
		same(t, policy, got, name)
	})
}

func same(t *testing.T, template, got any, name string) {
	switch template := template.(type) {
	case map[string]any:
		require.IsType(t, template, got)
		require.Len(t, got, len(template))
		for k := range template {
			require.Contains(t, got, k)
			same(t, template[k], got.(map[string]any)[k], name)
		}
	case []any:
		require.IsType(t, template, got)
		require.Len(t, got, len(template))
		for i := range template {
			same(t, template[i], got.([]any)[i], name)
		}
	case string:
		require.Equal(t, strings.ReplaceAll(template, "{tenant}", name), got)
	default:
		require.Equal(t, template, got)
	}
}
