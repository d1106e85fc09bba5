//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	apps "k8s.io/api/apps/v1"
	core "k8s.io/api/core/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tenure-csi/tenure/test/fixture"
)

// stateDir is where the chart has the daemon's journal.
const stateDir = "/run/tenure"

// firstSchema lets the daemon find its volumes as the first schema of the journal
// has them: it looks at their secrets and goes on, and issues nothing.
func firstSchema(t *testing.T) {
	s := newScene(t, fixture.ScopeOptions{})
	s.class(t, "orders", s.database("")+s.mottoEvery("10s"))
	p := s.run(t, template(idle, "orders"))
	before := keeps(t, p)
	replaceDaemon(t, func(ctx context.Context, old *core.Pod) error {
		set := &apps.DaemonSet{ObjectMeta: meta.ObjectMeta{Namespace: releaseNamespace, Name: release}}
		if err := cluster.Client.Delete(ctx, set); err != nil {
			return err
		}
		awaitGone(t, old.DeepCopy())
		rewriteJournal(t, p)
		_, err := cluster.Helm(ctx, "", "upgrade", release, chart, "--reuse-values", "--namespace="+releaseNamespace)
		return err
	})
	looks, err := stack.Vault.AuditCount(s.KV+"/app", "read")
	require.NoError(t, err)
	require.NoError(t, await(t.Context(), soon, func(context.Context) error {
		now, err := stack.Vault.AuditCount(s.KV+"/app", "read")
		if err == nil && now < looks+2 {
			err = fmt.Errorf("the secret was read %d times", now-looks)
		}
		return err
	}))
	s.stays(t, p, before)
	s.remove(t, p)
	s.holds(t, 0)
}

// rewriteJournal writes the record of the pod's volume as the first schema has it:
// with the fields of the recorded one, and the values of the living one.
func rewriteJournal(t *testing.T, p *core.Pod) {
	t.Helper()
	_, first := findRecord(t, "../../internal/lease/testdata/schema1", "live-uid")
	path, living := findRecord(t, stateDir, string(p.UID))
	require.Contains(t, living["leases"].([]any)[0], "made", "a field that the first schema had not")
	old := asFirst(living, first).(map[string]any)
	require.NotContains(t, old["leases"].([]any)[0], "made")
	text, err := json.Marshal(old)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(path, text, 0o600))
}

// findRecord answers the journal's file about a pod's volume.
func findRecord(t *testing.T, dir, uid string) (path string, record map[string]any) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.json"))
	require.NoError(t, err)
	for _, file := range files {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		var r map[string]any
		require.NoError(t, json.Unmarshal(text, &r))
		if r["pod"].(map[string]any)["uid"] == uid {
			return file, r
		}
	}
	require.Fail(t, "there is no record of the pod in "+dir)
	return "", nil
}

// asFirst answers what lives in the shape of first: fields that first does not have
// are left out, and fields that only first has are its own.
func asFirst(living, first any) any {
	switch first := first.(type) {
	case map[string]any:
		with := living.(map[string]any)
		shaped := map[string]any{}
		for name, value := range first {
			switch now, ok := with[name]; {
			case !ok:
				shaped[name] = value
			case name == "attributes": // the SPC's parameters are no fields
				shaped[name] = now
			default:
				shaped[name] = asFirst(now, value)
			}
		}
		return shaped
	case []any:
		var shaped []any
		for i, now := range living.([]any) {
			shaped = append(shaped, asFirst(now, first[i]))
		}
		return shaped
	}
	return living
}
