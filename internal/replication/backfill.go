package replication

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/cdcsync/cdcsync/internal/cdc"
)

// BackfillConfig says where existing rows are read.
type BackfillConfig struct {
	URL         string // of the primary, as Config.URL
	Publication string
	// Manage is as in Config: stored generated columns are read although the publication does not send them yet.
	Manage bool
	MaxRow int64 // as Config.MaxRow
	// Needs names the columns of a table that the mappings to some sinks read, so that the role has to read no others; nil for all.
	Needs func(table Table, sinks []string, rel *cdc.Relation) []string
	// Delivered gives visit every change of a table that is still known: rows that sinks may have. It reports false, and gives
	// none, when no deletion of the table can be missing. nil when deletions are never missing.
	Delivered func(ctx context.Context, table string, visit func(*cdc.Change)) (bool, error)
}

// needed gives a chunk reader the columns that a spec's mappings read.
func (c *BackfillConfig) needed(spec *BackfillSpec) func(*cdc.Relation) []string {
	if c.Needs == nil {
		return nil
	}
	return func(rel *cdc.Relation) []string { return c.Needs(spec.Table, spec.Sinks, rel) }
}

// Store keeps small values durably, by name. It is called concurrently.
type Store interface {
	// Value returns nil when there is none of that name.
	Value(ctx context.Context, name string) ([]byte, error)
	SetValue(ctx context.Context, name string, value []byte) error
	DeleteValue(ctx context.Context, name string) error
	// Values returns those whose names begin with prefix.
	Values(ctx context.Context, prefix string) (map[string][]byte, error)
}

// Deliveries tells how far sinks are with what is stored, so that a backfill goes at their pace.
type Deliveries interface {
	// Stored is the place of the newest stored block. It does not block.
	Stored() uint64
	// Settled waits until the sinks have settled every block up to a place, and tells the one that was the last; empty when all
	// had. A sink that is not configured any more counts as settled.
	Settled(ctx context.Context, sinks []string, place uint64) (last string, err error)
	// Round is how many items a sink sends at a time, in all its lanes together; 0 for a sink that is not configured.
	Round(sink string) int
}

// BackfillState is what a backfill does.
type BackfillState string

// The states. The last three are ends.
const (
	BackfillWaiting   BackfillState = "waiting" // for another one: one runs at a time
	BackfillRunning   BackfillState = "running"
	BackfillPaused    BackfillState = "paused"
	BackfillDone      BackfillState = "done"
	BackfillCancelled BackfillState = "cancelled"
	BackfillFailed    BackfillState = "failed"
)

func (s BackfillState) ended() bool {
	return s == BackfillDone || s == BackfillCancelled || s == BackfillFailed
}

// BackfillSpec says what to send.
type BackfillSpec struct {
	Table Table    `json:"table"`
	Sinks []string `json:"sinks"`           // to which the rows go, by name; at least one
	Where string   `json:"where,omitempty"` // SQL condition over the table's columns; empty for all rows
	Rate  float64  `json:"rate,omitempty"`  // rows a second at most; 0 is unbounded
	// Mappings that ask for the rows that exist already, when it is for them.
	Mappings []string `json:"mappings,omitempty"`
}

// Backfill is one, as far as it has come.
type Backfill struct {
	ID    string        `json:"id"`
	State BackfillState `json:"state"`
	BackfillSpec
	Reason        string    `json:"reason,omitempty"` // why it failed, or what it waits for
	Rows          int64     `json:"rows"`             // appended to the log
	Estimate      int64     `json:"estimate"`         // of all rows; better the further it has come
	Total         int64     `json:"total,omitempty"`  // about how much is read to find them, in rows or, of a table without a key, blocks
	Created       time.Time `json:"created"`
	Started       time.Time `json:"started,omitzero"`
	Finished      time.Time `json:"finished,omitzero"`
	RowsPerSecond float64   `json:"-"` // since it was last started or resumed
}

// ErrNoBackfill says that there is no backfill with that ID.
var ErrNoBackfill = errors.New("no such backfill")

// BackfillStateError says that a backfill's state does not allow what was asked for.
type BackfillStateError struct{ State BackfillState }

func (e *BackfillStateError) Error() string { return "the backfill is " + string(e.State) }

