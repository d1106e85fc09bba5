package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math"
	"net"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"sync/atomic"
	"time"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"golang.org/x/sync/errgroup"

	"github.com/tenure-csi/tenure/internal/admin"
	"github.com/tenure-csi/tenure/internal/lease"
	"github.com/tenure-csi/tenure/internal/tenant"
	"github.com/tenure-csi/tenure/internal/vault"
	"github.com/tenure-csi/tenure/internal/volume"
	"github.com/tenure-csi/tenure/provider"
)

const (
	// mountDrain is how long Mounts in flight may take to finish after SIGTERM.
	mountDrain = 20 * time.Second
	// readDrain is how long reads that may have made credentials are waited for
	// after that. Vault itself gives up on a request after 90 s. The pod's grace
	// period must be longer than both together.
	readDrain = 95 * time.Second
	// adminDrain is how long a status or metrics request may hold up the end.
	adminDrain = time.Second
	// minVersionKey is how many bytes a version key needs so as not to be guessed:
	// object versions can be read by whoever may read the pod's status.
	minVersionKey = 16
)

// serve is the daemon: it reads what the operator says and runs until ctx ends.
func serve(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	environ, err := takeEnvironment()
	if err != nil {
		return err
	}
	c, err := parseConfig(args, environ, stdout)
	if c == nil || err != nil {
		return err
	}
	return run(ctx, c, c.logger(stderr))
}

// takeEnvironment returns the environment and unsets what is Vault's: no library
// is to find what was not meant for it.
func takeEnvironment() ([]string, error) {
	environ := os.Environ()
	for _, entry := range environ {
		if name, _, _ := strings.Cut(entry, "="); strings.HasPrefix(name, "VAULT_") {
			if err := os.Unsetenv(name); err != nil {
				return nil, fmt.Errorf("unsetting %s: %w", name, err)
			}
		}
	}
	return environ, nil
}

// daemon is what run wires together.
type daemon struct {
	*config
	log     *slog.Logger
	metrics *prometheus.Registry
	manager atomic.Pointer[lease.Manager] // nil until the state directory is ours
}

// run serves until ctx ends, and then lets go of everything but the credentials:
// they live on in the pods, and in the journal for the next start.
func run(ctx context.Context, c *config, log *slog.Logger) (err error) {
	d := &daemon{config: c, log: log, metrics: newMetrics()}
	log.Info("starting", "version", versionText(), "providers", c.providers, "kubelet", c.kubeletDir, "state", c.stateDir)
	c.warn(log)
	var node awssdk.CredentialsProvider // nil: without rules the daemon's own are nobody's to use
	if c.tenantBindings != "" {
		node = c.aws.nodeCredentials()
	}
	cloud, err := c.aws.source(node, log, d.metrics)
	if err != nil {
		return err
	}
	defer cloud.Close()
	bindings := d.bindings()
	source, files, key, err := d.open(cloud)
	if err != nil {
		return err
	}
	defer source.Close()
	if c.healthAddr != "" {
		stopHealth, healthErr := d.serveHealth(ctx)
		if healthErr != nil {
			return healthErr
		}
		defer closing(&err, stopHealth)
	}

	journal, err := lease.OpenJournal(ctx, c.stateDir, log)
	if err != nil {
		if errors.Is(err, context.Canceled) {
			return nil // told to stop while it waited for another instance
		}
		return err
	}
	defer closing(&err, journal.Close)
	journal.Register(d.metrics)
	if key == nil {
		if key, err = nodeVersionKey(c.stateDir); err != nil {
			return err
		}
	}
	kube, err := c.kube.connect(ctx, log)
	if err != nil {
		return err
	}
	limit, machine := memoryLimit()
	share := divideMemory(limit, machine, c.volumeBudget)
	if share.process > 0 && debug.SetMemoryLimit(-1) == math.MaxInt64 { // who sets GOMEMLIMIT knows better
		debug.SetMemoryLimit(share.process)
	}
	leases := lease.Config{
		Sources: map[string]lease.Source{"vault": source, "aws-sts": cloud, "rds-iam": cloud}, Files: files, Store: journal,
		VersionKey: key, MaxBytes: share.files, Log: log, Registerer: d.metrics, Cluster: kube.Cluster,
	}
	if bindings != nil {
		leases.Tenants = bindings
	}
	manager, err := lease.Open(leases)
	if err != nil {
		kube.close()
		return err
	}
	d.manager.Store(manager)
	kube.run(manager)
	defer watch(ctx, bindings, manager)()
	log.Info("loaded the journal", "volumes", len(manager.Status()))
	debug.FreeOSMemory() // starting takes more than running does

	stopStatus, err := d.serveStatus()
	if err == nil {
		defer closing(&err, stopStatus) // after the drain: an operator sees what is waited for
		err = d.serveProviders(ctx)
	}
	kube.close() // nothing asks a stopping manager for more
	return errors.Join(err, d.drain(manager))
}

