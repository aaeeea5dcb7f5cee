package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/sourcegraph/conc/pool"
)

// writers share the transactions, so that a slow commit delays few of them.
const writers = 4

// commit is when a transaction's COMMIT was sent, and when its answer was back.
type commit struct{ sent, done time.Time }

// latency commits single rows at a steady rate and takes the time until each has been read from the vendor's socket.
func (b *bench) latency(ctx context.Context) (err error) {
	url, err := b.database(ctx, "latency", schema)
	if err != nil {
		return err
	}
	vendor, err := startReceiver(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, vendor.stop()) }()
	d, err := b.startDaemon(ctx, url, "bench_latency", vendor.address)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.stop()) }()
	if err := errors.Join(d.ready(ctx), vendor.reset(ctx, "?trace")); err != nil {
		return err
	}
	before, err := d.usage()
	if err != nil {
		return err
	}
	commits, took, err := b.write(ctx, url)
	if err != nil {
		return err
	}
	if _, err := vendor.awaitItems(ctx, len(commits), d); err != nil {
		return err
	}
	seen, err := vendor.stats(ctx, "?arrivals")
	if err != nil {
		return err
	}
	after, err := d.usage()
	if err != nil {
		return err
	}
	fmt.Printf("\nLatency: %s single-row transactions, %.0f a second for %.0f s; %s requests, %.2f CPU seconds, %.0f MiB at most\n\n",
		thousands(len(commits)), float64(len(commits))/took.Seconds(), took.Seconds(), thousands(seen.Requests),
		(after.CPU - before.CPU).Seconds(), float64(after.Peak)/(1<<20))
	return printLatency(commits, seen.Arrivals)
}

func execute(ctx context.Context, url, sql string) error {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return err
	}
	_, err = conn.Exec(ctx, sql)
	return errors.Join(err, conn.Close(ctx))
}

// write commits b.rate rows a second, each at its own moment of the schedule, and returns when all are committed.
func (b *bench) write(ctx context.Context, url string) (map[int64]commit, time.Duration, error) {
	var mu sync.Mutex
	commits := make(map[int64]commit)
	interval, total := time.Second/time.Duration(b.rate), int64(b.period.Seconds()*float64(b.rate))
	began := time.Now()
	running := pool.New().WithContext(ctx).WithCancelOnError()
	for first := range int64(writers) {
		running.Go(func(ctx context.Context) error {
			conn, err := pgx.Connect(ctx, url)
			if err != nil {
				return err
			}
			defer conn.Close(ctx)
			for id := first; id < total; id += writers {
				time.Sleep(time.Until(began.Add(time.Duration(id) * interval)))
				c, err := commitRow(ctx, conn, id)
				if err != nil {
					return err
				}
				mu.Lock()
				commits[id] = c
				mu.Unlock()
			}
			return nil
		})
	}
	err := running.Wait()
	return commits, time.Since(began), err
}

const insertRow = `insert into bench values
	($1, 'user@example.com', 'First', 'Last', 'City', 'customer since the year 1990', 12.50, '{vip,club}', '{"points": 7}', now(), now())`

func commitRow(ctx context.Context, conn *pgx.Conn, id int64) (c commit, err error) {
	tx, err := conn.Begin(ctx)
	if err != nil {
		return c, err
	}
	if _, err := tx.Exec(ctx, insertRow, id); err != nil {
		return c, err
	}
	c.sent = time.Now()
	err = tx.Commit(ctx)
	c.done = time.Now()
	return c, err
}

// printLatency matches arrivals to commits; of a row that came twice the first counts.
func printLatency(commits map[int64]commit, arrivals []arrival) error {
	var afterDone, afterSent []time.Duration
	seen := make(map[int64]bool)
	for _, a := range arrivals {
		c, ok := commits[a.ID]
		if !ok || seen[a.ID] {
			continue
		}
		seen[a.ID] = true
		afterDone = append(afterDone, a.At.Sub(c.done))
		afterSent = append(afterSent, a.At.Sub(c.sent))
	}
	if len(seen) != len(commits) {
		return fmt.Errorf("%d of %d rows arrived", len(seen), len(commits))
	}
	fmt.Printf("%-44s%10s%10s%10s%10s\n", "", "p50 ms", "p99 ms", "p99.9 ms", "max ms")
	printPercentiles("COMMIT acknowledged to vendor's socket", afterDone)
	printPercentiles("COMMIT sent to vendor's socket", afterSent)
	fmt.Println("\ntarget: p50 at most 3 ms, p99 at most 10 ms")
	return nil
}

func printPercentiles(what string, all []time.Duration) {
	slices.Sort(all)
	at := func(share float64) float64 {
		return float64(all[min(len(all)-1, int(share*float64(len(all))))].Microseconds()) / 1000
	}
	fmt.Printf("%-44s%10.2f%10.2f%10.2f%10.2f\n", what, at(0.5), at(0.99), at(0.999), at(1))
}
