package volume

import (
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// FuzzGenerations writes a random sequence of generations and compares what a
// reader finds with a model after each, kept files, modes and owners included;
// leftovers of other writers are planted between, and some writes must fail.
func FuzzGenerations(f *testing.F) {
	for seed := range uint64(20) {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, seed uint64) {
		w, target := newVolume(t)
		m := &model{r: rand.New(rand.NewPCG(seed, 0)), target: target}
		for range 12 {
			m.plant(t)
			m.step(t, w)
			m.check(t, w)
		}
	})
}

// A model knows what must be in the volume.
type model struct {
	r       *rand.Rand
	target  string
	dir     string
	files   map[string]seen
	past    []string // replaced directories that still exist
	written int
}

var paths = []string{"a", "b", "-c", "t1/user", "t1/pass", "t2/user", "t2/pass", "x/y/z", "x/y/w", "x/v"}

// step writes a random generation.
func (m *model) step(t *testing.T, w *Writer) {
	g := gen()
	want := map[string]seen{}
	lost := false
	for _, path := range paths {
		old, there := m.files[path]
		switch m.r.IntN(8) {
		case 0, 1, 2: // not in this generation
		case 3, 4, 5:
			f, s := m.file(path)
			g.Files, want[path] = append(g.Files, f), s
		default:
			if there || m.r.IntN(20) == 0 {
				g.Files, want[path] = append(g.Files, kept(path)), old
				lost = lost || !there
			}
		}
	}
	m.r.Shuffle(len(g.Files), func(i, j int) { g.Files[i], g.Files[j] = g.Files[j], g.Files[i] })
	retained := slices.DeleteFunc(slices.Clone(m.past), func(string) bool { return m.r.IntN(3) == 0 })
	g.Retain = append(slices.Clone(retained), "..never_was")
	err := w.Write(m.target, g)
	m.past = retained
	if lost {
		require.ErrorIs(t, err, ErrLost)
		return
	}
	require.NoError(t, err)
	if m.dir != "" {
		m.past = append(m.past, m.dir)
	}
	m.dir, m.files = g.Dir, want
	visible := slices.DeleteFunc(names(t, m.target), func(n string) bool { return strings.HasPrefix(n, "..") })
	require.ElementsMatch(t, slices.Collect(maps.Keys(tops(g))), visible)
	if len(m.past) > 0 && m.r.IntN(3) == 0 {
		require.NoError(t, w.Remove(m.target, m.past[0]))
		m.past = m.past[1:]
	}
}

func (m *model) file(path string) (File, seen) {
	m.written++
	f := File{Path: path, Mode: fs.FileMode(m.r.IntN(0o1000)), UID: -1, GID: -1, Data: fmt.Appendf(nil, "%s %d", path, m.written)}
	s := seen{string(f.Data), f.Mode, uint32(os.Getuid()), uint32(os.Getgid())}
	if os.Getuid() != 0 {
		f.Mode, s.Mode = 0o600, 0o600 // else our own reader can't read it
		return f, s
	}
	if m.r.IntN(2) == 0 {
		f.UID = m.r.IntN(70_000)
		s.UID = uint32(f.UID)
	}
	if m.r.IntN(2) == 0 {
		f.GID = m.r.IntN(70_000)
		s.GID = uint32(f.GID)
	}
	return f, s
}

// plant leaves behind what another writer, or a kill, could.
func (m *model) plant(t *testing.T) {
	switch m.r.IntN(5) {
	case 0:
		relink(t, "..gone", filepath.Join(m.target, dataTmp))
	case 1:
		require.NoError(t, os.MkdirAll(filepath.Join(m.target, "..2020_01_01_00_00_00.1/t1"), 0o755))
	case 2:
		require.NoError(t, os.RemoveAll(filepath.Join(m.target, "t1")))
	case 3:
		relink(t, "..data/old", filepath.Join(m.target, "old"))
	}
}

func (m *model) check(t *testing.T, w *Writer) {
	if m.dir == "" {
		_, err := w.Current(m.target)
		require.ErrorIs(t, err, ErrEmpty)
		return
	}
	current, err := w.Current(m.target)
	require.NoError(t, err)
	require.Equal(t, m.dir, current)
	require.Equal(t, m.files, readAll(t, m.target))
	hidden := []string{dataLink, m.dir}
	require.ElementsMatch(t, append(hidden, m.past...), slices.DeleteFunc(names(t, m.target), func(n string) bool {
		return !strings.HasPrefix(n, "..")
	}))
	requireLongAgo(t, m.target)
}
