package delivery

import (
	"bytes"
	"compress/flate"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"math/bits"
	"slices"
	"strconv"
	"time"

	"gopkg.in/yaml.v3"

	"github.com/cdcsync/cdcsync/internal/cdc"
	"github.com/cdcsync/cdcsync/internal/mapping"
)

const (
	keepInterval = time.Second // between two writes of what is settled behind a block that is not: what a crash repeats at most, beside what was in flight
	keepPatience = 5 * time.Second
	keptVersion  = 1
	keptBytes    = 256 << 10 // of the stored value; what does not fit is sent again
	keptRaw      = 4 << 20   // before compression
)

// bitset is a set of numbers of items.
type bitset []uint64

const wordBits = 64

func (b *bitset) set(n uint32) {
	word := int(n / wordBits)
	if word >= len(*b) {
		*b = append(*b, make([]uint64, word+1-len(*b))...)
	}
	(*b)[word] |= 1 << (n % wordBits)
}

func (b bitset) has(n uint32) bool {
	word := int(n / wordBits)
	return word < len(b) && b[word]&(1<<(n%wordBits)) != 0
}

func (b bitset) count() (n int) {
	for _, word := range b {
		n += bits.OnesCount64(word)
	}
	return n
}

// settledState is what is settled of the blocks that the cursor has not passed.
type settledState struct {
	runs  []settledRun  // in their order
	parts []settledPart // in their order
}

// settledRun is blocks of which all is settled. A sequence may be given again when the store has lost its newest blocks: then what has it lies
// behind the run, or was stored later.
type settledRun struct {
	from, to uint64
	resume   cdc.LSN
	stored   time.Time
}

// settledPart is a block of which some items are settled.
type settledPart struct {
	seq   uint64
	sum   uint32 // of the block
	items bitset
}

// storedSlack is by how much two readings of the time when a block was stored may differ: that of its writer and that of the store.
const storedSlack = 5 * time.Second

// whole reports whether all of a block is settled.
func (s *settledState) whole(b *block) bool {
	i, _ := slices.BinarySearchFunc(s.runs, b.seq, func(r settledRun, seq uint64) int {
		if r.to < seq {
			return -1
		}
		return 1
	})
	if i == len(s.runs) {
		return false
	}
	r := &s.runs[i]
	return r.from <= b.seq && b.resume <= r.resume && !b.stored.After(r.stored.Add(storedSlack))
}

// of returns what is settled of a block; nil for nothing.
func (s *settledState) of(b *block) bitset {
	i, ok := slices.BinarySearchFunc(s.parts, b.seq, func(p settledPart, seq uint64) int {
		if p.seq < seq {
			return -1
		}
		return int(min(p.seq-seq, 1))
	})
	if !ok || s.parts[i].sum != b.checksum() {
		return nil
	}
	return s.parts[i].items
}

// after forgets what concerns blocks up to seq.
func (s *settledState) after(seq uint64) {
	s.runs = slices.DeleteFunc(s.runs, func(r settledRun) bool { return r.to <= seq })
	s.parts = slices.DeleteFunc(s.parts, func(p settledPart) bool { return p.seq <= seq })
}

// checksum tells a block from another that has got its sequence.
func (b *block) checksum() uint32 {
	if !b.summed {
		b.sum, b.summed = crc32.Checksum(b.data, castagnoli), true
	}
	return b.sum
}

// state is what is settled now.
func (l *ledger) state() (s settledState) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for b := l.first; b != nil; b = b.next {
		if b.done {
			s.runs = append(s.runs, settledRun{from: b.from, to: b.seq, resume: b.resume, stored: b.stored})
			continue
		}
		b.marking.Lock()
		items := slices.Clone(b.marked)
		b.marking.Unlock()
		if items.count() > 0 && (b.data != nil || b.summed) {
			s.parts = append(s.parts, settledPart{seq: b.seq, sum: b.checksum(), items: items})
		}
	}
	l.known.after(l.begun)
	s.runs = append(s.runs, l.known.runs...)
	s.parts = append(s.parts, l.known.parts...)
	return s
}

// recall takes what an earlier run has stored, if the mappings are the same: else the numbers mean other items.
func (l *ledger) recall(kept []byte, mappings [16]byte) {
	known, err := decodeSettled(kept, mappings)
	if err != nil { // of another version, or damaged: what it says is sent again
		known = settledState{}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.known = known
}

// keepSettled stores from time to time what is settled behind a block that is not, until the worker drains.
func (w *Worker) keepSettled(ctx context.Context) error {
	for {
		if err := pause(ctx, keepInterval, w.draining.Done()); err != nil || w.draining.Err() != nil {
			return nil //nolint:nilerr // the end that was asked for
		}
		if !w.ledger.changed() {
			continue
		}
		if err := w.storeSettled(ctx); err != nil && ctx.Err() == nil {
			w.log.Warn("settled items are not stored: a crash now would repeat them", "err", err)
		}
	}
}

// keepLast stores what is settled when nothing is under way any more.
func (w *Worker) keepLast(ctx context.Context) {
	if !w.ledger.changed() {
		return
	}
	if err := w.storeSettled(context.WithoutCancel(ctx)); err != nil {
		w.log.Warn("settled items are not stored: they are sent again after the start", "err", err)
	}
}

// changed reports whether the settledState may differ from what was stored last.
func (l *ledger) changed() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.marks.Load() != l.kept && (l.first != nil || l.stored)
}

