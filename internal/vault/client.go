package vault

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/tenure-csi/tenure/internal/gate"
)

const (
	maxClients  = 64              // connection pools kept; the one not used for longest goes
	recheckTLS  = 3 * time.Second // how often a client's TLS files are looked at, at most
	maxTLSFile  = 1 << 20         // bytes of one PEM file
	maxCAFiles  = 256             // files of one CA directory
	dialTimeout = 5 * time.Second // for TCP, and again for TLS
	// idleTimeout is below the 60 s after which load balancers commonly drop a
	// connection: a request on a dropped one would have an unknown outcome.
	idleTimeout = 30 * time.Second
)

// clients holds one client per endpoint. The zero value is ready.
type clients struct {
	mu   sync.Mutex
	by   map[endpoint]*client
	used uint64 // counts uses, to find the one not used for longest
	dial dialFunc
}

// dialFunc replaces the dialling of a test's clients; nil: net.Dialer.
type dialFunc func(ctx context.Context, network, addr string) (net.Conn, error)

type client struct {
	mu      sync.Mutex
	checked time.Time
	sum     [sha256.Size]byte // of the TLS files in use
	http    *http.Client
	used    uint64 // under clients.mu
}

// get returns the client of an endpoint, with its TLS files as they are on disk
// now or were recheckTLS ago. Files that became unreadable leave a working
// client as it is, with a warning: they may be in the middle of a change.
func (c *clients) get(e endpoint, tlsDir string, log *slog.Logger) (*http.Client, error) {
	entry := c.entry(e)
	entry.mu.Lock()
	defer entry.mu.Unlock()
	if entry.http != nil && (time.Since(entry.checked) < recheckTLS || strings.HasPrefix(e.addr, "http:")) {
		return entry.http, nil
	}
	err := entry.load(e, tlsDir, c.dial)
	if err != nil && entry.http == nil {
		return nil, err
	}
	if err != nil {
		log.Warn("keeping the TLS settings in use: the files on disk can't be used", "address", e.addr, "error", err)
	}
	entry.checked = time.Now()
	return entry.http, nil
}

func (c *clients) entry(e endpoint) *client {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.by == nil {
		c.by = map[endpoint]*client{}
	}
	entry := c.by[e]
	if entry == nil {
		if len(c.by) >= maxClients {
			c.evict()
		}
		entry = &client{}
		c.by[e] = entry
	}
	c.used++
	entry.used = c.used
	return entry
}

// evict drops the client not used for longest. Calls under way go on; what
// they leave idle closes by itself after idleTimeout.
func (c *clients) evict() {
	var oldest endpoint
	least := c.used + 1
	for e, entry := range c.by {
		if entry.used < least {
			oldest, least = e, entry.used
		}
	}
	entry := c.by[oldest]
	delete(c.by, oldest)
	go entry.close() // it may be reading files
}

func (c *clients) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, entry := range c.by {
		entry.close()
	}
	c.by = nil
}

func (entry *client) close() {
	entry.mu.Lock()
	defer entry.mu.Unlock()
	if entry.http != nil {
		entry.http.CloseIdleConnections()
	}
}

// load builds the http.Client anew when the TLS files differ from those in use.
func (entry *client) load(e endpoint, tlsDir string, dial dialFunc) error {
	var conf *tls.Config
	var sum [sha256.Size]byte
	if strings.HasPrefix(e.addr, "https:") {
		files, err := readTLS(e, tlsDir)
		if err != nil {
			return err
		}
		if sum = files.sum(); entry.http != nil && sum == entry.sum {
			return nil
		}
		if conf, err = files.config(e); err != nil {
			return err
		}
	}
	if entry.http != nil {
		entry.http.CloseIdleConnections()
	}
	entry.sum, entry.http = sum, newClient(conf, e.refuseLocalAddr, dial)
	return nil
}

