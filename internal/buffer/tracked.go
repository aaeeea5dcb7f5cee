package buffer

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/cdcsync/cdcsync/internal/pulse"
)

// Tracked is an item that a vendor has accepted and not confirmed yet.
type Tracked struct {
	Sink       string    `json:"sink"`
	ItemID     string    `json:"item_id"` // with Sink, what it is known by: one item is tracked once
	ID         string    `json:"id"`      // the vendor's, by which it is asked for
	AcceptedAt time.Time `json:"accepted_at"`
	Letter     Letter    `json:"letter"` // becomes the dead letter should the vendor reject the item after all
}

// trackLog is a log of what was tracked and untracked: many of them are one message, and so one write to disk. What is
// tracked at the moment is known in memory, without the letters; the log is trimmed and, when stragglers hold it, rewritten.
type trackLog struct {
	mu      sync.Mutex
	byItem  map[trackKey]trackEntry
	pending []pendingOp
	version uint64          // counts the ops that were ever pending
	saved   uint64          // how many of them are stored
	failed  error           // of the last write; nil when it succeeded
	bytes   int             // of the log's messages, about
	live    int             // of what is tracked
	first   uint64          // sequence from which on the log is whole; 0 before it has a message
	end     uint64          // sequence of the log's last message
	sinks   map[string]bool // that have had items
	damaged bool            // messages are missing

	urgent   chan struct{} // size 1: somebody waits
	lazy     chan struct{} // size 1: there is something to write
	progress chan struct{} // closed and replaced when saved or failed has changed
}

type trackKey struct{ sink, item string }

type trackEntry struct {
	id    string // the vendor's
	seq   uint64 // the message that has it; 0 while it is pending
	bytes int
}

// trackOp is one line of the log: an item that is tracked, or one that no longer is.
type trackOp struct {
	Add  *Tracked `json:"add,omitempty"`
	Sink string   `json:"sink,omitempty"`
	Done string   `json:"done,omitempty"`
}

// pendingOp is a trackOp on its way.
type pendingOp struct {
	key     trackKey
	add     bool
	encoded []byte
}

func (t *trackLog) init() {
	t.byItem, t.sinks = make(map[trackKey]trackEntry), make(map[string]bool)
	t.urgent, t.lazy, t.progress = make(chan struct{}, 1), make(chan struct{}, 1), make(chan struct{})
}

// span is the part of the log that has to be there.
func (t *trackLog) span() trackSpan {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.end == 0 {
		return trackSpan{}
	}
	return trackSpan{First: t.first, Last: t.end, Sinks: slices.Sorted(maps.Keys(t.sinks))}
}

// Track stores that items are tracked, durably; several callers share a write. An item that is tracked already gets the new record.
func (b *Buffer) Track(ctx context.Context, items []Tracked) error {
	ops := make([]pendingOp, len(items))
	for i := range items {
		encoded, err := b.encodeTracked(items[i])
		if err != nil {
			return fmt.Errorf("track item %s: %w", items[i].ItemID, err)
		}
		ops[i] = pendingOp{key: trackKey{items[i].Sink, items[i].ItemID}, add: true, encoded: encoded}
	}
	t := &b.tracked
	t.mu.Lock()
	for i, op := range ops {
		t.live += len(op.encoded) - t.byItem[op.key].bytes
		t.byItem[op.key] = trackEntry{id: items[i].ID, bytes: len(op.encoded)}
	}
	version := t.queue(ops)
	t.mu.Unlock()
	wake(t.urgent)
	return b.awaitTracked(ctx, version)
}

// encodeTracked leaves the contents of the letter out when they are too large for a message: the item is confirmed all the same, and a rejection would still say which it was.
func (b *Buffer) encodeTracked(item Tracked) ([]byte, error) {
	encoded, err := marshal(trackOp{Add: &item})
	if err != nil || len(encoded) <= b.trackBytes() {
		return encoded, err
	}
	item.Letter.Item, item.Letter.Change = nil, nil
	item.Letter.Remark = "the item was too large to be kept until its confirmation"
	return marshal(trackOp{Add: &item})
}

