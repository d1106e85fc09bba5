package aws

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/tenure-csi/tenure/internal/lease"
	"github.com/tenure-csi/tenure/provider"
)

func credentialsOfNode(context.Context) (aws.Credentials, error) {
	return aws.Credentials{AccessKeyID: "ASIANODE", SecretAccessKey: "node-secret", SessionToken: "node-token"}, nil
}

func TestExchange(t *testing.T) {
	c := newCloud(t)
	var log bytes.Buffer
	metrics := prometheus.NewRegistry()
	s := c.source(t, func(cfg *Config) { cfg.Logger, cfg.Registerer = slog.New(slog.NewTextHandler(&log, nil)), metrics })
	before := time.Now()
	issued, f := read(t, s, asPod(func(a *provider.AWS) { a.SessionPolicy, a.TTL = `{"Statement":[]}`, 2*time.Hour }))
	require.Nil(t, f)
	require.Equal(t, url.Values{
		"Action": {"AssumeRoleWithWebIdentity"}, "Version": {"2011-06-15"}, "RoleArn": {role}, "RoleSessionName": {"shop.web@prod"},
		"WebIdentityToken": {token}, "DurationSeconds": {"7200"}, "Policy": {`{"Statement":[]}`},
	}, c.forms[0])
	require.Empty(t, c.seen[0].Header.Get("Authorization"))
	require.Equal(t, map[string]any{"access_key": "ASIASESSION", "secret_key": "session-secret", "session_token": "session-token"}, issued.Secret.Data)
	requireEnds(t, before, c.life, issued)
	require.Equal(t, 20*time.Minute, issued.Headroom)
	require.Equal(t, lease.Leased, issued.Kind)
	require.False(t, issued.Renewable)
	require.Empty(t, issued.LeaseID)
	require.Contains(t, log.String(), "percent=95", "a policy that nearly fills the limit is warned about")
	families, err := metrics.Gather()
	require.NoError(t, err)
	require.Len(t, families, 2)

	_, f = read(t, s, asPod(nil))
	require.Nil(t, f)
	require.Equal(t, "3600", c.forms[1].Get("DurationSeconds"), "an hour is the default")
	require.NotContains(t, c.forms[1], "Policy")
}

// requireEnds checks the end of what was issued between before and now for a life,
// in AWS's whole seconds, however long that took.
func requireEnds(t *testing.T, before time.Time, life time.Duration, i lease.Issued) {
	t.Helper()
	now := time.Now()
	require.WithinRange(t, i.Secret.Expires, before.Add(life).Truncate(time.Second), now.Add(life))
	require.LessOrEqual(t, i.TTL, life)
	require.GreaterOrEqual(t, i.TTL, life-now.Sub(before)-time.Second)
}

func TestAgentAndChain(t *testing.T) {
	c := newCloud(t)
	s := c.source(t, func(cfg *Config) { cfg.Region = "" })
	issued, f := read(t, s, asAgent(func(a *provider.AWS) { a.RoleARN = "" }))
	require.Nil(t, f, "the agent needs no region")
	require.Equal(t, "ASIAAGENT", issued.Secret.Data["access_key"])
	require.Equal(t, "agent-token", issued.Secret.Data["session_token"])
	require.Equal(t, token, c.seen[0].Header.Get("Authorization"))

	issued, f = read(t, s, asAgent(func(a *provider.AWS) { a.Region, a.SessionTags = "us-west-2", map[string]string{"team": "a b"} }))
	require.Nil(t, f)
	require.Equal(t, "ASIASESSION", issued.Secret.Data["access_key"])
	require.Len(t, c.seen, 3)
	require.Equal(t, url.Values{
		"Action": {"AssumeRole"}, "Version": {"2011-06-15"}, "RoleArn": {role}, "RoleSessionName": {"shop.web@prod"}, "DurationSeconds": {"3600"},
		"Tags.member.1.Key": {"team"}, "Tags.member.1.Value": {"a b"},
	}, c.forms[2])
	require.Contains(t, c.seen[2].Header.Get("Authorization"), "Credential=ASIAAGENT/")
	require.Contains(t, c.seen[2].Header.Get("Authorization"), "/us-west-2/sts/aws4_request")
	require.Equal(t, "agent-token", c.seen[2].Header.Get("X-Amz-Security-Token"))
}

