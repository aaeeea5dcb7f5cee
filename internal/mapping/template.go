package mapping

import (
	"fmt"
	"slices"
	"strings"

	"gopkg.in/yaml.v3"

	"github.com/cdcsync/cdcsync/internal/cdc"
	"github.com/cdcsync/cdcsync/internal/problem"
	"github.com/cdcsync/cdcsync/internal/shape"
)

// Template is a mapping that has been read and checked as far as that is possible without its table. It is not changed
// after Link and may then be compiled by several goroutines.
type Template struct {
	Source Source // On and Coalesce filled in
	Spec   Spec

	item    *templateNode // nil for a refresh mapping
	when    *templateNode // nil: every row
	key     []*templateNode
	lookups []*templateNode // keys, in the order of Source.Lookups
	parents []*templateNode // keys, in the order of Source.Parents
	by      *templateNode   // of a refresh mapping

	parentScopes []string // of the parents' keys, by Link
	isParent     bool     // by Link: items of other mappings wait for this one's
}

// templateKind says what a templateNode stands for.
type templateKind uint8

const (
	templateConstant templateKind = iota + 1
	templateColumn
	templateExpression
	templateObject
	templateList
)

// templateNode is one value of a template.
type templateNode struct {
	kind   templateKind
	yaml   *yaml.Node
	path   string          // item.data.fullName
	text   string          // JSON of a constant, name of a column, source of an expression
	fields []templateField // of an object
	items  []*templateNode // of a list
}

// templateField is one field of an object: named, computed, or a spread of columns.
type templateField struct {
	yaml   *yaml.Node // the key
	name   string
	key    *templateNode // when the name is computed
	spread *spread       // when the field stands for columns
	value  *templateNode
}

// Parse reads a mapping. It reports every mistake that needs no table at once; the Template is nil when there is one.
func Parse(src Source, spec Spec) (*Template, problem.List) {
	if len(src.On) == 0 {
		src.On = spec.On
		if src.Refresh != nil {
			src.On = []cdc.Op{cdc.OpInsert, cdc.OpUpdate, cdc.OpDelete}
		}
	}
	if src.Coalesce == 0 {
		src.Coalesce = spec.Coalesce
	}
	if src.Leave == 0 {
		src.Leave = spec.Leave
	}
	t := &Template{Source: src, Spec: spec, parentScopes: make([]string, len(src.Parents))}
	for i := range src.Parents {
		t.parentScopes[i] = ParseTable(src.Parents[i].Mapping).String()
	}
	p := &templateParser{reporter: reporter{source: src}, lookups: src.Lookups}
	p.mapping(t)
	if len(p.problems) > 0 {
		return nil, p.problems
	}
	return t, nil
}

// Link joins mappings that name one another: parents and the roots of refresh mappings. It is called once with all templates.
func Link(templates []*Template) problem.List {
	var r reporter
	for _, t := range templates {
		r.source = t.Source
		for i, parent := range t.Source.Parents {
			t.linkParent(&r, i, parent, templates)
		}
		if ref := t.Source.Refresh; ref != nil && !slices.ContainsFunc(templates, func(o *Template) bool {
			return o.item != nil && o.Source.Sink == t.Source.Sink && o.Source.Table == ref.Table
		}) {
			r.report(&ref.By, "refresh.table", fmt.Sprintf("no mapping of %s to sink %s", ref.Table, t.Source.Sink), "a refresh sends what another mapping of the same sink renders")
		}
	}
	return r.problems
}

func (t *Template) linkParent(r *reporter, i int, parent Parent, templates []*Template) {
	var names []string
	for _, o := range templates {
		if o.Source.Sink != t.Source.Sink || o.item == nil || o == t {
			continue
		}
		if o.Source.Name == parent.Mapping || o.Source.Table == ParseTable(parent.Mapping) {
			t.parentScopes[i] = o.scope()
			if o.Source.Key.Kind == 0 && o.namedByOne() && o.byVendor() {
				t.parentScopes[i] = o.vendorScope()
			}
			o.isParent = true
			return
		}
		names = append(names, o.Source.Name)
	}
	r.report(&parent.Key, fmt.Sprintf("parents[%d].mapping", i), fmt.Sprintf("no mapping or table %q to sink %s", parent.Mapping, t.Source.Sink), problem.Nearest(parent.Mapping, names))
}

