package delivery

import (
	"container/heap"
	"context"
	"errors"
	"iter"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/sourcegraph/conc/pool"
	"golang.org/x/time/rate"

	"github.com/cdcsync/cdcsync/internal/backoff"
	"github.com/cdcsync/cdcsync/internal/cdc"
	"github.com/cdcsync/cdcsync/internal/pulse"
	"github.com/cdcsync/cdcsync/internal/sinks"
)

// Tracked is an item that the vendor has accepted and not decided on.
type Tracked struct {
	Tracking   string    `json:"tracking"` // what Confirm takes
	AcceptedAt time.Time `json:"accepted_at"`
	// Letter is what is parked when the vendor decides against the item.
	Letter Letter `json:"letter"`
}

// Tracks stores accepted items, so that after a restart they are confirmed and not enqueued again. It is called concurrently.
type Tracks interface {
	// Track returns when the items are stored durably.
	Track(ctx context.Context, items []Tracked) error
	// Untrack forgets items that are decided, by their ItemIDs. One that is not stored is passed over.
	Untrack(ctx context.Context, itemIDs []string) error
	// Load returns one item; ok is false when there is none of that ItemID.
	Load(ctx context.Context, itemID string) (item Tracked, ok bool, err error)
	// Tracked goes over all items. Letter.Item and Letter.Change may be left out.
	Tracked(ctx context.Context) iter.Seq2[Tracked, error]
}

const (
	maxTracked      = 20_000      // items that wait for confirmation, ~200 bytes each; then lanes wait
	firstConfirm    = time.Second // after acceptance
	longestConfirm  = time.Minute // between two questions about one item
	confirmsPerLane = 2           // questions at the same time: one takes as long as what it asks about, and few items are asked about once only
)

// tracker turns accepted items into delivered ones or dead letters. Storing them is off the lanes' way: a lane goes on at once,
// and the item counts as settled when it is stored.
type tracker struct {
	worker    *Worker
	confirmer Confirmer
	store     Tracks
	limiter   *rate.Limiter

	mu       sync.Mutex
	accepted []accepted // to be stored
	decided  []string   // to be forgotten
	due      dueQueue
	standing map[string]*standing // by mapping and key
	open     int                  // accepted and not decided
	closed   bool
	work     chan struct{} // size 1: for keep
	pace     pace
	ask      chan struct{} // size 1: for confirm
	room     chan struct{} // size 1: for accept
	end      chan struct{} // closed with closed

	// recalled are the newest accepted positions by mapping and key, as the store had them at the start: what a restart brings
	// again up to there is with the vendor already. Owned by the dispatcher after load.
	recalled map[string]recalled
}

// pace is that of all questions together. While the vendor does not answer, one question at a time tries it. Guarded by tracker.mu.
type pace struct {
	failures int       // questions in a row that were not answered
	until    time.Time // no question before
	asking   int       // questions under way
	answers  uint64

	outage time.Duration // for how long questions have not been answered, in all
	down   time.Time     // since when they are not
}

// missed is how long questions have not been answered so far.
func (p *pace) missed() time.Duration {
	if p.down.IsZero() {
		return p.outage
	}
	return p.outage + time.Since(p.down)
}

// recalled are positions of streamed changes and of rows that a backfill read, whose order differs; zero means none.
type recalled struct{ streamed, read cdc.Position }

// standing is what is undecided of one key. The vendor may decide on a newer item first: then an older one that fails is superseded.
type standing struct {
	newest cdc.Position // accepted
	open   int          // undecided
	kept   string       // ID of the newest item when it is decided: it is not forgotten before the older, so that a restart knows of it
}

const suffixRead = "/read" // mapping.Part.Suffix of a backfilled row

type accepted struct {
	item   Tracked
	places []place
	letter *openLetter
	booked []uint64 // the hashes under which keys knows of it
	lifted bool     // as the item's
}

func newTracker(w *Worker, confirmer Confirmer, store Tracks) *tracker {
	return &tracker{
		worker: w, confirmer: confirmer, store: store,
		limiter: rate.NewLimiter(rate.Limit(w.cfg.ConfirmRate), max(1, int(w.cfg.ConfirmRate))),
		work:    make(chan struct{}, 1), ask: make(chan struct{}, 1), room: make(chan struct{}, 1), end: make(chan struct{}),
		recalled: make(map[string]recalled), standing: make(map[string]*standing),
	}
}

