package mapping

import (
	"bytes"
	"fmt"

	"github.com/cdcsync/cdcsync/internal/cdc"
)

// Route decides what becomes of a change and writes it into dst. Values that Missing named must have been put into ch.New.
//
//   - An insert, update or read gives one part from the new row, a delete one from the old row.
//   - An update that changes the table's key gives two: a delete of the old record and an insert of the new.
//   - A part whose operation is not mapped, or whose row the filter leaves out, is not there.
//   - A TRUNCATE and a row that is too large give one part with Reject.
//
// Its error says that the change is not of the plan's relation.
func (p *Plan) Route(dst *Route, ch *cdc.Change) error {
	dst.Parts, dst.buf, dst.keys = dst.Parts[:0], dst.buf[:0], dst.keys[:0]
	if err := p.matches(ch); err != nil {
		return err
	}
	t := p.template
	switch {
	case ch.Oversized != nil:
		if t.Sends(ch.Op) {
			p.reject(dst, ch.Op, &RejectError{Reason: "the row is larger than cdcsync carries"})
		}
	case ch.Op == cdc.OpTruncate:
		p.reject(dst, ch.Op, &RejectError{Reason: "the table was truncated, which no vendor can be told", Solution: "delete the records at the vendor, or send the table again with a backfill"})
	case ch.Op == cdc.OpDelete:
		p.part(dst, ch, Part{Op: cdc.OpDelete, Old: true})
	case ch.Op == cdc.OpUpdate && p.splits(ch):
		p.part(dst, ch, Part{Op: cdc.OpDelete, Old: true, Suffix: "/old"})
		p.part(dst, ch, Part{Op: cdc.OpInsert, Suffix: "/new"})
	case ch.Op == cdc.OpRead:
		p.part(dst, ch, Part{Op: cdc.OpRead, Suffix: "/read"})
	default:
		p.part(dst, ch, Part{Op: ch.Op})
	}
	return nil
}

// matches says whether the change's tuples have the relation's columns.
func (p *Plan) matches(ch *cdc.Change) error {
	for _, tuple := range [][]cdc.Value{ch.Old, ch.New} {
		if len(tuple) > 0 && len(tuple) != len(p.relation.Columns) {
			return fmt.Errorf("a row of %d columns for a plan of %s with %d", len(tuple), p.relation, len(p.relation.Columns))
		}
	}
	return nil
}

func (p *Plan) reject(dst *Route, op cdc.Op, e *RejectError) {
	dst.Parts = append(dst.Parts, Part{Op: op, Key: p.scope, Reject: p.rejected("", e)})
}

// splits says whether an update makes the row another record.
func (p *Plan) splits(ch *cdc.Change) bool {
	for _, i := range p.splitOn {
		if differs(ch, i) {
			return true
		}
	}
	return false
}

// differs compares a column before and after, as far as both are known.
func differs(ch *cdc.Change, i int) bool {
	if i >= len(ch.Old) || i >= len(ch.New) {
		return false
	}
	old, now := &ch.Old[i], &ch.New[i]
	if old.Kind == cdc.Absent || now.Kind == cdc.Unchanged {
		return false
	}
	return old.Kind != now.Kind || !bytes.Equal(old.Data, now.Data)
}

// part adds a part when its operation is mapped and its row passes the filter.
func (p *Plan) part(dst *Route, ch *cdc.Change, part Part) {
	if !p.sends(&part) {
		return
	}
	r := p.row(ch, part.Op, part.Old, nil)
	p.machine.next()
	if len(r.now) == 0 {
		part.Key = p.scope
		part.Reject = p.rejected("", &RejectError{Reason: "Postgres sent no old row", Solution: replicaIdentityFull(p.relation)})
		dst.Parts = append(dst.Parts, part)
		return
	}
	pass, reject := p.passes(&r)
	if reject == nil && !pass {
		return
	}
	part.Key = p.scope
	switch {
	case reject != nil:
		if key, noKey := p.ownKey(dst, &r); noKey == nil {
			part.Key = key
		}
	case p.item == nil:
		if part.Refresh, reject = p.refreshKey(dst, &r); reject == nil && part.Refresh == nil {
			return // it belongs to no root
		}
	default:
		reject = p.keys(dst, &part, &r)
	}
	if reject != nil {
		part.Reject = reject
		if part.Old && part.Suffix == "/old" && p.item == nil {
			return // the root that the child had is not known; the new one is sent
		}
	}
	dst.Parts = append(dst.Parts, part)
}

