package tenant

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/tenure-csi/tenure/provider"
)

// lookEvery is how often the file is read for changes. kubelet replaces the
// files of a ConfigMap by renaming a link above them, which no watch of the file
// itself shows.
const lookEvery = 2 * time.Second

// File is a file of rules that is read again when it changes. A version with a
// mistake is refused as a whole: the last good one goes on. Its methods may be
// called from many goroutines at once.
type File struct {
	path  string
	log   *slog.Logger
	rules atomic.Pointer[Rules]

	// Of the last version seen, good or not; Open's, then Watch's alone.
	sum   [sha256.Size]byte
	fault error

	loads *prometheus.CounterVec // by outcome
	stale prometheus.Gauge       // 1: the file on disk is refused, or can't be read
}

// errUnknown is what is known before a good version was read: nothing, which is
// not the same as a rule's no.
var errUnknown = &provider.Error{
	Class: provider.Unavailable, Field: "tenants", Cause: "the daemon could not read its tenant bindings yet",
	Remedy: "have the cluster's operator mend the file of --tenant-bindings, by the daemon's log",
}

// Open reads the file. The error says why that failed; the File is good all the
// same: until a good version comes, tenants keep what they have and nobody is
// given more. registerer may be nil.
func Open(path string, log *slog.Logger, registerer prometheus.Registerer) (*File, error) {
	f := &File{
		path: path, log: log,
		loads: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: "tenure", Name: "tenant_bindings_loads_total", Help: "Versions of the tenant bindings that were read.",
		}, []string{"outcome"}),
		stale: prometheus.NewGauge(prometheus.GaugeOpts{
			Namespace: "tenure", Name: "tenant_bindings_stale", Help: "1 while the file of tenant bindings is refused or can't be read, and an older version is in force.",
		}),
	}
	if registerer != nil {
		registerer.MustRegister(f.loads, f.stale)
	}
	if _, err := f.load(); err != nil {
		return f, fmt.Errorf("reading the tenant bindings %s: %w", path, err)
	}
	return f, nil
}

// Names is Rules.Names by the version in force.
func (f *File) Names(pod provider.Pod) ([]string, error) {
	if rules := f.rules.Load(); rules != nil {
		return rules.Names(pod), nil
	}
	return nil, errUnknown
}

// Bind is Rules.Bind by the version in force.
func (f *File) Bind(pod provider.Pod, r provider.Read) (provider.Read, time.Time, error) {
	if rules := f.rules.Load(); rules != nil {
		return rules.Bind(pod, r)
	}
	if r.Tenant == "" && !r.ByNode() {
		return r, time.Time{}, nil
	}
	return r, time.Time{}, errUnknown
}

// AllowLogin is Rules.AllowLogin by the version in force.
func (f *File) AllowLogin(pod provider.Pod, login provider.Login) error {
	if rules := f.rules.Load(); rules != nil {
		return rules.AllowLogin(pod, login)
	}
	return errUnknown
}

// Watch reads the file every two seconds until ctx ends, and calls changed after
// another good version has come into force. It is called once.
func (f *File) Watch(ctx context.Context, changed func()) {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	unread := ""
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		news, err := f.load()
		switch {
		case err != nil && err.Error() != unread:
			f.log.Error("refusing the tenant bindings: the last good version stays in force", "file", f.path, "error", err)
			unread = err.Error()
		case err == nil && news:
			f.log.Info("tenant bindings changed", "file", f.path, "rules", len(f.rules.Load().rules))
			changed()
		}
		if err == nil {
			unread = ""
		}
	}
}

// load reads the file and puts it into force where it is another good one. The
// error of a bad version is answered as long as it is there.
func (f *File) load() (news bool, err error) {
	text, err := read(f.path)
	sum := sha256.Sum256(text)
	if err != nil {
		f.sum, f.fault = [sha256.Size]byte{}, err
		f.stale.Set(1)
		return false, err
	}
	if sum == f.sum {
		return false, f.fault
	}
	rules, err := Parse(text)
	f.sum, f.fault = sum, err
	if err != nil {
		f.loads.WithLabelValues("refused").Inc()
		f.stale.Set(1)
		return false, err
	}
	for _, p := range rules.Warnings() {
		f.log.Warn("a tenant binding is hardly meant so", "file", f.path, "problem", p)
	}
	f.rules.Store(rules)
	f.loads.WithLabelValues("ok").Inc()
	f.stale.Set(0)
	return true, nil
}

// read reads no more than a file of rules may hold.
func read(path string) ([]byte, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return io.ReadAll(io.LimitReader(file, maxBytes+1))
}
