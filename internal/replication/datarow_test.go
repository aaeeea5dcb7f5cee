package replication

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cdcsync/cdcsync/internal/cdc"
)

// dataRowOf is the body of the message.
func dataRowOf(values ...cdc.Value) []byte {
	return cdc.AppendValues([]byte{0, byte(len(values))}, values)
}

func TestDataRow(t *testing.T) {
	text := func(s string) cdc.Value { return cdc.Value{Kind: cdc.Text, Data: []byte(s)} }
	message := dataRowOf(text("t"), text("7"), cdc.Value{Kind: cdc.Null}, text(""), text("seven"))
	var r dataRow
	if err := r.parse(message, 5); err != nil {
		t.Fatal(err)
	}
	r.shift()
	var got []cdc.Value
	for i := range r.ends {
		if v := r.text(i); v != nil {
			got = append(got, cdc.Value{Kind: cdc.Text, Data: v})
		} else {
			got = append(got, cdc.Value{Kind: cdc.Null})
		}
	}
	if diff := cmp.Diff([]cdc.Value{text("7"), {Kind: cdc.Null}, text(""), text("seven")}, got); diff != "" {
		t.Errorf("texts (-want +got):\n%s", diff)
	}
	if got, want := r.appendKey(nil, []int{3, 1, 0}), appendKey(nil, []byte("seven"), nil, []byte("7")); string(got) != string(want) {
		t.Errorf("key %q, want %q", got, want)
	}
	if err := r.parse(message, 4); err == nil {
		t.Error("a row of five columns passes for one of four")
	}
	for n := range message {
		if err := r.parse(message[:n], 5); err == nil {
			t.Errorf("the first %d of %d bytes pass for a row", n, len(message))
		}
	}
}

// What is taken for a row is one that a sink can read.
func FuzzDataRow(f *testing.F) {
	f.Add(dataRowOf(cdc.Value{Kind: cdc.Text, Data: []byte("1")}, cdc.Value{Kind: cdc.Null}))
	f.Add([]byte{0, 2, 0xff, 0xff, 0xff, 0xfe, 0, 0, 0, 0})
	f.Add([]byte{0, 2, 0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 0})
	rel := &cdc.Relation{OID: 1, Schema: "public", Name: "t", Columns: make([]cdc.Column, 2)}
	for i := range rel.Columns {
		rel.Columns[i].Type = &cdc.Type{OID: 25, Kind: cdc.TypeBase, Delimiter: ','}
	}
	f.Fuzz(func(t *testing.T, message []byte) {
		var r dataRow
		if r.parse(message, 2) != nil {
			return
		}
		var w cdc.Writer
		w.BeginChunk(cdc.Chunk{})
		w.Relation(rel.OID, cdc.AppendRelation(nil, rel))
		w.Reads(cdc.AppendRead(nil, rel.OID, 2, r.values), 1)
		var d cdc.Decoder
		var c cdc.Change
		if _, err := d.Reset(w.Seal(nil, nil)); err != nil {
			t.Fatal(err)
		}
		if found, err := d.Next(&c); !found || err != nil {
			t.Fatalf("row %x: %v, %v", message, found, err)
		}
		for i, v := range c.New {
			if want := r.text(i); string(v.Data) != string(want) || (v.Kind == cdc.Null) != (want == nil) {
				t.Errorf("column %d is %q, want %q", i, v.Data, want)
			}
		}
	})
}
