package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/tenure-csi/tenure/test/fixture"
)

const (
	example = "examples/silo-database/secretproviderclass.yaml" // from the repository's root
	creds   = "database/creds/orders"                           // the secretPath in it

	// The lives of a credential here. Tenure makes its switch an overlap (a fifth of
	// the lease: 3 s) and a tenth of the lease before the last end, so after 35.5 s.
	leaseTTL = 15 * time.Second
	leaseMax = 40 * time.Second

	// patience is for what is done in a second on an idle machine.
	patience = 2 * time.Minute
)

// pod is who the story is about.
var pod = fixture.Pod{Namespace: "shop", Name: "web-0", UID: "0f7d2c1e-5a64-4b8e-9c55-3d1b6a7e8f90", ServiceAccount: "web"}

// demo is what runs and what was seen so far.
type demo struct {
	*narrator

	stack    *fixture.Stack
	reviewer *fixture.TokenReviewer
	node     *fixture.Node
	daemon   *fixture.Daemon
	volume   *fixture.Volume

	first   *pgx.ConnConfig // what the application read at its start
	second  *pgx.ConnConfig // what the file says after the switch
	rotated int
	swapped time.Time
	users   []string // all that PostgreSQL was seen with
	result  *result  // nil before the end
}

// result is what was counted when the pod was gone.
type result struct{ issued, revoked, leaked int }

// play takes the story's steps in order, up to the first that fails.
func (d *demo) play(ctx context.Context) error {
	for _, step := range []func(context.Context) error{
		d.startServers, d.configureVault, d.startDaemon, d.mount, d.logIn, d.showStatus,
		d.awaitReplacement, d.showOverlap, d.deletePod,
	} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}

// close takes down what was started, the users of a thing before it.
func (d *demo) close() error {
	var errs []error
	if d.daemon != nil {
		errs = append(errs, d.daemon.Kill()) // after a story that ended well nothing is under way
	}
	if d.node != nil {
		errs = append(errs, d.node.Close())
	}
	if d.stack != nil {
		errs = append(errs, d.stack.Close())
	}
	if d.reviewer != nil {
		errs = append(errs, d.reviewer.Stop())
	}
	return errors.Join(errs...)
}

// wait is await for what the daemon is to do.
func (d *demo) wait(ctx context.Context, what string, most time.Duration, look func() (bool, error)) error {
	return d.await(ctx, what, most, func() (bool, error) {
		if !d.daemon.Running() {
			return false, fmt.Errorf("waiting for %s: the daemon has ended", what)
		}
		return look()
	})
}

// explain shows the end of the daemon's log, for a step that failed.
func (d *demo) explain(w io.Writer) {
	if d.daemon == nil {
		return
	}
	lines := strings.Split(strings.TrimSpace(d.daemon.Logs()), "\n")
	fmt.Fprintf(w, "The end of the daemon's log:\n  %s\n", strings.Join(lines[max(0, len(lines)-15):], "\n  "))
}

func (d *demo) startServers(ctx context.Context) (err error) {
	d.begin("Starting PostgreSQL and Vault.")
	if d.stack, err = fixture.StartStack(ctx); err != nil {
		return err
	}
	health, err := d.stack.Vault.Client().Sys().HealthWithContext(ctx)
	if err != nil {
		return fmt.Errorf("asking for Vault's version: %w", err)
	}
	d.say("PostgreSQL listens on %s.", d.stack.Postgres.Addr)
	d.say("Vault %s listens on %s.", health.Version, d.stack.Vault.Addr)
	return nil
}

