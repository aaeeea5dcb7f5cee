package replication

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/cdcsync/cdcsync/internal/cdc"
)

// RecoveryLog is the Log that a Recovery brings together with a slot.
type RecoveryLog interface {
	Log
	// Rewind records durably that blocks appended from now on may lie before those that are there, from at on.
	Rewind(ctx context.Context, at cdc.LSN) error
}

// Recovery brings slot and log together again, when changes between them are lost for good. Afterwards a Stream starts; the
// rows that were mapped have to be sent again.
type Recovery struct {
	Reason  string // what has happened; empty when slot and log belong together
	NewSlot bool   // the slot has to be made, else the one that there is goes on

	cfg    Config
	log    RecoveryLog
	logger *slog.Logger
	server *server
	survey *survey
	now    system
	known  *incarnation // nil when the log knows no source
	tail   cdc.Footer

	deleted uint32
}

// OpenRecovery finds out what is wrong. No stream may run. An *Error is something that has to be mended first.
func OpenRecovery(ctx context.Context, cfg Config, log RecoveryLog, logger *slog.Logger) (_ *Recovery, err error) {
	server, err := dialServer(ctx, cfg.URL, DefaultMaxRow)
	if err != nil {
		return nil, connectError(err, false)
	}
	r := &Recovery{cfg: cfg, log: log, logger: logger, server: server}
	defer func() {
		if err != nil {
			server.close(ctx)
		}
	}()
	if r.survey, err = surveySource(ctx, server.asks(), &cfg); err != nil {
		return nil, err
	}
	if err := r.checkRest(); err != nil {
		return nil, err
	}
	if r.now, err = server.wire.identify(ctx); err != nil {
		return nil, err
	}
	return r, r.diagnose(ctx)
}

// checkRest refuses what is wrong beside the slot.
func (r *Recovery) checkRest() error {
	slot := r.survey.slot
	if slot != nil && slot.activePID != 0 {
		return &Error{
			Reason:   (&busyError{slot: r.cfg.Slot, pid: slot.activePID, holder: slot.holder}).Error(),
			Solution: "stop the daemon that reads it",
		}
	}
	rest := *r.survey
	if slot == nil || slot.walStatus == "lost" || slot.invalid != "" {
		rest.slot = &slotFacts{plugin: "pgoutput", database: rest.database}
	}
	return firstFailure(findings(&rest, &r.cfg))
}

// diagnose finds out why a Stream would refuse to start.
func (r *Recovery) diagnose(ctx context.Context) error {
	s := New(r.cfg, r.log, r.logger, nil)
	defer s.catalog.close(ctx)
	p := &plan{senderTimeout: r.survey.senderTimeout}
	known, stored, err := s.readLog(ctx, p)
	if err != nil {
		return err
	}
	r.tail, r.known = p.tail, known
	if known != nil {
		if err := known.foreign(Identity{System: r.now.id, Database: r.survey.databaseOID, Name: r.survey.database, Slot: r.cfg.Slot}); err != nil {
			return err
		}
		p.source = *known
	}
	slot := r.survey.slot
	if slot == nil && known == nil && !stored {
		return nil // nothing has begun
	}
	unusable := slot != nil && (slot.walStatus == "lost" || slot.invalid != "")
	unpublished := known != nil && s.unpublished(known, r.survey.publication)
	r.NewSlot = slot == nil || unusable || unpublished
	if unusable {
		err = lostError(r.cfg.Slot, nil)
	} else {
		err = r.verify(ctx, s, p, known, stored)
	}
	wrong, isError := errors.AsType[*Error](err)
	switch {
	case err == nil && known != nil && known.Refused != "":
		r.Reason, r.NewSlot = known.Refused, true
	case err == nil:
	case !isError:
		return err
	default:
		r.Reason, r.NewSlot = wrong.Reason, r.NewSlot || wrong.undecodable
	}
	return nil
}

