package aws

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/stretchr/testify/require"

	"github.com/tenure-csi/tenure/provider"
)

const (
	canaryKey    = "canary/secret+key"
	canaryToken  = "canary-session-token=="
	webToken     = provider.Secret("eyJhbGciOiJSUzI1NiJ9.canary.c2lnbmF0dXJl")
	role         = "arn:aws:iam::123456789012:role/orders"
	serverHeader = "X-Vault-Aws-Iam-Server-Id"
)

var (
	signPod   = provider.Pod{Namespace: "shop", ServiceAccount: "orders"}
	signLogin = provider.Login{Method: "aws", Audience: "sts.amazonaws.com", AWSIdentity: "pod", AWSRoleARN: role}
	headers   = http.Header{serverHeader: {"vault.example.com"}}
)

// provides is a daemon's own credentials, or why there are none.
type provides struct{ err error }

func (p provides) Retrieve(context.Context) (aws.Credentials, error) {
	return aws.Credentials{AccessKeyID: "AKIANODE", SecretAccessKey: canaryKey}, p.err
}

// stsOf is a Signer whose STS is the handler.
func stsOf(t *testing.T, h http.HandlerFunc) *Signer {
	t.Helper()
	server := httptest.NewServer(h)
	t.Cleanup(server.Close)
	return &Signer{Endpoint: server.URL, HTTP: server.Client()}
}

func granting(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/xml")
	fmt.Fprintf(w, `<AssumeRoleWithWebIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><AssumeRoleWithWebIdentityResult><Credentials>
		<AccessKeyId>ASIAPOD</AccessKeyId><SecretAccessKey>%s</SecretAccessKey><SessionToken>%s</SessionToken><Expiration>2036-11-21T12:00:00Z</Expiration>
		</Credentials></AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>`, canaryKey, canaryToken)
}

// TestSigns recomputes each signature by the rules of Signature Version 4.
func TestSigns(t *testing.T) {
	var form map[string][]string
	pods := stsOf(t, func(w http.ResponseWriter, r *http.Request) {
		_ = r.ParseForm()
		form = r.PostForm
		granting(w, r)
	})
	for _, row := range []struct {
		name                       string
		signer                     *Signer
		token                      provider.Secret
		url, region, key, security string
	}{
		{"the pod", pods, webToken, pods.Endpoint + "/", "us-east-1", "ASIAPOD", canaryToken},
		{"the node, global endpoint", &Signer{Node: provides{}}, "", "https://sts.amazonaws.com/", "us-east-1", "AKIANODE", ""},
		{"the node, regional endpoint", &Signer{Region: "eu-central-1", Node: provides{}}, "", "https://sts.eu-central-1.amazonaws.com/", "eu-central-1", "AKIANODE", ""},
		{"the node, China", &Signer{Region: "cn-north-1", Node: provides{}}, "", "https://sts.cn-north-1.amazonaws.com.cn/", "cn-north-1", "AKIANODE", ""},
		{"the node, private endpoint", &Signer{Region: "eu-central-1", Endpoint: "https://sts.internal:8443", Node: provides{}}, "", "https://sts.internal:8443/", "eu-central-1", "AKIANODE", ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			r, err := row.signer.SignCallerIdentity(t.Context(), signPod, signLogin, row.token, headers)
			require.NoError(t, err)
			require.Equal(t, row.url, r.URL.String())
			require.Equal(t, row.security, r.Header.Get("X-Amz-Security-Token"))
			require.Contains(t, r.Header.Get("Authorization"), "Credential="+row.key+"/")
			require.Contains(t, r.Header.Get("Authorization"), "/"+row.region+"/sts/aws4_request")
			require.Contains(t, r.Header.Get("Authorization"), ";x-vault-aws-iam-server-id")
			require.Equal(t, recomputed(t, r), r.Header.Get("Authorization"))
		})
	}
	require.Equal(t, map[string][]string{
		"Action": {"AssumeRoleWithWebIdentity"}, "Version": {"2011-06-15"}, "RoleArn": {role}, "RoleSessionName": {"shop.orders"},
		"WebIdentityToken": {webToken.Reveal()}, "DurationSeconds": {"900"},
	}, form)
	require.Equal(t, http.Header{serverHeader: {"vault.example.com"}}, headers, "the caller's headers stay as they are")
}

