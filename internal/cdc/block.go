package cdc

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"time"
)

// A block is a run of frames and a footer:
//
//	block  = frame* footer uint32(len(footer)) version magic
//	frame  = kind byte, uvarint length, payload
//
// Rows keep the bytes of pgoutput's own messages (protocol-logicalrep-message-formats in the manual) and, when a backfill has read
// them, of the protocol's DataRow (protocol-message-formats). What a frame means
// depends on frames before it in the same block only. Integers are big-endian, as in pgoutput.
const (
	frameRelation  = 'R' // see appendRelation
	frameBegin     = 'B' // xid uint32, commit LSN uint64, commit time in µs since 1970 int64, uvarint ordinal of the last change before
	frameCommit    = 'C' // end LSN uint64
	frameInsert    = 'I' // pgoutput's message without its type byte: relation OID uint32, 'N', tuple
	frameUpdate    = 'U' // relation OID uint32, ['K'|'O', tuple], 'N', tuple
	frameDelete    = 'D' // relation OID uint32, 'K'|'O', tuple
	frameTruncate  = 'T' // relation OID uint32; one frame per table
	frameSkip      = 'S' // uvarint: so many changes of the transaction are not in the buffer, since no mapping wants their table
	frameOversized = 'X' // op byte, relation OID uint32, uvarint bytes, key
	frameExcept    = 'E' // Part byte, names of the sinks that this part of the next change is not for
	frameChunk     = 'K' // LSN uint64, read time in µs int64, uvarint ordinal of the last row before, names of the target sinks
	frameRead      = 'V' // relation OID uint32, number of columns uint16, values; see AppendValues
)

const (
	blockMagic   = 0xCB
	blockVersion = 2
	noWitness    = 1 // the version whose footers have no Witness
	blockTail    = 4 + 1 + 1
)

// Footer is what a block says of itself.
type Footer struct {
	Resume Resume
	// LastCommit is the commit time of the newest transaction in the block; zero when it has none.
	LastCommit time.Time
	// Changes counts the changes in the block.
	Changes uint32
	// Witness is the last transaction before Resume.End, whether the block has changes of it or not.
	Witness Witness
	// State is the capture's own: what it must know to go on after this block (progress of backfills). Opaque here.
	State []byte
}

// Resume says where capture goes on after a block.
type Resume struct {
	// End is the end LSN of the last transaction that is stored whole: the slot may be moved there, and replication is started there.
	End LSN
	// Open is the commit LSN of the transaction that the block ends within, 0 for none; Ordinal counts its changes
	// that are stored (or left out on purpose), so that capture skips as many when the server sends it again.
	Open    LSN
	Ordinal uint32
}

// Witness is a transaction by which a server's history is known again: another history has another one at this place, or none.
// The zero Witness is none.
type Witness struct {
	Commit LSN       `json:"commit"`
	XID    uint32    `json:"xid"`
	At     time.Time `json:"at"` // commit time, to the microsecond
}

// Writer builds one block at a time. The zero Writer is ready; it is not safe for concurrent use.
type Writer struct {
	buf     []byte
	footer  Footer
	xid     uint32
	commit  LSN // of the open transaction; 0 when none is open
	at      int64
	ordinal uint32
	chunk   *Chunk
	have    map[uint32]bool // relations that the current block has
}

// Chunk introduces rows that a backfill read.
type Chunk struct {
	LSN     LSN       // the chunk's L: changes up to it that the snapshot sees are part of the rows
	At      time.Time // when it was read
	Ordinal uint32    // rows of the backfill before this chunk
	Targets []string  // sinks; empty means all
}

// Len is the size of the block as it stands, without its footer.
func (w *Writer) Len() int { return len(w.buf) }

// Grow makes room for n more bytes, so that memory is not taken piece by piece.
func (w *Writer) Grow(n int) { w.buf = slices.Grow(w.buf, n) }

// Changes counts the changes in the block as it stands.
func (w *Writer) Changes() int { return int(w.footer.Changes) }

// InTransaction says whether a transaction is open.
func (w *Writer) InTransaction() bool { return w.commit != 0 }

// Resume is the footer's Resume as it stands.
func (w *Writer) Resume() Resume { return w.footer.Resume }

// Continue sets where capture goes on, from the last stored block's footer, before anything is written.
func (w *Writer) Continue(r Resume) { w.footer.Resume = r }

// Advance records that everything before end has been received, outside of a transaction: a keepalive's WAL end.
func (w *Writer) Advance(end LSN) {
	if end > w.footer.Resume.End {
		w.footer.Resume.End = end
	}
}