// load reads first: the mutex is held over no I/O.
func (t *tracker) load(ctx context.Context) error {
	var all []*confirmation
	for item, err := range t.store.Tracked(ctx) {
		if err != nil {
			return err
		}
		c := newConfirmation(&item)
		c.since = time.Now() // while nobody could ask, its time stood still
		all = append(all, c)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.due, t.open, t.standing = all, len(all), make(map[string]*standing)
	for _, c := range all {
		known := t.recalled[c.key]
		if strings.HasSuffix(c.id, suffixRead) {
			known.read = newer(known.read, c.pos)
		} else {
			known.streamed = newer(known.streamed, c.pos)
		}
		t.recalled[c.key] = known
		t.stand(c.key, c.pos)
	}
	heap.Init(&t.due)
	return nil
}

func newer(a, b cdc.Position) cdc.Position {
	if a.Compare(b) < 0 {
		return b
	}
	return a
}

// has says whether a change, or a newer one of its key, was accepted before the last restart.
//
// A row read at an LSN is in the stream before every change that was committed behind it. A change that was committed before
// may have come before or after the row, since it need not have been visible yet: then both are sent again, in order.
func (t *tracker) has(m *renderer, key []byte, pos cdc.Position, read bool) bool {
	if len(t.recalled) == 0 {
		return false
	}
	id := letterKey(m.name, string(key))
	known, ok := t.recalled[id]
	if !ok {
		return false
	}
	same, other := known.streamed, known.read
	if read {
		same, other = other, same
	}
	switch {
	case pos.Compare(same) <= 0:
		return true
	case other == cdc.Position{}:
		return false
	case pos.Compare(other) > 0 && !read:
		return false
	case pos.Compare(other) < 0 && read:
		return true
	}
	delete(t.recalled, id)
	return false
}

// expect is told of items that the vendor has accepted before letters are marked and accept is called: an older item that fails at the same
// time then either finds the newer one here, or its letter is found.
func (t *tracker) expect(b *batch, part []int32, accepted []int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, n := range accepted {
		it := &b.items[part[n]]
		t.stand(letterKey(it.mapping.name, string(b.bytes(it.key))), it.pos)
	}
}

// stand counts an undecided item. Called with mu held.
func (t *tracker) stand(key string, pos cdc.Position) {
	s := t.standing[key]
	if s == nil {
		s = new(standing)
		t.standing[key] = s
	}
	s.open++
	if s.newest.Compare(pos) < 0 {
		s.newest = pos
		t.forget(s)
	}
}

// forget lets go of a decided item that was kept. Called with mu held.
func (t *tracker) forget(s *standing) {
	if s.kept != "" {
		t.decided = append(t.decided, s.kept)
		s.kept = ""
	}
}

// overtaken says whether a newer item of the key has been accepted. A key that does not tell records apart overtakes nothing.
func (t *tracker) overtaken(c *confirmation) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.Count(c.key, keyMark) > 1 && c.pos.Compare(t.standing[c.key].newest) < 0
}

// accept takes over an item that the vendor has accepted. While too many are undecided it waits.
func (t *tracker) accept(ctx context.Context, b *batch, i int32, tracking string) error {
	if err := t.waitForRoom(ctx); err != nil {
		return err
	}
	it := &b.items[i]
	a := accepted{
		item:   Tracked{Tracking: tracking, AcceptedAt: time.Now(), Letter: t.worker.letterOf(b, it)},
		places: b.holders(it), letter: it.block.letter, lifted: it.lifted,
	}
	if it.booked {
		a.booked = append(b.hashes(it), it.hash)
	}
	t.worker.memory.batch(1)
	t.mu.Lock()
	t.accepted = append(t.accepted, a)
	t.open++
	t.mu.Unlock()
	poke(t.work)
	return nil
}

func (t *tracker) waitForRoom(ctx context.Context) error {
	for {
		t.mu.Lock()
		open := t.open
		t.mu.Unlock()
		if open < maxTracked {
			return nil
		}
		beat := pulse.Rest(ctx)
		select {
		case <-t.room:
		case <-t.worker.draining.Done(): // what is accepted has to be stored, however many there are
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
		beat()
	}
}

// close is called when no lane will accept any more: what is accepted is stored, and no more questions are asked.
func (t *tracker) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true
	close(t.end)
}

