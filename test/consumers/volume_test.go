package consumers

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tenure-csi/tenure/test/fixture"
)

// application is the user id that the pod's container runs as, where we are root.
const application = 1000

// volume describes a volume of a pod of its own.
func volume(t *testing.T, s *fixture.Scope, objects string) *fixture.Volume {
	t.Helper()
	node := fixture.NodeFor(t, fixture.NodeOptions{Issuer: stack.Issuer, Mounts: os.Getuid() == 0})
	daemon := fixture.DaemonFor(t, fixture.DaemonOptions{Node: node, VaultAddr: stack.Vault.Addr})
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(daemon.Logs())
		}
	})
	pod := fixture.Pod{Namespace: "shop", Name: "app-0", UID: s.Name, ServiceAccount: "app"}
	v, err := node.Volume(pod, "secrets", s.SPC(objects), nil)
	require.NoError(t, err)
	return v
}

// inPod makes cmd the application's: another user, who reaches the volume by a
// handle of its directory, file descriptor 3, because the way there is closed to
// others on this machine.
func inPod(t *testing.T, v *fixture.Volume, cmd *exec.Cmd) *exec.Cmd {
	t.Helper()
	dir, err := os.Open(v.Target)
	require.NoError(t, err)
	t.Cleanup(func() { _ = dir.Close() })
	cmd.ExtraFiles = []*os.File{dir}
	if os.Getuid() == 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: application, Gid: application}}
	}
	return cmd
}

const volumeDir = "/proc/self/fd/3"

// One pod's volume with a file for each reader, written by the daemon for an
// application that is not root, which logs in with each of them.
func TestApplicationReadsItsVolume(t *testing.T) {
	const name, password = "volume's user", `p"a's\s:w#o%r;d $(é) [=]`
	setPassword(t, setUp(t), name, password)
	require.NoError(t, maria.SetUser(t.Context(), name, password))
	scope := fixture.Scoped(t, stack, fixture.ScopeOptions{})
	require.NoError(t, stack.Vault.WriteKV1(t.Context(), scope.KV, "login", login(name, password)))
	owner := ""
	if os.Getuid() == 0 {
		owner = fmt.Sprintf(", owner: %d", application)
	}
	objects := ""
	pg, my := with("", stack.Postgres.Addr, "").Connection, with("", maria.Addr, "").Connection
	for file, format := range map[string]string{
		"pg_service.conf": fmt.Sprintf("pg-service, connection: {host: %s, port: %d, dbname: postgres}", pg.Host, pg.Port),
		"pgpass":          fmt.Sprintf("pgpass, connection: {host: %s, port: %d}", pg.Host, pg.Port),
		"uri":             fmt.Sprintf("uri, connection: {host: %s, port: %d, dbname: postgres}", pg.Host, pg.Port),
		"my.cnf":          fmt.Sprintf("my-cnf, connection: {host: %s, port: %d}", my.Host, my.Port),
		"env":             "env",
		"login.json":      "json",
		"dir":             "keys",
	} {
		objects += fmt.Sprintf("- {objectName: %s, secretPath: %s/login, filePermission: 0600%s, format: %s}\n", file, scope.KV, owner, format)
	}
	v := volume(t, scope, objects)
	_, err := v.Mount(t.Context())
	require.NoError(t, err)

	text, err := v.Read("uri")
	require.NoError(t, err)
	server := []string{"PGHOST=" + pg.Host, fmt.Sprint("PGPORT=", pg.Port), "PGDATABASE=postgres", "PGUSER=" + name}
	for want, cmd := range map[string][]*exec.Cmd{
		name + "\npostgres\n": {
			psql(t, []string{"PGSERVICEFILE=" + filepath.Join(volumeDir, "pg_service.conf"), "PGSERVICE=pg_service"}),
			psql(t, append(server, "PGPASSFILE="+filepath.Join(volumeDir, "pgpass"))),
			psql(t, nil, "-d", string(text)),
		},
		name + "@127.0.0.1\n": {program(t, nil, "mariadb", "--defaults-file="+filepath.Join(volumeDir, "my.cnf"), "-NBr", "-e", "SELECT USER()")},
		name + password: {
			program(t, nil, "sh", "-euc", `. "$0"; printf %s "$username$password"`, filepath.Join(volumeDir, "env")),
			program(t, nil, "jq", "-j", ".username, .password", filepath.Join(volumeDir, "login.json")),
			program(t, nil, "cat", filepath.Join(volumeDir, "dir/username"), filepath.Join(volumeDir, "dir/password")),
		},
	} {
		for _, c := range cmd {
			require.Equal(t, want, output(t, inPod(t, v, c)), "%s", c.Args)
		}
	}
}

// A password file that libpq would ignore is refused before a credential is made.
func TestOpenPasswordFileIsRefusedFirst(t *testing.T) {
	scope := fixture.Scoped(t, stack, fixture.ScopeOptions{})
	v := volume(t, scope, "- {objectName: pgpass, secretPath: "+scope.Creds+", format: pgpass}")
	_, err := v.Mount(t.Context())
	require.ErrorContains(t, err, `object "pgpass", field "filePermission"`)
	require.ErrorContains(t, err, "set filePermission: 0600, and owner")
	logins, err := scope.Logins()
	require.NoError(t, err)
	require.Zero(t, logins)
}