// Witness records the last transaction that was received whole.
func (w *Writer) Witness(t Witness) { w.footer.Witness = t }

// Witnessed is the footer's Witness as it stands.
func (w *Writer) Witnessed() Witness { return w.footer.Witness }

// Begin opens a transaction. ordinal counts the changes of it that are stored already, in blocks before.
func (w *Writer) Begin(xid uint32, commit LSN, at time.Time, ordinal uint32) {
	w.xid, w.commit, w.at, w.ordinal = xid, commit, at.UnixMicro(), ordinal
	w.footer.LastCommit = at
	w.begin()
}

func (w *Writer) begin() {
	w.buf = beginFrame(w.buf, frameBegin, 4+8+8+uvarintLen(uint64(w.ordinal)))
	w.buf = binary.BigEndian.AppendUint32(w.buf, w.xid)
	w.buf = binary.BigEndian.AppendUint64(w.buf, uint64(w.commit))
	w.buf = binary.BigEndian.AppendUint64(w.buf, uint64(w.at))
	w.buf = binary.AppendUvarint(w.buf, uint64(w.ordinal))
}

// Relation adds a relation (what AppendRelation gave), which replaces the one with the same OID.
func (w *Writer) Relation(oid uint32, encoded []byte) {
	w.buf = beginFrame(w.buf, frameRelation, len(encoded))
	w.buf = append(w.buf, encoded...)
	if w.have == nil {
		w.have = make(map[uint32]bool)
	}
	w.have[oid] = true
}

// Has says whether the block has the relation; a row must be preceded by its relation in the same block.
func (w *Writer) Has(oid uint32) bool { return w.have[oid] }

// Row adds pgoutput's Insert, Update or Delete message, type byte included, as the next change of the open transaction.
func (w *Writer) Row(message []byte) {
	w.buf = beginFrame(w.buf, message[0], len(message)-1)
	w.buf = append(w.buf, message[1:]...)
	w.count()
}

// Truncate adds the truncation of one table as the next change of the open transaction.
func (w *Writer) Truncate(oid uint32) {
	w.buf = beginFrame(w.buf, frameTruncate, 4)
	w.buf = binary.BigEndian.AppendUint32(w.buf, oid)
	w.count()
}

// Oversized adds, as the next change of the open transaction or row of the open chunk, what is known of a row that is too large.
func (w *Writer) Oversized(op Op, oid uint32, o Oversized) {
	w.buf = beginFrame(w.buf, frameOversized, 1+4+uvarintLen(uint64(o.Bytes))+len(o.Key))
	w.buf = append(w.buf, byte(op))
	w.buf = binary.BigEndian.AppendUint32(w.buf, oid)
	w.buf = binary.AppendUvarint(w.buf, uint64(o.Bytes))
	w.buf = append(w.buf, o.Key...)
	if w.chunk != nil {
		w.countReads(1)
		return
	}
	w.count()
}

func (w *Writer) count() {
	w.ordinal++
	w.footer.Changes++
	w.footer.Resume.Open, w.footer.Resume.Ordinal = w.commit, w.ordinal
}

// Skip counts changes of the open transaction that are left out on purpose.
func (w *Writer) Skip(n uint32) {
	w.buf = beginFrame(w.buf, frameSkip, uvarintLen(uint64(n)))
	w.buf = binary.AppendUvarint(w.buf, uint64(n))
	w.ordinal += n
	w.footer.Resume.Open, w.footer.Resume.Ordinal = w.commit, w.ordinal
}

// Except says that the next change, or a part of it, is not for the named sinks.
func (w *Writer) Except(part Part, sinks []string) {
	w.buf = beginFrame(w.buf, frameExcept, 1+namesLen(sinks))
	w.buf = append(w.buf, byte(part))
	w.buf = appendNames(w.buf, sinks)
}

// Commit ends the transaction; end is the LSN after its commit record, the only one of it that may be confirmed.
func (w *Writer) Commit(end LSN) {
	w.buf = beginFrame(w.buf, frameCommit, 8)
	w.buf = binary.BigEndian.AppendUint64(w.buf, uint64(end))
	w.commit = 0
	w.footer.Resume = Resume{End: max(end, w.footer.Resume.End)}
}

// BeginChunk opens a chunk of backfilled rows, outside of a transaction; it ends with EndChunk.
func (w *Writer) BeginChunk(c Chunk) {
	w.chunk = &c
	w.beginChunk()
}

