//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// process is the daemon's, as the node sees it: its directory in /proc.
type process string

// daemonProcess finds the process in the daemon's container, the only one on the
// node with that name.
func daemonProcess(t *testing.T) process {
	t.Helper()
	var found []process
	names, err := filepath.Glob("/proc/[0-9]*/comm")
	require.NoError(t, err)
	for _, path := range names {
		if name, err := os.ReadFile(path); err == nil && string(name) == "tenure\n" {
			found = append(found, process(filepath.Dir(path)))
		}
	}
	require.Len(t, found, 1, "daemons on the node")
	return found[0]
}

// read answers the content of a file about the process.
func (p process) read(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(string(p), name))
	require.NoError(t, err)
	return string(text)
}

// status answers the fields of /proc/PID/status.
func (p process) status(t *testing.T) map[string]string {
	t.Helper()
	fields := map[string]string{}
	for line := range strings.Lines(p.read(t, "status")) {
		name, value, _ := strings.Cut(line, ":")
		fields[name] = strings.Join(strings.Fields(value), " ")
	}
	return fields
}

// charged is what the process' memory cgroup is charged with, in bytes.
type charged struct {
	files   int64 // pages of tmpfs
	process int64 // its own
	kernel  int64 // inodes, names, sockets
	all     int64
	peak    int64 // of all, since the container's start
}

// charge reads the cgroup, of version 1 or 2.
func (p process) charge(t *testing.T) charged {
	t.Helper()
	for line := range strings.Lines(p.read(t, "cgroup")) {
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		switch {
		case parts[1] == "memory":
			dir := "/sys/fs/cgroup/memory" + parts[2]
			stat := numbers(t, dir+"/memory.stat")
			return charged{
				stat["shmem"], stat["rss"],
				numbers(t, dir+"/memory.kmem.usage_in_bytes")[""], numbers(t, dir+"/memory.usage_in_bytes")[""], numbers(t, dir+"/memory.max_usage_in_bytes")[""],
			}
		case parts[0] == "0" && parts[2] != "/":
			dir := "/sys/fs/cgroup" + parts[2]
			stat := numbers(t, dir+"/memory.stat")
			return charged{stat["shmem"], stat["anon"], stat["kernel"], numbers(t, dir+"/memory.current")[""], numbers(t, dir+"/memory.peak")[""]}
		}
	}
	require.Fail(t, "the daemon is in no memory cgroup")
	return charged{}
}

// numbers reads lines of a name and a number; one without a name has the name "".
func numbers(t *testing.T, path string) map[string]int64 {
	t.Helper()
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	all := map[string]int64{}
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		n, err := strconv.ParseInt(fields[len(fields)-1], 10, 64)
		require.NoError(t, err, path)
		all[strings.Join(fields[:len(fields)-1], " ")] = n
	}
	return all
}

func (c charged) minus(d charged) charged {
	return charged{c.files - d.files, c.process - d.process, c.kernel - d.kernel, c.all - d.all, c.peak}
}

func (c charged) String() string {
	const mib = 1 << 20
	return fmt.Sprintf("%.1f MiB of files, %.1f of the process, %.1f of the kernel, %.1f in all, peak %.1f",
		float64(c.files)/mib, float64(c.process)/mib, float64(c.kernel)/mib, float64(c.all)/mib, float64(c.peak)/mib)
}
