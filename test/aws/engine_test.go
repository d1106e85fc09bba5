package aws

import (
	"context"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/stretchr/testify/require"

	"github.com/tenure-csi/tenure/internal/lease"
	"github.com/tenure-csi/tenure/test/fixture"
)

// engine mounts Vault's AWS engine for the site.
func (s *site) engine(t *testing.T) {
	t.Helper()
	require.NoError(t, stack.Vault.EnableAWS(t.Context(), s.name, cloud, time.Hour, 24*time.Hour))
}

// role writes a role of the engine whose credentials may do everything below the
// prefix of its own name.
func (s *site) role(t *testing.T, name, credentialType string) {
	t.Helper()
	require.NoError(t, stack.Vault.AWSRole(t.Context(), s.name, name, credentialType, tenantPolicy(name)))
}

// TestSessionsAreTheTenants gives two pods sessions of one IAM role that Vault
// narrows by a policy each. MinIO's STS grants them and its store enforces them.
func TestSessionsAreTheTenants(t *testing.T) {
	s := newSite(t)
	s.engine(t)
	for _, kind := range []string{"assumed_role", "federation_token"} { // the latter by way of the front
		t.Run(kind, func(t *testing.T) {
			a, b := "a-"+kind, "b-"+kind
			s.role(t, a, kind)
			s.role(t, b, kind)
			va, vb := s.mounted(t, nil, s.name+"/sts/"+a), s.mounted(t, nil, s.name+"/sts/"+b)
			ka, kb := keysIn(t, va, a), keysIn(t, vb, b)
			ctx := t.Context()
			require.Empty(t, ka.put(ctx, a))
			require.Empty(t, kb.put(ctx, b))
			require.Equal(t, "AccessDenied", ka.put(ctx, b))
			require.Equal(t, "AccessDenied", kb.put(ctx, a))
			require.WithinDuration(t, time.Now().Add(time.Hour), ka.Expiration, time.Minute)

			said := s.status(t, va)
			require.Len(t, said.Leases, 1)
			require.True(t, said.Leases[0].Unrevocable)
			require.False(t, said.Leases[0].Renewable)
			require.WithinRange(t, said.Leases[0].Next, time.Now(), time.Now().Add(40*time.Minute), "20 minutes and more before the end")

			require.NoError(t, s.node.DeletePod(va.Pod))
			require.NoError(t, fixture.Eventually(within(t, 2*time.Minute), 0, func(ctx context.Context) (int, error) {
				return stack.Vault.LeaseCount(ctx, s.name+"/sts/"+a)
			}), "Vault forgets the lease with the token")
			require.Empty(t, ka.put(ctx, a), "and the session works on, as the documentation says")
		})
	}
}

// TestSessionToken has the rights of Vault's own user, without a policy.
func TestSessionToken(t *testing.T) {
	s := newSite(t)
	s.engine(t)
	require.NoError(t, stack.Vault.AWSRole(t.Context(), s.name, "user", "session_token", ""))
	v := s.mounted(t, nil, s.name+"/sts/user")
	require.Empty(t, keysIn(t, v, "user").put(t.Context(), "anything"))
	require.True(t, s.status(t, v).Leases[0].Unrevocable)
}

// TestSessionsRotate lets sessions end after 40 s and watches three replacements of
// each kind: whoever reads the file has a working session at any time.
func TestSessionsRotate(t *testing.T) {
	cloud.EndSessionsAfter(40 * time.Second)
	t.Cleanup(func() { cloud.EndSessionsAfter(0) })
	t.Run("Vault's", func(t *testing.T) {
		t.Parallel()
		vaultSessionsRotate(t)
	})
	t.Run("the pod's", func(t *testing.T) {
		t.Parallel()
		directSessionsRotate(t)
	})
}

func vaultSessionsRotate(t *testing.T) {
	t.Helper()
	s := newSite(t)
	s.engine(t)
	s.role(t, "tenant", "assumed_role")
	v := s.mounted(t, nil, s.name+"/sts/tenant")
	asked := cloud.Asked("AssumeRole")
	seen := map[string]bool{}
	var first keys
	ctx := within(t, 6*time.Minute)
	for len(seen) < 4 {
		k := keysIn(t, v, "tenant")
		if len(seen) == 0 {
			first = k
		}
		seen[k.ID] = true
		require.Empty(t, k.put(ctx, "tenant"))
		require.Greater(t, time.Until(k.Expiration), 10*time.Second, "it is replaced in time")
		require.NoError(t, fixture.Eventually(ctx, true, func(context.Context) (bool, error) {
			return keysIn(t, v, "tenant").ID != k.ID || len(seen) == 4, nil
		}))
	}
	require.Equal(t, 3, cloud.Asked("AssumeRole")-asked, "one call a replacement")
	require.Equal(t, "ExpiredToken", first.put(ctx, "tenant"), "the front ends sessions when it said")
	require.Equal(t, lease.Scheduled, s.status(t, v).Leases[0].Reason)
}

// identity asks the front's STS whose keys these are.
func (k keys) identity(ctx context.Context) (string, error) {
	c := sts.New(sts.Options{Region: fixture.Region, BaseEndpoint: &cloud.URL, Credentials: k.provider(), HTTPClient: client, Retryer: aws.NopRetryer{}})
	out, err := c.GetCallerIdentity(ctx, nil)
	if err != nil {
		return "", err
	}
	return *out.Arn, nil
}

// TestUserKeysAreHeldBack has a stand-in for IAM that knows a new key a while after
// it was made: a key in the file works at once where the daemon holds keys back for
// longer, and it goes with its pod.
func TestUserKeysAreHeldBack(t *testing.T) {
	t.Cleanup(func() { cloud.KnowKeysAfter(0) })
	for _, row := range []struct {
		delay, refused string
		known          time.Duration // after a key was made
	}{
		{"4s", "", 3 * time.Second},
		{"0s", "InvalidClientTokenId", time.Hour},
	} {
		t.Run(row.delay, func(t *testing.T) {
			cloud.KnowKeysAfter(row.known)
			s := newSite(t, "--vault-aws-key-delay="+row.delay)
			s.engine(t)
			s.role(t, "user", "iam_user")
			v := s.mounted(t, nil, s.name+"/creds/user")
			who, err := keysIn(t, v, "user").identity(t.Context())
			require.Equal(t, row.refused, codeOf(err))
			if err == nil {
				require.Contains(t, who, ":user/vault-")
			}
			l := s.status(t, v).Leases[0]
			require.False(t, l.Unrevocable)
			require.True(t, l.Renewable)
			require.Equal(t, 1, cloud.Users())
			require.NoError(t, s.node.DeletePod(v.Pod))
			require.NoError(t, fixture.Eventually(within(t, 2*time.Minute), 0, func(context.Context) (int, error) { return cloud.Users(), nil }))
		})
	}
}
