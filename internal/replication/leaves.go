package replication

import (
	"encoding/binary"

	"github.com/cdcsync/cdcsync/internal/cdc"
)

// leaves knows the partitions whose rows come under the name of their root. With publish_via_partition_root pgoutput marks an
// old tuple by the root's replica identity, but what is in the tuple is what the partition's own identity had the server log: a
// partition that is not REPLICA IDENTITY FULL under a root that is gives its key, and nulls for all else.
//
// pgoutput announces the root and then the partition, with its own identity, before the first row of a partition and again after
// the partition was altered (maybe_send_schema in pgoutput.c), so that the stream itself tells which partitions there are.
type leaves struct {
	before, last *cdc.Relation            // announced since the last row
	of           map[uint32]leavesOf      // by the root's OID
	strays       map[uint32][]keyedColumn // of a root: for each partition that has another identity, what its old tuples hold
}

// leavesOf are a root's partitions by OID.
type leavesOf map[uint32]*cdc.Relation

// keyedColumn says for each column of the root whether a partition's old tuples hold it.
type keyedColumn []bool

// announced takes note of a Relation message.
func (l *leaves) announced(rel *cdc.Relation) {
	l.before, l.last = l.last, rel
	delete(l.strays, rel.OID) // its columns may be others now
	l.judge(rel)
}

// row takes note of a row of rel: the relations that were announced just before are rel, or rel and a partition of it.
func (l *leaves) row(rel *cdc.Relation) {
	if l.last == nil {
		return
	}
	before, last := l.before, l.last
	l.before, l.last = nil, nil
	if before == nil || before.OID != rel.OID || last.OID == rel.OID {
		return
	}
	if l.of == nil {
		l.of = make(map[uint32]leavesOf)
	}
	if l.of[rel.OID] == nil {
		l.of[rel.OID] = make(leavesOf)
	}
	l.of[rel.OID][last.OID] = last
	l.judge(rel)
}

// judge finds the partitions of a root whose old tuples hold less than the root's identity says. A key that is not FULL needs
// no list: null is never a value of a key's column (cdc.Decoder).
func (l *leaves) judge(root *cdc.Relation) {
	var strays []keyedColumn
	for _, leaf := range l.of[root.OID] {
		if root.Identity != 'f' || leaf.Identity == 'f' {
			continue
		}
		held := make(keyedColumn, len(root.Columns))
		for i := range leaf.Columns {
			if at := root.Column(leaf.Columns[i].Name); at >= 0 {
				held[at] = leaf.Columns[i].Identity
			}
		}
		strays = append(strays, held)
	}
	if l.strays == nil {
		l.strays = make(map[uint32][]keyedColumn)
	}
	if l.strays[root.OID] = strays; strays == nil {
		delete(l.strays, root.OID)
	}
}

// correct marks the old tuple of a row's message as what it is, the key only, when it has no value that a partition with
// another identity than its root's would not have sent. m is changed in place.
func (l *leaves) correct(m []byte) {
	const mark = 1 + 4 // behind the type byte and the relation
	if len(l.strays) == 0 || len(m) <= mark || m[mark] != 'O' {
		return
	}
	for _, held := range l.strays[binary.BigEndian.Uint32(m[1:])] {
		if holdsOnly(m[mark+1:], held) {
			m[mark] = 'K'
			return
		}
	}
}

// holdsOnly reports whether a tuple has values in the held columns only.
func holdsOnly(tuple []byte, held keyedColumn) bool {
	f := fields{rest: tuple}
	for i := range int(f.uint16()) {
		switch f.byte() {
		case 't':
			if i >= len(held) || !held[i] {
				return false
			}
			f.take(int(f.uint32()))
		case 'n', 'u':
		default:
			return false
		}
	}
	return f.err == nil
}
