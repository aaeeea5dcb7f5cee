package buffer

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/cdcsync/cdcsync/internal/cdc"
	"github.com/cdcsync/cdcsync/internal/pulse"
)

// tail is what the writer must know of the end of the blocks stream.
type tail struct {
	known   bool     // false until Tail has been called, and after a failed Append
	last    uint64   // the stream's last sequence, which the next publish expects
	orphans []uint64 // parts at the end that no whole block has
	count   uint64   // blocks that this Buffer has tried to append
}

// full says since when and why appending waits.
type full struct {
	since  time.Time // zero when it does not
	reason string
	disk   string // for reasonDisk: a clause with the numbers
}

// The header by which a writer knows its own block again when an acknowledgement was lost.
const idHeader = "Cdcsync-Id"

// headerBytes is room for the headers in a message, which count towards the largest payload.
const headerBytes = 1 << 10

// recordBytes is what the file store adds to a message: lengths, sequence, time, hash and our headers.
const recordBytes = 160

// Tail returns the footer of the last whole block; ok is false when there is none. Parts of a block that was not stored whole
// are passed over, and removed by the next Append.
func (b *Buffer) Tail(ctx context.Context) (footer cdc.Footer, ok bool, err error) {
	b.appending.Lock()
	defer b.appending.Unlock()
	b.tail.known = false
	if err := b.folder.intact(); err != nil {
		return cdc.Footer{}, false, err
	}
	info, err := b.streamInfo(ctx, b.names.blocks)
	if err != nil {
		return cdc.Footer{}, false, err
	}
	state := info.State
	block, end, first, orphans, err := b.lastBlock(ctx, state.FirstSeq, state.LastSeq)
	if err != nil {
		return cdc.Footer{}, false, err
	}
	if ok = block != nil; ok {
		if footer, err = cdc.ReadFooter(block); err != nil {
			return cdc.Footer{}, false, fmt.Errorf("block %d: %w", end, err)
		}
	} else {
		end, first = state.LastSeq, state.LastSeq+1 // nothing to keep
	}
	b.tail = tail{known: true, last: state.LastSeq, orphans: orphans, count: b.tail.count}

	b.mu.Lock()
	defer b.mu.Unlock()
	if b.stored.end != end {
		b.recent.clear()
	}
	b.stored.setEnd(end, first, footer.Resume)
	b.stored.first, b.stored.messages, b.stored.bytes, b.stored.last = state.FirstSeq, state.Msgs, state.Bytes, state.LastSeq
	broadcast(&b.appended)
	return footer, ok, nil
}

// lastBlock looks back from the stream's end for a block whose parts are all there; nil when there is none.
func (b *Buffer) lastBlock(ctx context.Context, first, last uint64) (block []byte, end, start uint64, orphans []uint64, err error) {
	for seq := last; seq >= first && seq > 0; seq-- {
		m, err := b.leaderGet(ctx, b.names.blocks, seq)
		if errors.Is(err, errNoMessage) {
			continue
		}
		if err != nil {
			return nil, 0, 0, nil, err
		}
		p, err := parsePart(m.header.Get(partHeader))
		if err != nil {
			return nil, 0, 0, nil, fmt.Errorf("message %d of stream %s: %w", seq, b.names.blocks, err)
		}
		if p.index < p.count {
			orphans = append(orphans, seq)
			continue
		}
		block, err := b.joinParts(ctx, m, p)
		return block, seq, seq - uint64(p.count-1), orphans, err
	}
	return nil, 0, 0, orphans, nil
}

// joinParts reads the block that ends with m.
func (b *Buffer) joinParts(ctx context.Context, m message, p part) ([]byte, error) {
	if p.count == 1 {
		return m.data, nil
	}
	var block []byte
	for seq := m.seq - uint64(p.count-1); seq < m.seq; seq++ {
		before, err := b.leaderGet(ctx, b.names.blocks, seq)
		if err != nil {
			return nil, fmt.Errorf("block %d: %w", m.seq, err)
		}
		if block == nil {
			block = p.room(len(before.data))
		}
		block = append(block, before.data...)
	}
	return append(block, m.data...), nil
}

// Append stores a block durably: when it returns nil, the block survives a loss of power. While the buffer is full, or NATS
// cannot be reached, it waits. After an error it is not known whether the block is stored: Tail has to be called before the
// next Append. The cause is ErrConflict when another writer has appended since the last Tail. block is kept, for sinks to read.
func (b *Buffer) Append(ctx context.Context, block []byte) error {
	b.appending.Lock()
	defer b.appending.Unlock()
	if !b.tail.known {
		return errors.New("append block: the end of the buffer is not known, Tail comes first")
	}
	footer, err := cdc.ReadFooter(block)
	if err != nil {
		return fmt.Errorf("append block: %w", err)
	}
	start := time.Now()
	b.tail.known = false
	first, end, err := b.appendParts(ctx, block)
	b.setFull("")
	if err == nil {
		err = b.folder.intact() // what is written to a file that was deleted succeeds, and is lost
	}
	if err != nil {
		return fmt.Errorf("append block: %w", err)
	}
	b.tail.known = true
	b.metrics.appended(len(block), time.Since(start))

	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.cfg.Sinks) > 0 {
		b.recent.add(end, b.stored.end, block, time.Now(), len(b.cfg.Sinks))
	} else {
		b.recent.clear()
	}
	b.tables.note(end, block)
	b.stored.setEnd(end, first, footer.Resume)
	b.stored.messages += end - first + 1
	b.stored.bytes += uint64(len(block)) + (end-first+1)*recordBytes
	b.stored.lastAppend = time.Now()
	broadcast(&b.appended)
	return nil
}

