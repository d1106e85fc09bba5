package provider

import (
	"fmt"
	"log/slog"
)

// Secret is a value that must not be seen: a token, a password, a key. It
// prints, logs and marshals as "[redacted]"; Reveal gives the value. The zero
// value is an empty secret.
type Secret string

const redacted = "[redacted]"

// Reveal returns the value, for the one place that needs it.
func (s Secret) Reveal() string { return string(s) }

// String implements fmt.Stringer and hides the value.
func (s Secret) String() string { return redacted }

// Format implements fmt.Formatter, so that no verb (%q, %x, %#v) shows the value.
func (s Secret) Format(f fmt.State, _ rune) { fmt.Fprint(f, redacted) }

// LogValue implements slog.LogValuer and hides the value.
func (s Secret) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalText hides the value from every encoder that asks for text, JSON among them.
func (s Secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }
