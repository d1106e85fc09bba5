package provider

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

const (
	role      = "arn:aws:iam::123456789012:role/orders"
	stsObject = "- {objectName: aws, source: aws-sts, format: json, "
	rdsObject = "- {objectName: db, source: rds-iam, format: uri, roleArn: '" + role + "', "
	rdsServer = "orders.abc123.eu-central-1.rds.amazonaws.com"
)

// asksAWS are the parameters of an SPC that does not ask Vault.
func asksAWS(object string) map[string]string {
	return map[string]string{"roleName": "-", "objects": object + "}"}
}

// withPolicy has a session policy and a role.
func withPolicy(policy string) map[string]string {
	return asksAWS(stsObject + "roleArn: '" + role + "', sessionPolicy: " + policy)
}

// manyTags are n tags, as YAML.
func manyTags(n int) []string {
	tags := make([]string, n)
	for i := range tags {
		tags[i] = fmt.Sprintf("tag%d: x", i)
	}
	return tags
}

func TestParseRefusesForAWS(t *testing.T) {
	rows, inputs := []string{}, []string{}
	for _, tc := range []struct {
		name string
		more map[string]string
	}{
		{"no role", asksAWS(stsObject)},
		{"no format", asksAWS("- {objectName: aws, source: aws-sts, roleArn: '" + role + "'")},
		{"fields of Vault", asksAWS(stsObject + "roleArn: '" + role + "', secretPath: aws/sts/a, method: PUT, secretArgs: {a: b}")},
		{"no roleName beside Vault", map[string]string{"roleName": "-", "objects": stsObject + "roleArn: '" + role + "'}\n" + objects}},
		{"identity unknown", asksAWS(stsObject + "identity: nod")},
		{"role of a user", asksAWS(stsObject + "roleArn: 'arn:aws:iam::123456789012:user/a'")},
		{"role of a short account", asksAWS(stsObject + "roleArn: 'arn:aws:iam::12345:role/a'")},
		{"role with a wildcard", asksAWS(stsObject + "roleArn: 'arn:aws:iam::123456789012:role/*'")},
		{"role with a newline", asksAWS(stsObject + `roleArn: "` + role + `\n"`)},
		{"role with a long name", asksAWS(stsObject + "roleArn: '" + role + strings.Repeat("s", 59) + "'")},
		{"role of a tenant", asksAWS(stsObject + "roleArn: '" + role + "-{tenant}'")},
		{"role of another partition", asksAWS(stsObject + "region: cn-north-1, roleArn: '" + role + "'")},
		{"region with a host", asksAWS(stsObject + "roleArn: '" + role + "', region: us-east-1.evil.com")},
		{"region with a fragment", asksAWS(stsObject + "roleArn: '" + role + "', region: 'us-east-1#'")},
		{"region with a user", asksAWS(stsObject + "roleArn: '" + role + "', region: 'us-east-1@evil.com'")},
		{"region with a path", asksAWS(stsObject + "roleArn: '" + role + "', region: us-east-1/x")},
		{"region in upper case", asksAWS(stsObject + "roleArn: '" + role + "', region: US-EAST-1")},
		{"ttl too short", asksAWS(stsObject + "roleArn: '" + role + "', ttl: 899")},
		{"ttl too long", asksAWS(stsObject + "roleArn: '" + role + "', ttl: 12h1s")},
		{"ttl over the chained hour", asksAWS(stsObject + "identity: pod-identity, roleArn: '" + role + "', ttl: 3601")},
		{"ttl over the chained hour of the node", asksAWS(stsObject + "identity: node, ttl: 2h")},
		{"pod-identity without a role", asksAWS(stsObject + "identity: pod-identity, ttl: 1h, sessionPolicy: {Statement: []}, sessionTags: {a: b}")},
		{"node with what the operator says", asksAWS(stsObject + "identity: node, audience: x, roleArn: '" + role + "', sessionPolicy: {Statement: []}, sessionTags: {a: b}")},
		{"node with a default role", map[string]string{"roleName": "-", "defaults": "{roleArn: '" + role + "'}", "objects": stsObject + "identity: node}"}},
		{"tags with a web identity", asksAWS(stsObject + "roleArn: '" + role + "', sessionTags: {a: b}")},
		{"tags empty", asksAWS(stsObject + "identity: pod-identity, roleArn: '" + role + "', sessionTags: {}")},
		{"tags nested", asksAWS(stsObject + "identity: pod-identity, roleArn: '" + role + "', sessionTags: {a: {b: c}}")},
		{"tags of AWS", asksAWS(stsObject + "identity: pod-identity, roleArn: '" + role + "', sessionTags: {'aws:a': b}")},
		{"tags in two cases", asksAWS(stsObject + "identity: pod-identity, roleArn: '" + role + "', sessionTags: {a: b, A: c}")},
		{"tags with wildcards", asksAWS(stsObject + "identity: pod-identity, roleArn: '" + role + "', sessionTags: {a: '*'}")},
		{"tags too many", asksAWS(stsObject + "identity: pod-identity, roleArn: '" + role + "', sessionTags: {" + strings.Join(manyTags(51), ", ") + "}")},
		{"tags too long", asksAWS(stsObject + "identity: pod-identity, roleArn: '" + role + "', sessionTags: {a: " + strings.Repeat("x", 257) + "}")},
		{"policy a list", withPolicy("[a]")},
		{"policy empty", withPolicy("{}")},
		{"policy no YAML", withPolicy("'{'")},
		{"policy text with an alias", withPolicy("'{Statement: &a [*a]}'")},
		{"policy text with a key twice", withPolicy(`'{"Statement": [], "Statement": []}'`)},
		{"policy with null", withPolicy("{Statement: [{Effect: }]}")},
		{"policy with infinity", withPolicy("{Statement: [.inf]}")},
		{"policy of a tenant", withPolicy("{Statement: [{Resource: 'arn:aws:s3:::b/{tenant}/*'}]}")},
		{"policy with unknown placeholder", withPolicy("{Statement: [{Resource: 'arn:aws:s3:::b/{podName}/*'}]}")},
		{"policy with newline", withPolicy(`{Statement: [{Resource: "a\nb"}]}`)},
		{"policy too long", withPolicy("{Statement: [" + strings.Repeat("x", 2048) + "]}")},
		{"user for sts", asksAWS(stsObject + "roleArn: '" + role + "', connection: {user: app}")},
		{"user for Vault", fieldsOf("connection: {user: app}")},
		{"database without a host", asksAWS(rdsObject + "connection: {user: app}")},
		{"database without a user", asksAWS(rdsObject + "connection: {host: db}")},
		{"database with two hosts", asksAWS(rdsObject + "connection: {host: 'a,b', user: app}")},
		{"database with a path", asksAWS(rdsObject + "connection: {host: 'a/?Action=x&', user: app}")},
		{"database with ttl", asksAWS(rdsObject + "ttl: 1h, connection: {host: db, user: app}")},
		{"database without a port", asksAWS(strings.Replace(rdsObject, "uri", "json", 1) + "connection: {host: db, user: app}")},
		{"database of another region", asksAWS(rdsObject + "region: us-east-1, connection: {user: app, host: " + rdsServer + "}")},
	} {
		spec, err := Parse(request("tenure", tc.more))
		require.Error(t, err, tc.name)
		require.Nil(t, spec, tc.name)
		var all Errors
		require.ErrorAs(t, err, &all, tc.name)
		for _, e := range all {
			require.Equal(t, Invalid, e.Class, tc.name)
			require.NotEmpty(t, e.Remedy, tc.name)
		}
		rows = append(rows, tc.name+": "+err.Error())
		inputs = append(inputs, input(t, tc.name, tc.more)...)
	}
	golden(t, "aws.golden", rows)
	golden(t, "aws.inputs", inputs)
}

