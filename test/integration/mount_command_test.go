package integration

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/vault/api"
	"github.com/stretchr/testify/require"

	"github.com/tenure-csi/tenure/test/fixture"
)

// desk is where a person tries an SPC: no daemon, no node.
type desk struct {
	*site
	dir string   // for files
	shm string   // --tmpfs
	own string   // a Vault token of the person's own
	acc string   // its accessor
	who []string // flags for the login
}

func newDesk(t *testing.T, o fixture.ScopeOptions) *desk {
	t.Helper()
	d := &desk{site: &site{Scope: fixture.Scoped(t, stack, o)}, dir: t.TempDir()}
	var err error
	d.shm, err = os.MkdirTemp("/dev/shm", "tenure-desk-")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(d.shm)) })
	jwt, _, err := stack.Issuer.Token(newPod(), "vault", time.Hour)
	require.NoError(t, err)
	d.write(t, "jwt", jwt)
	own, err := stack.Vault.Client().Auth().Token().CreateWithContext(t.Context(), &api.TokenCreateRequest{Policies: []string{d.Name}, TTL: "1h"})
	require.NoError(t, err)
	d.own, d.acc = own.Auth.ClientToken, own.Auth.Accessor
	d.write(t, "vault-token", d.own)
	d.describe(t, d.db("pg_service.conf"))
	d.as("--token-file", "jwt")
	return d
}

func (d *desk) as(flag, file string) { d.who = []string{flag, filepath.Join(d.dir, file)} }

func (d *desk) write(t *testing.T, name, text string) {
	t.Helper()
	require.NoError(t, os.WriteFile(filepath.Join(d.dir, name), []byte(text+"\n"), 0o600))
}

// describe writes the SPC.
func (d *desk) describe(t *testing.T, objects ...string) {
	t.Helper()
	spc := d.SPC(list(objects...))
	text, err := json.Marshal(map[string]any{ // JSON is YAML
		"apiVersion": "secrets-store.csi.x-k8s.io/v1", "kind": "SecretProviderClass", "metadata": map[string]any{"name": "orders"},
		"spec": map[string]any{"provider": spc.Provider, "parameters": spc.Parameters},
	})
	require.NoError(t, err)
	d.write(t, "spc.yaml", string(text))
}

func (d *desk) link() string { return filepath.Join(d.dir, "secrets") }

// start runs tenure mount, which a failing test kills.
func (d *desk) start(t *testing.T, flags ...string) *fixture.Command {
	t.Helper()
	return d.startAt(t, stack.Vault.Addr, flags...)
}

// startAt is start with an address of Vault.
func (d *desk) startAt(t *testing.T, vault string, flags ...string) *fixture.Command {
	t.Helper()
	args := append([]string{"mount", "-f", filepath.Join(d.dir, "spc.yaml"), "--vault-addr", vault, "--tmpfs", d.shm, d.link()}, d.who...)
	c, err := fixture.StartCommand(append(args, flags...)...)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, c.Kill()) })
	return c
}

// watched is start with --watch, when it has begun to watch.
func (d *desk) watched(t *testing.T) *fixture.Command {
	t.Helper()
	c := d.start(t, "--watch")
	d.says(t, c, "Watching")
	return c
}

func (d *desk) says(t *testing.T, c *fixture.Command, text string) {
	t.Helper()
	require.NoError(t, c.Await(within(t, 3*time.Minute), func(line string) bool { return strings.Contains(line, text) }), text)
}

// ends waits for the end, which must have removed all files.
func (d *desk) ends(t *testing.T, c *fixture.Command, code int) string {
	t.Helper()
	got, output, err := c.Wait(within(t, 3*time.Minute))
	require.NoError(t, err)
	require.Equal(t, code, got, output)
	require.NoFileExists(t, d.link())
	left, err := os.ReadDir(d.shm)
	require.NoError(t, err)
	require.Empty(t, left)
	return output
}

// requireOwn checks that the person's token lives.
func (d *desk) requireOwn(t *testing.T) {
	t.Helper()
	_, err := stack.Vault.Client().Auth().Token().LookupAccessorWithContext(t.Context(), d.acc)
	require.NoError(t, err, "the person's own token")
}

// logsIn logs in at PostgreSQL as the user that the link's file names, whose lease of
// 8 s or more has an overlap of a fifth.
func (d *desk) logsIn(t *testing.T) {
	t.Helper()
	logIn(t, 1600*time.Millisecond, func() (user, password string) {
		text, err := os.ReadFile(filepath.Join(d.link(), "pg_service.conf"))
		require.NoError(t, err)
		s := service(string(text))
		return s["user"], s["password"]
	})
}

func TestMountCommandOnce(t *testing.T) {
	t.Parallel()
	d := newDesk(t, fixture.ScopeOptions{})
	output := d.ends(t, d.start(t), 0)
	require.Regexp(t, `pg_service\.conf +0644 +\d+:\d+ +\d+\n`, output)
	require.Regexp(t, `pg_service\.conf +live +(1h0m|59m\S+) +\S+ +first\n`, output)
	require.NotContains(t, output, "password", "nobody has asked for it")
	d.requireAsked(t, 1, 1)
	d.requireHeld(t, 0, 0)
}

