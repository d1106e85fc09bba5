package lease

import (
	"context"
	"errors"
	"os"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tenure-csi/tenure/provider"
)

// cluster is a model of the Kubernetes API as the Manager sees it.
type cluster struct {
	mu       sync.Mutex
	notices  []Notice
	texts    []string
	switches []Switch
	gone     map[string]bool // pod UIDs
	subPaths []string        // of every pod
	asked    []string        // audiences of the tokens that were asked for
	refuse   error           // of those
}

func (c *cluster) Notify(_ provider.Pod, n Notice, text string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.notices, c.texts = append(c.notices, n), append(c.texts, text)
}

func (c *cluster) Switched(s Switch) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.switches = append(c.switches, s)
}

func (c *cluster) Gone(p provider.Pod) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.gone[p.UID]
}

func (c *cluster) SubPaths(provider.Pod, string) []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.subPaths
}

func (c *cluster) Token(_ context.Context, _ provider.Pod, audience string) (provider.Token, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.asked = append(c.asked, audience)
	return provider.Token{Value: "jwt", Expires: time.Now().Add(10 * time.Minute)}, c.refuse
}

// told takes the notices since it was last called.
func (c *cluster) told() (ns []Notice) {
	c.mu.Lock()
	defer c.mu.Unlock()
	ns, c.notices = c.notices, nil
	return ns
}

func (c *cluster) text() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.texts[len(c.texts)-1]
}

// clusterScene is a scene on a node whose daemon may use the Kubernetes API.
func clusterScene(t *testing.T, f func(t *testing.T, n *node, c *cluster)) {
	scene(t, func(t *testing.T, n *node) {
		c := &cluster{gone: map[string]bool{}}
		n.stop()
		n.cluster = Cluster{Events: c, Statuses: c, Pods: c, Identities: c}
		n.start(0)
		f(t, n, c)
	})
}

func TestNoticesOfABackendThatStaysAway(t *testing.T) {
	clusterScene(t, func(t *testing.T, n *node, c *cluster) {
		p := n.withOrders(time.Hour, 24*time.Hour)
		require.NoError(t, p.mount())
		n.backend.set(func(string, string) error { return errDown })
		l := p.lease()
		half := l.Due.Add(l.Expires.Sub(l.Due) / 2)
		pause(time.Until(half) - time.Second)
		require.Empty(t, c.told(), "half of what was left is not over")
		requireGauges(t, n, 0, 0)
		pause(time.Second)
		require.Equal(t, []Notice{NoticeFailing}, c.told())
		requireGauges(t, n, 1, 0)
		require.Equal(t, `"db-user", "db-pass": keeping the credential fresh fails; it ends at `+l.Expires.UTC().Format(time.RFC3339)+": connection refused", c.text())
		pause(time.Until(l.Expires) - time.Second)
		require.Empty(t, c.told(), "once is enough")
		pause(time.Second + tick)
		require.Equal(t, []Notice{NoticeExpired}, c.told())
		requireGauges(t, n, 0, 1)
		pause(2 * time.Hour)
		require.Empty(t, c.told())
		n.backend.set(nil)
		pause(20 * time.Minute)
		require.True(t, p.works())
		requireGauges(t, n, 0, 0)
		require.Empty(t, c.told(), "what is well again needs nobody")
		n.backend.set(func(string, string) error { return errDown })
		pause(time.Hour)
		require.Equal(t, []Notice{NoticeFailing, NoticeExpired}, c.told(), "another outage is told again")
	})
}

func requireGauges(t *testing.T, n *node, failing, expired float64) {
	t.Helper()
	require.InDelta(t, failing, gauge(t, n.metrics, "tenure_leases_failing"), 0)
	require.InDelta(t, expired, gauge(t, n.metrics, "tenure_leases_expired"), 0)
}

