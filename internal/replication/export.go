package replication

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/cdcsync/cdcsync/internal/backoff"
	"github.com/cdcsync/cdcsync/internal/cdc"
)

// Export reads one table whole, as it is at one moment, on a connection of its own. It is used by one goroutine.
type Export struct {
	reader *chunkReader
	size   tableSize
}

// OpenExport connects and looks at the table. An *Error says that the table or the condition cannot be.
func OpenExport(ctx context.Context, cfg BackfillConfig, spec BackfillSpec) (*Export, error) {
	const largest = 1 << 30 // Postgres's own limit for a row
	e := &Export{reader: &chunkReader{url: cfg.URL, publication: cfg.Publication, table: spec.Table, where: spec.Where, maxRow: largest, whole: true, needs: cfg.needed(&spec), manage: cfg.Manage}}
	var err error
	if e.size, err = e.reader.check(ctx); err != nil {
		e.reader.close(ctx)
		return nil, err
	}
	return e, nil
}

// Relation is the table as the rows have it.
func (e *Export) Relation() *cdc.Relation { return e.reader.relation }

// Estimate is about how many rows there are.
func (e *Export) Estimate() int64 { return e.size.rows }

// Close ends the connection.
func (e *Export) Close(ctx context.Context) { e.reader.close(ctx) }

// Rows gives every row to take, as text, in one snapshot: that of a Reservation when snapshot names it, else the present. A
// row's values are valid until take returns.
func (e *Export) Rows(ctx context.Context, snapshot string, take func(row []cdc.Value) error) error {
	conn := e.reader.conn.PgConn()
	begin := "begin isolation level repeatable read, read only"
	if snapshot != "" {
		begin += "; set transaction snapshot " + quoteLiteral(snapshot)
	}
	if _, err := conn.Exec(ctx, begin).ReadAll(); err != nil {
		return fmt.Errorf("snapshot: %w", err)
	}
	sql := fmt.Sprintf("select %s from %s", strings.Join(e.reader.names(e.reader.everything), ", "), e.reader.from)
	if e.reader.filter != "" {
		sql += " where " + e.reader.filter
	}
	sql, err := encodeSQL(e.reader.charset, sql)
	if err != nil {
		return err
	}
	decoded := func(row []cdc.Value) error {
		e.reader.charset.Values(row)
		return take(row)
	}
	if err := readRows(conn.ExecParams(ctx, sql, nil, nil, nil, nil), decoded); err != nil {
		return fmt.Errorf("read %s: %w", e.reader.table, withoutRow(err))
	}
	if _, err := conn.Exec(ctx, "commit").ReadAll(); err != nil {
		return err
	}
	if err := e.reader.unaltered(ctx); err != nil {
		if errors.Is(err, errChanged) {
			return &Error{Reason: fmt.Sprintf("the columns of %s, or the types that they are built of, were altered meanwhile", e.reader.table), Solution: "run it again"}
		}
		return err
	}
	return nil
}

func readRows(reader *pgconn.ResultReader, take func(row []cdc.Value) error) error {
	var row []cdc.Value
	for reader.NextRow() {
		row = row[:0]
		for _, v := range reader.Values() {
			if v == nil {
				row = append(row, cdc.Value{Kind: cdc.Null})
			} else {
				row = append(row, cdc.Value{Kind: cdc.Text, Data: v})
			}
		}
		if err := take(row); err != nil {
			return err // the connection is closed with the rest unread
		}
	}
	_, err := reader.Close()
	return err
}

// Reservation is a new slot, with a snapshot that shows exactly what lies before its first change. It holds the connection
// that the snapshot lives in.
type Reservation struct {
	Snapshot string // its name

	cfg    Config
	server *server
	source incarnation

	failover bool // the server can make slots that standbys have, too
}

