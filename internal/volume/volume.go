// Package volume puts files into a pod's tmpfs: one writer, one swap, one
// sweep, and the question whether the volume is still there. It knows nothing
// of leases.
package volume

import "io/fs"

// File is one file of a generation.
type File struct {
	Path     string      // relative to the volume, "a" or "a/b"
	Mode     fs.FileMode // 0–0777
	UID, GID int         // -1: left as created
	Data     []byte      // ignored when Keep
	Keep     bool        // hard-link the file of this path from the present generation
}

// Presence says what is left of a volume.
type Presence int

// What Look can find.
const (
	Unknown    Presence = iota // the pods directory can't be trusted or read: keep everything
	Here                       // the pod's and the volume's directories exist
	VolumeGone                 // the pod's directory exists, the volume's CSI directory does not
	PodGone                    // the pod's directory is gone
)
