package replication

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/cdcsync/cdcsync/internal/cdc"
)

// What is said of generated columns, without a server of each version.
func TestGeneratedColumnsAreJudged(t *testing.T) {
	const (
		ours   = `ALTER PUBLICATION "p" SET (publish_generated_columns = stored)`
		theirs = `ALTER PUBLICATION "q" SET (publish_generated_columns = stored)`
	)
	for name, test := range map[string]struct {
		version   int
		manage    bool
		table     tableFacts
		published bool // by a publication that is there
		want      []Severity
		words     []string // in the first finding
	}{
		"17, FULL": {
			version: 170000, manage: true, table: tableFacts{identity: "f", stored: []string{"g"}, generatedIdentity: true},
			want: []Severity{Notice}, words: []string{"not published: g"},
		},
		"managed": {version: 180000, manage: true, table: tableFacts{identity: "f", stored: []string{"g"}, generatedIdentity: true, withheldBy: []string{"p"}}},
		"not managed, not needed": {
			version: 180000, table: tableFacts{identity: "d", stored: []string{"g"}, withheldBy: []string{"p"}},
			want: []Severity{Notice}, words: []string{"not published: g"},
		},
		"not managed": {
			version: 180000, table: tableFacts{identity: "f", stored: []string{"g"}, generatedIdentity: true, withheldBy: []string{"p"}},
			want: []Severity{Failure, Notice}, words: []string{"UPDATE and DELETE on it fail", `publication "p" leaves out`, ours},
		},
		"not managed, published":     {version: 180000, table: tableFacts{identity: "f", stored: []string{"g"}, generatedIdentity: true}, published: true},
		"not managed, key generated": {version: 180000, table: tableFacts{identity: "d", stored: []string{"g"}, generatedIdentity: true}, published: true},
		"virtual, by key": {
			version: 180000, manage: true, table: tableFacts{identity: "d", virtual: []string{"v"}},
			want: []Severity{Notice}, words: []string{"not published: v"},
		},
		"virtual beside a generated key": {
			version: 180000, manage: true, table: tableFacts{identity: "d", stored: []string{"g"}, virtual: []string{"v"}, generatedIdentity: true},
			want: []Severity{Notice}, words: []string{"not published: v"},
		},
		"virtual, FULL": {
			version: 180000, manage: true, table: tableFacts{identity: "f", virtual: []string{"v"}, generatedIdentity: true},
			want: []Severity{Failure, Notice}, words: []string{"UPDATE and DELETE on it fail", "virtual generated columns (v)", "STORED", "REPLICA IDENTITY DEFAULT"},
		},
		"another publication": {
			version: 180000, manage: true, table: tableFacts{identity: "f", stored: []string{"g"}, generatedIdentity: true, withheldBy: []string{"q"}},
			want: []Severity{Warning}, words: []string{"other publications leave out", theirs},
		},
		"FULL wanted": {
			version: 180000, manage: true, table: tableFacts{Table: Table{NeedsFull: true}, identity: "d", stored: []string{"g"}, withheldBy: []string{"p"}},
			want: []Severity{Warning}, words: []string{"whole old row", "run: " + ours + "; ALTER TABLE t REPLICA IDENTITY FULL"},
		},
		"FULL wanted, another publication": {
			version: 180000, manage: true, table: tableFacts{Table: Table{NeedsFull: true}, identity: "d", stored: []string{"g"}, withheldBy: []string{"q"}},
			want: []Severity{Warning}, words: []string{"whole old row", theirs + "; only then run:"},
		},
		"FULL wanted, virtual": {
			version: 180000, manage: true, table: tableFacts{Table: Table{NeedsFull: true}, identity: "d", virtual: []string{"v"}},
			want: []Severity{Warning, Notice}, words: []string{"whole old row", "virtual generated columns (v)", "only then run: ALTER TABLE t REPLICA IDENTITY FULL"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			table := test.table
			table.exists, table.kind, table.persistence, table.identified, table.primaryKey, table.readable = true, "r", "p", true, true, true
			table.Table.Schema, table.Table.Name, table.Table.Delete = "public", "t", true
			if table.identity != "f" {
				table.notFull = []string{"t"}
			}
			sv := &survey{version: test.version, tables: []tableFacts{table}, publication: &publicationFacts{generated: test.published}}
			var list []Finding
			var got []Severity
			cfg := &Config{Publication: "p", Manage: test.manage, Tables: []Table{table.Table}}
			judgeTable(sv, &sv.tables[0], cfg, func(f Finding) { list = append(list, f) })
			for _, f := range list {
				got = append(got, f.Severity)
			}
			if diff := cmp.Diff(test.want, got, cmpopts.SortSlices(func(a, b Severity) bool { return a < b })); diff != "" {
				t.Errorf("findings (-want +got):\n%s%+v", diff, list)
			}
			for _, word := range test.words {
				f := gravest(list)
				if text := f.Message + "; " + f.Solution; !strings.Contains(text, word) {
					t.Errorf("%q lacks %q", text, word)
				}
			}
		})
	}
}

func gravest(list []Finding) (found Finding) {
	for _, severity := range []Severity{Notice, Warning, Failure} {
		for _, f := range list {
			if f.Severity == severity {
				found = f
			}
		}
	}
	return found
}

