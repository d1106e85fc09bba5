package integration

import (
	"context"
	"io/fs"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tenure-csi/tenure/test/fixture"
)

// TestLatency measures; it runs before the tests that run side by side.
func TestLatency(t *testing.T) {
	s := newSite(t, fixture.ScopeOptions{})
	var first []time.Duration
	var v *fixture.Volume
	for range 20 {
		v = s.volume(t, s.db("db"))
		start := time.Now()
		mount(t, v)
		first = append(first, time.Since(start))
	}
	figures.note(t, "first mount with one database credential: p50 %v, max %v of %d", quantile(first, 0.5), quantile(first, 1), len(first))

	w := s.wire(t, v)
	want, err := w.send(t.Context())
	require.NoError(t, err)
	var again []time.Duration
	for range 1000 {
		start := time.Now()
		versions, err := w.send(t.Context())
		again = append(again, time.Since(start))
		require.NoError(t, err)
		require.Equal(t, want, versions)
	}
	figures.note(t, "republish over the socket: p50 %v, p99 %v, max %v of %d", quantile(again, 0.5), quantile(again, 0.99), quantile(again, 1), len(again))
	s.requireAsked(t, 20, 20)
}

// TestManyMountsAtOnce sends 50 Mounts of one volume, 25 at once, while a
// network delays Vault; the callers of five give up when the login is on its way.
func TestManyMountsAtOnce(t *testing.T) {
	t.Parallel()
	proxy := fixture.ProxyFor(t, stack.Vault.Addr)
	proxy.Set(fixture.Fault{Delay: 500 * time.Millisecond})
	s := siteAt(t, proxy.URL(), fixture.ScopeOptions{})
	v := s.volume(t, s.db("db"))
	require.NoError(t, os.MkdirAll(v.Target, 0o750))
	require.NoError(t, os.Chmod(v.Target, 0o777|fs.ModeSticky))
	w := s.wire(t, v)

	impatient, giveUp := context.WithCancel(t.Context())
	defer giveUp()
	answers := make(chan answer, 50)
	send := func(ctx context.Context, n int) {
		for range n {
			go func() {
				versions, err := w.send(ctx)
				answers <- answer{versions, err}
			}()
		}
	}
	send(t.Context(), 20)
	send(impatient, 5)
	require.NoError(t, fixture.Eventually(within(t, 10*time.Second), 1, func(context.Context) (int, error) { return s.Logins() }))
	giveUp()
	send(t.Context(), 25)
	cancelled := 0
	var versions map[string]string
	for range 50 {
		a := <-answers
		if status.Code(a.err) == codes.Canceled {
			cancelled++
			continue
		}
		require.NoError(t, a.err)
		if versions == nil {
			versions = a.versions
		}
		require.Equal(t, versions, a.versions)
	}
	require.Equal(t, 5, cancelled)
	require.NotEmpty(t, versions)
	s.requireAsked(t, 1, 1)
	s.requireHeld(t, 1, 1)
}

type answer struct {
	versions map[string]string
	err      error
}
