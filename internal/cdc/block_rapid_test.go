package cdc

import (
	"encoding/binary"
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func genValues(columns int) *rapid.Generator[[]Value] {
	return rapid.Custom(func(t *rapid.T) []Value {
		values := make([]Value, columns)
		for i := range values {
			switch rapid.IntRange(0, 5).Draw(t, "kind") {
			case 0:
				values[i] = Value{Kind: Null}
			case 1:
				values[i] = Value{Kind: Unchanged}
			default:
				values[i] = Value{Kind: Text, Data: []byte(rapid.StringN(0, 20, 60).Draw(t, "text"))}
			}
		}
		return values
	})
}

func genType(depth int) *rapid.Generator[*Type] {
	return rapid.Custom(func(t *rapid.T) *Type {
		typ := &Type{
			OID: rapid.Uint32().Draw(t, "oid"), Name: rapid.StringN(0, 8, 24).Draw(t, "name"),
			Kind: TypeKind(rapid.IntRange(int(TypeBase), int(TypeMultirange)).Draw(t, "kind")), Delimiter: ',',
		}
		if depth < 3 && rapid.Bool().Draw(t, "elem") {
			typ.Elem = genType(depth+1).Draw(t, "element")
		}
		if depth < 2 {
			for range rapid.IntRange(0, 2).Draw(t, "fields") {
				typ.Fields = append(typ.Fields, Field{Name: rapid.String().Draw(t, "field"), Type: genType(depth+1).Draw(t, "type")})
			}
		}
		return typ
	})
}

func genRelation(oid uint32) *rapid.Generator[*Relation] {
	return rapid.Custom(func(t *rapid.T) *Relation {
		rel := &Relation{OID: oid, Schema: rapid.String().Draw(t, "schema"), Name: rapid.String().Draw(t, "name"), Identity: rapid.SampledFrom([]byte("dnfi")).Draw(t, "identity")}
		for range rapid.IntRange(1, 5).Draw(t, "columns") {
			rel.Columns = append(rel.Columns, Column{
				Name: rapid.String().Draw(t, "column"), Identity: rapid.Bool().Draw(t, "key"),
				TypeMod: rapid.Int32().Draw(t, "typmod"), Type: genType(0).Draw(t, "type"),
			})
		}
		if rapid.Bool().Draw(t, "primary key") {
			rel.PrimaryKey = []int{rapid.IntRange(0, len(rel.Columns)-1).Draw(t, "pk")}
		}
		return rel
	})
}

// clone frees a change from the decoder's memory.
func (c Change) clone() Change {
	copyValues := func(values []Value) []Value {
		if values == nil {
			return nil
		}
		out := make([]Value, len(values))
		for i, v := range values {
			out[i] = Value{Kind: v.Kind}
			if v.Data != nil {
				out[i].Data = append([]byte{}, v.Data...)
			}
		}
		return out
	}
	c.Old, c.New = copyValues(c.Old), copyValues(c.New)
	return c
}

// What is written, cut into blocks anywhere, is what is read, whichever block reading begins at.
func TestBlocksRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		relations := []*Relation{genRelation(1).Draw(t, "first"), genRelation(2).Draw(t, "second")}
		var (
			w      Writer
			blocks [][]byte
			want   []Change
			first  []int // of want, by block
		)
		seal := func() {
			if rapid.IntRange(0, 3).Draw(t, "seal") == 0 {
				blocks = append(blocks, w.Seal(nil, nil))
				first = append(first, len(want))
			}
		}
		first = append(first, 0)
		lsn := LSN(1000)
		for range rapid.IntRange(1, 4).Draw(t, "transactions") {
			at := time.UnixMicro(rapid.Int64Range(1, 1<<50).Draw(t, "at"))
			xid := rapid.Uint32().Draw(t, "xid")
			lsn += 1000
			ordinal := uint32(0)
			w.Begin(xid, lsn, at, 0)
			for range rapid.IntRange(0, 5).Draw(t, "rows") {
				rel := rapid.SampledFrom(relations).Draw(t, "relation")
				c := Change{Op: rapid.SampledFrom([]Op{OpInsert, OpUpdate, OpDelete, OpTruncate}).Draw(t, "op"), Relation: rel, XID: xid, CommitTime: at}
				if rapid.IntRange(0, 4).Draw(t, "skip") == 0 {
					w.Skip(3)
					ordinal += 3
				}
				if rapid.IntRange(0, 4).Draw(t, "except") == 0 {
					c.Except = []string{"crm", "fans"}
					c.ExceptPart = Part(rapid.IntRange(0, int(PartNew)).Draw(t, "part"))
					w.Except(c.ExceptPart, c.Except)
				}
				if !w.Has(rel.OID) {
					w.Relation(rel.OID, AppendRelation(nil, rel))
				}
				ordinal++
				c.Position = Position{Commit: lsn, Ordinal: ordinal}
				writeChange(t, &w, &c)
				want = append(want, c)
				seal()
			}
			w.Commit(lsn + 10)
			seal()
		}
		blocks = append(blocks, w.Seal(nil, nil))

		begin := rapid.IntRange(0, len(blocks)-1).Draw(t, "begin")
		want = want[first[begin]:]
		var (
			d   Decoder
			got []Change
			c   Change
		)
		for _, block := range blocks[begin:] {
			if _, err := d.Reset(block); err != nil {
				t.Fatal(err)
			}
			for {
				ok, err := d.Next(&c)
				if err != nil {
					t.Fatal(err)
				}
				if !ok {
					break
				}
				got = append(got, c.clone())
			}
		}
		if len(want) == 0 {
			want = nil
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("changes (-want +got):\n%s", diff)
		}
	})
}

