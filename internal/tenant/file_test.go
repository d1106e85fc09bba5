package tenant

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/tenure-csi/tenure/provider"
)

// TestFileIsReadAgain changes a file as kubelet changes a ConfigMap's, through
// good and bad versions.
func TestFileIsReadAgain(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "bindings.yaml")
	synctest.Test(t, func(t *testing.T) {
		version := 0
		write := func(text string) {
			version++
			real := filepath.Join(dir, string(rune('a'+version)))
			require.NoError(t, os.WriteFile(real, []byte(text), 0o600))
			require.NoError(t, os.Symlink(real, path+".tmp"))
			require.NoError(t, os.Rename(path+".tmp", path))
		}
		names := func(f *File) []string {
			names, err := f.Names(orders)
			require.NoError(t, err)
			return names
		}
		write(with(""))
		registry := prometheus.NewRegistry()
		f, err := Open(path, slog.New(slog.DiscardHandler), registry)
		require.NoError(t, err)
		ctx, cancel := context.WithCancel(t.Context())
		changes := 0
		done := make(chan struct{})
		go func() { defer close(done); f.Watch(ctx, func() { changes++ }) }()
		look := func(text string, wantChanges int, wantStale float64) {
			t.Helper()
			write(text)
			time.Sleep(3 * lookEvery)
			synctest.Wait()
			require.Equal(t, wantChanges, changes)
			require.InDelta(t, wantStale, value(t, registry, "tenure_tenant_bindings_stale"), 0)
		}
		look(with(""), 0, 0)
		look(with("- {name: b, namespaces: [shop], serviceAccounts: [orders], tenants: [b]}\n"), 1, 0)
		require.Equal(t, []string{"b", "t-a"}, names(f))
		look("rules:\n- {}\n", 1, 1)
		require.Equal(t, []string{"b", "t-a"}, names(f), "a bad version is refused as a whole")
		look("", 1, 1)
		require.NoError(t, os.Remove(path))
		time.Sleep(2 * lookEvery)
		require.Equal(t, []string{"b", "t-a"}, names(f))
		look("rules: []\n", 2, 0)
		require.Empty(t, names(f))
		require.InDelta(t, 2, value(t, registry, "tenure_tenant_bindings_loads_total", "refused"), 0, "each bad version once")
		cancel()
		<-done
	})
}

// TestNothingIsKnownBeforeAGoodVersion: a start with a bad file takes nothing away.
func TestNothingIsKnownBeforeAGoodVersion(t *testing.T) {
	f, err := Open(filepath.Join(t.TempDir(), "missing"), slog.New(slog.DiscardHandler), nil)
	require.ErrorContains(t, err, "reading the tenant bindings")
	_, err = f.Names(orders)
	require.ErrorIs(t, err, errUnknown)
	_, _, err = f.Bind(orders, provider.Read{Tenant: "t-a"})
	require.ErrorIs(t, err, errUnknown)
	_, _, err = f.Bind(orders, provider.Read{})
	require.NoError(t, err, "without tenants nothing needs to be known")
}

// value is what a metric shows, of one label where it has one.
func value(t *testing.T, registry *prometheus.Registry, name string, label ...string) float64 {
	t.Helper()
	families, err := registry.Gather()
	require.NoError(t, err)
	for _, family := range families {
		for _, m := range family.GetMetric() {
			if family.GetName() == name && (len(label) == 0 || m.GetLabel()[0].GetValue() == label[0]) {
				return m.GetGauge().GetValue() + m.GetCounter().GetValue()
			}
		}
	}
	t.Fatalf("no metric %s %v", name, label)
	return 0
}
