package integration

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/sourcegraph/conc/pool"
)

// schema has a table of each kind that capture treats differently. version tells the writes of a key apart.
const schema = `
create sequence versions;
create table accounts (
	id bigint primary key, version bigint not null default nextval('versions'), name text, big text, amount numeric(20,4), tags text[], doc jsonb,
	created_at timestamptz not null default now(), updated_at timestamptz not null default now()
);
alter table accounts replica identity full;
alter table accounts alter big set storage external;

create table orders (
	tenant int, no int, version bigint not null default nextval('versions'), note text, big text, created_at timestamptz not null default now(),
	primary key (tenant, no)
);
alter table orders replica identity full;

-- Without FULL an update leaves out a TOASTed value that it did not touch: it has to be read back.
create table profiles (id uuid primary key, version bigint not null default nextval('versions'), bio text, visits int not null default 0);
alter table profiles alter bio set storage external;

create table events (id bigint not null, day date not null, version bigint not null default nextval('versions'), kind text, primary key (id, day)) partition by range (day);
create table events_old partition of events for values from (minvalue) to ('2026-01-01');
create table events_new partition of events for values from ('2026-01-01') to (maxvalue);
alter table events replica identity full;
alter table events_old replica identity full;
alter table events_new replica identity full;

-- Every write that a vendor must see, as the vendor sees it; not published. n is drawn while the key is locked, so that it grows
-- with the commits of a key (a version is drawn before an insert waits for a delete of its key).
create table history (n bigserial, tbl text, op text, id text, version bigint);
create function remember() returns trigger language plpgsql as $$
declare old_id text; new_id text;
begin
	if tg_op <> 'INSERT' then execute 'select ' || tg_argv[1] into old_id using old; end if;
	if tg_op <> 'DELETE' then execute 'select ' || tg_argv[1] into new_id using new; end if;
	if old_id is distinct from new_id then
		if old_id is not null then insert into history (tbl, op, id, version) values (tg_argv[0], 'delete', old_id, old.version); end if;
		if new_id is not null then insert into history (tbl, op, id, version) values (tg_argv[0], 'insert', new_id, new.version); end if;
	else
		insert into history (tbl, op, id, version) values (tg_argv[0], 'update', new_id, new.version);
	end if;
	return null;
end $$;
create trigger remember after insert or update or delete on accounts for each row execute function remember('accounts', '$1.id');
create trigger remember after insert or update or delete on orders for each row execute function remember('orders', '$1.tenant || ''-'' || $1.no');
create trigger remember after insert or update or delete on profiles for each row execute function remember('profiles', '$1.id');
create trigger remember after insert or update or delete on events for each row execute function remember('events', '$1.id || ''/'' || $1.day');
`

// mappings send every table of schema to StopChurn; the row's own key is its id there.
const mappings = `
  - {table: public.accounts, sink: crm, item: {brandId: 1, tableName: accounts, createdAt: $created_at, updatedAt: $updated_at, data: {"*": {}, amount: =string(amount)}}}
  - {table: public.orders, sink: crm, item: {brandId: 1, tableName: orders, createdAt: $created_at, updatedAt: $created_at,
      data: {id: =string(tenant) + "-" + string(no), version: $version, note: $note, big: $big}}}
  - {table: public.profiles, sink: crm, item: {brandId: 1, tableName: profiles, createdAt: 1700000000000, updatedAt: 1700000000000, data: {"*": {}}}}
  - {table: public.events, sink: crm, item: {brandId: 1, tableName: events, createdAt: $day, updatedAt: $day, data: {id: =string(id) + "/" + iso(day), version: $version, kind: $kind}}}
`

// expected reads each table as the mappings send it: tableName, id, version and the texts.
const expected = `
	select 'accounts', id::text, version, coalesce(name, '') || '|' || coalesce(big, '') || '|' || coalesce(amount::text, '') from accounts
	union all select 'orders', tenant || '-' || no, version, coalesce(note, '') || '|' || coalesce(big, '') from orders
	union all select 'profiles', id::text, version, coalesce(bio, '') || '|' || visits from profiles
	union all select 'events', id || '/' || day, version, coalesce(kind, '') from events`

// workload writes at random to the tables of schema.
type workload struct {
	url     string
	writers int
	seed    uint64
	keys    int // so many keys a table, so that writers meet

	writes atomic.Int64
}

// run writes until ctx ends, or for so many transactions by each writer when limit is not 0. It goes on over a server that restarts.
func (w *workload) run(ctx context.Context, limit int) error {
	w.seed++ // a second run writes something else
	p := pool.New().WithContext(ctx).WithCancelOnError().WithFirstError()
	for i := range w.writers {
		p.Go(func(ctx context.Context) error {
			return w.writer(ctx, rand.New(rand.NewPCG(w.seed, uint64(i))), limit)
		})
	}
	return p.Wait()
}

func (w *workload) writer(ctx context.Context, r *rand.Rand, limit int) error {
	var conn *pgx.Conn
	defer func() {
		if conn != nil {
			_ = conn.Close(context.WithoutCancel(ctx))
		}
	}()
	for n := 0; limit == 0 || n < limit; n++ {
		if ctx.Err() != nil {
			return nil
		}
		if conn == nil || conn.IsClosed() {
			fresh, err := pgx.Connect(ctx, w.url)
			if err != nil {
				continue // the server restarts
			}
			conn = fresh
		}
		err := w.transaction(ctx, conn, r)
		var pgErr *pgconn.PgError
		switch {
		case err == nil || ctx.Err() != nil || conn.IsClosed():
		case errors.As(err, &pgErr) && expectedCode(pgErr.Code):
		default:
			return fmt.Errorf("workload: %w", err)
		}
	}
	return nil
}

