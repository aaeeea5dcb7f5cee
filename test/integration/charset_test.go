package integration

import (
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/cdcsync/cdcsync/internal/sandbox"
)

// foreign is a database in another encoding than UTF-8.
type foreign struct {
	*source

	raw *pgx.Conn // its client has the database's encoding, so that a test may send it any bytes
}

func newForeign(t *testing.T, encoding string) *foreign {
	t.Helper()
	admin := &source{url: postgres.NewDatabase(t)}
	u, err := url.Parse(admin.url)
	if err != nil {
		t.Fatal(err)
	}
	name := strings.TrimPrefix(u.Path, "/") + "_x"
	admin.exec(t, fmt.Sprintf("create database %s encoding '%s' lc_collate 'C' lc_ctype 'C' template template0", name, encoding))
	u.Path = "/" + name
	t.Cleanup(func() {
		if err := postgres.Server(t).DropDatabase(t.Context(), name); err != nil {
			t.Log(err)
		}
	})
	cfg, err := pgx.ParseConfig(u.String())
	if err != nil {
		t.Fatal(err)
	}
	cfg.RuntimeParams["client_encoding"] = encoding
	raw, err := pgx.ConnectConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = raw.Close(t.Context()) })
	return &foreign{source: &source{url: u.String()}, raw: raw}
}

func (f *foreign) run(t *testing.T, sql string) {
	t.Helper()
	if _, err := f.raw.PgConn().Exec(t.Context(), sql).ReadAll(); err != nil {
		t.Fatalf("%q: %v", sql, err)
	}
}

// foreignMappings have names beyond ASCII, a lookup by a text beyond ASCII, and read a value back that is TOASTed.
const foreignMappings = `
  - table: 'public."clients_%[1]s"'
    sink: crm
    lookups:
      ort: {key: $ort, sql: "select o.ort, o.note as %[1]s from orte o where o.ort = any($1)"}
    item: {brandId: 1, tableName: kunden, createdAt: 1700000000000, updatedAt: 1700000000000,
      data: {id: $id, name: '=row["name_%[1]s"]', big: $big, visits: $visits, list: $list, ort: =lookup.ort}}
`

const foreignSchema = `
create table orte (ort text primary key, note text);
create table "clients_%[1]s" (id text primary key, "name_%[1]s" text, big text, visits int not null default 0, list text[], ort text);
alter table "clients_%[1]s" alter big set storage external;
insert into orte values ('%[1]s', 'bei %[1]s'), ('bad', '%[2]s');
insert into "clients_%[1]s" values
	('1-%[1]s', 'old %[1]s', repeat('%[1]s', 3000), 0, array['%[1]s', 'x'], '%[1]s'),
	('2', 'old %[2]s', 'x', 0, null, null),
	('3', 'old', 'x', 0, array['%[2]s'], null);
`

