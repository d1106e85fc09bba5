package aws

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log" //nolint:depguard // net/http asks for its Logger
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/smithy-go"
	"github.com/stretchr/testify/require"

	"github.com/tenure-csi/tenure/internal/lease"
	"github.com/tenure-csi/tenure/provider"
)

// row renders a failure for a golden file.
func row(name string, f *lease.Failure) string {
	return fmt.Sprintf("%s: verdict %d, %s: %s", name, f.Verdict, f.Problem.Class, f.Error())
}

func TestRefusals(t *testing.T) {
	c := newCloud(t)
	s := c.source(t, nil)
	chained := func(code int, name, message string) func() provider.Read {
		return func() provider.Read {
			c.refuse(code, name, message)
			refuse := c.answer
			c.answer = func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/agent" {
					c.grant(w, r)
					return
				}
				refuse(w, r)
			}
			return asAgent(nil)
		}
	}
	direct := func(code int, name, message string) func() provider.Read {
		return func() provider.Read { c.refuse(code, name, message); return asPod(nil) }
	}
	agent := func(status int, contentType, body string) func() provider.Read {
		return func() provider.Read {
			c.answer = func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", contentType)
				w.WriteHeader(status)
				_, _ = io.WriteString(w, body)
			}
			return asAgent(func(a *provider.AWS) { a.RoleARN = "" })
		}
	}
	rows := []string{}
	for _, tc := range []struct {
		name string
		read func() provider.Read
	}{
		{"throttled", direct(400, "Throttling", "Rate exceeded")},
		{"throttled by status", direct(429, "Odd", "slow down")},
		{"token expired", direct(400, "ExpiredTokenException", "Token expired: current date/time 1 must be before the expiration date/time 2")},
		{"no provider", direct(400, "InvalidIdentityToken", "No OpenIDConnect provider found in your account for https://oidc.example.com")},
		{"wrong audience", direct(400, "InvalidIdentityToken", "Incorrect token audience")},
		{"claim rejected", direct(403, "IDPRejectedClaim", "no")},
		{"issuer away", direct(400, "IDPCommunicationError", "Couldn't retrieve verification key from your identity provider")},
		{"not trusted", direct(403, "AccessDenied", "Not authorized to perform sts:AssumeRoleWithWebIdentity")},
		{"policy too large", direct(400, "PackedPolicyTooLarge", "Packed policy consumes 123% of allotted space, please use smaller policy.")},
		{"policy malformed", direct(400, "MalformedPolicyDocument", "Syntax errors in policy.")},
		{"region off", direct(403, "RegionDisabledException", "STS is not activated in this region")},
		{"too long for the role", direct(400, "ValidationError", "The requested DurationSeconds exceeds the MaxSessionDuration set for this role.")},
		{"invalid", direct(400, "ValidationError", "1 validation error detected: Value '"+token+"' at 'webIdentityToken' failed to satisfy constraint")},
		{"unknown code", direct(400, "Odd", "what")},
		{"forbidden", direct(403, "Odd", "what")},
		{"broken", direct(500, "InternalFailure", "try again")},
		{"with secrets and control characters", direct(403, "AccessDenied", "a\n\x1b[31m ASIA1234567890123456 "+token+" Encoded authorization failure message: abcDEF rest")},
		{"long", direct(400, "Odd", strings.Repeat("long ", 500))},
		{"chained, not trusted", chained(403, "AccessDenied", "User: arn:aws:sts::123456789012:assumed-role/first/eks is not authorized to perform: sts:AssumeRole on resource: "+role)},
		{"chained, tags", chained(403, "AccessDenied", "User: arn is not authorized to perform: sts:TagSession on resource: "+role)},
		{"chained, too long", chained(400, "ValidationError", "The requested DurationSeconds exceeds the 1 hour session limit for roles assumed by role chaining")},
		{"chained, expired", chained(403, "ExpiredToken", "The security token included in the request is expired")},
		{"chained, clock", chained(403, "SignatureDoesNotMatch", "Signature expired: 1 is now earlier than 2")},
		{"agent, no association", agent(404, "application/json", `{"code":"ResourceNotFoundException","message":"no association"}`)},
		{"agent, denied", agent(400, "text/plain", "AccessDeniedException: (eks-auth) ...")},
		{"agent, old token", agent(400, "text/plain", "(ExpiredTokenException): Token expired")},
		{"agent, silent", agent(500, "text/plain", "")},
		{"agent, no end", agent(200, "application/json", `{"AccessKeyId":"a","SecretAccessKey":"b","Token":"c"}`)},
		{"agent, long ago", agent(200, "application/json", `{"AccessKeyId":"a","SecretAccessKey":"b","Token":"c","Expiration":"2001-01-01T00:00:00Z"}`)},
		{"agent, no JSON", agent(200, "text/html", "<html>")},
	} {
		_, f := read(t, s, tc.read())
		require.NotNil(t, f, tc.name)
		require.False(t, f.MayHaveMinted, tc.name)
		require.NotContains(t, f.Error(), token, tc.name)
		require.NotContains(t, f.Error(), "\x1b", tc.name)
		require.Less(t, len(f.Error()), 1024, tc.name)
		rows = append(rows, row(tc.name, f))
	}
	golden(t, "refusals.golden", rows)
}

