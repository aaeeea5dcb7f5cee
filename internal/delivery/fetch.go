package delivery

import (
	"context"
	"fmt"
	"slices"

	"github.com/cdcsync/cdcsync/internal/cdc"
	"github.com/cdcsync/cdcsync/internal/mapping"
)

// Source answers questions about rows as they now are. An error is shown to the operator; the question is asked again.
type Source interface {
	// Rows reads columns of rows, in one snapshot that sees every transaction in xids. keys holds, for each row, the text of the
	// primary key's columns (without one: of the replica identity's), in that order. A row that is not there is nil.
	Rows(ctx context.Context, rel *cdc.Relation, columns []int, keys [][]string, xids []uint32) ([][]cdc.Value, error)
	// Types are the types that columns of rows read back have now: nil for a column that is gone, and none when the table is.
	Types(ctx context.Context, rel *cdc.Relation, columns []int) ([]*cdc.Type, error)
	// Lookup runs a lookup's SQL with $1 = keys in such a snapshot. A key without rows is not in the result.
	Lookup(ctx context.Context, sql string, keys []string, xids []uint32) (map[string]mapping.Rows, error)
	// Relation is a table as the catalogue has it now; nil when there is none.
	Relation(ctx context.Context, schema, name string) (*cdc.Relation, error)
}

// fetched is what was asked of the source for one unit.
type fetched struct {
	rows    map[cdc.Position]readBack
	lookups map[*renderer][]map[string]mapping.Rows // in the order of the template's lookups
}

// readBack is a row's columns that the server did not send; row is nil when the row is gone.
type readBack struct {
	columns []int
	row     []cdc.Value
	table   *table // of the relation with the types that the columns have now; nil when they are as they were
}

// question collects the rows of one relation that are to be read back.
type question struct {
	relation  *cdc.Relation
	columns   []int
	keys      [][]string
	positions []cdc.Position
}

// suffixRefresh ends the IDs of root records that are sent again.
const suffixRefresh = "/refresh"

// root is a root record to be sent again, since a child of it has changed.
type root struct {
	refresh *mapping.Refresh
	by      *renderer // the mapping that asks for it
	key     string
	change  cdc.Change // position, XID and time are the child's; the row is the root's
	suffix  string
	base    uint32 // of its items' numbers
}

// incomplete says whether a mapping reads a value that the server did not send, or of which it is not known how to read it.
func (d *dispatcher) incomplete(c *cdc.Change, t *table) bool {
	unsent := c.Op == cdc.OpUpdate && slices.ContainsFunc(c.New, func(v cdc.Value) bool { return v.Kind == cdc.Unchanged })
	if !unsent && !t.unknown {
		return false
	}
	d.missing = missing(d.missing[:0], c, t)
	return len(d.missing) > 0
}

// missing appends the columns of a change that have to be read back, for all mappings.
func missing(dst []int, c *cdc.Change, t *table) []int {
	for i := range t.plans {
		dst = t.plans[i].plan.Missing(dst, c)
	}
	slices.Sort(dst)
	return slices.Compact(dst)
}

// complete puts values that were read back into the change, and returns the table that it is of then.
func (d *dispatcher) complete(ctx context.Context, c *cdc.Change, t *table) (*table, error) {
	if err := d.fetch(ctx); err != nil {
		return nil, err
	}
	return d.unit.fetched.fill(c, t), nil
}

func (f *fetched) fill(c *cdc.Change, t *table) *table {
	back := f.rows[c.Position]
	if back.row == nil {
		return t
	}
	if back.table != nil {
		forgetOld(c, t.relation, back.table.relation)
		t, c.Relation = back.table, back.table.relation
	}
	for i, column := range back.columns {
		if column < len(c.New) {
			c.New[column] = back.row[i]
		}
	}
	return t
}

