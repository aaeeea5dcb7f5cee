package mapping

import (
	"bytes"
	"errors"
	"strings"

	"github.com/expr-lang/expr/file"
	"github.com/expr-lang/expr/vm"

	"github.com/cdcsync/cdcsync/internal/cdc"
	"github.com/cdcsync/cdcsync/internal/shape"
)

// row is what a part is rendered from.
type row struct {
	change *cdc.Change
	op     cdc.Op      // of the part
	now    []cdc.Value // the tuple that is rendered
	fill   []cdc.Value // the full old tuple, which has the values that now leaves out as unchanged
	env    *Env
}

// value is a column of the row that is rendered.
func (r *row) value(i int) *cdc.Value {
	v := &r.now[i]
	if v.Kind == cdc.Unchanged && r.fill != nil {
		return &r.fill[i]
	}
	return v
}

// old is a column of the row before the change; known is false when it was not received.
func (r *row) old(i int) (v *cdc.Value, known bool) {
	ch := r.change
	switch {
	case ch.Op == cdc.OpInsert || ch.Op == cdc.OpRead:
		return &cdc.Value{Kind: cdc.Null}, true
	case ch.Old != nil:
		v = &ch.Old[i]
	case ch.Relation.Columns[i].Identity && ch.New != nil: // no old tuple: the replica identity is what it was
		v = &ch.New[i]
	default:
		return nil, false
	}
	return v, v.Kind != cdc.Absent && v.Kind != cdc.Unchanged
}

// machine runs expressions, one at a time.
type machine struct {
	relation *cdc.Relation
	vm       vm.VM
	env      map[string]any
	decoders []*codec // of the columns, made when first needed
	loaded   []uint64 // the row for which each slot of env holds the value
	row      uint64   // counts rows
}

func newMachine(rel *cdc.Relation, slots int) machine {
	return machine{
		relation: rel,
		env:      make(map[string]any, slots),
		decoders: make([]*codec, len(rel.Columns)),
		loaded:   make([]uint64, slots),
	}
}

// next begins another row.
func (m *machine) next() { m.row++ }

// run computes an expression. Its error says why it cannot be, without a value.
func (m *machine) run(e *expression, r *row) (any, *RejectError) {
	for i := range e.refs {
		rf := &e.refs[i]
		if m.loaded[rf.slot] == m.row {
			continue
		}
		v, reject := m.load(rf, r)
		if reject != nil {
			return nil, reject
		}
		m.env[rf.name] = v
		m.loaded[rf.slot] = m.row
	}
	e.meter.reset()
	v, err := m.vm.Run(e.program, m.env)
	if err != nil {
		return nil, &RejectError{Reason: m.explain(e, err)}
	}
	return v, nil
}

func (m *machine) load(rf *ref, r *row) (any, *RejectError) {
	switch rf.kind {
	case refColumn:
		return m.decode(rf.column, r.value(rf.column))
	case refOld:
		v, known := r.old(rf.column)
		if !known {
			return nil, notReceived(m.relation, rf.column)
		}
		return m.decode(rf.column, v)
	case refOp:
		return r.op.String(), nil
	case refCommitTime:
		return r.change.CommitTime.UTC(), nil
	case refChanged:
		return m.changed(rf.columns, r)
	default:
		return m.lookup(rf, r)
	}
}

func (m *machine) decode(i int, v *cdc.Value) (any, *RejectError) {
	switch v.Kind {
	case cdc.Null:
		return nil, nil
	case cdc.Text:
		if m.decoders[i] == nil {
			m.decoders[i] = newCodec(m.relation.Columns[i].Type, shape.TimesISO)
		}
		decoded, err := m.decoders[i].decode(v.Data)
		if err != nil {
			return nil, &RejectError{Column: m.relation.Columns[i].Name, Reason: err.Error()}
		}
		return decoded, nil
	default:
		return nil, missing(m.relation, i, v.Kind)
	}
}

// missing is a value that was not received, which is never sent as null.
func missing(rel *cdc.Relation, i int, kind cdc.Kind) *RejectError {
	if kind == cdc.Invalid {
		return &RejectError{Column: rel.Columns[i].Name, Reason: notInEncoding(rel.Encoding)}
	}
	if kind == cdc.Unchanged {
		return &RejectError{Column: rel.Columns[i].Name, Reason: "is an unchanged TOASTed value that was not read back"}
	}
	return notReceived(rel, i)
}

