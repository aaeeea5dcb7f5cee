package replication

import (
	"errors"
	"strings"
	"testing"

	"github.com/cdcsync/cdcsync/internal/cdc"
)

// conditionTable has columns of many types, some of them named as keywords.
const conditionTable = `
	create schema evil;
	create type evil.mood as enum ('ok', 'bad');
	create domain evil.score as int check (value >= 0);
	create function evil.now() returns timestamptz language sql volatile as 'select pg_catalog.now()';
	create function public.lower2(text) returns text language sql immutable as 'select $1';
	create table public.secrets (id int, password text);
	create table public.t (
		id int primary key, name text, "Order" int, "select" int, at timestamptz, day date, flags bool[], data jsonb, price numeric,
		mood evil.mood, score evil.score, moods evil.mood[], other public.secrets
	);
	insert into t (id, name, at, data) values (1, 'Åse', now(), '{"a": [1]}')`

func conditionRelation(t *testing.T, l *live) *cdc.Relation {
	t.Helper()
	rel, err := loadRelation(t.Context(), l.conn, "none", false, "public", "t")
	if err != nil || rel == nil {
		t.Fatalf("got %v, %v", rel, err)
	}
	return rel
}

// What decides about a row is taken, in every form that the manual has for it, and the server understands it as it was checked.
func TestLiveConditionsThatAreTaken(t *testing.T) {
	l := newLive(t, conditionTable)
	rel := conditionRelation(t, l)
	l.exec("set search_path = pg_catalog")
	for _, condition := range []string{
		"id > 7", "id=1 and not (name is null or name like 'Å%' escape '!')", `"Order" between 1 and 2 or "select" <> 3`,
		"at >= now() - interval '1 day'", "at < timestamp with time zone '2026-01-01 00:00+00'", "day = date '2026-01-01' and day>current_date",
		"extract(year from day) = 2026", "date_trunc('day', at) = '2026-01-01'", "at at time zone 'UTC' < '2026-01-01'",
		"id::text = any(array['1', '2'])", "cast(id as double precision) < 1e3", "price::numeric(10,2) % 2 = .5", "id in (1, 2, 3)",
		"data @> '{\"a\": 1}' and data ->> 'a' = 'x' and data #> '{a,0}' is not null and data ? 'a'", "flags[1] and flags[1:2] is not null",
		"mood = 'ok' and score > 3 and 'bad' = any(moods)", "lower(name) collate \"C\" < 'x'", "name is distinct from E'a\\'b' || 'c''d'",
		"case when id = 1 then true else false end", "coalesce(length(name), 0) > 1", "substring(name from 1 for 2) = 'Ås'",
		"trim(both 'x' from name) ~* '^a'", "pg_catalog.abs(id) = 1", "(id, name) = row(1, 'x')", "name ilike '%--%' and name <> '/* no */; drop'",
		"id = -1 or - id < +2", "id # 1 = 0", "num_nonnulls(id, name) = 2", "b'101' = B'101'", "jsonb_path_exists(data, '$.a[*]')", "id = 1\n", "t.id = 1 and \"t\".\"Order\" > 2", "id = 1 -- one", "id /* /* nested */ */ = 1 -- '", "-- first\nid = 1",
	} {
		if err := checkCondition(t.Context(), l.conn, rel, condition); err != nil {
			t.Errorf("%s: got %v, want it taken", condition, err)
			continue
		}
		if _, err := l.conn.Exec(t.Context(), "select from public.t where ("+condition+"\n)"); err != nil {
			t.Errorf("%s: the server says %v", condition, err)
		}
	}
}

