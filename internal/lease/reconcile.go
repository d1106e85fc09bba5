package lease

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/tenure-csi/tenure/internal/volume"
	"github.com/tenure-csi/tenure/provider"
)

// order is what a volume is to become, and how urgently.
type order struct {
	spec     spec
	parsed   *parsedSpec
	due      map[*lease]Reason // held, and to be issued again
	live     bool              // the present files are there and can be kept
	work     Work
	deadline time.Time       // when whoever waits is answered
	ctx      context.Context // background work stops waiting when it ends
	withdraw bool            // files are taken away at once, and nothing is read
	asHeld   bool            // for the tenants whose files are there, whoever is one by now
}

// mountSpec brings the volume to a spec, for a Mount or a retried change.
func (w *worker) mountSpec(o order) error {
	parsed, err := w.parse(o)
	if err == nil {
		err = parsed.refusal()
	}
	if err != nil {
		return err
	}
	o.parsed = parsed
	if err = w.reconcile(o); err == nil {
		w.rotateAfter(time.Now())
	}
	return err
}

// reconcile is the one way in which a volume changes: what the order's spec
// wants and the volume does not hold, or holds and has to be issued again, is
// issued; then all files are switched at once. Nothing changes when a part fails.
func (w *worker) reconcile(o order) error {
	wants, missing := w.compare(o)
	a := w.attemptFor(o.spec.Hash)
	err := w.obtain(a, wants, missing, o)
	out := map[string]error(nil)
	if err != nil {
		if out = w.skippable(a, wants, missing, o, err); out != nil {
			wants, missing, err = leave(out, wants), leave(out, missing), nil
		}
	}
	if err == nil {
		err = w.swap(a, wants, o)
	}
	if o.live && !o.withdraw && errors.Is(err, volume.ErrLost) { // somebody took a file away
		o.live = false
		return w.reconcile(o)
	}
	now := time.Now()
	if err != nil {
		a.keep = now.Add(keepAttempt)
	} else {
		w.release(a, missing, now)
		w.locked(func() { w.leftOut(out, o) })
	}
	w.settle(now)
	w.saveBestEffort()
	return err
}

// release lets go of an attempt whose reads are in the files. Reads still out,
// left behind by a rotation, stay for the retry.
func (w *worker) release(a *attempt, used []*wanted, now time.Time) {
	out := false
	w.mu.Lock()
	for _, want := range used {
		delete(a.reads, want.print)
	}
	for _, r := range a.reads {
		out = out || r.lease == nil && (!r.returned() || r.err == nil)
	}
	if out {
		clear(a.grants)
		a.keep = now.Add(keepAttempt)
	}
	w.mu.Unlock()
	if !out {
		w.dropAttempt()
	}
}

// compare finds out what is wanted and what of it must be issued, and why.
func (w *worker) compare(o order) (wants, missing []*wanted) {
	held := map[string]*lease{}
	for _, l := range w.rec.current() {
		held[l.Print] = l
	}
	for _, read := range o.parsed.reads {
		if w.awaited(read.read.Tenant, o) {
			continue
		}
		want := &wanted{}
		*want = read
		wants = append(wants, want)
		want.prior = held[want.print]
		switch {
		case w.rec.Current == nil:
			want.reason = First
		case want.prior == nil && w.rec.Current.Spec.Hash == o.spec.Hash:
			want.reason = TenantChange
		case want.prior == nil:
			want.reason = SpecEdit
		case !o.live:
			want.reason = Lost
		default:
			want.reason = o.due[want.prior]
		}
		if want.reason != "" {
			missing = append(missing, want)
		}
	}
	return wants, missing
}

// obtain gets an answer for every missing read. For a Mount it tries again what
// failed for a passing reason and certainly made nothing, until the deadline.
func (w *worker) obtain(a *attempt, wants, missing []*wanted, o order) error {
	for try := 1; ; try++ {
		err := w.issue(a, missing, o)
		pause := backoff(try, 500*time.Millisecond, 8*time.Second)
		if err == nil || o.work != Mounting || !repeatable(err) || time.Now().Add(pause).After(o.deadline) || w.skippable(a, wants, missing, o, err) != nil {
			return err
		}
		select {
		case <-time.After(pause):
		case <-w.m.ctx.Done():
			return err
		}
	}
}

// repeatable reports whether a failed call may be made again at once: the fault
// may pass, and nothing was made. A token that is dead at its first use is
// followed by another login.
func repeatable(err error) bool {
	var all provider.Errors
	if !errors.As(err, &all) {
		var f *Failure
		return errors.As(err, &f) && (f.Problem.Class.Passing() || f.Verdict == DeadAuth) && !f.MayHaveMinted
	}
	return !slices.ContainsFunc(all, func(e *provider.Error) bool { return !repeatable(e) })
}

