package integration

import (
	"context"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tenure-csi/tenure/test/fixture"
)

// TestOwner gives a non-root application files that only it can read, and
// carries them over rotations, before and after a restart of the daemon.
func TestOwner(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		t.Skip("NOT SHOWN: files of another owner need root")
	}
	s := newSite(t, fixture.ScopeOptions{TTL: 40 * time.Second, MaxTTL: 40 * time.Second})
	require.NoError(t, stack.Vault.WriteKV1(t.Context(), s.KV, "app", map[string]any{"k": "v"}))
	const owned = ", filePermission: 0600, owner: 1000, group: 2000}"
	v := s.mounted(t, "{objectName: value, secretPath: "+s.KV+"/app, secretKey: k"+owned,
		"{objectName: user, secretPath: "+s.Creds+", secretKey: username"+owned,
		"{objectName: password, secretPath: "+s.Creds+", secretKey: password"+owned)
	value := inode(t, v, "value")
	check := func() {
		for _, file := range []string{"value", "user", "password"} {
			info, err := v.Stat(file)
			require.NoError(t, err)
			stat := info.Sys().(*syscall.Stat_t)
			require.Equal(t, []uint32{0o600, 1000, 2000}, []uint32{uint32(info.Mode()), stat.Uid, stat.Gid}, file)
		}
		require.Equal(t, value, inode(t, v, "value"), "carried over, not written again")
		require.Equal(t, "v", catAs(t, v, "value", 1000, 2000))
		require.Empty(t, catAs(t, v, "value", 1001, 2000))
		require.NoError(t, stack.Postgres.Login(t.Context(), catAs(t, v, "user", 1000, 2000), catAs(t, v, "password", 1000, 2000)))
	}
	check()
	for range 2 {
		user := read(t, v, "user")
		require.NoError(t, fixture.Eventually(within(t, 2*time.Minute), true, func(context.Context) (bool, error) {
			now, err := v.Read("user")
			return string(now) != user, err
		}), "rotated")
		check()
		require.NoError(t, s.daemon.Restart(t.Context()))
		mount(t, v)
		check()
	}
	s.requireAsked(t, 3, 3)
}

// catAs reads a file of the volume as another user; empty where that may not be.
// The way to the volume is closed to others on this machine, so that a handle of
// its directory is handed over.
func catAs(t *testing.T, v *fixture.Volume, file string, uid, gid uint32) string {
	t.Helper()
	dir, err := os.Open(v.Target)
	require.NoError(t, err)
	defer dir.Close()
	cmd := exec.Command("cat", "/proc/self/fd/3/"+file)
	cmd.Dir, cmd.ExtraFiles = "/", []*os.File{dir}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: gid}}
	out, _ := cmd.Output()
	return string(out)
}
