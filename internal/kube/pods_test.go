package kube

import (
	"context"
	"errors"
	"net/http"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic/fake"
	clienttest "k8s.io/client-go/testing"
	"k8s.io/client-go/tools/cache"
)

// pods runs the pods of node n1 until the test ends.
func pods(t *testing.T, client *fake.FakeDynamicClient) *Pods {
	ctx, cancel := context.WithCancel(t.Context())
	p := NewPods(ctx, client, "n1", quiet())
	running(t, cancel, p.Run)
	return p
}

// settled asks until the API server has answered, and returns what Gone says then.
func settled(t *testing.T, p *Pods, uid string) bool {
	t.Helper()
	of := orders
	of.UID = uid
	p.Gone(of)
	soon(t, "an answer of the API server", func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		a, known := p.answers[uid]
		return known && (a.gone || a.until.Sub(metav1.Now().Time) > callTimeout)
	})
	return p.Gone(of)
}

func synced(t *testing.T, p *Pods) { soon(t, "the pods", p.follow.HasSynced) }

func TestDeletedPodIsGone(t *testing.T) {
	client := api(apiPod("uid-1"))
	p := pods(t, client)
	require.False(t, p.Gone(orders), "nothing is known before the first list")
	synced(t, p)
	watched(t, client, podResource)
	require.False(t, p.Gone(orders))
	require.NoError(t, client.Resource(podResource).Namespace("shop").Delete(t.Context(), "orders-0", metav1.DeleteOptions{}))
	soon(t, "the deletion", func() bool { return p.Gone(orders) })
}

// TestPodOfTheSameNameIsAnother: a StatefulSet makes its pods anew under the same name.
func TestPodOfTheSameNameIsAnother(t *testing.T) {
	p := pods(t, api(apiPod("uid-2")))
	synced(t, p)
	require.True(t, settled(t, p, "uid-1"))
	require.False(t, p.Gone(withUID("uid-2")))
}

// TestStaticPodIsKnownByItsMirror: kubelet has another UID for it than the API.
func TestStaticPodIsKnownByItsMirror(t *testing.T) {
	mirror := apiPod("uid-of-the-mirror")
	mirror.SetAnnotations(map[string]string{mirrorKey: "0123456789abcdef"})
	client := api(mirror)
	p := pods(t, client)
	synced(t, p)
	require.False(t, p.Gone(withUID("0123456789abcdef")))
	require.Empty(t, p.answers, "the watch shows it, nobody else is asked")
}

// TestWatchThatLacksAPodProvesNothing: it lags, or --node-name is another node's.
func TestWatchThatLacksAPodProvesNothing(t *testing.T) {
	client := api(apiPod("uid-1"))
	client.PrependReactor("list", "pods", func(clienttest.Action) (bool, runtime.Object, error) {
		return true, &unstructured.UnstructuredList{Object: map[string]any{"apiVersion": "v1", "kind": "PodList", "metadata": map[string]any{"resourceVersion": "1"}}}, nil
	})
	client.PrependWatchReactor("pods", clienttest.DefaultWatchReactor(watch.NewFake(), nil))
	p := pods(t, client)
	synced(t, p)
	require.Empty(t, p.store.List())
	require.False(t, settled(t, p, "uid-1"))
}

func TestUnansweredQuestionProvesNothing(t *testing.T) {
	gone := apierrors.NewNotFound(podResource.GroupResource(), orders.Name)
	for _, row := range []struct {
		name string
		err  error
		gone bool
	}{
		{"connection refused", errors.New("connection refused"), false},
		{"forbidden", apierrors.NewForbidden(podResource.GroupResource(), orders.Name, nil), false},
		{"another server's 404", apierrors.NewGenericServerResponse(http.StatusNotFound, "GET", podResource.GroupResource(), orders.Name, "page not found", 0, true), false},
		{"not found", gone, true},
	} {
		t.Run(row.name, func(t *testing.T) {
			client := api()
			client.PrependReactor("get", "pods", func(clienttest.Action) (bool, runtime.Object, error) { return true, nil, row.err })
			p := pods(t, client)
			synced(t, p)
			require.Equal(t, row.gone, settled(t, p, "uid-1"))
		})
	}
}

