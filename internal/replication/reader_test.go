package replication

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/sourcegraph/conc/pool"
	"pgregory.net/rapid"

	"github.com/cdcsync/cdcsync/internal/cdc"
)

func newReader(l *live) *Reader {
	l.t.Helper()
	r, err := NewReader(l.ctx, l.url, ReaderOptions{})
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(r.Close)
	return r
}

func (l *live) relation(r *Reader, name string) *cdc.Relation {
	l.t.Helper()
	rel, err := r.Relation(l.ctx, "public", name)
	if err != nil || rel == nil {
		l.t.Fatalf("relation %s: %v, %v", name, rel, err)
	}
	return rel
}

func text(s string) cdc.Value { return cdc.Value{Kind: cdc.Text, Data: []byte(s)} }

func TestLiveRowsByKeysOfEveryType(t *testing.T) {
	l := newLive(t, "create extension if not exists hstore; create type mood as enum ('sad', 'it''s \"ok\"'); create domain code as varchar(3)")
	r := newReader(l)
	for typ, key := range map[string]string{
		"smallint": "-1", "integer": "42", "bigint": "9007199254740993", "numeric": "12.340", "real": "1.5", "double precision": "0.1",
		"boolean": "t", "text": `a "quoted", {braced} \ text`, "varchar(5)": "abcde", "char(5)": "ab   ", `"char"`: "x", "name": "n",
		"uuid": "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", "date": "2024-02-29", "time": "12:34:56.789", "timetz": "12:00:00+00",
		"timestamp": "2024-02-29 01:02:03.000004", "timestamptz": "2024-02-29 01:02:03+00", "interval": "1 mon 2 days 03:04:05",
		"bytea": `\xdeadbeef`, "bit(3)": "101", "bit varying(9)": "10101", "inet": "10.0.0.1", "cidr": "10.0.0.0/8", "macaddr": "08:00:2b:01:02:03",
		"mood": `it's "ok"`, "code": "abc", "int[]": "{1,2,NULL}", "text[]": `{a,"b c"}`, "int4range": "[1,5)", "jsonb": `{"a": 1}`, "hstore": `"a"=>"1"`,
		"oid": "7", "money": "$1.00", "pg_lsn": "16/B374D848", "tsvector": "'a' 'b'",
	} {
		t.Run(typ, func(t *testing.T) {
			l.exec("drop table if exists k")
			l.exec("create table k (id " + typ + " primary key, v text)")
			l.exec("insert into k values ('" + strings.ReplaceAll(key, "'", "''") + "', 'found')")
			rows, err := r.Rows(l.ctx, l.relation(r, "k"), []int{1, 0}, [][]string{{key}}, nil)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff([][]cdc.Value{{text("found"), text(key)}}, rows); diff != "" {
				t.Errorf("rows (-want +got):\n%s", diff)
			}
		})
	}
}

func TestLiveRowsOfSeveralKeys(t *testing.T) {
	l := newLive(t, `create table k (b text, a int, v text, primary key (a, b));
		insert into k values ('x', 1, 'one'), ('y', 2, null), ('z', 3, 'three')`)
	r := newReader(l)
	rel := l.relation(r, "k")
	l.exec("alter table k rename to renamed")
	keys := [][]string{{"3", "z"}, {"1", "none"}, {"2", "y"}, {"3", "z"}}
	rows, err := r.Rows(l.ctx, rel, []int{2}, keys, nil)
	if err != nil {
		t.Fatal(err)
	}
	want := [][]cdc.Value{{text("three")}, nil, {{Kind: cdc.Null}}, {text("three")}}
	if diff := cmp.Diff(want, rows); diff != "" {
		t.Errorf("rows (-want +got):\n%s", diff)
	}
	l.exec("alter table renamed drop column v")
	rows, err = r.Rows(l.ctx, rel, []int{2, 1}, keys[:1], nil)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([][]cdc.Value{{{}, text("3")}}, rows); diff != "" {
		t.Errorf("rows after a column was dropped (-want +got):\n%s", diff)
	}
	l.exec("drop table renamed")
	if rows, err = r.Rows(l.ctx, rel, []int{2}, keys[:1], nil); err != nil || rows[0] != nil {
		t.Errorf("rows of a dropped table: %v, %v", rows, err)
	}
}

// A row that is read after a change never looks older than the change.
func TestLiveRowsWaitForTheTransaction(t *testing.T) {
	l := newLive(t, "create table k (id int primary key, v text); insert into k values (1, 'old')")
	r := newReader(l)
	rel := l.relation(r, "k")
	tx, err := l.conn.Begin(l.ctx)
	if err != nil {
		t.Fatal(err)
	}
	var xid uint32
	if err := tx.QueryRow(l.ctx, "update k set v = 'new' returning pg_current_xact_id()::xid").Scan(&xid); err != nil {
		t.Fatal(err)
	}
	rows := make(chan [][]cdc.Value, 1)
	p := pool.New().WithErrors()
	p.Go(func() error {
		found, err := r.Rows(l.ctx, rel, []int{1}, [][]string{{"1"}}, []uint32{xid})
		rows <- found
		return err
	})
	tick := time.NewTimer(50 * time.Millisecond)
	select {
	case found := <-rows:
		t.Errorf("read before the transaction was visible: %q", found[0][0].Data)
	case <-tick.C:
	}
	if err := tx.Commit(l.ctx); err != nil {
		t.Fatal(err)
	}
	if err := p.Wait(); err != nil {
		t.Fatal(err)
	}
	if found := <-rows; string(found[0][0].Data) != "new" {
		t.Errorf("read %q, want new", found[0][0].Data)
	}
}

