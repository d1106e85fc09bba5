//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	apps "k8s.io/api/apps/v1"

	"github.com/tenure-csi/tenure/test/fixture"
)

// page is the unit in which a tmpfs takes memory.
const page = 4 << 10

// values answers a secret of so many values of so many bytes.
func values(count, bytes int) map[string]any {
	secret := map[string]any{}
	for i := range count {
		secret[fmt.Sprintf("key-%03d", i)] = strings.Repeat("v", bytes)
	}
	return secret
}

// keyFiles makes the scene so many classes, each of a secret with a file a value.
func (s *scene) keyFiles(t *testing.T, name string, classes int, secret map[string]any) (names []string) {
	t.Helper()
	require.NoError(t, stack.Vault.WriteKV1(t.Context(), s.KV, name, secret))
	for i := range classes {
		names = append(names, fmt.Sprintf("%s-%d", name, i))
		s.class(t, names[i], fmt.Sprintf("- {objectName: files, secretPath: %s/%s, format: keys}", s.KV, name))
	}
	return names
}

// volumeMemory measures what volumes' files take of the daemon's memory, which the
// chart's limit is derived from.
func volumeMemory(t *testing.T) {
	const perPod = 10
	s := newScene(t, fixture.ScopeOptions{})
	daemon := daemonProcess(t)
	for _, row := range []struct {
		name                string
		pods                int32
		files, bytesOfAFile int
	}{
		{"64-kib", 10, 1, 64 << 10},
		{"1-mib", 10, 1, 1 << 20},
		{"1000-files", 3, 1000, 5},
	} {
		classes := s.keyFiles(t, row.name, perPod, values(row.files, row.bytesOfAFile))
		volumes := int64(perPod * row.pods)
		pages := volumes * int64(row.files) * int64(max(row.bytesOfAFile, page))
		journal := volumes * int64(16<<10+row.files*128) // at most
		before := daemon.charge(t)
		d := s.deploy(t, template(idle, classes...), row.pods, 4*soon)
		grown := daemon.charge(t).minus(before)
		report.figure("%d volumes of %s: %s", volumes, row.name, grown)
		require.InDelta(t, pages, grown.files, float64(journal), "the files are charged to the daemon, once")
		require.LessOrEqual(t, grown.kernel, pages/4+journal, "as cmd/tenure and the chart reckon")
		s.remove(t, d)
		require.NoError(t, await(t.Context(), 2*soon, func(context.Context) error {
			if left := daemon.charge(t).files - before.files; left > journal/volumes {
				return fmt.Errorf("%d bytes of files are still charged", left)
			}
			return nil
		}))
	}
}

// fullBudget fills the volumes' budget at once from two namespaces, which may have
// half of it each: the daemon keeps within its memory limit.
func fullBudget(t *testing.T) {
	const namespaces, pods, perPod = 2, 6, 7 // of 3 MiB each: 246 of 256 MiB
	before, err := daemons(t.Context())
	require.NoError(t, err)
	require.Len(t, before, 1)
	var all []*apps.Deployment
	for range namespaces {
		s := newScene(t, fixture.ScopeOptions{})
		d := deploymentOf(template(idle, s.keyFiles(t, "large", perPod, values(3, 1000<<10))...), pods)
		s.create(t, d)
		all = append(all, d)
	}
	for _, d := range all {
		awaitAvailable(t, d, 8*time.Minute)
	}
	after, err := daemons(t.Context())
	require.NoError(t, err)
	require.Len(t, after, 1)
	report.figure("%s", daemonProcess(t).charge(t))
	require.Zero(t, after[0].Status.ContainerStatuses[0].RestartCount-before[0].Status.ContainerStatuses[0].RestartCount, "a limit that is reached kills the daemon")
	require.Equal(t, before[0].UID, after[0].UID)
}
