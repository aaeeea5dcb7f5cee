package mapping

import (
	"bytes"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/cdcsync/cdcsync/internal/cdc"
	"github.com/cdcsync/cdcsync/internal/shape"
)

// identity is one way to tell records apart: a scope, and values from the row.
type identity struct {
	scope    []byte
	operands []operand
	person   bool // null values give no key: the vendor looks for the next identifier
}

// scope begins the keys of a table's rows.
func (t *Template) scope() string { return t.Source.Table.String() }

// vendorMark begins the scope of keys that mean the same record whatever mapping gives them.
const vendorMark = "@"

// IsVendorKey reports whether a Part's key names the vendor's record, so that it is the same in every mapping of the sink. Letters
// were stored under such keys before they had the mark; those are found by nobody, which costs a mark on them, no more.
func IsVendorKey(key []byte) bool { return bytes.HasPrefix(key, []byte(vendorMark)) }

// vendorScope is the scope of the vendor's own identity: the paths of its fields.
func (t *Template) vendorScope() string {
	paths := make([]string, len(t.Spec.Item.Identity))
	for i, path := range t.Spec.Item.Identity {
		paths[i] = strings.Join(path, ".")
	}
	return vendorMark + strings.Join(paths, ",")
}

// byVendor reports whether the vendor's own fields identify the records of this template. They cannot when a lookup gives one of
// them, since keys come before lookups.
func (t *Template) byVendor() bool {
	return t.item != nil && len(t.Spec.Item.Identity) > 0 && !slices.ContainsFunc(t.identityNodes(), (*templateNode).looksUp)
}

// namedByOne reports whether one field identifies the vendor's record, which then is what parents refer to.
func (t *Template) namedByOne() bool { return len(t.Spec.Item.Identity) == 1 }

// identityNodes are the values that stand at the paths of the vendor's identity, as far as the template names them.
func (t *Template) identityNodes() (nodes []*templateNode) {
	for _, path := range t.Spec.Item.Identity {
		if n, _ := t.item.at(path); n != nil {
			nodes = append(nodes, n)
		}
	}
	if people := t.Spec.Item.People; people != nil {
		if n, _ := t.item.at([]string{people.List}); n != nil {
			nodes = append(nodes, n)
		}
	}
	return nodes
}

// at follows a path into objects; rest is what is left of it within the value that was found. nil means a spread, or nothing.
func (n *templateNode) at(path []string) (found *templateNode, rest []string) {
	for n.kind == templateObject && len(path) > 0 {
		i := slices.IndexFunc(n.fields, func(f templateField) bool { return f.key == nil && f.spread == nil && f.name == path[0] })
		if i < 0 {
			return nil, path
		}
		n, path = n.fields[i].value, path[1:]
	}
	return n, path
}

var lookupName = regexp.MustCompile(`\blookup\b`)

// looksUp reports whether the value, or one within it, may come from a lookup.
func (n *templateNode) looksUp() bool {
	switch n.kind {
	case templateExpression:
		return lookupName.MatchString(n.text)
	case templateObject:
		return slices.ContainsFunc(n.fields, func(f templateField) bool {
			return f.value != nil && f.value.looksUp() || f.key != nil && f.key.looksUp()
		})
	case templateList:
		return slices.ContainsFunc(n.items, (*templateNode).looksUp)
	case templateConstant, templateColumn:
	}
	return false
}

// Ordered reports whether items of this mapping stay in order with those of other keys than their record's, so that delivery has to
// keep book of the keys under way: where the mapping's key is another than the vendor's identity, and where a vendor finds one
// record by several identifiers.
func (t *Template) Ordered() bool {
	return t.item != nil && (t.byVendor() && len(t.key) > 0 && !t.keyIsIdentity() || t.people() != nil)
}

// people is the list that says who an item is about; nil when there is none, or when a lookup gives it.
func (t *Template) people() *shape.Tagged {
	people := t.Spec.Item.People
	if people == nil || t.item == nil || slices.ContainsFunc(t.identityNodes(), (*templateNode).looksUp) {
		return nil
	}
	return people
}

