package delivery

import (
	"encoding/binary"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/cdcsync/cdcsync/internal/cdc"
)

// keyChange is an update with the whole old row.
func keyChange(from, to, v int) []byte {
	values := func(id, v int) []cdc.Value {
		return []cdc.Value{{Kind: cdc.Text, Data: strconv.AppendInt(nil, int64(id), 10)}, {Kind: cdc.Text, Data: strconv.AppendInt(nil, int64(v), 10)}}
	}
	m := binary.BigEndian.AppendUint32([]byte{'U'}, testTable.OID)
	m = cdc.AppendTuple(append(m, 'O'), values(from, v-1))
	return cdc.AppendTuple(append(m, 'N'), values(to, v))
}

// What a backfilled row includes is left out for its sinks: a change, or one half of a change of the key.
func TestLeavesOutWhatARowIncludes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := oneLane()
		mine, other := []string{cfg.Sink}, []string{"another"}
		block := blockWith(10, func(w *cdc.Writer) {
			w.Relation(testTable.OID, cdc.AppendRelation(nil, testTable))
			for i, except := range []struct {
				part  cdc.Part
				sinks []string
			}{{sinks: nil}, {cdc.PartWhole, mine}, {cdc.PartOld, mine}, {cdc.PartNew, mine}, {cdc.PartWhole, other}, {cdc.PartOld, other}} {
				if except.sinks != nil {
					w.Except(except.part, except.sinks)
				}
				w.Row(keyChange(10+i, 20+i, 2*i+1))
			}
		})
		var w cdc.Writer
		w.BeginChunk(cdc.Chunk{LSN: 20, At: time.Now(), Targets: other})
		w.Relation(testTable.OID, cdc.AppendRelation(nil, testTable))
		w.Reads(cdc.AppendRead(nil, testTable.OID, 2, cdc.AppendValues(nil, []cdc.Value{{Kind: cdc.Text, Data: []byte("99")}, {Kind: cdc.Text, Data: []byte("99")}})), 1)
		w.EndChunk()

		s, v := newStore(block, w.Seal(nil, nil)), new(vendor)
		running(t, New(cfg, testDeps(t, s, v, plainMapping)))
		synctest.Wait()
		var got []sent
		for _, request := range v.seen() {
			got = append(got, request...)
		}
		want := []sent{
			{cdc.OpDelete, 10, 0},
			{cdc.OpInsert, 20, 1},
			{cdc.OpInsert, 22, 5},
			{cdc.OpDelete, 13, 6},
			{cdc.OpDelete, 14, 8},
			{cdc.OpInsert, 24, 9},
			{cdc.OpDelete, 15, 10},
			{cdc.OpInsert, 25, 11},
		}
		if diff := cmp.Diff(want, got, cmp.AllowUnexported(sent{})); diff != "" {
			t.Errorf("items (-want +got):\n%s", diff)
		}
		if s.settled != 2 {
			t.Errorf("%d blocks are settled", s.settled)
		}
	})
}
