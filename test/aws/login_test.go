package aws

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tenure-csi/tenure/internal/aws"
	"github.com/tenure-csi/tenure/internal/lease"
	"github.com/tenure-csi/tenure/internal/vault"
	"github.com/tenure-csi/tenure/provider"
	"github.com/tenure-csi/tenure/test/fixture"
)

const (
	serverID     = "vault.example.com"
	serverHeader = "X-Vault-Aws-Iam-Server-Id"
)

// login mounts Vault's aws auth method for the site, with a role of the site's name
// for one principal, and answers the mount.
func (s *site) login(t *testing.T, principal string) string {
	t.Helper()
	mount := "aws-" + s.name
	require.NoError(t, stack.Vault.EnableAWSAuth(t.Context(), mount, serverID, cloud))
	require.NoError(t, stack.Vault.AWSAuthRole(t.Context(), mount, s.name, principal, fixture.AuthRole{Policies: []string{s.name}, TTL: time.Hour}))
	require.NoError(t, stack.Vault.EnableKV1(t.Context(), s.name))
	require.NoError(t, stack.Vault.WriteKV1(t.Context(), s.name, "app", map[string]any{"k": "v"}))
	return mount
}

// TestPodsLogIn exchanges a pod's token at MinIO's STS and lets Vault verify the
// signature of that session at the front, in every way that a user gets right or
// wrong.
func TestPodsLogIn(t *testing.T) {
	s := newSite(t, "--vault-aws-server-id="+serverID, "--log-level=debug")
	other := newSite(t, "--vault-aws-server-id=other")
	mount := s.login(t, cloud.Role("app"))
	for _, row := range []struct {
		name  string
		site  *site
		more  map[string]string
		token []string // audiences; nil: that of STS
		ttl   time.Duration
		code  codes.Code
		says  []string
	}{
		{"the bound role", s, nil, nil, 0, codes.OK, nil},
		{"the bound role, placeholder", s, map[string]string{"vaultAwsRoleArn": cloud.Role("{serviceAccount}")}, nil, 0, codes.OK, nil},
		{"another role", s, map[string]string{"vaultAwsRoleArn": cloud.Role("other")}, nil, 0, codes.PermissionDenied, []string{
			`field "roleName"`, "does not belong to the role", "bound_iam_principal_arn of Vault role " + s.name,
		}},
		{"no such Vault role", s, map[string]string{"roleName": "nobody"}, nil, 0, codes.PermissionDenied, []string{"entry for role nobody not found", "write the role at auth/" + mount + "/role/nobody"}},
		{"no token for STS", s, nil, []string{"vault"}, 0, codes.FailedPrecondition, []string{`field "audience"`, `audience "sts.amazonaws.com" did not come with the Mount call`}},
		{"a token for somebody else", s, map[string]string{"audience": "vault"}, []string{"vault"}, 0, codes.PermissionDenied, []string{"asking STS in us-east-1 for a session of " + cloud.Role("app")}},
		{"expired", s, nil, nil, -time.Hour, codes.FailedPrecondition, []string{"expired at 20"}},
		{"another server id", other, nil, nil, 0, codes.FailedPrecondition, []string{
			`expected "vault.example.com" but got "other"`, "set --vault-aws-server-id to iam_server_id_header_value of auth/" + mount + "/config/client",
		}},
		{"the node's identity", s, map[string]string{"awsIdentity": "node", "vaultAwsRoleArn": ""}, nil, 0, codes.PermissionDenied, []string{
			`field "awsIdentity"`, "have the operator set --tenant-bindings",
		}},
	} {
		t.Run(row.name, func(t *testing.T) {
			parameters := map[string]string{"vaultAuthMethod": "aws", "vaultAuthMountPath": mount, "vaultAwsRoleArn": cloud.Role("app"), "roleName": s.name}
			for name, value := range row.more {
				parameters[name] = value
				if value == "" {
					delete(parameters, name)
				}
			}
			v := row.site.volume(t, parameters, s.name+"/app")
			v.Audiences, v.TokenTTL = []string{"sts.amazonaws.com"}, time.Hour
			if row.token != nil {
				v.Audiences = row.token
			}
			if row.ttl != 0 {
				v.TokenTTL = row.ttl
			}
			_, err := v.Mount(t.Context())
			require.Equal(t, row.code, status.Code(err), "got %v", err)
			for _, part := range row.says {
				require.ErrorContains(t, err, part)
			}
			if err == nil {
				text, err := v.Read("app")
				require.NoError(t, err)
				require.JSONEq(t, `{"k": "v"}`, string(text))
				require.NoError(t, s.node.DeletePod(v.Pod))
			}
		})
	}
	require.NoError(t, fixture.Eventually(within(t, 2*time.Minute), 0, func(ctx context.Context) (int, error) {
		return stack.Vault.TokenCount(ctx, mount)
	}), "the tokens go with their pods")
	for _, canary := range []string{"eyJ", "Signature=", "AWS4-HMAC"} {
		require.NotContains(t, s.daemon.Logs(), canary)
	}
}

