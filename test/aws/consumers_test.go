package aws

import (
	"context"
	"crypto/rand"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/feature/ec2/imds"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/stretchr/testify/require"

	"github.com/tenure-csi/tenure/internal/lease"
	"github.com/tenure-csi/tenure/test/fixture"
)

// awscli is Debian's: its version is one that the tests know of.
const awscli = "/usr/bin/aws"

// sessions are objects that give a session of one tenant, by who asks STS for it.
func (s *site) sessions(t *testing.T, tenant string) map[string]string {
	t.Helper()
	s.engine(t)
	s.role(t, tenant, "assumed_role")
	return map[string]string{
		"Vault": "secretPath: " + s.name + "/sts/" + tenant,
		"pod":   "source: aws-sts, roleArn: '" + cloud.Role("app") + "', sessionPolicy: " + tenantPolicy(tenant),
	}
}

// formatted mounts a volume with one object, named aws, in a format of AWS's, and
// answers where the application sees it: a path that may stand in a command.
func (s *site) formatted(t *testing.T, format, object string) (v *fixture.Volume, mountPath string) {
	t.Helper()
	mountPath = filepath.Join(t.TempDir(), "secrets")
	v = s.volume(t, map[string]string{"mountPath": mountPath, "objects": "[{objectName: aws, format: " + format + ", " + object + "}]"})
	v.Audiences = []string{"sts.amazonaws.com", "vault"}
	_, err := v.Mount(t.Context())
	require.NoError(t, err)
	require.NoError(t, os.Symlink(v.Target, mountPath))
	return v, mountPath
}

// cli is awscli with one file of a volume.
type cli struct {
	volume   *fixture.Volume
	variable string // of the environment, that names the file
	body     string // a file to put
}

// put answers AWS's code of a refusal.
func (c cli) put(t *testing.T, prefix string) (code string) {
	t.Helper()
	cmd := exec.CommandContext(within(t, 3*time.Minute), awscli, "--endpoint-url", cloud.URL, "--region", fixture.Region,
		"s3api", "put-object", "--bucket", cloud.MinIO.Bucket, "--key", prefix+"/cli", "--body", c.body)
	cmd.Env = []string{"PATH=/usr/bin:/bin", "HOME=" + t.TempDir(), c.variable, "AWS_EC2_METADATA_DISABLED=true"}
	out, err := cmd.CombinedOutput()
	if err == nil {
		return ""
	}
	told := regexp.MustCompile(`An error occurred \((\w+)\)`).FindSubmatch(out)
	require.NotNil(t, told, "%s", out)
	return string(told[1])
}

// TestAWSCLI lets Debian's awscli use either file, of a session that Vault or the
// pod asked for, and again after its replacement: what the tenant may do works,
// what another may do does not.
func TestAWSCLI(t *testing.T) {
	require.FileExists(t, awscli, "install it: apt-get install awscli")
	cloud.EndSessionsAfter(30 * time.Second)
	t.Cleanup(func() { cloud.EndSessionsAfter(0) })
	s := newSite(t)
	ctx := within(t, 8*time.Minute)
	body := filepath.Join(t.TempDir(), "body")
	require.NoError(t, os.WriteFile(body, []byte("x"), 0o600))
	rows := map[string]cli{}
	for asker, object := range s.sessions(t, "tenant") {
		v, mountPath := s.formatted(t, "aws-credentials", object)
		rows[asker+", aws-credentials"] = cli{v, "AWS_SHARED_CREDENTIALS_FILE=" + mountPath + "/aws", body}
		v, mountPath = s.formatted(t, "aws-credential-process", object)
		rows[asker+", aws-credential-process"] = cli{v, "AWS_CONFIG_FILE=" + mountPath + "/aws/config", body}
	}
	each := func(when string, check func(*testing.T, cli)) {
		t.Run(when, func(t *testing.T) {
			for name, row := range rows {
				t.Run(name, func(t *testing.T) {
					t.Parallel()
					check(t, row)
				})
			}
		})
	}
	each("first", func(t *testing.T, row cli) {
		require.NoError(t, fixture.Eventually(ctx, "", func(context.Context) (string, error) {
			code := row.put(t, "tenant")
			require.Contains(t, []string{"", "ExpiredToken"}, code) // the latter if it took too long for the session it found
			return code, nil
		}))
	})
	cloud.EndSessionsAfter(0)
	each("replaced", func(t *testing.T, row cli) {
		require.NoError(t, fixture.Eventually(ctx, true, func(context.Context) (bool, error) {
			return slices.ContainsFunc(s.status(t, row.volume).Leases, func(l lease.LeaseStatus) bool {
				return l.Reason == lease.Scheduled && time.Until(l.Expires) > 30*time.Minute
			}), nil
		}))
		require.Empty(t, row.put(t, "tenant"))
		require.Equal(t, "AccessDenied", row.put(t, "another"))
	})
}

// application is a client of S3 as a program makes it once, at its start.
type application struct {
	*s3.Client
	used map[string]bool // the access keys that signed
}

var signedBy = regexp.MustCompile(`Credential=(\w+)/`)

// RoundTrip implements http.RoundTripper and notes who signed.
func (a *application) RoundTrip(r *http.Request) (*http.Response, error) {
	if m := signedBy.FindStringSubmatch(r.Header.Get("Authorization")); m != nil {
		a.used[m[1]] = true
	}
	return client.Transport.RoundTrip(r)
}

// start reads the configuration file. The client asks for credentials 5 s ahead of
// their end, and never tries a call again.
func start(t *testing.T, configFile string) *application {
	t.Helper()
	a := &application{used: map[string]bool{}}
	cfg, err := config.LoadDefaultConfig(t.Context(), config.WithRegion(fixture.Region),
		config.WithSharedConfigFiles([]string{configFile}), config.WithSharedCredentialsFiles([]string{}), config.WithEC2IMDSClientEnableState(imds.ClientDisabled),
		config.WithCredentialsCacheOptions(func(o *aws.CredentialsCacheOptions) { o.ExpiryWindow = 5 * time.Second }))
	require.NoError(t, err)
	a.Client = s3.NewFromConfig(cfg, func(o *s3.Options) {
		o.BaseEndpoint, o.UsePathStyle, o.Retryer, o.HTTPClient = &cloud.URL, true, aws.NopRetryer{}, &http.Client{Transport: a}
	})
	return a
}

// TestClientsOutliveRotations starts a client of AWS's SDK for Go once, as an
// application does, for a session that Vault asked for and for one that the pod
// did, and lets it work across sessions of 20 s until it has used four.
func TestClientsOutliveRotations(t *testing.T) {
	cloud.EndSessionsAfter(20 * time.Second)
	t.Cleanup(func() { cloud.EndSessionsAfter(0) })
	s := newSite(t)
	ctx := within(t, 8*time.Minute)
	clients := map[string]*application{}
	for asker, object := range s.sessions(t, "tenant") {
		_, mountPath := s.formatted(t, "aws-credential-process", object)
		clients[asker] = start(t, filepath.Join(mountPath, "aws", "config"))
	}
	require.NoError(t, fixture.Eventually(ctx, true, func(ctx context.Context) (bool, error) {
		all := true
		for asker, c := range clients {
			_, err := c.PutObject(ctx, &s3.PutObjectInput{Bucket: &cloud.MinIO.Bucket, Key: aws.String("tenant/" + rand.Text()), Body: strings.NewReader("x")})
			require.NoError(t, err, "%s, after %d sessions", asker, len(c.used))
			all = all && len(c.used) >= 4
		}
		return all, nil
	}))
}
