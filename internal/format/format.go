// Package format turns secret data into the bytes of files. It does no I/O and
// keeps nothing.
package format

import "time"

// Secret is a backend's answer to one read.
type Secret struct {
	// Data is the payload: for KV version 2 the inner data, without metadata.
	// Numbers are json.Number.
	Data map[string]any
	// Envelope is the whole response as the backend sent it: request_id, lease
	// fields, data, warnings. It is written only by the HashiCorp behaviour of an
	// object without key and format.
	Envelope map[string]any
	// Expires is the final end known at issue; zero while the lease is
	// renewable, or when there is none.
	Expires time.Time
}

// File is one file of an object.
type File struct {
	Path string // relative to the volume
	Data []byte
}
