package provider

import (
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Class says what kind of failure an Error is. It decides the gRPC code, in
// one place (see Server), and whether a retry makes sense.
type Class int

// The classes. Unavailable, Deadline and Exhausted are passing faults: the same
// request may succeed later.
const (
	Internal     Class = iota // a fault of Tenure itself
	Unavailable               // the backend can't be reached or is not able to answer
	Deadline                  // the backend did not answer in time
	Exhausted                 // a limit was hit, here or at the backend (429)
	Invalid                   // the request or the SPC is wrong; a retry gives the same answer
	Denied                    // the backend or a rule refuses this identity
	Precondition              // something outside the request must change first (a missing token, a path that is no tmpfs)
)

// Passing reports whether the same request may succeed later without any change.
func (c Class) Passing() bool { return c == Unavailable || c == Deadline || c == Exhausted }

// String returns the word for the class that users see in error texts.
func (c Class) String() string {
	return [...]string{"internal", "unavailable", "deadline exceeded", "resource exhausted", "invalid", "denied", "precondition"}[c]
}

// Error is a failure as a user needs it: which object and field of the SPC,
// for which tenant, why, and the way out. It stays a value until the Server
// turns it into a gRPC code. No part of it may hold a secret value.
type Error struct {
	Class  Class
	Object string // objectName of the SPC's entry; empty when the whole volume is meant
	Field  string // parameter or object field, or nodePublishSecretRef of the pod's volume; empty when none is to blame
	Tenant string // empty without tenants
	Cause  string // what went wrong, without trailing full stop
	Remedy string // what to do, an imperative phrase; empty when only waiting helps
	// Line is where in the YAML text of the parameter objects, or defaults for a
	// Field that begins so, counted from 1; 0 when not known. Error does not show it.
	Line int
	Err  error // the error beneath, for errors.Is and errors.As; its text is not shown
}

// Error renders: object "x", field "y", tenant "z": cause; remedy.
func (e *Error) Error() string {
	var where []string
	for _, p := range [...][2]string{{"object", e.Object}, {"field", e.Field}, {"tenant", e.Tenant}} {
		if p[1] != "" {
			where = append(where, p[0]+` "`+p[1]+`"`)
		}
	}
	text := e.Cause
	if len(where) > 0 {
		text = strings.Join(where, ", ") + ": " + text
	}
	if e.Remedy != "" {
		text += "; " + e.Remedy
	}
	return text
}

// Unwrap returns the error beneath.
func (e *Error) Unwrap() error { return e.Err }

// MaxText is how many bytes of a foreign text an Error shows: a pod's Event holds
// 1 KiB.
const MaxText = 512

// OneLine makes a foreign text safe to print in an Error: one line, no control or
// invisible characters, at most MaxText bytes. It looks for no secrets. It may be
// called from many goroutines at once.
func OneLine(text string) string {
	text = strings.Map(func(r rune) rune {
		if unicode.IsSpace(r) {
			return ' '
		}
		if !unicode.IsPrint(r) || r == utf8.RuneError {
			return -1
		}
		return r
	}, text)
	text = strings.Join(strings.Fields(text), " ")
	if len(text) <= MaxText {
		return text
	}
	cut := MaxText - len("…")
	for !utf8.RuneStart(text[cut]) {
		cut--
	}
	return text[:cut] + "…"
}

// Errors are all problems found in one request or SPC, in the order of the SPC.
type Errors []*Error

// shownErrors is how many problems the text of Errors names: an Event cuts long
// texts, and after five an author reads the first ones again anyway.
const shownErrors = 5

// Error renders the first five, separated by " | ", and says how many more there are.
func (e Errors) Error() string {
	var texts []string
	for _, err := range e[:min(len(e), shownErrors)] {
		texts = append(texts, err.Error())
	}
	text := strings.Join(texts, " | ")
	if more := len(e) - shownErrors; more > 0 {
		text += " | and " + strconv.Itoa(more) + " more"
	}
	return text
}

// Unwrap returns each problem, for errors.Is and errors.As.
func (e Errors) Unwrap() []error {
	all := make([]error, len(e))
	for i, err := range e {
		all[i] = err
	}
	return all
}

// invalid is an Error of class Invalid that blames the whole request.
func invalid(cause, remedy string) *Error {
	return &Error{Class: Invalid, Cause: cause, Remedy: remedy}
}
