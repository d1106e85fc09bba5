package faults

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/tenure-csi/tenure/test/fixture"
)

// burden is what the daemon's process holds.
type burden struct{ files, goroutines int }

func (s *scene) burden(t require.TestingT) burden {
	open, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", s.d.Pid()))
	require.NoError(t, err)
	return burden{len(open), s.metric(t, "go_goroutines ")}
}

// TestNothingGrows: after mounts, rotations, faults and ends the process holds what it
// held before them.
func TestNothingGrows(t *testing.T) {
	s := newScene(t, fixture.ScopeOptions{TTL: 10 * time.Second})
	s.start()
	require.ErrorContains(t, s.try(s.volume("- {}")), "objectName") // the driver connects, Vault is not asked
	before := s.burden(t)
	var most burden
	for range 3 {
		vs := s.mountedAll(20, ", overlap: 1s")
		s.vault.Down()
		left := s.volume(s.objects(""))
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		_, err := left.Mount(ctx)
		require.Error(t, err, "whoever called is gone, and the attempts go on")
		s.eventually(3*time.Minute, func(c *assert.CollectT) { require.NotEmpty(c, s.problem(c, vs[0])) })
		require.NoError(t, s.vault.Up())
		s.eventually(4*time.Minute, func(c *assert.CollectT) {
			for _, v := range vs {
				require.Empty(c, s.problem(c, v))
			}
		})
		now := s.burden(t)
		most = burden{max(most.files, now.files), max(most.goroutines, now.goroutines)}
		s.ends(append(vs, left)...)
	}
	require.Greater(t, most.files, before.files, "the count sees connections")
	s.eventually(5*time.Minute, func(c *assert.CollectT) { // until idle connections are closed
		now := s.burden(c)
		require.LessOrEqual(c, now.files, before.files)
		require.LessOrEqual(c, now.goroutines, before.goroutines)
	})
}

// TestStateDirectoryFull leaves no room in the journal: what is new is refused, what
// lives goes on, also over a restart.
func TestStateDirectoryFull(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("NOT TESTED: a state directory of its own size needs root to be mounted; internal/lease has the same on a model")
	}
	s := newScene(t, fixture.ScopeOptions{TTL: time.Minute})
	require.NoError(t, unix.Mount("tmpfs", s.node.State, "tmpfs", 0, "size=512k,mode=0700"))
	t.Cleanup(func() { require.NoError(t, unix.Unmount(s.node.State, 0)) })
	s.start()
	v := s.mounted()
	before, reads := files(t, v), s.reads()
	full := filepath.Join(s.node.State, "full")
	require.ErrorIs(t, fill(full), unix.ENOSPC)

	refused := s.volume(s.objects(""))
	err := s.try(refused)
	require.ErrorContains(t, err, "writing the journal")
	require.ErrorContains(t, err, "no space left on device")
	require.ErrorContains(t, err, "make room in the state directory")
	require.Positive(t, s.metric(t, "tenure_journal_errors_total"))
	require.NoError(t, s.node.DeletePod(refused.Pod))
	s.settles(3*time.Minute, held{1, 1, 1}) // its token is ended, though nothing recorded it
	for range 2 {                           // again after a restart
		since := map[string]time.Time{}
		for id := range s.renewed(t) {
			since[id] = time.Now()
		}
		s.renewedSince(t, since, 3*time.Minute)
		require.Equal(t, before, files(t, v))
		require.NoError(t, s.try(v), "a republish of a live volume never fails")
		require.NoError(t, s.d.Kill())
		require.NoError(t, s.d.Restart(t.Context()))
	}
	require.Equal(t, reads, s.reads(), "nothing was minted meanwhile")
	s.works(t, v)
	require.NoError(t, os.Remove(full))
	w := s.mounted()
	s.works(t, w)
	s.ends(v, w)
}

// fill writes a file until there is no room.
func fill(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	for err == nil {
		_, err = f.Write(make([]byte, 4096))
	}
	return errors.Join(err, f.Close())
}

// TestValuesAreInTheVolumesOnly looks into every file that the daemon has open, and all
// around where it could have written one.
func TestValuesAreInTheVolumesOnly(t *testing.T) {
	const canary = "canary-3d81f07a52"
	s := newScene(t, fixture.ScopeOptions{TTL: 10 * time.Second, MaxTTL: 20 * time.Second})
	require.NoError(t, s.stack.Vault.WriteKV1(t.Context(), s.KV, "a", map[string]any{"value": canary}))
	tmp := t.TempDir()
	s.run(fixture.DaemonOptions{Env: []string{"TMPDIR=" + tmp, "HOME=" + tmp}})
	v := s.volume(s.objects(", overlap: 1s") + "- {objectName: kv, secretPath: " + s.KV + "/a, secretKey: value}\n")
	v.Secrets = map[string]string{"unused": canary}
	s.mount(v)
	around := filepath.Dir(s.node.State) // it is the daemon's working directory, too
	secrets := []string{canary}
	for range 2 { // two passwords
		_, password, err := pair(v)
		require.NoError(t, err)
		secrets = append(secrets, password)
		var found []string
		s.eventually(3*time.Minute, func(c *assert.CollectT) {
			found = append(found, s.holding(t, around, secrets)...)
			_, now, err := pair(v)
			require.NoError(c, err)
			require.NotEqual(c, password, now, "the replacement")
		})
		require.NotEmpty(t, found)
		for _, path := range found {
			require.True(t, strings.HasPrefix(path, v.Target+"/"), path)
		}
	}
	s.ends(v)
	require.Empty(t, s.holding(t, around, secrets))
	left, err := os.ReadDir(tmp)
	require.NoError(t, err)
	require.Empty(t, left)
}

// holding names the files that hold one of the secrets: those that the daemon has open,
// and those below a directory.
func (s *scene) holding(t *testing.T, dir string, secrets []string) (found []string) {
	t.Helper()
	look := func(path, name string) {
		info, err := os.Stat(path)
		if err != nil || !info.Mode().IsRegular() { // gone meanwhile, or a socket
			return
		}
		text, err := os.ReadFile(path)
		if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENXIO) { // a socket has come to its number
			require.NoError(t, err)
		}
		for _, secret := range secrets {
			if strings.Contains(string(text), secret) {
				found = append(found, name)
				return
			}
		}
	}
	proc := fmt.Sprintf("/proc/%d/fd", s.d.Pid())
	open, err := os.ReadDir(proc)
	require.NoError(t, err)
	require.NotEmpty(t, open)
	for _, fd := range open {
		path := filepath.Join(proc, fd.Name())
		name, _ := os.Readlink(path)
		look(path, name)
	}
	require.NoError(t, filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err == nil {
			look(path, path)
		}
		return nil // files come and go
	}))
	return found
}
