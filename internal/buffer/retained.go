package buffer

import (
	"context"
	"errors"
)

// Retained gives visit every block that is stored now, the oldest first, whichever sinks have settled it.
func (b *Buffer) Retained(ctx context.Context, visit func(Block) error) error {
	info, err := b.streamInfo(ctx, b.names.blocks)
	if err != nil || info.State.Msgs == 0 {
		return err
	}
	b.mu.Lock()
	end := b.stored.end
	b.mu.Unlock()
	before := info.State.FirstSeq - 1
	reader := &Sink{b: b, name: "retained", onlooker: true, read: before, fetched: before, whole: link{seq: before}}
	defer reader.Close()
	for reader.read < end {
		block, err := reader.Next(ctx)
		if errors.Is(err, errTrimmed) {
			return nil
		}
		if err != nil {
			return err
		}
		if block.Seq > end {
			return nil
		}
		if err := visit(block); err != nil {
			return err
		}
	}
	return nil
}
