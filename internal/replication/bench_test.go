package replication

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/sourcegraph/conc/pool"
)

// The two benchmarks read the same content: -bench Slot -benchtime 1000000x -count 1. Their ratio is what matters.

// BenchmarkSlotBare is a ReceiveMessage loop that does nothing with what it gets.
func BenchmarkSlotBare(b *testing.B) {
	ctx := b.Context()
	url := backlog(b)
	cfg, err := pgconn.ParseConfig(url + "&replication=database")
	if err != nil {
		b.Fatal(err)
	}
	conn, err := pgconn.ConnectConfig(ctx, cfg)
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	before := processor()
	b.ResetTimer()
	conn.Frontend().SendQuery(&pgproto3.Query{String: `START_REPLICATION SLOT bench LOGICAL 0/0 (proto_version '2', publication_names 'bench')`})
	if err := conn.Frontend().Flush(); err != nil {
		b.Fatal(err)
	}
	for rows := 0; rows < b.N; {
		m, err := conn.ReceiveMessage(ctx)
		if err != nil {
			b.Fatal(err)
		}
		if d, ok := m.(*pgproto3.CopyData); ok && len(d.Data) > dataHeader && d.Data[dataHeader] == msgInsert {
			rows++
		}
	}
	b.StopTimer()
	b.ReportMetric((processor()-before).Seconds()*1e6/float64(b.N), "cpu-s/Mrow")
}

// BenchmarkSlotStream is the whole capture into a log that discards.
func BenchmarkSlotStream(b *testing.B) {
	ctx, cancel := context.WithCancel(b.Context())
	defer cancel()
	url := backlog(b)
	log := newMemLog()
	log.discard = true
	s := New(Config{URL: url, Slot: "bench", Publication: "bench", Manage: true, Tables: []Table{{Schema: "public", Name: "bench", Insert: true}}},
		log, slog.New(slog.DiscardHandler), nil)
	before := processor()
	b.ResetTimer()
	p := pool.New().WithErrors()
	p.Go(func() error { return s.Run(ctx) })
	log.wait(ctx, b, "all rows", func() bool {
		return log.rows >= b.N
	})
	b.StopTimer()
	b.ReportMetric((processor()-before).Seconds()*1e6/float64(b.N), "cpu-s/Mrow")
	cancel()
	if err := p.Wait(); err != nil {
		b.Fatal(err)
	}
}

// backlog makes a slot with b.N rows of about 240 bytes behind it, in transactions of 1,000.
func backlog(b *testing.B) string {
	b.Helper()
	ctx := b.Context()
	url := postgres.NewDatabase(b)
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	run := func(sql string, args ...any) {
		if _, err := conn.Exec(ctx, sql, args...); err != nil {
			b.Fatal(errors.Join(err, fmt.Errorf("%s", sql)))
		}
	}
	run(`create table bench (id bigint primary key, a text, b text, c text, d text, e numeric, f timestamptz)`)
	run(`create publication bench for table bench`)
	run(`select pg_create_logical_replication_slot('bench', 'pgoutput')`)
	for from := 1; from <= b.N; from += 1000 {
		run(`insert into bench select n, 'first name ' || n, 'last name ' || n, repeat('x', 60), repeat('y', 60), n / 7.0, now() from generate_series($1::int, $2::int) n`,
			from, min(from+999, b.N))
	}
	return url
}

func processor() time.Duration {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
