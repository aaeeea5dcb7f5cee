package replication

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/cdcsync/cdcsync/internal/backoff"
	"github.com/cdcsync/cdcsync/internal/cdc"
	"github.com/cdcsync/cdcsync/internal/pulse"
)

// ReaderOptions bounds what a Reader asks of the source. Zero fields have defaults.
type ReaderOptions struct {
	Connections      int           // default 4
	StatementTimeout time.Duration // default 30 s
	Publication      string        // of the stream, since it decides which generated columns a Relation has
}

// Reader is the query side of the source: rows read back by key, lookups, the present form of tables. It is safe for
// concurrent use. All values come as text under the same pinned settings as the stream's.
type Reader struct {
	pool        *pgxpool.Pool
	publication string
	patience    time.Duration // for one question
	pins        string        // what each transaction of our own begins with
	lookupPins  string        // what a lookup's begins with: the same, but for the role's own search_path
	pooled      atomic.Bool   // a pooler is in the way, which takes no parameters

	mu    sync.Mutex // held over no I/O
	types map[uint32]*cdc.Type
}

// Record is the columns of one row of a lookup.
type Record []cdc.Value

// LookupResult is what a lookup's SQL gave.
type LookupResult struct {
	Columns []cdc.Field         // of each Record: all columns of the result but the first
	Records map[string][]Record // by the text of the first column, in the order of the result
}

const (
	// A server that shuts down when its clients have left waits for idle sessions, too, and lets no new ones in.
	readerIdle     = 4 * time.Second
	readerLifetime = time.Minute
	// readerSlack is what a question may take beyond the server's own time-out, after which the connection counts as dead.
	readerSlack = 10 * time.Second
)

// NewReader makes a pool; connections are opened when they are needed, so that an unreachable server is not an error here.
func NewReader(ctx context.Context, url string, opts ReaderOptions) (*Reader, error) {
	const (
		connections = 4 // a few batches at a time: the source is somebody's production database
		timeout     = 30 * time.Second
	)
	cfg, err := pgxpool.ParseConfig(url)
	if err != nil {
		return nil, &Error{Reason: "source.query_url cannot be read", Solution: "write it as postgres://user:password@host:5432/database", Err: err}
	}
	if opts.Connections == 0 {
		opts.Connections = connections
	}
	if opts.StatementTimeout == 0 {
		opts.StatementTimeout = timeout
	}
	r := &Reader{
		publication: opts.Publication, patience: opts.StatementTimeout + readerSlack, types: make(map[uint32]*cdc.Type),
		pins:       pinTransaction(cfg.ConnConfig.RuntimeParams, opts.StatementTimeout.Milliseconds(), true),
		lookupPins: pinTransaction(cfg.ConnConfig.RuntimeParams, opts.StatementTimeout.Milliseconds(), false),
	}
	path, chosen := cfg.ConnConfig.RuntimeParams[searchPath]
	cfg.BeforeConnect = func(_ context.Context, c *pgx.ConnConfig) error {
		if r.pooled.Load() {
			return nil
		}
		pin(c.RuntimeParams)
		if delete(c.RuntimeParams, searchPath); chosen { // lookups have it, and our own transactions set theirs
			c.RuntimeParams[searchPath] = path
		}
		c.RuntimeParams["statement_timeout"] = strconv.FormatInt(opts.StatementTimeout.Milliseconds(), 10)
		return nil
	}
	cfg.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeExec // a pooler may give every transaction another session, without prepared statements
	bound(cfg.ConnConfig)
	cfg.MaxConns = int32(opts.Connections)
	cfg.MaxConnIdleTime, cfg.HealthCheckPeriod, cfg.MaxConnLifetime = readerIdle, readerIdle/2, readerLifetime
	if r.pool, err = pgxpool.NewWithConfig(ctx, cfg); err != nil {
		return nil, fmt.Errorf("query connections: %w", err)
	}
	return r, nil
}

