package buffer

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"

	"github.com/cdcsync/cdcsync/internal/cdc"
)

// tables knows which tables the blocks have rows of, by stretches of the stream, so that a block that is lost makes a gap of
// few tables instead of all. The stretches are values of the bucket, of which the oldest are overwritten.
type tables struct {
	stretch uint64            // number of the one that blocks are appended to: guarded by Buffer.mu, as what follows
	names   map[string]bool   // of its tables
	known   map[uint32]int    // OID and length of the relations that are in names
	unknown [2]uint64         // sequences of which it does not know; the second is 0 for none
	through uint64            // the last block that it knows
	saved   uint64            // through as it is written
	ended   map[uint64][]byte // stretches that have ended and are not written
}

// storedTables is a stretch as it is stored.
type storedTables struct {
	Stretch uint64    `json:"stretch"`
	Through uint64    `json:"through"`
	Ended   bool      `json:"ended,omitzero"` // nothing is appended to it any more
	Unknown [2]uint64 `json:"unknown,omitzero"`
	Tables  []string  `json:"tables"`
}

const (
	tablesPrefix   = "tables/"
	stretchBlocks  = 8192 // sequences
	stretchesAtAll = 4096 // which is enough for nine hours of a thousand blocks a second
)

func tablesName(stretch uint64) string {
	return tablesPrefix + strconv.FormatUint(stretch%stretchesAtAll, 10)
}

func (t *tables) begin(stretch uint64) {
	t.stretch, t.names, t.known, t.unknown = stretch, make(map[string]bool), make(map[uint32]int), [2]uint64{}
	if t.ended == nil {
		t.ended = make(map[uint64][]byte)
	}
}

// note takes the block that was just appended. b.mu is held.
func (t *tables) note(end uint64, block []byte) {
	if stretch := end / stretchBlocks; stretch != t.stretch || t.names == nil {
		if t.names != nil {
			t.ended[t.stretch] = t.encode(true)
		}
		t.begin(stretch)
	}
	t.through = max(t.through, end)
	err := cdc.EachRelation(block, func(oid uint32, encoded []byte) {
		if t.known[oid] == len(encoded) {
			return
		}
		if r, err := cdc.DecodeRelation(encoded); err == nil {
			t.names[r.Schema+"."+r.Name], t.known[oid] = true, len(encoded)
		}
	})
	if err != nil { // the block's footer could be read: it is not ours to complain
		t.unknown = union(t.unknown, [2]uint64{end, end})
	}
}

// union is the smallest span that has both.
func union(x, y [2]uint64) [2]uint64 {
	switch {
	case x[1] == 0:
		return y
	case y[1] == 0:
		return x
	}
	return [2]uint64{min(x[0], y[0]), max(x[1], y[1])}
}

func (t *tables) encode(ended bool) []byte {
	value, err := json.Marshal(storedTables{Stretch: t.stretch, Through: t.through, Ended: ended, Unknown: t.unknown, Tables: slices.Sorted(maps.Keys(t.names))})
	if err != nil { // it is text and numbers
		return nil
	}
	return value
}

// loadTables goes on with the stretch that the last block lies in. What was appended after it was written last is not known.
func (b *Buffer) loadTables(ctx context.Context) error {
	b.mu.Lock()
	end := b.stored.end
	b.mu.Unlock()
	stretch := end / stretchBlocks
	stored, err := b.storedTables(ctx, stretch)
	if err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	t := &b.tables
	t.begin(stretch)
	t.through = end
	if stored != nil {
		t.through, t.unknown, t.saved = max(end, stored.Through), stored.Unknown, stored.Through
		for _, name := range stored.Tables {
			t.names[name] = true
		}
	}
	if from := max(t.saved+1, stretch*stretchBlocks); from <= end {
		t.unknown = union(t.unknown, [2]uint64{from, end})
	}
	return nil
}

// storedTables reads a stretch; nil when it is not there.
func (b *Buffer) storedTables(ctx context.Context, stretch uint64) (*storedTables, error) {
	value, err := b.Value(ctx, tablesName(stretch))
	if err != nil || value == nil {
		return nil, err
	}
	var stored storedTables
	if err := json.Unmarshal(value, &stored); err != nil || stored.Stretch != stretch {
		return nil, nil //nolint:nilerr // what cannot be read is not known
	}
	return &stored, nil
}

// saveTables writes the stretches that have changed. That one is not written costs a gap more tables, no more.
func (b *Buffer) saveTables(ctx context.Context) {
	b.mu.Lock()
	t := &b.tables
	values := t.ended
	t.ended = make(map[uint64][]byte)
	through := t.through
	if through != t.saved && t.names != nil {
		values[t.stretch] = t.encode(false)
	}
	b.mu.Unlock()
	for stretch, value := range values {
		if err := b.SetValue(ctx, tablesName(stretch), value); err != nil {
			if ctx.Err() == nil {
				b.logger.Warn("which tables the stored blocks have is not written", "err", err)
			}
			return
		}
	}
	b.mu.Lock()
	t.saved = max(t.saved, through)
	b.mu.Unlock()
}

// tablesIn returns the tables that the blocks of a run of sequences may have rows of; none when that is not known.
func (b *Buffer) tablesIn(ctx context.Context, from, through uint64) ([]string, error) {
	const most = 64 // stretches: of more, nearly everything is gone
	if through/stretchBlocks-from/stretchBlocks > most {
		return nil, nil
	}
	found := make(map[string]bool)
	for stretch := from / stretchBlocks; stretch <= through/stretchBlocks; stretch++ {
		stored, err := b.knownTables(ctx, stretch)
		if err != nil {
			return nil, err
		}
		if until := min(through, (stretch+1)*stretchBlocks-1); stored == nil || !stored.Ended && stored.Through < until {
			return nil, nil
		}
		if u := stored.Unknown; u[1] > 0 && u[0] <= through && u[1] >= from {
			return nil, nil
		}
		for _, name := range stored.Tables {
			found[name] = true
		}
	}
	return slices.Sorted(maps.Keys(found)), nil
}

// knownTables is a stretch as it is known in memory, or else stored.
func (b *Buffer) knownTables(ctx context.Context, stretch uint64) (*storedTables, error) {
	b.mu.Lock()
	t := &b.tables
	value := t.ended[stretch]
	if t.names != nil && t.stretch == stretch {
		value = t.encode(false)
	}
	b.mu.Unlock()
	if value == nil {
		return b.storedTables(ctx, stretch)
	}
	var stored storedTables
	if err := json.Unmarshal(value, &stored); err != nil {
		return nil, fmt.Errorf("tables of stretch %d: %w", stretch, err)
	}
	return &stored, nil
}
