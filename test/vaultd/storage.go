package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/vault/helper/namespace"
	"github.com/hashicorp/vault/sdk/physical"
	"github.com/hashicorp/vault/sdk/physical/file"
	"github.com/hashicorp/vault/sdk/physical/inmem"
)

// openStorage opens Vault's file storage in dir, or its memory storage when dir is empty.
func openStorage(dir string, log hclog.Logger) (physical.Backend, error) {
	if dir == "" {
		return inmem.NewInmem(nil, log.Named("storage"))
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("making the storage: %w", err)
	}
	b, err := file.NewFileBackend(map[string]string{"path": filepath.Join(dir, "data")}, log.Named("storage"))
	if err != nil {
		return nil, fmt.Errorf("opening the storage: %w", err)
	}
	return marked{b}, nil
}

// mark ends the name of every key that marked stores.
const mark = "~"

// marked makes Vault's file storage fit for kill -9. That storage writes KEY to a temporary file KEY1234 and renames it;
// a process killed in between leaves a file that the next one lists as one more key, and if it is unreadable and among
// the leases the core shuts itself down. With a mark at the end of real keys, KEY~ and KEY~1234 can be told apart.
type marked struct{ physical.Backend }

func (m marked) Put(ctx context.Context, e *physical.Entry) error {
	stored := *e
	stored.Key += mark
	return m.Backend.Put(ctx, &stored)
}

func (m marked) Get(ctx context.Context, key string) (*physical.Entry, error) {
	e, err := m.Backend.Get(ctx, key+mark)
	if e != nil {
		e.Key = key
	}
	return e, err
}

func (m marked) Delete(ctx context.Context, key string) error {
	return m.Backend.Delete(ctx, key+mark)
}

func (m marked) List(ctx context.Context, prefix string) ([]string, error) {
	all, err := m.Backend.List(ctx, prefix)
	var keys []string
	for _, k := range all {
		if strings.HasSuffix(k, "/") {
			keys = append(keys, k)
		} else if key, ok := strings.CutSuffix(k, mark); ok {
			keys = append(keys, key)
		}
	}
	return keys, err
}

// unsealFile is what DIR/unseal.json holds.
type unsealFile struct {
	Key []byte `json:"key"`
}

func loadUnsealKey(dir string) ([]byte, error) {
	raw, err := os.ReadFile(filepath.Join(dir, "unseal.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("the set-up of %s was cut short, remove it: %w", dir, err)
	}
	if err != nil {
		return nil, fmt.Errorf("reading the unseal key: %w", err)
	}
	var f unsealFile
	if err := json.Unmarshal(raw, &f); err != nil {
		return nil, fmt.Errorf("reading %s/unseal.json: %w", dir, err)
	}
	return f.Key, nil
}

func saveUnsealKey(dir string, key []byte) error {
	raw, err := json.Marshal(unsealFile{Key: key})
	if err != nil {
		return fmt.Errorf("writing the unseal key: %w", err)
	}
	// Written aside and renamed: whoever finds the file finds all of it.
	path := filepath.Join(dir, "unseal.json")
	if err := os.WriteFile(path+".new", raw, 0o600); err != nil {
		return fmt.Errorf("writing the unseal key: %w", err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		return fmt.Errorf("writing the unseal key: %w", err)
	}
	return nil
}

// rootContext says that a call is in Vault's root (and only) namespace.
func rootContext() context.Context { return namespace.RootContext(context.Background()) }
