package mapping

import (
	"bytes"
	"fmt"
	"slices"

	"github.com/cdcsync/cdcsync/internal/cdc"
)

// Route decides what becomes of a change and writes it into dst. Values that Missing named must have been put into ch.New.
//
//   - An insert, update or read gives one part from the new row, a delete one from the old row.
//   - An update that makes the row another record gives two: a delete of the old record and an insert of the new.
//   - An update by which the row leaves the filter gives a delete, where the vendor has one, and one by which it enters an insert.
//   - An update that takes flags out of a map withdraws them first.
//   - A part whose operation is not mapped, or whose row the filter leaves out, is not there.
//   - A TRUNCATE and a row that is too large give one part with Reject.
//
// Its error says that the change is not of the plan's relation.
func (p *Plan) Route(dst *Route, ch *cdc.Change) error {
	dst.Parts, dst.buf, dst.keys, dst.Left = dst.Parts[:0], dst.buf[:0], dst.keys[:0], false
	if err := p.matches(ch); err != nil {
		return err
	}
	t := p.template
	switch {
	case ch.Oversized != nil:
		if t.Sends(ch.Op) {
			p.reject(dst, ch.Op, &RejectError{Reason: "the row is larger than buffer.max_row", Solution: "raise buffer.max_row (at most 64MiB)"})
		}
	case ch.Op == cdc.OpTruncate:
		p.reject(dst, ch.Op, &RejectError{Reason: "the table was truncated, which no vendor can be told", Solution: "delete the records at the vendor, or send the table again with a backfill"})
	case ch.Op == cdc.OpDelete:
		p.part(dst, ch, Part{Op: cdc.OpDelete, Old: true})
	case ch.Op == cdc.OpUpdate && p.MayMove(ch):
		p.update(dst, ch)
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
	dst.Parts = append(dst.Parts, Part{Op: op, Key: p.record.scope, Reject: p.rejected("", e)})
}

// watch collects the columns whose change may be more than an update of the same record.
func (p *Plan) watch() {
	p.set = p.when != nil && !tells(p.when)
	operands := slices.Clone(p.record.operands)
	if p.people < len(p.orders) {
		for i := p.people; i < len(p.orders); i++ {
			operands = append(operands, p.orders[i].operands...)
		}
	}
	if p.item == nil {
		operands = []operand{p.by}
	}
	operands = append(operands, p.flagsOperands...)
	if p.set {
		operands = append(operands, operand{reads: (&operand{expr: p.when}).columns()})
	}
	for i := range operands {
		p.watched = append(p.watched, operands[i].reads...)
	}
	slices.Sort(p.watched)
	p.watched = slices.Compact(p.watched)
	p.told = p.item != nil && slices.ContainsFunc(p.item.steps, func(s step) bool { return s.operand.expr != nil && tells(s.operand.expr) })
}

// tells reports whether an expression depends on the operation or the old row.
func tells(e *expression) bool {
	return slices.ContainsFunc(e.refs, func(r ref) bool { return r.kind == refOp || r.kind == refOld || r.kind == refChanged })
}

// MayMove reports whether an update may be more than one of the same record.
func (p *Plan) MayMove(ch *cdc.Change) bool {
	for _, i := range p.watched {
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

// update routes an update of a watched column.
func (p *Plan) update(dst *Route, ch *cdc.Change) {
	was, is := p.within(ch)
	old := Part{Op: cdc.OpDelete, Old: true, Suffix: "/old"}
	switch {
	case was && is && p.moved(ch):
		p.part(dst, ch, old)
		p.part(dst, ch, Part{Op: cdc.OpInsert, Suffix: "/new"})
	case was && is:
		keep, replaced, none := p.withdrawn(ch)
		if old.keep = keep; !none {
			p.part(dst, ch, old)
		}
		if replaced {
			p.part(dst, ch, Part{Op: cdc.OpInsert, Suffix: "/new"})
			return
		}
		p.part(dst, ch, Part{Op: cdc.OpUpdate})
	case was && p.tellsLeaving():
		p.part(dst, ch, old)
	case was:
		dst.Left = true
	case is:
		p.part(dst, ch, Part{Op: cdc.OpInsert, Suffix: "/new"})
	}
}

// tellsLeaving reports whether the vendor is told that a row has left the filter.
func (p *Plan) tellsLeaving() bool {
	return p.item == nil || p.template.Source.Leave == LeaveDelete && p.template.Sends(cdc.OpDelete)
}

// within reports whether the row passed the filter before an update, and passes it now. A filter that looks at more than the row
// defines no set, and what was before is taken for the same where the old row does not tell it.
func (p *Plan) within(ch *cdc.Change) (was, is bool) {
	if !p.set {
		return true, true // each part is filtered by itself
	}
	r := p.row(ch, cdc.OpInsert, false, nil)
	p.machine.next()
	is, reject := p.passes(&r)
	if reject != nil {
		return true, true // the part says so
	}
	for i := range p.when.refs {
		if rf := &p.when.refs[i]; rf.kind == refColumn && ch.Old[rf.column].Kind != cdc.Text && ch.Old[rf.column].Kind != cdc.Null {
			return is, is
		}
	}
	r = p.row(ch, cdc.OpDelete, true, nil)
	p.machine.next()
	was, reject = p.passes(&r)
	return was && reject == nil, is // a filter that could not be computed made a dead letter: the vendor does not have the row
}

// moved reports whether an update has made the row another record.
func (p *Plan) moved(ch *cdc.Change) bool {
	if p.item == nil {
		return p.touches(ch, []operand{p.by}) // a child that moves to another root: both roots are sent again
	}
	for i := p.people; i < len(p.orders); i++ {
		before, after, both := p.keys2(ch, &p.orders[i])
		if both { // the first identifier that both rows have decides
			return !bytes.Equal(before, after)
		}
	}
	if p.people < len(p.orders) {
		return slices.ContainsFunc(p.orders[p.people:], func(id identity) bool { return p.touches(ch, id.operands) })
	}
	if !p.touches(ch, p.record.operands) {
		return false
	}
	before, after, both := p.keys2(ch, &p.record)
	return !both || !bytes.Equal(before, after)
}

// keys2 are the keys of a record before and after an update; both is false when one of them is null or not known.
func (p *Plan) keys2(ch *cdc.Change, id *identity) (before, after []byte, both bool) {
	was, now := p.row(ch, cdc.OpDelete, true, nil), p.row(ch, cdc.OpInsert, false, nil)
	p.machine.next()
	before, nullBefore, reject := p.appendKey(p.keyBefore[:0], id, &was)
	p.keyBefore = before
	if reject != nil {
		return nil, nil, false
	}
	p.machine.next()
	after, nullAfter, reject := p.appendKey(p.keyAfter[:0], id, &now)
	p.keyAfter = after
	return before, after, reject == nil && (!nullBefore && !nullAfter || !id.person)
}

// part adds a part when its operation is mapped and its row passes the filter.
func (p *Plan) part(dst *Route, ch *cdc.Change, part Part) {
	if !p.sends(&part) {
		return
	}
	r := p.row(ch, part.Op, part.Old, nil)
	p.machine.next()
	if len(r.now) == 0 {
		part.Key = p.record.scope
		part.Reject = p.rejected("", &RejectError{Reason: "Postgres sent no old row", Solution: replicaIdentityFull(p.relation)})
		dst.Parts = append(dst.Parts, part)
		return
	}
	pass, reject := p.passes(&r)
	if reject == nil && !pass {
		return
	}
	part.Key = p.record.scope
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

// sends reports whether the operation of a part is mapped. The new half of a split update is sent where updates are, and so is what an
// update withdraws from a map.
func (p *Plan) sends(part *Part) bool {
	if p.item == nil && part.Suffix != "" && part.Suffix != "/read" {
		return p.template.Sends(cdc.OpUpdate)
	}
	if part.Suffix == "/old" && p.flags != nil || part.Suffix == "/new" {
		return p.template.Sends(part.Op) || p.template.Sends(cdc.OpUpdate)
	}
	return p.template.Sends(part.Op)
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
	for i := range p.orders {
		start := len(dst.buf)
		buf, null, reject := p.appendKey(dst.buf, &p.orders[i], r)
		dst.buf = buf
		if reject != nil && !p.orders[i].person {
			return reject
		}
		if reject == nil && (!null || !p.orders[i].person) {
			dst.keys = append(dst.keys, dst.buf[start:len(dst.buf):len(dst.buf)])
		}
	}
	part.Orders = dst.keys[first:len(dst.keys):len(dst.keys)]
	first = len(dst.keys)
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

// ownKey appends the key of the row's record to the route.
func (p *Plan) ownKey(dst *Route, r *row) ([]byte, *RejectError) {
	start := len(dst.buf)
	buf, _, reject := p.appendKey(dst.buf, &p.record, r)
	dst.buf = buf
	if reject != nil {
		return nil, reject
	}
	return dst.buf[start:len(dst.buf):len(dst.buf)], nil
}

// AppendID appends the ID of an item: the same for the same change, mapping and part, for ever.
func (p *Plan) AppendID(dst []byte, ch *cdc.Change, part *Part) []byte {
	dst = ch.Position.Append(dst)
	dst = append(dst, '/')
	dst = append(dst, p.template.Source.Name...)
	return append(dst, part.Suffix...)
}
