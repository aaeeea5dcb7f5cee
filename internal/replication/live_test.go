package replication

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/sourcegraph/conc/pool"

	"github.com/cdcsync/cdcsync/internal/cdc"
	"github.com/cdcsync/cdcsync/internal/pgtest"
)

// live is a stream on a database of its own.
type live struct {
	t    *testing.T
	ctx  context.Context
	url  string
	conn *pgx.Conn
	cfg  Config
	log  *memLog
}

func newLive(t *testing.T, schema string, tables ...string) *live {
	t.Helper()
	return liveOn(t, postgres.NewDatabase(t), schema, tables...)
}

func liveOn(t *testing.T, url, schema string, tables ...string) *live {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute) // cleaning up needs it too
	t.Cleanup(cancel)
	l := &live{t: t, ctx: ctx, url: url, log: newMemLog()}
	l.connect()
	t.Cleanup(func() { _ = l.conn.Close(ctx) })
	l.exec(schema)
	slot := "s_" + strings.ReplaceAll(l.conn.Config().Database, "-", "_")
	l.cfg = Config{URL: l.url, Slot: slot, Publication: "p", Manage: true}
	for _, name := range tables {
		l.cfg.Tables = append(l.cfg.Tables, Table{Schema: "public", Name: name, Insert: true, Update: true, Delete: true})
	}
	return l
}

func (l *live) connect() {
	l.t.Helper()
	var err error
	if l.conn, err = pgx.Connect(l.ctx, l.url); err != nil {
		l.t.Fatal(err)
	}
}

func (l *live) exec(sql string, args ...any) {
	l.t.Helper()
	if _, err := l.conn.Exec(l.ctx, sql, args...); err != nil {
		l.t.Fatalf("%s: %v", sql, err)
	}
}

func (l *live) value(sql string, args ...any) string {
	l.t.Helper()
	var v string
	if err := l.conn.QueryRow(l.ctx, sql, args...).Scan(&v); err != nil {
		l.t.Fatalf("%s: %v", sql, err)
	}
	return v
}

// major is the server's version.
func (l *live) major() int {
	l.t.Helper()
	n, err := strconv.Atoi(l.value("select current_setting('server_version_num')"))
	if err != nil {
		l.t.Fatal(err)
	}
	return n / 10000
}

func (l *live) stream() *Stream {
	return New(l.cfg, l.log, slog.New(slog.NewTextHandler(l.t.Output(), nil)), nil)
}

// during runs a stream while fn does something, and then until all that is committed is confirmed.
func (l *live) during(fn func(*Stream)) {
	l.t.Helper()
	ctx, cancel := context.WithCancel(l.ctx)
	s := l.stream()
	p := pool.New().WithErrors()
	p.Go(func() error { return s.Run(ctx) })
	l.until("streaming", func() bool {
		status := s.Status()
		if status.State == StateStopped {
			l.t.Fatalf("stopped: %s", status.Reason)
		}
		return status.State == StateStreaming
	})
	fn(s)
	end := l.value("select pg_current_wal_lsn()::text")
	l.until("confirmation of "+end, func() bool {
		return l.value("select (confirmed_flush_lsn >= $1::pg_lsn)::text from pg_replication_slots where slot_name = $2", end, l.cfg.Slot) == "true"
	})
	cancel()
	if err := p.Wait(); err != nil {
		l.t.Errorf("run: %v", err)
	}
}

// until looks again and again, since the server tells nobody what it has done.
func (l *live) until(what string, ok func() bool) {
	l.t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-l.ctx.Done():
			l.t.Fatalf("%s: %v", what, l.ctx.Err())
		}
	}
}

// refusal runs a stream that must not start.
func (l *live) refusal() *Error {
	l.t.Helper()
	err := l.stream().Run(l.ctx)
	var refused *Error
	if !errors.As(err, &refused) {
		l.t.Fatalf("run ended with %v, want an Error", err)
	}
	if refused.Solution == "" {
		l.t.Errorf("no solution: %v", err)
	}
	l.t.Logf("%v", err)
	return refused
}

