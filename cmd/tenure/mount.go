package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
	"sigs.k8s.io/secrets-store-csi-driver/provider/v1alpha1"

	"github.com/tenure-csi/tenure/internal/aws"
	"github.com/tenure-csi/tenure/internal/lease"
	"github.com/tenure-csi/tenure/internal/tenant"
	"github.com/tenure-csi/tenure/internal/vault"
	"github.com/tenure-csi/tenure/internal/volume"
	"github.com/tenure-csi/tenure/provider"
)

const mountSynopsis = `mount -f FILE (--token-file FILE | --vault-token-file FILE) [FLAGS] [DIR]

Mounts a SecretProviderClass as the daemon does for a pod, without a cluster and
without root; shows the files and the leases; ends the leases and removes the
files. With --watch it stays in between, and follows them until Ctrl-C.

DIR becomes a symbolic link to the volume, and must not be there yet. The exit
code is 0 when all that went well, 1 when something failed or is left behind, 2
for a command line that can't be understood.`

// mountOptions are the command line of one trial.
type mountOptions struct {
	config
	input
	file, name                string // the SPC's
	namespace, account        string // the pod's; empty: the token's or the SPC's
	tokenFile, vaultTokenFile string // one of them
	tmpfs, dir                string
	show, watch, keep         bool
	deaf                      bool // VAULT_TOKEN was set
}

// parseMount is parseConfig for tenure mount.
func parseMount(args, environ []string, stdout io.Writer) (*mountOptions, error) {
	o := &mountOptions{}
	o.logFormat, o.logLevel = "text", "error" // what goes wrong is in the status
	environ = slices.DeleteFunc(environ, func(entry string) bool {
		token := strings.HasPrefix(entry, "VAULT_TOKEN=")
		o.deaf = o.deaf || token
		return token
	})
	env, err := o.readEnvironment(environ)
	f := flag.NewFlagSet("mount", flag.ContinueOnError)
	f.StringVar(&o.file, "f", "", "YAML `file` with the SecretProviderClass; - is the standard input")
	f.StringVar(&o.name, "name", "", "`name` of the SecretProviderClass, when the file has several")
	f.StringVar(&o.tokenFile, "token-file", "", "`file` with a service account token to log in with, as of: kubectl create token NAME --audience vault;\n- is the standard input")
	f.StringVar(&o.vaultTokenFile, "vault-token-file", "", "`file` with a Vault token of your own, used in place of a login (vault login writes ~/.vault-token):\nit is never revoked, what is made with it is ended; it is sent to --vault-addr only")
	f.StringVar(&o.namespace, "namespace", "", "the pod's `namespace` (default that of the SecretProviderClass or of the token, else default)")
	f.StringVar(&o.account, "service-account", "", "`name` of the pod's service account (default that of the token, else default)")
	f.StringVar(&o.tmpfs, "tmpfs", "/dev/shm", "`directory` of a tmpfs to keep the files in, so that they never reach a disk")
	f.BoolVar(&o.show, "show", false, "print what is in the files, secrets included")
	f.BoolVar(&o.watch, "watch", false, "stay, and print each renewal and replacement, until Ctrl-C;\nan edit of the file is carried out as the daemon does")
	defineBindings(f, &o.tenantBindings)
	f.BoolVar(&o.keep, "keep", false, "leave files and leases behind, and say until when they work")
	f.BoolFunc("debug", "log each call to Vault", func(string) error { o.logLevel = "debug"; return nil })
	o.vault.defineFlags(f, env)
	o.aws.defineFlags(f, env)
	if ok, parseErr := parse(f, args, stdout, &o.dir); !ok {
		return nil, parseErr
	}
	if err = errors.Join(err, o.checkMount()); err != nil {
		return nil, &usageError{err}
	}
	return o, nil
}

func (o *mountOptions) checkMount() error {
	var errs []error
	problem := func(text string) { errs = append(errs, errors.New(text)) }
	switch {
	case o.file == "" && o.dir != "":
		problem("-f is missing, and " + o.dir + " is taken for DIR; name the file with the SecretProviderClass after -f")
	case o.file == "":
		problem("-f is missing; name the file with the SecretProviderClass")
	}
	switch {
	case o.tokenFile == "" && o.vaultTokenFile == "":
		problem("there is nothing to log in with; give a service account's --token-file, or a --vault-token-file")
	case o.tokenFile != "" && o.vaultTokenFile != "":
		problem("--token-file and --vault-token-file are both given; choose one")
	case o.vaultTokenFile != "" && len(o.vault.addrs) == 0:
		problem("--vault-token-file needs --vault-addr, so that nothing but your own choice decides where the token is sent")
	}
	if o.vaultTokenFile != "" && len(o.vault.allowedAddrs) > 0 {
		problem("--allowed-vault-addrs would let the SecretProviderClass choose where your Vault token is sent; leave it out")
	}
	stdin := 0
	for _, path := range []string{o.file, o.tokenFile, o.vaultTokenFile} {
		if path == "-" {
			stdin++
		}
	}
	if stdin > 1 {
		problem("- is given twice, and the standard input can be read once; put one of them into a file")
	}
	return errors.Join(errs...)
}

