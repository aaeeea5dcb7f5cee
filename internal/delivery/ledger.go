package delivery

import (
	"context"
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

	data    []byte // until it is settled, since dead letters take their source row from it
	size    int64
	pending atomic.Int64 // items that are not settled, and 1 while it is dispatched
	done    bool         // guarded by ledger.mu
	ledger  *ledger
}

// settle says that one more item is settled for good.
func (b *block) settle() {
	if b.pending.Add(-1) == 0 {
		b.ledger.settled(b)
	}
}

// ledger settles blocks in their order, whatever the order in which they are done.
type ledger struct {
	blocks Blocks
	memory *memory

	mu    sync.Mutex
	queue []*block // not settled, oldest first
	last  settledBlock
}

type settledBlock struct {
	seq    uint64
	resume cdc.LSN
	commit time.Time
}

// begin takes a block that is about to be dispatched.
func (l *ledger) begin(seq uint64, data []byte, footer cdc.Footer, commit time.Time) *block {
	b := &block{seq: seq, resume: footer.Resume.End, commit: commit, data: data, size: int64(len(data)), ledger: l}
	b.pending.Store(1)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.queue = append(l.queue, b)
	l.memory.add(b.size, 1)
	return b
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
	n := 0
	for n < len(l.queue) && l.queue[n].done {
		n++
	}
	if n == 0 || b.letter != nil {
		return
	}
	head := l.queue[n-1]
	l.last = settledBlock{seq: head.seq, resume: max(head.resume, l.last.resume), commit: later(head.commit, l.last.commit)}
	clear(l.queue[:n])
	if l.queue = l.queue[n:]; len(l.queue) == 0 {
		l.queue = nil
	}
	l.blocks.Settle(l.last.seq, l.last.resume) // under mu, so that seq never goes back
}

// position is the last settled block, the commit time of the oldest that is not (zero when there is none), and their number.
func (l *ledger) position() (last settledBlock, oldest time.Time, open int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.queue) > 0 {
		oldest = l.queue[0].commit
	}
	return l.last, oldest, len(l.queue)
}

// memory counts the bytes that wait for the vendor, and makes the dispatcher wait when they are too many.
type memory struct {
	limit int64
	freed chan struct{} // size 1: something was released since the dispatcher last looked

	used    atomic.Int64
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

func (m *memory) full() bool {
	return m.used.Load() > m.limit || m.blocks.Load() > maxBlocks
}

// wait returns when there is room, or when only what the dispatcher itself holds takes room: one item may be larger than
// the limit.
func (m *memory) wait(ctx context.Context, stopped <-chan struct{}) error {
	for m.full() && m.batches.Load() > 0 {
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
