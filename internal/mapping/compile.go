package mapping

import (
	"fmt"
	"maps"
	"math"
	"reflect"
	"regexp"
	"slices"

	"github.com/cdcsync/cdcsync/internal/cdc"
	"github.com/cdcsync/cdcsync/internal/problem"
	"github.com/cdcsync/cdcsync/internal/shape"
)

// Compile joins the template with a table's columns. It reports every mistake that the columns show at once; the Plan is nil
// when there is one. Compile again when the relation changes.
func (t *Template) Compile(rel *cdc.Relation) (*Plan, problem.List) {
	c := &planCompiler{reporter: reporter{source: t.Source}, template: t, relation: rel, reads: map[int]bool{}, slots: map[string]int{}}
	plan := &Plan{
		template: t, relation: rel, most: math.MaxInt,
		parentScopes: t.parentScopes,
		identity:     identityOf(rel),
	}
	if t.when != nil {
		plan.when = c.expression(t.when, nil)
		c.boolean(t.when, plan.when)
	}
	c.identities(plan)
	plan.lookups = c.operands(t.lookups)
	plan.parents = c.operands(t.parents)
	if t.by != nil {
		plan.by = c.operand(t.by)
	} else {
		plan.item = c.program(t.item, t.Spec.Item.Root, false)
		if t.Spec.Deletes == DeleteWithdraw {
			plan.withdraw = c.program(t.item, t.Spec.Item.Root, true)
			c.flags(plan)
		}
	}
	if len(c.problems) > 0 {
		return nil, c.problems
	}
	plan.columns = slices.Sorted(maps.Keys(c.reads))
	plan.fields = c.fields
	plan.watch()
	plan.machine = newMachine(rel, len(c.slots))
	return plan, nil
}

// identityOf is what tells a table's rows apart: the primary key, else the replica identity's index. A table without either has
// REPLICA IDENTITY FULL at best, in which every column is part of the identity and so none tells rows apart.
func identityOf(rel *cdc.Relation) []int {
	if len(rel.PrimaryKey) > 0 {
		return rel.PrimaryKey
	}
	var identity []int
	for i := range rel.Columns {
		if rel.Columns[i].Identity && rel.Identity != 'f' {
			identity = append(identity, i)
		}
	}
	return identity
}

// planCompiler joins templateNodes with columns.
type planCompiler struct {
	reporter
	template *Template
	relation *cdc.Relation
	reads    map[int]bool   // columns of the row that rendering and routing need
	slots    map[string]int // of the machine, by the name of the reference
	fields   []Field
}

// operand is a column or an expression that is used as text: a key.
type operand struct {
	path   string
	column int
	expr   *expression // nil for a column
	reads  []int       // the columns that it depends on

	constant    string   // where there is neither a column nor an expression
	uuid, lower bool     // in lower case, so that keys are equal when the vendor's are
	within      []string // the path to the value within what the column or expression gives
	tagged      *shape.Tagged
	tag         string // with tagged: the value is that of the list's element that has the tag
}

func (c *planCompiler) operands(nodes []*templateNode) []operand {
	var all []operand
	for _, n := range nodes {
		all = append(all, c.operand(n))
	}
	return all
}

func (c *planCompiler) operand(n *templateNode) operand {
	o := operand{path: n.path, column: -1}
	switch n.kind {
	case templateColumn:
		o.column = c.column(n)
	case templateExpression:
		o.expr = c.expression(n, nil)
		if o.expr != nil && o.expr.whole != nil && o.expr.whole.kind == refColumn {
			o.column, o.expr = o.expr.whole.column, nil
		} else if column := c.asText(n.text); o.expr != nil && column >= 0 {
			o.column, o.expr = column, nil
		}
	default: // the vendor's key is a constant in the item: one record for the whole table
	}
	o.reads = o.columns()
	return o
}

var textOfColumn = regexp.MustCompile(`^\s*string\(\s*([A-Za-z_][A-Za-z0-9_]*)\s*\)\s*$`)

// asText is the column of which an expression gives the text as the tuple has it, or -1.
func (c *planCompiler) asText(expression string) int {
	m := textOfColumn.FindStringSubmatch(expression)
	if m == nil {
		return -1
	}
	i := c.relation.Column(m[1])
	if i < 0 {
		return -1
	}
	if t := goType(c.relation.Columns[i].Type); t != typeInt && t != typeString {
		return -1
	}
	c.reads[i] = true
	return i
}

// column finds a column and reports one that is not there as -1.
func (c *planCompiler) column(n *templateNode) int {
	i := c.relation.Column(n.text)
	if i < 0 {
		c.report(n.yaml, n.path, fmt.Sprintf("unknown column %q", n.text), problem.Nearest(n.text, columnNames(c.relation)))
		return i
	}
	c.reads[i] = true
	return i
}