// mount is one trial of an SPC, from the first Mount to the end of the leases.
func mount(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	environ, err := takeEnvironment()
	if err != nil {
		return err
	}
	o, err := parseMount(args, environ, stdout)
	if o == nil || err != nil {
		return err
	}
	if o.deaf {
		fmt.Fprintln(stderr, "VAULT_TOKEN is set and not used: give a Vault token in --vault-token-file")
	}
	// A closed terminal or pipe must not leave credentials behind.
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGHUP, syscall.SIGPIPE)
	defer stop()
	if o.tmpfs, err = filepath.Abs(o.tmpfs); err != nil {
		return err
	}
	id := strings.ToLower(rand.Text()[:12])
	t := &trial{mountOptions: o, stdout: stdout, stderr: stderr, root: filepath.Join(o.tmpfs, "tenure-mount-"+id)}
	t.pod.UID = id
	request, err := t.request()
	if err != nil {
		return err
	}
	if err := t.open(); err != nil {
		return errors.Join(err, t.close())
	}
	err = t.mount(ctx, request)
	if err == nil {
		t.mounted = true
		err = t.print()
	}
	if err == nil && o.watch {
		t.follow(ctx)
	}
	if err == nil && o.keep {
		return t.leave()
	}
	return errors.Join(err, t.end())
}

// choose answers the SecretProviderClass of that name in a text, or the only one.
func choose(file string, text []byte, name string) (*class, error) {
	fail := func(cause string, args ...any) (*class, error) {
		return nil, fmt.Errorf("reading %s: "+cause, append([]any{file}, args...)...)
	}
	all, _ := readManifest(file, text)
	var found []*class
	var names []string
	for _, c := range all {
		if c.broken != nil {
			return nil, errors.New(c.broken.String())
		}
		names = append(names, c.Metadata.Name)
		if name == "" || c.Metadata.Name == name {
			found = append(found, c)
		}
	}
	switch {
	case len(names) == 0:
		return fail("there is no SecretProviderClass in it")
	case len(found) == 0:
		return fail("there is no SecretProviderClass %q in it, but %s; correct --name", name, strings.Join(names, ", "))
	case len(found) > 1:
		return fail("there are several SecretProviderClasses in it (%s); choose one with --name", strings.Join(names, ", "))
	}
	var errs []error
	for _, f := range found[0].problems {
		errs = append(errs, errors.New(found[0].place(f).String()))
	}
	return found[0], errors.Join(errs...)
}

// trial is a node of one volume, with the parts of the daemon.
type trial struct {
	*mountOptions
	stdout, stderr io.Writer
	root           string // private, on the tmpfs; holds the kubelet directory tree that a Writer asks for
	link           string // where the user finds the volume; empty: not made
	pod            provider.Pod
	target         string // the volume's directory
	mounted        bool
	source         *vault.Source
	cloud          *aws.Source
	witness        *witness
	manager        *lease.Manager
	unwatch        func() // ends the watch of the tenant bindings
}

func (t *trial) podDir() string { return filepath.Join(t.root, "pods", t.pod.UID) }

