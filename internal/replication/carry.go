package replication

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	limits "golang.org/x/time/rate"

	"github.com/cdcsync/cdcsync/internal/backoff"
	"github.com/cdcsync/cdcsync/internal/cdc"
	"github.com/cdcsync/cdcsync/internal/pulse"
)

// carrier carries one backfill through one session: it reads chunks and hands them to the stream's log between transactions.
type carrier struct {
	s      *session
	b      *Backfills
	e      *backfillEntry
	reader *chunkReader // used by one goroutine at a time: by that of ahead while it reads
	sizer  sizer
	chunk  *chunk   // what is appended
	size   int      // that chunk was read with
	ahead  *reading // what comes after it; nil for nothing
	spare  *chunk   // memory for the next reading

	limiter     *limits.Limiter
	outstanding []outstanding // chunks whose delivery is not known to have ended
	had         Vanished      // rows that the sinks are known to have, when a gap is to be closed
	withdrawn   uint32        // rows
	delivered   time.Time     // when the last of those that have ended was seen to
}

type outstanding struct {
	stored   chan uint64 // size 1: the chunk's place in the log, once it is there
	size     int
	appended time.Time
}

const (
	// chunksAhead is how many chunks may wait for delivery: one is delivered while the next is stored.
	chunksAhead = 2
	// staleChunk is how old a chunk may be when it is appended; every change meanwhile costs memory, and a row to be read again.
	staleChunk = time.Second
)

// carryBackfills carries one backfill after another until ctx ends.
func (s *session) carryBackfills(ctx context.Context) error {
	b := s.cfg.Backfills
	if b == nil {
		return nil
	}
	s.loops.backfills.Rest() // one that is carried has a pulse of its own
	select {
	case <-s.history.shown: // else rows would be stored behind changes that never happened there
	case <-ctx.Done():
		return ctx.Err()
	}
	for {
		e, run, err := b.next(ctx)
		if err != nil {
			return err
		}
		if err := s.carry(ctx, run, b, e); err != nil {
			return err
		}
	}
}

// carry returns nil when the backfill has ended or was paused, and everything says so.
func (s *session) carry(ctx, run context.Context, b *Backfills, e *backfillEntry) error {
	defer b.left(e)
	c := &carrier{s: s, b: b, e: e, reader: b.reader(&e.BackfillSpec), sizer: sizer{readable: firstChunk}, chunk: new(chunk), spare: new(chunk)}
	defer c.reader.close(ctx)
	if e.Rate > 0 {
		const bursts = 5 // a second
		c.limiter = limits.NewLimiter(limits.Limit(e.Rate), max(1, int(e.Rate/bursts)))
	}
	wait := backoff.Attempts{Range: reconnects}
	for run.Err() == nil {
		before := e.place.Chunk
		err := s.loops.carrier.Run(run, c.run)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case run.Err() != nil:
			continue
		case err == nil:
			b.end(e, BackfillDone, "")
			return c.fold(ctx)
		case isFinal(err):
			s.logger.WarnContext(ctx, "backfill failed", "id", e.ID, "table", e.Table.String(), "err", err)
			b.end(e, BackfillFailed, err.Error())
			return c.fold(ctx)
		case e.place.Chunk > before:
			wait.Reset()
		}
		delay := wait.Next()
		s.logger.WarnContext(ctx, "backfill interrupted", "id", e.ID, "table", e.Table.String(), "retry_in", delay, "err", err)
		b.because(e, err.Error())
		_ = backoff.Sleep(run, delay) // the loop looks at run, too
	}
	return c.fold(ctx)
}

// isFinal says whether a failed query fails again: what the server says of it, and not of itself.
func isFinal(err error) bool {
	if IsPermanent(err) || isPanic(err) {
		return true
	}
	var pgErr *pgconn.PgError
	if !errors.As(err, &pgErr) || len(pgErr.Code) < 2 {
		return false
	}
	switch pgErr.Code[:2] {
	case "08", "40", "53", "55", "57", "58", "XX": // connection, rollback, resources, state, operator, system
		return false
	}
	return true
}

