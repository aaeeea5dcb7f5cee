package cdc

import (
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
)

// A block in another encoding decodes to UTF-8, and a change that is kept for later is the same again.
func TestOtherEncodings(t *testing.T) {
	rel := &Relation{OID: 7, Schema: "public", Name: "t", Identity: 'f', Encoding: "WIN1252", PrimaryKey: []int{0}}
	for _, name := range []string{"id", "name"} {
		rel.Columns = append(rel.Columns, Column{Name: name, Type: &Type{OID: 25, Kind: TypeBase, Name: "text", Delimiter: ','}})
	}
	raw := func(texts ...string) (values []Value) {
		for _, text := range texts {
			values = append(values, Value{Kind: Text, Data: []byte(text)})
		}
		return values
	}
	var w Writer
	w.Begin(1, 10, time.UnixMicro(5), 0)
	w.Relation(rel.OID, AppendRelation(nil, rel))
	w.Row(AppendTuple(append(AppendTuple([]byte{'U', 0, 0, 0, 7, 'O'}, raw("\x80", "a")), 'N'), raw("\x80", "\x81")))
	w.Commit(11)
	w.BeginChunk(Chunk{LSN: 12, At: time.UnixMicro(6)})
	w.Reads(AppendRead(nil, rel.OID, 2, AppendValues(nil, raw("\xe9", "\x8d"))), 1)
	w.EndChunk()

	var d Decoder
	if _, err := d.Reset(w.Seal(nil, nil)); err != nil {
		t.Fatal(err)
	}
	for _, want := range []struct{ id, name string }{{"€", "\x81"}, {"é", "\x8d"}} {
		var c Change
		if ok, err := d.Next(&c); !ok || err != nil {
			t.Fatal(ok, err)
		}
		values := []Value{{Kind: Text, Data: []byte(want.id)}, {Kind: Invalid, Data: []byte(want.name)}}
		if diff := cmp.Diff(values, c.New); diff != "" {
			t.Error(diff)
		}
		again, err := DecodeChange(EncodeChange(&c))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(&c, again); diff != "" {
			t.Error(diff)
		}
	}
}

// A name with bytes that have no form in UTF-8 is UTF-8 here, and the same name for the server.
func TestNamesOfOtherEncodings(t *testing.T) {
	for encoding, names := range map[string][]string{
		"SQL_ASCII": {"caf\xe9", "café", "plain"}, "WIN1252": {"\x81\x80", "\xe9"}, "EUC_JP": {"\xc6\xfc\xcb\xdc", "\xc6", "a\xa9\xa1"},
	} {
		c := CharsetByName(encoding)
		for _, name := range names {
			shown := c.DecodeName(name)
			if back, err := c.EncodeName(shown); err != nil || back != name || !utf8.ValidString(shown) {
				t.Errorf("%s: %q is shown as %q, which is %q for the server: %v", encoding, name, shown, back, err)
			}
		}
	}
	if _, err := CharsetByName("LATIN1").EncodeName("日"); err == nil {
		t.Error("LATIN1 has no 日, and nothing says so")
	}
}
