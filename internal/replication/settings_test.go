package replication

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/cdcsync/cdcsync/internal/cdc"
)

// hostile are settings of a role or a database under which values, statements or transactions would be others.
var hostile = map[string]string{
	"standard_conforming_strings": "off", "backslash_quote": "off", "escape_string_warning": "on", "array_nulls": "off",
	"quote_all_identifiers": "on", "transform_null_equals": "on", "xmloption": "document", "xmlbinary": "hex", "plan_cache_mode": "force_generic_plan", "jit": "on",
	"datestyle": "German, DMY", "intervalstyle": "iso_8601", "bytea_output": "escape", "extra_float_digits": "-15", "timezone": "Asia/Kolkata",
	"client_encoding": "LATIN1", "default_transaction_read_only": "on", "default_transaction_isolation": "serializable",
	"default_transaction_deferrable": "on", "statement_timeout": "1ms", "lock_timeout": "1ms", "idle_session_timeout": "1ms",
	"idle_in_transaction_session_timeout": "1ms", "exit_on_error": "on", "gin_fuzzy_search_limit": "1", "synchronous_commit": "off",
	"client_min_messages": "debug1", "transaction_timeout": "50ms", "role": "cdcsync_nobody",
}

const settingsSchema = `
create table v (id int primary key, at timestamptz, d date, i interval, f float8, b bytea, words text[], x xml, note text);
alter table v replica identity full;
insert into v select n, timestamptz '2024-05-06 07:08:09.123456+00' + n * interval '1 s', date '2024-12-01' + n, n * interval '1 mon 2 days 3 s',
	n / 7.0, decode('00ff5c', 'hex'), array['a\b', 'NULL', null], xmlparse(content '<a/>text'), 'ä\' || n from generate_series(1, 20) n`

// settings of a role and of a database leave no trace: not in what is captured, backfilled, exported, read back and looked up, and a
// slot that was lost is recovered.
func TestLiveSettingsOfRoleAndDatabase(t *testing.T) {
	plain := newLive(t, settingsSchema, "v")
	want := plain.everything()
	for _, whose := range []string{"role", "database"} {
		t.Run(whose, func(t *testing.T) {
			l := newLive(t, settingsSchema, "v")
			l.cfg.URL = l.spoil(whose)
			if diff := cmp.Diff(want, l.everything()); diff != "" {
				t.Errorf("values differ (-plain +spoiled):\n%s", diff)
			}
			l.recovers()
		})
	}
}

// spoil gives the database, or a role in it, hostile settings, and returns a URL for it.
func (l *live) spoil(whose string) string {
	l.t.Helper()
	database := pgx.Identifier{l.conn.Config().Database}.Sanitize()
	role := "cdc_" + strings.ReplaceAll(l.conn.Config().Database, "-", "_")
	l.exec("do $$ begin create role cdcsync_nobody; exception when duplicate_object then end $$")
	l.exec("create role " + role + " superuser login replication")
	l.t.Cleanup(func() {
		l.exec("reassign owned by " + role + " to current_user; drop owned by " + role + "; drop role " + role)
	})
	object := "database " + database
	if whose == "role" {
		object = "role " + role
	}
	for _, name := range slices.Sorted(maps.Keys(hostile)) {
		if name == transactionTimeout && l.major() < transactionTimeoutVersion || name == "role" && whose == "database" {
			continue
		}
		l.exec(fmt.Sprintf("alter %s set %s = '%s'", object, name, hostile[name]))
	}
	u, err := url.Parse(l.url)
	if err != nil {
		l.t.Fatal(err)
	}
	u.User = url.User(role)
	return u.String()
}

// everything is what arrives of table v on every way, by the way.
func (l *live) everything() map[string][]string {
	l.t.Helper()
	seen := l.captured()
	l.asks(l.cfg.URL, seen)
	return seen
}

// captured is what the stream, a backfill and an export give of table v.
func (l *live) captured() map[string][]string {
	l.t.Helper()
	seen := make(map[string][]string)
	b := l.backfills(&memStore{})
	b.fixed = 7
	l.during(func(*Stream) {
		l.exec("update v set note = note || '!' where id = 3; insert into v (id, at, f) values (100, '2024-01-02 03:04:05+06', 0.1)")
		if f := l.filled(b, l.start(b, BackfillSpec{Table: l.cfg.Tables[0], Sinks: []string{"crm"}, Where: `note not like '%\\' or note is null`})); f.State != BackfillDone {
			l.t.Errorf("backfill: %+v", f)
		}
	})
	for _, c := range l.log.changes(l.t) {
		seen[c.Op.String()] = append(seen[c.Op.String()], shownRow(c.New))
	}
	slices.Sort(seen["read"])
	export, err := OpenExport(l.ctx, BackfillConfig{URL: l.cfg.URL}, BackfillSpec{Table: l.cfg.Tables[0]})
	if err != nil {
		l.t.Fatal(err)
	}
	defer export.Close(l.ctx)
	err = export.Rows(l.ctx, "", func(row []cdc.Value) error { seen["export"] = append(seen["export"], shownRow(row)); return nil })
	if err != nil {
		l.t.Fatal(err)
	}
	return seen
}

