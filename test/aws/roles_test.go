package aws

import (
	"crypto/rand"
	"maps"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tenure-csi/tenure/test/fixture"
)

const (
	// byRole asks with the pod's identity for the IAM role of its tenant, see roleOf.
	byRole = "[{objectName: '{tenant}/aws', source: aws-sts, format: json, roleArn: 'arn:aws:iam::123456789012:role/pool-{tenant}'}]"
	// everything is the widest session policy there is.
	everything = `{Version: "2012-10-17", Statement: [{Effect: Allow, Action: "s3:*", Resource: "*"}]}`
)

// byRoleOf are byRole's objects for the role of one tenant, whatever the tenant,
// with a session policy (empty: without).
func byRoleOf(tenant, policy string) map[string]string {
	object := strings.Replace(byRole, "pool-{tenant}", "pool-"+tenant, 1)
	if policy != "" {
		object = strings.Replace(object, "}]", ", sessionPolicy: "+policy+"}]", 1)
	}
	return map[string]string{"objects": object}
}

// withoutTenants leaves the tenants out: the file keeps its name.
func withoutTenants(spc map[string]string) map[string]string {
	return map[string]string{"tenants": "-", "objects": strings.Replace(spc["objects"], "{tenant}", "acme", 1)}
}

// TestPodsRoleIsTheBoundary: with the pod's own identity the author says role and
// session policy. Whatever the policy is, a session of a tenant's own IAM role
// reaches no other tenant: MinIO's store enforces the role's policy.
func TestPodsRoleIsTheBoundary(t *testing.T) {
	a := newAttacked(t)
	const other = `{Version: "2012-10-17", Statement: [{Effect: Allow, Action: "s3:*", Resource: "arn:aws:s3:::tenants/globex/*"}]}`
	for _, row := range []struct {
		name string
		spc  map[string]string
		own  string // AWS's answer about the tenant's own
	}{
		{"without a policy", nil, ""},
		{"a policy of everything", byRoleOf("acme", everything), ""},
		{"another tenant's policy", byRoleOf("acme", other), "AccessDenied"},
		{"without tenants", withoutTenants(byRoleOf("acme", "")), ""},
		{"without tenants, everything", withoutTenants(byRoleOf("acme", everything)), ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			v := a.volume(t, attack{by: "pod at STS", spc: row.spc})
			_, err := v.Mount(t.Context())
			require.NoError(t, err)
			k := keysIn(t, v, "acme/aws")
			require.Equal(t, row.own, k.put(t.Context(), "acme"))
			require.Equal(t, "AccessDenied", k.put(t.Context(), "globex"))
			if row.own == "" {
				k.confined(t, "acme", "globex")
			}
		})
	}
}

// TestRolesTrustTheirOwn: without tenant bindings, IAM's trust policies alone say
// whose pods may be which tenant.
func TestRolesTrustTheirOwn(t *testing.T) {
	s := newSite(t)
	volume := func(account string, parameters map[string]string) *fixture.Volume {
		all := map[string]string{"tenants": "[globex]", "objects": byRole}
		maps.Copy(all, parameters)
		id := strings.ToLower(rand.Text())
		v, err := s.node.Volume(fixture.Pod{Namespace: "shop", Name: account, UID: id, ServiceAccount: account}, "aws", fixture.SPC{Name: "roles", Provider: "tenure", Parameters: all}, nil)
		require.NoError(t, err)
		v.Audiences = []string{"sts.amazonaws.com"}
		return v
	}
	const refused = `object "globex/aws", field "roleArn", tenant "globex": asking STS in us-east-1 for a session of arn:aws:iam::123456789012:role/pool-globex: ` +
		"it answers AccessDenied: Not authorized to perform sts:AssumeRoleWithWebIdentity; " +
		"let the role's trust policy allow sts:AssumeRoleWithWebIdentity to system:serviceaccount:shop:app with audience sts.amazonaws.com"
	for name, row := range map[string]map[string]string{
		"another tenant":                nil,
		"another tenant beside its own": {"tenants": "[acme, globex]"},
		"left out if need be":           {"onTenantFailure": "skip"},
	} {
		_, err := volume("app", row).Mount(t.Context())
		require.Equal(t, codes.PermissionDenied, status.Code(err), name)
		require.ErrorContains(t, err, refused, name)
	}
	v := volume("other", nil)
	_, err := v.Mount(t.Context())
	require.NoError(t, err)
	keysIn(t, v, "globex/aws").confined(t, "globex", "acme")
}

// TestSharedRoleIsNoBoundary shows what the documentation warns of first: where one
// IAM role may read several tenants, a session policy confines the file alone, and
// whoever leaves it out reads another's.
func TestSharedRoleIsNoBoundary(t *testing.T) {
	a := newAttacked(t)
	v := a.volume(t, attack{by: "pod at STS", spc: map[string]string{"objects": byPod}})
	_, err := v.Mount(t.Context())
	require.NoError(t, err)
	keysIn(t, v, "acme/aws").confined(t, "acme", "globex")

	v = a.volume(t, attack{by: "pod at STS", spc: map[string]string{"objects": strings.Replace(byRole, "role/pool-{tenant}", "role/pool", 1)}})
	_, err = v.Mount(t.Context())
	require.NoError(t, err)
	require.Empty(t, keysIn(t, v, "acme/aws").put(t.Context(), "globex"), "the role itself may")
}
