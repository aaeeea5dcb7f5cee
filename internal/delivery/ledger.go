package delivery

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cdcsync/cdcsync/internal/cdc"
)

// maxBlocks bounds the blocks that are not settled, and so what a crash repeats, while one lane is stuck and the others go on.
const maxBlocks = 4096

// block is one block, or one dead letter that is sent again, while its items are on the way.
type block struct {
	seq    uint64
	resume cdc.LSN
	commit time.Time // of its newest transaction, or when it was stored
	letter *openLetter

	data    []byte // until it is settled, or only held items are not, since dead letters take their source row from it
	size    int64
	pending atomic.Int64 // items that are not settled, and 1 while it is dispatched
	lifted  atomic.Int64 // of them, those that are held by themselves
	ledger  *ledger

	recalled bitset // what an earlier run has settled of it
	marking  sync.Mutex
	marked   bitset // settled items, by number; guarded by marking

	// The rest is guarded by ledger.mu.
	done       bool
	from       uint64 // the first block that this one stands for: those before it that are done, too
	count      int    // of them
	stored     time.Time
	sum        uint32 // of data, once summed
	summed     bool
	prev, next *block // in the ledger
}

// settle says that one more item is settled for good.
func (b *block) settle(number uint32) {
	b.mark(number)
	b.less()
}

// mark notes that an item is settled.
func (b *block) mark(number uint32) {
	if b.letter != nil {
		return
	}
	b.marking.Lock()
	b.marked.set(number)
	b.marking.Unlock()
	b.ledger.marks.Add(1)
}

// less says that there is one thing less to wait for.
func (b *block) less() {
	switch left := b.pending.Add(-1); left {
	case 0:
		b.ledger.settled(b)
	case b.lifted.Load():
		b.ledger.unload(b)
	}
}

// lift says that one of the items that are not settled keeps what it needs by itself.
func (b *block) lift() {
	if b.lifted.Add(1) == b.pending.Load() {
		b.ledger.unload(b)
	}
}

// ledger settles blocks in their order, whatever the order in which they are done.
type ledger struct {
	blocks Blocks
	memory *memory

	mu    sync.Mutex
	first *block // not settled, oldest first. Blocks that are done behind one that is not are merged, so that an item held for an hour
	end   *block // costs nothing for what passes it.
	open  int    // blocks in the list, those merged included
	last  settledBlock
	begun uint64       // the last block that was dispatched
	known settledState // of blocks that are not dispatched yet

	marks  atomic.Uint64 // counts what changes the settlement
	kept   uint64        // marks when the settlement was stored last
	stored bool          // it was not empty
}

type settledBlock struct {
	seq    uint64
	resume cdc.LSN
	commit time.Time
}

// begin takes a block that is about to be dispatched. It reports whether an earlier run has settled all of it.
func (l *ledger) begin(stored Block, footer cdc.Footer, commit time.Time) (b *block, settled bool) {
	data := stored.Data
	b = &block{seq: stored.Seq, resume: footer.Resume.End, commit: commit, data: data, size: int64(len(data)), ledger: l}
	b.from, b.stored = stored.Seq, stored.Stored
	b.pending.Store(1)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.begun = stored.Seq
	settled = l.known.whole(b)
	if b.recalled = l.known.of(b); b.recalled != nil {
		b.marked = slices.Clone(b.recalled)
	}
	b.count, b.prev = 1, l.end
	if l.end != nil {
		l.end.next = b
	} else {
		l.first = b
	}
	l.end = b
	l.open++
	l.memory.add(b.size, 1)
	return b, settled
}

// unload lets go of the bytes of a block of which only held items are left.
func (l *ledger) unload(b *block) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if b.done || b.data == nil {
		return
	}
	l.memory.release(b.size, 0)
	b.checksum()
	b.data, b.size = nil, 0
}