func TestParseForAWS(t *testing.T) {
	for _, tc := range []struct {
		name   string
		object string
		read   Read
	}{
		{"pod", stsObject + "roleArn: 'arn:aws-cn:iam::123456789012:role/a/{serviceAccount}', region: cn-north-1, ttl: 2h", Read{
			Source: "aws-sts", Login: Login{Audience: "sts.amazonaws.com"},
			AWS: AWS{Identity: "pod", RoleARN: "arn:aws-cn:iam::123456789012:role/a/web", Region: "cn-north-1", TTL: 2 * time.Hour},
		}},
		{"audience", stsObject + "audience: mine, roleArn: '" + role + "'", Read{
			Source: "aws-sts", Login: Login{Audience: "mine"}, AWS: AWS{Identity: "pod", RoleARN: role},
		}},
		{"agent alone", stsObject + "identity: Pod-Identity", Read{
			Source: "aws-sts", Login: Login{Audience: "pods.eks.amazonaws.com"}, AWS: AWS{Identity: "pod-identity"},
		}},
		{"agent and role", stsObject + "identity: pod-identity, roleArn: '" + role + "', sessionTags: {team: '{namespace} a', n: 1}, ttl: 1h", Read{
			Source: "aws-sts", Login: Login{Audience: "pods.eks.amazonaws.com"},
			AWS: AWS{Identity: "pod-identity", RoleARN: role, SessionTags: map[string]string{"team": "shop a", "n": "1"}, TTL: time.Hour},
		}},
		{"node", stsObject + "identity: node", Read{Source: "aws-sts", AWS: AWS{Identity: "node"}}},
		{"database", rdsObject + "connection: {user: app, host: " + strings.ToUpper(rdsServer) + "}", Read{
			Source: "rds-iam", Login: Login{Audience: "sts.amazonaws.com"},
			AWS: AWS{Identity: "pod", RoleARN: role, Region: "eu-central-1", Endpoint: rdsServer + ":5432", User: "app"},
		}},
		{"database by another name", strings.Replace(rdsObject, "uri", "my-cnf", 1) + "region: us-east-1, connection: {user: app, host: db.internal}", Read{
			Source: "rds-iam", Login: Login{Audience: "sts.amazonaws.com"},
			AWS: AWS{Identity: "pod", RoleARN: role, Region: "us-east-1", Endpoint: "db.internal:3306", User: "app"},
		}},
	} {
		spec, err := Parse(request("tenure", asksAWS(tc.object)))
		require.NoError(t, err, tc.name)
		require.Equal(t, tc.read, spec.Objects[0].Read, tc.name)
		require.Empty(t, spec.Warnings, tc.name)
	}
	spec, err := Parse(request("tenure", asksAWS(stsObject+"roleArn: '"+role+"', ttl: 15m")))
	require.NoError(t, err)
	require.Len(t, spec.Warnings, 1)
	require.Contains(t, spec.Warnings[0], "ttl is under 30m")

	spec, err = Parse(request("tenure", asksAWS(strings.Replace(rdsObject, "uri", "PG-Service", 1)+"connection: {user: app, host: "+rdsServer+"}")))
	require.NoError(t, err)
	require.Equal(t, []string{`object "db": a token of RDS seldom fits into libpq's service file, whose lines end at 1 KiB; use format pgpass, uri or env`}, spec.Warnings)
}

