package replication

import (
	"encoding/binary"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/cdcsync/cdcsync/internal/cdc"
)

// The model is a source of a few keys, whose versions only grow, a log that a crash cuts anywhere, and a vendor that applies
// the log. It makes every choice through choose, so that rapid shrinks what fails and a plain generator can search for what must fail.
type model struct {
	choose func(label string, n int) int
	drop   clause // what the driver leaves out of the rule

	// The source.
	nextXID uint32
	version int
	wal     cdc.LSN
	rows    map[int]int // visible: key → version; negative for a deleted row
	locks   map[int]uint32
	open    []*modelTransaction // with writes, not committed
	hidden  []*modelTransaction // committed, in the WAL, not yet visible
	commits []*modelTransaction // in the order of the WAL

	// The capture.
	merge     merge
	delivered int // of commits
	cursor    int
	reread    []int
	done      bool
	began     uint32 // xmax when tracking began
	ready     bool   // every transaction before began has ended
	pending   *modelChunk
	ahead     *modelChunk // read while pending waits

	log []entry
}

type modelTransaction struct {
	xid    uint32
	commit cdc.LSN
	writes map[int]int
	order  []int
}

type modelChunk struct {
	snapshot snapshot
	lsn      cdc.LSN
	keys     []int
	versions []int
	again    int   // how many of keys were read again
	reread   []int // which keys that was tried with
	next     int
	end      bool
}

// entry of the log: the changes of a transaction, what is stored of a chunk before its rows, or one row of a chunk.
type entry struct {
	transaction int // of commits; -1 for a chunk
	key         int
	version     int
	except      bool
	record      *modelRecord
	last        bool
}

type modelRecord struct {
	chunk  *modelChunk
	keys   []int // admitted
	before int
	reread []int // before
	after  []int // to be read again, when the chunk is stored whole
}

type clause int

const (
	dropNothing clause = iota
	dropHiddenRows
	dropIncludedChanges
	dropWaitForLSN
	dropWaitForOpen
)

const modelKeys, modelPage = 8, 3

func newModel(drop clause, choose func(string, int) int) *model {
	m := &model{choose: choose, drop: drop, nextXID: 1<<32 - 5, wal: 1, rows: map[int]int{}, locks: map[int]uint32{}}
	for k := range modelKeys {
		m.version++
		m.rows[k] = m.version
	}
	m.track()
	return m
}

func (m *model) take() snapshot {
	s := snapshot{xmax: m.nextXID}
	for _, tx := range slices.Concat(m.open, m.hidden) {
		s.running = append(s.running, tx.xid)
	}
	slices.SortFunc(s.running, func(a, b uint32) int { return int(int32(a - b)) }) // they wrap around during the run
	s.xmin = s.xmax
	if len(s.running) > 0 {
		s.xmin = s.running[0]
	}
	return s
}

func (m *model) track() {
	m.merge = merge{}
	m.began, m.ready, m.pending, m.ahead = m.take().xmax, false, nil, nil
}

func (m *model) step() {
	switch m.choose("step", 9) {
	case 0, 1:
		m.write()
	case 2:
		m.end()
	case 3:
		m.show()
	case 4, 5:
		m.stream()
	case 6, 7:
		m.backfill()
	case 8:
		if m.choose("crash", 6) == 0 {
			m.crash()
		}
	}
}

func (m *model) write() {
	var tx *modelTransaction
	if i := m.choose("transaction", 3); i < len(m.open) {
		tx = m.open[i]
	} else {
		tx = &modelTransaction{xid: m.nextXID, writes: map[int]int{}}
		m.nextXID++
		m.open = append(m.open, tx)
	}
	key := m.choose("key", modelKeys)
	if holder, locked := m.locks[key]; locked && holder != tx.xid {
		return
	}
	m.locks[key] = tx.xid
	m.version++
	version := m.version
	if m.choose("delete", 4) == 0 {
		version = -version
	}
	tx.writes[key] = version
	tx.order = append(slices.DeleteFunc(tx.order, func(k int) bool { return k == key }), key)
	m.wal++
}

func (m *model) end() {
	if len(m.open) == 0 {
		return
	}
	i := m.choose("end", len(m.open))
	tx := m.open[i]
	m.open = slices.Delete(m.open, i, i+1)
	if m.choose("roll back", 5) == 0 {
		m.release(tx)
		return
	}
	m.wal++
	tx.commit = m.wal
	m.commits = append(m.commits, tx)
	m.hidden = append(m.hidden, tx)
}

