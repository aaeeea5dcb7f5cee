package replication

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/cdcsync/cdcsync/internal/cdc"
)

// oldestServer is the first version whose pgoutput and catalogue are as this package expects.
const oldestServer = 140000

// survey is what the source looks like, as far as capture cares.
type survey struct {
	version       int
	walLevel      string
	senderTimeout time.Duration
	keepSize      int64 // max_slot_wal_keep_size in MB; -1 for no limit
	recovering    bool
	database      string
	databaseOID   uint32
	user          string
	tables        []tableFacts // as Config.Tables
	publication   *publicationFacts
	slot          *slotFacts
}

// tableFacts is what the catalogue says of a mapped table. Leaves are the partitions that hold rows.
type tableFacts struct {
	Table       Table
	exists      bool
	kind        string // pg_class.relkind
	persistence string // pg_class.relpersistence
	identity    string // pg_class.relreplident
	identified  bool   // its replica identity names a row
	primaryKey  bool
	readable    bool     // the role may SELECT all rows, if not all columns
	stored      []string // generated columns
	virtual     []string // generated columns
	withheldBy  []string // publications that leave out stored columns; Postgres 18 and newer
	strayLeaves []string // leaves whose replica identity names less than the root's, or other columns
	loneLeaves  []string // leaves whose replica identity names no row
	foreign     []string // leaves that are foreign tables; not in the lists above
	children    []string // tables that inherit from it and are no partitions, as schema.table
	childrenSQL []string // the same, as SQL names them
	notFull     []string // the table and its leaves without REPLICA IDENTITY FULL

	generatedIdentity bool // its replica identity has a generated column
}

type publicationFacts struct {
	oid                              uint32
	allTables, viaRoot               bool
	insert, update, delete, truncate bool
	generated                        bool            // it sends stored generated columns
	named                            map[string]bool // tables that it names
	covered                          map[string]bool // tables whose changes come under this name
	narrowed                         bool            // it has row filters or column lists
}

type slotFacts struct {
	plugin, database string
	temporary        bool
	activePID        int32 // 0 for none
	holder           string
	confirmed        cdc.LSN
	walStatus        string
	invalid          string // why it is invalidated
	transactions     int64  // decoded for it, as far as the server's statistics go back
}

func surveySource(ctx context.Context, q querier, cfg *Config) (*survey, error) {
	sv, err := surveyServer(ctx, q)
	if err != nil {
		return nil, err
	}
	if err := surveyCatalogue(ctx, q, cfg, sv); err != nil {
		return nil, err
	}
	if sv.slot, err = surveySlot(ctx, q, cfg.Slot); err != nil {
		return nil, fmt.Errorf("slot %s: %w", cfg.Slot, err)
	}
	return sv, nil
}

// surveyServer reads what is no table's. It leaves pg_settings alone, which makes all settings' rows for one.
func surveyServer(ctx context.Context, q querier) (*survey, error) {
	sv := &survey{}
	var timeout int64
	err := q.QueryRow(ctx, `
		select current_setting('server_version_num')::int, current_setting('wal_level'),
			(extract(epoch from current_setting('wal_sender_timeout')::interval) * 1000)::bigint,
			case when current_setting('max_slot_wal_keep_size') = '-1' then -1 else pg_size_bytes(current_setting('max_slot_wal_keep_size')) >> 20 end,
			pg_is_in_recovery(), current_database()::text, current_user::text,
			(select oid from pg_database where datname = current_database())`).
		Scan(&sv.version, &sv.walLevel, &timeout, &sv.keepSize, &sv.recovering, &sv.database, &sv.user, &sv.databaseOID)
	if err != nil {
		return nil, fmt.Errorf("server settings: %w", err)
	}
	sv.senderTimeout = time.Duration(timeout) * time.Millisecond
	if sv.version < oldestServer {
		return nil, &Error{
			Reason:   fmt.Sprintf("the server is Postgres %d, and cdcsync needs 14 or newer", sv.version/10000),
			Solution: "upgrade the server",
		}
	}
	return sv, nil
}