func TestLiveEachChangeOnceThroughBrokenConnections(t *testing.T) {
	const rows = 20000
	l := newLive(t, "create table a (id int primary key, v text); create table b (id int primary key); create table unmapped (id int)", "a", "b")
	l.during(func(*Stream) {
		for n := range 5 {
			l.exec("begin")
			l.exec("insert into a select g, repeat('x', 50) from generate_series($1::int, $2::int) g", n*rows/5+1, (n+1)*rows/5)
			l.exec("insert into unmapped select generate_series(1, 100)")
			l.exec("insert into b values ($1)", n)
			l.exec("commit")
			l.log.wait(l.ctx, t, "a change of this transaction", func() bool { return l.log.rows > n*(rows/5+1) })
			l.exec("select pg_terminate_backend(active_pid) from pg_replication_slots where slot_name = $1 and active_pid is not null", l.cfg.Slot)
		}
	})
	next := map[string]int{"a": 1, "b": 0}
	for _, c := range l.log.changes(t) {
		if got, want := string(c.New[0].Data), fmt.Sprint(next[c.Relation.Name]); got != want {
			t.Fatalf("%s of %s comes at %s, want %s", got, c.Relation, c.Position, want)
		}
		next[c.Relation.Name]++
	}
	if next["a"] != rows+1 || next["b"] != 5 {
		t.Errorf("rows captured: %v, want %d and 5", next, rows)
	}
	seen := len(l.log.changes(t))
	l.during(func(*Stream) {})
	if n := len(l.log.changes(t)); n != seen {
		t.Errorf("a clean restart stored %d changes again", n-seen)
	}
}

func TestLiveFullBufferOutlivesSenderTimeout(t *testing.T) {
	l := newLive(t, "create table a (id int primary key, v text)", "a")
	l.exec("do $$ begin execute format('alter database %I set wal_sender_timeout = ''1s''', current_database()); end $$")
	gate := make(chan struct{})
	l.log.gate = gate
	l.during(func(s *Stream) {
		pid := l.value("select active_pid::text from pg_replication_slots where slot_name = $1", l.cfg.Slot)
		started := l.value("select clock_timestamp()::text")
		l.exec("insert into a select g, repeat('x', 1000) from generate_series(1, 20000) g")
		l.until("a full buffer", func() bool { return s.Status().State == StateBufferFull })
		l.until("three sender timeouts", func() bool {
			return l.value("select (clock_timestamp() > $1::timestamptz + interval '3s')::text", started) == "true"
		})
		if now := l.value("select coalesce(active_pid::text, 'none') from pg_replication_slots where slot_name = $1", l.cfg.Slot); now != pid {
			t.Errorf("walsender %s has become %s", pid, now)
		}
		close(gate)
	})
	if l.log.rows != 20000 {
		t.Errorf("%d rows stored", l.log.rows)
	}
}

func TestLiveSecondDaemonStandsBy(t *testing.T) {
	l := newLive(t, "create table a (id int primary key)", "a")
	standby := l.stream()
	ctx, cancel := context.WithCancel(l.ctx)
	defer cancel()
	p := pool.New().WithErrors()
	l.during(func(*Stream) {
		p.Go(func() error { return standby.Run(ctx) })
		l.until("standing by", func() bool { return standby.Status().State == StateWaitingForSlot })
		if reason := standby.Status().Reason; !strings.Contains(reason, "application cdcsync") {
			t.Errorf("reason %q does not say who holds the slot", reason)
		}
	})
	l.until("taking over", func() bool { return standby.Status().State == StateStreaming })
	l.exec("insert into a values (1)")
	l.log.wait(l.ctx, t, "the change", func() bool { return l.log.rows == 1 })
	lag, err := standby.Lag(l.ctx)
	if err != nil || lag.ServerEnd == 0 {
		t.Errorf("lag %+v, %v", lag, err)
	}
	cancel()
	if err := p.Wait(); err != nil {
		t.Error(err)
	}
}

