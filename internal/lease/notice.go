package lease

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// Notice is the reason of what a pod's owner should hear of: one word, as
// Kubernetes wants it of an Event.
type Notice string

// The notices. Each of the first five is a condition that is told once when it
// begins, and again when it begins again.
const (
	NoticeFailing  Notice = "CredentialNotRenewed" // renewal and replacement have failed through half of the life that was left
	NoticeIdentity Notice = "NeedsIdentity"        // nothing can be replaced before the next republish
	NoticeExpired  Notice = "CredentialExpired"    // a credential in the files is past its end
	NoticeChange   Notice = "ChangeNotCarriedOut"  // an edited SPC can't be carried out
	NoticeSubPath  Notice = "SubPathNotUpdated"    // a container has a part of the volume by subPath, which nothing updates
	NoticeToken    Notice = "TokenRestricted"      // the Vault role gives tokens that can't be revoked, or may not renew
	NoticeWarning  Notice = "SpecWarning"          // something in the SPC is ignored
	NoticeTenant   Notice = "TenantWithoutFiles"   // a tenant is left out, or the cluster's rules withdraw it
)

// tell passes a notice on. mu is held.
func (w *worker) tell(n Notice, text string) {
	if events := w.m.Cluster.Events; events != nil {
		events.Notify(w.rec.Pod, n, text)
	}
}

// announce tells which conditions have begun since it was last called. mu is held.
func (w *worker) announce(now time.Time) {
	found := w.conditions(now)
	told := make(map[Notice]string, len(found))
	for _, n := range slices.Sorted(maps.Keys(found)) {
		c := found[n]
		told[n] = c.about
		if about, known := w.told[n]; !known || about != c.about {
			w.log.Warn("the pod's owner should look", "notice", n, "text", c.text)
			w.tell(n, c.text)
		}
	}
	w.told = told
}

// condition is one that holds now.
type condition struct {
	about string // another one is another condition, though of the same kind
	text  string
}

// conditions finds what holds of a volume that a pod reads. mu is held.
func (w *worker) conditions(now time.Time) map[Notice]condition {
	found := map[Notice]condition{}
	v := w.report(now)
	if v.State == Ending || v.State == Waiting || w.gone {
		return found
	}
	for i, l := range w.rec.current() {
		switch {
		case v.Leases[i].State == Expired:
			found[NoticeExpired] = condition{text: l.named() + "the credential has ended" + at(v.Leases[i].Expires) +
				"; the file stays and attempts go on" + because(l.Problem, v.Problem)}
		case v.State != NeedsIdentity && v.Leases[i].Failing:
			found[NoticeFailing] = condition{text: l.named() + "keeping the credential fresh fails; it ends" + at(v.Leases[i].Expires) + because(l.Problem)}
			if l.Kind != Leased {
				found[NoticeFailing] = condition{text: l.named() + "looking for a new value fails, the old one stays" + because(l.Problem)}
			}
		}
	}
	if v.State == NeedsIdentity {
		found[NoticeIdentity] = condition{text: "nothing can be replaced before the driver's next republish" + because(v.Problem)}
	}
	if c := w.change; c != nil && c.tries > 0 {
		found[NoticeChange] = condition{about: c.hash, text: "the changed SecretProviderClass is not carried out, the old files stay" + because(c.err.Error())}
	}
	if of := w.subPaths(); len(of) > 0 {
		about := strings.Join(of, ", ")
		found[NoticeSubPath] = condition{about: about, text: fmt.Sprintf("volume %q is mounted with subPath in container %s: Kubernetes never updates such a mount, "+
			"and the credential there ends; mount the volume without subPath and read the file below its mountPath", w.rec.volume(), about)}
	}
	return found
}

// at is a time in a sentence; nothing for none.
func at(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return " at " + t.UTC().Format(time.RFC3339)
}

// because is the first known cause in a sentence.
func because(causes ...string) string {
	for _, c := range causes {
		if c != "" {
			return ": " + c
		}
	}
	return ""
}

// named is how a text says which objects it is about.
func (l *lease) named() string {
	names := make([]string, 0, len(l.Objects))
	for _, o := range l.Objects {
		names = append(names, fmt.Sprintf("%q", o.ID))
	}
	return strings.Join(names, ", ") + ": "
}

// failing reports whether attempts have failed through half of the life that was
// left when the lease fell due. What has no end fails when it is not tried at the
// pace of retries any more.
func (l *lease) failing(end, now time.Time) bool {
	if end.IsZero() {
		return l.Tries > looksInARow
	}
	return l.Tries > 0 && passed(now, l.half(end))
}

// half is the middle between when the lease fell due and its end.
func (l *lease) half(end time.Time) time.Time { return l.Due.Add(end.Sub(l.Due) / 2) }

// worsens returns when time alone makes a lease's condition worse; zero: never.
func (r *Record) worsens(l *lease, now time.Time) time.Time {
	end := r.end(l)
	switch {
	case end.IsZero() || passed(now, end):
		return time.Time{}
	case l.Tries > 0 && !passed(now, l.half(end)):
		return l.half(end)
	}
	return end
}