func (d *demo) configureVault(ctx context.Context) (err error) {
	d.begin("Configuring both, as their administrators would.")
	admin, err := d.stack.Postgres.Admin(ctx)
	if err != nil {
		return fmt.Errorf("logging in to PostgreSQL: %w", err)
	}
	defer func() { _ = admin.Close(ctx) }()
	if _, err = admin.Exec(ctx, "CREATE DATABASE orders"); err != nil {
		return fmt.Errorf("making the database: %w", err)
	}
	if d.reviewer, err = fixture.StartTokenReviewer(d.stack.Issuer); err != nil {
		return err
	}
	v := d.stack.Vault
	if err := errors.Join(
		v.EnableDatabase(ctx, "database", d.stack.Postgres, d.stack.Postgres.Addr),
		v.CreateDBRole(ctx, "database", "orders", leaseTTL, leaseMax),
		v.Policy(ctx, "orders", fixture.ReadPolicy(creds)),
		v.EnableKubernetesAuth(ctx, "kubernetes", d.reviewer),
		v.KubernetesRole(ctx, "kubernetes", "orders", pod.ServiceAccount, fixture.AuthRole{
			Namespace: pod.Namespace, Policies: []string{"orders"}, TTL: time.Hour, Max: 24 * time.Hour,
		}),
	); err != nil {
		return fmt.Errorf("configuring Vault: %w", err)
	}
	d.say("Pods of namespace %q and service account %q may log in to Vault as role orders,", pod.Namespace, pod.ServiceAccount)
	d.say("which may read %s. Each such read makes a new PostgreSQL user, leased for", creds)
	d.say("%.0f s and renewable up to %.0f s in all: short enough to watch. In production 1 h and 24 h are usual.", leaseTTL.Seconds(), leaseMax.Seconds())
	return nil
}

func (d *demo) startDaemon(ctx context.Context) (err error) {
	d.begin("Starting the daemon: tenure serve, as it would run on every node of a cluster.")
	if d.node, err = fixture.NewNode(fixture.NodeOptions{Issuer: d.stack.Issuer}); err != nil {
		return err
	}
	if d.daemon, err = fixture.StartDaemon(ctx, fixture.DaemonOptions{Node: d.node, VaultAddr: d.stack.Vault.Addr}); err != nil {
		return err
	}
	d.say("It runs as process %d and has no credential of its own: it logs in to Vault with each pod's", d.daemon.Pid())
	d.say("own service account token, so that Vault decides what the pod may have.")
	return nil
}

func (d *demo) mount(ctx context.Context) error {
	d.begin("Mounting a volume into pod %s/%s, as kubelet and the CSI driver do.", pod.Namespace, pod.Name)
	root, err := fixture.Root()
	if err != nil {
		return err
	}
	spc, err := fixture.ReadSPC(filepath.Join(root, example))
	if err != nil {
		return err
	}
	d.say("The SecretProviderClass %q says what the volume holds. It is the file", spc.Name)
	d.say("%s.", example)
	if d.volume, err = d.node.Volume(pod, "database", spc, nil); err != nil {
		return err
	}
	began := time.Now()
	if _, err := d.volume.Mount(ctx); err != nil {
		return fmt.Errorf("mounting the volume: %w", err)
	}
	took := time.Since(began)
	text, err := d.volume.Read(file)
	if err != nil {
		return fmt.Errorf("reading what was mounted: %w", err)
	}
	d.say("After %d ms the pod sees the file %s:", took.Milliseconds(), file)
	d.show(withoutPassword(text))
	return d.noteUsers(ctx)
}

func (d *demo) logIn(ctx context.Context) (err error) {
	d.begin("Logging in to PostgreSQL with that file, as the application does when it starts.")
	if d.first, err = d.read(); err != nil {
		return err
	}
	user, err := connect(ctx, d.first)
	if err != nil {
		return fmt.Errorf("logging in with the file: %w", err)
	}
	d.say("PostgreSQL says: you are %s.", user)
	return nil
}

func (d *demo) showStatus(ctx context.Context) error {
	d.begin("Asking the daemon what it holds: tenure status.")
	if err := d.status(ctx); err != nil {
		return err
	}
	d.say("EXPIRES: in that time Vault would remove the user. NEXT: in that time Tenure renews its lease.")
	return nil
}

// status runs the command line that an operator on the node would use.
func (d *demo) status(ctx context.Context) error {
	root, err := fixture.Root()
	if err != nil {
		return err
	}
	tenure := cmp.Or(os.Getenv("TENURE_TEST_BINARY"), filepath.Join(root, "bin", "tenure"))
	var problem bytes.Buffer
	cmd := exec.CommandContext(ctx, tenure, "status", "--status-socket", filepath.Join(d.node.State, "status.sock")) //nolint:gosec // our own binary
	cmd.Stderr = &problem
	table, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("running tenure status: %w: %s", err, bytes.TrimSpace(problem.Bytes()))
	}
	d.show(string(table))
	return nil
}

