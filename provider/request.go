// Package provider holds the words of Tenure's interface: it decodes what the
// CSI driver sends, parses a SecretProviderClass's parameters into reads and
// objects, serves the provider's gRPC service, and turns errors into codes. It
// imports nothing of Tenure's own.
package provider

import (
	"context"
	"io/fs"
	"time"
)

// Pod is who mounts, as kubelet says it.
type Pod struct {
	Name           string `json:"name"`
	Namespace      string `json:"namespace"`
	UID            string `json:"uid"`
	ServiceAccount string `json:"serviceAccount"`
}

// Identity is what the pod can prove. It is held in memory only, replaced by
// every Mount and never journaled.
type Identity struct {
	Tokens  map[string]Token  // service account tokens by audience
	Secrets map[string]Secret // the nodePublishSecretRef Secret's data
}

// Token is a service account token of the pod.
type Token struct {
	Value   Secret
	Expires time.Time // zero: not told
}

// Request is one Mount call, checked and decoded; its SPC is parsed only when
// SpecHash is new to the volume.
type Request struct {
	Provider   string // name of the socket the call came through; under another than "tenure" unknown object fields are only warnings
	Pod        Pod
	Target     string            // the volume's target path, below <kubelet>/pods/<pod UID>
	Mode       fs.FileMode       // default mode of files
	Attributes map[string]string // all parameters without tokens and secrets: safe to journal
	SpecHash   string            // over Attributes, without what the parser ignores, Mode and Provider
	Identity   Identity
}

// Version is the version of one object in the volume, as the driver records it.
type Version struct {
	ID      string `json:"id"`
	Version string `json:"version"`
}

// Mounter does what a Mount call asks for and answers with the versions of the
// volume's objects; it writes the files itself. It must answer a live and
// unchanged volume without waiting. Its errors are *Error.
type Mounter interface {
	Mount(ctx context.Context, r Request) ([]Version, error)
}