// request reads the SPC and the token, as they are now, into a Mount call. The
// first one decides who the pod is.
func (t *trial) request() (provider.Request, error) {
	text, err := t.read(t.file)
	if err != nil {
		return provider.Request{}, fmt.Errorf("reading the SecretProviderClass: %w", err)
	}
	spc, err := choose(t.file, text, t.name)
	if err != nil {
		return provider.Request{}, err
	}
	if p := spc.Spec.Provider; p != "tenure" && p != "vault" {
		return provider.Request{}, fmt.Errorf("reading %s: spec.provider of %q is %q, and the driver would ask that provider; set tenure", t.file, spc.Metadata.Name, p)
	}
	tokens, err := t.identify(spc)
	if err != nil {
		return provider.Request{}, err
	}
	attributes := maps.Clone(spc.parameters)
	maps.Copy(attributes, map[string]string{
		"secretProviderClass":                      spc.Metadata.Name,
		"csi.storage.k8s.io/pod.name":              t.pod.Name,
		"csi.storage.k8s.io/pod.namespace":         t.pod.Namespace,
		"csi.storage.k8s.io/pod.uid":               t.pod.UID,
		"csi.storage.k8s.io/serviceAccount.name":   t.pod.ServiceAccount,
		"csi.storage.k8s.io/serviceAccount.tokens": tokens,
	})
	call, err := json.Marshal(attributes)
	if err != nil {
		return provider.Request{}, err
	}
	return provider.Decode(&v1alpha1.MountRequest{Attributes: string(call), TargetPath: t.target, Permission: "420"}, spc.Spec.Provider, t.root)
}

// identify answers the pod's tokens as kubelet gives them, and at first who the
// pod is.
func (t *trial) identify(spc *class) (string, error) {
	tokens, of := map[string]map[string]string{}, provider.Pod{}
	if t.tokenFile != "" {
		text, err := t.read(t.tokenFile)
		if err != nil {
			return "", fmt.Errorf("reading --token-file: %w", err)
		}
		token := string(bytes.TrimSpace(text))
		claimed, audiences, ok := provider.Claimed(provider.Secret(token))
		if !ok {
			return "", fmt.Errorf("reading --token-file: %s holds no service account token; %s", t.tokenFile, t.makeToken(spc.parameters["audience"]))
		}
		of = claimed
		for _, audience := range audiences {
			tokens[audience] = map[string]string{"token": token}
		}
	}
	if t.target == "" {
		t.pod = provider.Pod{
			Name: cmp.Or(of.Name, "tenure-mount"), UID: cmp.Or(of.UID, t.pod.UID),
			Namespace:      cmp.Or(t.namespace, spc.Metadata.Namespace, of.Namespace, "default"),
			ServiceAccount: cmp.Or(t.account, of.ServiceAccount, "default"),
		}
		t.target = filepath.Join(t.podDir(), "volumes/kubernetes.io~csi/secrets/mount")
	}
	if spc.Metadata.Namespace != "" && spc.Metadata.Namespace != t.pod.Namespace {
		return "", fmt.Errorf("the SecretProviderClass is of namespace %s, and pods of namespace %s can't mount it; leave --namespace out", spc.Metadata.Namespace, t.pod.Namespace)
	}
	if t.tokenFile != "" && (of.Namespace != t.pod.Namespace || of.ServiceAccount != t.pod.ServiceAccount) {
		return "", fmt.Errorf("reading --token-file: the token is of service account %s/%s, not %s/%s; %s",
			of.Namespace, of.ServiceAccount, t.pod.Namespace, t.pod.ServiceAccount, t.makeToken(spc.parameters["audience"]))
	}
	out, err := json.Marshal(tokens)
	return string(out), err
}

// makeToken is the remedy for a token that does not do.
func (t *trial) makeToken(audience string) string {
	return fmt.Sprintf("make one with: kubectl create token %s --namespace %s --audience %s",
		cmp.Or(t.pod.ServiceAccount, t.account, "NAME"), cmp.Or(t.pod.Namespace, t.namespace, "default"), cmp.Or(audience, provider.DefaultAudience))
}

// open makes the volume's directory and the parts that fill it.
func (t *trial) open() error {
	var at unix.Statfs_t
	if err := unix.Statfs(t.tmpfs, &at); err != nil {
		return fmt.Errorf("looking at --tmpfs %s: %w", t.tmpfs, err)
	}
	if at.Type != unix.TMPFS_MAGIC {
		return fmt.Errorf("looking at --tmpfs %s: it is no tmpfs, and secrets must not reach a disk; name a directory of one, such as /dev/shm or below /run", t.tmpfs)
	}
	log := t.logger(t.stderr)
	var err error
	if t.cloud, err = t.aws.source(nil, log, nil); err != nil {
		return err
	}
	source, err := t.vault.source(t.cloud, log, nil)
	if err != nil {
		return err
	}
	t.source, t.witness = source, &witness{source, &ledger{held: map[string]held{}}}
	if t.vaultTokenFile != "" {
		token, readErr := t.read(t.vaultTokenFile)
		if token = bytes.TrimSpace(token); readErr != nil || len(token) == 0 {
			return fmt.Errorf("reading --vault-token-file: %w", cmp.Or(readErr, errors.New(t.vaultTokenFile+" is empty")))
		}
		t.witness.Source = vault.Borrowed{Source: source, Token: provider.Secret(token)}
	}
	files, err := volume.NewWriter(t.root)
	if err != nil {
		return err
	}
	if err = t.makeTree(); err != nil {
		return err
	}
	cloud := &witness{t.cloud, t.witness.ledger}
	leases := lease.Config{
		Sources: map[string]lease.Source{"vault": t.witness, "aws-sts": cloud, "rds-iam": cloud}, Files: files, Store: forgetful{}, VersionKey: []byte(rand.Text()), Log: log,
	}
	var bindings *tenant.File
	if t.tenantBindings != "" {
		if bindings, err = tenant.Open(t.tenantBindings, log, nil); err != nil {
			return err
		}
		leases.Tenants = bindings
	}
	if t.manager, err = lease.Open(leases); err == nil {
		t.unwatch = watch(context.Background(), bindings, t.manager)
	}
	return err
}

