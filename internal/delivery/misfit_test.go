package delivery

import (
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/cdcsync/cdcsync/internal/cdc"
)

const misfitMappings = `
- {name: rows, table: t, item: {id: $id, v: $v}}
- {name: wrong, table: t, on: [insert, delete], item: {id: $ident, v: $v, w: $wide}, when: "=sold > 1"}
- {name: children, table: c, item: {id: $id, v: 1}}
`

// versionOf is a block of one transaction whose table has these columns, the first of which is the key.
func versionOf(commit cdc.LSN, columns []string, ops ...cdc.Op) []byte {
	rel := relation(testTable.OID, "t", columns...)
	return blockWith(commit, func(w *cdc.Writer) {
		w.Relation(rel.OID, cdc.AppendRelation(nil, rel))
		for i, op := range ops {
			values := []cdc.Value{value(int(commit) + i)}
			for range columns[1:] {
				values = append(values, value(int(commit)+i))
			}
			w.Row(message(op, rel.OID, values...))
		}
	})
}

// A mapping that reads columns which its table does not have stands still by itself, and what it missed is stored before the block
// is settled.
func TestMisfitHoldsItselfOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		children := blockWith(40, func(w *cdc.Writer) {
			w.Relation(childTable.OID, cdc.AppendRelation(nil, childTable))
			w.Row(message(cdc.OpInsert, childTable.OID, value(40), value(1)))
		})
		fits := []string{"id", "v", "ident", "wide", "sold"}
		s := newStore(versionOf(10, fits, cdc.OpInsert), versionOf(20, []string{"id", "v"}, cdc.OpInsert, cdc.OpDelete), versionOf(30, []string{"id", "v"}, cdc.OpInsert),
			children, versionOf(50, fits, cdc.OpInsert))
		s.onSettle = func(seq uint64) { // s.mu is held
			if newest := uint64(len(s.gaps) + 1); seq > newest && seq < 4 {
				t.Errorf("block %d is settled, and %d gaps are stored", seq, len(s.gaps))
			}
		}
		v, registry := new(raw), prometheus.NewPedanticRegistry()
		deps := testDeps(t, s, v, misfitMappings)
		deps.Registerer = registry
		w := New(oneLane(), deps)
		running(t, w)
		synctest.Wait()
		want := []string{
			`{"id":10,"v":10}`, `{"id":10,"v":10,"w":10}`, `{"id":20,"v":20}`, `{"id":21,"v":21}`, `{"id":30,"v":30}`, `{"id":40,"v":1}`,
			`{"id":50,"v":50}`, `{"id":50,"v":50,"w":50}`,
		}
		if !slices.Equal(v.bodies, want) || s.settledUpTo() != 5 || w.Status().State != StateRunning {
			t.Errorf("sent %v, settled %d, %+v", v.bodies, s.settledUpTo(), w.Status())
		}
		gaps := s.recorded()
		if len(gaps) != 2 {
			t.Fatalf("gaps %+v", gaps)
		}
		first, second := gaps[0], gaps[1]
		for _, word := range []string{"mapping wrong", `unknown column "ident"`, `unknown column "wide"`, "sold"} {
			if !strings.Contains(first.Reason, word) {
				t.Errorf("the reason lacks %q: %s", word, first.Reason)
			}
		}
		if first.Cause != cdc.GapMapping || first.Table != "public.t" || first.Mapping != "wrong" || !slices.Equal(first.Sinks, []string{"vendor"}) ||
			first.Since != 20 || first.Until != 20 || first.SinceTime.IsZero() || first.UntilTime.IsZero() || first.NoDeletes {
			t.Errorf("gap %+v", first)
		}
		if second.Until != 30 || second.Reason != first.Reason || !second.NoDeletes {
			t.Errorf("gap %+v", second)
		}
		if got := w.Status().Items.Held; got != 3 {
			t.Errorf("%d held", got)
		}
		if got := testutil.ToFloat64(w.metrics.items.WithLabelValues("public.t", "insert", "held")); got != 2 {
			t.Errorf("the metric counts %v inserts", got)
		}
	})
}

// What the mapping would not have sent is not missed.
func TestMisfitIsNotHeldForOtherOperations(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStore(versionOf(10, []string{"id", "v"}, cdc.OpInsert, cdc.OpUpdate))
		running(t, New(oneLane(), testDeps(t, s, new(raw), `[{name: wrong, table: t, on: [delete], item: {id: $ident, v: $v}}]`)))
		synctest.Wait()
		if gaps := s.recorded(); len(gaps) != 1 || gaps[0].NoDeletes { // the update might be a delete
			t.Errorf("gaps %+v", gaps)
		}
		if s.settledUpTo() != 1 {
			t.Error("not settled")
		}
	})
}

// As long as the gap cannot be stored the block stays.
func TestMisfitWaitsForItsGap(t *testing.T) {
	for name, stored := range map[string]bool{"failing": false, "none": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newStore(versionOf(10, []string{"id", "v"}, cdc.OpInsert))
				deps := testDeps(t, s, new(raw), misfitMappings)
				if stored {
					deps.Gaps = nil
				}
				s.fail(errStore)
				w := New(oneLane(), deps)
				running(t, w)
				time.Sleep(time.Hour)
				if s.settledUpTo() != 0 || w.Status().State != StateBlocked {
					t.Errorf("settled %d, %+v", s.settledUpTo(), w.Status())
				}
				s.fail(nil)
				time.Sleep(time.Minute)
				if settled := s.settledUpTo() == 1; settled == stored {
					t.Errorf("settled %d, gaps %v", s.settledUpTo(), s.recorded())
				}
			})
		})
	}
}

