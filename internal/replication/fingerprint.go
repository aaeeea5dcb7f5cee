package replication

import (
	"context"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"
)

// catalogueView is what a survey read of the catalogue, with the fingerprint that the catalogue had before. As long as that is
// the same, nothing of it is asked again: on a source with thousands of tables that is nearly all that a survey costs.
type catalogueView struct {
	print  string
	survey *survey
	facts  *sourceFacts
}

// fingerprintSQL changes with every row of the catalogue that a survey depends on: xmin is another one after each INSERT and
// UPDATE, and the sum is another one after each DELETE. What VACUUM and ANALYZE write in place leaves xmin alone, and is no part
// of the facts but for a partition's size, which is asked each time. Roles are read by what they may do, since pg_authid may not be read.
const fingerprintSQL = `
	select concat_ws(' ',
		(select concat_ws('/', count(*), sum(hash_record_extended(row(oid, xmin), 0))) from pg_class where relkind not in ('t', 'S')),
		(select concat_ws('/', count(*), sum(hash_record_extended(row(attrelid, attnum, xmin), 1))) from pg_attribute where attnum > 0),
		(select concat_ws('/', count(*), sum(hash_record_extended(row(indexrelid, xmin), 2))) from pg_index),
		(select concat_ws('/', count(*), sum(hash_record_extended(row(inhrelid, inhparent, xmin), 3))) from pg_inherits),
		(select concat_ws('/', count(*), sum(hash_record_extended(row(oid, xmin), 4))) from pg_namespace),
		(select concat_ws('/', count(*), sum(hash_record_extended(row(oid, xmin), 5))) from pg_publication),
		(select concat_ws('/', count(*), sum(hash_record_extended(row(oid, xmin), 6))) from pg_publication_rel),
		(select concat_ws('/', count(*), sum(hash_record_extended(row(oid, rolname, rolsuper, rolinherit, rolbypassrls), 7))) from pg_roles),
		(select concat_ws('/', count(*), sum(hash_record_extended(row(roleid, member, xmin), 8))) from pg_auth_members),
		current_setting('row_security'), current_setting('search_path'), current_user`

const fingerprintSchemasSQL = `,
		(select concat_ws('/', count(*), sum(hash_record_extended(row(oid, xmin), 9))) from pg_publication_namespace)`

// fingerprint is asked before what it stands for: what changes in between makes the next one another.
func fingerprint(ctx context.Context, q querier, version int) (print string, err error) {
	sql := fingerprintSQL
	if version >= publishesSchemas {
		sql += fingerprintSchemasSQL
	}
	if err := q.QueryRow(ctx, sql+")").Scan(&print); err != nil {
		return "", fmt.Errorf("fingerprint of the catalogue: %w", err)
	}
	return print, nil
}

// publishesSchemas is the first version that has FOR TABLES IN SCHEMA, row filters and column lists.
const publishesSchemas = 150000

// look reads what a survey needs, of the catalogue only when it has changed since the last one.
func (v *surveyor) look(ctx context.Context) (*survey, *sourceFacts, error) {
	q := v.asks()
	at, err := walEnd(ctx, q)
	if err != nil {
		return nil, nil, err
	}
	sv, err := surveyServer(ctx, q)
	if err != nil {
		return nil, nil, err
	}
	filled, err := v.filled(ctx) // before the fingerprint: what is dropped or truncated in between makes that another one
	if err != nil {
		return nil, nil, fmt.Errorf("sizes of partitions: %w", err)
	}
	print, err := fingerprint(ctx, q, sv.version)
	if err != nil {
		return nil, nil, err
	}
	if v.view == nil || v.view.print != print {
		if v.view, err = readView(ctx, v.conn, &v.s.cfg, sv, print); err != nil {
			return nil, nil, err
		}
		filled = nil
	}
	facts := v.view.facts.clone()
	facts.at = at
	facts.setFilled(filled)
	sv.tables = v.view.survey.tables
	if p := v.view.survey.publication; p != nil {
		publication := *p // repair changes it
		sv.publication = &publication
	}
	if sv.slot, err = surveySlot(ctx, q, v.s.cfg.Slot); err != nil {
		return nil, nil, fmt.Errorf("slot %s: %w", v.s.cfg.Slot, err)
	}
	return sv, facts, nil
}

func readView(ctx context.Context, conn *pgx.Conn, cfg *Config, server *survey, print string) (*catalogueView, error) {
	sv := *server
	if err := surveyCatalogue(ctx, translated(conn, charsetOf(conn.PgConn())), cfg, &sv); err != nil {
		return nil, err
	}
	facts, err := readFacts(ctx, conn, cfg, sv.version)
	if err != nil {
		return nil, err
	}
	return &catalogueView{print: print, survey: &sv, facts: facts}, nil
}

// clone gives facts that a pass may change.
func (f *sourceFacts) clone() *sourceFacts {
	c := *f
	c.tables = slices.Clone(f.tables)
	for i := range c.tables {
		c.tables[i].Members = slices.Clone(c.tables[i].Members)
	}
	return &c
}

// filled tells which partitions have rows now, which is no part of the catalogue; nil when none were known.
func (v *surveyor) filled(ctx context.Context) (map[uint32]bool, error) {
	if v.view == nil {
		return nil, nil
	}
	var leaves []uint32
	for i := range v.view.facts.tables {
		for _, m := range v.view.facts.tables[i].Members {
			if m.leaf() {
				leaves = append(leaves, m.OID)
			}
		}
	}
	if len(leaves) == 0 {
		return nil, nil
	}
	rows, err := v.asks().Query(ctx, "select oid from unnest($1::oid[]) oid where pg_relation_size(oid) > 0", leaves)
	if err != nil {
		return nil, err
	}
	oids, err := pgx.CollectRows(rows, pgx.RowTo[uint32])
	if err != nil {
		return nil, err
	}
	filled := make(map[uint32]bool, len(oids))
	for _, oid := range oids {
		filled[oid] = true
	}
	return filled, nil
}

// setFilled takes what filled gave; nil leaves what was read with the facts.
func (f *sourceFacts) setFilled(filled map[uint32]bool) {
	if filled == nil {
		return
	}
	for i := range f.tables {
		for n := range f.tables[i].Members {
			m := &f.tables[i].Members[n]
			m.Rows = m.leaf() && filled[m.OID]
		}
	}
}
