// Package format turns secret data into the bytes of files. It does no I/O and
// keeps nothing.
//
// Every format escapes for its reader, and refuses with an error what its reader
// could not get back byte for byte. Strings are written as they are; other JSON
// values (numbers with all their digits, bools, lists, maps) as compact JSON.
package format

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"maps"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/tenure-csi/tenure/provider"
)

// Secret is a backend's answer to one read.
type Secret struct {
	// Data is the payload: for KV version 2 the inner data, without metadata.
	// Its values are those of encoding/json; numbers are json.Number.
	Data map[string]any
	// Envelope is the whole response as the backend sent it: request_id, lease
	// fields, data, warnings. It is written only by the HashiCorp behaviour of an
	// object without key and format.
	Envelope map[string]any
	// Expires is the final end known at issue; zero while the lease is
	// renewable, or when there is none.
	Expires time.Time
}

// Memory estimates the bytes that s takes in memory. Data is a part of Envelope
// where there is one. It may be called from many goroutines at once.
func (s Secret) Memory() int64 { return max(memory(s.Data), memory(s.Envelope)) }

// memory counts Go's headers and table entries too: nested lists without content
// take many times the bytes of their JSON.
func memory(v any) (n int64) {
	const word = 16 // of an interface, and the header of a string
	switch v := v.(type) {
	case string:
		return word + int64(len(v))
	case json.Number:
		return word + int64(len(v))
	case map[string]any:
		n = 4 * word
		for key, e := range v {
			n += 3*word + int64(len(key)) + memory(e)
		}
	case []any:
		n = 2 * word
		for _, e := range v {
			n += word + memory(e)
		}
	}
	return n
}

// File is one file of an object.
type File struct {
	Path string // relative to the volume
	Data []byte
}

// Rendered is an object as it is to be written.
type Rendered struct {
	// Files has unique paths that the driver accepts, in the order of their
	// paths; never empty. A path is the object's name, or below it.
	Files []File
	// Stable is what a version of the object is computed from: equal as long as
	// the secret is. It holds the files' paths and bytes, each behind its length;
	// for a whole response the data alone, because request_id and lease fields
	// change with every read.
	Stable []byte
}

// The limits of a path in a volume, as the driver checks it
// (pkg/util/fileutil/atomic_writer.go); also those of Linux.
const (
	maxPath = 4096
	maxName = 255
)

// layout is how one format is made. Init order forbids that its functions look
// into formats.
type layout struct {
	render func(provider.Object, Secret) ([]File, error)
	check  func(provider.Object) error // what is known without data; nil: nothing
	oneKey bool                        // writes one value: takes secretKey and encoding
}

var formats = map[string]layout{
	"":           {render: single(hashicorp), oneKey: true},
	"raw":        {render: single(raw), oneKey: true},
	"json":       {render: single(jsonFile)},
	"keys":       {render: keyFiles},
	"env":        {render: single(envFile)},
	"pem":        {render: single(pemFile)},
	"pg-service": {render: single(pgService), check: checkService},
	"pgpass":     {render: single(pgpass), check: checkPgpass},
	"uri":        {render: single(uri), check: checkURI},
	"my-cnf":     {render: single(myCnf), check: checkMyCnf},
	"template":   {render: single(templateFile), check: func(o provider.Object) error { return CheckTemplate(o.Template) }},

	"aws-credentials":        {render: single(awsCredentials)},
	"aws-credential-process": {render: awsProcess, check: checkAWSProcess},
}

// Render makes the files of object o from s. Equal arguments give equal bytes.
// It changes neither argument and may be called from many goroutines at once.
//
// Errors are *provider.Error with o's name and tenant, of class Invalid: the
// same data gives the same error. None holds a value of the data.
func Render(o provider.Object, s Secret) (Rendered, error) {
	r, err := render(o, s)
	return r, blame(o, err)
}

// Check reports what is wrong with o whatever the data will be: its name, its
// template, its connection, fields that its format does not take. Callers use it
// to refuse an object before anything is issued for it. Errors are as Render's.
func Check(o provider.Object) error { return blame(o, check(o)) }

func render(o provider.Object, s Secret) (Rendered, error) {
	if err := check(o); err != nil {
		return Rendered{}, err
	}
	if len(s.Data) == 0 {
		return Rendered{}, invalid("secretPath", "the backend answered without data",
			"check that secretPath holds a secret and that method is right for it")
	}
	files, err := formats[o.Format].render(o, s)
	if err != nil {
		return Rendered{}, err
	}
	stable := files
	if o.Format == "" && o.Key == "" {
		data, err := hashicorpJSON(responseData(s))
		if err != nil {
			return Rendered{}, err
		}
		stable = []File{{o.Name, data}}
	}
	return Rendered{Files: files, Stable: frame(stable)}, nil
}

func check(o provider.Object) error {
	f, known := formats[o.Format]
	switch {
	case !known:
		names := slices.Sorted(maps.Keys(formats))[1:] // without ""
		return invalid("format", "the format "+quoteName(o.Format)+" is not known", "use one of "+strings.Join(names, ", "))
	case !validPath(o.Name):
		return invalid("objectName", "the name is no path that the driver accepts",
			"use a relative path without \"..\" and control characters, of names up to 255 bytes")
	case !f.oneKey && o.Key != "":
		return invalid("secretKey", "format "+o.Format+" writes the whole data", "remove secretKey, or use format raw")
	case !f.oneKey && o.Encoding != "":
		return invalid("encoding", "format "+o.Format+" decodes no values", "remove encoding, or use format raw with secretKey")
	case f.check != nil:
		return f.check(o)
	}
	return nil
}

// single makes the renderer of a format with one file, named as the object.
func single(render func(provider.Object, Secret) ([]byte, error)) func(provider.Object, Secret) ([]File, error) {
	return func(o provider.Object, s Secret) ([]File, error) {
		data, err := render(o, s)
		return []File{{o.Name, data}}, err
	}
}

// frame joins paths and bytes so that no two different lists give equal bytes.
func frame(files []File) []byte {
	var b []byte
	for _, f := range files {
		b = binary.BigEndian.AppendUint64(b, uint64(len(f.Path)))
		b = append(b, f.Path...)
		b = binary.BigEndian.AppendUint64(b, uint64(len(f.Data)))
		b = append(b, f.Data...)
	}
	return b
}

// validPath holds the driver's rules and forbids the control characters that
// the driver lets through.
func validPath(p string) bool {
	if p == "." || len(p) > maxPath || path.Clean(p) != p || path.IsAbs(p) || strings.HasPrefix(p, "..") || hasControl(p) {
		return false
	}
	return !slices.ContainsFunc(strings.Split(p, "/"), func(name string) bool { return len(name) > maxName })
}

func hasControl(s string) bool {
	return strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f })
}

func invalid(field, cause, remedy string) error {
	return &provider.Error{Class: provider.Invalid, Field: field, Cause: cause, Remedy: remedy}
}

// blame says whose error it is.
func blame(o provider.Object, err error) error {
	var e *provider.Error
	if errors.As(err, &e) {
		e.Object, e.Tenant = o.Name, o.Tenant
	}
	return err
}
