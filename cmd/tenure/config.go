package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/tenure-csi/tenure/provider"
)

// config is what the environment and the flags say, before anything is opened.
// An SPC's parameters override it where it gives defaults.
type config struct {
	providers      []string // names the driver knows us by; one socket each
	providersDir   string   // where the driver looks for sockets
	kubeletDir     string   // the same path in the container and on the node
	stateDir       string   // tmpfs, mode 0700: the journal and the status socket
	healthAddr     string   // empty: off
	versionKey     string   // file; empty: a key of this node's own, in stateDir
	tenantBindings string   // file; empty: only the backends decide who may be which tenant
	volumeBudget   int64    // bytes; 0: by the memory there is
	logLevel       string
	logFormat      string
	vault          vaultFlags
	aws            awsFlags
	kube           kubeFlags
	ignoredFromEnv []string // VAULT_ variables that were set and mean nothing here
}

// vaultFlags are the defaults for every login and the limits on what an SPC may
// ask for.
type vaultFlags struct {
	addrs                 []string // of one cluster, the preferred one first
	allowedAddrs          []string
	mount, namespace      string
	caCert, caDir         string
	clientCert, clientKey string
	serverName            string
	allowSkipVerify       bool
	tlsDir                string // SPC paths resolve below it
	awsServerID           string // in logins with Vault's aws method; empty: the host of the first address
	awsKeyDelay           time.Duration
	nodeLogin             func(provider.Pod, provider.Login) error // who may log in as the node does at AWS; nil: nobody
}

// variables are the only ones that are read, as the HashiCorp provider reads them.
var variables = []string{
	"VAULT_ADDR", "VAULT_CACERT", "VAULT_CAPATH", "VAULT_CLIENT_CERT", "VAULT_CLIENT_KEY",
	"VAULT_TLS_SERVER_NAME", "VAULT_NAMESPACE", "VAULT_SKIP_VERIFY",
}

const (
	defaultStateDir = "/run/tenure"
	socketName      = "status" // with .sock, in the state directory
	// defaultKeyDelay is the upper end of what the documentation of Vault's aws
	// secrets engine tells users to wait.
	defaultKeyDelay = 10 * time.Second
	maxKeyDelay     = 20 * time.Second // a first Mount is answered after 35 s
)

// parseConfig reads the environment (as os.Environ gives it), then the flags. It
// answers nil where help was asked for and printed.
func parseConfig(args, environ []string, stdout io.Writer) (*config, error) {
	c := &config{}
	env, err := c.readEnvironment(environ)
	flags := flag.NewFlagSet("serve", flag.ContinueOnError)
	c.defineFlags(flags, env)
	if ok, parseErr := parse(flags, args, stdout); !ok {
		return nil, parseErr
	}
	if len(c.providers) == 0 {
		c.providers = []string{"tenure"}
	}
	if err = errors.Join(err, c.check()); err != nil {
		return nil, err
	}
	return c, nil
}

// readEnvironment returns the variables that count. An ignored one can't be
// mistaken for one that does: it is warned about, or refused.
func (c *config) readEnvironment(environ []string) (map[string]string, error) {
	env := map[string]string{}
	var errs []error
	for _, entry := range environ {
		name, value, _ := strings.Cut(entry, "=")
		switch {
		case name == "AWS_REGION":
			env[name] = value
		case !strings.HasPrefix(name, "VAULT_") || value == "":
		case name == "VAULT_TOKEN":
			errs = append(errs, errors.New("VAULT_TOKEN is set, but pods log in with their own identity and a token of the daemon's would be used for nobody; unset it"))
		case slices.Contains(variables, name):
			env[name] = value
		default:
			c.ignoredFromEnv = append(c.ignoredFromEnv, name)
		}
	}
	slices.Sort(c.ignoredFromEnv)
	if text, ok := env["VAULT_SKIP_VERIFY"]; ok {
		skip, err := strconv.ParseBool(text)
		if err != nil {
			errs = append(errs, fmt.Errorf("VAULT_SKIP_VERIFY=%q is not a boolean; set true or false", text))
		}
		c.vault.allowSkipVerify = skip
	}
	return env, errors.Join(errs...)
}

