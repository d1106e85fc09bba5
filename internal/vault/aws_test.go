package vault

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tenure-csi/tenure/internal/lease"
	"github.com/tenure-csi/tenure/provider"
)

const (
	canarySession   = "FwoGZXIvYXdzEcanary/session+token=="
	canarySignature = "5f80f77d5fa3beca038a248ff027d0445342fe2855ddc963176630326f1024ca"
	awsRole         = "arn:aws:iam::123456789012:role/orders"
)

var (
	podAWSLogin  = provider.Login{Method: provider.AWSMethod, Role: "orders", Audience: "vault", AWSIdentity: "pod", AWSRoleARN: awsRole}
	nodeAWSLogin = provider.Login{Method: provider.AWSMethod, Role: "orders", AWSIdentity: "node"}
)

// signer stands in for the real one, and remembers what it was asked.
type signer struct {
	login  provider.Login
	token  provider.Secret
	header http.Header
	err    error
}

func (s *signer) SignCallerIdentity(ctx context.Context, _ lease.Caller, login provider.Login, token provider.Secret, h http.Header) (*http.Request, error) {
	s.login, s.token, s.header = login, token, h
	if s.err != nil {
		return nil, s.err
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://sts.example.com/", strings.NewReader("Action=GetCallerIdentity&Version=2011-06-15"))
	if err != nil {
		return nil, err
	}
	r.Header = h.Clone()
	r.Header.Set("Authorization", "AWS4-HMAC-SHA256 Credential=ASIACANARY/…, SignedHeaders=host, Signature="+canarySignature)
	r.Header.Set("X-Amz-Security-Token", canarySession)
	return r, nil
}

// TestAWSLogin looks at what is sent to Vault, field by field.
func TestAWSLogin(t *testing.T) {
	for _, row := range []struct {
		name     string
		login    provider.Login
		serverID string // the flag
		token    provider.Secret
		path     string
		sent     string // the header; empty: the host of Vault's address
	}{
		{"the pod's identity", podAWSLogin, "", podJWT(), "/v1/auth/aws/login", ""},
		{"server id by flag, own mount", provider.Login{Method: provider.AWSMethod, Mount: "aws/eu", Role: "orders", AWSIdentity: "pod", AWSRoleARN: awsRole}, "vault.example.com", podJWT(), "/v1/auth/aws/eu/login", "vault.example.com"},
		{"the node's identity", nodeAWSLogin, "", "", "/v1/auth/aws/login", ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			var path string
			var body map[string]string
			s := served(t, func(w http.ResponseWriter, r *http.Request) {
				path = r.URL.Path
				_ = json.NewDecoder(r.Body).Decode(&body)
				answering(200, `{"auth":{"client_token":"`+canaryToken+`","accessor":"acc","lease_duration":3600,"renewable":true}}`)(w, r)
			})
			signs := &signer{}
			s.cfg.AWS, s.cfg.AWSServerID, s.cfg.Mount = signs, row.serverID, "k8s"
			s.cfg.NodeLogin = func(provider.Pod, provider.Login) error { return nil }
			got, err := s.Login(t.Context(), mount, row.login, identity())
			require.NoError(t, err)
			require.Equal(t, lease.Session{Login: row.login, Token: canaryToken, Accessor: "acc", TTL: time.Hour, Renewable: true, Revocable: true}, got)
			require.Equal(t, row.path, path)
			require.Equal(t, row.token, signs.token)
			require.Equal(t, row.login, signs.login)

			require.Len(t, body, 5)
			require.Equal(t, "orders", body["role"])
			require.Equal(t, "POST", body["iam_http_request_method"])
			require.Equal(t, "https://sts.example.com/", base64Decoded(t, body["iam_request_url"]))
			require.Equal(t, "Action=GetCallerIdentity&Version=2011-06-15", base64Decoded(t, body["iam_request_body"]))
			var headers http.Header
			require.NoError(t, json.Unmarshal([]byte(base64Decoded(t, body["iam_request_headers"])), &headers))
			require.Equal(t, or(row.sent, "127.0.0.1"), headers.Get("X-Vault-AWS-IAM-Server-ID"))
			require.Equal(t, canarySession, headers.Get("X-Amz-Security-Token"))
			require.Contains(t, headers.Get("Authorization"), canarySignature)
		})
	}
}

