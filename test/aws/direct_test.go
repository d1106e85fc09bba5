package aws

import (
	"context"
	"crypto/rand"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tenure-csi/tenure/internal/aws"
	"github.com/tenure-csi/tenure/internal/lease"
	"github.com/tenure-csi/tenure/provider"
	"github.com/tenure-csi/tenure/test/fixture"
)

// directSession asks STS without Vault; the policy confines it to the prefix of the
// pod's namespace.
func directSession(more string) map[string]string {
	return map[string]string{"objects": `
- objectName: aws
  source: aws-sts
  format: json
  roleArn: ` + cloud.Role("{serviceAccount}") + `
  sessionPolicy:
    Version: 2012-10-17
    Statement: [{Effect: Allow, Action: "s3:*", Resource: "arn:aws:s3:::` + cloud.MinIO.Bucket + `/{namespace}/*"}]
` + more}
}

// direct describes a volume of a new pod of a namespace.
func (s *site) direct(t *testing.T, namespace string, parameters map[string]string) *fixture.Volume {
	t.Helper()
	id := strings.ToLower(rand.Text())
	pod := fixture.Pod{Namespace: namespace, Name: "app-" + id[:5], UID: id, ServiceAccount: "app"}
	v, err := s.node.Volume(pod, "aws", fixture.SPC{Name: "direct", Provider: "tenure", Parameters: parameters}, nil)
	require.NoError(t, err)
	v.Audiences = []string{"sts.amazonaws.com"}
	return v
}

// TestDirectSessionsAreTheTenants: pods of two namespaces mount one SPC. MinIO's STS
// verifies their tokens, and its store enforces the policy of each.
func TestDirectSessionsAreTheTenants(t *testing.T) {
	s := newSite(t, "--cluster-name=prod")
	ctx := t.Context()
	sessions := map[string]keys{}
	for _, namespace := range []string{"tenant-a", "tenant-b"} {
		v := s.direct(t, namespace, directSession(""))
		_, err := v.Mount(ctx)
		require.NoError(t, err)
		sessions[namespace] = keysIn(t, v, "aws")
		l := s.status(t, v).Leases[0]
		require.WithinRange(t, l.Next, time.Now(), time.Now().Add(40*time.Minute), "20 minutes and more before the end")
		require.False(t, l.Renewable)

		asked := cloud.Asked("AssumeRoleWithWebIdentity")
		_, err = v.Mount(ctx)
		require.NoError(t, err)
		require.Equal(t, asked, cloud.Asked("AssumeRoleWithWebIdentity"), "a republish asks nobody")
	}
	a, b := sessions["tenant-a"], sessions["tenant-b"]
	require.Empty(t, a.put(ctx, "tenant-a"))
	require.Empty(t, b.put(ctx, "tenant-b"))
	require.Equal(t, "AccessDenied", a.put(ctx, "tenant-b"))
	require.Equal(t, "AccessDenied", b.put(ctx, "tenant-a"))
	require.Equal(t, "AccessDenied", b.put(ctx, "tenant-"))
	who, err := a.identity(ctx)
	require.NoError(t, err)
	require.Equal(t, "arn:aws:sts::"+fixture.Account+":assumed-role/app/tenant-a.app@prod", who, "the front tells the session's name")
}

// TestDirectRefusals: what a user gets wrong is told in the pod's Event; MinIO says
// no where nothing else is said.
func TestDirectRefusals(t *testing.T) {
	s := newSite(t)
	for _, row := range []struct {
		name  string
		more  string
		token []string
		code  codes.Code
		says  []string
	}{
		{"no token for STS", "", []string{"vault"}, codes.FailedPrecondition, []string{`object "aws", field "audience"`, `audience "sts.amazonaws.com" did not come with the Mount call`}},
		{"a token for somebody else", "  audience: vault\n", []string{"vault"}, codes.PermissionDenied, []string{"asking STS in us-east-1 for a session of " + cloud.Role("app")}},
		{"the node's identity", "  identity: node\n", nil, codes.InvalidArgument, []string{`field "roleArn"`, "the cluster's operator alone says it"}},
		{"a longer life than any", "  ttl: 13h\n", nil, codes.InvalidArgument, []string{`field "ttl": is longer than 12h`}},
		{"another partition", "  region: cn-north-1\n", nil, codes.InvalidArgument, []string{`field "roleArn": is of partition aws, and region cn-north-1 is of aws-cn`}},
	} {
		t.Run(row.name, func(t *testing.T) {
			v := s.direct(t, "shop", directSession(row.more))
			if row.token != nil {
				v.Audiences = row.token
			}
			_, err := v.Mount(t.Context())
			require.Equal(t, row.code, status.Code(err), err)
			for _, text := range row.says {
				require.ErrorContains(t, err, text)
			}
		})
	}
	v := s.direct(t, "shop", map[string]string{"objects": "- {objectName: aws, source: aws-sts, format: json, identity: node}"})
	_, err := v.Mount(t.Context())
	require.Equal(t, codes.PermissionDenied, status.Code(err), err)
	require.ErrorContains(t, err, `object "aws", field "identity": the daemon has no tenant bindings`)
}

