package cdc

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func TestChangeAloneSurvives(t *testing.T) {
	at := time.UnixMicro(1_700_000_000_000_001)
	rel := testRelation()
	for name, c := range map[string]Change{
		"insert":    {Op: OpInsert, New: []Value{text("1"), {Kind: Null}}},
		"update":    {Op: OpUpdate, New: []Value{text("1"), {Kind: Unchanged}}},
		"full":      {Op: OpUpdate, Old: []Value{text("1"), {Kind: Null}}, New: []Value{text("2"), text("b")}},
		"delete":    {Op: OpDelete, Old: []Value{text("1"), {Kind: Absent}}, OldIsKey: true},
		"truncate":  {Op: OpTruncate},
		"read":      {Op: OpRead, New: []Value{text("1"), text("")}},
		"oversized": {Op: OpUpdate, Oversized: &Oversized{Bytes: 1 << 30, Key: "id=1"}},
	} {
		t.Run(name, func(t *testing.T) {
			c.Relation, c.Position, c.CommitTime = rel, Position{Commit: 0x16_B374D848, Ordinal: 3}, at
			if c.Op != OpRead {
				c.XID = 7
			}
			got, err := DecodeChange(EncodeChange(&c))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(&c, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestPositionAppendsAsItPrints(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := Position{Commit: LSN(rapid.Uint64().Draw(t, "commit")), Ordinal: rapid.Uint32().Draw(t, "ordinal")}
		if got := string(p.Append(nil)); got != p.String() {
			t.Errorf("%q, want %q", got, p)
		}
	})
}
