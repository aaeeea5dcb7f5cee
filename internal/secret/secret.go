// Package secret keeps credentials out of logs, errors and JSON by a type that does not print what it holds.
package secret

import (
	"fmt"
	"log/slog"
)

const redacted = "[redacted]"

// String is a credential. However it is printed, logged or marshalled it reads [redacted]; an empty one reads as nothing.
// Two of them are compared by what they Reveal.
type String struct {
	value *string // behind a pointer, because fmt ignores the methods of an unexported field and prints its bytes
}

// New holds value.
func New(value string) String { return String{value: &value} }

// Reveal is the credential itself, for the request that needs it.
func (s String) Reveal() string {
	if s.value == nil {
		return ""
	}
	return *s.value
}

// IsZero says whether there is no credential.
func (s String) IsZero() bool { return s.Reveal() == "" }

func (s String) String() string {
	if s.IsZero() {
		return ""
	}
	return redacted
}

// Format covers every verb, %x and %#v among them.
func (s String) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(s.String())) }

// LogValue is what slog prints.
func (s String) LogValue() slog.Value { return slog.StringValue(s.String()) }

// MarshalText is what encoding/json, yaml and others print.
func (s String) MarshalText() ([]byte, error) { return []byte(s.String()), nil }