func (c *planCompiler) expression(n *templateNode, lookups []Lookup) *expression {
	e, mistakes := compileExpression(n.text, scope{relation: c.relation, lookups: lookups})
	c.mistakes(n, mistakes)
	if e == nil {
		return nil
	}
	for i := range e.refs {
		r := &e.refs[i]
		slot, ok := c.slots[r.name]
		if !ok {
			slot = len(c.slots)
			c.slots[r.name] = slot
		}
		r.slot = slot
		if r.kind == refColumn {
			c.reads[r.column] = true
		}
	}
	return e
}

// boolean is reporter.boolean for an expression that may have been reported already.
func (c *planCompiler) boolean(n *templateNode, e *expression) {
	if e != nil {
		c.reporter.boolean(n, e)
	}
}

// columns are those that the operand reads of the row that is rendered.
func (o *operand) columns() (columns []int) {
	if o.expr == nil {
		if o.column >= 0 {
			columns = append(columns, o.column)
		}
		return columns
	}
	for i := range o.expr.refs {
		if o.expr.refs[i].kind == refColumn {
			columns = append(columns, o.expr.refs[i].column)
		}
	}
	return columns
}

// stepKind says what a step appends after its constant bytes.
type stepKind uint8

const (
	stepColumn     stepKind = iota + 1 // a column's value, straight from its text
	stepExpression                     // what an expression gives
	stepLookup                         // what a lookup found
	stepKey                            // a computed field name with its colon
	stepComma                          // a comma, unless the object has no field yet
	stepOpen                           // remembers where an object or list begins
	stepClose                          // checks what began at the last stepOpen
)

// step is one piece of an item. Constant bytes of neighbouring fields are one run.
type step struct {
	pre  []byte // appended first, always
	kind stepKind

	comma bool   // before name: a comma, unless the object has no field yet
	name  []byte // "fullName": of a field that may be left out
	omit  bool   // null leaves the field out

	operand operand
	lookup  int
	many    bool
	codec   *codec
	quote   bool        // a number is sent as a string
	decoded bool        // the column's value is decoded first, to be checked throughout
	flags   bool        // it is the map of a sink that withdraws: null and empty mean that there is nothing to tell
	false   bool        // every flag within is false
	check   *shape.Node // nil: anything fits, or what is sent is known to fit
	node    *shape.Node // what the vendor takes here
	path    string
}

// program is a compiled item.
type program struct {
	steps []step
	tail  []byte
}

// builder makes a program.
type builder struct {
	*planCompiler
	withdraw bool
	steps    []step
	pending  []byte
}

// program compiles a value that stands where the shape has at.
func (c *planCompiler) program(n *templateNode, at *shape.Node, withdraw bool) *program {
	b := &builder{planCompiler: c, withdraw: withdraw}
	problems, fields := c.problems, c.fields
	b.node(n, place{node: at, withdraw: at != nil && at.Kind == shape.Map})
	if withdraw {
		c.problems, c.fields = problems, fields // the same as those of the item
	}
	return &program{steps: b.steps, tail: b.pending}
}

// place is where in the vendor's shape a value stands.
type place struct {
	node     *shape.Node
	field    string // its name, for a field that may be left out; else empty
	omit     bool
	comma    bool
	withdraw bool // within an object with free keys
}

func (b *builder) add(s step) {
	s.pre, b.pending = b.pending, nil
	b.steps = append(b.steps, s)
}

func (b *builder) node(n *templateNode, at place) {
	if shape.Free(at.node) {
		at.node = nil
	}
	switch n.kind {
	case templateConstant:
		b.constant(n, at)
	case templateColumn:
		b.columnStep(n, at)
	case templateExpression:
		b.expressionStep(n, at)
	case templateObject:
		b.object(n, at)
	case templateList:
		b.list(n, at)
	}
}

func (b *builder) constant(n *templateNode, at place) {
	value := []byte(n.text)
	if at.node != nil {
		value = slices.Clone(value)
		_ = shape.CheckScalar(at.node, value) // Parse has reported it; this writes a UUID in lower case
	}
	if b.flag(at) {
		value = []byte("false")
	}
	b.pending = append(b.pending, value...)
	b.describe(n, n.text, "", shape.JSONKind(value))
}

// flag says whether the value is one that a withdrawal sets to false.
func (b *builder) flag(at place) bool {
	return b.withdraw && at.withdraw && at.node != nil && at.node.Kind == shape.Boolean
}

func (b *builder) columnStep(n *templateNode, at place) {
	if b.flag(at) {
		b.pending = append(b.pending, "false"...)
		return
	}
	i := b.column(n)
	if i < 0 {
		return
	}
	b.columnValue(n, i, at)
}

