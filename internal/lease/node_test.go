package lease

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/tenure-csi/tenure/internal/volume"
	"github.com/tenure-csi/tenure/provider"
)

// node is the model of a node: pods with volumes, the daemon that can be killed
// between any two effects and started again, and a backend.
type node struct {
	t       *testing.T
	backend *backend
	binder  Binder
	m       *Manager
	daemon  *instance
	metrics *prometheus.Registry // of this life of the daemon

	mu      sync.Mutex
	mounts  map[string]*mounted // by target
	pods    map[string]bool     // pod UIDs with a directory
	records map[string]*Record  // the journal
	mark    volume.Mark
	effects int // of this life of the daemon
	sweep   time.Duration
	log     io.Writer // nil: nowhere
	// maxBytes is the budget of volumes, from the next start on
	maxBytes int64
	writes   int // swaps
	cluster  Cluster
	journal  Store // the real one; nil: the model's
	wrong    []string

	writeErr, saveErr, currentErr, removeErr error // faults of the node itself
}

// mounted is a volume as the pod sees it.
type mounted struct {
	present bool // the tmpfs is there
	claimed bool
	pod     string
	current string
	dirs    map[string]map[string]volume.File
}

// instance is one life of the daemon: after its kill it has no effect.
type instance struct {
	*backend
	n      *node
	dead   bool
	killAt int // dies before this effect; 0: never
}

var errKilled = broken(provider.Internal, "killed", Retry, false)

// live counts an effect, and says whether it still happens.
func (i *instance) live() bool {
	i.n.mu.Lock()
	defer i.n.mu.Unlock()
	if i.dead {
		return false
	}
	i.n.effects++
	if i.killAt > 0 && i.n.effects >= i.killAt {
		i.dead = true
		return false
	}
	return true
}

func newNode(t *testing.T) *node {
	n := &node{
		t: t, backend: newBackend(), mounts: map[string]*mounted{}, pods: map[string]bool{}, records: map[string]*Record{},
	}
	n.start(0)
	return n
}

// start begins a life of the daemon, which ends before the given effect.
func (n *node) start(killAt int) {
	n.effects = 0
	n.daemon = &instance{backend: n.backend, n: n, killAt: killAt}
	n.metrics = prometheus.NewRegistry()
	log := slog.New(slog.DiscardHandler)
	if out := n.log; out != nil || os.Getenv("TENURE_TEST_LOG") != "" {
		log = slog.New(slog.NewTextHandler(cmp.Or(out, io.Writer(os.Stderr)), nil))
	}
	journal := n.journal
	if journal == nil {
		journal = store{n.daemon}
	}
	m, err := Open(Config{
		Sources: map[string]Source{"vault": n.daemon, "aws-sts": n.daemon}, Files: n.daemon, Store: journal, Tenants: n.binder, VersionKey: []byte("the key of the tests"),
		Log: log, sweep: n.sweep, MaxBytes: n.maxBytes, Cluster: n.cluster, Registerer: n.metrics,
	})
	require.NoError(n.t, err)
	n.m = m
}

// swaps returns how many generations were written.
func (n *node) swaps() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.writes
}

// pause lets time pass, and what came due in it finish.
func pause(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// killed reports whether the daemon has met its kill point.
func (n *node) killed() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.daemon.dead
}

// stop drains the daemon as SIGTERM does.
func (n *node) stop() {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	require.NoError(n.t, n.m.Close(ctx))
}

// kill ends the daemon as SIGKILL does: what it has not done is not done.
func (n *node) kill() {
	n.mu.Lock()
	n.daemon.dead = true
	n.mu.Unlock()
	n.stop()
}

// The instance as Source: a call of a dead daemon never reaches the backend; one
// that was sent before takes effect, and nobody hears the answer.

func (i *instance) Login(ctx context.Context, by Caller, l provider.Login, id provider.Identity) (Session, error) {
	if !i.live() {
		return Session{}, errKilled
	}
	s, err := i.backend.Login(ctx, by, l, id)
	if !i.live() {
		return Session{}, errKilled
	}
	return s, err
}

func (i *instance) Read(ctx context.Context, by Caller, s Session, r provider.Read) (Issued, error) {
	if !i.live() {
		return Issued{}, errKilled
	}
	is, err := i.backend.Read(ctx, by, s, r)
	if !i.live() {
		return Issued{}, errKilled
	}
	return is, err
}

func (i *instance) RenewSession(ctx context.Context, by Caller, s Session) (Granted, error) {
	if !i.live() {
		return Granted{}, errKilled
	}
	return i.backend.RenewSession(ctx, by, s)
}

func (i *instance) RenewLease(ctx context.Context, by Caller, s Session, id string, inc time.Duration) (Granted, error) {
	if !i.live() {
		return Granted{}, errKilled
	}
	return i.backend.RenewLease(ctx, by, s, id, inc)
}

func (i *instance) EndSession(ctx context.Context, by Caller, s Session) error {
	if !i.live() {
		return errKilled
	}
	return i.backend.EndSession(ctx, by, s)
}

func (i *instance) EndLease(ctx context.Context, by Caller, s Session, id string) error {
	if !i.live() {
		return errKilled
	}
	return i.backend.EndLease(ctx, by, s, id)
}

// The instance as Files.

