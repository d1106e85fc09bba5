// Vaultd is a HashiCorp Vault server for this project's tests and demo, put together from Vault's own packages.
//
// It is the real thing where it matters: Vault's core, HTTP handler, token store, expiration manager, audit device and
// the engines listed in registry.go run as in `vault server`, so replies, leases and error texts are Vault's. It exists
// because the full `vault` takes more than twice as long to compile: it holds every engine, storage and cloud SDK there
// is. Two modules that the core needs only for raft's auto_join and for Okta MFA are replaced by stubs, see stub/.
//
// It is not a Vault for any other use. Nothing is hardened: memory is not locked, the root token is chosen on the
// command line, the unseal key lies beside the data. It therefore listens on loopback addresses only. It has no UI,
// cluster, auto-unseal or external plugins.
//
// Without -storage it keeps everything in memory and starts like `vault server -dev`: unsealed, with secret/ as KV
// version 2. With -storage DIR the same state lives in DIR: a process that was killed is started again with the same
// flags and still knows its tokens, leases, mounts and audit device. Writes are not synced to disk: they outlive the
// process, not the machine.
//
// Once it serves it prints one line to stdout, `vault ready at http://127.0.0.1:8200 version 1.21.0`. Its log goes to
// stderr. SIGTERM or an interrupt ends it; leases then stay as they are, as in Vault.
package main

import (
	"context"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/armon/go-metrics"
	"github.com/hashicorp/go-hclog"
	kv "github.com/hashicorp/vault-plugin-secrets-kv"
	"github.com/hashicorp/vault/audit"
	"github.com/hashicorp/vault/builtin/logical/database"
	"github.com/hashicorp/vault/command/server"
	"github.com/hashicorp/vault/helper/metricsutil"
	vaulthttp "github.com/hashicorp/vault/http"
	"github.com/hashicorp/vault/internalshared/configutil"
	"github.com/hashicorp/vault/sdk/logical"
	"github.com/hashicorp/vault/vault"
	"github.com/hashicorp/vault/version"
)

type options struct {
	listen, rootToken, storage, audit, logLevel, tlsCert, tlsKey string
}

func main() {
	var o options
	flag.StringVar(&o.listen, "listen", "127.0.0.1:8200", "loopback `address` to serve on; port 0 picks a free one")
	flag.StringVar(&o.rootToken, "root-token", "root", "the root `token`")
	flag.StringVar(&o.storage, "storage", "", "`directory` that keeps all state across restarts (default: in memory)")
	flag.StringVar(&o.audit, "audit", "", "`file` to write an audit log to")
	flag.StringVar(&o.logLevel, "log-level", "warn", "trace, debug, info, warn or error")
	flag.StringVar(&o.tlsCert, "tls-cert", "", "PEM `file` with the server's certificate: serve HTTPS")
	flag.StringVar(&o.tlsKey, "tls-key", "", "PEM `file` with its key")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "vaultd:", err)
		os.Exit(1)
	}
}

// run serves until ctx ends.
func run(ctx context.Context, o options) error {
	level := hclog.LevelFromString(o.logLevel)
	switch {
	case flag.NArg() > 0:
		return fmt.Errorf("unexpected argument %q", flag.Arg(0))
	case o.rootToken == "":
		return errors.New("-root-token is empty")
	case level == hclog.NoLevel:
		return fmt.Errorf("-log-level %q is unknown", o.logLevel)
	case (o.tlsCert == "") != (o.tlsKey == ""):
		return errors.New("-tls-cert and -tls-key go together")
	}
	scheme, tlsConfig := "http", &tls.Config{}
	if o.tlsCert != "" {
		pair, err := tls.LoadX509KeyPair(o.tlsCert, o.tlsKey)
		if err != nil {
			return fmt.Errorf("loading -tls-cert and -tls-key: %w", err)
		}
		scheme, tlsConfig.Certificates = "https", []tls.Certificate{pair}
	}
	// IndependentLevels as in Vault: sys/loggers may change the level of one part.
	log := hclog.New(&hclog.LoggerOptions{Level: level, Output: os.Stderr, IndependentLevels: true})

	// Listen first, so that a port in use is found before anything is written. Who connects early waits.
	listener, err := listen(o.listen)
	if err != nil {
		return err
	}
	defer listener.Close()

	storage, err := openStorage(o.storage, log)
	if err != nil {
		return err
	}
	core, err := vault.NewCore(&vault.CoreConfig{
		Physical:        storage,
		BuiltinRegistry: engines,
		// As in `vault server`, these two do not come from the catalog: the core makes kv mounts of its own accord.
		LogicalBackends: map[string]logical.Factory{"kv": kv.Factory, "database": database.Factory},
		AuditBackends:   map[string]audit.Factory{"file": audit.NewFileBackend},
		DisableMlock:    true, // a container may not lock memory
		Logger:          log,
		LogLevel:        o.logLevel,
		// The core reads these two without looking whether they are set.
		RawConfig:     &server.Config{SharedConfig: &configutil.SharedConfig{}},
		MetricsHelper: metricsutil.NewMetricsHelper(metrics.NewInmemSink(10*time.Second, time.Minute), false),
	})
	if err != nil {
		return fmt.Errorf("making the core: %w", err)
	}
	defer func() { _ = core.Shutdown() }()
	if err := bootstrap(core, o); err != nil {
		return err
	}

	// Time-outs as in `vault server`.
	srv := &http.Server{
		Handler: vaulthttp.Handler.Handler(&vault.HandlerProperties{
			Core:           core,
			ListenerConfig: &configutil.Listener{Address: listener.Addr().String()},
		}),
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       30 * time.Second,
		IdleTimeout:       5 * time.Minute,
		ErrorLog:          log.StandardLogger(nil),
		TLSConfig:         tlsConfig,
	}
	served := make(chan error, 1)
	go func() {
		if scheme == "https" {
			served <- srv.ServeTLS(listener, "", "") // the pair is in TLSConfig
		} else {
			served <- srv.Serve(listener)
		}
	}()
	fmt.Printf("vault ready at %s://%s version %s\n", scheme, listener.Addr(), version.GetVersion().VersionNumber())

	select {
	case err := <-served:
		return fmt.Errorf("serving: %w", err)
	case <-core.ShutdownDone():
		return errors.New("the core shut itself down, see its log")
	case <-ctx.Done():
	}
	// Requests under way may finish, so that a clean stop leaves no database user without a lease.
	wait, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if srv.Shutdown(wait) != nil {
		_ = srv.Close() // a request hangs, such as one to a database that does not answer
	}
	return nil
}

