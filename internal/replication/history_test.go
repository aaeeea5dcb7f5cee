package replication

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/sourcegraph/conc/pool"

	"github.com/cdcsync/cdcsync/internal/cdc"
	"github.com/cdcsync/cdcsync/internal/pgtest"
)

// dated is a stream on a server of its own, whose data folder can be set back to an earlier state.
type dated struct {
	*live
	server *pgtest.Server
	data   string
}

func newDated(t *testing.T, settings map[string]string) *dated {
	t.Helper()
	if where := os.Getenv("CDCSYNC_TEST_POSTGRES"); where != "" && where != "local" {
		t.Skip("needs a server's data folder")
	}
	parent, err := os.MkdirTemp("/tmp", "cdcsync-dated-") //nolint:usetesting // a server that runs as another user must reach it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(parent) })
	if err := os.Chmod(parent, 0o755); err != nil { //nolint:gosec // as above
		t.Fatal(err)
	}
	d := &dated{data: filepath.Join(parent, "data")}
	d.server = pgtest.Own(t, pgtest.Options{DataDir: d.data, Settings: settings})
	d.live = liveOn(t, d.server.NewDatabase(t), "create table a (id int primary key, v text)", "a")
	return d
}

// copyData copies the data folder of the server, which must be down.
func (d *dated) copyData(t *testing.T, from, to string) {
	t.Helper()
	if err := os.RemoveAll(to); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(d.ctx, "cp", "-a", from, to).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

func (d *dated) down(t *testing.T, mode pgtest.Mode) {
	t.Helper()
	if err := d.server.Shutdown(d.ctx, mode); err != nil {
		t.Fatal(err)
	}
}

func (d *dated) up(t *testing.T) {
	t.Helper()
	if err := d.server.Boot(d.ctx); err != nil {
		t.Fatal(err)
	}
	d.connect()
}

// save keeps a copy of the data; restore puts it back.
func (d *dated) save(t *testing.T) {
	t.Helper()
	d.down(t, pgtest.Fast)
	d.copyData(t, d.data, d.data+".old")
	d.up(t)
}

func (d *dated) restore(t *testing.T) {
	t.Helper()
	d.down(t, pgtest.Fast)
	d.copyData(t, d.data+".old", d.data)
	d.up(t)
}

func (l *live) confirmed() string {
	l.t.Helper()
	return l.value("select confirmed_flush_lsn::text from pg_replication_slots where slot_name = $1", l.cfg.Slot)
}

func (l *live) recovery() *Recovery {
	l.t.Helper()
	r, err := OpenRecovery(l.ctx, l.cfg, l.log, slog.New(slog.NewTextHandler(l.t.Output(), nil)))
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { r.Close(l.ctx) })
	return r
}

// recovered goes on after a refusal, and looks that what comes then arrives once.
func (l *live) recovered() {
	l.t.Helper()
	r := l.recovery()
	if r.Reason == "" {
		l.t.Error("the stream refuses, and there is nothing to recover")
	}
	if _, err := r.Run(l.ctx); err != nil {
		l.t.Fatal(err)
	}
	r.Close(l.ctx)
	if again := l.recovery(); again.Reason != "" {
		l.t.Errorf("after a recovery: %s", again.Reason)
	} else {
		again.Close(l.ctx)
	}
	l.during(func(*Stream) { l.exec("insert into a values (100000)") })
	n := 0
	for _, c := range l.log.changes(l.t) {
		if string(c.New[0].Data) == "100000" {
			n++
		}
	}
	if n != 1 {
		l.t.Errorf("a change after the recovery came %d times", n)
	}
}