// Defaults are for those objects that can use them.
func TestParseDefaultsForSeveralSources(t *testing.T) {
	spec, err := Parse(request("tenure", map[string]string{
		"defaults": "{region: eu-central-1, roleArn: '" + role + "', secretPath: secret/data/a}",
		"objects":  stsObject + "}\n- {objectName: kv}\n",
	}))
	require.NoError(t, err)
	require.Equal(t, "eu-central-1", spec.Objects[0].Read.AWS.Region)
	require.Empty(t, spec.Objects[0].Read.Path)
	require.Equal(t, "secret/data/a", spec.Objects[1].Read.Path)
	require.Zero(t, spec.Objects[1].Read.AWS)
}

func TestSessionPolicy(t *testing.T) {
	want := `{"Statement":[{"Action":["s3:GetObject"],"Condition":{"Bool":{"x":true},"NumericLessThan":{"y":300}},"Effect":"Allow","Resource":"arn:aws:s3:::b/shop/<&>/${aws:userid}/*"}],"Version":"2012-10-17"}`
	for name, policy := range map[string]string{
		"YAML":         "{Version: 2012-10-17, Statement: [{Effect: Allow, Action: ['s3:GetObject'], Resource: 'arn:aws:s3:::b/{namespace}/<&>/${aws:userid}/*', Condition: {Bool: {x: true}, NumericLessThan: {y: 300}}}]}",
		"JSON in text": `'{"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": ["s3:GetObject"], "Resource": "arn:aws:s3:::b/{namespace}/<&>/${aws:userid}/*", "Condition": {"Bool": {"x": true}, "NumericLessThan": {"y": 300}}}]}'`,
	} {
		spec, err := Parse(request("tenure", withPolicy(policy)))
		require.NoError(t, err, name)
		require.Equal(t, want, spec.Objects[0].Read.AWS.SessionPolicy, name)
	}
}