// surveyCatalogue reads the mapped tables and the publication.
func surveyCatalogue(ctx context.Context, q querier, cfg *Config, sv *survey) (err error) {
	if sv.tables, err = surveyTables(ctx, q, cfg.Tables); err != nil {
		return fmt.Errorf("mapped tables: %w", err)
	}
	if err := surveyWithheld(ctx, q, sv); err != nil {
		return fmt.Errorf("generated columns of mapped tables: %w", err)
	}
	if sv.publication, err = surveyPublication(ctx, q, cfg.Publication); err != nil {
		return fmt.Errorf("publication %s: %w", cfg.Publication, err)
	}
	return nil
}

func surveyTables(ctx context.Context, q querier, tables []Table) ([]tableFacts, error) {
	if len(tables) == 0 {
		return nil, nil
	}
	schemas, names := make([]string, len(tables)), make([]string, len(tables))
	for i, t := range tables {
		schemas[i], names[i] = t.Schema, t.Name
	}
	rows, err := q.Query(ctx, `
		with recursive wanted as materialized (
			select w.n, c.oid, c.relkind, c.relpersistence, c.relreplident
			from unnest($1::text[], $2::text[]) with ordinality as w(schema, name, n)
			left join pg_namespace s on s.nspname = w.schema
			left join pg_class c on c.relnamespace = s.oid and c.relname = w.name
		), leaf as materialized ( -- partitions that hold rows
			select w.n, w.relreplident as rootident, c.oid, c.relkind, c.relreplident
			from wanted w cross join lateral pg_partition_tree(w.oid) tree join pg_class c on c.oid = tree.relid
			where w.relkind = 'p' and tree.isleaf and c.oid <> w.oid
		), member as ( -- the table and the partitions whose changes are in the WAL
			select m.*, m.oid::regclass::text as name,
				coalesce(case m.relreplident
					when 'f' then true
					when 'd' then exists (select 1 from pg_index x where x.indrelid = m.oid and x.indisprimary)
					when 'i' then exists (select 1 from pg_index x where x.indrelid = m.oid and x.indisreplident)
				end, false) as identified
			from (
				select n, oid, true as root, relreplident as rootident, relreplident from wanted where oid is not null
				union all select n, oid, false, rootident, relreplident from leaf where relkind <> 'f'
			) m
		), members as (
			select n, bool_or(root and identified) as identified,
				array_agg(name order by name) filter (where not root and identified and relreplident not in ('f', rootident)) as stray,
				array_agg(name order by name) filter (where not root and not identified) as lone,
				array_agg(name order by root desc, name) filter (where relreplident <> 'f') as not_full
			from member group by n
		), elsewhere as (
			select n, array_agg(oid::regclass::text order by oid::regclass::text) as names from leaf where relkind = 'f' group by n
		), heir(n, oid) as ( -- what inherits from the table and is no partition
			select w.n, i.inhrelid from wanted w join pg_inherits i on i.inhparent = w.oid where w.relkind = 'r'
			union select h.n, i.inhrelid from heir h join pg_inherits i on i.inhparent = h.oid
		), children as (
			select h.n, array_agg(s.nspname || '.' || c.relname order by c.oid) as names, array_agg(c.oid::regclass::text order by c.oid) as quoted
			from heir h join pg_class c on c.oid = h.oid join pg_namespace s on s.oid = c.relnamespace where c.relkind = 'r' group by h.n
		), generated as (
			select w.n, array_agg(a.attname::text order by a.attnum) filter (where a.attgenerated = 's') as stored,
				array_agg(a.attname::text order by a.attnum) filter (where a.attgenerated = 'v') as virtual,
				bool_or(w.relreplident = 'f' or exists (select 1 from pg_index x where x.indrelid = w.oid and a.attnum = any(x.indkey)
					and case w.relreplident when 'd' then x.indisprimary when 'i' then x.indisreplident end)) as identity
			from wanted w join pg_attribute a on a.attrelid = w.oid and a.attnum > 0 and not a.attisdropped and a.attgenerated <> '' group by w.n
		)
		select w.oid is not null, coalesce(w.relkind::text, ''), coalesce(w.relpersistence::text, ''), coalesce(w.relreplident::text, ''),
			coalesce(m.identified, false),
			exists (select 1 from pg_index x where x.indrelid = w.oid and x.indisprimary),
			coalesce(has_any_column_privilege(w.oid, 'SELECT') and not row_security_active(w.oid), false),
			coalesce(g.stored, '{}'), coalesce(g.virtual, '{}'), coalesce(g.identity, false),
			coalesce(m.stray, '{}'), coalesce(m.lone, '{}'), coalesce(e.names, '{}'), coalesce(c.names, '{}'), coalesce(c.quoted, '{}'), coalesce(m.not_full, '{}')
		from wanted w left join members m using (n) left join generated g using (n) left join elsewhere e using (n) left join children c using (n)
		order by n`, schemas, names)
	if err != nil {
		return nil, err
	}
	i := 0
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (tableFacts, error) {
		t := tableFacts{Table: tables[i]}
		i++
		err := row.Scan(&t.exists, &t.kind, &t.persistence, &t.identity, &t.identified, &t.primaryKey, &t.readable,
			&t.stored, &t.virtual, &t.generatedIdentity, &t.strayLeaves, &t.loneLeaves, &t.foreign, &t.children, &t.childrenSQL, &t.notFull)
		return t, err
	})
}

