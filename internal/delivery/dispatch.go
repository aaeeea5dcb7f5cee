package delivery

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/maphash"
	"runtime/debug"
	"slices"
	"time"

	"github.com/cdcsync/cdcsync/internal/cdc"
	"github.com/cdcsync/cdcsync/internal/mapping"
	"github.com/cdcsync/cdcsync/internal/pulse"
)

// dispatcher renders changes into the lanes' batches. Everything in it is owned by run's goroutine.
type dispatcher struct {
	worker  *Worker
	source  Source
	partial Partial // nil when every item tells all of its record

	renderers []*renderer
	booking   bool // a mapping has parents, or orders by more than its records: keys knows of all items
	seed      maphash.Seed

	decoder cdc.Decoder
	change  cdc.Change
	tables  tables
	scouts  tables // of a decoder that looks ahead, see fetch.go
	scout   cdc.Decoder
	roots   map[mapping.Table]*table // of refresh mappings, as the catalogue had them last

	presents map[string]*table // of rows read back, by their relation's encoded form

	route   mapping.Route
	env     mapping.Env
	ahead   mapping.Route // of looking ahead
	missing []int         // scratch
	orders  []uint64      // hashes of the part's orders
	behind  []uint64      // of its orders and parents
	unit    unit
	refuse  []refusal
	held    []*heldBack // of the block, not recorded yet
	filling []*lane     // that have an open batch
	freed   chan *batch // recycled batches
}

// renderer is one mapping.
type renderer struct {
	template *mapping.Template
	place    uint32 // among the renderers
	name     string
	table    string
	counters *itemCounters
	filtered [ops]int // not counted yet
	left     [ops]int
	said     string // the mistakes that were logged last
}

// unit is what is dispatched at once: a block, a dead letter that is sent again, or the roots that a block refreshes.
type unit struct {
	block   *block
	scan    func(yield func(*cdc.Change, *table) error) error // goes over the changes, for looking ahead
	fetched *fetched                                          // nil until something has to be fetched

	only   *renderer // of a letter
	misfit string    // why only cannot render it
	itemID string
	urgent bool // goes alone, behind all that is in the lane
	sent   int

	base, next uint32 // numbers of the change's items, and of the next one's
	touched    []root // roots that the block's changes refresh
	suffix     string // of refreshed roots' IDs
	keep       bool   // the block does not hold the changes: items carry them
}

// refusal is an item that mapping refused, on its way to the dead letters.
type refusal struct {
	letter   Letter
	place    place
	renderer *renderer
}

// tables caches the plans of relations: by pointer, since a decoder gives the same pointer until the relation changes.
type tables struct {
	last  *table
	byOID map[uint32]*table
}

// table is a relation with the plans of the mappings that want it.
type table struct {
	relation *cdc.Relation
	plans    []compiled
	numbers  uint32   // that a change's items may have
	misfits  []misfit // mappings that want it and do not fit it
	absent   string   // why there is nothing to read: of a table to refresh
	unknown  bool     // it has a column of a type that is not known
}

type compiled struct {
	*renderer
	plan     *mapping.Plan
	number   uint32 // of an item of the new row, among the change's; the old row's is the next
	roots    uint32 // of the items of the root that it refreshes
	coalesce bool
	byPerson bool
}

// fatalError is a block that is damaged, which no retry mends: the sink stays blocked until a restart.
type fatalError struct{ err error }

func (e *fatalError) Error() string { return e.err.Error() }
func (e *fatalError) Unwrap() error { return e.err }

// recycled is how many empty batches are kept: half of what fits into the default memory when they are large.
const recycled = 16

func newDispatcher(w *Worker, templates []*mapping.Template, source Source) *dispatcher {
	d := &dispatcher{worker: w, source: source, seed: maphash.MakeSeed(), roots: make(map[mapping.Table]*table), presents: make(map[string]*table)}
	d.partial, _ = w.sink.(Partial)
	d.freed = make(chan *batch, recycled)
	for i, t := range templates {
		table := t.Source.Table.String()
		d.renderers = append(d.renderers, &renderer{
			template: t, place: uint32(i), name: t.Source.Name, table: table, counters: &itemCounters{items: w.metrics.items, table: table},
		})
		d.booking = d.booking || len(t.Source.Parents) > 0 || t.Ordered()
	}
	return d
}

