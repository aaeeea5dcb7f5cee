package delivery

import (
	"context"
	"encoding/binary"
	"errors"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/cdcsync/cdcsync/internal/cdc"
	"github.com/cdcsync/cdcsync/internal/mapping"
	"github.com/cdcsync/cdcsync/internal/sinks"
)

// database answers what delivery asks of the source.
type database struct {
	mu      sync.Mutex
	rows    map[int]int // public.t: id → v
	fail    error
	asked   []string
	xids    []uint32
	lookups map[string]string
	texts   map[int]string       // of v, where it is no number
	types   map[string]*cdc.Type // of columns, where they are others now
}

func (d *database) Rows(_ context.Context, rel *cdc.Relation, columns []int, keys [][]string, xids []uint32) (rows [][]cdc.Value, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.xids = xids
	if d.fail != nil {
		return nil, d.fail
	}
	for _, key := range keys {
		d.asked = append(d.asked, rel.Name+" "+key[0])
		id, _ := strconv.Atoi(key[0])
		v, ok := d.rows[id]
		if !ok {
			rows = append(rows, nil)
			continue
		}
		var r []cdc.Value
		for _, c := range columns {
			if rel.Columns[c].Name == "id" {
				r = append(r, value(id))
			} else if text := d.texts[id]; text != "" {
				r = append(r, cdc.Value{Kind: cdc.Text, Data: []byte(text)})
			} else {
				r = append(r, value(v))
			}
		}
		rows = append(rows, r)
	}
	return rows, nil
}

func (d *database) Types(_ context.Context, rel *cdc.Relation, columns []int) (types []*cdc.Type, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.fail != nil {
		return nil, d.fail
	}
	for _, c := range columns {
		t := d.types[rel.Columns[c].Name]
		if t == nil {
			t = rel.Columns[c].Type
		}
		types = append(types, t)
	}
	return types, nil
}

func (d *database) Lookup(_ context.Context, sql string, keys []string, xids []uint32) (map[string]mapping.Rows, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.xids = xids
	d.asked = append(d.asked, sql+" "+strings.Join(keys, ","))
	if d.fail != nil {
		return nil, d.fail
	}
	found := make(map[string]mapping.Rows)
	for _, key := range keys {
		if v, ok := d.lookups[key]; ok {
			found[key] = mapping.Rows{Columns: []cdc.Field{{Name: "n", Type: int8Type}}, Rows: [][]cdc.Value{{{Kind: cdc.Text, Data: []byte(v)}}}}
		}
	}
	return found, nil
}

func (d *database) Relation(_ context.Context, _, name string) (*cdc.Relation, error) {
	if name != "t" {
		return nil, nil
	}
	return relation(1, "t", "id", "v"), nil
}

func TestUnsentValuesAreReadBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		data := blockOf(10, row{op: cdc.OpInsert, id: 1, v: 1}, row{op: cdc.OpUpdate, id: 2, toast: true}, row{op: cdc.OpUpdate, id: 3, toast: true}, row{op: cdc.OpUpdate, id: 4, v: 4})
		s, v, db := newStore(data), new(vendor), &database{rows: map[int]int{2: 22}}
		deps := testDeps(t, s, v, plainMapping)
		deps.Source = db
		w := New(oneLane(), deps)
		running(t, w)
		synctest.Wait()
		if got := vs(v.seen()); !slices.Equal(got, []int{1, 22, 4}) {
			t.Errorf("sent %v", got)
		}
		if !slices.Equal(db.asked, []string{"t 2", "t 3"}) || !slices.Equal(db.xids, []uint32{10}) {
			t.Errorf("asked %v, xids %v", db.asked, db.xids)
		}
		if st := w.Status(); st.Items.Gone != 1 || s.settled != 1 {
			t.Errorf("status %+v", st)
		}
	})
}

func TestWithoutSourceUnsentValuesAreRejected(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, v := newStore(blockOf(10, row{op: cdc.OpUpdate, id: 2, toast: true})), new(vendor)
		running(t, New(oneLane(), testDeps(t, s, v, plainMapping)))
		synctest.Wait()
		if len(s.letters) != 1 || s.settled != 1 || len(v.seen()) != 0 {
			t.Errorf("letters %v", s.letters)
		}
	})
}

const lookupMapping = `[{name: rows, table: t, item: {id: $id, v: $v, n: "=lookup.things?.n"}, lookups: [{name: things, key: $id, sql: "select things"}]}]`

func TestLookupsAskOncePerBlock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, db := newStore(blockOf(10, append(inserts(1, 5), inserts(3, 4)...)...)), &database{lookups: map[string]string{"1": "11", "4": "44"}}
		v := new(raw)
		deps := testDeps(t, s, v, lookupMapping)
		deps.Source = db
		running(t, New(oneLane(), deps))
		synctest.Wait()
		if diff := cmp.Diff([]string{"select things 1,2,3,4,5"}, db.asked); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
		if len(v.bodies) != 7 || v.bodies[3] != `{"id":4,"v":4,"n":44}` || v.bodies[1] != `{"id":2,"v":2,"n":null}` {
			t.Errorf("sent %v", v.bodies)
		}
	})
}

