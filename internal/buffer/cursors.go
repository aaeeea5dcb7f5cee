package buffer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/cdcsync/cdcsync/internal/cdc"
	"github.com/cdcsync/cdcsync/internal/pulse"
)

// cursor is how far a sink has settled.
type cursor struct {
	Seq    uint64    `json:"seq"`    // of the last settled block
	Resume cdc.LSN   `json:"resume"` // its end: what the slot may be moved to as far as this sink goes
	At     time.Time `json:"at"`
	// Away is since when the sink is known not to be configured: only then may blocks be trimmed that it has not settled.
	Away time.Time `json:"away,omitzero"`
}

// cursors are all sinks' cursors, those of sinks that are not configured at present too. They are one value of the bucket,
// so that moving all of them costs one write. Guarded by Buffer.mu, but for revision.
type cursors struct {
	now      map[string]cursor
	written  map[string]cursor // what the bucket has: trimming must not overtake it, or a crash would look like a loss
	version  uint64            // counts the changes of now
	saved    uint64            // the version that is written
	revision uint64            // of the bucket's value; owned by whoever holds saving
	saving   chan struct{}     // a lock that can be waited for with a context
	dirty    chan struct{}     // size 1: there is something to write
	hurry    chan struct{}     // size 1: without waiting for the interval
	progress chan struct{}     // closed and replaced when saved has moved
}

const cursorsKey = "cursors"

// cursorInterval is the least time between two writes of the cursors: what a kill -9 may have delivered twice, against a write to disk each.
const cursorInterval = 20 * time.Millisecond

func (c *cursors) init() {
	c.now, c.written = make(map[string]cursor), make(map[string]cursor)
	c.saving = make(chan struct{}, 1)
	c.dirty, c.hurry, c.progress = make(chan struct{}, 1), make(chan struct{}, 1), make(chan struct{})
}

// loadCursors reads the cursors and gives each configured sink that was never seen one at the end of what is stored. That the
// cursors were lost is told apart: where there are blocks there are cursors, and an embedded store has a copy in its census.
func (b *Buffer) loadCursors(ctx context.Context) error {
	if err := b.readCursors(ctx); err != nil {
		return err
	}
	found := b.cursors.revision > 0
	ever := b.stored.last > 0 || b.census.was.End > 0
	if err := b.refuseLost(found, ever); err != nil {
		return err
	}
	if !found && ever {
		b.census.lost = append(b.census.lost, cursorsKey)
	}
	b.mu.Lock()
	changed := !found
	for sink, copied := range b.census.was.Cursors {
		if at, ok := b.cursors.now[sink]; !ok || copied.Seq > at.Seq { // the record is older than it should be, or gone
			b.cursors.now[sink], changed = copied, true
		}
	}
	for _, sink := range b.cfg.Sinks {
		if _, ok := b.cursors.now[sink]; ok {
			continue
		}
		changed = true
		b.cursors.now[sink] = cursor{Seq: b.stored.end, Resume: b.stored.endResume, At: time.Now().UTC()}
		if !found && ever { // it may have been there: what is delivered twice is better than what is never
			b.cursors.now[sink] = cursor{Seq: max(b.stored.first, 1) - 1, At: time.Now().UTC()}
		}
	}
	for sink, at := range b.cursors.now {
		if at.Away.IsZero() && !slices.Contains(b.cfg.Sinks, sink) {
			at.Away, changed = time.Now().UTC(), true
			b.cursors.now[sink] = at
		}
	}
	if changed {
		b.cursors.version++
	}
	b.mu.Unlock()
	back, err := b.lostTail(ctx)
	if err != nil || !changed && !back {
		return err
	}
	return b.saveCursors(ctx)
}

// refuseLost refuses a store that has blocks and lacks what says who has got them.
func (b *Buffer) refuseLost(found, ever bool) error {
	var lost string
	switch {
	case b.cfg.Repair || !ever:
		return nil
	case !found:
		lost = "the cursors, which say what each sink has got"
	case slices.Contains(b.census.lost, sourceKey):
		lost = "the record of the source that they came from"
	default:
		return nil
	}
	where := "the cluster"
	if b.folder != nil {
		where = b.cfg.Dir
	}
	return &Error{
		Reason: fmt.Sprintf("the buffer in %s holds blocks (changes up to %s) and has lost %s: stream KV_%s was deleted or damaged",
			where, b.stored.endResume, lost, b.names.values),
		Solution: "put the buffer back as it was before, or go on with cdcsync recover --yes: the sinks then get again what is stored" +
			" after the last cursors that are known, or all of it, and gaps say what else may be missing",
	}
}

// lostTail notices that the stream ends before what is known to have been stored in it. What a sink had not got of it becomes a
// gap; a cursor that lies beyond the stream's end goes back to it, since sequences that are given again would be passed over.
func (b *Buffer) lostTail(ctx context.Context) (back bool, err error) {
	if _, ahead := b.knownEnd(); !ahead {
		return false, nil
	}
	if _, _, err := b.Tail(ctx); err != nil { // another daemon may have appended since it was read
		return false, err
	}
	known, ahead := b.knownEnd()
	if !ahead {
		return false, nil
	}
	b.mu.Lock()
	end, last, reach := b.stored.end, b.stored.last, b.stored.endReach
	behind := make(map[string]cursor)
	for sink, at := range b.cursors.now {
		if at.Seq < known.seq && at.Away.IsZero() {
			behind[sink] = at
		}
		if at.Seq > last {
			at.Seq, back = end, true
			b.cursors.now[sink] = at
		}
	}
	if back {
		b.cursors.version++
	}
	b.mu.Unlock()
	b.logger.Error("the newest stored blocks are lost", "stored", known.seq, "left", end, "lsn", reach, "lost_lsn", known.reach)
	for sink, at := range behind {
		h := hole{after: max(at.Seq, end), through: known.seq, since: max(reach, at.Resume), until: known.reach, what: "the newest blocks are gone from the store"}
		if err := b.recordHole(ctx, sink, h); err != nil {
			return false, err
		}
	}
	return back, nil
}

