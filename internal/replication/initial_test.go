package replication

import (
	"fmt"
	"log/slog"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/cdcsync/cdcsync/internal/cdc"
)

func initialOf(table, mapping, sink string) BackfillSpec {
	return BackfillSpec{Table: Table{Schema: "public", Name: table}, Sinks: []string{sink}, Mappings: []string{mapping}}
}

// A table that cannot be backfilled has a failed backfill that says why and is tried again; the others begin once.
func TestLiveInitialBackfillThatCannotBegin(t *testing.T) {
	l := newLive(t, `create table good (id int primary key); insert into good values (1), (2);
		create table secret (id int primary key); insert into secret values (3);
		create table parts (id int) partition by list (id); create table parts_1 partition of parts for values in (1); insert into parts values (1)`,
		"good", "secret")
	role := "init_" + strings.ReplaceAll(l.conn.Config().Database, "-", "_")
	l.exec("create role " + role + " login; grant select on good, parts to " + role)
	t.Cleanup(func() { l.exec("drop owned by " + role + "; drop role " + role) })
	u, err := url.Parse(l.url)
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.User(role)
	store := &memStore{}
	b, err := NewBackfills(l.ctx, BackfillConfig{URL: u.String()}, store, prompt{l.log}, slog.New(slog.NewTextHandler(t.Output(), nil)))
	if err != nil {
		t.Fatal(err)
	}
	wanted := []BackfillSpec{initialOf("secret", "s", "crm"), initialOf("gone", "n", "crm"), initialOf("parts", "p", "crm"), initialOf("good", "g", "crm")}
	for range 3 {
		err := b.Initial(l.ctx, wanted)
		if !IsPermanent(err) {
			t.Fatalf("got %v", err)
		}
		for _, words := range []string{"public.secret", "public.gone", "public.parts", "primary key", "GRANT SELECT"} {
			if !strings.Contains(err.Error(), words) {
				t.Errorf("%v: it does not say %q", err, words)
			}
		}
		states := statesOf(b)
		if want := []string{"secret failed", "gone failed", "parts failed", "good waiting"}; !slices.Equal(states, want) {
			t.Errorf("got %v, want %v", states, want)
		}
	}
	for _, f := range b.List() {
		if (f.State == BackfillFailed) != (f.Reason != "") {
			t.Errorf("%s is %s since %q", f.Table, f.State, f.Reason)
		}
	}
	l.exec("grant select on secret to " + role + "; alter table parts add primary key (id); create table gone (id int primary key); grant select on gone to " + role)
	if err := b.Initial(l.ctx, wanted); err != nil {
		t.Error(err)
	}
	if err := b.Initial(l.ctx, wanted); err != nil {
		t.Error(err)
	}
	if states, want := statesOf(b), []string{"secret waiting", "gone waiting", "parts waiting", "good waiting"}; !slices.Equal(states, want) {
		t.Errorf("afterwards: got %v, want %v", states, want)
	}
	l.exec("grant all on all tables in schema public to " + role)
	b.cfg.URL = l.url
	l.cfg.Backfills = b
	l.during(func(*Stream) {
		for _, f := range b.List() {
			if done := l.filled(b, f.ID); done.State != BackfillDone || done.Table.Name == "good" && done.Rows != 2 {
				t.Errorf("%+v", done)
			}
		}
	})
}

func statesOf(b *Backfills) (states []string) {
	for _, f := range b.List() {
		states = append(states, f.Table.Name+" "+string(f.State))
	}
	return states
}

// A backfill that has lost its mapping is cancelled, and begins anew when the mapping comes back; one that has lost a mapping of several, or a
// sink, goes on for the others.
func TestLiveReconcile(t *testing.T) {
	l := newLive(t, "create table a (id int primary key); create table b (id int primary key); insert into a values (1); insert into b values (1)", "a", "b")
	store := &memStore{}
	open := func(mappings ...BackfillSpec) *Backfills {
		b := l.backfills(store)
		if err := b.Reconcile(l.ctx, mappings); err != nil {
			t.Fatal(err)
		}
		if err := b.Initial(l.ctx, mappings); err != nil {
			t.Fatal(err)
		}
		return b
	}
	one, two, other := initialOf("a", "one", "crm"), initialOf("a", "two", "fans"), initialOf("b", "other", "crm")
	expect := func(when string, b *Backfills, want ...string) {
		t.Helper()
		var got []string
		for _, f := range b.List() {
			got = append(got, strings.Join([]string{f.Table.Name, string(f.State), strings.Join(f.Mappings, "+"), strings.Join(f.Sinks, "+")}, " "))
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: got %q, want %q", when, got, want)
		}
	}
	b := open(one, two, other)
	if _, err := b.Start(l.ctx, BackfillSpec{Table: one.Table, Sinks: []string{"crm", "fans"}}); err != nil {
		t.Fatal(err)
	}
	expect("at first", b, "a waiting one+two crm+fans", "b waiting other crm", "a waiting  crm+fans")
	expect("without two", open(one, other), "a waiting one crm", "b waiting other crm", "a waiting  crm")
	expect("without any of a", open(other), "a cancelled one crm", "b waiting other crm", "a cancelled  crm")
	expect("all are back", open(one, two, other), "a cancelled one crm", "b waiting other crm", "a cancelled  crm", "a waiting one+two crm+fans")
	moved := initialOf("b", "one", "crm") // the name is another table's now
	expect("one moves", open(moved, two, other),
		"a cancelled one crm", "b waiting other crm", "a cancelled  crm", "a waiting two fans", "b waiting one crm")
	last := open(moved, two, other)
	l.during(func(*Stream) {
		for _, f := range last.List() {
			if !f.State.ended() {
				if done := l.filled(last, f.ID); done.State != BackfillDone || done.Rows != 1 {
					t.Errorf("%+v", done)
				}
			}
		}
	})
}