func TestPartition(t *testing.T) {
	for region, want := range map[string]string{
		"eu-central-1": "aws", "ap-southeast-7": "aws", "cn-northwest-1": "aws-cn", "us-gov-west-1": "aws-us-gov", "us-iso-east-1": "aws-iso",
		"us-isob-east-1": "aws-iso-b", "eu-isoe-west-1": "aws-iso-e", "us-isof-south-1": "aws-iso-f", "eusc-de-east-1": "aws-eusc",
	} {
		require.True(t, IsRegion(region), region)
		fault, _ := RoleFault("arn:"+want+":iam::123456789012:role/path/of+a,role@x", region)
		require.Empty(t, fault, region)
		other := map[bool]string{true: "us-gov-east-1", false: "us-east-1"}[want == "aws"]
		fault, _ = RoleFault("arn:"+want+":iam::123456789012:role/orders", other)
		require.Contains(t, fault, "is of partition "+want)
	}
	for _, text := range []string{"", "eu", "eu-1", "eu-central-1.evil.com", "eu-central-1/", "eu-central-0", "eu-central-1\n", "../eu-central-1", "eu--central-1"} {
		require.False(t, IsRegion(text), "%q", text)
	}
	fault, _ := RoleFault("arn:aws:iam::123456789012:role/"+strings.Repeat("a/", 1024)+"b", "")
	require.Contains(t, fault, "is no ARN of an IAM role")
}

// Whatever a name holds that takes a placeholder's place, the policy has the
// template's structure and the name as it is, or is refused.
func FuzzSessionPolicy(f *testing.F) {
	for _, name := range []string{"shop", "a/b", `x","Resource":"*`, "*", "sh?p", "${aws:userid}", "{aws:userid}", "", "a\nb", `\u002a`, "{serviceAccount}", "né"} {
		f.Add(name)
	}
	const template = `{Statement: [{Effect: Allow, "{namespace}": x, Action: [a, 's3:{namespace}'], Resource: 'arn:aws:s3:::b/${namespace}/*'}]}`
	f.Fuzz(func(t *testing.T, name string) {
		r := request("tenure", withPolicy(template))
		r.Pod.Namespace = name
		spec, err := Parse(r)
		if err != nil {
			class, known := classOf(err)
			require.True(t, known && class == Invalid)
			require.NotRegexp(t, `^[A-Za-z0-9._-]+$`, name, "refused without need")
			return
		}
		require.NotRegexp(t, `[*?${}\\"/:]`, name, "more than a name to IAM")
		var got any
		require.NoError(t, json.Unmarshal([]byte(spec.Objects[0].Read.AWS.SessionPolicy), &got))
		require.Equal(t, map[string]any{"Statement": []any{map[string]any{
			"Effect": "Allow", "{namespace}": "x", "Action": []any{"a", "s3:" + name}, "Resource": fmt.Sprintf("arn:aws:s3:::b/$%s/*", name),
		}}}, got)
	})
}

// A policy is read once, not for each of 1024 objects.
func TestLongSessionPolicies(t *testing.T) {
	statement := "Statement: [{Effect: Allow, Action: '*', Resource: '*'}]\n"
	spc := func(policy string) Request {
		var objects strings.Builder
		for i := range MaxObjects {
			fmt.Fprintf(&objects, "- {objectName: '{tenant}/%d', source: aws-sts, format: json, region: eu-central-1, roleArn: '%s'}\n", i, role)
		}
		return request("tenure", map[string]string{
			"defaults": "sessionPolicy: " + policy, "objects": objects.String(), "tenants": "[a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p]",
		})
	}
	text := func(comments int) string {
		return "|\n  " + statement + strings.Repeat("  # "+strings.Repeat("x", 95)+"\n", comments)
	}
	_, err := Parse(spc(text(100)))
	require.ErrorContains(t, err, `field "defaults.sessionPolicy": is longer than 8 KiB`)
	_, err = Parse(spc("{Statement: [" + strings.Repeat("1, ", 4096) + "]}"))
	require.ErrorContains(t, err, "is longer than 8 KiB")

	p := parse(spc(text(70)), nil, func(Object) error { return nil })
	require.Empty(t, p.errs)
	require.Len(t, p.spec.Objects, 1024)
	require.Len(t, p.policies, 1)
	require.JSONEq(t, `{"Statement":[{"Effect":"Allow","Action":"*","Resource":"*"}]}`, p.spec.Objects[1023].Read.AWS.SessionPolicy)
}