// listen listens on a loopback address and on no other.
func listen(address string) (net.Listener, error) {
	tcp, err := net.ResolveTCPAddr("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("reading -listen: %w", err)
	}
	if !tcp.IP.IsLoopback() {
		return nil, fmt.Errorf("-listen %s is not a loopback address: this server is for tests only", address)
	}
	l, err := net.ListenTCP("tcp", tcp)
	if err != nil {
		return nil, fmt.Errorf("listening: %w", err)
	}
	return l, nil
}

// bootstrap unseals the core, after setting it up when its storage is empty.
func bootstrap(core *vault.Core, o options) error {
	ctx := rootContext()
	done, err := core.Initialized(ctx)
	if err != nil {
		return fmt.Errorf("reading whether the storage is initialised: %w", err)
	}
	if done {
		return resume(core, o)
	}

	seal := &vault.SealConfig{SecretShares: 1, SecretThreshold: 1, Name: "shamir"}
	made, err := core.Initialize(ctx, &vault.InitParams{BarrierConfig: seal})
	if err != nil {
		return fmt.Errorf("initialising: %w", err)
	}
	key := append([]byte(nil), made.SecretShares[0]...) // Unseal wipes what it is given
	if err := unseal(core, made.SecretShares[0]); err != nil {
		return err
	}
	// The core makes a root token with a random id. As in dev mode, that token makes the chosen one and goes.
	for _, step := range []struct {
		token, path string
		data        map[string]any
	}{
		{made.RootToken, "auth/token/create", map[string]any{
			"id": o.rootToken, "policies": []string{"root"}, "no_parent": true, "no_default_policy": true,
		}},
		{made.RootToken, "auth/token/revoke-self", nil},
		{o.rootToken, "sys/mounts/secret", map[string]any{
			"type": "kv", "description": "key/value secret storage", "options": map[string]string{"version": "2"},
		}},
	} {
		if _, err := call(core, logical.UpdateOperation, step.token, step.path, step.data); err != nil {
			return err
		}
	}
	if err := enableAudit(core, o); err != nil {
		return err
	}
	if o.storage == "" {
		return nil
	}
	// Last, so that the file's presence says that the set-up was finished.
	return saveUnsealKey(o.storage, key)
}

// resume unseals a core whose storage an earlier start has set up.
func resume(core *vault.Core, o options) error {
	key, err := loadUnsealKey(o.storage)
	if err != nil {
		return err
	}
	if err := unseal(core, key); err != nil {
		return err
	}
	if _, err := call(core, logical.ReadOperation, o.rootToken, "auth/token/lookup-self", nil); err != nil {
		return fmt.Errorf("%s was set up with another -root-token: %w", o.storage, err)
	}
	return enableAudit(core, o)
}

func unseal(core *vault.Core, key []byte) error {
	// Without a cluster the core is active once Unseal returns.
	switch unsealed, err := core.Unseal(key); {
	case err != nil:
		return fmt.Errorf("unsealing: %w", err)
	case !unsealed:
		return errors.New("unsealing: the key was not enough")
	}
	return nil
}

// enableAudit sees to a file audit device that writes to o.audit. One that an earlier start left in the storage stays,
// as its salt must not change.
func enableAudit(core *vault.Core, o options) error {
	if o.audit == "" {
		return nil
	}
	file, err := filepath.Abs(o.audit)
	if err != nil {
		return fmt.Errorf("reading -audit: %w", err)
	}
	old, err := call(core, logical.ReadOperation, o.rootToken, "sys/audit", nil)
	if err != nil {
		return err
	}
	if device, ok := old.Data["file/"].(map[string]any); ok {
		if was := device["options"].(map[string]string)["file_path"]; was != file {
			return fmt.Errorf("%s was set up with -audit %s", o.storage, was)
		}
		return nil
	}
	_, err = call(core, logical.UpdateOperation, o.rootToken, "sys/audit/file", map[string]any{
		"type": "file", "options": map[string]any{"file_path": file},
	})
	return err
}

// call sends one request straight to the core, past HTTP.
func call(core *vault.Core, op logical.Operation, token, path string, data map[string]any) (*logical.Response, error) {
	resp, err := core.HandleRequest(rootContext(), &logical.Request{
		ID: "vaultd", Operation: op, ClientToken: token, Path: path, Data: data,
	})
	if resp.IsError() {
		err = resp.Error() // says more than the "invalid request" that comes with it
	}
	if err != nil {
		return nil, fmt.Errorf("calling %s: %w", path, err)
	}
	return resp, nil
}
