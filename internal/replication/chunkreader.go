package replication

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/cdcsync/cdcsync/internal/cdc"
)

// chunkReader reads a table chunk by chunk on an ordinary connection, one short transaction each. It is used by one goroutine.
type chunkReader struct {
	url, publication string
	table            Table
	where            string // a boolean expression over the table's columns; empty for all rows
	maxRow           int
	manage           bool                         // the publication will be what Config.Manage makes of it
	whole            bool                         // it is read in one go, so that it needs no order
	needs            func(*cdc.Relation) []string // columns that mappings read; nil for all

	conn       *pgx.Conn
	charset    *cdc.Charset  // of the database; rows and keys are in it
	catalog    querier       // conn, for questions in UTF-8
	opened     time.Time     // when conn was
	patience   time.Duration // without a byte of an answer; 0 means chunkPatience
	frames     *frames       // of conn, which reads through it
	relation   *cdc.Relation
	encoded    []byte
	version    string // of the table's columns
	alterable  bool   // it has composite types
	blocks     int64  // of a table without a key
	everything []int  // indexes of all columns
	key        []int  // indexes of the columns by which rows are ordered and told apart; none means that the table is read by place
	keyOnly    []int  // indexes of the key's columns in a row that has no others
	from       string // the table as a query names it
	filter     string // the condition together with the publication's; empty for all rows
	keep       bool   // the first column of the page says whether the condition holds
	row        dataRow
	queries    chunkQueries
	careful    bool // read one row at a time, since one is too large
	oversized  int64
}

// chunkQueries of a table. A page's last parameter is its size.
type chunkQueries struct{ first, next, again, firstKey, nextKey, againKey string }

func (r *chunkReader) close(ctx context.Context) {
	if r.conn != nil {
		hangUp(ctx, r.conn)
		r.conn, r.frames = nil, nil // frames may hold a large row
	}
}

const (
	// chunkPatience is for an answer's next byte. It doubles when it was too short: an index may have much to pass over.
	chunkPatience     = 45 * time.Second
	chunkMostPatience = 16 * chunkPatience
	// chunkLifetime bounds a connection's: a server that shuts down when its clients have left gets its way.
	chunkLifetime = time.Minute
)

// open connects when there is no connection, and looks at the table. A reader that has not seen the whole table is not open.
func (r *chunkReader) open(ctx context.Context) error {
	if r.conn != nil && !r.conn.IsClosed() && time.Since(r.opened) < chunkLifetime {
		return nil
	}
	r.close(ctx)
	if err := r.connect(ctx); err != nil {
		return err
	}
	if err := r.look(ctx); err != nil {
		r.close(ctx)
		return err
	}
	return nil
}

func (r *chunkReader) connect(ctx context.Context) error {
	cfg, err := parseURL(r.url)
	if err != nil {
		return err
	}
	cfg.RuntimeParams["statement_timeout"] = "0"
	cfg.RuntimeParams["idle_in_transaction_session_timeout"] = "0"
	patience := max(r.patience, chunkPatience)
	dial := cfg.DialFunc
	cfg.DialFunc = func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := dial(ctx, network, address)
		if err != nil {
			return nil, err
		}
		return newPatientConn(conn, patience), nil
	}
	cfg.BuildFrontend = func(in io.Reader, out io.Writer) *pgproto3.Frontend {
		r.frames = newFrames(in, int64(r.maxRow)) // of the last host that is tried, which is the one that is taken
		frontend := pgproto3.NewFrontend(r.frames, out)
		frontend.SetMaxBodyLen(r.maxRow)
		return frontend
	}
	if r.conn, err = connect(ctx, cfg); err != nil {
		return err
	}
	r.charset = charsetOf(r.conn.PgConn())
	r.opened, r.catalog = time.Now(), translated(r.conn, r.charset)
	return nil
}

