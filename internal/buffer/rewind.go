package buffer

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/cdcsync/cdcsync/internal/cdc"
)

// rewindKey is the bucket's key of the last rewind.
const rewindKey = "rewind"

// rewind is where the source went back to an earlier position: what blocks up to Seq say of positions is worth no more than At.
type rewind struct {
	Seq uint64  `json:"seq"`
	At  cdc.LSN `json:"at"`
}

// Rewind records durably that blocks appended from now on may lie before those that are there, from at on: the source was
// restored to an earlier state. What is stored stays for the sinks.
func (b *Buffer) Rewind(ctx context.Context, at cdc.LSN) error {
	b.mu.Lock()
	r := rewind{Seq: b.stored.end, At: at}
	b.mu.Unlock()
	value, err := json.Marshal(r)
	if err != nil { // numbers always marshal
		return fmt.Errorf("rewind: %w", err)
	}
	if err := b.setValue(ctx, rewindKey, value); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.rewind = r
	return nil
}

func (b *Buffer) loadRewind(ctx context.Context) error {
	value, err := b.value(ctx, rewindKey)
	if err != nil || value == nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := json.Unmarshal(value, &b.rewind); err != nil {
		return fmt.Errorf("read %s: %w", rewindKey, err)
	}
	return nil
}

// resume is what the slot may be moved to as far as a sink goes whose cursor this is.
func (r rewind) resume(c cursor) cdc.LSN {
	if c.Seq <= r.Seq {
		return min(c.Resume, r.At)
	}
	return c.Resume
}

// floor is the position of a cursor that its next one does not go back behind.
func (r rewind) floor(c cursor) cdc.LSN {
	if c.Seq <= r.Seq {
		return 0
	}
	return c.Resume
}