// makeTree makes the private tree and the link to the volume in it.
func (t *trial) makeTree() error {
	if err := os.Mkdir(t.root, 0o700); err != nil {
		return fmt.Errorf("making a directory on the tmpfs: %w", err)
	}
	if err := os.MkdirAll(t.target, 0o755); err != nil { //nolint:gosec // below a private directory, as a kubelet's is
		return fmt.Errorf("making the volume's directory: %w", err)
	}
	link := cmp.Or(t.dir, filepath.Join(t.root, "secrets"))
	if err := os.Symlink(t.target, link); err != nil {
		if errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("linking %s to the volume: something is there; name another DIR, or remove it first", link)
		}
		return fmt.Errorf("linking DIR to the volume: %w", err)
	}
	t.link = link
	return nil
}

// mount makes the first Mount. Its error is what a pod's Event would say.
func (t *trial) mount(ctx context.Context, r provider.Request) error {
	defer t.busy("mounting")()
	_, err := t.manager.Mount(ctx, r)
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return errors.New("interrupted before the volume was written")
	}
	text := errors.New(provider.EventText(err))
	var about *provider.Error
	hint := func(remedy string) error { return errors.Join(text, errors.New("here, without a cluster: "+remedy)) }
	switch {
	case !errors.As(err, &about):
	case about.Field == "audience" && t.tokenFile != "":
		return hint(t.makeToken(audienceOf(r, about.Object)))
	case about.Field == "vaultAddress" && len(t.vault.addrs) == 0 && r.Attributes["vaultAddress"] == "":
		return hint("give --vault-addr, or set VAULT_ADDR")
	}
	return text
}

// audienceOf is that of the token which an object's login sends.
func audienceOf(r provider.Request, object string) string {
	if spec, err := provider.Parse(r); err == nil {
		for _, o := range spec.Objects {
			if o.Name == object {
				return o.Read.Login.Audience
			}
		}
	}
	return ""
}

// close lets go of everything but what is in the files.
func (t *trial) close() error {
	if t.manager != nil {
		ctx, cancel := context.WithTimeout(context.Background(), adminDrain)
		defer cancel()
		t.unwatch()
		_ = t.manager.Close(ctx) // whoever calls has waited for what matters
	}
	if t.source != nil {
		t.source.Close()
	}
	if t.cloud != nil {
		t.cloud.Close()
	}
	return t.remove()
}

// remove takes the files and the link away.
func (t *trial) remove() error {
	var err error
	if t.link != "" {
		if err = os.Remove(t.link); errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
	}
	return errors.Join(err, os.RemoveAll(t.root))
}

// forgetful is a lease.Store for a process that has no next start: no token is
// written anywhere.
type forgetful struct{}

func (forgetful) Load() ([]*lease.Record, volume.Mark, error) { return nil, volume.Mark{}, nil }
func (forgetful) Save(*lease.Record) error                    { return nil }
func (forgetful) Remove(string) error                         { return nil }
func (forgetful) SaveMark(volume.Mark) error                  { return nil }

// input reads files that a person names, where "-" is the standard input, which
// can be read only once.
type input struct{ stdin []byte }

func (i *input) read(path string) ([]byte, error) {
	if path != "-" {
		return os.ReadFile(path)
	}
	if i.stdin == nil {
		text, err := io.ReadAll(os.Stdin)
		if err != nil {
			return nil, fmt.Errorf("reading the standard input: %w", err)
		}
		i.stdin = text
	}
	return i.stdin, nil
}