// TestNoticeOfSubPaths: the watch may show the pod only after its first Mount.
func TestNoticeOfSubPaths(t *testing.T) {
	clusterScene(t, func(t *testing.T, n *node, c *cluster) {
		p := n.withOrders(time.Hour, 24*time.Hour)
		require.NoError(t, p.mount())
		pause(time.Second)
		require.Empty(t, c.told())
		c.mu.Lock()
		c.subPaths = []string{"app", "side"}
		c.mu.Unlock()
		pause(2 * time.Minute)
		require.Equal(t, []Notice{NoticeSubPath}, c.told())
		require.Equal(t, `volume "v" is mounted with subPath in container app, side: Kubernetes never updates such a mount, `+
			"and the credential there ends; mount the volume without subPath and read the file below its mountPath", c.text())
		pause(30 * time.Hour)
		require.NotContains(t, c.told(), NoticeSubPath, "once is enough")
	})
}

func TestNoticesAreInTheirTable(t *testing.T) {
	code, err := os.ReadFile("notice.go")
	require.NoError(t, err)
	docs, err := os.ReadFile("../../docs/kubernetes-permissions.md")
	require.NoError(t, err)
	var named, told []string
	for _, m := range regexp.MustCompile(`Notice = "(\w+)"`).FindAllStringSubmatch(string(code), -1) {
		named = append(named, m[1])
	}
	_, table, _ := strings.Cut(string(docs), "| reason | when |")
	for _, m := range regexp.MustCompile("(?m)^\\| `(\\w+)`").FindAllStringSubmatch(table, -1) {
		told = append(told, m[1])
	}
	require.NotEmpty(t, named)
	require.ElementsMatch(t, named, told)
}

func TestNoticeOfLooksThatFail(t *testing.T) {
	clusterScene(t, func(t *testing.T, n *node, c *cluster) {
		n.backend.roles["secret/data/a"] = role{kind: Polled}
		p := n.pod("p", kv("kv", "secret/data/a"))
		require.NoError(t, p.mount())
		n.backend.set(func(op, _ string) error {
			if op == "read" {
				return errDenied
			}
			return nil
		})
		pause(time.Hour)
		require.Equal(t, []Notice{NoticeFailing}, c.told())
		require.Equal(t, `"kv": looking for a new value fails, the old one stays: permission denied`, c.text())
	})
}

func TestNoticeOfAnEditThatFails(t *testing.T) {
	clusterScene(t, func(t *testing.T, n *node, c *cluster) {
		p := n.withOrders(time.Hour, 24*time.Hour)
		require.NoError(t, p.mount())
		good := p.objects
		p.objects = strings.ReplaceAll(good, "objectName", "objectNome")
		for range 3 {
			require.NoError(t, p.mount())
			pause(time.Minute)
		}
		require.Equal(t, []Notice{NoticeChange}, c.told())
		p.objects = good
		require.NoError(t, p.mount())
		p.objects = good + kv("kv", "secret/data/nothing")
		require.NoError(t, p.mount())
		pause(10 * time.Second)
		require.Equal(t, []Notice{NoticeChange}, c.told(), "another edit is another condition")
	})
}

func TestNoticeOfTokensThatCannotBeRevoked(t *testing.T) {
	clusterScene(t, func(t *testing.T, n *node, c *cluster) {
		p := n.withOrders(time.Hour, 24*time.Hour)
		n.backend.batch = true
		require.NoError(t, p.mount())
		require.Equal(t, []Notice{NoticeToken}, c.told())
	})
}

func TestNoticeOfTokensThatMayNotRenew(t *testing.T) {
	for _, op := range []string{"renew", "renew-token"} {
		t.Run(op, func(t *testing.T) {
			clusterScene(t, func(t *testing.T, n *node, c *cluster) {
				p := n.withOrders(time.Hour, 24*time.Hour)
				n.backend.set(func(called, _ string) error {
					if called == op {
						return errDenied
					}
					return nil
				})
				require.NoError(t, p.mount())
				pause(45 * time.Minute)
				require.Equal(t, []Notice{NoticeToken}, c.told())
				require.Contains(t, c.text(), "permission denied")
			})
		})
	}
}