func base64Decoded(t *testing.T, text string) string {
	t.Helper()
	raw, err := base64.StdEncoding.DecodeString(text)
	require.NoError(t, err)
	return string(raw)
}

// TestNodeIdentityIsGuarded refuses before anything is signed.
func TestNodeIdentityIsGuarded(t *testing.T) {
	with := func(edit func(*provider.Login)) provider.Login {
		l := nodeAWSLogin
		edit(&l)
		return l
	}
	allow := func(provider.Pod, provider.Login) error { return nil }
	for _, row := range []struct {
		name   string
		login  provider.Login
		allows func(provider.Pod, provider.Login) error
		says   string
	}{
		{"no bindings", nodeAWSLogin, nil, "no pod may log in with the node's identity here; use awsIdentity: pod, or have the operator allow it in --tenant-bindings"},
		{"no rule", nodeAWSLogin, func(p provider.Pod, l provider.Login) error {
			return &provider.Error{Class: provider.Denied, Cause: "no rule for " + p.Namespace + " and " + l.Role}
		}, "no rule for shop and orders"},
		{"own address, even an allowed one", with(func(l *provider.Login) { l.Address = "https://other:8200" }), allow, "to the daemon's own Vault only"},
		{"own address, even the daemon's", with(func(l *provider.Login) { l.Address = "https://vault:8200" }), allow, "to the daemon's own Vault only"},
		{"no verification", with(func(l *provider.Login) { l.SkipTLSVerify = true }), allow, "by the daemon's own TLS settings"},
		{"own CA", with(func(l *provider.Login) { l.CACertPath = "ca.pem" }), allow, "by the daemon's own TLS settings"},
		{"own server name", with(func(l *provider.Login) { l.TLSServerName = "evil" }), allow, "by the daemon's own TLS settings"},
	} {
		t.Run(row.name, func(t *testing.T) {
			signs := &signer{err: errors.New("signed")}
			s := source(t, Config{
				Addr: "https://vault:8200", AllowedAddrs: []string{"https://other:8200"}, AllowSkipVerify: true, TLSDir: t.TempDir(), AWS: signs, NodeLogin: row.allows,
			})
			_, err := s.Login(t.Context(), mount, row.login, identity())
			f := failure(t, err)
			require.Equal(t, provider.Denied, f.Problem.Class)
			require.Contains(t, f.Error(), row.says)
			require.Nil(t, signs.header, "nothing was signed")
		})
	}
}

func TestAWSLoginWithoutProof(t *testing.T) {
	asked := func(http.ResponseWriter, *http.Request) { t.Error("Vault was asked") }
	for _, row := range []struct {
		name    string
		aws     CallerIdentity
		id      provider.Identity
		class   provider.Class
		verdict lease.Verdict
		says    string
	}{
		{"no AWS", nil, identity(), provider.Precondition, lease.Wrong, "this daemon logs in to no Vault by way of AWS"},
		{"no token", &signer{}, provider.Identity{}, provider.Precondition, lease.Wrong, `audience "vault" did not come with the Mount call`},
		{"refused by STS", &signer{err: &lease.Failure{Verdict: lease.Refused, Problem: provider.Error{Class: provider.Denied, Field: "vaultAwsRoleArn", Cause: "AccessDenied"}}}, identity(), provider.Denied, lease.Refused, "AccessDenied"},
		{"STS away", &signer{err: &lease.Failure{Problem: provider.Error{Class: provider.Unavailable, Cause: "no answer"}}}, identity(), provider.Unavailable, lease.Retry, "no answer"},
	} {
		t.Run(row.name, func(t *testing.T) {
			s := served(t, asked)
			s.cfg.AWS = row.aws
			_, err := s.Login(t.Context(), mount, podAWSLogin, row.id)
			f := failure(t, err)
			require.Equal(t, row.class, f.Problem.Class)
			require.Equal(t, row.verdict, f.Verdict)
			require.Contains(t, f.Error(), row.says)
		})
	}
}

