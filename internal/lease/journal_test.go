package lease

import (
	"context"
	"encoding/json"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/tenure-csi/tenure/internal/volume"
	"github.com/tenure-csi/tenure/provider"
)

var quiet = slog.New(slog.DiscardHandler)

// tmpfsDir makes a directory on a tmpfs.
func tmpfsDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "tenure-journal-*")
	if err != nil {
		t.Skip("SKIPPED: /dev/shm is not writable, and the journal needs a tmpfs:", err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func openJournal(t *testing.T, dir string) *Journal {
	t.Helper()
	j, err := OpenJournal(t.Context(), dir, quiet)
	require.NoError(t, err)
	t.Cleanup(func() { j.Close() })
	return j
}

func record(id string) *Record {
	return &Record{
		Schema: schema, ID: id, Target: "/t/" + id, Pod: provider.Pod{Name: "p"}, LastID: 2,
		Current: &generation{Dir: "..d", Spec: spec{Hash: "h", Attributes: map[string]string{"a": "b"}}, Leases: []int{2}},
		Grants:  []*grant{{ID: 1, Token: "hvs.x", Opened: time.Now()}},
		Leases:  []*lease{{ID: 2, Grant: 1, LeaseID: "l", Length: time.Hour, Objects: []object{{ID: "o", Version: "v"}}}},
	}
}

func TestJournalKeepsRecords(t *testing.T) {
	dir := tmpfsDir(t)
	j := openJournal(t, dir)
	require.NoError(t, j.Save(record("a")))
	require.NoError(t, j.Save(record("b")))
	require.NoError(t, j.Remove("b"))
	require.NoError(t, j.Remove("b"), "a missing record is no error")
	require.NoError(t, j.SaveMark(volume.Mark{Dev: 7, Ino: 8}))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "c.json.tmp"), []byte("{"), 0o600))

	all, mark, err := j.Load()
	require.NoError(t, err)
	require.Equal(t, volume.Mark{Dev: 7, Ino: 8}, mark)
	require.Len(t, all, 1)
	require.Equal(t, "a", all[0].ID)
	require.Equal(t, "hvs.x", all[0].grant(1).Token)
	require.NoFileExists(t, filepath.Join(dir, "c.json.tmp"))
	info, err := os.Stat(filepath.Join(dir, "a.json"))
	require.NoError(t, err)
	require.EqualValues(t, 0o600, info.Mode().Perm())
}

func TestJournalSetsBadRecordsAside(t *testing.T) {
	dir := tmpfsDir(t)
	j := openJournal(t, dir)
	require.NoError(t, j.Save(record("good")))
	whole, err := os.ReadFile(filepath.Join(dir, "good.json"))
	require.NoError(t, err)
	for name, content := range map[string]string{
		"cut":     string(whole[:len(whole)/2]),
		"empty":   "",
		"null":    "null",
		"older":   `{"schema":0,"id":"older"}`,
		"renamed": string(whole),
		"holes":   `{"schema":1,"id":"holes","current":{"dir":"..d","leases":[5]}}`,
		"nil":     `{"schema":1,"id":"nil","leases":[null]}`,
	} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name+".json"), []byte(content), 0o600))
	}
	all, _, err := j.Load()
	require.NoError(t, err)
	require.Len(t, all, 1)
	require.Equal(t, "good", all[0].ID)
	bad, err := filepath.Glob(filepath.Join(dir, "*.bad"))
	require.NoError(t, err)
	require.Len(t, bad, 7)
	reg := prometheus.NewRegistry()
	j.Register(reg)
	require.InDelta(t, 7, gauge(t, reg, "tenure_journal_records_damaged"), 0)
	require.NoError(t, os.Remove(bad[0]))
	require.InDelta(t, 6, gauge(t, reg, "tenure_journal_records_damaged"), 0, "until somebody has looked at it")
}