// look learns the table's present columns and key, and makes the queries.
func (r *chunkReader) look(ctx context.Context) error {
	var recovering bool
	if err := r.catalog.QueryRow(ctx, `select pg_is_in_recovery()`).Scan(&recovering); err != nil {
		return err
	}
	if recovering {
		return &Error{Reason: "the source is a standby, on which snapshots cannot be compared with the stream", Solution: "backfill from the primary"}
	}
	rel, err := r.load(ctx)
	if err != nil {
		return fmt.Errorf("catalogue entry of %s: %w", r.table, err)
	}
	if rel == nil {
		return &Error{Reason: fmt.Sprintf("table %s does not exist", r.table), Solution: "correct the name"}
	}
	published, err := r.published(ctx, rel)
	if err != nil {
		return err
	}
	if err := r.readable(ctx, rel); err != nil {
		return err
	}
	r.relation, r.key = rel, rel.PrimaryKey
	if rel.Identity == 'i' {
		if r.key, err = indexKey(ctx, r.catalog, rel, "x.indisreplident"); err != nil {
			return fmt.Errorf("catalogue entry of %s: %w", r.table, err)
		}
	}
	r.encoded, r.everything, r.keyOnly = cdc.AppendRelation(nil, rel), upTo(len(rel.Columns)), upTo(len(r.key))
	var partitioned bool
	if err := r.catalog.QueryRow(ctx, `
		select relkind = 'p', pg_relation_size(oid) / current_setting('block_size')::bigint from pg_class where oid = $1`, rel.OID).
		Scan(&partitioned, &r.blocks); err != nil {
		return fmt.Errorf("catalogue entry of %s: %w", r.table, err)
	}
	r.from = pgx.Identifier{r.table.Schema, r.table.Name}.Sanitize()
	if !partitioned {
		r.from = "only " + r.from // children of a table that is no partitioned one are published under their own names
	}
	if err := checkCondition(ctx, r.catalog, rel, r.where); err != nil {
		return err
	}
	r.filter = conditions(published, r.where)
	switch {
	case len(r.key) > 0:
		if err := r.byKey(ctx); err != nil {
			return err
		}
	case partitioned && !r.whole:
		return errNoOrder
	default:
		r.byPlace()
	}
	return r.queries.encode(r.charset)
}

// encode makes of the queries what the server reads.
func (q *chunkQueries) encode(charset *cdc.Charset) (err error) {
	for _, sql := range []*string{&q.first, &q.next, &q.again, &q.firstKey, &q.nextKey, &q.againKey} {
		if *sql, err = encodeSQL(charset, *sql); err != nil {
			return err
		}
	}
	return nil
}

// load reads the table's relation and its version, which belong together.
func (r *chunkReader) load(ctx context.Context) (*cdc.Relation, error) {
	for {
		rel, err := loadRelation(ctx, r.catalog, r.publication, r.manage, r.table.Schema, r.table.Name)
		if err != nil || rel == nil {
			return nil, err
		}
		if err := r.catalog.QueryRow(ctx, chunkVersion, rel.OID).Scan(&r.version); err != nil {
			return nil, err
		}
		if r.alterable = hasComposite(rel); !r.alterable {
			return rel, nil
		}
		again, err := loadRelation(ctx, r.catalog, r.publication, r.manage, r.table.Schema, r.table.Name)
		if err != nil || again == nil || bytes.Equal(cdc.AppendRelation(nil, rel), cdc.AppendRelation(nil, again)) {
			return again, err
		}
	}
}

func hasComposite(rel *cdc.Relation) bool {
	return slices.ContainsFunc(rel.Columns, func(c cdc.Column) bool { return c.Type.Has(cdc.TypeComposite) })
}

// unaltered makes sure, when rows have been read, that composite types are what they were before: the server writes the text of a value by
// the definition of the moment, whatever the snapshot.
func (r *chunkReader) unaltered(ctx context.Context) error {
	if !r.alterable {
		return nil
	}
	var version string
	if err := r.catalog.QueryRow(ctx, chunkVersion, r.relation.OID).Scan(&version); err != nil {
		return err
	}
	if version != r.version {
		return errChanged
	}
	return nil
}

// chunkVersion changes with the columns of a table and with the composite types that they are built of.
const chunkVersion = `
	with recursive part(oid) as (
		select atttypid from pg_attribute where attrelid = $1::oid and attnum > 0 and not attisdropped and atttypid >= 16384
		union
		select within.oid from part join pg_type t on t.oid = part.oid cross join lateral (
			select unnest(array[t.typelem, t.typbasetype]) as oid
			union all select rngsubtype from pg_range where rngtypid = t.oid or rngmultitypid = t.oid
			union all select atttypid from pg_attribute where t.typtype = 'c' and attrelid = t.typrelid and attnum > 0 and not attisdropped
		) within where within.oid >= 16384
	)
	select (select coalesce(string_agg(a.attname || ' ' || a.atttypid || ' ' || a.atttypmod, ',' order by a.attnum), '')
			from pg_attribute a where a.attrelid = $1::oid and a.attnum > 0 and not a.attisdropped)
		|| (select coalesce(string_agg(concat_ws(' ', '', a.attrelid, a.attnum, a.xmin, a.attname), ',' order by a.attrelid, a.attnum), '')
			from part join pg_type t on t.oid = part.oid and t.typtype = 'c' join pg_attribute a on a.attrelid = t.typrelid and a.attnum > 0)`

