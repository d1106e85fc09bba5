package kube

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/tools/cache"

	"github.com/tenure-csi/tenure/provider"
)

const (
	driverName = "secrets-store.csi.k8s.io"
	// mirrorKey is the annotation by which a static pod's object in the API names the
	// UID that kubelet gave the pod itself.
	mirrorKey = "kubernetes.io/config.mirror"

	goneMemory  = time.Hour        // a deleted pod's volumes end within seconds: long enough
	thereMemory = 30 * time.Second // until the same pod is asked for again
	confirming  = 8                // questions at once
)

// pod is what is kept of a pod.
type pod struct {
	metav1.ObjectMeta `json:"metadata"`
	Spec              struct {
		Volumes        []podVolume `json:"volumes"`
		Containers     []container `json:"containers"`
		InitContainers []container `json:"initContainers"`
	} `json:"spec"`
}

type container struct {
	Name          string        `json:"name"`
	RestartPolicy string        `json:"restartPolicy"` // of an init container that goes on beside the others: Always
	VolumeMounts  []volumeMount `json:"volumeMounts"`
}

type volumeMount struct {
	Name        string `json:"name"` // of the volume
	SubPath     string `json:"subPath"`
	SubPathExpr string `json:"subPathExpr"`
}

type podVolume struct {
	Name string `json:"name"`
	CSI  *struct {
		Driver           string            `json:"driver"`
		VolumeAttributes map[string]string `json:"volumeAttributes"`
	} `json:"csi"`
}

// trimPod keeps the volumes of the driver, where they are mounted with subPath, and
// what says which pod it is.
func trimPod(obj any) (any, error) {
	decoded, err := decode[pod](obj)
	full, ok := decoded.(*pod)
	if err != nil || !ok {
		return decoded, err
	}
	kept := &pod{ObjectMeta: lean(full.ObjectMeta)}
	if mirror := full.Annotations[mirrorKey]; mirror != "" {
		kept.Annotations = map[string]string{mirrorKey: mirror}
	}
	for _, v := range full.Spec.Volumes {
		if v.CSI != nil && v.CSI.Driver == driverName {
			kept.Spec.Volumes = append(kept.Spec.Volumes, v)
		}
	}
	for _, c := range full.Spec.InitContainers {
		if c.RestartPolicy == "Always" { // the others end before a credential is replaced
			full.Spec.Containers = append(full.Spec.Containers, c)
		}
	}
	for _, c := range full.Spec.Containers {
		c.VolumeMounts = slices.DeleteFunc(c.VolumeMounts, func(m volumeMount) bool {
			ours := slices.ContainsFunc(kept.Spec.Volumes, func(v podVolume) bool { return v.Name == m.Name })
			return !ours || m.SubPath == "" && m.SubPathExpr == ""
		})
		if len(c.VolumeMounts) > 0 {
			kept.Spec.Containers = append(kept.Spec.Containers, container{Name: c.Name, VolumeMounts: slices.Clip(c.VolumeMounts)})
		}
	}
	return kept, nil
}

// is reports whether an object is of the pod that kubelet knows by uid.
func is(m metav1.Object, uid string) bool {
	return string(m.GetUID()) == uid || m.GetAnnotations()[mirrorKey] == uid
}

// Pods knows the pods of one node. It implements lease.Pods; its methods may be
// called from many goroutines at once.
type Pods struct {
	ctx    context.Context
	client dynamic.Interface
	log    *slog.Logger
	store  cache.Store
	follow cache.Controller
	calls  errgroup.Group

	mu      sync.Mutex
	answers map[string]answer // by pod UID
	stopped bool              // nothing is asked any more
}

// answer is what the API server said of a pod that is not in the store.
type answer struct {
	gone  bool
	until time.Time // remembered so long
}

// NewPods returns the pods of a node, by its spec.nodeName; none before Run.
func NewPods(ctx context.Context, client dynamic.Interface, node string, log *slog.Logger) *Pods {
	p := &Pods{ctx: ctx, client: client, log: log, answers: map[string]answer{}}
	p.calls.SetLimit(confirming)
	selector := fields.OneTermEqualSelector("spec.nodeName", node).String()
	p.store, p.follow = follow(client, podResource, selector, trimPod, func() {})
	return p
}

// Run follows the pods until the context of NewPods ends.
func (p *Pods) Run() {
	p.follow.RunWithContext(p.ctx)
	p.mu.Lock()
	p.stopped = true
	p.mu.Unlock()
	_ = p.calls.Wait() // they answer into p.answers
}

// Gone implements lease.Pods. That the watch does not show a pod proves nothing, it
// may lag or have missed something: the API server itself is asked then, and only
// its answer that there is no pod of this UID counts.
func (p *Pods) Gone(of provider.Pod) bool {
	if !p.follow.HasSynced() {
		return false
	}
	if p.known(of) != nil {
		return false
	}
	now := time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	if a, ok := p.answers[of.UID]; ok && now.Before(a.until) {
		return a.gone
	}
	if p.stopped {
		return false
	}
	if p.calls.TryGo(func() error { p.ask(of); return nil }) {
		p.remember(of.UID, answer{until: now.Add(callTimeout)})
	}
	return false
}

// known returns the pod as the watch shows it; nil: it does not.
func (p *Pods) known(of provider.Pod) *pod {
	if obj, ok, _ := p.store.GetByKey(of.Namespace + "/" + of.Name); ok && is(obj.(*pod), of.UID) {
		return obj.(*pod)
	}
	return nil
}

// SubPaths implements lease.Pods.
func (p *Pods) SubPaths(of provider.Pod, volume string) (containers []string) {
	known := p.known(of)
	if known == nil {
		return nil
	}
	for _, c := range known.Spec.Containers {
		if slices.ContainsFunc(c.VolumeMounts, func(m volumeMount) bool { return m.Name == volume }) {
			containers = append(containers, c.Name)
		}
	}
	return containers
}

// ask asks the API server, and takes no answer for an answer.
func (p *Pods) ask(of provider.Pod) {
	ctx, cancel := context.WithTimeout(p.ctx, callTimeout)
	defer cancel()
	found, err := p.client.Resource(podResource).Namespace(of.Namespace).Get(ctx, of.Name, metav1.GetOptions{})
	a := answer{until: time.Now().Add(thereMemory)}
	switch {
	case apierrors.IsNotFound(err) && !apierrors.IsUnexpectedServerError(err), err == nil && !is(found, of.UID):
		a = answer{gone: true, until: time.Now().Add(goneMemory)}
	case err != nil:
		p.log.Warn("asking the API server whether a pod is gone", "namespace", of.Namespace, "pod", of.Name, "error", err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.remember(of.UID, a)
}

// remember keeps an answer, and drops old ones. mu is held.
func (p *Pods) remember(uid string, a answer) {
	now := time.Now()
	maps.DeleteFunc(p.answers, func(_ string, old answer) bool { return !now.Before(old.until) })
	p.answers[uid] = a
}
