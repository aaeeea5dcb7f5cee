package cdc

import (
	"encoding/binary"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func insertMessage(oid uint32, values ...Value) []byte {
	return AppendTuple(append(binary.BigEndian.AppendUint32([]byte{'I'}, oid), 'N'), values)
}

func text(s string) Value { return Value{Kind: Text, Data: []byte(s)} }

func testRelation() *Relation {
	int8, txt := &Type{OID: 20, Name: "int8", Kind: TypeBase}, &Type{OID: 25, Name: "text", Kind: TypeBase}
	return &Relation{
		OID: 16384, Schema: "public", Name: "users", Identity: 'd', PrimaryKey: []int{0},
		Columns: []Column{{Name: "id", Identity: true, TypeMod: -1, Type: int8}, {Name: "name", TypeMod: -1, Type: txt}},
	}
}

func TestTransactionGoesOnInNextBlock(t *testing.T) {
	var w Writer
	rel := testRelation()
	encoded := AppendRelation(nil, rel)
	at := time.UnixMicro(1_700_000_000_000_000)

	w.Begin(7, 100, at, 0)
	w.Relation(rel.OID, encoded)
	w.Row(insertMessage(rel.OID, text("1"), text("a")))
	w.Skip(2)
	first := w.Seal([]byte("state"), nil)
	w.Relation(rel.OID, encoded)
	w.Row(insertMessage(rel.OID, text("2"), Value{Kind: Null}))
	w.Commit(150)
	second := w.Seal(nil, nil)

	var d Decoder
	footer, err := d.Reset(first)
	if err != nil {
		t.Fatal(err)
	}
	want := Footer{Resume: Resume{Open: 100, Ordinal: 3}, LastCommit: at, Changes: 1, State: []byte("state")}
	if diff := cmp.Diff(want, footer); diff != "" {
		t.Errorf("first footer (-want +got):\n%s", diff)
	}
	var c Change
	if ok, err := d.Next(&c); !ok || err != nil {
		t.Fatal(ok, err)
	}
	relation := c.Relation
	wantChange := Change{Position: Position{100, 1}, Op: OpInsert, Relation: rel, New: []Value{text("1"), text("a")}, XID: 7, CommitTime: at}
	if diff := cmp.Diff(wantChange, c); diff != "" {
		t.Errorf("first change (-want +got):\n%s", diff)
	}
	if ok, err := d.Next(&c); ok || err != nil {
		t.Fatal(ok, err)
	}

	footer, err = d.Reset(second)
	if err != nil {
		t.Fatal(err)
	}
	if want := (Resume{End: 150}); footer.Resume != want {
		t.Errorf("resume after commit: %+v, want %+v", footer.Resume, want)
	}
	if ok, err := d.Next(&c); !ok || err != nil {
		t.Fatal(ok, err)
	}
	if want := (Position{100, 4}); c.Position != want {
		t.Errorf("position %s, want %s", c.Position, want)
	}
	if c.Relation != relation {
		t.Error("an unchanged relation is decoded anew")
	}
}

func TestKeyTupleHasNoNulls(t *testing.T) {
	t.Run("outside of the key", func(t *testing.T) { testKeyTupleHasNoNulls(t, testRelation()) })
	t.Run("in the key", func(t *testing.T) { // of a partition whose own key is another
		rel := testRelation()
		rel.Columns[1].Identity = true
		testKeyTupleHasNoNulls(t, rel)
	})
}

func testKeyTupleHasNoNulls(t *testing.T, rel *Relation) {
	t.Helper()
	var w Writer
	w.Begin(7, 100, time.UnixMicro(1), 0)
	w.Relation(rel.OID, AppendRelation(nil, rel))
	w.Row(AppendTuple(append(binary.BigEndian.AppendUint32([]byte{'D'}, rel.OID), 'K'), []Value{text("1"), {Kind: Null}}))
	var d Decoder
	if _, err := d.Reset(w.Seal(nil, nil)); err != nil {
		t.Fatal(err)
	}
	var c Change
	if ok, err := d.Next(&c); !ok || err != nil {
		t.Fatal(ok, err)
	}
	if !c.OldIsKey || c.Old[1].Kind != Absent {
		t.Errorf("a column that was not sent reads as %v, want Absent", c.Old[1].Kind)
	}
}

func TestOversizedRowOfChunk(t *testing.T) {
	var w Writer
	rel := testRelation()
	w.Continue(Resume{End: 90})
	w.BeginChunk(Chunk{LSN: 100, At: time.UnixMicro(1), Ordinal: 5, Targets: []string{"crm"}})
	w.Relation(rel.OID, AppendRelation(nil, rel))
	w.Oversized(OpRead, rel.OID, Oversized{Bytes: 1 << 30, Key: "id=1"})
	w.Reads(AppendRead(nil, rel.OID, 2, AppendValues(nil, []Value{text("2"), {Kind: Null}})), 1)
	w.EndChunk()
	var d Decoder
	footer, err := d.Reset(w.Seal(nil, nil))
	if err != nil {
		t.Fatal(err)
	}
	if want := (Footer{Resume: Resume{End: 90}, Changes: 2}); !cmp.Equal(want, footer) {
		t.Errorf("footer %+v, want %+v: a chunk is no part of a transaction", footer, want)
	}
	var got []Change
	for c := (Change{}); ; {
		ok, err := d.Next(&c)
		if err != nil {
			t.Fatal(err)
		}
		if !ok {
			break
		}
		got = append(got, c.clone())
	}
	want := []Change{
		{Position: Position{100, 6}, Op: OpRead, Relation: rel, CommitTime: time.UnixMicro(1), Targets: []string{"crm"}, Oversized: &Oversized{Bytes: 1 << 30, Key: "id=1"}},
		{Position: Position{100, 7}, Op: OpRead, Relation: rel, CommitTime: time.UnixMicro(1), Targets: []string{"crm"}, New: []Value{text("2"), {Kind: Null}}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("changes (-want +got):\n%s", diff)
	}
}