func surveyPublication(ctx context.Context, q querier, name string) (*publicationFacts, error) {
	p := &publicationFacts{named: make(map[string]bool), covered: make(map[string]bool)}
	err := q.QueryRow(ctx, `
		select oid, puballtables, pubviaroot, pubinsert, pubupdate, pubdelete, pubtruncate, coalesce(to_jsonb(p) ->> 'pubgencols' = 's', false)
		from pg_publication p where pubname = $1`, name).
		Scan(&p.oid, &p.allTables, &p.viaRoot, &p.insert, &p.update, &p.delete, &p.truncate, &p.generated)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	rows, err := q.Query(ctx, `
		select n.nspname || '.' || c.relname, true
		from pg_publication p join pg_publication_rel r on r.prpubid = p.oid
		join pg_class c on c.oid = r.prrelid join pg_namespace n on n.oid = c.relnamespace
		where p.pubname = $1
		union all
		select n.nspname || '.' || c.relname, false from pg_get_publication_tables($1) t
		join pg_class c on c.oid = t.relid join pg_namespace n on n.oid = c.relnamespace`, name)
	if err != nil {
		return nil, err
	}
	var table string
	var named bool
	_, err = pgx.ForEachRow(rows, []any{&table, &named}, func() error {
		if named {
			p.named[table] = true
		} else {
			p.covered[table] = true
		}
		return nil
	})
	return p, err
}

func surveySlot(ctx context.Context, q querier, name string) (*slotFacts, error) {
	s := &slotFacts{}
	var confirmed string
	err := q.QueryRow(ctx, `
		select coalesce(s.plugin, 'none')::text, coalesce(s.database, '')::text, s.temporary, coalesce(s.active_pid, 0),
			coalesce(format('role %s, application %s, from %s', a.usename, a.application_name, coalesce(host(a.client_addr), 'a local socket')),
				'of which this role may see nothing more'),
			coalesce(s.confirmed_flush_lsn::text, '0/0'), coalesce(s.wal_status, ''),
			coalesce(to_jsonb(s) ->> 'invalidation_reason', ''), coalesce(st.total_txns, 0)
		from pg_replication_slots s
		left join pg_stat_activity a on a.pid = s.active_pid
		left join pg_stat_replication_slots st on st.slot_name = s.slot_name
		where s.slot_name = $1`, name).
		Scan(&s.plugin, &s.database, &s.temporary, &s.activePID, &s.holder, &confirmed, &s.walStatus, &s.invalid, &s.transactions)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	s.confirmed, err = cdc.ParseLSN(confirmed)
	return s, err
}

// plan is where a session begins.
type plan struct {
	tail          cdc.Footer
	source        incarnation
	senderTimeout time.Duration
	confirmed     cdc.LSN // of the slot: Postgres would let itself be talked back to an earlier one
	from          cdc.LSN // where replication begins: behind start where the past has to be shown
	history       history
}

// start is the LSN before which nothing is needed any more.
func (p *plan) start() cdc.LSN { return max(p.tail.Resume.End, p.source.Confirmed) }