// recomputed is the Authorization that a request must have.
func recomputed(t *testing.T, r *http.Request) string {
	t.Helper()
	reader, err := r.GetBody()
	require.NoError(t, err)
	body, err := io.ReadAll(reader)
	require.NoError(t, err)
	_, rest, _ := strings.Cut(r.Header.Get("Authorization"), "Credential=")
	credential, rest, _ := strings.Cut(rest, ", SignedHeaders=")
	signed, _, _ := strings.Cut(rest, ", Signature=")
	_, scope, _ := strings.Cut(credential, "/")
	canonical := r.Method + "\n" + r.URL.Path + "\n\n"
	for name := range strings.SplitSeq(signed, ";") {
		value := r.Header.Get(name)
		switch name {
		case "host":
			value = r.URL.Host
		case "content-length":
			value = fmt.Sprint(len(body))
		}
		canonical += name + ":" + value + "\n"
	}
	canonical += fmt.Sprintf("\n%s\n%x", signed, sha256.Sum256(body))
	text := fmt.Sprintf("AWS4-HMAC-SHA256\n%s\n%s\n%x", r.Header.Get("X-Amz-Date"), scope, sha256.Sum256([]byte(canonical)))
	key := []byte("AWS4" + canaryKey)
	for part := range strings.SplitSeq(scope, "/") {
		key = mac(key, part)
	}
	return "AWS4-HMAC-SHA256 Credential=" + credential + ", SignedHeaders=" + signed + ", Signature=" + hex.EncodeToString(mac(key, text))
}

func mac(key []byte, text string) []byte {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(text))
	return h.Sum(nil)
}

func TestExchangeRefused(t *testing.T) {
	refusal := func(status int, code, message string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/xml")
			w.WriteHeader(status)
			fmt.Fprintf(w, `<ErrorResponse><Error><Type>Sender</Type><Code>%s</Code><Message>%s</Message></Error></ErrorResponse>`, code, message)
		}
	}
	for _, row := range []struct {
		name   string
		answer http.HandlerFunc
		class  provider.Class
		says   []string
	}{
		{"trust policy", refusal(403, "AccessDenied", "Not authorized to perform sts:AssumeRoleWithWebIdentity"), provider.Denied, []string{
			"for a session of " + role, "AccessDenied: Not authorized", "to system:serviceaccount:shop:orders",
		}},
		{"no OIDC provider", refusal(400, "InvalidIdentityToken", "No OpenIDConnect provider found"), provider.Precondition, []string{"IAM OIDC provider", "audience sts.amazonaws.com"}},
		{"expired", refusal(400, "ExpiredTokenException", "Token expired"), provider.Precondition, []string{"compare the clocks"}},
		{"throttled", refusal(400, "Throttling", "Rate exceeded"), provider.Exhausted, []string{"Rate exceeded"}},
		{"malformed", refusal(400, "ValidationError", "bad role"), provider.Denied, []string{"check the role"}},
		{"echo", refusal(400, "ValidationError", "token "+webToken.Reveal()+"&#10;is bad"), provider.Denied, []string{"token [redacted] is bad"}},
		{"server error", refusal(500, "InternalFailure", "try again"), provider.Unavailable, []string{"InternalFailure"}},
		{"no XML", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("<html>canary-page")) }, provider.Unavailable, []string{"check"}},
		{"no session", func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write([]byte(`<AssumeRoleWithWebIdentityResponse><AssumeRoleWithWebIdentityResult/></AssumeRoleWithWebIdentityResponse>`))
		}, provider.Unavailable, []string{"holds no session"}},
	} {
		t.Run(row.name, func(t *testing.T) {
			_, err := stsOf(t, row.answer).SignCallerIdentity(t.Context(), signPod, signLogin, webToken, headers)
			var e *provider.Error
			require.ErrorAs(t, err, &e)
			require.Equal(t, row.class, e.Class, e)
			for _, part := range row.says {
				require.Contains(t, e.Error(), part)
			}
			require.NotContains(t, e.Error(), "canary")
		})
	}
	gone := stsOf(t, granting)
	gone.Endpoint = "http://127.0.0.1:1"
	_, err := gone.SignCallerIdentity(t.Context(), signPod, signLogin, webToken, headers)
	var e *provider.Error
	require.ErrorAs(t, err, &e)
	require.Equal(t, provider.Unavailable, e.Class)
	require.Contains(t, e.Error(), "check the way from the node to STS")
}

func TestNodeWithoutCredentials(t *testing.T) {
	for _, row := range []struct {
		name  string
		node  aws.CredentialsProvider
		class provider.Class
	}{
		{"none", nil, provider.Precondition},
		{"not now", provides{errors.New("canary")}, provider.Unavailable},
	} {
		t.Run(row.name, func(t *testing.T) {
			_, err := (&Signer{Node: row.node}).SignCallerIdentity(t.Context(), signPod, signLogin, "", headers)
			var e *provider.Error
			require.ErrorAs(t, err, &e)
			require.Equal(t, row.class, e.Class)
			require.Equal(t, "awsIdentity", e.Field)
			require.NotContains(t, e.Error(), "canary")
		})
	}
}

func TestLoginSession(t *testing.T) {
	require.Equal(t, "shop.orders", loginSession(signPod))
	long := provider.Pod{Namespace: strings.Repeat("n", 40), ServiceAccount: strings.Repeat("a", 40)}
	other := long
	other.ServiceAccount += "b"
	require.Len(t, loginSession(long), 64)
	require.NotEqual(t, loginSession(long), loginSession(other), "what is cut off still counts")
}
