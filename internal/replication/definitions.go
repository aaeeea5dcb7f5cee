package replication

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/cdcsync/cdcsync/internal/backoff"
	"github.com/cdcsync/cdcsync/internal/cdc"
)

// definitions knows what the composite types of the stream's rows are, and were. The text of a composite value has the fields
// that its type had where the row was written, without their names, and the server announces no change of a type: ALTER TYPE makes
// no Relation message, and it locks out nobody who writes rows.
//
// So a definition is asked of the catalogue, and is taken for a transaction's rows only when it is proven that no other was in
// force while the transaction ran:
//   - it was there before the transaction began: a snapshot sees the transactions that made it and was taken before the row's
//     transaction had an XID, or the type is as CREATE TYPE made it;
//   - no later one was there when the transaction was committed: a look at the catalogue after that finds the same version.
//
// Between the last look at one version and the first at the next nothing is proven. Such values are stored as cdc.TypeUnknown: delivery reads
// them back by key, and what cannot be read back is a dead letter. It is owned by the goroutine that reads the stream.
type definitions struct {
	types   map[uint32]*defined // by OID of a column's type, which may be an array or a domain of it
	relids  []uint32            // pg_class entries of composite types
	changed bool                // there is something to remember
	latest  cdc.LSN             // commits up to here were looked at
}

// definitionSource looks at the catalogue. relids are the composite types that were found before, and xid is a transaction that has been
// committed, which may not be visible yet.
type definitionSource interface {
	define(ctx context.Context, oids, relids []uint32, xid uint32) (sighting, error)
}

// sighting is the catalogue's answer.
type sighting struct {
	types  map[uint32]definedType
	relids []uint32 // pg_class entries of the composite types
	next   uint64   // the first XID that was not given out when the types were read
	// until is where the WAL ended before; 0 when somebody was altering a type, so that a commit before it may be that of another version.
	until cdc.LSN
}

type definedType struct {
	typ     *cdc.Type
	version string
	// asMade is true when nobody has altered the composite types since they were made.
	asMade bool
}

// definition is what is remembered of a type over a restart.
type definition struct {
	Version string `json:"version"` // of pg_attribute's rows
	Born    uint64 `json:"born"`    // transactions from this XID on began when the version was there; 0 for all
}

// defined are the present and the last version of a type.
type defined struct {
	now, before state
}

type state struct {
	definition
	typ   *cdc.Type
	until cdc.LSN // commits up to here came before any later version
}

func newDefinitions(known map[uint32]definition) definitions {
	d := definitions{types: make(map[uint32]*defined)}
	for oid, def := range known {
		d.types[oid] = &defined{now: state{definition: def}}
	}
	return d
}

// want has the types of columns looked at from now on.
func (d *definitions) want(columns []cdc.Column) (shifting []int) {
	for i := range columns {
		t := columns[i].Type
		if !t.Has(cdc.TypeComposite) && !t.Has(cdc.TypeUnknown) { // which may be one that is not visible yet
			continue
		}
		shifting = append(shifting, i)
		if d.types[t.OID] == nil {
			d.types[t.OID] = &defined{}
			d.latest = 0
		}
	}
	return shifting
}

// expect has types looked at before the first row that has them, so that more transactions begin after it.
func (d *definitions) expect(oids []uint32) {
	for _, oid := range oids {
		if d.types[oid] == nil {
			d.types[oid] = &defined{}
		}
	}
}

// look asks the catalogue for all types.
func (d *definitions) look(ctx context.Context, source definitionSource, xid uint32) error {
	oids := slices.Sorted(maps.Keys(d.types))
	if len(oids) == 0 {
		return nil
	}
	found, err := source.define(ctx, oids, d.relids, xid)
	if err != nil {
		return err
	}
	if !subset(found.relids, d.relids) { // whether one of these is being altered was not looked at
		d.relids = found.relids
		if found, err = source.define(ctx, oids, d.relids, xid); err != nil {
			return err
		}
		if !subset(found.relids, d.relids) {
			found.until = 0
		}
	}
	d.latest = found.until
	for oid, t := range d.types {
		d.learn(t, found.types[oid], found)
	}
	return nil
}