// verify does what a session does until it would store something.
func (r *Recovery) verify(ctx context.Context, s *Stream, p *plan, known *incarnation, stored bool) error {
	if err := s.compare(r.now.id, r.survey, known, p, stored); err != nil {
		return err
	}
	if err := compareHistory(ctx, r.server.wire, r.now, known, p); err != nil {
		return err
	}
	p.confirmed = r.survey.slot.confirmed
	if s.begin(p); !p.history.pending {
		return nil
	}
	conn, err := r.server.wire.start(ctx, p.command(&r.cfg))
	if err != nil {
		return streamError(&r.cfg, err)
	}
	defer r.server.wire.close(ctx) // the slot is free afterwards
	ses := s.newSession(p, conn, r.server.wire.frames)
	stop := context.AfterFunc(ctx, ses.wake)
	defer stop()
	for ses.history.pending {
		if err := ses.fill(ctx); err != nil {
			return err
		}
		if err := ses.drain(ctx); err != nil {
			return err
		}
	}
	return nil
}

// Since is where the changes begin that will not come by the stream: what the log has reached. It lies behind where the stream
// begins when the source is at an earlier time than the log.
func (r *Recovery) Since() cdc.LSN {
	if r.known != nil {
		return max(r.tail.Resume.End, r.known.Confirmed)
	}
	return r.tail.Resume.End
}

// Close ends the connections.
func (r *Recovery) Close(ctx context.Context) { r.server.close(ctx) }

// Run makes the slot where that is needed and the log accept it. It returns where the stream begins.
func (r *Recovery) Run(ctx context.Context) (cdc.LSN, error) {
	s := &Stream{cfg: r.cfg, logger: r.logger}
	if r.cfg.Manage {
		if err := s.managePublication(ctx, r.server.sql, r.survey); err != nil {
			return 0, err
		}
	}
	var begin cdc.LSN
	if !r.NewSlot {
		begin = r.survey.slot.confirmed
	} else {
		if r.survey.slot != nil {
			if _, err := r.server.sql.Exec(ctx, dropSlot(r.cfg.Slot)); err != nil {
				return 0, fmt.Errorf("drop slot %s: %w", r.cfg.Slot, err)
			}
		}
		var err error
		if begin, err = s.createSlot(ctx, r.server); err != nil {
			return 0, err
		}
	}
	return begin, r.begin(ctx, begin)
}

// begin ends what the log has with a block that says where the stream goes on, so that no transaction is left open in it.
func (r *Recovery) begin(ctx context.Context, at cdc.LSN) error {
	if err := r.log.Rewind(ctx, at); err != nil {
		return fmt.Errorf("store position: %w", err)
	}
	var w cdc.Writer
	w.Continue(cdc.Resume{End: at})
	if err := r.log.Append(ctx, w.Seal(nil, nil)); err != nil {
		return fmt.Errorf("store block: %w", err)
	}
	source := incarnation{System: r.now.id, Slot: r.cfg.Slot, Created: at, Confirmed: at} // a Stream adds the rest
	if err := r.log.SetSource(ctx, source.encode()); err != nil {
		return fmt.Errorf("store slot: %w", err)
	}
	return nil
}

// Delete appends the deletion of rows that vanished while nothing was captured, as one transaction at the stream's beginning.
// Each row is a full tuple of rel as the log had it last.
func (r *Recovery) Delete(ctx context.Context, at cdc.LSN, rel *cdc.Relation, rows [][]byte) error {
	var w cdc.Writer
	w.Continue(cdc.Resume{End: at})
	w.Begin(0, at, time.Now(), r.deleted)
	r.deleted += uint32(len(rows))
	w.Relation(rel.OID, cdc.AppendRelation(nil, rel))
	for _, row := range rows {
		w.Row(deleteMessage(rel.OID, row))
	}
	w.Commit(at)
	if err := r.log.Append(ctx, w.Seal(nil, nil)); err != nil {
		return fmt.Errorf("store block: %w", err)
	}
	return nil
}

func deleteMessage(oid uint32, row []byte) []byte {
	return append(append(binary.BigEndian.AppendUint32([]byte{msgDelete}, oid), 'O'), row...)
}

// Vanished finds, among rows as the log has them last, those that their table has no longer. It is fed in the order of the log.
type Vanished struct {
	tables map[string]*vanishedTable // by schema.table
	bytes  int
	// Incomplete says that there were more rows than are remembered.
	Incomplete bool
}

type vanishedTable struct {
	relation *cdc.Relation
	rows     map[string]vanishedRow // by key
}

// vanishedRow is a full tuple in the form that its table had then.
type vanishedRow struct {
	relation *cdc.Relation
	tuple    []byte
}

