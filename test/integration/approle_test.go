package integration

import (
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tenure-csi/tenure/internal/lease"
	"github.com/tenure-csi/tenure/test/fixture"
)

// appRole is a site's AppRole and the Secret that pods log in with.
type appRole struct {
	mount  string
	name   string
	secret map[string]string
}

// appRole makes the site an AppRole at a mount, with a secret_id for so many logins.
func (s *site) appRole(t *testing.T, mount, cidr string, uses int, r fixture.AuthRole) appRole {
	t.Helper()
	r.Policies = []string{s.Name}
	require.NoError(t, stack.Vault.EnableAppRole(t.Context(), mount))
	id, err := stack.Vault.AppRole(t.Context(), mount, s.Name, cidr, r)
	require.NoError(t, err)
	a := appRole{mount: mount, name: s.Name, secret: map[string]string{"role_id": id}}
	a.renew(t, uses)
	return a
}

// renew puts a new secret_id into the Secret.
func (a appRole) renew(t *testing.T, uses int) {
	t.Helper()
	id, err := stack.Vault.SecretID(t.Context(), a.mount, a.name, uses)
	require.NoError(t, err)
	a.secret["secret_id"] = id
}

// appRoleVolume describes a volume of a new pod that has the Secret and no token.
func (s *site) appRoleVolume(t *testing.T, a appRole, objects ...string) *fixture.Volume {
	t.Helper()
	parameters := map[string]string{"vaultAuthMethod": "approle", "objects": list(objects...)}
	if a.mount != "approle" {
		parameters["vaultAuthMountPath"] = a.mount
	}
	v := s.volumeOf(t, newPod(), fixture.SPC{Name: s.Name, Provider: "tenure", Parameters: parameters})
	v.Audiences, v.Secrets = nil, a.secret
	return v
}

// changes waits until the volume, whose credentials live for 10 s, shows a database
// user other than those seen, and checks that PostgreSQL takes it.
func changes(t *testing.T, v *fixture.Volume, seen map[string]bool) {
	t.Helper()
	require.NoError(t, fixture.Eventually(within(t, 2*time.Minute), false, func(context.Context) (bool, error) {
		user, _ := readService(t, v)
		return seen[user], nil
	}))
	user, _ := logIn(t, 2*time.Second, func() (string, string) { return readService(t, v) })
	require.False(t, seen[user], "a replaced credential came back")
	seen[user] = true
}

// TestAppRole mounts with an AppRole alone, at its default mount, and replaces
// each credential with a login of its own. Nothing of the Secret is seen anywhere.
func TestAppRole(t *testing.T) {
	t.Parallel()
	s := newSite(t, fixture.ScopeOptions{TTL: 10 * time.Second, MaxTTL: 20 * time.Second}, "--log-level=debug")
	role := s.appRole(t, "approle", "", 0, fixture.AuthRole{TTL: time.Hour})
	v := s.appRoleVolume(t, role, s.db("db"))
	mount(t, v)
	seen := map[string]bool{}
	changes(t, v, seen)
	require.Equal(t, 1, logins(t, "approle"))
	mount(t, v)
	require.Equal(t, 1, logins(t, "approle"), "a republish logs in to nothing")
	changes(t, v, seen)
	reads, err := s.Reads()
	require.NoError(t, err)
	require.Equal(t, 2, reads)
	require.Equal(t, 2, logins(t, "approle"), "one login for the volume, one for the replacement")
	said, err := s.status(t.Context(), v)
	require.NoError(t, err)
	require.Equal(t, lease.Live, said.State)
	s.requireSecretUnseen(t, role)

	require.NoError(t, s.node.DeletePod(v.Pod))
	ctx := within(t, 2*time.Minute)
	require.NoError(t, fixture.Eventually(ctx, 0, s.Users), "database users")
	require.NoError(t, fixture.Eventually(ctx, 0, func(ctx context.Context) (int, error) { return stack.Vault.TokenCount(ctx, "approle") }))
}

// requireSecretUnseen looks for the Secret's values in the daemon's log, status and state directory.
func (s *site) requireSecretUnseen(t *testing.T, a appRole) {
	t.Helper()
	said, err := s.daemon.Status(t.Context())
	require.NoError(t, err)
	texts := map[string]string{"log": s.daemon.Logs(), "status": string(said)}
	require.NoError(t, filepath.WalkDir(s.node.State, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		text, err := os.ReadFile(path)
		texts[path] = string(text)
		return err
	}))
	require.Greater(t, len(texts), 3, "the journal is among them")
	for where, text := range texts {
		for key, value := range a.secret {
			require.NotContains(t, text, value, "%s in %s", key, where)
		}
	}
}

// TestAppRoleExhausted has a secret_id for one login: what ends is issued again
// under the Vault token that the volume still has.
func TestAppRoleExhausted(t *testing.T) {
	t.Parallel()
	s := newSite(t, fixture.ScopeOptions{TTL: 10 * time.Second, MaxTTL: 20 * time.Second})
	role := s.appRole(t, "approle-"+s.Name, "", 1, fixture.AuthRole{TTL: time.Hour})
	v := s.appRoleVolume(t, role, s.db("db"))
	mount(t, v)
	seen := map[string]bool{}
	for range 3 {
		changes(t, v, seen)
	}
	said, err := s.status(t.Context(), v)
	require.NoError(t, err)
	require.Equal(t, lease.Live, said.State)
	require.Contains(t, s.daemon.Logs(), "issuing under the volume's living token")
	require.Contains(t, s.daemon.Logs(), "invalid role or secret ID")
	s.requireSecretUnseen(t, role)
	require.NoError(t, s.node.DeletePod(v.Pod))
	require.NoError(t, fixture.Eventually(within(t, 2*time.Minute), 0, s.Users))
}

