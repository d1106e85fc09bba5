package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"
	"unicode/utf8"

	"github.com/tenure-csi/tenure/internal/lease"
)

const (
	busyAfter      = 3 * time.Second        // work that takes longer says that it goes on
	lookEvery      = 200 * time.Millisecond // what changed, for somebody who watches
	republishEvery = 15 * time.Second       // the driver's own default is two minutes; here somebody waits for his edit
)

// busy says every few seconds that something is still under way, and what
// stands in its way.
func (t *trial) busy(what string) (done func()) {
	stop, stopped := make(chan struct{}), make(chan struct{})
	start := time.Now()
	go func() {
		defer close(stopped)
		tick := time.NewTicker(busyAfter)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
			}
			line := fmt.Sprintf("still %s, for %s now", what, time.Since(start).Round(time.Second))
			if trouble := t.witness.last(); trouble != "" {
				line += ": " + trouble
			}
			fmt.Fprintln(t.stderr, line)
		}
	}()
	return func() { close(stop); <-stopped }
}

// print shows the volume: files, leases, and what is in the files where asked.
func (t *trial) print() error {
	fmt.Fprintf(t.stdout, "Mounted at %s for a pod of service account %s/%s.\n\n", t.link, t.pod.Namespace, t.pod.ServiceAccount)
	if err := t.printFiles(); err != nil {
		return fmt.Errorf("reading the volume: %w", err)
	}
	fmt.Fprintln(t.stdout)
	return printStatus(t.stdout, t.manager.Status(), time.Now())
}

func (t *trial) printFiles() error {
	data, err := os.OpenRoot(filepath.Join(t.target, "..data"))
	if err != nil {
		return err
	}
	defer data.Close()
	table := tabwriter.NewWriter(t.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "FILE\tMODE\tOWNER\tBYTES")
	var contents strings.Builder
	err = fs.WalkDir(data.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		owner := info.Sys().(*syscall.Stat_t)
		row(table, name, fmt.Sprintf("%04o", info.Mode().Perm()), fmt.Sprintf("%d:%d", owner.Uid, owner.Gid), fmt.Sprint(info.Size()))
		if t.show {
			text, err := data.ReadFile(name)
			if err != nil {
				return err
			}
			fmt.Fprintf(&contents, "\n==> %s <==\n%s\n", name, shown(text))
		}
		return nil
	})
	if err == nil {
		err = table.Flush()
	}
	fmt.Fprint(t.stdout, contents.String())
	return err
}

// shown is a file's content as a terminal can show it.
func shown(text []byte) string {
	if !utf8.Valid(text) {
		return "(no text)"
	}
	return strings.TrimRight(strings.Map(func(r rune) rune {
		if r < ' ' && r != '\n' && r != '\t' {
			return '?'
		}
		return r
	}, string(text)), "\n")
}

// status is what is held for the volume.
func (t *trial) status() lease.VolumeStatus {
	for _, v := range t.manager.Status() {
		return v
	}
	return lease.VolumeStatus{}
}

// follow prints what changes until ctx ends. Like the driver it mounts again
// and again, with the SPC and the token as they are in the files by then.
func (t *trial) follow(ctx context.Context) {
	fmt.Fprintln(t.stdout, "\nWatching; Ctrl-C ends the leases and removes the files.")
	seen, unread := t.status(), ""
	look, republish := time.NewTicker(lookEvery), time.NewTicker(republishEvery)
	defer look.Stop()
	defer republish.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-republish.C:
			if err := t.again(ctx); err != nil && err.Error() != unread {
				unread = err.Error()
				t.say(time.Now(), "not mounted again: "+unread)
			} else if err == nil {
				unread = ""
			}
		case now := <-look.C:
			is := t.status()
			for _, line := range changes(seen, is, now) {
				t.say(now, line)
			}
			seen = is
		}
	}
}

// again is a republish.
func (t *trial) again(ctx context.Context) error {
	r, err := t.request()
	if err != nil {
		return err
	}
	if _, err = t.manager.Mount(ctx, r); ctx.Err() != nil {
		return nil //nolint:nilerr // told to end meanwhile
	}
	return err
}

func (t *trial) say(now time.Time, line string) {
	fmt.Fprintf(t.stdout, "%s  %s\n", now.Format(time.TimeOnly), printable(line))
}

