package replication

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/sourcegraph/conc/pool"

	"github.com/cdcsync/cdcsync/internal/cdc"
	"github.com/cdcsync/cdcsync/internal/pgtest"
)

var (
	merges    = flag.Int("merges", 5, "runs of TestLiveMerge, half of them with a synchronous standby")
	mergeSeed = flag.Uint64("merge-seed", uint64(time.Now().UnixNano()), "of TestLiveMerge")
)

// memStore is a Store in memory.
type memStore struct {
	mu     sync.Mutex
	values map[string][]byte
}

func (s *memStore) Value(_ context.Context, name string) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.values[name], nil
}

func (s *memStore) SetValue(_ context.Context, name string, value []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.values == nil {
		s.values = make(map[string][]byte)
	}
	s.values[name] = value
	return nil
}

func (s *memStore) DeleteValue(_ context.Context, name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.values, name)
	return nil
}

func (s *memStore) Values(_ context.Context, prefix string) (map[string][]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	found := make(map[string][]byte)
	for name, value := range s.values {
		if strings.HasPrefix(name, prefix) {
			found[name] = value
		}
	}
	return found, nil
}

// prompt are Deliveries to sinks that have always settled everything.
type prompt struct{ *memLog }

func (p prompt) Stored() uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return uint64(len(p.blocks))
}

func (p prompt) Settled(context.Context, []string, uint64) (string, error) { return "", nil }

func (p prompt) Round(string) int { return 0 }

func (l *live) backfills(store Store) *Backfills {
	l.t.Helper()
	b, err := NewBackfills(l.ctx, BackfillConfig{URL: l.cfg.URL, Publication: l.cfg.Publication}, store, prompt{l.log}, slog.New(slog.NewTextHandler(l.t.Output(), nil)))
	if err != nil {
		l.t.Fatal(err)
	}
	l.cfg.Backfills = b
	return b
}

func (l *live) start(b *Backfills, spec BackfillSpec) string {
	l.t.Helper()
	started, err := b.Start(l.ctx, spec)
	if err != nil {
		l.t.Fatal(err)
	}
	return started.ID
}

// filled waits until a backfill has ended, and returns it.
func (l *live) filled(b *Backfills, id string) (found Backfill) {
	l.t.Helper()
	l.until("backfill "+id, func() bool {
		for _, f := range b.List() {
			if f.ID == id {
				found = f
			}
		}
		return found.State.ended()
	})
	return found
}

const mergeSchema = `
create sequence versions;
create table m (a int, b text collate "C", v bigint not null default nextval('versions'), pad text, primary key (b, a));
alter table m replica identity full;
insert into m (a, b, pad) select i % 10, 'key ' || i / 10, repeat('x', 20) from generate_series(0, 29999) i`

// The vendor's final state equals the table, and no key ever goes back, while 12 writers write. Run it with -merges 100 to be sure.
func TestLiveMerge(t *testing.T) {
	var standby *pgtest.Server
	for run := range *merges {
		if run%2 == 1 && standby == nil {
			standby = synchronous(t)
		}
		t.Run(strconv.Itoa(run), func(t *testing.T) {
			seed := *mergeSeed + uint64(run)
			t.Logf("-merge-seed %d", seed)
			if run%2 == 1 {
				testMerge(t, liveOn(t, standby.NewDatabase(t), mergeSchema, "m"), seed)
				return
			}
			testMerge(t, newLive(t, mergeSchema, "m"), seed)
		})
	}
}