// keyIsIdentity reports whether the mapping's key is made of just the values that identify the record to the vendor.
func (t *Template) keyIsIdentity() bool {
	same := func(key *templateNode, path []string) bool {
		n, rest := t.item.at(path)
		if n == nil {
			return t.spreadGives(key, path)
		}
		return len(rest) == 0 && n.kind == key.kind && n.text == key.text
	}
	for _, path := range t.Spec.Item.Identity {
		n, _ := t.item.at(path)
		constant := n != nil && n.kind == templateConstant
		if !constant && !slices.ContainsFunc(t.key, func(key *templateNode) bool { return same(key, path) }) {
			return false
		}
	}
	return !slices.ContainsFunc(t.key, func(key *templateNode) bool {
		return !slices.ContainsFunc(t.Spec.Item.Identity, func(path []string) bool { return same(key, path) })
	})
}

// spreadGives reports whether a spread writes the column of a key as the field at path.
func (t *Template) spreadGives(key *templateNode, path []string) bool {
	if key.kind != templateColumn {
		return false
	}
	parent, rest := t.item.at(path[:len(path)-1])
	if parent == nil || len(rest) > 0 || parent.kind != templateObject {
		return false
	}
	return slices.ContainsFunc(parent.fields, func(f templateField) bool {
		if f.spread == nil {
			return false
		}
		name, sent := f.spread.name(key.text)
		return sent && name == path[len(path)-1]
	})
}

// name is the field that a spread makes of a column; sent is false when it leaves the column out.
func (s *spread) name(column string) (name string, sent bool) {
	if listed(s.except, column) || len(s.only) > 0 && !listed(s.only, column) {
		return "", false
	}
	for i := 0; i+1 < len(s.rename); i += 2 {
		if s.rename[i].Value == column {
			return s.rename[i+1].Value, true
		}
	}
	return inCase(column, s.style), true
}

// identities fills in what tells the plan's records apart, and what else their items are ordered by.
func (c *planCompiler) identities(plan *Plan) {
	t := c.template
	rows := identity{scope: []byte(t.scope())} // of the table
	for _, i := range plan.identity {
		rows.operands = append(rows.operands, operand{path: "key", column: i, reads: []int{i}})
	}
	if len(t.key) > 0 {
		rows.operands = c.operands(t.key)
	}
	plan.record = rows
	plan.keyed = len(rows.operands) > 0
	if t.item == nil {
		return
	}
	if t.byVendor() {
		plan.record = identity{scope: []byte(t.vendorScope())}
		for _, path := range t.Spec.Item.Identity {
			plan.record.operands = append(plan.record.operands, c.vendorOperand(path))
		}
		plan.keyed = true
		if len(rows.operands) > 0 && (len(t.key) > 0 && !t.keyIsIdentity() || t.isParent && !t.namedByOne()) {
			plan.orders = append(plan.orders, rows)
		}
	}
	plan.people = len(plan.orders)
	if people := t.people(); people != nil {
		plan.orders = append(plan.orders, c.persons(people)...)
	}
}

// vendorOperand is the value at a path of the item, as text.
func (c *planCompiler) vendorOperand(path []string) operand {
	n, rest := c.template.item.at(path)
	if n == nil {
		n, rest = c.spreadColumn(path), nil
	}
	o := operand{path: "item." + strings.Join(path, "."), column: -1}
	if n == nil || n.kind == templateObject || n.kind == templateList {
		return o
	}
	if n.kind == templateConstant {
		o.constant = strings.Trim(n.text, `"`)
		return o
	}
	o = c.quietOperand(n)
	o.path, o.within, o.uuid = n.path, rest, c.isUUID(path)
	return o
}

// quietOperand is operand for a value of the item, whose mistakes are reported where the item is compiled.
func (c *planCompiler) quietOperand(n *templateNode) operand {
	problems := c.problems
	o := c.operand(n)
	c.problems = problems
	return o
}