func (c *config) defineFlags(f *flag.FlagSet, env map[string]string) {
	f.Func("provider-name", "`name` of the socket, as the SPC's provider says it; repeat it, or separate by commas, to serve several (default tenure)", list(&c.providers))
	f.StringVar(&c.providersDir, "providers-dir", "/var/run/secrets-store-csi-providers", "`directory` where the driver looks for providers' sockets")
	f.StringVar(&c.kubeletDir, "kubelet-root-dir", "/var/lib/kubelet", "kubelet's root `directory`, the same in this container and on the node")
	f.StringVar(&c.stateDir, "state-dir", defaultStateDir, "`directory` for the journal: on the node's tmpfs, mode 0700, so that it outlives the container")
	f.StringVar(&c.healthAddr, "health-addr", "127.0.0.1:8080", "`host:port` of /healthz, /readyz and /metrics; empty serves none")
	f.StringVar(&c.versionKey, "version-key-file", "", "`file` with the key of object versions, the same on all nodes; without it equal secrets have other versions on each node")
	defineBindings(f, &c.tenantBindings)
	f.Func("volume-budget", "`size` of memory, such as 64Mi, that the files of all volumes may take together, and half of it those of one namespace:\n"+
		"they are charged to the daemon (default half of its container's memory limit, without one a sixteenth of the machine's memory)", func(text string) (err error) {
		c.volumeBudget, err = parseSize(text)
		return err
	})
	f.StringVar(&c.logLevel, "log-level", "info", "`level`: debug, info, warn or error")
	f.StringVar(&c.logFormat, "log-format", "text", "`format`: text or json")
	c.vault.defineFlags(f, env)
	c.aws.defineFlags(f, env)
	c.kube.defineFlags(f)
}

// defineBindings is of every command that decides or checks who may be which tenant.
func defineBindings(f *flag.FlagSet, path *string) {
	f.StringVar(path, "tenant-bindings", "", "YAML `file` with the cluster's rules of which pods may be which tenants; a change takes effect by itself")
}

func (v *vaultFlags) defineFlags(f *flag.FlagSet, env map[string]string) {
	if env["VAULT_ADDR"] != "" {
		_ = list(&v.addrs)(env["VAULT_ADDR"])
	}
	given := false
	f.Func("vault-addr", "`URL` of Vault where the SPC has no vaultAddress; repeat it, or separate by commas, for the nodes of one cluster:\n"+
		"when one is away the next is asked, and the first again after a minute; also VAULT_ADDR", func(text string) error {
		if !given {
			v.addrs, given = nil, true
		}
		if text == "" {
			return nil
		}
		return list(&v.addrs)(text)
	})
	f.Func("allowed-vault-addrs", "`URL`s that an SPC may name beside --vault-addr; repeat it, or separate by commas\n(with neither: any but loopback and link-local)", list(&v.allowedAddrs))
	f.StringVar(&v.mount, "vault-mount", "", "auth mount `path` of kubernetes and jwt logins where the SPC has no vaultAuthMountPath\n(default the name of its vaultAuthMethod)")
	f.StringVar(&v.namespace, "vault-namespace", env["VAULT_NAMESPACE"], "Vault `namespace` where the SPC has no vaultNamespace; also VAULT_NAMESPACE")
	f.StringVar(&v.caCert, "vault-tls-ca-cert", env["VAULT_CACERT"], "PEM `file` of the CAs that Vault's certificate is checked against; also VAULT_CACERT")
	f.StringVar(&v.caDir, "vault-tls-ca-directory", env["VAULT_CAPATH"], "`directory` of such files; also VAULT_CAPATH")
	f.StringVar(&v.clientCert, "vault-tls-client-cert", env["VAULT_CLIENT_CERT"], "PEM `file` of the daemon's client certificate, shown at --vault-addr only; also VAULT_CLIENT_CERT")
	f.StringVar(&v.clientKey, "vault-tls-client-key", env["VAULT_CLIENT_KEY"], "PEM `file` of its key; also VAULT_CLIENT_KEY")
	f.StringVar(&v.serverName, "vault-tls-server-name", env["VAULT_TLS_SERVER_NAME"], "`name` expected in Vault's certificate; also VAULT_TLS_SERVER_NAME")
	f.BoolVar(&v.allowSkipVerify, "allow-skip-tls-verify", v.allowSkipVerify, "let an SPC say vaultSkipTLSVerify: whoever is between then reads its secrets.\nVAULT_SKIP_VERIFY does the same: it is only a permission here")
	f.StringVar(&v.awsServerID, "vault-aws-server-id", "", "`value` of the header X-Vault-AWS-IAM-Server-ID in logins with vaultAuthMethod aws\n(default the host of the first --vault-addr)")
	f.DurationVar(&v.awsKeyDelay, "vault-aws-key-delay", defaultKeyDelay, "`duration` for which a new access key of an IAM user is held back, as AWS does not know it everywhere at once; at most "+maxKeyDelay.String())
	f.StringVar(&v.tlsDir, "tls-dir", "", "`directory` that certificate paths in an SPC are relative to; without it they are refused")
}

