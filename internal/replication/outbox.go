package replication

import (
	"bytes"
	"context"
	"encoding/json"
	"sync"
	"time"

	"github.com/cdcsync/cdcsync/internal/cdc"
)

const (
	// blockSize is the size at which a block is closed although the publisher is not ready for it.
	blockSize = 256 << 10
	// ringBytes of closed blocks let the reader go on while the log makes one durable.
	ringBytes = 4 * blockSize
	// chunkBlockSize is the same for a block of a chunk: nobody waits for its first rows, each block costs a sync to disk, and this
	// is about the largest that NATS takes as one message by default.
	chunkBlockSize = 1000 << 10
	footerSlack    = 4 << 10
	// gatherWait is the longest that a busy stream's block is left to fill: at 25 MiB/s it has then.
	gatherWait = 10 * time.Millisecond
)

// outbox holds what the reader has received and the log has not stored yet.
//
// Blocks form by themselves: the publisher takes what is there when the last one is stored, so that low load gives small
// blocks at once; under high load it waits until a block is full.
type outbox struct {
	mu     sync.Mutex
	writer cdc.Writer // the block that grows
	dirty  bool       // it has something that must be stored
	busy   bool       // the stream is: see flow
	timed  bool       // the publisher waits for the block to fill, or to be ripe
	ripe   bool       // it has waited for long enough
	sealed []parcel   // what is ready for the publisher, oldest first
	queued int        // bytes in sealed and in flight, chunks excepted: backfills bound those
	aside  bool       // what is written now is a chunk
	flight bool       // the publisher has something
	spare  []byte     // memory for a block
	mark   *chunkMark // the footer's State; nil for none

	stored    cdc.Resume  // of the last block in the log
	persisted cdc.LSN     // the incarnation's Confirmed, as the log has it
	persist   cdc.LSN     // wanted there; 0 for nothing
	witness   cdc.Witness // of persist

	work chan struct{} // size 1: there may be something for the publisher
	room chan struct{} // size 1: there may be room for the reader
}

// parcel is what the publisher does next: store a block, or something that has its place between two blocks.
type parcel struct {
	block []byte
	chunk bool // the block is of a chunk
	do    func(context.Context) error
}

// newOutbox goes on after tail; before confirmed nothing is missing even where tail does not say so.
func newOutbox(tail cdc.Footer, confirmed cdc.LSN, witness cdc.Witness) *outbox {
	o := &outbox{
		mark: decodeMark(tail.State), stored: tail.Resume, persisted: confirmed,
		work: make(chan struct{}, 1), room: make(chan struct{}, 1),
	}
	resume := tail.Resume
	resume.End = max(resume.End, confirmed)
	o.writer.Continue(resume)
	o.writer.Witness(witness)
	return o
}

// decodeMark takes a State that is not of this version for none: what it says was looked at before.
func decodeMark(state []byte) *chunkMark {
	var mark chunkMark
	if len(state) == 0 || json.Unmarshal(state, &mark) != nil {
		return nil
	}
	return &mark
}

// limit is the size at which the block that grows is closed.
func (o *outbox) limit() int {
	if o.aside {
		return chunkBlockSize
	}
	return blockSize
}

// reserve closes the block that grows when n more bytes would make it too large. o.mu is held.
func (o *outbox) reserve(n int) {
	if o.dirty && o.writer.Len()+n+footerSlack > o.limit() {
		o.seal(o.limit())
	}
}

// seal closes the block that grows; the one after it gets so much room. The log keeps what it gets: the block itself when it fills its
// memory well, else a copy.
func (o *outbox) seal(room int) {
	spare := o.spare
	if cap(spare) < room || cap(spare) > 2*room {
		spare = make([]byte, 0, room)
	}
	block := o.writer.Seal(o.state(), spare)
	if o.spare = nil; len(block) < cap(block)/4*3 {
		block, o.spare = bytes.Clone(block), block[:0]
	}
	o.sealed = append(o.sealed, parcel{block: block, chunk: o.aside})
	if !o.aside {
		o.queued += len(block)
	}
	o.dirty = false
}

