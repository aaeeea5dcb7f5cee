package replication

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/cdcsync/cdcsync/internal/cdc"
)

// keyColumn is how a query names, casts and compares a column of a key. Everything in it is qualified: the type may be one of an
// extension whose schema is not in search_path, and there its operators are not found by their names alone.
type keyColumn struct {
	name     string // quoted
	cast     string // its type, without a modifier: varchar(3) would cut the value that is compared
	operator keyOperators
}

// keyOperators are those of the type's default btree class, by which ORDER BY sorts, too. Each is written operator(schema.name).
type keyOperators struct{ equal, notLess, greater string }

// loadKey asks the catalogue for the columns of a key.
func loadKey(ctx context.Context, q querier, rel *cdc.Relation, key []int) ([]keyColumn, error) {
	oids := make([]uint32, len(key))
	for i, c := range key {
		oids[i] = rel.Columns[c].Type.OID
	}
	rows, err := q.Query(ctx, keyTypesSQL, oids)
	if err != nil {
		return nil, err
	}
	var columns []keyColumn
	var cast, schema, equal, notLess, greater string
	_, err = pgx.ForEachRow(rows, []any{&cast, &schema, &equal, &notLess, &greater}, func() error {
		columns = append(columns, newKeyColumn(rel.Columns[key[len(columns)]].Name, cast, schema, equal, notLess, greater))
		return nil
	})
	if err == nil && len(columns) < len(key) {
		err = fmt.Errorf("type of key column %s is gone", rel.Columns[key[len(columns)]].Name)
	}
	return columns, err
}

func newKeyColumn(name, cast, schema, equal, notLess, greater string) keyColumn {
	qualified := func(operator string) string { return "operator(" + schema + "." + operator + ")" }
	return keyColumn{
		name: quoteName(name), cast: cast,
		operator: keyOperators{equal: qualified(equal), notLess: qualified(notLess), greater: qualified(greater)},
	}
}

// keyTypesSQL gives, for types by OID, the qualified name and the operators. A type without a class of its own (an enum, an array, a
// range) is compared by an operator of pg_catalog, or by that of the type to which it is cast as it is.
const keyTypesSQL = `
	select quote_ident(tn.nspname) || '.' || quote_ident(t.typname), quote_ident(coalesce(o.schema, 'pg_catalog')),
		coalesce(o.equal, '='), coalesce(o.notless, '>='), coalesce(o.greater, '>')
	from unnest($1::oid[]) with ordinality as w(oid, n)
	join pg_type t on t.oid = w.oid join pg_namespace tn on tn.oid = t.typnamespace
	left join lateral (
		with recursive base(oid) as (
			select w.oid
			union select b.typbasetype from base join pg_type b on b.oid = base.oid where b.typtype = 'd'
		)
		select ns.nspname::text as schema, op.name[1] as equal, op.name[2] as notless, op.name[3] as greater
		from pg_opclass c join pg_am am on am.oid = c.opcmethod and am.amname = 'btree'
		cross join lateral (
			select array_agg(p.oprname::text order by m.amopstrategy) as name, min(p.oprnamespace::bigint)::oid as namespace
			from pg_amop m join pg_operator p on p.oid = m.amopopr
			where m.amopfamily = c.opcfamily and m.amoplefttype = c.opcintype and m.amoprighttype = c.opcintype and m.amopstrategy in (3, 4, 5)
		) op
		join pg_namespace ns on ns.oid = op.namespace
		where c.opcdefault and (c.opcintype in (select oid from base) or exists (
			select 1 from pg_cast x where x.castsource in (select oid from base) and x.casttarget = c.opcintype and x.castmethod = 'b'))
		order by c.opcintype in (select oid from base) desc
		limit 1
	) o on true
	order by w.n`

// keyBehind is the condition of rows whose key is greater than that in the parameters $1, $2 … It is one comparison of rows, which an
// index answers, where all operators are of one schema.
func keyBehind(key []keyColumn) string {
	names, values := make([]string, len(key)), make([]string, len(key))
	for i := range key {
		names[i], values[i] = key[i].name, fmt.Sprintf("$%d::text::%s", i+1, key[i].cast)
	}
	if !slices.ContainsFunc(key, func(k keyColumn) bool { return k.operator != key[0].operator }) {
		return fmt.Sprintf("(%s) %s (%s)", strings.Join(names, ", "), key[0].operator.greater, strings.Join(values, ", "))
	}
	last := len(key) - 1
	condition := names[last] + " " + key[last].operator.greater + " " + values[last]
	for i := last - 1; i >= 0; i-- {
		op := &key[i].operator
		condition = fmt.Sprintf("(%[1]s %[2]s %[3]s or %[1]s %[4]s %[3]s and %[5]s)", names[i], op.greater, values[i], op.equal, condition)
	}
	return fmt.Sprintf("%s %s %s and %s", names[0], key[0].operator.notLess, values[0], condition)
}

// keyAmong is the condition of rows of table whose key is among those in the parameters, one array of text for each column.
func keyAmong(table string, key []keyColumn) string {
	arrays, aliases, equal := keyArrayParams(key, table)
	return fmt.Sprintf("exists (select 1 from unnest(%s) as k(%s) where %s)", arrays, aliases, equal)
}

// keyArrayParams are the parameters of keys, what their columns are called, and how those of table are compared with them.
func keyArrayParams(key []keyColumn, table string) (arrays, aliases, equal string) {
	var params, names, conditions []string
	for i := range key {
		params = append(params, fmt.Sprintf("$%d::text[]", i+1))
		names = append(names, fmt.Sprintf("k%d", i+1))
		conditions = append(conditions, fmt.Sprintf("%s.%s %s k.k%d::%s", table, key[i].name, key[i].operator.equal, i+1, key[i].cast))
	}
	return strings.Join(params, ", "), strings.Join(names, ", "), strings.Join(conditions, " and ")
}
