package replication

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/sourcegraph/conc/pool"

	"github.com/cdcsync/cdcsync/internal/cdc"
)

// session is the life of one connection, from START_REPLICATION on. Three goroutines share it: read owns the connection,
// publish owns the log, and the outbox lies between them; carryBackfills reads existing rows and puts them into the outbox, too.
type session struct {
	cfg     *Config
	log     Log
	logger  *slog.Logger
	metrics *metrics
	status  *board
	catalog relationSource
	loops   loops

	conn    net.Conn // owned by read
	frames  *frames  // owned by read
	out     *outbox
	source  incarnation     // owned by publish
	history history         // owned by read, but for the channel
	clock   clock           // owned by read
	flow    flow            // owned by read
	mapped  map[string]bool // by schema.table

	survey *surveyor // nil when nothing is surveyed

	relations map[uint32]*relation // owned by read, as is all below
	announced *relation            // last; nil once a change has followed
	last      *relation            // of the row before, which is most often that of the next
	leaves    leaves
	charset   *cdc.Charset // in which names and rows come

	definitions definitions
	typeNames   map[uint32]string                     // of types that are not built in, by OID
	types       atomic.Pointer[map[uint32]definition] // for publish to remember
	tx          transaction
	tally       tally

	// The backfill's part: tracking and pending are guarded by out.mu.
	tracking tracking
	pending  *appending    // waits for the end of the transaction
	moved    chan struct{} // size 1: the stream has gone on
	asked    atomic.Bool   // a status update is wanted whose answer says how far the stream is
}

// relationSource completes a Relation message from the catalogue: types and primary key.
type relationSource interface {
	enrich(ctx context.Context, rel *cdc.Relation) error
	definitionSource
}

// relation is the present version of a table in the stream.
type relation struct {
	*cdc.Relation
	mapped  bool
	encoded []byte // of a mapped one

	announced  *cdc.Relation // with the types that the catalogue had when it was announced
	shifting   []int         // columns whose types have fields, which may be others now
	definedFor cdc.LSN       // the transaction for which the types are what they are
}

// session connects, prepares and streams until something ends it. It never returns nil.
func (s *Stream) session(ctx context.Context) error {
	s.status.connecting()
	server, err := dialServer(ctx, s.cfg.URL, s.cfg.MaxRow)
	if err != nil {
		return connectError(err, s.status.everStreamed())
	}
	defer server.close(ctx)
	plan, err := s.prepare(ctx, server)
	if err != nil {
		return err
	}
	server.closeSQL(ctx)
	definitions := newDefinitions(plan.source.Types)
	if err := definitions.begin(ctx, s.catalog, s.cfg.Tables); err != nil {
		return err
	}
	conn, err := server.wire.start(ctx, plan.command(&s.cfg))
	if err != nil {
		return streamError(&s.cfg, err)
	}
	s.logger.InfoContext(ctx, "streaming", "slot", s.cfg.Slot, "start", plan.from, "stored", plan.start(), "open", plan.tail.Resume.Open, "stored_changes", plan.tail.Resume.Ordinal)
	s.status.streaming(plan.start())
	session := s.newSession(plan, conn, server.wire.frames)
	session.definitions = definitions
	session.charset = server.charset
	if s.cfg.Backfills != nil {
		if session.tracking, err = s.cfg.Backfills.recall(ctx, plan.tail.State); err != nil {
			return err
		}
	}
	return session.run(ctx)
}

func (s *Stream) newSession(plan *plan, conn net.Conn, frames *frames) *session {
	mapped := make(map[string]bool)
	for _, t := range s.cfg.Tables {
		mapped[t.String()] = true
	}
	ses := &session{
		cfg: &s.cfg, log: s.log, logger: s.logger, metrics: s.metrics, status: s.status, catalog: s.catalog, loops: s.loops,
		conn: conn, frames: frames, out: newOutbox(plan.tail, plan.source.Confirmed, plan.witness()),
		source: plan.source, clock: newClock(plan.senderTimeout, plan.confirmed), mapped: mapped, survey: s.survey,
		relations: make(map[uint32]*relation), typeNames: make(map[uint32]string), definitions: newDefinitions(plan.source.Types),
		tally: tally{received: plan.start()}, moved: make(chan struct{}, 1),
		history: plan.history,
	}
	ses.history.shown = make(chan struct{})
	if !ses.history.pending {
		close(ses.history.shown)
	}
	return ses
}