// The stream, the catalogue and a backfill agree on which columns there are, and the application can still write.
func TestLiveGeneratedColumns(t *testing.T) {
	l := newLive(t, `
		create table f (id int primary key, g int generated always as (id * 2) stored, t text);
		create table k (id int, g int generated always as (id * 2) stored, primary key (g));
		create publication p for table f with (publish_via_partition_root = true)`, "f", "k")
	g, generated := "", l.major() >= 18
	if generated {
		l.exec(`alter table k add v int generated always as (id * 3) virtual`)
		g = ` g="2"`
	}
	b := l.backfills(&memStore{})
	l.during(func(*Stream) {
		l.exec(`alter table f replica identity full`)
		l.exec(`insert into f values (1, default, 'a'); insert into k values (1)`)
		l.filled(b, l.start(b, BackfillSpec{Table: l.cfg.Tables[0], Sinks: []string{"crm"}}))
		l.exec(`update f set t = 'b'; delete from f; delete from k`)
	})
	want := `insert public.f new(id="1"` + g + ` t="a")
insert public.k new(id="1"` + g + `)
read public.f new(id="1"` + g + ` t="a")
update public.f old(id="1"` + g + ` t="a") new(id="1"` + g + ` t="b")
delete public.f old(id="1"` + g + ` t="b")
delete public.k old(id=absent` + g + ")\n"
	changes := l.log.changes(t)
	got := describe(changes)
	for i := 9; i > 0; i-- {
		for j := 9; j > 0; j-- {
			got = strings.ReplaceAll(got, "tx"+string(rune('0'+i))+"#"+string(rune('0'+j))+" ", "")
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("changes (-want +got):\n%s", diff)
	}
	reader, err := NewReader(l.ctx, l.url, ReaderOptions{Publication: "p"})
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	for _, c := range changes[2:] {
		rel, err := reader.Relation(l.ctx, c.Relation.Schema, c.Relation.Name)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(rel, c.Relation); diff != "" {
			t.Errorf("%s %s (-catalogue +change):\n%s", c.Op, rel, diff)
		}
	}
	if key := changes[1].Relation.PrimaryKey; generated != (len(key) == 1) {
		t.Errorf("primary key that is generated: %v", key)
	}
}

// From Postgres 18 on a wrong publication stops the application.
func TestLiveGeneratedColumnsStopNobody(t *testing.T) {
	l := newLive(t, `
		create table s (id int primary key, g int generated always as (id * 2) stored);
		create table n (id int, g int generated always as (id * 2) stored);
		create publication p for table s with (publish_via_partition_root = true)`, "s", "n")
	if l.major() < 18 {
		t.Skip("SKIPPED: needs Postgres 18")
	}
	l.exec(`alter table n replica identity full; create table v (id int primary key, g int generated always as (id * 2) virtual)`)
	l.cfg.Tables[0].NeedsFull, l.cfg.Manage = true, false
	statements, err := SetupSQL(l.ctx, l.cfg)
	if err != nil {
		t.Fatal(err)
	}
	l.exec(`insert into s values (1), (2); insert into n values (1)`)
	for n, st := range statements { // the slot is made by the last
		l.exec(`delete from s where id = 1; insert into s values (1); update n set id = id`)
		l.exec(st.SQL)
		if n == 0 && !strings.Contains(st.SQL, storedOption) {
			t.Errorf("first statement: %s", st.SQL)
		}
	}
	l.during(func(*Stream) { l.exec(`delete from s where id = 1; delete from n`) })
	want := "tx1#1 delete public.s old(id=\"1\" g=\"2\")\ntx1#2 delete public.n old(id=\"1\" g=\"2\")\n"
	if diff := cmp.Diff(want, describe(l.log.changes(t))); diff != "" {
		t.Errorf("changes (-want +got):\n%s", diff)
	}

	l.exec(`alter publication p set (publish_generated_columns = none)`)
	if refused := l.refusal(); !strings.Contains(refused.Solution, "publish_generated_columns = stored") {
		t.Errorf("refused with %v", refused)
	}
	l.cfg.Manage = true
	l.during(func(*Stream) { l.exec(`delete from s where id = 2`) })

	l.cfg.Tables = append(l.cfg.Tables, Table{Schema: "public", Name: "v", Delete: true, NeedsFull: true})
	if statements, err = SetupSQL(l.ctx, l.cfg); err != nil || len(statements) != 1 || strings.Contains(statements[0].SQL, "FULL") {
		t.Errorf("setup with a virtual column: %v, %v", statements, err)
	}
	l.during(func(*Stream) { l.exec(`insert into v values (1); update v set id = 2; delete from v`) })
	changes := l.log.changes(t)
	if last := changes[len(changes)-1]; last.Op != cdc.OpDelete || !last.OldIsKey || len(last.Relation.Columns) != 1 {
		t.Errorf("last change: %+v", last)
	}
	l.exec(`alter table v replica identity full`)
	if refused := l.refusal(); !strings.Contains(refused.Reason, "virtual generated columns (g)") {
		t.Errorf("refused with %v", refused)
	}
}