// forgetOld takes the values that now have other types out of the old row, whose text is in the form of the types before. What the
// new row would take from the old one is put there first.
func forgetOld(c *cdc.Change, before, now *cdc.Relation) {
	if c.Old == nil {
		return
	}
	for i := range c.New {
		if !c.OldIsKey && c.New[i].Kind == cdc.Unchanged {
			c.New[i] = c.Old[i]
		}
	}
	for i := range c.Old {
		if !before.Columns[i].Type.Same(now.Columns[i].Type) {
			c.Old[i], c.OldIsKey = cdc.Value{}, true
		}
	}
}

// gone says whether a mapping lacks values of a row that was not there any more: a later change says what became of it.
func (d *dispatcher) gone(c *cdc.Change, p *compiled) bool {
	if d.unit.fetched == nil {
		return false
	}
	back, asked := d.unit.fetched.rows[c.Position]
	return asked && back.row == nil && len(p.plan.Missing(d.missing[:0], c)) > 0
}

// lookUp sets the environment that a part is rendered in.
func (d *dispatcher) lookUp(ctx context.Context, p *compiled, part *mapping.Part) error {
	d.env.Lookups = d.env.Lookups[:0]
	if len(part.Lookups) == 0 {
		return nil
	}
	if err := d.fetch(ctx); err != nil {
		return err
	}
	for i, results := range d.unit.fetched.lookups[p.renderer] {
		d.env.Lookups = append(d.env.Lookups, results[string(part.Lookups[i])])
	}
	return nil
}

// fetch asks the source all that the unit's changes need: one query per table to read back, one per lookup.
func (d *dispatcher) fetch(ctx context.Context) error {
	if d.unit.fetched != nil {
		return nil
	}
	if err := d.handOver(ctx); err != nil { // lanes go on meanwhile
		return err
	}
	f := &fetched{rows: make(map[cdc.Position]readBack), lookups: make(map[*renderer][]map[string]mapping.Rows)}
	questions, xids, err := d.questions()
	if err != nil || d.source == nil {
		d.unit.fetched = f
		return err
	}
	for _, q := range questions {
		rows, t, err := d.present(ctx, q, xids)
		if err != nil {
			return err
		}
		for i, pos := range q.positions {
			f.rows[pos] = readBack{columns: q.columns, row: rows[i], table: t}
		}
	}
	if err := d.lookUpAll(ctx, f, xids); err != nil {
		return err
	}
	d.unit.fetched = f
	return nil
}

// present reads rows back with the types that they have: the server writes the text of a composite type by the definition of
// the moment, whatever the snapshot, so that the types are asked for before and behind. table is nil when they are as they were.
func (d *dispatcher) present(ctx context.Context, q *question, xids []uint32) (rows [][]cdc.Value, t *table, err error) {
	if !slices.ContainsFunc(q.columns, func(i int) bool { return alterable(q.relation.Columns[i].Type) }) {
		rows, err = d.rows(ctx, q.relation, q.columns, q.keys, xids)
		return rows, nil, err
	}
	before, err := d.types(ctx, q.relation, q.columns)
	for err == nil {
		if rows, err = d.rows(ctx, q.relation, q.columns, q.keys, xids); err != nil {
			break
		}
		now, typesErr := d.types(ctx, q.relation, q.columns)
		if typesErr != nil {
			return nil, nil, typesErr
		}
		if slices.EqualFunc(before, now, (*cdc.Type).Same) {
			return rows, d.retyped(q, now), nil
		}
		before = now
	}
	return rows, t, err
}

// alterable reports whether a type can be another without the table being altered.
func alterable(t *cdc.Type) bool { return t.Has(cdc.TypeComposite) || t.Has(cdc.TypeUnknown) }

// retyped compiles the mappings for the relation with the types that were read.
func (d *dispatcher) retyped(q *question, types []*cdc.Type) *table {
	now := *q.relation
	now.Columns = slices.Clone(now.Columns)
	same := true
	for n, t := range types {
		i := q.columns[n]
		same = same && t.Same(now.Columns[i].Type)
		if t != nil {
			now.Columns[i].Type = t
		}
	}
	if same || len(types) == 0 {
		return nil
	}
	encoded := string(cdc.AppendRelation(nil, &now))
	if known := d.presents[encoded]; known != nil {
		return known
	}
	const most = 100 // definitions of a sink's tables
	if len(d.presents) >= most {
		clear(d.presents)
	}
	t := d.compile(&now)
	d.presents[encoded] = t
	return t
}