// run ends when the connection or the log fails, or ctx ends; what the log has by then is confirmed.
func (s *session) run(ctx context.Context) error {
	p := pool.New().WithContext(ctx).WithCancelOnError().WithFirstError()
	p.Go(s.loops.reader.Guard(s.read))
	p.Go(s.loops.publisher.Guard(s.publish))
	p.Go(s.loops.backfills.Guard(s.carryBackfills))
	if s.survey != nil {
		p.Go(s.loops.survey.Guard(s.survey.run))
	}
	err := p.Wait()
	if final := s.confirm(time.Now(), false); final != nil && ctx.Err() != nil {
		s.logger.WarnContext(ctx, "last status update not sent", "err", final)
	}
	return err
}

// publish stores blocks until ctx ends. A block in flight is seen to its end, so that what comes next knows what the log holds.
func (s *session) publish(ctx context.Context) error {
	flight, cancel := withGrace(ctx)
	defer cancel()
	ripe := time.NewTimer(gatherWait)
	defer ripe.Stop()
	for {
		if err := s.remember(flight); err != nil {
			return err
		}
		for next, ok := s.out.take(); ok; next, ok = s.out.take() {
			s.loops.publisher.Beat()
			if err := s.settle(ctx, flight, next); err != nil {
				return err
			}
			if ctx.Err() != nil {
				return ctx.Err()
			}
		}
		if ripe.Stop(); s.out.gather() {
			ripe.Reset(gatherWait)
		}
		s.loops.publisher.Rest()
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-s.out.work:
		case <-ripe.C:
			s.out.ripen()
		}
		s.loops.publisher.Beat()
	}
}

// withGrace ends a while after ctx does.
func withGrace(ctx context.Context) (context.Context, context.CancelFunc) {
	const grace = 2 * time.Second // a durable write takes milliseconds
	flight, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() {
		timer := time.AfterFunc(grace, cancel)
		context.AfterFunc(flight, func() { timer.Stop() })
	})
	return flight, func() { stop(); cancel() }
}

// settle does what is next: a block's Append knows by itself what to do when ctx ends.
func (s *session) settle(ctx, flight context.Context, next parcel) error {
	if next.do == nil {
		return s.store(ctx, next)
	}
	if err := next.do(flight); err != nil {
		return err
	}
	s.out.did()
	return nil
}

func (s *session) store(ctx context.Context, next parcel) error {
	block := next.block
	footer, err := cdc.ReadFooter(block)
	if err != nil {
		return err
	}
	begun := time.Now()
	if err := s.log.Append(ctx, block); err != nil {
		if isConflict(err) {
			return &Error{
				Reason:   "another cdcsync writes to the same buffer; going on would interleave two captures",
				Solution: "stop one of them, or give each a slot and a buffer of its own",
				Err:      err,
			}
		}
		return fmt.Errorf("store block: %w", err)
	}
	s.metrics.appended(len(block), time.Since(begun))
	s.out.done(next, footer.Resume)
	s.status.stored(footer.Resume.End, footer.LastCommit)
	return nil
}

// remember has the log remember an LSN that is to be confirmed without a block.
func (s *session) remember(ctx context.Context) error {
	lsn, witness := s.out.wanted()
	types := s.types.Swap(nil)
	if lsn == 0 && types == nil {
		return nil
	}
	if types != nil {
		s.source.Types = *types
	}
	if lsn != 0 {
		s.source.Confirmed, s.source.Witness = lsn, witness
	}
	if err := s.log.SetSource(ctx, s.source.encode()); err != nil {
		return fmt.Errorf("store position %s: %w", lsn, err)
	}
	if lsn != 0 {
		s.out.remembered(lsn)
	}
	return nil
}

// read takes the server's messages until the connection fails or ctx ends.
func (s *session) read(ctx context.Context) error {
	stop := context.AfterFunc(ctx, s.wake)
	defer stop()
	for {
		if err := s.drain(ctx); err != nil {
			return err
		}
		s.account()
		if err := s.waitForRoom(ctx); err != nil {
			return err
		}
		if err := s.fill(ctx); err != nil {
			return err
		}
	}
}

// wake ends a read that waits; read then looks at its context.
func (s *session) wake() {
	_ = s.conn.SetReadDeadline(time.Unix(1, 0)) // a connection that is closed needs no waking
}