// run carries the backfill to its end.
func (c *carrier) run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer c.forget() // what was read ahead is of no use to another run, whose tracking may begin anew
	defer cancel()
	if err := c.track(ctx); err != nil {
		return err
	}
	if c.e.place.Scanned == 0 { // what is delivered meanwhile is trimmed from the log before the end
		if _, err := c.gather(ctx); err != nil {
			return err
		}
	}
	for !c.e.place.done() {
		if err := c.one(ctx); err != nil {
			return err
		}
	}
	c.b.because(c.e, "")
	if err := c.withdraw(ctx); err != nil {
		return err
	}
	c.rest(ctx)
	return c.room(ctx, 0)
}

// rest closes the connection for a wait of any length.
func (c *carrier) rest(ctx context.Context) {
	c.readerFree()
	c.reader.close(ctx)
}

// track sees to it that the stream tracks the table's keys, and waits until every transaction has ended that was open then: what it
// had delivered before is seen by every snapshot after.
func (c *carrier) track(ctx context.Context) error {
	if err := c.reader.open(ctx); err != nil {
		return err
	}
	c.beginTracking()
	_, limit, err := c.reader.horizon(ctx)
	if err != nil {
		return err
	}
	for wait := time.Millisecond; ; wait = min(2*wait, 200*time.Millisecond) {
		oldest, _, err := c.reader.horizon(ctx)
		if err != nil {
			return err
		}
		if int32(oldest-limit) >= 0 {
			c.b.because(c.e, "")
			return nil
		}
		c.b.because(c.e, "waits until the transactions that are open now have ended: see pg_stat_activity, oldest xact_start first")
		beat := pulse.Rest(ctx)
		if err := backoff.Sleep(ctx, wait); err != nil {
			return err
		}
		beat()
	}
}

// beginTracking goes on with what was recalled from the log, if there is anything.
func (c *carrier) beginTracking() {
	c.s.out.mu.Lock()
	defer c.s.out.mu.Unlock()
	t := &c.s.tracking
	key := c.reader.keyNames()
	if t.backfill == c.e.ID && slices.Equal(t.key, key) {
		return
	}
	t.begin(c.e.ID, c.e.Table.String(), key, c.e.Sinks)
}

// one appends the next chunk, while the one behind it is read.
func (c *carrier) one(ctx context.Context) error {
	pulse.Beat(ctx)
	if err := c.read(ctx); err != nil {
		return err
	}
	c.readAhead(ctx)
	if err := c.passed(ctx); err != nil {
		return err
	}
	fresh, cancel := context.WithDeadline(ctx, c.chunk.at.Add(staleChunk))
	err := c.room(fresh, chunksAhead-1)
	cancel()
	if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
		c.b.because(c.e, "waits until the sinks have delivered what was read before")
		c.rest(ctx)
		err = c.room(ctx, chunksAhead-1)
		c.b.because(c.e, "")
		if err == nil {
			return nil // the chunk is read again
		}
	}
	if err != nil {
		return err
	}
	return c.append(ctx)
}

// room waits until at most so many chunks wait for delivery.
func (c *carrier) room(ctx context.Context, ahead int) error {
	defer pulse.Rest(ctx)()
	for len(c.outstanding) > ahead {
		first := c.outstanding[0]
		var at uint64
		select {
		case at = <-first.stored:
		case <-ctx.Done():
			return ctx.Err()
		}
		last, err := c.b.deliveries.Settled(ctx, c.e.Sinks, at)
		if err != nil {
			first.stored <- at // size 1
			return err
		}
		began, now := first.appended, time.Now()
		if c.delivered.After(began) {
			began = c.delivered
		}
		c.sizer.delivered(first.size, now.Sub(began), c.b.deliveries.Round(last))
		c.outstanding, c.delivered = c.outstanding[1:], now
	}
	return nil
}

// append hands the chunk to the log, between two transactions of the stream.
func (c *carrier) append(ctx context.Context) error {
	a := &appending{carrier: c, done: make(chan error, 1)}
	if err := c.s.between(ctx, a); err != nil {
		return err
	}
	c.b.counted(c.e)
	fill := c.chunk.fill()
	if cap(c.chunk.frames) > 2*chunkBytes { // the log has a large row now
		c.chunk.frames = nil
	}
	c.s.metrics.backfilled(a.appended, a.hidden)
	c.sizer.read(c.chunk.size(c.size), c.chunk.took, fill)
	if c.limiter == nil || a.appended == 0 {
		return nil
	}
	defer pulse.Rest(ctx)()
	for left := a.appended; left > 0; left -= c.limiter.Burst() {
		if err := c.limiter.WaitN(ctx, min(left, c.limiter.Burst())); err != nil {
			return err
		}
	}
	return nil
}

