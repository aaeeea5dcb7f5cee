// Command bench measures cdcsync end to end, on a private Postgres, against the least that any reader of a slot must do.
//
// It runs itself again as the bare reader and as the receiver, so that each has a process of its own whose memory and
// processor time can be read from /proc; it needs Linux. docs/performance.md says how to read what it prints.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/cdcsync/cdcsync/internal/pgtest"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// bench is one run of all scenarios.
type bench struct {
	daemon string // path of the binary
	rows   int
	rounds int
	rate   int
	period time.Duration
	dir    string // for buffers and configurations
	// profile is where the processor profile of the daemon's last catch-up goes; empty for none.
	profile string
	server  *pgtest.Server
}

// scenarios run in this order. A new one is a line here and a file beside latency.go.
var scenarios = []struct {
	name string
	run  func(*bench, context.Context) error
}{
	{"throughput", (*bench).throughput},
	{"latency", (*bench).latency},
	{"isolation", (*bench).isolation},
	{"queue", (*bench).queue},
	{"outage", (*bench).outage},
	{"backfill", (*bench).backfill},
}

func run(ctx context.Context, args []string) error {
	if len(args) > 0 {
		switch args[0] {
		case "reader":
			return readSlot(ctx, args[1:])
		case "receiver":
			return receive(ctx)
		}
	}
	b := new(bench)
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.StringVar(&b.daemon, "daemon", "bin/cdcsync", "the binary to measure")
	flags.IntVar(&b.rows, "rows", 1_000_000, "rows of the backlog")
	flags.IntVar(&b.rounds, "rounds", 3, "times that the backlog is read; medians are printed")
	flags.IntVar(&b.rate, "rate", 500, "transactions a second of the latency run")
	flags.DurationVar(&b.period, "for", 20*time.Second, "length of the latency run")
	flags.StringVar(&b.profile, "profile", "", "write a processor profile of the daemon's last catch-up to this file; costs it some per cent")
	only := flags.String("only", "", "run this scenario alone: "+strings.Join(names(), ", "))
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *only != "" && !slices.Contains(names(), *only) {
		return fmt.Errorf("-only %s: there are %s", *only, strings.Join(names(), ", "))
	}
	return b.run(ctx, *only)
}

func names() []string {
	var all []string
	for _, s := range scenarios {
		all = append(all, s.name)
	}
	return all
}

func (b *bench) run(ctx context.Context, only string) (err error) {
	if b.daemon, err = filepath.Abs(b.daemon); err != nil {
		return err
	}
	if b.dir, err = os.MkdirTemp("", "cdcsync-bench-"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(b.dir)) }()

	b.server, err = pgtest.Start(ctx, pgtest.Options{Durable: true, TCP: true, Settings: map[string]string{
		"max_wal_size":          "8GB", // no checkpoint in the middle of a measurement
		"shared_buffers":        "256MB",
		"max_replication_slots": "100", // one for each round
		"max_wal_senders":       "100",
	}})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.server.Stop(context.WithoutCancel(ctx))) }()

	if err := b.introduce(ctx); err != nil {
		return err
	}
	for _, s := range scenarios {
		if only != "" && only != s.name {
			continue
		}
		if err := s.run(b, ctx); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	return nil
}

// database makes one with a schema, and returns its URL.
func (b *bench) database(ctx context.Context, name, schema string) (url string, err error) {
	if url, err = b.server.CreateDatabase(ctx, name); err != nil {
		return "", err
	}
	return url, execute(ctx, url, schema)
}

// introduce prints what the figures depend on.
func (b *bench) introduce(ctx context.Context) error {
	conn, err := pgx.Connect(ctx, b.server.URL("postgres"))
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	var version, fsync, synchronous string
	err = conn.QueryRow(ctx, `select current_setting('server_version'), current_setting('fsync'), current_setting('synchronous_commit')`).
		Scan(&version, &fsync, &synchronous)
	if err != nil {
		return err
	}
	fmt.Printf("Postgres %s, fsync %s, synchronous_commit %s; %d processors, %s\n", version, fsync, synchronous, runtime.NumCPU(), runtime.Version())
	return nil
}
