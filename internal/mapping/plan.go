package mapping

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/cdcsync/cdcsync/internal/cdc"
	"github.com/cdcsync/cdcsync/internal/shape"
)

// Plan is a template joined with a relation: it routes changes and renders items. It keeps scratch space, so that one
// goroutine at a time may use it; compile one for each.
type Plan struct {
	template     *Template
	relation     *cdc.Relation
	parentScopes []string

	when     *expression // nil: every row
	set      bool        // when looks at nothing but the row, so that it defines a set of rows
	record   identity
	keyed    bool       // false: the table has nothing that tells rows apart
	orders   []identity // further keys whose items stay in order with this record's
	people   int        // the first of orders that say whom the item is about, or len(orders)
	identity []int
	watched  []int // columns whose change may make a row another record, or take it into or out of the filter
	lookups  []operand
	parents  []operand
	by       operand
	item     *program // nil for a refresh mapping
	withdraw *program
	told     bool // the item tells of the operation or the old row: it stands for its change only
	columns  []int
	fields   []Field

	flagsName     string   // of a sink that withdraws: the field with the map
	flags         *program // that map, each of its flags false
	flagsOperands []operand
	flagsLookUp   bool

	machine     machine
	opens       []int           // where the objects being rendered begin
	codecs      map[int]*lookup // by lookup
	keyBefore   []byte          // scratch
	keyAfter    []byte
	flagsBuffer []byte
	most        int // the length that the buffer may have while an item is rendered
}

// lookup is what is known of a lookup's result from its first rendering on.
type lookup struct {
	columns []cdc.Field
	codecs  []*codec
}

// Template is what the plan was compiled from.
func (p *Plan) Template() *Template { return p.template }

// Relation is what the plan was compiled for.
func (p *Plan) Relation() *cdc.Relation { return p.relation }

// Columns are the indexes of the columns that routing and rendering read, in order.
func (p *Plan) Columns() []int { return p.columns }

// Coalesce is the template's policy, except that rows that nothing tells apart are all sent, and so are items that depend on what
// happened and not only on the row: the state after an insert and an update would be told as that after the update alone.
func (p *Plan) Coalesce() Coalesce {
	if !p.keyed || p.told {
		return CoalesceNone
	}
	return p.template.Source.Coalesce
}

// ByPerson reports whether the item says whom it is about by identifiers that the row's own key does not hold: items of one key are then
// of one record only when their Orders are equal.
func (p *Plan) ByPerson() bool { return p.people < len(p.orders) }

// Missing appends the columns that this plan reads of the change's new row and that have to be read back and put into ch.New before Route; usually
// there are none. The server does not send a TOASTed value that is unchanged, for which a full old row makes up; and what the type
// of a value was is not always known (cdc.TypeUnknown).
func (p *Plan) Missing(dst []int, ch *cdc.Change) []int {
	if ch.New == nil {
		return dst
	}
	whole := ch.Old != nil && !ch.OldIsKey
	for _, i := range p.columns {
		if i >= len(ch.New) {
			continue
		}
		kind := ch.New[i].Kind
		unread := (kind == cdc.Text || kind == cdc.Unchanged) && p.relation.Columns[i].Type.Has(cdc.TypeUnknown)
		if unread || kind == cdc.Unchanged && !whole {
			dst = append(dst, i)
		}
	}
	return dst
}

var errNoRow = errors.New("the part has no row to render")

// row is the row that a part is rendered from.
func (p *Plan) row(ch *cdc.Change, op cdc.Op, old bool, env *Env) row {
	r := row{change: ch, op: op, now: ch.New, env: env}
	if old {
		r.now = ch.Old
	} else if !ch.OldIsKey {
		r.fill = ch.Old
	}
	return r
}

// Append renders one part of what Route gave for the change: the JSON value of the item is appended to dst. On error dst is
// returned as it was. The error is a *RejectError, or says that the change is not of the plan's relation.
func (p *Plan) Append(dst []byte, ch *cdc.Change, part *Part, env *Env) ([]byte, error) {
	r := p.row(ch, part.Op, part.Old, env)
	if err := p.matches(ch); err != nil || len(r.now) == 0 {
		return dst, cmp.Or(err, errNoRow)
	}
	prog := p.item
	if part.Op == cdc.OpDelete && p.withdraw != nil {
		prog = p.withdraw
	}
	p.machine.next()
	p.most = math.MaxInt
	if env != nil && env.Largest > 0 {
		p.most = len(dst) + env.Largest
	}
	out, reject := p.render(dst, prog, &r)
	p.most = math.MaxInt
	switch {
	case reject == nothing:
		return dst, ErrNothing
	case reject != nil:
		return dst, reject
	case len(part.keep) > 0:
		out = p.without(out, len(dst), part.keep)
	}
	return out, nil
}

