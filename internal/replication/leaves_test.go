package replication

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// The server marks the old tuple of a partition by its root's identity. What the partition's own has left out is not null.
func TestOldRowOfAPartitionWithAnotherIdentity(t *testing.T) {
	const schema = `
		create table r (id int, v int, big text, note text, primary key (id, v)) partition by list (v);
		create table r1 partition of r for values in (1);
		alter table r replica identity full; alter table r1 replica identity full;
		create table other (id int primary key)`
	l := newLive(t, schema, "r", "other")
	l.during(func(*Stream) {
		l.exec(`create table r2 partition of r for values in (2)`) // is not FULL: partitions inherit no replica identity
		l.exec(`insert into other values (1)`)
		l.exec(`insert into r values (1, 1, 'a', null), (2, 2, 'b', 'n')`)
		l.exec(`update r set id = 3 where id = 2`)
		l.exec(`delete from r where id = 3`)
		l.exec(`update r set note = 'x' where id = 1`)
		l.exec(`update r set note = null where id = 1`)
		l.exec(`delete from r where id = 1`)
		l.exec(`insert into r values (4, 2, 'c', null)`)
		l.exec(`alter table r2 replica identity full`)
		l.exec(`insert into other values (2)`)
		l.exec(`delete from r where id = 4`)
		// A partition with columns in another order, and a key of its own.
		l.exec(`create table r3 (note text, big text not null unique, v int not null, id int not null)`)
		l.exec(`alter table r3 replica identity using index r3_big_key`)
		l.exec(`alter table r attach partition r3 for values in (3)`)
		l.exec(`insert into r values (5, 3, 'd', 'n')`)
		l.exec(`delete from r where id = 5`)
	})
	want := []string{
		`insert public.other new(id="1")`,
		`insert public.r new(id="1" v="1" big="a" note=null)`,
		`insert public.r new(id="2" v="2" big="b" note="n")`,
		`update public.r old(id="2" v="2" big=absent note=absent) new(id="3" v="2" big="b" note="n")`,
		`delete public.r old(id="3" v="2" big=absent note=absent)`,
		`update public.r old(id="1" v="1" big="a" note=null) new(id="1" v="1" big="a" note="x")`,
		`update public.r old(id="1" v="1" big="a" note="x") new(id="1" v="1" big="a" note=null)`,
		`delete public.r old(id="1" v="1" big="a" note=null)`,
		`insert public.r new(id="4" v="2" big="c" note=null)`,
		`insert public.other new(id="2")`,
		`delete public.r old(id="4" v="2" big="c" note=null)`,
		`insert public.r new(id="5" v="3" big="d" note="n")`,
		`delete public.r old(id=absent v=absent big="d" note=absent)`,
	}
	if diff := cmp.Diff(want, l.described()); diff != "" {
		t.Errorf("changes (-want +got):\n%s", diff)
	}
}

// described is what the log holds, without positions.
func (l *live) described() []string {
	var lines []string
	for line := range strings.Lines(describe(l.log.changes(l.t))) {
		_, line, _ = strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		lines = append(lines, line)
	}
	return lines
}

// Under a root whose key is smaller than the whole row, a partition whose key is another gives no value for the root's.
func TestKeyOfAPartitionThatLacksTheRootsKey(t *testing.T) {
	l := newLive(t, `
		create table r (id int, v int not null, code text not null) partition by list (v);
		create unique index r_id on r (id, v); alter table r alter id set not null;
		alter table r replica identity using index r_id;
		create table r1 (id int not null, v int not null, code text not null unique);
		alter table r1 replica identity using index r1_code_key;
		alter table r attach partition r1 for values in (1)`, "r")
	l.during(func(*Stream) {
		l.exec(`insert into r values (1, 1, 'a')`)
		l.exec(`delete from r`)
	})
	want := []string{`insert public.r new(id="1" v="1" code="a")`, `delete public.r old(id=absent v=absent code=absent)`}
	if diff := cmp.Diff(want, l.described()); diff != "" {
		t.Errorf("changes (-want +got):\n%s", diff)
	}
}

func (l *live) findings(table string) (all []Finding) {
	l.t.Helper()
	found, err := Check(l.ctx, l.cfg)
	if err != nil {
		l.t.Fatal(err)
	}
	for _, f := range found {
		if f.Table == table {
			l.t.Logf("%s: %s\n  %s", f.Severity, f.Message, f.Solution)
			all = append(all, f)
		}
	}
	return all
}

