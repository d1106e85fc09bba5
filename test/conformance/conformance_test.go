package conformance

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tenure-csi/tenure/test/fixture"
)

// cases are the SecretProviderClasses in testdata.
var cases = []struct {
	name     string
	audience string // of the pod's token
	files    []string
	users    int // database users that a pod may cost, republishes included
	check    func(t *testing.T, v *fixture.Volume)
}{
	{"vault-kv", "vault", []string{"secret-1", "secret-2"}, 0, checkKV},
	{"vault-kv-sync", "vault", []string{"secret-1", "secret-2", "secret-3"}, 0, checkSync},
	{"vault-pki", "vault", []string{"certs"}, 0, checkPKI},
	{"vault-db", "vault", []string{"dbPassword", "dbUsername"}, 1, checkDB},
	{"vault-all", "vault", []string{"certs", "dbPassword", "dbUsername", "secret-1", "secret-2"}, 1, checkAll},
	{"vault-kv-custom-audience", "custom-audience", []string{"secret"}, 0, checkCustomAudience},
	{"vault-kv-jwt-auth", "vault", []string{"secret-1"}, 0, checkJWTAuth},
}

// ways are the two promises to whoever comes from HashiCorp's provider.
var ways = []struct{ name, provider string }{
	{"provider changed to tenure", "tenure"},
	{"unchanged, --provider-name=vault", "vault"},
}

func TestConformance(t *testing.T) {
	prepare(t)
	for _, way := range ways {
		t.Run(way.provider, func(t *testing.T) {
			n, other := newNode(t, way.provider), newNode(t, way.provider)
			for _, c := range cases {
				t.Run(c.name, func(t *testing.T) {
					report.Note(t, c.name+", "+way.name)
					before := databaseReads(t)
					v := n.volume(t, n.pod(t, serviceAccount), c.name)
					v.Audiences = []string{c.audience}
					versions := mount(t, v)
					files, err := v.Files()
					require.NoError(t, err)
					require.Equal(t, c.files, files)
					require.Len(t, versions, len(c.files))
					c.check(t, v)

					again, err := v.Republish(t.Context())
					require.NoError(t, err)
					require.Equal(t, versions, again, "a republish changes nothing")
					c.check(t, v)
					require.Equal(t, c.users, databaseReads(t)-before, "one read serves both files, and a republish mints nothing")
				})
			}
			t.Run("two in one pod", n.twoInOnePod)
			t.Run("wrong service account", n.wrongServiceAccount)
			t.Run("equal versions", func(t *testing.T) { n.equalVersions(t, other) })
			t.Run("all taken back", n.allTakenBack)
		})
	}
}

// node is a node with a daemon under a provider name.
type node struct {
	*fixture.Node
	provider string
}

func newNode(t *testing.T, provider string) *node {
	t.Helper()
	n := &node{fixture.NodeFor(t, fixture.NodeOptions{Issuer: stack.Issuer, Mounts: os.Getuid() == 0}), provider}
	d := fixture.DaemonFor(t, fixture.DaemonOptions{
		Node: n.Node, VaultAddr: stack.Vault.Addr, Provider: provider, Args: []string{"--version-key-file=" + versionKey(t)},
	})
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(d.Logs())
		}
	})
	return n
}

// versionKey answers the file that the chart gives all nodes of a cluster.
func versionKey(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "key")
	require.NoError(t, os.WriteFile(path, []byte(strings.Repeat("k", 32)), 0o600))
	return path
}

// pod answers a new pod, which is deleted at the test's end.
func (n *node) pod(t *testing.T, account string) fixture.Pod {
	t.Helper()
	id := strings.ToLower(rand.Text())
	pod := fixture.Pod{Namespace: "default", Name: "app-" + id[:5], UID: id, ServiceAccount: account}
	t.Cleanup(func() { require.NoError(t, n.DeletePod(pod)) })
	return pod
}

// volume describes a case's volume; only the provider's name may differ from the file.
func (n *node) volume(t *testing.T, pod fixture.Pod, class string) *fixture.Volume {
	t.Helper()
	spc, err := fixture.ReadSPC(filepath.Join("testdata", class+".yaml"))
	require.NoError(t, err)
	spc.Provider = n.provider
	v, err := n.Volume(pod, class, spc, nil)
	require.NoError(t, err)
	return v
}

func (n *node) twoInOnePod(t *testing.T) {
	t.Helper()
	report.Note(t, "two SecretProviderClasses in one pod, "+n.provider)
	pod := n.pod(t, serviceAccount)
	kv, db := n.volume(t, pod, "vault-kv"), n.volume(t, pod, "vault-db")
	mount(t, kv)
	mount(t, db)
	checkKV(t, kv)
	checkDB(t, db)
}

func (n *node) wrongServiceAccount(t *testing.T) {
	t.Helper()
	report.Note(t, "wrong service account, "+n.provider)
	v := n.volume(t, n.pod(t, "other"), "vault-kv")
	_, err := v.Mount(t.Context())
	require.Equal(t, codes.PermissionDenied, status.Code(err), "got %v", err)
	require.ErrorContains(t, err, "service account name not authorized", "the Event says why")
	require.NoDirExists(t, v.Target)
}

