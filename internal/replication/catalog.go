package replication

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/cdcsync/cdcsync/internal/cdc"
)

// querier is a connection or a pool.
type querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// catalog lends ordinary connections beside the stream. It keeps one for a moment: an idle session would hold up a server that
// shuts down when its clients have left. It is safe for concurrent use.
type catalog struct {
	url  string
	idle time.Duration // a connection that is used no more is closed after it

	mu     sync.Mutex // held over no I/O
	kept   *pgx.Conn  // nobody uses it; nil for none
	expiry *time.Timer
	lag    Lag
}

const (
	catalogIdle = 2 * time.Second
	// keptPatience is for a connection that was kept: it may be dead without a sign, and a new one then answers.
	keptPatience = 5 * time.Second
	// catalogPatience is for a new connection; what is asked takes milliseconds.
	catalogPatience = 20 * time.Second
)

func newCatalog(url string) *catalog { return &catalog{url: url, idle: catalogIdle} }

// with runs fn on a connection, and once more on a new one when one that was kept turns out to be gone or does not answer. fn
// gets a context with a deadline, and is to use no other. Callers do not wait for one another.
func (c *catalog) with(ctx context.Context, fn func(context.Context, querier) error) error {
	if conn := c.take(); conn != nil {
		err := c.attempt(ctx, conn, keptPatience, fn)
		if err == nil || !conn.IsClosed() || ctx.Err() != nil {
			return err
		}
	}
	opening, cancel := context.WithTimeout(ctx, catalogPatience)
	defer cancel()
	conn, err := c.open(opening)
	if err != nil {
		return err
	}
	return c.attempt(ctx, conn, catalogPatience, fn)
}

func (c *catalog) attempt(ctx context.Context, conn *pgx.Conn, patience time.Duration, fn func(context.Context, querier) error) error {
	defer c.giveBack(ctx, conn)
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return fn(ctx, translated(conn, charsetOf(conn.PgConn())))
}

func (c *catalog) open(ctx context.Context) (*pgx.Conn, error) {
	cfg, err := parseURL(c.url)
	if err != nil {
		return nil, err
	}
	cfg.RuntimeParams["statement_timeout"] = strconv.FormatInt(catalogPatience.Milliseconds(), 10)
	return connect(ctx, cfg)
}

// take gives the caller the connection that was kept, nil for none.
func (c *catalog) take() *pgx.Conn {
	c.mu.Lock()
	defer c.mu.Unlock()
	conn := c.kept
	if conn != nil {
		c.expiry.Stop()
		c.kept = nil
	}
	return conn
}

// giveBack keeps the connection for a while, unless another is kept already.
func (c *catalog) giveBack(ctx context.Context, conn *pgx.Conn) {
	if conn.IsClosed() {
		return
	}
	if ctx.Err() == nil && c.keep(ctx, conn) {
		return
	}
	hangUp(ctx, conn)
}

func (c *catalog) keep(ctx context.Context, conn *pgx.Conn) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.kept != nil {
		return false
	}
	c.kept = conn
	c.expiry = time.AfterFunc(c.idle, func() { c.expire(ctx, conn) })
	return true
}

func (c *catalog) expire(ctx context.Context, conn *pgx.Conn) {
	c.mu.Lock()
	mine := c.kept == conn
	if mine {
		c.kept = nil
	}
	c.mu.Unlock()
	if mine {
		hangUp(ctx, conn)
	}
}

// close goes on for a moment when ctx has ended.
func (c *catalog) close(ctx context.Context) {
	if conn := c.take(); conn != nil {
		hangUp(ctx, conn)
	}
}

// enrich completes a relation of the stream: the types of its columns and its primary key. The catalogue may be newer than
// the relation: what it does not know any more stays as the stream gave it.
func (c *catalog) enrich(ctx context.Context, rel *cdc.Relation) error {
	return c.with(ctx, func(ctx context.Context, q querier) error {
		if err := resolveTypes(ctx, q, rel); err != nil {
			return err
		}
		key, err := primaryKey(ctx, q, rel)
		rel.PrimaryKey = key
		return err
	})
}

func resolveTypes(ctx context.Context, q querier, rel *cdc.Relation) error {
	oids := make([]uint32, len(rel.Columns))
	for i := range rel.Columns {
		oids[i] = rel.Columns[i].Type.OID
	}
	types, err := loadTypes(ctx, q, oids)
	if err != nil {
		return err
	}
	for i, oid := range oids {
		t := types[oid]
		if t == nil { // it was dropped
			t = cdc.UnknownType(rel.Columns[i].Type)
		}
		rel.Columns[i].Type = t
	}
	return nil
}