// closing runs a closer at the end of a function and keeps its error.
func closing(err *error, closer func() error) { *err = errors.Join(*err, closer()) }

// newMetrics returns a registry with the process' own metrics.
func newMetrics() *prometheus.Registry {
	r := prometheus.NewRegistry()
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Name:        "tenure_build_info",
		Help:        "Always 1; the label says which version runs.",
		ConstLabels: prometheus.Labels{"version": versionText()},
	})
	build.Set(1)
	r.MustRegister(build, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return r
}

// warn says once what an operator may not have meant.
func (c *config) warn(log *slog.Logger) {
	for _, name := range c.ignoredFromEnv {
		log.Warn("ignoring an environment variable that means nothing here", "name", name)
	}
	if c.vault.allowSkipVerify {
		log.Warn("SPCs may switch off the check of Vault's certificate: leave out --allow-skip-tls-verify and VAULT_SKIP_VERIFY in production")
	}
	if c.versionKey == "" {
		log.Warn("object versions of equal secrets differ from node to node: set --version-key-file, the same on all nodes")
	}
}

// open makes the parts that need nothing from each other, and reports all that
// is wrong with them at once.
func (d *daemon) open(signer vault.CallerIdentity) (*vault.Source, *volume.Writer, []byte, error) {
	source, sourceErr := d.vault.source(signer, d.log, d.metrics)
	files, filesErr := volume.NewWriter(d.kubeletDir)
	key, keyErr := readVersionKey(d.versionKey)
	if err := errors.Join(sourceErr, filesErr, keyErr); err != nil {
		if sourceErr == nil {
			source.Close()
		}
		return nil, nil, nil, err
	}
	return source, files, key, nil
}

// source returns a Source that works as the flags say and has signer sign its
// logins by way of AWS.
func (v vaultFlags) source(signer vault.CallerIdentity, log *slog.Logger, metrics prometheus.Registerer) (*vault.Source, error) {
	var first string
	var others []string
	if len(v.addrs) > 0 {
		first, others = v.addrs[0], v.addrs[1:]
	}
	return vault.New(vault.Config{
		Addr: first, Alternates: others, AllowedAddrs: v.allowedAddrs, Mount: v.mount, Namespace: v.namespace,
		CACert: v.caCert, CAPath: v.caDir, ClientCert: v.clientCert, ClientKey: v.clientKey, ServerName: v.serverName,
		AllowSkipVerify: v.allowSkipVerify, TLSDir: v.tlsDir, AWS: signer, AWSServerID: v.awsServerID, KeyDelay: v.awsKeyDelay,
		NodeLogin: v.nodeLogin,
		Logger:    log, Registerer: metrics,
	})
}

// readVersionKey returns the key of object versions; nil without a file.
func readVersionKey(path string) ([]byte, error) {
	if path == "" {
		return nil, nil
	}
	key, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading --version-key-file: %w", err)
	}
	if key = bytes.TrimSpace(key); len(key) < minVersionKey {
		return nil, fmt.Errorf("reading --version-key-file: %s holds %d bytes, and a key needs at least %d; write for example 32 random letters into it", path, len(key), minVersionKey)
	}
	return key, nil
}

