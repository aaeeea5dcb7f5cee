package delivery

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"hash/crc32"
	"time"

	"github.com/cdcsync/cdcsync/internal/cdc"
	"github.com/cdcsync/cdcsync/internal/sinks"
)

// batch is what one lane sends at once: rendered items in one arena. The dispatcher fills it, then the lane owns it.
type batch struct {
	buf   []byte // bodies, keys and, where the block does not hold them, changes
	items []item
	held  []hold
	index map[uint64]int32 // newest item by hash, for those that may be coalesced

	count    int       // items to send: those not absorbed
	size     int       // of the request's body
	charged  int64     // bytes of buf that memory knows of
	full     bool      // as many items as a request may have; one of them may still be replaced
	sealed   bool      // takes no more items
	deadline time.Time // when it is sent though not full
	seq      uint64    // of a held item: their order
}

// span is a part of a batch's arena.
type span struct{ from, to uint32 }

// item is one rendered change on its way.
type item struct {
	block   *block
	mapping *renderer
	pos     cdc.Position
	hash    uint64 // of key

	body   span
	key    span
	orders span // hashes of further keys that keys knows of, 8 bytes each
	change span // its one-change block, when the block does not hold the row that was rendered
	after  span // hashes of its parents that were on the way

	held     int32  // head of the list of what an item has absorbed, -1 for none
	number   uint32 // its place in the block
	attempts uint32
	suffix   string // of its ID
	op       cdc.Op
	absorbed bool // a newer item has taken its place
	booked   bool // keys knows of it
	latest   bool // a newer state of its key may take its place
	lifted   bool // copied out of its batch: its blocks need not keep their bytes for it
}

// hold keeps an absorbed item unsettled until the one that absorbed it is settled.
type hold struct {
	place
	next int32
}

// place is an item's in its block.
type place struct {
	block  *block
	number uint32
}

// settle says that the item of that place is settled for good.
func (p place) settle() { p.block.settle(p.number) }

func (b *batch) bytes(s span) []byte { return b.buf[s.from:s.to] }

// put appends bytes to the arena.
func (b *batch) put(data []byte) span {
	from := uint32(len(b.buf))
	b.buf = append(b.buf, data...)
	return span{from: from, to: uint32(len(b.buf))}
}

// putOrders puts hashes into the arena.
func (b *batch) putOrders(hashes []uint64) span {
	from := uint32(len(b.buf))
	for _, hash := range hashes {
		b.buf = binary.BigEndian.AppendUint64(b.buf, hash)
	}
	return span{from: from, to: uint32(len(b.buf))}
}

// hashes are those of an item's further keys.
func (b *batch) hashes(it *item) []uint64 { return b.hashesAt(it.orders) }

// hashesAt are those that putOrders put there.
func (b *batch) hashesAt(s span) (hashes []uint64) {
	for rest := b.bytes(s); len(rest) > 0; rest = rest[8:] {
		hashes = append(hashes, binary.BigEndian.Uint64(rest))
	}
	return hashes
}

// fits says whether one more body leaves the request within the limits. A batch always takes its first item.
func (b *batch) fits(body int, limits sinks.Limits, bytes int) bool {
	if b.count == 0 {
		return true
	}
	return (limits.Items == 0 || b.count < limits.Items) && b.size+limits.Overhead+body <= bytes
}

// add takes an item whose body and key are in the arena.
func (b *batch) add(it item, limits sinks.Limits) {
	it.held = -1
	if b.count == 0 {
		b.size = limits.Frame
	}
	b.count++
	b.size += limits.Overhead + it.length()
	b.items = append(b.items, it)
	b.full = b.count == limits.Items
}

func (it *item) length() int { return int(it.body.to - it.body.from) }

// find returns the newest item of the same mapping and key that may be coalesced with, or -1.
func (b *batch) find(m *renderer, hash uint64, key []byte) int {
	i, ok := b.index[hash]
	if !ok || b.items[i].mapping != m || !bytes.Equal(b.bytes(b.items[i].key), key) {
		return -1
	}
	return int(i)
}

// remember makes the last item the newest of its keys: one that a newer one of its own may replace, and that none of another may be
// moved in front of.
func (b *batch) remember(orders []uint64) {
	if b.index == nil {
		b.index = make(map[uint64]int32)
	}
	last := int32(len(b.items) - 1)
	b.index[b.items[last].hash] = last
	b.order(last, orders)
}