// indexKey finds, in the index's order, the columns of the index that meets a condition.
func indexKey(ctx context.Context, q querier, rel *cdc.Relation, condition string) ([]int, error) {
	rows, err := q.Query(ctx, `
		select a.attname
		from pg_index x cross join unnest(x.indkey) with ordinality as k(attnum, n)
		join pg_attribute a on a.attrelid = x.indrelid and a.attnum = k.attnum
		where x.indrelid = $1 and `+condition+` and k.n <= x.indnkeyatts
		order by k.n`, rel.OID)
	if err != nil {
		return nil, err
	}
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, err
	}
	key := make([]int, len(names))
	for i, name := range names {
		if key[i] = rel.Column(name); key[i] < 0 {
			return nil, nil
		}
	}
	return key, nil
}

// typeRow is one row of pg_type with what hangs on it.
type typeRow struct {
	OID        uint32
	Name       string
	Kind       string // pg_type.typtype
	Delimiter  string
	Elem       uint32 // base, element or subtype; 0 for none
	Array      bool
	FieldNames []string
	FieldTypes []uint32
	Relid      uint32 // of a composite type, as are the next two
	Version    string // changes whenever a field does
	AsMade     bool   // no field was added, dropped or altered since the type was made
	Next       uint64 // the first XID that was not given out yet
}

// loadTypes gives the types of the OIDs, with those they are built of. OIDs that the server does not know are left out.
func loadTypes(ctx context.Context, q querier, oids []uint32) (map[uint32]*cdc.Type, error) {
	types := make(map[uint32]*cdc.Type, len(oids))
	var ask []uint32
	for _, oid := range oids {
		if t := builtinTypes[oid]; t != nil {
			types[oid] = t
		} else if !slices.Contains(ask, oid) {
			ask = append(ask, oid)
		}
	}
	if len(ask) == 0 {
		return types, nil
	}
	if _, err := queryTypes(ctx, q, ask, types); err != nil {
		return nil, err
	}
	return types, nil
}

// queryTypes adds the types of the OIDs that are asked for.
func queryTypes(ctx context.Context, q querier, ask []uint32, types map[uint32]*cdc.Type) (*typeBuilder, error) {
	rows, err := q.Query(ctx, `
		with recursive elem(oid, elem) as materialized (
			select oid, typbasetype from pg_type where typtype = 'd'
			union all select typarray, oid from pg_type where typarray <> 0
			union all select rngtypid, rngsubtype from pg_range
			union all select rngmultitypid, rngsubtype from pg_range
		), need(oid) as (
			select unnest($1::oid[])
			union
			select part.oid from need cross join lateral (
				select e.elem from elem e where e.oid = need.oid
				union all
				select a.atttypid from pg_type t join pg_attribute a on a.attrelid = t.typrelid
				where t.oid = need.oid and t.typtype = 'c' and a.attnum > 0 and not a.attisdropped
			) part(oid)
		)
		select t.oid, t.typname::text, t.typtype::text,
			coalesce(member.typdelim, t.typdelim)::text, coalesce(e.elem, 0::oid), member.oid is not null,
			array(select a.attname::text from pg_attribute a where t.typtype = 'c' and a.attrelid = t.typrelid and a.attnum > 0 and not a.attisdropped order by a.attnum),
			array(select a.atttypid from pg_attribute a where t.typtype = 'c' and a.attrelid = t.typrelid and a.attnum > 0 and not a.attisdropped order by a.attnum),
			case when t.typtype = 'c' then t.typrelid else 0::oid end,
			case when t.typtype = 'c' then coalesce((select string_agg(concat_ws(' ', a.attnum, a.xmin, a.atttypid, a.attname), ',' order by a.attnum)
				from pg_attribute a where a.attrelid = t.typrelid and a.attnum > 0), '') else '' end,
			t.typtype <> 'c' or not exists (select 1 from pg_attribute a where a.attrelid = t.typrelid and a.attnum > 0
				and (a.attisdropped or (a.xmin::text, a.cmin::text) <> (t.xmin::text, t.cmin::text))), -- one command makes all
			pg_snapshot_xmax(pg_current_snapshot())::text::bigint
		from need join pg_type t on t.oid = need.oid
		left join elem e on e.oid = t.oid
		left join pg_type member on member.typarray = t.oid`, ask)
	if err != nil {
		return nil, err
	}
	found, err := pgx.CollectRows(rows, pgx.RowToStructByPos[typeRow])
	if err != nil {
		return nil, fmt.Errorf("pg_type: %w", err)
	}
	b := &typeBuilder{rows: make(map[uint32]typeRow, len(found)), types: types}
	for _, row := range found {
		b.rows[row.OID] = row
	}
	for _, oid := range ask {
		b.build(oid)
	}
	return b, nil
}

type typeBuilder struct {
	rows  map[uint32]typeRow
	types map[uint32]*cdc.Type
}

// build makes a type of its row. It is nil where there is none.
func (b *typeBuilder) build(oid uint32) *cdc.Type {
	if t := b.types[oid]; t != nil {
		return t
	}
	row, ok := b.rows[oid]
	if !ok {
		return nil
	}
	t := &cdc.Type{OID: oid, Name: row.Name, Kind: row.kind(), Delimiter: ','}
	if row.Array {
		t.Delimiter = row.Delimiter[0]
	}
	if row.Elem != 0 {
		t.Elem = b.part(row.Elem)
	}
	for i, name := range row.FieldNames {
		t.Fields = append(t.Fields, cdc.Field{Name: name, Type: b.part(row.FieldTypes[i])})
	}
	b.types[oid] = t
	return t
}

