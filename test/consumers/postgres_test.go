package consumers

import (
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/tenure-csi/tenure/provider"
)

const (
	database = `d #=%:\b'ä`      // of both servers
	user     = `u "x':\%#;=[ü]*` // hostile, and within PostgreSQL's 63 bytes
)

// setUp makes the database.
func setUp(t *testing.T) *pgx.Conn {
	t.Helper()
	admin, err := stack.Postgres.Admin(t.Context())
	require.NoError(t, err)
	t.Cleanup(func() { _ = admin.Close(t.Context()) })
	var exists bool
	require.NoError(t, admin.QueryRow(t.Context(), "SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)", database).Scan(&exists))
	if !exists {
		_, err = admin.Exec(t.Context(), "CREATE DATABASE "+pgx.Identifier{database}.Sanitize())
		require.NoError(t, err)
	}
	return admin
}

// setPassword makes the role, or gives it another password.
func setPassword(t *testing.T, admin *pgx.Conn, name, password string) {
	t.Helper()
	role := pgx.Identifier{name}.Sanitize()
	_, err := admin.Exec(t.Context(), "DROP ROLE IF EXISTS "+role)
	require.NoError(t, err)
	_, err = admin.Exec(t.Context(), "CREATE ROLE "+role+" LOGIN PASSWORD '"+strings.ReplaceAll(password, "'", "''")+"'")
	require.NoError(t, err)
}

// psql asks the server who logged in where.
func psql(t *testing.T, env []string, args ...string) *exec.Cmd {
	t.Helper()
	return program(t, append(env, "PGCONNECT_TIMEOUT=60"), "psql", append(args, "-X", "-w", "-A", "-t", "-F", "\n", "-c", "SELECT session_user, current_database()")...)
}

// connectors are psql's ways to a login with each format's file.
var connectors = map[string]func(t *testing.T, path, user string, c provider.Connection) *exec.Cmd{
	"pg-service": func(t *testing.T, path, _ string, _ provider.Connection) *exec.Cmd {
		return psql(t, []string{"PGSERVICEFILE=" + path, "PGSERVICE=orders"})
	},
	"pgpass": func(t *testing.T, path, user string, c provider.Connection) *exec.Cmd {
		return psql(t, []string{"PGPASSFILE=" + path, "PGUSER=" + user, "PGHOST=" + c.Host, "PGPORT=" + strconv.Itoa(c.Port), "PGDATABASE=" + c.DBName})
	},
	"uri": func(t *testing.T, path, _ string, _ provider.Connection) *exec.Cmd {
		text, err := os.ReadFile(path)
		require.NoError(t, err)
		return psql(t, nil, "-d", string(text))
	},
}

func TestPsqlLogsIn(t *testing.T) {
	admin := setUp(t)
	refusals := map[string]int{}
	for _, password := range append(oneLine, edges...) {
		setPassword(t, admin, user, password)
		for name, connect := range connectors {
			o := with(name, stack.Postgres.Addr, database)
			if refused(t, o, user, password) {
				refusals[name]++
				continue
			}
			path := written(t, o, login(user, password))
			require.Equal(t, user+"\n"+database+"\n", output(t, connect(t, path, user, o.Connection)), "%s: %q", name, password)
		}
	}
	require.Equal(t, map[string]int{"pg-service": 7, "pgpass": 5}, refusals, "edges, and nothing else")
}

// The password decides: a file with another one does not log in.
func TestPsqlNeedsThePassword(t *testing.T) {
	admin := setUp(t)
	setPassword(t, admin, user, "right")
	for name, connect := range connectors {
		o := with(name, stack.Postgres.Addr, database)
		out, err := connect(t, written(t, o, login(user, "wrong")), user, o.Connection).CombinedOutput()
		require.Error(t, err, name)
		require.Contains(t, string(out), "password authentication failed", name)
	}
}

// What the connection leaves out matches everything, and another user nothing.
func TestPasswordFileMatches(t *testing.T) {
	admin := setUp(t)
	setPassword(t, admin, user, "p:1")
	setPassword(t, admin, "other", "p:1")
	anywhere := provider.Object{Name: "orders", Format: "pgpass", Mode: 0o600}
	path := written(t, anywhere, login(user, "p:1"))
	c := with("pgpass", stack.Postgres.Addr, database).Connection
	require.Equal(t, user+"\n"+database+"\n", output(t, connectors["pgpass"](t, path, user, c)))
	out, err := connectors["pgpass"](t, path, "other", c).CombinedOutput()
	require.Error(t, err)
	require.Contains(t, string(out), "no password supplied")

	several := anywhere
	several.Connection = provider.Connection{Host: "nowhere.invalid," + c.Host, Port: c.Port}
	require.Equal(t, user+"\n"+database+"\n", output(t, connectors["pgpass"](t, written(t, several, login(user, "p:1")), user, c)))
}

// This is why the format refuses such permissions.
func TestLibpqIgnoresOpenPasswordFile(t *testing.T) {
	admin := setUp(t)
	setPassword(t, admin, user, "p")
	o := with("pgpass", stack.Postgres.Addr, database)
	path := written(t, o, login(user, "p"))
	for _, mode := range []os.FileMode{0o640, 0o604, 0o620, 0o601} {
		require.NoError(t, os.Chmod(path, mode))
		out, err := connectors["pgpass"](t, path, user, o.Connection).CombinedOutput()
		require.Error(t, err)
		require.Contains(t, string(out), "has group or world access")
		open := o
		open.Mode = mode
		require.True(t, modeRefused(open), "%o", mode)
	}
	require.NoError(t, os.Chmod(path, 0o400))
	require.Equal(t, user+"\n"+database+"\n", output(t, connectors["pgpass"](t, path, user, o.Connection)))
}
