//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	apps "k8s.io/api/apps/v1"
	core "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/tenure-csi/tenure/test/fixture"
)

// traps are troubles during a pod's first Mount after which the driver, with its
// rotation on, could answer kubelet for a volume that holds nothing.
var traps = []struct {
	name   string
	beside bool // others may be troubled at the same time
	begin  func(t *testing.T, s *scene) (end func(context.Context) error)
}{
	{"Vault is down", false, func(t *testing.T, _ *scene) func(context.Context) error {
		require.NoError(t, stack.Vault.Kill())
		return stack.Vault.Restart
	}},
	{"Vault is sealed", false, func(t *testing.T, _ *scene) func(context.Context) error {
		require.NoError(t, stack.Vault.Client().Sys().SealWithContext(t.Context()))
		return stack.Vault.Restart // it unseals itself
	}},
	{"Vault does not answer", false, stopVault},
	{"Vault throttles", true, throttle},
	{"Vault waits for its database", true, func(t *testing.T, _ *scene) func(context.Context) error { return lockRoles(t) }},
}

// firstLook is the script of a pod whose first act is to use its volume.
const firstLook = "{ cat " + secrets + "/motto && psql -XAtc 'select current_user'; } >/tmp/first 2>&1; " + idle

func emptyVolumes(t *testing.T) {
	for _, trap := range traps {
		t.Run(trap.name, func(t *testing.T) {
			if trap.beside {
				t.Parallel()
			}
			report.note(t, "no pod starts with an empty volume: "+trap.name)
			s := newScene(t, fixture.ScopeOptions{})
			s.orders(t)
			end := trap.begin(t, s)
			ended := false
			defer func() {
				if !ended {
					require.NoError(t, end(context.WithoutCancel(t.Context())))
				}
			}()
			p := pod(template(firstLook, "orders"))
			s.create(t, p)
			s.failedMount(t, p)
			ended = true
			require.NoError(t, end(t.Context()))
			s.startsFull(t, p)
			require.Equal(t, 1, s.reads(t))
		})
	}
}

// startsFull waits until the pod runs and requires that it found its files at its
// very start, and has the only user that there is; then it lets go of the pod.
func (s *scene) startsFull(t *testing.T, p *core.Pod) {
	t.Helper()
	s.awaitRunning(t, p)
	var found string
	require.NoError(t, await(t.Context(), soon, func(ctx context.Context) (err error) {
		if found, err = cluster.Exec(ctx, p, "app", "cat", "/tmp/first"); err == nil && strings.Count(found, "\n") < 1 {
			err = errors.New("its script has not begun")
		}
		return err
	}))
	require.Equal(t, motto+user(t, p)+"\n", found)
	s.holds(t, 1)
	s.remove(t, p)
	s.holds(t, 0)
}

// reads answers how many database credentials Vault was asked for.
func (s *scene) reads(t *testing.T) int {
	t.Helper()
	n, err := s.Reads()
	require.NoError(t, err)
	return n
}

// stopVault stops Vault's process: it takes connections, and answers none.
func stopVault(t *testing.T, _ *scene) func(context.Context) error {
	t.Helper()
	pid := stack.Vault.Pid()
	require.NoError(t, syscall.Kill(pid, syscall.SIGSTOP))
	return func(context.Context) error { return syscall.Kill(pid, syscall.SIGCONT) }
}

// throttle has Vault refuse the scene's logins with 429: the one that its quota
// allows is used up.
func throttle(t *testing.T, s *scene) func(context.Context) error {
	t.Helper()
	vault, path := stack.Vault.Client().Logical(), "sys/quotas/rate-limit/"+s.Name
	_, err := vault.WriteWithContext(t.Context(), path, map[string]any{
		"path": "auth/kubernetes", "role": s.Name, "rate": 1, "interval": "10m",
	})
	require.NoError(t, err)
	require.NoError(t, await(t.Context(), soon, func(ctx context.Context) error {
		_, err := vault.WriteWithContext(ctx, "auth/kubernetes/login", map[string]any{"role": s.Name, "jwt": "none"})
		if err == nil || !strings.Contains(err.Error(), "429") {
			return fmt.Errorf("Vault does not throttle: %w", err)
		}
		return nil
	}))
	return func(ctx context.Context) error {
		_, err := vault.DeleteWithContext(ctx, path)
		return err
	}
}

// lockRoles makes PostgreSQL wait before it makes a role, and so Vault with its
// answer, until the answered function is called.
func lockRoles(t *testing.T) (unlock func(context.Context) error) {
	t.Helper()
	admin, err := stack.Postgres.Admin(t.Context())
	require.NoError(t, err)
	_, err = admin.Exec(t.Context(), "begin; lock pg_authid in exclusive mode")
	require.NoError(t, err)
	return admin.Close // the lock ends with the session
}

