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
	"net/url"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/stretchr/testify/require"

	"github.com/tenure-csi/tenure/internal/lease"
	"github.com/tenure-csi/tenure/provider"
)

const (
	signingKey   = "canary/secret+key"
	signingToken = "canary-session-token=="
	webToken     = provider.Secret("eyJhbGciOiJSUzI1NiJ9.canary.c2lnbmF0dXJl")
	signingRole  = "arn:aws:iam::123456789012:role/orders"
	serverHeader = "X-Vault-Aws-Iam-Server-Id"
)

var (
	signingFor = lease.Caller{Pod: provider.Pod{Namespace: "shop", ServiceAccount: "orders"}}
	podLogin   = provider.Login{Method: "aws", Audience: "sts.amazonaws.com", AWSIdentity: "pod", AWSRoleARN: signingRole}
	nodeLogin  = provider.Login{Method: "aws", AWSIdentity: "node"}
	headers    = http.Header{serverHeader: {"vault.example.com"}}
)

// provides is a daemon's own credentials, or why there are none.
type provides struct{ err error }

func (p provides) Retrieve(context.Context) (aws.Credentials, error) {
	return aws.Credentials{AccessKeyID: "AKIANODE", SecretAccessKey: signingKey}, p.err
}

func signer(t *testing.T, cfg Config) *Source {
	t.Helper()
	s, err := New(cfg)
	require.NoError(t, err)
	t.Cleanup(s.Close)
	return s
}

// signerAt is a Source whose STS is the handler.
func signerAt(t *testing.T, h http.HandlerFunc) *Source {
	t.Helper()
	server := httptest.NewServer(h)
	t.Cleanup(server.Close)
	return signer(t, Config{Region: "us-east-1", STSEndpoint: server.URL})
}

func granting(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/xml")
	fmt.Fprintf(w, `<AssumeRoleWithWebIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><AssumeRoleWithWebIdentityResult><Credentials>
		<AccessKeyId>ASIAPOD</AccessKeyId><SecretAccessKey>%s</SecretAccessKey><SessionToken>%s</SessionToken><Expiration>2036-11-21T12:00:00Z</Expiration>
		</Credentials></AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>`, signingKey, signingToken)
}

// TestSigns recomputes each signature by the rules of Signature Version 4.
func TestSigns(t *testing.T) {
	var form url.Values
	pods := signerAt(t, func(w http.ResponseWriter, r *http.Request) {
		_ = r.ParseForm()
		form = r.PostForm
		granting(w, r)
	})
	for _, row := range []struct {
		name                       string
		signer                     *Source
		login                      provider.Login
		token                      provider.Secret
		url, region, key, security string
	}{
		{"the pod", pods, podLogin, webToken, pods.cfg.STSEndpoint + "/", "us-east-1", "ASIAPOD", signingToken},
		{"the node", signer(t, Config{Region: "eu-central-1", Node: provides{}}), nodeLogin, "", "https://sts.eu-central-1.amazonaws.com/", "eu-central-1", "AKIANODE", ""},
		{"the node, China", signer(t, Config{Region: "cn-north-1", Node: provides{}}), nodeLogin, "", "https://sts.cn-north-1.amazonaws.com.cn/", "cn-north-1", "AKIANODE", ""},
		{"the node, FIPS", signer(t, Config{Region: "us-east-2", FIPS: true, Node: provides{}}), nodeLogin, "", "https://sts-fips.us-east-2.amazonaws.com/", "us-east-2", "AKIANODE", ""},
		{"the node, private endpoint", signer(t, Config{Region: "eu-central-1", STSEndpoint: "https://sts.internal:8443", Node: provides{}}), nodeLogin, "", "https://sts.internal:8443/", "eu-central-1", "AKIANODE", ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			r, err := row.signer.SignCallerIdentity(t.Context(), signingFor, row.login, row.token, headers)
			require.NoError(t, err)
			require.Equal(t, row.url, r.URL.String())
			require.Equal(t, row.security, r.Header.Get("X-Amz-Security-Token"))
			require.Contains(t, r.Header.Get("Authorization"), "Credential="+row.key+"/")
			require.Contains(t, r.Header.Get("Authorization"), "/"+row.region+"/sts/aws4_request")
			require.Contains(t, r.Header.Get("Authorization"), ";x-vault-aws-iam-server-id")
			require.Equal(t, recomputed(t, r), r.Header.Get("Authorization"))
		})
	}
	require.Equal(t, url.Values{
		"Action": {"AssumeRoleWithWebIdentity"}, "Version": {"2011-06-15"}, "RoleArn": {signingRole}, "RoleSessionName": {"shop.orders"},
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
	key := []byte("AWS4" + signingKey)
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

// TestSigningRefused blames the fields of a login. What STS's codes mean in full is
// TestRefusals' to check.
func TestSigningRefused(t *testing.T) {
	denied := signerAt(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/xml")
		w.WriteHeader(http.StatusForbidden)
		fmt.Fprintf(w, `<ErrorResponse><Error><Type>Sender</Type><Code>AccessDenied</Code><Message>Not with %s</Message></Error></ErrorResponse>`, webToken.Reveal())
	})
	china := podLogin
	china.AWSRoleARN = "arn:aws-cn:iam::123456789012:role/orders"
	for _, row := range []struct {
		name    string
		signer  *Source
		login   provider.Login
		token   provider.Secret
		class   provider.Class
		verdict lease.Verdict
		field   string
		says    string
	}{
		{"trust policy", denied, podLogin, webToken, provider.Denied, lease.Refused, "vaultAwsRoleArn", "to system:serviceaccount:shop:orders"},
		{"another partition", denied, china, webToken, provider.Invalid, lease.Wrong, "vaultAwsRoleArn", "partition aws-cn"},
		{"no region", signer(t, Config{}), podLogin, webToken, provider.Precondition, lease.Wrong, "", "--aws-region"},
		{"no identity of the daemon's", signer(t, Config{Region: "us-east-1"}), nodeLogin, "", provider.Denied, lease.Refused, "awsIdentity", "the node's identity"},
		{"no credentials of the daemon's", signer(t, Config{Region: "us-east-1", Node: provides{errors.New("canary")}}), nodeLogin, "", provider.Unavailable, lease.Retry, "awsIdentity", "the daemon's own credentials"},
	} {
		t.Run(row.name, func(t *testing.T) {
			_, err := row.signer.SignCallerIdentity(t.Context(), signingFor, row.login, row.token, headers)
			var f *lease.Failure
			require.ErrorAs(t, err, &f)
			require.Equal(t, row.class, f.Problem.Class, f)
			require.Equal(t, row.verdict, f.Verdict)
			require.Equal(t, row.field, f.Problem.Field)
			require.Contains(t, f.Error(), row.says)
			require.NotContains(t, f.Error(), "canary")
		})
	}
}