// A server that was set back is refused, at the next start as well as at the next reconnect, whether it is still behind or has
// written past where it was; nothing of it is stored, and its slot is not moved.
func TestLiveRestoredServerIsRefused(t *testing.T) {
	for _, test := range []struct {
		name  string
		after string // what the restored server writes, by psql's \; in one transaction each
		want  string
	}{
		{"behind", "", "its WAL ends at"},
		{"past by a mapped table", "insert into a select g, repeat('x', 100) from generate_series(100, 2000) g", "should have come again"},
		{"past by another table", "create table u as select repeat('x', 100) from generate_series(1, 20000)", "has not come again"},
		{"past by the same again", "insert into a values (2, 'two'); insert into a select g, 'more' from generate_series(3, 500) g", "should have come again"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			d := newDated(t, nil)
			d.during(func(*Stream) { d.exec("insert into a values (1, 'one')") })
			d.save(t)
			d.during(func(*Stream) { d.exec("insert into a values (2, 'two')") })
			d.restore(t)
			if test.after != "" {
				for statement := range strings.SplitSeq(test.after, ";") {
					d.exec(statement)
				}
				d.exec("select pg_logical_emit_message(false, '', repeat('x', 1000))")
				d.exec("checkpoint")
			}
			slot, rows, source := d.confirmed(), d.log.rows, string(d.log.source)
			if refused := d.refusal(); !strings.Contains(refused.Error(), test.want) || !strings.Contains(refused.Error(), "cdcsync recover") {
				t.Errorf("refused with %q, want %q and the way on", refused, test.want)
			}
			if now := d.confirmed(); now != slot {
				t.Errorf("the slot was moved from %s to %s", slot, now)
			}
			if d.log.rows != rows || string(d.log.source) != source {
				t.Errorf("%d rows were stored, source %s instead of %s", d.log.rows-rows, d.log.source, source)
			}
			d.recovered()
		})
	}
}

func TestLiveServerIsSetBackWhileStreaming(t *testing.T) {
	d := newDated(t, nil)
	d.during(func(*Stream) { d.exec("insert into a values (1)") })
	d.save(t)
	s := d.stream()
	p := pool.New().WithErrors()
	p.Go(func() error { return s.Run(d.ctx) })
	d.until("streaming", func() bool { return s.Status().State == StateStreaming })
	d.exec("insert into a values (2)")
	d.log.wait(d.ctx, t, "the change", func() bool { return d.log.rows == 2 })
	d.down(t, pgtest.Crash)
	d.copyData(t, d.data+".old", d.data)
	d.up(t)
	err := p.Wait()
	if refused, ok := errors.AsType[*Error](err); !ok || !strings.Contains(refused.Reason, "restored to an earlier state") {
		t.Errorf("the stream ended with %v", err)
	}
	if d.log.rows != 2 {
		t.Errorf("%d rows are stored, want 2", d.log.rows)
	}
}

// A crash of the server sets its slot back, which is no reason to refuse, and what comes again is not stored again.
func TestLiveCrashSetsTheSlotBack(t *testing.T) {
	d := newDated(t, nil)
	d.during(func(*Stream) { d.exec("insert into a values (0)") })
	d.exec("checkpoint")
	d.during(func(*Stream) {
		for n := range 20 {
			d.exec("insert into a values ($1)", n+1)
		}
	})
	before := d.confirmed()
	d.down(t, pgtest.Crash)
	d.up(t)
	if after := d.confirmed(); after == before {
		t.Logf("the crash has not set the slot back from %s", before)
	}
	d.during(func(*Stream) { d.exec("insert into a values (21)") })
	var ids []string
	for _, c := range d.log.changes(t) {
		ids = append(ids, string(c.New[0].Data))
	}
	var want []string
	for n := range 22 {
		want = append(want, fmt.Sprint(n))
	}
	if diff := cmp.Diff(want, ids); diff != "" {
		t.Errorf("ids (-want +got):\n%s", diff)
	}
}

// The rest of a transaction of which the log has a part must come from the server that the part came from.
func TestLiveRestOfATransactionOfAnotherHistory(t *testing.T) {
	d := newDated(t, nil)
	d.during(func(*Stream) { d.exec("insert into a values (1)") })
	d.save(t)
	gate := make(chan struct{}, 1)
	d.log.gate = gate
	s := d.stream()
	ctx, cancel := context.WithCancel(d.ctx)
	p := pool.New().WithErrors()
	p.Go(func() error { return s.Run(ctx) })
	d.until("streaming", func() bool { return s.Status().State == StateStreaming })
	d.exec("insert into a select g, repeat('x', 1000) from generate_series(2, 5000) g")
	gate <- struct{}{}
	d.log.wait(d.ctx, t, "a block", func() bool { return d.log.rows > 1 })
	d.down(t, pgtest.Crash)
	cancel()
	_ = p.Wait()
	d.log.gate = nil
	tail, _, err := d.log.Tail(d.ctx)
	if err != nil || tail.Resume.Open == 0 {
		t.Fatalf("the log ends with %+v, %v, want an open transaction", tail, err)
	}
	d.copyData(t, d.data+".old", d.data)
	d.up(t)
	d.exec("insert into a select g, repeat('y', 1100) from generate_series(2, 6000) g")
	d.exec("insert into a values (9000)")
	if refused := d.refusal(); !strings.Contains(refused.Error(), "should have come") {
		t.Errorf("refused with %q", refused)
	}
}

