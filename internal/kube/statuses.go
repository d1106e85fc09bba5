package kube

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"reflect"
	"slices"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/util/retry"

	"github.com/tenure-csi/tenure/internal/lease"
	"github.com/tenure-csi/tenure/provider"
)

const (
	recordAgain = 10 * time.Second // the pause after a failure
	recordTries = 30               // five minutes: an upgrade of the API server
)

// Statuses writes object versions into SecretProviderClassPodStatuses, so that the
// driver copies the new files into Kubernetes Secrets at once. It implements
// lease.Statuses; its methods may be called from many goroutines at once. What
// can't be written for long is dropped: the next Mount's answer brings it.
type Statuses struct {
	client dynamic.Interface
	log    *slog.Logger
	wake   chan struct{}

	mu      sync.Mutex
	pending map[string]pending // by target
}

type pending struct {
	lease.Switch
	tries int
	next  time.Time // not before; zero: at once
}

// NewStatuses returns a Statuses that writes nothing before Run.
func NewStatuses(client dynamic.Interface, log *slog.Logger) *Statuses {
	return &Statuses{client: client, log: log, wake: make(chan struct{}, 1), pending: map[string]pending{}}
}

// Switched implements lease.Statuses.
func (s *Statuses) Switched(w lease.Switch) {
	s.mu.Lock()
	s.pending[w.Target] = pending{Switch: w}
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// Run writes until ctx ends.
func (s *Statuses) Run(ctx context.Context) {
	tick := time.NewTicker(recordAgain)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.wake:
		case <-tick.C:
		}
		s.recordAll(ctx)
	}
}

// recordAll writes what is pending, each once, and keeps what fails for later.
func (s *Statuses) recordAll(ctx context.Context) {
	s.mu.Lock()
	work := s.pending
	s.pending = map[string]pending{}
	s.mu.Unlock()
	for target, p := range work {
		if time.Now().Before(p.next) {
			s.keep(target, p)
			continue
		}
		err := s.record(ctx, p.Switch)
		if err == nil || ctx.Err() != nil {
			continue
		}
		p.tries, p.next = p.tries+1, time.Now().Add(recordAgain)
		s.log.Warn("recording a volume's new versions", "namespace", p.Pod.Namespace, "pod", p.Pod.Name, "spc", p.SPC, "tries", p.tries, "error", err)
		if p.tries < recordTries {
			s.keep(target, p)
		}
	}
}

// keep leaves a Switch for later, unless a newer one has come.
func (s *Statuses) keep(target string, p pending) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, newer := s.pending[target]; !newer {
		s.pending[target] = p
	}
}

// record writes one volume's versions into its status, where the driver has made
// one. Its name is the driver's rule (v1.6.0).
func (s *Statuses) record(ctx context.Context, w lease.Switch) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	statuses := s.client.Resource(statusResource).Namespace(w.Pod.Namespace)
	return retry.RetryOnConflict(retry.DefaultRetry, func() error {
		status, err := statuses.Get(ctx, w.Pod.Name+"-"+w.Pod.Namespace+"-"+w.SPC, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return nil
		}
		if err != nil {
			return err
		}
		// Two volumes of a pod with one SPC share a status: it is that of the last mounted.
		target, _, _ := unstructured.NestedString(status.Object, "status", "targetPath")
		was, _, _ := unstructured.NestedSlice(status.Object, "status", "objects")
		now := objects(w.Versions)
		if target != w.Target || reflect.DeepEqual(was, now) {
			return nil
		}
		if err := unstructured.SetNestedSlice(status.Object, now, "status", "objects"); err != nil {
			return fmt.Errorf("setting the versions: %w", err)
		}
		_, err = statuses.Update(ctx, status, metav1.UpdateOptions{})
		return err
	})
}

// objects is how the driver writes versions: in the order of their ids.
func objects(vs []provider.Version) []any {
	vs = slices.SortedFunc(slices.Values(vs), func(a, b provider.Version) int { return cmp.Compare(a.ID, b.ID) })
	out := make([]any, 0, len(vs))
	for _, v := range vs {
		out = append(out, map[string]any{"id": v.ID, "version": v.Version})
	}
	return out
}