// raw keeps bodies.
type raw struct{ bodies []string }

func (*raw) Limits() sinks.Limits { return sinks.Limits{} }

func (r *raw) Deliver(_ context.Context, items []sinks.Item, _ string) ([]sinks.Outcome, error) {
	for _, item := range items {
		r.bodies = append(r.bodies, string(item.Body))
	}
	return allDelivered(items), nil
}

func TestFailingQueryBlocks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, v, db := newStore(blockOf(10, inserts(1, 2)...)), new(raw), &database{fail: errors.New("relation things does not exist")}
		deps := testDeps(t, s, v, lookupMapping)
		deps.Source = db
		w := New(oneLane(), deps)
		running(t, w)
		time.Sleep(time.Hour)
		if st := w.Status(); st.State != StateBlocked || st.Reason != "lookup things of mapping rows: relation things does not exist" || st.NextAttempt.IsZero() {
			t.Errorf("status %+v", st)
		}
		db.mu.Lock()
		db.fail = nil
		db.mu.Unlock()
		time.Sleep(time.Minute)
		if st := w.Status(); st.State != StateRunning || s.settledUpTo() != 1 {
			t.Errorf("status %+v", st)
		}
	})
}

var childTable = relation(2, "c", "id", "t_id")

const refreshMapping = `
- {name: rows, table: t, item: {id: $id, v: $v}}
- {name: children, table: c, refresh: {table: t, key: id, by: $t_id}}
`

func TestRefreshSendsTheRootOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		data := blockWith(10, func(w *cdc.Writer) {
			w.Relation(testTable.OID, cdc.AppendRelation(nil, testTable))
			w.Relation(childTable.OID, cdc.AppendRelation(nil, childTable))
			w.Row(message(cdc.OpInsert, childTable.OID, value(1), value(7)))
			w.Row(message(cdc.OpInsert, childTable.OID, value(2), value(8)))
			w.Row(row{op: cdc.OpInsert, id: 1, v: 1}.message())
			w.Row(message(cdc.OpInsert, childTable.OID, value(3), value(7)))
			w.Row(message(cdc.OpInsert, childTable.OID, value(4), value(9))) // whose root is gone
		})
		s, v, db := newStore(data), new(vendor), &database{rows: map[int]int{7: 77, 8: 88}}
		v.answer = poisoned(77)
		deps := testDeps(t, s, v, refreshMapping)
		deps.Source = db
		w := New(oneLane(), deps)
		running(t, w)
		synctest.Wait()
		if !slices.Equal(db.asked, []string{"t 8", "t 7", "t 9"}) || s.settled != 1 || w.Status().Items.Gone != 1 {
			t.Errorf("asked %v, settled %d, status %+v", db.asked, s.settled, w.Status())
		}
		l := s.letter("0/A#4/rows/refresh")
		if c, err := cdc.DecodeChange(l.Change); err != nil || c.Relation.Name != "t" || string(c.New[1].Data) != "77" || l.Mapping != "rows" {
			t.Fatalf("letter %+v: %v", l, err)
		}
		v.change(nil)
		if got := retry(t, w, false, l.ID); got[0].Outcome != RetryQueued {
			t.Errorf("results %+v", got)
		}
		synctest.Wait()
		if got := vs(v.seen()); got[len(got)-1] != 77 || s.letter("0/A#4/rows/refresh").State != LetterDelivered {
			t.Errorf("sent %v", got)
		}
	})
}

const parentMapping = `
- {name: rows, table: t, item: {id: $id, v: $v}}
- {name: children, table: c, item: {id: $id, v: 1, t: $t_id}, parents: [{mapping: rows, key: $t_id}]}
`

func TestParentsAreDeliveredFirst(t *testing.T) { testParents(t, parentMapping) }

func TestParentsAreDeliveredBeforeCoalescedChildren(t *testing.T) {
	testParents(t, strings.Replace(parentMapping, "table: c,", "table: c, coalesce: latest,", 1))
}

func testParents(t *testing.T, mappings string) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s := newStore()
		for i := range 30 {
			s.append(blockWith(cdc.LSN(10*i+10), func(w *cdc.Writer) {
				w.Relation(testTable.OID, cdc.AppendRelation(nil, testTable))
				w.Relation(childTable.OID, cdc.AppendRelation(nil, childTable))
				w.Row(row{op: cdc.OpInsert, id: i, v: i}.message())
				w.Row(message(cdc.OpInsert, childTable.OID, value(1000+i), value(i)))
				if i > 0 { // a child that moves to another parent, in turn
					w.Row(message(cdc.OpUpdate, childTable.OID, value(1000), value(i)))
				}
			}))
		}
		v := &family{there: make(map[string]bool)}
		cfg := testConfig()
		cfg.Concurrency, cfg.Batch.Items = 4, 3
		w := New(cfg, testDeps(t, s, v, mappings))
		running(t, w)
		time.Sleep(time.Hour)
		if v.orphan != "" || s.settledUpTo() != 30 || w.Status().PendingBytes != 0 {
			t.Errorf("orphan %q, settled %d, %+v", v.orphan, s.settledUpTo(), w.Status())
		}
	})
}