func TestLiveRefusals(t *testing.T) {
	used := func(t *testing.T) *live {
		t.Helper()
		l := newLive(t, "create table a (id int primary key)", "a")
		l.during(func(*Stream) {
			l.exec("insert into a values (1)")
			l.log.wait(l.ctx, t, "the change", func() bool { return l.log.rows == 1 })
		})
		return l
	}
	for name, test := range map[string]struct {
		prepare func(t *testing.T) *live
		want    string
	}{
		"missing table":       {func(t *testing.T) *live { return newLive(t, "", "nothing") }, "table public.nothing does not exist"},
		"view":                {func(t *testing.T) *live { return newLive(t, "create view v as select 1", "v") }, "is not a table"},
		"unlogged":            {func(t *testing.T) *live { return newLive(t, "create unlogged table u (id int primary key)", "u") }, "is unlogged"},
		"no replica identity": {func(t *testing.T) *live { return newLive(t, "create table n (id int)", "n") }, "no replica identity"},
		"missing publication": {func(t *testing.T) *live {
			l := newLive(t, "create table a (id int primary key)", "a")
			l.cfg.Manage = false
			return l
		}, `publication "p" does not exist`},
		"publication lacks table": {func(t *testing.T) *live {
			l := newLive(t, "create table a (id int primary key); create publication p", "a")
			l.cfg.Manage = false
			return l
		}, "does not send changes of public.a"},
		"publication lacks operation": {func(t *testing.T) *live {
			l := newLive(t, "create table a (id int primary key); create publication p for table a with (publish = 'insert')", "a")
			l.cfg.Manage = false
			return l
		}, "leaves out operations"},
		"missing slot": {func(t *testing.T) *live {
			l := newLive(t, "create table a (id int primary key); create publication p for table a", "a")
			l.cfg.Manage = false
			return l
		}, "does not exist"},
		"buffer lost": {func(t *testing.T) *live {
			l := used(t)
			l.log = newMemLog()
			return l
		}, "the buffer was lost"},
		"slot dropped": {func(t *testing.T) *live {
			l := used(t)
			l.exec("select pg_drop_replication_slot($1)", l.cfg.Slot)
			return l
		}, "is gone"},
		"slot recreated": {func(t *testing.T) *live {
			l := used(t)
			l.exec("select pg_drop_replication_slot($1)", l.cfg.Slot)
			l.exec("select pg_create_logical_replication_slot($1, 'pgoutput')", l.cfg.Slot)
			return l
		}, "dropped and made again"},
		"another server": {func(t *testing.T) *live {
			l := used(t)
			inc, err := decodeIncarnation(l.log.source)
			if err != nil {
				t.Fatal(err)
			}
			inc.System = "7000000000000000000"
			l.log.source = inc.encode()
			return l
		}, "another server"},
		"another plugin": {func(t *testing.T) *live {
			l := newLive(t, "create table a (id int primary key)", "a")
			l.exec("select pg_create_physical_replication_slot($1)", l.cfg.Slot)
			return l
		}, "not a permanent slot of pgoutput"},
		"no right to replicate": {func(t *testing.T) *live {
			l := newLive(t, "create table a (id int primary key)", "a")
			role := l.cfg.Slot
			l.exec("create role " + role + " login")
			t.Cleanup(func() { l.exec("drop role " + role) })
			l.cfg.URL = l.url + "&user=" + role
			return l
		}, "may not"},
		"no such database": {func(t *testing.T) *live {
			l := newLive(t, "", "a")
			l.cfg.URL = postgres.Server(t).URL("there_is_none")
			return l
		}, "does not exist"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := test.prepare(t)
			if refused := l.refusal(); !strings.Contains(refused.Error(), test.want) {
				t.Errorf("refused with %q, want %q", refused, test.want)
			}
		})
	}
}

func TestLiveBufferLostIsFineWhenDeliveredIsWaitedFor(t *testing.T) {
	l := newLive(t, "create table a (id int primary key)", "a")
	l.cfg.AckDelivered = true
	l.log.delivered = 1 << 62
	l.during(func(*Stream) { l.exec("insert into a values (1)") })
	l.log = newMemLog()
	l.log.delivered = 1 << 62
	l.during(func(*Stream) { l.exec("insert into a values (2)") })
	if got := describe(l.log.changes(t)); got != "tx1#1 insert public.a new(id=\"2\")\n" {
		t.Errorf("changes:\n%s", got)
	}
}

func TestLivePublicationFollowsTables(t *testing.T) {
	l := newLive(t, "create table a (id int primary key); create table \"B b\" (id int primary key); create publication p for table a with (publish = 'insert')", "B b")
	l.during(func(*Stream) {
		l.exec(`insert into a values (1); insert into "B b" values (2); update "B b" set id = 3`)
	})
	if got := l.value("select string_agg(tablename, ' ') from pg_publication_tables where pubname = 'p'"); got != "B b" {
		t.Errorf("publication names %q", got)
	}
	want := "tx1#1 insert public.B b new(id=\"2\")\ntx1#2 update public.B b old(id=\"2\") new(id=\"3\")\n"
	if diff := cmp.Diff(want, describe(l.log.changes(t))); diff != "" {
		t.Errorf("changes (-want +got):\n%s", diff)
	}
}

