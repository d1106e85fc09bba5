package faults

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tenure-csi/tenure/internal/lease"
	"github.com/tenure-csi/tenure/test/fixture"
)

// TestRefusedLogin has kubelet try a login again and again that Vault refuses.
func TestRefusedLogin(t *testing.T) {
	s := newScene(t, fixture.ScopeOptions{})
	reviewer, err := fixture.StartTokenReviewer(s.stack.Issuer)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, reviewer.Stop()) })
	mount := "k8s-" + s.Name
	require.NoError(t, s.stack.Vault.EnableKubernetesAuth(t.Context(), mount, reviewer))
	role := fixture.AuthRole{Policies: []string{s.Name}, TTL: time.Hour, Max: 24 * time.Hour}
	require.NoError(t, s.stack.Vault.KubernetesRole(t.Context(), mount, s.Name, "other", role))
	s.start()
	v := s.volume(s.objects(""))
	v.Attributes["vaultAuthMountPath"] = mount
	refused := func() int {
		n, err := s.stack.Vault.AuditCount("auth/"+mount+"/login", "")
		require.NoError(t, err)
		return n
	}
	first := time.Now()
	for range 5 {
		err := s.try(v)
		require.Equal(t, codes.PermissionDenied, status.Code(err), "got %v", err)
		require.ErrorContains(t, err, "service account name not authorized")
	}
	require.LessOrEqual(t, refused(), 1+int(time.Since(first)/(10*time.Second)), "the others are answered from memory, for 10 s")
	well := s.mounted() // other volumes are not affected
	s.works(t, well)
	s.eventually(time.Minute, func(c *assert.CollectT) {
		require.Error(c, s.try(v))
		require.GreaterOrEqual(c, refused(), 2)
	})
	require.Greater(t, time.Since(first), 9*time.Second)
	require.NoError(t, s.stack.Vault.KubernetesRole(t.Context(), mount, s.Name, "app", role))
	s.eventually(2*time.Minute, func(c *assert.CollectT) { require.NoError(c, s.try(v)) })
	s.works(t, v)
	require.NoError(t, s.node.DeletePod(v.Pod))
	s.ends(well)
}

// TestRateLimit mounts under a quota of Vault that refuses most of the logins.
func TestRateLimit(t *testing.T) {
	s := newScene(t, fixture.ScopeOptions{})
	_, err := s.stack.Vault.Client().Logical().WriteWithContext(t.Context(), "sys/quotas/rate-limit/"+s.Name, map[string]any{
		"path": "auth/" + s.Name, "rate": 2, "interval": "4s",
	})
	require.NoError(t, err)
	s.start()
	var mounts errgroup.Group
	var vs []*fixture.Volume
	for range 6 {
		v := s.volume(s.objects(""))
		vs = append(vs, v)
		mounts.Go(func() error { return s.try(v) })
	}
	require.NoError(t, mounts.Wait())
	refused := s.metric(t, `tenure_vault_requests_total{code="429",op="login"}`)
	require.GreaterOrEqual(t, refused, 4)
	require.LessOrEqual(t, refused, 6*6, "0.5, 1, 2, 4, 8, 8 s apart")
	require.Equal(t, held{6, 6, 6}, s.count(t))
	s.ends(vs...)
}

// TestWithoutRepublish leaves a volume alone whose pod's token is soon of no use,
// and whose Vault token ends after a minute.
func TestWithoutRepublish(t *testing.T) {
	s := newScene(t, fixture.ScopeOptions{
		TTL: 20 * time.Second, MaxTTL: time.Minute, Auth: fixture.AuthRole{TTL: 30 * time.Second, Max: time.Minute},
	})
	s.start()
	v := s.volume(s.objects(""))
	v.TokenTTL = 10 * time.Second
	mounted := time.Now()
	s.mount(v)
	user, _, err := pair(v)
	require.NoError(t, err)
	var broken error
	s.eventually(2*time.Minute, func(c *assert.CollectT) {
		if err := s.login(v); err != nil && broken == nil {
			broken = err
		}
		st := s.status(c, v)
		require.Equal(c, lease.NeedsIdentity, st.State)
		require.Contains(c, st.Problem, "service account token")
		require.Contains(c, st.Problem, "enableSecretRotation: true", "the way out")
	})
	require.NoError(t, broken, "until then it worked at every look")
	require.Greater(t, time.Since(mounted), 45*time.Second)
	s.eventually(2*time.Minute, func(c *assert.CollectT) { require.Equal(c, lease.Expired, s.status(c, v).State) })
	require.Greater(t, time.Since(mounted), 58*time.Second)
	require.Equal(t, 1, s.logins())
	require.Equal(t, 1, s.reads())
	now, _, err := pair(v)
	require.NoError(t, err)
	require.Equal(t, user, now, "the files stay")
	s.settles(4*time.Minute, held{})

	v.TokenTTL = time.Hour // the driver's rotation is switched on
	s.mount(v)
	s.eventually(2*time.Minute, func(c *assert.CollectT) {
		s.works(c, v)
		require.Equal(c, lease.Live, s.status(c, v).State)
	})
	require.Equal(t, 2, s.logins())
	require.Equal(t, 2, s.reads())
	s.ends(v)
}