// awaitLock waits until PostgreSQL has somebody waiting for a lock.
func awaitLock(t *testing.T) {
	t.Helper()
	admin, err := stack.Postgres.Admin(t.Context())
	require.NoError(t, err)
	defer admin.Close(context.WithoutCancel(t.Context()))
	require.NoError(t, await(t.Context(), soon, func(ctx context.Context) error {
		var waiting int
		if err := admin.QueryRow(ctx, "select count(*) from pg_locks where not granted").Scan(&waiting); err != nil {
			return err
		}
		if waiting == 0 {
			return pgx.ErrNoRows
		}
		return nil
	}))
}

// driverKilled kills the driver while Vault is at work for a first Mount. Its
// successor finds a volume that is mounted and holds nothing, and takes even the
// Mount that then fails, because the work takes too long, for success.
func driverKilled(t *testing.T) {
	s := newScene(t, fixture.ScopeOptions{})
	s.orders(t)
	unlock := lockRoles(t)
	p := pod(template(firstLook, "orders"))
	s.create(t, p)
	awaitLock(t)
	require.NoError(t, cluster.Driver.Kill())
	require.NoError(t, cluster.Driver.Start(t.Context()))
	awaitLog(t, "the driver would start the pod without files: trying again", string(p.UID))
	require.NoError(t, unlock(t.Context()))
	s.startsFull(t, p)
	require.Equal(t, 1, s.reads(t))
}

// kubeletKilled kills kubelet during a first Mount: the driver unmounts the volume
// and leaves its directory. With a rotationPollInterval longer than the chart's it
// would answer the next kubelet that all is well.
func kubeletKilled(t *testing.T) {
	s := newScene(t, fixture.ScopeOptions{})
	s.orders(t)
	unlock := lockRoles(t)
	p := pod(template(firstLook, "orders"))
	s.create(t, p)
	awaitLock(t)
	require.NoError(t, cluster.Kubelet.Kill())
	awaitTarget(t, p, false)
	require.NoError(t, cluster.Kubelet.Start(t.Context()))
	awaitTarget(t, p, true)
	require.NoError(t, unlock(t.Context()))
	s.startsFull(t, p)
	require.Equal(t, 1, s.reads(t))
}

// awaitLog waits until a line of the daemon's log has all of the words.
func awaitLog(t *testing.T, words ...string) {
	t.Helper()
	require.NoError(t, await(t.Context(), soon, func(context.Context) error {
		logs, err := filepath.Glob(daemonLogs)
		if err != nil {
			return err
		}
		for _, path := range logs {
			text, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			for line := range strings.Lines(string(text)) {
				if !slices.ContainsFunc(words, func(word string) bool { return !strings.Contains(line, word) }) {
					return nil
				}
			}
		}
		return fmt.Errorf("no line of %q has %q", logs, words)
	}))
}

// daemonAway has a pod start while there is no daemon. A driver that knows one
// waits for it, as long as kubelet waits for the driver: 2 minutes.
func daemonAway(t *testing.T) {
	s := newScene(t, fixture.ScopeOptions{})
	s.orders(t)
	p := s.run(t, template(idle, "orders")) // the driver connects
	s.remove(t, p)
	awaitGone(t, p)
	reads := s.reads(t)
	back := sendDaemonAway(t)
	p = pod(template(firstLook, "orders"))
	s.create(t, p)
	awaitTarget(t, p, true)
	require.NoError(t, back(t.Context()))
	s.startsFull(t, p)
	require.Equal(t, reads+1, s.reads(t))
}

// sendDaemonAway lets the DaemonSet match no node, and waits until its pod is gone.
func sendDaemonAway(t *testing.T) (back func(context.Context) error) {
	t.Helper()
	set := &apps.DaemonSet{}
	set.Namespace, set.Name = releaseNamespace, release
	away := client.RawPatch("application/merge-patch+json", []byte(`{"spec":{"template":{"spec":{"nodeSelector":{"away":"yes"}}}}}`))
	require.NoError(t, cluster.Client.Patch(t.Context(), set, away))
	back = func(ctx context.Context) error {
		here := client.RawPatch("application/merge-patch+json", []byte(`{"spec":{"template":{"spec":{"nodeSelector":{"away":null}}}}}`))
		if err := cluster.Client.Patch(ctx, set, here); err != nil {
			return err
		}
		return await(ctx, 2*soon, daemonReady)
	}
	require.NoError(t, await(t.Context(), 2*soon, func(ctx context.Context) error {
		left, err := daemons(ctx)
		if err == nil && len(left) > 0 {
			err = fmt.Errorf("pod %s is still there", left[0].Name)
		}
		return err
	}))
	return back
}

// awaitTarget waits until the driver has mounted the pod's volume, which it does
// before it calls a provider, or has unmounted it.
func awaitTarget(t *testing.T, p *core.Pod, mounted bool) {
	t.Helper()
	target := filepath.Join("/var/lib/kubelet/pods", string(p.UID), "volumes/kubernetes.io~csi/orders/mount")
	require.NoError(t, await(t.Context(), soon, func(context.Context) error {
		mounts, err := os.ReadFile("/proc/self/mounts")
		if err == nil && strings.Contains(string(mounts), " "+target+" ") != mounted {
			err = fmt.Errorf("the volume is mounted: %t", !mounted)
		}
		return err
	}))
}