// order notes an item as the newest of further keys.
func (b *batch) order(i int32, orders []uint64) {
	for _, hash := range orders {
		b.index[hash] = i
	}
}

// newest reports whether no item of one of the keys came after item i.
func (b *batch) newest(i int, orders []uint64) bool {
	for _, hash := range orders {
		if at, ok := b.index[hash]; ok && int(at) > i {
			return false
		}
	}
	return true
}

// coalescedOp is the op of a state that stands for both: what the vendor has not seen inserted stays an insert, and what is
// deleted at the end is a delete. A row deleted and inserted again is an insert, since the vendor may have neither.
func coalescedOp(older, newer cdc.Op) cdc.Op {
	if newer == cdc.OpUpdate && (older == cdc.OpInsert || older == cdc.OpRead) {
		return older
	}
	return newer
}

// replace puts a newer state of the same key in the place of item i. A delete goes to the end instead, behind what was said
// of the row in between (its children).
func (b *batch) replace(i int, it item, limits sinks.Limits) {
	old := &b.items[i]
	it.op = coalescedOp(old.op, it.op)
	it.held = b.hold(old)
	if it.op == cdc.OpDelete && i < len(b.items)-1 {
		old.absorbed = true
		b.count--
		b.size -= limits.Overhead + old.length()
		held := it.held
		b.add(it, limits)
		b.items[len(b.items)-1].held = held
		b.remember(b.hashes(&it))
		return
	}
	b.size += it.length() - old.length()
	*old = it
}

// hold keeps old open for as long as its successor needs, and returns the successor's list.
func (b *batch) hold(old *item) int32 {
	b.held = append(b.held, hold{place: old.place(), next: old.held})
	return int32(len(b.held) - 1)
}

func (it *item) place() place { return place{it.block, it.number} }

// settle settles the item and what it absorbed.
func (b *batch) settle(it *item) {
	if it.lifted {
		for _, held := range b.holders(it) {
			held.block.lifted.Add(-1)
		}
	}
	for h := it.held; h >= 0; h = b.held[h].next {
		b.held[h].settle()
	}
	it.place().settle()
}

// holders lists the places that settle would settle.
func (b *batch) holders(it *item) []place {
	list := []place{it.place()}
	for h := it.held; h >= 0; h = b.held[h].next {
		list = append(list, b.held[h].place)
	}
	return list
}

// reset empties the batch, and keeps its memory.
func (b *batch) reset() {
	clear(b.items)
	clear(b.held)
	clear(b.index)
	*b = batch{buf: b.buf[:0], items: b.items[:0], held: b.held[:0], index: b.index}
}

// appendID appends the item's ID: position, mapping, and what tells apart the several items that one position may give.
func (it *item) appendID(dst []byte) []byte {
	dst = it.pos.Append(dst)
	dst = append(append(dst, '/'), it.mapping.name...)
	return append(dst, it.suffix...)
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// request is the scratch of a lane for composing requests.
type request struct {
	items []sinks.Item
	ids   []byte
	ends  []int
	sums  []byte
}

// compose makes the items of a request and its idempotency key, which is the same whenever the same content is sent. All
// IDs share one string, so that they cost one allocation a request.
func (r *request) compose(b *batch, order []int32) (items []sinks.Item, key string) {
	r.ids, r.ends, r.sums = r.ids[:0], r.ends[:0], r.sums[:0]
	for _, i := range order {
		it := &b.items[i]
		r.ids = it.appendID(r.ids)
		r.ends = append(r.ends, len(r.ids))
		r.sums = append(r.sums, byte(it.op))
		r.sums = binary.BigEndian.AppendUint32(r.sums, crc32.Checksum(b.bytes(it.body), castagnoli))
	}
	ids, from := string(r.ids), 0
	r.items = r.items[:0]
	for n, i := range order {
		it := &b.items[i]
		r.items = append(r.items, sinks.Item{ID: ids[from:r.ends[n]], Op: it.op, Body: b.bytes(it.body)})
		from = r.ends[n]
	}
	sum := sha256.New()
	sum.Write(r.ids)
	sum.Write(r.sums)
	return r.items, hex.EncodeToString(sum.Sum(nil)[:16])
}