// asks adds what a reader says of table v.
func (l *live) asks(at string, seen map[string][]string) {
	l.t.Helper()
	reader, err := NewReader(l.ctx, at, ReaderOptions{})
	if err != nil {
		l.t.Fatal(err)
	}
	defer reader.Close()
	rel, err := reader.Relation(l.ctx, "public", "v")
	if err != nil || rel == nil {
		l.t.Fatalf("relation: %v, %v", rel, err)
	}
	for range 5 {
		rows, err := reader.Rows(l.ctx, rel, upTo(len(rel.Columns)), [][]string{{"3"}, {"5"}, {"1000"}}, nil)
		if err != nil {
			l.t.Fatal(err)
		}
		looked, err := reader.Lookup(l.ctx, `select id, at, i, f, b, x, '\a' as backslash from v where id = any($1) order by id`, []string{"3", "4"}, nil)
		if err != nil {
			l.t.Fatal(err)
		}
		seen["back"] = append(seen["back"], shownRow(rows[0]), shownRow(rows[1]), fmt.Sprint(rows[2] == nil))
		seen["lookup"] = append(seen["lookup"], shownRow(looked.Records["3"][0]), shownRow(looked.Records["4"][0]))
	}
}

func shownRow(row []cdc.Value) string {
	var values []string
	for _, v := range row {
		values = append(values, fmt.Sprintf("%d:%s", v.Kind, v.Data))
	}
	return strings.Join(values, " | ")
}

// recovers makes a slot anew that was dropped, and streams from it.
func (l *live) recovers() {
	l.t.Helper()
	l.exec("select pg_catalog.pg_drop_replication_slot($1)", l.cfg.Slot)
	r, err := OpenRecovery(l.ctx, l.cfg, l.log, slog.New(slog.NewTextHandler(l.t.Output(), nil)))
	if err != nil {
		l.t.Fatal(err)
	}
	if r.Reason == "" || !r.NewSlot {
		l.t.Errorf("recovery finds %q, new slot %v", r.Reason, r.NewSlot)
	}
	_, err = r.Run(l.ctx)
	r.Close(l.ctx)
	if err != nil {
		l.t.Fatal(err)
	}
	l.during(func(*Stream) { l.exec("insert into v (id) values (200)") })
}

// Through pgbouncer, whose sessions have settings of their own and change with each transaction, questions are answered as without it.
func TestLivePooler(t *testing.T) {
	if _, err := exec.LookPath("pgbouncer"); err != nil {
		t.Skip("PGBOUNCER IS NOT INSTALLED: nothing was tested of query_url through a pooler; apt-get install pgbouncer")
	}
	for _, mode := range []string{"session", "transaction"} {
		for _, ignore := range []string{"", "ignore_startup_parameters = " + everyParameter() + "\n"} {
			t.Run(fmt.Sprintf("%s, ignores %v", mode, ignore != ""), func(t *testing.T) {
				l := newLive(t, settingsSchema, "v")
				want, got := make(map[string][]string), make(map[string][]string)
				l.asks(l.url, want)
				spoiled := l.spoil("role")
				role, _, _ := strings.Cut(strings.Split(spoiled, "://")[1], "@")
				for _, mild := range []string{"statement_timeout = '100ms'", "idle_session_timeout = 0"} { // these are for the pooler's own sessions, too
					l.exec("alter role " + role + " set " + mild)
				}
				pooled := startPooler(t, spoiled, "pool_mode = "+mode+"\n"+ignore)
				l.asks(pooled, got)
				if diff := cmp.Diff(want, got); diff != "" {
					t.Errorf("answers differ (-direct +pooled):\n%s", diff)
				}
				l.cfg.URL = pooled
				l.refusesPooler()
			})
		}
	}
}

func everyParameter() string {
	names := slices.Sorted(maps.Keys(pinned))
	return strings.Join(append(names, witness, "role", "statement_timeout", "replication", transactionTimeout), ", ")
}

// refusesPooler expects that source.url may not lead through a pooler, and that the error says so.
func (l *live) refusesPooler() {
	l.t.Helper()
	if err := l.stream().Run(l.ctx); !IsPermanent(err) || !strings.Contains(err.Error(), "source.url") || !strings.Contains(err.Error(), "pooler") {
		l.t.Errorf("source.url through a pooler: %v", err)
	}
	_, err := OpenExport(l.ctx, BackfillConfig{URL: l.cfg.URL}, BackfillSpec{Table: l.cfg.Tables[0]})
	if !IsPermanent(err) || !strings.Contains(err.Error(), "pooler") {
		l.t.Errorf("an export through a pooler: %v", err)
	}
}

// startPooler runs pgbouncer before a database and returns the URL that leads through it.
func startPooler(t *testing.T, target, settings string) string {
	t.Helper()
	cfg, err := pgx.ParseConfig(target)
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(listener.Addr().String())
	if err := listener.Close(); err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "pooler") //nolint:usetesting // another user must reach it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	ini := filepath.Join(dir, "pgbouncer.ini")
	text := fmt.Sprintf("[databases]\n* = host=%s port=%d user=%s\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = %s\nunix_socket_dir =\nauth_type = any\n"+
		"server_reset_query_always = 0\n%s", cfg.Host, cfg.Port, cfg.User, port, settings)
	if err := errors.Join(os.Chmod(dir, 0o755), os.WriteFile(ini, []byte(text), 0o644)); err != nil { //nolint:gosec // another user reads it
		t.Fatal(err)
	}
	args := []string{"-q", ini}
	if os.Getuid() == 0 { // it refuses to run as root
		args = []string{"-q", "-u", "postgres", ini}
	}
	ctx, stop := context.WithCancel(context.Background())
	command := exec.CommandContext(ctx, "pgbouncer", args...)
	command.Stdout, command.Stderr = t.Output(), t.Output()
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		stop()
		_ = command.Wait() // it was killed
	})
	number, _ := strconv.Atoi(port)
	pooled := fmt.Sprintf("postgres://%s@127.0.0.1:%d/%s?sslmode=disable", url.QueryEscape(cfg.User), number, cfg.Database)
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		conn, err := net.Dial("tcp", "127.0.0.1:"+port)
		if err == nil {
			_ = conn.Close()
			return pooled
		}
		if time.Now().After(deadline) {
			t.Fatalf("pgbouncer: %v", err)
		}
	}
}