// beginLetter takes a letter's change. It settles nothing in the buffer.
func (l *ledger) beginLetter(letter *openLetter, change []byte) *block {
	b := &block{letter: letter, data: change, size: int64(len(change)), ledger: l}
	b.pending.Store(1)
	l.memory.add(b.size, 1)
	return b
}

func (l *ledger) settled(b *block) {
	l.mu.Lock()
	defer l.mu.Unlock()
	b.done, b.data = true, nil
	l.memory.release(b.size, 1)
	if b.letter != nil {
		return
	}
	b.marking.Lock()
	b.marked = nil
	b.marking.Unlock()
	l.marks.Add(1)
	if b.prev != nil && b.prev.done {
		l.merge(b.prev, b)
	}
	if b.next != nil && b.next.done {
		l.merge(b, b.next)
	}
	head := l.first
	if !head.done {
		return
	}
	l.last = settledBlock{seq: head.seq, resume: max(head.resume, l.last.resume), commit: later(head.commit, l.last.commit)}
	l.open -= head.count
	l.unlink(head)
	l.blocks.Settle(l.last.seq, l.last.resume) // under mu, so that seq never goes back
}

// merge makes a block that is done stand for the one before it, which is done too.
func (l *ledger) merge(before, b *block) {
	b.resume, b.commit, b.count = max(b.resume, before.resume), later(b.commit, before.commit), b.count+before.count
	b.from, b.stored = before.from, later(b.stored, before.stored)
	l.unlink(before)
}

func (l *ledger) unlink(b *block) {
	if b.prev != nil {
		b.prev.next = b.next
	} else {
		l.first = b.next
	}
	if b.next != nil {
		b.next.prev = b.prev
	} else {
		l.end = b.prev
	}
	b.prev, b.next = nil, nil
}

// position is the last settled block, the commit time of the oldest that is not (zero when there is none), and their number.
func (l *ledger) position() (last settledBlock, oldest time.Time, open int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.first != nil {
		oldest = l.first.commit
	}
	return l.last, oldest, l.open
}

// memory counts the bytes that wait for the vendor, and makes the dispatcher wait when they are too many.
type memory struct {
	limit int64
	freed chan struct{} // size 1: something was released since the dispatcher last looked

	used    atomic.Int64
	held    atomic.Int64 // of items that are set aside, beside used
	blocks  atomic.Int64
	batches atomic.Int64 // in lanes
}

func newMemory(limit int64) *memory {
	return &memory{limit: limit, freed: make(chan struct{}, 1)}
}

func (m *memory) add(bytes, blocks int64) {
	m.used.Add(bytes)
	m.blocks.Add(blocks)
}

func (m *memory) release(bytes, blocks int64) {
	m.used.Add(-bytes)
	m.blocks.Add(-blocks)
	m.signal()
}

// batch counts batches that lanes hold: as long as there is one, something will be released.
func (m *memory) batch(n int64) {
	if m.batches.Add(n); n < 0 {
		m.signal()
	}
}

func (m *memory) signal() {
	select {
	case m.freed <- struct{}{}:
	default:
	}
}

// hold counts the bytes of items that are set aside.
func (m *memory) hold(bytes int64) {
	if m.held.Add(bytes); bytes < 0 {
		m.signal()
	}
}

// heldFull reports whether as much is set aside as may be: half of the limit. Then nothing more is read until something of it is decided.
func (m *memory) heldFull() bool { return m.held.Load() > m.limit/2 }

func (m *memory) full() bool {
	return m.used.Load() > m.limit || m.blocks.Load() > maxBlocks || m.heldFull()
}

// wait returns when there is room, or when only what the dispatcher itself holds takes room: one item may be larger than
// the limit.
func (m *memory) wait(ctx context.Context, stopped <-chan struct{}) error {
	for m.heldFull() || m.full() && m.batches.Load() > 0 {
		select {
		case <-m.freed:
		case <-stopped:
			return errStopped
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}