func (d *dispatcher) types(ctx context.Context, rel *cdc.Relation, columns []int) (types []*cdc.Type, err error) {
	err = d.ask(ctx, "types of "+rel.String(), func(ctx context.Context) (err error) {
		types, err = d.source.Types(ctx, rel, columns)
		return err
	})
	return types, err
}

// questions lists the rows to read back, and the transactions whose effects must be seen.
func (d *dispatcher) questions() (all []*question, xids []uint32, err error) {
	err = d.unit.scan(func(c *cdc.Change, t *table) error {
		if c.XID != 0 && !slices.Contains(xids, c.XID) {
			xids = append(xids, c.XID)
		}
		columns := missing(nil, c, t)
		key := rowKey(c)
		if len(columns) == 0 || len(key) == 0 {
			return nil
		}
		i := slices.IndexFunc(all, func(q *question) bool { return q.relation == t.relation })
		if i < 0 {
			i = len(all)
			all = append(all, &question{relation: t.relation})
		}
		q := all[i]
		q.columns = append(q.columns, columns...)
		q.keys, q.positions = append(q.keys, key), append(q.positions, c.Position)
		return nil
	})
	for _, q := range all {
		slices.Sort(q.columns)
		q.columns = slices.Compact(q.columns)
	}
	return all, xids, err
}

// rowKey is the text of the columns by which a row is read back; nil when there are none or they were not sent.
func rowKey(c *cdc.Change) (key []string) {
	for _, i := range keyColumns(c.Relation) {
		if i >= len(c.New) || c.New[i].Kind != cdc.Text || c.Relation.Columns[i].Type.Has(cdc.TypeUnknown) {
			return nil
		}
		key = append(key, string(c.New[i].Data))
	}
	return key
}

// keyColumns are those of the primary key, else of the replica identity's index.
func keyColumns(rel *cdc.Relation) []int {
	if len(rel.PrimaryKey) > 0 || rel.Identity == 'f' {
		return rel.PrimaryKey
	}
	var key []int
	for i := range rel.Columns {
		if rel.Columns[i].Identity {
			key = append(key, i)
		}
	}
	return key
}