// A standby that is promoted goes on when it has all that the log has, and is refused when it was behind.
func TestLivePromotion(t *testing.T) {
	for _, behind := range []bool{false, true} {
		t.Run(fmt.Sprintf("behind=%t", behind), func(t *testing.T) {
			t.Parallel()
			d := newDated(t, map[string]string{"wal_keep_size": "256MB"})
			d.during(func(*Stream) { d.exec("insert into a values (1)") })
			d.down(t, pgtest.Fast)
			standby := d.data + ".standby"
			d.copyData(t, d.data, standby)
			for _, command := range []string{"touch " + standby + "/standby.signal", "chown --reference=" + standby + "/PG_VERSION " + standby + "/standby.signal"} {
				if out, err := exec.CommandContext(d.ctx, "sh", "-c", command).CombinedOutput(); err != nil {
					t.Fatalf("%v: %s", err, out)
				}
			}
			d.up(t)
			host := d.value("select setting from pg_settings where name = 'unix_socket_directories'")
			other := pgtest.Own(t, pgtest.Options{DataDir: standby, Settings: map[string]string{
				"primary_conninfo": "host=" + host + " port=5432 user=postgres", "hot_standby": "on",
			}})
			second := *d.live
			second.url = other.URL(d.conn.Config().Database)
			second.connect()
			t.Cleanup(func() { _ = second.conn.Close(context.Background()) })
			caughtUp := func() {
				end := d.value("select pg_current_wal_flush_lsn()::text")
				second.until("the standby at "+end, func() bool {
					return second.value("select coalesce(pg_last_wal_replay_lsn() >= $1::pg_lsn, false)::text", end) == "true"
				})
			}
			d.exec("insert into a values (2)")
			caughtUp()
			if behind {
				second.exec("alter system set primary_conninfo = ''")
				second.exec("select pg_reload_conf()")
				second.exec("select pg_promote()")
			}
			d.during(func(*Stream) { d.exec("insert into a values (3)") })
			if !behind {
				caughtUp()
				second.exec("select pg_promote()")
			}
			d.down(t, pgtest.Fast)
			second.exec("insert into a values (4)")
			second.cfg.URL = second.url
			if behind {
				second.exec("insert into a select g, repeat('x', 100) from generate_series(100, 2000) g")
				if refused := second.refusal(); !strings.Contains(refused.Error(), "left timeline") {
					t.Errorf("refused with %q", refused)
				}
				second.recovered()
				return
			}
			second.during(func(*Stream) {})
			var ids []string
			for _, c := range second.log.changes(t) {
				ids = append(ids, string(c.New[0].Data))
			}
			if diff := cmp.Diff([]string{"1", "2", "3", "4"}, ids); diff != "" {
				t.Errorf("ids (-want +got):\n%s", diff)
			}
		})
	}
}

// What stream and recovery say agrees, and the recovery is the way on.
func TestLiveRecoveryAgreesWithRefusal(t *testing.T) {
	for name, test := range map[string]struct {
		damage func(l *live)
		want   string
	}{
		"slot dropped":   {func(l *live) { l.exec("select pg_drop_replication_slot($1)", l.cfg.Slot) }, "is gone"},
		"slot made anew": {remakeSlot, "dropped and made again"},
		"slot advanced": {func(l *live) {
			l.exec("insert into a values (2)")
			l.exec("select pg_replication_slot_advance($1, pg_current_wal_lsn())", l.cfg.Slot)
		}, "is confirmed up to"},
		"copied from one that is ahead": {func(l *live) {
			l.exec("insert into a values (2)")
			l.exec("select pg_create_logical_replication_slot($1, 'pgoutput')", l.cfg.Slot+"x")
			l.exec("select pg_drop_replication_slot($1)", l.cfg.Slot)
			l.exec("select pg_copy_logical_replication_slot($1::name, $2::name)", l.cfg.Slot+"x", l.cfg.Slot)
			l.exec("select pg_drop_replication_slot($1)", l.cfg.Slot+"x")
		}, "is confirmed up to"},
		"publication dropped": {func(l *live) {
			l.exec("drop publication p")
			l.exec("insert into a values (2)")
		}, "was dropped, or made anew"},
		"publication made anew": {func(l *live) {
			l.exec("drop publication p")
			l.exec("insert into a values (2)")
			l.exec("create publication p for table a with (publish_via_partition_root)")
		}, "was dropped, or made anew"},
		"buffer lost": {func(l *live) { l.log = newMemLog() }, "the buffer was lost"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLive(t, "create table a (id int primary key)", "a")
			l.during(func(*Stream) { l.exec("insert into a values (1)") })
			test.damage(l)
			refused := l.refusal()
			if !strings.Contains(refused.Error(), test.want) || !strings.Contains(refused.Error(), "cdcsync recover") {
				t.Errorf("refused with %q, want %q and the way on", refused, test.want)
			}
			if strings.Contains(refused.Error(), "empty") {
				t.Errorf("throws away what sinks have not got: %s", refused)
			}
			l.recovered()
		})
	}
}

