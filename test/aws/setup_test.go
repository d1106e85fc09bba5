package aws

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/smithy-go"
	"github.com/stretchr/testify/require"

	"github.com/tenure-csi/tenure/internal/lease"
	"github.com/tenure-csi/tenure/test/fixture"
)

// site is one test's own node with a daemon, and its own mounts in Vault, all of
// one name.
type site struct {
	name   string
	node   *fixture.Node
	daemon *fixture.Daemon
}

func newSite(t *testing.T, flags ...string) *site {
	t.Helper()
	return newSiteIn(t, nil, flags...)
}

// newSiteIn starts the daemon with an environment.
func newSiteIn(t *testing.T, env []string, flags ...string) *site {
	t.Helper()
	ctx, vault := t.Context(), stack.Vault
	s := &site{name: "t" + strings.ToLower(rand.Text()[:7])}
	require.NoError(t, vault.EnableJWT(ctx, s.name, stack.Issuer))
	require.NoError(t, vault.JWTRole(ctx, s.name, s.name, fixture.AuthRole{Policies: []string{s.name}, TTL: time.Hour}))
	require.NoError(t, vault.Policy(ctx, s.name, fixture.ReadPolicy(s.name+"/*")))
	s.node = fixture.NodeFor(t, fixture.NodeOptions{Issuer: stack.Issuer, Mounts: os.Getuid() == 0})
	s.daemon = fixture.DaemonFor(t, fixture.DaemonOptions{
		Node: s.node, VaultAddr: vault.Addr, Env: env, Args: append([]string{"--aws-region=" + fixture.Region, "--aws-sts-endpoint=" + cloud.URL}, flags...),
	})
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(s.daemon.Logs())
		}
	})
	return s
}

// volume describes a volume of a new pod with an object a path of Vault, in format
// json and named as the path ends.
func (s *site) volume(t *testing.T, parameters map[string]string, paths ...string) *fixture.Volume {
	t.Helper()
	var objects []string
	for _, path := range paths {
		objects = append(objects, fmt.Sprintf("{objectName: %s, secretPath: %s, format: json}", path[strings.LastIndex(path, "/")+1:], path))
	}
	all := map[string]string{"roleName": s.name, "vaultAuthMountPath": s.name, "objects": "[" + strings.Join(objects, ", ") + "]"}
	maps.Copy(all, parameters)
	id := strings.ToLower(rand.Text())
	pod := fixture.Pod{Namespace: "shop", Name: "app-" + id[:5], UID: id, ServiceAccount: "app"}
	v, err := s.node.Volume(pod, "aws", fixture.SPC{Name: s.name, Provider: "tenure", Parameters: all}, nil)
	require.NoError(t, err)
	return v
}

func (s *site) mounted(t *testing.T, parameters map[string]string, paths ...string) *fixture.Volume {
	t.Helper()
	v := s.volume(t, parameters, paths...)
	_, err := v.Mount(t.Context())
	require.NoError(t, err)
	return v
}

// status is what the daemon says of a volume.
func (s *site) status(t *testing.T, v *fixture.Volume) lease.VolumeStatus {
	t.Helper()
	text, err := s.daemon.Status(t.Context())
	require.NoError(t, err)
	var all []lease.VolumeStatus
	require.NoError(t, json.Unmarshal(text, &all))
	for _, one := range all {
		if one.Target == v.Target {
			return one
		}
	}
	require.Fail(t, "no such volume", v.Target)
	return lease.VolumeStatus{}
}

// within bounds what has to be waited for.
func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// keys are what a file of format json holds.
type keys struct {
	ID         string    `json:"access_key"`
	Secret     string    `json:"secret_key"`
	Token      string    `json:"session_token"`
	Expiration time.Time `json:"expiration"`
}

func keysIn(t *testing.T, v *fixture.Volume, file string) keys {
	t.Helper()
	text, err := v.Read(file)
	require.NoError(t, err)
	var k keys
	require.NoError(t, json.Unmarshal(text, &k))
	require.NotEmpty(t, k.ID)
	return k
}

func (k keys) provider() aws.CredentialsProvider {
	return credentials.NewStaticCredentialsProvider(k.ID, k.Secret, k.Token)
}

// client makes no connection that outlives a call.
var client = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}

func store(by aws.CredentialsProvider) *s3.Client {
	return s3.New(s3.Options{
		Region: fixture.Region, BaseEndpoint: &cloud.URL, UsePathStyle: true, Credentials: by, HTTPClient: client, Retryer: aws.NopRetryer{},
	})
}

// put writes an object below a tenant's prefix, and answers AWS's code of a refusal.
func (k keys) put(ctx context.Context, tenant string) (code string) {
	_, err := store(k.provider()).PutObject(ctx, &s3.PutObjectInput{
		Bucket: &cloud.MinIO.Bucket, Key: aws.String(tenant + "/" + rand.Text()), Body: strings.NewReader("x"),
	})
	return codeOf(err)
}

// codeOf is AWS's code of a refusal; empty for a success.
func codeOf(err error) string {
	var told smithy.APIError
	switch {
	case err == nil:
		return ""
	case errors.As(err, &told):
		return told.ErrorCode()
	}
	return err.Error()
}

// tenantPolicy allows everything below one prefix of the bucket.
func tenantPolicy(tenant string) string {
	return fmt.Sprintf(`{"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "arn:aws:s3:::%s/%s/*"}]}`, cloud.MinIO.Bucket, tenant)
}
