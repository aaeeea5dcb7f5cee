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
	if c.Op == OpRead && c.Oversized == nil {
		w.BeginChunk(Chunk{LSN: c.Position.Commit, At: c.CommitTime, Ordinal: c.Position.Ordinal - 1})
		w.Relation(c.Relation.OID, AppendRelation(nil, c.Relation))
		w.Reads(AppendRead(nil, c.Relation.OID, len(c.New), AppendValues(nil, c.Relation.Raw(c.New))), 1)
		return w.Seal(nil, nil)
	}
	w.Begin(c.XID, c.Position.Commit, c.CommitTime, c.Position.Ordinal-1)
	w.Relation(c.Relation.OID, AppendRelation(nil, c.Relation))
	switch {
	case c.Oversized != nil:
		w.Oversized(c.Op, c.Relation.OID, *c.Oversized)
	case c.Op == OpTruncate:
		w.Truncate(c.Relation.OID)
	default:
		w.Row(c.appendMessage(nil))
	}
	return w.Seal(nil, nil)
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

// appendMessage appends pgoutput's message for an insert, update or delete.
func (c *Change) appendMessage(dst []byte) []byte {
	kind := [...]byte{OpInsert: frameInsert, OpUpdate: frameUpdate, OpDelete: frameDelete}
	dst = binary.BigEndian.AppendUint32(append(dst, kind[c.Op]), c.Relation.OID)
	if c.Old != nil {
		mark := byte('O')
		if c.OldIsKey {
			mark = 'K'
		}
		dst = AppendTuple(append(dst, mark), c.Relation.Raw(c.Old))
	}
	if c.New != nil {
		dst = AppendTuple(append(dst, 'N'), c.Relation.Raw(c.New))
	}
	return dst
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
