package lease

import (
	"context"
	"errors"
	"maps"
	"path/filepath"
	"slices"
	"time"

	"github.com/tenure-csi/tenure/internal/volume"
	"github.com/tenure-csi/tenure/provider"
)

// Cluster is what the Kubernetes API adds where Tenure may use it. Each field may
// be nil: everything works without. The methods are called from many goroutines at
// once.
type Cluster struct {
	Events     Events
	Statuses   Statuses
	Pods       Pods
	Identities Identities
}

// Events tells a pod's owner what no answer to a Mount can. Notify is called with a
// volume's lock held: it must neither wait nor call the Manager.
type Events interface {
	Notify(pod provider.Pod, n Notice, text string)
}

// Statuses hears of files that were switched outside a Mount, as after a rotation:
// the answer of a Mount is recorded by the driver itself. Switched is called with a
// volume's lock held: it must neither wait nor call the Manager.
type Statuses interface {
	Switched(Switch)
}

// Switch is the present generation of a volume.
type Switch struct {
	Pod      provider.Pod
	Target   string // the volume's target path
	SPC      string // the SecretProviderClass's name
	Versions []provider.Version
}

// Pods knows which pods there are.
type Pods interface {
	// Gone reports that the pod, by its UID, is certainly deleted. false means that
	// it is there or that nothing is known. It does not wait: it may answer true
	// only when it is asked again.
	Gone(provider.Pod) bool
	// SubPaths returns the containers of the pod that mount a part of a volume, by the
	// volume's name, with subPath; none where nothing is known. It is called with a
	// volume's lock held: it must neither wait nor call the Manager.
	SubPaths(pod provider.Pod, volume string) []string
}

// Identities gives a pod's service account tokens beside those that come with
// Mounts.
type Identities interface {
	// Token returns a fresh token for audience, which works as long as the pod lives
	// and at most to its Expires. It ends with ctx.
	Token(ctx context.Context, pod provider.Pod, audience string) (provider.Token, error)
}

// deleted reports that the pod's object is gone and the volume is not mounted any
// more: the end is proven without waiting for the pod's directory.
func (w *worker) deleted(now time.Time) bool {
	pods := w.m.Cluster.Pods
	if pods == nil || !w.quietFor(now, 0) || !pods.Gone(w.rec.Pod) {
		return false
	}
	_, err := w.m.Files.Current(w.rec.Target)
	return errors.Is(err, volume.ErrNotMounted)
}

// volume is the volume's name in the pod: its target is …/<name>/mount.
func (r *Record) volume() string { return filepath.Base(filepath.Dir(r.Target)) }

// subPaths are the containers whose files are never updated.
func (w *worker) subPaths() []string {
	if w.m.Cluster.Pods == nil {
		return nil
	}
	return w.m.Cluster.Pods.SubPaths(w.rec.Pod, w.rec.volume())
}

// switched tells what the volume holds now. mu is held.
func (w *worker) switched() {
	if s := w.m.Cluster.Statuses; s != nil {
		s.Switched(Switch{
			Pod: w.rec.Pod, Target: w.rec.Target, SPC: provider.SPCName(w.rec.Current.Spec.Attributes), Versions: w.versions,
		})
	}
}

// freshWait bounds the question for a fresh token: a rotation waits for it.
const freshWait = 5 * time.Second

// fresher returns the identity with a token from the API server, after a login in
// the background that only another identity can mend. It asks only for a login that
// the volume has done before: with a token that kubelet gave, for an audience that
// the cluster's owner allows. What an edited SPC asks for is not enough.
func (w *worker) fresher(login provider.Login, id provider.Identity, o order, err error) (provider.Identity, bool) {
	known := func(l *lease) bool { return l.Login == login }
	if err == nil || classOf(err).Passing() || w.m.Cluster.Identities == nil || o.work == Mounting ||
		!login.ByToken() || !slices.ContainsFunc(w.rec.current(), known) {
		return id, false
	}
	ctx, cancel := context.WithTimeout(o.ctx, freshWait)
	defer cancel()
	audience := login.TokenAudience()
	token, tokenErr := w.m.Cluster.Identities.Token(ctx, w.rec.Pod, audience)
	if tokenErr != nil {
		w.log.Warn("asking the API server for a fresh token", "audience", audience, "error", tokenErr)
		return id, false
	}
	tokens := map[string]provider.Token{}
	maps.Copy(tokens, id.Tokens)
	tokens[audience] = token
	id.Tokens = tokens
	return id, true
}

// learn takes one token of an identity into the present one, which a Mount may have
// brought meanwhile. mu is held.
func (w *worker) learn(audience string, from provider.Identity) {
	tokens := maps.Clone(w.identity.Tokens)
	if tokens == nil {
		tokens = map[string]provider.Token{}
	}
	tokens[audience] = from.Tokens[audience]
	w.identity.Tokens = tokens
}

// Edit is a SecretProviderClass as one pod's volume sees it now.
type Edit struct {
	PodUID     string
	Volume     string            // the volume's name in the pod
	Provider   string            // spec.provider
	Parameters map[string]string // the SPC's, overlaid by the pod's volumeAttributes
}

// Edit brings a live volume to an edited SPC without waiting for the driver's next
// Mount, with the identity of the last one. It reports whether the edit was taken,
// also when it changes nothing; false: there is no such live volume, and its Mount
// will bring the SPC. The work is done later, in the background, and what fails is
// tried again and shown as with a Mount.
func (m *Manager) Edit(e Edit) bool {
	m.mu.Lock()
	var of *worker
	for _, w := range m.volumes {
		if w.rec.Pod.UID == e.PodUID && w.rec.volume() == e.Volume {
			of = w
		}
	}
	m.mu.Unlock()
	return of != nil && of.edit(e)
}

func (w *worker) edit(e Edit) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.gone || !w.live() {
		return false
	}
	now := w.rec.Current.Spec
	if e.Provider != now.Provider {
		return true // somebody else's from the next Mount on
	}
	r, err := provider.Request{
		Pod: w.rec.Pod, Target: w.rec.Target, Provider: now.Provider, Mode: now.Mode, Attributes: now.Attributes,
	}.Edited(e.Parameters)
	switch {
	case r.SpecHash == now.Hash:
		w.change = nil // the edit was taken back
		return true
	case w.change != nil && w.change.hash == r.SpecHash: // known
		return true
	}
	w.change = &failure{hash: r.SpecHash, next: time.Now()}
	w.change.spec = spec{Hash: r.SpecHash, Provider: now.Provider, Mode: now.Mode, Attributes: r.Attributes}
	if err != nil {
		w.change.err, w.change.tries, w.change.next = err, 1, time.Time{}
	}
	w.start()
	return true
}

// wants reports whether c is still the edit to carry out.
func (w *worker) wants(c *failure) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.change == c
}