// Sends says whether the operation is mapped. A row that a backfill read counts as an insert.
func (t *Template) Sends(op cdc.Op) bool {
	if op == cdc.OpRead {
		op = cdc.OpInsert
	}
	return slices.Contains(t.Source.On, op)
}

// Without says what is lost without the old row of an update or delete, which Postgres sends whole only with REPLICA IDENTITY FULL.
// Empty means that the mapping does not need it, or needs its key only.
func (t *Template) Without() []string {
	var lost []string
	if t.item == nil || !t.Sends(cdc.OpDelete) && !t.Sends(cdc.OpUpdate) {
		return nil
	}
	if t.Spec.FullRows && t.Sends(cdc.OpDelete) {
		lost = append(lost, lostDeletes)
	}
	if t.when != nil && t.filtersRows() && t.Source.Leave == LeaveDelete && t.Sends(cdc.OpDelete) {
		lost = append(lost, lostLeaving)
	}
	if t.mapIsValue() {
		lost = append(lost, lostFlags)
	}
	return lost
}

// OldRowWarnings are about what the mapping says and only REPLICA IDENTITY FULL lets happen. Whether the table has it is for the database to say.
func (t *Template) OldRowWarnings() problem.List {
	var r reporter
	r.source = t.Source
	full := "ALTER TABLE " + quoteIdent(t.Source.Table.Schema) + "." + quoteIdent(t.Source.Table.Name) + " REPLICA IDENTITY FULL"
	const without = "needs REPLICA IDENTITY FULL, without which the old row is not known and "
	for _, lost := range t.Without() {
		switch lost {
		case lostLeaving:
			r.report(&t.Source.When, "when", without+lost, full+", or leave: keep")
		case lostFlags:
			r.report(&t.Source.Item, "item."+t.flagsName(), without+lost, full)
		}
	}
	return r.problems
}

const (
	lostDeletes = "deletes become dead letters"
	lostLeaving = "rows that leave the filter stay at the vendor"
	lostFlags   = "flags that leave the map are not withdrawn"
)

// filtersRows reports whether the filter looks at nothing but the row, so that it defines a set of rows.
func (t *Template) filtersRows() bool {
	e, _ := compileExpression(t.when.text, scope{})
	return e != nil && !tells(e)
}

// mapIsValue reports whether the map of a sink that withdraws is one value, of which the key does not tell what was in it.
func (t *Template) mapIsValue() bool {
	n, rest := t.item.at([]string{t.flagsName()})
	return t.Spec.Deletes == DeleteWithdraw && n != nil && len(rest) == 0 && (n.kind == templateColumn || n.kind == templateExpression)
}

// reporter collects problems of one mapping.
type reporter struct {
	source   Source
	problems problem.List
}

func (r *reporter) report(at *yaml.Node, path, message, hint string) {
	r.problems = append(r.problems, &problem.Problem{
		File: r.source.File, Line: at.Line, Column: at.Column,
		Path: r.source.Path + "." + path, Message: message, Hint: hint,
	})
}

