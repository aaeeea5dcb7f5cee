package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/sourcegraph/conc/pool"
)

// liveRate is how many changes a second are committed while the backfill runs.
const liveRate = 200

// backfill sends a table that is there already, while changes are committed, and compares that with the least that reading it takes.
func (b *bench) backfill(ctx context.Context) (err error) {
	url, err := b.database(ctx, "backfill", schema)
	if err != nil {
		return err
	}
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	if _, err := seed(ctx, conn, b.rows); err != nil {
		return err
	}
	if _, err := conn.Exec(ctx, "vacuum analyze bench"); err != nil {
		return err
	}
	vendor, err := startReceiver(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, vendor.stop()) }()

	fmt.Printf("\nBackfill: %s rows, with %d changes a second meanwhile\n\n", thousands(b.rows), liveRate)
	fmt.Printf("%-7s%-12s%10s%12s%12s%10s\n", "round", "", "seconds", "rows/s", "peak MiB", "CPU s")
	var ratios []float64
	var latencies []time.Duration
	for round := range b.rounds {
		copied, err := copyTime(ctx, conn, b.rows)
		if err != nil {
			return err
		}
		fmt.Printf("%-7d%-12s%10.2f%12s\n", round+1, "COPY", copied.Seconds(), thousands(int(float64(b.rows)/copied.Seconds())))
		filled, live, err := b.fill(ctx, url, round, vendor)
		if err != nil {
			return err
		}
		fmt.Printf("%-7d%-12s%10.2f%12s%12.0f%10.2f\n", round+1, "cdcsync", filled.took.Seconds(), thousands(int(float64(b.rows)/filled.took.Seconds())),
			float64(filled.usage.Peak)/(1<<20), filled.usage.CPU.Seconds())
		ratios = append(ratios, copied.Seconds()/filled.took.Seconds())
		latencies = append(latencies, live...)
		if _, err := conn.Exec(ctx, "delete from bench where id > $1", b.rows); err != nil {
			return err
		}
	}
	fmt.Printf("\n%-44s", "speed, of COPY's")
	for _, r := range ratios {
		fmt.Printf("%10.2f", r)
	}
	fmt.Printf("\n\n%-44s%10s%10s%10s%10s\n", "", "p50 ms", "p99 ms", "p99.9 ms", "max ms")
	printPercentiles("COMMIT acknowledged to vendor's socket", latencies)
	fmt.Println("\ntarget: speed at least 0.5 of COPY's, p99 below 200 ms")
	return b.dropSlots(ctx, conn)
}

// copyTime reads the table as fast as a client can, on the connection that the seeding has warmed up.
func copyTime(ctx context.Context, conn *pgx.Conn, rows int) (time.Duration, error) {
	began := time.Now()
	tag, err := conn.PgConn().CopyTo(ctx, io.Discard, "copy (select * from bench) to stdout")
	if err == nil && int(tag.RowsAffected()) < rows {
		err = fmt.Errorf("COPY gave %d rows", tag.RowsAffected())
	}
	return time.Since(began), err
}

