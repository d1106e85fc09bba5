// Demo shows the life of a database credential on this machine alone: a real
// Vault issues it, a real PostgreSQL takes it, the real daemon holds it, and the
// CSI driver's own client library asks for it with the SecretProviderClass of
// examples/silo-database. Run it with `make demo`.
//
// It tells what it does in numbered steps, shows no password, takes down what it
// started even when it fails or is interrupted, and its last line is
//
//	demo: issued N, rotated N, revoked N, leaked N
//
// issued: reads of credentials that Vault's audit log shows; rotated: replacements
// seen in the file; revoked: users that PostgreSQL had and has no more; leaked:
// users, leases and tokens that are left when the pod is gone. The exit code is 0
// when every step worked and nothing leaked, 130 after an interrupt, else 1.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

// limit ends a demo that hangs; an undisturbed one takes about 45 s.
const limit = 10 * time.Minute

const introduction = `Tenure gives a pod short-lived credentials as files, keeps them fresh, and takes them back.
This demo shows the life of one PostgreSQL user, in less than a minute.

Real here: Vault, PostgreSQL, the Tenure daemon, and the Secrets Store CSI driver's client library.
Played by the demo: Kubernetes. A directory stands for the pod, and the demo signs the pod's token.

Root was needed at most to install PostgreSQL (apt-get), and is not needed any more. Everything
listens on loopback and lives in temporary directories, which are removed at the end; Ctrl-C ends
the demo earlier. No password is ever shown, only user names.
`

func main() {
	// A terminal that is closed or a pipe without a reader must not kill us before
	// we have cleaned up: writing fails then, and that ends the demo.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	interrupted, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	context.AfterFunc(interrupted, stop) // a second one ends us at once
	forgetSettings()
	os.Exit(run(interrupted, os.Stdout, os.Stderr))
}

// forgetSettings keeps what the user set for other servers away from ours:
// libraries would find it.
func forgetSettings() {
	for _, entry := range os.Environ() {
		name, _, _ := strings.Cut(entry, "=")
		if strings.HasPrefix(name, "PG") || strings.HasPrefix(name, "VAULT_") {
			_ = os.Unsetenv(name) // fails for no name that is set
		}
	}
}

// run plays the demo, cleans up and returns the exit code.
func run(interrupted context.Context, stdout *os.File, stderr io.Writer) int {
	ctx, cancel := context.WithTimeoutCause(interrupted, limit, fmt.Errorf("the demo took longer than %s", limit))
	defer cancel()
	n := newNarrator(stdout, onTerminal(stdout), cancel)
	n.print(introduction)
	d := &demo{narrator: n}
	err := d.play(ctx)
	if err == nil {
		n.begin("Stopping everything and removing the temporary directories.")
	}
	closeErr := d.close()
	switch {
	case interrupted.Err() != nil:
		fmt.Fprintln(stderr, "\ndemo: interrupted")
	case err != nil:
		fmt.Fprintf(stderr, "\ndemo: step %d failed: %v\n", n.step, errors.Join(err, n.lost))
		d.explain(stderr)
	}
	switch {
	case closeErr != nil:
		fmt.Fprintf(stderr, "demo: cleaning up failed: %v\n", closeErr)
	case err != nil:
		fmt.Fprintln(stderr, "demo: everything that was started is stopped and removed; run it again with: make demo")
	}
	if interrupted.Err() != nil {
		return 128 + int(syscall.SIGINT)
	}
	return d.sum(errors.Join(err, closeErr))
}

// sum prints the last line, when there is something to count, and returns the
// exit code after err.
func (d *demo) sum(err error) int {
	if d.result == nil {
		return 1
	}
	d.print(fmt.Sprintf("\ndemo: issued %d, rotated %d, revoked %d, leaked %d\n", d.result.issued, d.rotated, d.result.revoked, d.result.leaked))
	if d.result.leaked > 0 || err != nil {
		return 1
	}
	return 0
}
