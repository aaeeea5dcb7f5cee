package delivery

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/cdcsync/cdcsync/internal/sinks"
)

const (
	equalFailures    = 3  // of one request before its items are suspected
	leastAttempts    = 10 // before an item is given up, however long they took
	longestUncertain = time.Hour
	heldOverhead     = 512 // bytes of a held item besides its own
	heldShown        = 10  // of a lane, in the sink's status
	unavailable      = 503 // the vendor's word on itself: unless others are taken, the items are suspected after outagePatience only
	outagePatience   = time.Minute
)

// held are the items that a lane has set aside so that it can go on: one that fails alone, and behind it what came later of its key, or of a
// key that waits for it (parents). Each is copied out of its batch, and its block's bytes are let go; the block stays unsettled. It is
// owned by the lane's run.
type held struct {
	keys  map[uint64]*heldKey // by the items' hash
	order []*heldKey          // as they came
	// taken are the items by each of their hashes, oldest first: what shares one waits for those before it.
	taken map[uint64][]*batch
	seq   uint64
}

// heldKey is one key. Of its queue only the first is tried.
type heldKey struct {
	hash  uint64
	queue []*batch // of one item each, oldest first
	since time.Time

	part    part // how the first has failed so far
	tries   int  // of the first since it is held
	counted int  // failures while the vendor took others
	against time.Duration
	last    time.Time // when it was tried
	next    time.Time
	seen    tidings
	proven  bool // the vendor takes others, so that it is the item's fault
	reason  string
	answer  string
	logged  string
}

// HeldItem is an item that fails alone while its lane goes on.
type HeldItem struct {
	ID       string
	Mapping  string
	Key      string // of the record, as mapping.Part.Key
	Since    time.Time
	Attempts int
	Next     time.Time
	Waiting  int // newer items of its key
	Reason   string
	Answer   string // how the vendor's answer begins
}

// blames reports whether the items of a request may be the cause of its failure. A vendor that says when to come back, throttles or refuses the
// credentials speaks of itself.
func blames(failed *sinks.RequestError) bool {
	switch failed.Class {
	case sinks.ClassTransient:
		return !failed.Unsent && failed.After == 0
	case sinks.ClassUnauthorized:
		const forbidden = 403 // a firewall's word on the content, too
		return !failed.Unsent && failed.Status == forbidden
	case sinks.ClassEndpoint:
		return !failed.Unsent
	case sinks.ClassThrottled, sinks.ClassTooLarge, sinks.ClassBadRequest, sinks.ClassRejected:
	}
	return false
}

// failed deals with a request that brought nothing. One that fails while the vendor takes others is not an outage: it is halved until an item
// fails alone, which is held. While nothing is taken at all, single items are tried, to find out.
func (l *lane) failed(b *batch, p part, failed *sinks.RequestError) {
	l.again(b, p.items, failed)
	if !blames(failed) {
		l.todo = append(l.todo, p)
		return
	}
	suspect := l.worker.gate.suspects(p)
	p = p.failed(l.ticket)
	lost := failed.Status == 0 && p.fails > 1
	patient := failed.Status == unavailable && time.Since(p.since) < outagePatience
	switch n := len(p.items); {
	case n > 1 && (failed.Timeout || lost || suspect && p.fails >= equalFailures):
		l.split(p, n/2)
	case n > 1 && p.fails >= equalFailures && !patient:
		l.split(p, 1)
	case n == 1 && (suspect && p.fails >= equalFailures || p.alone >= equalFailures && !patient || failed.Uncertain) && !l.worker.memory.heldFull():
		l.setAside(b, p, failed, suspect)
	default:
		l.todo = append(l.todo, p)
	}
}

// split puts a part back as two, of which the first has n items. Both remember how the whole has failed.
func (l *lane) split(p part, n int) {
	first, rest := p, p
	first.items, rest.items = p.items[:n:n], p.items[n:]
	l.todo = append(l.todo, rest, first)
}

// setAside holds an item that fails alone. The lane goes on at once when the vendor takes others.
func (l *lane) setAside(b *batch, p part, failed *sinks.RequestError, suspect bool) {
	k := l.hold(b, p.items[0])
	k.part = p
	k.part.items = nil
	k.failed(l.worker, failed, suspect)
	if suspect {
		l.recovered()
	}
	l.showHeld()
}

// holdBack takes out of a part the items whose key, or a parent's key, is held, and returns the rest.
func (l *lane) holdBack(b *batch, items []int32) []int32 {
	if len(l.held.keys) == 0 {
		return items
	}
	rest := items[:0:0]
	for _, i := range items {
		if l.held.waits(b, &b.items[i], math.MaxUint64) {
			l.hold(b, i)
			continue
		}
		rest = append(rest, i)
	}
	if len(rest) < len(items) {
		l.showHeld()
	}
	return rest
}

// waits reports whether an item shares a key with one that was held before, or has it as a parent. An item that is not held comes last.
func (h *held) waits(b *batch, it *item, seq uint64) bool {
	earlier := func(hash uint64) bool {
		list := h.taken[hash]
		return len(list) > 0 && list[0].seq < seq
	}
	return earlier(it.hash) || slices.ContainsFunc(b.hashes(it), earlier) || slices.ContainsFunc(b.hashesAt(it.after), earlier)
}