func (b *builder) columnValue(n *templateNode, i int, at place) {
	column := &b.relation.Columns[i]
	t := goType(column.Type)
	b.fits(n, fmt.Sprintf("column %q has type %s", column.Name, pgTypeName(column.Type)), column.Name, t, at.node)
	s := step{kind: stepColumn, operand: operand{column: i, reads: []int{i}}, node: at.node, path: n.path}
	s.codec = newCodec(column.Type, timesFor(b.template.Spec.Item.Times, at.node))
	if at.node != nil {
		switch s.codec.form {
		case formInteger, formNumeric, formFloat:
			s.quote = at.node.Kind == shape.String
			s.check = at.node
		case formJSON, formArray, formComposite, formHstore, formRange, formMultirange:
			s.decoded = true
		default:
			s.check = at.node
			s.decoded = at.node.Kind == shape.Boolean && s.codec.form != formBool // a text that says true or false
		}
		if plainKind(at.node, s.codec) {
			s.check = nil
		}
	}
	b.field(&s, at)
	b.describe(n, "$"+column.Name, pgTypeName(column.Type), sentAs(s.codec, at.node))
}

// plainKind says whether every value of the column fits, once its type does.
func plainKind(n *shape.Node, c *codec) bool {
	if len(n.Enum) > 0 || n.Format != 0 || n.Min != nil || n.Max != nil || n.MaxLength > 0 || n.Check != nil {
		return false
	}
	return n.Kind != shape.Integer || c.form == formInteger || c.form == formDate || c.form == formTimestamp || c.form == formTimestamptz
}

// field adds a step that is a whole value, with the name of a field that may be left out.
func (b *builder) field(s *step, at place) {
	s.omit, s.comma = at.omit, at.comma
	s.flags = b.template.Spec.Deletes == DeleteWithdraw && at.node != nil && at.node.Kind == shape.Map
	s.false = b.withdraw
	if at.omit {
		s.name = []byte(at.field)
	}
	b.add(*s)
}

func (b *builder) expressionStep(n *templateNode, at place) {
	if b.flag(at) {
		b.pending = append(b.pending, "false"...)
		return
	}
	e := b.expression(n, b.template.Source.Lookups)
	if e == nil {
		return
	}
	if e.whole != nil && e.whole.kind == refColumn {
		b.columnValue(n, e.whole.column, at)
		return
	}
	s := step{kind: stepExpression, operand: operand{path: n.path, column: -1, expr: e}, node: at.node, path: n.path}
	s.operand.reads = s.operand.columns()
	if e.whole != nil && e.whole.kind == refLookup {
		s.kind, s.lookup = stepLookup, e.whole.lookup
		s.many = b.template.Source.Lookups[s.lookup].Many
	}
	sent := "any"
	if e.typ != nil {
		sent = typeNameOf(e.typ)
		b.fits(n, "the expression gives a "+sent, n.text, e.typ, at.node)
	}
	b.field(&s, at)
	b.describe(n, "="+n.text, "", sent)
}

func (b *builder) object(n *templateNode, at place) {
	closes := at.node != nil && (at.node.Check != nil || len(at.node.Exclusive) > 0)
	if closes {
		b.add(step{kind: stepOpen})
	}
	b.pending = append(b.pending, '{')
	fields := b.expand(n, at.node)
	sure, any := false, false // a field has surely, or perhaps, been written before
	for i := range fields {
		f := &fields[i]
		inner := b.place(f, at)
		if f.key != nil {
			inner.field, inner.omit = "", false
		}
		switch {
		case sure && inner.omit:
			inner.field = "," + inner.field
		case sure:
			b.pending = append(b.pending, ',')
		case any && inner.omit:
			inner.comma = true
		case any:
			b.add(step{kind: stepComma})
		}
		any, sure = true, sure || !inner.omit
		switch {
		case f.key != nil:
			b.keyStep(f.key, at.node)
		case !inner.omit:
			b.pending = append(b.pending, fieldName(f.name, at.node)...)
		}
		b.node(f.value, inner)
	}
	b.pending = append(b.pending, '}')
	if closes {
		b.add(step{kind: stepClose, node: at.node, path: n.path})
	}
}

func fieldName(name string, n *shape.Node) []byte {
	quoted, _ := appendString(nil, []byte(name)) // Parse saw that it is UTF-8
	if n != nil && n.Kind == shape.Map && n.Key == shape.FormatUUID {
		shape.LowerUUID(quoted[1 : len(quoted)-1])
	}
	return append(quoted, ':')
}

