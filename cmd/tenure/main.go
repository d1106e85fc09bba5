// Command tenure is a Secrets Store CSI driver provider: one daemon per node
// that gives pods short-lived credentials as files, keeps them fresh and takes
// them back.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"
)

// version is set by the linker (-X main.version=…).
var version string

const usage = `Usage: tenure COMMAND [FLAGS]

Commands:
  serve     give this node's pods their credentials and keep them fresh
  mount     try a SecretProviderClass here, without a cluster
  status    show what the running daemon holds, and until when
  validate  check SecretProviderClasses in files, without a cluster
  version   print the version

"tenure COMMAND --help" lists the command's flags.
`

// Exit codes: what a caller in a shell or a pod's status sees.
const (
	exitFailed = 1
	exitUsage  = 2
)

func main() {
	// A second signal finds the default handling again and ends the process.
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	context.AfterFunc(ctx, stop)
	os.Exit(command(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// command runs one command line and returns the exit code.
func command(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	if len(args) == 0 {
		fmt.Fprint(stderr, usage)
		return exitUsage
	}
	var err error
	switch args[0] {
	case "serve":
		err = serve(ctx, args[1:], stdout, stderr)
	case "mount":
		err = mount(ctx, args[1:], stdout, stderr)
	case "status":
		err = status(ctx, args[1:], stdout)
	case "validate":
		err = validate(args[1:], os.Stdin, stdout)
	case "version", "--version":
		fmt.Fprintf(stdout, "tenure %s\n", versionText())
	case "help", "--help", "-h":
		fmt.Fprint(stdout, usage)
	default:
		fmt.Fprintf(stderr, "tenure: unknown command %q\n\n%s", args[0], usage)
		return exitUsage
	}
	if err == nil {
		return 0
	}
	// One line a problem, each complete for someone who searches the log.
	for line := range strings.Lines(err.Error()) {
		fmt.Fprintf(stderr, "tenure %s: %s\n", args[0], strings.TrimRight(line, "\n"))
	}
	if bad := (*usageError)(nil); errors.As(err, &bad) {
		fmt.Fprintf(stderr, "Try: tenure %s --help\n", args[0])
		return exitUsage
	}
	return exitFailed
}

// usageError is a command line that can't be understood.
type usageError struct{ error }

// parse parses a command's flags, and arguments between them into places. Asked
// for help, it prints the flags to stdout and answers false.
func parse(flags *flag.FlagSet, args []string, stdout io.Writer, places ...*string) (bool, error) {
	flags.SetOutput(io.Discard)
	flags.Usage = func() {}
	for {
		err := flags.Parse(args)
		if errors.Is(err, flag.ErrHelp) {
			fmt.Fprintf(stdout, "Usage: tenure %s\n\nFlags:\n", synopsis[flags.Name()])
			flags.VisitAll(func(f *flag.Flag) { printFlag(stdout, f) })
			return false, nil
		}
		if err != nil {
			return false, &usageError{err}
		}
		if flags.NArg() == 0 {
			return true, nil
		}
		if len(places) == 0 {
			hint := ""
			if f := flags.Lookup("f"); f != nil && f.Value.String() == "" {
				hint = "; a file is named with -f"
			}
			return false, &usageError{fmt.Errorf("unexpected argument %q%s", flags.Arg(0), hint)}
		}
		*places[0] = flags.Arg(0)
		places, args = places[1:], flags.Args()[1:]
	}
}

// synopsis is how a command is written, and what its help says before the flags.
var synopsis = map[string]string{
	"serve":    "serve [FLAGS]",
	"status":   "status [FLAGS]",
	"validate": "validate [FLAGS]",
	"mount":    mountSynopsis,
}

func printFlag(w io.Writer, f *flag.Flag) {
	name, text := flag.UnquoteUsage(f)
	if name != "" {
		name = " " + name
	}
	dashes := "--"
	if len(f.Name) == 1 {
		dashes = "-"
	}
	fmt.Fprintf(w, "  %s%s%s\n        %s", dashes, f.Name, name, strings.ReplaceAll(text, "\n", "\n        "))
	if f.DefValue != "" && f.DefValue != "false" {
		fmt.Fprintf(w, " (default %s)", f.DefValue)
	}
	fmt.Fprintln(w)
}

// versionText is what the linker was told, else the commit that go build saw.
func versionText() string {
	if version != "" {
		return version
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	if info.Main.Version != "" && info.Main.Version != "(devel)" {
		return info.Main.Version
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			return "devel+" + s.Value
		}
	}
	return "devel"
}