func (m *model) show() {
	if len(m.hidden) == 0 {
		return
	}
	i := m.choose("show", len(m.hidden))
	tx := m.hidden[i]
	m.hidden = slices.Delete(m.hidden, i, i+1)
	maps.Copy(m.rows, tx.writes)
	m.release(tx)
}

func (m *model) release(tx *modelTransaction) {
	for key, holder := range m.locks {
		if holder == tx.xid {
			delete(m.locks, key)
		}
	}
}

func modelKey(key int) []byte { return binary.BigEndian.AppendUint32(nil, uint32(key)) }

func (m *model) stream() {
	if m.delivered == len(m.commits) {
		m.merge.passed(m.wal) // a keepalive
		return
	}
	tx := m.commits[m.delivered]
	for _, key := range tx.order {
		included := m.merge.streamed(tx.xid, modelKey(key))
		if m.drop == dropIncludedChanges {
			included = false
		}
		m.log = append(m.log, entry{transaction: m.delivered, key: key, version: tx.writes[key], except: included})
	}
	m.log = append(m.log, entry{transaction: m.delivered, last: true})
	m.delivered++
	m.merge.passed(tx.commit)
}

func (m *model) backfill() {
	switch {
	case m.done && len(m.reread) == 0:
	case !m.ready:
		m.ready = int32(m.take().xmin-m.began) >= 0 || m.drop == dropWaitForOpen
	case m.pending == nil:
		m.pending, m.ahead = m.ahead, nil
		if m.pending == nil {
			m.pending = m.read(m.cursor, m.reread)
		}
	case m.ahead == nil && !m.pending.end && m.choose("read ahead", 2) == 0: // what pending leaves to be read again is not known
		m.ahead = m.read(m.pending.next, m.reread[len(m.pending.reread):])
	case m.merge.chunk == nil || m.drop == dropWaitForLSN:
		m.append(m.pending)
		m.pending = nil
	}
}

func (m *model) read(from int, reread []int) *modelChunk {
	c := &modelChunk{snapshot: m.take(), lsn: m.wal, reread: reread, next: from, end: true}
	add := func(key int) {
		if v := m.rows[key]; v > 0 {
			c.keys, c.versions = append(c.keys, key), append(c.versions, v)
		}
	}
	for _, key := range reread {
		add(key)
	}
	c.again = len(c.keys)
	for c.next < modelKeys {
		if len(c.keys)-c.again == modelPage {
			c.end = false
			break
		}
		add(c.next)
		c.next++
	}
	return c
}

func (m *model) append(c *modelChunk) {
	keys := make([]string, len(c.keys))
	for i, key := range c.keys {
		keys[i] = string(modelKey(key))
	}
	hidden := m.merge.admit(c.snapshot, c.lsn, keys)
	if m.drop == dropHiddenRows {
		hidden = nil
	}
	record := &modelRecord{chunk: c, before: m.cursor, reread: m.reread, after: slices.Clone(m.reread[len(c.reread):])}
	for _, i := range hidden {
		record.after = append(record.after, c.keys[i])
	}
	rows := []entry{{transaction: -1, record: record}}
	for i, key := range c.keys {
		if !slices.Contains(hidden, i) {
			record.keys = append(record.keys, key)
			rows = append(rows, entry{transaction: -1, key: key, version: c.versions[i]})
		}
	}
	m.log = append(append(m.log, rows...), entry{transaction: -1, last: true})
	m.cursor, m.done, m.reread = c.next, c.end, record.after
}

// crash cuts the log, forgets what is in memory, and goes on from what the log tells, as the capture does.
func (m *model) crash() {
	if cut := m.choose("cut", 6); len(m.log) > 0 {
		m.log = m.log[:max(0, len(m.log)-cut)]
	}
	m.delivered, m.cursor, m.done, m.reread = 0, 0, false, nil
	var (
		record   *modelRecord
		rows     int
		complete bool
		within   int
	)
	for _, e := range m.log {
		switch {
		case e.record != nil:
			record, rows, complete = e.record, 0, false
		case e.transaction < 0 && e.last:
			complete = true
		case e.transaction < 0:
			rows++
		case e.last:
			m.delivered, within = e.transaction+1, 0
		default:
			within++
		}
	}
	m.track()
	if record != nil {
		m.resume(record, rows, complete)
	}
	m.goOn(within)
}