// Backfills sends existing rows through the stream. It is safe for concurrent use. Give it to a Stream by Config.Backfills.
type Backfills struct {
	cfg        BackfillConfig
	store      Store
	deliveries Deliveries
	logger     *slog.Logger
	fixed      int // rows of each chunk, in tests; 0 for what takes chunkTime

	mu      sync.Mutex
	entries []*backfillEntry // in the order of their start
	changed chan struct{}    // size 1: there may be one to run

	saving sync.Mutex // one write of entries at a time, so that the last one wins
}

// backfillEntry is guarded by Backfills.mu, but for place.
type backfillEntry struct {
	Backfill
	folded   place // up to here the entry itself says how far it is; the chunk's record says what came after
	unfolded bool  // a session that has ended left a chunk whose end the stream has to pass

	place    place // owned by the session that carries it
	stop     context.CancelFunc
	since    time.Time
	rowsThen int64
}

type storedBackfill struct {
	Backfill
	Place place `json:"place"`
}

// chunkRecord is stored before the first row of a chunk is, so that after a crash it is known what the rows include.
type chunkRecord struct {
	Chunk    int      `json:"chunk"`
	Snapshot string   `json:"snapshot"`
	LSN      cdc.LSN  `json:"lsn"`
	Key      []string `json:"key"`     // names of the columns
	Before   place    `json:"before"`  // where the chunk went on from
	Next     place    `json:"next"`    // where the next goes on from
	Again    int      `json:"again"`   // so many of the rows, the first, are not of the page
	Count    int      `json:"count"`   // rows
	Columns  int      `json:"columns"` // values in each of Keys
	Keys     []byte   `json:"keys"`    // of the rows, in their order, one behind the other
}

// chunkMark is the State of blocks: which chunk was appended last, and how many of its rows.
type chunkMark struct {
	Backfill string `json:"b"`
	Chunk    int    `json:"c"`
	Rows     int    `json:"r"`
}

const (
	backfillPrefix = "backfill/"
	chunkPrefix    = "backfill-chunk/"
	initialPrefix  = "backfill-initial/"
	// endedKept bounds the list.
	endedKept = 20
)

// NewBackfills loads what the store has of backfills. They go on when a Stream has them.
func NewBackfills(ctx context.Context, cfg BackfillConfig, store Store, deliveries Deliveries, logger *slog.Logger) (*Backfills, error) {
	if cfg.MaxRow == 0 {
		cfg.MaxRow = DefaultMaxRow
	}
	b := &Backfills{cfg: cfg, store: store, deliveries: deliveries, logger: logger, changed: make(chan struct{}, 1)}
	values, err := store.Values(ctx, backfillPrefix)
	if err != nil {
		return nil, fmt.Errorf("load backfills: %w", err)
	}
	for name, value := range values {
		var stored storedBackfill
		if err := json.Unmarshal(value, &stored); err != nil {
			return nil, fmt.Errorf("load backfill %s: %w", strings.TrimPrefix(name, backfillPrefix), err)
		}
		b.entries = append(b.entries, &backfillEntry{Backfill: stored.Backfill, folded: stored.Place, place: stored.Place})
	}
	slices.SortFunc(b.entries, func(x, y *backfillEntry) int { return cmp.Compare(number(x.ID), number(y.ID)) })
	return b, nil
}

func number(id string) int {
	n, err := strconv.Atoi(id)
	if err != nil {
		return 0
	}
	return n
}

// List returns all that have not ended and the last of those that have, oldest first.
func (b *Backfills) List() []Backfill {
	b.mu.Lock()
	defer b.mu.Unlock()
	list := make([]Backfill, 0, len(b.entries))
	for _, e := range b.entries {
		f := e.Backfill
		if took := time.Since(e.since).Seconds(); f.State == BackfillRunning && took > 0 {
			f.RowsPerSecond = float64(f.Rows-e.rowsThen) / took
		}
		list = append(list, f)
	}
	return list
}

