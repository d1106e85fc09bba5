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

// simulation runs a node for a time, half an hour after the other.
type simulation struct {
	*node
	t     *testing.T
	pods  []*pod
	next  int
	fault window // the last one, with those shortly before it
}

// window is the time of a fault. What died in it, and nothing else, may be in
// files until it is mended.
type window struct {
	from, to, mended time.Time
	path             string // the leases it hits; empty: all
}

// How long a fault may be seen after its end. A failed call is made again within a
// minute, what was lost is guarded for up to 15, and a node's leases take their turns.
// Of a backend that has lost everything a volume learns at its next call there, which
// is a token's renewal at the latest; a token at its end is not renewed any more, but
// all leases under it are replaced.
const (
	mended  = 20 * time.Minute
	noticed = time.Hour
)

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

// wait lets time pass, with republishes, and checks that they cost nothing and that
// every file works.
func (s *simulation) wait(d time.Duration) {
	for d > 0 {
		now := min(d, republish)
		d -= now
		pause(now)
		s.backend.forget()
		for _, p := range s.pods {
			start := time.Now()
			err := p.mount()
			if err != nil || time.Since(start) != 0 {
				require.Fail(s.t, "I7: a Mount of a live volume calls no backend and succeeds", "%v", err)
			}
		}
		s.check()
	}
}

// check is I1: files name no dead credential but what the fault has killed.
func (s *simulation) check() {
	now := time.Now()
	for _, p := range s.pods {
		if p.works() {
			continue
		}
		for _, data := range p.files() {
			if id := leaseOf([]byte(data)); strings.HasPrefix(id, "lease-") && !s.excused(id, now) {
				require.Fail(s.t, "I1: a dead credential in live files", "%v, which died at %v, at %v after %+v\n%+v", id, s.backend.died(id), now, s.fault, p.status())
			}
		}
	}
}

// excused reports whether a lease lives, or died of the fault and may not be replaced yet.
func (s *simulation) excused(id string, now time.Time) bool {
	s.backend.mu.Lock()
	defer s.backend.mu.Unlock()
	if s.backend.leaseAlive(id) {
		return true
	}
	at, f := s.backend.died(id), s.fault
	hit := !at.IsZero() && !at.Before(f.from) && !at.After(f.to.Add(retryCap)) && strings.HasPrefix(s.backend.leases[id].path, f.path)
	return hit && !now.After(f.mended)
}

// hit notes a fault. Nothing of the one before is mended while it lasts.
func (s *simulation) hit(path string, from, to time.Time, in time.Duration) {
	f := window{from: from, to: to, mended: to.Add(in), path: path}
	if last := s.fault; from.Before(last.mended) {
		f.from, f.mended = last.from, later(f.mended, last.mended.Add(to.Sub(from)))
		if last.path != path {
			f.path = ""
		}
	}
	s.fault = f
}

// suffer lets a fault of calls last for a time.
func (s *simulation) suffer(path string, d time.Duration, fault func(op, path string) error) {
	s.backend.set(fault)
	s.hit(path, time.Now(), time.Now().Add(d), mended)
	s.wait(d)
	s.backend.set(nil)
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
				writes += 3 / (turnMost * turnPart * r.ttl.Hours())
			} else {
				writes += 1.7/r.ttl.Hours() + 3/min(r.max, s.backend.auth.max).Hours()
			}
		}
	}
	return n, writes + 1.7*float64(s.backend.tokenCount())/s.backend.auth.ttl.Hours()
}

// quiet is I3: after a time without events nothing is left over, and nothing is there
// twice but a lease and the one that has just replaced it.
func (s *simulation) quiet() {
	pause(25 * time.Minute) // no overlap is longer, nor a kept attempt
	s.backend.mu.Lock()
	live := map[string][]*fakeLease{}
	for id, l := range s.backend.leases {
		if !l.role.bare && s.backend.leaseAlive(id) {
			live[l.pod+" "+l.path] = append(live[l.pod+" "+l.path], l)
		}
	}
	s.backend.mu.Unlock()
	reads, _ := s.fleetLeases()
	require.Len(s.t, live, reads, "I3: leases are missing, or of no volume")
	overlaps := 0
	for of, ls := range live {
		if len(ls) == 1 {
			continue
		}
		overlaps++
		newest := slices.MaxFunc(ls, func(a, b *fakeLease) int { return a.made.Compare(b.made) })
		require.Len(s.t, ls, 2, "I3: leases leaked: %v", of)
		require.Less(s.t, time.Since(newest.made), defaultOverlap+time.Minute, "I3: a lease leaked: %v", of)
	}
	s.t.Logf("%d leases, and %d in an overlap", reads, overlaps)
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
		s.wait(republish)
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
		s.wait(13 * time.Hour) // what a kill left unknown has ended by itself
	})
}

// disturb makes one fault, and ends it after a while.
func (s *simulation) disturb() {
	from := time.Now()
	switch rand.IntN(6) {
	case 0:
		s.kill()
		s.start(0)
		s.wait(2 * time.Minute) // the driver comes soon
	case 1:
		s.stop()
		pause(rand.N(2 * time.Hour)) // a node in trouble
		s.start(0)
		s.hit("", from, time.Now(), mended)
		s.wait(2 * time.Minute)
	case 2:
		s.suffer("", rand.N(3*time.Hour), down)
	case 3: // the database behind Vault is away
		s.suffer("database", rand.N(2*time.Hour), func(op, path string) error {
			if (op == "read" || op == "renew") && strings.HasPrefix(path, "database") {
				return errNoDB
			}
			return nil
		})
	case 4: // one call in ten is answered by nobody, which kills nothing
		s.backend.set(func(_, _ string) error {
			if rand.IntN(10) == 0 {
				return errDown
			}
			return nil
		})
		s.wait(2 * time.Hour)
		s.backend.set(nil)
	case 5: // Vault has lost everything
		s.backend.mu.Lock()
		for _, tok := range s.backend.tokens {
			tok.dead, tok.lost = true, from
		}
		s.backend.mu.Unlock()
		s.hit("", from, from, noticed+mended)
	}
}
