package lease

import (
	"fmt"
	"math/rand/v2"
	"runtime/debug"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

const (
	fleet     = 250              // volumes: 25 of each mix of reads
	republish = 30 * time.Minute // each brings a fresh identity
)

// fleetRoles are the reads that the volumes of a simulated node mix.
var fleetRoles = map[string]role{
	"database/creds/h1": {ttl: time.Hour, max: 24 * time.Hour},
	"database/creds/h4": {ttl: 4 * time.Hour, max: 96 * time.Hour},
	"database/creds/h8": {ttl: 8 * time.Hour, max: 240 * time.Hour},
	"pki/issue/day":     {ttl: 24 * time.Hour, bare: true, fixed: true},
	"pki/issue/leased":  {ttl: 12 * time.Hour, fixed: true},
	"secret/data/a":     {kind: Polled},
	"database/static/s": {kind: Static, ttl: 6 * time.Hour},
}

// fleetSPC returns the objects of the i-th volume: two or three reads.
func fleetSPC(i int) string {
	var b strings.Builder
	if i%2 == 0 {
		b.WriteString(db("a", "database/creds/h1"))
	}
	b.WriteString(db("b", "database/creds/h4"))
	switch i % 5 {
	case 0:
		b.WriteString(db("c", "database/creds/h8"))
	case 1:
		b.WriteString(db("c", "pki/issue/day"))
	case 2:
		b.WriteString(db("c", "pki/issue/leased"))
	case 3:
		b.WriteString("- {objectName: kv, secretPath: secret/data/a, secretKey: value, refreshInterval: 1h}\n")
	case 4:
		b.WriteString(kv("kv", "database/static/s"))
	}
	return b.String()
}

// simulation runs a node for a time, hour by hour.
type simulation struct {
	*node
	t     *testing.T
	pods  []*pod
	next  int
	fault time.Time // no fault is younger than this
}

func newSimulation(t *testing.T, n *node) *simulation {
	n.stop()
	t.Cleanup(func() { debug.SetGCPercent(100) })
	debug.SetGCPercent(400) // millions of small effects on a small heap
	n.sweep = 5 * time.Minute
	n.backend.roles = fleetRoles
	n.backend.lag = 5 * time.Millisecond
	n.backend.kv["secret/data/a"], n.backend.kv["database/static/s"] = "v", "s"
	n.start(0)
	return &simulation{node: n, t: t}
}

func (s *simulation) add() {
	p := s.pod(fmt.Sprint("pod", s.next), fleetSPC(s.next))
	s.next++
	s.pods = append(s.pods, p)
	for p.mount() != nil { // kubelet goes on trying
		pause(time.Minute)
	}
}

// step lets republishes come and checks that they cost nothing, then that every
// file works.
func (s *simulation) step() {
	pause(republish)
	s.backend.forget()
	for _, p := range s.pods {
		start := time.Now()
		err := p.mount()
		if err != nil || time.Since(start) != 0 {
			require.Fail(s.t, "I7: a Mount of a live volume calls no backend and succeeds", "%v", err)
		}
	}
	if time.Since(s.fault) < 3*time.Hour {
		return // what a fault broke may take its time
	}
	for _, p := range s.pods {
		if !p.works() {
			require.Fail(s.t, "I1: a dead credential in live files", "%+v", p.status())
		}
	}
}

// fleetLeases returns how many leases with an id the volumes hold, and how many
// writes an hour these and their tokens may cost: 1.7 for each hour of length,
// and a login, a read and an end for each replacement.
func (s *simulation) fleetLeases() (n int, writes float64) {
	for _, p := range s.pods {
		for path, r := range fleetRoles {
			if r.kind != Leased || r.bare || !strings.Contains(p.objects, path+",") {
				continue
			}
			n++
			if r.fixed {
				writes += 3 / (renewAt * r.ttl.Hours())
			} else {
				writes += 1.7/r.ttl.Hours() + 3/min(r.max, s.backend.auth.max).Hours()
			}
		}
	}
	return n, writes + 1.7*float64(s.backend.tokenCount())/s.backend.auth.ttl.Hours()
}

// quiet is I3: after a time without events nothing is left over and nothing
// is there twice.
func (s *simulation) quiet() {
	pause(25 * time.Minute) // no overlap is longer, nor a kept attempt
	reads, _ := s.fleetLeases()
	extra := s.backend.count() - reads
	require.GreaterOrEqual(s.t, extra, 0, "I3: leases are missing")
	// A replacement's overlap may be running at any time.
	require.LessOrEqual(s.t, extra, reads/10, "I3: leases leaked")
}

func (s *simulation) endAll() {
	for _, p := range s.pods {
		p.delete()
	}
	pause(20 * time.Minute)
	require.Zero(s.t, s.backend.count(), "I1: everything is revoked in the end")
	require.Zero(s.t, s.backend.tokenCount())
	require.Empty(s.t, s.records)
}

// simulate fills a node, lets a test use it, and looks what is left.
func simulate(t *testing.T, use func(s *simulation)) {
	if testing.Short() {
		t.Skip("a simulated month takes half a minute; -short leaves it out")
	}
	t.Parallel()
	scene(t, func(t *testing.T, n *node) {
		s := newSimulation(t, n)
		for range fleet {
			s.add()
			pause(time.Duration(rand.Int64N(int64(3 * time.Minute))))
		}
		use(s)
		s.quiet()
		s.endAll()
	})
}

// month lets 30 days pass, with what happens in each half hour, and returns when it began.
func (s *simulation) month(happens func()) (begin time.Time) {
	begin = time.Now()
	for time.Since(begin) < 30*24*time.Hour {
		s.step()
		happens()
	}
	return begin
}

func TestMonthUndisturbed(t *testing.T) {
	simulate(t, func(s *simulation) {
		begin := s.month(func() {})
		var hours []int
		total := 0
		from := begin.Add(24*time.Hour).Unix() / 60
		for h := range int64(28 * 24) {
			sum := 0
			for m := range int64(60) {
				sum += s.backend.writes[from+h*60+m]
			}
			hours = append(hours, sum)
			total += sum
		}
		mean := float64(total) / float64(len(hours))
		peak := float64(slices.Max(hours))
		reads, allowed := s.fleetLeases()
		s.t.Logf("%.0f writes an hour for %d leases in %d volumes (%.0f allowed); peak/mean %.2f", mean, reads, fleet, allowed, peak/mean)
		require.LessOrEqual(s.t, peak/mean, 1.5)
		require.LessOrEqual(s.t, mean, allowed)
	})
}

func TestMonthOfFaults(t *testing.T) {
	simulate(t, func(s *simulation) {
		s.month(func() {
			if rand.IntN(16) == 0 {
				s.disturb()
			}
			if rand.IntN(4) == 0 { // pods come and go
				i := rand.IntN(len(s.pods))
				s.pods[i].delete()
				s.pods = slices.Delete(s.pods, i, i+1)
				s.add()
			}
		})
		for time.Since(s.fault) < 4*time.Hour {
			s.step()
		}
	})
}

// disturb makes one fault, and ends it after a while.
func (s *simulation) disturb() {
	switch rand.IntN(6) {
	case 0:
		s.kill()
		s.start(0)
	case 1:
		s.stop()
		pause(time.Duration(rand.Int64N(int64(2 * time.Hour)))) // a node in trouble
		s.start(0)
	case 2:
		s.backend.set(down)
		pause(time.Duration(rand.Int64N(int64(3 * time.Hour))))
	case 3: // the database behind Vault is away
		s.backend.set(func(op, path string) error {
			if (op == "read" || op == "renew") && strings.HasPrefix(path, "database") {
				return errNoDB
			}
			return nil
		})
		pause(time.Duration(rand.Int64N(int64(2 * time.Hour))))
	case 4: // one call in ten is answered by nobody
		s.backend.set(func(_, _ string) error {
			if rand.IntN(10) == 0 {
				return errDown
			}
			return nil
		})
		pause(2 * time.Hour)
	case 5: // Vault has lost everything
		s.backend.mu.Lock()
		for _, tok := range s.backend.tokens {
			tok.dead = true
		}
		s.backend.mu.Unlock()
		// Nobody notices before the next call under a token, which for a lease
		// that only waits for its replacement is late.
		s.fault = time.Now().Add(8 * time.Hour)
		return
	}
	s.backend.set(nil)
	if now := time.Now(); s.fault.Before(now) {
		s.fault = now
	}
}