// command asks for the slot's changes; the server goes on from its own confirmed position when that is later (CreateDecodingContext in logical.c).
func (p *plan) command(cfg *Config) command {
	publication := quoteLiteral(pgx.Identifier{cfg.Publication}.Sanitize())
	return command{fmt.Sprintf("START_REPLICATION SLOT %s LOGICAL %s (proto_version '2', publication_names %s)",
		pgx.Identifier{cfg.Slot}.Sanitize(), p.from, publication)}
}

// prepare looks at the source and the log, refuses what would lose changes, and makes what is missing when that is wanted.
func (s *Stream) prepare(ctx context.Context, server *server) (*plan, error) {
	sv, err := surveySource(ctx, server.asks(), &s.cfg)
	if err != nil {
		return nil, err
	}
	if err := s.survey.open(ctx); err != nil {
		return nil, err
	}
	if err := firstFailure(s.survey.tolerated(findings(sv, &s.cfg))); err != nil {
		return nil, err
	}
	if slot := sv.slot; slot != nil && slot.activePID != 0 {
		return nil, &busyError{slot: s.cfg.Slot, pid: slot.activePID, holder: slot.holder}
	}
	now, err := server.wire.identify(ctx)
	if err != nil {
		return nil, err
	}
	p := &plan{senderTimeout: sv.senderTimeout}
	known, tailOK, err := s.readLog(ctx, p)
	if err != nil {
		return nil, err
	}
	if err := s.compare(now.id, sv, known, p, tailOK); err != nil {
		return nil, err
	}
	if err := compareHistory(ctx, server.wire, now, known, p); err != nil {
		return nil, err
	}
	switch { // the publication first: a slot that is older than it cannot decode
	case s.survey != nil: // what is repaired was wrong before, which is recorded first
		err = s.survey.survey(ctx)
	case s.cfg.Manage:
		err = s.managePublication(ctx, server.sql, sv)
	}
	if err != nil {
		return nil, err
	}
	switch {
	case known != nil:
		p.source = *known
	case sv.slot != nil:
		p.source = incarnation{Created: sv.slot.confirmed}
	default:
		if p.source.Created, err = s.createSlot(ctx, server); err != nil {
			return nil, err
		}
	}
	if p.confirmed = p.source.Created; sv.slot != nil {
		p.confirmed = sv.slot.confirmed
	}
	if !tailOK { // with a log that was never written to, the slot says where to begin
		p.source.Confirmed = max(p.source.Confirmed, p.confirmed)
	}
	s.begin(p)
	return p, s.identify(ctx, server.asks(), sv, now, p)
}

// begin decides where replication begins. Where the slot is behind the log, as after a crash of the server, or after it was
// replaced by an older copy of itself, the last transaction that is stored has to come by again.
func (s *Stream) begin(p *plan) {
	p.from = p.start()
	if known := p.source.Publication; known != "" && known != s.cfg.Publication {
		return // another publication may have sent other transactions
	}
	if p.confirmed < p.from {
		p.from = max(p.confirmed, p.witness().Commit)
	}
	p.history = newHistory(p)
}

// identify stores what the log's source is, where that is new.
func (s *Stream) identify(ctx context.Context, q querier, sv *survey, now system, p *plan) error {
	source := p.source
	source.Refused = ""
	source.System, source.Slot, source.Timeline = now.id, s.cfg.Slot, now.timeline
	source.Database, source.Name, source.Publication, source.Address = sv.databaseOID, sv.database, s.cfg.Publication, address(s.cfg.URL)
	err := q.QueryRow(ctx, "select oid from pg_publication where pubname = $1", s.cfg.Publication).Scan(&source.Publisher)
	if err != nil {
		return fmt.Errorf("publication %s: %w", s.cfg.Publication, err)
	}
	if bytes.Equal(source.encode(), p.source.encode()) {
		return nil
	}
	p.source = source
	if err := s.log.SetSource(ctx, source.encode()); err != nil {
		return fmt.Errorf("store slot: %w", err)
	}
	return nil
}

func firstFailure(list []Finding) error {
	for _, f := range list {
		if f.Severity == Failure {
			return &Error{Reason: f.Message, Solution: f.Solution}
		}
	}
	return nil
}

