package kube

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic/fake"
	"k8s.io/klog/v2"

	"github.com/tenure-csi/tenure/provider"
)

// These tests run against client-go's fake API, which holds objects and answers
// watches, and lets a test decide what goes wrong: it checks no permission,
// validates nothing and has no cache that lags. The tests with a real API server
// are in test/integration.

func TestMain(m *testing.M) {
	klog.SetSlogLogger(quiet()) // what client-go says of the faults that are asked for
	goleak.VerifyTestMain(m)
}

// orders is the pod of most tests.
var orders = provider.Pod{Name: "orders-0", Namespace: "shop", UID: "uid-1", ServiceAccount: "orders"}

// api returns a fake API with objects in it.
func api(objects ...*unstructured.Unstructured) *fake.FakeDynamicClient {
	var all []runtime.Object
	for _, o := range objects {
		all = append(all, o)
	}
	return fake.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(), map[schema.GroupVersionResource]string{
		podResource: "PodList", eventResource: "EventList", accountResource: "ServiceAccountList",
		spcResource: "SecretProviderClassList", statusResource: "SecretProviderClassPodStatusList",
	}, all...)
}

// apiPod is a pod's object with a volume of the SPC orders-db.
func apiPod(uid string) *unstructured.Unstructured {
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "v1", "kind": "Pod",
		"metadata": map[string]any{
			"name": orders.Name, "namespace": orders.Namespace, "uid": uid,
			"managedFields": []any{map[string]any{"manager": "kubelet"}}, "labels": map[string]any{"app": "orders"},
		},
		"spec": map[string]any{"nodeName": "n1", "volumes": []any{
			map[string]any{"name": "tmp", "emptyDir": map[string]any{}},
			map[string]any{"name": "other", "csi": map[string]any{"driver": "csi.example.com"}},
			map[string]any{"name": "db", "csi": map[string]any{
				"driver": driverName, "volumeAttributes": map[string]any{"secretProviderClass": "orders-db", "roleName": "mine"},
			}},
		}},
	}}
}

// apiSPC is the SPC in a version.
func apiSPC(version, objects string) *unstructured.Unstructured {
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "secrets-store.csi.x-k8s.io/v1", "kind": "SecretProviderClass",
		"metadata": map[string]any{"name": "orders-db", "namespace": orders.Namespace, "uid": "spc-1", "resourceVersion": version},
		"spec": map[string]any{
			"provider": "tenure", "parameters": map[string]any{"roleName": "orders", "objects": objects},
			"secretObjects": []any{map[string]any{"secretName": "copy"}},
		},
	}}
}

// running runs a part until the test ends; the part must end with its context.
func running(t *testing.T, cancel context.CancelFunc, run func()) {
	done := make(chan struct{})
	go func() { defer close(done); run() }()
	t.Cleanup(func() { cancel(); <-done })
}

// quiet is a log that nobody reads.
func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// soon waits until a condition holds.
func soon(t *testing.T, what string, holds func() bool) {
	t.Helper()
	require.Eventually(t, holds, 30*time.Second, time.Millisecond, what)
}

// watched waits until a resource has been listed and is watched. The fake's watch
// begins when it is opened, not where the list ended: of a change in between
// nobody would hear.
func watched(t *testing.T, client *fake.FakeDynamicClient, of schema.GroupVersionResource) {
	t.Helper()
	soon(t, "a watch of "+of.Resource, func() bool {
		listed := false
		for _, a := range client.Actions() {
			switch {
			case a.Matches("list", of.Resource):
				listed = true
			case listed && a.Matches("watch", of.Resource):
				return true
			}
		}
		return false
	})
}

func get(t *testing.T, client *fake.FakeDynamicClient, of schema.GroupVersionResource, name string) *unstructured.Unstructured {
	t.Helper()
	u, err := client.Resource(of).Namespace(orders.Namespace).Get(t.Context(), name, metav1.GetOptions{})
	require.NoError(t, err)
	return u
}

// withUID is the pod under another UID.
func withUID(uid string) provider.Pod {
	p := orders
	p.UID = uid
	return p
}