// TestAppRoleNeedsIdentity is the same where Vault's token ends too: the status
// says why, and the next Secret heals.
func TestAppRoleNeedsIdentity(t *testing.T) {
	t.Parallel()
	s := newSite(t, fixture.ScopeOptions{TTL: 10 * time.Second, MaxTTL: time.Hour})
	role := s.appRole(t, "approle-"+s.Name, "", 1, fixture.AuthRole{TTL: 30 * time.Second, Max: 30 * time.Second})
	v := s.appRoleVolume(t, role, s.db("db"))
	mount(t, v)
	seen := map[string]bool{}
	changes(t, v, seen)
	var said lease.VolumeStatus
	require.NoError(t, fixture.Eventually(within(t, 2*time.Minute), lease.NeedsIdentity, func(ctx context.Context) (_ string, err error) {
		said, err = s.status(ctx, v)
		return said.State, err
	}))
	require.Contains(t, said.Problem, `field "nodePublishSecretRef"`)
	require.Contains(t, said.Problem, "invalid role or secret ID; write a new secret_id into the pod's Secret")
	require.Contains(t, said.Problem, "each login is one use")
	role.renew(t, 1)
	mount(t, v)
	changes(t, v, seen)
	s.requireSecretUnseen(t, role)
}

// TestAppRoleRefused logs in in every way that a user gets wrong.
func TestAppRoleRefused(t *testing.T) {
	t.Parallel()
	s := newSite(t, fixture.ScopeOptions{}, "--log-level=debug")
	tests := []struct {
		name, cidr string
		edit       func(map[string]string)
		logins     int
		code       codes.Code
		says       []string
	}{
		{"wrong secret_id", "", func(m map[string]string) { m["secret_id"] = "canary-of-a-secret-id" }, 1, codes.PermissionDenied, []string{
			`object "db", field "nodePublishSecretRef"`, "invalid role or secret ID", "Vault does not tell whether one is wrong",
		}},
		{"wrong role_id", "", func(m map[string]string) { m["role_id"] = "canary-of-a-role-id" }, 1, codes.PermissionDenied, []string{"invalid role or secret ID"}},
		{"another network", "192.0.2.0/24", func(map[string]string) {}, 1, codes.PermissionDenied, []string{"unauthorized by CIDR restrictions on the role; add the node's address"}},
		{"no secret_id", "", func(m map[string]string) { delete(m, "secret_id") }, 1, codes.FailedPrecondition, []string{
			`object "db", field "nodePublishSecretRef"`, "missing secret_id; put a secret_id into the pod's Secret", "bind_secret_id=false",
		}},
		{"no Secret", "", func(m map[string]string) { clear(m) }, 0, codes.FailedPrecondition, []string{"no Secret with role_id and secret_id came with the Mount call"}},
	}
	for i, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			role := s.appRole(t, "approle-"+s.Name+string(rune('a'+i)), tt.cidr, 0, fixture.AuthRole{})
			tt.edit(role.secret)
			_, err := s.appRoleVolume(t, role, s.db("db")).Mount(t.Context())
			require.Equal(t, tt.code, status.Code(err), "got %v", err)
			for _, part := range tt.says {
				require.ErrorContains(t, err, part)
			}
			require.Equal(t, tt.logins, logins(t, role.mount))
			for key, value := range role.secret {
				require.NotContains(t, err.Error(), value, key)
				require.NotContains(t, s.daemon.Logs(), value, key)
			}
		})
	}
}

// TestAppRoleWithoutSecretID logs in to a role that takes any login from a network.
func TestAppRoleWithoutSecretID(t *testing.T) {
	t.Parallel()
	s := newSite(t, fixture.ScopeOptions{})
	role := s.appRole(t, "approle-"+s.Name, "", 0, fixture.AuthRole{})
	delete(role.secret, "secret_id")
	require.NoError(t, stack.Vault.OpenAppRole(t.Context(), role.mount, role.name, "127.0.0.0/8"))
	v := s.appRoleVolume(t, role, s.db("db"))
	mount(t, v)
	changes(t, v, map[string]bool{})
}

// TestAppRoleLocked has Vault lock a role for all who log in with it.
func TestAppRoleLocked(t *testing.T) {
	t.Parallel()
	s := newSite(t, fixture.ScopeOptions{})
	good := s.appRole(t, "approle-"+s.Name, "", 0, fixture.AuthRole{})
	wrong := good
	wrong.secret = map[string]string{"role_id": good.secret["role_id"], "secret_id": "wrong"}
	for range 5 { // the default lockout_threshold
		_, err := s.appRoleVolume(t, wrong, s.db("db")).Mount(t.Context())
		require.ErrorContains(t, err, "invalid role or secret ID")
	}
	_, err := s.appRoleVolume(t, good, s.db("db")).Mount(t.Context())
	require.Equal(t, codes.PermissionDenied, status.Code(err), "got %v", err)
	require.ErrorContains(t, err, "Vault also answers so for a role_id that it locked after refused logins")
}