// list makes the function of a flag that can be repeated or hold several items.
func list(into *[]string) func(string) error {
	return func(text string) error {
		for item := range strings.SplitSeq(text, ",") {
			*into = append(*into, strings.TrimSpace(item))
		}
		return nil
	}
}

// The driver's own rule, in its provider client (v1.6.0), allows an empty name too.
var providerName = regexp.MustCompile(`^[a-zA-Z0-9_-]{1,30}$`)

// check finds every mistake that can be seen without opening anything.
func (c *config) check() error {
	var errs []error
	problem := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	for i, name := range c.providers {
		if !providerName.MatchString(name) {
			problem("--provider-name %q is no name that the driver accepts; use 1 to 30 of a-z, A-Z, 0-9, _ and -", name)
		} else if slices.Contains(c.providers[:i], name) {
			problem("--provider-name %q is given twice; give it once", name)
		}
	}
	for _, dir := range [...]struct{ flag, path string }{
		{"providers-dir", c.providersDir},
		{"kubelet-root-dir", c.kubeletDir},
		{"state-dir", c.stateDir},
	} {
		if !filepath.IsAbs(dir.path) {
			problem("--%s %q is not an absolute path; start it with /", dir.flag, dir.path)
		}
	}
	if c.healthAddr != "" {
		if _, _, err := net.SplitHostPort(c.healthAddr); err != nil {
			problem("--health-addr %q is no host:port; write for example 127.0.0.1:8080, or leave it empty to serve none", c.healthAddr)
		}
	}
	if (c.vault.clientCert == "") != (c.vault.clientKey == "") {
		problem("--vault-tls-client-cert and --vault-tls-client-key belong together, but only one is set; set both or none")
	}
	if c.vault.awsKeyDelay < 0 || c.vault.awsKeyDelay > maxKeyDelay {
		problem("--vault-aws-key-delay %s is not from 0s to %s; a pod waits that long for its first key", c.vault.awsKeyDelay, maxKeyDelay)
	}
	c.kube.check(problem)
	if err := new(slog.Level).UnmarshalText([]byte(c.logLevel)); err != nil {
		problem("--log-level %q is not known; use debug, info, warn or error", c.logLevel)
	}
	if c.logFormat != "text" && c.logFormat != "json" {
		problem("--log-format %q is not known; use text or json", c.logFormat)
	}
	return errors.Join(errs...)
}

// logger writes to w as the flags say.
func (c *config) logger(w io.Writer) *slog.Logger {
	var level slog.Level
	_ = level.UnmarshalText([]byte(c.logLevel)) // check has parsed it
	options := &slog.HandlerOptions{Level: level}
	if c.logFormat == "json" {
		return slog.New(slog.NewJSONHandler(w, options))
	}
	return slog.New(slog.NewTextHandler(w, options))
}