func (p *Plan) render(dst []byte, prog *program, r *row) ([]byte, *RejectError) {
	p.opens = p.opens[:0]
	var reject, all *RejectError
	for i := range prog.steps {
		s := &prog.steps[i]
		if all != nil && s.kind == stepClose { // what was refused is missing in there
			continue
		}
		dst = append(dst, s.pre...)
		if s.kind == stepColumn && !s.decoded {
			dst, reject = p.appendColumn(dst, s, r)
		} else {
			dst, reject = p.appendStep(dst, s, r)
		}
		switch {
		case reject == nil:
		case reject == nothing && all == nil:
			return dst, reject
		case reject != nothing:
			if all = all.and(p.rejected(s.path, reject)); len(all.More) == maxFaults-1 {
				return dst, all
			}
		}
		if len(dst) > p.most {
			return dst, all.and(p.rejected(s.path, tooLarge(p.columnName(s))))
		}
	}
	return append(dst, prog.tail...), all
}

// maxFaults are told of one row.
const maxFaults = 20

// and adds a further reason.
func (e *RejectError) and(other *RejectError) *RejectError {
	if e == nil {
		return other
	}
	e.More = append(e.More, other)
	return e
}

func (p *Plan) rejected(path string, e *RejectError) *RejectError {
	e.Mapping = p.template.Source.Name
	e.Path = path + e.Path
	return e
}

// begin appends the name of a field that may be left out; skip says that it is.
func (s *step) begin(dst []byte, null bool) (_ []byte, skip bool) {
	if !s.omit {
		return dst, false
	}
	if null {
		return dst, true
	}
	if s.comma {
		dst = appendComma(dst)
	}
	return append(dst, s.name...), false
}

func appendComma(dst []byte) []byte {
	if dst[len(dst)-1] != '{' {
		dst = append(dst, ',')
	}
	return dst
}

// appendColumn is the way that nearly every value goes: from the tuple's text to JSON.
func (p *Plan) appendColumn(dst []byte, s *step, r *row) (_ []byte, reject *RejectError) {
	v := r.value(s.operand.column)
	if v.Kind != cdc.Text && v.Kind != cdc.Null {
		return dst, missing(p.relation, s.operand.column, v.Kind)
	}
	dst, skip := s.begin(dst, v.Kind == cdc.Null)
	if skip {
		return dst, nil
	}
	if v.Kind == cdc.Null {
		if !shape.Nullable(s.node) {
			return dst, p.columnReject(s, errNull)
		}
		return append(dst, "null"...), nil
	}
	if len(v.Data) > largeValue {
		if dst, reject = room(p, dst, s, v.Data); reject != nil {
			return dst, reject
		}
	}
	start := len(dst)
	var err error
	switch {
	case s.codec.form == formText:
		dst, err = appendString(dst, v.Data)
	case s.quote:
		dst, err = s.codec.append(append(dst, '"'), v.Data)
		dst = append(dst, '"')
	default:
		dst, err = s.codec.append(dst, v.Data)
	}
	if err == nil && s.check != nil {
		err = shape.CheckScalar(s.check, dst[start:])
	}
	if err != nil {
		return dst, p.columnReject(s, err)
	}
	return dst, nil
}

func (p *Plan) columnReject(s *step, err error) *RejectError {
	return &RejectError{Column: p.relation.Columns[s.operand.column].Name, Reason: err.Error()}
}

func (p *Plan) appendStep(dst []byte, s *step, r *row) ([]byte, *RejectError) {
	switch s.kind {
	case stepColumn, stepExpression:
		return p.appendComputed(dst, s, r)
	case stepLookup:
		return p.appendLookup(dst, s, r)
	case stepKey:
		return p.appendFieldName(dst, s, r)
	case stepComma:
		return appendComma(dst), nil
	case stepOpen:
		p.opens = append(p.opens, len(dst))
	case stepClose:
		last := len(p.opens) - 1
		start := p.opens[last]
		p.opens = p.opens[:last]
		if err := shape.CheckClosed(s.node, dst[start:]); err != nil {
			return dst, &RejectError{Reason: err.Error()}
		}
	}
	return dst, nil
}

// appendComputed renders an expression, or a column whose value has to be looked into.
func (p *Plan) appendComputed(dst []byte, s *step, r *row) ([]byte, *RejectError) {
	var v any
	var reject *RejectError
	if s.operand.expr != nil {
		v, reject = p.machine.run(s.operand.expr, r)
	} else {
		v, reject = p.decodeColumn(s, r)
	}
	if reject != nil {
		return dst, reject
	}
	if s.flags && tellsNothing(v) {
		return dst, nothing
	}
	if text, ok := v.(string); ok && len(text) > largeValue {
		if dst, reject = room(p, dst, s, text); reject != nil {
			return dst, reject
		}
	}
	dst, skip := s.begin(dst, v == nil)
	if skip {
		return dst, nil
	}
	w := writer{dst: dst, times: p.template.Spec.Item.Times, withdraw: s.false}
	if err := w.value(v, s.node); err != nil {
		return w.dst, p.writeReject(s, err)
	}
	return w.dst, nil
}