func (d *demo) awaitReplacement(ctx context.Context) error {
	d.begin("Waiting for the replacement.")
	d.say("Tenure renews the lease after 60 to 70 %% of its life, until Vault grants no more. Shortly before")
	d.say("that end it gets a new user and switches the file with one rename: user and password together.")
	renewed := 0
	err := d.wait(ctx, "the replacement, about 36 s after the mount", leaseMax+patience, func() (bool, error) {
		n, err := d.granted("update", "sys/leases/renew")
		if err != nil {
			return false, err
		}
		if n > renewed {
			d.say("Tenure has renewed the lease (%d so far); the file stays as it is.", n)
		}
		renewed = n
		d.second, err = d.read()
		return err == nil && d.second.User != d.first.User, err
	})
	if err != nil {
		return err
	}
	d.rotated, d.swapped = d.rotated+1, time.Now()
	d.say("The file names a new user: %s.", d.second.User)
	return d.noteUsers(ctx)
}

func (d *demo) showOverlap(ctx context.Context) error {
	d.begin("Logging in as the old user, which goes on working for a while, and as the new one.")
	for _, c := range []*pgx.ConnConfig{d.first, d.second} {
		user, err := connect(ctx, c)
		if err != nil && c == d.first && time.Since(d.swapped) > leaseTTL/5-time.Second {
			d.say("This machine does too much else: the time in which %s works on was over before the login.", c.User)
			continue
		}
		if err != nil {
			return fmt.Errorf("logging in as %s %.1f s after the switch: %w", c.User, time.Since(d.swapped).Seconds(), err)
		}
		d.say("PostgreSQL says: you are %s.", user)
	}
	d.say("The application has time to let go of the old one: 10 minutes by default, at most a fifth of the")
	d.say("lease, so %.0f s here. Then Tenure ends what it was issued under, and Vault removes the old user.", (leaseTTL / 5).Seconds())
	var answer string
	err := d.wait(ctx, "PostgreSQL to refuse the old user", patience, func() (_ bool, err error) {
		answer, err = refused(ctx, d.first)
		return answer != "", err
	})
	if err != nil {
		return err
	}
	d.say("%.1f s after the switch PostgreSQL refuses the old one:", time.Since(d.swapped).Seconds())
	d.show(answer)
	user, err := connect(ctx, d.second)
	if err != nil {
		return fmt.Errorf("logging in as %s after the old user's end: %w", d.second.User, err)
	}
	d.say("The new one still logs in: you are %s.", user)
	return nil
}

func (d *demo) deletePod(ctx context.Context) error {
	d.begin("Deleting the pod.")
	if err := d.node.DeletePod(pod); err != nil {
		return fmt.Errorf("deleting the pod: %w", err)
	}
	began := time.Now()
	d.say("Its directory is gone from the node. Tenure looks every 2 s, and ends what the pod had.")
	var left remains
	err := d.wait(ctx, "the end of all that the pod had", patience, func() (_ bool, err error) {
		left, err = d.remains(ctx)
		return left.sum() == 0, err
	})
	if err != nil && left.sum() == 0 {
		return err
	}
	took := time.Since(began)
	issued, auditErr := d.granted("read", creds)
	if auditErr != nil {
		return auditErr
	}
	d.say("%.1f s later there are %d users in PostgreSQL, and %d leases and %d tokens in Vault.", took.Seconds(), len(left.users), left.leases, left.tokens)
	gone := slices.DeleteFunc(slices.Clone(d.users), func(u string) bool { return slices.Contains(left.users, u) })
	d.result = &result{issued: issued, revoked: len(gone), leaked: left.sum()}
	d.say("Users that Vault issued, by its audit log: %d. Of those that PostgreSQL had, %d are gone.", issued, len(gone))
	return errors.Join(err, d.status(ctx))
}