// Reserve makes the slot, the publication before it when cfg.Manage says so. The slot must not exist: when that is known, and
// before anything is made, begin is called.
func Reserve(ctx context.Context, cfg Config, logger *slog.Logger, begin func(context.Context) error) (_ *Reservation, err error) {
	server, err := dialServer(ctx, cfg.URL, DefaultMaxRow)
	if err != nil {
		return nil, connectError(err, false)
	}
	r := &Reservation{cfg: cfg, server: server}
	defer func() {
		if err != nil {
			server.close(ctx)
		}
	}()
	sv, err := surveySource(ctx, server.asks(), &cfg)
	if err != nil {
		return nil, err
	}
	if err := firstFailure(findings(sv, &cfg)); err != nil {
		return nil, err
	}
	if sv.slot != nil {
		return nil, &Error{
			Reason:   fmt.Sprintf("slot %q exists already, and a snapshot comes with a new one only", cfg.Slot),
			Solution: "export without --with-slot, or, if nothing needs the slot: " + dropSlot(cfg.Slot),
		}
	}
	r.failover = sv.version >= hasFailover && !sv.recovering
	now, err := server.wire.identify(ctx)
	if err != nil {
		return nil, err
	}
	if err := begin(ctx); err != nil {
		return nil, err
	}
	r.source.System, r.source.Timeline, r.source.Database = now.id, now.timeline, sv.databaseOID
	s := &Stream{cfg: cfg, logger: logger}
	if cfg.Manage {
		if err := s.managePublication(ctx, server.sql, sv); err != nil {
			return nil, err
		}
	}
	return r, r.create(ctx, logger)
}

func (r *Reservation) create(ctx context.Context, logger *slog.Logger) error {
	waits := (&Stream{cfg: r.cfg, logger: logger}).slotWaits(ctx)
	err := watchSlot(ctx, r.cfg.URL, r.server.wire.pg.PID(), waits, func(ctx context.Context) (err error) {
		r.source.Created, r.Snapshot, err = r.server.wire.reserve(ctx, r.cfg.Slot, r.failover)
		if r.failover && refusesFailover(err) {
			logger.WarnContext(ctx, noFailover, "slot", r.cfg.Slot, "err", err)
			r.source.Created, r.Snapshot, err = r.server.wire.reserve(ctx, r.cfg.Slot, false)
		}
		return err
	})
	if err != nil {
		return streamError(&r.cfg, err)
	}
	r.source.Slot = r.cfg.Slot
	r.source.Confirmed = r.source.Created
	return nil
}

// Keep makes the log accept the slot, so that a Stream begins behind the snapshot. The log must be one that has nothing of another slot.
func (r *Reservation) Keep(ctx context.Context, to Log) error {
	if err := to.SetSource(ctx, r.source.encode()); err != nil {
		return fmt.Errorf("store slot: %w", err)
	}
	return nil
}

// Release ends the snapshot; unless keep is set, the slot is dropped, too.
func (r *Reservation) Release(ctx context.Context, keep bool) error {
	defer r.server.close(ctx)
	if keep {
		return nil
	}
	return r.server.wire.drop(ctx, r.cfg.Slot)
}

// DropReserved drops the slot that a Reservation has left, whose process was killed. existed is false when there is none.
func DropReserved(ctx context.Context, cfg Config) (existed bool, err error) {
	const patience, again = 30 * time.Second, 100 * time.Millisecond
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	c := newCatalog(cfg.URL)
	defer c.close(ctx)
	for {
		slot, err := slotOf(ctx, c, cfg.Slot)
		switch {
		case err != nil:
			return false, err
		case slot == nil:
			return existed, nil
		case slot.activePID == 0:
			existed = true
			err = c.with(ctx, func(ctx context.Context, q querier) error {
				rows, err := q.Query(ctx, dropSlot(cfg.Slot))
				if err != nil {
					return err
				}
				rows.Close()
				return rows.Err()
			})
			if err != nil && sqlState(err) != codeObjectInUse {
				return true, fmt.Errorf("drop slot %s: %w", cfg.Slot, err)
			}
		}
		if err := backoff.Sleep(ctx, again); err != nil && slot.activePID != 0 { // the server has yet to see that the process is gone
			return true, &Error{
				Reason:   (&busyError{slot: cfg.Slot, pid: slot.activePID, holder: slot.holder}).Error(),
				Solution: fmt.Sprintf("wait for it to end, or end it: SELECT pg_terminate_backend(%d)", slot.activePID),
			}
		}
	}
}

// HasSlot reports whether the source has the slot.
func HasSlot(ctx context.Context, cfg Config) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, connectPatience)
	defer cancel()
	c := newCatalog(cfg.URL)
	defer c.close(ctx)
	slot, err := slotOf(ctx, c, cfg.Slot)
	return slot != nil, err
}

func slotOf(ctx context.Context, c *catalog, name string) (slot *slotFacts, err error) {
	err = c.with(ctx, func(ctx context.Context, q querier) (err error) {
		slot, err = surveySlot(ctx, q, name)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("slot %s: %w", name, err)
	}
	return slot, nil
}