// Start puts a backfill behind those that there are. An *Error says that the table or the condition cannot be.
func (b *Backfills) Start(ctx context.Context, spec BackfillSpec) (Backfill, error) {
	reader := b.reader(&spec)
	defer reader.close(ctx)
	size, err := reader.check(ctx)
	if err != nil {
		return Backfill{}, err
	}
	e := &backfillEntry{Backfill: Backfill{State: BackfillWaiting, BackfillSpec: spec, Estimate: size.rows, Total: size.total, Created: time.Now().UTC()}}
	if err := b.add(ctx, e); err != nil {
		return Backfill{}, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return e.Backfill, nil
}

// add gives an entry its ID and puts it behind the others.
func (b *Backfills) add(ctx context.Context, e *backfillEntry) error {
	b.mu.Lock()
	id := 1
	if n := len(b.entries); n > 0 {
		id = number(b.entries[n-1].ID) + 1
	}
	e.ID = strconv.Itoa(id)
	b.entries = append(b.entries, e)
	b.mu.Unlock()
	if err := b.save(ctx, e); err != nil {
		b.drop(e)
		return err
	}
	signal(b.changed)
	return b.forget(ctx)
}

// Initial starts a backfill for each table whose mappings ask for the rows that exist already and are seen for the first time.
// mappings are specs of one mapping each. A table that cannot be backfilled holds up no other: it has a failed backfill that says why, its mappings
// count as unseen, and its error is among those returned, so that Initial is called again.
func (b *Backfills) Initial(ctx context.Context, mappings []BackfillSpec) error {
	seen, err := b.store.Values(ctx, initialPrefix)
	if err != nil {
		return fmt.Errorf("mappings that were seen: %w", err)
	}
	var refused []error
	for _, s := range unseen(mappings, seen) {
		err := b.initial(ctx, s)
		if IsPermanent(err) {
			refused = append(refused, fmt.Errorf("backfill of %s: %w", s.Table, err))
			continue
		}
		if err != nil {
			return fmt.Errorf("backfill of %s: %w", s.Table, err)
		}
		for _, m := range mappings { // behind the backfill: a crash in between finds it again
			if m.Table.String() == s.Table.String() && seen[initialName(m)] == nil {
				if err := b.store.SetValue(ctx, initialName(m), []byte("seen")); err != nil {
					return err
				}
			}
		}
	}
	return errors.Join(refused...)
}

// unseen gathers the mappings that were not seen before by table.
func unseen(mappings []BackfillSpec, seen map[string][]byte) (specs []BackfillSpec) {
	for _, m := range mappings {
		if seen[initialName(m)] != nil {
			continue
		}
		i := slices.IndexFunc(specs, func(s BackfillSpec) bool { return s.Table.String() == m.Table.String() })
		if i < 0 {
			specs = append(specs, BackfillSpec{Table: m.Table})
			i = len(specs) - 1
		}
		s := &specs[i]
		s.Mappings = append(s.Mappings, m.Mappings...)
		if !slices.Contains(s.Sinks, m.Sinks[0]) {
			s.Sinks = append(s.Sinks, m.Sinks[0])
		}
	}
	return specs
}

// initial starts the backfill of new mappings, unless there is one, or the operator has cancelled it. A permanent error is kept as that of a failed one.
func (b *Backfills) initial(ctx context.Context, spec BackfillSpec) error {
	e := b.initialEntry(spec)
	switch {
	case e == nil:
		started, err := b.Start(ctx, spec)
		if IsPermanent(err) {
			return errors.Join(err, b.add(ctx, &backfillEntry{Backfill: Backfill{
				State: BackfillFailed, Reason: err.Error(), BackfillSpec: spec, Created: time.Now().UTC(),
			}}))
		}
		if err == nil {
			b.logger.InfoContext(ctx, "backfill started for new mappings", "id", started.ID, "table", spec.Table.String(), "mappings", spec.Mappings)
		}
		return err
	case e.State != BackfillFailed:
		return nil
	}
	reader := b.reader(&spec)
	defer reader.close(ctx)
	size, err := reader.check(ctx)
	if IsPermanent(err) {
		return errors.Join(err, b.failing(ctx, e.ID, err.Error()))
	}
	if err != nil {
		return err
	}
	return b.retry(ctx, e.ID, size)
}

// initialEntry is the newest backfill of the same mappings, but for one that was cancelled since its mappings were gone.
func (b *Backfills) initialEntry(spec BackfillSpec) *Backfill {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, e := range slices.Backward(b.entries) {
		withdrawn := e.State == BackfillCancelled && e.Reason != ""
		if e.Table.String() == spec.Table.String() && slices.Equal(e.Mappings, spec.Mappings) && slices.Equal(e.Sinks, spec.Sinks) && !withdrawn {
			found := e.Backfill
			return &found
		}
	}
	return nil
}

// failing keeps the newest reason why a backfill has not begun.
func (b *Backfills) failing(ctx context.Context, id, reason string) error {
	e := b.entry(id)
	if e == nil {
		return nil
	}
	b.mu.Lock()
	same := e.Reason == reason || e.State != BackfillFailed
	if !same {
		e.Reason = reason
	}
	b.mu.Unlock()
	if same {
		return nil
	}
	return b.save(ctx, e)
}

// retry lets a backfill go on that could not begin, now that its table can be read.
func (b *Backfills) retry(ctx context.Context, id string, size tableSize) error {
	e := b.entry(id)
	if e == nil {
		return nil
	}
	b.mu.Lock()
	e.Estimate, e.Total = size.rows, size.total
	b.mu.Unlock()
	err := b.Resume(ctx, id)
	if _, changed := errors.AsType[*BackfillStateError](err); changed { // the operator was quicker
		return nil
	}
	if err == nil {
		b.logger.InfoContext(ctx, "backfill started for new mappings, now that the table can be read", "id", id, "table", e.Table.String(), "mappings", e.Mappings)
	}
	return err
}

func (b *Backfills) entry(id string) *backfillEntry {
	b.mu.Lock()
	defer b.mu.Unlock()
	i := slices.IndexFunc(b.entries, func(e *backfillEntry) bool { return e.ID == id })
	if i < 0 {
		return nil
	}
	return b.entries[i]
}

// Reconcile cancels what has not ended and has no mapping any more: its rows would be read for nobody and counted as sent. The mappings of an
// initial backfill count as unseen then. mapped are specs of one mapping each, of all that are configured. Call it before a Stream runs.
func (b *Backfills) Reconcile(ctx context.Context, mapped []BackfillSpec) error {
	b.mu.Lock()
	entries := slices.Clone(b.entries)
	b.mu.Unlock()
	for _, e := range entries {
		if e.State != BackfillFailed && e.State.ended() {
			continue
		}
		if err := b.reconcile(ctx, e, mapped); err != nil {
			return err
		}
	}
	return nil
}

func (b *Backfills) reconcile(ctx context.Context, e *backfillEntry, mapped []BackfillSpec) error {
	var mappings, sinks []string
	for _, m := range mapped {
		initial := slices.Contains(e.Mappings, m.Mappings[0])
		if m.Table.String() != e.Table.String() || !slices.Contains(e.Sinks, m.Sinks[0]) || len(e.Mappings) > 0 && !initial {
			continue
		}
		if initial {
			mappings = append(mappings, m.Mappings[0])
		}
		if !slices.Contains(sinks, m.Sinks[0]) {
			sinks = append(sinks, m.Sinks[0])
		}
	}
	if len(sinks) == len(e.Sinks) && len(mappings) == len(e.Mappings) {
		return nil
	}
	for _, name := range e.Mappings { // before the entry changes: a crash in between comes here again
		if slices.Contains(mappings, name) {
			continue
		}
		for _, sink := range e.Sinks {
			if err := b.store.DeleteValue(ctx, initialName(BackfillSpec{Table: e.Table, Sinks: []string{sink}, Mappings: []string{name}})); err != nil {
				return err
			}
		}
	}
	b.mu.Lock()
	if len(sinks) > 0 {
		e.Mappings, e.Sinks = mappings, sinks
	} else {
		e.State, e.Reason, e.Finished = BackfillCancelled, "no mapping that it is for is in the configuration any more", time.Now().UTC()
	}
	b.mu.Unlock()
	b.logger.WarnContext(ctx, "backfill has lost mappings", "id", e.ID, "table", e.Table.String(), "left", mappings, "sinks", sinks, "state", e.State)
	return b.save(ctx, e)
}

func initialName(m BackfillSpec) string {
	return initialPrefix + strings.Join([]string{m.Mappings[0], m.Table.String(), m.Sinks[0]}, "\x1f")
}

// Pause stops one at the end of its chunk, until Resume.
func (b *Backfills) Pause(ctx context.Context, id string) error {
	return b.change(ctx, id, BackfillPaused, BackfillWaiting, BackfillRunning)
}

// Resume lets one that is paused, or has failed, go on where it stopped.
func (b *Backfills) Resume(ctx context.Context, id string) error {
	return b.change(ctx, id, BackfillWaiting, BackfillPaused, BackfillFailed)
}

// Cancel ends one for good. What it has sent stays sent.
func (b *Backfills) Cancel(ctx context.Context, id string) error {
	return b.change(ctx, id, BackfillCancelled, BackfillWaiting, BackfillRunning, BackfillPaused, BackfillFailed)
}

func (b *Backfills) change(ctx context.Context, id string, to BackfillState, from ...BackfillState) error {
	b.mu.Lock()
	i := slices.IndexFunc(b.entries, func(e *backfillEntry) bool { return e.ID == id })
	if i < 0 {
		b.mu.Unlock()
		return ErrNoBackfill
	}
	e := b.entries[i]
	if !slices.Contains(from, e.State) {
		state := e.State
		b.mu.Unlock()
		return &BackfillStateError{State: state}
	}
	e.State, e.Reason = to, ""
	if to == BackfillCancelled {
		e.Finished = time.Now().UTC()
	}
	if e.stop != nil {
		e.stop()
	}
	b.mu.Unlock()
	if err := b.save(ctx, e); err != nil {
		return err
	}
	signal(b.changed)
	return nil
}

func (b *Backfills) reader(spec *BackfillSpec) *chunkReader {
	return &chunkReader{url: b.cfg.URL, publication: b.cfg.Publication, table: spec.Table, where: spec.Where, maxRow: int(b.cfg.MaxRow), needs: b.cfg.needed(spec)}
}

// save stores an entry as it is.
func (b *Backfills) save(ctx context.Context, e *backfillEntry) error {
	b.saving.Lock()
	defer b.saving.Unlock()
	b.mu.Lock()
	stored := storedBackfill{Backfill: e.Backfill, Place: e.folded}
	b.mu.Unlock()
	value, err := json.Marshal(stored)
	if err != nil {
		return fmt.Errorf("store backfill %s: %w", stored.ID, err)
	}
	return b.store.SetValue(ctx, backfillPrefix+stored.ID, value)
}

func (b *Backfills) drop(e *backfillEntry) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.entries = slices.DeleteFunc(b.entries, func(x *backfillEntry) bool { return x == e })
}

