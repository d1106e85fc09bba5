// Totals runs `go test -json` commands one after the other and says what came of
// them: a line for each package, the whole output of each failure, then the slow
// tests, the skipped ones with their reasons, and as the last line
//
//	N passed, N failed, N skipped
//
// Every test and subtest counts, as go test itself reports them. A package that
// fails without a failed test (it does not compile, it panics, it leaks) counts
// as one failure, and so does a command that ran no test at all.
//
//	totals [-again] 'go test -json ./...' 'go -C test test -json ./...'
//
// With -again, up to three failed tests of a command run once more, alone. One that
// passes then counts as passed and is named at the end as unstable: it is to be
// mended, but does not stop a change that has nothing to do with it. A data race, a
// leak, a panic and what does not compile get no second run.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
)

// event is what test2json and go build print, one a line.
type event struct {
	Action, Package, ImportPath, Test, Output string
	Elapsed                                   float64 // seconds
}

// slow is from how many seconds on a test is named at the end; at most slowShown are.
const (
	slow      = 5.0
	slowShown = 10
)

// accidents is how many failed tests of a command may run again: more are no accident.
const accidents = 3

// failure is a test that failed, with its subtests.
type failure struct {
	pkg, test string
	events    int  // how many of the failed are it
	final     bool // no accident, whatever a second run shows
}

type took struct {
	name    string
	seconds float64
}

type totals struct {
	w                       io.Writer
	passed, failed, skipped int
	output                  map[string]*strings.Builder // of tests and packages that have not ended
	inPackage               map[string]int              // tests that ended, by package
	failedIn                map[string]int              // tests that failed, by package
	broken                  []failure                   // of the present command
	unstable                []string
	skips                   []string
	slow                    []took
}

func main() {
	again := flag.Bool("again", false, "run a failed test once more")
	flag.Parse()
	t := newTotals(os.Stdout)
	for _, line := range flag.Args() {
		t.broken = nil
		t.run(strings.Fields(line))
		if *again && len(t.broken) <= accidents {
			t.again(strings.Fields(line))
		}
	}
	t.summary()
	if t.failed > 0 || t.passed == 0 {
		os.Exit(1)
	}
}

func newTotals(w io.Writer) *totals {
	return &totals{w: w, output: map[string]*strings.Builder{}, inPackage: map[string]int{}, failedIn: map[string]int{}}
}

func (t *totals) run(argv []string) {
	fmt.Fprintf(t.w, "$ %s\n", strings.Join(argv, " "))
	ended, failed := t.passed+t.failed+t.skipped, t.failed
	cmd := exec.CommandContext(context.Background(), argv[0], argv[1:]...) //nolint:gosec // the Makefile's own commands
	cmd.Stderr = os.Stderr
	stdout, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err == nil {
		t.read(stdout)
		err = cmd.Wait()
	}
	switch {
	case err != nil && t.failed == failed:
		t.failed++
		fmt.Fprintf(t.w, "FAIL: running %s: %v\n", argv[0], err)
	case t.passed+t.failed+t.skipped == ended:
		t.failed++
		fmt.Fprintln(t.w, "FAIL: no test ran")
	}
}

// again runs the tests that failed once more, each alone.
func (t *totals) again(argv []string) {
	for strings.HasPrefix(argv[len(argv)-1], "./") {
		argv = argv[:len(argv)-1] // the packages
	}
	for _, f := range t.broken {
		if f.final {
			continue
		}
		second := newTotals(t.w)
		second.run(append(slices.Clone(argv), "-count=1", "-run=^"+f.test+"$", f.pkg))
		if second.failed > 0 || second.passed == 0 {
			continue
		}
		t.failed -= f.events
		t.passed += f.events
		t.unstable = append(t.unstable, f.pkg+" "+f.test)
	}
}

// read takes one command's events to their end.
func (t *totals) read(r io.Reader) {
	lines := bufio.NewReader(r)
	for {
		line, err := lines.ReadBytes('\n')
		var e event
		switch {
		case len(line) == 0:
		case json.Unmarshal(line, &e) == nil:
			t.take(e)
		default:
			_, _ = t.w.Write(line) // not from test2json: pass it on
		}
		if err != nil {
			return
		}
	}
}

