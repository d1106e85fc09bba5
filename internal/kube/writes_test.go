package kube

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/dynamic/fake"
	clienttest "k8s.io/client-go/testing"

	"github.com/tenure-csi/tenure/internal/lease"
	"github.com/tenure-csi/tenure/provider"
)

// failing lets the first calls of a verb fail.
func failing(client *fake.FakeDynamicClient, verb, resource string, times int32, err error) *atomic.Int32 {
	var calls atomic.Int32
	client.PrependReactor(verb, resource, func(clienttest.Action) (bool, runtime.Object, error) {
		return calls.Add(1) <= times, nil, err
	})
	return &calls
}

// bubble runs a test in a synctest bubble, where start runs a part until the end.
func bubble(t *testing.T, f func(t *testing.T, start func(run func(context.Context)))) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(context.Background())
		var parts sync.WaitGroup
		defer func() { cancel(); parts.Wait() }()
		f(t, func(run func(context.Context)) { parts.Go(func() { run(ctx) }) })
	})
}

// written lists the Events that the API has; the fake gives no generated names, so
// they are taken from its calls.
func written(client *fake.FakeDynamicClient) (events []*unstructured.Unstructured) {
	for _, a := range client.Actions() {
		if c, ok := a.(clienttest.CreateAction); ok && a.GetResource() == eventResource {
			events = append(events, c.GetObject().(*unstructured.Unstructured))
		}
	}
	return events
}

func TestEvent(t *testing.T) {
	client := api()
	client.PrependReactor("create", "events", func(a clienttest.Action) (bool, runtime.Object, error) {
		return true, a.(clienttest.CreateAction).GetObject(), nil
	})
	bubble(t, func(t *testing.T, start func(func(context.Context))) {
		e := NewEvents(client, "n1", quiet())
		start(e.Run)
		e.Notify(orders, lease.NoticeExpired, strings.Repeat("é", 600))
		synctest.Wait()
		require.Len(t, written(client), 1)
		text := written(client)[0].Object["message"].(string)
		require.LessOrEqual(t, len(text), maxMessage)
		require.True(t, strings.HasSuffix(text, "é…"))
		require.Equal(t, map[string]any{
			"apiVersion": "v1", "kind": "Event",
			"metadata":       map[string]any{"generateName": "orders-0.", "namespace": "shop"},
			"involvedObject": map[string]any{"apiVersion": "v1", "kind": "Pod", "namespace": "shop", "name": "orders-0", "uid": "uid-1"},
			"type":           "Warning", "reason": "CredentialExpired", "message": text,
			"source":         map[string]any{"component": "tenure", "host": "n1"},
			"firstTimestamp": "2000-01-01T00:00:00Z", "lastTimestamp": "2000-01-01T00:00:00Z", "count": int64(1),
			"reportingComponent": "tenure", "reportingInstance": "n1",
		}, written(client)[0].Object)
	})
}

func TestEventsOfOnePodAreFew(t *testing.T) {
	client := api()
	client.PrependReactor("create", "events", func(a clienttest.Action) (bool, runtime.Object, error) {
		return true, a.(clienttest.CreateAction).GetObject(), nil
	})
	bubble(t, func(t *testing.T, start func(func(context.Context))) {
		e := NewEvents(client, "n1", quiet())
		start(e.Run)
		for range 100 {
			e.Notify(orders, lease.NoticeChange, "the same")
		}
		synctest.Wait()
		require.Len(t, written(client), 1)
		for i := range 100 {
			e.Notify(orders, lease.NoticeChange, strings.Repeat("x", i))
		}
		synctest.Wait()
		require.Len(t, written(client), eventBurst)
		other := withUID("uid-2")
		e.Notify(other, lease.NoticeChange, "the same")
		synctest.Wait()
		require.Len(t, written(client), eventBurst+1, "one pod's flood is its own")
		time.Sleep(2 * time.Hour)
		e.Notify(orders, lease.NoticeChange, "the same")
		synctest.Wait()
		require.Len(t, written(client), eventBurst+2)
		e.Notify(withUID("uid-3"), lease.NoticeChange, "x")
		require.Len(t, e.pods, 2, "nothing is kept of pods that are long quiet")
	})
}

func TestEventsWhileTheAPIServerIsAway(t *testing.T) {
	for _, row := range []struct {
		name  string
		err   error
		fails int32
		calls int32
	}{
		{"comes back", errors.New("connection refused"), 5, 6},
		{"overloaded", apierrors.NewTooManyRequests("later", 1), 5, 6},
		{"stays away", errors.New("connection refused"), 1000, eventTries},
		{"forbidden", apierrors.NewForbidden(eventResource.GroupResource(), "", nil), 1000, 1},
	} {
		t.Run(row.name, func(t *testing.T) {
			client := api()
			client.PrependReactor("create", "events", func(a clienttest.Action) (bool, runtime.Object, error) {
				return true, a.(clienttest.CreateAction).GetObject(), nil
			})
			calls := failing(client, "create", "events", row.fails, row.err)
			bubble(t, func(t *testing.T, start func(func(context.Context))) {
				e := NewEvents(client, "n1", quiet())
				start(e.Run)
				e.Notify(orders, lease.NoticeExpired, "x")
				time.Sleep(time.Hour)
				require.Equal(t, row.calls, calls.Load())
			})
		})
	}
}

