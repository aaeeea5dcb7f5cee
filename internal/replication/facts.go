package replication

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/cdcsync/cdcsync/internal/cdc"
)

// sourceFacts is what decides which changes reach the stream, read in one snapshot.
type sourceFacts struct {
	at          cdc.LSN // the end of the WAL before the snapshot was taken: what changed the facts since lies behind it
	publication publicationState
	tables      []tableState // as Config.Tables
}

// publicationState tells one life of a publication from the next. The row's xmin changes with every ALTER PUBLICATION of options.
type publicationState struct {
	OID     uint32 `json:"oid,omitempty"` // 0 for none
	XMin    uint32 `json:"xmin,omitempty"`
	Owner   uint32 `json:"owner,omitempty"`
	ViaRoot bool   `json:"via_root,omitempty"`

	Insert   bool `json:"insert,omitempty"`
	Update   bool `json:"update,omitempty"`
	Delete   bool `json:"delete,omitempty"`
	Truncate bool `json:"truncate,omitempty"`
}

// tableState is what is remembered of a mapped table from one survey to the next. A name that no table has has OID 0.
type tableState struct {
	OID         uint32 `json:"oid,omitempty"`
	Kind        string `json:"kind,omitempty"`        // pg_class.relkind
	Persistence string `json:"persistence,omitempty"` // pg_class.relpersistence
	// Sent: changes come under this name. Entry is the row of the publication that names the table or its schema; 0 for neither.
	Sent    bool     `json:"sent,omitempty"`
	Entry   uint32   `json:"entry,omitempty"`
	Filter  string   `json:"filter,omitempty"`
	Columns []string `json:"columns,omitempty"` // the publication's list; nil for all
	File    uint32   `json:"file,omitempty"`
	Members []member `json:"members,omitempty"` // partitions at every level, by OID

	root string // schema.table of the mapped table under whose name its changes come
}

// member is a partition.
type member struct {
	OID         uint32 `json:"oid"`
	Name        string `json:"name"`
	Kind        string `json:"kind"`
	Persistence string `json:"persistence"`
	Parent      uint32 `json:"parent"`
	Attached    uint32 `json:"attached"` // xmin of its row in pg_inherits: another one after every ATTACH
	File        uint32 `json:"file,omitempty"`
	Rows        bool   `json:"rows,omitempty"` // it has, or had lately

	// Emptied is the transaction that gave it an empty file, as long as it is not known whether the stream tells of it.
	Emptied uint32 `json:"emptied,omitempty"`

	born    bool   // it was a partition from the beginning, so that every row of it was published
	emptied bool   // its present file was begun empty, and not by ALTER TABLE
	xmin    uint32 // of its row in pg_class
}

func (t *tableState) equal(o *tableState) bool {
	return t.OID == o.OID && t.Kind == o.Kind && t.Persistence == o.Persistence && t.Sent == o.Sent && t.Entry == o.Entry && t.Filter == o.Filter &&
		slices.Equal(t.Columns, o.Columns) && t.File == o.File && slices.Equal(t.Members, o.Members)
}

func (m *member) leaf() bool { return m.Kind == "r" }

// tableFactsSQL finds each name's table. $1 and $2 are schemas and names.
const tableFactsSQL = `
	select coalesce(c.oid, 0::oid), coalesce(c.relkind::text, ''), coalesce(c.relpersistence::text, ''), coalesce(c.relfilenode, 0::oid)
	from unnest($1::text[], $2::text[]) with ordinality as w(schema, name, n)
	left join pg_namespace s on s.nspname = w.schema
	left join pg_class c on c.relnamespace = s.oid and c.relname = w.name
	order by w.n`

