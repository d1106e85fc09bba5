package lease

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"reflect"
	"time"

	"github.com/tenure-csi/tenure/internal/format"
	"github.com/tenure-csi/tenure/internal/volume"
	"github.com/tenure-csi/tenure/provider"
)

// render makes the lease and the files of an answered read, of at most room bytes.
// The lease is entered even when its answer can't be rendered: it must be ended.
func (w *worker) render(r *reading, room int) error {
	i, want := &r.issued, r.want
	l := &lease{
		Grant: r.grant.ID, Source: want.read.Source, Login: want.read.Login, Print: want.print, Tenant: want.read.Tenant,
		Node: want.read.ByNode(), Made: r.sent,
		Reason: want.reason, LeaseID: i.LeaseID, Kind: i.Kind, Length: i.TTL, Headroom: i.Headroom, Issued: r.sent, Renewable: i.Renewable, Jitter: w.m.leases.next(r.sent),
	}
	if i.TTL > 0 {
		l.Expires = r.sent.Add(i.TTL)
	}
	l.Refresh, l.Overlap = intervals(want.objects, l.Length)
	if want.prior == nil && 2*l.Length < 3*l.Headroom {
		w.log.Warn("a credential lives so briefly that its readers will wait for new ones often; ask for a longer life",
			"object", want.objects[0].Name, "life", l.Length, "readers_want_left", l.Headroom)
	}
	files, objects, err := w.files(r, room)
	l.Objects, l.Bytes = objects, size(files)
	now := time.Now()
	w.locked(func() {
		w.rec.LastID++
		l.ID = w.rec.LastID
		w.rec.Leases = append(w.rec.Leases, l)
		due := time.Time{}
		if want.inTurn() {
			due = want.prior.slot()
		}
		w.rec.schedule(l, due, r.sent, now)
		l.look(now, i.Next)
		// The files are all that is kept of an answer.
		r.lease, r.issued.Secret, r.files, r.holds = l, format.Secret{}, files, int64(dataBytes(files))
	})
	return err
}

// files renders all objects of a read.
func (w *worker) files(r *reading, room int) (files []volume.File, objects []object, err error) {
	if r.refused != nil {
		return nil, nil, r.refused
	}
	for _, o := range r.want.objects {
		out, err := w.format(o, r.issued.Secret)
		if err != nil {
			return nil, nil, err
		}
		ob := object{ID: o.Name, Version: w.version(o, out.Stable)}
		for _, f := range out.Files {
			if room -= len(f.Data); room < 0 { // before all else is rendered too
				return nil, nil, &provider.Error{
					Class: provider.Exhausted, Cause: fmt.Sprintf("the volume's files are over the limit of %d bytes", volume.MaxBytes),
					Remedy: "split the objects over several volumes",
				}
			}
			files = append(files, volume.File{Path: f.Path, Mode: o.Mode, UID: o.UID, GID: o.GID, Data: f.Data})
			ob.Files = append(ob.Files, file{Path: f.Path, Mode: o.Mode, UID: o.UID, GID: o.GID})
		}
		objects = append(objects, ob)
	}
	return files, objects, nil
}

// dataBytes is the length of all files that are not kept.
func dataBytes(files []volume.File) (n int) {
	for _, f := range files {
		n += len(f.Data)
	}
	return n
}

// format is format.Render with a panic as an error: what was read is kept or
// ended all the same, and is never taken for a read without files.
func (w *worker) format(o provider.Object, s format.Secret) (out format.Rendered, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = w.m.panicked(w.log, p)
		}
	}()
	return format.Render(o, s)
}

// version is the object's version: equal on all nodes for equal content, and
// nothing can be learned of the content from it without the key.
func (w *worker) version(o provider.Object, stable []byte) string {
	h := hmac.New(sha256.New, w.m.VersionKey)
	fmt.Fprintf(h, "%q %o %d %d\n", o.Name, o.Mode, o.UID, o.GID)
	h.Write(stable)
	return hex.EncodeToString(h.Sum(nil)[:16])
}

// sameFiles reports whether a new answer gives exactly what the volume shows.
func sameFiles(a, b *lease) bool { return reflect.DeepEqual(a.Objects, b.Objects) }

// kept lists a lease's files, to be carried over.
func kept(l *lease) []volume.File {
	var files []volume.File
	for _, o := range l.Objects {
		for _, f := range o.Files {
			files = append(files, volume.File{Path: f.Path, Mode: f.Mode, UID: f.UID, GID: f.GID, Keep: true})
		}
	}
	return files
}

// looked takes over the times of a look that found nothing new.
func (w *worker) looked(l, found *lease) {
	w.mu.Lock()
	defer w.mu.Unlock()
	l.Due, l.Retry, l.Tries, l.Problem = found.Due, time.Time{}, 0, ""
	l.Expires, l.Length, l.Headroom, l.Issued, l.Made, l.Final, l.Next = found.Expires, found.Length, found.Headroom, found.Issued, found.Made, found.Final, found.Next
}

// intervals returns how often to look at a read again, by its most eager
// object, and how long its credential outlives its replacement, by its most
// patient one.
func intervals(objects []provider.Object, length time.Duration) (refresh, overlap time.Duration) {
	for _, o := range objects {
		if refresh == 0 || o.Refresh < refresh {
			refresh = o.Refresh
		}
		overlap = max(overlap, o.Overlap)
	}
	return refresh, overlapOf(overlap, length)
}

// space takes over how far apart looks are and how long overlaps last, which an SPC
// may change without a file of it. mu is held.
func (w *worker) space(gen *generation, wants []*wanted) {
	for i, want := range wants {
		l := w.rec.lease(gen.Leases[i])
		l.Refresh, l.Overlap = intervals(want.objects, l.Length)
	}
}