// mistakes reports what is wrong within an expression, at its place in the scalar as well as that can be told.
func (r *reporter) mistakes(n *templateNode, all []mistake) {
	for _, m := range all {
		at := *n.yaml
		skip := strings.Index(at.Value, n.text)
		runes := []rune(n.text)
		if m.line == 1 && m.column <= len(runes) && at.Style&(yaml.LiteralStyle|yaml.FoldedStyle) == 0 {
			before := string(runes[:m.column])
			at.Column += max(skip, 0) + m.column
			switch {
			case at.Style&yaml.SingleQuotedStyle != 0:
				at.Column += 1 + strings.Count(before, "'")
			case at.Style&yaml.DoubleQuotedStyle != 0:
				at.Column += 1 + strings.Count(before, `"`) + strings.Count(before, `\`)
			}
		}
		r.report(&at, n.path, m.message, m.hint)
	}
}

// templateParser turns YAML nodes into templateNodes.
type templateParser struct {
	reporter
	lookups []Lookup
	depth   int
	nodes   int
}

func (p *templateParser) mapping(t *Template) {
	src := &t.Source
	if src.When.Kind != 0 {
		t.when = p.when(&src.When)
	}
	if src.Key.Kind != 0 {
		t.key = p.keys(&src.Key)
	}
	for i := range src.Lookups {
		l := &src.Lookups[i]
		t.lookups = append(t.lookups, p.scalar(&l.Key, "lookups."+l.Name+".key"))
		if strings.TrimSpace(l.SQL) == "" {
			p.report(&l.Key, "lookups."+l.Name+".sql", "the SQL is missing", "select the key first, where key = any($1)")
		}
	}
	for i := range src.Parents {
		t.parents = append(t.parents, p.scalar(&src.Parents[i].Key, fmt.Sprintf("parents[%d].key", i)))
	}
	if src.Leave == LeaveDelete && t.Spec.Leave != LeaveDelete {
		p.report(&src.When, "leave", "the vendor has no delete", "leave: keep")
	}
	switch {
	case src.Refresh != nil && src.Item.Kind != 0:
		p.report(&src.Item, "item", "a refresh mapping has no item", "it sends what the mapping of "+src.Refresh.Table.String()+" renders")
	case src.Refresh != nil:
		t.by = p.scalar(&src.Refresh.By, "refresh.by")
	case src.Item.Kind == 0:
		p.report(&src.Item, "item", "the item is missing", "")
	default:
		t.item = p.node(&src.Item, "item")
		p.check(t.item, t.Spec.Item.Root)
	}
}

// when is an expression, with or without its equals sign.
func (p *templateParser) when(y *yaml.Node) *templateNode {
	if y.Kind != yaml.ScalarNode {
		p.report(y, "when", "must be an expression", `when: status != "test"`)
		return nil
	}
	n := &templateNode{kind: templateExpression, yaml: y, path: "when", text: strings.TrimPrefix(y.Value, "=")}
	p.expression(n, nil)
	return n
}

func (p *templateParser) keys(y *yaml.Node) (keys []*templateNode) {
	if y.Kind != yaml.SequenceNode {
		return []*templateNode{p.scalar(y, "key")}
	}
	for i, item := range y.Content {
		keys = append(keys, p.scalar(item, fmt.Sprintf("key[%d]", i)))
	}
	return keys
}

// scalar reads a column or an expression, which cannot use lookups.
func (p *templateParser) scalar(y *yaml.Node, path string) *templateNode {
	lookups := p.lookups
	p.lookups = nil
	n := p.node(y, path)
	p.lookups = lookups
	if n.kind != templateColumn && n.kind != templateExpression {
		p.report(y, path, "must be a column or an expression", "$column or =expression")
	}
	return n
}

// YAML aliases could make a template endless, or very large out of a few lines.
const (
	maxTemplateDepth = 64
	maxTemplateNodes = 20_000
)

func (p *templateParser) node(y *yaml.Node, path string) *templateNode {
	p.depth++
	p.nodes++
	defer func() { p.depth-- }()
	if p.depth > maxTemplateDepth || p.nodes > maxTemplateNodes {
		if p.nodes <= maxTemplateNodes || p.nodes == maxTemplateNodes+1 {
			p.report(y, path, fmt.Sprintf("the template is too large: at most %d levels and %d values", maxTemplateDepth, maxTemplateNodes), "")
		}
		return constant(y, path, "null")
	}
	switch y.Kind {
	case yaml.AliasNode:
		return p.node(y.Alias, path)
	case yaml.MappingNode:
		return p.object(y, path)
	case yaml.SequenceNode:
		n := &templateNode{kind: templateList, yaml: y, path: path}
		for i, item := range y.Content {
			n.items = append(n.items, p.node(item, fmt.Sprintf("%s[%d]", path, i)))
		}
		return n
	case yaml.ScalarNode:
		return p.scalarNode(y, path)
	default:
		return constant(y, path, "null")
	}
}

func constant(y *yaml.Node, path, json string) *templateNode {
	return &templateNode{kind: templateConstant, yaml: y, path: path, text: json}
}

func (p *templateParser) scalarNode(y *yaml.Node, path string) *templateNode {
	switch y.ShortTag() {
	case "!!null":
		return constant(y, path, "null")
	case "!!bool":
		return constant(y, path, strings.ToLower(y.Value))
	case "!!int", "!!float":
		if !isNumber([]byte(y.Value)) {
			p.report(y, path, y.Value+" is not a number as JSON has it", "write plain digits, or quotes around it for a string")
		}
		return constant(y, path, y.Value)
	case "!!str", "!!timestamp": // a plain 2025-09-20 is a string, as in YAML 1.2
		return p.text(y, path)
	}
	p.report(y, path, "the tag "+y.Tag+" has no meaning here", "")
	return constant(y, path, "null")
}

// text reads a string: $column, =expression, or itself.
func (p *templateParser) text(y *yaml.Node, path string) *templateNode {
	s := y.Value
	switch {
	case strings.HasPrefix(s, "$$"), strings.HasPrefix(s, "=="):
		s = s[1:]
	case strings.HasPrefix(s, "$"):
		if s == "$" {
			p.report(y, path, "the column's name is missing", `$column, or $$ for a string that begins with a dollar sign`)
		}
		return &templateNode{kind: templateColumn, yaml: y, path: path, text: s[1:]}
	case strings.HasPrefix(s, "="):
		n := &templateNode{kind: templateExpression, yaml: y, path: path, text: s[1:]}
		p.expression(n, p.lookups)
		return n
	}
	quoted, err := appendString(nil, []byte(s))
	if err != nil {
		p.report(y, path, "is not valid UTF-8", "")
	}
	return constant(y, path, string(quoted))
}

// expression checks what can be checked before the columns are known.
func (p *templateParser) expression(n *templateNode, lookups []Lookup) {
	if strings.TrimSpace(n.text) == "" {
		p.report(n.yaml, n.path, "the expression is empty", "== stands for a string that begins with an equals sign")
		return
	}
	e, mistakes := compileExpression(n.text, scope{lookups: lookups})
	p.mistakes(n, mistakes)
	if n.path == "when" && e != nil {
		p.boolean(n, e)
	}
}

// boolean reports a filter that is no condition.
func (r *reporter) boolean(n *templateNode, e *expression) {
	if e.typ != nil && e.typ != typeBool {
		r.report(n.yaml, n.path, "must be a condition, and is a "+typeNameOf(e.typ), `when: status != "test"`)
	}
}

func (p *templateParser) object(y *yaml.Node, path string) *templateNode {
	n := &templateNode{kind: templateObject, yaml: y, path: path}
	seen := map[string]bool{}
	for i := 0; i+1 < len(y.Content); i += 2 {
		f := p.field(y.Content[i], y.Content[i+1], path)
		if f.key == nil && f.spread == nil && seen[f.name] {
			p.report(f.yaml, path+"."+f.name, "the field is given twice", "")
		}
		seen[f.name] = true
		n.fields = append(n.fields, f)
	}
	return n
}

func (p *templateParser) field(key, value *yaml.Node, path string) templateField {
	f := templateField{yaml: key, name: key.Value}
	switch {
	case key.Kind != yaml.ScalarNode:
		p.report(key, path, "a field's name must be a scalar", "")
	case key.ShortTag() == "!!merge":
		p.report(key, path, "<< is not supported in a template", `"*" spreads the row's columns`)
	case key.Value == "*":
		f.spread = p.spread(value, path+".*")
		return f
	case strings.HasPrefix(key.Value, "$") || strings.HasPrefix(key.Value, "="):
		name := p.text(key, path+"."+key.Value)
		if name.kind != templateConstant {
			f.key = name
		} else {
			f.name = key.Value[1:] // $$ or ==
		}
	}
	f.value = p.node(value, path+"."+f.name)
	return f
}

// check compares a template with the vendor's shape, as far as that needs no columns.
func (p *templateParser) check(n *templateNode, s *shape.Node) {
	if shape.Free(s) {
		s = nil
	}
	switch n.kind {
	case templateConstant:
		if err := shape.CheckScalar(s, []byte(n.text)); err != nil {
			p.report(n.yaml, n.path, err.Error(), constantHint(n, s))
		}
	case templateObject:
		p.checkObject(n, s)
	case templateList:
		p.checkList(n, s)
	case templateColumn, templateExpression: // Compile knows their types.
	}
}

func constantHint(n *templateNode, s *shape.Node) string {
	if s.Kind == shape.String && isNumber([]byte(n.text)) {
		return "put it in quotes"
	}
	return ""
}

func (p *templateParser) checkObject(n *templateNode, s *shape.Node) {
	if s != nil && s.Kind != shape.Object && s.Kind != shape.Map {
		p.report(n.yaml, n.path, "is an object, and the vendor wants "+shape.KindNames[s.Kind], "")
		return
	}
	var present, meant []string
	spread := false
	for _, f := range n.fields {
		if f.spread != nil {
			spread = true
			continue
		}
		if f.key == nil {
			meant = append(meant, f.name)
		}
		p.checkField(n, &f, s)
		if f.key == nil && f.value.kind != templateColumn && f.value.kind != templateExpression {
			present = append(present, f.name) // surely there
		}
	}
	if s == nil {
		return
	}
	if err := shape.CheckExclusive(s.Exclusive, present); err != nil {
		p.report(n.yaml, n.path, err.Error(), "")
	}
	if !spread {
		p.required(n, s, misspelt(s, meant))
	}
}

// misspelt are the fields of the shape that unknown names were meant to be: reported once is enough.
func misspelt(s *shape.Node, names []string) (fields []string) {
	for _, name := range names {
		if _, ok := child(s, name); ok {
			continue
		}
		for _, f := range s.Fields {
			if problem.Nearest(name, fieldNames(s)) == fmt.Sprintf("did you mean %q?", f.Name) {
				fields = append(fields, f.Name)
			}
		}
	}
	return fields
}

func (p *templateParser) checkField(n *templateNode, f *templateField, s *shape.Node) {
	if f.key != nil {
		if s != nil && s.Kind == shape.Object && !s.Open {
			p.report(f.yaml, f.key.path, "the vendor's field names are fixed here", problem.Nearest("", fieldNames(s)))
			return
		}
		var elem *shape.Node
		if s != nil && s.Kind == shape.Map {
			elem = s.Elem
		}
		p.check(f.value, elem)
		return
	}
	known, ok := child(s, f.name)
	if !ok {
		message, hint := unknownField(s, f.name)
		p.report(f.yaml, n.path+"."+f.name, message, hint)
		return
	}
	if s != nil && s.Kind == shape.Map {
		if err := shape.CheckFormat(s.Key, []byte(f.name)); err != nil {
			p.report(f.yaml, n.path+"."+f.name, "the key "+err.Error(), "")
		}
	}
	if f.value.kind == templateConstant && f.value.text == "null" && !known.Required && s != nil {
		return // left out, as a null column would be
	}
	p.check(f.value, known.Node)
}

// required reports the fields that the vendor requires and the template lacks; other are names that it has in another way.
func (r *reporter) required(n *templateNode, s *shape.Node, other []string) {
	if s.Kind != shape.Object {
		return
	}
	for _, f := range s.Fields {
		if f.Required && !slices.Contains(other, f.Name) && !slices.ContainsFunc(n.fields, func(t templateField) bool { return t.key == nil && t.spread == nil && t.name == f.Name }) {
			r.report(n.yaml, n.path, "the vendor requires "+f.Name, f.Doc)
		}
	}
}

func (p *templateParser) checkList(n *templateNode, s *shape.Node) {
	var elem *shape.Node
	if s != nil {
		if s.Kind != shape.Array {
			p.report(n.yaml, n.path, "is a list, and the vendor wants "+shape.KindNames[s.Kind], "")
			return
		}
		if len(n.items) < s.MinItems {
			p.report(n.yaml, n.path, tooFew(s.MinItems), "")
		}
		elem = s.Elem
	}
	for _, item := range n.items {
		p.check(item, elem)
	}
}