func (t *tracker) run(ctx context.Context) error {
	work := pool.New().WithContext(ctx).WithCancelOnError().WithFirstError()
	work.Go(t.worker.guard("tracker", t.keep))
	for n := range confirmsPerLane * len(t.worker.lanes) {
		work.Go(t.worker.guard("confirmer "+strconv.Itoa(n), t.confirm))
	}
	defer pulse.Rest(ctx)()
	return work.Wait()
}

// keep stores what is accepted and forgets what is decided, all that there is at once.
func (t *tracker) keep(ctx context.Context) error {
	for {
		t.mu.Lock()
		accepted, decided, closed := t.accepted, t.decided, t.closed
		t.accepted, t.decided = nil, nil
		t.mu.Unlock()
		if err := t.storeAccepted(ctx, accepted); err != nil {
			return err
		}
		if err := t.storeDecided(ctx, decided); err != nil {
			return err
		}
		if len(accepted)+len(decided) > 0 {
			continue
		}
		if closed {
			return nil
		}
		beat := pulse.Rest(ctx)
		select {
		case <-t.work:
		case <-t.end:
		case <-ctx.Done():
			return ctx.Err()
		}
		beat()
	}
}

func (t *tracker) storeAccepted(ctx context.Context, list []accepted) error {
	if len(list) == 0 {
		return nil
	}
	items := make([]Tracked, len(list))
	for i := range list {
		items[i] = list[i].item
	}
	err := t.worker.insist(ctx, trouble{name: "tracking", what: "store accepted items"}, func(ctx context.Context) error {
		return t.store.Track(ctx, items)
	})
	if err != nil {
		return err
	}
	for i := range list {
		if err := t.tracked(ctx, &list[i]); err != nil {
			return err
		}
	}
	return nil
}

// tracked settles an accepted item, and plans the first question about it.
func (t *tracker) tracked(ctx context.Context, a *accepted) error {
	w := t.worker
	if a.letter != nil {
		if err := w.letters.resolve(ctx, []string{a.letter.id}, LetterDelivered); err != nil {
			return err
		}
	}
	for _, hash := range a.booked {
		w.keys.done(hash)
	}
	for _, p := range a.places {
		if a.lifted {
			p.block.lifted.Add(-1)
		}
		p.settle()
	}
	w.memory.batch(-1)
	t.plan(newConfirmation(&a.item), firstConfirm)
	return nil
}

func (t *tracker) storeDecided(ctx context.Context, ids []string) error {
	if len(ids) == 0 {
		return nil
	}
	err := t.worker.insist(ctx, trouble{name: "tracking", what: "forget decided items"}, func(ctx context.Context) error {
		return t.store.Untrack(ctx, ids)
	})
	if err != nil {
		return err
	}
	t.mu.Lock()
	t.open -= len(ids)
	t.mu.Unlock()
	poke(t.room)
	return nil
}

func (t *tracker) plan(c *confirmation, wait time.Duration) {
	c.at = time.Now().Add(wait)
	t.mu.Lock()
	if c.asked == 0 {
		c.missed = t.pace.missed()
	}
	heap.Push(&t.due, c)
	t.mu.Unlock()
	poke(t.ask)
}

