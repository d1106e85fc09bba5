package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	lookEvery = 200 * time.Millisecond // how often what is waited for is looked at
	silence   = 5 * time.Second        // after that we say that we still wait
)

// narrator tells what happens, with the time since its start.
type narrator struct {
	step int   // the number of the present step
	lost error // why nobody can read us any more

	w           io.Writer
	bold        bool
	start, last time.Time // of the first and of the latest words
	giveUp      func()
}

// newNarrator writes to w, steps in bold where that means something, and calls
// giveUp when it can't write.
func newNarrator(w io.Writer, bold bool, giveUp func()) *narrator {
	now := time.Now()
	return &narrator{w: w, bold: bold, start: now, last: now, giveUp: giveUp}
}

// onTerminal reports whether somebody watches who can see bold text.
func onTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
}

// begin opens the next step.
func (n *narrator) begin(format string, args ...any) {
	n.step++
	text := fmt.Sprintf("%d. "+format, append([]any{n.step}, args...)...)
	if n.bold {
		text = "\x1b[1m" + text + "\x1b[0m"
	}
	n.print(fmt.Sprintf("\n[%5.1f s] %s\n", time.Since(n.start).Seconds(), text))
}

// say tells something of the present step.
func (n *narrator) say(format string, args ...any) {
	n.print(fmt.Sprintf("[%5.1f s]    %s\n", time.Since(n.start).Seconds(), fmt.Sprintf(format, args...)))
}

// show prints text as it is, set off from what we say.
func (n *narrator) show(text string) {
	for line := range strings.Lines(strings.TrimRight(text, "\n") + "\n") {
		n.print(strings.TrimRight("              "+line, " \n") + "\n")
	}
}

func (n *narrator) print(text string) {
	n.last = time.Now()
	if _, err := io.WriteString(n.w, text); err != nil && n.lost == nil {
		n.lost = fmt.Errorf("writing the output: %w", err)
		n.giveUp()
	}
}

// await looks until look reports that it has come, and is never silent for long
// meanwhile. It fails with look, after most, or when ctx ends.
func (n *narrator) await(ctx context.Context, what string, most time.Duration, look func() (bool, error)) error {
	began, tick := time.Now(), time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		done, err := look()
		if ctx.Err() != nil {
			return fmt.Errorf("waiting for %s: %w", what, context.Cause(ctx))
		}
		if err != nil || done {
			return err
		}
		waited := time.Since(began)
		if waited >= most {
			return fmt.Errorf("waiting for %s: it did not come within %s", what, most)
		}
		if time.Since(n.last) >= silence {
			n.say("Waiting for %s: %.0f s so far.", what, waited.Seconds())
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
}
