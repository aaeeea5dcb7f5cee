package cdc

import (
	"encoding/binary"
	"fmt"
	"strconv"
)

// EncodeChange returns a block that holds this change alone, so that it can be kept longer than the block it came from.
// Whom the change is addressed to (Targets, Except) is not part of it.
func EncodeChange(c *Change) []byte {
	var w Writer
	old, now := c.Relation.Raw(c.Old), c.Relation.Raw(c.New)
	relation := AppendRelation(nil, c.Relation)
	const slack = 1 << 10 // frames and footer
	w.Grow(len(relation) + tupleSize(old) + tupleSize(now) + slack)
	if c.Op == OpRead && c.Oversized == nil {
		w.BeginChunk(Chunk{LSN: c.Position.Commit, At: c.CommitTime, Ordinal: c.Position.Ordinal - 1})
		w.Relation(c.Relation.OID, relation)
		w.read(c.Relation.OID, now)
		return w.Seal(nil, nil)
	}
	w.Begin(c.XID, c.Position.Commit, c.CommitTime, c.Position.Ordinal-1)
	w.Relation(c.Relation.OID, relation)
	switch {
	case c.Oversized != nil:
		w.Oversized(c.Op, c.Relation.OID, *c.Oversized)
	case c.Op == OpTruncate:
		w.Truncate(c.Relation.OID)
	default:
		w.change(c, old, now)
	}
	return w.Seal(nil, nil)
}

// read is Reads of one row, which is written in place, since it may be large.
func (w *Writer) read(oid uint32, values []Value) {
	size := 4 + 2
	for i := range values {
		size += 4 + len(values[i].sent())
	}
	w.buf = beginFrame(w.buf, frameRead, size)
	w.buf = binary.BigEndian.AppendUint32(w.buf, oid)
	w.buf = binary.BigEndian.AppendUint16(w.buf, uint16(len(values)))
	w.buf = AppendValues(w.buf, values)
	w.countReads(1)
}

// change is Row of pgoutput's message for an insert, update or delete, which is written in place.
func (w *Writer) change(c *Change, old, now []Value) {
	kind := [...]byte{OpInsert: frameInsert, OpUpdate: frameUpdate, OpDelete: frameDelete}
	w.buf = beginFrame(w.buf, kind[c.Op], 4+tupleSize(old)+tupleSize(now))
	w.buf = binary.BigEndian.AppendUint32(w.buf, c.Relation.OID)
	if old != nil {
		mark := byte('O')
		if c.OldIsKey {
			mark = 'K'
		}
		w.buf = AppendTuple(append(w.buf, mark), old)
	}
	if now != nil {
		w.buf = AppendTuple(append(w.buf, 'N'), now)
	}
	w.count()
}

// tupleSize is the length of a tuple in pgoutput's form behind its mark; 0 for none.
func tupleSize(values []Value) int {
	if values == nil {
		return 0
	}
	size := 1 + 2
	for i := range values {
		if size++; values[i].Kind == Text {
			size += 4 + len(values[i].Data)
		}
	}
	return size
}

// sent is the text of a value; nil for one without.
func (v *Value) sent() []byte {
	if v.Kind != Text {
		return nil
	}
	return v.Data
}

// DecodeChange is the inverse of EncodeChange.
func DecodeChange(block []byte) (*Change, error) {
	var d Decoder
	var c Change
	if _, err := d.Reset(block); err != nil {
		return nil, err
	}
	found, err := d.Next(&c)
	if err == nil && !found {
		err = &CorruptError{Reason: fmt.Sprintf("no change in %d bytes", len(block))}
	}
	return &c, err
}

// Append appends what String gives.
func (p Position) Append(dst []byte) []byte {
	dst = appendHex(dst, uint32(p.Commit>>32))
	dst = appendHex(append(dst, '/'), uint32(p.Commit))
	return strconv.AppendUint(append(dst, '#'), uint64(p.Ordinal), 10)
}

// appendHex appends v in upper case without leading zeros.
func appendHex(dst []byte, v uint32) []byte {
	var digits [8]byte
	i := len(digits) - 1
	for ; v > 0xF; i-- {
		digits[i] = "0123456789ABCDEF"[v&0xF]
		v >>= 4
	}
	digits[i] = "0123456789ABCDEF"[v]
	return append(dst, digits[i:]...)
}
