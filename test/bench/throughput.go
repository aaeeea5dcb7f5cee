package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/sourcegraph/conc/pool"
)

// measure is one reading of the backlog.
type measure struct {
	took    time.Duration // from the start of the process to the last row
	startUp time.Duration // of that, to the first row
	usage   usage
}

const bareSlot = "bench_bare"

// throughput reads one backlog by turns with the bare loop and with cdcsync. Every slot began before the rows did: the bare
// loop's is never confirmed and gives the same each time, the daemon has one for each round, which it made itself.
func (b *bench) throughput(ctx context.Context) (err error) {
	url, err := b.database(ctx, "throughput", schema)
	if err != nil {
		return err
	}
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	if _, err := conn.Exec(ctx, `select pg_create_logical_replication_slot($1, 'pgoutput')`, bareSlot); err != nil {
		return err
	}
	vendor, err := startReceiver(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, vendor.stop()) }()
	if err := b.prepareSlots(ctx, url, vendor); err != nil {
		return err
	}
	seeded, err := seed(ctx, conn, b.rows)
	if err != nil {
		return err
	}
	fmt.Printf("\nThroughput: a backlog of %s rows in transactions of %s, seeded in %.1f s\n\n", thousands(b.rows), thousands(rowsPerTransaction), seeded.Seconds())

	var bare, ours []measure
	fmt.Printf("%-7s%-12s%10s%12s%12s%10s%10s\n", "round", "", "seconds", "rows/s", "peak MiB", "CPU s", "start s")
	for round := range b.rounds {
		measureBare := func() error {
			m, err := b.bareLoop(ctx, url)
			bare = append(bare, m)
			return b.report(strconv.Itoa(round+1), "bare loop", m, err)
		}
		measureOurs := func() error {
			m, err := b.catchUp(ctx, url, round, vendor)
			ours = append(ours, m)
			return b.report(strconv.Itoa(round+1), "cdcsync", m, err)
		}
		if round%2 == 1 { // who comes second has the WAL in memory, if that makes a difference
			measureBare, measureOurs = measureOurs, measureBare
		}
		if err := measureBare(); err != nil {
			return err
		}
		if err := measureOurs(); err != nil {
			return err
		}
	}
	b.summarize(median(bare), median(ours))
	return b.dropSlots(ctx, conn)
}

func slotOf(round int) string { return "bench_" + strconv.Itoa(round+1) }

// prepareSlots has the daemon make its slots and buffers before there are rows.
func (b *bench) prepareSlots(ctx context.Context, url string, vendor *receiver) error {
	for round := range b.rounds {
		d, err := b.startDaemon(ctx, url, slotOf(round), vendor.address)
		if err != nil {
			return err
		}
		if err := errors.Join(d.ready(ctx), d.stop()); err != nil {
			return err
		}
	}
	return nil
}

// dropSlots lets the server forget the backlog before the next scenario.
func (b *bench) dropSlots(ctx context.Context, conn *pgx.Conn) error {
	_, err := conn.Exec(ctx, `select pg_drop_replication_slot(slot_name) from pg_replication_slots where database = current_database() and not active`)
	return err
}

// bareLoop has a child of ours read the whole backlog.
func (b *bench) bareLoop(ctx context.Context, url string) (m measure, err error) {
	command := exec.CommandContext(ctx, os.Args[0], "reader", url, bareSlot, strconv.Itoa(b.rows))
	command.Stderr = os.Stderr
	began := time.Now()
	out, err := command.Output()
	if err != nil {
		return m, fmt.Errorf("bare loop: %w", err)
	}
	var result readerResult
	if err := json.Unmarshal(out, &result); err != nil {
		return m, err
	}
	return measure{took: result.Last.Sub(began), startUp: result.First.Sub(began), usage: result.Usage}, nil
}

// catchUp has the daemon deliver the whole backlog. What it has taken is read when the last row has arrived.
func (b *bench) catchUp(ctx context.Context, url string, round int, vendor *receiver) (m measure, err error) {
	if err := vendor.reset(ctx, ""); err != nil {
		return m, err
	}
	d, err := b.startDaemon(ctx, url, slotOf(round), vendor.address)
	if err != nil {
		return m, err
	}
	defer func() { err = errors.Join(err, d.stop()) }()
	if b.profile != "" && round == b.rounds-1 {
		profiling := pool.New().WithErrors()
		profiling.Go(func() error { return d.writeProfile(ctx, b.profile) })
		defer func() { err = errors.Join(err, profiling.Wait()) }() // before the daemon is stopped
	}
	seen, err := vendor.awaitItems(ctx, b.rows, d)
	if err != nil {
		return m, err
	}
	if seen.Items > b.rows {
		return m, fmt.Errorf("%d items arrived for %d rows", seen.Items, b.rows)
	}
	m = measure{took: seen.Last.Sub(d.began), startUp: seen.First.Sub(d.began)}
	m.usage, err = d.usage()
	return m, err
}

func (b *bench) report(round, what string, m measure, err error) error {
	if err != nil {
		return err
	}
	fmt.Printf("%-7s%-12s%10.2f%12s%12.0f%10.2f%10.2f\n", round, what, m.took.Seconds(), thousands(b.speed(m)),
		float64(m.usage.Peak)/(1<<20), m.usage.CPU.Seconds(), m.startUp.Seconds())
	return nil
}

func (b *bench) speed(m measure) int { return int(float64(b.rows) / m.took.Seconds()) }

// The targets stand in docs/performance.md, with what they were measured against.
func (b *bench) summarize(bare, ours measure) {
	_ = b.report("median", "bare loop", bare, nil)
	_ = b.report("median", "cdcsync", ours, nil)
	million := float64(b.rows) / 1e6
	fmt.Printf("\nratio                       %.2f   (target: at least 1.0)\n", bare.took.Seconds()/ours.took.Seconds())
	fmt.Printf("CPU for a million rows    %6.2f s (target: at most 8)\n", ours.usage.CPU.Seconds()/million)
	fmt.Printf("peak resident memory      %4.0f MiB (target: at most 150)\n", float64(ours.usage.Peak)/(1<<20))
}

// median takes each figure's median by itself.
func median(all []measure) measure {
	return measure{
		took:    middle(all, func(m measure) time.Duration { return m.took }),
		startUp: middle(all, func(m measure) time.Duration { return m.startUp }),
		usage: usage{
			Peak: middle(all, func(m measure) int64 { return m.usage.Peak }),
			CPU:  middle(all, func(m measure) time.Duration { return m.usage.CPU }),
		},
	}
}

func middle[T ~int64](all []measure, figure func(measure) T) T {
	var values []T
	for _, m := range all {
		values = append(values, figure(m))
	}
	slices.Sort(values)
	return values[len(values)/2]
}

func thousands(n int) string {
	digits := strconv.Itoa(n)
	for i := len(digits) - 3; i > 0; i -= 3 {
		digits = digits[:i] + "," + digits[i:]
	}
	return digits
}