// issue sends the reads that have no answer yet and waits for all.
func (w *worker) issue(a *attempt, missing []*wanted, o order) error {
	var send []*wanted
	var blocked error
	mints := false
	for _, want := range missing {
		r := a.reads[want.print]
		if r != nil && (!r.returned() || r.err == nil || r.lease != nil) {
			continue // under way, answered, or answered with what can't be written
		}
		if err := w.guarded(want); err != nil {
			if o.work == Mounting && !o.skips(want) {
				return err
			}
			blocked = err
			delete(a.reads, want.print)
			continue // the others need not wait for it
		}
		send = append(send, want)
		mints = mints || !want.looks()
	}
	if len(send) > 0 {
		grants, err := w.grantsFor(a, send, o)
		if err != nil && (o.parsed.tenants == nil || !slices.ContainsFunc(grants, func(g *grant) bool { return g != nil })) {
			return err
		}
		blocked = cmp.Or(blocked, err) // of some tenants: the others need not wait for them
		if mints {                     // what they are made under must be known first
			if err := w.save(); err != nil {
				return err
			}
		}
		for i, want := range send {
			if grants[i] == nil {
				delete(a.reads, want.print)
				continue
			}
			w.send(a, want, grants[i], w.caller(o.work), w.urgency(want.prior))
		}
	}
	waitErr := w.await(a, missing, o)
	err := w.take(a, missing)
	if mints {
		err = cmp.Or(err, w.save())
	}
	return cmp.Or(err, waitErr, blocked)
}

func (w *worker) caller(k Work) Caller { return Caller{Pod: w.rec.Pod, Work: k} }

// urgency is the deadline by which background work is ordered.
func (w *worker) urgency(l *lease) time.Time {
	if l == nil || l.Expires.IsZero() {
		return time.Now().Add(time.Hour)
	}
	return w.rec.end(l)
}

// await waits until every missing read has returned or nobody waits any longer.
// Tenants that may be left out are waited for only as long as answers keep coming.
func (w *worker) await(a *attempt, missing []*wanted, o order) error {
	timeout, quiet := time.NewTimer(time.Until(o.deadline)), time.NewTicker(skipsAfter)
	defer timeout.Stop()
	defer quiet.Stop()
	answered, stuck := -1, false
	var late error
	for _, want := range missing {
		for r := a.reads[want.print]; r != nil && !r.returned(); {
			if stuck && o.skips(want) {
				late = unanswered(want)
				break
			}
			select {
			case <-r.done:
			case <-quiet.C:
				was := answered
				answered = a.answered()
				stuck = answered == was
			case <-timeout.C:
				return unanswered(want)
			case <-o.ctx.Done():
				return blame(want, &provider.Error{Class: provider.Unavailable, Cause: "the rotation made way for a Mount; it is taken up again"})
			}
		}
	}
	return late
}

func unanswered(want *wanted) error {
	return blame(want, &provider.Error{
		Class: provider.Deadline, Cause: "no answer to the read of " + want.read.Subject() + " yet; it goes on, and the next try uses its answer",
	})
}

// take turns answers into leases and file contents, and failures into one error.
func (w *worker) take(a *attempt, missing []*wanted) error {
	var errs provider.Errors
	room := volume.MaxBytes
	for _, want := range missing {
		if r := a.reads[want.print]; r != nil {
			room -= dataBytes(r.files)
		}
	}
	for _, want := range missing {
		r := a.reads[want.print]
		if r == nil || !r.returned() {
			continue
		}
		if r.err == nil && r.lease == nil {
			w.minted(want, r.issued)
			r.err = w.render(r, room)
			room -= dataBytes(r.files)
			if r.err != nil && (r.issued.Kind == Polled || r.refused != nil) {
				delete(a.reads, want.print) // asking again may help
			}
		} else if r.err != nil && r.lease == nil {
			w.failed(want, r.err)
			if verdict, _ := verdictOf(r.err); verdict == DeadAuth {
				w.locked(func() { w.tokenDied(r.grant, time.Now()) })
			}
		}
		if r.err != nil {
			errs = append(errs, blame(want, r.err))
		}
	}
	if len(errs) == 0 {
		return nil
	}
	return errs
}

// blame completes an error with the object and tenant that it is about.
func blame(want *wanted, err error) *provider.Error {
	var e *provider.Error
	if !errors.As(err, &e) {
		e = &provider.Error{Cause: err.Error(), Err: err}
	}
	named := *e
	if named.Object == "" {
		named.Object = want.objects[0].Name
	}
	if named.Tenant == "" {
		named.Tenant = want.objects[0].Tenant
	}
	named.Err = err // keeps the Failure findable
	return &named
}