// What is wrong with partitions of one table is said with the SQL that fixes it, and stops nothing.
func TestPartitionsThatAreNotAsTheirRootStopNothing(t *testing.T) {
	l := newLive(t, `
		create table stray (id int, v int, primary key (id, v)) partition by list (v); alter table stray replica identity full;
		create table stray1 partition of stray for values in (1);
		create table remote (id int, v int) partition by list (v); alter table remote replica identity full;
		create table remote1 partition of remote for values in (1); alter table remote1 replica identity full;
		create foreign data wrapper nowhere; create server elsewhere foreign data wrapper nowhere;
		create foreign table remote2 partition of remote for values in (2) server elsewhere;
		create table lone (id int, v int) partition by list (v); alter table lone replica identity full;
		create table "lone 1" partition of lone for values in (1);
		create table wider (id int, v int, primary key (id, v)) partition by list (v);
		create table wider1 partition of wider for values in (1); alter table wider1 replica identity full;
		create table fine (id int primary key)`, "stray", "remote", "lone", "wider", "fine")
	for table, want := range map[string]struct{ message, solution string }{
		"public.stray":  {"are not REPLICA IDENTITY FULL as it is (public.stray1)", "ALTER TABLE public.stray1 REPLICA IDENTITY FULL"},
		"public.remote": {"foreign tables (public.remote2)", "the other partitions are captured"},
		"public.lone":   {`held back`, `ALTER TABLE public."lone 1" REPLICA IDENTITY FULL`},
	} {
		var as bool
		for _, f := range l.findings(table) {
			as = as || f.Severity == Warning && strings.Contains(f.Message, want.message) && strings.Contains(f.Solution, want.solution)
			if f.Severity == Failure {
				t.Errorf("%s: %s", table, f.Message)
			}
		}
		if !as {
			t.Errorf("%s: no warning that has %q and %q", table, want.message, want.solution)
		}
	}
	if found := l.findings("public.wider"); len(found) > 0 {
		t.Errorf("a partition that sends more than its root asks for: %+v", found)
	}
	l.during(func(*Stream) {
		l.exec(`insert into stray values (1, 1); insert into remote values (1, 1); insert into wider values (1, 1); insert into fine values (1); insert into lone values (1, 1)`)
		l.exec(`delete from stray; delete from only remote1; delete from wider; delete from lone`) // cdcsync breaks none of them
	})
	want := []string{
		`insert public.stray new(id="1" v="1")`, `insert public.remote new(id="1" v="1")`,
		`insert public.wider new(id="1" v="1")`, `insert public.fine new(id="1")`,
		`delete public.stray old(id="1" v="1")`, `delete public.remote old(id="1" v="1")`, `delete public.wider old(id="1" v="1")`,
	}
	if diff := cmp.Diff(want, l.described()); diff != "" {
		t.Errorf("changes (-want +got):\n%s", diff)
	}
	statements, err := SetupSQL(l.ctx, l.cfg)
	if err != nil {
		t.Fatal(err)
	}
	for _, st := range statements {
		l.exec(st.SQL)
	}
	l.log = newMemLog()
	l.exec("select pg_drop_replication_slot($1)", l.cfg.Slot)
	l.during(func(*Stream) { l.exec(`insert into lone values (2, 1); delete from lone`) })
	if diff := cmp.Diff([]string{`insert public.lone new(id="2" v="1")`, `delete public.lone old(id="2" v="1")`}, l.described()); diff != "" {
		t.Errorf("changes of a table that is held back no more (-want +got):\n%s", diff)
	}
}

// Tables that inherit from a mapped one are not published: without a key their UPDATE and DELETE would fail in the application.
func TestOnlyTheMappedTableOfAnInheritanceIsPublished(t *testing.T) {
	l := newLive(t, `
		create table ev (id int primary key, v text);
		create table ev_2024 () inherits (ev); create table "ev 2025" () inherits (ev_2024);
		insert into ev_2024 values (24, 'a'); insert into "ev 2025" values (25, 'a')`, "ev")
	published := func() string {
		return l.value("select coalesce(string_agg(tablename, ',' order by tablename), '') from pg_publication_tables where pubname = 'p'")
	}
	found := l.findings("public.ev")
	if len(found) != 1 || found[0].Severity != Warning || !strings.Contains(found[0].Message, "(public.ev_2024, public.ev 2025)") {
		t.Errorf("findings %+v, want one that names the tables that inherit", found)
	}
	work := func(*Stream) {
		if got := published(); got != "ev" {
			t.Errorf("%s are published, want ev", got)
		}
		l.exec(`insert into ev values (1, 'a'); update ev set v = 'b'; delete from ev where id < 25`)
	}
	l.during(work)
	l.exec(`alter publication p set table ev`) // as cdcsync made it once: with all that inherits
	if got := published(); got != "ev,ev 2025,ev_2024" {
		t.Fatalf("%s are published", got)
	}
	l.during(work)
	one := []string{`insert public.ev new(id="1" v="a")`, `update public.ev new(id="1" v="b")`, `delete public.ev old(id="1" v=absent)`}
	if diff := cmp.Diff(append(one, one...), l.described()); diff != "" {
		t.Errorf("changes (-want +got):\n%s", diff)
	}
	l.exec(`alter publication p set table ev`)
	l.cfg.Manage = false
	found = l.findings("public.ev")
	if len(found) != 2 || !strings.HasPrefix(found[1].Solution, "ALTER PUBLICATION") {
		t.Fatalf("findings %+v, want the statement that takes the children out", found)
	}
	l.exec(found[1].Solution)
	l.during(work)
}
