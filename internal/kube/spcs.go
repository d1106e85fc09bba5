package kube

import (
	"context"
	"maps"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/tools/cache"

	"github.com/tenure-csi/tenure/internal/lease"
)

// offerEvery is how soon a volume hears of an edit that came before its first Mount
// was over.
const offerEvery = 10 * time.Second

// spc is what is kept of a SecretProviderClass.
type spc struct {
	metav1.ObjectMeta `json:"metadata"`
	Spec              struct {
		Provider   string            `json:"provider"`
		Parameters map[string]string `json:"parameters"`
	} `json:"spec"`
}

func trimSPC(obj any) (any, error) {
	decoded, err := decode[spc](obj)
	if kept, ok := decoded.(*spc); ok {
		kept.ObjectMeta = lean(kept.ObjectMeta)
	}
	return decoded, err
}

// SPCs brings edits of SecretProviderClasses to the volumes of a node's pods.
type SPCs struct {
	ctx     context.Context
	pods    *Pods
	edit    func(lease.Edit) bool
	store   cache.Store
	follow  cache.Controller
	changed chan struct{}
	offered map[string]string // the version of its SPC that a volume has taken
}

// NewSPCs returns what calls edit, that of a lease.Manager, for each volume whose
// SPC has changed since it was last called for it, and once at the start.
func NewSPCs(ctx context.Context, client dynamic.Interface, pods *Pods, edit func(lease.Edit) bool) *SPCs {
	s := &SPCs{ctx: ctx, pods: pods, edit: edit, changed: make(chan struct{}, 1), offered: map[string]string{}}
	s.store, s.follow = follow(client, spcResource, "", trimSPC, func() {
		select {
		case s.changed <- struct{}{}:
		default:
		}
	})
	return s
}

// Run follows the SPCs of all namespaces until the context of NewSPCs ends.
func (s *SPCs) Run() {
	var work sync.WaitGroup
	defer work.Wait()
	work.Go(func() { s.follow.RunWithContext(s.ctx) })
	if !cache.WaitForCacheSync(s.ctx.Done(), s.follow.HasSynced, s.pods.follow.HasSynced) {
		return
	}
	tick := time.NewTicker(offerEvery)
	defer tick.Stop()
	for {
		s.offer()
		select {
		case <-s.ctx.Done():
			return
		case <-s.changed:
		case <-tick.C:
		}
	}
}

// offer hands every volume the version of its SPC that it has not taken yet. An old
// version is never handed out twice: a Mount may have brought a newer one.
func (s *SPCs) offer() {
	taken := make(map[string]string, len(s.offered))
	for _, obj := range s.pods.store.List() {
		p := obj.(*pod)
		for _, v := range p.Spec.Volumes {
			class, ok, _ := s.store.GetByKey(p.Namespace + "/" + v.CSI.VolumeAttributes["secretProviderClass"])
			if !ok {
				continue
			}
			key, now := string(p.UID)+"/"+v.Name, class.(*spc)
			version := string(now.UID) + "/" + now.ResourceVersion
			if s.offered[key] == version || s.edit(edited(p, v, now)) {
				taken[key] = version
			}
		}
	}
	s.offered = taken
}

// edited is an SPC as the driver would hand it over for a volume: the pod's
// volumeAttributes win.
func edited(p *pod, v podVolume, now *spc) lease.Edit {
	parameters := make(map[string]string, len(now.Spec.Parameters))
	maps.Copy(parameters, now.Spec.Parameters)
	maps.Copy(parameters, v.CSI.VolumeAttributes)
	return lease.Edit{PodUID: string(p.UID), Volume: v.Name, Provider: now.Spec.Provider, Parameters: parameters}
}