// expectedCode tells what writers that meet, or a server that goes down, may say.
func expectedCode(code string) bool {
	switch code {
	case "23505", "40P01", "40001", "57P01", "57P02", "57P03": // unique, deadlock, serialization, shutdowns
		return true
	}
	return false
}

func (w *workload) transaction(ctx context.Context, conn *pgx.Conn, r *rand.Rand) error {
	tx, err := conn.Begin(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()
	statements := 1 + r.IntN(4)
	if r.IntN(20) == 0 {
		statements = 60 // a long one, which short ones overtake
	}
	for range statements {
		if err := w.statement(ctx, tx, r); err != nil {
			return err
		}
	}
	if r.IntN(10) == 0 {
		return tx.Rollback(ctx)
	}
	if err := tx.Commit(ctx); err != nil {
		return err
	}
	w.writes.Add(int64(statements))
	return nil
}

func (w *workload) statement(ctx context.Context, tx pgx.Tx, r *rand.Rand) error {
	if r.IntN(12) == 0 {
		return w.savepoint(ctx, tx, r)
	}
	key, other := r.IntN(w.keys), r.IntN(w.keys)
	day := []string{"2025-06-01", "2026-06-01"}[r.IntN(2)]
	text := fmt.Sprintf("text %d “quoted” \\ \n\t%s", r.IntN(1e6), strings.Repeat("é", r.IntN(20)))
	exec := func(sql string, args ...any) error {
		_, err := tx.Exec(ctx, sql, args...)
		return err
	}
	switch r.IntN(15) {
	case 0, 1:
		return exec(`insert into accounts (id, name, big, amount, tags, doc) values ($1, $2, $3, $4::float8::numeric, array[$2, null, 'x'], jsonb_build_object('a', $2::text))
			on conflict (id) do update set version = nextval('versions'), name = excluded.name, updated_at = now()`, key, text, big(r), float64(r.IntN(1e6))/7)
	case 2:
		return exec(`update accounts set version = nextval('versions'), name = $2 where id = $1`, key, text) // big stays: unchanged TOAST
	case 3:
		return exec(`update accounts set version = nextval('versions'), big = $2 where id = $1`, key, big(r))
	case 4:
		return exec(`update accounts set version = nextval('versions'), id = $2 where id = $1 and not exists (select from accounts where id = $2)`, key, other)
	case 5:
		return exec(`delete from accounts where id = $1`, key)
	case 6:
		return w.copyIn(ctx, tx, r)
	case 7:
		return exec(`insert into orders (tenant, no, note, big) values ($1, $2, $3, $4) on conflict do nothing`, key%5, key, text, big(r))
	case 8:
		return exec(`update orders set version = nextval('versions'), note = $3 where tenant = $1 and no = $2`, key%5, key, text)
	case 9:
		return exec(`delete from orders where tenant = $1 and no = $2`, key%5, key)
	case 10:
		return exec(`insert into profiles (id, bio) values (md5($1::text)::uuid, $2) on conflict (id) do update set version = nextval('versions'), visits = profiles.visits + 1`, fmt.Sprint(key), big(r))
	case 11:
		return exec(`update profiles set version = nextval('versions'), visits = visits + 1 where id = md5($1::text)::uuid`, fmt.Sprint(key))
	case 12:
		return exec(`insert into events (id, day, kind) values ($1, $2::date, $3) on conflict (id, day) do update set version = nextval('versions'), kind = excluded.kind`, key, day, text)
	case 13:
		return exec(`update events set version = nextval('versions'), kind = $3 where id = $1 and day = $2::date`, key, day, text)
	default:
		return exec(`delete from events where id = $1 and day = $2::date`, key, day)
	}
}

// savepoint writes something and, half of the time, takes it back.
func (w *workload) savepoint(ctx context.Context, tx pgx.Tx, r *rand.Rand) error {
	sub, err := tx.Begin(ctx)
	if err != nil {
		return err
	}
	if err := w.statement(ctx, sub, r); err != nil {
		return err
	}
	if r.IntN(2) == 0 {
		return sub.Rollback(ctx)
	}
	return sub.Commit(ctx)
}

// copyIn gives many rows one LSN. Its keys lie behind those that the other statements write.
func (w *workload) copyIn(ctx context.Context, tx pgx.Tx, r *rand.Rand) error {
	base, rows := int64(1_000_000)+r.Int64N(1<<40), make([][]any, 0, 10)
	for i := range int64(cap(rows)) {
		rows = append(rows, []any{base + i, "copied"})
	}
	_, err := tx.CopyFrom(ctx, pgx.Identifier{"accounts"}, []string{"id", "name"}, pgx.CopyFromRows(rows))
	return err
}

// big is a text that is sometimes long enough for TOAST.
func big(r *rand.Rand) string {
	if r.IntN(3) > 0 {
		return "small"
	}
	return strings.Repeat(fmt.Sprintf("%08x", r.Uint32()), 400+r.IntN(200))
}

// hugeTransaction writes so many rows at once.
func hugeTransaction(tb testing.TB, url string, rows int) {
	tb.Helper()
	conn, err := pgx.Connect(tb.Context(), url)
	if err != nil {
		tb.Fatal(err)
	}
	defer func() { _ = conn.Close(context.Background()) }()
	if _, err := conn.Exec(tb.Context(), `insert into accounts (id, name) select 10000000 + i, 'huge ' || i from generate_series(1, $1::int) i`, rows); err != nil {
		tb.Fatal(err)
	}
}