// appendParts stores the block's messages, and returns the first and the last sequence.
func (b *Buffer) appendParts(ctx context.Context, block []byte) (first, end uint64, err error) {
	if err := b.folder.intact(); err != nil {
		return 0, 0, err
	}
	if err := b.removeOrphans(ctx); err != nil {
		return 0, 0, err
	}
	parts := cut(block, int(b.write.MaxPayload())-headerBytes)
	if err := b.awaitRoom(ctx, len(block), len(parts)); err != nil {
		return 0, 0, err
	}
	if ctx.Err() != nil { // nothing is on its way yet
		return 0, 0, ctx.Err()
	}
	b.tail.count++
	id := b.writer + "." + strconv.FormatUint(b.tail.count, 10)
	b.mu.Lock()
	before := link{b.stored.end, b.stored.endReach}.String()
	b.mu.Unlock()
	for i, data := range parts {
		m := &nats.Msg{Subject: b.names.blockSubject, Data: data, Header: nats.Header{idHeader: {id}, linkHeader: {before}}}
		if len(parts) > 1 {
			m.Header[partHeader] = []string{part{i + 1, len(parts)}.String()}
		}
		if err := b.publishPart(ctx, m, id, len(data)); err != nil {
			return 0, 0, err
		}
		if i == 0 {
			first = b.tail.last
		}
	}
	return first, b.tail.last, nil
}

// publishPart stores m as the stream's next message, once, whatever happens to acknowledgements, and moves tail.last.
func (b *Buffer) publishPart(ctx context.Context, m *nats.Msg, id string, size int) error {
	next := b.tail.last + 1
	m.Header[jetstream.ExpectedLastSeqHeader] = []string{strconv.FormatUint(b.tail.last, 10)}
	waits := newAttempts()
	for {
		// What is on its way is seen to its end, so that the next start knows what is stored; waiting ends with ctx.
		attempt, cancel := context.WithTimeout(context.WithoutCancel(ctx), attemptTimeout)
		seq, err := b.publishOnce(attempt, m)
		cancel()
		if err != nil && isWrongSequence(err) {
			seq, err = b.ownSequence(ctx, next, id)
		}
		switch {
		case err == nil && seq == next:
			b.tail.last = seq
			return nil
		case err == nil:
			return &Error{Reason: fmt.Sprintf("the blocks stream gave sequence %d instead of %d", seq, next), Err: ErrConflict, Solution: "make sure that nothing else writes to " + b.names.blocks}
		case ctx.Err() != nil:
			return ctx.Err()
		case fullReason(err) != "":
			if err := b.awaitTrim(ctx, fullReason(err), size); err != nil {
				return err
			}
		case errors.Is(err, errWentBack):
			return err
		case b.isTransient(err):
			if waits.tell() {
				b.logger.Warn("block will be stored again", "err", err)
			}
			if err := waits.Wait(ctx); err != nil {
				return err
			}
		case errors.Is(err, ErrConflict):
			return &Error{Reason: "append to " + b.names.blocks, Err: err, Solution: "let only one daemon run on a slot and its buffer"}
		default:
			return &Error{Reason: "NATS could not store the block", Err: err, Solution: "see the log of NATS and the disk it writes to, then restart"}
		}
	}
}

// ownSequence answers a publish that was refused since the stream has moved on: either an earlier attempt of the same
// publish was stored and its acknowledgement lost, or somebody else has appended.
func (b *Buffer) ownSequence(ctx context.Context, seq uint64, id string) (uint64, error) {
	m, err := b.leaderGet(ctx, b.names.blocks, seq)
	switch {
	case err == nil && m.header.Get(idHeader) == id:
		return seq, nil
	case err == nil:
		return 0, ErrConflict
	case !errors.Is(err, errNoMessage):
		return 0, err
	}
	info, err := b.streamInfo(ctx, b.names.blocks)
	switch {
	case err != nil:
		return 0, err
	case info.State.LastSeq >= seq:
		return 0, ErrConflict // stored by somebody, and removed
	case b.folder != nil && info.State.LastSeq < seq-1:
		return 0, errWentBack // it was opened again after a failure to write, and what was being written is damaged
	}
	if b.folder != nil { // a damaged file was cut off while it was read, which the stream above the store has not noticed
		b.storeFailed("critical write error: malformed or corrupt messages at the end of " + b.names.blocks)
	}
	return 0, nats.ErrTimeout // a replicated stream counts what is on its way: ask again
}