// membersSQL lists the partitions of the tables in $1. CREATE TABLE … PARTITION OF makes the row in pg_inherits two or three
// commands after those of the system columns; an ATTACH comes five later at least, or in another transaction.
const membersSQL = `
	select root, c.oid, c.oid::regclass::text, c.relkind::text, c.relpersistence::text, i.inhparent, i.xmin::text::bigint,
		c.relfilenode, coalesce(c.relkind = 'r' and pg_relation_size(c.oid) > 0, false),
		coalesce(a.xmin = i.xmin and i.cmin::text::bigint - a.cmin::text::bigint between 0 and 4, false),
		(c.reltuples < 0 or c.reltuples = 0 and c.relkind = 'r' and pg_relation_size(c.oid) = 0)
			and not exists (select 1 from pg_attribute x where x.attrelid = c.oid and x.attnum > 0 and x.xmin = c.xmin),
		c.xmin::text::bigint
	from unnest($1::oid[]) root cross join lateral pg_partition_tree(root) t
	join pg_class c on c.oid = t.relid
	join pg_inherits i on i.inhrelid = c.oid
	left join pg_attribute a on a.attrelid = c.oid and a.attnum = -1
	where c.oid <> root and c.relkind in ('r', 'p')
	order by root, c.oid`

func readFacts(ctx context.Context, conn *pgx.Conn, cfg *Config, version int) (*sourceFacts, error) {
	f := &sourceFacts{}
	at, err := walEnd(ctx, conn)
	if err != nil {
		return nil, err
	}
	f.at = at
	options := pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}
	return f, pgx.BeginTxFunc(ctx, conn, options, func(tx pgx.Tx) error {
		q := translated(tx, charsetOf(conn.PgConn()))
		if err := f.readTables(ctx, q, cfg.Tables); err != nil {
			return fmt.Errorf("mapped tables: %w", err)
		}
		if err := f.readMembers(ctx, q); err != nil {
			return fmt.Errorf("partitions: %w", err)
		}
		if err := f.readPublication(ctx, q, cfg, version); err != nil {
			return fmt.Errorf("publication %s: %w", cfg.Publication, err)
		}
		return nil
	})
}

func walEnd(ctx context.Context, q querier) (cdc.LSN, error) {
	var at string
	err := q.QueryRow(ctx, "select (case when pg_is_in_recovery() then pg_last_wal_replay_lsn() else pg_current_wal_insert_lsn() end)::text").Scan(&at)
	if err != nil {
		return 0, fmt.Errorf("end of the WAL: %w", err)
	}
	return cdc.ParseLSN(at)
}

func (f *sourceFacts) readTables(ctx context.Context, q querier, tables []Table) error {
	schemas, names := make([]string, len(tables)), make([]string, len(tables))
	for i, t := range tables {
		schemas[i], names[i] = t.Schema, t.Name
	}
	rows, err := q.Query(ctx, tableFactsSQL, schemas, names)
	if err != nil {
		return err
	}
	f.tables, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (t tableState, err error) {
		return t, row.Scan(&t.OID, &t.Kind, &t.Persistence, &t.File)
	})
	return err
}

func (f *sourceFacts) readMembers(ctx context.Context, q querier) error {
	at := make(map[uint32]*tableState)
	var roots []uint32
	for i := range f.tables {
		if t := &f.tables[i]; t.Kind == "p" {
			at[t.OID] = t
			roots = append(roots, t.OID)
		}
	}
	if len(roots) == 0 {
		return nil
	}
	rows, err := q.Query(ctx, membersSQL, roots)
	if err != nil {
		return err
	}
	var root uint32
	var m member
	var attached, xmin int64
	columns := []any{
		&root, &m.OID, &m.Name, &m.Kind, &m.Persistence, &m.Parent, &attached, &m.File, &m.Rows, &m.born, &m.emptied, &xmin,
	}
	_, err = pgx.ForEachRow(rows, columns, func() error {
		m.Attached, m.xmin = uint32(attached), uint32(xmin)
		at[root].Members = append(at[root].Members, m)
		return nil
	})
	return err
}

func (f *sourceFacts) readPublication(ctx context.Context, q querier, cfg *Config, version int) error {
	p := &f.publication
	var xmin int64
	err := q.QueryRow(ctx, `
		select oid, xmin::text::bigint, pubowner, pubviaroot, pubinsert, pubupdate, pubdelete, pubtruncate from pg_publication where pubname = $1`,
		cfg.Publication).Scan(&p.OID, &xmin, &p.Owner, &p.ViaRoot, &p.Insert, &p.Update, &p.Delete, &p.Truncate)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil
	}
	if err != nil {
		return err
	}
	p.XMin = uint32(xmin)
	if err := f.readSent(ctx, q, cfg); err != nil {
		return err
	}
	return f.readEntries(ctx, q, version)
}