// nodeVersionKey returns this node's own key, made at the first start since the
// reboot: a restart must not change the versions of objects that did not change.
func nodeVersionKey(stateDir string) ([]byte, error) {
	path := filepath.Join(stateDir, "version-key")
	key, err := os.ReadFile(path)
	if err == nil && len(key) >= minVersionKey {
		return key, nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("reading the node's version key: %w", err)
	}
	key = []byte(rand.Text())
	if err := os.WriteFile(path+".tmp", key, 0o600); err != nil {
		return nil, fmt.Errorf("writing the node's version key: %w", err)
	}
	if err := os.Rename(path+".tmp", path); err != nil {
		return nil, fmt.Errorf("writing the node's version key: %w", err)
	}
	return key, nil
}

// bindings opens the file of rules, where there is one. A daemon that can't read
// it serves all the same: whoever has no tenants must not suffer, and no tenant
// loses what it has.
func (d *daemon) bindings() *tenant.File {
	if d.tenantBindings == "" {
		return nil
	}
	file, err := tenant.Open(d.tenantBindings, d.log, d.metrics)
	if err != nil {
		d.log.Error("no tenant is given anything new until the file is mended", "error", err)
	}
	d.vault.nodeLogin = file.AllowLogin
	return file
}

// watch tells the manager when the rules have changed, until it is stopped.
func watch(ctx context.Context, file *tenant.File, m *lease.Manager) (stop func()) {
	if file == nil {
		return func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		file.Watch(ctx, m.TenantsChanged)
	}()
	return func() { cancel(); <-done }
}

func (d *daemon) serveHealth(ctx context.Context) (func() error, error) {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", d.healthAddr)
	if err != nil {
		return nil, fmt.Errorf("listening for health checks: %w; choose another --health-addr, or leave it empty", err)
	}
	d.log.Info("serving health and metrics", "address", l.Addr().String())
	return stopper(admin.Serve(l, admin.Health(d.ready, d.metrics, d.log), d.log)), nil
}

func (d *daemon) serveStatus() (func() error, error) {
	l, err := provider.Listen(d.stateDir, socketName)
	if err != nil {
		return nil, fmt.Errorf("opening the status socket: %w", err)
	}
	d.log.Info("serving status", "socket", l.Addr().String())
	status := func() any { return d.manager.Load().Status() }
	return stopper(admin.Serve(l, admin.Status(status, d.log), d.log)), nil
}

// stopper closes a server without waiting long for whoever asks it.
func stopper(s *admin.Server) func() error {
	return func() error {
		ctx, cancel := context.WithTimeout(context.Background(), adminDrain)
		defer cancel()
		return s.Close(ctx)
	}
}

// ready is why the daemon can't do its work now.
func (d *daemon) ready() error {
	if m := d.manager.Load(); m != nil {
		return m.Ready()
	}
	return errors.New("waiting for the state directory, which another instance holds")
}

// serveProviders opens the driver's sockets, when everything else works, and
// answers on them until ctx ends or one of them fails.
func (d *daemon) serveProviders(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	var listeners []net.Listener
	for _, name := range d.providers {
		l, err := provider.Listen(d.providersDir, name)
		if err != nil {
			for _, l := range listeners {
				err = errors.Join(err, l.Close())
			}
			return err
		}
		listeners = append(listeners, l)
	}
	for i, name := range d.providers {
		server := provider.NewServer(provider.ServerConfig{
			Name: name, KubeletDir: d.kubeletDir, Version: versionText(), Mounter: d.manager.Load(), Log: d.log,
			Metrics: prometheus.WrapRegistererWith(prometheus.Labels{"provider": name}, d.metrics), Drain: mountDrain,
		})
		group.Go(func() error { return server.Serve(ctx, listeners[i]) })
		d.log.Info("serving the CSI driver", "provider", name, "socket", listeners[i].Addr().String())
	}
	context.AfterFunc(ctx, func() { d.log.Info("stopping: no new mounts, those under way are finished; credentials stay valid") })
	return group.Wait()
}

// drain waits for what may have made credentials: they are kept or ended, never
// left behind.
func (d *daemon) drain(m *lease.Manager) error {
	ctx, cancel := context.WithTimeout(context.Background(), readDrain)
	defer cancel()
	err := m.Close(ctx)
	d.log.Info("stopped")
	return err
}