// forget removes the oldest that have ended.
func (b *Backfills) forget(ctx context.Context) error {
	b.mu.Lock()
	var ended []*backfillEntry
	for _, e := range b.entries {
		if e.State.ended() && e.stop == nil {
			ended = append(ended, e)
		}
	}
	b.mu.Unlock()
	for _, e := range ended[:max(0, len(ended)-endedKept)] {
		if err := b.store.DeleteValue(ctx, backfillPrefix+e.ID); err != nil {
			return err
		}
		b.drop(e)
	}
	return nil
}

// recall says where every backfill stands according to the log, whose last block has this state, and gives what the stream
// has to go on tracking from its first change on.
func (b *Backfills) recall(ctx context.Context, state []byte) (tracking, error) {
	var mark chunkMark
	if len(state) > 0 {
		if err := json.Unmarshal(state, &mark); err != nil {
			return tracking{}, fmt.Errorf("state of the last block: %w", err)
		}
	}
	b.mu.Lock()
	entries := slices.Clone(b.entries)
	b.mu.Unlock()
	var t tracking
	for _, e := range entries {
		record, err := b.record(ctx, e.ID)
		if err != nil {
			return t, err
		}
		e.place = e.folded
		e.unfolded = false
		switch {
		case record == nil || record.Chunk <= e.folded.Chunk:
		case mark.Backfill != e.ID || mark.Chunk != record.Chunk: // none of its rows was stored
			e.place = record.Before
		default:
			stored, err := record.stored(mark.Rows)
			if err != nil {
				return t, err
			}
			e.place = record.resume(stored)
			if err := record.track(&t, e, stored); err != nil {
				return t, err
			}
			e.unfolded = true
		}
		b.counted(e)
	}
	return t, nil
}