// spreadColumn is the column that a spread writes at path.
func (c *planCompiler) spreadColumn(path []string) *templateNode {
	parent, rest := c.template.item.at(path[:len(path)-1])
	if parent == nil || len(rest) > 0 || parent.kind != templateObject {
		return nil
	}
	for _, f := range parent.fields {
		if f.spread == nil {
			continue
		}
		for _, column := range c.relation.Columns {
			if name, sent := f.spread.name(column.Name); sent && name == path[len(path)-1] {
				return &templateNode{kind: templateColumn, yaml: f.yaml, path: parent.path + "." + name, text: column.Name}
			}
		}
	}
	return nil
}

func (c *planCompiler) isUUID(path []string) bool {
	n := c.template.Spec.Item.Root
	for _, name := range path {
		if n == nil || n.Kind != shape.Object {
			return false
		}
		f, _ := n.Field(name)
		n = f.Node
	}
	return n != nil && n.Format == shape.FormatUUID
}

// persons are the identifiers within the item's list, in the order in which the vendor looks for them.
func (c *planCompiler) persons(people *shape.Tagged) (all []identity) {
	list, rest := c.template.item.at([]string{people.List})
	if list == nil || len(rest) > 0 {
		return nil
	}
	for _, tag := range people.Tags {
		id := identity{scope: fmt.Appendf(nil, "%s%s[%s].%s", vendorMark, people.List, tag, people.Value), person: true}
		switch list.kind {
		case templateList:
			if n := tagged(list, people, tag); n != nil {
				id.operands = []operand{c.quietOperand(n)}
			}
		case templateColumn, templateExpression:
			o := c.quietOperand(list)
			o.tagged, o.tag = people, tag
			id.operands = []operand{o}
		case templateConstant, templateObject:
		}
		if len(id.operands) > 0 {
			id.operands[0].path, id.operands[0].lower = list.path, true
			all = append(all, id)
		}
	}
	return all
}

// tagged is the value of the list's first element that has the tag.
func tagged(list *templateNode, people *shape.Tagged, tag string) *templateNode {
	for _, item := range list.items {
		if item.kind != templateObject {
			continue
		}
		kind, _ := item.at([]string{people.Tag})
		value, rest := item.at([]string{people.Value})
		if kind != nil && kind.kind == templateConstant && kind.text == tag && value != nil && len(rest) == 0 {
			return value
		}
	}
	return nil
}

// inside follows the operand into a value: a path in objects, or the element of a list that has the tag. nil means that nothing is there.
func (o *operand) inside(v any) any {
	if o.tagged != nil {
		return o.elementOf(v)
	}
	for _, name := range o.within {
		object, ok := v.(map[string]any)
		if !ok {
			return nil
		}
		v = object[name]
	}
	return v
}

func (o *operand) elementOf(v any) any {
	list, _ := v.([]any)
	for _, element := range list {
		object, ok := element.(map[string]any)
		if !ok {
			continue
		}
		if kind, err := textOf(object[o.tagged.Tag]); err == nil && kind == o.tag && object[o.tagged.Value] != nil {
			return object[o.tagged.Value]
		}
	}
	return nil
}

// A key is its scope and values, each behind a separator. Postgres text has no zero byte, so that different values never
// give the same key.
const (
	keySeparator = "\x00\x01"
	keyNull      = "\x00\x02"
)

// appendKey appends the key of the row's record. null is set when every value is.
func (p *Plan) appendKey(dst []byte, id *identity, r *row) (_ []byte, null bool, reject *RejectError) {
	dst = append(dst, id.scope...)
	null = true
	for i := range id.operands {
		o := &id.operands[i]
		at := len(dst)
		var none bool
		dst, none, reject = p.text(append(dst, keySeparator...), o, r)
		if reject != nil {
			return dst, false, p.rejected(o.path, reject)
		}
		if none {
			dst = append(dst[:at], keyNull...)
		}
		null = null && none
	}
	return dst, null, nil
}

// touches reports whether a column that the operands read differs, as far as both are known.
func (p *Plan) touches(ch *cdc.Change, operands []operand) bool {
	for i := range operands {
		for _, column := range operands[i].reads {
			if differs(ch, column) {
				return true
			}
		}
	}
	return false
}