func TestNoticeOfAMissingIdentityComesInTime(t *testing.T) {
	clusterScene(t, func(t *testing.T, n *node, c *cluster) {
		n.stop()
		n.cluster.Identities = nil
		n.start(0)
		n.backend.auth = role{ttl: time.Hour, max: time.Hour}
		p := n.withOrders(time.Hour, time.Hour)
		p.expires = time.Now().Add(10 * time.Minute)
		require.NoError(t, p.mount())
		pause(time.Until(p.lease().Expires.Add(-10 * time.Minute)))
		require.Equal(t, []Notice{NoticeIdentity}, c.told())
		pause(time.Hour)
		require.Equal(t, []Notice{NoticeExpired}, c.told())
	})
}

func TestDeletedPodsVolumeEndsWithoutTheWait(t *testing.T) {
	clusterScene(t, func(t *testing.T, n *node, c *cluster) {
		p := n.withOrders(time.Hour, 24*time.Hour)
		require.NoError(t, p.mount())
		c.mu.Lock()
		c.gone[p.name] = true
		c.mu.Unlock()
		pause(10 * time.Second)
		require.True(t, p.works(), "a forced deletion: the containers run on, and the volume is mounted")
		n.mu.Lock()
		n.mounts[p.target].present = false
		n.mu.Unlock()
		pause(3 * time.Second)
		require.Zero(t, n.backend.count())
		require.Empty(t, n.m.Status())
	})
}

func TestUnknownPodKeepsItsVolume(t *testing.T) {
	clusterScene(t, func(t *testing.T, n *node, _ *cluster) {
		p := n.withOrders(time.Hour, 24*time.Hour)
		require.NoError(t, p.mount())
		n.mu.Lock()
		n.mounts[p.target].present = false // the driver unmounts after a failure of its own
		n.mu.Unlock()
		pause(time.Hour)
		require.Equal(t, 1, n.backend.count(), "nothing says that the pod is gone")
	})
}

// edit is the SPC edited while the pod runs.
func (p *pod) edit(objects string) Edit {
	p.objects = objects
	return Edit{PodUID: p.name, Volume: "v", Provider: "tenure", Parameters: map[string]string{"roleName": "r", "objects": objects}}
}

func TestEditedSPCReachesTheVolumeWithoutAMount(t *testing.T) {
	clusterScene(t, func(t *testing.T, n *node, c *cluster) {
		n.backend.roles["secret/data/a"] = role{kind: Polled}
		p := n.withOrders(time.Hour, 24*time.Hour)
		before := p.objects
		require.False(t, n.m.Edit(p.edit(before)), "a volume that was never mounted: its Mount brings the SPC")
		require.NoError(t, p.mount())
		require.True(t, n.m.Edit(p.edit(before)))
		pause(time.Minute)
		require.Equal(t, 1, n.swaps(), "nothing has changed")
		require.Empty(t, c.switches, "a Mount's answer tells the driver itself")

		require.True(t, n.m.Edit(p.edit(before+kv("kv", "secret/data/a"))))
		pause(time.Second)
		require.Len(t, p.files(), 3)
		require.Equal(t, 2, n.swaps())
		require.Equal(t, 1, n.backend.minted("p "+orders), "what did not change is carried over")
		require.Len(t, c.switches, 1)
		require.Equal(t, p.target, c.switches[0].Target)
		require.Len(t, c.switches[0].Versions, 3)

		require.True(t, n.m.Edit(Edit{PodUID: "p", Volume: "v", Provider: "other", Parameters: map[string]string{"x": "y"}}))
		require.False(t, n.m.Edit(Edit{PodUID: "p", Volume: "w", Provider: "tenure"}))
		require.False(t, n.m.Edit(Edit{PodUID: "q", Volume: "v", Provider: "tenure"}))
		pause(time.Minute)
		require.Equal(t, 2, n.swaps())
		require.Empty(t, c.told())
	})
}