// newClient makes a client that follows no redirect, uses no proxy and has no
// time-out of its own. HTTP/1.1: HTTP/2 was not faster, and dials more at first.
func newClient(conf *tls.Config, refuseLocalAddr bool, dial dialFunc) *http.Client {
	dialer := &net.Dialer{Timeout: dialTimeout}
	if refuseLocalAddr {
		dialer.Control = refuseLocal
	}
	if dial == nil {
		dial = dialer.DialContext
	}
	return &http.Client{
		Transport: &http.Transport{
			DialContext:            dial,
			TLSClientConfig:        conf,
			TLSHandshakeTimeout:    dialTimeout,
			MaxIdleConnsPerHost:    gate.Slots,
			IdleConnTimeout:        idleTimeout,
			DisableCompression:     true,
			MaxResponseHeaderBytes: 64 << 10,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// tlsFiles is the content of an endpoint's TLS files.
type tlsFiles struct{ ca, cert, key []byte }

// tlsError is a TLS file that can't be used; field is the SPC's parameter,
// empty when the file is the operator's.
type tlsError struct {
	field string
	err   error
}

func (e *tlsError) Error() string { return e.err.Error() }
func (e *tlsError) Unwrap() error { return e.err }

func readTLS(e endpoint, tlsDir string) (tlsFiles, error) {
	var f tlsFiles
	for _, part := range []struct {
		to    *[]byte
		from  tlsPath
		field string
		read  func(fs.FS, string) ([]byte, error)
	}{
		{&f.ca, e.ca, "vaultCACertPath", readFile},
		{&f.ca, e.caDir, "vaultCADirectory", readDir},
		{&f.cert, e.cert, "vaultTLSClientCertPath", readFile},
		{&f.key, e.key, "vaultTLSClientKeyPath", readFile},
	} {
		if part.from.path == "" {
			continue
		}
		pem, err := part.from.read(tlsDir, part.read)
		if err != nil {
			if !part.from.fromSPC {
				part.field = ""
			}
			return f, &tlsError{part.field, fmt.Errorf("reading %s: %w", part.from.path, err)}
		}
		*part.to = append(append(*part.to, pem...), '\n')
	}
	return f, nil
}

// read reads below tlsDir through os.Root for an SPC, which may give the path
// whole or relative, and anywhere for the operator.
func (p tlsPath) read(tlsDir string, read func(fs.FS, string) ([]byte, error)) ([]byte, error) {
	if !p.fromSPC {
		return read(os.DirFS("/"), strings.TrimPrefix(p.path, "/"))
	}
	if tlsDir == "" {
		return nil, errors.New("the daemon has no --tls-dir")
	}
	rel := p.path
	if filepath.IsAbs(rel) {
		var err error
		if rel, err = filepath.Rel(tlsDir, rel); err != nil {
			return nil, err
		}
	}
	if rel = filepath.Clean(rel); !filepath.IsLocal(rel) {
		return nil, fmt.Errorf("it is not below --tls-dir %s", tlsDir)
	}
	root, err := os.OpenRoot(tlsDir)
	if err != nil {
		return nil, err
	}
	defer func() { _ = root.Close() }()
	return read(root.FS(), rel)
}

func readFile(fsys fs.FS, name string) ([]byte, error) {
	info, err := fs.Stat(fsys, name)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxTLSFile {
		return nil, fmt.Errorf("not a regular file of at most %d bytes", maxTLSFile)
	}
	return fs.ReadFile(fsys, name)
}

// readDir joins the files of a directory. Directories and what starts with a
// dot are left out: a projected volume keeps its own there.
func readDir(fsys fs.FS, dir string) ([]byte, error) {
	entries, err := fs.ReadDir(fsys, dir)
	if err != nil {
		return nil, err
	}
	if len(entries) > maxCAFiles {
		return nil, fmt.Errorf("more than %d files", maxCAFiles)
	}
	var all []byte
	for _, entry := range entries {
		if entry.IsDir() || strings.HasPrefix(entry.Name(), ".") {
			continue
		}
		pem, err := readFile(fsys, path.Join(dir, entry.Name()))
		if err != nil {
			return nil, err
		}
		all = append(append(all, pem...), '\n')
	}
	return all, nil
}

func (f tlsFiles) sum() [sha256.Size]byte {
	return sha256.Sum256(bytes.Join([][]byte{f.ca, f.cert, f.key}, []byte{0}))
}

func (f tlsFiles) config(e endpoint) (*tls.Config, error) {
	conf := &tls.Config{
		MinVersion: tls.VersionTLS12, ServerName: e.serverName,
		InsecureSkipVerify: e.skipVerify, //nolint:gosec // an SPC asks for it and Config.AllowSkipVerify allows it
	}
	if e.ca.path != "" || e.caDir.path != "" {
		conf.RootCAs = x509.NewCertPool()
		if !conf.RootCAs.AppendCertsFromPEM(f.ca) {
			return nil, &tlsError{fieldOf(e.ca, "vaultCACertPath", e.caDir, "vaultCADirectory"), errors.New("reading the CA: no certificate in it")}
		}
	}
	if e.cert.path != "" || e.key.path != "" {
		pair, err := tls.X509KeyPair(f.cert, f.key)
		if err != nil {
			return nil, &tlsError{fieldOf(e.cert, "vaultTLSClientCertPath", e.key, "vaultTLSClientKeyPath"), fmt.Errorf("reading the client certificate: %w", err)}
		}
		conf.Certificates = []tls.Certificate{pair}
	}
	return conf, nil
}

// fieldOf names the parameter of the first path that an SPC gave.
func fieldOf(a tlsPath, aField string, b tlsPath, bField string) string {
	switch {
	case a.fromSPC && a.path != "":
		return aField
	case b.fromSPC && b.path != "":
		return bField
	}
	return ""
}