// trackBytes bounds one message of the log.
func (b *Buffer) trackBytes() int { return int(b.write.MaxPayload()) - headerBytes }

// Untrack forgets items at once; that is stored within some 20 ms. An item that was forgotten in vain, since the process was
// killed, is tracked again after the restart and asked for once more.
func (b *Buffer) Untrack(sink string, itemIDs ...string) {
	t := &b.tracked
	t.mu.Lock()
	defer t.mu.Unlock()
	ops := make([]pendingOp, 0, len(itemIDs))
	for _, item := range itemIDs {
		key := trackKey{sink, item}
		entry, ok := t.byItem[key]
		if !ok {
			continue
		}
		delete(t.byItem, key)
		t.live -= entry.bytes
		encoded, err := marshal(trackOp{Sink: sink, Done: item})
		if err != nil { // strings always can be encoded
			continue
		}
		ops = append(ops, pendingOp{key: key, encoded: encoded})
	}
	if len(ops) > 0 {
		t.queue(ops)
		wake(t.lazy)
	}
}

// TrackedItem returns one item; ok is false when it is not tracked.
func (b *Buffer) TrackedItem(ctx context.Context, sink, itemID string) (item Tracked, ok bool, err error) {
	b.tracked.mu.Lock()
	entry, ok := b.tracked.byItem[trackKey{sink, itemID}]
	b.tracked.mu.Unlock()
	if !ok {
		return Tracked{}, false, nil
	}
	ok = false
	err = b.scanTracked(ctx, entry.seq, func(_ uint64, op trackOp) error { // a log that is being rewritten has it further on
		if op.Add == nil || op.Add.Sink != sink || op.Add.ItemID != itemID || op.Add.ID != entry.id {
			return nil
		}
		item, ok = *op.Add, true
		return errEnough
	})
	if errors.Is(err, errEnough) {
		err = nil
	}
	return item, ok, err
}

// TrackedCount is how many items are tracked, of all sinks.
func (b *Buffer) TrackedCount() int {
	b.tracked.mu.Lock()
	defer b.tracked.mu.Unlock()
	return len(b.tracked.byItem)
}

// TrackedOf is how many items of a sink are tracked, from the moment that the buffer is open.
func (b *Buffer) TrackedOf(sink string) int {
	b.tracked.mu.Lock()
	defer b.tracked.mu.Unlock()
	n := 0
	for key := range b.tracked.byItem {
		if key.sink == sink {
			n++
		}
	}
	return n
}

// TrackedItems iterates over a sink's tracked items, in the order in which they were stored: for the start, and for what a
// caller does not keep in memory. What is tracked after it began may be missed. It ends with the first error.
func (b *Buffer) TrackedItems(ctx context.Context, sink string) iter.Seq2[Tracked, error] {
	return func(yield func(Tracked, error) bool) {
		err := b.scanTracked(ctx, 0, func(seq uint64, op trackOp) error {
			if op.Add == nil || op.Add.Sink != sink {
				return nil
			}
			b.tracked.mu.Lock()
			entry, ok := b.tracked.byItem[trackKey{sink, op.Add.ItemID}]
			b.tracked.mu.Unlock()
			if ok && entry.seq == seq && entry.id == op.Add.ID && !yield(*op.Add, nil) {
				return errEnough
			}
			return nil
		})
		if err != nil && !errors.Is(err, errEnough) {
			yield(Tracked{}, err)
		}
	}
}

func (b *Buffer) scanTracked(ctx context.Context, from uint64, f func(seq uint64, op trackOp) error) error {
	return b.scan(ctx, b.names.tracked, "", from, func(m message) error {
		var ops []trackOp
		if err := json.Unmarshal(m.data, &ops); err != nil {
			return fmt.Errorf("tracked items, message %d: %w", m.seq, err)
		}
		for _, op := range ops {
			if err := f(m.seq, op); err != nil {
				return err
			}
		}
		return nil
	})
}

