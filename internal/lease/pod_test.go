package lease

import (
	"cmp"
	"context"
	"encoding/base64"
	"fmt"
	"maps"
	"strings"
	"testing/synctest"
	"time"

	"github.com/tenure-csi/tenure/internal/volume"
	"github.com/tenure-csi/tenure/provider"
)

// pod is a pod with one volume.
type pod struct {
	n    *node
	name string
	// namespace is "ns" where it is empty
	namespace string
	target    string
	objects   string // the SPC's objects
	expires   time.Time
	secrets   map[string]provider.Secret
	more      map[string]string // parameters
}

// db is an object pair on one dynamic read, kv and cert single ones.
func db(name, path string) string {
	return fmt.Sprintf("- {objectName: %[1]s-user, secretPath: %[2]s, secretKey: username}\n- {objectName: %[1]s-pass, secretPath: %[2]s, secretKey: password}\n", name, path)
}

func kv(name, path string) string {
	return fmt.Sprintf("- {objectName: %s, secretPath: %s, secretKey: value}\n", name, path)
}

func (n *node) pod(name, objects string) *pod {
	p := &pod{n: n, name: name, objects: objects, target: "/k/pods/" + name + "/volumes/kubernetes.io~csi/v/mount"}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.pods[name] = true
	n.mounts[p.target] = &mounted{present: true, pod: name, dirs: map[string]map[string]volume.File{}}
	return p
}

// podJWT is a token as kubelet gives it, of every pod here; nobody looks at its signature.
var podJWT = func() provider.Secret {
	part := base64.RawURLEncoding.EncodeToString
	return provider.Secret(part([]byte("{}")) + "." + part([]byte(`{"sub":"system:serviceaccount:ns:sa"}`)) + "." + part([]byte("signature")))
}()

func (p *pod) request() provider.Request {
	attrs := map[string]string{"roleName": "r", "objects": p.objects}
	maps.Copy(attrs, p.more)
	expires := p.expires
	if expires.IsZero() {
		expires = time.Now().Add(time.Hour)
	}
	return provider.Request{
		Pod:    provider.Pod{Name: p.name, Namespace: cmp.Or(p.namespace, "ns"), UID: p.name, ServiceAccount: "sa"},
		Target: p.target, Provider: "tenure", Mode: 0o644, Attributes: attrs, SpecHash: digest(attrs),
		Identity: provider.Identity{Tokens: map[string]provider.Token{"vault": {Value: podJWT, Expires: expires}}, Secrets: p.secrets},
	}
}

// mount is a first Mount or a republish. After a first one that fails the driver
// unmounts the volume, and the next is of a new one.
func (p *pod) mount() error {
	_, err := p.n.m.Mount(context.Background(), p.request())
	if err != nil {
		p.renew()
	}
	synctest.Wait()
	return err
}

// renew puts an unclaimed volume in the place of one that holds nothing.
func (p *pod) renew() {
	p.n.mu.Lock()
	defer p.n.mu.Unlock()
	if v := p.n.mounts[p.target]; v != nil {
		v.claimed = false
	}
}

// delete removes the pod with its directory.
func (p *pod) delete() {
	p.n.mu.Lock()
	defer p.n.mu.Unlock()
	delete(p.n.pods, p.name)
	delete(p.n.mounts, p.target)
}

// files returns the bytes of the present generation.
func (p *pod) files() map[string]string {
	p.n.mu.Lock()
	defer p.n.mu.Unlock()
	out := map[string]string{}
	if v := p.n.mounts[p.target]; v != nil {
		for path, f := range v.dirs[v.current] {
			out[path] = string(f.Data)
		}
	}
	return out
}

// status returns the daemon's word on the pod's volume.
func (p *pod) status() VolumeStatus {
	for _, v := range p.n.m.Status() {
		if v.Target == p.target && v.State != Ending {
			return v
		}
	}
	return VolumeStatus{}
}

// lease returns a copy of the first lease that the daemon holds for the pod.
func (p *pod) lease() lease {
	w := p.n.m.volumes[p.target]
	w.mu.Lock()
	defer w.mu.Unlock()
	return *w.rec.current()[0]
}

// works is I1 for one pod: the leases of all its files are alive.
func (p *pod) works() bool {
	p.n.backend.mu.Lock()
	defer p.n.backend.mu.Unlock()
	for _, data := range p.files() {
		if id := leaseOf([]byte(data)); strings.HasPrefix(id, "lease-") && !p.n.backend.leaseAlive(id) {
			return false
		}
	}
	return true
}
