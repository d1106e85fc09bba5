package examples

import (
	"context"
	"encoding/json"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	core "k8s.io/api/core/v1"
	driver "sigs.k8s.io/secrets-store-csi-driver/apis/v1"
	"sigs.k8s.io/secrets-store-csi-driver/pkg/util/fileutil"
	"sigs.k8s.io/secrets-store-csi-driver/pkg/util/secretutil"
	"sigs.k8s.io/yaml"

	"github.com/tenure-csi/tenure/test/fixture"
)

var stack *fixture.Stack

func TestMain(m *testing.M) {
	os.Exit(fixture.Run(m.Run, func(s *fixture.Stack) { stack = s }, func() error { return goleak.Find() }))
}

// use is an example in use: its SPC as it is in the file, mounted.
type use struct {
	file   string
	volume *fixture.Volume
}

// prepare does to Vault what the examples' README files say.
func prepare(t *testing.T) {
	t.Helper()
	ctx, v := t.Context(), stack.Vault
	reviewer, err := fixture.StartTokenReviewer(stack.Issuer)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, reviewer.Stop()) })
	require.NoError(t, v.EnableKubernetesAuth(ctx, "kubernetes", reviewer))
	require.NoError(t, v.EnableKV2(ctx, "secret"))
	require.NoError(t, v.EnableDatabase(ctx, "database", stack.Postgres, stack.Postgres.Addr))
	for _, role := range []string{"orders", "web", "reports", "billing-acme", "billing-globex"} {
		require.NoError(t, v.CreateDBRole(ctx, "database", role, time.Hour, 24*time.Hour))
	}
	certificate, err := fixture.NewCertificate(t.TempDir(), "127.0.0.1")
	require.NoError(t, err)
	for path, data := range map[string]map[string]any{
		"first-secret": {"greeting": "hello"},
		"web":          {"LOG_LEVEL": "debug", "API_KEY": "it's $5"},
		"web-tls":      {"tls.crt": text(t, certificate.Cert), "tls.key": text(t, certificate.Key)},
	} {
		require.NoError(t, v.WriteKV2(ctx, "secret", path, data))
	}
	for _, login := range []struct{ role, account, namespace, path string }{
		{"first-secret", "first-secret", "default", "secret/data/first-secret"},
		{"orders", "web", "shop", "database/creds/orders"},
		{"web", "web", "shop", "secret/data/web"},
		{"reports", "reports", "shop", "database/creds/reports"},
		{"web-tls", "web-tls", "shop", "secret/data/web-tls"},
		{"billing", "billing", "shop", "database/creds/billing-*"},
	} {
		paths := []string{login.path}
		if login.role == "web" {
			paths = append(paths, "database/creds/web")
		}
		require.NoError(t, v.Policy(ctx, login.role, fixture.ReadPolicy(paths...)))
		require.NoError(t, v.KubernetesRole(ctx, "kubernetes", login.role, login.account, fixture.AuthRole{
			Namespace: login.namespace, Policies: []string{login.role}, TTL: time.Hour, Max: 24 * time.Hour,
		}))
	}
}

// bindings answers a file of the rules that the pool's values give the chart.
func bindings(t *testing.T) string {
	t.Helper()
	var values struct {
		TenantBindings json.RawMessage `json:"tenantBindings"`
	}
	require.NoError(t, yaml.Unmarshal([]byte(text(t, filepath.Join(root, "pool-database", "values.yaml"))), &values))
	path := filepath.Join(t.TempDir(), "bindings.yaml")
	require.NoError(t, os.WriteFile(path, values.TenantBindings, 0o600))
	return path
}

func text(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	return string(b)
}

