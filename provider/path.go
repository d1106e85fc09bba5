package provider

import (
	"net/url"
	"path"
	"regexp"
	"strings"
	"unicode"
	"unicode/utf8"
)

// The limits that the driver and Linux set for file names.
const (
	maxName      = 4096
	maxComponent = 255
)

var (
	nameCharacters = regexp.MustCompile(`^[A-Za-z0-9._/-]*$`)
	placeholder    = regexp.MustCompile(`\{[A-Za-z]+\}`)
	// forbiddenPath is what would end or prolong leases behind Tenure's back, with
	// the old names that Vault still serves, and what would write the login's token, or
	// another of its power, into a file; also below a Vault namespace.
	forbiddenPath = regexp.MustCompile(`(^|/)(auth/token/(create|lookup|renew|revoke)[^/]*|sys/(leases|renew|revoke|revoke-prefix|revoke-force))(/|$)`)
)

// nameFault says why name can't be a file of a volume, "" when it can. It is
// stricter than the driver, which lets control characters and "a/..x" through.
func nameFault(name string) string {
	switch {
	case name == "":
		return "is missing"
	case len(name) > maxName:
		return "is longer than 4096 characters"
	case !nameCharacters.MatchString(name):
		return "has characters other than letters, digits and . _ - /"
	case name[0] == '/':
		return "is absolute"
	case name[len(name)-1] == '/':
		return "ends with /"
	}
	for part := range strings.SplitSeq(name, "/") {
		switch {
		case part == "":
			return "has an empty part between two /"
		case part == ".":
			return "has the part ."
		case strings.HasPrefix(part, ".."):
			return "has a part that starts with .., which is reserved"
		case len(part) > maxComponent:
			return "has a part longer than 255 characters"
		}
	}
	return ""
}

// vaultPath splits and cleans a secretPath as the HashiCorp provider does: "/"
// and "v1/" in front are optional, "?query" becomes parameters, doubled and
// trailing slashes go. Unlike there, ".." is refused. fault is "" when it is good.
func vaultPath(text string) (p string, query url.Values, fault string) {
	p, rawQuery, _ := strings.Cut(text, "?")
	p = strings.TrimPrefix(strings.TrimPrefix(p, "/"), "v1/")
	for part := range strings.SplitSeq(p, "/") {
		if part == ".." {
			return "", nil, `has a part ".."`
		}
	}
	p = strings.TrimPrefix(path.Clean("/"+p), "/")
	switch {
	case p == "":
		return "", nil, "is missing"
	case !Printable(text):
		return "", nil, "has control characters"
	case forbiddenPath.MatchString(p):
		return "", nil, "is one that tells, makes, renews or revokes tokens or leases, which is Tenure's own work"
	}
	if rawQuery != "" {
		var err error
		if query, err = url.ParseQuery(rawQuery); err != nil {
			return "", nil, "has a query behind ? that can't be read"
		}
	}
	return p, query, ""
}

// vaultAddress checks an address and writes it in one way; fault is "" when it is good.
func vaultAddress(text string) (address, fault string) {
	u, err := url.Parse(text)
	switch {
	case err != nil || !Printable(text):
		return "", "is no URL"
	case u.Scheme != "http" && u.Scheme != "https":
		return "", "does not begin with https:// or http://"
	case u.Hostname() == "" || u.Opaque != "":
		return "", "has no host"
	case u.User != nil:
		return "", "has a user name"
	case strings.ContainsAny(text, "?#"):
		return "", "has a query or fragment"
	case u.RawPath != "" || strings.TrimSuffix(u.Path, "/") != strings.TrimSuffix(path.Clean("/"+u.Path), "/"):
		return "", "has a path that is not plain"
	}
	return u.Scheme + "://" + strings.ToLower(u.Host) + strings.TrimSuffix(u.Path, "/"), ""
}

// AuthMount cleans the path of an auth mount, which is written without auth/; empty:
// the login method's own. fault says why it can't be one, "" when it can. It may be
// called from many goroutines at once.
func AuthMount(text string) (mount, fault string) {
	if climbs(text) || strings.ContainsAny(text, "?#%") || !Printable(text) {
		return "", "is no path of an auth mount"
	}
	return strings.Trim(path.Clean("/"+text), "/"), ""
}

// Printable reports whether s is UTF-8 without control characters, as any text must
// be that names something. It may be called from many goroutines at once.
func Printable(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, unicode.IsControl)
}

// climbs reports whether a file path has a part "..".
func climbs(p string) bool { return strings.Contains("/"+p+"/", "/../") }
