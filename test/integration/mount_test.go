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

// TestManyMountsAtOnce sends 50 Mounts of one volume while a network holds back what
// PostgreSQL answers; the callers of five give up when the user is being made.
func TestManyMountsAtOnce(t *testing.T) {
	t.Parallel()
	proxy := fixture.ProxyFor(t, stack.Postgres.Addr)
	s := newSite(t, fixture.ScopeOptions{PostgresAddr: proxy.Addr()})
	proxy.Set(fixture.Fault{Delay: time.Hour}) // until it is let go of
	v := s.volume(t, s.db("db"))
	require.NoError(t, os.MkdirAll(v.Target, 0o750))
	require.NoError(t, os.Chmod(v.Target, 0o777|fs.ModeSticky))
	w := s.wire(t, v)

	impatient, giveUp := context.WithCancel(t.Context())
	defer giveUp()
	send := func(ctx context.Context, n int) <-chan answer {
		answers := make(chan answer, n)
		for range n {
			go func() {
				versions, err := w.send(ctx)
				answers <- answer{versions, err}
			}()
		}
		return answers
	}
	first, lost := send(t.Context(), 20), send(impatient, 5)
	require.NoError(t, fixture.Eventually(within(t, time.Minute), 1, func(context.Context) (int, error) { return s.Logins() }))
	giveUp()
	for range 5 {
		require.Equal(t, codes.Canceled, status.Code((<-lost).err))
	}
	second := send(t.Context(), 25)
	proxy.Set(fixture.Fault{})
	var versions map[string]string
	for answers, n := range map[<-chan answer]int{first: 20, second: 25} {
		for range n {
			a := <-answers
			require.NoError(t, a.err)
			if versions == nil {
				versions = a.versions
			}
			require.Equal(t, versions, a.versions)
		}
	}
	require.NotEmpty(t, versions)
	s.requireAsked(t, 1, 1)
	s.requireHeld(t, 1, 1)
}

type answer struct {
	versions map[string]string
	err      error
}
