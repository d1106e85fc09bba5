package aws

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/feature/ec2/imds"
	"github.com/stretchr/testify/require"

	"github.com/tenure-csi/tenure/test/fixture"
)

// awscli is Debian's: its version is one that the tests know of.
const awscli = "/usr/bin/aws"

// formatted mounts a volume with one object, named aws, in a format of AWS's, and
// answers where the application sees it: a path that may stand in a command.
func (s *site) formatted(t *testing.T, format, role string) (mountPath string) {
	t.Helper()
	v := s.volume(t, map[string]string{"defaults": "{format: " + format + "}"}, s.name+"/sts/"+role)
	v.Attributes["objects"] = "[{objectName: aws, secretPath: " + s.name + "/sts/" + role + "}]"
	mountPath = filepath.Join(t.TempDir(), "secrets")
	v.Attributes["mountPath"] = mountPath
	_, err := v.Mount(t.Context())
	require.NoError(t, err)
	require.NoError(t, os.Symlink(v.Target, mountPath))
	return mountPath
}

// TestAWSCLI lets Debian's awscli use either file: what the tenant may do works,
// what another may do does not.
func TestAWSCLI(t *testing.T) {
	require.FileExists(t, awscli, "install it: apt-get install awscli")
	s := newSite(t)
	s.engine(t)
	s.role(t, "tenant", "assumed_role")
	file := filepath.Join(t.TempDir(), "body")
	require.NoError(t, os.WriteFile(file, []byte("x"), 0o600))
	for _, row := range []struct{ format, variable, path string }{
		{"aws-credentials", "AWS_SHARED_CREDENTIALS_FILE", "aws"},
		{"aws-credential-process", "AWS_CONFIG_FILE", "aws/config"},
	} {
		t.Run(row.format, func(t *testing.T) {
			mountPath := s.formatted(t, row.format, "tenant")
			put := func(prefix string) (string, error) {
				cmd := exec.CommandContext(within(t, 3*time.Minute), awscli, "--endpoint-url", cloud.URL, "--region", fixture.Region,
					"s3api", "put-object", "--bucket", cloud.MinIO.Bucket, "--key", prefix+"/cli", "--body", file)
				cmd.Env = []string{"PATH=/usr/bin:/bin", "HOME=" + t.TempDir(), row.variable + "=" + filepath.Join(mountPath, row.path), "AWS_EC2_METADATA_DISABLED=true"}
				out, err := cmd.CombinedOutput()
				return string(out), err
			}
			out, err := put("tenant")
			require.NoError(t, err, out)
			out, err = put("another")
			require.Error(t, err)
			require.Contains(t, out, "AccessDenied")
		})
	}
}

// TestClientOutlivesRotations starts a client of AWS's SDK for Go once, as an
// application does, and lets it work across sessions of 20 s until it has used four.
func TestClientOutlivesRotations(t *testing.T) {
	cloud.EndSessionsAfter(20 * time.Second)
	t.Cleanup(func() { cloud.EndSessionsAfter(0) })
	s := newSite(t)
	s.engine(t)
	s.role(t, "tenant", "assumed_role")
	mountPath := s.formatted(t, "aws-credential-process", "tenant")
	ctx := within(t, 6*time.Minute)
	sdk, err := config.LoadDefaultConfig(ctx, config.WithSharedConfigFiles([]string{filepath.Join(mountPath, "aws", "config")}),
		config.WithSharedCredentialsFiles([]string{}), config.WithEC2IMDSClientEnableState(imds.ClientDisabled))
	require.NoError(t, err)
	used := map[string]bool{}
	require.NoError(t, fixture.Eventually(ctx, 4, func(ctx context.Context) (int, error) {
		k, err := sdk.Credentials.Retrieve(ctx)
		require.NoError(t, err)
		used[k.AccessKeyID] = true
		code := keys{k.AccessKeyID, k.SecretAccessKey, k.SessionToken, k.Expires}.put(ctx, "tenant")
		if time.Now().Before(k.Expires) { // else it may have come too late
			require.Empty(t, code)
		}
		return len(used), nil
	}))
}