// notInEncoding is why a value cannot be converted to UTF-8; encoding may be empty where it is not known.
func notInEncoding(encoding string) string {
	switch encoding {
	case "":
		return "holds bytes that have no form in UTF-8"
	case "SQL_ASCII":
		return "holds bytes that are not UTF-8, in a database whose encoding is SQL_ASCII"
	}
	return "holds bytes that are no character in the database's encoding, " + encoding
}

func notReceived(rel *cdc.Relation, i int) *RejectError {
	return &RejectError{
		Column: rel.Columns[i].Name, Reason: "has no value in the old row that Postgres sent",
		Solution: replicaIdentityFull(rel),
	}
}

func replicaIdentityFull(rel *cdc.Relation) string {
	if rel.Identity == 'f' { // then the row was one of a partition
		return "a partition of " + rel.String() + " is not REPLICA IDENTITY FULL as it is: cdcsync check names it, with the statement"
	}
	return "run: ALTER TABLE " + quoteIdent(rel.Schema) + "." + quoteIdent(rel.Name) + " REPLICA IDENTITY FULL;"
}

// quoteIdent quotes a name where SQL needs it.
func quoteIdent(name string) string {
	for i, b := range []byte(name) {
		if b != '_' && (b < 'a' || b > 'z') && (i == 0 || !isDigit(b)) {
			return `"` + strings.ReplaceAll(name, `"`, `""`) + `"`
		}
	}
	return name
}

// changed compares tuples as text. An insert, a delete and a row that was read have changed throughout.
func (m *machine) changed(columns []int, r *row) (any, *RejectError) {
	// With REPLICA IDENTITY FULL an update has its old row, unless it stands for a refresh, which does not know what has changed.
	refresh := r.change.Old == nil && r.change.Relation.Identity == 'f'
	if r.change.Op != cdc.OpUpdate || refresh {
		return true, nil
	}
	for _, i := range columns {
		now := &r.change.New[i]
		if now.Kind == cdc.Unchanged {
			continue
		}
		old, known := r.old(i)
		if !known {
			return nil, notReceived(m.relation, i)
		}
		if old.Kind != now.Kind || !bytes.Equal(old.Data, now.Data) {
			return true, nil
		}
	}
	return false, nil
}

func (m *machine) lookup(rf *ref, r *row) (any, *RejectError) {
	rows, reject := r.found(rf.lookup)
	if reject != nil {
		return nil, reject
	}
	w := writer{times: shape.TimesISO}
	if err := w.rows(rows, newCodecs(rows.Columns, shape.TimesISO), rf.many, nil); err != nil {
		return nil, &RejectError{Reason: err.Error()}
	}
	v, err := decodeJSON(w.dst)
	if err != nil {
		return nil, &RejectError{Reason: "lookup: " + err.Error()}
	}
	return v, nil
}

func (r *row) found(lookup int) (*Rows, *RejectError) {
	if r.env == nil || lookup >= len(r.env.Lookups) {
		return nil, &RejectError{Reason: "the lookup's result is missing"}
	}
	return &r.env.Lookups[lookup], nil
}

// explain says why an expression failed. Only our own messages are passed on: expr-lang's may quote values.
func (m *machine) explain(e *expression, err error) string {
	cause := err
	if fe, ok := errors.AsType[*file.Error](err); ok && fe.Prev != nil {
		cause = fe.Prev
	}
	own, isOwn := errors.AsType[failure](cause)
	if isOwn && own != errNullOperand {
		return "cannot be computed: " + cause.Error()
	}
	if strings.Contains(err.Error(), "memory budget exceeded") { // the language's own lists, of 1,000,000 elements by default
		return "cannot be computed: " + errManyElements.Error()
	}
	var null []string
	var substitute string
	for i := range e.refs {
		r := &e.refs[i]
		if m.env[r.name] != nil {
			continue
		}
		if null = append(null, r.said); len(null) == 1 {
			substitute = r.said + " ?? " + r.zero + ", or another value to use instead of null"
		}
	}
	switch {
	case len(null) == 1:
		return "cannot be computed, since " + null[0] + " is null; write " + substitute
	case len(null) > 1:
		return "cannot be computed, since " + strings.Join(null, " and ") + " are null; write " + substitute
	case isOwn:
		return "cannot be computed: an operand is null; write a ?? b to use b instead of a null a"
	case strings.HasPrefix(err.Error(), "index out of range"):
		return "cannot be computed: an index is out of range"
	}
	return "cannot be computed: a value within it has another type than is wanted, or is null"
}