// tampered changes what a signer signed, or what it is told to sign.
type tampered struct {
	vault.CallerIdentity
	before func(http.Header)
	after  func(*http.Request)
}

func (m tampered) SignCallerIdentity(ctx context.Context, by lease.Caller, login provider.Login, token provider.Secret, h http.Header) (*http.Request, error) {
	if m.before != nil {
		m.before(h)
	}
	r, err := m.CallerIdentity.SignCallerIdentity(ctx, by, login, token, h)
	if err == nil && m.after != nil {
		m.after(r)
	}
	return r, err
}

// TestNodeLogsIn lets a real Vault judge the node's login, as the daemon's source
// makes it and as an attacker would change it.
func TestNodeLogsIn(t *testing.T) {
	s := newSite(t)
	mount := s.login(t, "arn:aws:iam::"+fixture.Account+":user/"+cloud.MinIO.User.ID)
	var called atomic.Bool
	evil := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { called.Store(true) }))
	t.Cleanup(evil.Close)
	body := func(text string) func(*http.Request) {
		return func(r *http.Request) {
			r.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(text)), nil }
		}
	}
	header := func(name, value string) func(*http.Request) {
		return func(r *http.Request) { r.Header.Set(name, value) }
	}
	for _, row := range []struct {
		name   string
		key    string // of the node; empty: the right one
		before func(http.Header)
		after  func(*http.Request)
		says   string // by Vault; empty: it lets the node in
	}{
		{"as it is", "", nil, nil, ""},
		{"wrong secret", "wrong", nil, nil, "SignatureDoesNotMatch"},
		{"another date", "", nil, header("X-Amz-Date", time.Now().UTC().Add(time.Minute).Format("20060102T150405Z")), "SignatureDoesNotMatch"},
		{"replayed after 20 minutes", "", nil, header("X-Amz-Date", time.Now().UTC().Add(-20*time.Minute).Format("20060102T150405Z")), "signature expired"},
		{"another action", "", nil, body("Action=GetSessionToken&Version=2011-06-15"), "iam request body is invalid"},
		{"a parameter more", "", nil, body("Action=GetCallerIdentity&Version=2011-06-15&X=y"), "iam request body is invalid"},
		{"another host", "", nil, func(r *http.Request) { r.URL.Host = strings.TrimPrefix(evil.URL, "http://") }, "SignatureDoesNotMatch"},
		{"another path", "", nil, func(r *http.Request) { r.URL.Path = "/x" }, "SignatureDoesNotMatch"},
		{"no server id", "", func(h http.Header) { delete(h, serverHeader) }, nil, "missing header"},
		{"server id taken away", "", nil, func(r *http.Request) { r.Header.Del(serverHeader) }, "missing header"},
		{"server id changed", "", func(h http.Header) { h.Set(serverHeader, "other") }, header(serverHeader, serverID), "SignatureDoesNotMatch"},
		{"server id added unsigned", "", func(h http.Header) { delete(h, serverHeader) }, header(serverHeader, serverID), "vault header wasn't signed"},
		{"server id of another Vault", "", func(h http.Header) { h.Set(serverHeader, "other") }, nil, `expected "vault.example.com" but got "other"`},
	} {
		t.Run(row.name, func(t *testing.T) {
			secret := cloud.MinIO.User.Secret
			if row.key != "" {
				secret = row.key
			}
			signer, err := aws.New(aws.Config{
				Region: fixture.Region, STSEndpoint: cloud.URL, Node: awssdk.CredentialsProvider(credentials.NewStaticCredentialsProvider(cloud.MinIO.User.ID, secret, "")),
			})
			require.NoError(t, err)
			t.Cleanup(signer.Close)
			source, err := vault.New(vault.Config{
				Addr: stack.Vault.Addr, AWS: tampered{signer, row.before, row.after}, AWSServerID: serverID,
				NodeLogin: func(provider.Pod, provider.Login) error { return nil },
			})
			require.NoError(t, err)
			t.Cleanup(source.Close)
			by := lease.Caller{Pod: provider.Pod{Namespace: "shop", Name: "app", UID: "u", ServiceAccount: "app"}}
			got, err := source.Login(t.Context(), by, provider.Login{Method: "aws", Mount: mount, Role: s.name, AWSIdentity: "node"}, provider.Identity{})
			if row.says != "" {
				require.ErrorContains(t, err, row.says)
				return
			}
			require.NoError(t, err)
			issued, err := source.Read(t.Context(), by, got, provider.Read{Method: http.MethodGet, Path: s.name + "/app"})
			require.NoError(t, err)
			require.Equal(t, map[string]any{"k": "v"}, issued.Secret.Data)
			require.NoError(t, source.EndSession(t.Context(), by, got))
		})
	}
	require.False(t, called.Load(), "Vault asks the STS that it was told, whatever a request names")
}