// passed waits until the stream has passed the chunk's L. On a quiet source the answer to a status update says so; where L lies in
// WAL that is not flushed, a commit of our own has it flushed.
func (c *carrier) passed(ctx context.Context) error {
	const (
		first   = 2 * time.Millisecond
		longest = 200 * time.Millisecond
		nudge   = 5 * time.Millisecond
		idle    = 4 * time.Second
	)
	nudged, rested, begun := false, false, time.Now()
	for wait := first; ; {
		if c.s.hasPassed() {
			return nil
		}
		if !nudged && time.Since(begun) >= nudge {
			nudged = true
			c.readerFree()
			if err := c.reader.nudge(ctx); err != nil {
				c.s.logger.DebugContext(ctx, "nudge refused", "err", err) // the server writes and flushes by itself, if later
			}
		}
		if !rested && time.Since(begun) >= idle {
			rested = true
			c.rest(ctx)
		}
		beat := pulse.Rest(ctx)
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		case <-c.s.moved:
			timer.Stop()
		case <-timer.C:
			c.s.ping()
			wait = min(2*wait, longest)
		}
		beat()
	}
}

// fold makes the entry say how far it is, once the stream has passed the last chunk, and ends tracking.
func (c *carrier) fold(ctx context.Context) error {
	if err := c.passed(ctx); err != nil {
		return err
	}
	s, e := c.s, c.e
	folded := e.place
	ended := make(chan struct{})
	s.out.mu.Lock()
	s.tracking.begin("", "", nil, nil)
	s.out.push(func(ctx context.Context) error {
		c.b.mu.Lock()
		e.folded = folded
		c.b.mu.Unlock()
		if err := c.b.save(ctx, e); err != nil {
			return err
		}
		close(ended)
		return c.b.store.DeleteValue(ctx, chunkPrefix+e.ID)
	})
	s.out.mark = nil
	s.out.offer()
	s.out.mu.Unlock()
	select {
	case <-ended:
		s.logger.InfoContext(ctx, "backfill stopped", "id", e.ID, "table", e.Table.String(), "state", c.b.state(e), "rows", folded.Rows)
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (b *Backfills) state(e *backfillEntry) BackfillState {
	b.mu.Lock()
	defer b.mu.Unlock()
	return e.State
}

// appending is a chunk on its way into the log.
type appending struct {
	*carrier
	appended, hidden int
	done             chan error   // size 1
	instead          func() error // what run does when it appends no chunk
}

// between runs the appending when no transaction is open: at once, or at the end of the one that is.
func (s *session) between(ctx context.Context, a *appending) error {
	s.out.mu.Lock()
	if s.tx.commit == 0 && s.out.writer.Resume().Open == 0 {
		defer s.out.mu.Unlock()
		return a.run()
	}
	s.pending = a
	s.out.mu.Unlock()
	defer pulse.Rest(ctx)()
	select {
	case err := <-a.done:
		return err
	case <-ctx.Done():
	}
	s.out.mu.Lock()
	defer s.out.mu.Unlock()
	if s.pending == a {
		s.pending = nil
		return ctx.Err()
	}
	return <-a.done // it was just in time
}

// appendPending is called at the end of a transaction. s.out.mu is held.
func (s *session) appendPending() {
	if a := s.pending; a != nil {
		s.pending = nil
		a.done <- a.run()
	}
}

// run decides about the rows and appends those that are admitted, behind the record of them. s.out.mu is held.
func (a *appending) run() error {
	if a.instead != nil {
		return a.instead()
	}
	s, e, c := a.s, a.e, a.chunk
	t := &s.tracking
	if t.backfill != e.ID || !slices.Equal(t.key, c.keyNames) {
		return errors.New("the table's key has changed") // tracking begins anew
	}
	blind := t.merge.blind(c.snapshot)
	hidden := t.merge.admit(c.snapshot, c.lsn, c.allKeys())
	record := a.record(hidden, blind)
	s.out.push(func(ctx context.Context) error {
		value, err := json.Marshal(record)
		if err != nil {
			return fmt.Errorf("record of a chunk: %w", err)
		}
		return a.b.store.SetValue(ctx, chunkPrefix+e.ID, value)
	})
	s.out.mark = &chunkMark{Backfill: e.ID, Chunk: record.Chunk}
	s.out.aside = true
	a.rows(hidden, e.place.Rows)
	if s.out.dirty {
		s.out.seal(blockSize)
	}
	s.out.aside = false
	stored := make(chan uint64, 1)
	s.out.push(func(context.Context) error {
		stored <- a.b.deliveries.Stored()
		return nil
	})
	a.outstanding = append(a.outstanding, outstanding{stored: stored, size: a.size, appended: time.Now()})
	e.place = record.Next
	t.merge.passed(s.out.writer.Resume().End)
	s.out.offer()
	return nil
}

// allKeys are parts of one string.
func (c *chunk) allKeys() []string {
	all := string(c.keys)
	keys, from := make([]string, len(c.rows)), 0
	for i := range c.rows {
		keys[i], from = all[from:c.rows[i].key], c.rows[i].key
	}
	return keys
}

// record is what has to be known of the chunk after a crash.
func (a *appending) record(hidden []int, blind bool) *chunkRecord {
	c, before := a.chunk, a.e.place
	a.appended, a.hidden = len(c.rows)-len(hidden), len(hidden)
	r := &chunkRecord{
		Chunk: before.Chunk + 1, Snapshot: c.snapshot.String(), LSN: c.lsn, Key: c.keyNames, Before: before,
		Again: c.again, Count: a.appended, Columns: c.columns, Keys: make([]byte, 0, len(c.keys)),
	}
	r.Next = place{Chunk: r.Chunk, Rows: before.Rows + int64(a.appended), Scanned: before.Scanned + int64(c.scanned), After: slices.Clone(c.next), End: c.end}
	r.Next.Again = slices.Clone(before.Again[c.asked:])
	from := 0
	for _, i := range hidden {
		key := c.key(i)
		r.Keys = append(r.Keys, c.keys[from:c.rows[i].key-len(key)]...)
		from = c.rows[i].key
		if len(r.Key) > 0 {
			r.Next.Again = append(r.Next.Again, slices.Clone(key))
		}
		if i < c.again {
			r.Again--
		}
	}
	r.Keys = append(r.Keys, c.keys[from:]...)
	if len(r.Key) == 0 && blind { // which rows were overtaken is not known, and without a key they can only be read again together
		r.Next.After, r.Next.End, r.Next.Scanned = before.After, before.End, before.Scanned
	}
	return r
}

// rows appends what is not hidden, in blocks of its own: the table's version is that of the catalogue, not that of the stream.
func (a *appending) rows(hidden []int, before int64) {
	c := a.chunk
	w := &a.s.out.writer
	w.Grow(min(len(c.frames)+footerSlack, chunkBlockSize))
	w.BeginChunk(cdc.Chunk{LSN: c.lsn, At: c.at, Ordinal: uint32(before), Targets: a.e.Sinks})
	for i := 0; i < len(c.rows); {
		if len(hidden) > 0 && hidden[0] == i {
			hidden = hidden[1:]
			i++
			continue
		}
		end := len(c.rows)
		if len(hidden) > 0 {
			end = hidden[0]
		}
		i = a.some(i, end)
	}
	w.EndChunk()
}

// some appends rows from the first on, as many as are alike and fit into the block that grows, or into a new one, and returns the first that does not.
func (a *appending) some(first, end int) (next int) {
	out, c := a.s.out, a.chunk
	w := &out.writer
	from := c.from(first)
	size := c.rows[first].frame - from
	out.reserve(size + len(c.encoded))
	if size >= largeMessage {
		collect(size)
		w.Grow(size + len(c.encoded) + footerSlack)
	}
	if !w.Has(c.relation.OID) {
		w.Relation(c.relation.OID, c.encoded)
	}
	out.dirty = true
	if large := c.rows[first].oversized; large > 0 {
		w.Oversized(cdc.OpRead, c.relation.OID, cdc.Oversized{Bytes: large, Key: string(c.frames[from : from+size])})
		out.mark.Rows++
		return first + 1
	}
	room := out.limit() - footerSlack - w.Len()
	next = first + 1
	for next < end && c.rows[next].oversized == 0 && c.rows[next].frame-from <= room {
		next++
	}
	w.Reads(c.frames[from:c.rows[next-1].frame], next-first)
	out.mark.Rows += next - first
	return next
}
