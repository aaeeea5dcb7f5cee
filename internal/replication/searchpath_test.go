package replication

import (
	"fmt"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
)

// plants puts functions, operators, types and relations of the names in our SQL into a schema: $1 is the schema, $2 functions' names, $3 operators.
const plants = `
do $do$
declare
	types text[] := array['name', 'text', 'oid', 'int2', 'int4', 'int8', '"char"', 'bool', 'regclass', 'xid', 'xid8', 'pg_lsn', 'text[]', 'name[]', 'oid[]',
		'int2vector', 'inet', 'jsonb', 'timestamptz', 'anyelement', 'anyarray'];
	a text; b text; f text; o text; arguments text; result text;
begin
	foreach f in array %[2]s loop
		for arguments in
			select '' union select t from unnest(types) t union select t || ',' || u from unnest(types[1:16]) t, unnest(types[1:16]) u
			union select oidvectortypes(p.proargtypes) from pg_proc p
				where p.proname = f and p.pronamespace = 'pg_catalog'::regnamespace and p.prokind in ('f', 'w') and p.proargmodes is null
					and oidvectortypes(p.proargtypes) !~ 'internal|cstring|VARIADIC|trigger|"any"'
		loop
			continue when to_regprocedure(format('%[1]s.%%I(%%s)', f, arguments)) is not null;
			select string_agg(distinct format_type(p.prorettype, null), '') into result from pg_proc p
				where p.proname = f and p.pronamespace = 'pg_catalog'::regnamespace
				having count(distinct p.prorettype) = 1;
			if result is null or result ~ 'any|internal|record|cstring|void' then result := 'text'; end if;
			execute format('create function %[1]s.%%I(%%s) returns %%s language plpgsql as $f$ begin return null; end $f$', f, arguments, result);
		end loop;
	end loop;
	foreach a in array types[1:16] loop
		foreach b in array types[1:16] loop
			execute format('create function %[1]s.planted_yes(%%s, %%s) returns bool language plpgsql as $f$ begin return null; end $f$', a, b);
			execute format('create function %[1]s.planted_text(%%s, %%s) returns text language plpgsql as $f$ begin return null; end $f$', a, b);
			foreach o in array %[3]s loop
				execute format('create operator %[1]s.%%s (leftarg = %%s, rightarg = %%s, function = %[1]s.%%s)', o, a, b,
					case when o in ('||', '->>', '/') then 'planted_text' else 'planted_yes' end);
			end loop;
		end loop;
	end loop;
	-- What a query names without a schema, in a path that has pg_catalog last.
	for o in select c.relname from pg_class c where c.relnamespace = 'pg_catalog'::regnamespace and c.relkind in ('r', 'v') and c.relname ~ '^pg_' and c.relname !~ '^pg_statistic'
		and not exists (select 1 from pg_attribute t where t.attrelid = c.oid and t.atttypid = 'anyarray'::regtype)
	loop
		execute format('create view %[1]s.%%I as select c.*, %[1]s.planted_yes(''a''::name, ''b''::name) as planted from pg_catalog.%%1$I c', o);
	end loop;
	foreach o in array array['text'::text, 'regclass', 'int4', 'int8', 'oid', 'name'] loop
		execute format('create domain %[1]s.%%I as pg_catalog.%%1$I check (%[1]s.planted_yes(''a''::pg_catalog.name, ''b''::pg_catalog.name) is null)', o);
	end loop;
end $do$`

// ourFunctions are the functions of pg_catalog that the package's SQL may name.
func ourFunctions(l *live) []string {
	l.t.Helper()
	files, err := os.ReadDir(".")
	if err != nil {
		l.t.Fatal(err)
	}
	words := map[string]bool{}
	call := regexp.MustCompile(`\b([a-z_0-9]+)\(`)
	for _, f := range files {
		if !strings.HasSuffix(f.Name(), ".go") || strings.HasSuffix(f.Name(), "_test.go") {
			continue
		}
		source, err := os.ReadFile(f.Name())
		if err != nil {
			l.t.Fatal(err)
		}
		for _, m := range call.FindAllStringSubmatch(string(source), -1) {
			words[m[1]] = true
		}
	}
	var known []string
	for w := range words {
		known = append(known, w)
	}
	rows, err := l.conn.Query(l.ctx, "select distinct proname::text from pg_proc where pronamespace = 'pg_catalog'::regnamespace and proname = any($1)", known)
	if err != nil {
		l.t.Fatal(err)
	}
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		l.t.Fatal(err)
	}
	slices.Sort(names)
	if len(names) < 30 || !slices.Contains(names, "quote_ident") {
		l.t.Fatalf("functions in our SQL: %q", names)
	}
	return names
}