// because says what was done, for each reason.
var because = map[lease.Reason]string{
	lease.First:     "issued",
	lease.Scheduled: "replaced, as planned",
	lease.Truncated: "replaced: a renewal gave less than asked, its last end was near",
	lease.Lost:      "replaced: Vault did not know or renew it any more",
	lease.TokenEnd:  "replaced: it would have ended with its token",
	lease.SpecEdit:  "issued: the SecretProviderClass has changed",
	lease.Content:   "written: the data has changed",

	lease.TenantChange: "issued: its tenant is new, or a rule asks for new credentials",
}

// changes says in a line each what has become of a volume.
func changes(was, is lease.VolumeStatus, now time.Time) []string {
	var lines []string
	before := map[int]lease.LeaseStatus{}
	for _, l := range was.Leases {
		before[l.ID] = l
	}
	for _, l := range is.Leases {
		name := strings.Join(l.Objects, ",")
		old, known := before[l.ID]
		switch {
		case !known:
			lines = append(lines, name+": "+because[l.Reason]+lasts(l.Expires, now))
		case !l.Expires.IsZero() && l.Expires.After(old.Expires):
			lines = append(lines, name+": renewed"+lasts(l.Expires, now))
		case l.State == lease.Expired && old.State != lease.Expired:
			lines = append(lines, name+": expired")
		}
		if l.Problem != "" && l.Problem != old.Problem {
			lines = append(lines, name+": "+l.Problem)
		}
	}
	for _, out := range is.LeftOut {
		if !slices.ContainsFunc(was.LeftOut, func(t lease.TenantStatus) bool { return t.Tenant == out.Tenant && t.Problem == out.Problem }) {
			lines = append(lines, "tenant "+out.Tenant+" left out: "+out.Problem)
		}
	}
	if is.Problem != "" && is.Problem != was.Problem {
		lines = append(lines, is.Problem)
	}
	return lines
}

func lasts(end, now time.Time) string {
	if end.IsZero() {
		return ""
	}
	return ", works until " + clock(end, now)
}

// clock is a time for somebody who waits for it.
func clock(t, now time.Time) string {
	if t.IsZero() {
		return "it is revoked"
	}
	return t.Format(time.DateTime) + " (" + until(t, now) + ")"
}

// leave lets the credentials live on, and says for how long.
func (t *trial) leave() error {
	ctx, cancel := context.WithTimeout(context.Background(), readDrain)
	defer cancel()
	err := t.manager.Close(ctx)
	t.source.Close()
	t.cloud.Close()
	trees := t.root
	if t.dir != "" {
		trees += " " + t.dir
	}
	fmt.Fprintf(t.stdout, "\nKept: nothing renews or replaces the files from now on. To remove them: rm -r %s\n", trees)
	t.printLeft("What they need at Vault ends by itself, or now by hand:")
	return err
}

func (t *trial) printLeft(heading string) {
	lines := t.witness.left(time.Now())
	if len(lines) > 0 {
		fmt.Fprintf(t.stdout, "%s\n  %s\n", heading, strings.Join(lines, "\n  "))
	}
}

// end removes the files, as when the pod is deleted, and waits until every end
// that is owed to Vault is done. A second Ctrl-C stops the waiting.
func (t *trial) end() error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, readDrain)
	defer cancel()
	removed := os.RemoveAll(t.podDir())
	t.manager.Sweep()
	ended := t.await(ctx)
	trouble := t.witness.last()
	if err := errors.Join(removed, t.close()); err != nil {
		return fmt.Errorf("removing the files: %w", err)
	}
	if !ended || !t.witness.idle() {
		t.printLeft("Left at Vault:")
		return fmt.Errorf("ending the leases: Vault has not answered; %s", cmp.Or(trouble, "see that it runs"))
	}
	t.printLeft("This can't be ended early:")
	switch {
	case !t.mounted: // the error says enough
	case t.watch:
		fmt.Fprintln(t.stdout, "Ended: the leases are given back and the files removed.")
	default:
		fmt.Fprintln(t.stdout, "\nEnded: the leases are given back and the files removed. To use the files, say --watch or --keep.")
	}
	return nil
}

// await reports whether nothing is owed any more before ctx ends.
func (t *trial) await(ctx context.Context) bool {
	defer t.busy("ending the leases (Ctrl-C gives up)")()
	look := time.NewTicker(lookEvery / 4)
	defer look.Stop()
	for len(t.manager.Status()) > 0 && !t.witness.idle() {
		select {
		case <-ctx.Done():
			return false
		case <-look.C:
		}
	}
	return true
}
