package buffer

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/cdcsync/cdcsync/internal/backoff"
	"github.com/cdcsync/cdcsync/internal/cdc"
)

// Block is a stored block.
type Block struct {
	Seq    uint64    // its place: larger than that of all blocks before. There may be gaps.
	Data   []byte    // shared with other readers: not to be written to
	Stored time.Time // when it was stored, by the clock of NATS
}

// Sink is the reading end of one sink, with its cursor. Next belongs to one goroutine; the rest is safe for concurrent use.
type Sink struct {
	b        *Buffer
	name     string
	onlooker bool // it is no sink: what it does not find is a gap of nobody

	read    uint64    // sequence of the last block that Next returned
	fetched uint64    // sequence of the last message that was read from the stream; owned by Next, as what follows
	whole   link      // the last block that was read whole
	empty   time.Time // since when there is nothing to read although there should be; zero when there is
	ahead   []Block   // read from the stream and not returned yet
	parts   assembler // of a block that is read in part
	scan    *scanner  // nil until the stream is read from
}

// readAhead bounds what a sink reads ahead, in bytes: eight blocks of full size.
const readAhead = 2 << 20

// TrimmedError says that blocks were trimmed which a sink has not settled: it was not configured at the time.
type TrimmedError struct {
	Sink     string
	Messages uint64    // that are gone: as many blocks, except that a large one has several
	Since    time.Time // when the sink settled its last block
}

func (e *TrimmedError) Error() string {
	return fmt.Sprintf("sink %[2]s was not configured since %[3]s, and %[1]d blocks were trimmed meanwhile: it never got their changes",
		e.Messages, e.Sink, e.Since.Format(time.RFC3339))
}

// Sink opens the reading end of a configured sink, from its cursor on as the bucket has it now. The error is a *TrimmedError
// when blocks that it has not settled are gone; Forget lets it go on without them. Of each name at most one may be in use.
func (b *Buffer) Sink(ctx context.Context, name string) (*Sink, error) {
	if !slices.Contains(b.cfg.Sinks, name) {
		return nil, fmt.Errorf("sink %s is not configured", name)
	}
	if err := b.awaitSaving(ctx, b.readCursors); err != nil {
		return nil, fmt.Errorf("sink %s: %w", name, err)
	}
	info, err := b.streamInfo(ctx, b.names.blocks)
	if err != nil {
		return nil, fmt.Errorf("sink %s: %w", name, err)
	}
	b.mu.Lock()
	at := b.cursors.now[name]
	b.mu.Unlock()
	if gone := info.State.FirstSeq; gone > at.Seq+1 && !at.Away.IsZero() {
		return nil, &TrimmedError{Sink: name, Messages: gone - 1 - at.Seq, Since: at.At}
	}
	if !at.Away.IsZero() {
		b.back(name)
	}
	return &Sink{b: b, name: name, read: at.Seq, fetched: at.Seq, whole: link{at.Seq, at.Resume}}, nil
}

// Forget moves the cursor of a sink past the blocks that were trimmed while it was not configured, durably.
func (b *Buffer) Forget(ctx context.Context, trimmed *TrimmedError) error {
	info, err := b.streamInfo(ctx, b.names.blocks)
	if err != nil {
		return err
	}
	b.settle(trimmed.Sink, info.State.FirstSeq-1, 0)
	b.back(trimmed.Sink)
	return b.flushCursors(ctx)
}

// awaitSaving runs f while no one writes the cursors.
func (b *Buffer) awaitSaving(ctx context.Context, f func(context.Context) error) error {
	select {
	case b.cursors.saving <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-b.cursors.saving }()
	return f(ctx)
}

// Name is the sink's name.
func (s *Sink) Name() string { return s.name }

// Next returns the block after the one that it returned before, or after the cursor; it waits for one to be stored.
// It tries again for as long as NATS cannot be reached, until ctx ends.
func (s *Sink) Next(ctx context.Context) (Block, error) {
	for {
		s.b.mu.Lock()
		block, ok := s.b.recent.next(s.read)
		end, appended := s.b.stored.end, s.b.appended
		s.b.mu.Unlock()
		switch {
		case len(s.ahead) > 0:
			block = s.ahead[0]
			s.ahead[0] = Block{} // the array lives on
			s.ahead = s.ahead[1:]
		case ok:
			s.fetched, s.parts = block.Seq, assembler{}
			s.b.mu.Lock()
			s.b.recent.taken(block.Seq)
			s.b.mu.Unlock()
			s.goesOn()
			footer, err := cdc.ReadFooter(block.Data)
			if err != nil {
				return Block{}, fmt.Errorf("sink %s: block %d: %w", s.name, block.Seq, err)
			}
			s.whole = link{block.Seq, max(footer.Resume.End, footer.Resume.Open)}
		case s.read < end:
			if err := s.fetch(ctx); err != nil {
				return Block{}, fmt.Errorf("sink %s: %w", s.name, err)
			}
			continue
		default:
			select {
			case <-appended:
			case <-ctx.Done():
				return Block{}, ctx.Err()
			}
			continue
		}
		s.read = block.Seq
		return block, nil
	}
}