// What others plant into schemas of the role's search_path never runs as the role, whether they are found by a better match or by a path that has
// pg_catalog last; a user's own lookup has that path.
func TestLiveNothingPlantedRuns(t *testing.T) {
	plain := newLive(t, settingsSchema, "v")
	want, wantRow := plain.captured(), plain.readBack("1")

	l := newLive(t, settingsSchema, "v")
	functions := "array['" + strings.Join(ourFunctions(l), "','") + "']"
	operators := "array['=', '<>', '<', '>', '<=', '>=', '||', '~', '->>', '-', '+', '/']"
	role := "planted_" + strings.ReplaceAll(l.conn.Config().Database, "-", "_")
	l.exec("create role " + role + " superuser login replication; create schema " + role)
	t.Cleanup(func() {
		l.exec("reassign owned by " + role + " to current_user; drop owned by " + role + "; drop role " + role)
	})
	l.exec("set search_path = pg_catalog")
	for _, schema := range []string{"public", role} {
		l.exec(fmt.Sprintf(plants, schema, functions, operators))
	}
	l.exec(`create function public.planted_lookup() returns text language plpgsql as $$ begin return 'yes'; end $$`)
	l.exec("reset search_path")
	l.exec("alter role " + role + ` set search_path = "$user", public, pg_catalog; alter role ` + role + " set track_functions = 'all'")
	u, err := url.Parse(l.url)
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.User(role)
	l.cfg.URL = u.String()

	if diff := cmp.Diff(want, l.captured()); diff != "" {
		t.Errorf("values differ (-plain +planted):\n%s", diff)
	}
	if diff := cmp.Diff(wantRow, l.readBack("planted_lookup()")); diff != "" {
		t.Errorf("rows read back differ (-plain +planted):\n%s", diff)
	}
	l.cfg.Manage = true
	if _, err := Check(l.ctx, l.cfg); err != nil {
		t.Errorf("check: %v", err)
	}
	l.recovers()
	for deadline := time.Now().Add(time.Minute); ; { // statistics are written when a session ends
		if l.value("select count(*) from pg_stat_activity where usename = '"+role+"'") == "0" || time.Now().After(deadline) {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	ran := l.value(`select coalesce(string_agg(schemaname || '.' || funcname || ' ' || calls, ', '), '') from pg_stat_user_functions
		where calls > 0 and funcname not in ('planted_lookup')`)
	if ran != "" {
		t.Errorf("planted functions ran: %s", ran)
	}
	if l.value("select coalesce(sum(calls), 0) from pg_stat_user_functions where funcname = 'planted_lookup'") == "0" {
		t.Error("a lookup's function in the role's path did not run, or runs are not seen")
	}
}

// readBack gives a row of v by its key, and sends a lookup whose expression is found in the role's own path.
func (l *live) readBack(expression string) string {
	l.t.Helper()
	reader, err := NewReader(l.ctx, l.cfg.URL, ReaderOptions{})
	if err != nil {
		l.t.Fatal(err)
	}
	defer reader.Close()
	rel, err := reader.Relation(l.ctx, "public", "v")
	if err != nil || rel == nil {
		l.t.Fatalf("relation: %v, %v", rel, err)
	}
	types, err := reader.Types(l.ctx, rel, upTo(len(rel.Columns)))
	if err != nil || len(types) != len(rel.Columns) {
		l.t.Fatalf("types: %v, %v", types, err)
	}
	if _, err := reader.Lookup(l.ctx, "select k, "+expression+" from pg_catalog.unnest($1::pg_catalog.text[]) k", []string{"1"}, nil); err != nil {
		l.t.Fatal(err)
	}
	rows, err := reader.Rows(l.ctx, rel, upTo(len(rel.Columns)), [][]string{{"5"}}, []uint32{3})
	if err != nil || rows[0] == nil {
		l.t.Fatalf("row: %v, %v", rows, err)
	}
	return shownRow(rows[0])
}
