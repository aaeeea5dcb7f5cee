package buffer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/cdcsync/cdcsync/internal/cdc"
)

// cursor is how far a sink has settled.
type cursor struct {
	Seq    uint64    `json:"seq"`    // of the last settled block
	Resume cdc.LSN   `json:"resume"` // its end: what the slot may be moved to as far as this sink goes
	At     time.Time `json:"at"`
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

// loadCursors reads the cursors and gives each configured sink that has none one at the end of what is stored.
func (b *Buffer) loadCursors(ctx context.Context) error {
	if err := b.readCursors(ctx); err != nil {
		return err
	}
	b.mu.Lock()
	fresh := false
	for _, sink := range b.cfg.Sinks {
		if _, ok := b.cursors.now[sink]; !ok {
			b.cursors.now[sink] = cursor{Seq: b.stored.end, Resume: b.stored.endResume, At: time.Now().UTC()}
			fresh = true
		}
	}
	if fresh {
		b.cursors.version++
	}
	b.mu.Unlock()
	if !fresh {
		return nil
	}
	return b.saveCursors(ctx)
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
		return nil
	}
}

// writeCursors writes the cursors whenever one has moved, until ctx ends.
func (b *Buffer) writeCursors(ctx context.Context) {
	waits := newAttempts()
	for {
		select {
		case <-b.cursors.dirty:
		case <-ctx.Done():
			return
		}
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
	b.cursors.now[sink] = cursor{Seq: seq, Resume: max(resume, at.Resume), At: time.Now().UTC()}
	b.cursors.version++
	wake(b.cursors.dirty)
}

// Delivered is the LSN up to which every configured sink has settled; without sinks, up to which blocks are stored. It is 0 before the first block.
func (b *Buffer) Delivered() cdc.LSN {
	b.mu.Lock()
	defer b.mu.Unlock()
	least := b.stored.endResume
	for _, sink := range b.cfg.Sinks {
		least = min(least, b.cursors.now[sink].Resume)
	}
	return least
}
