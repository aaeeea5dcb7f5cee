package replication

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"

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
	e := &Export{reader: &chunkReader{url: cfg.URL, publication: cfg.Publication, table: spec.Table, where: spec.Where, maxRow: largest, whole: true, needs: cfg.needed(&spec)}}
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
}

// Reserve makes the slot, the publication before it when cfg.Manage says so. The slot must not exist.
func Reserve(ctx context.Context, cfg Config, logger *slog.Logger) (_ *Reservation, err error) {
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
	now, err := server.wire.identify(ctx)
	if err != nil {
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
	err := watchSlot(ctx, r.cfg.URL, r.server.wire.pg.PID(), waits, func() (err error) {
		r.source.Created, r.Snapshot, err = r.server.wire.reserve(ctx, r.cfg.Slot)
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