func (b *Backfills) record(ctx context.Context, id string) (*chunkRecord, error) {
	value, err := b.store.Value(ctx, chunkPrefix+id)
	if err != nil || value == nil {
		return nil, err
	}
	var record chunkRecord
	if err := json.Unmarshal(value, &record); err != nil {
		return nil, fmt.Errorf("chunk of backfill %s: %w", id, err)
	}
	return &record, nil
}

// stored returns the keys of the first rows.
func (r *chunkRecord) stored(rows int) ([]string, error) {
	keys, rest := make([]string, 0, rows), string(r.Keys)
	for range rows {
		n := keyLength(rest, r.Columns)
		if n <= 0 {
			return nil, fmt.Errorf("chunk %d: %d rows are stored, of which the record has %d", r.Chunk, rows, len(keys))
		}
		keys, rest = append(keys, rest[:n]), rest[n:]
	}
	return keys, nil
}

// resume says where to go on when the rows with these keys are stored.
func (r *chunkRecord) resume(stored []string) place {
	if len(stored) == r.Count {
		return r.Next
	}
	p := place{Chunk: r.Chunk, Rows: r.Before.Rows + int64(len(stored)), Scanned: r.Before.Scanned, After: r.Before.After, End: r.Before.End}
	if len(r.Key) == 0 { // by place: the page cannot be cut
		return p
	}
	known := make(map[string]bool, len(stored))
	for i, key := range stored {
		known[key] = true
		if i >= r.Again {
			p.After = []byte(key)
		}
	}
	for _, key := range slices.Concat(r.Before.Again, r.Next.Again) {
		if !known[string(key)] {
			known[string(key)] = true
			p.Again = append(p.Again, key)
		}
	}
	return p
}