func subset(some, all []uint32) bool {
	for _, v := range some {
		if !slices.Contains(all, v) {
			return false
		}
	}
	return true
}

func (d *definitions) learn(t *defined, seen definedType, found sighting) {
	const far = 1 << 30  // XIDs are compared modulo 2^32
	if seen.typ == nil { // it was dropped
		if t.now.typ != nil {
			t.before, t.now = t.now, state{}
		}
		return
	}
	if t.now.Version != seen.version {
		t.before, t.now = t.now, state{definition: definition{Version: seen.version, Born: found.next}}
		d.changed = true
	}
	t.now.typ = seen.typ
	if seen.asMade && t.now.Born != 0 {
		t.now.Born, d.changed = 0, true
	}
	if t.now.Born != 0 && t.now.Born+far < found.next {
		t.now.Born, d.changed = found.next-far, true
	}
	t.now.until = max(t.now.until, found.until)
}

// of gives the type as it was for a transaction; nil when that is not known.
func (d *definitions) of(oid, xid uint32, commit cdc.LSN) *cdc.Type {
	t := d.types[oid]
	for _, s := range []*state{&t.now, &t.before} {
		if s.typ != nil && commit <= s.until && (s.Born == 0 || int32(xid-uint32(s.Born)) >= 0) {
			return s.typ
		}
	}
	return nil
}

// remembered is what outlives the session; nil when it has not changed.
func (d *definitions) remembered() map[uint32]definition {
	if !d.changed {
		return nil
	}
	d.changed = false
	all := make(map[uint32]definition, len(d.types))
	for oid, t := range d.types {
		if t.now.Version != "" {
			all[oid] = t.now.definition
		}
	}
	return all
}

// begin looks at the types of the mapped tables before the stream begins.
func (d *definitions) begin(ctx context.Context, c *catalog, tables []Table) error {
	err := c.with(ctx, func(ctx context.Context, q querier) error {
		oids, err := composites(ctx, q, tables)
		d.expect(oids)
		return err
	})
	if err == nil {
		err = d.look(ctx, c, 0)
	}
	if err != nil {
		return fmt.Errorf("composite types: %w", err)
	}
	return nil
}

// composites are the types of columns that have composite types within them.
func composites(ctx context.Context, q querier, tables []Table) ([]uint32, error) {
	schemas, names := make([]string, len(tables)), make([]string, len(tables))
	for i, t := range tables {
		schemas[i], names[i] = t.Schema, t.Name
	}
	rows, err := q.Query(ctx, `
		select distinct a.atttypid
		from unnest($1::text[], $2::text[]) as w(schema, name) join pg_namespace s on s.nspname = w.schema
		join pg_class c on c.relnamespace = s.oid and c.relname = w.name
		join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped and a.atttypid >= 16384`, schemas, names)
	if err != nil {
		return nil, err
	}
	oids, err := pgx.CollectRows(rows, pgx.RowTo[uint32])
	if err != nil || len(oids) == 0 {
		return nil, err
	}
	types, err := loadTypes(ctx, q, oids)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(oids, func(oid uint32) bool { return !types[oid].Has(cdc.TypeComposite) }), nil
}

// define gives a relation the types that its columns have for the open transaction. s.out.mu is held, but not while it asks.
func (s *session) define(ctx context.Context, rel *relation) error {
	if rel.definedFor == s.tx.commit {
		return nil
	}
	if s.tx.commit > s.definitions.latest {
		if err := s.unlocked(func() error { return s.lookAtTypes(ctx) }); err != nil {
			return fmt.Errorf("types of %s: %w", rel, err)
		}
	}
	rel.definedFor = s.tx.commit
	now := *rel.Relation
	now.Columns = slices.Clone(now.Columns)
	for _, i := range rel.shifting {
		announced := rel.announced.Columns[i].Type
		now.Columns[i].Type = announced
		if t := s.definitions.of(announced.OID, s.tx.xid, s.tx.commit); t != nil {
			now.Columns[i].Type = t
		} else {
			now.Columns[i].Type = cdc.UnknownType(announced)
		}
	}
	encoded := cdc.AppendRelation(nil, &now)
	if string(encoded) == string(rel.encoded) {
		return nil
	}
	rel.Relation, rel.encoded = &now, encoded
	if s.out.writer.Has(rel.OID) { // the block has another version
		s.out.writer.Relation(rel.OID, encoded)
	}
	return nil
}

