package provider

import (
	"maps"
	"testing"

	"github.com/stretchr/testify/require"
)

const awsRole = "arn:aws:iam::123456789012:role/path/shop-web"

// awsAuth is attributes of a login with Vault's aws method, changed by more.
func awsAuth(more map[string]string) map[string]string {
	all := map[string]string{"vaultAuthMethod": "aws"}
	maps.Copy(all, more)
	return all
}

func TestParseAWSLogin(t *testing.T) {
	for _, row := range []struct {
		name string
		more map[string]string
		want Login
	}{
		{
			"the pod's role",
			map[string]string{"vaultAwsRoleArn": "arn:aws-cn:iam::123456789012:role/{namespace}-{serviceAccount}"},
			Login{Role: "web", Audience: "sts.amazonaws.com", AWSIdentity: "pod", AWSRoleARN: "arn:aws-cn:iam::123456789012:role/shop-web"},
		},
		{
			"own audience and mount",
			map[string]string{"awsIdentity": "pod", "vaultAwsRoleArn": awsRole, "audience": "x", "vaultAuthMountPath": "aws-x"},
			Login{Role: "web", Mount: "aws-x", Audience: "x", AWSIdentity: "pod", AWSRoleARN: awsRole},
		},
		{"the node", map[string]string{"awsIdentity": "node"}, Login{Role: "web", AWSIdentity: "node"}},
	} {
		t.Run(row.name, func(t *testing.T) {
			spec, err := Parse(request("tenure", awsAuth(row.more)))
			require.NoError(t, err)
			row.want.Method = "aws"
			require.Equal(t, row.want, spec.Objects[0].Read.Login)
			require.Empty(t, spec.Warnings)
		})
	}
}
