package faults

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/vault/api"

	"github.com/tenure-csi/tenure/internal/lease"
	"github.com/tenure-csi/tenure/internal/vault"
	"github.com/tenure-csi/tenure/internal/volume"
	"github.com/tenure-csi/tenure/provider"
)

// fateVariable makes the test binary a daemon that kills itself; it holds a fate.
const fateVariable = "TENURE_FAULTS_FATE"

// fate says when a daemon kills itself: at its N-th passing of a point.
type fate struct {
	Point string
	N     int
	After bool          // once the point's effect has been had, else before it
	Later time.Duration // above 0: this long after the effect has begun
	// Lengthen is a database role that from the second read on gives credentials
	// of TTL: what a kill leaves behind must not hide by ending soon.
	Lengthen string
	TTL      time.Duration
}

// env starts the test binary as a daemon with the fate.
func (f fate) env() []string {
	b, err := json.Marshal(f)
	if err != nil {
		panic(err) // plain data
	}
	return []string{fateVariable + "=" + string(b)}
}

// doom watches for the point.
type doom struct {
	fate
	mu   sync.Mutex
	seen map[string]int
}

// serveDoomed is `tenure serve` with a fate, wired as cmd/tenure does.
func serveDoomed(text string, args []string) error {
	f := &doom{seen: map[string]int{}}
	if err := json.Unmarshal([]byte(text), &f.fate); err != nil {
		return err
	}
	flags := flag.NewFlagSet("serve", flag.ContinueOnError)
	providers, kubelet := flags.String("providers-dir", "", ""), flags.String("kubelet-root-dir", "", "")
	state, addr := flags.String("state-dir", "", ""), flags.String("vault-addr", "", "")
	flags.String("health-addr", "", "")
	if err := flags.Parse(args); err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	source, err := vault.New(vault.Config{Addr: *addr, Logger: log})
	if err != nil {
		return err
	}
	writer, err := volume.NewWriter(*kubelet)
	if err != nil {
		return err
	}
	journal, err := lease.OpenJournal(context.Background(), *state, log)
	if err != nil {
		return err
	}
	written := 0
	writer.Step = func(point string) {
		if point == "opened" {
			written = 0
		}
		if point == "file" {
			if written++; written > 1 {
				return
			}
		}
		f.pass("step "+point, func() {})
	}
	manager, err := lease.Open(lease.Config{
		Sources: map[string]lease.Source{"vault": doomedSource{source, f, *addr}}, Files: writer, Store: &doomedStore{Store: journal, doom: f},
		VersionKey: []byte("0123456789abcdef"), Log: log,
	})
	if err != nil {
		return err
	}
	l, err := provider.Listen(*providers, "tenure")
	if err != nil {
		return err
	}
	server := provider.NewServer(provider.ServerConfig{Name: "tenure", KubeletDir: *kubelet, Mounter: manager, Log: log})
	return server.Serve(context.Background(), l)
}

// pass does what happens at a point, and dies if it is time.
func (f *doom) pass(point string, effect func()) {
	f.mu.Lock()
	f.seen[point]++
	now := point == f.Point && f.seen[point] == f.N
	f.mu.Unlock()
	switch {
	case now && f.Later > 0:
		time.AfterFunc(f.Later, die)
	case now && !f.After:
		die()
	}
	effect()
	if now && f.After {
		die()
	}
}

func die() {
	_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {}
}

type doomedSource struct {
	lease.Source
	*doom
	addr string
}

func (d doomedSource) Login(ctx context.Context, by lease.Caller, login provider.Login, id provider.Identity) (s lease.Session, err error) {
	d.pass("login", func() { s, err = d.Source.Login(ctx, by, login, id) })
	return s, err
}

func (d doomedSource) Read(ctx context.Context, by lease.Caller, s lease.Session, r provider.Read) (i lease.Issued, err error) {
	d.mu.Lock()
	second := d.seen["read"] == 1
	d.mu.Unlock()
	if second && d.Lengthen != "" {
		if err := d.lengthen(ctx); err != nil {
			panic(err)
		}
	}
	d.pass("read", func() { i, err = d.Source.Read(ctx, by, s, r) })
	return i, err
}

// lengthen is done as Vault's operator.
func (d doomedSource) lengthen(ctx context.Context) error {
	c, err := api.NewClient(&api.Config{Address: d.addr})
	if err != nil {
		return err
	}
	c.SetToken("root")
	mount, role, _ := strings.Cut(d.Lengthen, "/creds/")
	_, err = c.Logical().WriteWithContext(ctx, fmt.Sprintf("%s/roles/%s", mount, role), map[string]any{
		"default_ttl": d.TTL.String(), "max_ttl": "24h", "db_name": "postgres",
		"creation_statements":   `CREATE ROLE "{{name}}" WITH LOGIN PASSWORD '{{password}}' VALID UNTIL '{{expiration}}';`,
		"revocation_statements": `DROP ROLE IF EXISTS "{{name}}";`,
	})
	return err
}

func (d doomedSource) EndSession(ctx context.Context, by lease.Caller, s lease.Session) (err error) {
	d.pass("end grant", func() { err = d.Source.EndSession(ctx, by, s) })
	return err
}

func (d doomedSource) EndLease(ctx context.Context, by lease.Caller, s lease.Session, id string) (err error) {
	d.pass("end lease", func() { err = d.Source.EndLease(ctx, by, s, id) })
	return err
}

// doomedStore names each save by what it is the first to record.
type doomedStore struct {
	lease.Store
	*doom
	dir string // of the generation that is saved as the present one
}

func (d *doomedStore) Save(r *lease.Record) (err error) {
	d.pass("save "+d.news(r), func() { err = d.Store.Save(r) })
	return err
}

func (d *doomedStore) Remove(id string) (err error) {
	d.pass("remove", func() { err = d.Store.Remove(id) })
	return err
}

func (d *doomedStore) news(r *lease.Record) string {
	switch {
	case r.Ended:
		return "ended"
	case r.Pending != nil:
		return "pending"
	}
	for _, l := range r.Leases {
		if l.Until.IsZero() && (r.Current == nil || !slices.Contains(r.Current.Leases, l.ID)) {
			return "minted"
		}
	}
	for _, g := range r.Grants {
		if g.Pending {
			return "granted"
		}
	}
	if r.Current != nil && r.Current.Dir != d.dir {
		d.dir = r.Current.Dir
		return "adopted"
	}
	return "other"
}