func (n *node) equalVersions(t *testing.T, other *node) {
	t.Helper()
	report.Note(t, "equal object versions for equal content on two nodes, "+n.provider)
	here := mount(t, n.volume(t, n.pod(t, serviceAccount), "vault-kv"))
	require.Equal(t, here, mount(t, other.volume(t, other.pod(t, serviceAccount), "vault-kv")))
}

// allTakenBack comes after the other cases, whose pods are deleted by then.
func (n *node) allTakenBack(t *testing.T) {
	t.Helper()
	report.Note(t, "nothing left of deleted pods, "+n.provider)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	require.NoError(t, fixture.Eventually(ctx, 0, func(ctx context.Context) (int, error) { return stack.Postgres.RoleCount(ctx, "") }), "database users")
	require.NoError(t, fixture.Eventually(ctx, 0, func(ctx context.Context) (int, error) { return stack.Vault.TokenCount(ctx, "") }), "Vault tokens")
}

func mount(t *testing.T, v *fixture.Volume) map[string]string {
	t.Helper()
	versions, err := v.Mount(t.Context())
	require.NoError(t, err)
	for id, version := range versions {
		require.NotEmpty(t, version, id)
	}
	return versions
}

func requireFile(t *testing.T, v *fixture.Volume, name, want string, mode fs.FileMode) {
	t.Helper()
	text, err := v.Read(name)
	require.NoError(t, err)
	require.Equal(t, want, string(text), name)
	info, err := v.Stat(name)
	require.NoError(t, err)
	require.Equal(t, mode, info.Mode(), name)
}

func checkKV(t *testing.T, v *fixture.Volume) {
	t.Helper()
	requireFile(t, v, "secret-1", "hello1", 0o624)
	requireFile(t, v, "secret-2", "hello2", 0o644)
}

func checkSync(t *testing.T, v *fixture.Volume) {
	t.Helper()
	requireFile(t, v, "secret-1", "hello-sync1", 0o644)
	requireFile(t, v, "secret-2", "hello-sync2", 0o644)
	requireFile(t, v, "secret-3", "hello-sync3", 0o644)
}

func checkCustomAudience(t *testing.T, v *fixture.Volume) {
	t.Helper()
	requireFile(t, v, "secret", "hello-custom-audience", 0o644)
}

func checkJWTAuth(t *testing.T, v *fixture.Volume) {
	t.Helper()
	requireFile(t, v, "secret-1", "hello1", 0o644)
}

func checkAll(t *testing.T, v *fixture.Volume) {
	t.Helper()
	checkKV(t, v)
	checkPKI(t, v)
	checkDB(t, v)
}

// checkPKI expects Vault's whole response, with a certificate that belongs to its key.
func checkPKI(t *testing.T, v *fixture.Volume) {
	t.Helper()
	text, err := v.Read("certs")
	require.NoError(t, err)
	var response struct {
		RequestID     string `json:"request_id"`
		LeaseDuration *int   `json:"lease_duration"`
		Data          struct {
			Certificate string   `json:"certificate"`
			PrivateKey  string   `json:"private_key"`
			IssuingCA   string   `json:"issuing_ca"`
			CAChain     []string `json:"ca_chain"`
			Serial      string   `json:"serial_number"`
			Expiration  int64    `json:"expiration"`
		} `json:"data"`
	}
	require.NoError(t, json.Unmarshal(text, &response))
	require.NotEmpty(t, response.RequestID)
	require.NotNil(t, response.LeaseDuration)
	data := response.Data
	pair, err := tls.X509KeyPair([]byte(data.Certificate), []byte(data.PrivateKey))
	require.NoError(t, err)
	require.Equal(t, "test.example.com", pair.Leaf.Subject.CommonName)
	require.Equal(t, data.Expiration, pair.Leaf.NotAfter.Unix())
	require.WithinDuration(t, time.Now().Add(24*time.Hour), pair.Leaf.NotAfter, 5*time.Minute)
	require.NotEmpty(t, data.Serial)
	require.NotEmpty(t, data.CAChain)
	roots := x509.NewCertPool()
	require.True(t, roots.AppendCertsFromPEM([]byte(data.IssuingCA)))
	_, err = pair.Leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: "test.example.com"})
	require.NoError(t, err)
}

// checkDB logs in at PostgreSQL: name and password must come from one read.
func checkDB(t *testing.T, v *fixture.Volume) {
	t.Helper()
	user, err := v.Read("dbUsername")
	require.NoError(t, err)
	password, err := v.Read("dbPassword")
	require.NoError(t, err)
	require.NoError(t, stack.Postgres.Login(t.Context(), string(user), string(password)))
}

// databaseReads answers how often Vault was asked for a database credential.
func databaseReads(t *testing.T) int {
	t.Helper()
	reads, err := stack.Vault.AuditCount("database/creds/", "read")
	require.NoError(t, err)
	return reads
}
