package vault

import (
	"regexp"
	"strconv"
	"strings"

	"github.com/tenure-csi/tenure/provider"
)

const hidden = "[redacted]"

// What Vault's texts may quote of its own tokens, of a JWT, and of the database
// behind it: connection settings, URLs with a password, addresses, users.
var (
	credentials = regexp.MustCompile(`\b(hv[sbr]\.|[sbr]\.[A-Za-z0-9]{20})[A-Za-z0-9_-]*|\beyJ[A-Za-z0-9_-]*\.[A-Za-z0-9_.-]+|\b(AKIA|ASIA)[A-Z0-9]{12,}`)
	userinfo    = regexp.MustCompile(`://[^\s/@]+@\S*`)
	settings    = regexp.MustCompile("(?i)\\b(host|hostaddr|port|user|username|password|passwd|pwd|dbname|database|token|secret_id)=(\"[^\"]*\"|'[^']*'|[^\\s,;)`]*)")
	dialled     = regexp.MustCompile(`(?i)\b(dial|read|write) (tcp|udp|unix)\S*( [^:\s]+(:\d+)?(->\S+)?)?:|\blookup \S+( on \S+)?:`)
	addresses   = regexp.MustCompile(`\b\d{1,3}(\.\d{1,3}){3}(:\d+)?\b|\[[0-9A-Fa-f:.%]+\](:\d+)?`)
	framing     = regexp.MustCompile(`\d+ errors? occurred:\s*\* |resp: \(\*logical\.Response\)\(nil\) err: |: %!w\(<nil>\)`) // says nothing
	users       = regexp.MustCompile(`(?i)\b(user|role|database|login) ?(["'])[^"']*["'](@["'][^"']*["'])?`)
)

// connectReasons are the parts of a database's connection error that tell an
// SPC author something and name nobody.
var connectReasons = []string{
	"connection refused", "no such host", "timeout", "deadline exceeded", "no route to host", "connection reset",
	"authentication failed", "too many", "remaining connection slots", "shutting down", "starting up", "does not exist",
}

// vaultSays gives Vault's errors[] as one bounded line for an error text: no
// control characters, none of the call's own secrets, no token, and nothing
// about how Vault reaches a database. Empty when Vault gave none.
func vaultSays(a answer, own ...provider.Secret) string {
	text := strings.Join(a.Errors, "; ")
	if len(text) > 16<<10 {
		text = text[:16<<10]
	}
	for _, s := range own {
		if s != "" {
			quoted := strconv.Quote(s.Reveal())
			text = strings.NewReplacer(s.Reveal(), hidden, quoted[1:len(quoted)-1], hidden).Replace(text)
		}
	}
	text = withoutConnection(framing.ReplaceAllString(text, ""))
	text = credentials.ReplaceAllString(text, hidden)
	text = userinfo.ReplaceAllString(text, "://"+hidden)
	text = settings.ReplaceAllString(text, "$1="+hidden)
	text = addresses.ReplaceAllString(text, hidden)
	return bounded(text)
}

// withoutConnection cuts what follows "failed to connect to" down to its
// reason, and hides addresses and users of the other database plugins' errors.
func withoutConnection(text string) string {
	const connect = "failed to connect to"
	i := strings.Index(strings.ToLower(text), connect)
	if i < 0 {
		if strings.Contains(text, "dial ") || strings.Contains(text, "lookup ") || strings.Contains(text, "SQLSTATE") || strings.Contains(text, "Error 1") {
			text = dialled.ReplaceAllString(text, hidden+":")
			text = users.ReplaceAllString(text, "$1 "+hidden)
		}
		return text
	}
	rest := strings.ToLower(text[i+len(connect):])
	text = text[:i+len(connect)] + " " + hidden
	for _, reason := range connectReasons {
		if strings.Contains(rest, reason) {
			return text + ": " + reason
		}
	}
	return text
}

func bounded(text string) string { return provider.OneLine(text) }