// as gives the tuple in the form that the table has now: a column that it did not have, or of another type, was not sent.
func (r *vanishedRow) as(rel *cdc.Relation) ([]byte, error) {
	if r.relation == rel {
		return r.tuple, nil
	}
	values, err := cdc.DecodeTuple(nil, r.tuple, len(r.relation.Columns))
	if err != nil {
		return nil, err
	}
	row := make([]cdc.Value, len(rel.Columns))
	for i := range rel.Columns {
		row[i].Kind = cdc.Unchanged
		if was := r.relation.Column(rel.Columns[i].Name); was >= 0 && r.relation.Columns[was].Type.Same(rel.Columns[i].Type) {
			row[i] = values[was]
		}
	}
	return cdc.AppendTuple(nil, row), nil
}

// Add takes a block of the log.
func (v *Vanished) Add(d *cdc.Decoder, block []byte) error {
	if _, err := d.Reset(block); err != nil {
		return err
	}
	var c cdc.Change
	for {
		ok, err := d.Next(&c)
		if err != nil || !ok {
			return err
		}
		v.change(&c)
	}
}

// change takes the next change. A delete with a new row is one that a sink has missed: it still has that row.
func (v *Vanished) change(c *cdc.Change) {
	const most = 64 << 20 // bytes; the rest is for a comparison by hand
	key := KeyColumns(c.Relation)
	if len(key) == 0 || c.Oversized != nil {
		return
	}
	if v.tables == nil {
		v.tables = make(map[string]*vanishedTable)
	}
	t := v.tables[c.Relation.String()]
	if t == nil {
		t = &vanishedTable{rows: make(map[string]vanishedRow)}
		v.tables[c.Relation.String()] = t
	}
	t.relation = c.Relation
	if c.Old != nil {
		delete(t.rows, rowKeyText(c.Old, key))
	}
	if c.New == nil {
		return
	}
	name := rowKeyText(c.New, key)
	if _, known := t.rows[name]; known && c.Op == cdc.OpDelete { // what is known from before may have more columns
		return
	}
	row := make([]cdc.Value, len(c.New))
	for i, value := range c.New {
		if value.Kind == cdc.Unchanged && i < len(c.Old) && !c.OldIsKey {
			value = c.Old[i]
		}
		row[i] = value
	}
	tuple := cdc.AppendTuple(nil, c.Relation.Raw(row))
	if v.bytes += len(tuple); v.bytes > most {
		v.Incomplete = true
		return
	}
	t.rows[name] = vanishedRow{relation: c.Relation, tuple: tuple}
}

func rowKeyText(row []cdc.Value, key []int) string {
	var text []byte
	for _, i := range key {
		if i < len(row) && row[i].Kind == cdc.Text {
			text = appendKey(text, row[i].Data)
		}
	}
	return string(text)
}

// Find asks the source which rows are gone, and gives them table by table.
func (v *Vanished) Find(ctx context.Context, reader *Reader, found func(rel *cdc.Relation, rows [][]byte) error) error {
	const batch = 1000
	for _, t := range v.tables {
		var keys [][]string
		var rows [][]byte
		ask := func() error {
			gone, err := t.gone(ctx, reader, keys, rows)
			keys, rows = keys[:0], rows[:0]
			if err != nil || len(gone) == 0 {
				return err
			}
			return found(t.relation, gone)
		}
		for name, row := range t.rows {
			var key []string
			for _, value := range splitKey([]byte(name)) {
				key = append(key, string(value))
			}
			if len(key) != len(KeyColumns(t.relation)) {
				continue
			}
			tuple, err := row.as(t.relation)
			if err != nil {
				return err
			}
			keys, rows = append(keys, key), append(rows, tuple)
			if len(keys) == batch {
				if err := ask(); err != nil {
					return err
				}
			}
		}
		if err := ask(); err != nil {
			return err
		}
	}
	return nil
}

func (t *vanishedTable) gone(ctx context.Context, reader *Reader, keys [][]string, rows [][]byte) ([][]byte, error) {
	present, err := reader.Rows(ctx, t.relation, KeyColumns(t.relation), keys, nil)
	if err != nil {
		return nil, err
	}
	var gone [][]byte
	for i := range present {
		if present[i] == nil {
			gone = append(gone, rows[i])
		}
	}
	return gone, nil
}