// TestFullQueueDropsEvents: Notify must not wait, whatever the API server does.
func TestFullQueueDropsEvents(t *testing.T) {
	e := NewEvents(api(), "n1", quiet())
	for i := range eventQueue + 10 {
		e.Notify(withUID(strings.Repeat("u", i+1)), lease.NoticeExpired, "x")
	}
	require.Len(t, e.queue, eventQueue)
}

// recorded is the driver's status object of the volume.
func recorded(target string) *unstructured.Unstructured {
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "secrets-store.csi.x-k8s.io/v1", "kind": "SecretProviderClassPodStatus",
		"metadata": map[string]any{"name": "orders-0-shop-orders-db", "namespace": "shop"},
		"status": map[string]any{
			"podName": "orders-0", "secretProviderClassName": "orders-db", "mounted": true, "targetPath": target,
			"objects": []any{map[string]any{"id": "a", "version": "1"}},
		},
	}}
}

var rotated = lease.Switch{
	Pod: orders, Target: "/t", SPC: "orders-db", Versions: []provider.Version{{ID: "b", Version: "2"}, {ID: "a", Version: "2"}},
}

func TestVersionsAreRecordedAfterARotation(t *testing.T) {
	client := api(recorded("/t"))
	bubble(t, func(t *testing.T, start func(func(context.Context))) {
		s := NewStatuses(client, quiet())
		start(s.Run)
		s.Switched(rotated)
		synctest.Wait()
		u := get(t, client, statusResource, "orders-0-shop-orders-db")
		require.Equal(t, map[string]any{
			"podName": "orders-0", "secretProviderClassName": "orders-db", "mounted": true, "targetPath": "/t",
			"objects": []any{map[string]any{"id": "a", "version": "2"}, map[string]any{"id": "b", "version": "2"}},
		}, u.Object["status"])
		calls := len(client.Actions())
		s.Switched(rotated)
		synctest.Wait()
		require.Len(t, client.Actions(), calls+1, "what is there is not written again")
	})
}

func TestStatusOfAnotherVolumeIsLeftAlone(t *testing.T) {
	for name, there := range map[string][]*unstructured.Unstructured{
		"another target": {recorded("/other")}, "none": nil,
	} {
		t.Run(name, func(t *testing.T) {
			client := api(there...)
			require.NoError(t, NewStatuses(client, quiet()).record(t.Context(), rotated))
			require.Len(t, client.Actions(), 1, "it was only looked at")
		})
	}
}

func TestFailedRecordsAreTriedAgain(t *testing.T) {
	conflict := apierrors.NewConflict(statusResource.GroupResource(), "x", errors.New("changed meanwhile"))
	for _, row := range []struct {
		name         string
		verb         string
		err          error
		fails, calls int32
		after        time.Duration
		want         string
	}{
		{"conflict", "update", conflict, 2, 3, time.Second, "2"},
		{"away", "get", errors.New("connection refused"), 5, 6, time.Minute, "2"},
		{"forbidden for ever", "update", apierrors.NewForbidden(statusResource.GroupResource(), "x", nil), 1000, recordTries, time.Hour, "1"},
	} {
		t.Run(row.name, func(t *testing.T) {
			client := api(recorded("/t"))
			calls := failing(client, row.verb, "secretproviderclasspodstatuses", row.fails, row.err)
			bubble(t, func(t *testing.T, start func(func(context.Context))) {
				s := NewStatuses(client, quiet())
				start(s.Run)
				s.Switched(rotated)
				time.Sleep(row.after)
				synctest.Wait()
				require.Equal(t, row.calls, calls.Load())
				u := get(t, client, statusResource, "orders-0-shop-orders-db")
				objects, _, err := unstructured.NestedSlice(u.Object, "status", "objects")
				require.NoError(t, err)
				require.Equal(t, row.want, objects[0].(map[string]any)["version"])
			})
		})
	}
}

func TestTokenIsBoundToThePod(t *testing.T) {
	client := api()
	var asked *unstructured.Unstructured
	answer := map[string]any{"status": map[string]any{"token": "jwt", "expirationTimestamp": "2026-11-22T01:10:00Z"}}
	client.PrependReactor("create", "serviceaccounts", func(a clienttest.Action) (bool, runtime.Object, error) {
		require.Equal(t, "token", a.GetSubresource())
		require.Equal(t, "shop", a.GetNamespace())
		asked = a.(clienttest.CreateAction).GetObject().(*unstructured.Unstructured)
		return true, &unstructured.Unstructured{Object: answer}, nil
	})
	token, err := Tokens{client}.Token(t.Context(), orders, "vault")
	require.NoError(t, err)
	require.Equal(t, provider.Token{Value: "jwt", Expires: time.Date(2026, 11, 22, 1, 10, 0, 0, time.UTC)}, token)
	require.Equal(t, map[string]any{
		"audiences": []any{"vault"}, "expirationSeconds": int64(600),
		"boundObjectRef": map[string]any{"apiVersion": "v1", "kind": "Pod", "name": "orders-0", "uid": "uid-1"},
	}, asked.Object["spec"])
	require.Equal(t, "orders", asked.GetName())

	delete(answer, "status")
	_, err = Tokens{client}.Token(t.Context(), orders, "vault")
	require.EqualError(t, err, "requesting a token of service account shop/orders: the answer holds none")
}

func TestConnectSaysWhatIsWrong(t *testing.T) {
	_, err := Connect("/nowhere/config")
	require.ErrorContains(t, err, "finding the Kubernetes API: stat /nowhere/config")
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	_, err = Connect("")
	require.ErrorContains(t, err, "finding the Kubernetes API: ")
}