// lookUpAll runs the lookups of all mappings with the keys of the unit's changes.
func (d *dispatcher) lookUpAll(ctx context.Context, f *fetched, xids []uint32) error {
	keys := make(map[*renderer][]map[string]bool)
	err := d.unit.scan(func(c *cdc.Change, t *table) error {
		t = f.fill(c, t)
		for i := range t.plans {
			p := &t.plans[i]
			if n := len(p.template.Source.Lookups); n > 0 {
				d.collectKeys(keys, n, c, p)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, r := range d.renderers { // in a fixed order
		for i, set := range keys[r] {
			found, err := d.lookup(ctx, r, i, set, xids)
			if err != nil {
				return err
			}
			f.lookups[r] = append(f.lookups[r], found)
		}
	}
	return nil
}

func (d *dispatcher) collectKeys(keys map[*renderer][]map[string]bool, lookups int, c *cdc.Change, p *compiled) {
	if err := p.plan.Route(&d.ahead, c); err != nil {
		return // the dispatch makes a dead letter of it
	}
	if keys[p.renderer] == nil {
		keys[p.renderer] = make([]map[string]bool, lookups)
	}
	for _, part := range d.ahead.Parts {
		for i, key := range part.Lookups {
			if key == nil {
				continue
			}
			if keys[p.renderer][i] == nil {
				keys[p.renderer][i] = make(map[string]bool)
			}
			keys[p.renderer][i][string(key)] = true
		}
	}
}

func (d *dispatcher) lookup(ctx context.Context, r *renderer, i int, set map[string]bool, xids []uint32) (found map[string]mapping.Rows, err error) {
	if len(set) == 0 {
		return nil, nil
	}
	keys := make([]string, 0, len(set))
	for key := range set {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	l := &r.template.Source.Lookups[i]
	what := fmt.Sprintf("lookup %s of mapping %s", l.Name, r.name)
	err = d.ask(ctx, what, func(ctx context.Context) (err error) {
		found, err = d.source.Lookup(ctx, l.SQL, keys, xids)
		return err
	})
	return found, err
}

// rows reads rows back.
func (d *dispatcher) rows(ctx context.Context, rel *cdc.Relation, columns []int, keys [][]string, xids []uint32) (rows [][]cdc.Value, err error) {
	err = d.ask(ctx, "read rows of "+rel.String()+" back", func(ctx context.Context) (err error) {
		rows, err = d.source.Rows(ctx, rel, columns, keys, xids)
		if err == nil && len(rows) != len(keys) {
			err = fmt.Errorf("%d rows for %d keys", len(rows), len(keys))
		}
		return err
	})
	return rows, err
}

// ask asks the source until it answers; meanwhile the sink is blocked. Who drains breaks a question off that takes long.
func (d *dispatcher) ask(ctx context.Context, what string, question func(context.Context) error) error {
	return d.worker.insist(ctx, trouble{name: "source", what: what, blocks: true}, func(ctx context.Context) error {
		ctx, stop := context.WithCancel(ctx)
		defer stop()
		defer context.AfterFunc(d.worker.leaving, stop)() //nolint:contextcheck // leaving is an event, nothing is done in it
		return question(ctx)
	})
}

// scanBlock goes over the changes of the unit's block with a decoder of its own, so that the dispatch can be in the midst of it.
func (d *dispatcher) scanBlock(yield func(*cdc.Change, *table) error) error {
	if _, err := d.scout.Reset(d.unit.block.data); err != nil {
		return &fatalError{err}
	}
	var c cdc.Change
	for {
		found, err := d.scout.Next(&c)
		if err != nil {
			return &fatalError{err}
		}
		if !found {
			return nil
		}
		if !c.For(d.worker.cfg.Sink) {
			continue
		}
		if err := yield(&c, d.scouts.of(d, c.Relation)); err != nil {
			return err
		}
	}
}

// touch notes that a change has touched a root; of several changes in a block the last gives the position.
func (d *dispatcher) touch(p *compiled, c *cdc.Change, part *mapping.Part) {
	if part.Refresh == nil {
		return
	}
	at := root{
		refresh: p.template.Source.Refresh, by: p.renderer, key: string(part.Refresh), suffix: suffixRefresh,
		change: cdc.Change{Op: cdc.OpUpdate, Position: c.Position, XID: c.XID, CommitTime: c.CommitTime},
		base:   d.unit.base + p.roots,
	}
	if part.Old { // a child that moved touches two roots
		at.base += uint32(len(d.renderers))
		at.suffix += "/old"
	}
	same := func(o root) bool {
		return o.key == at.key && o.refresh.Table == at.refresh.Table && o.refresh.Key == at.refresh.Key
	}
	d.unit.touched = append(slices.DeleteFunc(d.unit.touched, same), at)
}

// refresh sends the roots again that the block's changes have touched, each once, as they now are.
func (d *dispatcher) refresh(ctx context.Context, b *block) error {
	touched := d.unit.touched
	for len(touched) > 0 {
		first := touched[0].refresh
		var group, rest []root
		for _, r := range touched {
			if r.refresh.Table == first.Table && r.refresh.Key == first.Key {
				group = append(group, r)
			} else {
				rest = append(rest, r)
			}
		}
		if err := d.refreshTable(ctx, b, first, group); err != nil {
			return err
		}
		touched = rest
	}
	return nil
}

func (d *dispatcher) refreshTable(ctx context.Context, b *block, refresh *mapping.Refresh, group []root) error {
	if err := d.handOver(ctx); err != nil {
		return err
	}
	t, there, err := d.presentRoots(ctx, refresh, group)
	if err != nil {
		return err
	}
	if t.absent != "" {
		for i := range group {
			d.holdFor(&group[i].change, unfit(group[i].by, refresh, t.absent))
		}
		return nil
	}
	group = there
	d.unit = unit{block: b, keep: true}
	d.unit.scan = func(yield func(*cdc.Change, *table) error) error {
		for i := range group {
			if err := yield(&group[i].change, t); err != nil {
				return err
			}
		}
		return nil
	}
	for i := range group {
		d.unit.suffix, d.unit.base = group[i].suffix, group[i].base
		if err := d.one(ctx, &group[i].change, t); err != nil {
			return err
		}
	}
	return nil
}

// presentRoots reads roots with the types that they have.
func (d *dispatcher) presentRoots(ctx context.Context, refresh *mapping.Refresh, group []root) (*table, []root, error) {
	for {
		t, err := d.rootTable(ctx, refresh)
		if err != nil || t.absent != "" {
			return t, nil, err
		}
		there, err := d.readRoots(ctx, t, refresh, slices.Clone(group))
		if err != nil || !slices.ContainsFunc(t.relation.Columns, func(c cdc.Column) bool { return alterable(c.Type) }) {
			return t, there, err
		}
		if again, err := d.rootTable(ctx, refresh); err != nil || again == t {
			return t, there, err
		}
	}
}

// rootTable compiles the mappings of a root table that have items, for the table as the catalogue has it now.
func (d *dispatcher) rootTable(ctx context.Context, refresh *mapping.Refresh) (*table, error) {
	var rel *cdc.Relation
	err := d.ask(ctx, "refresh "+refresh.Table.String(), func(ctx context.Context) (err error) {
		rel, err = d.source.Relation(ctx, refresh.Table.Schema, refresh.Table.Name)
		return err
	})
	switch {
	case err != nil:
		return nil, err
	case rel == nil:
		return &table{absent: "there is no such table"}, nil
	case rel.Column(refresh.Key) < 0:
		return &table{absent: "it has no column " + refresh.Key}, nil
	}
	if known := d.roots[refresh.Table]; known != nil && string(cdc.AppendRelation(nil, known.relation)) == string(cdc.AppendRelation(nil, rel)) {
		return known, nil
	}
	t := d.compile(rel)
	t.plans = slices.DeleteFunc(t.plans, func(p compiled) bool { return p.template.Source.Refresh != nil })
	t.misfits = slices.DeleteFunc(t.misfits, func(m misfit) bool { return m.template.Source.Refresh != nil })
	d.roots[refresh.Table] = t
	return t, nil
}

// readRoots fills in the roots' rows, and leaves out those that are gone.
func (d *dispatcher) readRoots(ctx context.Context, t *table, refresh *mapping.Refresh, group []root) ([]root, error) {
	columns := slices.Clone(keyColumns(t.relation))
	for i := range t.plans {
		columns = append(columns, t.plans[i].plan.Columns()...)
	}
	slices.Sort(columns)
	columns = slices.Compact(columns)

	byKey := *t.relation // the refresh's key takes the place of the primary key
	byKey.PrimaryKey = []int{t.relation.Column(refresh.Key)}
	keys := make([][]string, len(group))
	var xids []uint32
	for i := range group {
		keys[i] = []string{group[i].key}
		if xid := group[i].change.XID; xid != 0 && !slices.Contains(xids, xid) {
			xids = append(xids, xid)
		}
	}
	rows, err := d.rows(ctx, &byKey, columns, keys, xids)
	if err != nil {
		return nil, err
	}
	there := group[:0]
	for i := range group {
		if rows[i] == nil {
			for n := range t.plans { // a mapping that is held has nothing to tell of it either
				d.worker.count(t.plans[n].renderer, cdc.OpUpdate, outcomeGone, 1)
			}
			continue
		}
		g := group[i]
		g.change.Relation = t.relation
		g.change.New = make([]cdc.Value, len(t.relation.Columns))
		for n, column := range columns {
			g.change.New[column] = rows[i][n]
		}
		there = append(there, g)
	}
	return there, nil
}