func (s *session) lookAtTypes(ctx context.Context) error {
	const patience = 10 * time.Second
	if now := time.Now(); s.clock.due(now) { // the server hears from us before
		if err := s.tick(now); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if err := s.definitions.look(ctx, s.catalog, s.tx.xid); err != nil {
		return err
	}
	if types := s.definitions.remembered(); types != nil {
		s.types.Store(&types)
	}
	return nil
}

// define looks again when the transaction whose rows are read is not visible yet, or has still the locks that it altered types by.
func (c *catalog) define(ctx context.Context, oids, relids []uint32, xid uint32) (found sighting, err error) {
	const first, longest = 2 * time.Millisecond, 500 * time.Millisecond
	err = c.with(ctx, func(ctx context.Context, q querier) error {
		for wait := first; ; wait *= 2 {
			var ending bool
			if found, ending, err = defineOnce(ctx, q, oids, relids, xid); err != nil {
				return err
			}
			settled := found.until != 0 && len(found.types) == len(oids)
			if settled || wait > first && (!ending || wait > longest) {
				return nil
			}
			if err := backoff.Sleep(ctx, wait); err != nil {
				return err
			}
		}
	})
	return found, err
}

// defineOnce looks at the WAL's end, then at who is altering a type, then at the types: whoever has no lock by then either is seen, or
// commits behind that end (ALTER TYPE holds an AccessExclusiveLock until its commit is visible).
func defineOnce(ctx context.Context, q querier, oids, relids []uint32, xid uint32) (found sighting, ending bool, err error) {
	var end string
	if err := q.QueryRow(ctx, `select case when pg_is_in_recovery() then pg_last_wal_replay_lsn() else pg_current_wal_insert_lsn() end::text`).Scan(&end); err != nil {
		return found, false, err
	}
	var altering bool
	if err := q.QueryRow(ctx, `
		with held as materialized (select * from pg_locks where granted)
		select exists (select 1 from held where locktype = 'relation' and mode = 'AccessExclusiveLock'
				and database = (select oid from pg_database where datname = current_database()) and relation = any($1::oid[])),
			exists (select 1 from held where locktype = 'transactionid' and mode = 'ExclusiveLock' and transactionid::text = $2)`,
		relids, strconv.FormatUint(uint64(xid), 10)).Scan(&altering, &ending); err != nil {
		return found, false, err
	}
	if found, err = defineTypes(ctx, q, oids); err == nil && !altering {
		found.until, err = cdc.ParseLSN(end)
	}
	return found, ending, err
}

func defineTypes(ctx context.Context, q querier, oids []uint32) (sighting, error) {
	b, err := queryTypes(ctx, q, oids, make(map[uint32]*cdc.Type))
	if err != nil {
		return sighting{}, err
	}
	found := sighting{types: make(map[uint32]definedType, len(oids))}
	for _, row := range b.rows {
		found.next = max(found.next, row.Next)
		if row.Relid != 0 {
			found.relids = append(found.relids, row.Relid)
		}
	}
	for _, oid := range oids {
		if t := b.types[oid]; t != nil && !t.Has(cdc.TypeUnknown) {
			found.types[oid] = b.version(t)
		}
	}
	return found, nil
}

// version is that of all composite types that t is built of.
func (b *typeBuilder) version(t *cdc.Type) definedType {
	d := definedType{typ: t, asMade: true}
	hash := sha256.New()
	var add func(t *cdc.Type)
	add = func(t *cdc.Type) {
		if t == nil {
			return
		}
		if row := b.rows[t.OID]; t.Kind == cdc.TypeComposite {
			fmt.Fprintf(hash, "%d:%s\n", t.OID, row.Version)
			d.asMade = d.asMade && row.AsMade
		}
		add(t.Elem)
		for i := range t.Fields {
			add(t.Fields[i].Type)
		}
	}
	add(t)
	d.version = hex.EncodeToString(hash.Sum(nil)[:12])
	return d
}
