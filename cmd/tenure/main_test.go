package main

import (
	"bytes"
	"context"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

var update = flag.Bool("update", false, "write golden files anew")

// asTenure makes this test binary behave as tenure itself.
const asTenure = "TENURE_TEST_AS_TENURE"

func TestMain(m *testing.M) {
	if os.Getenv(asTenure) != "" {
		main()
	}
	goleak.VerifyTestMain(m)
}

// tenure is the program with its own environment. It dies with the test.
func tenure(t *testing.T, env []string, args ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	require.NoError(t, err)
	cmd := exec.CommandContext(t.Context(), self, args...)
	cmd.Env = append([]string{asTenure + "=1"}, env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

// golden compares with testdata/name, or writes it with -update.
func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		require.NoError(t, os.WriteFile(path, got, 0o644))
	}
	want, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, string(want), string(got))
}

func TestCommandLines(t *testing.T) {
	unknown := "tenure: unknown command \"frob\"\n\n" + usage
	for _, row := range []struct {
		name           string
		args           []string
		code           int
		stdout, stderr string
	}{
		{"nothing", nil, 2, "", usage},
		{"help", []string{"help"}, 0, usage, ""},
		{"--help", []string{"--help"}, 0, usage, ""},
		{"unknown command", []string{"frob"}, 2, "", unknown},
		{"version", []string{"version"}, 0, "tenure 1.2.3\n", ""},
		{"unknown flag", []string{"serve", "--prot=1"}, 2, "", "tenure serve: flag provided but not defined: -prot\nTry: tenure serve --help\n"},
		{"argument", []string{"serve", "now"}, 2, "", "tenure serve: unexpected argument \"now\"\nTry: tenure serve --help\n"},
		{"unknown output", []string{"status", "-o", "xml"}, 2, "", "tenure status: -o \"xml\" is not known; use table or json\nTry: tenure status --help\n"},
		{"nothing to validate", []string{"validate"}, 2, "", "tenure validate: -f is missing: name a file, a directory, or - for standard input\nTry: tenure validate --help\n"},
		{"no such file", []string{"validate", "-f", "none.yaml"}, 2, "", "tenure validate: stat none.yaml: no such file or directory\nTry: tenure validate --help\n"},
		{"unknown output of validate", []string{"validate", "-f=.", "-o=xml"}, 2, "", "tenure validate: -o \"xml\" is not known; use text or json\nTry: tenure validate --help\n"},
		{
			"no daemon",
			[]string{"status", "--status-socket=/nonexistent/s.sock"},
			1, "", "tenure status: asking for the status: dial unix /nonexistent/s.sock: connect: no such file or directory; no daemon serves this socket: name its --status-socket\n",
		},
	} {
		t.Run(row.name, func(t *testing.T) {
			setVersion(t, "1.2.3")
			var stdout, stderr bytes.Buffer
			require.Equal(t, row.code, command(t.Context(), row.args, &stdout, &stderr))
			require.Equal(t, row.stdout, stdout.String())
			require.Equal(t, row.stderr, stderr.String())
		})
	}
}

func TestFlagsAreAsDocumented(t *testing.T) {
	for _, name := range []string{"serve", "mount", "status", "validate"} {
		var stdout, stderr bytes.Buffer
		require.Zero(t, command(t.Context(), []string{name, "--help"}, &stdout, &stderr))
		require.Empty(t, stderr.String())
		golden(t, name+"-help.golden", stdout.Bytes())
	}
}

func TestVersionWithoutLinkerFlag(t *testing.T) {
	setVersion(t, "")
	require.NotEmpty(t, versionText())
	require.NotEqual(t, "unknown", versionText(), "a binary made by the go command knows its module")
}

func setVersion(t *testing.T, v string) {
	t.Helper()
	old := version
	version = v
	t.Cleanup(func() { version = old })
}

func TestProcessExitCodes(t *testing.T) {
	out, err := tenure(t, nil, "version").Output()
	require.NoError(t, err)
	require.Regexp(t, `^tenure \S+\n$`, string(out))

	var exit *exec.ExitError
	require.ErrorAs(t, tenure(t, nil, "frob").Run(), &exit)
	require.Equal(t, exitUsage, exit.ExitCode())

	out, err = tenure(t, []string{"VAULT_TOKEN=hvs.canary"}, "serve").CombinedOutput()
	require.ErrorAs(t, err, &exit)
	require.Equal(t, exitFailed, exit.ExitCode())
	require.Equal(t, "tenure serve: VAULT_TOKEN is set, but pods log in with their own identity and a token of the daemon's would be used for nobody; unset it\n", string(out))
}

func TestServeLeavesNoVaultVariables(t *testing.T) {
	for _, name := range []string{"VAULT_ADDR", "VAULT_TOKEN", "VAULT_MAX_RETRIES"} {
		t.Setenv(name, "x")
	}
	require.Error(t, serve(context.Background(), nil, nil, nil), "VAULT_TOKEN is refused")
	for _, name := range []string{"VAULT_ADDR", "VAULT_TOKEN", "VAULT_MAX_RETRIES"} {
		_, set := os.LookupEnv(name)
		require.False(t, set, name)
	}
}
