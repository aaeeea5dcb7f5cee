package buffer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/cdcsync/cdcsync/internal/cdc"
)

const gapPrefix = "gap/"

// ErrNoGap is returned for an ID that no stored gap has.
var ErrNoGap = errors.New("no such gap")

// gapIndex is what the bucket holds of gaps, so that status asks no store.
type gapIndex struct {
	writing sync.Mutex // one change at a time; held over I/O, and never by readers

	mu   sync.Mutex
	gaps map[string]cdc.Gap // by ID
	last int                // number of the newest ID
}

func (b *Buffer) loadGaps(ctx context.Context) error {
	values, err := b.Values(ctx, gapPrefix)
	if err != nil {
		return err
	}
	b.gaps.mu.Lock()
	defer b.gaps.mu.Unlock()
	b.gaps.gaps = make(map[string]cdc.Gap, len(values))
	for name, value := range values {
		id := strings.TrimPrefix(name, gapPrefix)
		var gap cdc.Gap
		if err := json.Unmarshal(value, &gap); err != nil { // a gap that cannot be read is a gap still
			gap = cdc.Gap{Cause: cdc.GapBuffer, State: cdc.GapOpen, Reason: "the record of a gap cannot be read: " + err.Error()}
		}
		gap.ID = id
		b.gaps.gaps[id] = gap
		if n, err := strconv.Atoi(strings.TrimPrefix(id, "g")); err == nil {
			b.gaps.last = max(b.gaps.last, n)
		}
	}
	return nil
}

// Gaps returns the stored gaps, the oldest first. It does no I/O.
func (b *Buffer) Gaps() []cdc.Gap {
	b.gaps.mu.Lock()
	defer b.gaps.mu.Unlock()
	list := make([]cdc.Gap, 0, len(b.gaps.gaps))
	for _, gap := range b.gaps.gaps {
		list = append(list, gap)
	}
	slices.SortFunc(list, func(x, y cdc.Gap) int { return gapNumber(x.ID) - gapNumber(y.ID) })
	return list
}

func gapNumber(id string) int {
	n, _ := strconv.Atoi(strings.TrimPrefix(id, "g")) // IDs are ours
	return n
}

// RecordGap stores a gap durably and returns it with its ID. An open gap of the same cause, table, sinks and mapping grows instead,
// so that the same finding can be recorded again and again; a gap whose rows were sent is open again.
func (b *Buffer) RecordGap(ctx context.Context, gap cdc.Gap) (cdc.Gap, error) {
	b.gaps.writing.Lock()
	defer b.gaps.writing.Unlock()
	b.gaps.mu.Lock()
	known, ok := b.gaps.same(&gap)
	if !ok {
		b.gaps.last++
		gap.ID = "g" + strconv.Itoa(b.gaps.last)
	}
	b.gaps.mu.Unlock()
	switch {
	case !ok:
		gap.State = cdc.GapOpen
		if gap.Found.IsZero() {
			gap.Found = time.Now().UTC()
		}
	default:
		grown := grow(known, &gap)
		if gapsEqual(&grown, &known) {
			return known, nil
		}
		gap = grown
	}
	return gap, b.storeGap(ctx, gap)
}

func (x *gapIndex) same(gap *cdc.Gap) (cdc.Gap, bool) {
	for _, known := range x.gaps {
		if known.Cause == gap.Cause && known.Table == gap.Table && known.Mapping == gap.Mapping && slices.Equal(known.Sinks, gap.Sinks) {
			return known, true
		}
	}
	return cdc.Gap{}, false
}

// longestReason is how long what has happened in one gap may become.
const longestReason = 1000

// grow widens a known gap to what was found now.
func grow(known cdc.Gap, now *cdc.Gap) cdc.Gap {
	wider := known
	if now.Since < known.Since {
		wider.Since, wider.SinceTime = now.Since, now.SinceTime
	}
	wider.NoDeletes = known.NoDeletes && now.NoDeletes
	if now.Remedy != "" || known.Until != 0 {
		wider.Remedy = now.Remedy
	}
	if now.Until == 0 || known.Until != 0 && now.Until > known.Until {
		wider.Until, wider.UntilTime = now.Until, now.UntilTime
	}
	again := now.Cause == cdc.GapMapping && now.UntilTime.After(known.UntilTime) // rows of a backfill are of a position that may lie before
	if again {
		wider.UntilTime = now.UntilTime
	}
	switch {
	case strings.Contains(known.Reason, now.Reason):
	case known.State == cdc.GapOpen && len(known.Reason) < longestReason:
		wider.Reason += "; " + now.Reason
	default:
		wider.Reason = now.Reason
	}
	if again || wider.Since != known.Since || wider.Until != known.Until || wider.Reason != known.Reason {
		wider.State, wider.Backfill = cdc.GapOpen, "" // what was sent before is not all
	}
	return wider
}

func gapsEqual(x, y *cdc.Gap) bool {
	return x.State == y.State && x.Reason == y.Reason && x.Since == y.Since && x.Until == y.Until && x.Backfill == y.Backfill && x.UntilTime.Equal(y.UntilTime) &&
		x.Remedy == y.Remedy && x.NoDeletes == y.NoDeletes
}

// UpdateGap stores a changed gap; ErrNoGap when it was closed meanwhile.
func (b *Buffer) UpdateGap(ctx context.Context, gap cdc.Gap) error {
	b.gaps.writing.Lock()
	defer b.gaps.writing.Unlock()
	if !b.gaps.has(gap.ID) {
		return fmt.Errorf("gap %s: %w", gap.ID, ErrNoGap)
	}
	return b.storeGap(ctx, gap)
}

// CloseGap removes a gap that was closed or accepted.
func (b *Buffer) CloseGap(ctx context.Context, id string) error {
	b.gaps.writing.Lock()
	defer b.gaps.writing.Unlock()
	if !b.gaps.has(id) {
		return fmt.Errorf("gap %s: %w", id, ErrNoGap)
	}
	if err := b.DeleteValue(ctx, gapPrefix+id); err != nil {
		return err
	}
	b.gaps.mu.Lock()
	defer b.gaps.mu.Unlock()
	delete(b.gaps.gaps, id)
	return nil
}

func (x *gapIndex) has(id string) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	_, ok := x.gaps[id]
	return ok
}

// storeGap writes the gap and then shows it. b.gaps.writing is held.
func (b *Buffer) storeGap(ctx context.Context, gap cdc.Gap) error {
	value, err := json.Marshal(gap)
	if err != nil {
		return fmt.Errorf("store gap: %w", err)
	}
	if err := b.SetValue(ctx, gapPrefix+gap.ID, value); err != nil {
		return err
	}
	b.gaps.mu.Lock()
	defer b.gaps.mu.Unlock()
	b.gaps.gaps[gap.ID] = gap
	return nil
}
