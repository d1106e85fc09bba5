package integration

import (
	"context"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/tenure-csi/tenure/test/fixture"
)

// short is a lease that is renewed twice and replaced within a minute.
var short = fixture.ScopeOptions{TTL: 20 * time.Second, MaxTTL: time.Minute}

// TestRotationUnderAClient rotates a credential below a client that connects ten
// times a second, while kubelet republishes.
func TestRotationUnderAClient(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name    string
		objects func(s *site) []string
		read    func(t *testing.T, v *fixture.Volume) (user, password string)
		psql    bool
	}{
		{"one service file", func(s *site) []string { return []string{s.db("db")} }, readService, true},
		{"two files below one opened ..data", func(s *site) []string {
			return []string{
				"{objectName: username, secretPath: " + s.Creds + ", secretKey: username}",
				"{objectName: password, secretPath: " + s.Creds + ", secretKey: password}",
			}
		}, readPair, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t, short)
			v := s.mounted(t, tt.objects(s)...)
			c := &client{site: s, volume: v, read: func() (string, string) { return tt.read(t, v) }, password: map[string]string{}, since: map[string]time.Time{}}
			begin := time.Now()
			every := func(d time.Duration) *time.Ticker {
				tick := time.NewTicker(d)
				t.Cleanup(tick.Stop)
				return tick
			}
			connect, republish, psql := every(100*time.Millisecond), every(5*time.Second), every(15*time.Second)
			for time.Since(begin) < 130*time.Second || len(c.password) < 3 || tt.psql && c.queries < 6 {
				require.Less(t, time.Since(begin), 6*time.Minute, "two replacements in time")
				select {
				case <-connect.C:
					c.connect(t)
				case <-republish.C:
					mount(t, v)
					republish.Reset(5*time.Second + rand.N(5*time.Second))
				case <-psql.C:
					if tt.psql {
						c.psql(t)
					}
				}
			}
			figures.note(t, "rotation, %s: %d connections in %v, none failed; %d credentials, the shortest lived %v",
				tt.name, c.connections, time.Since(begin).Round(time.Second), len(c.password), c.shortest.Round(time.Second))
			require.Greater(t, c.shortest, 30*time.Second, "a lease of 20 s was renewed")
			s.requireAsked(t, len(c.password), len(c.password)) // every credential was in the files, no other was made
			s.requireHeld(t, 1, 1)
		})
	}
}

// client is an application.
type client struct {
	*site
	volume      *fixture.Volume
	read        func() (user, password string)
	connections int
	queries     int                  // of psql
	password    map[string]string    // by user
	since       map[string]time.Time // by user
	last        string
	shortest    time.Duration // of the credentials that were replaced
}

func (c *client) connect(t *testing.T) {
	t.Helper()
	user, password := logIn(t, 4*time.Second, c.read)
	if was, known := c.password[user]; known {
		require.Equal(t, was, password, "user and password of different leases")
	}
	c.connections++
	now := time.Now()
	if user != c.last {
		require.NotContains(t, c.password, user, "a replaced credential came back")
		if lived := now.Sub(c.since[c.last]); c.last != "" && (c.shortest == 0 || lived < c.shortest) {
			c.shortest = lived
		}
		c.password[user], c.since[user], c.last = password, now, user
	}
}

// psql connects as applications with libpq do.
func (c *client) psql(t *testing.T) {
	t.Helper()
	cmd := exec.Command("psql", "-X", "-A", "-t", "-c", "SELECT current_user")
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "PGSERVICE=db", "PGSERVICEFILE=" + filepath.Join(c.volume.Target, "db")}
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, string(out))
	require.True(t, strings.HasPrefix(string(out), "v-"), string(out))
	c.queries++
}

func readService(t *testing.T, v *fixture.Volume) (user, password string) {
	t.Helper()
	values := service(read(t, v, "db"))
	return values["user"], values["password"]
}

// readPair reads two files such that both are of one generation.
func readPair(t *testing.T, v *fixture.Volume) (user, password string) {
	t.Helper()
	dir, err := unix.Open(filepath.Join(v.Target, "..data"), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	require.NoError(t, err)
	defer unix.Close(dir)
	at := func(name string) string {
		fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		require.NoError(t, err)
		file := os.NewFile(uintptr(fd), name)
		defer file.Close()
		text, err := io.ReadAll(file)
		require.NoError(t, err)
		return string(text)
	}
	return at("username"), at("password")
}

// TestReplacesOnlyWhatIsDue holds a value and a certificate beside a credential
// that is replaced twice.
func TestReplacesOnlyWhatIsDue(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name   string
		leased bool // the certificate is revoked with the token that asked for it, which must live on
		tokens int
	}{
		{"certificate without a lease", false, 1},
		{"certificate with a lease", true, 2},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t, short)
			kv, pki := s.versioned(t), s.certificates(t, tt.leased)
			s.allow(t, kv+"/*", pki)
			require.NoError(t, stack.Vault.WriteKV2(t.Context(), kv, "app", map[string]any{"password": "hello"}))
			begin := time.Now()
			v := s.mounted(t, s.db("db"),
				"{objectName: value, secretPath: "+kv+"/data/app, secretKey: password, refreshInterval: 10s}",
				"{objectName: tls.pem, secretPath: "+pki+", method: PUT, format: pem, secretArgs: {common_name: a.example.com, ttl: 24h}}")
			certificate, value, db := inode(t, v, "tls.pem"), inode(t, v, "value"), inode(t, v, "db")
			pem := read(t, v, "tls.pem")

			users := map[string]bool{}
			require.NoError(t, fixture.Eventually(within(t, 6*time.Minute), 3, func(context.Context) (int, error) {
				text, err := v.Read("db")
				users[service(string(text))["user"]] = true
				return len(users), err
			}))
			require.NotEqual(t, db, inode(t, v, "db"))
			require.Equal(t, certificate, inode(t, v, "tls.pem"))
			require.Equal(t, pem, read(t, v, "tls.pem"))
			require.Equal(t, value, inode(t, v, "value"))
			require.Equal(t, "hello", read(t, v, "value"))
			require.Equal(t, 1, asked(t, pki, "update"), "certificates issued")
			s.requireAsked(t, 3, 3)
			looks, most := asked(t, kv+"/data/app", "read"), int(time.Since(begin)/(9*time.Second))+1
			require.LessOrEqual(t, looks, most, "reads of the value")
			require.Greater(t, looks, 5, "reads of the value")
			s.requireHeld(t, 1, tt.tokens)
			if tt.leased {
				leases, err := stack.Vault.LeaseCount(t.Context(), pki)
				require.NoError(t, err)
				require.Equal(t, 1, leases, "the certificate is not revoked")
			}
			figures.note(t, "%s: %d replacements in %v, value read %d times", tt.name, len(users)-1, time.Since(begin).Round(time.Second), looks)
		})
	}
}