// add makes others wait for an item.
func (h *held) add(b *batch) {
	if h.taken == nil {
		h.taken = make(map[uint64][]*batch)
	}
	h.seq++
	b.seq = h.seq
	for _, hash := range append(b.hashes(&b.items[0]), b.items[0].hash) {
		h.taken[hash] = append(h.taken[hash], b)
	}
}

// remove ends that.
func (h *held) remove(b *batch) {
	for _, hash := range append(b.hashes(&b.items[0]), b.items[0].hash) {
		if h.taken[hash] = slices.DeleteFunc(h.taken[hash], func(other *batch) bool { return other == b }); len(h.taken[hash]) == 0 {
			delete(h.taken, hash)
		}
	}
}

// hold moves an item behind what is held of its key.
func (l *lane) hold(b *batch, i int32) *heldKey {
	it := &b.items[i]
	k := l.held.keys[it.hash]
	if k == nil {
		k = &heldKey{hash: it.hash, since: time.Now(), seen: l.worker.gate.tidings()}
		if l.held.keys == nil {
			l.held.keys = make(map[uint64]*heldKey)
		}
		l.held.keys[it.hash] = k
		l.held.order = append(l.held.order, k)
	}
	lifted := b.lift(i)
	l.worker.memory.hold(lifted.charged)
	if !l.replaceWaiting(k, lifted) {
		k.queue = append(k.queue, lifted)
	}
	l.held.add(lifted)
	return k
}

// replaceWaiting lets a newer state take the place of the newest that waits, where the mapping coalesces. The first is left: it is being tried.
func (l *lane) replaceWaiting(k *heldKey, newer *batch) bool {
	if len(k.queue) < 2 {
		return false
	}
	old := k.queue[len(k.queue)-1]
	a, b := &old.items[0], &newer.items[0]
	for _, further := range []span{a.orders, b.orders, a.after, b.after} {
		if further.from != further.to { // it could leave before what shares its record, or before its parent
			return false
		}
	}
	if !a.latest || !b.latest || a.mapping != b.mapping || a.block.letter != nil || b.block.letter != nil || string(old.bytes(a.key)) != string(newer.bytes(b.key)) {
		return false
	}
	if partial := l.worker.dispatch.partial; partial != nil && !partial.Covers(newer.bytes(b.body), old.bytes(a.body)) {
		return false
	}
	l.worker.count(a.mapping, a.op, outcomeCoalesced, 1)
	b.op = coalescedOp(a.op, b.op)
	newer.takeHolds(old)
	l.worker.unbook(old, a)
	l.held.remove(old)
	l.worker.memory.hold(-old.charged)
	k.queue[len(k.queue)-1] = newer
	return true
}

// wait is how long until a held item is due; turn when none will be. While the vendor takes nothing, fresh items try it rather than those that
// fail anyway, if there are any.
func (l *lane) heldWait(now time.Time) time.Duration {
	wait := turn
	for _, k := range l.held.order {
		if l.held.waits(k.queue[0], &k.queue[0].items[0], k.queue[0].seq) {
			continue
		}
		if until := max(0, l.worker.gate.due(k).Sub(now)); wait == turn || until < wait {
			wait = until
		}
	}
	return wait
}

// tryHeld tries each held item that is due once, and sends what waited behind those that are taken.
func (l *lane) tryHeld(ctx context.Context) error {
	for _, k := range slices.Clone(l.held.order) {
		for len(k.queue) > 0 && !l.held.waits(k.queue[0], &k.queue[0].items[0], k.queue[0].seq) && !l.worker.gate.due(k).After(time.Now()) {
			if err := l.tryKey(ctx, k); err != nil {
				return err
			}
			if len(k.queue) == 0 {
				l.forget(k)
			}
		}
	}
	l.showHeld()
	return nil
}

func (l *lane) forget(k *heldKey) {
	delete(l.held.keys, k.hash)
	l.held.order = slices.DeleteFunc(l.held.order, func(other *heldKey) bool { return other == k })
}

// tryKey sends the first item of a key.
func (l *lane) tryKey(ctx context.Context, k *heldKey) error {
	b := k.queue[0]
	k.part.items = []int32{0}
	l.todo = l.todo[:0]
	if l.worker.letters.outdated(b, k.part.items) {
		l.drop(k)
		return nil
	}
	k.seen = l.worker.gate.tidings()
	outcomes, err := l.send(ctx, b, k.part)
	failed, refused := errors.AsType[*sinks.RequestError](err)
	switch {
	case err == nil:
		err = l.settle(ctx, b, k.part.items, outcomes)
	case refused && (failed.Class == sinks.ClassTooLarge || failed.Class == sinks.ClassBadRequest || failed.Class == sinks.ClassRejected):
		err = l.reject(ctx, b, k.part.items, failed)
	case refused:
		return l.heldFailed(ctx, k, failed)
	}
	if err != nil {
		return err
	}
	if len(l.todo) > 0 { // the vendor asks for it to be sent again
		l.todo = l.todo[:0]
		k.tries++
		k.next = l.retryAt
		return nil
	}
	l.drop(k)
	return nil
}