// loadTracked replays the log.
func (b *Buffer) loadTracked(ctx context.Context) error {
	t := &b.tracked
	span := b.census.was.Tracked
	for _, sink := range span.Sinks {
		t.sinks[sink] = true
	}
	var missing uint64 // messages: the log has none missing but those before its first
	err := b.scanTracked(ctx, 0, func(seq uint64, op trackOp) error {
		if t.first == 0 {
			t.first = seq
			missing = seq - min(cmp.Or(span.First, seq), seq)
		}
		if t.end > 0 && seq > t.end+1 {
			missing += seq - t.end - 1
		}
		t.end = seq
		if op.Add == nil {
			key := trackKey{op.Sink, op.Done}
			t.live -= t.byItem[key].bytes
			delete(t.byItem, key)
			return nil
		}
		encoded, err := marshal(op)
		if err != nil {
			return err
		}
		key := trackKey{op.Add.Sink, op.Add.ItemID}
		t.sinks[op.Add.Sink] = true
		t.bytes += len(encoded)
		t.live += len(encoded) - t.byItem[key].bytes
		t.byItem[key] = trackEntry{id: op.Add.ID, seq: seq, bytes: len(encoded)}
		return nil
	})
	if err != nil {
		return fmt.Errorf("load tracked items: %w", err)
	}
	info, err := b.streamInfo(ctx, b.names.tracked)
	if err != nil {
		return fmt.Errorf("load tracked items: %w", err)
	}
	if last := max(span.Last, info.State.LastSeq); t.end == 0 && span.First > 0 {
		missing = max(span.Last+1, span.First) - span.First
	} else if t.end > 0 && last > t.end {
		missing += last - t.end
	}
	if t.end = max(t.end, info.State.LastSeq); t.first == 0 {
		t.first = t.end + 1
	}
	if err := b.compareTracked(ctx, missing); err != nil || missing == 0 {
		return err
	}
	t.damaged = true
	return b.tidyTracked(ctx) // so that the log is whole again
}

// queue hands ops to the writer. t.mu is held.
func (t *trackLog) queue(ops []pendingOp) (version uint64) {
	t.failed = nil
	t.pending = append(t.pending, ops...)
	t.version += uint64(len(ops))
	return t.version
}

// awaitTracked waits until the first version ops are stored, or a write has failed for good.
func (b *Buffer) awaitTracked(ctx context.Context, version uint64) error {
	t := &b.tracked
	for {
		t.mu.Lock()
		saved, failed, progress := t.saved >= version, t.failed, t.progress
		t.mu.Unlock()
		switch {
		case saved:
			return nil
		case failed != nil:
			return fmt.Errorf("track items: %w", failed)
		}
		select {
		case <-progress:
		case <-ctx.Done():
			return fmt.Errorf("track items: %w", ctx.Err())
		}
	}
}

// flushTracked waits until everything that is pending is stored.
func (b *Buffer) flushTracked(ctx context.Context) error {
	b.tracked.mu.Lock()
	version := b.tracked.version
	b.tracked.mu.Unlock()
	wake(b.tracked.urgent)
	return b.awaitTracked(ctx, version)
}

// writeTracked stores what is pending, until ctx ends: at once when somebody waits, else a little later and so with more.
func (b *Buffer) writeTracked(ctx context.Context) {
	const lazily = 20 * time.Millisecond
	for {
		beat := pulse.Rest(ctx)
		select {
		case <-b.tracked.urgent:
		case <-b.tracked.lazy:
			select {
			case <-b.tracked.urgent:
			case <-time.After(lazily):
			case <-ctx.Done():
				return
			}
		case <-ctx.Done():
			return
		}
		beat()
		err := b.storePending(ctx)
		if err == nil {
			err = b.tidyTracked(ctx)
		}
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			b.logger.Error("tracked items are not stored", "err", err)
		}
	}
}