func TestUselessAnswers(t *testing.T) {
	c := newCloud(t)
	s := c.source(t, nil)
	write := func(body string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, body) }
	}
	const head, tail = "<AssumeRoleWithWebIdentityResponse><AssumeRoleWithWebIdentityResult>", "</AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>"
	rows := []string{}
	for _, tc := range []struct {
		name   string
		answer http.HandlerFunc
	}{
		{"HTML", write("<html>canary</html>")},
		{"nothing", write("")},
		{"no session", write(head + tail)},
		{"half a session", write(head + "<Credentials><AccessKeyId>A</AccessKeyId></Credentials>" + tail)},
		{"expired", write(head + "<Credentials><AccessKeyId>A</AccessKeyId><SecretAccessKey>s</SecretAccessKey><SessionToken>t</SessionToken><Expiration>2001-01-01T00:00:00Z</Expiration></Credentials>" + tail)},
		{"endless", func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, head+"<!--"+strings.Repeat("x", maxBody))
		}},
		{"redirect", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://169.254.169.254/", http.StatusTemporaryRedirect)
		}},
		{"cut", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }},
	} {
		c.mu.Lock()
		c.answer = tc.answer
		c.mu.Unlock()
		issued, f := read(t, s, asPod(nil))
		require.NotNil(t, f, tc.name)
		require.Zero(t, issued, tc.name)
		require.True(t, f.Problem.Class.Passing(), tc.name)
		require.Equal(t, lease.Retry, f.Verdict, tc.name)
		require.NotContains(t, f.Error(), "canary", tc.name)
		rows = append(rows, row(tc.name, f))
	}
	golden(t, "answers.golden", rows)
}

func TestNoAnswer(t *testing.T) {
	c := newCloud(t)
	closed := refusedURL(t)
	secure := httptest.NewUnstartedServer(http.NotFoundHandler())
	secure.Config.ErrorLog = log.New(io.Discard, "", 0)
	secure.StartTLS()
	t.Cleanup(secure.Close)
	at := func(address string) func(*Config) { return func(cfg *Config) { cfg.STSEndpoint = address } }
	rows := []string{}
	for _, tc := range []struct {
		name   string
		change func(*Config)
		read   provider.Read
	}{
		{"refused connection", at(closed), asPod(nil)},
		{"unknown CA", at(secure.URL), asPod(nil)},
		{"no TLS there", at(strings.Replace(c.URL, "http:", "https:", 1)), asPod(nil)},
		// Two dots are in no name, so that no server of names is asked, which may be slow.
		{"no such host", at("https://sts..invalid"), asPod(nil)},
		{"no region", func(cfg *Config) { cfg.Region = "" }, asPod(nil)},
		{"other partition", nil, asPod(func(a *provider.AWS) { a.Region = "cn-north-1" })},
		{"node without credentials", func(cfg *Config) {
			cfg.Node = aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) { return aws.Credentials{}, errors.New("canary") })
		}, asking(provider.NodeIdentity, "", nil)},
	} {
		_, f := read(t, c.source(t, tc.change), tc.read)
		require.NotNil(t, f, tc.name)
		require.NotContains(t, f.Error(), "canary", tc.name)
		text := strings.NewReplacer(closed, "URL", secure.URL, "URL").Replace(row(tc.name, f))
		rows = append(rows, text)
	}
	golden(t, "unanswered.golden", rows)
}

// TestHang waits for no answer longer than the caller, and gives its room back.
func TestHang(t *testing.T) {
	c := newCloud(t)
	s := c.source(t, nil)
	asked, stop := make(chan struct{}), make(chan struct{})
	c.answer = func(http.ResponseWriter, *http.Request) { close(asked); <-stop }
	defer close(stop)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	go func() { <-asked; cancel() }()
	_, err := s.Read(ctx, mount, lease.Session{Identity: identity()}, asPod(nil))
	var f *lease.Failure
	require.ErrorAs(t, err, &f)
	require.Equal(t, provider.Deadline, f.Problem.Class)
	require.Equal(t, lease.Retry, f.Verdict)
	_, err = s.Read(ctx, mount, lease.Session{Identity: identity()}, asPod(nil))
	require.ErrorIs(t, err, context.Canceled, "a dead caller asks nobody")
	require.Len(t, c.forms, 1)
}

// TestRefusalOfTheNode: a pod's author does not learn who the daemon is at AWS.
func TestRefusalOfTheNode(t *testing.T) {
	q := question{AWS: provider.AWS{Identity: provider.NodeIdentity}, op: opAssume}
	told := &smithy.GenericAPIError{Code: "AccessDenied", Message: "User: arn:aws:sts::123456789012:assumed-role/daemon/x is not authorized"}
	f := q.classify(told)
	require.Contains(t, f.Error(), "it answers AccessDenied (the rest is in the daemon's log)")
	require.NotContains(t, f.Error(), "123456789012")
	require.Contains(t, q.answer(told), "123456789012")
}