// run dispatches blocks and letters until stored is closed.
func (d *dispatcher) run(ctx context.Context, stored <-chan Block) error {
	for {
		var err error
		beat := pulse.Rest(ctx)
		select {
		case b, ok := <-stored:
			if !ok {
				return nil
			}
			beat()
			err = d.block(ctx, b)
		case r := <-d.worker.retries:
			beat()
			err = d.letter(ctx, r)
		case <-ctx.Done():
			return ctx.Err()
		}
		var fatal *fatalError
		switch {
		case errors.As(err, &fatal):
			return d.stop(ctx, fatal)
		case errors.Is(err, errStopped):
			d.worker.abandon()
			return nil
		case err != nil:
			return err
		}
	}
}

// stop keeps the sink blocked; what is in the lanes is still delivered, and dead letters are not retried.
func (d *dispatcher) stop(ctx context.Context, fatal *fatalError) error {
	d.worker.gate.troubled(trouble{name: "dispatch", blocks: true, final: true, reason: fatal.Error(), logged: logged(fatal)})
	defer pulse.Rest(ctx)()
	for {
		select {
		case r := <-d.worker.retries:
			r.done <- RetryResult{ID: r.letter.ID, Outcome: RetryRejected, Reason: fatal.Error()}
		case <-d.worker.draining.Done():
			d.worker.abandon()
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// block dispatches a stored block.
func (d *dispatcher) block(ctx context.Context, stored Block) error {
	footer, err := d.decoder.Reset(stored.Data)
	if err != nil {
		return &fatalError{fmt.Errorf("block %d: %w", stored.Seq, err)}
	}
	commit := footer.LastCommit
	if commit.IsZero() {
		commit = stored.Stored
	}
	b, settled := d.worker.ledger.begin(stored, footer, commit)
	if settled {
		b.less()
		return nil
	}
	d.unit = unit{block: b, scan: d.scanBlock}
	if err := d.all(ctx); err != nil {
		return err
	}
	if err := d.refresh(ctx, b); err != nil {
		return err
	}
	d.countFiltered()
	if err := d.handOver(ctx); err != nil {
		return err
	}
	if err := d.recordHeld(ctx); err != nil {
		return err
	}
	b.less()
	return nil
}

func (d *dispatcher) all(ctx context.Context) error {
	for {
		found, err := d.decoder.Next(&d.change)
		if err != nil {
			return &fatalError{fmt.Errorf("block %d: %w", d.unit.block.seq, err)}
		}
		if !found {
			return nil
		}
		if !d.change.For(d.worker.cfg.Sink) {
			continue
		}
		t := d.tables.of(d, d.change.Relation)
		d.unit.base = d.unit.next
		d.unit.next += t.numbers
		if err := d.one(ctx, &d.change, t); err != nil {
			return err
		}
	}
}

// of compiles the mappings of a relation when it is new.
func (t *tables) of(d *dispatcher, rel *cdc.Relation) *table {
	if t.last != nil && t.last.relation == rel {
		return t.last
	}
	found := t.byOID[rel.OID]
	if found == nil || found.relation != rel {
		found = d.compile(rel)
		if t.byOID == nil {
			t.byOID = make(map[uint32]*table)
		}
		t.byOID[rel.OID] = found
	}
	t.last = found
	return found
}

// compile has each mapping of a table read its columns. One that cannot is a misfit, and stops no other.
func (d *dispatcher) compile(rel *cdc.Relation) *table {
	t := &table{relation: rel, unknown: slices.ContainsFunc(rel.Columns, func(c cdc.Column) bool { return c.Type.Has(cdc.TypeUnknown) })}
	for _, r := range d.renderers {
		if r.template.Source.Table != (mapping.Table{Schema: rel.Schema, Name: rel.Name}) {
			continue
		}
		number, roots := t.enumerate(r, uint32(len(d.renderers)))
		plan, problems := r.template.Compile(rel)
		if len(problems) > 0 {
			t.misfits = append(t.misfits, misfitOf(r, problems))
			continue
		}
		t.plans = append(t.plans, compiled{
			renderer: r, plan: plan, coalesce: plan.Coalesce() == mapping.CoalesceLatest, byPerson: plan.ByPerson(), number: number, roots: roots,
		})
	}
	return t
}

// enumerate gives each item that a mapping may make of a change a number. The same block gives the same numbers as long as the mappings stay,
// whatever the source says to lookups and when rows are read back, and whether the mappings fit.
func (t *table) enumerate(r *renderer, renderers uint32) (number, roots uint32) {
	number = t.numbers
	t.numbers += 2
	if r.template.Source.Refresh != nil {
		roots = t.numbers
		t.numbers += 2 * renderers
	}
	return number, roots
}

// one dispatches one change.
func (d *dispatcher) one(ctx context.Context, c *cdc.Change, t *table) error {
	if len(t.plans) > 0 && d.incomplete(c, t) {
		var err error
		if t, err = d.complete(ctx, c, t); err != nil {
			return err
		}
	}
	if len(t.misfits) > 0 {
		d.hold(c, t)
	}
	if len(t.plans) == 0 {
		return nil
	}
	if err := d.allMapped(ctx, c, t); err != nil {
		return err
	}
	if d.worker.memory.full() {
		return d.makeRoom(ctx)
	}
	return nil
}

// which are the parts of a change that are dispatched at once.
type which uint8

const (
	allParts which = iota + 1
	oldParts       // of the row before an update
	newParts
)

// allMapped dispatches what the mappings make of a change: what an update ends before what it begins, since a row that leaves one
// mapping for another may be one record.
func (d *dispatcher) allMapped(ctx context.Context, c *cdc.Change, t *table) error {
	passes := []which{allParts}
	if len(t.plans) > 1 && c.Op == cdc.OpUpdate && slices.ContainsFunc(t.plans, func(p compiled) bool { return p.plan.MayMove(c) }) {
		passes = []which{oldParts, newParts}
	}
	for _, parts := range passes {
		for i := range t.plans {
			p := &t.plans[i]
			if d.unit.only != nil && d.unit.only != p.renderer {
				continue
			}
			if err := d.mapped(ctx, c, p, parts); err != nil {
				return err
			}
		}
	}
	return nil
}

// mapped dispatches what one mapping makes of a change.
func (d *dispatcher) mapped(ctx context.Context, c *cdc.Change, p *compiled, parts which) error {
	if d.gone(c, p) {
		if parts != oldParts {
			d.worker.count(p.renderer, c.Op, outcomeGone, 1)
		}
		return nil
	}
	if err := p.plan.Route(&d.route, c); err != nil {
		if parts != oldParts {
			d.damaged(c, p, err)
		}
		return nil
	}
	switch {
	case parts == oldParts || len(d.route.Parts) > 0:
	case d.route.Left:
		p.left[c.Op]++
	default:
		p.filtered[c.Op]++
	}
	for i := range d.route.Parts {
		part := &d.route.Parts[i]
		if d.has(c, part) || parts != allParts && part.Old != (parts == oldParts) {
			continue
		}
		if err := d.part(ctx, c, p, part); err != nil {
			return err
		}
	}
	return nil
}

// damaged makes a dead letter of a change whose rows are not those of its table.
func (d *dispatcher) damaged(c *cdc.Change, p *compiled, err error) {
	d.unit.sent++
	d.reject(c, p.renderer, item{block: d.unit.block, mapping: p.renderer, op: c.Op, suffix: d.unit.suffix, number: d.unit.base + p.number}, nil, err.Error())
}

// has says whether the sink has a part of the change already, as part of a backfilled row.
func (d *dispatcher) has(c *cdc.Change, part *mapping.Part) bool {
	have, some := c.HasPart(d.worker.cfg.Sink)
	return some && (have == cdc.PartOld) == part.Old
}

// part dispatches one item.
func (d *dispatcher) part(ctx context.Context, c *cdc.Change, p *compiled, part *mapping.Part) error {
	if p.template.Source.Refresh != nil && part.Reject == nil {
		d.touch(p, c, part)
		return nil
	}
	it := item{
		block: d.unit.block, mapping: p.renderer, pos: c.Position, hash: maphash.Bytes(d.seed, part.Key),
		op: part.Op, suffix: part.Suffix,
	}
	it.number = d.unit.base + p.number
	if part.Old {
		it.number++
	}
	if d.unit.suffix != "" {
		it.suffix, it.number = d.unit.suffix, d.unit.base+p.place
	}
	if d.unit.only != nil && string(it.appendID(nil)) != d.unit.itemID {
		return nil
	}
	d.unit.sent++
	if d.unit.block.recalled.has(it.number) {
		return nil
	}
	if part.Reject != nil {
		key := part.Key
		if c.Oversized != nil {
			key = []byte(c.Oversized.Key)
		}
		d.reject(c, p.renderer, it, key, part.Reject.Error())
		return nil
	}
	if tracker := d.worker.tracker; tracker != nil && d.unit.block.letter == nil && tracker.has(p.renderer, part.Key, c.Position, part.Suffix == suffixRead) {
		d.unit.block.mark(it.number)
		return nil
	}
	if err := d.lookUp(ctx, p, part); err != nil {
		return err
	}
	return d.emit(ctx, c, p, part, it)
}

// emit renders an item into the batch of its lane.
func (d *dispatcher) emit(ctx context.Context, c *cdc.Change, p *compiled, part *mapping.Part, it item) error {
	number, err := d.laneOf(ctx, part, it.hash)
	if err != nil {
		return err
	}
	l := d.worker.lanes[number]
	b := d.openBatch(l)
	start := len(b.buf)
	d.env.Largest = d.worker.cfg.MaxItem
	buf, err := p.plan.Append(b.buf, c, part, &d.env)
	if err != nil {
		b.buf = buf[:start]
		if errors.Is(err, mapping.ErrNothing) {
			p.filtered[c.Op]++
			return nil
		}
		return d.unrendered(c, p, part, it, err)
	}
	b.buf, it.latest = buf, p.coalesce && !d.unit.urgent
	it.body = span{from: uint32(start), to: uint32(len(buf))}
	d.unit.block.pending.Add(1)
	if d.booking {
		it.booked = true
		d.worker.keys.add(it.hash, number)
		for _, hash := range d.orders {
			d.worker.keys.add(hash, number)
		}
	}
	if p.coalesce && d.coalesce(b, p, part, &it, c) {
		d.charge(b)
		return nil
	}
	if b, err = d.roomFor(ctx, l, b, &it); err != nil {
		return err
	}
	it.key, it.orders = b.put(part.Key), b.putOrders(d.orders)
	it.after = d.parentsUnderWay(b, part)
	if d.unit.keep {
		it.change = b.put(cdc.EncodeChange(c))
	}
	b.add(it, d.worker.limits)
	if !d.unit.urgent && (p.coalesce || len(b.index) > 0) {
		b.remember(d.orders)
	}
	d.charge(b)
	return nil
}

func (d *dispatcher) unrendered(c *cdc.Change, p *compiled, part *mapping.Part, it item, err error) error {
	var reject *mapping.RejectError
	if !errors.As(err, &reject) {
		d.reject(c, p.renderer, it, part.Key, err.Error())
		return nil
	}
	d.reject(c, p.renderer, it, part.Key, reject.Error())
	return nil
}

// coalesce lets a newer state take the place of an older one of the same key in the batch. It reports whether it did.
func (d *dispatcher) coalesce(b *batch, p *compiled, part *mapping.Part, it *item, c *cdc.Change) bool {
	if d.unit.urgent || b.count == 0 {
		return false
	}
	i := b.find(p.renderer, it.hash, part.Key)
	if i < 0 {
		return false
	}
	old := &b.items[i]
	if d.partial != nil && !d.partial.Covers(b.bytes(it.body), b.bytes(old.body)) {
		return false
	}
	if p.byPerson && !slices.Equal(b.hashes(old), d.orders) { // another fan, whom the older tells of
		return false
	}
	if !b.newest(i, d.orders) { // in the older's place it would leave before what shares its record
		return false
	}
	if d.waitsForParent(part) { // in the older's place it could leave before its parent
		return false
	}
	if b.count > 1 && b.size-old.length()+it.length() > d.worker.cfg.Batch.Bytes {
		return false
	}
	if d.unit.keep {
		it.change = b.put(cdc.EncodeChange(c))
	}
	it.key, it.orders = old.key, b.putOrders(d.orders)
	d.worker.unbook(b, old) // the newer has been added
	d.worker.count(p.renderer, old.op, outcomeCoalesced, 1)
	if b.replace(i, *it, d.worker.limits); it.op != cdc.OpDelete {
		b.order(int32(i), d.orders)
	}
	return true
}

// parentsUnderWay appends the hashes of the part's parents that are on the way.
func (d *dispatcher) parentsUnderWay(b *batch, part *mapping.Part) span {
	from := uint32(len(b.buf))
	for _, parent := range part.Parents {
		hash := maphash.Bytes(d.seed, parent)
		if _, busy := d.worker.keys.lane(hash); busy {
			b.buf = binary.BigEndian.AppendUint64(b.buf, hash)
		}
	}
	return span{from: from, to: uint32(len(b.buf))}
}

// waitsForParent says whether an item of one of the part's parents is on the way.
func (d *dispatcher) waitsForParent(part *mapping.Part) bool {
	for _, parent := range part.Parents {
		if _, busy := d.worker.keys.lane(maphash.Bytes(d.seed, parent)); busy {
			return true
		}
	}
	return false
}

// roomFor returns the batch that takes an item which has been rendered into b: b itself or, when it is full, the next one.
func (d *dispatcher) roomFor(ctx context.Context, l *lane, b *batch, it *item) (*batch, error) {
	if b.fits(it.length(), d.worker.limits, d.worker.cfg.Batch.Bytes) {
		return b, nil
	}
	next := d.newBatch()
	it.body = next.put(b.bytes(it.body))
	b.buf = b.buf[:len(b.buf)-it.length()]
	b.sealed = true
	if err := d.parkRefused(ctx); err != nil { // nothing newer leaves before them
		return nil, err
	}
	l.open = next
	d.push(l, b)
	return next, nil
}

const perHold = 24 // bytes of an absorbed item

// charge lets memory know of what the batch has grown by.
func (d *dispatcher) charge(b *batch) {
	const perItem = 128 // item and hold, and a share of the index
	size := int64(len(b.buf)) + perItem*int64(len(b.items)) + perHold*int64(len(b.held))
	d.worker.memory.add(size-b.charged, 0)
	b.charged = size
}

// laneOf says which lane an item goes through: that in which items of its keys, or of its parents', are on the way, else the
// key's own. When those are in several lanes it waits.
func (d *dispatcher) laneOf(ctx context.Context, part *mapping.Part, hash uint64) (int, error) {
	own := int(hash % uint64(len(d.worker.lanes)))
	d.orders, d.behind = d.orders[:0], d.behind[:0]
	if !d.booking {
		return own, nil
	}
	for _, key := range part.Orders {
		d.orders = append(d.orders, maphash.Bytes(d.seed, key))
	}
	d.behind = append(d.behind, d.orders...)
	for _, parent := range part.Parents {
		d.behind = append(d.behind, maphash.Bytes(d.seed, parent))
	}
	for {
		lane, busy := d.worker.keys.lane(hash)
		conflict := uint64(0)
		for _, of := range d.behind {
			at, ok := d.worker.keys.lane(of)
			switch {
			case !ok:
			case !busy:
				lane, busy = at, true
			case at != lane:
				conflict = of
			}
		}
		if conflict == 0 {
			if busy {
				return lane, nil
			}
			return own, nil
		}
		err := d.waiting(ctx, func() error { return d.worker.keys.wait(ctx, conflict, d.worker.stuck.Done()) })
		if err != nil {
			return 0, err
		}
	}
}

// openBatch returns the batch that the lane's next item goes into.
func (d *dispatcher) openBatch(l *lane) *batch {
	if l.open != nil {
		return l.open
	}
	d.filling = append(d.filling, l)
	if d.unit.urgent {
		l.open = d.newBatch()
		l.open.sealed = true
		return l.open
	}
	if l.open = l.reclaim(); l.open != nil {
		d.worker.memory.batch(-1)
	} else {
		l.open = d.newBatch()
	}
	return l.open
}

func (d *dispatcher) newBatch() *batch {
	var b *batch
	select {
	case b = <-d.freed:
	default:
		b = new(batch)
	}
	if wait := d.worker.cfg.Batch.Wait; wait > 0 {
		b.deadline = time.Now().Add(wait)
	}
	return b
}

// recycle takes back a batch whose items are all settled.
func (w *Worker) recycle(b *batch) {
	w.memory.release(b.charged, 0)
	w.memory.batch(-1)
	if cap(b.buf) > 2*w.cfg.Batch.Bytes { // an exceptionally large item is not kept
		const worth = 4 << 20
		large := cap(b.buf) >= worth
		if *b = (batch{}); large {
			debug.FreeOSMemory()
		}
		return
	}
	b.reset()
	select {
	case w.dispatch.freed <- b:
	default:
	}
}

// handOver gives the lanes all that has been rendered. Refused items are parked first, so that a newer state of their key
// finds the letter.
func (d *dispatcher) handOver(ctx context.Context) error {
	if err := d.parkRefused(ctx); err != nil {
		return err
	}
	for _, l := range d.filling {
		if b := l.open; b != nil {
			l.open = nil
			d.push(l, b)
		}
	}
	d.filling = d.filling[:0]
	return nil
}

func (d *dispatcher) push(l *lane, b *batch) {
	if b.count == 0 {
		d.worker.memory.batch(1)
		d.worker.recycle(b)
		return
	}
	d.worker.memory.batch(1)
	l.push(b)
}

// makeRoom waits until lanes have delivered enough.
func (d *dispatcher) makeRoom(ctx context.Context) error {
	return d.waiting(ctx, func() error { return d.worker.memory.wait(ctx, d.worker.stuck.Done()) })
}

// waiting hands all over and waits; meanwhile lanes do not wait for fuller batches.
func (d *dispatcher) waiting(ctx context.Context, wait func() error) error {
	if err := d.handOver(ctx); err != nil {
		return err
	}
	for _, l := range d.worker.lanes {
		l.hurry(true)
	}
	defer func() {
		for _, l := range d.worker.lanes {
			l.hurry(false)
		}
	}()
	defer pulse.Rest(ctx)()
	return wait()
}

// reject makes a dead letter of what mapping refused.
func (d *dispatcher) reject(c *cdc.Change, r *renderer, it item, key []byte, reason string) {
	it.mapping, it.pos = r, c.Position
	d.unit.block.pending.Add(1)
	letter := Letter{
		ItemID: string(it.appendID(nil)), Sink: d.worker.cfg.Sink, Mapping: r.name, Table: r.table, Key: string(key), Op: it.op,
		Position: c.Position, Reason: reason, At: time.Now(), Change: d.encoded(c), State: LetterOpen,
	}
	if open := d.unit.block.letter; open != nil {
		letter.Attempts = d.worker.letters.attempts(open)
	}
	d.refuse = append(d.refuse, refusal{letter: letter, place: it.place(), renderer: r})
}

// encoded is a change as a block of its own, which the block is where a large row is alone in it.
func (d *dispatcher) encoded(c *cdc.Change) []byte {
	if b := d.unit.block; !d.unit.keep && d.unit.fetched == nil && b.letter == nil && isAlone(b.data) {
		return b.data
	}
	return cdc.EncodeChange(c)
}

// isAlone reports whether a block is a large one with a single change.
func isAlone(block []byte) bool {
	const large = 1 << 20
	if len(block) < large {
		return false
	}
	footer, err := cdc.ReadFooter(block)
	return err == nil && footer.Changes == 1
}

func (d *dispatcher) parkRefused(ctx context.Context) error {
	if len(d.refuse) == 0 {
		return nil
	}
	letters := make([]Letter, len(d.refuse))
	for i := range d.refuse {
		letters[i] = d.refuse[i].letter
	}
	if err := d.worker.letters.park(ctx, letters); err != nil {
		return err
	}
	for i := range d.refuse {
		d.worker.count(d.refuse[i].renderer, letters[i].Op, outcomeRejected, 1)
		d.refuse[i].place.settle()
	}
	const worth = 4 << 20
	large := slices.ContainsFunc(letters, func(l Letter) bool { return len(l.Change) >= worth })
	clear(d.refuse)
	d.refuse = d.refuse[:0]
	if clear(letters); large {
		debug.FreeOSMemory()
	}
	return nil
}

func (d *dispatcher) countFiltered() {
	for _, r := range d.renderers {
		for op, n := range r.filtered {
			d.worker.count(r, cdc.Op(op), outcomeFiltered, n)
		}
		for op, n := range r.left {
			d.worker.count(r, cdc.Op(op), outcomeLeft, n)
		}
		r.filtered, r.left = [ops]int{}, [ops]int{}
	}
}