// knownEnd is the furthest block that is known to have been stored; ahead is true when the stream ends before it.
func (b *Buffer) knownEnd() (known link, ahead bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	known = link{b.census.was.End, b.census.was.Reach}
	for _, at := range b.cursors.now {
		known.seq, known.reach = max(known.seq, at.Seq), max(known.reach, at.Resume)
	}
	return known, known.seq > b.stored.end
}

// back notes that a sink is configured again.
func (b *Buffer) back(sink string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	at := b.cursors.now[sink]
	at.Away = time.Time{}
	b.cursors.now[sink] = at
	b.cursors.version++
	wake(b.cursors.dirty)
}

// readCursors merges what the bucket has into what is known. Cursors only move forward.
func (b *Buffer) readCursors(ctx context.Context) error {
	var entry jetstream.KeyValueEntry
	err := b.retry(ctx, "read cursors", func(ctx context.Context) (err error) {
		entry, err = b.values.Get(ctx, cursorsKey)
		return err
	})
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		b.cursors.revision = 0
		return nil
	}
	if err != nil {
		return fmt.Errorf("read cursors: %w", err)
	}
	var read map[string]cursor
	if err := json.Unmarshal(entry.Value(), &read); err != nil {
		return fmt.Errorf("read cursors: %w", err)
	}
	b.cursors.revision = entry.Revision()
	b.mu.Lock()
	defer b.mu.Unlock()
	for sink, c := range read {
		b.cursors.written[sink] = c
		if now, ok := b.cursors.now[sink]; !ok || c.Seq > now.Seq {
			b.cursors.now[sink] = c
		}
	}
	return nil
}

// saveCursors writes the cursors as they are now. Another daemon's newer ones are kept.
func (b *Buffer) saveCursors(ctx context.Context) error {
	c := &b.cursors
	select {
	case c.saving <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-c.saving }()

	for {
		b.mu.Lock()
		version, snapshot := c.version, maps.Clone(c.now)
		b.mu.Unlock()
		value, err := json.Marshal(snapshot)
		if err != nil {
			return fmt.Errorf("write cursors: %w", err)
		}
		revision := c.revision
		err = b.retry(ctx, "write cursors", func(ctx context.Context) (err error) {
			revision, err = b.values.Update(ctx, cursorsKey, value, c.revision)
			return err
		})
		if err != nil && isWrongSequence(err) { // somebody else's, or ours whose acknowledgement was lost
			if err := b.readCursors(ctx); err != nil {
				return err
			}
			continue
		}
		if err != nil {
			return fmt.Errorf("write cursors: %w", err)
		}
		c.revision = revision
		b.mu.Lock()
		c.saved, c.written = max(c.saved, version), snapshot
		broadcast(&c.progress)
		b.mu.Unlock()
		b.metrics.cursorWritten()
		b.written()
		return nil
	}
}

// writeCursors writes the cursors whenever one has moved, until ctx ends.
func (b *Buffer) writeCursors(ctx context.Context) {
	waits := newAttempts()
	for {
		beat := pulse.Rest(ctx)
		select {
		case <-b.cursors.dirty:
		case <-ctx.Done():
			return
		}
		beat()
		if err := b.saveCursors(ctx); err != nil && ctx.Err() == nil {
			b.logger.Error("cursors are not written: blocks that are delivered now would be delivered again after a restart", "err", err)
			wake(b.cursors.dirty)
			if waits.Wait(ctx) != nil {
				return
			}
			continue
		}
		waits.Reset()
		wake(b.trim)
		select {
		case <-time.After(cursorInterval):
		case <-b.cursors.hurry:
		case <-ctx.Done():
			return
		}
	}
}

// flushCursors waits until the cursors as they are now are written.
func (b *Buffer) flushCursors(ctx context.Context) error {
	b.mu.Lock()
	version := b.cursors.version
	b.mu.Unlock()
	for {
		b.mu.Lock()
		saved, progress := b.cursors.saved >= version, b.cursors.progress
		b.mu.Unlock()
		if saved {
			return nil
		}
		wake(b.cursors.dirty)
		wake(b.cursors.hurry)
		select {
		case <-progress:
		case <-ctx.Done():
			return fmt.Errorf("write cursors: %w", ctx.Err())
		}
	}
}

// settle moves a sink's cursor.
func (b *Buffer) settle(sink string, seq uint64, resume cdc.LSN) {
	b.mu.Lock()
	defer b.mu.Unlock()
	at := b.cursors.now[sink]
	if seq <= at.Seq {
		return
	}
	b.cursors.now[sink] = cursor{Seq: seq, Resume: max(resume, b.rewind.floor(at)), At: time.Now().UTC()}
	b.cursors.version++
	wake(b.cursors.dirty)
}

// Delivered is the LSN up to which every configured sink has settled; without sinks, up to which blocks are stored. It is 0 before the first block.
func (b *Buffer) Delivered() cdc.LSN {
	b.mu.Lock()
	defer b.mu.Unlock()
	least := b.stored.endResume
	for _, sink := range b.cfg.Sinks {
		least = min(least, b.rewind.resume(b.cursors.now[sink]))
	}
	return least
}