// TestUnsyncedProvesNothing: lists fail, as without permission.
func TestUnsyncedProvesNothing(t *testing.T) {
	client := api()
	var lists, gets atomic.Int32
	client.PrependReactor("list", "pods", func(clienttest.Action) (bool, runtime.Object, error) {
		lists.Add(1)
		return true, nil, apierrors.NewForbidden(podResource.GroupResource(), "", nil)
	})
	client.PrependReactor("get", "pods", func(clienttest.Action) (bool, runtime.Object, error) {
		gets.Add(1)
		return false, nil, nil
	})
	p := pods(t, client)
	soon(t, "a list", func() bool { return lists.Load() > 0 })
	require.False(t, p.Gone(orders))
	require.Zero(t, gets.Load())
}

// TestMissedDeletion: the watch breaks, and the pod is deleted before the next list;
// the store learns of it by a tombstone.
func TestMissedDeletion(t *testing.T) {
	client := api(apiPod("uid-1"))
	broken := watch.NewFake()
	var watches atomic.Int32
	client.PrependWatchReactor("pods", func(clienttest.Action) (bool, watch.Interface, error) {
		return watches.Add(1) == 1, broken, nil
	})
	p := pods(t, client)
	synced(t, p)
	watched(t, client, podResource)
	require.NoError(t, client.Resource(podResource).Namespace("shop").Delete(t.Context(), "orders-0", metav1.DeleteOptions{}))
	require.False(t, p.Gone(orders), "the watch has not said so")
	broken.Error(&apierrors.NewResourceExpired("too old").ErrStatus)
	soon(t, "the next list", func() bool { return p.Gone(orders) })
}

func TestOnePodIsAskedForOnce(t *testing.T) {
	client := api(apiPod("uid-1"))
	var gets atomic.Int32
	client.PrependReactor("get", "pods", func(clienttest.Action) (bool, runtime.Object, error) {
		gets.Add(1)
		return false, nil, nil
	})
	p := pods(t, client)
	synced(t, p)
	require.True(t, settled(t, p, "uid-0"))
	for range 100 {
		require.True(t, p.Gone(withUID("uid-0")))
	}
	require.EqualValues(t, 1, gets.Load())
}

func TestWhatIsKeptOfAPod(t *testing.T) {
	kept, err := trimPod(apiPod("uid-1"))
	require.NoError(t, err)
	p := kept.(*pod)
	require.Equal(t, metav1.ObjectMeta{Name: "orders-0", Namespace: "shop", UID: "uid-1"}, p.ObjectMeta)
	require.Len(t, p.Spec.Volumes, 1)
	require.Equal(t, "db", p.Spec.Volumes[0].Name)
	tombstone := cache.DeletedFinalStateUnknown{Key: "shop/orders-0", Obj: p}
	same, err := trimPod(tombstone)
	require.NoError(t, err)
	require.Equal(t, tombstone, same)
}

// TestSubPathsOfAPod: kubelet binds such a mount to one file, and never again.
func TestSubPathsOfAPod(t *testing.T) {
	of := apiPod("uid-1")
	mount := func(volume, key, value string) any {
		return map[string]any{"name": volume, "mountPath": "/x", key: value}
	}
	runs := func(name, restarts string, mounts ...any) any {
		return map[string]any{"name": name, "image": "x", "restartPolicy": restarts, "volumeMounts": mounts}
	}
	spec := of.Object["spec"].(map[string]any)
	spec["initContainers"] = []any{
		runs("migrate", "", mount("db", "subPath", "user")), runs("proxy", "Always", mount("db", "subPath", "user")),
	}
	spec["containers"] = []any{
		runs("app", "", mount("tmp", "subPath", "a"), mount("db", "mountPropagation", "None")),
		runs("by-name", "", mount("db", "mountPropagation", "None"), mount("db", "subPath", "user")),
		runs("by-variable", "", mount("db", "subPathExpr", "$(NAME)")),
	}
	p := pods(t, api(of))
	synced(t, p)
	require.Equal(t, []string{"by-name", "by-variable", "proxy"}, p.SubPaths(orders, "db"))
	require.Empty(t, p.SubPaths(orders, "tmp"), "not a volume of the driver")
	require.Empty(t, p.SubPaths(withUID("uid-0"), "db"), "another pod of this name")
	kept := p.known(orders).Spec
	require.Empty(t, kept.InitContainers)
	require.Len(t, kept.Containers, 3)
	require.Len(t, kept.Containers[0].VolumeMounts, 1, "what is not used is not kept")
}
