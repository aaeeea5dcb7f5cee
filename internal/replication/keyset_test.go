package replication

import (
	"fmt"
	"strings"
	"testing"

	"github.com/sourcegraph/conc/pool"

	"github.com/cdcsync/cdcsync/internal/cdc"
)

// A table is read in chunks, again by key, back and whole, whatever it and its columns are called, and whatever schema the type of its
// key is in.
func TestLiveTablesOfAnyNameAndType(t *testing.T) {
	const rows = 20
	const filled = "select i, %s, 'n' || i from generate_series(1, 20) i"
	ltree, citext, both := "('a.b' || i)::ext.ltree", "('K' || i)::ext.citext", "i % 3, ('a.b' || i)::ext.ltree"
	for name, test := range map[string]struct{ table, key, value, where string }{
		"per cent":         {`"t%d"`, `"100%s" int primary key`, "i", `"100%s" % 1 = 0`},
		"per cent, places": {`"%[1]d%%"`, `"%!" text primary key`, "'%d' || i", `"%!" like '\%d%'`},
		"quotes and dots":  {`"My ""T"".x"`, `"a ""b"".c" int primary key`, "i", `"a ""b"".c" > 0`},
		"our own aliases":  {"k", "k1 int primary key", "i", "k.k1 > 0"},
		"t":                {"t", "n int primary key", "i", "t.n > 0"},
		"page":             {"page", `page text primary key`, "'x' || i", "page.page <> ''"},
		"ltree":            {"x", "k ext.ltree primary key", ltree, "true"},
		"citext":           {"x", "k ext.citext primary key", citext, "true"},
		"domain of ltree":  {"x", "k ext.path primary key", ltree, "true"},
		"array of citext":  {"x", "k ext.citext[] primary key", "array[('K' || i)::ext.citext, 'b']", "true"},
		"int and ltree":    {"x", "k int, k2 ext.ltree, primary key (k, k2)", both, "true"},
		"enum":             {"x", "k ext.mood primary key", "('m' || i)::ext.mood", "true"},
		"name of a type":   {"x", `k ext."%d T" primary key`, `('m' || i)::ext."%d T"`, "true"},
		"three columns":    {"x", "k int, k2 ext.ltree, k3 ext.citext, primary key (k, k2, k3)", both + ", 'x'", "true"},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLive(t, `create schema ext; create extension ltree schema ext; create extension citext schema ext;
				create domain ext.path as ext.ltree check (ext.nlevel(value) > 0);
				create type ext.mood as enum (`+labels(rows)+`); create type ext."%d T" as enum (`+labels(rows)+`)`)
			l.exec("create table " + test.table + ` ("no%te" int, ` + test.key + `, "%s" text)`)
			l.exec("alter table " + test.table + " replica identity full")
			l.exec("insert into " + test.table + " " + strings.Replace(filled, "%s", test.value, 1))
			bare := strings.ReplaceAll(strings.Trim(test.table, `"`), `""`, `"`)
			table := Table{Schema: "public", Name: bare, Insert: true, Update: true, Delete: true}
			l.cfg.Tables = []Table{table}
			b := l.backfills(&memStore{})
			b.fixed = 3
			l.during(func(*Stream) {
				for _, where := range []string{"", test.where} {
					f := l.filled(b, l.start(b, BackfillSpec{Table: table, Sinks: []string{"crm"}, Where: where}))
					if f.State != BackfillDone || f.Rows != rows {
						t.Errorf("where %q: %+v, want %d rows", where, f, rows)
					}
				}
			})
			l.readsBack(table, rows)
			l.readsAgain(table)
		})
	}
}

func labels(n int) string {
	var all []string
	for i := range n {
		all = append(all, fmt.Sprintf("'m%d'", n-i))
	}
	return strings.Join(all, ", ")
}

// readsBack reads a table whole, and each of its rows by its key.
func (l *live) readsBack(table Table, want int) {
	l.t.Helper()
	export, err := OpenExport(l.ctx, BackfillConfig{URL: l.url}, BackfillSpec{Table: table})
	if err != nil {
		l.t.Fatal(err)
	}
	defer export.Close(l.ctx)
	rel := export.Relation()
	var keys [][]string
	err = export.Rows(l.ctx, "", func(row []cdc.Value) error {
		var key []string
		for _, c := range KeyColumns(rel) {
			key = append(key, string(row[c].Data))
		}
		keys = append(keys, key)
		return nil
	})
	if err != nil || len(keys) != want {
		l.t.Fatalf("export: %d rows, %v", len(keys), err)
	}
	rows, err := newReader(l).Rows(l.ctx, rel, upTo(len(rel.Columns)), keys, nil)
	if err != nil {
		l.t.Fatal(err)
	}
	for i, row := range rows {
		if row == nil {
			l.t.Errorf("key %q is not found", keys[i])
		}
	}
}

// readsAgain reads rows as a chunk does that the stream has overtaken.
func (l *live) readsAgain(table Table) {
	l.t.Helper()
	r := &chunkReader{url: l.url, publication: l.cfg.Publication, table: table, maxRow: int(DefaultMaxRow)}
	defer r.close(l.ctx)
	var all, some chunk
	if err := r.read(l.ctx, &place{}, 1000, &all); err != nil {
		l.t.Fatal(err)
	}
	again := &place{End: true, Again: [][]byte{all.key(3), all.key(7)}}
	if err := r.read(l.ctx, again, 10, &some); err != nil {
		l.t.Fatal(err)
	}
	if len(some.rows) != 2 {
		l.t.Errorf("%d rows are read again, want 2", len(some.rows))
	}
}

// A reader whose first look at the table was cut short does not take itself for open.
func TestLiveChunkReaderHalfOpened(t *testing.T) {
	l := newLive(t, "create table a (id int primary key); insert into a select generate_series(1, 5)")
	r := &chunkReader{url: l.url, table: Table{Schema: "public", Name: "a"}, maxRow: int(DefaultMaxRow)}
	defer r.close(l.ctx)
	for run := range 3 {
		l.exec("begin; lock table pg_publication in access exclusive mode")
		done := make(chan error, 1)
		p := pool.New()
		p.Go(func() { done <- r.read(l.ctx, &place{}, 10, &chunk{}) })
		l.until("a query of the catalogue", func() bool {
			return l.value(`select count(pg_cancel_backend(pid))::text from pg_locks
				where not granted and database = (select oid from pg_database where datname = current_database())`) != "0"
		})
		p.Wait()
		l.exec("rollback")
		if err := <-done; err == nil {
			t.Fatal("the catalogue was read although it was locked")
		}
		var c chunk
		if err := r.read(l.ctx, &place{}, 10, &c); err != nil || len(c.rows) != 5 {
			t.Fatalf("run %d, afterwards: %d rows, %v", run, len(c.rows), err)
		}
		r.close(l.ctx)
	}
}
