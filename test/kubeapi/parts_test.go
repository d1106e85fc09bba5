package kubeapi

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/tenure-csi/tenure/internal/kube"
	"github.com/tenure-csi/tenure/internal/lease"
	"github.com/tenure-csi/tenure/provider"
)

// running runs a part until the test ends.
func running(t *testing.T, run func(ctx context.Context)) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// makePod makes a pod on a node, with a volume "secrets" of an SPC, which one of its
// containers mounts with subPath.
func makePod(t *testing.T, name, node, spc string) provider.Pod {
	t.Helper()
	require.NoError(t, create(t.Context(), pods, namespace, fmt.Appendf(nil, `{apiVersion: v1, kind: Pod, metadata: {name: %s}, spec: {
nodeName: %s, serviceAccountName: app, containers: [{name: c, image: none, volumeMounts: [{name: secrets, mountPath: /c}]}, {name: fixed, image: none, volumeMounts: [{name: secrets, mountPath: /f, subPath: user}]}],
volumes: [{name: secrets, csi: {driver: secrets-store.csi.k8s.io, readOnly: true, volumeAttributes: {secretProviderClass: %s, mine: "1"}}}]}}`, name, node, spc)))
	made, err := admin.Resource(pods).Namespace(namespace).Get(t.Context(), name, metav1.GetOptions{})
	require.NoError(t, err)
	return provider.Pod{Name: name, Namespace: namespace, UID: string(made.GetUID()), ServiceAccount: "app"}
}

// removePod deletes a pod as kubelet does at the end: at once.
func removePod(t *testing.T, name string) {
	t.Helper()
	now := int64(0)
	require.NoError(t, admin.Resource(pods).Namespace(namespace).Delete(t.Context(), name, metav1.DeleteOptions{GracePeriodSeconds: &now}))
}

func makeSPC(t *testing.T, name, objects string) {
	t.Helper()
	require.NoError(t, create(t.Context(), spcs, namespace, fmt.Appendf(nil, `{apiVersion: secrets-store.csi.x-k8s.io/v1, kind: SecretProviderClass,
metadata: {name: %s}, spec: {provider: tenure, parameters: {roleName: orders, objects: %q}}}`, name, objects)))
}

// editSPC changes a parameter of an SPC.
func editSPC(t *testing.T, name, parameter, value string) {
	t.Helper()
	r := admin.Resource(spcs).Namespace(namespace)
	u, err := r.Get(t.Context(), name, metav1.GetOptions{})
	require.NoError(t, err)
	require.NoError(t, unstructured.SetNestedField(u.Object, value, "spec", "parameters", parameter))
	_, err = r.Update(t.Context(), u, metav1.UpdateOptions{})
	require.NoError(t, err)
}

func TestPods(t *testing.T) {
	needAPI(t)
	here, there := makePod(t, "pods-here", "n-pods", "x"), makePod(t, "pods-there", "n-other", "x")
	var p *kube.Pods
	made := make(chan struct{})
	running(t, func(ctx context.Context) {
		p = kube.NewPods(ctx, as(t, "pods"), "n-pods", quiet())
		close(made)
		p.Run()
	})
	<-made
	never := provider.Pod{Name: "pods-never", Namespace: namespace, UID: "never"}
	soon(t, "word of a pod that never was", func() bool { return p.Gone(never) })
	require.False(t, p.Gone(here))
	require.False(t, p.Gone(there), "a pod of another node is there, though the watch does not show it")
	soon(t, "the pod in the watch", func() bool { return len(p.SubPaths(here, "secrets")) > 0 })
	require.Equal(t, []string{"fixed"}, p.SubPaths(here, "secrets"))
	require.Empty(t, p.SubPaths(here, "another"))
	require.Empty(t, p.SubPaths(there, "secrets"))
	removePod(t, here.Name)
	soon(t, "word of the deletion", func() bool { return p.Gone(here) })
	again := makePod(t, "pods-here", "n-pods", "x")
	require.NotEqual(t, here.UID, again.UID)
	require.True(t, p.Gone(here))
	require.False(t, p.Gone(again))
	for range 20 {
		require.False(t, p.Gone(there))
	}
	_, err := as(t, "pods").Resource(pods).Namespace(namespace).Create(t.Context(), &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "v1", "kind": "Pod", "metadata": map[string]any{"name": "x"},
	}}, metav1.CreateOptions{})
	forbidden(t, err)
}

func TestPodsWithoutPermissionAreNotKnown(t *testing.T) {
	needAPI(t)
	var p *kube.Pods
	made := make(chan struct{})
	running(t, func(ctx context.Context) {
		p = kube.NewPods(ctx, as(t, "nobody"), "n", quiet())
		close(made)
		p.Run()
	})
	<-made
	require.Never(t, func() bool { return p.Gone(provider.Pod{Name: "x", Namespace: namespace, UID: "x"}) }, time.Second, 20*time.Millisecond)
}

func TestSPCs(t *testing.T) {
	needAPI(t)
	makeSPC(t, "edited", "old")
	pod := makePod(t, "spcs-pod", "n-spcs", "edited")
	var mu sync.Mutex
	var edits []lease.Edit
	seen := func() []lease.Edit {
		mu.Lock()
		defer mu.Unlock()
		return append([]lease.Edit(nil), edits...)
	}
	running(t, func(ctx context.Context) {
		p := kube.NewPods(ctx, as(t, "pods"), "n-spcs", quiet())
		s := kube.NewSPCs(ctx, as(t, "spcs"), p, func(e lease.Edit) bool {
			mu.Lock()
			defer mu.Unlock()
			edits = append(edits, e)
			return true
		})
		var parts sync.WaitGroup
		parts.Go(p.Run)
		parts.Go(s.Run)
		parts.Wait()
	})
	soon(t, "the SPC as it is", func() bool { return len(seen()) == 1 })
	began := time.Now()
	editSPC(t, "edited", "objects", "new")
	soon(t, "the edit", func() bool { return len(seen()) == 2 })
	t.Logf("measured: an edit was seen after %v", time.Since(began).Round(time.Millisecond))
	require.Equal(t, lease.Edit{PodUID: pod.UID, Volume: "secrets", Provider: "tenure", Parameters: map[string]string{
		"roleName": "orders", "objects": "new", "mine": "1", "secretProviderClass": "edited",
	}}, seen()[1])
}