// Databases in other encodings are read as they are: what has a form in UTF-8 arrives in it, and a value that has none costs its own row.
func TestOtherEncodings(t *testing.T) {
	for _, c := range []struct{ encoding, good, raw, bad string }{
		{"SQL_ASCII", "é", "é", "\xe9"},
		{"LATIN1", "é", "\xe9", ""},
		{"WIN1252", "€", "\x80", "\x81"},
		{"EUC_JP", "日本", "\xc6\xfc\xcb\xdc", "\xa9\xa1"},
	} {
		t.Run(c.encoding, func(t *testing.T) {
			f, v := newForeign(t, c.encoding), newVendor(t, sandbox.Config{})
			f.run(t, fmt.Sprintf(foreignSchema, c.raw, c.bad))
			d := newDaemon(t, f.url, fmt.Sprintf("sinks:\n  crm: {type: stopchurn, url: %q, api_key: sandbox-key, retry: {min: 10ms, max: 500ms}}\nmappings:", v.url)+
				fmt.Sprintf(foreignMappings, c.good))
			table := fmt.Sprintf(`public."clients_%s"`, c.good)

			dir := filepath.Join(t.TempDir(), "upload")
			out, _ := d.command("export", "--table", table, "--out", dir) // ends with an error where rows were left out
			exported(t, dir, c.good)
			if c.bad != "" && !strings.Contains(out, "column name_"+c.good+" holds bytes that") {
				t.Errorf("export says nothing of the column:\n%s", out)
			}
			d.start()
			d.ready()
			// Streamed: a good row, bad ones, an update that leaves the TOASTed value where it is, a row whose lookup holds bad bytes.
			f.run(t, fmt.Sprintf(`insert into "clients_%[1]s" values
				('4-%[1]s', 'new %[1]s', repeat('%[1]s', 3000), 1, array['%[1]s'], '%[1]s'),
				('5', 'new %[2]s', 'x', 1, null, null), ('6', 'new', 'x%[2]s', 1, null, null), ('7', 'lookup', 'x', 1, null, 'bad'), ('8', 'after', 'x', 1, null, 'nowhere')`, c.raw, c.bad))
			f.run(t, fmt.Sprintf(`update "clients_%[1]s" set visits = 9 where id = '4-%[1]s'`, c.raw))
			foreignRow(t, d, v, "4-"+c.good, c.good, 9)
			foreignRow(t, d, v, "8", "", 1)
			if _, err := d.command("backfill", "start", "--table", table); err != nil {
				t.Fatal(err)
			}
			foreignRow(t, d, v, "1-"+c.good, c.good, 0)
			foreignRecovery(t, f, d, v)
			if c.bad == "" {
				return
			}
			d.wait("the dead letters", func() (bool, string) { // of rows 2, 3, 5, 6 and 7
				out, err := d.command("dlq", "list")
				return err == nil && strings.Count(out, "bytes that") >= 5, out
			})
			letters, err := d.command("dlq", "list")
			for _, column := range []string{"column name_" + c.good, "column big", "column list", "the lookup's column"} {
				if !strings.Contains(letters, column) {
					t.Errorf("no letter names %s: %v\n%s", column, err, letters)
				}
			}
		})
	}
}

// exported finds the good row of the schema in the files.
func exported(t *testing.T, dir, good string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.json"))
	if err != nil || len(files) != 1 {
		t.Fatalf("files %v: %v", files, err)
	}
	content, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"1-` + good + `"`, `"old ` + good + `"`, strings.Repeat(good, 3000), `"bei ` + good + `"`} {
		if !strings.Contains(string(content), want) {
			t.Errorf("the files lack %.100s", want)
		}
	}
}

// foreignRecovery loses the slot, with a deletion that was not captured, and finds the stream going on after recover.
func foreignRecovery(t *testing.T, f *foreign, d *daemon, v *vendor) {
	t.Helper()
	f.run(t, `update orte set note = note`) // nothing that a mapping wants
	d.stop()
	f.run(t, "select pg_drop_replication_slot('"+slotName(t)+"')")
	f.run(t, `do $$ begin execute (select format('delete from %I where id like ''4-%%''', relname) from pg_class where relname like 'clients%' and relkind = 'r'); end $$`)
	if out, err := d.command("recover", "--yes"); err != nil {
		t.Fatalf("recover: %v\n%s", err, out)
	}
	d.start()
	d.ready()
	f.run(t, `do $$ begin execute (select format('insert into %I (id) values (''9'')', relname) from pg_class where relname like 'clients%' and relkind = 'r'); end $$`)
	d.wait("what comes after the recovery", func() (bool, string) {
		return slices.ContainsFunc(v.Rows("kunden"), func(r sandbox.Row) bool { return r.ID == "9" }), fmt.Sprint(len(v.Rows("kunden")))
	})
}

// foreignRow waits for a row at the vendor. Without good it is a plain one.
func foreignRow(t *testing.T, d *daemon, v *vendor, id, good string, visits int) {
	t.Helper()
	type content struct {
		Name, Big string
		Visits    int
		List      []string
		Ort       map[string]string
	}
	var row content
	d.wait("row "+id, func() (bool, string) {
		for _, r := range v.Rows("kunden") {
			if r.ID == id {
				row = content{}
				if err := json.Unmarshal(r.Data, &row); err != nil {
					t.Fatal(err)
				}
			}
		}
		letters, _ := d.command("dlq", "list")
		return row.Name != "" && row.Visits == visits, fmt.Sprintf("%+v\n%s", row, letters)
	})
	if good == "" {
		return
	}
	if !strings.HasSuffix(row.Name, good) || row.Big != strings.Repeat(good, 3000) || row.List[0] != good || row.Ort[good] != "bei "+good {
		t.Errorf("row %s arrived as %.300q", id, fmt.Sprintf("%+v", row))
	}
}