func (w *Worker) storeSettled(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, keepPatience)
	defer cancel()
	l := w.ledger
	marks := l.marks.Load()
	s := l.state()
	if err := w.blocks.Keep(ctx, s.encode(w.mappings)); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.kept, l.stored = marks, len(s.runs)+len(s.parts) > 0
	return nil
}

// encode makes the value that is stored. What makes it too large is left out: the newest first.
func (s *settledState) encode(mappings [16]byte) []byte {
	parts := s.parts
	for {
		value := encodeSettled(s.runs, parts, mappings)
		if len(value) <= keptBytes || len(parts) == 0 {
			return value
		}
		parts = parts[:len(parts)/2]
	}
}

func encodeSettled(runs []settledRun, parts []settledPart, mappings [16]byte) []byte {
	var raw []byte
	raw = binary.AppendUvarint(raw, uint64(len(runs)))
	for _, r := range runs {
		raw = binary.AppendUvarint(binary.AppendUvarint(raw, r.from), r.to)
		raw = binary.AppendUvarint(raw, uint64(r.resume))
		raw = binary.AppendVarint(raw, r.stored.UnixNano())
	}
	for _, p := range parts {
		if len(raw) > keptRaw {
			break
		}
		raw = binary.AppendUvarint(raw, p.seq)
		raw = binary.BigEndian.AppendUint32(raw, p.sum)
		raw = binary.AppendUvarint(raw, uint64(len(p.items)))
		for _, word := range p.items {
			raw = binary.BigEndian.AppendUint64(raw, word)
		}
	}
	value := bytes.NewBuffer(append([]byte{keptVersion}, mappings[:]...))
	packed, _ := flate.NewWriter(value, flate.BestSpeed) // its errors are those of the level and of the buffer, of which there are none
	_, _ = packed.Write(raw)
	_ = packed.Close()
	return value.Bytes()
}

func decodeSettled(value []byte, mappings [16]byte) (s settledState, err error) {
	const head = 1 + len(mappings)
	if len(value) < head || value[0] != keptVersion || !bytes.Equal(value[1:head], mappings[:]) {
		return s, nil
	}
	raw, err := io.ReadAll(io.LimitReader(flate.NewReader(bytes.NewReader(value[head:])), 2*keptRaw))
	if err != nil {
		return s, fmt.Errorf("settled items: %w", err)
	}
	r := keptReader{rest: raw}
	for n := r.uvarint(); n > 0 && r.err == nil; n-- {
		run := settledRun{from: r.uvarint(), to: r.uvarint(), resume: cdc.LSN(r.uvarint())}
		run.stored = time.Unix(0, r.varint())
		s.runs = append(s.runs, run)
	}
	for len(r.rest) > 0 && r.err == nil {
		part := settledPart{seq: r.uvarint(), sum: uint32(r.fixed(4))}
		for n := r.uvarint(); n > 0 && r.err == nil; n-- {
			part.items = append(part.items, r.fixed(8))
		}
		s.parts = append(s.parts, part)
	}
	return s, r.err
}

// keptReader reads what encodeSettled wrote; err is set once something is missing.
type keptReader struct {
	rest []byte
	err  error
}

var errKept = errors.New("settled items: cut short")

func (r *keptReader) uvarint() uint64 {
	v, n := binary.Uvarint(r.rest)
	r.skip(n)
	return v
}

func (r *keptReader) varint() int64 {
	v, n := binary.Varint(r.rest)
	r.skip(n)
	return v
}

func (r *keptReader) fixed(size int) (v uint64) {
	if len(r.rest) < size {
		r.skip(0)
		return 0
	}
	for _, b := range r.rest[:size] {
		v = v<<8 | uint64(b)
	}
	r.skip(size)
	return v
}

func (r *keptReader) skip(n int) {
	if n <= 0 {
		r.rest, r.err = nil, errKept
		return
	}
	r.rest = r.rest[n:]
}

// digest names the mappings as far as they decide which items a block gives.
func digest(sinkType string, templates []*mapping.Template) (sum [16]byte) {
	h := sha256.New()
	put := func(words ...string) {
		for _, w := range words {
			fmt.Fprintf(h, "%d:%s,", len(w), w)
		}
	}
	put(sinkType)
	for _, t := range templates {
		s := &t.Source
		put("mapping", s.Name, s.Table.Schema, s.Table.Name, s.Sink, fmt.Sprintf("%v %d %d", s.On, s.Coalesce, s.Leave))
		digestNodes(h, &s.When, &s.Key, &s.Item)
		for i := range s.Lookups {
			l := &s.Lookups[i]
			put("lookup", l.Name, l.SQL, strconv.FormatBool(l.Many))
			digestNodes(h, &l.Key)
		}
		if r := s.Refresh; r != nil {
			put("refresh", r.Table.Schema, r.Table.Name, r.Key)
			digestNodes(h, &r.By)
		}
		for i := range s.Parents {
			put("parent", s.Parents[i].Mapping)
			digestNodes(h, &s.Parents[i].Key)
		}
	}
	return [16]byte(h.Sum(nil))
}

// digestNodes adds YAML without regard to how it is written down.
func digestNodes(h hash.Hash, nodes ...*yaml.Node) {
	for _, n := range nodes {
		for n.Kind == yaml.AliasNode {
			n = n.Alias
		}
		fmt.Fprintf(h, "%d %s %d:%s %d(", n.Kind, n.Tag, len(n.Value), n.Value, len(n.Content))
		digestNodes(h, n.Content...)
		fmt.Fprint(h, ")")
	}
}
