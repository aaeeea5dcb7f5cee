package buffer

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/cdcsync/cdcsync/internal/cdc"
)

func letter(sink string, n int) Letter {
	return Letter{
		Sink: sink, ItemID: fmt.Sprintf("0/10#%d/users", n), Mapping: "users", Table: "public.users", Op: "insert",
		Key: fmt.Sprint(n), Position: cdc.Position{Commit: 16, Ordinal: uint32(n)}, Reason: "E-mail is not valid", Code: "E7", Status: 400, Attempts: 1,
		Item: []byte(`{"a":"<&>"}`), Change: []byte{1, 2, 3},
	}
}

func lettersOf(tb testing.TB, b *Buffer, f LetterFilter) []Letter {
	tb.Helper()
	var all []Letter
	for l, err := range b.Letters(tb.Context(), f) {
		if err != nil {
			tb.Fatal(err)
		}
		all = append(all, l)
	}
	return all
}

func TestLettersSurvive(t *testing.T) {
	cfg := Config{Dir: t.TempDir()}
	b := open(t, cfg)
	parked := []Letter{letter("crm", 1), letter("crm", 2), letter("odd.name", 3)}
	if err := b.Park(t.Context(), parked); err != nil {
		t.Fatal(err)
	}
	if !slices.IsSortedFunc(parked, func(a, b Letter) int { return strings.Compare(a.ID, b.ID) }) || parked[0].ID == parked[1].ID || len(parked[0].ID) != 10 {
		t.Errorf("ids %s %s %s", parked[0].ID, parked[1].ID, parked[2].ID)
	}
	shut(t, b)

	b = opened(t, cfg)
	for _, want := range parked {
		got, err := b.Letter(t.Context(), want.ID)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
	}
	more := []Letter{letter("crm", 4)}
	if err := b.Park(t.Context(), more); err != nil || more[0].ID <= parked[2].ID {
		t.Errorf("Park = %v, id %s after %s", err, more[0].ID, parked[2].ID)
	}
	if crm, odd := b.LetterCount("crm", LetterOpen), b.LetterCount("odd.name", LetterOpen); crm != 3 || odd != 1 {
		t.Errorf("%d and %d letters", crm, odd)
	}
}

func TestLetterOfTheSameItemIsReplaced(t *testing.T) {
	cfg := Config{Dir: t.TempDir()}
	b := open(t, cfg)
	for attempt := range 3 { // as after a crash before the block was settled
		l := []Letter{letter("crm", 1)}
		l[0].Attempts = attempt
		if err := b.Park(t.Context(), l); err != nil {
			t.Fatal(err)
		}
		if attempt == 1 {
			shut(t, b)
			b = opened(t, cfg)
		}
	}
	if got := lettersOf(t, b, LetterFilter{}); len(got) != 1 || got[0].Attempts != 2 || b.LetterCount("crm", LetterOpen) != 1 {
		t.Errorf("letters %+v", got)
	}
}

func TestLetterFilter(t *testing.T) {
	b := opened(t, Config{Dir: t.TempDir()})
	old := letter("crm", 1)
	old.At = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	fans := letter("fans", 2)
	fans.Mapping, fans.Table, fans.Reason = "fans", "public.fans", "no CPF"
	superseded := letter("crm", 3)
	superseded.State = LetterSuperseded
	if err := b.Park(t.Context(), []Letter{old, fans, superseded}); err != nil {
		t.Fatal(err)
	}
	year := time.Date(2026, 2, 1, 0, 0, 0, 0, time.UTC)
	for _, test := range []struct {
		filter LetterFilter
		want   string
	}{
		{LetterFilter{}, "1 2 3"},
		{LetterFilter{Sink: "crm"}, "1 3"},
		{LetterFilter{Sink: "nobody"}, ""},
		{LetterFilter{Mapping: "fans"}, "2"},
		{LetterFilter{Table: "public.users", State: LetterOpen}, "1"},
		{LetterFilter{Reason: "cpf"}, "2"},
		{LetterFilter{Key: func(key string) bool { return key == "3" }}, "3"},
		{LetterFilter{Sink: "fans", Key: func(key string) bool { return key == "3" }}, ""},
		{LetterFilter{Before: year}, "1"},
		{LetterFilter{After: year}, "2 3"},
	} {
		var keys []string
		for _, l := range lettersOf(t, b, test.filter) {
			keys = append(keys, l.Key)
		}
		slices.Sort(keys)
		if got := strings.Join(keys, " "); got != test.want {
			t.Errorf("sink %q, mapping %q, table %q, state %q, reason %q: got letters %q, want %q", test.filter.Sink, test.filter.Mapping,
				test.filter.Table, test.filter.State, test.filter.Reason, got, test.want)
		}
	}
	if got := lettersOf(t, b, LetterFilter{Limit: 2}); len(got) != 2 {
		t.Errorf("%d letters with a limit of 2", len(got))
	}
}

