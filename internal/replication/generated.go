package replication

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
)

// publishesGenerated is the first version that can publish generated columns, stored ones, and so the first that refuses every
// UPDATE and DELETE of a published table whose replica identity has a generated column that a publication leaves out.
const publishesGenerated = 180000

const storedOption = "publish_generated_columns = stored"

// storesGenerated says whether the publication has to send generated columns. It does for any table that has them, not only
// where the replica identity asks for it: otherwise making that FULL later would stop the application.
func (sv *survey) storesGenerated() bool {
	return sv.version >= publishesGenerated && slices.ContainsFunc(sv.tables, func(t tableFacts) bool { return len(t.stored) > 0 })
}

// generatedStatements must be run before a table becomes REPLICA IDENTITY FULL or is added.
func generatedStatements(cfg *Config, sv *survey) []Statement {
	if sv.publication == nil || sv.publication.generated || !sv.storesGenerated() {
		return nil
	}
	return []Statement{publishStored(cfg.Publication)}
}

func publishStored(publication string) Statement {
	return Statement{
		SQL: "ALTER PUBLICATION " + pgx.Identifier{publication}.Sanitize() + " SET (" + storedOption + ")",
		Why: "the publication leaves out generated columns, without which Postgres refuses updates and deletes of tables with REPLICA IDENTITY FULL",
	}
}

// surveyWithheld finds the publications that leave out stored generated columns.
func surveyWithheld(ctx context.Context, q querier, sv *survey) error {
	if !sv.storesGenerated() {
		return nil
	}
	schemas, names := make([]string, len(sv.tables)), make([]string, len(sv.tables))
	for i := range sv.tables {
		schemas[i], names[i] = sv.tables[i].Table.Schema, sv.tables[i].Table.Name
	}
	rows, err := q.Query(ctx, `
		select distinct w.n::int, p.pubname::text
		from unnest($1::text[], $2::text[]) with ordinality as w(schema, name, n)
		join pg_namespace s on s.nspname = w.schema join pg_class c on c.relnamespace = s.oid and c.relname = w.name
		cross join lateral (select c.oid as oid union select relid::oid from pg_partition_tree(c.oid)) tree
		join pg_class member on member.oid = tree.oid join pg_namespace ms on ms.oid = member.relnamespace
		join pg_publication_tables t on t.schemaname = ms.nspname and t.tablename = member.relname
		join pg_publication p on p.pubname = t.pubname and (p.pubupdate or p.pubdelete)
		where exists (select 1 from pg_attribute a
			where a.attrelid = member.oid and a.attgenerated = 's' and not a.attisdropped and a.attname <> all (t.attnames))
		order by 1, 2`, schemas, names)
	if err != nil {
		return err
	}
	var n int
	var publication string
	_, err = pgx.ForEachRow(rows, []any{&n, &publication}, func() error {
		sv.tables[n-1].withheldBy = append(sv.tables[n-1].withheldBy, publication)
		return nil
	})
	return err
}

// unpublished are the generated columns that the stream will not have.
func (t *tableFacts) unpublished(sv *survey, cfg *Config) []string {
	if sv.version >= publishesGenerated && (cfg.Manage || !slices.Contains(t.withheldBy, cfg.Publication)) {
		return t.virtual
	}
	return slices.Concat(t.stored, t.virtual)
}

// hindrance says what makes Postgres refuse updates and deletes of the table once it has REPLICA IDENTITY FULL, and the way
// out; nothing when the table can have it. Our own publication is none: it is mended before.
func (t *tableFacts) hindrance(sv *survey, cfg *Config) (reason, solution string) {
	if sv.version >= publishesGenerated && len(t.virtual) > 0 {
		return "Postgres cannot publish its virtual generated columns (" + strings.Join(t.virtual, ", ") + ")",
			"drop them or add them anew as STORED"
	}
	return t.withheldByOthers(cfg)
}

func (t *tableFacts) withheldByOthers(cfg *Config) (reason, solution string) {
	var statements []Statement
	for _, name := range t.withheldBy {
		if name != cfg.Publication {
			statements = append(statements, publishStored(name))
		}
	}
	if len(statements) == 0 {
		return "", ""
	}
	return fmt.Sprintf("other publications leave out its generated columns (%s)", strings.Join(t.stored, ", ")), joinSQL(statements)
}

// judgeGenerated says what is wrong with generated columns in the replica identity that the table has now.
func judgeGenerated(sv *survey, t *tableFacts, cfg *Config, say func(severity Severity, message, solution string)) {
	if list := t.unpublished(sv, cfg); len(list) > 0 {
		say(Notice, fmt.Sprintf("generated columns of %s are not published: %s", t.Table, strings.Join(list, ", ")), "compute them in the mapping")
	}
	if sv.version < publishesGenerated || !t.generatedIdentity {
		return
	}
	refused := func(severity Severity, reason, solution string) {
		say(severity, fmt.Sprintf("as long as %s is published with its replica identity, UPDATE and DELETE on it fail in the application: %s", t.Table, reason), solution)
	}
	reason, solution := t.hindrance(sv, cfg)
	switch {
	case t.identity == "f" && len(t.virtual) > 0:
		refused(Failure, reason, solution+", or give it a primary key and run: ALTER TABLE "+quoteTable(t.Table)+" REPLICA IDENTITY DEFAULT")
	case !cfg.Manage && slices.Contains(t.withheldBy, cfg.Publication):
		if solution = joinSQL(generatedStatements(cfg, sv)); solution == "" {
			solution = "take away its list of columns"
		}
		reason = fmt.Sprintf("publication %q leaves out its generated columns (%s)", cfg.Publication, strings.Join(t.stored, ", "))
		refused(Failure, reason, solution)
	}
	if reason, solution = t.withheldByOthers(cfg); reason != "" {
		refused(Warning, reason, solution)
	}
}

func joinSQL(statements []Statement) string {
	sql := make([]string, len(statements))
	for i, st := range statements {
		sql[i] = st.SQL
	}
	return strings.Join(sql, "; ")
}