// drain takes all messages that are buffered.
func (s *session) drain(ctx context.Context) error {
	s.out.mu.Lock()
	defer s.out.mu.Unlock()
	s.out.busy = s.flow.busy
	defer s.out.offer()
	if s.tracking.backfill != "" {
		defer signal(s.moved)
	}
	for {
		kind, body, ok, err := s.frames.next()
		switch {
		case errors.Is(err, errTooLong):
			err = s.oversized(ctx)
		case err == nil && !ok:
			return nil
		case err == nil:
			err = s.frame(ctx, kind, body)
		}
		if err != nil {
			return err
		}
	}
}

// unlocked lets the publisher go on while fn waits for something.
func (s *session) unlocked(fn func() error) error {
	s.out.offer()
	s.out.mu.Unlock()
	defer s.out.mu.Lock()
	return fn()
}

// fill waits for bytes from the server, and does what the clock and backfills ask for meanwhile.
func (s *session) fill(ctx context.Context) error {
	for {
		if err := s.arm(ctx); err != nil {
			return err
		}
		if s.asked.Swap(false) { // looked at after the deadline was set, so that ping's is not undone
			if err := s.confirm(time.Now(), true); err != nil {
				return err
			}
			continue
		}
		before := s.frames.read
		err := s.frames.fill()
		now := time.Now()
		s.loops.reader.BeatAt(now)
		s.flow.add(int(s.frames.read-before), now)
		switch {
		case err == nil:
			s.clock.heard(now)
		case errors.Is(err, os.ErrDeadlineExceeded):
			s.clock.armed = time.Time{} // it may have been ping's
		default:
			return fmt.Errorf("receive: %w", err)
		}
		if !s.clock.due(now) {
			if err == nil {
				return nil
			}
			continue
		}
		if tickErr := s.tick(now); tickErr != nil || err == nil {
			return tickErr
		}
	}
}

// ping has a status update sent whose answer says how far the stream is. It may be called by any goroutine.
func (s *session) ping() {
	s.asked.Store(true)
	s.wake()
}

// hasPassed says whether the stream has passed the chunk that was appended last.
func (s *session) hasPassed() bool {
	s.out.mu.Lock()
	defer s.out.mu.Unlock()
	return s.tracking.merge.passed(s.out.writer.Resume().End)
}

// arm sets the read deadline, if it is not the present one.
func (s *session) arm(ctx context.Context) error {
	if s.clock.received > s.clock.confirmed {
		s.clock.hurry(time.Now())
	}
	if !s.clock.next.Equal(s.clock.armed) {
		s.clock.armed = s.clock.next
		if err := s.conn.SetReadDeadline(s.clock.next); err != nil {
			return fmt.Errorf("receive: %w", err)
		}
	}
	return ctx.Err() // looked at after the deadline was set, so that wake is not undone
}

// waitForRoom goes on answering the server while nothing more can be taken.
func (s *session) waitForRoom(ctx context.Context) error {
	if !s.out.full() {
		return ctx.Err()
	}
	timer := time.NewTimer(time.Until(s.clock.next))
	defer timer.Stop()
	for s.out.full() {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-s.out.room:
		case <-timer.C:
			s.status.bufferFull()
			now := time.Now()
			s.loops.reader.BeatAt(now)
			s.clock.deaf(now)
			if err := s.tick(now); err != nil {
				return err
			}
			timer.Reset(time.Until(s.clock.next))
		}
	}
	s.clock.deaf(time.Now())
	s.status.bufferTaken()
	return nil
}

// tick is what the clock asks for: confirm what is stored, have remembered what may be confirmed next, and find out whether the server is there.
func (s *session) tick(now time.Time) error {
	if s.clock.silentFor(now) > s.clock.timeout {
		return fmt.Errorf("receive: nothing from the server for %s", s.clock.silentFor(now).Round(time.Second))
	}
	p := s.out.progress()
	if p.settled > p.safe {
		s.out.remember(p.settled)
	}
	if lsn := s.confirmable(); lsn <= s.clock.confirmed && !s.clock.owes(now) {
		s.clock.wait(now)
		return nil
	}
	return s.confirm(now, s.clock.silentFor(now) > s.clock.interval)
}

// confirmable is what the server may forget.
func (s *session) confirmable() cdc.LSN {
	p := s.out.progress()
	if !s.cfg.AckDelivered {
		return p.safe
	}
	if delivered := s.log.Delivered(); delivered < p.stored {
		return delivered
	}
	return p.safe
}

