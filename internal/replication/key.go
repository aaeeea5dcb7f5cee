package replication

import (
	"context"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/cdcsync/cdcsync/internal/cdc"
)

// attribute is a column that a table has or had, as the catalogue has it now.
type attribute struct {
	Name    string
	Dropped bool
	Key     int // place in the primary key, from 1; 0 when it is not in it
}

// primaryKey finds the key's columns in rel, which may be older than the catalogue: columns may have been added, dropped and
// renamed since, and a name may belong to another column now.
func primaryKey(ctx context.Context, q querier, rel *cdc.Relation) ([]int, error) {
	rows, err := q.Query(ctx, `
		select a.attname::text, a.attisdropped, coalesce((
			select k.n::int from pg_index x cross join unnest(x.indkey) with ordinality as k(attnum, n)
			where x.indrelid = a.attrelid and x.indisprimary and k.n <= x.indnkeyatts and k.attnum = a.attnum), 0)
		from pg_attribute a where a.attrelid = $1 and a.attnum > 0 order by a.attnum`, rel.OID)
	if err != nil {
		return nil, err
	}
	table, err := pgx.CollectRows(rows, pgx.RowToStructByPos[attribute])
	if err != nil {
		return nil, err
	}
	return keyOf(rel, table), nil
}

func keyOf(rel *cdc.Relation, table []attribute) []int {
	var key []attribute
	for _, a := range table {
		if a.Key > 0 {
			key = append(key, a)
		}
	}
	slices.SortStableFunc(key, func(x, y attribute) int { return x.Key - y.Key })
	at := columnsOf(rel, table)
	indexes := make([]int, len(key))
	for i, a := range key {
		var ok bool
		if indexes[i], ok = at[a.Name]; !ok {
			return nil
		}
		if rel.Identity == 'd' && !rel.Columns[indexes[i]].Identity {
			return nil // another key has become the primary one; the stream marks that of its time
		}
	}
	return indexes
}

// columnsOf maps the names of a table's key now to rel's columns.
func columnsOf(rel *cdc.Relation, table []attribute) map[string]int {
	if at, ok := sameColumns(rel, table); ok {
		return at
	}
	if rel.Identity == 'd' { // the stream itself marks the key
		return markedColumns(rel, table)
	}
	return alignedColumns(rel, table)
}

// sameColumns maps by name where rel's columns are, in their order, among those of the table.
func sameColumns(rel *cdc.Relation, table []attribute) (map[string]int, bool) {
	at := make(map[string]int, len(rel.Columns))
	next := 0
	for _, a := range table {
		if !a.Dropped && next < len(rel.Columns) && rel.Columns[next].Name == a.Name {
			at[a.Name] = next
			next++
		}
	}
	return at, next == len(rel.Columns)
}

// markedColumns maps the key to the columns that the stream marks as the replica identity, both in the table's order. It is
// empty when the key has changed.
func markedColumns(rel *cdc.Relation, table []attribute) map[string]int {
	var marked []int
	for i := range rel.Columns {
		if rel.Columns[i].Identity {
			marked = append(marked, i)
		}
	}
	at := make(map[string]int, len(marked))
	for _, a := range table {
		if a.Key == 0 {
			continue
		}
		if len(at) == len(marked) {
			return nil
		}
		at[a.Name] = marked[len(at)]
	}
	if len(at) < len(marked) {
		return nil
	}
	return at
}

// alignedColumns maps by place, since a column keeps its place in the table for life. Columns whose names are in the same order
// on both sides say which places belong together; between them there must be as many columns here as there.
func alignedColumns(rel *cdc.Relation, table []attribute) map[string]int {
	at := make(map[string]int)
	var columns []int
	var attributes []attribute
	between := func() {
		matched := attributes
		if len(matched) != len(columns) {
			matched = slices.DeleteFunc(slices.Clone(attributes), func(a attribute) bool { return a.Dropped })
		}
		if len(matched) == len(columns) {
			for i, a := range matched {
				at[a.Name] = columns[i]
			}
		}
		columns, attributes = nil, nil
	}
	anchors := straight(rel, table)
	next := 0
	for _, a := range table {
		i, ok := anchors[a.Name]
		if a.Dropped || !ok {
			attributes = append(attributes, a)
			continue
		}
		for ; next < i; next++ {
			columns = append(columns, next)
		}
		between()
		at[a.Name], next = i, i+1
	}
	for ; next < len(rel.Columns); next++ {
		columns = append(columns, next)
	}
	between()
	return at
}

// straight gives the columns of names that are on both sides, without those that another such name has overtaken.
func straight(rel *cdc.Relation, table []attribute) map[string]int {
	var names []string
	var at []int
	for _, a := range table {
		if i := rel.Column(a.Name); i >= 0 && !a.Dropped {
			names, at = append(names, a.Name), append(at, i)
		}
	}
	anchors := make(map[string]int)
	for n, name := range names {
		crossed := false
		for m := range at {
			crossed = crossed || (m < n) != (at[m] < at[n]) && m != n
		}
		if !crossed {
			anchors[name] = at[n]
		}
	}
	return anchors
}