// family is a vendor that knows which records it has.
type family struct {
	mu     sync.Mutex
	n      int // requests
	there  map[string]bool
	last   int // parent of child 1000
	orphan string
}

func (*family) Limits() sinks.Limits { return sinks.Limits{} }

func (f *family) Deliver(_ context.Context, items []sinks.Item, _ string) ([]sinks.Outcome, error) {
	f.mu.Lock()
	f.n++
	n := f.n
	f.mu.Unlock()
	time.Sleep(time.Duration(n*7%50) * time.Millisecond)
	if n%5 == 4 {
		return nil, errDown
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, item := range items {
		body := string(item.Body)
		id, parent, child := strings.Cut(body, `,"v":1,"t":`)
		if !child {
			f.there[strings.TrimPrefix(strings.Split(body, ",")[0], `{"id":`)] = true
			continue
		}
		parent = strings.TrimSuffix(parent, "}")
		if !f.there[parent] {
			f.orphan = body
		}
		if at, _ := strconv.Atoi(parent); id == `{"id":1000` {
			if at < f.last {
				f.orphan = body + " after its parent was " + strconv.Itoa(f.last)
			}
			f.last = at
		}
	}
	return allDelivered(items), nil
}

// A value of a type that was altered meanwhile is read back with the type that it has now, and never sent by another.
func TestValueOfAnUnknownTypeIsReadBackWithItsType(t *testing.T) {
	address := &cdc.Type{OID: 20000, Name: "addr", Kind: cdc.TypeComposite, Fields: []cdc.Field{{Name: "city", Type: textType}, {Name: "zip", Type: textType}}}
	rel := *testTable
	rel.Identity = 'f'
	rel.Columns = []cdc.Column{{Name: "id", Identity: true, Type: int8Type}, {Name: "v", Identity: true, Type: cdc.UnknownType(address)}}
	text := func(s string) cdc.Value { return cdc.Value{Kind: cdc.Text, Data: []byte(s)} }
	for name, test := range map[string]struct {
		db     *database
		sent   []string
		letter int
	}{
		"read back":  {&database{rows: map[int]int{1: 0, 2: 0}, texts: map[int]string{1: "(Rio,22)", 2: "(Olinda,53)"}, types: map[string]*cdc.Type{"v": address}}, []string{`{"id":1,"v":0,"n":{"city":"Rio","zip":"22"}}`, `{"id":3,"v":0,"n":null}`, `{"id":2,"v":0,"n":{"city":"Olinda","zip":"53"}}`}, 1},
		"still gone": {&database{rows: map[int]int{1: 0, 2: 0}, texts: map[int]string{1: "(Rio,22)", 2: "(Olinda,53)"}}, []string{`{"id":3,"v":0,"n":null}`}, 3},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				data := blockWith(10, func(w *cdc.Writer) {
					w.Relation(rel.OID, cdc.AppendRelation(nil, &rel))
					w.Row(message(cdc.OpInsert, rel.OID, value(1), text("(Rua A,Rio)")))
					w.Row(message(cdc.OpInsert, rel.OID, value(3), cdc.Value{Kind: cdc.Null}))
					update := cdc.AppendTuple(append(binary.BigEndian.AppendUint32([]byte{'U'}, rel.OID), 'O'), []cdc.Value{value(2), text("(Rua B,Olinda)")})
					w.Row(cdc.AppendTuple(append(update, 'N'), []cdc.Value{value(2), {Kind: cdc.Unchanged}}))
					w.Row(message(cdc.OpDelete, rel.OID, value(4), text("(Rua C,Rio)")))
				})
				s, v := newStore(data), new(raw)
				deps := testDeps(t, s, v, `[{name: rows, table: t, item: {id: $id, v: 0, n: $v}}]`)
				deps.Source = test.db
				w := New(oneLane(), deps)
				running(t, w)
				synctest.Wait()
				if diff := cmp.Diff(test.sent, v.bodies); diff != "" {
					t.Errorf("sent (-want +got):\n%s", diff)
				}
				if len(s.letters) != test.letter || s.settledUpTo() != 1 {
					t.Errorf("%d letters, want %d", len(s.letters), test.letter)
				}
				for _, letter := range s.letters {
					if !strings.Contains(letter.Reason, "column v is of the type addr, which was altered or dropped") {
						t.Errorf("reason %q", letter.Reason)
					}
				}
				// What could not be read is tried again by a retry.
				test.db.mu.Lock()
				test.db.types = map[string]*cdc.Type{"v": address}
				test.db.mu.Unlock()
				for id, letter := range s.letters {
					if letter.Op == cdc.OpDelete {
						continue
					}
					retry(t, w, false, id)
				}
				synctest.Wait()
				if len(v.bodies) != 3 {
					t.Errorf("sent %v", v.bodies)
				}
			})
		})
	}
}