func (s *Stream) readLog(ctx context.Context, p *plan) (known *incarnation, tailOK bool, err error) {
	if p.tail, tailOK, err = s.log.Tail(ctx); err != nil {
		return nil, false, fmt.Errorf("read the end of the buffer: %w", err)
	}
	state, err := s.log.Source(ctx)
	if err != nil {
		return nil, false, fmt.Errorf("read the buffer's slot: %w", err)
	}
	known, err = decodeIncarnation(state)
	return known, tailOK, err
}

// compare refuses a slot and a log that do not belong together.
func (s *Stream) compare(system string, sv *survey, known *incarnation, p *plan, tailOK bool) error {
	slot := sv.slot
	if known != nil {
		if err := known.foreign(Identity{System: system, Database: sv.databaseOID, Name: sv.database, Slot: s.cfg.Slot}); err != nil {
			return err
		}
	}
	switch {
	case known != nil && known.Database != 0 && known.Database != sv.databaseOID:
		return &Error{
			Reason:   fmt.Sprintf("database %q was dropped and made anew: what the buffer has belongs to the one before", sv.database),
			Solution: startAnew(s.cfg.Slot),
		}
	case known != nil && s.unpublished(known, sv.publication):
		return unpublishedError(&s.cfg)
	case slot == nil && (known != nil || tailOK):
		return &Error{
			Reason:   fmt.Sprintf("slot %q is gone: changes since %s will never arrive", s.cfg.Slot, p.tail.Resume.End),
			Solution: startAnew(s.cfg.Slot),
		}
	case slot == nil:
		return nil
	}
	reached := p.tail.Resume.End
	if known != nil {
		reached = max(reached, known.Confirmed)
	}
	fresh := !tailOK && (s.cfg.AckDelivered || known == nil && slot.transactions == 0)
	if fresh || slot.confirmed <= reached {
		return nil
	}
	return &Error{
		Reason: fmt.Sprintf("slot %q is confirmed up to %s, but the buffer reaches only to %s: the buffer was lost or is an older copy, or the slot was"+
			" dropped and made again; changes in between may not have been delivered", s.cfg.Slot, slot.confirmed, reached),
		Solution: "restore the buffer, or " + startAnew(s.cfg.Slot),
	}
}

// unpublished reports whether the publication is not the one that the log knows. From Postgres 18 on a missing publication is no
// error while decoding: the changes are left out.
func (s *Stream) unpublished(known *incarnation, now *publicationFacts) bool {
	return known.Publisher != 0 && known.Publication == s.cfg.Publication && (now == nil || now.oid != known.Publisher)
}

// createSlot returns the slot's first consistent LSN. The server waits until the transactions that are open now have ended.
func (s *Stream) createSlot(ctx context.Context, server *server) (cdc.LSN, error) {
	conn := server.sql
	if _, err := conn.Exec(ctx, "set statement_timeout = 0"); err != nil {
		return 0, fmt.Errorf("slot %s: %w", s.cfg.Slot, err)
	}
	server.patient.setPatience(0)
	defer server.patient.setPatience(serverPatience)
	var at string
	err := watchSlot(ctx, s.cfg.URL, conn.PgConn().PID(), s.slotWaits(ctx), func(ctx context.Context) (err error) {
		at, err = s.makeSlot(ctx, conn)
		return err
	})
	if err != nil {
		return 0, streamError(&s.cfg, err)
	}
	s.logger.InfoContext(ctx, "slot made", "slot", s.cfg.Slot, "lsn", at)
	return cdc.ParseLSN(at)
}

// makeSlot makes the slot so that standbys can have it, too, where the server can do that.
func (s *Stream) makeSlot(ctx context.Context, conn *pgx.Conn) (at string, err error) {
	var version int
	var recovering bool
	if err := conn.QueryRow(ctx, "select current_setting('server_version_num')::int, pg_is_in_recovery()").Scan(&version, &recovering); err != nil {
		return "", fmt.Errorf("server settings: %w", err)
	}
	if version >= hasFailover && !recovering {
		err := conn.QueryRow(ctx, "select lsn::text from pg_create_logical_replication_slot($1, 'pgoutput', failover => true)", s.cfg.Slot).Scan(&at)
		if !refusesFailover(err) {
			return at, err
		}
		s.logger.WarnContext(ctx, noFailover, "slot", s.cfg.Slot, "err", err)
	}
	err = conn.QueryRow(ctx, "select lsn::text from pg_create_logical_replication_slot($1, 'pgoutput')", s.cfg.Slot).Scan(&at)
	return at, err
}

