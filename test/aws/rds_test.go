package aws

import (
	"context"
	"encoding/json"
	"net"
	"net/url"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/tenure-csi/tenure/internal/lease"
	"github.com/tenure-csi/tenure/test/fixture"
)

// output is what a program that succeeds says; it knows nothing but env.
func output(t *testing.T, env []string, name string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(within(t, time.Minute), name, args...)
	cmd.Env = append([]string{"PATH=/usr/bin:/bin", "HOME=/nonexistent"}, env...)
	var complaint strings.Builder
	cmd.Stderr = &complaint
	out, err := cmd.Output()
	require.NoError(t, err, "%s", complaint.String())
	return string(out)
}

// TestDatabaseTokens writes one RDS token in each format of a database, as signed
// anew before the session's end. A PostgreSQL that takes the token for an ordinary
// password shows that its clients get it back from the file, byte for byte; what RDS
// checks in it is computed anew in package aws.
func TestDatabaseTokens(t *testing.T) {
	s := newSite(t)
	const user = "rds_user"
	host, port, err := net.SplitHostPort(stack.Postgres.Addr)
	require.NoError(t, err)
	ask := func(formats ...string) *fixture.Volume {
		var objects []string
		for _, format := range formats {
			objects = append(objects, "{objectName: db."+format+", format: "+format+"}")
		}
		return s.direct(t, "shop", map[string]string{
			"defaults": "{source: rds-iam, roleArn: '" + cloud.Role("app") + "', filePermission: 0600, connection: " +
				"{host: " + host + ", port: " + port + ", user: " + user + ", dbname: postgres}}",
			"objects": "[" + strings.Join(objects, ", ") + "]",
		})
	}
	token := func(v *fixture.Volume) string {
		text, err := v.Read("db.json")
		require.NoError(t, err)
		var read struct{ Password string }
		require.NoError(t, json.Unmarshal(text, &read))
		return read.Password
	}
	_, err = ask("pg-service").Mount(t.Context())
	require.ErrorContains(t, err, `object "db.pg-service", field "format": the connection's password is longer than a line of 1 KiB, `+
		"which a libpq service file can't carry; use format pgpass, uri or env")

	cloud.EndSessionsAfter(10 * time.Second)
	t.Cleanup(func() { cloud.EndSessionsAfter(0) })
	ctx := within(t, 2*time.Minute)
	asked := cloud.Asked("AssumeRoleWithWebIdentity")
	v := ask("json", "pgpass", "uri", "env", "my-cnf")
	_, err = v.Mount(ctx)
	require.NoError(t, err)
	first := token(v)
	cloud.EndSessionsAfter(0)
	var held lease.LeaseStatus
	require.NoError(t, fixture.Eventually(ctx, true, func(context.Context) (bool, error) {
		held = s.status(t, v).Leases[0]
		return time.Until(held.Expires) > time.Minute && token(v) != first, nil
	}))
	require.Equal(t, lease.Scheduled, held.Reason)
	require.Greater(t, held.Expires.Sub(held.Next), 4*time.Minute, "of 15")
	require.Less(t, cloud.Asked("AssumeRoleWithWebIdentity")-asked, 5, "one session a token, whatever the formats")

	password := token(v)
	require.True(t, strings.HasPrefix(password, stack.Postgres.Addr+"?"))
	signed, err := url.ParseQuery(password[strings.Index(password, "?")+1:])
	require.NoError(t, err)
	require.Equal(t, "900", signed.Get("X-Amz-Expires"))
	require.NotEqual(t, first[len(first)-64:], signed.Get("X-Amz-Signature"))

	admin, err := stack.Postgres.Admin(ctx)
	require.NoError(t, err)
	t.Cleanup(func() { _ = admin.Close(context.Background()) })
	_, err = admin.Exec(ctx, "CREATE ROLE "+pgx.Identifier{user}.Sanitize()+" LOGIN PASSWORD '"+password+"'")
	require.NoError(t, err)
	read := func(format string) string {
		text, err := v.Read("db." + format)
		require.NoError(t, err)
		return string(text)
	}
	file := func(format string) string { return filepath.Join(v.Target, "db."+format) }
	psql := []string{"psql", "-X", "-w", "-A", "-t", "-c", "SELECT session_user"}
	server := []string{"PGHOST=" + host, "PGPORT=" + port, "PGDATABASE=postgres", "PGUSER=" + user}
	require.Equal(t, user+"\n", output(t, append(server, "PGPASSFILE="+file("pgpass")), psql[0], psql[1:]...))
	require.Equal(t, user+"\n", output(t, nil, psql[0], append(psql[1:], "-d", read("uri"))...))
	require.Equal(t, user+"\n", output(t, server, "sh", append([]string{"-c", `. "$0"; PGPASSWORD=$password exec "$@"`, file("env")}, psql...)...))
	require.Contains(t, output(t, nil, "my_print_defaults", "--defaults-file="+file("my-cnf"), "client"), "\n--password="+password+"\n")
}
