package replication

import (
	"bufio"
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgproto3"
	"golang.org/x/tools/txtar"

	"github.com/cdcsync/cdcsync/internal/cdc"
)

var updateGolden = flag.Bool("update", false, "record testdata/*.txtar anew from a Postgres")

// Each testdata/*.txtar holds setup.sql and changes.sql, one statement a line; the messages that Postgres sent for the changes
// (stream, hexadecimal), the mapped relations as the catalogue completed them (relations), and the changes that come out (events).
func TestGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatal("no recordings", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			archive, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if *updateGolden {
				record(t, archive)
			}
			var events string
			simulate(t, goldenConfig(), func(t *testing.T, ctx context.Context, o *offline) {
				t.Helper()
				events = replay(t, ctx, o, archive)
			})
			if *updateGolden {
				setSection(archive, "events", []byte(events))
				if err := os.WriteFile(file, txtar.Format(archive), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if diff := cmp.Diff(string(section(t, archive, "events")), events); diff != "" {
				t.Errorf("events (-want +got):\n%s", diff)
			}
		})
	}
}

func goldenConfig() Config {
	cfg := Config{MaxRow: 12 << 10}
	for _, name := range []string{"a", "b", "p"} {
		cfg.Tables = append(cfg.Tables, Table{Schema: "public", Name: name, Insert: true, Update: true, Delete: true, Truncate: true})
	}
	return cfg
}

// replay plays the recorded messages to a session.
func replay(t *testing.T, ctx context.Context, o *offline, archive *txtar.Archive) string {
	t.Helper()
	recorded := &recordedCatalog{}
	for _, line := range lines(section(t, archive, "relations")) {
		rel, err := cdc.DecodeRelation(unhex(t, line))
		if err != nil {
			t.Fatal(err)
		}
		recorded.relations = append(recorded.relations, rel)
	}
	o.catalog = recorded
	_ = o.run(ctx, t, func(w *walsender) {
		var last cdc.LSN
		for _, line := range lines(section(t, archive, "stream")) {
			m := unhex(t, line)
			w.send(m)
			if m[0] == msgCommit {
				last = lsn(m[10:])
			}
		}
		w.confirmed(ctx, last)
	})
	if len(recorded.relations) > 0 {
		t.Errorf("%d recorded relations were not asked for", len(recorded.relations))
	}
	return describe(o.log.changes(t))
}

// recordedCatalog completes relations in the order in which they were recorded.
type recordedCatalog struct{ relations, given []*cdc.Relation }

func (c *recordedCatalog) enrich(_ context.Context, rel *cdc.Relation) error {
	if len(c.relations) == 0 {
		return errors.New("no more relations were recorded")
	}
	c.given = append(c.given, c.relations[0])
	*rel, c.relations = *c.relations[0], c.relations[1:]
	return nil
}

// define gives the types of the relation that was recorded last.
func (c *recordedCatalog) define(_ context.Context, oids, _ []uint32, _ uint32) (sighting, error) {
	found := sighting{types: make(map[uint32]definedType), until: math.MaxUint64}
	for _, rel := range c.given {
		for i := range rel.Columns {
			if t := rel.Columns[i].Type; slices.Contains(oids, t.OID) {
				found.types[t.OID] = definedType{typ: t, version: string(cdc.AppendRelation(nil, rel)), asMade: true}
			}
		}
	}
	return found, nil
}

// record runs the SQL on a Postgres and keeps what it sends.
func record(t *testing.T, archive *txtar.Archive) {
	t.Helper()
	l := newLive(t, string(section(t, archive, "setup.sql")))
	l.exec("create publication p for all tables with (publish_via_partition_root = true)")
	l.exec("select pg_create_logical_replication_slot($1, 'pgoutput')", l.cfg.Slot)
	for _, statement := range lines(section(t, archive, "changes.sql")) {
		l.exec(statement)
	}
	catalog := newCatalog(l.url)
	defer catalog.close(l.ctx)
	var stream, relations bytes.Buffer
	for _, m := range l.sent() {
		fmt.Fprintf(&stream, "%x\n", m)
		if m[0] != msgRelation {
			continue
		}
		rel, err := parseRelation(m)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.ContainsFunc(goldenConfig().Tables, func(table Table) bool { return table.String() == rel.String() }) {
			continue
		}
		if err := catalog.enrich(l.ctx, rel); err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&relations, "%x\n", cdc.AppendRelation(nil, rel))
	}
	setSection(archive, "stream", stream.Bytes())
	setSection(archive, "relations", relations.Bytes())
}

// sent reads the slot from its start to the present end of the WAL, and gives pgoutput's messages.
func (l *live) sent() [][]byte {
	end, err := cdc.ParseLSN(l.value("select pg_current_wal_lsn()::text"))
	if err != nil {
		l.t.Fatal(err)
	}
	cfg, err := parseURL(l.url)
	if err != nil {
		l.t.Fatal(err)
	}
	cfg.RuntimeParams["replication"] = "database"
	cfg.DefaultQueryExecMode = pgx.QueryExecModeSimpleProtocol
	conn, err := pgx.ConnectConfig(l.ctx, cfg)
	if err != nil {
		l.t.Fatal(err)
	}
	defer func() { _ = conn.Close(l.ctx) }()
	pg := conn.PgConn()
	pg.Frontend().SendQuery(&pgproto3.Query{String: (&plan{}).command(&l.cfg).text})
	if err := pg.Frontend().Flush(); err != nil {
		l.t.Fatal(err)
	}
	var messages [][]byte
	for {
		m, err := pg.ReceiveMessage(l.ctx)
		if err != nil {
			l.t.Fatal(err)
		}
		data, ok := m.(*pgproto3.CopyData)
		switch {
		case !ok:
		case data.Data[0] == dataXLog:
			messages = append(messages, bytes.Clone(data.Data[dataHeader:]))
		case lsn(data.Data[1:]) >= end:
			return messages
		}
	}
}

func section(t *testing.T, archive *txtar.Archive, name string) []byte {
	t.Helper()
	for _, f := range archive.Files {
		if f.Name == name {
			return f.Data
		}
	}
	t.Fatalf("no section %s", name)
	return nil
}

func setSection(archive *txtar.Archive, name string, data []byte) {
	for i := range archive.Files {
		if archive.Files[i].Name == name {
			archive.Files[i].Data = data
			return
		}
	}
	archive.Files = append(archive.Files, txtar.File{Name: name, Data: data})
}

func lines(data []byte) []string {
	var all []string
	scanner := bufio.NewScanner(bytes.NewReader(data))
	scanner.Buffer(nil, 8<<20)
	for scanner.Scan() {
		if scanner.Text() != "" {
			all = append(all, scanner.Text())
		}
	}
	return all
}

func unhex(tb testing.TB, line string) []byte {
	tb.Helper()
	b, err := hex.DecodeString(line)
	if err != nil {
		tb.Fatal(err)
	}
	return b
}