// TestExamplesMount mounts the examples' SecretProviderClasses, unchanged, through
// the driver's own client, a real Vault and a real PostgreSQL. The API server that
// Vault asks about tokens is a stand-in.
func TestExamplesMount(t *testing.T) {
	prepare(t)
	node := fixture.NodeFor(t, fixture.NodeOptions{Issuer: stack.Issuer, Mounts: os.Getuid() == 0})
	fixture.DaemonFor(t, fixture.DaemonOptions{Node: node, VaultAddr: stack.Vault.Addr, Args: []string{"--provider-name=tenure,vault", "--tenant-bindings=" + bindings(t)}})
	for _, row := range []struct {
		example, account string
		check            func(*testing.T, use)
	}{
		{"first-secret", "first-secret", func(t *testing.T, u use) { require.Equal(t, "hello", u.read(t, "greeting")) }},
		{"silo-database", "web", func(t *testing.T, u use) { u.logsIn(t, "orders.conf", "user=", "password=") }},
		{"vault-agent-replaced", "web", func(t *testing.T, u use) {
			require.Equal(t, "API_KEY='it'\\''s $5'\nLOG_LEVEL='debug'\n", u.read(t, "config.env"))
			u.logsIn(t, "db.properties", "user=", "password=")
		}},
		{"hashicorp-provider-replaced", "web", func(t *testing.T, u use) {
			require.NoError(t, stack.Postgres.Login(t.Context(), u.read(t, "dbUsername"), u.read(t, "dbPassword")))
		}},
		{"non-root-application", "reports", func(t *testing.T, u use) {
			u.logsIn(t, "reports.conf", "user=", "password=")
			info, err := u.volume.Stat("reports.conf")
			require.NoError(t, err)
			require.Equal(t, os.FileMode(0o600), info.Mode())
			owner := info.Sys().(*syscall.Stat_t)
			require.Equal(t, []uint32{10001, 10001}, []uint32{owner.Uid, owner.Gid})
		}},
		{"synced-secret", "web-tls", syncs},
		{"pool-database", "billing", func(t *testing.T, u use) {
			users := map[string]bool{}
			for _, tenant := range []string{"acme", "globex"} {
				at, err := url.Parse(u.read(t, tenant+"/url"))
				require.NoError(t, err)
				password, _ := at.User.Password()
				require.NoError(t, stack.Postgres.Login(t.Context(), at.User.Username(), password))
				require.Contains(t, at.User.Username(), "billing-")
				users[at.User.Username()] = true
			}
			require.Len(t, users, 2)
		}},
	} {
		t.Run(row.example, func(t *testing.T) {
			if row.example == "non-root-application" && os.Getuid() != 0 {
				t.Skip("SKIPPED: only root can give a file to somebody else")
			}
			u := use{file: filepath.Join(root, row.example, "secretproviderclass.yaml")}
			spc, err := fixture.ReadSPC(u.file)
			require.NoError(t, err)
			pod := fixture.Pod{Namespace: spc.Namespace, Name: row.example, UID: row.example, ServiceAccount: row.account}
			u.volume, err = node.Volume(pod, "secrets", spc, nil)
			require.NoError(t, err)
			_, err = u.volume.Mount(t.Context())
			require.NoError(t, err)
			row.check(t, u)
			require.NoError(t, node.DeletePod(pod))
		})
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	require.NoError(t, fixture.Eventually(ctx, 0, func(ctx context.Context) (int, error) {
		return stack.Vault.LeaseCount(ctx, "database/creds")
	}), "the daemon revokes what the pods had")
}

func (u use) read(t *testing.T, file string) string {
	t.Helper()
	b, err := u.volume.Read(file)
	require.NoError(t, err)
	return string(b)
}

// logsIn finds user and password behind these prefixes and tries them.
func (u use) logsIn(t *testing.T, file, user, password string) {
	t.Helper()
	found := map[string]string{}
	for line := range strings.Lines(u.read(t, file)) {
		for _, prefix := range []string{user, password} {
			if value, ok := strings.CutPrefix(line, prefix); ok {
				found[prefix] = strings.TrimSpace(value)
			}
		}
	}
	require.NoError(t, stack.Postgres.Login(t.Context(), found[user], found[password]))
}

// syncs builds the Kubernetes Secret from the volume's files by the driver's own
// functions.
func syncs(t *testing.T, u use) {
	t.Helper()
	var class driver.SecretProviderClass
	require.NoError(t, yaml.UnmarshalStrict([]byte(text(t, u.file)), &class))
	files, err := fileutil.GetMountedFiles(u.volume.Target)
	require.NoError(t, err)
	secret := class.Spec.SecretObjects[0]
	data, err := secretutil.GetSecretData(secret.Data, core.SecretType(secret.Type), files)
	require.NoError(t, err)
	require.Equal(t, u.read(t, "tls/tls.crt"), string(data["tls.crt"]))
	require.Contains(t, string(data["tls.key"]), "PRIVATE KEY")
}
