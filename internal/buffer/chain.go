package buffer

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/cdcsync/cdcsync/internal/cdc"
)

// linkHeader, on each message of a block, names the whole block before it, so that a block that is gone is missed: the store
// passes over a damaged record, and over a file that is not there, without a word.
const linkHeader = "Cdcsync-Before"

// link names the end of what lies before a block.
type link struct {
	seq   uint64  // of the whole block before; what the stream had then when there was none
	reach cdc.LSN // the newest LSN of which that block has anything
}

func (l link) String() string { return strconv.FormatUint(l.seq, 10) + " " + l.reach.String() }

// parseLink reads a block's header; ok is false for a block that an older version has stored.
func parseLink(header string) (l link, ok bool, err error) {
	if header == "" {
		return link{}, false, nil
	}
	seq, reach, _ := strings.Cut(header, " ")
	if l.seq, err = strconv.ParseUint(seq, 10, 64); err == nil {
		l.reach, err = cdc.ParseLSN(reach)
	}
	if err != nil {
		return link{}, false, fmt.Errorf("header %s: %q names no block: %w", linkHeader, header, err)
	}
	return l, true, nil
}

// hole is a run of blocks that a sink has not got and that are gone.
type hole struct {
	after, through uint64  // sequences: of the last block before it, and of the last one that is missing
	since, until   cdc.LSN // what these two reach
	what           string  // a sentence without its end: what was found
}

// holePrefix names the values that say through which hole of a sink's blocks a gap was recorded: a gap that was closed
// meanwhile is not opened again by reading the same blocks once more.
const holePrefix = "hole/"

// recordHole stores a gap for blocks that the sinks will never get, durably, before they read on. A gap is the sink's own:
// the others may have had the blocks.
func (b *Buffer) recordHole(ctx context.Context, sink string, h hole) error {
	name := fmt.Sprintf("%s%s/%d-%d/%s", holePrefix, sink, h.after, h.through, h.until)
	if known, err := b.Value(ctx, name); err != nil || known != nil {
		return err
	}
	gap := cdc.Gap{
		Cause: cdc.GapBuffer, Sinks: []string{sink}, Since: h.since, Until: h.until, Found: time.Now().UTC(),
		Reason: fmt.Sprintf("%s: sink %s has not got what blocks %d to %d of the buffer held", h.what, sink, h.after+1, h.through),
	}
	tables, err := b.tablesIn(ctx, h.after+1, h.through)
	if err != nil {
		return err
	}
	if len(tables) == 0 {
		tables = []string{""} // not known: any mapped table
	}
	for _, table := range tables {
		gap.Table = table
		recorded, err := b.RecordGap(ctx, gap)
		if err != nil {
			return fmt.Errorf("record a gap: %w", err)
		}
		b.logger.Error("stored blocks are lost", "sink", sink, "gap", recorded.ID, "table", gap.Subject(), "after", h.after, "through", h.through,
			"since_lsn", h.since, "until_lsn", h.until, "found", h.what)
	}
	return b.SetValue(ctx, name, []byte("recorded"))
}

// lost records a hole in what the sink reads.
func (s *Sink) lost(ctx context.Context, h hole) error {
	if s.onlooker {
		return nil
	}
	return s.b.recordHole(ctx, s.name, h)
}

// errTrimmed ends a reading that is no sink's: the rest was settled by all sinks, and trimmed, meanwhile.
var errTrimmed = errors.New("the blocks were trimmed")

// stallAfter is how long a sink reads nothing, although there is something, before it asks why: a replica lags for less.
const stallAfter = 2 * time.Second

// stalled asks why there is nothing to read after a sequence although the buffer reaches further. What is gone up to the end
// is a hole; it returns the block that the sink goes on after. Anything else is tried again, and told.
func (s *Sink) stalled(ctx context.Context) error {
	s.b.mu.Lock()
	end, reach := s.b.stored.end, s.b.stored.endReach
	s.b.mu.Unlock()
	if !s.onlooker {
		s.b.health.set(readFault+s.name, fmt.Sprintf("sink %s cannot read the stored blocks after %d: see the log and the disk, and restart", s.name, s.fetched))
	}
	if _, err := s.b.leaderGet(ctx, s.b.names.blocks, end); !errors.Is(err, errNoMessage) {
		return err
	}
	if s.onlooker {
		return errTrimmed
	}
	h := hole{after: s.whole.seq, through: end, since: s.whole.reach, until: reach, what: "the newest blocks are gone from the store"}
	if err := s.lost(ctx, h); err != nil {
		return err
	}
	s.read, s.fetched, s.parts, s.whole = end, end, assembler{}, link{end, reach}
	s.goesOn()
	return nil
}

// goesOn notes that there is something to read again.
func (s *Sink) goesOn() {
	if !s.empty.IsZero() {
		s.empty = time.Time{}
		s.b.health.set(readFault+s.name, "")
	}
}