// confirm asks about one item after the other.
func (t *tracker) confirm(ctx context.Context) error {
	for {
		c, err := t.next(ctx)
		if c == nil || err != nil {
			return err
		}
		err = t.decide(ctx, c)
		if errors.Is(err, errStopped) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// next waits for the next item to ask about; nil at the end.
func (t *tracker) next(ctx context.Context) (*confirmation, error) {
	for {
		wait := turn
		t.mu.Lock()
		if t.closed {
			t.mu.Unlock()
			return nil, nil
		}
		if len(t.due) > 0 {
			if wait = t.wait(t.due[0].at); wait == 0 {
				c := heap.Pop(&t.due).(*confirmation)
				t.pace.asking++
				t.mu.Unlock()
				poke(t.ask) // another may be due for another goroutine
				return c, nil
			}
		}
		t.mu.Unlock()
		if err := t.idle(ctx, wait); err != nil {
			return nil, err
		}
	}
}

// wait is how long to wait with a question that is due at a time; turn when another one has to be answered first. Called with mu held.
func (t *tracker) wait(at time.Time) time.Duration {
	at = later(later(at, t.pace.until), t.worker.account.free())
	if wait := time.Until(at); wait > 0 {
		return wait
	}
	if t.pace.failures > 0 && t.pace.asking > 0 {
		return turn
	}
	return 0
}

// yield gives back a question whose turn has passed while it waited for the rate. It reports whether it did.
func (t *tracker) yield(c *confirmation) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.pace.asking--
	if t.wait(time.Time{}) == 0 {
		t.pace.asking++
		return false
	}
	heap.Push(&t.due, c)
	return true
}

// resume asks again at once.
func (t *tracker) resume() {
	t.mu.Lock()
	t.pace.until = time.Time{}
	if t.pace.failures > 0 && len(t.due) > 0 {
		t.due[0].at = time.Time{}
	}
	t.mu.Unlock()
	poke(t.ask)
}

func (t *tracker) idle(ctx context.Context, wait time.Duration) error {
	var due <-chan time.Time
	if wait != turn {
		timer := time.NewTimer(wait)
		defer timer.Stop()
		due = timer.C
	}
	defer pulse.Rest(ctx)()
	select {
	case <-due:
	case <-t.ask:
	case <-t.end:
	case <-ctx.Done():
		return ctx.Err()
	}
	return nil
}

// decide asks about one item and acts on the answer.
func (t *tracker) decide(ctx context.Context, c *confirmation) error {
	if err := t.slot(ctx); err != nil {
		return err
	}
	if t.yield(c) {
		return nil
	}
	outcome, err := t.confirmer.Confirm(ctx, c.tracking)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	c.asked++
	undecided := t.heard(c, err)
	switch {
	case undecided: // no answer: it does not count against the item
	case err == nil && outcome.Status == sinks.Delivered:
		t.done(c)
		return nil
	case err == nil && outcome.Status == sinks.Rejected:
		return t.reject(ctx, c, outcome)
	case t.age(c) > t.worker.cfg.ConfirmTimeout:
		reason := "not confirmed within " + t.worker.cfg.ConfirmTimeout.String() + " of its acceptance"
		return t.reject(ctx, c, sinks.Outcome{Reason: reason})
	}
	wait := backoff.Range{Min: firstConfirm, Max: longestConfirm}.Delay(c.asked)
	t.plan(c, max(wait, min(outcome.After, t.worker.cfg.MaxWait)))
	return nil
}

// slot waits for what the rates allow, unless the worker drains: then nobody waits for the answer.
func (t *tracker) slot(ctx context.Context) error {
	if err := t.worker.allowed(ctx, t.limiter); err != nil {
		return err
	}
	return t.worker.allowed(ctx, t.worker.limiter)
}

// age is how long an item has waited while the vendor could be asked about it.
func (t *tracker) age(c *confirmation) time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	return time.Since(c.since) - (t.pace.missed() - c.missed)
}

// heard makes the pace of all questions from what became of one, and shows in the sink's state whether confirmations are to be had. It reports
// whether err leaves the item undecided for a reason that is not the item's: one that fails while others are answered has only itself to
// blame.
func (t *tracker) heard(c *confirmation, err error) (undecided bool) {
	if err == nil {
		t.answered()
		t.worker.gate.troubled(trouble{name: "confirm"})
		return false
	}
	failed := asRequestError(err)
	switch failed.Class {
	case sinks.ClassTooLarge, sinks.ClassBadRequest, sinks.ClassRejected: // about this item: asked again until its time is over
		t.answered()
		t.worker.gate.troubled(trouble{name: "confirm"})
		return false
	case sinks.ClassTransient, sinks.ClassThrottled, sinks.ClassUnauthorized, sinks.ClassEndpoint:
	}
	if t.ownFailure(c, failed) {
		return false
	}
	after := min(failed.After, t.worker.cfg.MaxWait)
	if after > 0 {
		t.worker.account.leave(after)
	}
	if failed.Class == sinks.ClassThrottled {
		t.worker.account.throttled(nil, 0)
	}
	const what = "confirm accepted items"
	t.worker.gate.troubled(trouble{
		name: "confirm", what: what, reason: what + ": " + failed.Error(), logged: what + ": " + failed.Logged(), answer: failed.Answer, next: t.unanswered(after),
		blocks: failed.Class == sinks.ClassUnauthorized || failed.Class == sinks.ClassEndpoint,
	})
	return true
}