// fetch reads blocks from the stream into ahead. What it reads may be one part of a large block only.
func (s *Sink) fetch(ctx context.Context) error {
	if s.scan == nil {
		scan, err := s.b.newScanner(s.b.names.blocks)
		if err != nil {
			return err
		}
		s.scan = scan
	}
	var messages []message
	err := s.b.retry(ctx, "read blocks", func(ctx context.Context) (err error) {
		messages, err = s.scan.fetch(ctx, s.fetched+1, "", readAhead)
		return err
	})
	if err != nil {
		return err
	}
	if len(messages) == 0 {
		return s.nothing(ctx)
	}
	s.goesOn()
	s.ahead = s.ahead[:0]
	for i := range messages {
		if err := s.take(ctx, &messages[i]); err != nil {
			return err
		}
	}
	s.b.metrics.readBack(len(s.ahead))
	return nil
}

// nothing waits for a replica that lags, and asks after a while what is wrong.
func (s *Sink) nothing(ctx context.Context) error {
	switch {
	case s.empty.IsZero():
		s.empty = time.Now()
	case time.Since(s.empty) >= stallAfter:
		s.empty = time.Now()
		return s.stalled(ctx)
	}
	return backoff.Sleep(ctx, replicaLag)
}

// take adds a message to ahead. When blocks are missing before it, a gap is stored first.
func (s *Sink) take(ctx context.Context, m *message) error {
	p, err := parsePart(m.header.Get(partHeader))
	if err != nil {
		return fmt.Errorf("message %d of stream %s: %w", m.seq, s.scan.stream, err)
	}
	before, linked, err := parseLink(m.header.Get(linkHeader))
	if err != nil {
		return fmt.Errorf("message %d of stream %s: %w", m.seq, s.scan.stream, err)
	}
	s.fetched = m.seq
	data, first, ok := s.parts.add(m.seq, p, m.data)
	if !ok {
		return nil
	}
	if !linked && s.whole.seq == s.read && len(s.ahead) == 0 { // of an older version: at least what is missing at the front shows
		before = link{seq: min(s.b.firstStored(), first) - 1}
	}
	if before.seq > s.whole.seq {
		h := hole{after: s.whole.seq, through: before.seq, since: s.whole.reach, until: before.reach, what: "blocks are missing from the store, or damaged"}
		if err := s.lost(ctx, h); err != nil {
			return err
		}
	}
	footer, err := cdc.ReadFooter(data)
	if err != nil {
		return fmt.Errorf("block %d: %w", m.seq, err)
	}
	s.whole = link{m.seq, max(footer.Resume.End, footer.Resume.Open)}
	s.ahead = append(s.ahead, Block{Seq: m.seq, Data: data, Stored: m.at})
	return nil
}

// Settle says that everything up to a block is settled; resume is the End of its footer's Resume. The cursor only moves
// forward; it is written within some 20 ms.
func (s *Sink) Settle(seq uint64, resume cdc.LSN) { s.b.settle(s.name, seq, resume) }

// keptPrefix begins the names of the values in which sinks keep what is settled behind their cursors.
const keptPrefix = "settled/"

// Keep stores durably what is settled of the blocks behind the cursor; the buffer does not look into it.
func (s *Sink) Keep(ctx context.Context, settled []byte) error {
	return s.b.SetValue(ctx, keptPrefix+s.name, settled)
}

// Kept is what Keep stored last; nil when nothing was.
func (s *Sink) Kept(ctx context.Context) ([]byte, error) { return s.b.Value(ctx, keptPrefix+s.name) }

// Flush waits until what has been settled is written.
func (s *Sink) Flush(ctx context.Context) error { return s.b.flushCursors(ctx) }

// Close ends reading. The cursor stays.
func (s *Sink) Close() {
	if s.scan != nil {
		s.scan.close()
		s.scan = nil
	}
}