// storePending stores the ops that are pending, as few messages. After an error they stay pending, and are tried again with the next ones.
func (b *Buffer) storePending(ctx context.Context) error {
	t := &b.tracked
	t.mu.Lock()
	ops := t.pending
	t.pending = nil
	t.mu.Unlock()
	for len(ops) > 0 {
		data, n := joinOps(ops, b.trackBytes())
		seq, err := b.publish(ctx, &nats.Msg{Subject: b.names.trackSubject, Data: data})
		t.mu.Lock()
		t.failed = err
		if err != nil {
			t.pending = append(ops, t.pending...)
			broadcast(&t.progress)
			t.mu.Unlock()
			return err
		}
		t.stored(ops[:n], seq, len(data))
		t.saved += uint64(n)
		broadcast(&t.progress)
		t.mu.Unlock()
		ops = ops[n:]
	}
	return nil
}

// stored notes where ops lie. t.mu is held.
func (t *trackLog) stored(ops []pendingOp, seq uint64, size int) {
	if t.first == 0 {
		t.first = seq
	}
	t.end = seq
	t.bytes += size
	for _, op := range ops {
		if entry, ok := t.byItem[op.key]; ok && op.add { // not untracked meanwhile
			entry.seq = seq
			t.sinks[op.key.sink] = true
			t.byItem[op.key] = entry
		}
	}
}

// joinOps makes one message of the first n ops: at least one, and as many as fit.
func joinOps(ops []pendingOp, most int) (data []byte, n int) {
	var b bytes.Buffer
	for _, op := range ops {
		if n > 0 && b.Len()+len(op.encoded)+len(",]") > most {
			break
		}
		b.WriteByte("[,"[min(n, 1)])
		b.Write(op.encoded)
		n++
	}
	b.WriteByte(']')
	return b.Bytes(), n
}

// The log is tidied when it is this large, and this much larger than what is tracked.
const (
	tidyBytes = 1 << 20
	tidyShare = 4
)

// tidyTracked trims the log, after it has stored again what is still tracked if little of the log is.
func (b *Buffer) tidyTracked(ctx context.Context) error {
	t := &b.tracked
	t.mu.Lock()
	worth := t.damaged || t.bytes > tidyBytes && t.bytes > tidyShare*t.live
	end := t.end
	t.mu.Unlock()
	if !worth {
		return nil
	}
	var live []pendingOp
	err := b.scanTracked(ctx, 0, func(seq uint64, op trackOp) error {
		if op.Add == nil || seq > end {
			return nil
		}
		t.mu.Lock()
		key := trackKey{op.Add.Sink, op.Add.ItemID}
		entry, ok := t.byItem[key]
		t.mu.Unlock()
		if !ok || entry.seq != seq {
			return nil
		}
		encoded, err := marshal(op)
		live = append(live, pendingOp{key: key, add: true, encoded: encoded})
		return err
	})
	if err != nil {
		return fmt.Errorf("tidy tracked items: %w", err)
	}
	size := 0
	for len(live) > 0 {
		data, n := joinOps(live, b.trackBytes())
		seq, err := b.publish(ctx, &nats.Msg{Subject: b.names.trackSubject, Data: data})
		if err != nil {
			return fmt.Errorf("tidy tracked items: %w", err)
		}
		t.mu.Lock()
		t.stored(live[:n], seq, 0)
		t.mu.Unlock()
		live, size = live[n:], size+len(data)
	}
	t.mu.Lock()
	t.first = end + 1
	t.mu.Unlock()
	err = b.lowerCensus(func(f *censusFile) bool { f.Tracked.First = end + 1; return true })
	if err == nil {
		err = b.purge(ctx, b.names.tracked, jetstream.WithPurgeSequence(end+1))
	}
	if err != nil {
		return fmt.Errorf("tidy tracked items: %w", err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.bytes, t.damaged = size, false
	return nil
}

// marshal is json.Marshal, but leaves < > & in a vendor's item as they were.
func marshal(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}
