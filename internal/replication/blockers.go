package replication

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/sourcegraph/conc/pool"

	"github.com/cdcsync/cdcsync/internal/backoff"
)

// blocker is a transaction that a new slot waits for: decoding begins where every transaction that was open has ended.
type blocker struct {
	xid      string
	gid      string // of a prepared transaction, which belongs to no session and may be as old as the database
	database string
	pid      int32 // of a session, 0 when this role may not see it
	holder   string
	since    time.Time
}

// solution is the SQL that ends the transaction.
func (b *blocker) solution() string {
	switch {
	case b.gid != "":
		return fmt.Sprintf("if nobody is going to commit it, run in database %s: ROLLBACK PREPARED %s", pgx.Identifier{b.database}.Sanitize(), quoteLiteral(b.gid))
	case b.pid != 0:
		return fmt.Sprintf("let it end, or run: SELECT pg_terminate_backend(%d)", b.pid)
	}
	return fmt.Sprintf("as a superuser: SELECT pid, usename, state, query FROM pg_stat_activity WHERE backend_xid = '%s'", b.xid)
}

func (b *blocker) String() string {
	since := ""
	if !b.since.IsZero() {
		since = ", open since " + b.since.UTC().Format(time.RFC3339)
	}
	switch {
	case b.gid != "":
		return fmt.Sprintf("prepared transaction %s in database %s%s", quoteLiteral(b.gid), b.database, since)
	case b.pid != 0:
		return fmt.Sprintf("transaction %s of PID %d (%s)%s", b.xid, b.pid, b.holder, since)
	}
	return fmt.Sprintf("transaction %s of a session that this role may not see", b.xid)
}

// slotBlocker finds what a backend that makes a slot waits for; nil for nothing.
func slotBlocker(ctx context.Context, q querier, pid uint32) (*blocker, error) {
	rows, err := q.Query(ctx, `
		select l.transactionid::text, coalesce(p.gid, ''), coalesce(p.database, a.datname, '')::text, coalesce(a.pid, 0),
			format('role %s, application %s, %s', a.usename, a.application_name, a.state), coalesce(p.prepared, a.xact_start)
		from pg_locks l
		left join pg_prepared_xacts p on p.transaction = l.transactionid
		left join pg_stat_activity a on a.backend_xid = l.transactionid
		where l.pid = $1 and l.locktype = 'transactionid' and not l.granted
		limit 1`, int32(pid))
	if err != nil {
		return nil, err
	}
	found, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (*blocker, error) {
		var b blocker
		var since *time.Time
		err := row.Scan(&b.xid, &b.gid, &b.database, &b.pid, &b.holder, &since)
		if since != nil {
			b.since = *since
		}
		return &b, err
	})
	if err != nil || len(found) == 0 {
		return nil, err
	}
	return found[0], nil
}

// watchSlot tells, while create runs, which transaction the new slot waits for, whenever it is another one. pid is that of the backend that makes the slot.
func watchSlot(ctx context.Context, url string, pid uint32, tell func(*blocker), create func(context.Context) error) error {
	creating, giveUp := context.WithCancelCause(ctx)
	defer giveUp(nil)
	watching, stop := context.WithCancel(ctx)
	p := pool.New()
	p.Go(func() {
		watchBlockers(watching, url, pid, tell, giveUp)
	})
	err := create(creating)
	stop()
	p.Wait()
	if cause := context.Cause(creating); err != nil && errors.Is(cause, errAnswerLost) {
		return cause
	}
	return err
}

// errAnswerLost is for a slot that may have been made, which nobody has heard of.
var errAnswerLost = errors.New("the server makes the slot no more, and its answer has not come")

// The watch of a slot in the making.
const (
	firstWatch = time.Second // a slot takes milliseconds where nothing is in its way
	nextWatch  = 5 * time.Second
)

// watchBlockers also ends the wait for an answer that is lost: the time that the server itself needs has no bound.
func watchBlockers(ctx context.Context, url string, pid uint32, tell func(*blocker), giveUp context.CancelCauseFunc) {
	const most = 2 // looks in a row that find the process idle, or gone
	catalog := newCatalog(url)
	defer catalog.close(ctx)
	told, seen, idle := "", false, 0
	for wait := firstWatch; backoff.Sleep(ctx, wait) == nil; wait = nextWatch {
		var b *blocker
		var active bool
		err := catalog.with(ctx, func(ctx context.Context, q querier) (err error) {
			if b, err = slotBlocker(ctx, q, pid); err != nil {
				return err
			}
			return q.QueryRow(ctx, "select exists (select from pg_stat_activity where pid = $1 and state = 'active')", int32(pid)).Scan(&active)
		})
		switch {
		case err != nil:
			continue
		case active:
			seen, idle = true, 0
		case seen: // a pooler's process IDs are seen never
			if idle++; idle >= most {
				giveUp(errAnswerLost)
				return
			}
		}
		if b != nil && b.xid != told {
			told = b.xid
			tell(b)
		}
	}
}
