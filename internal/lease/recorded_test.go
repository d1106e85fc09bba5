package lease

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"sigs.k8s.io/secrets-store-csi-driver/provider/v1alpha1"

	"github.com/tenure-csi/tenure/internal/volume"
	"github.com/tenure-csi/tenure/provider"
)

// firstSchema is the journal of an earlier version, recorded; its README says how.
const firstSchema = "testdata/schema1"

// readRecorded opens a copy of a recorded journal, as a node's state directory.
func readRecorded(t *testing.T) map[string]*Record {
	t.Helper()
	dir := tmpfsDir(t)
	require.NoError(t, os.CopyFS(dir, os.DirFS(firstSchema)))
	all, mark, err := openJournal(t, dir).Load()
	require.NoError(t, err)
	require.Equal(t, volume.Mark{Dev: 27, Ino: 2447983}, mark)
	bad, err := filepath.Glob(filepath.Join(dir, "*"+badExt))
	require.NoError(t, err)
	require.Empty(t, bad, "every record can be read")
	byPod := map[string]*Record{}
	for _, r := range all {
		byPod[r.Pod.Name] = r
	}
	return byPod
}

// TestUpgradeFromFirstSchema starts the daemon on a journal that its first version
// wrote: volumes are answered for and renewed, overlaps and owed ends finish, and
// nothing is issued or written.
func TestUpgradeFromFirstSchema(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		recorded := readRecorded(t)
		live, edited, owed := recorded["live"], recorded["edited"], recorded["owed"]
		time.Sleep(time.Until(owed.Grants[0].Retry)) // when the recording ended

		n := newNode(t)
		n.stop()
		n.backend.roles["db-tjj7nltf/creds/tjj7nltf"] = role{ttl: time.Hour, max: 24 * time.Hour}
		n.backend.roles["kv-tjj7nltf/app"], n.backend.kv["kv-tjj7nltf/app"] = role{kind: Polled}, "festina lente"
		for _, r := range recorded {
			n.restore(r)
		}
		require.Equal(t, 3, n.backend.count(), "the leases of live and edited")
		n.start(0)
		defer func() { n.stop() }()
		for _, r := range []*Record{live, edited} {
			answered, err := n.m.Mount(t.Context(), recordedRequest(t, r))
			require.NoError(t, err)
			require.ElementsMatch(t, versions(r.current()), answered)
		}
		pause(time.Minute)
		require.Equal(t, 2, n.backend.tokenCount(), "the owed end is done")
		pause(10 * time.Minute)
		require.Equal(t, 2, n.backend.count(), "the overlap is over")
		pause(time.Hour)
		require.Equal(t, 2, n.backend.count(), "the leases are renewed")
		require.Zero(t, n.backend.logins)
		require.Empty(t, n.backend.mints)
		require.Zero(t, n.swaps())

		for _, r := range []*Record{live, edited} {
			(&pod{n: n, name: r.Pod.UID, target: r.Target}).delete()
		}
		pause(time.Minute)
		require.Zero(t, n.backend.tokenCount())
		require.Zero(t, n.backend.count())
		require.Empty(t, n.records)
	})
}

// restore gives the node a volume, and the backend what it had issued for it.
func (n *node) restore(r *Record) {
	n.records[r.ID] = r
	if !r.Ended {
		v := &mounted{present: true, pod: r.Pod.UID, current: r.Current.Dir, dirs: map[string]map[string]volume.File{r.Current.Dir: {}}}
		for _, old := range r.Retired {
			v.dirs[old.Dir] = map[string]volume.File{}
		}
		n.pods[r.Pod.UID], n.mounts[r.Target] = true, v
	}
	for _, g := range r.Grants {
		n.backend.tokens[g.Token] = &fakeToken{made: g.Opened, expires: g.Expires}
	}
	for _, l := range r.Leases {
		if l.LeaseID == "" {
			continue
		}
		token := r.grant(l.Grant).Token
		issued := &fakeLease{token: token, pod: r.Pod.Name, made: l.Issued, expires: l.Expires, role: role{ttl: l.Length, max: 24 * time.Hour}}
		n.backend.leases[l.LeaseID] = issued
		n.backend.tokens[token].leases = append(n.backend.tokens[token].leases, issued)
	}
}

// recordedRequest is the Mount call that the driver repeats for a recorded volume.
func recordedRequest(t *testing.T, r *Record) provider.Request {
	t.Helper()
	attributes := maps.Clone(r.Current.Spec.Attributes)
	attributes["csi.storage.k8s.io/serviceAccount.tokens"] = fmt.Sprintf(`{"vault":{"token":%q,"expirationTimestamp":%q}}`,
		podJWT.Reveal(), time.Now().Add(time.Hour).Format(time.RFC3339))
	text, err := json.Marshal(attributes)
	require.NoError(t, err)
	request, err := provider.Decode(&v1alpha1.MountRequest{Attributes: string(text), TargetPath: r.Target, Permission: "420"}, "tenure", "/var/lib/kubelet")
	require.NoError(t, err)
	return request
}
