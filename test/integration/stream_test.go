package integration

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/cdcsync/cdcsync/internal/pgtest"
	"github.com/cdcsync/cdcsync/internal/sandbox"
)

var (
	kills  = flag.Int("kills", 20, "how often TestKill kills the daemon")
	outage = flag.Duration("outage", 15*time.Second, "how long TestVendorDown lets the vendor refuse everything")
	seed   = flag.Uint64("seed", uint64(time.Now().UnixNano()), "of the random workloads")
)

func newWorkload(tb testing.TB, s *source) *workload {
	tb.Helper()
	tb.Logf("-seed %d", *seed)
	return &workload{url: s.url, writers: 6, seed: *seed, keys: 200}
}

// Everything that is committed arrives once, in order, and replays to what the source holds.
func TestEverythingArrives(t *testing.T) {
	s, v := newSource(t), newVendor(t, sandbox.Config{})
	d := newDaemon(t, s.url, v.crm(""))
	d.start()
	d.ready()

	w := newWorkload(t, s)
	long := s.connect(t)
	tx, err := long.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for i := range 500 { // begun before everything, committed after it
		if _, err := tx.Exec(t.Context(), `insert into accounts (id, name) values ($1, 'long')`, 5_000_000+i); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.run(t.Context(), 150); err != nil {
		t.Fatal(err)
	}
	hugeTransaction(t, s.url, 300_000)
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := w.run(t.Context(), 50); err != nil {
		t.Fatal(err)
	}
	settled(t, d, s, v)
	if repeats := verify(t, s, v); repeats > 0 {
		t.Errorf("%d items came more than once, though nothing was interrupted", repeats)
	}

	before := len(v.events(t))
	d.stop()
	d.start()
	d.ready()
	s.exec(t, `insert into accounts (id, name) values (9000000, 'after the restart')`)
	settled(t, d, s, v)
	if after := len(v.events(t)); after != before+1 {
		t.Errorf("a clean restart repeats %d items", after-before-1)
	}
}

// Killed at any moment, the daemon loses nothing.
func TestKill(t *testing.T) {
	s, v := newSource(t), newVendor(t, sandbox.Config{})
	d := newDaemon(t, s.url, v.crm(""))
	d.start()
	d.ready()
	r := rand.New(rand.NewPCG(*seed, 1))
	during(t, newWorkload(t, s), func() {
		for range *kills {
			pause(t.Context(), time.Duration(r.IntN(700))*time.Millisecond)
			d.kill()
			d.start()
		}
	})
	settled(t, d, s, v)
	repeats := verify(t, s, v)
	t.Logf("%d kills, %d items, %d of them repeats", *kills, len(v.events(t)), repeats)
}

// Lost connections and a server that restarts are waited out.
func TestSourceRestarts(t *testing.T) {
	server := pgtest.Own(t, pgtest.Options{})
	url, err := server.CreateDatabase(t.Context(), "restarts")
	if err != nil {
		t.Fatal(err)
	}
	s, v := &source{url: url}, newVendor(t, sandbox.Config{})
	s.exec(t, schema)
	d := newDaemon(t, s.url, v.crm(""))
	d.start()
	d.ready()
	during(t, newWorkload(t, s), func() {
		for i := range 9 {
			pause(t.Context(), 500*time.Millisecond)
			if i%3 == 2 {
				if err := server.Restart(t.Context(), []pgtest.Mode{pgtest.Fast, pgtest.Immediate, pgtest.Crash}[i/3]); err != nil {
					t.Fatal(err)
				}
				continue
			}
			s.exec(t, `select pg_terminate_backend(active_pid) from pg_replication_slots where active_pid is not null`)
		}
	})
	settled(t, d, s, v)
	if repeats := verify(t, s, v); repeats > 0 {
		t.Errorf("%d items came more than once, though the daemon was never interrupted", repeats)
	}
}

// A vendor that fails in every way delays, and repeats, but loses nothing.
func TestVendorFaults(t *testing.T) {
	s, v := newSource(t), newVendor(t, sandbox.Config{Seed: *seed})
	d := newDaemon(t, s.url, v.crm(", timeout: 1s, batch: {items: 50}"))
	d.start()
	d.ready()
	for _, f := range []sandbox.Fault{
		{Kind: sandbox.Status, Status: 503, Share: 0.1},
		{Kind: sandbox.Status, Status: 500, Share: 0.05, AfterProcessing: true},
		{Kind: sandbox.Status, Status: 429, RetryAfter: "1", Count: 3},
		{Kind: sandbox.ConnReset, Share: 0.05},
		{Kind: sandbox.ConnReset, Share: 0.03, AfterProcessing: true},
		{Kind: sandbox.HalfClose, Share: 0.03},
		{Kind: sandbox.Truncate, Share: 0.03},
		{Kind: sandbox.Hang, Share: 0.02},
		{Kind: sandbox.Delay, Delay: sandbox.Duration(100 * time.Millisecond), Share: 0.05},
	} {
		v.fault(t, f)
	}
	if err := newWorkload(t, s).run(t.Context(), 200); err != nil {
		t.Fatal(err)
	}
	settled(t, d, s, v)
	repeats := verify(t, s, v)
	t.Logf("%d items, %d of them repeats", len(v.events(t)), repeats)
}

// A vendor that is down holds no WAL on the source.
func TestVendorDown(t *testing.T) {
	s, v := newSource(t), newVendor(t, sandbox.Config{})
	d := newDaemon(t, s.url, v.crm(""))
	d.start()
	d.ready()
	v.fault(t, sandbox.Fault{Kind: sandbox.Status, Status: 503})
	during(t, newWorkload(t, s), func() {
		end := time.Now().Add(*outage)
		for time.Now().Before(end) {
			pause(t.Context(), time.Second)
			const allowed = 16 << 20
			if lag := s.lag(t, slotName(t)); lag > allowed {
				t.Fatalf("the slot is %d bytes behind while the vendor is down", lag)
			}
		}
	})
	v.ClearFaults()
	settled(t, d, s, v)
	verify(t, s, v)
}

// lag is how much WAL lies behind what the slot has confirmed.
func (s *source) lag(tb testing.TB, slot string) int64 {
	tb.Helper()
	conn, err := pgx.Connect(context.Background(), s.url)
	if err != nil {
		tb.Fatal(err)
	}
	defer func() { _ = conn.Close(context.Background()) }()
	var lag int64
	if err := conn.QueryRow(context.Background(), `select pg_current_wal_lsn() - confirmed_flush_lsn from pg_replication_slots where slot_name = $1`, slot).Scan(&lag); err != nil {
		tb.Fatal(err)
	}
	return lag
}

// A full buffer stops the reading and nothing else: the connection stays, and all arrives once the vendor is back.
func TestBufferFull(t *testing.T) {
	server := pgtest.Own(t, pgtest.Options{Settings: map[string]string{"wal_sender_timeout": "3s"}})
	url, err := server.CreateDatabase(t.Context(), "full")
	if err != nil {
		t.Fatal(err)
	}
	s, v := &source{url: url}, newVendor(t, sandbox.Config{})
	s.exec(t, schema)
	d := newDaemon(t, s.url, v.crm(""))
	d.configure(fmt.Sprintf("source: {url: %q, slot: %s}\nadmin: {listen: %q}\nbuffer: {dir: %q, max_size: 8MiB}\n%s", s.url, slotName(t), d.admin, d.bufferDir(), v.crm("")))
	d.start()
	d.ready()
	v.fault(t, sandbox.Fault{Kind: sandbox.Status, Status: 503})
	hugeTransaction(t, s.url, 200_000)

	var status struct {
		Source struct {
			State      string
			Reconnects int
		}
		Buffer struct{ Full bool }
	}
	d.wait("the buffer to be full", func() (bool, string) {
		err := d.status(t.Context(), &status)
		return err == nil && status.Buffer.Full, fmt.Sprint(status, err)
	})
	var walsender int
	pid := func() (pid int) {
		s.each(t, `select coalesce(max(active_pid), 0) from pg_replication_slots`, []any{&pid}, func() {})
		return pid
	}
	walsender = pid()
	pause(t.Context(), 8*time.Second)
	if now := pid(); now != walsender || now == 0 {
		t.Errorf("the walsender was %d and is %d: the connection broke while the buffer was full", walsender, now)
	}
	if d.readyNow(t) {
		t.Error("/readyz is green with a full buffer")
	}
	v.ClearFaults()
	settled(t, d, s, v)
	verify(t, s, v)
}
