package replication

import (
	"context"
	"slices"

	"github.com/sourcegraph/conc"

	"github.com/cdcsync/cdcsync/internal/pulse"
)

// reading is a chunk that is being read.
type reading struct {
	chunk   *chunk
	size    int
	from    place // what it follows, as far as was known when reading began
	running conc.WaitGroup
	err     error // once running has ended
}

// begin starts to read what follows a place.
func (c *carrier) begin(ctx context.Context, from place) {
	rows, units := c.nextSize()
	r := &reading{chunk: c.spare, size: rows, from: from}
	c.ahead, c.spare = r, nil
	r.running.Go(func() {
		r.err = c.s.loops.chunks.Run(ctx, func(ctx context.Context) error { return c.reader.read(ctx, &r.from, units, r.chunk) })
		c.s.logger.DebugContext(ctx, "chunk read", "id", c.e.ID, "after_rows", r.from.Rows, "rows", len(r.chunk.rows), "took", r.chunk.took, "err", r.err)
	})
}

// read gives the carrier the chunk that follows the entry's place.
func (c *carrier) read(ctx context.Context) error {
	if c.ahead != nil && !c.ahead.from.leads(&c.e.place) {
		c.forget()
	}
	if c.ahead == nil {
		c.begin(ctx, c.e.place)
	}
	r := c.ahead
	c.readerFree()
	pulse.Beat(ctx)
	c.ahead = nil
	if r.err != nil {
		c.spare = r.chunk
		return r.err
	}
	c.chunk, c.spare, c.size = r.chunk, c.chunk, r.size
	c.s.ping()
	return nil
}

// readAhead starts to read what follows the chunk while that waits to be appended. The rows that will have to be read again are
// not known yet: they are of the chunk after. With a rate, what was read would wait for too long; a large row is enough at a time.
func (c *carrier) readAhead(ctx context.Context) {
	from := place{
		Rows: c.e.place.Rows + int64(len(c.chunk.rows)), After: slices.Clone(c.chunk.next), End: c.chunk.end, Again: c.e.place.Again[c.chunk.asked:],
	}
	if c.limiter == nil && !from.done() && len(c.chunk.frames) <= 2*chunkBytes {
		c.begin(ctx, from)
	}
}

// readerFree waits until nothing is read.
func (c *carrier) readerFree() {
	if c.ahead != nil {
		c.s.loops.carrier.Rest() // the reader has a pulse of its own
		c.ahead.running.Wait()
	}
}

// forget drops what was read ahead.
func (c *carrier) forget() {
	c.readerFree()
	if c.ahead != nil {
		c.ahead, c.spare = nil, c.ahead.chunk
	}
}

// nextSize is how many rows the next chunk has, and how much of the table that is.
func (c *carrier) nextSize() (rows, units int) {
	rows = c.sizer.next()
	if c.b.fixed > 0 {
		rows = c.b.fixed
	}
	if c.limiter != nil {
		rows = min(rows, c.limiter.Burst())
	}
	if len(c.reader.key) == 0 {
		const rowsPerBlock = 64
		return rows, max(1, rows/rowsPerBlock)
	}
	return rows, rows
}