func TestLiveSetupSQLMendsWhatCheckFinds(t *testing.T) {
	l := newLive(t, `create table a (id int); create table p (id int primary key, g int generated always as (id * 2) stored) partition by range (id);
		create table p1 partition of p for values from (0) to (9)`, "a", "p")
	l.cfg.Manage = false
	for i := range l.cfg.Tables {
		l.cfg.Tables[i].NeedsFull = true
	}
	statements, err := SetupSQL(l.ctx, l.cfg)
	if err != nil {
		t.Fatal(err)
	}
	for _, st := range statements {
		l.exec(st.SQL)
	}
	findings, err := Check(l.ctx, l.cfg)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range findings {
		if f.Severity == Failure || strings.Contains(f.Message, "whole old row") {
			t.Errorf("after setup: %s; %s", f.Message, f.Solution)
		}
	}
	if more, err := SetupSQL(l.ctx, l.cfg); err != nil || len(more) > 0 {
		t.Errorf("still to be run: %v, %v", more, err)
	}
	l.during(func(*Stream) { l.exec("insert into p values (1); delete from p") })
	want := "tx1#1 insert public.p new(id=\"1\")\ntx1#2 delete public.p old(id=\"1\")\n"
	if l.major() >= 18 {
		want = strings.ReplaceAll(want, `id="1"`, `id="1" g="2"`)
	}
	if diff := cmp.Diff(want, describe(l.log.changes(t))); diff != "" {
		t.Errorf("changes (-want +got):\n%s", diff)
	}
	if c := l.log.changes(t)[1]; c.OldIsKey {
		t.Error("the old row of a partition is taken for its key")
	}
}

func TestLiveRelationIsWhatTheStreamAnnounces(t *testing.T) {
	l := newLive(t, `
		create type mood as enum ('sad', 'ok'); create domain positive as int check (value > 0); create domain list as positive[];
		create type pair as (a positive, b mood[]); create type span as range (subtype = float8);
		create table a (x mood, n positive, l list, p pair, ps pair[], s span, m int4multirange, j jsonb, id int, k text, b box[],
			v varchar(9), iv int2vector, primary key (k, id))`, "a")
	l.during(func(*Stream) { l.exec("insert into a (k, id) values ('k', 1)") })
	reader, err := NewReader(l.ctx, l.url, ReaderOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	rel, err := reader.Relation(l.ctx, "public", "a")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(rel, l.log.changes(t)[0].Relation); diff != "" {
		t.Errorf("stream's relation (-catalogue +stream):\n%s", diff)
	}
	if pair := rel.Columns[3].Type; pair.Kind != cdc.TypeComposite || pair.Fields[0].Type.Kind != cdc.TypeDomain ||
		pair.Fields[1].Type.Elem.Kind != cdc.TypeEnum {
		t.Errorf("composite: %+v", pair)
	}
	if diff := cmp.Diff([]int{9, 8}, rel.PrimaryKey); diff != "" {
		t.Errorf("primary key (-want +got):\n%s", diff)
	}
	if boxes := rel.Columns[10].Type; boxes.Delimiter != ';' {
		t.Errorf("boxes are separated by %q", boxes.Delimiter)
	}
	if none, err := reader.Relation(l.ctx, "public", "none"); none != nil || err != nil {
		t.Errorf("a table that does not exist: %v, %v", none, err)
	}
}

func TestLiveServerRestarts(t *testing.T) {
	server := pgtest.Own(t, pgtest.Options{Settings: map[string]string{"wal_level": "logical"}}) // on a unix socket
	l := liveOn(t, server.NewDatabase(t), "create table a (id int primary key)", "a")
	l.during(func(s *Stream) {
		for n, mode := range []pgtest.Mode{pgtest.Fast, pgtest.Crash} {
			l.exec("insert into a values ($1)", n)
			if err := server.Restart(l.ctx, mode); err != nil {
				t.Fatal(err)
			}
			l.connect()
			l.exec("insert into a values ($1)", 10+n)
			l.log.wait(l.ctx, t, "the change after the restart", func() bool { return l.log.rows == 2*n+2 })
		}
		if s.Status().Reconnects == 0 {
			t.Error("no reconnect was counted")
		}
	})
}