// heldFailed waits longer, or gives the item up.
func (l *lane) heldFailed(ctx context.Context, k *heldKey, failed *sinks.RequestError) error {
	w := l.worker
	w.countItems(k.queue[0], k.part.items, outcomeRetried)
	suspect := blames(failed) && w.gate.suspects(k.part)
	if blames(failed) {
		k.part = k.part.failed(l.ticket)
	}
	k.failed(w, failed, suspect)
	if k.counted < leastAttempts || k.against < w.cfg.GiveUp {
		return nil
	}
	given := *failed
	given.Reason = fmt.Sprintf("given up after %d attempts in %s, while others were taken: %s", k.queue[0].items[0].attempts, time.Since(k.since).Round(time.Second), cmp.Or(failed.Reason, failed.Error()))
	w.metrics.givenUp.Inc()
	if err := l.reject(ctx, k.queue[0], k.part.items, &given); err != nil {
		return err
	}
	l.drop(k)
	return nil
}

// failed plans the next attempt. Only a failure while the vendor takes others counts against the item.
func (k *heldKey) failed(w *Worker, failed *sinks.RequestError, suspect bool) {
	now := time.Now()
	k.tries++
	k.reason, k.answer, k.logged = failed.Error(), failed.Answer, failed.Logged()
	k.proven = suspect
	if suspect && w.gate.takes() {
		if k.counted++; k.counted > 1 {
			k.against += now.Sub(k.last)
		}
	}
	k.last = now
	wait := w.cfg.Retry.Delay(k.tries)
	if failed.Uncertain {
		wait = w.cfg.BlockedProbe
		for n := 1; n < k.tries && wait < longestUncertain; n++ {
			wait = min(2*wait, longestUncertain)
		}
	}
	k.next = now.Add(max(wait, min(failed.After, w.cfg.MaxWait)))
}

// drop ends the first item of a key, which is settled; the next is due at once.
func (l *lane) drop(k *heldKey) {
	l.held.remove(k.queue[0])
	l.worker.memory.hold(-k.queue[0].charged)
	k.queue = append(k.queue[:0:0], k.queue[1:]...)
	*k = heldKey{hash: k.hash, queue: k.queue, since: time.Now(), seen: l.worker.gate.tidings()}
}

// showHeld tells the gate what is held, for the sink's state and status.
func (l *lane) showHeld() {
	var shown []HeldItem
	unproven := failure{}
	items, keys := 0, 0
	for _, k := range l.held.order {
		items += len(k.queue)
		if k.tries == 0 {
			continue // waits for another key, or is next
		}
		keys++
		if !k.proven {
			unproven = failure{reason: k.reason, answer: k.answer, logged: k.logged, next: k.next}
		}
		if len(shown) == heldShown {
			continue
		}
		it := &k.queue[0].items[0]
		shown = append(shown, HeldItem{
			ID: string(it.appendID(nil)), Mapping: it.mapping.name, Key: string(k.queue[0].bytes(it.key)), Since: k.since,
			Attempts: int(it.attempts), Next: k.next, Waiting: len(k.queue) - 1, Reason: k.reason, Answer: k.answer,
		})
	}
	l.worker.gate.setHeld(l.number, heldView{shown: shown, keys: keys, items: items, unproven: unproven})
}

// lift copies an item out of its batch, with its row, so that batch and block may be let go.
func (b *batch) lift(i int32) *batch {
	it := b.items[i]
	change, _ := b.source(&it) // without it, a dead letter says so
	lifted := &batch{count: 1, size: b.size, sealed: true}
	lifted.buf = make([]byte, 0, it.length()+int(it.key.to-it.key.from)+int(it.orders.to-it.orders.from)+int(it.after.to-it.after.from)+len(change))
	places := b.holders(&it)
	b.items[i].absorbed = true
	it.body, it.key = lifted.put(b.bytes(it.body)), lifted.put(b.bytes(it.key))
	it.orders, it.after = lifted.put(b.bytes(it.orders)), lifted.put(b.bytes(it.after))
	it.change = lifted.put(change)
	it.lifted, it.held = true, -1
	for _, held := range places[1:] {
		lifted.held = append(lifted.held, hold{place: held, next: it.held})
		it.held = int32(len(lifted.held) - 1)
	}
	lifted.items = []item{it}
	lifted.charged = int64(len(lifted.buf)) + heldOverhead + perHold*int64(len(lifted.held))
	for _, held := range places {
		held.block.lift()
	}
	return lifted
}

// takeHolds makes the batch's item hold what the only item of an older one did.
func (b *batch) takeHolds(older *batch) {
	it := &b.items[0]
	for _, held := range older.holders(&older.items[0]) {
		b.held = append(b.held, hold{place: held, next: it.held})
		it.held = int32(len(b.held) - 1)
	}
}
