// Package terminal makes text of unknown origin safe to print for people.
//
// Keys, rows, names and vendors' words may hold escape sequences that repaint a terminal, line breaks that forge lines of
// output, and bidirectional controls that show text in another order than it has.
package terminal

import (
	"io"
	"slices"
	"strconv"
	"strings"
	"sync"
	"unicode"
	"unicode/utf8"
)

// Line gives text on one line in which nothing but printable characters and spaces is left: line breaks and tabs are spaces, and
// all else that a terminal would act on is escaped as in Go and JSON (\x1b is \u001b).
func Line(text string) string {
	if safe(text) {
		return text
	}
	var b strings.Builder
	for len(text) > 0 {
		r, size := utf8.DecodeRuneInString(text)
		if r == '\n' || r == '\r' || r == '\t' {
			b.WriteByte(' ')
		} else {
			b.Write(appendRune(nil, text[:size], r))
		}
		text = text[size:]
	}
	return b.String()
}

func safe(text string) bool {
	for i := 0; i < len(text); i++ {
		if text[i] < ' ' || text[i] >= 0x7f {
			return strings.IndexFunc(text, unsafe) < 0 && utf8.ValidString(text)
		}
	}
	return true
}

// unsafe reports whether a terminal, or a reader, would take the character for something else than itself. Spaces other than the
// ASCII one are let through: they are part of ordinary text.
func unsafe(r rune) bool { return !unicode.IsPrint(r) && !unicode.Is(unicode.Zs, r) }

// appendRune appends a character of text, escaped unless it is safe. The form \uXXXX is what JSON has, too, so that escaped JSON
// is the same JSON.
func appendRune(to []byte, encoded string, r rune) []byte {
	const hex = 16
	switch {
	case r == utf8.RuneError && len(encoded) == 1:
		return append(to, "\uFFFD"...)
	case !unsafe(r):
		return append(to, encoded...)
	case r > 0xFFFF:
		high, low := (r-0x10000)>>10+0xD800, (r-0x10000)&0x3FF+0xDC00 // as JSON has it
		return appendRune(appendRune(to, "", high), "", low)
	}
	digits := strconv.FormatInt(int64(r), hex)
	return append(append(append(to, `\u`...), "0000"[len(digits):]...), digits...)
}

// writer passes text on to another writer.
type writer struct {
	to io.Writer

	mu      sync.Mutex
	pending []byte // the beginning of a character that is not complete
}

// NewWriter returns a writer for what people read: line breaks and tabs pass, all else that a terminal would act on is escaped.
// It is the net below Line: a message that somebody forgot to make safe cannot do worse than add lines.
func NewWriter(to io.Writer) io.Writer { return &writer{to: to} }

// Write reports the whole of p as written when the other writer took what became of it.
func (w *writer) Write(p []byte) (int, error) {
	if _, err := w.to.Write(w.made(p)); err != nil {
		return 0, err
	}
	return len(p), nil
}

// made turns p, with what was left of the write before, into what can be printed.
func (w *writer) made(p []byte) []byte {
	w.mu.Lock()
	defer w.mu.Unlock()
	text := slices.Concat(w.pending, p)
	out := make([]byte, 0, len(text))
	for len(text) > 0 && utf8.FullRune(text) {
		r, size := utf8.DecodeRune(text)
		if r == '\n' || r == '\t' {
			out = append(out, byte(r))
		} else {
			out = appendRune(out, string(text[:size]), r)
		}
		text = text[size:]
	}
	w.pending = append([]byte(nil), text...)
	return out
}