func tellsNothing(v any) bool {
	object, ok := v.(map[string]any)
	return v == nil || ok && len(object) == 0
}

// decodeColumn gives the value as the codec of the place renders it, so that times within it have the sink's form.
func (p *Plan) decodeColumn(s *step, r *row) (any, *RejectError) {
	v := r.value(s.operand.column)
	switch v.Kind {
	case cdc.Null:
		return nil, nil
	case cdc.Text:
		if len(v.Data) > p.most {
			return nil, tooLarge(p.columnName(s))
		}
		rendered, err := s.codec.append(nil, v.Data)
		if err != nil {
			return nil, p.columnReject(s, err)
		}
		decoded, err := decodeJSON(rendered)
		if err != nil {
			return nil, p.columnReject(s, err)
		}
		return decoded, nil
	default:
		return nil, missing(p.relation, s.operand.column, v.Kind)
	}
}

func (p *Plan) writeReject(s *step, err error) *RejectError {
	e := &RejectError{Reason: err.Error()}
	if at, ok := errors.AsType[*invalid](err); ok {
		e.Path, e.Reason = at.path, at.reason
	}
	if s.operand.expr == nil && s.kind == stepColumn && e.Path == "" {
		e.Column = p.relation.Columns[s.operand.column].Name
	}
	return e
}

func (p *Plan) appendLookup(dst []byte, s *step, r *row) ([]byte, *RejectError) {
	rows, reject := r.found(s.lookup)
	if reject != nil {
		return dst, reject
	}
	if s.flags && len(rows.Rows) == 0 {
		return dst, nothing
	}
	dst, skip := s.begin(dst, !s.many && len(rows.Rows) == 0)
	if skip {
		return dst, nil
	}
	w := writer{dst: dst, times: p.template.Spec.Item.Times, withdraw: s.false}
	if err := w.rows(rows, p.lookupCodecs(s.lookup, rows.Columns), s.many, s.node); err != nil {
		return w.dst, p.writeReject(s, err)
	}
	return w.dst, nil
}

// lookupCodecs keeps the codecs of a lookup's columns from one batch to the next.
func (p *Plan) lookupCodecs(i int, columns []cdc.Field) []*codec {
	if known := p.codecs[i]; known != nil && slices.Equal(known.columns, columns) {
		return known.codecs
	}
	if p.codecs == nil {
		p.codecs = map[int]*lookup{}
	}
	p.codecs[i] = &lookup{columns: columns, codecs: newCodecs(columns, p.template.Spec.Item.Times)}
	return p.codecs[i].codecs
}

func newCodecs(columns []cdc.Field, times shape.Times) []*codec {
	codecs := make([]*codec, len(columns))
	for i := range columns {
		codecs[i] = newCodec(columns[i].Type, times)
	}
	return codecs
}

// appendFieldName renders a computed field name with its colon.
func (p *Plan) appendFieldName(dst []byte, s *step, r *row) ([]byte, *RejectError) {
	text, null, reject := p.text(nil, &s.operand, r)
	switch {
	case reject != nil:
		return dst, reject
	case null:
		return dst, &RejectError{Reason: "the field's name is null"}
	}
	start := len(dst)
	dst, err := appendString(dst, text)
	if err == nil {
		err = shape.CheckScalar(s.check, dst[start:])
	}
	if err != nil {
		return dst, &RejectError{Reason: "the field's name " + err.Error()}
	}
	return append(dst, ':'), nil
}

// text appends an operand as text. null is true, and nothing appended, when it has no value.
func (p *Plan) text(dst []byte, o *operand, r *row) (_ []byte, null bool, reject *RejectError) {
	switch {
	case o.expr != nil || o.column >= 0 && (o.within != nil || o.tagged != nil):
		return p.computedText(dst, o, r)
	case o.column >= 0:
		v := r.value(o.column)
		if v.Kind == cdc.Null {
			return dst, true, nil
		}
		if v.Kind != cdc.Text {
			return dst, false, missing(p.relation, o.column, v.Kind)
		}
		start := len(dst)
		dst = append(dst, v.Data...)
		o.fold(dst[start:])
	default:
		return append(dst, o.constant...), o.constant == "", nil
	}
	return dst, false, nil
}

