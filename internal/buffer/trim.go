package buffer

import (
	"context"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/cdcsync/cdcsync/internal/pulse"
)

// A trim holds up appending for some milliseconds, since files are removed or rewritten: it waits until there is enough to
// trim, or nothing else to do.
const (
	trimBytes = 32 << 20 // four files of the stream
	trimIdle  = time.Second
	trimMost  = 30 * time.Second
	trimShare = 16 // or when so large a part of max_size may go
	// While capture waits for room, the little that may go goes now and then.
	trimWaiting = 200 * time.Millisecond
)

// trimSettled removes blocks that all configured sinks have settled, until ctx ends.
func (b *Buffer) trimSettled(ctx context.Context) {
	tick := time.NewTicker(trimIdle)
	defer tick.Stop()
	last := time.Now()
	for {
		select {
		case <-b.trim:
		case <-tick.C:
			b.saveTables(ctx)
		case <-ctx.Done():
			return
		}
		pulse.Beat(ctx)
		before := b.trimmable(time.Since(last))
		if before == 0 {
			continue
		}
		if err := b.trimBefore(ctx, before); err != nil && ctx.Err() == nil {
			b.logger.Error("settled blocks are not trimmed", "err", err)
		}
		last = time.Now()
	}
}

// trimmable returns the sequence before which everything may go, or 0 when it is not worth it yet. The last block stays: it says where capture goes on.
func (b *Buffer) trimmable(since time.Duration) uint64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	floor := b.stored.endFirst
	for _, sink := range b.cfg.Sinks {
		floor = min(floor, b.cursors.written[sink].Seq+1)
	}
	if floor <= max(b.stored.first, 1) || b.stored.messages == 0 {
		return 0
	}
	messages := floor - max(b.stored.first, 1)
	size := b.stored.bytes / b.stored.messages * messages
	enough := uint64(trimBytes)
	if b.cfg.MaxSize > 0 {
		enough = min(enough, uint64(b.cfg.MaxSize)/trimShare)
	}
	waiting := b.full.reason != "" && since >= trimWaiting
	idle := time.Since(b.stored.lastAppend) >= trimIdle && since >= trimIdle
	if waiting || idle || size >= enough || since >= trimMost {
		return floor
	}
	return 0
}

func (b *Buffer) trimBefore(ctx context.Context, seq uint64) error {
	start := time.Now()
	if err := b.purge(ctx, b.names.blocks, jetstream.WithPurgeSequence(seq)); err != nil {
		return err
	}
	info, err := b.streamInfo(ctx, b.names.blocks)
	if err != nil {
		return err
	}
	b.metrics.trimmed(time.Since(start))
	b.mu.Lock()
	defer b.mu.Unlock()
	b.stored.first, b.stored.messages, b.stored.bytes = info.State.FirstSeq, info.State.Msgs, info.State.Bytes
	broadcast(&b.trimmed)
	return nil
}

// firstStored is the first sequence in the stream.
func (b *Buffer) firstStored() uint64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return max(b.stored.first, 1)
}