func (t *totals) take(e event) {
	key := e.Package + " " + e.Test
	switch e.Action {
	case "build-output":
		fmt.Fprint(t.w, e.Output)
	case "output":
		b := t.output[key]
		if b == nil {
			b = &strings.Builder{}
			t.output[key] = b
		}
		b.WriteString(e.Output)
	case "pass", "fail", "skip":
		if e.Test == "" {
			t.endPackage(e, t.text(key))
		} else {
			t.endTest(e, t.text(key))
		}
		delete(t.output, key)
	}
}

func (t *totals) text(key string) string {
	if b := t.output[key]; b != nil {
		return b.String()
	}
	return ""
}

func (t *totals) endTest(e event, text string) {
	t.inPackage[e.Package]++
	name := e.Package + " " + e.Test
	switch e.Action {
	case "pass":
		t.passed++
	case "fail":
		t.failed++
		t.failedIn[e.Package]++
		t.breaks(e, text)
		fmt.Fprintf(t.w, "\nFAIL: %s\n%s\n", name, text)
	case "skip":
		t.skipped++
		t.skips = append(t.skips, name+": "+reason(text))
	}
	if e.Elapsed >= slow {
		t.slow = append(t.slow, took{name, e.Elapsed})
	}
}

// breaks notes a failed test under the name of the one that it is a part of.
func (t *totals) breaks(e event, text string) {
	test, _, _ := strings.Cut(e.Test, "/")
	i := slices.IndexFunc(t.broken, func(f failure) bool { return f.pkg == e.Package && f.test == test })
	if i < 0 {
		i = len(t.broken)
		t.broken = append(t.broken, failure{pkg: e.Package, test: test})
	}
	t.broken[i].events++
	for _, word := range []string{"DATA RACE", "race detected", "panic: "} {
		t.broken[i].final = t.broken[i].final || strings.Contains(text, word)
	}
}

func (t *totals) endPackage(e event, text string) {
	n := t.inPackage[e.Package]
	switch {
	case e.Action == "skip" || n == 0 && e.Action == "pass":
		fmt.Fprintf(t.w, "-     %s (no tests)\n", e.Package)
	case e.Action == "pass":
		fmt.Fprintf(t.w, "ok    %s (%d tests, %.1fs)\n", e.Package, n, e.Elapsed)
	default:
		if t.failedIn[e.Package] == 0 {
			t.failed++
			fmt.Fprint(t.w, "\n", text, t.unended(e.Package))
		}
		fmt.Fprintf(t.w, "FAIL  %s (%d tests, %.1fs)\n", e.Package, n, e.Elapsed)
	}
}

// unended is what tests said that a panic or a time-out cut off.
func (t *totals) unended(pkg string) string {
	var all strings.Builder
	for key, b := range t.output {
		if strings.HasPrefix(key, pkg+" ") && key != pkg+" " {
			all.WriteString(b.String())
		}
	}
	return all.String()
}

// reason is what a skipped test said, without go test's own lines.
func reason(text string) string {
	var said []string
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if line != "" && !strings.HasPrefix(line, "===") && !strings.HasPrefix(line, "--- SKIP") {
			said = append(said, line)
		}
	}
	if len(said) == 0 {
		return "no reason given"
	}
	return strings.Join(said, " ")
}

func (t *totals) summary() {
	slices.SortFunc(t.slow, func(a, b took) int { return int(1000 * (b.seconds - a.seconds)) })
	if len(t.slow) > 0 {
		fmt.Fprintln(t.w, "\nSlow tests:")
	}
	for _, s := range t.slow[:min(len(t.slow), slowShown)] {
		fmt.Fprintf(t.w, "  %6.1fs %s\n", s.seconds, s.name)
	}
	if len(t.skips) > 0 {
		fmt.Fprintf(t.w, "\nNOT TESTED: %d skipped\n", len(t.skips))
	}
	for _, s := range t.skips {
		fmt.Fprintln(t.w, "  SKIP "+s)
	}
	if len(t.unstable) > 0 {
		fmt.Fprintf(t.w, "\nUNSTABLE: %d failed, and passed when run again alone. Mend them:\n", len(t.unstable))
	}
	for _, name := range t.unstable {
		fmt.Fprintln(t.w, "  UNSTABLE "+name)
	}
	fmt.Fprintf(t.w, "\n%d passed, %d failed, %d skipped\n", t.passed, t.failed, t.skipped)
}