// A role that may read only the columns that mappings read can backfill, export and read back; where one is missing the error names it.
func TestLiveColumnPrivileges(t *testing.T) {
	l := newLive(t, `create schema app; create table app.x (secret text, id int primary key, "the v" text, other text);
		insert into app.x select 's', i, 'v' || i, 'o' from generate_series(1, 10) i`)
	table := Table{Schema: "app", Name: "x", Insert: true, Update: true, Delete: true}
	l.cfg.Tables = []Table{table}
	role := "part_" + strings.ReplaceAll(l.conn.Config().Database, "-", "_")
	l.exec("create role " + role + " login")
	t.Cleanup(func() { l.exec("drop owned by " + role + "; drop role " + role) })
	u, err := url.Parse(l.url)
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.User(role)
	needs := []string{"the v"}
	cfg := BackfillConfig{URL: u.String(), Needs: func(Table, []string, *cdc.Relation) []string { return slices.Clone(needs) }}
	b, err := NewBackfills(l.ctx, cfg, &memStore{}, prompt{l.log}, slog.New(slog.NewTextHandler(t.Output(), nil)))
	if err != nil {
		t.Fatal(err)
	}
	b.fixed = 3
	spec := BackfillSpec{Table: table, Sinks: []string{"crm"}}
	for _, step := range []struct{ grant, want string }{
		{"select 1", "GRANT USAGE ON SCHEMA"},
		{"grant usage on schema app to " + role, `GRANT SELECT ("id", "the v")`},
		{"grant select (id) on app.x to " + role, `GRANT SELECT ("the v")`},
		{`grant select ("the v") on app.x to ` + role, ""},
	} {
		l.exec(step.grant)
		_, err := b.Start(l.ctx, spec)
		if (err == nil) != (step.want == "") || err != nil && (!IsPermanent(err) || !strings.Contains(strings.ReplaceAll(err.Error(), `"the v", "id"`, `"id", "the v"`), step.want)) {
			t.Errorf("after %s: %v, want %q", step.grant, err, step.want)
		}
	}
	if _, err := b.Start(l.ctx, BackfillSpec{Table: table, Sinks: []string{"crm"}, Where: "secret = 's'"}); !IsPermanent(err) {
		t.Errorf("a condition on a column that may not be read: %v", err)
	}
	l.cfg.Backfills = b
	l.during(func(*Stream) {
		l.exec("update app.x set other = 'p' where id = 3")
		if f := l.filled(b, b.List()[0].ID); f.State != BackfillDone || f.Rows < 10 {
			t.Errorf("%+v", f)
		}
	})
	rows := map[string]bool{}
	for _, c := range l.log.changes(t) {
		if c.Op != cdc.OpRead {
			continue
		}
		rows[fmt.Sprintf("%s %s", c.New[c.Relation.Column("id")].Data, c.New[c.Relation.Column("the v")].Data)] = true
		if c.Relation.Column("secret") >= 0 {
			t.Error("a row has the column that may not be read")
		}
	}
	if len(rows) != 10 || !rows["10 v10"] {
		t.Errorf("%v", rows)
	}
	reader, err := NewReader(l.ctx, cfg.URL, ReaderOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	rel, err := reader.Relation(l.ctx, "app", "x")
	if err != nil {
		t.Fatal(err)
	}
	back, err := reader.Rows(l.ctx, rel, []int{rel.Column("the v")}, [][]string{{"4"}}, nil)
	if err != nil || string(back[0][0].Data) != "v4" {
		t.Errorf("read back: %v, %v", back, err)
	}
	export, err := OpenExport(l.ctx, cfg, spec)
	if err != nil {
		t.Fatal(err)
	}
	defer export.Close(l.ctx)
	n := 0
	if err := export.Rows(l.ctx, "", func([]cdc.Value) error { n++; return nil }); err != nil || n != 10 {
		t.Errorf("export: %d rows, %v", n, err)
	}
}

// A table without columns has rows, too, and one that loses its last column while it is read ends in an error, not in a wedge.
func TestLiveTableWithoutColumns(t *testing.T) {
	l := newLive(t, "create table n (); alter table n replica identity full; insert into n default values; insert into n default values", "n")
	b := l.backfills(&memStore{})
	l.during(func(*Stream) {
		if f := l.filled(b, l.start(b, BackfillSpec{Table: l.cfg.Tables[0], Sinks: []string{"crm"}})); f.State != BackfillDone || f.Rows != 2 {
			t.Errorf("%+v", f)
		}
		l.exec("insert into n default values")
	})
	if n := len(l.log.changes(t)); n != 3 {
		t.Errorf("%d changes, want 3", n)
	}
}