// The daemon's own identity is used for nobody whom the operator gave no role.
func TestNodeIsLentByTheOperatorAlone(t *testing.T) {
	c := newCloud(t)
	node := func(change func(*provider.AWS)) provider.Read { return asking(provider.NodeIdentity, "", change) }
	for name, row := range map[string]struct {
		change func(*Config)
		read   provider.Read
	}{
		"no identity to lend":     {nil, node(nil)},
		"no role of the operator": {lent, node(func(a *provider.AWS) { a.RoleARN = "" })},
	} {
		_, f := read(t, c.source(t, row.change), row.read)
		require.NotNil(t, f, name)
		require.Equal(t, provider.Denied, f.Problem.Class, name)
		require.Equal(t, lease.Refused, f.Verdict, name)
		require.Equal(t, "identity", f.Problem.Field, name)
	}
	require.Empty(t, c.seen, "AWS was not asked")

	issued, f := read(t, c.source(t, lent), node(nil))
	require.Nil(t, f)
	require.Equal(t, "ASIASESSION", issued.Secret.Data["access_key"])
	require.Contains(t, c.seen[0].Header.Get("Authorization"), "Credential=ASIANODE/")
}

// Without its own token a pod gets nothing, and nobody is asked.
func TestIdentityIsThePodsOwn(t *testing.T) {
	c := newCloud(t)
	s := c.source(t, lent)
	id := func(text string) provider.Identity {
		return provider.Identity{Tokens: map[string]provider.Token{"sts.amazonaws.com": {Value: provider.Secret(text)}}}
	}
	for name, row := range map[string]struct {
		id    provider.Identity
		class provider.Class
	}{
		"none":         {provider.Identity{}, provider.Precondition},
		"other pod's":  {id(jwt("system:serviceaccount:other:web")), provider.Denied},
		"no JWT":       {id("x"), provider.Invalid},
		"expired":      {provider.Identity{Tokens: map[string]provider.Token{"sts.amazonaws.com": {Value: provider.Secret(token), Expires: time.Now()}}}, provider.Precondition},
		"Vault's only": {provider.Identity{Tokens: map[string]provider.Token{"vault": {Value: provider.Secret(token)}}}, provider.Precondition},
	} {
		for what, err := range map[string]error{
			"login": func() error { _, err := s.Login(t.Context(), mount, asPod(nil).Login, row.id); return err }(),
			"read": func() error {
				_, err := s.Read(t.Context(), mount, lease.Session{Identity: row.id}, asPod(nil))
				return err
			}(),
		} {
			var f *lease.Failure
			require.ErrorAs(t, err, &f, "%s: %s", name, what)
			require.Equal(t, row.class, f.Problem.Class, "%s: %s", name, what)
			require.Equal(t, "audience", f.Problem.Field, "%s: %s", name, what)
		}
	}
	require.Empty(t, c.seen)
}

// TestDatabaseToken computes the signature anew from its parts, by the rules of
// Signature Version 4.
func TestDatabaseToken(t *testing.T) {
	c := newCloud(t)
	s := c.source(t, nil)
	r := asPod(func(a *provider.AWS) {
		a.Endpoint, a.User, a.Region = "db.eu-west-1.example:5432", "app@x y", "eu-west-1"
	})
	r.Source = "rds-iam"
	before := time.Now()
	issued, f := read(t, s, r)
	require.Nil(t, f)
	require.Equal(t, "900", c.forms[0].Get("DurationSeconds"))
	require.Equal(t, "app@x y", issued.Secret.Data["username"])
	require.Equal(t, "db.eu-west-1.example", issued.Secret.Data["host"])
	require.Equal(t, json.Number("5432"), issued.Secret.Data["port"])
	requireEnds(t, before, 15*time.Minute, issued)
	require.Zero(t, issued.Headroom)

	password := issued.Secret.Data["password"].(string)
	endpoint, query, ok := strings.Cut(password, "?")
	require.True(t, ok)
	require.Equal(t, "db.eu-west-1.example:5432", endpoint)
	canonical, signature, ok := strings.Cut(query, "&X-Amz-Signature=")
	require.True(t, ok)
	given, err := url.ParseQuery(canonical)
	require.NoError(t, err)
	require.Equal(t, "connect", given.Get("Action"))
	require.Equal(t, "app@x y", given.Get("DBUser"))
	require.Equal(t, "900", given.Get("X-Amz-Expires"))
	require.Equal(t, "session-token", given.Get("X-Amz-Security-Token"))
	date := given.Get("X-Amz-Date")
	scope := date[:8] + "/eu-west-1/rds-db/aws4_request"
	require.Equal(t, "ASIASESSION/"+scope, given.Get("X-Amz-Credential"))
	hash := func(text string) string { sum := sha256.Sum256([]byte(text)); return hex.EncodeToString(sum[:]) }
	request := "GET\n/\n" + strings.ReplaceAll(given.Encode(), "+", "%20") + "\nhost:" + endpoint + "\n\nhost\n" + hash("")
	key := []byte("AWS4session-secret")
	for _, part := range append(strings.Split(scope, "/"), "AWS4-HMAC-SHA256\n"+date+"\n"+scope+"\n"+hash(request)) {
		mac := hmac.New(sha256.New, key)
		mac.Write([]byte(part))
		key = mac.Sum(nil)
	}
	require.Equal(t, hex.EncodeToString(key), signature)

	c.life = 5 * time.Minute
	issued, f = read(t, s, r)
	require.Nil(t, f)
	require.LessOrEqual(t, issued.TTL, 5*time.Minute, "a token does not outlive its session")
}