// computedText is text for what has to be computed, or looked for within a value.
func (p *Plan) computedText(dst []byte, o *operand, r *row) (_ []byte, null bool, reject *RejectError) {
	var v any
	if o.expr != nil {
		v, reject = p.machine.run(o.expr, r)
	} else {
		v, reject = p.machine.decode(o.column, r.value(o.column))
	}
	if reject != nil {
		return dst, false, reject
	}
	if v = o.inside(v); v == nil {
		return dst, true, nil
	}
	s, err := textOf(v)
	if err != nil {
		return dst, false, &RejectError{Reason: err.Error()}
	}
	start := len(dst)
	dst = append(dst, s...)
	o.fold(dst[start:])
	return dst, false, nil
}

// fold makes keys equal when the vendor's are.
func (o *operand) fold(text []byte) {
	if o.uuid || o.lower {
		for i, b := range text {
			if 'A' <= b && b <= 'Z' {
				text[i] = b + 'a' - 'A'
			}
		}
	}
}

// rows renders what a lookup found: a list of objects, or the first object, or null.
func (w *writer) rows(rows *Rows, codecs []*codec, many bool, n *shape.Node) error {
	if shape.Free(n) {
		n = nil
	}
	if !many {
		if len(rows.Rows) == 0 {
			return w.value(nil, n)
		}
		return w.record(rows, codecs, rows.Rows[0], n)
	}
	var elem *shape.Node
	if n != nil {
		if n.Kind != shape.Array {
			return w.invalid("is a list, and the vendor wants " + shape.KindNames[n.Kind])
		}
		if len(rows.Rows) < n.MinItems {
			return w.invalid(tooFew(n.MinItems))
		}
		elem = n.Elem
	}
	start, path := len(w.dst), len(w.path)
	w.dst = append(w.dst, '[')
	for i, values := range rows.Rows {
		if i > 0 {
			w.dst = append(w.dst, ',')
		}
		w.path = fmt.Appendf(w.path[:path], "[%d]", i)
		if err := w.record(rows, codecs, values, elem); err != nil {
			return err
		}
	}
	w.path = w.path[:path]
	w.dst = append(w.dst, ']')
	return w.closed(start, n)
}

// record renders one row of a lookup with its columns in the order of the query.
func (w *writer) record(rows *Rows, codecs []*codec, values []cdc.Value, n *shape.Node) error {
	if shape.Free(n) {
		n = nil
	}
	o, err := w.open(n)
	if err != nil {
		return err
	}
	for i := range rows.Columns {
		if values[i].Kind == cdc.Invalid {
			return w.invalid("has the lookup's column " + rows.Columns[i].Name + ", which " + notInEncoding(""))
		}
		null := values[i].Kind != cdc.Text
		node, skip, err := o.field(rows.Columns[i].Name, null)
		if err != nil {
			return err
		}
		if skip {
			continue
		}
		if err := w.column(codecs[i], rows.Columns[i].Type, &values[i], node); err != nil {
			return err
		}
	}
	return o.close()
}

func (w *writer) column(c *codec, t *cdc.Type, v *cdc.Value, n *shape.Node) error {
	if v.Kind != cdc.Text {
		return w.value(nil, n)
	}
	if shape.Free(n) {
		var err error
		if w.dst, err = c.append(w.dst, v.Data); err != nil {
			return w.invalid(err.Error())
		}
		return nil
	}
	decoded, err := newCodec(t, timesFor(w.times, n)).decode(v.Data)
	if err != nil {
		return w.invalid(err.Error())
	}
	return w.value(decoded, n)
}

// Field describes one value of the item, for people.
type Field struct {
	Path string `json:"path"` // item.data.email
	From string `json:"from"` // $email, =digits(cpf), or the constant as JSON
	Type string `json:"type"` // the column's type in Postgres; empty for the others
	Sent string `json:"sent"` // what is sent: a string, a number …
}

// Describe lists the values of the item in the order in which they are sent.
func (p *Plan) Describe() []Field { return p.fields }

func (c *planCompiler) describe(n *templateNode, from, pgType, sent string) {
	c.fields = append(c.fields, Field{Path: n.path, From: from, Type: pgType, Sent: sent})
}

// sentAs says what a column's values are in JSON.
func sentAs(c *codec, n *shape.Node) string {
	switch c.form {
	case formInteger, formNumeric, formFloat:
		if n != nil && n.Kind == shape.String {
			return "a string"
		}
		return "a number"
	case formBool:
		return "true or false"
	case formJSON, formUnknown:
		return "any"
	case formDate, formTimestamp, formTimestamptz:
		if c.times == shape.TimesUnixMilli {
			return "unix milliseconds"
		}
		return "an ISO 8601 string"
	case formArray, formMultirange:
		return "a list"
	case formComposite, formHstore, formRange:
		return "an object"
	case formBytea:
		return "a base64 string"
	default:
		return "a string"
	}
}