func writeChange(t *rapid.T, w *Writer, c *Change) {
	columns := len(c.Relation.Columns)
	message := binary.BigEndian.AppendUint32([]byte{0}, c.Relation.OID)
	if c.Op == OpTruncate {
		w.Truncate(c.Relation.OID)
		return
	}
	if c.Op == OpDelete || c.Op == OpUpdate && rapid.Bool().Draw(t, "has old") {
		c.Old = genValues(columns).Draw(t, "old")
		c.OldIsKey = rapid.Bool().Draw(t, "old is key")
		mark := byte('O')
		if c.OldIsKey {
			mark = 'K'
		}
		message = AppendTuple(append(message, mark), c.Old)
		for i := range c.Old {
			if c.OldIsKey && (c.Old[i].Kind == Null || !c.Relation.Columns[i].Identity) {
				c.Old[i] = Value{}
			}
		}
	}
	if c.Op != OpDelete {
		c.New = genValues(columns).Draw(t, "new")
		message = AppendTuple(append(message, 'N'), c.New)
	}
	message[0] = map[Op]byte{OpInsert: 'I', OpUpdate: 'U', OpDelete: 'D'}[c.Op]
	w.Row(message)
}

func FuzzDecoder(f *testing.F) {
	var w Writer
	rel := testRelation()
	w.Begin(7, 100, time.UnixMicro(1), 0)
	w.Relation(rel.OID, AppendRelation(nil, rel))
	w.Row(insertMessage(rel.OID, text("1"), text("a")))
	w.Oversized(OpUpdate, rel.OID, Oversized{Bytes: 1 << 30, Key: "id=1"})
	w.Commit(150)
	w.BeginChunk(Chunk{LSN: 160, At: time.UnixMicro(2), Targets: []string{"crm"}})
	w.Reads(AppendRead(nil, rel.OID, 2, AppendValues(nil, []Value{text("1"), {Kind: Null}})), 1)
	w.EndChunk()
	f.Add(w.Seal([]byte("{}"), nil))
	f.Fuzz(func(t *testing.T, block []byte) {
		var d Decoder
		_, err := d.Reset(block)
		var c Change
		for ok := true; ok && err == nil; {
			ok, err = d.Next(&c)
			if ok && (c.Relation == nil || c.New != nil && len(c.New) != len(c.Relation.Columns)) {
				t.Fatalf("a change without its relation's columns: %+v", c)
			}
		}
		var bad *CorruptError
		if err != nil && !errors.As(err, &bad) {
			t.Fatalf("error of type %T: %v", err, err)
		}
	})
}

func benchmarkRow() (*Relation, []byte) {
	rel := testRelation()
	for range 9 {
		rel.Columns = append(rel.Columns, Column{Name: "more", TypeMod: -1, Type: rel.Columns[1].Type})
	}
	values := make([]Value, len(rel.Columns))
	for i := range values {
		values[i] = text("twenty characters...")
	}
	return rel, insertMessage(rel.OID, values...)
}

func BenchmarkWriter(b *testing.B) {
	rel, message := benchmarkRow()
	encoded := AppendRelation(nil, rel)
	var w Writer
	spare := make([]byte, 0, 300<<10)
	w.Begin(7, 100, time.UnixMicro(1), 0)
	b.SetBytes(int64(len(message)))
	b.ReportAllocs()
	for b.Loop() {
		if !w.Has(rel.OID) {
			w.Relation(rel.OID, encoded)
		}
		w.Row(message)
		if w.Len() > 256<<10 {
			spare = w.Seal(nil, spare)
		}
	}
}

func BenchmarkDecoder(b *testing.B) {
	rel, message := benchmarkRow()
	var w Writer
	w.Begin(7, 100, time.UnixMicro(1), 0)
	w.Relation(rel.OID, AppendRelation(nil, rel))
	for range 1000 {
		w.Row(message)
	}
	w.Commit(150)
	block := w.Seal(nil, nil)
	var (
		d  Decoder
		c  Change
		ok bool
	)
	b.SetBytes(int64(len(message)))
	b.ReportAllocs()
	for b.Loop() {
		if !ok {
			if _, err := d.Reset(block); err != nil {
				b.Fatal(err)
			}
		}
		var err error
		if ok, err = d.Next(&c); err != nil {
			b.Fatal(err)
		}
	}
}