// fill has a daemon of its own send the table, from the request until its last row is answered, and returns the latencies of live changes.
func (b *bench) fill(ctx context.Context, url string, round int, vendor *receiver) (m measure, live []time.Duration, err error) {
	if err := vendor.reset(ctx, "?trace"); err != nil {
		return m, nil, err
	}
	d, err := b.startDaemon(ctx, url, fmt.Sprintf("backfill_%d", round+1), vendor.address)
	if err != nil {
		return m, nil, err
	}
	defer func() { err = errors.Join(err, d.stop()) }()
	if err := d.ready(ctx); err != nil {
		return m, nil, err
	}
	if b.profile != "" && round == b.rounds-1 {
		profiling := pool.New().WithErrors()
		profiling.Go(func() error { return d.writeProfile(ctx, b.profile) })
		defer func() { err = errors.Join(err, profiling.Wait()) }() // before the daemon is stopped
	}
	writing, stop := context.WithCancel(ctx)
	defer stop()
	var commits map[int64]commit
	running := pool.New().WithErrors()
	running.Go(func() (err error) {
		commits, err = writeLive(writing, url, int64(b.rows))
		return err
	})
	began := time.Now()
	if err := d.sendTable(ctx); err != nil {
		return m, nil, err
	}
	m.took = time.Since(began)
	stop()
	if err := running.Wait(); err != nil {
		return m, nil, err
	}
	if m.usage, err = d.usage(); err != nil {
		return m, nil, err
	}
	if live, err = vendor.latencies(ctx, commits, d); err != nil {
		return m, nil, err
	}
	seen, err := vendor.stats(ctx, "")
	if want := b.rows + len(commits); err == nil && seen.Items < want { // a live row may come twice: as itself, and as one that is read
		err = fmt.Errorf("%s rows arrived, and there are %s", thousands(seen.Items), thousands(want))
	}
	return m, live, err
}

// sendTable returns when the backfill of the table is done.
func (d *daemon) sendTable(ctx context.Context) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+d.admin+"/api/v1/backfills", strings.NewReader(`{"table": "public.bench"}`))
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", "application/json")
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	body, err := io.ReadAll(response.Body)
	if err := errors.Join(err, response.Body.Close()); err != nil {
		return err
	}
	if response.StatusCode != http.StatusCreated {
		return fmt.Errorf("start the backfill: %s: %s", response.Status, bytes.TrimSpace(body))
	}
	for {
		body, err := get(ctx, "http://"+d.admin+"/api/v1/backfills")
		if err != nil {
			return err
		}
		var list []struct{ State, Reason string }
		if err := json.Unmarshal(body, &list); err != nil {
			return err
		}
		if len(list) == 1 && list[0].State == "done" {
			return nil
		}
		if len(list) != 1 || list[0].State != "running" && list[0].State != "waiting" {
			return fmt.Errorf("the backfill: %s", body)
		}
		if err := d.pause(ctx, 10*time.Millisecond); err != nil {
			return err
		}
	}
}

// writeLive commits liveRate rows a second behind the table's last, until ctx ends.
func writeLive(ctx context.Context, url string, rows int64) (map[int64]commit, error) {
	var mu sync.Mutex
	commits := make(map[int64]commit)
	began := time.Now()
	running := pool.New().WithErrors()
	for first := range int64(writers) {
		running.Go(func() error {
			life := context.WithoutCancel(ctx)
			conn, err := pgx.Connect(life, url)
			if err != nil {
				return err
			}
			defer conn.Close(life)
			for n := first; ; n += writers {
				select {
				case <-ctx.Done():
					return nil
				case <-time.After(time.Until(began.Add(time.Duration(n) * time.Second / liveRate))):
				}
				c, err := commitRow(life, conn, rows+1+n)
				if err != nil {
					return err
				}
				mu.Lock()
				commits[rows+1+n] = c
				mu.Unlock()
			}
		})
	}
	err := running.Wait()
	return commits, err
}

// latencies waits until every commit has arrived.
func (r *receiver) latencies(ctx context.Context, commits map[int64]commit, d *daemon) ([]time.Duration, error) {
	const patience = 10 * time.Second
	for deadline := time.Now().Add(patience); ; {
		seen, err := r.stats(ctx, "?arrivals")
		if err != nil {
			return nil, err
		}
		var all []time.Duration
		known := make(map[int64]bool)
		for _, a := range seen.Arrivals {
			if c, ok := commits[a.ID]; ok && !known[a.ID] {
				known[a.ID] = true
				all = append(all, a.At.Sub(c.done))
			}
		}
		if len(all) == len(commits) {
			return all, nil
		}
		if time.Now().After(deadline) {
			return nil, fmt.Errorf("%d of %d changes arrived", len(all), len(commits))
		}
		if err := d.pause(ctx, 20*time.Millisecond); err != nil {
			return nil, err
		}
	}
}
