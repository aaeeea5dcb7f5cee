package delivery

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/cdcsync/cdcsync/internal/cdc"
	"github.com/cdcsync/cdcsync/internal/pulse"
	"github.com/cdcsync/cdcsync/internal/sinks"
)

// lane sends batches one after another. What has to be sent again goes before anything newer.
type lane struct {
	worker *Worker
	number int

	mu     sync.Mutex
	queue  []*batch // handed over by the dispatcher, oldest first
	urgent bool     // the dispatcher waits for room: do not wait for fuller batches
	closed bool
	wake   chan struct{} // size 1: queue, urgent or closed has changed

	open *batch // owned by the dispatcher: what it fills now

	// The rest is run's own.
	request  request
	failures int       // sendings in a row that brought nothing
	failedAt time.Time // the last of them
	retryAt  time.Time // after them
	order    []int32
	todo     []part // what is left of the batch, in reverse: the last is sent next
	sorted   sorted
	ticket   ticket // of the last request
	took     time.Duration
	held     held
}

// part is what one request carries of a batch.
type part struct {
	items []int32
	fails int    // failures in a row, those of the part that it was split from included
	alone int    // of them, with one item
	first uint64 // the first request that failed
	since time.Time
}

// failed is the part after one more failure.
func (p part) failed(t ticket) part {
	if p.fails == 0 {
		p.first, p.since = t.seq, time.Now()
	}
	if p.fails++; len(p.items) == 1 {
		p.alone++
	}
	return p
}

// push hands a batch over. A lane gets none after close.
func (l *lane) push(b *batch) {
	l.mu.Lock()
	l.queue = append(l.queue, b)
	l.mu.Unlock()
	l.signal()
}

// reclaim takes back the newest batch when it has room, so that it can be filled on.
func (l *lane) reclaim() *batch {
	l.mu.Lock()
	defer l.mu.Unlock()
	last := len(l.queue) - 1
	if last < 0 || l.queue[last].sealed {
		return nil
	}
	b := l.queue[last]
	l.queue = l.queue[:last]
	return b
}

func (l *lane) hurry(urgent bool) {
	l.mu.Lock()
	l.urgent = urgent
	l.mu.Unlock()
	if urgent {
		l.signal()
	}
}

func (l *lane) close() {
	l.mu.Lock()
	l.closed = true
	l.mu.Unlock()
	l.signal()
}

func (l *lane) signal() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

func (w *Worker) wakeLanes() {
	for _, l := range w.lanes {
		l.signal()
	}
}

func (w *Worker) closeLanes() {
	for _, l := range w.lanes {
		l.close()
	}
}

