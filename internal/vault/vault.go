// Package vault is the lease.Source that speaks to HashiCorp Vault: login with
// the pod's own identity, read, renew, end, and what each answer means.
//
// It uses net/http with the wire types and header names of vault/api, not that
// package's Client: the Client reads VAULT_* from the environment, retries reads
// that mint, and takes the token along on a redirect.
package vault

import (
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/tenure-csi/tenure/internal/gate"
	"github.com/tenure-csi/tenure/internal/lease"
	"github.com/tenure-csi/tenure/provider"
)

const (
	// callTimeout bounds a login, a renewal, an end, and a read that is known to
	// mint nothing, from the moment they have room to be sent.
	callTimeout = 10 * time.Second
	// mintTimeout bounds a read that may mint. Vault gives up on a request after
	// 90 s itself (its default_max_request_duration).
	mintTimeout = 90 * time.Second
	// maxBody is the largest response that is read.
	maxBody = 4 << 20
	// maxKnown bounds the reads that are remembered as minting nothing.
	maxKnown = 1024
)

// Config is what the daemon's operator says. The zero value allows any Vault
// address but loopback and link-local ones, with the system's CAs.
type Config struct {
	Addr         string   // address for an SPC without vaultAddress; empty: every SPC must name one
	Alternates   []string // further addresses of Addr's cluster, tried in this order when it fails
	AllowedAddrs []string // addresses an SPC may name beside these; empty: only these, and without Addr any
	Mount        string   // auth mount for a kubernetes or jwt login that names none; empty: the auth method's name
	Namespace    string   // Vault namespace for an SPC that names none; empty: the root namespace

	CACert     string // PEM file; with CAPath empty too: the system's CAs
	CAPath     string // directory of PEM files, used beside CACert
	ClientCert string // PEM file of the daemon's own certificate, shown to Addr and Alternates only
	ClientKey  string // PEM file, required with ClientCert
	ServerName string // name expected in the certificate of Addr and Alternates; empty: the host of each

	AllowSkipVerify bool   // whether an SPC may switch off TLS verification
	TLSDir          string // directory below which an SPC's TLS paths lie; empty: an SPC may name none

	// AWS signs for logins with Vault's aws method; nil: they are refused.
	AWS CallerIdentity
	// AWSServerID is what the header X-Vault-AWS-IAM-Server-ID says to Addr and
	// Alternates; empty: the host of Addr. An SPC's own address is told its host.
	AWSServerID string
	// NodeLogin says whether a pod may log in as the node does at AWS, and why not,
	// as a *provider.Error; nil: no pod may. Called from many goroutines at once.
	NodeLogin func(provider.Pod, provider.Login) error
	// KeyDelay is how long a new access key of an IAM user is held back: AWS knows
	// it everywhere some seconds after it was made. 0: not at all.
	KeyDelay time.Duration

	Logger     *slog.Logger          // nil: nothing is logged
	Registerer prometheus.Registerer // nil: metrics are counted and not shown
}

// Source is a lease.Source for Vault. Make it with New; its methods may be
// called at once.
type Source struct {
	cfg     Config
	allowed []string // normalised; empty: any
	addrs   ownAddresses
	log     *slog.Logger
	metrics *metrics
	gates   gate.Gates
	clients clients
	known   known
}

var _ lease.Source = (*Source)(nil)

// New checks the configuration and returns a Source. It connects to nothing and
// reads no TLS file yet: those are read, and read again after a change, at use.
// It warns when no address is configured, because any pod author can then make
// the daemon speak to any host. The error says which setting is wrong.
func New(cfg Config) (*Source, error) {
	s := &Source{cfg: cfg, log: cfg.Logger}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	var own []string
	if cfg.Addr != "" {
		own = append([]string{cfg.Addr}, cfg.Alternates...)
	}
	for i, raw := range slices.Concat(own, cfg.AllowedAddrs) {
		addr, err := parseAddress(raw)
		if err != nil {
			return nil, fmt.Errorf("reading Vault address %q: %w; write it like https://vault.example.com:8200", raw, err)
		}
		if i < len(own) && !slices.Contains(s.addrs.all, addr) {
			s.addrs.all = append(s.addrs.all, addr)
		}
		s.allowed = append(s.allowed, addr)
	}
	for _, addr := range s.addrs.all {
		if strings.HasPrefix(addr, "https:") != strings.HasPrefix(s.addrs.all[0], "https:") {
			return nil, fmt.Errorf("reading Vault addresses: %s and %s are of one cluster, and only one uses TLS", s.addrs.all[0], addr)
		}
	}
	if (cfg.ClientCert == "") != (cfg.ClientKey == "") {
		return nil, fmt.Errorf("reading TLS settings: client certificate and client key belong together")
	}
	if cfg.ClientCert != "" && cfg.Addr == "" {
		return nil, fmt.Errorf("reading TLS settings: a client certificate is shown to the Vault address of the daemon only, and none is set")
	}
	for _, p := range []*string{&s.cfg.CACert, &s.cfg.CAPath, &s.cfg.ClientCert, &s.cfg.ClientKey, &s.cfg.TLSDir} {
		if *p == "" {
			continue
		}
		abs, err := filepath.Abs(*p)
		if err != nil {
			return nil, fmt.Errorf("reading TLS settings: %w", err)
		}
		*p = abs
	}
	if len(s.allowed) == 0 {
		s.log.Warn("any pod author can make the daemon connect to any Vault address: set --vault-addr or --allowed-vault-addrs")
	}
	var err error
	s.metrics, err = newMetrics(cfg.Registerer)
	return s, err
}

// Close drops idle connections. It waits for nothing: every call of a Source
// runs in its caller, who must have returned from them first.
func (s *Source) Close() { s.clients.close() }

// cluster names what a call goes to, at whichever address.
func (s *Source) cluster(c call) string {
	if c.login.Address == "" {
		return s.addrs.all[0]
	}
	return c.to.addr
}

// known remembers reads that turned out to mint nothing, so that the next of
// the same kind may be cancelled. It only ever chooses a time-out.
type known struct {
	mu    sync.Mutex
	reads map[string]struct{}
}

func knownKey(cluster, namespace, path string) string {
	return strings.Join([]string{cluster, namespace, path}, "\x00")
}

func (k *known) has(key string) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	_, ok := k.reads[key]
	return ok
}

// set remembers or forgets key; when full, some other entry goes.
func (k *known) set(key string, idempotent bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !idempotent {
		delete(k.reads, key)
		return
	}
	if k.reads == nil {
		k.reads = map[string]struct{}{}
	}
	for old := range k.reads {
		if len(k.reads) < maxKnown {
			break
		}
		delete(k.reads, old)
	}
	k.reads[key] = struct{}{}
}
