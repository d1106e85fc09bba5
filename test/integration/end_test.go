package integration

import (
	"context"
	"encoding/json"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tenure-csi/tenure/test/fixture"
)

// TestPodsEnd deletes a pod with two volumes beside one that stays.
func TestPodsEnd(t *testing.T) {
	t.Parallel()
	s := newSite(t, fixture.ScopeOptions{})
	pod := newPod()
	for range 2 {
		mount(t, s.volumeOf(t, pod, s.SPC(list(s.db("db")))))
	}
	stays := s.mounted(t, s.db("db"))
	s.requireHeld(t, 3, 3)

	require.NoError(t, s.node.DeletePod(pod))
	deleted := time.Now()
	require.NoError(t, fixture.Eventually(within(t, time.Minute), 1, s.Users), "without the two minutes that an unmounted volume is given")
	figures.note(t, "pod's end: database users gone %v after the pod's directory", time.Since(deleted).Round(time.Millisecond))
	s.requireHeld(t, 1, 1)
	values := service(read(t, stays, "db"))
	require.NoError(t, stack.Postgres.Login(t.Context(), values["user"], values["password"]), "the other pod's credential lives")
	require.NoError(t, fixture.Eventually(within(t, time.Minute), 1, func(ctx context.Context) (int, error) {
		text, err := s.daemon.Status(ctx)
		var all []any
		if err == nil {
			err = json.Unmarshal(text, &all)
		}
		return len(all), err
	}), "volumes known")
	s.requireAsked(t, 3, 3)
}