// published keeps only the columns of rel that the publication sends, and returns its filter of rows; both are of Postgres 15 and newer.
func (r *chunkReader) published(ctx context.Context, rel *cdc.Relation) (filter string, err error) {
	var columns []string
	err = r.catalog.QueryRow(ctx, `
		select array(select jsonb_array_elements_text(nullif(to_jsonb(t) -> 'attnames', 'null'))
				union select attname::text from pg_attribute where $4 and attrelid = $5 and attgenerated = 's' and not attisdropped
					and current_setting('server_version_num')::int >= $6 and not exists (
						select from pg_publication_rel r join pg_publication p on p.oid = r.prpubid
						where p.pubname = $1 and r.prrelid = $5 and nullif(to_jsonb(r) -> 'prattrs', 'null') is not null)),
			coalesce(to_jsonb(t) ->> 'rowfilter', '')
		from pg_publication_tables t where pubname = $1 and schemaname = $2 and tablename = $3`,
		r.publication, r.table.Schema, r.table.Name, r.manage, rel.OID, publishesGenerated).Scan(&columns, &filter)
	if errors.Is(err, pgx.ErrNoRows) || err == nil && len(columns) == 0 {
		return filter, nil
	}
	if err != nil {
		return "", fmt.Errorf("publication %s: %w", r.publication, err)
	}
	keepColumns(rel, func(name string) bool { return slices.Contains(columns, name) })
	return filter, nil
}

// keepColumns takes the others out of a relation. A key that is not whole any more is none.
func keepColumns(rel *cdc.Relation, keep func(name string) bool) {
	key := make([]string, len(rel.PrimaryKey))
	for i, c := range rel.PrimaryKey {
		key[i] = rel.Columns[c].Name
	}
	rel.Columns = slices.DeleteFunc(rel.Columns, func(c cdc.Column) bool { return !keep(c.Name) })
	rel.PrimaryKey = rel.PrimaryKey[:0]
	for _, name := range key {
		if i := rel.Column(name); i >= 0 {
			rel.PrimaryKey = append(rel.PrimaryKey, i)
		}
	}
	if len(rel.PrimaryKey) < len(key) {
		rel.PrimaryKey = nil
	}
}

// readable leaves out of rel what the role may not read, where no mapping reads it either. Of a table without a key the whole row is the key.
func (r *chunkReader) readable(ctx context.Context, rel *cdc.Relation) error {
	var usage bool
	var hidden []string
	err := r.catalog.QueryRow(ctx, `
		select has_schema_privilege(c.relnamespace, 'USAGE'), array(select a.attname::text from pg_attribute a
			where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped and not has_column_privilege(c.oid, a.attnum, 'SELECT') order by a.attnum)
		from pg_class c where c.oid = $1`, rel.OID).Scan(&usage, &hidden)
	if err != nil {
		return fmt.Errorf("privileges on %s: %w", r.table, err)
	}
	if !usage {
		return &Error{
			Reason:   "the role may not use schema " + r.table.Schema,
			Solution: "GRANT USAGE ON SCHEMA " + quoteName(r.table.Schema) + " TO the role of source.url",
		}
	}
	var needed []string
	if r.needs != nil && len(KeyColumns(rel)) > 0 {
		needed = r.needs(rel)
	}
	if needed == nil {
		needed = columnNames(rel, upTo(len(rel.Columns)))
	}
	needed = append(needed, columnNames(rel, KeyColumns(rel))...)
	missing := slices.DeleteFunc(hidden, func(name string) bool { return rel.Column(name) < 0 })
	refused := slices.DeleteFunc(slices.Clone(missing), func(name string) bool { return !slices.Contains(needed, name) })
	if len(refused) > 0 {
		return &Error{
			Reason: fmt.Sprintf("the role may not read columns of %s that mappings need: %s", r.table, strings.Join(refused, ", ")),
			Solution: fmt.Sprintf("GRANT SELECT (%s) ON %s TO the role of source.url (or GRANT SELECT on the whole table)",
				strings.Join(quoteNames(refused), ", "), r.name()),
		}
	}
	keepColumns(rel, func(name string) bool { return !slices.Contains(missing, name) })
	return nil
}