func TestAWSTexts(t *testing.T) {
	const sts = `error making upstream request: received error code 403 from STS: <ErrorResponse><Error><Type>Sender</Type><Code>`
	for _, row := range []struct {
		name   string
		status int
		text   string
		class  provider.Class
		says   string
	}{
		{"server id", 400, `error validating X-Vault-AWS-IAM-Server-ID header: expected "vault.example.com" but got "127.0.0.1"`, provider.Precondition, "set --vault-aws-server-id to iam_server_id_header_value of auth/aws/config/client"},
		{"another principal", 400, `IAM Principal "arn:aws:sts::123456789012:assumed-role/x/y" does not belong to the role "orders"`, provider.Denied, "bound_iam_principal_arn of Vault role orders"},
		{"no role", 400, `entry for role orders not found`, provider.Denied, "write the role at auth/aws/role/orders"},
		{"role for instances", 400, `auth method iam not allowed for role orders`, provider.Denied, "set auth_type=iam on Vault role orders"},
		{"another region", 400, sts + `SignatureDoesNotMatch</Code><Message>Credential should be scoped to a valid region.</Message>`, provider.Precondition, "sts_endpoint and sts_region of auth/aws/config/client"},
		{"clock", 400, sts + `SignatureDoesNotMatch</Code><Message>Signature expired: 20261121T120000Z is now earlier than …</Message>`, provider.Precondition, "compare the clocks of this node and of AWS"},
		{"another partition", 400, sts + `InvalidClientTokenId</Code>`, provider.Denied, "compare sts_endpoint"},
		{"STS down", 400, `error making upstream request: received error code 503 from STS: `, provider.Unavailable, "503"},
		{"STS unreachable", 400, `error making upstream request: error making request: dial tcp: lookup sts.amazonaws.com: no such host`, provider.Unavailable, "no such host"},
		{"no such mount", 403, "permission denied", provider.Denied, "check that auth/aws is enabled"},
		{"echo", 400, "error making upstream request: received error code 403 from STS: " + canarySession + " " + canarySignature + " " + podJWT().Reveal(), provider.Denied, "403 from STS: [redacted] [redacted] [redacted]"},
	} {
		t.Run(row.name, func(t *testing.T) {
			s := refusing(t, row.status, row.text)
			s.cfg.AWS = &signer{}
			_, err := s.Login(t.Context(), mount, podAWSLogin, identity())
			f := failure(t, err)
			require.Equal(t, row.class, f.Problem.Class, f.Error())
			require.Equal(t, row.class == provider.Unavailable, f.Verdict == lease.Retry)
			require.Contains(t, f.Error(), row.says)
			requireClean(t, f)
			for _, secret := range []string{canarySession, canarySignature, podJWT().Reveal()} {
				require.NotContains(t, f.Error(), secret)
			}
		})
	}
}

// TestNewKeysAreHeldBack: a user's key is handed out when AWS may know it, a
// session at once.
func TestNewKeysAreHeldBack(t *testing.T) {
	for _, row := range []struct {
		name, body string
		wait       time.Duration
	}{
		{"user", `{"lease_id":"aws/creds/x/1","lease_duration":3600,"renewable":true,"data":{"access_key":"A","secret_key":"B","session_token":null}}`, 10 * time.Second},
		{"session", `{"lease_id":"aws/sts/x/1","lease_duration":3600,"data":{"access_key":"A","secret_key":"B","session_token":"C","ttl":3600}}`, 0},
	} {
		t.Run(row.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := bubbled(t, answering(200, row.body))
				s.cfg.KeyDelay = 10 * time.Second
				start := time.Now()
				_, err := s.Read(t.Context(), mount, opened(), provider.Read{Source: "vault", Method: "GET", Path: "aws/creds/x"})
				require.NoError(t, err)
				require.Equal(t, row.wait, time.Since(start))

				ctx, cancel := context.WithCancel(t.Context())
				time.AfterFunc(time.Second, cancel)
				start = time.Now()
				_, err = s.Read(ctx, mount, opened(), provider.Read{Source: "vault", Method: "GET", Path: "aws/creds/x"})
				require.NoError(t, err, "the answer is kept, for who has to end it")
				require.Equal(t, min(row.wait, time.Second), time.Since(start), "nobody waits for what nobody wants")
			})
		})
	}
}
