package consumers

import (
	"fmt"
	"os/exec"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tenure-csi/tenure/provider"
)

// values are all of them by name.
func values() map[string]any {
	data := map[string]any{}
	for i, v := range append(oneLine, edges...) {
		data[fmt.Sprintf("V_%d", i)] = v
	}
	return data
}

// A shell reads the file and exports what it read; the next program has it.
func TestShellExports(t *testing.T) {
	data := values()
	path := written(t, provider.Object{Name: "x", Format: "env"}, data)
	for _, shell := range []string{"sh", "dash", "bash"} {
		if _, err := exec.LookPath(shell); err != nil && shell != "sh" {
			continue // only sh is POSIX's
		}
		got := map[string]any{}
		for entry := range strings.SplitSeq(output(t, program(t, nil, shell, "-euc", `set -a; . "$0"; exec env -0`, path)), "\x00") {
			if name, value, _ := strings.Cut(entry, "="); strings.HasPrefix(name, "V_") {
				got[name] = value
			}
		}
		require.Equal(t, data, got, shell)
	}
}

func TestJQReads(t *testing.T) {
	data := values()
	path := written(t, provider.Object{Name: "x", Format: "json"}, data)
	for name, value := range data {
		require.Equal(t, value, output(t, program(t, nil, "jq", "-j", "--arg", "k", name, ".[$k]", path)), name)
	}
}

// Vault issues; openssl checks that the key is the certificate's and that the
// chain of the same file leads to the issuer.
func TestOpenSSLReads(t *testing.T) {
	require.NoError(t, stack.Vault.EnablePKI(t.Context(), "pki-consumers", "web", "example.com", false))
	for _, form := range []string{"", "pkcs8"} {
		secret, err := stack.Vault.Client().Logical().WriteWithContext(t.Context(), "pki-consumers/issue/web",
			map[string]any{"common_name": "app.example.com", "private_key_format": form})
		require.NoError(t, err)
		path := written(t, provider.Object{Name: "tls.pem", Format: "pem"}, secret.Data)
		openssl := func(args ...string) string { return output(t, program(t, nil, "openssl", args...)) }

		require.Contains(t, openssl("x509", "-in", path, "-noout", "-subject"), "CN = app.example.com")
		require.Contains(t, openssl("pkey", "-in", path, "-noout", "-check"), "Key is valid")
		public := openssl("x509", "-in", path, "-noout", "-pubkey")
		require.Contains(t, public, "BEGIN PUBLIC KEY")
		require.Equal(t, public, openssl("pkey", "-in", path, "-pubout"), "the certificate is the key's")
		issuer := written(t, provider.Object{Name: "ca", Format: "raw", Key: "issuing_ca"}, secret.Data)
		require.Contains(t, openssl("verify", "-CAfile", issuer, "-untrusted", path, path), ": OK")
	}
}
