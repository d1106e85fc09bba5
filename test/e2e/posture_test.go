//go:build e2e

package e2e

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// posture looks from the node at the running daemon's process: what the kernel lets
// it do, whatever the manifest says.
func posture(t *testing.T) {
	daemon := daemonProcess(t)
	t.Run("rights", func(t *testing.T) {
		const chownAndFowner, none = "0000000000000009", "0000000000000000" // capability.h: CAP_CHOWN is 0, CAP_FOWNER 3
		status := daemon.status(t)
		for field, want := range map[string]string{
			"CapEff": chownAndFowner, "CapPrm": chownAndFowner, "CapBnd": chownAndFowner, "CapInh": none, "CapAmb": none,
			"Seccomp": "2", "NoNewPrivs": "1", // 2: system calls are filtered
			"Uid": "0 0 0 0", "Gid": "0 0 0 0",
		} {
			require.Equal(t, want, status[field], field)
		}
	})
	t.Run("mounts", daemon.mounts)
	t.Run("ports", func(t *testing.T) {
		require.Equal(t, []string{":1F90"}, daemon.listens(t), "8080 on all addresses, in hexadecimal, alone")
	})
}

// mounts requires that the process can write to what the chart mounts for that and
// to what every container has, and that it has no token of its service account.
func (p process) mounts(t *testing.T) {
	writable := []string{"/var/run/secrets-store-csi-providers", "/var/lib/kubelet/pods", "/run/tenure"}
	runtimes := regexp.MustCompile(`^(/proc|/dev|/etc/hosts|/etc/hostname|/etc/resolv\.conf|/sys/fs/cgroup)(/|$)`) // in every container
	propagated := "/var/lib/kubelet/pods/"                                                                         // the pods' volumes, the daemon's own among them
	var found []string
	for line := range strings.Lines(p.read(t, "mountinfo")) {
		fields := strings.Fields(line) // proc(5): the mount point is the fifth, its options are the sixth
		point, options := fields[4], strings.Split(fields[5], ",")
		if !slices.Contains(options, "ro") && !runtimes.MatchString(point) && !strings.HasPrefix(point, propagated) {
			found = append(found, point)
		}
		require.NotContains(t, point, "serviceaccount")
	}
	require.ElementsMatch(t, writable, found)
	for _, dir := range []string{"/", "/etc", "/etc/tenure/version-key"} {
		err := os.WriteFile(filepath.Join(string(p), "root", dir, "written"), nil, 0o600)
		require.ErrorIs(t, err, unix.EROFS, dir)
	}
}

// listens answers where the process listens on TCP, the address left away where it
// is any: proc_net_tcp.rst, where 0A is LISTEN.
func (p process) listens(t *testing.T) (ports []string) {
	t.Helper()
	sockets, err := filepath.Glob(filepath.Join(string(p), "fd", "*"))
	require.NoError(t, err)
	own := map[string]bool{}
	for _, fd := range sockets {
		if to, err := os.Readlink(fd); err == nil { // it may be closed meanwhile
			own[to] = true
		}
	}
	for _, table := range []string{"net/tcp", "net/tcp6", "net/udp", "net/udp6"} {
		for line := range strings.Lines(p.read(t, table)) {
			fields := strings.Fields(line)
			listening := fields[3] == "0A" || strings.HasPrefix(table, "net/udp")
			if listening && own["socket:["+fields[9]+"]"] {
				ports = append(ports, strings.TrimLeft(fields[1], "0"))
			}
		}
	}
	return ports
}
