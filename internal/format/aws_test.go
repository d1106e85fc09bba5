package format

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/credentials/processcreds"
	"github.com/stretchr/testify/require"

	"github.com/tenure-csi/tenure/provider"
)

// As source aws-sts answers, and Vault's AWS engine for an IAM user.
const (
	awsData = `{"access_key":"ASIAEXAMPLE","secret_key":"wJalr/XUt+nFEMI=","session_token":"FwoGZ/+=="}`
	awsUser = `{"access_key":"AKIAEXAMPLE","secret_key":"wJalr/XUt+nFEMI=","security_token":null,"arn":"arn:aws:iam::123456789012:user/v"}`
)

func awsObject() provider.Object {
	return provider.Object{
		Name: "shop/aws", Format: "aws-credential-process", MountPath: "/run/secrets", Mode: 0o644,
		Read: provider.Read{AWS: provider.AWS{Region: "eu-central-1"}},
	}
}

// profile reads a file of ours as AWS's SDK for Go does, with no other beside it.
func profile(t *testing.T, file string, isConfig bool) config.SharedConfig {
	t.Helper()
	nothing := []string{filepath.Join(filepath.Dir(file), "none")}
	require.NoError(t, os.WriteFile(nothing[0], nil, 0o600))
	loaded, err := config.LoadSharedConfigProfile(t.Context(), "default", func(o *config.LoadSharedConfigOptions) {
		o.ConfigFiles, o.CredentialsFiles = nothing, []string{file}
		if isConfig {
			o.ConfigFiles, o.CredentialsFiles = []string{file}, nothing
		}
	})
	require.NoError(t, err)
	return loaded
}

// checkAWSBack writes the keys in both formats and reads them with the SDK: they
// are what went in, or were refused with need.
func checkAWSBack(t *testing.T, id, secret, token string) {
	t.Helper()
	dir := t.TempDir()
	s := Secret{Data: map[string]any{"access_key": id, "secret_key": secret, "security_token": token}, Expires: time.Now().Add(time.Hour).Truncate(time.Second)}
	r, err := Render(provider.Object{Name: "x", Format: "aws-credentials"}, s)
	if err != nil {
		plain := func(s string) bool {
			return strings.Trim(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=._-") == ""
		}
		require.False(t, id != "" && secret != "" && plain(id+secret+token), "refused without need")
		return
	}
	require.Equal(t, 4-min(1, max(0, 1-len(token))), strings.Count(string(r.Files[0].Data), "\n"), "no value adds a line")
	file := filepath.Join(dir, "credentials")
	require.NoError(t, os.WriteFile(file, r.Files[0].Data, 0o600))
	got := profile(t, file, false).Credentials
	require.Equal(t, aws.Credentials{AccessKeyID: id, SecretAccessKey: secret, SessionToken: token, Source: got.Source}, got)

	o := awsObject()
	o.Name = "aws"
	r, err = Render(o, s)
	require.NoError(t, err)
	require.NoError(t, os.Mkdir(filepath.Join(dir, "aws"), 0o700))
	for _, f := range r.Files {
		require.NoError(t, os.WriteFile(filepath.Join(dir, f.Path), f.Data, 0o600))
	}
	read := profile(t, filepath.Join(dir, "aws/config"), true)
	require.Equal(t, "eu-central-1", read.Region)
	require.Equal(t, "/bin/cat /run/secrets/aws/credentials.json", read.CredentialProcess)
	require.Empty(t, read.Credentials.AccessKeyID)
	var answer struct {
		Version                       int
		ID                            string `json:"AccessKeyId"`
		SecretAccessKey, SessionToken string
		Expiration                    time.Time
	}
	text, err := os.ReadFile(filepath.Join(dir, "aws/credentials.json"))
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(text, &answer))
	require.True(t, s.Expires.Equal(answer.Expiration))
	require.Equal(t, []any{1, id, secret, token}, []any{answer.Version, answer.ID, answer.SecretAccessKey, answer.SessionToken})
}

// The SDK runs the process and finds keys and end.
func TestAWSProcessIsRun(t *testing.T) {
	dir := t.TempDir()
	o := awsObject()
	o.Name, o.MountPath = "aws", dir
	r, err := Render(o, Secret{Data: secretOf(t, awsData).Data, Expires: time.Now().Add(time.Hour)})
	require.NoError(t, err)
	require.NoError(t, os.Mkdir(filepath.Join(dir, "aws"), 0o700))
	for _, f := range r.Files {
		require.NoError(t, os.WriteFile(filepath.Join(dir, f.Path), f.Data, 0o600))
	}
	command := profile(t, filepath.Join(dir, "aws/config"), true).CredentialProcess
	got, err := processcreds.NewProvider(command).Retrieve(context.Background())
	require.NoError(t, err)
	require.Equal(t, "FwoGZ/+==", got.SessionToken)
	require.True(t, got.CanExpire)
	require.WithinDuration(t, time.Now().Add(time.Hour), got.Expires, time.Minute)
}

func FuzzAWS(f *testing.F) {
	f.Add("ASIAEXAMPLE", "wJalr/XUt+nFEMI=", "FwoGZ/+==")
	f.Add("AKIAEXAMPLE", "s", "")
	f.Add("a b", "c # d", `"e"`)
	f.Add("a\n[other]", "b\naws_session_token=x", "\r")
	f.Add("[a]", "=", "{}")
	f.Fuzz(checkAWSBack)
}
