package consumers

import (
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tenure-csi/tenure/provider"
)

const whoAmI = "SELECT CONCAT(USER(), '\n', DATABASE())"

func TestMariaDBLogsIn(t *testing.T) {
	require.NoError(t, maria.CreateDatabase(t.Context(), database))
	o := with("my-cnf", maria.Addr, database)
	o.Connection.Params = map[string]string{"connect-timeout": "10", "default-character-set": "utf8mb4"}
	for _, password := range append(oneLine, edges...) {
		require.NoError(t, maria.SetUser(t.Context(), user, password))
		path := written(t, o, login(user, password))
		cmd := program(t, nil, "mariadb", "--defaults-file="+path, "--batch", "--raw", "--skip-column-names", "-e", whoAmI)
		require.Equal(t, user+"@127.0.0.1\n"+database+"\n", output(t, cmd), "%q", password)
		want := "--host=127.0.0.1\n--port=" + strconv.Itoa(o.Connection.Port) + "\n--database=" + database + "\n--user=" + user + "\n--password=" + password +
			"\n--connect-timeout=10\n--default-character-set=utf8mb4\n"
		require.Equal(t, want, output(t, program(t, nil, "my_print_defaults", "--defaults-file="+path, "client")))
	}
}

func TestMariaDBNeedsThePassword(t *testing.T) {
	require.NoError(t, maria.SetUser(t.Context(), user, "right"))
	path := written(t, with("my-cnf", maria.Addr, ""), login(user, "wrong"))
	out, err := program(t, nil, "mariadb", "--defaults-file="+path, "-e", whoAmI).CombinedOutput()
	require.Error(t, err)
	require.Contains(t, string(out), "Access denied")
}

// The longest line is read whole; what is longer is refused, and rightly.
func TestOptionFileLongestLine(t *testing.T) {
	o := provider.Object{Name: "my.cnf", Format: "my-cnf", Mode: 0o600}
	longest := strings.Repeat("p", 4093-len(`password=""`))
	printed := func(path string) string {
		return output(t, program(t, nil, "my_print_defaults", "--defaults-file="+path, "client"))
	}
	require.Equal(t, "--user=u\n--password="+longest+"\n", printed(written(t, o, login("u", longest))))
	require.True(t, refused(t, o, "u", longest+"p"))
	path := written(t, o, login("u", "p"))
	require.NoError(t, os.WriteFile(path, []byte("[client]\npassword=\""+longest+"pp\"\n"), 0o600))
	require.False(t, strings.HasPrefix(printed(path), "--password="+longest+"pp\n"), "a longer line is torn")
}

// This is why the format refuses such permissions.
func TestMariaDBIgnoresWritableOptionFile(t *testing.T) {
	o := provider.Object{Name: "my.cnf", Format: "my-cnf", Mode: 0o666}
	require.True(t, modeRefused(o))
	o.Mode = 0o644
	path := written(t, o, login("u", "p"))
	require.NoError(t, os.Chmod(path, 0o666))
	out, _ := program(t, nil, "my_print_defaults", "--defaults-file="+path, "client").CombinedOutput()
	require.Contains(t, string(out), "World-writable config file")
	require.NotContains(t, string(out), "--password")
}