// answered makes questions be asked freely again.
func (t *tracker) answered() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.pace.asking--
	t.pace.answers++
	t.pace.failures, t.pace.until = 0, time.Time{}
	t.pace.outage, t.pace.down = t.pace.missed(), time.Time{}
	poke(t.ask)
}

// unanswered makes all questions wait, and returns until when.
func (t *tracker) unanswered(after time.Duration) time.Time {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.pace.asking--
	t.pace.failures++
	if t.pace.down.IsZero() {
		t.pace.down = time.Now()
	}
	wait := max(after, backoff.Range{Min: firstConfirm, Max: longestConfirm}.Delay(t.pace.failures))
	t.pace.until = later(t.pace.until, time.Now().Add(wait))
	poke(t.ask)
	return t.pace.until
}

// ownFailure reports whether questions about others have been answered since the first about this item failed.
func (t *tracker) ownFailure(c *confirmation, failed *sinks.RequestError) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !blames(failed) {
		return false
	}
	if own := c.failed && t.pace.answers > c.answers; own {
		t.pace.asking--
		poke(t.ask)
		return true
	}
	if !c.failed {
		c.failed, c.answers = true, t.pace.answers
	}
	return false
}

func (t *tracker) done(c *confirmation) {
	t.mu.Lock()
	defer t.mu.Unlock()
	defer poke(t.work)
	s := t.standing[c.key]
	if s.open--; s.open > 0 && c.pos == s.newest {
		t.forget(s)
		s.kept = c.id
		return
	}
	t.decided = append(t.decided, c.id)
	if s.open == 0 {
		t.forget(s)
		delete(t.standing, c.key)
	}
}

func (t *tracker) reject(ctx context.Context, c *confirmation, o sinks.Outcome) error {
	var item Tracked
	var known bool
	err := t.worker.insist(ctx, trouble{name: "tracking", what: "load an accepted item"}, func(ctx context.Context) (err error) {
		item, known, err = t.store.Load(ctx, c.id)
		return err
	})
	if err != nil {
		return err
	}
	if !known { // never seen: it is forgotten after it is decided
		t.done(c)
		return nil
	}
	letter := item.Letter
	letter.Reason, letter.Code, letter.Trace, letter.At = o.Reason, o.Code, o.Trace, time.Now()
	if t.overtaken(c) {
		letter.State = LetterSuperseded
	}
	parked := []Letter{letter}
	if err := t.worker.letters.park(ctx, parked); err != nil {
		return err
	}
	if letter.State == LetterOpen && t.overtaken(c) { // while it was stored
		if err := t.worker.letters.resolve(ctx, []string{parked[0].ID}, LetterSuperseded); err != nil {
			return err
		}
	}
	t.worker.metrics.confirmFailures.Inc()
	t.done(c)
	return nil
}

// waiting counts the items that are accepted and not decided.
func (t *tracker) waiting() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.open
}

func poke(signal chan<- struct{}) {
	select {
	case signal <- struct{}{}:
	default:
	}
}

// confirmation is an item to ask about.
type confirmation struct {
	id, tracking string
	key          string // mapping and key
	pos          cdc.Position
	since        time.Time     // its acceptance, or the start of the worker when that is later
	missed       time.Duration // what the pace had missed by then
	at           time.Time     // of the next question
	asked        int
	failed       bool   // a question about it was not answered
	answers      uint64 // when the first was not
}

func newConfirmation(item *Tracked) *confirmation {
	l := &item.Letter
	return &confirmation{id: l.ItemID, tracking: item.Tracking, key: letterKey(l.Mapping, l.Key), pos: l.Position, since: item.AcceptedAt}
}

// dueQueue is a heap of confirmations by time.
type dueQueue []*confirmation

func (q dueQueue) Len() int           { return len(q) }
func (q dueQueue) Less(i, j int) bool { return q[i].at.Before(q[j].at) }
func (q dueQueue) Swap(i, j int)      { q[i], q[j] = q[j], q[i] }
func (q *dueQueue) Push(x any)        { *q = append(*q, x.(*confirmation)) }

// Pop implements heap.Interface.
func (q *dueQueue) Pop() any {
	last := len(*q) - 1
	c := (*q)[last]
	(*q)[last] = nil
	*q = (*q)[:last]
	return c
}