// acquire takes a connection. The settings are parameters of its start, too, so that none of a role's ends it between transactions; a pooler, which
// may refuse them, is asked again without.
func (r *Reader) acquire(ctx context.Context) (*pgxpool.Conn, error) {
	conn, err := r.pool.Acquire(ctx)
	if err != nil && poolerError(err) != nil && !r.pooled.Swap(true) {
		return r.pool.Acquire(ctx)
	}
	return conn, err
}

// Close waits until what is under way has ended.
func (r *Reader) Close() { r.pool.Close() }

// Relation gives a table as the stream would announce it now; nil when there is no such table.
func (r *Reader) Relation(ctx context.Context, schema, name string) (*cdc.Relation, error) {
	ctx, cancel := context.WithTimeout(ctx, r.patience)
	defer cancel()
	var rel *cdc.Relation
	err := r.ask(ctx, func(q querier) (err error) {
		rel, err = loadRelation(ctx, q, r.publication, false, schema, name)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("table %s.%s: %w", schema, name, err)
	}
	return rel, nil
}

// Rows reads columns of rows back, in one snapshot that sees every transaction in xids (it waits until there is one).
//
// keys holds, for each row, the text of the columns that KeyColumns names, in that order. The result has one element for each key:
// nil when there is no such row (any more), else the columns asked for. A column that the table has no longer is Absent.
func (r *Reader) Rows(ctx context.Context, rel *cdc.Relation, columns []int, keys [][]string, xids []uint32) ([][]cdc.Value, error) {
	if len(keys) == 0 {
		return nil, nil
	}
	table, err := r.presentTable(ctx, rel)
	if err != nil {
		return nil, fmt.Errorf("read back %s: %w", rel, err)
	}
	result := make([][]cdc.Value, len(keys))
	if table == nil {
		return result, nil
	}
	present := make([]int, 0, len(columns)) // indexes in columns
	for i, c := range columns {
		if table.columns[rel.Columns[c].Name] {
			present = append(present, i)
		}
	}
	found, err := r.read(ctx, r.pins, table.rowsSQL(rel, columns, present), transpose(keys), xids)
	if err != nil {
		return nil, fmt.Errorf("read back %s: %w", rel, err)
	}
	for _, row := range found.rows {
		n, err := strconv.Atoi(string(row[0].Data))
		if err != nil || n < 1 || n > len(keys) {
			return nil, fmt.Errorf("read back %s: row number %q", rel, row[0].Data)
		}
		values := make([]cdc.Value, len(columns))
		for i, c := range present {
			values[c] = row[1+i]
		}
		result[n-1] = values
	}
	return result, nil
}

// Types gives the types that columns of a table have now, by the columns' names: nil for one that is gone, and none when the table is.
func (r *Reader) Types(ctx context.Context, rel *cdc.Relation, columns []int) (types []*cdc.Type, err error) {
	ctx, cancel := context.WithTimeout(ctx, r.patience)
	defer cancel()
	err = r.ask(ctx, func(q querier) error {
		types, err = presentTypes(ctx, q, rel, columns)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("types of %s: %w", rel, err)
	}
	return types, nil
}

func presentTypes(ctx context.Context, q querier, rel *cdc.Relation, columns []int) ([]*cdc.Type, error) {
	rows, err := q.Query(ctx, `select attname::text, atttypid from pg_attribute where attrelid = $1 and attnum > 0 and not attisdropped`, rel.OID)
	if err != nil {
		return nil, err
	}
	present := make(map[string]uint32)
	var name string
	var oid uint32
	if _, err := pgx.ForEachRow(rows, []any{&name, &oid}, func() error {
		present[name] = oid
		return nil
	}); err != nil || len(present) == 0 {
		return nil, err
	}
	known, err := loadTypes(ctx, q, slices.Collect(maps.Values(present)))
	if err != nil {
		return nil, err
	}
	types := make([]*cdc.Type, len(columns))
	for i, c := range columns {
		types[i] = known[present[rel.Columns[c].Name]]
	}
	return types, nil
}

// presentTable is a relation as the catalogue has it now.
type presentTable struct {
	name    string
	columns map[string]bool
	key     []keyColumn
}

// presentTable finds the table by its OID, since it may have been renamed; nil when it is gone.
func (r *Reader) presentTable(ctx context.Context, rel *cdc.Relation) (t *presentTable, err error) {
	ctx, cancel := context.WithTimeout(ctx, r.patience)
	defer cancel()
	err = r.ask(ctx, func(q querier) error {
		t, err = loadPresent(ctx, q, rel)
		return err
	})
	return t, err
}

func loadPresent(ctx context.Context, q querier, rel *cdc.Relation) (*presentTable, error) {
	rows, err := q.Query(ctx, `
		select case when c.relkind = 'r' then 'only ' else '' end || quote_ident(n.nspname) || '.' || quote_ident(c.relname), a.attname::text, a.atttypid
		from pg_class c join pg_namespace n on n.oid = c.relnamespace
		join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
		where c.oid = $1`, rel.OID)
	if err != nil {
		return nil, err
	}
	t := &presentTable{columns: make(map[string]bool)}
	present := *rel // with the types that its key's columns have now
	present.Columns = slices.Clone(rel.Columns)
	var column string
	var typ uint32
	if _, err := pgx.ForEachRow(rows, []any{&t.name, &column, &typ}, func() error {
		t.columns[column] = true
		if i := rel.Column(column); i >= 0 {
			present.Columns[i].Type = &cdc.Type{OID: typ}
		}
		return nil
	}); err != nil {
		return nil, err
	}
	if t.name == "" {
		return nil, nil
	}
	key := KeyColumns(rel)
	if len(key) == 0 {
		return nil, &Error{Reason: "the table has no key by which rows can be read back", Solution: "give it a primary key"}
	}
	for _, c := range key {
		if name := rel.Columns[c].Name; !t.columns[name] {
			return nil, fmt.Errorf("key column %s is gone", name)
		}
	}
	t.key, err = loadKey(ctx, q, &present, key)
	return t, err
}

// rowsSQL takes one text array for each key column.
func (t *presentTable) rowsSQL(rel *cdc.Relation, columns, present []int) string {
	var b strings.Builder
	b.WriteString("select k.n")
	for _, i := range present {
		b.WriteString(", t." + quoteName(rel.Columns[columns[i]].Name))
	}
	arrays, aliases, equal := keyArrayParams(t.key, "t")
	fmt.Fprintf(&b, " from unnest(%s) with ordinality as k(%s, n) join %s t on %s", arrays, aliases, t.name, equal)
	return b.String()
}

func quoteName(name string) string { return pgx.Identifier{name}.Sanitize() }

// transpose turns rows of keys into one list per column.
func transpose(keys [][]string) [][]string {
	lists := make([][]string, len(keys[0]))
	for i := range lists {
		lists[i] = make([]string, len(keys))
		for n := range keys {
			lists[i][n] = keys[n][i]
		}
	}
	return lists
}

// arrayLiterals writes each list as an array for the server. A text that the database's encoding does not have is null there: no row has it.
func arrayLiterals(charset *cdc.Charset, lists [][]string) [][]byte {
	literals := make([][]byte, len(lists))
	for i, list := range lists {
		literals[i] = arrayLiteral(len(list), func(n int) ([]byte, bool) { return charset.Encode([]byte(list[n])) })
	}
	return literals
}

// arrayLiteral writes an array as Postgres reads it (arrays-io in the manual). An element that is not ok is null.
func arrayLiteral(n int, element func(int) (text []byte, ok bool)) []byte {
	literal := []byte{'{'}
	for i := range n {
		if i > 0 {
			literal = append(literal, ',')
		}
		text, ok := element(i)
		if !ok {
			literal = append(literal, "NULL"...)
			continue
		}
		literal = append(literal, '"')
		for _, b := range text {
			if b == '"' || b == '\\' {
				literal = append(literal, '\\')
			}
			literal = append(literal, b)
		}
		literal = append(literal, '"')
	}
	return append(literal, '}')
}

// Lookup runs a query with $1 = the array of keys, in one snapshot that sees every transaction in xids. The server reads the keys as
// whatever array type the query makes of $1.
func (r *Reader) Lookup(ctx context.Context, sql string, keys []string, xids []uint32) (LookupResult, error) {
	result := LookupResult{Records: make(map[string][]Record)}
	var found found
	for known := false; !known; {
		var err error
		if found, err = r.read(ctx, r.lookupPins, sql, [][]string{keys}, xids); err != nil {
			return LookupResult{}, fmt.Errorf("lookup: %w", err)
		}
		if len(found.fields) == 0 {
			return LookupResult{}, &Error{Reason: "the lookup's query gives no columns", Solution: "let its first column be the key"}
		}
		if result.Columns, known, err = r.columns(ctx, found.fields[1:]); err != nil {
			return LookupResult{}, fmt.Errorf("lookup: %w", err)
		}
	}
	for _, row := range found.rows {
		if row[0].Kind == cdc.Text {
			key := string(row[0].Data)
			result.Records[key] = append(result.Records[key], row[1:])
		}
	}
	return result, nil
}

// columns resolves the types of a result. known is false when it cannot be told that composite types were the same while the result
// was read: then it is to be read again.
func (r *Reader) columns(ctx context.Context, fields []pgconn.FieldDescription) (columns []cdc.Field, known bool, err error) {
	columns, ask := r.knownColumns(fields)
	if len(ask) == 0 {
		return columns, true, nil
	}
	ctx, cancel := context.WithTimeout(ctx, r.patience)
	defer cancel()
	var types map[uint32]*cdc.Type
	err = r.ask(ctx, func(q querier) (err error) {
		types, err = loadTypes(ctx, q, ask)
		return err
	})
	if err != nil {
		return nil, false, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	known = true
	for i, f := range fields {
		if !slices.Contains(ask, f.DataTypeOID) {
			continue
		}
		t := types[f.DataTypeOID]
		if t == nil {
			t = &cdc.Type{OID: f.DataTypeOID, Kind: cdc.TypeBase, Delimiter: ','}
		}
		if before := columns[i].Type; before != nil && before.Same(t) {
			t = before // by which codecs are found again
		} else if t.Has(cdc.TypeComposite) {
			known = false
		}
		r.types[f.DataTypeOID], columns[i].Type = t, t
	}
	return columns, known, nil
}

// knownColumns gives the columns with the types that are known, and lists what is to be asked for: also composite types, which are
// altered without the server saying so.
func (r *Reader) knownColumns(fields []pgconn.FieldDescription) (columns []cdc.Field, ask []uint32) {
	r.mu.Lock()
	defer r.mu.Unlock()
	columns = make([]cdc.Field, len(fields))
	for i, f := range fields {
		columns[i] = cdc.Field{Name: f.Name, Type: r.types[f.DataTypeOID]}
		if columns[i].Type == nil || columns[i].Type.Has(cdc.TypeComposite) {
			ask = append(ask, f.DataTypeOID)
		}
	}
	return columns, ask
}

// found is the result of one query.
type found struct {
	fields []pgconn.FieldDescription
	rows   []Record
}

// read runs a query with an array of text for each parameter and text results, again and again until its snapshot sees all of xids.
func (r *Reader) read(ctx context.Context, pins, sql string, keys [][]string, xids []uint32) (found, error) {
	const (
		first   = time.Millisecond
		longest = 100 * time.Millisecond
	)
	for wait := first; ; wait = min(2*wait, longest) {
		result, seen, err := r.readOnce(ctx, pins, sql, keys, xids)
		if err != nil || seen {
			return result, withoutRow(err)
		}
		beat := pulse.Rest(ctx)
		if err := backoff.Sleep(ctx, wait); err != nil {
			return found{}, fmt.Errorf("wait until transactions are visible: %w", err)
		}
		beat()
	}
}

const beginReading = "begin isolation level repeatable read, read only"

// ask has fn question the catalogue, in one transaction.
func (r *Reader) ask(ctx context.Context, fn func(querier) error) error {
	conn, err := r.acquire(ctx)
	if err != nil {
		return err
	}
	defer conn.Release() // closes a connection that is in a transaction still
	if _, err := conn.Conn().PgConn().Exec(ctx, beginReading+"; select "+r.pins).ReadAll(); err != nil {
		return err
	}
	if err := fn(translated(conn, charsetOf(conn.Conn().PgConn()))); err != nil {
		return err
	}
	_, err = conn.Conn().PgConn().Exec(ctx, "commit").ReadAll()
	return err
}

// readOnce sends all that it takes in one go: a transaction whose snapshot serves both questions.
func (r *Reader) readOnce(ctx context.Context, pins, sql string, keys [][]string, xids []uint32) (result found, seen bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, r.patience)
	defer cancel()
	conn, err := r.acquire(ctx)
	if err != nil {
		return found{}, false, err
	}
	defer conn.Release() // closes a connection that is in a transaction still
	charset := charsetOf(conn.Conn().PgConn())
	sql, err = encodeSQL(charset, sql)
	if err != nil {
		return found{}, false, err
	}
	pipe := conn.Conn().PgConn().StartPipeline(ctx)
	pipe.SendQueryParams(beginReading, nil, nil, nil, nil)
	pipe.SendQueryParams("select pg_catalog.pg_current_snapshot()::pg_catalog.text, pg_catalog.pg_is_in_recovery()::pg_catalog.text, "+pins, nil, nil, nil, nil)
	pipe.SendQueryParams(sql, arrayLiterals(charset, keys), nil, nil, nil)
	pipe.SendQueryParams("commit", nil, nil, nil, nil)
	if err := pipe.Sync(); err != nil {
		return found{}, false, errors.Join(err, pipe.Close())
	}
	var results [4]found
	for i := range results {
		if results[i], err = nextResult(pipe); err != nil {
			_ = pipe.Close() // the first error says more
			return found{}, false, err
		}
	}
	if err := pipe.Close(); err != nil {
		return found{}, false, err
	}
	snap, err := parseSnapshot(string(results[1].rows[0][0].Data))
	if err != nil {
		return found{}, false, err
	}
	snap.standby = string(results[1].rows[0][1].Data) == "true"
	results[2].decode(charset)
	return results[2], snap.seesAll(xids), nil
}

// decode makes UTF-8 of what came in the database's encoding.
func (f *found) decode(charset *cdc.Charset) {
	for i := range f.fields {
		f.fields[i].Name = charset.DecodeName(f.fields[i].Name)
	}
	for _, row := range f.rows {
		charset.Values(row)
	}
}

func nextResult(pipe *pgconn.Pipeline) (found, error) {
	results, err := pipe.GetResults()
	if err != nil {
		return found{}, err
	}
	reader, ok := results.(*pgconn.ResultReader)
	if !ok {
		return found{}, fmt.Errorf("answer to a query: %T", results)
	}
	f := found{fields: append([]pgconn.FieldDescription(nil), reader.FieldDescriptions()...)}
	for reader.NextRow() {
		f.rows = append(f.rows, copyRow(reader.Values()))
	}
	_, err = reader.Close()
	return f, err
}

// copyRow takes a row out of the connection's buffer, into one piece of memory.
func copyRow(values [][]byte) Record {
	size := 0
	for _, v := range values {
		size += len(v)
	}
	memory := make([]byte, 0, size)
	row := make(Record, len(values))
	for i, v := range values {
		if v == nil {
			row[i].Kind = cdc.Null
			continue
		}
		start := len(memory)
		memory = append(memory, v...)
		row[i] = cdc.Value{Kind: cdc.Text, Data: memory[start:len(memory):len(memory)]}
	}
	return row
}
