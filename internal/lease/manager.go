// Package lease is the core: what is owed to whom until when. It issues what a
// volume's SPC asks for, renews and replaces it before it ends, and ends it when
// the volume is gone, through Sources that know backends and Files that knows
// volumes.
package lease

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/tenure-csi/tenure/internal/volume"
	"github.com/tenure-csi/tenure/provider"
)

// Files puts generations into volumes. *volume.Writer implements it. Calls for
// one target are never made at once, but for Current and Claim.
type Files interface {
	// Write swaps in a generation. On an error the old one is untouched.
	Write(target string, g volume.Generation) error
	// Current names the directory of the present generation.
	Current(target string) (string, error)
	// Claim marks an empty volume as one that a Mount was begun for, and reports
	// whether it was so already. It may run beside a Write.
	Claim(target string) (again bool, err error)
	// Remove deletes a replaced generation's directory.
	Remove(target, dir string) error
	// Look says what is left of a volume.
	Look(target, podUID string) volume.Presence
	// Root identifies the pods directory, and fails where it can't be listed.
	Root() (volume.Mark, error)
}

// Store keeps the records of volumes over a restart. *Journal implements it.
// Calls for one id are never made at once.
type Store interface {
	// Load returns every readable record and the recorded mark of the pods
	// directory; what can't be read is set aside, never an error for the others. Of a
	// record of a higher schema it returns the ID and Schema alone.
	Load() ([]*Record, volume.Mark, error)
	// Save writes one record; when it returns, a kill loses nothing of it.
	Save(r *Record) error
	// Remove forgets a record; a missing one is no error.
	Remove(id string) error
	// SaveMark records the pods directory whose absences may be believed.
	SaveMark(volume.Mark) error
}

// Config is what a Manager works with. All fields but Tenants, MaxBytes, Registerer
// and Cluster are required.
type Config struct {
	Sources    map[string]Source // by the name that objects call them
	Files      Files
	Store      Store
	Tenants    Binder // nil: nothing beside the backends decides who may be which tenant
	VersionKey []byte // keys the HMAC of object versions: equal on all nodes, they agree
	MaxBytes   int64  // of memory that the files of all volumes may take together; 0: no bound
	Log        *slog.Logger
	Registerer prometheus.Registerer // nil: metrics are counted but not registered
	Cluster    Cluster               // zero: the Kubernetes API is neither asked nor told

	sweep time.Duration // 0: sweepEvery; simulations of long times look less often
}

// Manager holds the leases of a node's volumes. It implements
// provider.Mounter; all its methods may be called from many goroutines at once.
type Manager struct {
	Config
	metrics *metrics
	opened  time.Time
	ctx     context.Context // ends when the manager closes: nothing new is begun
	cancel  context.CancelFunc
	work    sync.WaitGroup // every goroutine
	queue   *queue
	pacer   *pacer
	leases  *phases
	grants  *phases
	budget  budget // of files
	answers budget
	recents budget

	mu      sync.Mutex
	volumes map[string]*worker // by target
	ended   map[string]*worker // by record id: gone, with ends still owed
	mark    volume.Mark        // the pods directory that absences are believed in
	blind   error              // why absences are not believed now
	closed  bool
}

const (
	sweepEvery   = 2 * time.Second
	mountBudget  = 30 * time.Second // well before kubelet's 2 minutes: a Mount in flight delays the unmount
	goneAfter    = 2 * time.Minute  // the driver unmounts and retries after failures of its own
	deniedMemory = 10 * time.Second // a refused Mount is answered from memory for this long
)