// directSessionsRotate also kills the daemon: its journal holds no key and no token.
func directSessionsRotate(t *testing.T) {
	t.Helper()
	s := newSite(t)
	v := s.direct(t, "shop", directSession(""))
	ctx := within(t, 6*time.Minute)
	_, err := v.Mount(ctx)
	require.NoError(t, err)
	asked := cloud.Asked("AssumeRoleWithWebIdentity")
	for range 3 {
		k := keysIn(t, v, "aws")
		require.Empty(t, k.put(ctx, "shop"))
		require.NoError(t, fixture.Eventually(ctx, true, func(context.Context) (bool, error) { return keysIn(t, v, "aws").ID != k.ID, nil }))
		require.Greater(t, time.Until(k.Expiration), 10*time.Second, "it is replaced in time")
	}
	require.Equal(t, 3, cloud.Asked("AssumeRoleWithWebIdentity")-asked, "one call a replacement")
	require.Equal(t, lease.Scheduled, s.status(t, v).Leases[0].Reason)

	require.NoError(t, s.daemon.Kill())
	require.NoError(t, s.daemon.Restart(ctx))
	require.Equal(t, 3, cloud.Asked("AssumeRoleWithWebIdentity")-asked, "a restart asks nobody")
	_, err = v.Mount(ctx)
	require.NoError(t, err)
	require.Empty(t, keysIn(t, v, "aws").put(ctx, "shop"))
	journal, err := filepath.Glob(filepath.Join(s.node.State, "*.json"))
	require.NoError(t, err)
	require.NotEmpty(t, journal)
	for _, file := range journal {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		require.NotContains(t, string(text), keysIn(t, v, "aws").Secret)
		require.NotContains(t, string(text), "eyJ", "no token is kept")
	}
}

// TestChainedSession assumes a role from a long-lived key, as with the node's
// identity and from the agent's session: MinIO checks the signature.
func TestChainedSession(t *testing.T) {
	user := cloud.MinIO.User
	source, err := aws.New(aws.Config{
		Region: fixture.Region, STSEndpoint: cloud.URL,
		Node: awssdk.NewCredentialsCache(credentials.NewStaticCredentialsProvider(user.ID, user.Secret, "")),
	})
	require.NoError(t, err)
	t.Cleanup(source.Close)
	ask := func(policy string) (lease.Issued, error) {
		return source.Read(t.Context(), lease.Caller{Pod: provider.Pod{Namespace: "shop", ServiceAccount: "app"}}, lease.Session{}, provider.Read{
			Source: "aws-sts", AWS: provider.AWS{Identity: provider.NodeIdentity, RoleARN: cloud.Role("pool"), SessionPolicy: policy},
		})
	}
	issued, err := ask(tenantPolicy("a"))
	require.NoError(t, err)
	text := func(name string) string { return issued.Secret.Data[name].(string) }
	k := keys{ID: text("access_key"), Secret: text("secret_key"), Token: text("session_token")}
	require.Empty(t, k.put(t.Context(), "a"))
	require.Equal(t, "AccessDenied", k.put(t.Context(), "b"))

	_, err = ask(`{"Statement": "no policy"}`)
	var f *lease.Failure
	require.ErrorAs(t, err, &f)
	require.False(t, f.Problem.Class.Passing(), err)
}