func (w *Writer) beginChunk() {
	c := w.chunk
	w.buf = beginFrame(w.buf, frameChunk, 8+8+uvarintLen(uint64(c.Ordinal))+namesLen(c.Targets))
	w.buf = binary.BigEndian.AppendUint64(w.buf, uint64(c.LSN))
	w.buf = binary.BigEndian.AppendUint64(w.buf, uint64(c.At.UnixMicro()))
	w.buf = binary.AppendUvarint(w.buf, uint64(c.Ordinal))
	w.buf = appendNames(w.buf, c.Targets)
}

// Reads adds rows of the open chunk, as many frames of AppendRead.
func (w *Writer) Reads(frames []byte, rows int) {
	w.buf = append(w.buf, frames...)
	w.countReads(rows)
}

// AppendRead appends the frame of a row that a backfill has read: as many values as the relation has columns, in AppendValues' form.
func AppendRead(dst []byte, oid uint32, columns int, values []byte) []byte {
	dst = beginFrame(dst, frameRead, 4+2+len(values))
	dst = binary.BigEndian.AppendUint32(dst, oid)
	dst = binary.BigEndian.AppendUint16(dst, uint16(columns))
	return append(dst, values...)
}

func (w *Writer) countReads(n int) {
	w.chunk.Ordinal += uint32(n)
	w.footer.Changes += uint32(n)
}

// EndChunk closes the chunk.
func (w *Writer) EndChunk() { w.chunk = nil }

// Seal returns the finished block and begins the next one, in spare's memory when it has any. A transaction or chunk that is open goes on in the next block.
func (w *Writer) Seal(state, spare []byte) []byte {
	w.footer.State = state
	start := len(w.buf)
	w.buf = w.footer.append(w.buf)
	w.buf = binary.BigEndian.AppendUint32(w.buf, uint32(len(w.buf)-start))
	w.buf = append(w.buf, blockVersion, blockMagic)
	block := w.buf

	w.buf = spare[:0]
	w.footer = Footer{Resume: w.footer.Resume, Witness: w.footer.Witness}
	clear(w.have)
	if w.commit != 0 {
		w.footer.LastCommit = time.UnixMicro(w.at)
		w.begin()
	}
	if w.chunk != nil {
		w.beginChunk()
	}
	return block
}

func (f *Footer) append(dst []byte) []byte {
	dst = binary.BigEndian.AppendUint64(dst, uint64(f.Resume.End))
	dst = binary.BigEndian.AppendUint64(dst, uint64(f.Resume.Open))
	dst = binary.BigEndian.AppendUint32(dst, f.Resume.Ordinal)
	dst = appendTime(dst, f.LastCommit)
	dst = binary.BigEndian.AppendUint32(dst, f.Changes)
	dst = binary.BigEndian.AppendUint64(dst, uint64(f.Witness.Commit))
	dst = binary.BigEndian.AppendUint32(dst, f.Witness.XID)
	dst = appendTime(dst, f.Witness.At)
	return append(dst, f.State...)
}

// appendTime appends µs since 1970, 0 for the zero time.
func appendTime(dst []byte, t time.Time) []byte {
	var at int64
	if !t.IsZero() {
		at = t.UnixMicro()
	}
	return binary.BigEndian.AppendUint64(dst, uint64(at))
}

func (r *reader) time() time.Time {
	if at := int64(r.uint64()); at != 0 {
		return time.UnixMicro(at)
	}
	return time.Time{}
}

// ReadFooter returns a block's footer without reading its frames. State aliases the block.
func ReadFooter(block []byte) (Footer, error) {
	f, _, err := splitBlock(block)
	return f, err
}

func splitBlock(block []byte) (f Footer, frames []byte, err error) {
	n := len(block) - blockTail
	if n < 0 || block[len(block)-1] != blockMagic {
		return f, nil, corrupt("no block: %d bytes without the closing mark", len(block))
	}
	version := block[len(block)-2]
	if version != blockVersion && version != noWitness {
		return f, nil, corrupt("block of format %d, this version reads %d: run the version that wrote it until the buffer is empty", version, blockVersion)
	}
	start := n - int(binary.BigEndian.Uint32(block[n:]))
	if start < 0 {
		return f, nil, corrupt("footer is longer than the block")
	}
	r := reader{buf: block[start:n]}
	f.Resume.End, f.Resume.Open, f.Resume.Ordinal = LSN(r.uint64()), LSN(r.uint64()), r.uint32()
	f.LastCommit = r.time()
	f.Changes = r.uint32()
	if version != noWitness {
		f.Witness = Witness{Commit: LSN(r.uint64()), XID: r.uint32(), At: r.time()}
	}
	if len(r.buf) > 0 {
		f.State = r.buf
	}
	return f, block[:start], r.err
}

