package format

import (
	"regexp"
	"strings"

	"github.com/tenure-csi/tenure/provider"
)

var (
	shellName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)
	// shellOwn are variables that a shell changes, checks or obeys while it reads
	// the file: bash stops at UID and PPID, dash at OPTIND, both overwrite "_".
	shellOwn = regexp.MustCompile(`^(_|BASH.*|DIRSTACK|EPOCH.*|EUID|FUNCNAME|GROUPS|HISTCMD|IFS|LINENO|OPTIND|PATH|PPID|RANDOM|SECONDS|SHELLOPTS|SRANDOM|UID)$`)
)

// envFile writes KEY='value' lines, keys sorted, for a POSIX shell: after
// ". file" each variable holds the exact bytes, newlines too. "set -a" before it
// exports them. Null is no value and gives no line. Readers with rules of their
// own (docker --env-file, systemd) need format template.
func envFile(_ provider.Object, s Secret) ([]byte, error) {
	var b strings.Builder
	for _, key := range presentKeys(s.Data) {
		if !shellName.MatchString(key) || shellOwn.MatchString(key) {
			return nil, invalid("format", "the entry "+quoteName(key)+" can't be a variable of a shell",
				"choose the variable's name with format template, or use format keys")
		}
		text, err := textOf(key, s.Data[key])
		if err != nil {
			return nil, err
		}
		if strings.ContainsRune(text, 0) {
			return nil, invalid("format", "the entry "+quoteName(key)+" holds a NUL byte, which no variable can carry", "use format keys or raw")
		}
		b.WriteString(key + "=" + shellQuote(text) + "\n")
	}
	if b.Len() == 0 {
		return nil, noValues()
	}
	return []byte(b.String()), nil
}

// shellQuote makes one word of s. Between single quotes a POSIX shell takes
// every byte as it is but the quote itself.
func shellQuote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
