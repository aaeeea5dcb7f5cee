package main

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// The table of the benchmark: 11 columns, some 240 bytes a row on the wire.
const schema = `
create table bench (
	id          bigint primary key,
	email       text,
	first_name  text,
	last_name   text,
	city        text,
	note        text,
	balance     numeric(12, 2),
	tags        text[],
	profile     jsonb,
	created_at  timestamptz,
	updated_at  timestamptz
);
alter table bench replica identity full;
create publication bench for table bench with (publish_via_partition_root = true);
`

const rowsPerTransaction = 1000

// seed fills the table in transactions of 1,000 rows.
func seed(ctx context.Context, conn *pgx.Conn, rows int) (time.Duration, error) {
	began := time.Now()
	_, err := conn.Exec(ctx, fmt.Sprintf(`
do $$
begin
	for page in 0..%d loop
		insert into bench
		select id, 'user' || id || '@example.com', 'First' || id %% 1000, 'Last' || id %% 5000, 'City ' || id %% 300,
			'customer since the year ' || 1990 + id %% 35,
			(id %% 100000) / 100.0, array['vip', 'club ' || id %% 20], jsonb_build_object('points', id %% 10000, 'tier', 'gold', 'active', id %% 2 = 0),
			timestamptz '2024-01-01' + id * interval '1 second', timestamptz '2025-01-01' + id * interval '1 second'
		from generate_series(page * %[2]d + 1, least((page + 1) * %[2]d, %[3]d)) id;
		commit;
	end loop;
end $$`, (rows-1)/rowsPerTransaction, rowsPerTransaction, rows))
	if err != nil {
		return 0, err
	}
	_, err = conn.Exec(ctx, "checkpoint")
	return time.Since(began), err
}