func TestLettersMayChangeWhileTheyAreRead(t *testing.T) {
	b := opened(t, Config{Dir: t.TempDir()})
	var parked []Letter
	const letters = 1200 // more than one request returns
	for i := range letters {
		parked = append(parked, letter("crm", i))
	}
	if err := b.Park(t.Context(), parked); err != nil {
		t.Fatal(err)
	}
	read := 0
	for l, err := range b.Letters(t.Context(), LetterFilter{Sink: "crm", State: LetterOpen}) {
		if err != nil {
			t.Fatal(err)
		}
		read++
		if read%2 == 0 {
			err = b.Discard(t.Context(), l.ID)
		} else {
			l.State, l.SupersededBy = LetterSuperseded, &cdc.Position{Commit: 17, Ordinal: 1}
			err = b.UpdateLetter(t.Context(), l)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if read != letters || b.LetterCount("crm", LetterSuperseded) != letters/2 || b.LetterCount("crm", LetterOpen) != 0 {
		t.Errorf("read %d, left %d superseded and %d open", read, b.LetterCount("crm", LetterSuperseded), b.LetterCount("crm", LetterOpen))
	}
	left := lettersOf(t, b, LetterFilter{})
	if len(left) != letters/2 || left[0].SupersededBy.Commit != 17 {
		t.Fatalf("%d letters", len(left))
	}
	gone := left[0]
	if err := b.Discard(t.Context(), gone.ID); err != nil {
		t.Fatal(err)
	}
	_, err := b.Letter(t.Context(), gone.ID)
	for _, err := range []error{err, b.Discard(t.Context(), gone.ID), b.UpdateLetter(t.Context(), gone)} {
		if !errors.Is(err, ErrNoLetter) {
			t.Errorf("a letter that is gone: %v", err)
		}
	}
}

func TestLargeLettersAreParked(t *testing.T) {
	cfg := Config{Dir: t.TempDir()}
	b := open(t, cfg)
	large := letter("crm", 1)
	large.Item, _ = json.Marshal(strings.Repeat("x", 3<<20))
	large.Change = bytes.Repeat([]byte{7}, 2<<20)
	broken := letter("crm", 2)
	broken.Item = []byte(`{"cut`)
	endless := letter("crm", 3)
	endless.Key = strings.Repeat("k", 2<<20)
	parked := []Letter{large, broken, endless}
	if err := b.Park(t.Context(), parked); err != nil {
		t.Fatal(err)
	}
	parked[0].Attempts++
	if err := b.UpdateLetter(t.Context(), parked[0]); err != nil {
		t.Fatal(err)
	}
	shut(t, b)

	b = opened(t, cfg)
	got, err := b.Letter(t.Context(), parked[0].ID)
	if err != nil || !bytes.Equal(got.Item, large.Item) || !bytes.Equal(got.Change, large.Change) || got.Attempts != 2 {
		t.Errorf("item of %d and change of %d bytes, %v", len(got.Item), len(got.Change), err)
	}
	if got, err := b.Letter(t.Context(), parked[1].ID); err != nil || !bytes.Equal(got.Item, broken.Item) {
		t.Errorf("item %s, %v", got.Item, err)
	}
	if all := lettersOf(t, b, LetterFilter{}); len(all) != 3 {
		t.Errorf("%d letters", len(all))
	}
	for _, l := range parked {
		if err := b.Discard(t.Context(), l.ID); err != nil {
			t.Fatal(err)
		}
	}
	info, err := b.streamInfo(t.Context(), b.names.letters)
	if err != nil || info.State.Msgs != 0 {
		t.Errorf("%d messages are left of discarded letters, %v", info.State.Msgs, err)
	}
}

// Whatever a row holds, its letter can be listed, shown and discarded, also after a restart.
func TestLettersHoldAnything(t *testing.T) {
	cfg := Config{Dir: t.TempDir()}
	b := open(t, cfg)
	const deep = 100_000 // encoding/json gives up at 10,000
	items := map[string][]byte{
		"nested":        []byte(strings.Repeat("[", deep) + strings.Repeat("]", deep)),
		"nested, large": []byte(strings.Repeat(`{"a":`, 600_000) + "1" + strings.Repeat("}", 600_000)),
		"not JSON":      []byte("{\"cut"),
		"not UTF-8":     {0xe9, 0, 0xff},
		"empty":         {},
	}
	want := make(map[string][]byte)
	for name, item := range items {
		l := letter("crm", len(want))
		l.Item = item
		parked := []Letter{l}
		if err := b.Park(t.Context(), parked); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		want[parked[0].ID] = item
	}
	shut(t, b)

	b = opened(t, cfg)
	all := lettersOf(t, b, LetterFilter{})
	if len(all) != len(items) {
		t.Fatalf("got %d letters, want %d", len(all), len(items))
	}
	for _, l := range all {
		if l.Unreadable || !bytes.Equal(l.Item, want[l.ID]) {
			t.Errorf("letter %s: got %d bytes (%s), want %d", l.ID, len(l.Item), l.Reason, len(want[l.ID]))
		}
		if err := b.Discard(t.Context(), l.ID); err != nil {
			t.Error(err)
		}
	}
}

// A record that is damaged is a letter still: it stops no start, is listed beside the others, and can be discarded.
func TestDamagedLettersAreShown(t *testing.T) {
	cfg := Config{Dir: t.TempDir()}
	b := open(t, cfg)
	large := letter("odd.name", 2)
	large.Item = bytes.Repeat([]byte{7}, 3<<20)
	parked := []Letter{letter("odd.name", 1), large, letter("odd.name", 3)}
	if err := b.Park(t.Context(), parked); err != nil {
		t.Fatal(err)
	}
	// One whose record is no JSON, and one that lacks a part.
	if _, err := b.publish(t.Context(), &nats.Msg{Subject: b.letterSubject("odd.name", parked[0].ID), Data: []byte("{\"id\":\"")}); err != nil {
		t.Fatal(err)
	}
	parts := b.letters.byID[parked[1].ID].parts
	if err := b.purge(t.Context(), b.names.letters, jetstream.WithPurgeSubject(b.partSubject(parked[1].ID, parts, 1))); err != nil {
		t.Fatal(err)
	}
	shut(t, b)

	b = opened(t, cfg)
	if got := b.LetterCount("odd.name", LetterOpen); got != 3 {
		t.Errorf("got %d open letters, want 3", got)
	}
	unreadable := 0
	for _, l := range lettersOf(t, b, LetterFilter{Sink: "odd.name"}) {
		if l.Unreadable {
			unreadable++
			if l.Sink != "odd.name" || l.At.IsZero() || !strings.Contains(l.Reason, "cannot be read") {
				t.Errorf("unreadable letter: got %+v", l)
			}
			if err := b.UpdateLetter(t.Context(), l); err == nil {
				t.Error("an unreadable letter was overwritten")
			}
		}
		if err := b.Discard(t.Context(), l.ID); err != nil {
			t.Error(err)
		}
	}
	if unreadable != 2 {
		t.Errorf("got %d unreadable letters, want 2", unreadable)
	}
}