// A letter of a mapping that does not fit its row any more stays, and the retry says every mistake.
func TestRetryOfAMisfitIsRejected(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, v := newStore(blockOf(10, row{op: cdc.OpInsert, id: 1, v: 7})), new(vendor)
		v.answer = poisoned(7)
		stop := running(t, New(oneLane(), testDeps(t, s, v, plainMapping)))
		synctest.Wait()
		stop()
		v.change(nil)
		w := New(oneLane(), testDeps(t, s, v, `[{name: rows, table: t, item: {id: $ident, v: $v, w: $wide}}]`))
		running(t, w)
		synctest.Wait()
		id := "0/A#1/rows"
		for range 2 {
			got := retry(t, w, false, s.letter(id).ID)
			if got[0].Outcome != RetryRejected || !strings.Contains(got[0].Reason, `"ident"`) || !strings.Contains(got[0].Reason, `"wide"`) {
				t.Errorf("results %+v", got)
			}
			synctest.Wait()
		}
		if l := s.letter(id); l.State != LetterOpen || len(s.recorded()) != 0 || len(v.seen()) != 1 {
			t.Errorf("letter %+v, gaps %v, requests %v", l, s.recorded(), v.seen())
		}
	})
}

// A value that is read back may have a type that the mapping does not take.
func TestMisfitOfWhatIsReadBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		address := &cdc.Type{OID: 20000, Name: "addr", Kind: cdc.TypeComposite, Fields: []cdc.Field{{Name: "city", Type: textType}}}
		rel := *testTable
		rel.Columns = []cdc.Column{{Name: "id", Identity: true, Type: int8Type}, {Name: "v", Type: cdc.UnknownType(address)}}
		s := newStore(blockWith(10, func(w *cdc.Writer) {
			w.Relation(rel.OID, cdc.AppendRelation(nil, &rel))
			w.Row(message(cdc.OpInsert, rel.OID, value(1), cdc.Value{Kind: cdc.Text, Data: []byte("(Rio)")}))
		}))
		v := new(raw)
		deps := testDeps(t, s, v, `
- {name: number, table: t, item: {id: $id, v: $v}}
- {name: other, table: t, item: {id: $id, v: 1}}
`)
		deps.Source = &database{rows: map[int]int{1: 0}, texts: map[int]string{1: "(Rio)"}, types: map[string]*cdc.Type{"v": address}}
		running(t, New(oneLane(), deps))
		synctest.Wait()
		gaps := s.recorded()
		if len(gaps) != 1 || gaps[0].Mapping != "number" || !strings.Contains(gaps[0].Reason, "addr") {
			t.Errorf("gaps %+v, letters %v", gaps, s.letters)
		}
		if !slices.Equal(v.bodies, []string{`{"id":1,"v":1}`}) || s.settledUpTo() != 1 {
			t.Errorf("sent %v", v.bodies)
		}
	})
}

// A refresh whose root table is gone or has no such key, and a root's mapping that does not fit it, stand still by themselves.
func TestMisfitRefresh(t *testing.T) {
	const others = "\n- {name: other, table: c, item: {id: $id, v: 1}}\n"
	for name, test := range map[string]struct{ mappings, held, table, reason string }{
		"no table": {`
- {name: rows, table: u, item: {id: $id, v: $v}}
- {name: children, table: c, refresh: {table: u, key: id, by: $t_id}}`, "children", "public.c", "no such table"},
		"no key": {`
- {name: rows, table: t, item: {id: $id, v: $v}}
- {name: children, table: c, refresh: {table: t, key: ident, by: $t_id}}`, "children", "public.c", "no column ident"},
		"no by": {`
- {name: rows, table: t, item: {id: $id, v: $v}}
- {name: children, table: c, refresh: {table: t, key: id, by: $of}}`, "children", "public.c", `unknown column "of"`},
		"root": {`
- {name: rows, table: t, item: {id: $id, v: $wide}}
- {name: children, table: c, refresh: {table: t, key: id, by: $t_id}}`, "rows", "public.t", `unknown column "wide"`},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newStore(blockWith(10, func(w *cdc.Writer) {
					w.Relation(childTable.OID, cdc.AppendRelation(nil, childTable))
					w.Row(message(cdc.OpInsert, childTable.OID, value(1), value(7)))
				}))
				v := new(raw)
				deps := testDeps(t, s, v, test.mappings+others)
				deps.Source = &database{rows: map[int]int{7: 77}}
				w := New(oneLane(), deps)
				running(t, w)
				synctest.Wait()
				gaps := s.recorded()
				if len(gaps) != 1 || gaps[0].Mapping != test.held || gaps[0].Table != test.table || !strings.Contains(gaps[0].Reason, test.reason) || gaps[0].Until != 10 {
					t.Errorf("gaps %+v", gaps)
				}
				if !slices.Equal(v.bodies, []string{`{"id":1,"v":1}`}) || s.settledUpTo() != 1 || w.Status().State != StateRunning {
					t.Errorf("sent %v, settled %d, %+v", v.bodies, s.settledUpTo(), w.Status())
				}
			})
		})
	}
}

// A block that is damaged is no mapping's mistake: nothing behind it is delivered.
func TestDamagedBlockStaysFatal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStore(blockWith(10, func(w *cdc.Writer) {
			w.Relation(testTable.OID, cdc.AppendRelation(nil, testTable))
			w.Row(message(cdc.OpInsert, testTable.OID, value(1), value(2), value(3)))
		}), blockOf(20, row{op: cdc.OpInsert, id: 2, v: 2}))
		w := New(oneLane(), testDeps(t, s, new(raw), plainMapping))
		running(t, w)
		synctest.Wait()
		if w.Status().State != StateBlocked || s.settledUpTo() != 0 || len(s.recorded()) != 0 {
			t.Errorf("status %+v, gaps %v", w.Status(), s.recorded())
		}
	})
}