func (m *model) resume(r *modelRecord, rows int, complete bool) {
	if complete {
		m.cursor, m.done, m.reread = r.chunk.next, r.chunk.end, r.after
	} else {
		m.cursor = r.before
		stored := r.keys[:rows]
		for _, key := range slices.Concat(r.reread, r.after) {
			if !slices.Contains(stored, key) && !slices.Contains(m.reread, key) {
				m.reread = append(m.reread, key)
			}
		}
		for _, key := range stored {
			if !slices.Contains(r.chunk.keys[:r.chunk.again], key) {
				m.cursor = max(m.cursor, key+1)
			}
		}
	}
	m.merge.chunk = &admittedChunk{snapshot: r.chunk.snapshot, lsn: r.chunk.lsn}
	for _, key := range r.keys[:rows] {
		m.merge.chunk.keys = append(m.merge.chunk.keys, string(modelKey(key)))
	}
}

// goOn delivers the rest of a transaction that the log ends within.
func (m *model) goOn(stored int) {
	if stored == 0 {
		return
	}
	tx := m.commits[m.delivered]
	for i, key := range tx.order {
		included := m.merge.streamed(tx.xid, modelKey(key))
		if i >= stored {
			m.log = append(m.log, entry{transaction: m.delivered, key: key, version: tx.writes[key], except: included})
		}
	}
	m.log = append(m.log, entry{transaction: m.delivered, last: true})
	m.delivered++
	m.merge.passed(tx.commit)
}

// finish lets everything end, then says how the vendor differs from the source or which key went back.
func (m *model) finish() error {
	for len(m.open) > 0 {
		m.end()
	}
	for rounds := 0; !m.done || len(m.reread) > 0 || m.pending != nil || m.delivered < len(m.commits) || len(m.hidden) > 0; rounds++ {
		if rounds > 1000 {
			return fmt.Errorf("the backfill does not end: ready %v, reread %v, cursor %d", m.ready, m.reread, m.cursor)
		}
		m.show()
		m.stream()
		m.backfill()
	}
	vendor := map[int]int{}
	for i, e := range m.log {
		if e.record != nil || e.last || e.except {
			continue
		}
		if abs(e.version) < abs(vendor[e.key]) {
			return fmt.Errorf("entry %d: key %d goes back from version %d to %d", i, e.key, vendor[e.key], e.version)
		}
		vendor[e.key] = e.version
	}
	if diff := cmp.Diff(alive(m.rows), alive(vendor)); diff != "" {
		return fmt.Errorf("vendor (-source +vendor):\n%s", diff)
	}
	return nil
}

func alive(rows map[int]int) map[int]int {
	out := map[int]int{}
	for k, v := range rows {
		if v > 0 {
			out[k] = v
		}
	}
	return out
}

func abs(v int) int { return max(v, -v) }

const modelSteps = 120

func TestMergeModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := newModel(dropNothing, func(label string, n int) int { return rapid.IntRange(0, n-1).Draw(t, label) })
		for range modelSteps {
			m.step()
		}
		if err := m.finish(); err != nil {
			t.Fatal(err)
		}
	})
}

// Each clause is there for a race that happens: without it the same model fails.
func TestMergeNeedsEachClause(t *testing.T) {
	const seeds = 20_000
	for drop, name := range map[clause]string{
		dropHiddenRows:      "rows that the stream has overtaken are read again",
		dropIncludedChanges: "changes that the row includes are left out",
		dropWaitForLSN:      "the next chunk waits for L",
		dropWaitForOpen:     "the first chunk waits for open transactions",
	} {
		t.Run(name, func(t *testing.T) {
			for seed := range uint64(seeds) {
				r := rand.New(rand.NewPCG(seed, 0))
				m := newModel(drop, func(_ string, n int) int { return r.IntN(n) })
				for range modelSteps {
					m.step()
				}
				if m.finish() != nil {
					return
				}
			}
			t.Errorf("%d runs without this clause found nothing wrong", seeds)
		})
	}
}

func TestSnapshotText(t *testing.T) {
	s, err := parseSnapshot("10:20:12,15")
	if err != nil {
		t.Fatal(err)
	}
	for xid, want := range map[uint32]bool{9: true, 10: true, 12: false, 14: true, 15: false, 19: true, 20: false, 21: false} {
		if got := s.sees(xid); got != want {
			t.Errorf("%s sees %d: %v, want %v", &s, xid, got, want)
		}
	}
	if s.String() != "10:20:12,15" {
		t.Errorf("String gives %s", &s)
	}
	for _, bad := range []string{"", "1:2", "x:2:", "1:x:", "1:2:x"} {
		if _, err := parseSnapshot(bad); err == nil {
			t.Errorf("parseSnapshot(%q) gives no error", bad)
		}
	}
}
