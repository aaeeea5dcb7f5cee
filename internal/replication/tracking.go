package replication

import (
	"bytes"
	"encoding/binary"
	"slices"

	"github.com/cdcsync/cdcsync/internal/cdc"
)

// tracking is the stream's part in the backfill that runs: it knows which of a table's keys were streamed, and which changes
// the rows that were sent include. It is guarded by outbox.mu, as the writer is.
type tracking struct {
	backfill string // its ID; empty while nothing is tracked
	table    string
	key      []string // the columns that tell rows apart; none means the whole row
	targets  []string // the sinks that the rows are for
	merge    merge

	last     *relation // of the row before
	mine     bool      // last is the table
	columns  []int     // of last: the key's; nil for the whole row
	fits     bool      // last has the key
	old, new []tupleValue
	a, b     []byte // keys
}

// tupleValue is a column of pgoutput's TupleData: 't' with data, 'n' or 'u'.
type tupleValue struct {
	mark byte
	data []byte
}

// begin tracks anew.
func (t *tracking) begin(backfill, table string, key, targets []string) {
	*t = tracking{backfill: backfill, table: table, key: key, targets: targets}
}

func (t *tracking) is(rel *relation) bool {
	if t.backfill == "" {
		return false
	}
	if t.last != rel {
		t.resolve(rel)
	}
	return t.mine
}

func (t *tracking) resolve(rel *relation) {
	t.last, t.columns, t.fits = rel, nil, true
	if t.mine = rel.String() == t.table; !t.mine {
		return
	}
	for _, name := range t.key {
		i := rel.Column(name)
		t.fits = t.fits && i >= 0
		t.columns = append(t.columns, i)
	}
}

// unknown notes that a transaction may have changed any key.
func (t *tracking) unknown(rel *relation, xid uint32) {
	if t.is(rel) {
		t.merge.widen(xid)
	}
}

// streamed notes a row's message, and says whether the sinks of the backfill have its change already, or which part of it.
func (t *tracking) streamed(rel *relation, xid uint32, m []byte) (part cdc.Part, included bool) {
	if !t.is(rel) {
		return cdc.PartWhole, false
	}
	old, now, ok := t.keys(m)
	switch {
	case !ok:
		t.merge.widen(xid)
		return cdc.PartWhole, false
	case old == nil || now != nil && bytes.Equal(old, now):
		return cdc.PartWhole, t.merge.streamed(xid, now)
	case now == nil:
		return cdc.PartWhole, t.merge.streamed(xid, old)
	}
	hasOld, hasNew := t.merge.streamed(xid, old), t.merge.streamed(xid, now)
	switch {
	case hasOld && hasNew:
		return cdc.PartWhole, true
	case hasOld:
		return cdc.PartOld, true
	}
	return cdc.PartNew, hasNew
}

// keys returns the row's keys before and after the change, nil for none. An update without an old tuple has left the key as it was.
func (t *tracking) keys(m []byte) (old, now []byte, ok bool) {
	if !t.fits {
		return nil, nil, false
	}
	t.old, t.new = t.old[:0], t.new[:0]
	for rest := m[5:]; len(rest) > 0; {
		into := &t.new
		if rest[0] != 'N' {
			into = &t.old
		}
		if *into, rest, ok = appendTuple(*into, rest[1:]); !ok {
			return nil, nil, false
		}
	}
	if len(t.old) > 0 {
		if t.a, ok = t.appendKey(t.a[:0], t.old, nil); !ok {
			return nil, nil, false
		}
		old = t.a
	}
	if len(t.new) > 0 {
		if t.b, ok = t.appendKey(t.b[:0], t.new, t.old); !ok {
			return nil, nil, false
		}
		now = t.b
	}
	return old, now, old != nil || now != nil
}

// appendKey takes a value that the server did not send from the old row.
func (t *tracking) appendKey(dst []byte, row, old []tupleValue) (_ []byte, ok bool) {
	count := len(t.columns)
	if t.columns == nil {
		count = len(row)
	}
	for n := range count {
		i := n
		if t.columns != nil {
			i = t.columns[n]
		}
		if i >= len(row) {
			return dst, false
		}
		v := row[i]
		if v.mark == 'u' && i < len(old) {
			v = old[i]
		}
		switch v.mark {
		case 't':
			dst = appendKey(dst, v.data)
		case 'n':
			dst = appendKey(dst, nil)
		default:
			return dst, false
		}
	}
	return dst, true
}

// appendTuple reads TupleData.
func appendTuple(dst []tupleValue, b []byte) (_ []tupleValue, rest []byte, ok bool) {
	if len(b) < 2 {
		return dst, nil, false
	}
	n := int(binary.BigEndian.Uint16(b))
	b = b[2:]
	dst = slices.Grow(dst, n)
	for range n {
		if len(b) == 0 {
			return dst, nil, false
		}
		v := tupleValue{mark: b[0]}
		b = b[1:]
		if v.mark == 't' {
			if len(b) < 4 {
				return dst, nil, false
			}
			size := int(binary.BigEndian.Uint32(b))
			if size > len(b)-4 {
				return dst, nil, false
			}
			v.data, b = b[4:4+size:4+size], b[4+size:]
		}
		dst = append(dst, v)
	}
	return dst, b, true
}