func columnNames(rel *cdc.Relation, columns []int) []string {
	names := make([]string, len(columns))
	for i, c := range columns {
		names[i] = rel.Columns[c].Name
	}
	return names
}

func quoteNames(names []string) []string {
	quoted := make([]string, len(names))
	for i, name := range names {
		quoted[i] = quoteName(name)
	}
	return quoted
}

// conditions joins those that are not empty.
func conditions(all ...string) string {
	var joined []string
	for _, c := range all {
		if c != "" {
			joined = append(joined, "("+c+"\n)") // the line break ends a comment in it
		}
	}
	return strings.Join(joined, " and ")
}

// names are quoted.
func (r *chunkReader) names(columns []int) []string {
	names := make([]string, len(columns))
	for i, c := range columns {
		names[i] = quoteName(r.relation.Columns[c].Name)
	}
	return names
}

// keyNames are the key's columns as the stream names them.
func (r *chunkReader) keyNames() []string {
	var names []string
	for _, c := range r.key {
		names = append(names, r.relation.Columns[c].Name)
	}
	return names
}

func upTo(n int) []int {
	all := make([]int, n)
	for i := range all {
		all[i] = i
	}
	return all
}

// byKey makes the queries of a table with a key. With a condition they go over so many rows, not over as many as it
// takes until enough of them meet it, so that a chunk is short however few do.
func (r *chunkReader) byKey(ctx context.Context) error {
	key, err := loadKey(ctx, r.catalog, r.relation, r.key)
	if err != nil {
		return fmt.Errorf("key of %s: %w", r.table, err)
	}
	r.keep = r.filter != ""
	behind := keyBehind(key)
	among := strings.Join(nonEmpty(keyAmong(r.name(), key), r.filter), " and ")
	again := func(columns []int) string {
		return fmt.Sprintf("select %s from %s where %s", strings.Join(r.names(columns), ", "), r.from, among)
	}
	r.queries = chunkQueries{
		first: r.page(r.everything, ""), next: r.page(r.everything, behind), again: again(r.everything),
		firstKey: r.page(r.key, ""), nextKey: r.page(r.key, behind), againKey: again(r.key),
	}
	return nil
}

// page is a query of rows in the order of the key. Its last parameter is how many.
func (r *chunkReader) page(columns []int, behind string) string {
	order, where, limit := strings.Join(r.names(r.key), ", "), "", "$1"
	if behind != "" {
		where, limit = " where "+behind, fmt.Sprintf("$%d", len(r.key)+1)
	}
	tail := where + " order by " + order + " limit " + limit + "::bigint"
	if !r.keep {
		return "select " + strings.Join(r.names(columns), ", ") + " from " + r.from + tail
	}
	kept := []string{`"cdcsync keep"`}
	for _, c := range columns {
		name := quoteName(r.relation.Columns[c].Name)
		if !slices.Contains(r.key, c) {
			name = `case when "cdcsync keep" then ` + name + ` end`
		}
		kept = append(kept, name)
	}
	inner := "select " + strings.Join(r.names(r.everything), ", ") + ", (" + r.filter + `) is true as "cdcsync keep" from ` + r.from + tail
	return "select " + strings.Join(kept, ", ") + " from (" + inner + ") as page order by " + order
}

func nonEmpty(all ...string) []string {
	return slices.DeleteFunc(all, func(s string) bool { return s == "" })
}

// byPlace makes the query of a table without a key: blocks of its file, in order.
func (r *chunkReader) byPlace() {
	where := strings.Join(nonEmpty("ctid >= $1::text::tid", "ctid < $2::text::tid", r.filter), " and ")
	r.keep = false
	r.queries = chunkQueries{next: fmt.Sprintf("select %s from %s where %s", strings.Join(r.names(r.everything), ", "), r.from, where)}
}

// errNoOrder says that a table cannot be read in chunks.
var errNoOrder = &Error{
	Reason:   "the table is partitioned and has no primary key, so that there is no order to read it in",
	Solution: "add a primary key",
}