func (i *instance) Write(target string, g volume.Generation) error {
	if !i.live() {
		return errKilled
	}
	n := i.n
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.writeErr != nil {
		return n.writeErr
	}
	v := n.mounts[target]
	if v == nil || !v.present {
		return volume.ErrNotMounted
	}
	files := map[string]volume.File{}
	for _, f := range g.Files {
		if f.Keep {
			old, ok := v.dirs[v.current][f.Path]
			if !ok {
				return volume.ErrLost
			}
			f.Data = old.Data
		}
		files[f.Path] = f
	}
	for dir := range v.dirs {
		if dir != v.current && !slices.Contains(g.Retain, dir) {
			delete(v.dirs, dir)
		}
	}
	v.dirs[g.Dir] = files
	v.current = g.Dir
	n.writes++
	n.checkPairs(target, files)
	return nil
}

// checkPairs is I2: user and password of one object are of one lease.
func (n *node) checkPairs(target string, files map[string]volume.File) {
	for p, f := range files {
		if base, ok := strings.CutSuffix(p, "-user"); ok {
			if leaseOf(f.Data) != leaseOf(files[base+"-pass"].Data) {
				n.wrong = append(n.wrong, target+": user and password of different leases")
			}
		}
	}
}

func (i *instance) Current(target string) (string, error) {
	i.n.mu.Lock()
	defer i.n.mu.Unlock()
	v := i.n.mounts[target]
	switch {
	case i.n.currentErr != nil:
		return "", i.n.currentErr
	case v == nil || !v.present:
		return "", volume.ErrNotMounted
	case v.current == "":
		return "", volume.ErrEmpty
	}
	return v.current, nil
}

func (i *instance) Claim(target string) (again bool, err error) {
	i.n.mu.Lock()
	defer i.n.mu.Unlock()
	v := i.n.mounts[target]
	if v == nil || !v.present {
		return false, volume.ErrNotMounted
	}
	if v.current != "" {
		return false, nil
	}
	again, v.claimed = v.claimed, true
	return again, nil
}

func (i *instance) Remove(target, dir string) error {
	if !i.live() {
		return errKilled
	}
	i.n.mu.Lock()
	defer i.n.mu.Unlock()
	if v := i.n.mounts[target]; i.n.removeErr == nil && v != nil && v.current != dir {
		delete(v.dirs, dir)
	}
	return i.n.removeErr
}

func (i *instance) Look(target, podUID string) volume.Presence {
	i.n.mu.Lock()
	defer i.n.mu.Unlock()
	switch {
	case !i.n.pods[podUID]:
		return volume.PodGone
	case i.n.mounts[target] == nil:
		return volume.VolumeGone
	}
	return volume.Here
}

func (i *instance) Root() (volume.Mark, error) { return volume.Mark{Dev: 1, Ino: 1}, nil }

// store is the instance as Store: it keeps copies, and a restart reads them
// through JSON as from the journal.
type store struct{ *instance }

func (i store) Load() ([]*Record, volume.Mark, error) {
	i.n.mu.Lock()
	defer i.n.mu.Unlock()
	var all []*Record
	for _, id := range slices.Sorted(maps.Keys(i.n.records)) {
		b, err := json.Marshal(i.n.records[id])
		if err != nil {
			return nil, i.n.mark, err
		}
		r := &Record{}
		if err := errors.Join(json.Unmarshal(b, r), r.check()); err != nil {
			return nil, i.n.mark, err
		}
		all = append(all, r)
	}
	return all, i.n.mark, nil
}

func (i store) Save(r *Record) error {
	if !i.live() {
		return errKilled
	}
	i.n.mu.Lock()
	defer i.n.mu.Unlock()
	if i.n.saveErr != nil {
		return i.n.saveErr
	}
	i.n.records[r.ID] = clone(r)
	return nil
}

// clone copies what a worker may change later.
func clone(r *Record) *Record {
	c := *r
	c.Retired = slices.Clone(r.Retired)
	for _, g := range []**generation{&c.Current, &c.Pending} {
		if *g != nil {
			gen := **g
			*g = &gen
		}
	}
	c.Grants, c.Leases = make([]*grant, len(r.Grants)), make([]*lease, len(r.Leases))
	for i, g := range r.Grants {
		copied := grant{
			ID: g.ID, Source: g.Source, Login: g.Login, Token: g.Token, Accessor: g.Accessor, Opened: g.Opened, Length: g.Length,
			Expires: g.Expires, End: g.End, Due: g.Due, Retry: g.Retry, Tries: g.Tries, Jitter: g.Jitter, Renewable: g.Renewable,
			Revocable: g.Revocable, Borrowed: g.Borrowed, Pending: g.Pending, Ending: g.Ending, Ends: slices.Clone(g.Ends),
			unknown: g.unknown,
		}
		c.Grants[i] = &copied
	}
	for i, l := range r.Leases {
		copied := *l
		c.Leases[i] = &copied
	}
	return &c
}

func (i store) Remove(id string) error {
	if !i.live() {
		return errKilled
	}
	i.n.mu.Lock()
	defer i.n.mu.Unlock()
	delete(i.n.records, id)
	return nil
}

func (i store) SaveMark(m volume.Mark) error {
	i.n.mu.Lock()
	defer i.n.mu.Unlock()
	i.n.mark = m
	return nil
}
