package lease

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"

	"github.com/tenure-csi/tenure/internal/volume"
)

// Journal is the Store on the node's tmpfs: a file a volume, replaced by rename,
// gone with the volumes at a reboot. It holds the volumes' Vault tokens, so
// nobody else may read its directory. One process at a time has it.
type Journal struct {
	dir  string
	lock *os.File
	log  *slog.Logger
}

const (
	recordExt = ".json"
	badExt    = ".bad"
	markFile  = "root"
)

// OpenJournal opens the directory, made where it is missing, and waits until no
// other process holds it or ctx ends. It closes an empty one of mode 0755 to
// others, as kubelet makes a hostPath that is missing, and refuses a directory that
// is not on a tmpfs, is open to others otherwise, or can't be written.
func OpenJournal(ctx context.Context, dir string, log *slog.Logger) (*Journal, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("making the state directory: %w", err)
	}
	var fsys unix.Statfs_t
	if err := unix.Statfs(dir, &fsys); err != nil {
		return nil, fmt.Errorf("looking at the state directory %s: %w", dir, err)
	}
	if fsys.Type != unix.TMPFS_MAGIC {
		return nil, fmt.Errorf("using the state directory %s: it is not on a tmpfs, and Vault tokens must not reach a disk; "+
			"choose one below /run, or mount a tmpfs there", dir)
	}
	if err := requirePrivate(dir); err != nil {
		return nil, err
	}
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("writing to the state directory: %w", err)
	}
	j := &Journal{dir: dir, lock: lock, log: log}
	if err := j.acquire(ctx); err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return j, nil
}

// requirePrivate checks that the directory is closed to others, and closes one that
// was just made for us. One with anything in it is left alone: --state-dir=/run is a
// mistake that must not close the node's /run.
func requirePrivate(dir string) error {
	info, err := os.Lstat(dir)
	if err != nil {
		return fmt.Errorf("looking at the state directory: %w", err)
	}
	if info.IsDir() && info.Mode().Perm() == 0o700 {
		return nil
	}
	if entries, err := os.ReadDir(dir); err == nil && len(entries) == 0 && info.Mode() == fs.ModeDir|0o755 {
		if err := os.Chmod(dir, 0o700); err != nil { //nolint:gosec // a directory that its owner could not enter is of no use
			return fmt.Errorf("closing the state directory to others: %w", err)
		}
		return nil
	}
	return fmt.Errorf("using the state directory %s: its mode is %v, and others could read Vault tokens; run: chmod 0700 %[1]s", dir, info.Mode())
}

// acquire takes the lock that keeps two daemons from one journal, as during a
// rolling update.
func (j *Journal) acquire(ctx context.Context) error {
	for told := false; ; told = true {
		err := unix.Flock(int(j.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return fmt.Errorf("locking the state directory: %w", err)
		}
		if !told {
			j.log.Warn("another process holds the state directory: waiting until it ends", "dir", j.dir)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("locking the state directory %s: another process holds it; stop it first: %w", j.dir, ctx.Err())
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// Close lets another process have the journal.
func (j *Journal) Close() error { return j.lock.Close() }

// Register registers the metric of what the journal could not read.
func (j *Journal) Register(reg prometheus.Registerer) {
	reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Namespace: "tenure", Name: "journal_records_damaged",
		Help: "Records in the state directory that could not be read and were set aside as " + badExt + "; remove a file once it was looked at.",
	}, func() float64 {
		files, _ := filepath.Glob(filepath.Join(j.dir, "*"+badExt)) // fails for a bad pattern only
		return float64(len(files))
	}))
}

// Load implements Store. A record that can't be read is renamed to .bad, so that
// the others live; its token ends by itself.
func (j *Journal) Load() ([]*Record, volume.Mark, error) {
	var mark volume.Mark
	entries, err := os.ReadDir(j.dir)
	if err != nil {
		return nil, mark, fmt.Errorf("reading the journal: %w", err)
	}
	var all []*Record
	for _, e := range entries {
		path := filepath.Join(j.dir, e.Name())
		switch {
		case strings.HasSuffix(e.Name(), ".tmp"):
			_ = os.Remove(path) // a write that a kill cut short
		case strings.HasSuffix(e.Name(), recordExt):
			r, err := readRecord(path)
			if err != nil {
				j.log.Error("setting aside a journal record that can't be read: its volume starts anew at its next Mount", "file", path, "error", err)
				if err := os.Rename(path, path+badExt); err != nil {
					j.log.Error("setting aside a journal record", "error", err)
				}
				continue
			}
			all = append(all, r)
		}
	}
	b, err := os.ReadFile(filepath.Join(j.dir, markFile))
	if err == nil {
		err = json.Unmarshal(b, &mark)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, mark, fmt.Errorf("reading the recorded pods directory %s: %w; remove the file to record it anew", filepath.Join(j.dir, markFile), err)
	}
	return all, mark, nil
}

func readRecord(path string) (*Record, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var of struct { // all that stays the same in every version
		Schema int    `json:"schema"`
		ID     string `json:"id"`
	}
	noRecord := errors.New("it is no record of a volume") // the decoder's own text may quote a value
	if err := json.Unmarshal(b, &of); err != nil || of.Schema < schema {
		return nil, noRecord
	}
	if of.ID+recordExt != filepath.Base(path) {
		return nil, errors.New("its name is not that of the volume in it")
	}
	r := &Record{Schema: of.Schema, ID: of.ID}
	if of.Schema > schema {
		return r, nil
	}
	if err := json.Unmarshal(b, r); err != nil {
		return nil, noRecord
	}
	return r, r.check()
}

// Save implements Store.
func (j *Journal) Save(r *Record) error { return j.write(r.ID+recordExt, r) }

// SaveMark implements Store.
func (j *Journal) SaveMark(m volume.Mark) error { return j.write(markFile, m) }

// write replaces a file by rename. Nothing is synced: the tmpfs lives exactly as
// long as the volumes do, and survives a kill of the process.
func (j *Journal) write(name string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	path := filepath.Join(j.dir, name)
	if err := os.WriteFile(path+".tmp", b, 0o600); err != nil {
		return errors.Join(err, os.Remove(path+".tmp"))
	}
	return os.Rename(path+".tmp", path)
}

// Remove implements Store.
func (j *Journal) Remove(id string) error {
	if err := os.Remove(filepath.Join(j.dir, id+recordExt)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