// TestCanary looks for secrets wherever they must not be.
func TestCanary(t *testing.T) {
	const canary = "canary-9f2b6c1d7e"
	s := newScene(t, fixture.ScopeOptions{TTL: 20 * time.Second, MaxTTL: 40 * time.Second})
	require.NoError(t, s.stack.Vault.WriteKV1(t.Context(), s.KV, "a", map[string]any{"value": canary, "no-variable": canary}))
	s.start("--log-level=debug")
	kv := "- {objectName: kv, secretPath: " + s.KV + "/a, secretKey: value, refreshInterval: 10s}\n"
	good := s.volume(s.objects("") + kv)
	good.Secrets = map[string]string{"unused": canary}
	s.mount(good)
	user, password, err := pair(good)
	require.NoError(t, err)

	var seen strings.Builder
	for name, objects := range map[string]string{
		"no such key":   "- {objectName: a, secretPath: " + s.KV + "/a, secretKey: nothing}",
		"no PEM":        "- {objectName: a, secretPath: " + s.KV + "/a, format: pem}",
		"a bad file":    "- {objectName: a, secretPath: " + s.KV + "/a, format: env}",
		"no permission": "- {objectName: a, secretPath: sys/raw/" + s.Name + ", secretKey: value}",
		"a template":    "- {objectName: a, secretPath: " + s.KV + "/a, format: template, template: '{{ .value.x }}'}",
		"another role":  "- {objectName: a, secretPath: " + s.KV + "/a, secretKey: value}",
	} {
		v := s.volume(objects)
		if name == "another role" {
			v.Attributes["roleName"] = "nobody"
		}
		err := s.try(v)
		require.Error(t, err, name)
		seen.WriteString(err.Error())
	}
	for range 2 { // a rotation passes, with a database that is away for a while
		s.pg.Down()
		s.eventually(2*time.Minute, func(c *assert.CollectT) { require.NotEmpty(c, s.status(c, good).Leases[0].Problem) })
		require.NoError(t, s.pg.Up())
		s.eventually(4*time.Minute, func(c *assert.CollectT) { require.Empty(c, s.status(c, good).Leases[0].Problem) })
		for _, v := range s.statusCommand(t) {
			seen.WriteString(v.Problem)
			for _, l := range v.Leases {
				seen.WriteString(l.Problem)
			}
		}
	}
	seen.WriteString(s.metrics(t))
	seen.WriteString(s.d.Logs())
	_, after, err := pair(good)
	require.NoError(t, err)
	secrets := []string{canary, password, after, "hvs.", "eyJ"} // Vault's tokens and JWTs begin like this
	for _, secret := range secrets {
		require.NotContains(t, seen.String(), secret)
	}
	require.Contains(t, seen.String(), "asked Vault", "it is the debug log")
	require.NotContains(t, seen.String(), user, "not secret, but of no use there")

	recs, err := records(s)
	require.NoError(t, err)
	require.NotEmpty(t, recs)
	for _, path := range recs {
		text, err := os.ReadFile(path)
		require.NoError(t, err)
		for _, secret := range []string{canary, password, after, "eyJ"} {
			require.NotContains(t, string(text), secret, filepath.Base(path))
		}
		require.Equal(t, strings.Count(string(text), `"token":"hvs.`), strings.Count(string(text), "hvs."), "but as a grant's token")
	}
}
