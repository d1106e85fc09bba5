package aws

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tenure-csi/tenure/test/fixture"
)

// TestPoolOfTwoHundredSessions mounts 200 tenants with a session each into one volume
// and looks how their replacements are asked for. The front gives sessions of two
// minutes, which are replaced by 48 seconds, in place of an hour's by 36 minutes.
func TestPoolOfTwoHundredSessions(t *testing.T) {
	const tenants, turn = 200, 48 * time.Second
	cloud.EndSessionsAfter(2 * time.Minute)
	t.Cleanup(func() { cloud.EndSessionsAfter(0) })
	var names []string
	for i := range tenants {
		names = append(names, fmt.Sprintf("t-%03d", i))
	}
	p := newPool(t, strings.Replace(poolRules, "[acme, globex]", "["+strings.Join(names, ", ")+"]", 1))
	idle, asked := fixture.RSS(t, p.daemon.Pid()), cloud.Asked("AssumeRole")
	v := p.of(t, "shop", "['*']", byNode, nil)
	begin := time.Now()
	_, err := v.Mount(t.Context())
	require.NoError(t, err)
	took := time.Since(begin)
	require.Equal(t, tenants, cloud.Asked("AssumeRole")-asked, "one session a tenant")
	t.Logf("measured: %d sessions mounted in %v by %d calls; the daemon holds %.0f MiB, idle %.0f",
		tenants, took.Round(time.Millisecond), tenants, fixture.RSS(t, p.daemon.Pid()), idle)
	first := map[string]string{}
	for _, name := range names {
		first[name] = keysIn(t, v, name+"/aws").ID
	}

	const parts = 6
	var calls []int
	for range parts {
		was := cloud.Asked("AssumeRole")
		time.Sleep(turn / parts) // the time that is measured, not one that is waited for
		calls = append(calls, cloud.Asked("AssumeRole")-was)
	}
	t.Logf("measured: asked for again in each %v: %v; the daemon holds %.0f MiB", turn/parts, calls, fixture.RSS(t, p.daemon.Pid()))
	require.Less(t, slices.Max(calls), 3*tenants/4, "not all at once")
	require.NoError(t, fixture.Eventually(within(t, time.Minute), 0, func(context.Context) (int, error) {
		left := slices.DeleteFunc(slices.Clone(names), func(name string) bool { return keysIn(t, v, name+"/aws").ID != first[name] })
		return len(left), nil
	}), "each was replaced")
	for _, i := range []int{0, 99, 199} {
		keysIn(t, v, names[i]+"/aws").confined(t, names[i], names[(i+1)%tenants])
	}
}
