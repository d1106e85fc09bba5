package integration

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"sigs.k8s.io/secrets-store-csi-driver/pkg/util/fileutil"
	"sigs.k8s.io/secrets-store-csi-driver/provider/v1alpha1"

	"github.com/tenure-csi/tenure/test/fixture"
)

// TestTakeOver gives the daemon a live volume that the driver itself wrote for a
// provider that answers with files, as the HashiCorp provider does: the next
// republish takes it over, without a moment in which a file is missing.
func TestTakeOver(t *testing.T) {
	t.Parallel()
	s := newSite(t, fixture.ScopeOptions{})
	v := s.mounted(t, s.db("db.conf"))
	require.NoError(t, s.daemon.Kill())
	require.NoError(t, os.RemoveAll(s.node.State))
	require.NoError(t, os.Mkdir(s.node.State, 0o700))
	var theirs []*v1alpha1.File
	for _, name := range []string{"db.conf", "old"} {
		theirs = append(theirs, &v1alpha1.File{Path: name, Mode: 0o644, Contents: []byte("theirs")})
	}
	require.NoError(t, fileutil.WritePayloads(v.Target, theirs))
	require.Equal(t, "theirs", read(t, v, "db.conf"))

	require.NoError(t, s.daemon.Restart(t.Context()))
	missing, stop := make(chan bool), make(chan struct{})
	go func() {
		_, err := os.ReadFile(filepath.Join(v.Target, "db.conf"))
		for end := false; err == nil && !end; _, err = os.ReadFile(filepath.Join(v.Target, "db.conf")) {
			select {
			case <-stop:
				end = true
			default:
			}
		}
		missing <- err != nil
	}()
	_, err := v.Republish(t.Context())
	close(stop)
	require.NoError(t, err)
	require.False(t, <-missing, "the file was never gone")

	require.Contains(t, read(t, v, "db.conf"), "user=")
	files, err := v.Files()
	require.NoError(t, err)
	require.Equal(t, []string{"db.conf"}, files, "what only the other provider wrote is gone")
	require.NoError(t, fixture.Eventually(within(t, 2*time.Minute), 1, func(context.Context) (int, error) {
		dirs := 0
		entries, err := os.ReadDir(v.Target)
		for _, e := range entries {
			if strings.HasPrefix(e.Name(), "..") && e.IsDir() {
				dirs++
			}
		}
		return dirs, err
	}), "one generation, and nothing of theirs")
	info, err := os.Stat(v.Target)
	require.NoError(t, err)
	require.Equal(t, time.Date(1971, 1, 1, 0, 0, 0, 0, time.UTC), info.ModTime().UTC(), "so that the driver skips no republish")
}