// read reads into c what follows p: its rows to be read again, and a page of size rows or, of a table without a key, blocks.
func (r *chunkReader) read(ctx context.Context, p *place, size int, c *chunk) error {
	begun := time.Now()
	for {
		err := r.open(ctx)
		if err == nil {
			c.reset()
			err = r.transaction(ctx, p, size, c)
		}
		tooLong, large := errors.AsType[*pgproto3.ExceededMaxBodyLenErr](err)
		switch {
		case errors.Is(err, errChanged):
			if err := r.look(ctx); err != nil {
				r.close(ctx)
				return err
			}
			continue
		case large:
			r.close(ctx)
			if err := r.shrink(tooLong); err != nil {
				return err
			}
			continue
		case err != nil:
			r.close(ctx)
			if errors.Is(err, os.ErrDeadlineExceeded) && ctx.Err() == nil {
				r.patience = min(2*max(r.patience, chunkPatience), chunkMostPatience)
			}
			return withoutRow(err)
		}
		r.patience = 0
		c.took = time.Since(begun)
		r.careful, r.oversized = false, 0
		return nil
	}
}

// errChanged says that the table's columns are not those of the last look any more.
var errChanged = errors.New("the table has changed")

// shrink reacts to a row that is too large: first one row is read at a time, so that it is known which it is, then its key only.
func (r *chunkReader) shrink(e *pgproto3.ExceededMaxBodyLenErr) error {
	switch {
	case len(r.key) == 0:
		return &Error{
			Reason:   fmt.Sprintf("table %s has a row of %d bytes, more than is carried, and no primary key by which it could be passed over", r.table, e.ActualBodyLen),
			Solution: "add a primary key",
		}
	case r.careful:
		r.oversized = int64(e.ActualBodyLen)
	default:
		r.careful = true
	}
	return nil
}

// transaction reads the chunk in one snapshot.
func (r *chunkReader) transaction(ctx context.Context, p *place, size int, c *chunk) error {
	if r.careful {
		size = 1
	}
	again := p.Again[:min(len(p.Again), size)]
	page := !p.End && len(again) < size
	if len(r.key) == 0 {
		again, page = nil, true
	}
	c.asked = len(again)
	pipe := r.conn.PgConn().StartPipeline(ctx)
	send := func(sql string, params ...[]byte) { pipe.SendQueryParams(sql, params, nil, nil, nil) } // what byKey and byPlace made is encoded
	send("begin isolation level repeatable read, read only")
	send("select pg_current_snapshot()::text")
	send("select pg_current_wal_insert_lsn()::text, ("+chunkVersion+")", strconv.AppendUint(nil, uint64(r.relation.OID), 10))
	if len(again) > 0 {
		send(r.againQuery(), keyColumnArrays(again, len(r.key))...)
	}
	if page {
		sql, params := r.pageQuery(p, size)
		send(sql, params...)
	}
	send("commit")
	if err := pipe.Sync(); err != nil {
		return errors.Join(err, pipe.Close())
	}
	err := r.receive(pipe, p, size, len(again) > 0, page, c)
	if errors.Is(err, errEnough) {
		c.cut = true
		version, relation := r.version, r.relation
		r.close(ctx) // cheaper than to read what is left
		if !r.alterable {
			return nil
		}
		if err := r.open(ctx); err != nil {
			return err
		}
		if r.version != version || r.relation.OID != relation.OID {
			return errChanged
		}
		return nil
	}
	if closeErr := pipe.Close(); err == nil {
		err = closeErr
	}
	if err == nil {
		err = r.unaltered(ctx)
	}
	return err
}

func (r *chunkReader) againQuery() string {
	if r.oversized > 0 {
		return r.queries.againKey
	}
	return r.queries.again
}

func (r *chunkReader) pageQuery(p *place, size int) (sql string, params [][]byte) {
	if len(r.key) == 0 {
		from := blockNumber(p.After)
		return r.queries.next, [][]byte{fmt.Appendf(nil, "(%d,0)", from), fmt.Appendf(nil, "(%d,0)", from+int64(size))}
	}
	q := &r.queries
	switch {
	case r.oversized > 0 && len(p.After) == 0:
		sql = q.firstKey
	case r.oversized > 0:
		sql = q.nextKey
	case len(p.After) == 0:
		sql = q.first
	default:
		sql = q.next
	}
	if len(p.After) > 0 {
		params = splitKey(p.After)
	}
	return sql, append(params, strconv.AppendInt(nil, int64(size), 10))
}