func (o *outbox) state() []byte {
	if o.mark == nil {
		return nil
	}
	state, err := json.Marshal(o.mark)
	if err != nil { // text and numbers always marshal
		return nil
	}
	return state
}

// push has the publisher do something when all that was written before is stored, and before it stores what comes after. o.mu is held.
func (o *outbox) push(do func(context.Context) error) {
	if o.dirty {
		o.seal(blockSize)
	}
	o.sealed = append(o.sealed, parcel{do: do})
}

// offer wakes the publisher when there is something to store. o.mu is held.
func (o *outbox) offer() {
	if o.flight {
		return // the publisher looks again when it has stored that
	}
	if len(o.sealed) > 0 || o.persist > o.persisted || o.dirty && (!o.busy || !o.timed) {
		signal(o.work)
	}
}

// gather says whether the publisher leaves the block that grows to the reader, for gatherWait at most: a busy stream fills it soon,
// and few large blocks cost all that follow less than many small ones.
func (o *outbox) gather() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.timed = o.dirty && o.busy && !o.ripe && len(o.sealed) == 0
	return o.timed
}

// ripen ends gathering.
func (o *outbox) ripen() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.ripe = true
}

// take gives the publisher what is next.
func (o *outbox) take() (next parcel, ok bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.sealed) == 0 {
		if !o.dirty || o.busy && !o.ripe {
			return parcel{}, false
		}
		o.seal(blockSize)
	}
	o.ripe = false
	next = o.sealed[0]
	last := len(o.sealed) - 1
	copy(o.sealed, o.sealed[1:])
	o.sealed[last] = parcel{} // its block is the log's
	o.sealed = o.sealed[:last]
	o.flight = true
	return next, true
}

// did says that what take gave is done, where it was no block.
func (o *outbox) did() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.flight = false
}

// done says that the block that take gave is stored.
func (o *outbox) done(p parcel, resume cdc.Resume) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.stored, o.flight = resume, false
	if !p.chunk {
		o.queued -= len(p.block)
	}
	signal(o.room)
}

// full says whether the reader has to wait.
func (o *outbox) full() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.queued >= ringBytes
}

// progress is what is known about durability at one moment.
type progress struct {
	stored  cdc.LSN // end of the last transaction that is in the log whole
	settled cdc.LSN // up to here nothing is missing in the log: stored, or further when nothing has come since
	safe    cdc.LSN // up to here the log itself says so, also after a crash: what may be confirmed
}

func (o *outbox) progress() progress {
	o.mu.Lock()
	defer o.mu.Unlock()
	p := progress{stored: o.stored.End, settled: o.stored.End, safe: max(o.stored.End, o.persisted)}
	if !o.dirty && len(o.sealed) == 0 && !o.flight {
		p.settled = max(p.settled, o.writer.Resume().End)
	}
	return p
}

// remember asks the publisher to have the log remember that lsn may be confirmed although no block says so.
func (o *outbox) remember(lsn cdc.LSN) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if lsn > o.persist { // everything that was received lies before it
		o.persist, o.witness = lsn, o.writer.Witnessed()
	}
	o.offer()
}

// wanted is the LSN to remember, 0 for none, and the last transaction before it.
func (o *outbox) wanted() (cdc.LSN, cdc.Witness) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.persist <= o.persisted {
		return 0, cdc.Witness{}
	}
	return o.persist, o.witness
}

func (o *outbox) remembered(lsn cdc.LSN) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.persisted = max(o.persisted, lsn)
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// transaction is the one that the server is sending.
type transaction struct {
	xid     uint32
	commit  cdc.LSN // 0 when none is open
	at      time.Time
	ordinal uint32 // changes received
	stored  uint32 // of these, in the log from before a reconnect
	skipped uint32 // received since the last one that was written
	begun   bool   // the writer has it
	again   bool   // the log has all of it
	bytes   int64  // received
}