// hasFailover is the first version that can.
const hasFailover = 170000

const noFailover = "the server makes no slot with failover: after a promotion the slot will be missing"

func refusesFailover(err error) bool {
	code := sqlState(err)
	return code == codeFeatureNotSupported || code == codeInvalidParameter || code == codeUndefinedFunction
}

// slotWaits tells in log and status what a new slot waits for.
func (s *Stream) slotWaits(ctx context.Context) func(*blocker) {
	return func(b *blocker) {
		s.logger.WarnContext(ctx, "making the slot waits for an open transaction", "slot", s.cfg.Slot, "transaction", b.String(), "solution", b.solution())
		if s.status != nil { // a recovery has none
			s.status.delayed(fmt.Sprintf("making slot %q waits for %s; %s", s.cfg.Slot, b, b.solution()))
		}
	}
}

// managePublication makes the publication name exactly the mapped tables.
func (s *Stream) managePublication(ctx context.Context, conn *pgx.Conn, sv *survey) error {
	for _, st := range append(generatedStatements(&s.cfg, sv), publicationStatements(&s.cfg, sv)...) {
		sql, err := encodeSQL(charsetOf(conn.PgConn()), st.SQL)
		if err != nil {
			return err
		}
		if _, err := conn.Exec(ctx, sql); err != nil {
			return streamError(&s.cfg, fmt.Errorf("%s: %w", st.Why, err))
		}
		s.logger.InfoContext(ctx, "publication managed", "publication", s.cfg.Publication, "why", st.Why)
	}
	return nil
}

// heldBack reports whether publishing the table, which is not published yet, would break the application.
func (t *tableFacts) heldBack(p *publicationFacts) bool {
	return len(t.loneLeaves) > 0 && (p == nil || !p.allTables && !p.named[t.Table.String()])
}

// publicationStatements is what turns the present publication, nil for none, into the one that is wanted, after generatedStatements.
func publicationStatements(cfg *Config, sv *survey) []Statement {
	const options = "publish = 'insert, update, delete, truncate', publish_via_partition_root = true"
	p := sv.publication
	name := pgx.Identifier{cfg.Publication}.Sanitize()
	var tables []string
	same := p != nil
	for i := range sv.tables {
		t := &sv.tables[i]
		if t.heldBack(p) || !t.publishable() {
			continue
		}
		tables = append(tables, quoteTable(t.Table))
		same = same && p.named[t.Table.String()]
	}
	same = same && len(p.named) == len(tables) && !p.narrowed
	// ONLY, since to publish the tables that inherit from one would make their UPDATE and DELETE fail when they have no key, and
	// their rows come under names that no mapping has. For a partitioned table it changes nothing.
	list := "ONLY " + strings.Join(tables, ", ONLY ")
	if p == nil {
		sql := "CREATE PUBLICATION " + name
		if len(tables) > 0 {
			sql += " FOR TABLE " + list
		}
		sql += " WITH (" + options
		if sv.storesGenerated() {
			sql += ", " + storedOption
		}
		return []Statement{{SQL: sql + ")", Why: "the publication is missing"}}
	}
	var statements []Statement
	if !same && !p.allTables && len(tables) > 0 {
		statements = append(statements, Statement{SQL: "ALTER PUBLICATION " + name + " SET TABLE " + list, Why: "the publication names other tables than the mappings"})
	}
	if !p.insert || !p.update || !p.delete || !p.truncate || !p.viaRoot {
		statements = append(statements, Statement{SQL: "ALTER PUBLICATION " + name + " SET (" + options + ")", Why: "the publication has other options"})
	}
	return statements
}

// publishable reports whether a publication can name the table.
func (t *tableFacts) publishable() bool {
	return t.exists && (t.kind == "r" || t.kind == "p") && t.persistence == "p"
}