func blockNumber(after []byte) int64 {
	n, err := strconv.ParseInt(string(after), 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// keyColumnArrays turns keys into one array literal for each column, in the database's encoding as they are.
func keyColumnArrays(keys [][]byte, columns int) [][]byte {
	split := make([][][]byte, len(keys))
	for i, key := range keys {
		split[i] = splitKey(key)
	}
	arrays := make([][]byte, columns)
	for i := range arrays {
		arrays[i] = arrayLiteral(len(keys), func(n int) ([]byte, bool) {
			if i >= len(split[n]) {
				return nil, false
			}
			return split[n][i], true
		})
	}
	return arrays
}

// errEnough says that the chunk is as large as it may be.
var errEnough = errors.New("the chunk is full")

func (r *chunkReader) receive(pipe *pgconn.Pipeline, p *place, size int, again, page bool, c *chunk) error {
	if _, err := nextResult(pipe); err != nil {
		return err
	}
	snap, err := nextResult(pipe)
	if err != nil {
		return err
	}
	if c.snapshot, err = parseSnapshot(string(snap.rows[0][0].Data)); err != nil {
		return err
	}
	state, err := nextResult(pipe)
	if err != nil {
		return err
	}
	if c.lsn, err = cdc.ParseLSN(string(state.rows[0][0].Data)); err != nil {
		return err
	}
	if r.charset.DecodeName(string(state.rows[0][1].Data)) != r.version {
		return errChanged
	}
	c.at, c.relation, c.encoded, c.keyNames, c.columns = time.Now(), r.relation, r.encoded, r.keyNames(), len(r.key)
	if c.columns == 0 {
		c.columns = len(r.relation.Columns)
	}
	c.next, c.end = append(c.next, p.After...), p.End
	if again {
		if err := r.rows(pipe, c, false); err != nil {
			return err
		}
		c.again = len(c.rows)
	}
	if page {
		if err := r.rows(pipe, c, true); err != nil {
			return err
		}
		if len(r.key) == 0 {
			c.scanned = size
			c.next = strconv.AppendInt(c.next[:0], blockNumber(p.After)+int64(size), 10)
			c.end = blockNumber(c.next) >= r.blocks
		} else {
			c.end = c.scanned < size
		}
	}
	_, err = nextResult(pipe)
	return err
}

// rows takes the rows of one query, past pgconn, in place: it is what a backfill spends its time with. frames gives pgconn one message
// at a time, so that it has read no further than the rows' description; the number that the server tells at the end proves it.
func (r *chunkReader) rows(pipe *pgconn.Pipeline, c *chunk, page bool) error {
	results, err := pipe.GetResults()
	if err != nil {
		return err
	}
	reader, ok := results.(*pgconn.ResultReader)
	if !ok {
		return fmt.Errorf("answer to a query: %T", results)
	}
	taken := int64(0)
	for {
		message, ok, err := r.frames.row()
		if _, large := errors.AsType[*pgproto3.ExceededMaxBodyLenErr](err); large && page && c.scanned > 0 && len(r.key) > 0 {
			return errEnough // the next chunk begins with the row that is too large
		}
		if err != nil {
			return err
		}
		if !ok {
			break
		}
		if page && len(r.key) > 0 && c.scanned > 0 && len(message) >= largeMessage {
			return errEnough // it is a chunk by itself, so that nothing stands beside it in memory
		}
		taken++
		if err := r.take(message, c, page); err != nil {
			return err
		}
		// A page without an order cannot be cut: its rows have no place to go on from.
		if page && len(r.key) > 0 && (len(c.frames) >= chunkBytes || len(c.keys) >= chunkKeys) {
			return errEnough
		}
	}
	tag, err := reader.Close()
	if err == nil && tag.RowsAffected() != taken {
		return fmt.Errorf("%d rows came, and the server has sent %d", taken, tag.RowsAffected())
	}
	return err
}

// take adds a row to the chunk, unless the condition leaves it out.
func (r *chunkReader) take(message []byte, c *chunk, page bool) error {
	key, columns := r.key, len(r.everything)
	if r.oversized > 0 {
		key, columns = r.keyOnly, len(r.keyOnly) // the row has nothing else
	}
	filtered := page && r.keep
	if filtered {
		columns++
	}
	if err := r.row.parse(message, columns); err != nil {
		return err
	}
	if len(message) >= largeMessage {
		collect(len(message))
		c.frames = slices.Grow(c.frames, len(message)+footerSlack)
	}
	keep := true
	if filtered {
		keep = string(r.row.text(0)) == "t"
		r.row.shift()
	}
	if page {
		c.scanned++
		c.next = r.row.appendKey(c.next[:0], key)
	}
	if !keep {
		return nil
	}
	if r.oversized > 0 {
		c.frames = r.appendShown(c.frames)
	} else {
		c.frames = cdc.AppendRead(c.frames, r.relation.OID, len(r.row.ends), r.row.values)
	}
	if len(key) == 0 {
		key = r.everything
	}
	c.keys = r.row.appendKey(c.keys, key)
	c.rows = append(c.rows, chunkRow{frame: len(c.frames), key: len(c.keys), oversized: r.oversized})
	return nil
}

// appendShown writes the key of a row that is too large, for people.
func (r *chunkReader) appendShown(dst []byte) []byte {
	for n, i := range r.key {
		if n > 0 {
			dst = append(dst, ", "...)
		}
		dst = append(append(append(dst, r.relation.Columns[i].Name...), '='), r.charset.Show(r.row.text(n))...)
	}
	return dst
}

// horizon returns the newest transactions that have ended and that have begun; all before oldest have ended.
func (r *chunkReader) horizon(ctx context.Context) (oldest, next uint32, err error) {
	if err := r.open(ctx); err != nil {
		return 0, 0, err
	}
	var text string
	if err := r.catalog.QueryRow(ctx, `select pg_current_snapshot()::text`).Scan(&text); err != nil {
		r.close(ctx)
		return 0, 0, err
	}
	s, err := parseSnapshot(text)
	return s.xmin, s.xmax, err
}

// nudge moves the flushed end of the WAL: a commit that has written something is flushed at once, whatever the role's settings.
func (r *chunkReader) nudge(ctx context.Context) error {
	if err := r.open(ctx); err != nil {
		return err
	}
	tx, err := r.conn.Begin(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback(ctx) }() // does nothing after the commit
	if _, err := tx.Exec(ctx, `select set_config('synchronous_commit', 'local', true), pg_logical_emit_message(true, 'cdcsync', '')`); err != nil {
		return err
	}
	return tx.Commit(ctx)
}

// tableSize is what the planner thinks.
type tableSize struct {
	rows  int64 // that meet the condition
	total int64 // rows or, of a table without a key, blocks
}

// check says whether the table can be read and where is a condition over its columns, and estimates how much there is to read.
func (r *chunkReader) check(ctx context.Context) (size tableSize, err error) {
	if err := r.open(ctx); err != nil {
		return size, err
	}
	if err := r.checkWhere(ctx); err != nil {
		return size, err
	}
	if size.total, err = r.planned(ctx, ""); err != nil {
		return size, err
	}
	size.rows = size.total
	if r.where != "" {
		size.rows, err = r.planned(ctx, r.where)
	}
	if len(r.key) == 0 {
		size.total = r.blocks
	}
	return size, err
}

func (r *chunkReader) name() string { return pgx.Identifier{r.table.Schema, r.table.Name}.Sanitize() }

func (r *chunkReader) checkWhere(ctx context.Context) error {
	if r.where == "" {
		return nil
	}
	sql, err := encodeSQL(r.charset, fmt.Sprintf("select (%s\n)::bool from %s where false", r.where, r.name()))
	if err != nil {
		return err
	}
	_, err = r.conn.PgConn().Prepare(ctx, "", sql, nil)
	if pgErr, ok := errors.AsType[*pgconn.PgError](err); ok {
		return &Error{
			Reason:   fmt.Sprintf("where %q is no condition on the columns of %s: %s", r.where, r.table, pgErr.Message),
			Solution: "write it as it would stand behind WHERE, such as: created_at > '2026-01-01'",
		}
	}
	return err
}

// planned is the planner's estimate of the rows that meet a condition.
func (r *chunkReader) planned(ctx context.Context, where string) (int64, error) {
	sql := "explain (format json) select 1 from " + r.name()
	if where != "" {
		sql += " where " + conditions(where)
	}
	var plan []struct {
		Plan struct {
			Rows float64 `json:"Plan Rows"`
		}
	}
	if err := r.catalog.QueryRow(ctx, sql).Scan(&plan); err != nil {
		if sqlState(err) == codePrivilege {
			return 0, privilegeError(err)
		}
		return 0, fmt.Errorf("table %s: %w", r.table, err)
	}
	if len(plan) != 1 {
		return 0, nil
	}
	return int64(plan[0].Plan.Rows), nil
}
