package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// outage takes the daemon's memory while nobody takes anything: a backlog for four sinks whose vendors are all down, and a restart on it.
func (b *bench) outage(ctx context.Context) (err error) {
	url, err := b.database(ctx, "outage", strings.Replace(schema, "create publication bench for table bench with (publish_via_partition_root = true);", "", 1))
	if err != nil {
		return err
	}
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	nobody, err := freeAddress(ctx) // refuses connections
	if err != nil {
		return err
	}
	start := func() (*daemon, error) {
		return b.launch(ctx, "bench_outage", func(buffer, admin string) string {
			return strings.NewReplacer("URL", fmt.Sprintf("%q", url), "SLOT", "bench_outage", "BUFFER", buffer, "ADMIN", admin, "VENDOR", "http://"+nobody).Replace(outageConfig)
		})
	}
	d, err := start()
	if err != nil {
		return err
	}
	if err := d.ready(ctx); err != nil {
		return err
	}
	if _, err := seed(ctx, conn, b.rows); err != nil {
		return err
	}
	fmt.Printf("\nOutage: %s changes queued for four sinks whose vendors are all down; resident memory at most\n\n", thousands(b.rows))
	if err := d.queued(ctx, conn, "while they come"); err != nil {
		return errors.Join(err, d.stop())
	}
	if err := d.stop(); err != nil {
		return err
	}
	if d, err = start(); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.stop()) }()
	if err := d.ready(ctx); err != nil {
		return err
	}
	if err := d.queued(ctx, conn, "after a restart"); err != nil {
		return err
	}
	fmt.Println("\ntarget: at most 150 MiB")
	return nil
}

const outageConfig = `
source: {url: URL, slot: SLOT}
buffer: {dir: "BUFFER"}
admin: {listen: "ADMIN"}
sinks:
  crm: {type: stopchurn, url: "VENDOR", api_key: sandbox-key}
  queue: {type: fanbase_queue, url: "VENDOR", auth: {url: "VENDOR/api/token", client_id: sandbox-client, client_secret: sandbox-secret}}
  registry: {type: fanbase_batch, url: "VENDOR", auth: {url: "VENDOR/api/token", client_id: sandbox-client, client_secret: sandbox-secret}, system_id: 42}
  tiers: {type: fanatics_approvals, url: "VENDOR", auth: {url: "VENDOR/api/oauth2/token", client_id: sandbox-client, client_secret: sandbox-secret}}
mappings:
  - {table: bench, sink: crm, item: {brandId: 1, tableName: bench, createdAt: $created_at, updatedAt: $updated_at, data: {"*": {case: camel}}}}
  - {table: bench, sink: queue, item: {id: =string(id), cpf: null}}
  - table: bench
    sink: registry
    item:
      data: {identity: 0, name1: $first_name, birthday: 1, birthMonth: 1, birthYear: 1990}
      numbers: [{numberType: 4, number: $email}]
  - {table: bench, sink: tiers, item: {account_tenant_fanid: '="00000000-0000-4000-8000-" + padStart(string(id), 12, "0")', invite_approval_map: {00000000-0000-4000-8000-0000000000aa: true}}}
`

// queued waits until all that was written is in the buffer, and the sinks have tried several times to be rid of it, and prints the memory.
func (d *daemon) queued(ctx context.Context, conn *pgx.Conn, when string) error {
	const tries = 5 * time.Second
	var end string
	if err := conn.QueryRow(ctx, `select pg_current_wal_insert_lsn()::text`).Scan(&end); err != nil {
		return err
	}
	for stored := false; !stored; {
		err := conn.QueryRow(ctx, `select confirmed_flush_lsn >= $1::text::pg_lsn from pg_replication_slots where slot_name = 'bench_outage'`, end).Scan(&stored)
		if err != nil {
			return err
		}
		if err := d.pause(ctx, 50*time.Millisecond); err != nil {
			return err
		}
	}
	if err := d.pause(ctx, tries); err != nil {
		return err
	}
	u, err := d.usage()
	if err != nil {
		return err
	}
	fmt.Printf("%-20s%8.0f MiB\n", when, float64(u.Peak)/(1<<20))
	return nil
}