// gauge is the sum of a registered metric's samples.
func gauge(t *testing.T, reg *prometheus.Registry, name string) (sum float64) {
	t.Helper()
	all, err := reg.Gather()
	require.NoError(t, err)
	for _, f := range all {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			sum += m.GetGauge().GetValue() + m.GetCounter().GetValue()
		}
		return sum
	}
	require.Fail(t, "no such metric", name)
	return 0
}

func FuzzJournalRecord(f *testing.F) {
	f.Add([]byte(`{"schema":1,"id":"x","grants":[null],"leases":[{"id":1}],"current":{"leases":[1]}}`))
	f.Add([]byte(`{"schema":1,"id":"x","later":{},"leases":[{"id":1,"later":[1e999]}],"current":{"later":null,"leases":[1]}}`))
	dir, err := os.MkdirTemp("/dev/shm", "tenure-fuzz-*")
	require.NoError(f, err)
	f.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "x.json")
	f.Fuzz(func(t *testing.T, b []byte) {
		require.NoError(t, os.WriteFile(path, b, 0o600))
		r, err := readRecord(path)
		if err != nil {
			return
		}
		if r.Schema > schema {
			return
		}
		// What is accepted is written back as it was, with all that is not known of it.
		written, err := json.Marshal(r)
		require.NoError(t, err)
		again := &Record{}
		require.NoError(t, json.Unmarshal(written, again))
		rewritten, err := json.Marshal(again)
		require.NoError(t, err)
		require.Equal(t, string(written), string(rewritten))
		// And it can be worked with.
		r.settle(time.Now(), nil)
		for _, l := range r.current() {
			_ = r.end(l)
		}
	})
}

func TestJournalRefusesUnsafeDirectories(t *testing.T) {
	t.Run("others may have written", func(t *testing.T) {
		dir := tmpfsDir(t)
		require.NoError(t, os.Chmod(dir, 0o775))
		_, err := OpenJournal(t.Context(), dir, quiet)
		require.ErrorContains(t, err, "chmod 0700")
	})
	t.Run("of others", func(t *testing.T) { // such as /run, by --state-dir=/run
		dir := tmpfsDir(t)
		require.NoError(t, os.Mkdir(filepath.Join(dir, "systemd"), 0o755))
		require.NoError(t, os.Chmod(dir, 0o755))
		_, err := OpenJournal(t.Context(), dir, quiet)
		require.ErrorContains(t, err, "chmod 0700")
		requireMode(t, dir, 0o755)
	})
	t.Run("on a disk", func(t *testing.T) {
		_, err := OpenJournal(t.Context(), filepath.Join(t.TempDir(), "state"), quiet)
		require.ErrorContains(t, err, "not on a tmpfs")
	})
	t.Run("a file", func(t *testing.T) {
		path := filepath.Join(tmpfsDir(t), "file")
		require.NoError(t, os.WriteFile(path, nil, 0o600))
		_, err := OpenJournal(t.Context(), path, quiet)
		require.Error(t, err)
	})
}

// Kubelet makes a hostPath of type DirectoryOrCreate with 0755
// (pkg/volume/hostpath), and the container sees it as its mount point.
func TestJournalClosesADirectoryMadeByKubelet(t *testing.T) {
	dir := tmpfsDir(t)
	require.NoError(t, os.Chmod(dir, 0o755))
	j := openJournal(t, dir)
	require.NoError(t, j.Close())
	requireMode(t, dir, 0o700)
}

func requireMode(t *testing.T, dir string, want fs.FileMode) {
	t.Helper()
	info, err := os.Stat(dir)
	require.NoError(t, err)
	require.Equal(t, want, info.Mode().Perm())
}

func TestJournalHasOneOwner(t *testing.T) {
	dir := tmpfsDir(t)
	first := openJournal(t, dir)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := OpenJournal(ctx, dir, quiet)
	require.ErrorContains(t, err, "another process holds it")
	require.NoError(t, first.Close())
	openJournal(t, dir)
}