// errWentBack says that the store has lost its end while it was being written to: the caller asks Tail for it, and goes on from there.
var errWentBack = errors.New("the store has lost its newest messages")

func isWrongSequence(err error) bool {
	var api *jetstream.APIError
	return errors.As(err, &api) &&
		(api.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequence || api.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequenceConstant)
}

// The reasons for which appending waits.
const (
	reasonMaxSize = "max_size"
	reasonDisk    = "disk"
	reasonAccount = "account"
)

// fullReason says which limit a publish met: the stream's (ErrMaxBytes in the server's store.go) or an account's; empty when none.
func fullReason(err error) string {
	const storeFailed, accountExceeded, insufficient = 10077, 10047, 10023
	var api *jetstream.APIError
	switch {
	case !errors.As(err, &api):
		return ""
	case api.ErrorCode == accountExceeded, api.ErrorCode == insufficient:
		return reasonAccount
	case api.ErrorCode == storeFailed && strings.Contains(api.Description, "maximum bytes exceeded"):
		return reasonMaxSize
	}
	return ""
}

// diskReserve is kept free on the disk for cursors and dead letters: embedded NATS that meets a full disk stops storing until it is restarted.
const diskReserve = 128 << 20

// awaitRoom waits until a block fits on the disk, and, when it has several parts, into max_size: parts that wait for room
// would hold room themselves.
func (b *Buffer) awaitRoom(ctx context.Context, size, parts int) error {
	need := uint64(size + parts*recordBytes)
	for b.space != nil {
		free, err := b.space()
		if err != nil {
			return err
		}
		if free >= need+diskReserve {
			break
		}
		b.mu.Lock()
		b.full.disk = b.diskFull(free)
		b.mu.Unlock()
		if err := b.awaitTrim(ctx, reasonDisk, size); err != nil {
			return err
		}
	}
	for parts > 1 && b.cfg.MaxSize > 0 {
		b.mu.Lock()
		used := b.stored.bytes
		b.mu.Unlock()
		if used+need <= uint64(b.cfg.MaxSize) {
			break
		}
		if err := b.awaitTrim(ctx, reasonMaxSize, size); err != nil {
			return err
		}
	}
	return nil
}

// awaitTrim waits until blocks have been trimmed, or for a moment: an operator may have made room, too.
func (b *Buffer) awaitTrim(ctx context.Context, reason string, size int) error {
	b.mu.Lock()
	trimmed := b.trimmed
	onlyLast := b.stored.messages == 0 || b.stored.first >= b.stored.endFirst
	b.mu.Unlock()
	b.setFull(reason)
	if onlyLast && reason == reasonMaxSize {
		return &Error{
			Reason:   fmt.Sprintf("a block of %d bytes does not fit beside the last one", size),
			Solution: fmt.Sprintf("raise buffer.max_size, which is %d bytes", b.cfg.MaxSize),
		}
	}
	wake(b.trim)
	defer pulse.Rest(ctx)() // that it waits is known
	const again = 500 * time.Millisecond
	timer := time.NewTimer(again)
	defer timer.Stop()
	select {
	case <-trimmed:
	case <-timer.C:
	case <-ctx.Done():
		return ctx.Err()
	}
	return nil
}

// explain is the reason with its numbers, where it has some.
func (f *full) explain(reason string) string {
	if reason == reasonDisk && f.disk != "" {
		return reason + ": " + f.disk
	}
	return reason
}

// setFull records why appending waits; empty means that it does not.
func (b *Buffer) setFull(reason string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case reason == "" && b.full.reason != "":
		b.logger.Info("buffer has room again", "waited", time.Since(b.full.since).Round(time.Millisecond))
		b.full = full{}
	case reason != "" && b.full.reason == "":
		b.logger.Warn("buffer is full, capture waits", "reason", b.full.explain(reason), "bytes", b.stored.bytes, "max_bytes", b.cfg.MaxSize)
		b.full.since = time.Now()
		b.full.reason = reason
	case reason != "":
		b.full.reason = reason
	}
}

// removeOrphans removes the parts of a block that was never stored whole.
func (b *Buffer) removeOrphans(ctx context.Context) error {
	if len(b.tail.orphans) == 0 {
		return nil
	}
	stream, err := b.js.Stream(ctx, b.names.blocks)
	if err != nil {
		return fmt.Errorf("remove parts: %w", err)
	}
	for _, seq := range b.tail.orphans {
		err := b.retry(ctx, "remove part", func(ctx context.Context) error {
			err := stream.DeleteMsg(ctx, seq)
			if errors.Is(err, jetstream.ErrMsgNotFound) || errors.Is(err, jetstream.ErrMsgDeleteUnsuccessful) {
				return nil // an attempt before succeeded
			}
			return err
		})
		if err != nil {
			return fmt.Errorf("remove part %d: %w", seq, err)
		}
	}
	b.tail.orphans = nil
	return nil
}