// confirm sends a status update.
func (s *session) confirm(now time.Time, replyRequested bool) error {
	lsn := s.clock.confirmed
	if !s.history.pending { // else what the log has may belong to another history, and the slot must not be moved by it
		lsn = max(lsn, s.confirmable())
	}
	if lsn > s.tally.received {
		return fmt.Errorf("position %s would be confirmed, but only %s was received: this is a defect of cdcsync", lsn, s.tally.received)
	}
	if err := s.send(statusUpdate(lsn, now, replyRequested)); err != nil {
		return err
	}
	s.clock.sent(now, lsn)
	s.status.confirmed(lsn)
	return nil
}

func (s *session) send(message []byte) error {
	const patience = 10 * time.Second // 39 bytes go into a socket's buffer, unless the peer is gone
	if err := s.conn.SetWriteDeadline(time.Now().Add(patience)); err != nil {
		return fmt.Errorf("status update: %w", err)
	}
	if _, err := s.conn.Write(message); err != nil {
		return fmt.Errorf("status update: %w", err)
	}
	return nil
}

// statusUpdate says that all before lsn is written, flushed and applied.
func statusUpdate(lsn cdc.LSN, now time.Time, replyRequested bool) []byte {
	const length = 4 + 1 + 8 + 8 + 8 + 8 + 1
	m := make([]byte, 0, 1+length)
	m = append(m, frameCopyData)
	m = binary.BigEndian.AppendUint32(m, length)
	m = append(m, 'r')
	for range 3 {
		m = binary.BigEndian.AppendUint64(m, uint64(lsn))
	}
	m = binary.BigEndian.AppendUint64(m, uint64(now.Sub(postgresEpoch).Microseconds()))
	if replyRequested {
		return append(m, 1)
	}
	return append(m, 0)
}

// frame takes one message of the connection. s.out.mu is held.
func (s *session) frame(ctx context.Context, kind byte, body []byte) error {
	switch kind {
	case frameCopyData:
		return s.copyData(ctx, body)
	case frameNotice, frameParameter:
		return nil
	case frameCopyDone:
		return errors.New("receive: the server has ended replication")
	case frameError:
		var m pgproto3.ErrorResponse
		if err := m.Decode(body); err != nil {
			return fmt.Errorf("receive: %w", err)
		}
		return streamError(s.cfg, pgconn.ErrorResponseToPgError(&m))
	}
	return fmt.Errorf("receive: unknown message %q", kind)
}

func (s *session) copyData(ctx context.Context, body []byte) error {
	if len(body) == 0 {
		return errShort
	}
	switch body[0] {
	case dataXLog:
		x, err := parseXLog(body)
		if err != nil {
			return err
		}
		s.tally.serverEnd = max(s.tally.serverEnd, x.walEnd)
		if err := s.message(ctx, x.data); err != nil {
			return fmt.Errorf("message %q of transaction %s: %w", x.data[0], cdc.Position{Commit: s.tx.commit, Ordinal: s.tx.ordinal}, err)
		}
		return nil
	case dataKeepalive:
		k, err := parseKeepalive(body)
		if err != nil {
			return err
		}
		return s.keepalive(k)
	}
	return fmt.Errorf("receive: unknown replication message %q", body[0])
}

func (s *session) keepalive(k keepalive) error {
	s.tally.serverEnd = max(s.tally.serverEnd, k.walEnd)
	if s.tx.commit == 0 {
		if err := s.history.passed(k.walEnd); err != nil {
			return err
		}
		s.advance(k.walEnd)
	}
	if !k.reply {
		return nil
	}
	return s.unlocked(func() error { return s.confirm(time.Now(), false) })
}

// advance records that the server has nothing to send before lsn that was not received.
func (s *session) advance(lsn cdc.LSN) {
	s.out.writer.Advance(lsn)
	s.tally.received = max(s.tally.received, lsn)
}

// account hands on what drain has counted.
func (s *session) account() {
	t := &s.tally
	t.bytes, t.openBytes = s.frames.read-t.bytesBefore, s.tx.bytes
	t.bytesBefore = s.frames.read
	s.metrics.received(t)
	s.status.received(t, s.clock.last)
	s.status.stored(s.out.progress().settled, time.Time{})
	s.clock.received = max(s.clock.received, t.received)
	*t = tally{bytesBefore: t.bytesBefore, received: t.received, serverEnd: t.serverEnd, lastCommit: t.lastCommit}
}

// tally counts what one drain has taken, so that the hot path touches nothing shared.
type tally struct {
	bytes, bytesBefore, openBytes       int64
	changes, skipped, repeated, commits int
	oversized                           int
	received, serverEnd                 cdc.LSN
	lastCommit                          time.Time
}
