package provider

import "strings"

// warnOfLongToken tells of the one format whose reader may have no room for an RDS
// token. The token holds a session's, for whose length AWS states no limit
// (AssumeRole in the API reference of STS), so that whether it fits is only known
// once it is there.
func (e *entry) warnOfLongToken() {
	if strings.EqualFold(e.text("format"), "pg-service") {
		e.warn("object %s: a token of RDS seldom fits into libpq's service file, whose lines end at 1 KiB; use format pgpass, uri or env", quote(e.name))
	}
}