func TestSessionName(t *testing.T) {
	long := provider.Pod{Namespace: strings.Repeat("n", 63), ServiceAccount: "a"}
	names := map[string]bool{}
	for _, row := range []struct {
		cluster string
		pod     provider.Pod
		want    string
	}{
		{"", pod, "shop.web"},
		{"prod_1", pod, "shop.web@prod_1"},
		{"prod", long, strings.Repeat("n", 47) + "-2fc09c9f34aeeb49"},
		{"test", long, ""},
		{"", provider.Pod{Namespace: long.Namespace, ServiceAccount: "b"}, ""},
		{strings.Repeat("c", 100), provider.Pod{Namespace: "a", ServiceAccount: strings.Repeat("s.", 126) + "s"}, ""},
	} {
		name := sessionName(row.cluster, row.pod)
		if row.want != "" {
			require.Equal(t, row.want, name)
		}
		require.Regexp(t, `^[\w+=,.@-]{2,64}$`, name, "what STS takes as RoleSessionName")
		require.False(t, names[name], "two sessions of one name")
		names[name] = true
	}
}

func TestNewRefuses(t *testing.T) {
	for _, row := range []struct {
		cfg  Config
		want string
	}{
		{Config{Region: "eu-central-1.evil.com"}, `reading the AWS region: "eu-central-1.evil.com" is none; write it like eu-central-1`},
		{Config{Cluster: "a/b"}, `reading the cluster's name: "a/b" is none; use up to 100 letters, digits, - and _`},
		{Config{FIPS: true, STSEndpoint: "https://sts"}, `reading the address of STS: https://sts can't be combined with AWS's own FIPS endpoints; choose one`},
		{Config{STSEndpoint: "http://sts.example.com"}, `reading the address of STS: "http://sts.example.com" would send the pods' tokens without TLS; begin it with https://`},
		{Config{STSEndpoint: "https://sts.example.com?x"}, `reading the address of STS: "https://sts.example.com?x" is no plain URL; write it like https://sts.example.com`},
		{Config{Agent: "ftp://[fd00:ec2::23]/"}, `reading the address of the EKS Pod Identity agent: "ftp://[fd00:ec2::23]/" would send the pods' tokens without TLS; begin it with https://`},
	} {
		_, err := New(row.cfg)
		require.EqualError(t, err, row.want)
	}
	for _, good := range []Config{{}, {Agent: "http://[fd00:ec2::23]/v1/credentials"}, {STSEndpoint: "http://127.0.0.1:9000"}, {FIPS: true, Region: "us-gov-west-1"}} {
		s, err := New(good)
		require.NoError(t, err, fmt.Sprint(good))
		s.Close()
	}
}

// recorder answers nothing and keeps the hosts that were asked.
type recorder struct{ hosts []string }

func (r *recorder) RoundTrip(q *http.Request) (*http.Response, error) {
	r.hosts = append(r.hosts, q.URL.Scheme+"://"+q.URL.Host)
	return nil, errors.New("not sent")
}

// STS is asked in the region, whatever the partition.
func TestEndpoints(t *testing.T) {
	for _, row := range []struct {
		region, partition, want string
		fips                    bool
	}{
		{"us-east-1", "aws", "https://sts.us-east-1.amazonaws.com", false},
		{"eu-central-1", "aws", "https://sts.eu-central-1.amazonaws.com", false},
		{"cn-north-1", "aws-cn", "https://sts.cn-north-1.amazonaws.com.cn", false},
		{"us-iso-east-1", "aws-iso", "https://sts.us-iso-east-1.c2s.ic.gov", false},
		{"eusc-de-east-1", "aws-eusc", "https://sts.eusc-de-east-1.amazonaws.eu", false},
		{"us-east-1", "aws", "https://sts-fips.us-east-1.amazonaws.com", true},
		{"us-gov-west-1", "aws-us-gov", "https://sts.us-gov-west-1.amazonaws.com", true},
	} {
		s, err := New(Config{Region: row.region, FIPS: row.fips})
		require.NoError(t, err)
		asked := &recorder{}
		s.http.Transport = asked
		_, f := read(t, s, asPod(func(a *provider.AWS) { a.RoleARN = strings.Replace(role, "aws", row.partition, 1) }))
		require.NotNil(t, f)
		require.Equal(t, []string{row.want}, asked.hosts, "once, without a retry")
		s.Close()
	}
}