// Decoder reads the changes of block after block. It keeps relations from block to block, so that a relation that did not
// change is the same *Relation: what is compiled for it can be cached by pointer. The zero Decoder is ready.
type Decoder struct {
	relations  map[uint32]*knownRelation
	generation uint64
	old, new   []Value
	except     []string
	part       Part

	frames   reader
	footer   Footer
	xid      uint32
	position Position
	at       time.Time
	targets  []string
}

type knownRelation struct {
	raw        []byte
	relation   *Relation
	charset    *Charset // of its rows; nil for UTF-8
	generation uint64   // the block that last named it
}

// Reset begins a block, and returns its footer.
func (d *Decoder) Reset(block []byte) (Footer, error) {
	footer, frames, err := splitBlock(block)
	if err != nil {
		return Footer{}, err
	}
	if d.relations == nil {
		d.relations = make(map[uint32]*knownRelation)
	}
	d.generation++
	d.frames, d.footer = reader{buf: frames}, footer
	d.xid, d.position, d.at, d.targets, d.except, d.part = 0, Position{}, time.Time{}, nil, nil, PartWhole
	return footer, nil
}

// Next reads the next change into c and reports whether there was one. c's slices are valid until the next call.
func (d *Decoder) Next(c *Change) (bool, error) {
	for len(d.frames.buf) > 0 {
		kind, payload := d.frames.frame()
		if d.frames.err != nil {
			return false, d.frames.err
		}
		r := reader{buf: payload}
		found, err := d.apply(kind, &r, c)
		if err == nil {
			err = r.err
		}
		if err != nil || found {
			return found && err == nil, err
		}
	}
	return false, nil
}

// apply takes one frame. It reports true when the frame was a change.
func (d *Decoder) apply(kind byte, r *reader, c *Change) (bool, error) {
	switch kind {
	case frameBegin:
		d.xid, d.position.Commit, d.at = r.uint32(), LSN(r.uint64()), time.UnixMicro(int64(r.uint64()))
		d.position.Ordinal = r.ordinal()
	case frameCommit:
		d.xid, d.position, d.at = 0, Position{}, time.Time{}
	case frameSkip:
		d.position.Ordinal += r.ordinal()
	case frameExcept:
		d.part = Part(r.byte())
		d.except = r.names()
		if d.part > PartNew {
			return false, corrupt("part %d of a change", d.part)
		}
	case frameChunk:
		d.xid, d.position.Commit, d.at = 0, LSN(r.uint64()), time.UnixMicro(int64(r.uint64()))
		d.position.Ordinal = r.ordinal()
		d.targets = r.names()
	case frameRelation:
		return false, d.learn(r.buf)
	case frameInsert, frameUpdate, frameDelete, frameTruncate, frameOversized, frameRead:
		return true, d.change(kind, r, c)
	default:
		return false, corrupt("unknown frame %q", kind)
	}
	return false, nil
}

func (d *Decoder) learn(raw []byte) error {
	if len(raw) < 4 {
		return corrupt("relation of %d bytes", len(raw))
	}
	oid := binary.BigEndian.Uint32(raw)
	if known := d.relations[oid]; known != nil && bytes.Equal(known.raw, raw) {
		known.generation = d.generation
		return nil
	}
	relation, err := DecodeRelation(raw)
	if err != nil {
		return err
	}
	d.relations[oid] = &knownRelation{raw: bytes.Clone(raw), relation: relation, charset: CharsetByName(relation.Encoding), generation: d.generation}
	return nil
}

func (d *Decoder) change(kind byte, r *reader, c *Change) error {
	var op Op
	if kind == frameOversized {
		op = Op(r.byte())
	}
	oid := r.uint32()
	known := d.relations[oid]
	if r.err != nil {
		return r.err
	}
	if known == nil || known.generation != d.generation {
		return corrupt("row of relation %d before the relation", oid)
	}
	d.position.Ordinal++
	*c = Change{
		Position: d.position, Relation: known.relation, XID: d.xid, CommitTime: d.at,
		Except: d.except, ExceptPart: d.part,
	}
	d.except, d.part = nil, PartWhole
	switch kind {
	case frameInsert:
		c.Op = OpInsert
		c.New = d.newTuple(r, known.relation)
	case frameUpdate:
		c.Op = OpUpdate
		if mark := r.peek(); mark == 'K' || mark == 'O' {
			d.oldTuple(r, c)
		}
		c.New = d.newTuple(r, known.relation)
	case frameDelete:
		c.Op = OpDelete
		d.oldTuple(r, c)
	case frameTruncate:
		c.Op = OpTruncate
	case frameRead:
		c.Op, c.Targets = OpRead, d.targets
		d.new = r.values(d.new[:0], len(known.relation.Columns))
		c.New = d.new
	case frameOversized:
		c.Op = op
		if op == OpRead {
			c.Targets = d.targets
		}
		c.Oversized = &Oversized{Bytes: int64(r.uvarint()), Key: string(r.rest())}
		if _, ok := ParseOp(op.String()); !ok {
			return corrupt("oversized row with operation %d", op)
		}
	}
	if r.err == nil && len(r.buf) > 0 {
		return corrupt("%d bytes after the row", len(r.buf))
	}
	if known.charset != nil {
		known.charset.Values(c.Old)
		known.charset.Values(c.New)
	}
	return r.err
}