// part makes a type that another is built of.
func (b *typeBuilder) part(oid uint32) *cdc.Type {
	if t := b.build(oid); t != nil {
		return t
	}
	if t := builtinTypes[oid]; t != nil {
		return t
	}
	return cdc.UnknownType(&cdc.Type{OID: oid})
}

func (r typeRow) kind() cdc.TypeKind {
	if r.Array {
		return cdc.TypeArray
	}
	switch r.Kind {
	case "e":
		return cdc.TypeEnum
	case "d":
		return cdc.TypeDomain
	case "c":
		return cdc.TypeComposite
	case "r":
		return cdc.TypeRange
	case "m":
		return cdc.TypeMultirange
	}
	return cdc.TypeBase
}

// loadRelation reads a table as the stream of the publication would announce it now, but for a list of columns that the
// publication may have. Once cdcsync has managed it, it sends stored generated columns. It returns nil when there is no such table.
func loadRelation(ctx context.Context, q querier, publication string, managed bool, schema, name string) (*cdc.Relation, error) {
	rel := &cdc.Relation{Schema: schema, Name: name, Encoding: encodingOf(q)}
	var identity string
	err := q.QueryRow(ctx, `
		select c.oid, c.relreplident::text from pg_class c join pg_namespace n on n.oid = c.relnamespace
		where n.nspname = $1 and c.relname = $2 and c.relkind in ('r', 'p')`, schema, name).Scan(&rel.OID, &identity)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	rel.Identity = identity[0]
	if rel.Columns, err = loadColumns(ctx, q, publication, managed, rel); err != nil {
		return nil, err
	}
	if err := resolveTypes(ctx, q, rel); err != nil {
		return nil, err
	}
	rel.PrimaryKey, err = primaryKey(ctx, q, rel)
	return rel, err
}

// loadColumns leaves out the generated columns that the publication does not send; before Postgres 18 that is all of them.
func loadColumns(ctx context.Context, q querier, publication string, managed bool, rel *cdc.Relation) ([]cdc.Column, error) {
	rows, err := q.Query(ctx, `
		select a.attname, a.atttypid, a.atttypmod,
			$2 = 'f' or exists (select 1 from pg_index x where x.indrelid = a.attrelid and a.attnum = any(x.indkey)
				and case $2 when 'd' then x.indisprimary when 'i' then x.indisreplident end)
		from pg_attribute a
		where a.attrelid = $1 and a.attnum > 0 and not a.attisdropped and (a.attgenerated = ''
			or current_setting('server_version_num')::int >= $3 and ($7 and a.attgenerated = 's' or exists (select 1 from pg_publication_tables t
				where t.pubname = $4 and t.schemaname = $5 and t.tablename = $6 and to_jsonb(t) -> 'attnames' ? a.attname::text)))
		order by a.attnum`, rel.OID, string(rel.Identity), publishesGenerated, publication, rel.Schema, rel.Name, managed)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (cdc.Column, error) {
		c := cdc.Column{Type: &cdc.Type{Kind: cdc.TypeBase, Delimiter: ','}}
		var identity *bool
		err := row.Scan(&c.Name, &c.Type.OID, &c.TypeMod, &identity)
		c.Identity = identity != nil && *identity
		return c, err
	})
}

// Lag is what the server says of the slot.
type Lag struct {
	At        time.Time `json:"at"`             // when it was asked
	ServerEnd cdc.LSN   `json:"server_end"`     // where the server writes now
	Retained  int64     `json:"retained_bytes"` // of WAL that the server keeps for the slot; negative where there is no slot
}

// Lag asks the server, at most every ten seconds; in between it gives what it was told last. It is safe for concurrent use.
func (s *Stream) Lag(ctx context.Context) (Lag, error) {
	const fresh = 10 * time.Second
	c := s.catalog
	if lag := c.lastLag(); time.Since(lag.At) < fresh {
		return lag, nil
	}
	var lag Lag
	err := c.with(ctx, func(ctx context.Context, q querier) error {
		lag.At = time.Now()
		var end string
		err := q.QueryRow(ctx, `
			with now(lsn) as (select case when pg_is_in_recovery() then pg_last_wal_replay_lsn() else pg_current_wal_insert_lsn() end)
			select now.lsn::text, coalesce((select pg_wal_lsn_diff(now.lsn, restart_lsn)::bigint from pg_replication_slots where slot_name = $1), -1)
			from now`, s.cfg.Slot).Scan(&end, &lag.Retained)
		if err != nil {
			return err
		}
		lag.ServerEnd, err = cdc.ParseLSN(end)
		return err
	})
	if err != nil {
		return Lag{}, fmt.Errorf("slot %s: %w", s.cfg.Slot, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lag = lag
	return lag, nil
}

func (c *catalog) lastLag() Lag {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.lag
}
