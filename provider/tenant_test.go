package provider

import (
	"encoding/json"
	"fmt"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// pool is parameters of an SPC for tenants, changed by more.
func pool(more ...string) map[string]string {
	p := map[string]string{"tenants": "[a, b]", "objects": "- {objectName: '{tenant}/db', secretPath: 'database/creds/{tenant}'}\n"}
	for i := 0; i < len(more); i += 2 {
		p[more[i]] = more[i+1]
	}
	return p
}

func named500(n int) string {
	names := make([]string, n)
	for i := range names {
		names[i] = fmt.Sprint("t-", i)
	}
	return "[" + strings.Join(names, ", ") + "]"
}

func TestParseRefusesTenants(t *testing.T) {
	rows, inputs := []string{}, []string{}
	for _, row := range []struct {
		name string
		more map[string]string
	}{
		{"empty", pool("tenants", "")},
		{"empty list", pool("tenants", "[]")},
		{"a scalar", pool("tenants", "a")},
		{"a mapping", pool("tenants", "a: b")},
		{"bomb", pool("tenants", "[&a [x, x], *a]")},
		{"null", pool("tenants", "[~]")},
		{"a list in it", pool("tenants", "[[a]]")},
		{"climbing", pool("tenants", "['../x']")},
		{"a path", pool("tenants", "[a/b]")},
		{"escaped", pool("tenants", "['%2f']")},
		{"question mark", pool("tenants", "['a?']")},
		{"plus", pool("tenants", "['+']")},
		{"JSON", pool("tenants", `['"}],"Effect":"Allow']`)},
		{"policy variable", pool("tenants", "['${aws:username}']")},
		{"nothing", pool("tenants", "['']")},
		{"300 characters", pool("tenants", "["+strings.Repeat("a", 300)+"]")},
		{"dots", pool("tenants", "[a..b]")},
		{"begins with a dot", pool("tenants", "[.a]")},
		{"look-alike", pool("tenants", "[аcme]")},
		{"newline", pool("tenants", `["a\nb"]`)},
		{"twice", pool("tenants", "[a, a]")},
		{"other case", pool("tenants", "[Acme, acme]")},
		{"too many", pool("tenants", named500(MaxTenants+1))},
		{"too many patterns", pool("tenants", strings.ReplaceAll(named500(maxGlobs+1), "t-", "t*-"))},
		{"too many files", pool("tenants", named500(400), "objects", named("{tenant}/a", "{tenant}/b", "{tenant}/c")["objects"])},
		{"too many reads", pool("tenants", named500(300), "objects", pool()["objects"]+"- {objectName: '{tenant}/kv', secretPath: 'kv/{tenant}'}\n")},
		{"no {tenant} in a name", pool("objects", "- {objectName: '{tenant}/db', secretPath: 'x/{tenant}'}\n- {objectName: shared, secretPath: y}\n")},
		{"files that meet", pool("tenants", "[a, a-db]", "objects", named("{tenant}", "{tenant}-db")["objects"])},
		{"from nowhere", pool("tenantsFrom", "", "tenants", "[a]", "onTenantFailure", "ignore")},
		{"from without tenants", map[string]string{"tenantsFrom": "bindings"}},
		{"failure without tenants", map[string]string{"onTenantFailure": "skip"}},
		{"from a climbing path", pool("tenants", "['*']", "tenantsFrom", "secret/../sys")},
		{"from a path with a query", pool("tenants", "['*']", "tenantsFrom", "secret/metadata?list=true")},
		{"from leases", pool("tenants", "['*']", "tenantsFrom", "sys/leases/lookup/database")},
		{"from {tenant}", pool("tenants", "['*']", "tenantsFrom", "secret/metadata/{tenant}")},
		{"from a list with a role for each", pool("tenants", "['*']", "tenantsFrom", "secret/metadata", "roleName", "{tenant}")},
		{"wrong for each of many", pool("tenants", named500(200), "objects", "- {objectName: '{tenant}/a', secretPath: '{tenant}', format: jsn}\n")},
		{"wrong behind a pattern", pool("tenants", "['*']", "objects", "- {objectName: '{tenant}/../a', secretPath: '{tenant}'}\n")},
		{"path that the tenant would make", pool("objects", "- {objectName: '{tenant}/a', secretPath: '{tenant}/../x'}\n")},
	} {
		_, err := Parse(request("tenure", row.more))
		require.Error(t, err, row.name)
		class, _ := classOf(err)
		require.Equal(t, Invalid, class, row.name)
		rows = append(rows, row.name+": "+err.Error())
		inputs = append(inputs, input(t, row.name, row.more)...)
	}
	golden(t, "tenants.golden", rows)
	golden(t, "tenants.inputs", inputs)
}

func TestParseTenants(t *testing.T) {
	spec, err := Parse(request("tenure", pool("tenants", "[acme, Beta.1, 'x-*']", "roleName", "{tenant}-{namespace}", "onTenantFailure", "skip")))
	require.NoError(t, err)
	require.Equal(t, &Tenants{Names: []string{"acme", "Beta.1"}, Globs: []string{"x-*"}, OnFailure: "skip"}, spec.Tenants)
	require.Len(t, spec.Objects, 2)
	for i, name := range spec.Tenants.Names {
		o := spec.Objects[i]
		require.Equal(t, []string{name + "/db", name, name, "database/creds/" + name, name + "-shop"}, []string{o.Name, o.Tenant, o.Read.Tenant, o.Read.Path, o.Read.Login.Role})
	}
	spec, err = ParseFor(request("tenure", pool("tenants", "['x-*']", "tenantsFrom", "/v1/secret/metadata/{namespace}/")), []string{"x-1", "x-2"})
	require.NoError(t, err)
	require.Equal(t, Read{Source: "vault", Method: "LIST", Path: "secret/metadata/shop", Login: Login{Method: "kubernetes", Role: "web"}}, spec.Tenants.List)
	require.Equal(t, "x-2/db", spec.Objects[1].Name)

	spec, err = Parse(request("tenure", pool("tenants", "['x-*']")))
	require.NoError(t, err)
	require.Empty(t, spec.Objects, "nobody is known yet")
	require.Empty(t, spec.Warnings)

	spec, err = Parse(request("tenure", pool("objects", "- {objectName: '{tenant}/ca', secretPath: pki/ca}\n", "tenantsFrom", "bindings")))
	require.NoError(t, err)
	require.Equal(t, []string{
		"parameter tenantsFrom has no effect: tenants has no pattern like team-*",
		`object "{tenant}/ca": nothing of what is read depends on {tenant}: every tenant gets the same`,
	}, spec.Warnings)
	require.NotEqual(t, spec.Objects[0].Read, spec.Objects[1].Read, "and no two tenants share a lease")
}

func TestSkips(t *testing.T) {
	for _, row := range []struct {
		on              string
		listed, pattern bool
	}{{"", false, true}, {"skip", true, true}, {"fail", false, false}} {
		tenants := &Tenants{Names: []string{"a"}, Globs: []string{"b*"}, OnFailure: row.on}
		require.Equal(t, row.listed, tenants.Skips("a"), row.on)
		require.Equal(t, row.pattern, tenants.Skips("b1"), row.on)
	}
}

// FuzzGlob compares with a regular expression made of the pattern.
func FuzzGlob(f *testing.F) {
	for _, seed := range [][2]string{{"a*", "abc"}, {"*", ""}, {"a*b*c", "aXbXbXc"}, {"**", "x"}, {"a*a", "a"}, {"x", "X"}, {"*-b", "a-b"}, {"a*b*b", "ab"}} {
		f.Add(seed[0], seed[1])
	}
	f.Fuzz(func(t *testing.T, pattern, name string) {
		parts := strings.Split(pattern, "*")
		for i := range parts {
			parts[i] = regexp.QuoteMeta(parts[i])
		}
		expression, err := regexp.Compile(`(?s)^` + strings.Join(parts, ".*") + `$`)
		if err != nil {
			return // no UTF-8
		}
		require.Equal(t, expression.MatchString(name), Glob(pattern, name))
	})
}

// FuzzTenant holds that a name which is let through stays one part wherever it is
// put, and that no tenant's files or reads are another's.
func FuzzTenant(f *testing.F) {
	f.Add("acme", "acme2", "{tenant}/db", "kv/{tenant}/x")
	f.Add("../x", "%2f", "{tenant}", "a/{tenant}?b={tenant}")
	f.Add("a.b", "A.B", "x-{tenant}-y", "{tenant}")
	f.Fuzz(func(t *testing.T, one, other, name, secret string) {
		tenants, err := json.Marshal([]string{one, other})
		require.NoError(t, err)
		objects, err := json.Marshal([]map[string]string{{"objectName": name, "secretPath": secret}})
		require.NoError(t, err)
		spec, err := Parse(request("tenure", pool("tenants", string(tenants), "objects", string(objects))))
		if err != nil {
			return
		}
		if strings.ContainsAny(one+other, "*") {
			return
		}
		require.Len(t, spec.Objects, 2)
		a, b := spec.Objects[0], spec.Objects[1]
		require.NotEqual(t, strings.ToLower(a.Name), strings.ToLower(b.Name))
		require.NotEqual(t, a.Read, b.Read)
		for i, o := range spec.Objects {
			who := []string{one, other}[i]
			require.Equal(t, who, o.Tenant)
			require.True(t, filepath.IsLocal(who) && path.Base(who) == who && !strings.ContainsAny(who, `/\%?#*"'{}$ `), who)
			require.Equal(t, strings.ReplaceAll(name, "{tenant}", who), strings.NewReplacer("{namespace}", "", "{serviceAccount}", "").Replace(o.Name), "the name is put in as it is")
			require.Equal(t, strings.Count(strings.Trim(path.Clean("/"+strings.TrimPrefix(strings.TrimPrefix(before(secret, "?"), "/"), "v1/")), "/"), "/"), strings.Count(o.Read.Path, "/"), "no name adds a part to a path")
		}
	})
}

func before(s, sep string) string { head, _, _ := strings.Cut(s, sep); return head }