// place says where a field's value stands, and whether null leaves the field out.
func (b *builder) place(f *templateField, at place) place {
	known, _ := child(at.node, f.name)
	inner := place{node: known.Node, withdraw: at.withdraw}
	if at.node == nil {
		return inner
	}
	if at.node.Kind == shape.Map {
		inner.withdraw = true
	}
	static := f.value.kind == templateConstant && f.value.text != "null" || f.value.kind == templateObject || f.value.kind == templateList
	if !static && !known.Required && !shape.Nullable(known.Node) {
		inner.omit, inner.field = true, string(fieldName(f.name, nil))
	}
	return inner
}

// expand replaces spreads by the columns that they stand for and leaves out constant nulls that are not sent.
func (b *builder) expand(n *templateNode, s *shape.Node) []templateField {
	var fields []templateField
	var spreadNames []string
	spread := false
	for _, f := range n.fields {
		if f.spread == nil {
			known, _ := child(s, f.name)
			if f.value.kind == templateConstant && f.value.text == "null" && s != nil && !known.Required && !shape.Nullable(known.Node) {
				continue
			}
			fields = append(fields, f)
			continue
		}
		spread = true
		for _, column := range f.spread.fields(&b.reporter, b.relation, n) {
			if _, ok := child(s, column.name); !ok {
				message, hint := unknownField(s, column.name)
				b.report(f.yaml, column.value.path, message+" from the column "+column.value.text, "list it in except, or "+hint)
				continue
			}
			fields = append(fields, column)
			spreadNames = append(spreadNames, column.name)
		}
	}
	if spread && s != nil {
		b.required(n, s, spreadNames)
	}
	return fields
}

// keyStep adds a computed field name.
func (b *builder) keyStep(n *templateNode, s *shape.Node) {
	o := b.operand(n)
	o.path = n.path
	var format shape.Node
	if s != nil && s.Kind == shape.Map {
		format = shape.Node{Kind: shape.String, Format: s.Key}
	}
	b.add(step{kind: stepKey, operand: o, check: &format, path: n.path})
}

func (b *builder) list(n *templateNode, at place) {
	closes := at.node != nil && at.node.Check != nil
	if closes {
		b.add(step{kind: stepOpen})
	}
	b.pending = append(b.pending, '[')
	for i, item := range n.items {
		if i > 0 {
			b.pending = append(b.pending, ',')
		}
		inner := place{withdraw: at.withdraw}
		if at.node != nil {
			inner.node = at.node.Elem
		}
		b.node(item, inner)
	}
	b.pending = append(b.pending, ']')
	if closes {
		b.add(step{kind: stepClose, node: at.node, path: n.path})
	}
}

// fits reports a type whose values the vendor can never take.
func (b *builder) fits(n *templateNode, what, name string, t reflect.Type, s *shape.Node) {
	if s == nil || t == nil || typeFits(t, s, b.template.Spec.Item.Times) {
		return
	}
	b.report(n.yaml, n.path, what+", and the vendor wants "+shape.KindNames[s.Kind], fitHint(name, t, s))
}

func typeFits(t reflect.Type, s *shape.Node, times shape.Times) bool {
	switch s.Kind {
	case shape.String:
		if s.Format == shape.FormatUUID {
			return t == typeString
		}
		if s.Format == shape.FormatDateTime {
			return t == typeString || timeType(t)
		}
		return t == typeString || t == typeBytes || timeType(t) || numericType(t)
	case shape.Number, shape.Integer:
		return numericType(t) || timeType(t) && times == shape.TimesUnixMilli
	case shape.Boolean:
		return t == typeBool || t == typeString
	case shape.Object, shape.Map:
		return t.Kind() == reflect.Map
	case shape.Array:
		return t == typeList || t.Kind() == reflect.Slice && t != typeBytes
	default:
		return true
	}
}

// fitHint is how to make the value fit, for the pairs that occur.
func fitHint(name string, t reflect.Type, s *shape.Node) string {
	number := s.Kind == shape.Number || s.Kind == shape.Integer
	switch {
	case number && t == typeBool:
		return fmt.Sprintf("=%s ? 1 : 0", name)
	case number && t == typeString:
		return fmt.Sprintf("=number(%s)", name)
	case number && timeType(t):
		return fmt.Sprintf("=day(%s), =month(%s), =year(%s) or =ms(%s)", name, name, name, name)
	case s.Kind == shape.Boolean && t == typeInt:
		return fmt.Sprintf("=%s == 1", name)
	case s.Kind == shape.String && t != typeDecimal:
		return fmt.Sprintf("=string(%s)", name)
	}
	return ""
}

// pgTypeName is a type's name as one writes it.
func pgTypeName(t *cdc.Type) string {
	switch {
	case t == nil:
		return "unknown"
	case t.Kind == cdc.TypeArray:
		return pgTypeName(t.Elem) + "[]"
	}
	return t.Name
}
