package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/tenure-csi/tenure/internal/admin"
	"github.com/tenure-csi/tenure/internal/lease"
)

// status asks the running daemon what it holds and prints it.
func status(ctx context.Context, args []string, stdout io.Writer) error {
	flags := flag.NewFlagSet("status", flag.ContinueOnError)
	socket := flags.String("status-socket", filepath.Join(defaultStateDir, socketName+".sock"), "`path` of the daemon's status socket: status.sock in its --state-dir")
	output := flags.String("o", "table", "`format`: table or json")
	if ok, err := parse(flags, args, stdout); !ok {
		return err
	}
	if *output != "table" && *output != "json" {
		return &usageError{fmt.Errorf("-o %q is not known; use table or json", *output)}
	}
	var volumes []lease.VolumeStatus
	err := admin.Fetch(ctx, *socket, &volumes)
	switch {
	case errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("%w; no daemon serves this socket: name its --status-socket", err)
	case errors.Is(err, fs.ErrPermission) || errors.Is(err, io.EOF):
		return fmt.Errorf("%w; only root and the daemon's own user are answered", err)
	case err != nil:
		return err
	}
	if *output == "json" {
		out := json.NewEncoder(stdout)
		out.SetIndent("", "  ")
		return out.Encode(volumes)
	}
	return printStatus(stdout, volumes, time.Now())
}

// printStatus prints a line for each lease, and below what needs somebody.
func printStatus(w io.Writer, volumes []lease.VolumeStatus, now time.Time) error {
	slices.SortFunc(volumes, func(a, b lease.VolumeStatus) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Pod, b.Pod), cmp.Compare(a.Target, b.Target))
	})
	leases, owed := 0, 0
	for _, v := range volumes {
		leases += len(v.Leases)
		owed += v.Owed
	}
	fmt.Fprintf(w, "%s: %s, %s, %s owed to the backend\n", now.UTC().Format("2006-01-02 15:04:05 UTC"),
		count(len(volumes), "volume"), count(leases, "lease"), count(owed, "end"))
	if len(volumes) == 0 {
		return nil
	}
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	tenants := slices.ContainsFunc(volumes, func(v lease.VolumeStatus) bool { return v.HasTenants() })
	head := []string{"NAMESPACE", "POD", "OBJECTS", "STATE", "EXPIRES", "NEXT", "REASON"}
	if tenants { // else the column says nothing
		head = append(head, "TENANT")
	}
	fmt.Fprintln(table, "\n"+strings.Join(head, "\t"))
	unrevocable := false
	for _, v := range volumes {
		if len(v.Leases) == 0 {
			row(table, v.Namespace, v.Pod, "-", v.State, "-", "-", "-")
		}
		for _, l := range v.Leases {
			state := v.State
			if state == lease.Live || state == lease.Expired { // else the volume's says more
				state = l.State
			}
			expires := until(l.Expires, now)
			if l.Unrevocable {
				unrevocable, expires = true, expires+"*"
			}
			cells := []string{v.Namespace, v.Pod, strings.Join(l.Objects, ","), state, expires, until(l.Next, now), string(l.Reason)}
			if tenants {
				cells = append(cells, cmp.Or(l.Tenant, "-"))
			}
			row(table, cells...)
		}
	}
	if err := table.Flush(); err != nil {
		return err
	}
	if unrevocable {
		fmt.Fprintln(w, "\n* Nobody can end it early: it works until then, also when its pod is gone.")
	}
	printProblems(w, volumes)
	return nil
}

func row(w io.Writer, cells ...string) {
	for i, cell := range cells {
		cells[i] = printable(cell)
	}
	fmt.Fprintln(w, strings.Join(cells, "\t"))
}

// printProblems prints what goes wrong, with the way out, each text once a volume.
func printProblems(w io.Writer, volumes []lease.VolumeStatus) {
	heading := "\nPROBLEMS\n"
	for _, v := range volumes {
		texts := []string{v.Problem}
		for _, l := range v.Leases {
			texts = append(texts, l.Problem)
		}
		for _, out := range v.LeftOut {
			texts = append(texts, "tenant "+out.Tenant+" left out: "+out.Problem)
		}
		for _, text := range v.Warnings {
			texts = append(texts, "warning: "+text)
		}
		for i, text := range texts {
			if text == "" || slices.Contains(texts[:i], text) {
				continue
			}
			fmt.Fprintf(w, "%s%s/%s: %s\n", heading, printable(v.Namespace), printable(v.Pod), printable(text))
			heading = ""
		}
	}
}

// printable keeps pod authors from writing to the operator's terminal.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '?'
	}, s)
}

// until says how long it is from now to t: "42m10s", "3h5m", "6d2h", "5s ago".
func until(t, now time.Time) string {
	if t.IsZero() {
		return "never"
	}
	d := t.Sub(now).Round(time.Second)
	if d < 0 {
		return until(now.Add(-d), now) + " ago"
	}
	switch hours := int(d.Hours()); {
	case hours >= 48:
		return fmt.Sprintf("%dd%dh", hours/24, hours%24)
	case hours >= 1:
		return fmt.Sprintf("%dh%dm", hours, int(d.Minutes())%60)
	default:
		return d.String()
	}
}

func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
