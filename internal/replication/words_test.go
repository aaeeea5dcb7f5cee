package replication

import (
	"strings"
	"testing"
)

// However an error of the server quotes a value, with whatever code, its words are left out; those that can only name the query's own are kept.
func TestLiveErrorsQuoteNoValue(t *testing.T) {
	l := newLive(t, `create table m (id text, note text); create table locked (id text); create extension if not exists plpgsql;
		create function says(code text, value text) returns text language plpgsql as $$
			begin raise exception 'no % here', value using errcode = code, detail = value, hint = value; end $$;
		create function casts(value text) returns int language sql as 'select value::int'`)
	r := newReader(l)
	const planted = "hunter2"
	for _, expression := range []string{
		"k::int", "k::date", "k::jsonb", "k::regclass::text", "k::regtype::text", "k::regproc::text", "k::regrole::text", "k::regnamespace::text", "k::regconfig::text",
		"('{}'::jsonb @@ k::jsonpath)", "to_tsquery(k || ' <-> ')", "'x' ~ ('[' || k)", "current_setting(k)", "decode(k, 'base64')",
		"has_table_privilege(k, 'select')", "has_schema_privilege(k, 'usage')", "has_database_privilege(k, 'connect')", "pg_read_file(k)", "set_config('datestyle', k, true)",
		"(xpath(k || '[', '<a/>'::xml))::text", "nextval(k)", "parse_ident('\"' || k)", "casts(k)", "encode('x', k)", "('{' || k)::text[]", "extract(year from k::timestamp)",
		"says('P0001', k)", "says('42501', k)", "says('57014', k)", "says('40001', k)", "says('08006', k)", "says('53300', k)", "says('22012', k)", "says('42P01', k)",
	} {
		_, err := r.Lookup(l.ctx, "select k, "+expression+" from unnest($1::text[]) k", []string{planted}, nil)
		if err == nil {
			t.Errorf("%s: no error", expression)
			continue
		}
		if strings.Contains(err.Error(), planted) {
			t.Errorf("%s: the value is quoted: %v", expression, err)
		}
		if code := sqlState(err); code == "" || !strings.Contains(err.Error(), code) {
			t.Errorf("%s: no SQLSTATE in %v", expression, err)
		}
	}
	for sql, want := range map[string]string{
		"select nothing from m where id = any($1)":                                  `column "nothing" does not exist`,
		"select id from nowhere where id = any($1)":                                 `relation "nowhere" does not exist`,
		"select id frm m where id = any($1)":                                        "syntax error",
		"select id, nofunction(id) from m where id = any($1)":                       "function nofunction(text) does not exist",
		"with d as (delete from m where id = any($1) returning id) select * from d": "read-only transaction",
	} {
		if _, err := r.Lookup(l.ctx, sql, []string{planted}, nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", sql, err, want)
		}
	}
}