// synchronous is a server whose commits wait for a standby, so that the stream has them before any snapshot sees them.
func synchronous(t *testing.T) *pgtest.Server {
	t.Helper()
	server := pgtest.Own(t, pgtest.Options{TCP: true, Settings: map[string]string{"wal_level": "logical", "max_connections": "50"}})
	conn, err := pgx.Connect(t.Context(), server.URL("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	var bin string
	if err := conn.QueryRow(t.Context(), "select setting from pg_config where name = 'BINDIR'").Scan(&bin); err != nil {
		t.Fatal(err)
	}
	standBy(t, server.URL("postgres"), bin)
	for _, sql := range []string{"alter system set synchronous_standby_names = '*'", "select pg_reload_conf()"} {
		if _, err := conn.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	return server
}

func testMerge(t *testing.T, l *live, seed uint64) {
	t.Helper()
	const chunkRows, writers = 150, 12
	b := l.backfills(&memStore{})
	b.fixed = chunkRows
	l.cfg.URL = lagging(t, l.url, rand.New(rand.NewPCG(seed, writers)), 30*time.Millisecond) // rows are read where the stream is not yet
	l.during(func(*Stream) {
		writing, stop := context.WithCancel(l.ctx)
		p := pool.New().WithErrors()
		for i := range writers {
			p.Go(func() error { return mergeWriter(writing, l.url, rand.New(rand.NewPCG(seed, uint64(i)))) })
		}
		id := l.start(b, BackfillSpec{Table: l.cfg.Tables[0], Sinks: []string{"crm"}})
		if seed%3 == 0 { // the connection breaks in the middle
			l.until("half of the rows", func() bool { return b.List()[0].Rows > 10_000 })
			l.exec("select pg_terminate_backend(active_pid) from pg_replication_slots where active_pid is not null")
		}
		if f := l.filled(b, id); f.State != BackfillDone {
			t.Errorf("backfill %+v", f)
		}
		stop()
		if err := p.Wait(); err != nil {
			t.Error(err)
		}
	})
	v := mergeVendor{t: t, rows: map[string]int64{}, newest: map[string]int64{}}
	rows := 0
	for _, c := range l.log.changes(t) {
		if c.Op == cdc.OpRead {
			rows++
		}
		v.take(&c)
	}
	want := map[string]int64{}
	var key string
	var version int64
	found, err := l.conn.Query(l.ctx, "select b || '/' || a, v from m")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := pgx.ForEachRow(found, []any{&key, &version}, func() error { want[key] = version; return nil }); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, v.rows); diff != "" {
		t.Errorf("vendor (-source +vendor):\n%s", diff)
	}
	t.Logf("%d rows, %d changes of which %d are included in rows", rows, v.changes, v.included)
}

// mergeWriter writes until ctx ends.
func mergeWriter(ctx context.Context, url string, r *rand.Rand) error {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	for ctx.Err() == nil {
		err := mergeTransaction(context.WithoutCancel(ctx), conn, r)
		var pgErr *pgconn.PgError
		if errors.As(err, &pgErr) && (pgErr.Code == "40P01" || pgErr.Code == "23505") { // writers meet
			continue
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func mergeTransaction(ctx context.Context, conn *pgx.Conn, r *rand.Rand) error {
	tx, err := conn.Begin(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback(ctx) }()
	for range 1 + r.IntN(5) {
		a, key := r.IntN(10), fmt.Sprintf("key %d", r.IntN(3200))
		var sql string
		args := []any{a, key}
		switch r.IntN(8) {
		case 0, 1, 2:
			sql = "update m set v = nextval('versions') where a = $1 and b = $2"
		case 3:
			sql = "delete from m where a = $1 and b = $2"
		case 4, 5:
			sql = "insert into m (a, b) values ($1, $2) on conflict (b, a) do update set v = nextval('versions')"
		default:
			sql, args = "update m set v = nextval('versions'), b = $3 where a = $1 and b = $2", append(args, fmt.Sprintf("key %d", r.IntN(3200)))
		}
		if _, err := tx.Exec(ctx, sql, args...); err != nil {
			return err
		}
	}
	if r.IntN(6) == 0 {
		return tx.Rollback(ctx)
	}
	return tx.Commit(ctx)
}

// mergeVendor applies what one sink of the backfill gets.
type mergeVendor struct {
	t                 *testing.T
	rows              map[string]int64
	newest            map[string]int64 // twice the version, and one more for its delete
	changes, included int
}

func (v *mergeVendor) take(c *cdc.Change) {
	key := func(row []cdc.Value) string { return string(row[1].Data) + "/" + string(row[0].Data) }
	version := func(row []cdc.Value) int64 {
		n, err := strconv.ParseInt(string(row[2].Data), 10, 64)
		if err != nil {
			v.t.Fatal(err)
		}
		return n
	}
	if c.Op != cdc.OpRead {
		v.changes++
	}
	if !c.For("crm") {
		v.included++
		return
	}
	has, some := c.HasPart("crm")
	if some {
		v.included++
	}
	if c.Old != nil && (c.New == nil || key(c.Old) != key(c.New)) && (!some || has != cdc.PartOld) {
		v.write(c, key(c.Old), 2*version(c.Old)+1)
		delete(v.rows, key(c.Old))
	}
	if c.New != nil && (!some || has != cdc.PartNew) {
		v.write(c, key(c.New), 2*version(c.New))
		v.rows[key(c.New)] = version(c.New)
	}
}

func (v *mergeVendor) write(c *cdc.Change, key string, at int64) {
	if at < v.newest[key] {
		v.t.Errorf("%s %s: %s goes back from %d to %d", c.Position, c.Op, key, v.newest[key], at)
	}
	v.newest[key] = at
}

// A value of any type has the same text in the stream, in a backfill, in an export and when it is read back; since what is
// sent is made of the text and the relation alone, it is the same, too.
func TestLiveEveryTypeIsTheSame(t *testing.T) {
	recorded, err := os.ReadFile("../mapping/testdata/types.tsv") // those of docs/types.md
	if err != nil {
		t.Fatal(err)
	}
	var values []string
	for line := range strings.Lines(string(recorded)) {
		values = append(values, fmt.Sprintf("%s as c%d", strings.Split(line, "\t")[1], len(values)))
	}
	columns := strings.Join(values, ", ")
	l := newLive(t, `
		create extension if not exists hstore;
		create extension if not exists citext;
		create type mood as enum ('sad', 'happy');
		create type address as (street text, number int4, since date);
		create domain posint as int4 check (value > 0);
		create domain email as text;
		create table types as select 1 as id, `+columns+`;
		alter table types add primary key (id);
		alter table types replica identity full`, "types")
	b := l.backfills(&memStore{})
	l.during(func(*Stream) {
		l.exec("insert into types select 2, " + columns)
		l.filled(b, l.start(b, BackfillSpec{Table: l.cfg.Tables[0], Sinks: []string{"crm"}}))
	})
	var want []cdc.Value
	var relation []byte
	compare := func(what string, rel *cdc.Relation, row []cdc.Value) {
		t.Helper()
		if want == nil {
			want, relation = row[1:], cdc.AppendRelation(nil, rel)
		}
		if diff := cmp.Diff(want, row[1:]); diff != "" {
			t.Errorf("%s (-stream +%s):\n%s", what, what, diff)
		}
		if got := cdc.AppendRelation(nil, rel); !bytes.Equal(got, relation) {
			t.Errorf("%s has the relation %+v", what, rel)
		}
	}
	changes := l.log.changes(t)
	for _, op := range []cdc.Op{cdc.OpInsert, cdc.OpRead} {
		for _, c := range changes {
			if c.Op == op {
				compare(op.String(), c.Relation, c.New)
			}
		}
	}
	export, err := OpenExport(l.ctx, BackfillConfig{URL: l.url}, BackfillSpec{Table: l.cfg.Tables[0]})
	if err != nil {
		t.Fatal(err)
	}
	defer export.Close(l.ctx)
	if err := export.Rows(l.ctx, "", func(row []cdc.Value) error { compare("export", export.Relation(), row); return nil }); err != nil {
		t.Fatal(err)
	}
	reader, err := NewReader(l.ctx, l.url, ReaderOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	rel := export.Relation()
	rows, err := reader.Rows(l.ctx, rel, upTo(len(rel.Columns)), [][]string{{"1"}, {"2"}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range rows {
		compare("read-back", rel, row)
	}
	t.Logf("%d values", len(values))
}

// Tables of every kind are read whole, in chunks that end anywhere.
func TestLiveBackfillTables(t *testing.T) {
	for name, test := range map[string]struct {
		schema, where string
		want          string // a query for what is read
		maxRow        int64
	}{
		"composite key of text": {
			schema: `create table x (a text collate "und-x-icu", b int, note text, primary key (a, b)); alter table x replica identity full;
				insert into x select chr(97 + i % 26) || '"\{}, ' || i % 7, i, 'n' || i from generate_series(1, 997) i`,
			want: `select b::text from x`,
		},
		"varchar key with a modifier": {
			schema: `create table x (note text, b varchar(4) primary key); insert into x select 'n', 'k' || i from generate_series(1, 700) i`,
			want:   `select b::text from x`,
		},
		"partitions": {
			schema: `create table x (a int, b int, primary key (a, b)) partition by list (a);
				create table x0 partition of x for values in (0); create table x1 partition of x for values in (1);
				insert into x select i % 2, i from generate_series(1, 800) i`,
			want: `select b::text from x`,
		},
		"an index as the identity": {
			schema: `create table x (a int primary key, b int not null, c int not null); create unique index xi on x (c, b); alter table x replica identity using index xi;
				insert into x select 1000 - i, i, i % 3 from generate_series(1, 600) i`,
			want: `select b::text from x`,
		},
		"no key": {
			schema: `create table x (a text, b int); alter table x replica identity full; insert into x select repeat('x', 200), i from generate_series(1, 5000) i`,
			want:   `select b::text from x`,
		},
		"condition that few rows meet": {
			schema: `create table x (a int primary key, b int); insert into x select i, i from generate_series(1, 3000) i`,
			where:  `b % 1000 = 7 -- not many`, want: `select b::text from x where b % 1000 = 7`,
		},
		"empty": {schema: `create table x (a int primary key, b int)`, want: `select b::text from x`},
		"a row that is too large": {
			schema: `create table x (a int primary key, b int, note text); insert into x select i, i, case when i in (1, 250, 251) then repeat('x', 100000) end from generate_series(1, 500) i`,
			want:   `select b::text from x where note is null`, maxRow: 50_000,
		},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLive(t, test.schema, "x")
			b := l.backfills(&memStore{})
			b.fixed = 100
			if test.maxRow > 0 {
				b.cfg.MaxRow = test.maxRow
			}
			l.during(func(*Stream) {
				f := l.filled(b, l.start(b, BackfillSpec{Table: l.cfg.Tables[0], Sinks: []string{"crm"}, Where: test.where}))
				if f.State != BackfillDone || f.Estimate != f.Rows {
					t.Errorf("backfill %+v", f)
				}
			})
			got, large := map[string]int{}, 0
			for _, c := range l.log.changes(t) {
				if c.Oversized != nil {
					large++
					continue
				}
				got[string(c.New[c.Relation.Column("b")].Data)]++
			}
			want := map[string]int{}
			rows, err := l.conn.Query(l.ctx, test.want)
			if err != nil {
				t.Fatal(err)
			}
			var key string
			if _, err := pgx.ForEachRow(rows, []any{&key}, func() error { want[key]++; return nil }); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("rows (-table +read):\n%s", diff)
			}
			if test.maxRow > 0 && large != 3 {
				t.Errorf("%d rows were too large, want 3", large)
			}
		})
	}
}

// The planner guesses a third of the rows for a condition that one in ten meets; what was read knows better.
func TestBackfillEstimate(t *testing.T) {
	b := &Backfills{}
	e := &backfillEntry{Backfill: Backfill{BackfillSpec: BackfillSpec{Where: "x"}, Estimate: 333, Total: 1000}}
	for _, test := range []struct {
		place place
		want  int64
	}{
		{place{}, 333},
		{place{Rows: 40, Scanned: 400}, 100},
		{place{Rows: 130, Scanned: 1200}, 130},
		{place{Rows: 131, Scanned: 1300, End: true}, 131},
	} {
		e.place = test.place
		if b.counted(e); e.Estimate != test.want || e.Rows != test.place.Rows {
			t.Errorf("at %+v: %d of %d, want %d", test.place, e.Rows, e.Estimate, test.want)
		}
	}

	record := chunkRecord{Key: []string{"a"}, Before: place{Rows: 40, Scanned: 400}, Next: place{Rows: 50, Scanned: 500}, Count: 10, Columns: 1}
	e.place = record.resume([]string{"\x021"}) // a crash left one of ten rows
	if b.counted(e); e.Rows != 41 || e.Estimate > 105 {
		t.Errorf("after a crash: %d of %d, want 41 of about 100", e.Rows, e.Estimate)
	}
}

// What the server says of a value is in no reason, since that is logged.
func TestLiveErrorsQuoteNoRow(t *testing.T) {
	const planted = "planted-value"
	l := newLive(t, `create table x (id int primary key, note text); insert into x values (1, '`+planted+`')`, "x")
	spec := BackfillSpec{Table: l.cfg.Tables[0], Sinks: []string{"crm"}, Where: "note::int > 0"}
	texts := map[string]string{}
	b := l.backfills(&memStore{})
	l.during(func(*Stream) {
		f := l.filled(b, l.start(b, spec))
		if f.State != BackfillFailed {
			t.Errorf("backfill %+v", f)
		}
		texts["backfill"] = f.Reason
	})
	reader, err := NewReader(l.ctx, l.url, ReaderOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	_, err = reader.Lookup(l.ctx, "select id, note::int from x where id = any($1)", []string{"1"}, nil)
	texts["lookup"] = fmt.Sprint(err)
	export, err := OpenExport(l.ctx, BackfillConfig{URL: l.url}, spec)
	if err != nil {
		t.Fatal(err)
	}
	defer export.Close(l.ctx)
	texts["export"] = fmt.Sprint(export.Rows(l.ctx, "", func([]cdc.Value) error { return nil }))
	for what, text := range texts {
		if strings.Contains(text, planted) || !strings.Contains(text, "22P02") {
			t.Errorf("%s says %s", what, text)
		}
	}
}