// Open loads the store, ends what a killed process left half-done, and goes on
// with every live volume at its own due times: it issues nothing and rewrites
// no file. Close must be called.
func Open(c Config) (*Manager, error) {
	records, mark, err := c.Store.Load()
	if err != nil {
		return nil, err
	}
	m := &Manager{
		Config: c, opened: time.Now(), metrics: newMetrics(c.Registerer), queue: newQueue(max(tick, c.sweep)), pacer: newPacer(), leases: newPhases(), grants: newPhases(),
		budget: budget{
			most: c.MaxBytes, spaces: map[string]int64{}, of: "files", remedy: "mount less on this node, or have the operator raise --volume-budget",
		},
		answers: budget{most: maxAnswers, spaces: map[string]int64{}, of: "answers", remedy: "read fewer or smaller secrets at once"},
		recents: budget{most: maxRecent, spaces: map[string]int64{}}, // nobody is refused anything
		volumes: map[string]*worker{}, ended: map[string]*worker{}, mark: mark,
	}
	m.Sources = make(map[string]Source, len(c.Sources))
	for name, s := range c.Sources {
		m.Sources[name] = contained{s, m}
	}
	if c.Registerer != nil {
		c.Registerer.MustRegister(newCollector(m))
	}
	m.ctx, m.cancel = context.WithCancel(context.Background())
	if err := m.checkRoot(); err != nil {
		c.Log.Error("pods directory can't be trusted: nothing is ended until it can", "error", err)
	}
	var adopted []*worker
	for _, r := range records {
		if err := m.serves(r); err != nil {
			c.Log.Error("leaving a volume to the version that wrote its record", "record", r.ID, "error", err)
			m.metrics.recordsLeft.Inc()
			continue
		}
		adopted = append(adopted, m.adopt(r))
	}
	for _, w := range adopted {
		w.kick()
	}
	m.work.Go(m.run)
	m.work.Go(func() { m.pacer.run(m.ctx) })
	return m, nil
}

// serves reports what in a record this version can't work with, after a
// downgrade for example.
func (m *Manager) serves(r *Record) error {
	if r.Schema > schema {
		return fmt.Errorf("its schema is %d, this version reads %d", r.Schema, schema)
	}
	for _, g := range r.Grants {
		if m.Sources[g.Source] == nil {
			return fmt.Errorf("source %q is not supported by this version", g.Source)
		}
	}
	for _, l := range r.Leases {
		if m.Sources[l.Source] == nil || l.Kind < Leased || l.Kind > Once {
			return fmt.Errorf("source %q or kind %d is not supported by this version", l.Source, l.Kind)
		}
	}
	return nil
}

// adopt takes up a volume from its record.
func (m *Manager) adopt(r *Record) *worker {
	w := newWorker(m, r)
	if !r.Ended {
		w.recover()
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if r.Ended {
		m.ended[r.ID] = w
		return w
	}
	kept := w
	if twin := m.volumes[r.Target]; twin != nil { // its end could not be journaled
		if twin.live() {
			kept, twin = twin, w
		}
		twin.locked(func() { twin.gone = true })
	}
	m.volumes[r.Target] = kept
	return w
}

// Mount implements provider.Mounter. A cancelled ctx ends only the waiting. An
// empty volume that another Mount was begun for is not given up before ctx ends:
// the driver hides its failure from kubelet, and the pod would start without files.
func (m *Manager) Mount(ctx context.Context, r provider.Request) ([]provider.Version, error) {
	again, _ := m.Files.Claim(r.Target) // what keeps it from that keeps files from being written
	for tries := 1; ; tries++ {
		vs, err := m.mount(ctx, r)
		if err == nil || !again {
			return vs, err
		}
		m.Log.Warn("the driver would start the pod without files: trying again", "pod_uid", r.Pod.UID, "target", r.Target, "error", err)
		select {
		case <-time.After(backoff(tries, retryFirst, retryCap)):
		case <-ctx.Done():
			return nil, err
		}
		again, _ = m.Files.Claim(r.Target) // false once it is unmounted
	}
}

// mount is one try of Mount.
func (m *Manager) mount(ctx context.Context, r provider.Request) ([]provider.Version, error) {
	w, err := m.worker(r)
	if err != nil {
		return nil, err
	}
	a, vs, err := w.ask(r)
	if a == nil {
		return vs, err
	}
	select {
	case <-a.done:
		return a.versions, a.err
	case <-ctx.Done():
		return nil, &provider.Error{Class: provider.Deadline, Cause: "the caller stopped waiting; the work goes on", Err: ctx.Err()}
	}
}

// worker returns the worker of a request's volume, made new where it is not known.
func (m *Manager) worker(r provider.Request) (*worker, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil, &provider.Error{Class: provider.Unavailable, Cause: "the daemon is stopping", Remedy: "kubelet tries again"}
	}
	w := m.volumes[r.Target]
	if w == nil {
		w = newWorker(m, &Record{Schema: schema, ID: newID(), Pod: r.Pod, Target: r.Target})
		m.volumes[r.Target] = w
	}
	return w, nil
}