func (d *Decoder) newTuple(r *reader, rel *Relation) []Value {
	if mark := r.byte(); mark != 'N' && r.err == nil {
		r.fail("tuple mark %q, want 'N'", mark)
	}
	d.new = r.tuple(d.new[:0], len(rel.Columns))
	return d.new
}

func (d *Decoder) oldTuple(r *reader, c *Change) {
	mark := r.byte()
	if mark != 'K' && mark != 'O' && r.err == nil {
		r.fail("tuple mark %q, want 'K' or 'O'", mark)
		return
	}
	d.old = r.tuple(d.old[:0], len(c.Relation.Columns))
	c.Old, c.OldIsKey = d.old, mark == 'K'
	if !c.OldIsKey {
		return
	}
	// In a key-only tuple, null says "not part of the key" (logicalrep_write_tuple, proto.c). A column of a key is never null, so that
	// null says the same there: the row is of a partition whose key lacks the column.
	for i := range c.Old {
		if c.Old[i].Kind == Null || !c.Relation.Columns[i].Identity {
			c.Old[i] = Value{}
		}
	}
}

// DecodeTuple appends to dst the values of a tuple in pgoutput's form, which must have the given number of columns. The values alias it,
// and are in the database's encoding.
func DecodeTuple(dst []Value, tuple []byte, columns int) ([]Value, error) {
	r := reader{buf: tuple}
	dst = r.tuple(dst, columns)
	if r.err == nil && len(r.buf) > 0 {
		r.fail("%d bytes after the tuple", len(r.buf))
	}
	return dst, r.err
}

// AppendTuple appends values in pgoutput's tuple form; Absent is written as null.
func AppendTuple(dst []byte, values []Value) []byte {
	dst = binary.BigEndian.AppendUint16(dst, uint16(len(values)))
	for _, v := range values {
		switch v.Kind {
		case Text:
			dst = append(dst, 't')
			dst = binary.BigEndian.AppendUint32(dst, uint32(len(v.Data)))
			dst = append(dst, v.Data...)
		case Unchanged:
			dst = append(dst, 'u')
		default:
			dst = append(dst, 'n')
		}
	}
	return dst
}

// AppendValues appends values as the protocol's DataRow has them: the length of each text as int32, -1 for null, and the text.
// Absent is written as null.
func AppendValues(dst []byte, values []Value) []byte {
	for _, v := range values {
		if v.Kind != Text {
			dst = binary.BigEndian.AppendUint32(dst, math.MaxUint32)
			continue
		}
		dst = binary.BigEndian.AppendUint32(dst, uint32(len(v.Data)))
		dst = append(dst, v.Data...)
	}
	return dst
}

func beginFrame(dst []byte, kind byte, length int) []byte {
	return binary.AppendUvarint(append(dst, kind), uint64(length))
}

func uvarintLen(v uint64) int {
	n := 1
	for v >= 0x80 {
		v >>= 7
		n++
	}
	return n
}

// CorruptError says that bytes which should be a block are none. Trying again does not help.
type CorruptError struct{ Reason string }

func (e *CorruptError) Error() string { return "block: " + e.Reason }

func corrupt(format string, args ...any) error {
	return &CorruptError{Reason: fmt.Sprintf(format, args...)}
}

// EachRelation calls f with each relation that a block has, in AppendRelation's form, which is valid until f returns. It steps
// over rows without reading them.
func EachRelation(block []byte, f func(oid uint32, encoded []byte)) error {
	_, frames, err := splitBlock(block)
	if err != nil {
		return err
	}
	for r := (reader{buf: frames}); len(r.buf) > 0; {
		kind, payload := r.frame()
		if r.err != nil {
			return r.err
		}
		if kind == frameRelation && len(payload) >= 4 {
			f(binary.BigEndian.Uint32(payload), payload)
		}
	}
	return nil
}
