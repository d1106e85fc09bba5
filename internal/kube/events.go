package kube

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"net/http"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/dynamic"

	"github.com/tenure-csi/tenure/internal/lease"
	"github.com/tenure-csi/tenure/provider"
)

const (
	// maxMessage is how many bytes the API server allows an Event's message to have.
	maxMessage = 1024
	// A pod's Events: so many at once, and then one in five minutes. One text comes
	// once in an hour.
	eventBurst = 10
	eventRate  = 1.0 / 300
	eventAgain = time.Hour

	eventQueue = 512              // Events that wait; one a volume of a full node, when Vault is away
	eventPause = 10 * time.Second // after a failure
	eventTries = 12               // two minutes: a restart of the API server
)

// Events writes Warning Events on pods. It implements lease.Events; its methods may
// be called from many goroutines at once. What the API server does not take, or is
// too much, is dropped: the log and the status have it too.
//
// client-go's own recorder would count repeated Events up, which needs one more
// permission and brings the OpenAPI parsers along: 7 MiB in every daemon. Here little
// repeats itself, as a condition is told when it begins.
type Events struct {
	client dynamic.Interface
	node   string
	log    *slog.Logger
	queue  chan *unstructured.Unstructured

	mu   sync.Mutex
	pods map[string]*spoken // by UID
}

// spoken is what was said of one pod.
type spoken struct {
	limit *rate.Limiter
	texts map[string]time.Time // when, by reason and text
	last  time.Time
}

// NewEvents returns an Events that names node as where it reports from, and writes
// nothing before Run.
func NewEvents(client dynamic.Interface, node string, log *slog.Logger) *Events {
	return &Events{
		client: client, node: node, log: log,
		queue: make(chan *unstructured.Unstructured, eventQueue), pods: map[string]*spoken{},
	}
}

// Notify implements lease.Events.
func (e *Events) Notify(of provider.Pod, n lease.Notice, text string) {
	now := time.Now()
	if !e.allow(of.UID, string(n)+" "+text, now) {
		return
	}
	select {
	case e.queue <- e.event(of, n, text, now):
	default:
		e.log.Warn("dropping an Event: too many wait", "namespace", of.Namespace, "pod", of.Name, "reason", n)
	}
}

// allow keeps one pod from filling the API server.
func (e *Events) allow(uid, text string, now time.Time) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	s := e.pods[uid]
	if s == nil {
		maps.DeleteFunc(e.pods, func(_ string, s *spoken) bool { return now.Sub(s.last) > eventAgain })
		s = &spoken{limit: rate.NewLimiter(eventRate, eventBurst), texts: map[string]time.Time{}}
		e.pods[uid] = s
	}
	s.last = now
	maps.DeleteFunc(s.texts, func(_ string, at time.Time) bool { return now.Sub(at) >= eventAgain })
	if _, said := s.texts[text]; said || !s.limit.AllowN(now, 1) {
		return false
	}
	s.texts[text] = now
	return true
}

// event is an Event of the core API.
func (e *Events) event(of provider.Pod, n lease.Notice, text string, now time.Time) *unstructured.Unstructured {
	if len(text) > maxMessage {
		text = strings.ToValidUTF8(text[:maxMessage-len("…")], "") + "…"
	}
	at := now.UTC().Format(time.RFC3339)
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "v1", "kind": "Event",
		"metadata":       map[string]any{"generateName": of.Name + ".", "namespace": of.Namespace},
		"involvedObject": map[string]any{"apiVersion": "v1", "kind": "Pod", "namespace": of.Namespace, "name": of.Name, "uid": of.UID},
		"type":           "Warning", "reason": string(n), "message": text,
		"source":         map[string]any{"component": "tenure", "host": e.node},
		"firstTimestamp": at, "lastTimestamp": at, "count": int64(1),
		"reportingComponent": "tenure", "reportingInstance": e.node,
	}}
}

// Run writes Events until ctx ends; those that wait then are dropped.
func (e *Events) Run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case event := <-e.queue:
			e.write(ctx, event)
		}
	}
}

// write writes one Event, trying again while the API server is away.
func (e *Events) write(ctx context.Context, event *unstructured.Unstructured) {
	for try := 1; ; try++ {
		err := e.create(ctx, event)
		if err == nil || ctx.Err() != nil {
			return
		}
		if final(err) || try == eventTries {
			e.log.Warn("dropping an Event that can't be written", "namespace", event.GetNamespace(), "reason", event.Object["reason"], "error", err)
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(eventPause):
		}
	}
}

func (e *Events) create(ctx context.Context, event *unstructured.Unstructured) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	_, err := e.client.Resource(eventResource).Namespace(event.GetNamespace()).Create(ctx, event, metav1.CreateOptions{})
	return err
}

// final reports whether the API server has refused a call for good.
func final(err error) bool {
	var status apierrors.APIStatus
	if !errors.As(err, &status) {
		return false
	}
	code := status.Status().Code
	return code >= http.StatusBadRequest && code < http.StatusInternalServerError && code != http.StatusTooManyRequests
}