// sends says whether the operation of a part is mapped. The new half of a split update is sent where updates are.
func (p *Plan) sends(part *Part) bool {
	if p.item == nil && part.Suffix != "" && part.Suffix != "/read" {
		return p.template.Sends(cdc.OpUpdate)
	}
	return p.template.Sends(part.Op) || part.Suffix == "/new" && p.template.Sends(cdc.OpUpdate)
}

func (p *Plan) passes(r *row) (bool, *RejectError) {
	if p.when == nil {
		return true, nil
	}
	v, reject := p.machine.run(p.when, r)
	if reject != nil {
		return false, p.rejected("when", reject)
	}
	pass, ok := v.(bool)
	if !ok {
		return false, p.rejected("when", &RejectError{Reason: "must be true or false, and is " + typeName(v)})
	}
	return pass, nil
}

func (p *Plan) refreshKey(dst *Route, r *row) ([]byte, *RejectError) {
	start := len(dst.buf)
	buf, null, reject := p.text(dst.buf, &p.by, r)
	dst.buf = buf
	switch {
	case reject != nil:
		return nil, p.rejected("refresh.by", reject)
	case null:
		return nil, nil
	}
	return dst.buf[start:len(dst.buf):len(dst.buf)], nil
}

// keys fills in what a part is ordered by, waits for and looks up.
func (p *Plan) keys(dst *Route, part *Part, r *row) (reject *RejectError) {
	if part.Key, reject = p.ownKey(dst, r); reject != nil {
		return reject
	}
	first := len(dst.keys)
	for i := range p.parents {
		start := len(dst.buf)
		dst.buf = append(append(dst.buf, p.parentScopes[i]...), keySeparator...)
		buf, null, reject := p.text(dst.buf, &p.parents[i], r)
		dst.buf = buf
		if reject != nil {
			return p.rejected(p.parents[i].path, reject)
		}
		if !null {
			dst.keys = append(dst.keys, dst.buf[start:len(dst.buf):len(dst.buf)])
		}
	}
	part.Parents = dst.keys[first:len(dst.keys):len(dst.keys)]
	first = len(dst.keys)
	for i := range p.lookups {
		start := len(dst.buf)
		buf, null, reject := p.text(dst.buf, &p.lookups[i], r)
		dst.buf = buf
		if reject != nil {
			return p.rejected(p.lookups[i].path, reject)
		}
		if null {
			dst.keys = append(dst.keys, nil)
		} else {
			dst.keys = append(dst.keys, dst.buf[start:len(dst.buf):len(dst.buf)])
		}
	}
	part.Lookups = dst.keys[first:len(dst.keys):len(dst.keys)]
	return nil
}

// A key is its scope and values, each behind a separator. Postgres text has no zero byte, so that different values never
// give the same key.
const (
	keySeparator = "\x00\x01"
	keyNull      = "\x00\x02"
)

// ownKey appends the key of the row's record to the route.
func (p *Plan) ownKey(dst *Route, r *row) ([]byte, *RejectError) {
	start := len(dst.buf)
	dst.buf = append(dst.buf, p.scope...)
	for i := range p.key {
		if reject := p.keyValue(dst, &p.key[i], r); reject != nil {
			return nil, p.rejected(p.key[i].path, reject)
		}
	}
	if len(p.key) == 0 {
		for _, i := range p.identity {
			o := operand{column: i}
			if reject := p.keyValue(dst, &o, r); reject != nil {
				return nil, p.rejected("key", reject)
			}
		}
	}
	return dst.buf[start:len(dst.buf):len(dst.buf)], nil
}

func (p *Plan) keyValue(dst *Route, o *operand, r *row) *RejectError {
	at := len(dst.buf)
	buf, null, reject := p.text(append(dst.buf, keySeparator...), o, r)
	if null {
		buf = append(buf[:at], keyNull...)
	}
	dst.buf = buf
	return reject
}

// AppendID appends the ID of an item: the same for the same change, mapping and part, for ever.
func (p *Plan) AppendID(dst []byte, ch *cdc.Change, part *Part) []byte {
	dst = ch.Position.Append(dst)
	dst = append(dst, '/')
	dst = append(dst, p.template.Source.Name...)
	return append(dst, part.Suffix...)
}
