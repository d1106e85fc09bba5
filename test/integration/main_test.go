// Package integration runs the daemon as a process against a real Vault and a
// real PostgreSQL, through the CSI driver's own client, and counts what it did
// where that can't be talked away: in Vault's audit log, in its lists of leases
// and tokens, and in pg_roles. It prints the times that it measured.
package integration

import (
	"flag"
	"fmt"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/tenure-csi/tenure/test/fixture"
)

var (
	stack   *fixture.Stack
	figures measured
)

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(fixture.Run(func() int {
		if err := allAtOnce(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		code := m.Run()
		figures.print()
		return code
	}, func(s *fixture.Stack) { stack = s }, func() error { return goleak.Find() }))
}

// allAtOnce lets the tests run side by side however few processors there are:
// they wait for lifetimes to pass. Whoever says -parallel is heard.
func allAtOnce() error {
	said := false
	flag.Visit(func(f *flag.Flag) { said = said || f.Name == "test.parallel" })
	if said {
		return nil
	}
	return flag.Set("test.parallel", "64")
}

// measured are figures for people to read, of one run on one machine.
type measured struct {
	mu    sync.Mutex
	lines []string
}

func (m *measured) note(t *testing.T, format string, args ...any) {
	t.Helper()
	line := fmt.Sprintf(format, args...)
	t.Log(line)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.lines = append(m.lines, line)
}

func (m *measured) print() {
	slices.Sort(m.lines)
	for _, line := range m.lines {
		fmt.Println("measured:", line)
	}
}

// quantile answers the q-th part of the sorted times.
func quantile(times []time.Duration, q float64) time.Duration {
	slices.Sort(times)
	return times[min(int(float64(len(times))*q), len(times)-1)].Round(time.Microsecond)
}