// track makes t drop what the stored rows include.
func (r *chunkRecord) track(t *tracking, e *backfillEntry, stored []string) error {
	snap, err := parseSnapshot(r.Snapshot)
	if err != nil {
		return err
	}
	t.begin(e.ID, e.Table.String(), r.Key, e.Sinks)
	t.merge.chunk = &admittedChunk{snapshot: snap, lsn: r.LSN, keys: stored}
	return nil
}

// counted makes the progress visible.
func (b *Backfills) counted(e *backfillEntry) {
	b.mu.Lock()
	defer b.mu.Unlock()
	e.Rows = e.place.Rows
	switch {
	case e.place.done():
		e.Estimate = e.Rows
	case e.Where != "" && e.place.Scanned > 0: // the planner knows little of most conditions
		e.Estimate = int64(float64(e.Rows) * float64(e.Total) / float64(e.place.Scanned))
	}
	e.Estimate = max(e.Estimate, e.Rows)
}

// next waits for a backfill to carry, and returns it with a context that ends when it is paused or cancelled, or with ctx.
func (b *Backfills) next(ctx context.Context) (*backfillEntry, context.Context, error) {
	for {
		if e, run := b.pick(ctx); e != nil {
			return e, run, b.save(ctx, e)
		}
		select {
		case <-ctx.Done():
			return nil, nil, ctx.Err()
		case <-b.changed:
		}
	}
}

func (b *Backfills) pick(ctx context.Context) (*backfillEntry, context.Context) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, wanted := range []func(*backfillEntry) bool{
		func(e *backfillEntry) bool { return e.unfolded },
		func(e *backfillEntry) bool { return e.State == BackfillRunning },
		func(e *backfillEntry) bool { return e.State == BackfillWaiting },
	} {
		i := slices.IndexFunc(b.entries, wanted)
		if i < 0 {
			continue
		}
		e := b.entries[i]
		e.unfolded = false
		run, stop := context.WithCancel(ctx)
		e.stop = stop
		switch e.State {
		case BackfillWaiting, BackfillRunning:
			e.State, e.since, e.rowsThen = BackfillRunning, time.Now(), e.Rows
			if e.Started.IsZero() {
				e.Started = e.since.UTC()
			}
		case BackfillPaused, BackfillDone, BackfillCancelled, BackfillFailed:
			stop()
		}
		return e, run
	}
	return nil, nil
}

// because tells what a running backfill waits for; empty for nothing.
func (b *Backfills) because(e *backfillEntry, reason string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if e.State == BackfillRunning {
		e.Reason = reason
	}
}

// left says that no session carries the entry any more.
func (b *Backfills) left(e *backfillEntry) {
	b.mu.Lock()
	defer b.mu.Unlock()
	e.stop()
	e.stop = nil
}

// end gives a backfill that still runs its end.
func (b *Backfills) end(e *backfillEntry, state BackfillState, reason string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if e.State == BackfillRunning {
		e.State, e.Reason, e.Finished = state, reason, time.Now().UTC()
	}
}