// TestMountCommandWatch follows a credential through its replacement and an edit
// of the SPC; a Ctrl-C ends all.
func TestMountCommandWatch(t *testing.T) {
	t.Parallel()
	d := newDesk(t, fixture.ScopeOptions{TTL: 8 * time.Second, MaxTTL: 14 * time.Second})
	c := d.watched(t)
	d.logsIn(t)
	d.says(t, c, "pg_service.conf: renewed, works until")
	d.says(t, c, "pg_service.conf: replaced: a renewal gave less than asked")
	d.logsIn(t)
	d.describe(t, d.db("pg_service.conf"), d.db("second.conf"))
	d.says(t, c, "second.conf: issued: the SecretProviderClass has changed")
	require.FileExists(t, filepath.Join(d.link(), "second.conf"))
	require.NoError(t, c.Interrupt())
	require.Contains(t, d.ends(t, c, 0), "Ended: the leases are given back")
	d.requireHeld(t, 0, 0)
}

// TestMountCommandUnderAPersonsToken: the token survives, and what was made with it does not.
func TestMountCommandUnderAPersonsToken(t *testing.T) {
	t.Parallel()
	d := newDesk(t, fixture.ScopeOptions{TTL: 8 * time.Second, MaxTTL: 14 * time.Second})
	d.as("--vault-token-file", "vault-token")
	c := d.watched(t)
	d.says(t, c, "pg_service.conf: replaced")
	d.logsIn(t)
	require.NoError(t, c.Interrupt())
	d.ends(t, c, 0)
	d.requireHeld(t, 0, 0)
	d.requireOwn(t)
	logins, err := d.Logins()
	require.NoError(t, err)
	require.Zero(t, logins)
}

// TestMountCommandThatFails: one object's mistake leaves nothing of the other,
// neither under a login's token nor under a person's.
func TestMountCommandThatFails(t *testing.T) {
	t.Parallel()
	for _, who := range [][2]string{{"--token-file", "jwt"}, {"--vault-token-file", "vault-token"}} {
		d := newDesk(t, fixture.ScopeOptions{})
		d.as(who[0], who[1])
		d.describe(t, d.db("pg_service.conf"), fmt.Sprintf("{objectName: x, secretPath: %s/nothing}", d.KV))
		output := d.ends(t, d.start(t), 1)
		require.Contains(t, output, `tenure mount: object "x", field "secretPath": asking Vault at `)
		require.Contains(t, output, "nothing is there; write the secret, or correct secretPath\n")
		d.requireHeld(t, 0, 0)
		d.requireOwn(t)
	}
}

// TestMountCommandKeeps leaves a working credential, and says what ends it.
func TestMountCommandKeeps(t *testing.T) {
	t.Parallel()
	for _, who := range [][2]string{{"--token-file", "jwt"}, {"--vault-token-file", "vault-token"}} {
		d := newDesk(t, fixture.ScopeOptions{})
		d.as(who[0], who[1])
		code, output, err := d.start(t, "--keep").Wait(within(t, 3*time.Minute))
		require.NoError(t, err)
		require.Zero(t, code, output)
		d.logsIn(t)
		held, err := d.Leases(t.Context())
		require.NoError(t, err)
		require.Equal(t, 1, held)
		_, command, found := strings.Cut(output, "to end it now: vault ")
		require.True(t, found, output)
		words := strings.Fields(command) // "token revoke -accessor A" or "lease revoke ID"
		if words[0] == "token" {
			err = stack.Vault.Client().Auth().Token().RevokeAccessorWithContext(t.Context(), words[3])
		} else {
			err = stack.Vault.Client().Sys().RevokeWithContext(t.Context(), words[2])
		}
		require.NoError(t, err)
		d.requireHeld(t, 0, 0)
		d.requireOwn(t)
	}
}

// TestMountCommandWithVaultAway: at the end Vault is not there; a second Ctrl-C
// gives up, says what is left, and still removes the files.
func TestMountCommandWithVaultAway(t *testing.T) {
	t.Parallel()
	d := newDesk(t, fixture.ScopeOptions{})
	proxy := fixture.ProxyFor(t, stack.Vault.Addr)
	c := d.startAt(t, proxy.URL(), "--watch")
	d.says(t, c, "Watching")
	proxy.Down()
	require.NoError(t, c.Interrupt())
	d.says(t, c, "still ending the leases (Ctrl-C gives up)")
	require.NoError(t, c.Interrupt())
	output := d.ends(t, c, 1)
	require.Regexp(t, `Left at Vault:\n +the token with accessor \S+ lives until .*; to end it now: vault token revoke -accessor \S+\n`, output)
	require.NotContains(t, output, d.own)
	held, err := d.Leases(context.WithoutCancel(t.Context()))
	require.NoError(t, err)
	require.Equal(t, 1, held)
}
