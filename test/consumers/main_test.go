// Package consumers lets the programs that files are written for read them: psql
// and libpq, the MariaDB client, POSIX shells, jq and openssl, against a real
// PostgreSQL, a real MariaDB and certificates of a real Vault. A program that is
// not there fails its test; `make setup` installs them.
package consumers

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/tenure-csi/tenure/internal/format"
	"github.com/tenure-csi/tenure/provider"
	"github.com/tenure-csi/tenure/test/fixture"
)

var (
	stack *fixture.Stack
	maria *fixture.MariaDB
)

func TestMain(m *testing.M) {
	os.Exit(fixture.Run(func() int {
		code, err := withMariaDB(m.Run)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return code
	}, func(s *fixture.Stack) { stack = s }, func() error { return goleak.Find() }))
}

func withMariaDB(tests func() int) (int, error) {
	var err error
	if maria, err = fixture.StartMariaDB(context.Background()); err != nil {
		return 0, err
	}
	code := tests()
	return code, maria.Stop()
}

// oneLine are values that every reader can be given on a line of its own.
var oneLine = []string{
	"plain-Pass1", `it's "quoted"`, `'''"""`, `"`, `'`, "$HOME ${x} $(id) `id` !x", `a:b\:c\\:`, "%41%%20%", "#lead;mid#", ";semi", "in side spaces", `back\slash\`, `\`, `\n\t\s\x`,
	"ä☃\u2028é", "\u00a0nbsp\u00a0", "tab\tin", "bell\a\bback", `[x]=@/?&+,!*~`, "*", ":", "[client]", "!include /etc/passwd", `"'#`, `\"'#\'"`, "-----BEGIN", "{{.Data}}",
}

// edges are values that some readers can't be given.
var edges = []string{" lead", "trail ", "\ttab", "new\nline", "ends\n", "\r\n", "in\rside", "end\r"}

// with makes an object for a database server at addr.
func with(name, addr, dbname string) provider.Object {
	host, port, _ := strings.Cut(addr, ":")
	o := provider.Object{Name: "orders", Format: name, Mode: 0o600, Connection: provider.Connection{Host: host, DBName: dbname}}
	_, _ = fmt.Sscan(port, &o.Connection.Port)
	return o
}

// written renders data and answers the file's path, for the reader's eyes only.
func written(t *testing.T, o provider.Object, data map[string]any) string {
	t.Helper()
	r, err := format.Render(o, format.Secret{Data: data})
	require.NoError(t, err)
	require.Len(t, r.Files, 1)
	path := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(path, r.Files[0].Data, 0o600))
	return path
}

func login(user, password string) map[string]any {
	return map[string]any{"username": user, "password": password}
}

// refused says whether the format refuses the login, naming another format.
func refused(t *testing.T, o provider.Object, user, password string) bool {
	t.Helper()
	_, err := format.Render(o, format.Secret{Data: login(user, password)})
	if err != nil {
		require.ErrorContains(t, err, "use format ")
		require.NotContains(t, err.Error(), password)
	}
	return err != nil
}

// modeRefused says whether the format refuses the object for its permissions.
func modeRefused(o provider.Object) bool {
	var e *provider.Error
	return errors.As(format.Check(o), &e) && e.Field == "filePermission"
}

// program is a command that knows nothing but env.
func program(t *testing.T, env []string, name string, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Dir = "/"
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=/nonexistent", "LC_ALL=C.UTF-8"}, env...)
	return cmd
}

// output is what a program that succeeds says on its standard output.
func output(t *testing.T, cmd *exec.Cmd) string {
	t.Helper()
	var complaint strings.Builder
	cmd.Stderr = &complaint
	out, err := cmd.Output()
	require.NoError(t, err, "%s", complaint.String())
	return string(out)
}