// forget drops a volume that holds and owes nothing any more.
func (m *Manager) forget(w *worker) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.volumes[w.rec.Target] == w {
		delete(m.volumes, w.rec.Target)
	}
	delete(m.ended, w.rec.ID)
}

// retire moves an ended volume aside, so that a new one may come at its target.
func (m *Manager) retire(w *worker) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.volumes[w.rec.Target] == w {
		delete(m.volumes, w.rec.Target)
	}
	m.ended[w.rec.ID] = w
}

// run is the clock: it wakes volumes whose time has come and sweeps.
func (m *Manager) run() {
	sweep := time.NewTicker(cmp.Or(m.sweep, sweepEvery))
	defer sweep.Stop()
	for {
		wait := time.NewTimer(m.queue.until(time.Now()))
		select {
		case <-m.ctx.Done():
			wait.Stop()
			return
		case <-sweep.C:
			m.Sweep()
		case <-wait.C:
		case <-m.queue.changed:
		}
		wait.Stop()
		for _, w := range m.queue.due(time.Now()) {
			w.kick()
		}
	}
}

// Sweep ends the volumes that are gone, as the manager itself does every two
// seconds. It waits for no backend. Absence counts only while the pods directory
// can be listed and is the one that was recorded.
func (m *Manager) Sweep() {
	if m.checkRoot() != nil {
		return
	}
	m.mu.Lock()
	all := make([]*worker, 0, len(m.volumes))
	for _, w := range m.volumes {
		all = append(all, w)
	}
	m.mu.Unlock()
	now := time.Now()
	var gone []*worker
	for _, w := range all {
		switch m.Files.Look(w.rec.Target, w.rec.Pod.UID) {
		case volume.PodGone:
			gone = append(gone, w)
		case volume.VolumeGone:
			if w.quietFor(now, goneAfter) || w.deleted(now) {
				gone = append(gone, w)
			}
		case volume.Here:
			if w.deleted(now) {
				gone = append(gone, w)
			}
		}
	}
	if len(gone) == 0 || m.checkRoot() != nil { // the directory may have gone while we looked
		return
	}
	for _, w := range gone {
		w.markEnded()
	}
}

// checkRoot says whether absences below the pods directory may be believed.
func (m *Manager) checkRoot() error {
	mark, err := m.Files.Root()
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case err != nil:
	case m.mark == (volume.Mark{}):
		if err = m.Store.SaveMark(mark); err == nil {
			m.mark = mark
		}
	case m.mark != mark:
		err = errors.New("it is not the directory that was recorded: the kubelet's root was replaced or is not mounted; " +
			"mount it at the same path, or remove the file root in the state directory to accept it")
	}
	if (err == nil) != (m.blind == nil) {
		m.Log.Warn("trust in the pods directory changed", "error", err)
	}
	m.blind = err
	return err
}

// Ready says why the manager can't do all of its work now; nil when it can.
func (m *Manager) Ready() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return errors.New("the daemon is stopping")
	}
	if m.blind != nil {
		return &provider.Error{Class: provider.Precondition, Cause: "reading the pods directory: " + m.blind.Error(), Err: m.blind}
	}
	return nil
}

// Close begins nothing new, waits for what is under way and revokes nothing:
// every live lease continues after the next Open. Reads that may have minted are
// waited for as long as ctx allows; an error says that some were left behind.
func (m *Manager) Close(ctx context.Context) error {
	m.mu.Lock()
	m.closed = true
	m.mu.Unlock()
	m.cancel()
	done := make(chan struct{})
	go func() { m.work.Wait(); close(done) }()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return errors.New("stopping: reads that may have made credentials are still out; their tokens are journaled and end at the next start")
	}
}
