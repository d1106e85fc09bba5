package integration

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tenure-csi/tenure/test/fixture"
)

// TestVolumeBudget fills a namespace's half of a small budget, before and after a
// restart, until a pod ends.
func TestVolumeBudget(t *testing.T) {
	t.Parallel()
	s := newSite(t, fixture.ScopeOptions{}, "--volume-budget=8Mi")
	require.NoError(t, stack.Vault.WriteKV1(t.Context(), s.KV, "large", map[string]any{"v": strings.Repeat("v", 900<<10)}))
	object := "{objectName: large, secretPath: " + s.KV + "/large, secretKey: v}"
	first := s.mounted(t, object)
	live := []*fixture.Volume{first, s.mounted(t, object), s.mounted(t, object), s.mounted(t, object)}

	late := s.volume(t, object)
	refused := func() {
		_, err := late.Mount(t.Context())
		require.Equal(t, codes.FailedPrecondition, status.Code(err), "final, and got %v", err)
		require.ErrorContains(t, err, "resource exhausted: the files of namespace shop on this node would take 4608000 bytes of memory, and one namespace may have 4194304")
		require.ErrorContains(t, err, "--volume-budget")
	}
	refused()
	require.NoError(t, s.daemon.Kill())
	require.NoError(t, s.daemon.Restart(t.Context()))
	refused()
	for _, v := range live {
		mount(t, v)
	}
	require.NoError(t, s.node.DeletePod(first.Pod))
	require.NoError(t, fixture.Eventually(within(t, 2*time.Minute), codes.OK, func(ctx context.Context) (codes.Code, error) {
		_, err := late.Mount(ctx)
		return status.Code(err), nil
	}))
	require.Len(t, read(t, late, "large"), 900<<10)
}