func TestEvents(t *testing.T) {
	needAPI(t)
	pod := makePod(t, "events-pod", "n-events", "x")
	e := kube.NewEvents(as(t, "events"), "n-events", quiet())
	running(t, e.Run)
	text := strings.Repeat("a", 2000)
	e.Notify(pod, lease.NoticeExpired, text)
	soon(t, "the Event", func() bool { return len(eventsOf(t, pod)) == 1 })
	got := eventsOf(t, pod)[0]
	require.Equal(t, "CredentialExpired", got.Object["reason"])
	require.Equal(t, "Warning", got.Object["type"])
	require.Len(t, got.Object["message"], 1024)
	_, err := as(t, "events").Resource(events).Namespace(namespace).List(t.Context(), metav1.ListOptions{})
	forbidden(t, err)
}

// eventsOf lists a pod's Events, as kubectl describe does.
func eventsOf(t *testing.T, pod provider.Pod) []unstructured.Unstructured {
	t.Helper()
	all, err := admin.Resource(events).Namespace(namespace).List(t.Context(), metav1.ListOptions{FieldSelector: "involvedObject.uid=" + pod.UID})
	require.NoError(t, err)
	return all.Items
}

// recordStatus makes the status object that the driver makes at a Mount.
func recordStatus(t *testing.T, pod provider.Pod, spc, target string) (name string) {
	t.Helper()
	name = pod.Name + "-" + namespace + "-" + spc
	require.NoError(t, create(t.Context(), statuses, namespace, fmt.Appendf(nil, `{apiVersion: secrets-store.csi.x-k8s.io/v1, kind: SecretProviderClassPodStatus,
metadata: {name: %s, labels: {internal.secrets-store.csi.k8s.io/node-name: node-1}},
status: {podName: %s, secretProviderClassName: %s, mounted: true, targetPath: %s, objects: [{id: a, version: "1"}]}}`, name, pod.Name, spc, target)))
	return name
}

// versionsIn reads the versions of a status object.
func versionsIn(t *testing.T, name string) []any {
	t.Helper()
	u, err := admin.Resource(statuses).Namespace(namespace).Get(t.Context(), name, metav1.GetOptions{})
	require.NoError(t, err)
	objects, _, err := unstructured.NestedSlice(u.Object, "status", "objects")
	require.NoError(t, err)
	return objects
}

func TestStatuses(t *testing.T) {
	needAPI(t)
	pod := makePod(t, "status-pod", "n-status", "x")
	name := recordStatus(t, pod, "x", "/target")
	s := kube.NewStatuses(as(t, "status"), quiet())
	running(t, s.Run)
	s.Switched(lease.Switch{Pod: pod, Target: "/target", SPC: "x", Versions: []provider.Version{{ID: "b", Version: "2"}, {ID: "a", Version: "3"}}})
	soon(t, "the versions", func() bool { return len(versionsIn(t, name)) == 2 })
	require.Equal(t, []any{map[string]any{"id": "a", "version": "3"}, map[string]any{"id": "b", "version": "2"}}, versionsIn(t, name))
	_, err := as(t, "status").Resource(statuses).Namespace(namespace).List(t.Context(), metav1.ListOptions{})
	forbidden(t, err)
}

func TestTokens(t *testing.T) {
	needAPI(t)
	pod := makePod(t, "tokens-pod", "n-tokens", "x")
	tokens := kube.Tokens{Client: as(t, "token-requests")}
	token, err := tokens.Token(t.Context(), pod, "vault")
	require.NoError(t, err)
	require.WithinDuration(t, time.Now().Add(10*time.Minute), token.Expires, time.Minute)
	claimed, audiences, ok := provider.Claimed(token.Value)
	require.True(t, ok)
	require.Equal(t, pod, claimed)
	require.Equal(t, []string{"vault"}, audiences)
	_, err = provider.Identity{Tokens: map[string]provider.Token{"vault": token}}.TokenFor("vault", pod)
	require.NoError(t, err)

	require.True(t, accepted(t, token.Value, "vault"))
	require.False(t, accepted(t, token.Value, issuer), "it is for Vault alone")
	_, err = tokens.Token(t.Context(), provider.Pod{Name: pod.Name, Namespace: namespace, UID: "another", ServiceAccount: "app"}, "vault")
	require.ErrorContains(t, err, "requesting a token of service account shop/app: ")
	removePod(t, pod.Name)
	soon(t, "the token's end", func() bool { return !accepted(t, token.Value, "vault") })
	_, err = kube.Tokens{Client: as(t, "nobody")}.Token(t.Context(), pod, "vault")
	forbidden(t, err)
}

// accepted asks the API server about a token, as Vault does.
func accepted(t *testing.T, token provider.Secret, audience string) bool {
	t.Helper()
	u, err := admin.Resource(reviews).Create(t.Context(), &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "metadata": map[string]any{},
		"spec": map[string]any{"token": token.Reveal(), "audiences": []any{audience}},
	}}, metav1.CreateOptions{})
	require.NoError(t, err)
	ok, _, err := unstructured.NestedBool(u.Object, "status", "authenticated")
	require.NoError(t, err)
	return ok
}