func TestLiveLookup(t *testing.T) {
	l := newLive(t, `create table m (fan_id bigint, plan text, paid numeric, tags text[]);
		insert into m values (1, 'gold', 1.50, '{a,b}'), (2, 'tin', null, null), (1, 'old', 0, '{}'), (3, 'none', 1, null)`)
	r := newReader(l)
	got, err := r.Lookup(l.ctx, `select fan_id, plan as "externalId", paid, tags from m where fan_id = any($1) order by plan`, []string{"1", "2", "9"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	want := LookupResult{
		Columns: []cdc.Field{{Name: "externalId", Type: builtinTypes[25]}, {Name: "paid", Type: builtinTypes[1700]}, {Name: "tags", Type: builtinTypes[1009]}},
		Records: map[string][]Record{
			"1": {{text("gold"), text("1.50"), text("{a,b}")}, {text("old"), text("0"), text("{}")}},
			"2": {{text("tin"), {Kind: cdc.Null}, {Kind: cdc.Null}}},
		},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("lookup (-want +got):\n%s", diff)
	}
	for _, wrong := range []string{"select nothing from m where fan_id = any($1)", "delete from m where fan_id = any($1)", "select 1; select 2"} {
		if _, err := r.Lookup(l.ctx, wrong, []string{"1"}, nil); err == nil {
			t.Errorf("%s: no error", wrong)
		}
	}
	if _, err := r.Lookup(l.ctx, "select fan_id from m where fan_id = any($1)", []string{"1"}, nil); err != nil {
		t.Errorf("after errors: %v", err)
	}
}

func TestSnapshotSeesModulo(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		const reach = 1 << 20
		xmin := rapid.Uint64Range(reach, 1<<40).Draw(rt, "xmin")
		xmax := xmin + rapid.Uint64Range(0, 50).Draw(rt, "span")
		running := xmin + rapid.Uint64Range(0, 60).Draw(rt, "running")
		xid := rapid.Uint64Range(xmin-reach, xmax+reach).Draw(rt, "xid")
		s := snapshot{xmin: uint32(xmin), xmax: uint32(xmax), running: []uint32{uint32(running)}}
		want := xid < xmin || xid < xmax && xid != running
		if got := s.sees(uint32(xid)); got != want {
			rt.Errorf("snapshot %d:%d:%d sees %d: %v, want %v", xmin, xmax, running, xid, got, want)
		}
	})
}

func TestLivePinnedSettingsWinOverTheRole(t *testing.T) {
	l := newLive(t, "create table k (id int primary key, v timestamptz, f float8, b bytea, i interval)")
	for _, setting := range []string{"datestyle = 'German'", "timezone = 'Asia/Tokyo'", "extra_float_digits = -10", "bytea_output = 'escape'", "intervalstyle = 'sql_standard'"} {
		l.exec("do $$ begin execute format('alter database %I set " + strings.ReplaceAll(setting, "'", "''") + "', current_database()); end $$")
	}
	conn, err := pgx.Connect(l.ctx, l.url) // its own settings are the database's
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(l.ctx) }()
	if _, err := conn.Exec(l.ctx, `set timezone = 'UTC'; insert into k values (1, '2024-02-01 00:00:00.5Z', 0.1, '\xff00', '1 day 2 hours')`); err != nil {
		t.Fatal(err)
	}
	l.cfg.Tables = []Table{{Schema: "public", Name: "k", Insert: true, Update: true}}
	l.during(func(*Stream) { l.exec("update k set id = 2") })
	r := newReader(l)
	rows, err := r.Rows(l.ctx, l.relation(r, "k"), []int{0, 1, 2, 3, 4}, [][]string{{"2"}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	want := []cdc.Value{text("2"), text("2024-02-01 00:00:00.5+00"), text("0.1"), text(`\xff00`), text("1 day 02:00:00")}
	if diff := cmp.Diff(want, rows[0]); diff != "" {
		t.Errorf("read back (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(want, l.log.changes(t)[0].New); diff != "" {
		t.Errorf("streamed (-want +got):\n%s", diff)
	}
}

// What is compiled in is what a server says.
func TestLiveBuiltinTypes(t *testing.T) {
	l := newLive(t, "")
	var oids []uint32
	for oid := range builtinTypes {
		oids = append(oids, oid)
	}
	asked := make(map[uint32]*cdc.Type)
	if _, err := queryTypes(l.ctx, l.conn, oids, asked); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(asked, builtinTypes); diff != "" {
		t.Errorf("types (-server +compiled in):\n%s", diff)
	}
}
