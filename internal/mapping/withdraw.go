package mapping

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"

	"github.com/cdcsync/cdcsync/internal/cdc"
	"github.com/cdcsync/cdcsync/internal/shape"
)

// flags compiles the map that a sink withdraws from by itself, so that the map before a change can be compared with the one after.
func (c *planCompiler) flags(plan *Plan) {
	name := c.template.flagsName()
	n, rest := c.template.item.at([]string{name})
	if name == "" || n == nil || len(rest) > 0 {
		return
	}
	f, _ := c.template.Spec.Item.Root.Field(name)
	plan.flagsName = name
	plan.flags = c.program(n, f.Node, true)
	plan.flagsOperands = operandsOf(plan.flags)
	plan.flagsLookUp = n.looksUp()
	if plan.flagsLookUp {
		plan.flagsOperands = slices.Concat(plan.flagsOperands, plan.lookups) // another key finds another map
	}
}

// flagsName is the item's field with a map of flags; empty when the vendor has none.
func (t *Template) flagsName() string {
	root := t.Spec.Item.Root
	if t.Spec.Deletes != DeleteWithdraw || root == nil {
		return ""
	}
	i := slices.IndexFunc(root.Fields, func(f shape.Field) bool { return f.Node != nil && f.Node.Kind == shape.Map })
	if i < 0 {
		return ""
	}
	return root.Fields[i].Name
}

func operandsOf(p *program) (operands []operand) {
	for i := range p.steps {
		operands = append(operands, p.steps[i].operand)
	}
	return operands
}

// nothing stands for an item that tells nothing: Append gives ErrNothing.
var nothing = &RejectError{Reason: "tells nothing"}

// flagNames are the names in the map of a row; known is false when the row that was received does not tell them.
func (p *Plan) flagNames(ch *cdc.Change, old bool) (names []string, known bool) {
	r := p.row(ch, cdc.OpDelete, old, nil)
	p.machine.next()
	rendered, reject := p.render(p.flagsBuffer[:0], p.flags, &r)
	p.flagsBuffer = rendered
	switch {
	case reject == nothing:
		return nil, true
	case reject != nil:
		return nil, false
	}
	return topLevelNames(rendered), true
}

// topLevelNames are an object's names in their order.
func topLevelNames(object []byte) (names []string) {
	_ = eachField(object, func(name string, _, _ int) { names = append(names, name) })
	return names
}

// eachField calls back with the name and the place of each field's value.
func eachField(object []byte, field func(name string, from, to int)) error {
	d := json.NewDecoder(bytes.NewReader(object))
	if _, err := d.Token(); err != nil {
		return err
	}
	for d.More() {
		token, err := d.Token()
		if err != nil {
			return err
		}
		var value json.RawMessage
		if err := d.Decode(&value); err != nil {
			return err
		}
		name, _ := token.(string)
		to := int(d.InputOffset())
		field(name, to-len(value), to)
	}
	return nil
}

// withdrawn finds what an update of one record takes out of its map: keep is what stays of it. None is true when nothing leaves the
// map, as far as that is known.
func (p *Plan) withdrawn(ch *cdc.Change) (keep []string, replaced, none bool) {
	if p.flags == nil || len(ch.Old) == 0 || !p.touches(ch, p.flagsOperands) {
		return nil, false, true
	}
	if p.flagsLookUp {
		return nil, false, false
	}
	before, known := p.flagNames(ch, true)
	after, knownAfter := p.flagNames(ch, false)
	if !known || !knownAfter {
		return nil, false, true
	}
	for _, name := range before {
		if slices.Contains(after, name) {
			keep = append(keep, name)
		}
	}
	return keep, len(keep) == 0 && len(after) > 0, len(keep) == len(before)
}

// without takes the names out of the item's map, of which something is left.
func (p *Plan) without(item []byte, start int, keep []string) []byte {
	var from, to int
	_ = eachField(item[start:], func(name string, at, end int) {
		if name == p.flagsName {
			from, to = start+at, start+end
		}
	})
	var rest []string
	_ = eachField(item[from:to], func(name string, _, _ int) {
		if !slices.Contains(keep, name) {
			rest = append(rest, string(fieldName(name, nil))+"false")
		}
	})
	tail := bytes.Clone(item[to:])
	item = append(append(item[:from], '{'), strings.Join(rest, ",")...)
	return append(append(item, '}'), tail...)
}
