package main

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/cdcsync/cdcsync/internal/admin"
	"github.com/cdcsync/cdcsync/internal/buffer"
)

// hostile is what a key, a row or a vendor may say to whoever looks at a terminal.
const hostile = "a\x1b]0;owned\a\x1b[2J\u009b31m\u202egpj.exe\u2066\r\nready\n\tb"

// A letter is one fact a line whatever it says, and no byte of it moves a cursor.
func TestLetterCannotDriveTheTerminal(t *testing.T) {
	text, err := json.Marshal(hostile)
	if err != nil {
		t.Fatal(err)
	}
	letter := admin.Letter{
		ID: "17", Sink: "crm", Mapping: "users", Table: "public." + hostile, Op: "insert", Key: hostile, Reason: hostile, Code: hostile,
		Trace: hostile, Remark: hostile, Item: admin.ItemJSON([]byte(hostile)), Row: text, Old: text,
	}
	plain := letter
	plain.Table, plain.Key, plain.Reason, plain.Code, plain.Trace, plain.Remark = "t", "k", "r", "c", "t", "r"
	var out, want bytes.Buffer
	if err := writeLetter(&out, &letter); err != nil {
		t.Fatal(err)
	}
	if err := writeLetter(&want, &plain); err != nil {
		t.Fatal(err)
	}
	if got, want := strings.Count(out.String(), "\n"), strings.Count(want.String(), "\n"); got != want {
		t.Errorf("got %d lines, want %d:\n%q", got, want, out.String())
	}
	if err := admin.WriteLetters(&out, []admin.Letter{letter}, time.Now()); err != nil {
		t.Fatal(err)
	}
	for _, r := range out.String() {
		if r != '\n' && !unicode.IsPrint(r) {
			t.Errorf("the output holds %U", r)
		}
	}
}

// The size of what is shown is that of what the row held, however deep it is nested.
func TestDeepItemsAreShownInTheirSize(t *testing.T) {
	const deep = 9_998
	for _, item := range []string{
		strings.Repeat("[", deep) + strings.Repeat("]", deep),
		strings.Repeat(`{"a":[`, deep) + strings.Repeat("]}", deep),
		strings.Repeat("[", 150) + strings.Repeat("1,", 10_000) + "1" + strings.Repeat("]", 150),
	} {
		shown, err := shownLetter(&buffer.Letter{ID: "17", Item: []byte(item)})
		if err != nil {
			t.Fatal(err)
		}
		encoded, err := json.Marshal(shown)
		if err != nil {
			t.Fatalf("a letter with an item of %d bytes: %v", len(item), err)
		}
		var text bytes.Buffer
		if err := writeLetter(&text, &shown); err != nil {
			t.Fatal(err)
		}
		const facts = 1000
		if most := 2*len(item) + facts; len(encoded) > most || text.Len() > most {
			t.Errorf("an item of %d bytes: got %d bytes of JSON and %d of text, want at most %d", len(item), len(encoded), text.Len(), most)
		}
	}
}

// A row that this version cannot decode hides neither its letter nor those behind it.
func TestLetterWithoutAReadableRowIsShown(t *testing.T) {
	shown, err := shownLetter(&buffer.Letter{ID: "17", Reason: "refused", Change: []byte("not a block")})
	if err != nil || shown.Reason != "refused" || !strings.Contains(shown.Remark, "row cannot be read") {
		t.Errorf("got %+v, %v", shown, err)
	}
}