func remakeSlot(l *live) {
	l.exec("select pg_drop_replication_slot($1)", l.cfg.Slot)
	l.exec("insert into a values (2)")
	l.exec("select pg_create_logical_replication_slot($1, 'pgoutput')", l.cfg.Slot)
}

// A slot that is copied from one that lags brings what is stored again; it is not stored again.
func TestLiveCopyOfASlotThatLags(t *testing.T) {
	l := newLive(t, "create table a (id int primary key)", "a")
	l.during(func(*Stream) {
		l.exec("select pg_copy_logical_replication_slot($1::name, $2::name)", l.cfg.Slot, l.cfg.Slot+"x")
		l.exec("insert into a values (1)")
		l.exec("insert into a values (2)")
	})
	l.exec("select pg_drop_replication_slot($1)", l.cfg.Slot)
	l.exec("select pg_copy_logical_replication_slot($1::name, $2::name)", l.cfg.Slot+"x", l.cfg.Slot)
	l.exec("select pg_drop_replication_slot($1)", l.cfg.Slot+"x")
	l.exec("insert into a values (3)")
	l.during(func(*Stream) {})
	want := "tx1#1 insert public.a new(id=\"1\")\ntx2#1 insert public.a new(id=\"2\")\ntx3#1 insert public.a new(id=\"3\")\n"
	if diff := cmp.Diff(want, describe(l.log.changes(t))); diff != "" {
		t.Errorf("changes (-want +got):\n%s", diff)
	}
}

// A publication that fails while the slot is read is remembered for the recovery, which finds it again nowhere else.
func TestLivePublicationYoungerThanTheSlot(t *testing.T) {
	l := newLive(t, "create table a (id int primary key)", "a")
	l.exec("select pg_create_logical_replication_slot($1, 'pgoutput')", l.cfg.Slot)
	l.exec("insert into a values (1)")
	if l.major() >= 18 {
		t.Skip("a missing publication is no error while decoding; changes before it was made were published to nobody")
	}
	if refused := l.refusal(); !strings.Contains(refused.Error(), "cdcsync recover") {
		t.Errorf("refused with %q", refused)
	}
	l.recovered()
}

func TestLiveDatabaseMadeAnew(t *testing.T) {
	l := newLive(t, "create table a (id int primary key)", "a")
	l.during(func(*Stream) { l.exec("insert into a values (1)") })
	name := l.conn.Config().Database
	_ = l.conn.Close(l.ctx)
	server := postgres.Server(t)
	if err := server.DropDatabase(l.ctx, name); err != nil {
		t.Fatal(err)
	}
	if _, err := server.CreateDatabase(l.ctx, name); err != nil {
		t.Fatal(err)
	}
	l.connect()
	l.exec("create table a (id int primary key)")
	if refused := l.refusal(); !strings.Contains(refused.Error(), "dropped and made anew") {
		t.Errorf("refused with %q", refused)
	}
	l.recovered()
}

func TestLiveSlotFailsOver(t *testing.T) {
	l := newLive(t, "create table a (id int primary key)", "a")
	l.during(func(*Stream) {})
	want := "true"
	if l.major() < 17 {
		want = "none" // the column is not there
	}
	got := l.value("select coalesce(to_jsonb(s) ->> 'failover', 'none') from pg_replication_slots s where slot_name = $1", l.cfg.Slot)
	if got != want {
		t.Errorf("failover of the slot is %s, want %s", got, want)
	}
}

func TestForks(t *testing.T) {
	const file = "1\t0/3000000\tno recovery target specified\n\n# a comment\n2\t1/A0\tbefore 2026-11-26\n"
	for _, test := range []struct {
		earlier uint32
		at      cdc.LSN
		ok      bool
	}{{1, 0x3000000, true}, {2, 0x1000000A0, true}, {3, 0, false}} {
		at, ok, err := parseFork(file, test.earlier)
		if err != nil || at != test.at || ok != test.ok {
			t.Errorf("timeline %d was left at %s, %t, %v, want %s, %t", test.earlier, at, ok, err, test.at, test.ok)
		}
	}
}
