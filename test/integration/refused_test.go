package integration

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tenure-csi/tenure/test/fixture"
)

// TestRefusedSpecsReachNobody mounts every SPC that the parser's tests refuse: each
// answer names what is wrong, and a Vault that nobody else uses is asked nothing.
func TestRefusedSpecsReachNobody(t *testing.T) {
	t.Parallel()
	vault, err := fixture.StartVault(t.Context(), fixture.VaultOptions{})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, vault.Stop()) })
	s := &site{Scope: fixture.Scoped(t, &fixture.Stack{Vault: vault, Postgres: stack.Postgres, Issuer: stack.Issuer}, fixture.ScopeOptions{})}
	s.node = fixture.NodeFor(t, fixture.NodeOptions{Issuer: stack.Issuer, Mounts: os.Getuid() == 0})
	s.daemon = fixture.DaemonFor(t, fixture.DaemonOptions{Node: s.node, VaultAddr: vault.Addr})
	s.mountAndEnd(t)
	asked, err := vault.AuditCount(s.Creds, "read")
	require.NoError(t, err)
	require.Equal(t, 1, asked, "what is not refused is seen")

	before, err := vault.Audit()
	require.NoError(t, err)
	root, err := fixture.Root()
	require.NoError(t, err)
	files, err := filepath.Glob(filepath.Join(root, "provider/testdata/*.inputs"))
	require.NoError(t, err)
	count := 0
	for _, file := range files {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		for line := range strings.Lines(string(text)) {
			name, attributes, ok := strings.Cut(line, ": {")
			require.True(t, ok, line)
			var more map[string]string
			require.NoError(t, json.Unmarshal([]byte("{"+attributes), &more), name)
			s.requireRefused(t, name, more)
			count++
		}
	}
	require.Greater(t, count, 200)
	after, err := vault.Audit()
	require.NoError(t, err)
	require.Len(t, after, len(before), "requests to Vault")
}

// mountAndEnd has a volume come and go; the daemon has nothing to ask afterwards.
func (s *site) mountAndEnd(t *testing.T) {
	t.Helper()
	v := s.mounted(t, s.db("db"))
	require.NoError(t, s.node.DeletePod(v.Pod))
	s.requireHeld(t, 0, 0)
	require.NoError(t, fixture.Eventually(within(t, 2*time.Minute), "[]", func(ctx context.Context) (string, error) {
		text, err := s.daemon.Status(ctx)
		return strings.TrimSpace(string(text)), err
	}), "the volume's end")
}

// requireRefused mounts an SPC with more parameters, where "-" takes one away.
func (s *site) requireRefused(t *testing.T, name string, more map[string]string) {
	t.Helper()
	v := s.volume(t, s.db("db"))
	for key, value := range more {
		if v.Attributes[key] = value; value == "-" {
			delete(v.Attributes, key)
		}
	}
	_, err := v.Mount(t.Context())
	require.Equal(t, codes.InvalidArgument, status.Code(err), "%s: %v", name, err)
	require.Regexp(t, `(object|field) "`, err.Error(), name)
	left, err := os.ReadDir(v.Target)
	require.True(t, os.IsNotExist(err) || len(left) == 0, name)
	require.NoError(t, s.node.DeletePod(v.Pod))
}
