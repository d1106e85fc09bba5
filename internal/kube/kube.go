// Package kube asks and tells the Kubernetes API what helps the core of Tenure:
// Events on pods, which pods of this node are gone, edited SecretProviderClasses,
// their recorded state, and fresh tokens. Each part needs a permission of its own,
// and the daemon works without any of them. What the API server does not answer
// is not known, and nothing is ended for it.
package kube

import (
	"context"
	"fmt"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
)

// What is asked for, by the names that its permissions have.
var (
	podResource     = schema.GroupVersionResource{Version: "v1", Resource: "pods"}
	eventResource   = schema.GroupVersionResource{Version: "v1", Resource: "events"}
	accountResource = schema.GroupVersionResource{Version: "v1", Resource: "serviceaccounts"}
	spcResource     = schema.GroupVersionResource{Group: "secrets-store.csi.x-k8s.io", Version: "v1", Resource: "secretproviderclasses"}
	statusResource  = schema.GroupVersionResource{Group: "secrets-store.csi.x-k8s.io", Version: "v1", Resource: "secretproviderclasspodstatuses"}
)

const (
	callTimeout = 10 * time.Second // of one question or write; watches go on
	// What one daemon asks a second at most, and at once: as much as it asks of Vault
	// in the background.
	callRate  = 20
	callBurst = 40
)

// Connect returns a client with the identity of a kubeconfig file, or with that of
// the pod's own service account where path is empty. It makes no call.
func Connect(path string) (dynamic.Interface, error) {
	find := rest.InClusterConfig
	if path != "" {
		find = func() (*rest.Config, error) { return clientcmd.BuildConfigFromFlags("", path) }
	}
	config, err := find()
	if err != nil {
		return nil, fmt.Errorf("finding the Kubernetes API: %w", err)
	}
	config.QPS, config.Burst, config.UserAgent = callRate, callBurst, "tenure"
	client, err := dynamic.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("finding the Kubernetes API: %w", err)
	}
	return client, nil
}

// follow keeps a copy of all objects that a field selector allows (empty: all), as
// trim leaves them, and calls changed after one came or changed. It follows them
// while the returned Controller runs.
func follow(client dynamic.Interface, of schema.GroupVersionResource, selector string, trim cache.TransformFunc, changed func()) (cache.Store, cache.Controller) {
	source := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			o.FieldSelector = selector
			if o.ResourceVersion == "0" { // any state, however old: it could take an edit back
				o.ResourceVersion = ""
			}
			return client.Resource(of).List(ctx, o)
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			o.FieldSelector = selector
			return client.Resource(of).Watch(ctx, o)
		},
	}
	return cache.NewInformerWithOptions(cache.InformerOptions{
		ListerWatcher: cache.ToListWatcherWithWatchListSemantics(source, client), ObjectType: &unstructured.Unstructured{}, Transform: trim,
		Handler: cache.ResourceEventHandlerFuncs{AddFunc: func(any) { changed() }, UpdateFunc: func(any, any) { changed() }},
	})
}

// decode reads an object of the API into a type that has only what is used of it.
// What is no such object, as the mark of a deletion that was missed, stays as it is.
func decode[T any](obj any) (any, error) {
	u, ok := obj.(*unstructured.Unstructured)
	if !ok {
		return obj, nil
	}
	out := new(T)
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, out); err != nil {
		return nil, fmt.Errorf("reading %s %s/%s: %w", u.GetKind(), u.GetNamespace(), u.GetName(), err)
	}
	return out, nil
}

// lean is the part of an object's metadata that is used.
func lean(m metav1.ObjectMeta) metav1.ObjectMeta {
	return metav1.ObjectMeta{Name: m.Name, Namespace: m.Namespace, UID: m.UID, ResourceVersion: m.ResourceVersion}
}