func TestEditThatFailsIsTriedAgainAndCanBeTakenBack(t *testing.T) {
	clusterScene(t, func(t *testing.T, n *node, c *cluster) {
		p := n.withOrders(time.Hour, 24*time.Hour)
		require.NoError(t, p.mount())
		before := p.objects
		after := before + kv("kv", "secret/data/a")
		require.True(t, n.m.Edit(p.edit(after)))
		pause(time.Minute)
		require.Equal(t, []Notice{NoticeChange}, c.told())
		require.Contains(t, p.status().Problem, "not carried out")
		require.True(t, n.m.Edit(p.edit(before)))
		pause(time.Minute)
		require.Empty(t, p.status().Problem)
		require.Len(t, p.files(), 2)
		require.True(t, n.m.Edit(p.edit(after)))
		n.backend.mu.Lock()
		n.backend.roles["secret/data/a"] = role{kind: Polled}
		n.backend.mu.Unlock()
		pause(time.Minute)
		require.Len(t, p.files(), 3)
	})
}

// TestNewerEditIsNotLost: a second edit comes while the first is being carried out.
func TestNewerEditIsNotLost(t *testing.T) {
	for _, row := range []struct {
		name  string
		fails bool
	}{{"the first succeeds", false}, {"the first fails", true}} {
		t.Run(row.name, func(t *testing.T) {
			clusterScene(t, func(t *testing.T, n *node, _ *cluster) {
				if !row.fails {
					n.backend.roles["secret/data/a"] = role{kind: Polled}
				}
				n.backend.roles["secret/data/b"] = role{kind: Polled}
				p := n.withOrders(time.Hour, 24*time.Hour)
				require.NoError(t, p.mount())
				before := p.objects
				n.backend.lag = time.Second
				require.True(t, n.m.Edit(p.edit(before+kv("a", "secret/data/a"))))
				pause(500 * time.Millisecond)
				require.True(t, n.m.Edit(p.edit(before+kv("b", "secret/data/b"))))
				pause(time.Minute)
				require.Contains(t, p.files(), "b")
				require.NotContains(t, p.files(), "a")
			})
		})
	}
}

func TestFreshTokenReplacesWithoutARepublish(t *testing.T) {
	clusterScene(t, func(t *testing.T, n *node, c *cluster) {
		n.backend.auth = role{ttl: time.Hour, max: time.Hour}
		p := n.withOrders(time.Hour, time.Hour)
		p.expires = time.Now().Add(10 * time.Minute)
		require.NoError(t, p.mount())
		require.Empty(t, c.asked, "a Mount logs in with what it brought")
		for range 300 {
			pause(time.Minute)
			require.True(t, p.works())
			require.Equal(t, Live, p.status().State)
		}
		require.NotEmpty(t, c.asked)
		require.Equal(t, "vault", c.asked[0])

		c.mu.Lock()
		c.refuse = errors.New("forbidden")
		c.mu.Unlock()
		pause(2 * time.Hour)
		require.Equal(t, Expired, p.status().State)
		require.Contains(t, c.told(), NoticeIdentity)
	})
}

// TestFreshTokenIsNotAskedForANewLogin: whoever may edit an SPC must not choose
// the audience of a token that the daemon asks for, or where it is sent.
func TestFreshTokenIsNotAskedForANewLogin(t *testing.T) {
	clusterScene(t, func(t *testing.T, n *node, c *cluster) {
		p := n.withOrders(time.Hour, 24*time.Hour)
		require.NoError(t, p.mount())
		n.backend.set(func(op, _ string) error {
			if op == "login" {
				return broken(provider.Denied, "permission denied", Wrong, false)
			}
			return nil
		})
		e := p.edit(p.objects)
		e.Parameters["audience"] = "https://kubernetes.default.svc"
		require.True(t, n.m.Edit(e))
		pause(time.Minute)
		require.Empty(t, c.asked)
		require.Contains(t, c.told(), NoticeChange)
	})
}