// readSent finds the tables under whose names changes come.
func (f *sourceFacts) readSent(ctx context.Context, q querier, cfg *Config) error {
	rows, err := q.Query(ctx, "select relid from pg_get_publication_tables($1) t", cfg.Publication)
	if err != nil {
		return err
	}
	oids, err := pgx.CollectRows(rows, pgx.RowTo[uint32])
	if err != nil {
		return err
	}
	sent := make(map[uint32]bool, len(oids))
	for _, oid := range oids {
		sent[oid] = true
	}
	for i := range f.tables {
		t := &f.tables[i]
		t.Sent = t.OID != 0 && sent[t.OID]
	}
	if f.publication.ViaRoot {
		f.readRoots(cfg)
	}
	return nil
}

// readRoots notes which partitions that are mapped themselves have their changes sent under the name of a table above.
func (f *sourceFacts) readRoots(cfg *Config) {
	at := make(map[uint32]*tableState, len(f.tables))
	for i := range f.tables {
		at[f.tables[i].OID] = &f.tables[i]
	}
	for i := range f.tables {
		if !f.tables[i].Sent {
			continue
		}
		for _, m := range f.tables[i].Members {
			if t := at[m.OID]; t != nil { // Postgres 14 lists it, and sends its changes under the root all the same
				t.Sent, t.root = false, cfg.Tables[i].String()
			}
		}
	}
}

// readEntries reads what the publication says of each table. A table that a FOR ALL TABLES publication has has no entry.
func (f *sourceFacts) readEntries(ctx context.Context, q querier, version int) error {
	sql := "select prrelid, oid, '', null::text[] from pg_publication_rel where prpubid = $1"
	if version >= 150000 {
		sql = `
			select r.prrelid, r.oid, coalesce(pg_get_expr(r.prqual, r.prrelid), ''),
				case when r.prattrs is not null then array(select a.attname::text from pg_attribute a where a.attrelid = r.prrelid and a.attnum = any(r.prattrs)) end
			from pg_publication_rel r where r.prpubid = $1
			union all
			select c.oid, n.oid, '', null from pg_publication_namespace n join pg_class c on c.relnamespace = n.pnnspid
			where n.pnpubid = $1 and c.relkind in ('r', 'p')`
	}
	rows, err := q.Query(ctx, sql, f.publication.OID)
	if err != nil {
		return err
	}
	at := make(map[uint32]*tableState, len(f.tables))
	for i := range f.tables {
		at[f.tables[i].OID] = &f.tables[i]
	}
	var oid, entry uint32
	var filter string
	var columns []string
	_, err = pgx.ForEachRow(rows, []any{&oid, &entry, &filter, &columns}, func() error {
		if t := at[oid]; t != nil && oid != 0 {
			t.Entry, t.Filter, t.Columns = entry, filter, slices.Sorted(slices.Values(columns))
		}
		return nil
	})
	return err
}

// presentName is where a table that lost its name is now; empty when it is gone.
func presentName(ctx context.Context, q querier, oid uint32) (string, error) {
	var name string
	err := q.QueryRow(ctx, "select n.nspname || '.' || c.relname from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = $1", oid).Scan(&name)
	if errors.Is(err, pgx.ErrNoRows) {
		return "", nil
	}
	return name, err
}

// holdsRows reports whether a table has a row. Where the role may not read it, its size tells.
func holdsRows(ctx context.Context, q querier, oid uint32) (exists, rows bool, err error) {
	var name string
	var readable, size bool
	err = q.QueryRow(ctx, `
		select c.oid::regclass::text, has_table_privilege(c.oid, 'SELECT') and not row_security_active(c.oid), coalesce(pg_relation_size(c.oid) > 0, false)
		from pg_class c where c.oid = $1`, oid).Scan(&name, &readable, &size)
	if errors.Is(err, pgx.ErrNoRows) {
		return false, false, nil
	}
	if err != nil || !readable || !size {
		return err == nil, size, err
	}
	err = q.QueryRow(ctx, "select exists (select 1 from "+name+")").Scan(&rows)
	return true, rows, err
}

func names(list []string) string { return strings.Join(list, ", ") }