// swap writes the new generation and makes it the present one.
func (w *worker) swap(a *attempt, wants []*wanted, o order) error {
	now := time.Now()
	gen := &generation{Dir: volume.NewDirName(now), Spec: o.spec}
	gen.Withdraws = o.withdraw || w.withdrawn(o.parsed) != nil || w.rec.Current != nil && w.rec.Current.Spec.Hash == o.spec.Hash && w.rebound(o.parsed)
	var files []volume.File
	changed := !o.live || w.rec.Current == nil || len(wants) != len(w.rec.Current.Leases)
	for i, want := range wants {
		l, content := want.prior, []volume.File(nil)
		if r := a.reads[want.print]; want.reason != "" && r != nil {
			l, content = r.lease, r.files
			if o.live && want.prior != nil && sameFiles(want.prior, l) {
				if l.LeaseID == "" { // only the look is new
					w.looked(want.prior, l)
					l = want.prior
				}
				content = nil
			} else {
				changed = true
			}
		}
		if content == nil {
			content = kept(l)
		}
		changed = changed || w.rec.Current.Leases[i] != l.ID
		gen.Leases = append(gen.Leases, l.ID)
		files = append(files, content...)
	}
	if !o.withdraw {
		w.locked(func() { w.space(gen, wants) })
	}
	if !changed {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.rec.Current.Spec = o.spec
		w.carried(o)
		for _, g := range w.rec.Grants {
			g.Pending = g.Pending && !a.grants[g.ID]
		}
		return nil
	}
	return w.write(gen, files, o, now)
}

// write journals the new generation, switches the files and adopts it.
func (w *worker) write(gen *generation, files []volume.File, o order, now time.Time) error {
	if err := w.grow(gen, o); err != nil {
		return err
	}
	w.mu.Lock()
	w.rec.Pending = gen
	w.mu.Unlock()
	foreign, lookErr := w.m.Files.Current(w.rec.Target)
	if lookErr != nil || w.rec.Current != nil && foreign == w.rec.Current.Dir {
		foreign = "" // nothing, or our own
	}
	err := w.save()
	if err == nil {
		g := volume.Generation{Dir: gen.Dir, Files: files}
		for _, d := range w.rec.Retired {
			g.Retain = append(g.Retain, d.Dir)
		}
		if w.rec.Current != nil {
			g.Retain = append(g.Retain, w.rec.Current.Dir)
		}
		err = w.m.Files.Write(w.rec.Target, g)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.rec.Pending = nil
	if err != nil {
		w.away = w.away || errors.Is(err, volume.ErrNotMounted)
		return err
	}
	w.adoptGeneration(gen, now)
	if foreign != "" { // what another provider wrote goes like a generation of ours
		w.rec.Retired = append(w.rec.Retired, retired{Dir: foreign, Until: now.Add(minRetain)})
	}
	w.carried(o)
	w.forgetRecent()
	if !slices.ContainsFunc(files, func(f volume.File) bool { return f.Keep }) {
		w.keepRecent(&recent{dir: gen.Dir, files: files, until: now.Add(keepAttempt)})
	}
	if o.work != Mounting { // a Mount's answer tells the driver
		w.switched()
	}
	return nil
}

// carried notes that the volume is as the order's spec wants it. mu is held.
func (w *worker) carried(o order) {
	if w.parsed = o.parsed; o.withdraw {
		w.parsed = nil // the review that goes on finds out
		return
	}
	if o.due != nil { // a rotation leaves a failed edit as it is
		return
	}
	if o.work == Mounting || w.change != nil && w.change.hash == o.spec.Hash { // else a newer edit has come
		w.change, w.refusal = nil, nil
	}
	if len(o.parsed.warnings) > 0 {
		w.tell(NoticeWarning, strings.Join(o.parsed.warnings, "; "))
	}
}

// adoptGeneration makes gen the present generation; the overlap of what it
// replaces begins.
func (w *worker) adoptGeneration(gen *generation, now time.Time) {
	old, was := w.rec.Current, w.rec.current()
	w.rec.Current = gen
	for _, g := range w.rec.Grants {
		g.Pending = false
	}
	w.versions = versions(w.rec.current())
	if old == nil {
		return
	}
	until := now.Add(minRetain)
	stays := w.heldTenants()
	for _, l := range was {
		if slices.Contains(gen.Leases, l.ID) || gen.Withdraws && !stays[l.Tenant] {
			continue
		}
		l.Until = now.Add(l.Overlap)
		if end := w.rec.end(l); !end.IsZero() && end.Before(l.Until) {
			l.Until = end
		}
		if l.Until.After(until) {
			until = l.Until
		}
	}
	if gen.Withdraws {
		until = now
		w.rec.forgo(stays, now)
	}
	if old.Dir != gen.Dir {
		w.rec.Retired = append(w.rec.Retired, retired{Dir: old.Dir, Until: until})
	}
}
