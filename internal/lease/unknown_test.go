package lease

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestFieldsOfALaterVersionAreKept: a volume lives through a downgrade and goes back.
func TestFieldsOfALaterVersionAreKept(t *testing.T) {
	scene(t, func(t *testing.T, n *node) {
		p := n.withOrders(time.Hour, 24*time.Hour)
		require.NoError(t, p.mount())
		n.kill()
		later := json.RawMessage(`{"of":["a later version",1e400]}`)
		for _, r := range n.records {
			for _, u := range []*unknown{&r.unknown, &r.Current.unknown, &r.Grants[0].unknown, &r.Leases[0].unknown} {
				*u = unknown{"added": later}
			}
		}
		n.start(0)
		pause(5 * time.Hour) // renewed, and saved, many times
		require.Greater(t, n.backend.renewed(), 10)
		n.kill()
		require.Len(t, n.records, 1)
		for _, r := range n.records {
			for _, u := range []unknown{r.unknown, r.Current.unknown, r.Grants[0].unknown, r.Leases[0].unknown} {
				require.Equal(t, unknown{"added": later}, u)
			}
		}
		n.start(0)
	})
}

func TestJournalWritesBackWhatItDoesNotKnow(t *testing.T) {
	dir := tmpfsDir(t)
	path := filepath.Join(dir, "a.json")
	text := `{"schema":1,"id":"a","later":{"x":null},"lastID":2,"pod":{"name":"p"},"target":"/t",
"current":{"dir":"..d","leases":[2],"later":"<&>"},
"grants":[{"id":1,"token":"hvs.x","later":[1,{"y":true}]}],
"leases":[{"id":2,"grant":1,"leaseID":"l","length":3600000000000,"objects":[{"id":"o","version":"v","files":null}],"later":12345678901234567890}]}`
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	j := openJournal(t, dir)
	for range 2 { // what was written back is read and written back again
		all, _, err := j.Load()
		require.NoError(t, err)
		require.Len(t, all, 1)
		require.NoError(t, j.Save(all[0]))
	}
	saved, err := os.ReadFile(path)
	require.NoError(t, err)
	var was, is map[string]any
	require.NoError(t, json.Unmarshal([]byte(text), &was))
	require.NoError(t, json.Unmarshal(saved, &is))
	requireWithin(t, was, is, "record")
}

// requireWithin requires that all of was is in is, which may have more fields.
func requireWithin(t *testing.T, was, is any, at string) {
	t.Helper()
	switch was := was.(type) {
	case map[string]any:
		for key, v := range was {
			require.Contains(t, is, key, at)
			requireWithin(t, v, is.(map[string]any)[key], at+"."+key)
		}
	case []any:
		require.Len(t, is, len(was), at)
		for i, v := range was {
			requireWithin(t, v, is.([]any)[i], at)
		}
	default:
		require.Equal(t, was, is, at)
	}
}

// TestRecordOfALaterSchemaIsLeftAlone: the version that can read it finds it again,
// and ends what was replaced meanwhile.
func TestRecordOfALaterSchemaIsLeftAlone(t *testing.T) {
	t.Run("in the journal", func(t *testing.T) {
		dir := tmpfsDir(t)
		path := filepath.Join(dir, "a.json")
		text := `{"schema":2,"id":"a","leases":"in a form of their own"}`
		require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
		all, _, err := openJournal(t, dir).Load()
		require.NoError(t, err)
		require.Equal(t, []*Record{{Schema: 2, ID: "a"}}, all)
		kept, err := os.ReadFile(path)
		require.NoError(t, err)
		require.Equal(t, text, string(kept))
	})
	t.Run("by the manager", func(t *testing.T) {
		scene(t, func(t *testing.T, n *node) {
			p := n.withOrders(time.Hour, 24*time.Hour)
			require.NoError(t, p.mount())
			n.kill()
			of := func(version int) {
				for _, r := range n.records {
					r.Schema = version
				}
			}
			of(schema + 1)
			n.start(0)
			require.Empty(t, n.m.Status())
			require.InDelta(t, 1, gauge(t, n.metrics, "tenure_journal_records_left"), 0)
			before := p.files()
			pause(10 * time.Minute)
			require.Equal(t, before, p.files())
			require.NoError(t, p.mount(), "begins anew")
			require.Equal(t, 2, n.backend.count())
			n.kill()
			of(schema) // as the later version reads it
			n.start(0)
			pause(15 * time.Minute)
			require.True(t, p.works())
			require.Equal(t, 1, n.backend.count())
			require.Len(t, n.records, 1)
		})
	})
}