// What could run anything, read anything else, or end the condition is refused, with what is refused in it.
func TestLiveConditionsThatAreRefused(t *testing.T) {
	l := newLive(t, conditionTable)
	rel := conditionRelation(t, l)
	for _, c := range []struct{ condition, want string }{
		{"pg_drop_replication_slot('other') is null", "pg_drop_replication_slot"},
		{"pg_sleep(10) is null", "pg_sleep"},
		{"pg_catalog.pg_sleep(10) is null", "pg_sleep"},
		{`"pg_sleep"(10) is null`, "pg_sleep"},
		{"PG_SLEEP /**/ (10) is null", "pg_sleep"},
		{"exists (select 1)", "exists"},
		{"id in (select id from secrets)", `"select"`},
		{"id in (table secrets)", `"table"`},
		{"id = (values (1))", "values"},
		{"array(select 1) is null", `"select"`},
		{"true) or (true", "closes nothing"},
		{"id = 1; drop table t", `";"`},
		{"id = 1 /* open /* */", "comment"},
		{"id = 1 -- a\n); select (1", "closes nothing"},
		{"id = 1) union select 1 where (true", "closes nothing"},
		{"(id = 1", "not closed"},
		{"flags[1", "not closed"},
		{"name = 'x", "not closed"},
		{"name = $$x$$", `"$"`},
		{"id = $1", `"$"`},
		{`name = U&'\0041'`, "Unicode escapes"},
		{"lower2(name) = 'x'", "lower2"},
		{"evil.now() > at", "evil"},
		{"public.lower2(name) = 'x'", "public"},
		{"t.lower2 = 'x'", `"t"`},
		{"t.name('x') is null", `"t"`},
		{"secrets.password is null", `"secrets"`},
		{"t is not null", `"t"`},
		{"(other).password = 'x'", "dot"},
		{"other is null", `column "other"`},
		{"'1'::evil.score > 0", "outside of pg_catalog"},
		{"cast(id as evil.score) > 0", "outside of pg_catalog"},
		{"id::secrets is null", "not a type of pg_catalog"},
		{"secrets '(1,x)' is null", "not a type of pg_catalog"},
		{"id operator(evil.=) 1", "operator"},
		{"nextval('s') > 0", "nextval"},
		{"set_config('a.b', 'c', false) = 'c'", "set_config"},
		{"current_setting('data_directory') = 'x'", "current_setting"},
		{"pg_read_file('/etc/passwd') = 'x'", "pg_read_file"},
		{"table_to_xml('secrets', true, true, '') is null", "table_to_xml"},
		{"query_to_xml('delete from t', true, true, '') is null", "query_to_xml"},
		{"count(*) > 1", "count"},
		{"generate_series(1, 2) = 1", "generate_series"},
		{"row_number() over () = 1", "over"},
		{"has_table_privilege('secrets', 'select')", "has_table_privilege"},
		{"lo_import('/etc/passwd') is null", "lo_import"},
		{"ts_rewrite('a', 'select password::tsquery, null from secrets') is null", "ts_rewrite"},
		{"select = 1", "double quotes"},
		{"nam = 'x'", `"nam"`},
		{"id = 1 \u00a0", "no column"},
		{"name = 'a\xe9'", "UTF-8"},
		{"xmin::text = '1'", `"xmin"`},
		{"current_user = 'a'", "current_user"},
	} {
		err := checkCondition(t.Context(), l.conn, rel, c.condition)
		refused, ok := errors.AsType[*Error](err)
		if !ok || !strings.Contains(refused.Reason, c.want) || refused.Solution == "" {
			t.Errorf("%s: got %v, want a refusal that names %s", c.condition, err, c.want)
		}
	}
}

// A backfill with such a condition does not start, and none that was stored before runs.
func TestLiveBackfillRefusesConditions(t *testing.T) {
	l := newLive(t, `create table t (id int primary key)`, "t")
	reader := &chunkReader{url: l.url, publication: "none", table: Table{Schema: "public", Name: "t"}, where: "pg_sleep(60) is null", maxRow: DefaultMaxRow}
	defer reader.close(t.Context())
	if err := reader.open(t.Context()); !IsPermanent(err) || !strings.Contains(err.Error(), "pg_sleep") {
		t.Errorf("got %v, want a refusal that names pg_sleep", err)
	}
}