// run sends until the lane is closed and empty. While draining it leaves what the vendor does not take now.
func (l *lane) run(ctx context.Context) error {
	for {
		pulse.Beat(ctx)
		b, err := l.take(ctx)
		switch {
		case errors.Is(err, errDue):
			err = l.tryHeld(ctx)
		case err != nil:
		case b == nil:
			return nil
		default:
			if err = l.deliver(ctx, b); err == nil {
				l.worker.recycle(b)
			}
		}
		if errors.Is(err, errStopped) {
			l.worker.abandon()
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// errDue is what take returns when a held item is to be tried.
var errDue = errors.New("a held item is due")

// take waits for the next batch; nil when the lane is closed and empty, or leaves what it has for the next start. Held items come first, unless the vendor takes nothing: then what is
// fresh tries it rather than what fails anyway.
func (l *lane) take(ctx context.Context) (*batch, error) {
	for {
		if l.worker.leaving.Err() != nil {
			l.worker.abandon()
			return nil, nil //nolint:nilerr // it is told to leave, which is no failure
		}
		now := time.Now()
		held := turn
		if l.worker.draining.Err() == nil {
			held = l.heldWait(now)
		} else if len(l.held.order) > 0 { // for the next start; nobody waits for them any more
			l.worker.abandon()
		}
		if held == 0 && l.worker.gate.closed() {
			return nil, errDue
		}
		b, wait, closed := l.ready(now)
		if b != nil || closed {
			return b, nil
		}
		if held == 0 {
			return nil, errDue
		}
		if held != turn && (wait == turn || held < wait) {
			wait = held
		}
		if err := pause(ctx, wait, l.wake); err != nil {
			return nil, err
		}
	}
}

func (l *lane) ready(now time.Time) (b *batch, wait time.Duration, closed bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.queue) == 0 {
		return nil, turn, l.closed
	}
	b = l.queue[0]
	wait = b.deadline.Sub(now)
	if wait > 0 && !b.sealed && !b.full && len(l.queue) == 1 && !l.urgent && !l.closed {
		return nil, wait, false
	}
	n := copy(l.queue, l.queue[1:])
	l.queue[n] = nil
	l.queue = l.queue[:n]
	return b, 0, false
}

// deliver sends a batch until each of its items is settled.
func (l *lane) deliver(ctx context.Context, b *batch) error {
	l.order = l.order[:0]
	for i := range b.items {
		if !b.items[i].absorbed {
			l.order = append(l.order, int32(i))
		}
	}
	l.todo = append(l.todo[:0], part{items: l.order})
	for len(l.todo) > 0 {
		p := l.todo[len(l.todo)-1]
		l.todo = l.todo[:len(l.todo)-1]
		p.items = l.holdBack(b, p.items)
		if fits := l.worker.gate.fits(); fits > 0 && len(p.items) > fits {
			l.split(p, fits)
			continue
		}
		if l.worker.letters.outdated(b, p.items) {
			continue
		}
		outcomes, err := l.send(ctx, b, p)
		if err == nil {
			err = l.settle(ctx, b, p.items, outcomes)
		} else if failed := (*sinks.RequestError)(nil); errors.As(err, &failed) {
			err = l.refused(ctx, b, p, failed)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// send makes one request when the gate and the rate allow it.
func (l *lane) send(ctx context.Context, b *batch, p part) (_ []sinks.Outcome, err error) {
	w := l.worker
	if l.ticket, err = w.gate.acquire(ctx, l.failedAt, l.retryAt, len(p.items)); err != nil {
		return nil, err
	}
	if err := w.allowed(ctx, w.limiter); err != nil {
		w.gate.broken(l.ticket)
		return nil, err
	}
	items, key := l.request.compose(b, p.items)
	for _, i := range p.items {
		b.items[i].attempts++
	}
	w.metrics.inFlight.Inc()
	start := time.Now()
	outcomes, err := w.sink.Deliver(ctx, items, key)
	l.took = time.Since(start)
	w.metrics.inFlight.Dec()
	return l.report(ctx, p, outcomes, err)
}

// report tells the gate how the request went.
func (l *lane) report(ctx context.Context, p part, outcomes []sinks.Outcome, err error) ([]sinks.Outcome, error) {
	w, items := l.worker, len(p.items)
	if ctx.Err() != nil && err != nil {
		w.gate.broken(l.ticket)
		return nil, ctx.Err()
	}
	if err == nil && len(outcomes) != items {
		err = &sinks.RequestError{Class: sinks.ClassTransient, Reason: fmt.Sprintf("sink gave %d outcomes for %d items", len(outcomes), items)}
	}
	if err == nil {
		w.gate.answered(l.ticket, l.took)
		return outcomes, nil
	}
	failed := asRequestError(err)
	if blames(failed) && w.gate.suspects(p) {
		w.gate.spared(l.ticket)
		return nil, failed
	}
	switch failed.Class {
	case sinks.ClassTransient:
		w.gate.failed(l.ticket, l.took, failed)
	case sinks.ClassThrottled:
		w.gate.failed(l.ticket, l.took, failed)
		w.account.throttled(w.gate, l.took)
	case sinks.ClassUnauthorized, sinks.ClassEndpoint:
		w.gate.blocked(l.ticket, failed)
	case sinks.ClassTooLarge, sinks.ClassBadRequest, sinks.ClassRejected:
		w.gate.answered(l.ticket, l.took)
	}
	return nil, failed
}

// asRequestError makes any error one; what is not known is tried again.
func asRequestError(err error) *sinks.RequestError {
	if failed := (*sinks.RequestError)(nil); errors.As(err, &failed) && failed.Class != 0 {
		return failed
	}
	return &sinks.RequestError{Class: sinks.ClassTransient, Reason: err.Error(), Err: err}
}

// refused deals with a request that failed as a whole.
func (l *lane) refused(ctx context.Context, b *batch, p part, failed *sinks.RequestError) error {
	switch failed.Class {
	case sinks.ClassTooLarge, sinks.ClassBadRequest, sinks.ClassRejected:
		if len(p.items) > 1 { // the poisoned or too large item is in one of the halves; order is kept
			l.split(part{items: p.items}, len(p.items)/2)
			return nil
		}
		return l.reject(ctx, b, p.items, failed)
	case sinks.ClassTransient, sinks.ClassThrottled, sinks.ClassUnauthorized, sinks.ClassEndpoint:
		l.failed(b, p, failed)
	}
	return nil
}

func (l *lane) reject(ctx context.Context, b *batch, part []int32, failed *sinks.RequestError) error {
	outcomes := make([]sinks.Outcome, len(part))
	for n := range outcomes {
		outcomes[n] = sinks.Outcome{Status: sinks.Rejected, Reason: failed.Reason, Code: failed.Code, Trace: failed.Trace}
	}
	return l.settleAs(ctx, b, part, outcomes, failed.Status)
}

// again makes the lane wait before it sends items again.
func (l *lane) again(b *batch, items []int32, failed *sinks.RequestError) {
	l.failures++
	l.failedAt = time.Now()
	l.retryAt = l.worker.gate.backOff(l.number, l.failures, failed.After, failure{reason: failed.Error(), answer: failed.Answer, logged: failed.Logged()})
	l.worker.countItems(b, items, outcomeRetried)
}

func (l *lane) settle(ctx context.Context, b *batch, part []int32, outcomes []sinks.Outcome) error {
	return l.settleAs(ctx, b, part, outcomes, 0)
}

// settleAs settles each item of a part by its outcome. Dead letters come first, so that a newer state of the same key that
// the same request delivered marks them as superseded.
func (l *lane) settleAs(ctx context.Context, b *batch, items []int32, outcomes []sinks.Outcome, status int) error {
	w, s := l.worker, &l.sorted
	if err := s.sort(b, items, outcomes); err != nil {
		return err
	}
	if err := w.parkItems(ctx, b, items, outcomes, s.rejected, status); err != nil {
		return err
	}
	if w.tracker != nil {
		w.tracker.expect(b, items, s.accepted)
	}
	if err := w.letters.passed(ctx, b, s.taken); err != nil {
		return err
	}
	whole, err := w.parkAccounts(ctx, b, items, outcomes, s.delivered)
	if err != nil {
		return err
	}
	if err := w.letters.resent(ctx, b, whole); err != nil {
		return err
	}
	for _, n := range s.accepted {
		if err := w.tracker.accept(ctx, b, items[n], outcomes[n].Tracking); err != nil {
			return err
		}
	}
	l.note(b, items, outcomes)
	for _, i := range s.delivered {
		w.settleItem(b, i)
	}
	for _, i := range s.overtaken {
		w.settleItem(b, i)
	}
	w.countItems(b, s.taken, outcomeDelivered)
	w.countItems(b, s.overtaken, outcomeCoalesced)
	l.separate(b, s.alone)
	if len(s.retry) > 0 {
		rest := items[:copy(items, s.retry)]
		l.again(b, rest, &sinks.RequestError{Reason: "the vendor asks for items to be sent again", After: s.after})
		l.todo = append(l.todo, part{items: rest})
		return nil
	}
	l.recovered()
	return nil
}

// separate puts items back to be sent next, each in a request of its own.
func (l *lane) separate(b *batch, items []int32) {
	rest := slices.Clone(items)
	for n := range slices.Backward(rest) {
		l.todo = append(l.todo, part{items: rest[n : n+1 : n+1]})
	}
	l.worker.countItems(b, rest, outcomeRetried)
}

func (l *lane) recovered() {
	if l.failures > 0 {
		l.failures, l.retryAt = 0, l.worker.gate.backOff(l.number, 0, 0, failure{})
	}
}

// note logs that a vendor remarks on items, without the words: they may quote the row.
func (l *lane) note(b *batch, part []int32, outcomes []sinks.Outcome) {
	for n := range outcomes {
		if o := &outcomes[n]; o.Remark != "" {
			id := string(b.items[part[n]].appendID(nil))
			l.worker.log.Warn("vendor remarks on an item", "item", id, "code", sinks.Plain(o.Code), "rc", sinks.Plain(o.Trace))
		}
	}
}

// sorted is what became of a part: places in it, or items of the batch.
type sorted struct {
	rejected, accepted                 []int   // places
	delivered, taken, overtaken, retry []int32 // items; taken are those delivered or accepted
	alone                              []int32 // items that were rejected with others
	after                              time.Duration
}

func (s *sorted) sort(b *batch, part []int32, outcomes []sinks.Outcome) error {
	*s = sorted{
		rejected: s.rejected[:0], accepted: s.accepted[:0],
		delivered: s.delivered[:0], taken: s.taken[:0], overtaken: s.overtaken[:0], retry: s.retry[:0], alone: s.alone[:0],
	}
	for n := range outcomes {
		switch outcomes[n].Status {
		case sinks.Delivered:
			s.delivered, s.taken = append(s.delivered, part[n]), append(s.taken, part[n])
		case sinks.Accepted:
			s.accepted, s.taken = append(s.accepted, n), append(s.taken, part[n])
		case sinks.Rejected:
			if outcomes[n].Shared && len(part) > 1 {
				s.alone = append(s.alone, part[n])
			} else {
				s.rejected = append(s.rejected, n)
			}
		case sinks.Retry:
			s.after = max(s.after, outcomes[n].After)
			if overtakenWithin(b, part[n:], outcomes[n:]) {
				s.overtaken = append(s.overtaken, part[n])
			} else {
				s.retry = append(s.retry, part[n])
			}
		default:
			return fmt.Errorf("sink gave an unknown status %d", outcomes[n].Status)
		}
	}
	return nil
}

// overtakenWithin says whether a newer state of the first item's key was taken in the same request: sending the first again
// would take the key back.
func overtakenWithin(b *batch, part []int32, outcomes []sinks.Outcome) bool {
	first := &b.items[part[0]]
	for n := 1; n < len(part); n++ {
		it := &b.items[part[n]]
		taken := outcomes[n].Status == sinks.Delivered || outcomes[n].Status == sinks.Accepted
		if taken && it.hash == first.hash && it.mapping == first.mapping {
			return true
		}
	}
	return false
}

// settleItem releases all that waits for the item.
func (w *Worker) settleItem(b *batch, i int32) {
	it := &b.items[i]
	w.unbook(b, it)
	b.settle(it)
}

// unbook tells keys that an item is not on the way any more.
func (w *Worker) unbook(b *batch, it *item) {
	if !it.booked {
		return
	}
	w.keys.done(it.hash)
	for _, hash := range b.hashes(it) {
		w.keys.done(hash)
	}
}

// source returns the one-change block of the row that an item was rendered from.
func (b *batch) source(it *item) ([]byte, error) {
	if it.change.to > it.change.from {
		return append([]byte(nil), b.bytes(it.change)...), nil
	}
	if isAlone(it.block.data) {
		return it.block.data, nil
	}
	var d cdc.Decoder
	var c cdc.Change
	if _, err := d.Reset(it.block.data); err != nil {
		return nil, err
	}
	for {
		found, err := d.Next(&c)
		if err != nil || !found {
			return nil, errors.Join(fmt.Errorf("change %s is not in its block", it.pos), err)
		}
		if c.Position == it.pos {
			return cdc.EncodeChange(&c), nil
		}
	}
}
