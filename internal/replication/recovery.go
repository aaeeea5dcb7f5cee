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

// Recovery brings slot and log together again, when changes between them are lost for good. Afterwards a Stream starts; the
// rows that were mapped have to be sent again.
type Recovery struct {
	Reason  string // what has happened; empty when slot and log belong together
	NewSlot bool   // the slot has to be made, else the one that there is goes on

	cfg    Config
	log    Log
	logger *slog.Logger
	server *server
	survey *survey
	system string
	tail   cdc.Footer

	deleted uint32
}

// OpenRecovery finds out what is wrong. No stream may run. An *Error is something that has to be mended first.
func OpenRecovery(ctx context.Context, cfg Config, log Log, logger *slog.Logger) (_ *Recovery, err error) {
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
	if r.survey, err = surveySource(ctx, server.sql, &cfg); err != nil {
		return nil, err
	}
	if err := r.checkRest(); err != nil {
		return nil, err
	}
	if r.system, err = server.wire.identify(ctx); err != nil {
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

func (r *Recovery) diagnose(ctx context.Context) error {
	s := &Stream{cfg: r.cfg, log: r.log}
	p := &plan{}
	known, stored, err := s.readLog(ctx, p)
	if err != nil {
		return err
	}
	r.tail = p.tail
	slot := r.survey.slot
	if known != nil && (known.System != r.system || known.Slot != r.cfg.Slot) {
		return s.compare(r.system, slot, known, p, stored)
	}
	if slot == nil && known == nil && !stored {
		return nil // nothing has begun
	}
	if slot == nil || slot.walStatus == "lost" || slot.invalid != "" {
		r.NewSlot = true
	}
	var wrong *Error
	if slot != nil && r.NewSlot {
		wrong = lostError(r.cfg.Slot, nil)
	} else if err := s.compare(r.system, slot, known, p, stored); err != nil && !errors.As(err, &wrong) {
		return err
	}
	if wrong != nil {
		r.Reason = wrong.Reason
	}
	return nil
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
		if begin, err = s.createSlot(ctx, r.server.sql); err != nil {
			return 0, err
		}
	}
	if begin < r.tail.Resume.End {
		return 0, &Error{
			Reason: fmt.Sprintf("the buffer reaches to %s and the slot begins at %s: the source was restored to an earlier time", r.tail.Resume.End, begin),
			Solution: "let the sinks take what the buffer has, if that is wanted, then move buffer.dir away (or remove its streams)" +
				" and run cdcsync recover again",
		}
	}
	return begin, r.begin(ctx, begin)
}

// begin ends what the log has with a block that says where the stream goes on, so that no transaction is left open in it.
func (r *Recovery) begin(ctx context.Context, at cdc.LSN) error {
	var w cdc.Writer
	w.Continue(cdc.Resume{End: at})
	if err := r.log.Append(ctx, w.Seal(nil, nil)); err != nil {
		return fmt.Errorf("store block: %w", err)
	}
	source := incarnation{System: r.system, Slot: r.cfg.Slot, Created: at, Confirmed: at}
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
		message := append(binary.BigEndian.AppendUint32([]byte{msgDelete}, rel.OID), 'O')
		w.Row(append(message, row...))
	}
	w.Commit(at)
	if err := r.log.Append(ctx, w.Seal(nil, nil)); err != nil {
		return fmt.Errorf("store block: %w", err)
	}
	return nil
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
	rows     map[string][]byte // full tuples by key
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
		t = &vanishedTable{rows: make(map[string][]byte)}
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
	row := make([]cdc.Value, len(c.New))
	for i, value := range c.New {
		if value.Kind == cdc.Unchanged && i < len(c.Old) && !c.OldIsKey {
			value = c.Old[i]
		}
		row[i] = value
	}
	tuple := cdc.AppendTuple(nil, row)
	if v.bytes += len(tuple); v.bytes > most {
		v.Incomplete = true
		return
	}
	t.rows[name] = tuple
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
			keys, rows = append(keys, key), append(rows, row)
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
