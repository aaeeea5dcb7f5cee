package buffer

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/maphash"
	"iter"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/sourcegraph/conc/pool"

	"github.com/cdcsync/cdcsync/internal/cdc"
)

// LetterState says what is to be done with a dead letter.
type LetterState string

// The states.
const (
	LetterOpen       LetterState = "open"       // waits for an operator
	LetterSuperseded LetterState = "superseded" // a newer state of its key has been delivered: it is kept to be looked at
	LetterReplaced   LetterState = "replaced"   // a newer letter of its key tells all that it does
	LetterUnwanted   LetterState = "unwanted"   // the mapping did not send its row any more when it was retried
)

// Letter is a dead letter: an item that its vendor, or our own rendering, has rejected.
type Letter struct {
	ID           string        `json:"id"`   // sorts by time of parking; given by Park
	Sink         string        `json:"sink"` // with ItemID: what makes two letters the same
	ItemID       string        `json:"item_id,omitempty"`
	Mapping      string        `json:"mapping"`
	Table        string        `json:"table"`
	Op           string        `json:"op"`
	Key          string        `json:"key"`
	Position     cdc.Position  `json:"position"`
	At           time.Time     `json:"at"` // when it was parked
	Reason       string        `json:"reason"`
	Code         string        `json:"code,omitempty"`   // the vendor's
	Trace        string        `json:"trace,omitempty"`  // the vendor's id of the call
	Status       int           `json:"status,omitempty"` // HTTP status; 0 when it was not sent
	Attempts     int           `json:"attempts"`
	State        LetterState   `json:"state"`
	Remark       string        `json:"remark,omitempty"`
	SupersededBy *cdc.Position `json:"superseded_by,omitempty"`

	// Item is what was rendered; nil when it could not be. It is opaque here, in base64 where it is stored: whatever a row holds
	// must not decide whether the letter can be read, listed and discarded.
	Item   []byte `json:"body,omitempty"`
	Change []byte `json:"change,omitempty"` // a block with the one change; nil when there is none

	// Unreadable is set when the stored record cannot be decoded. Then only ID, Sink, At, State and Reason are known.
	Unreadable bool `json:"-"`
}

// LetterFilter selects dead letters. What is zero selects all.
type LetterFilter struct {
	Sink, Mapping, Table string
	Reason               string // part of it, in any case
	State                LetterState
	After, Before        time.Time             // parked at or after, and before
	Key                  func(key string) bool // reports whether a key is meant; nil means every key
	Limit                int
	Heads                bool // item and change are left out where they are so large that they are stored apart
}

// ErrNoLetter is returned for the id of a letter that is not, or no longer, there.
var ErrNoLetter = errors.New("no such dead letter")

// letterIndex knows which letters there are, without their contents. Guarded by its own lock.
type letterIndex struct {
	mu    sync.Mutex
	byID  map[string]letterEntry
	items map[uint64]string // hash of sink and item id → letter's id
	count map[string]map[LetterState]int
	table map[string]map[string]int // letters by sink and table
	seed  maphash.Seed
	last  uint64 // the newest id, as a number
	parts uint64 // numbers the sets of parts that this Buffer has stored
}

type letterEntry struct {
	sink  string
	table string
	state LetterState
	item  uint64 // hash; 0 without an item id
	parts string // names the parts that belong to it; empty when it has none
}

// letterPartsHeader, on the first message of a letter whose contents did not fit, names its parts: name/count.
const letterPartsHeader = "Cdcsync-Parts"

func (x *letterIndex) init() {
	x.byID, x.items, x.count = make(map[string]letterEntry), make(map[uint64]string), make(map[string]map[LetterState]int)
	x.table = make(map[string]map[string]int)
	x.seed = maphash.MakeSeed()
}

// put records a letter as it now is. x.mu is held.
func (x *letterIndex) put(id string, e letterEntry) {
	x.remove(id)
	x.byID[id] = e
	if e.item != 0 {
		x.items[e.item] = id
	}
	if x.count[e.sink] == nil {
		x.count[e.sink] = make(map[LetterState]int)
	}
	x.count[e.sink][e.state]++
	if x.table[e.sink] == nil {
		x.table[e.sink] = make(map[string]int)
	}
	x.table[e.sink][e.table]++
	x.last = max(x.last, letterNumber(id))
}

// remove forgets a letter. x.mu is held.
func (x *letterIndex) remove(id string) {
	e, ok := x.byID[id]
	if !ok {
		return
	}
	delete(x.byID, id)
	if x.items[e.item] == id {
		delete(x.items, e.item)
	}
	x.count[e.sink][e.state]--
	if x.table[e.sink][e.table]--; x.table[e.sink][e.table] == 0 {
		delete(x.table[e.sink], e.table)
	}
}

// census is how many letters there are, by sink and table.
func (x *letterIndex) census() map[string]map[string]int {
	x.mu.Lock()
	defer x.mu.Unlock()
	counts := make(map[string]map[string]int, len(x.table))
	for sink, tables := range x.table {
		if len(tables) > 0 {
			counts[sink] = maps.Clone(tables)
		}
	}
	return counts
}

// lowerLetters makes the census count fewer letters before one is removed; by some more, so that removing many writes it seldom.
func (b *Buffer) lowerLetters(e letterEntry) error {
	b.letters.mu.Lock()
	left := b.letters.table[e.sink][e.table] - 1
	b.letters.mu.Unlock()
	return b.lowerCensus(func(f *censusFile) bool {
		if f.Letters[e.sink][e.table] <= left {
			return false
		}
		const share, atLeast = 8, 64
		tables := maps.Clone(f.Letters[e.sink])
		tables[e.table] = max(0, left-left/share-atLeast)
		f.Letters = maps.Clone(f.Letters)
		f.Letters[e.sink] = tables
		return true
	})
}

func (x *letterIndex) hash(sink, item string) uint64 {
	if item == "" {
		return 0
	}
	return max(maphash.String(x.seed, sink+"\x00"+item), 1)
}

// assign gives a letter the id of the one with the same item, or a new one. x.mu is held.
func (x *letterIndex) assign(l *Letter, now time.Time) {
	if id, ok := x.items[x.hash(l.Sink, l.ItemID)]; ok && l.ItemID != "" {
		l.ID = id
		return
	}
	x.last = max(x.last+1, uint64(now.UnixMicro()-letterEpoch))
	l.ID = letterID(x.last)
}

// A letter's id is the microseconds since 2025 in Crockford's base 32: ten digits until 2060.
const (
	letterEpoch  = 1735689600e6
	letterDigits = "0123456789abcdefghjkmnpqrstvwxyz"
	letterLength = 10
)

func letterID(n uint64) string {
	var id [letterLength]byte
	for i := range id {
		id[letterLength-1-i] = letterDigits[n%uint64(len(letterDigits))]
		n /= uint64(len(letterDigits))
	}
	return string(id[:])
}

// letterNumber is the inverse of letterID; what is no id gives some number.
func letterNumber(id string) (n uint64) {
	for i := range len(id) {
		n = n*uint64(len(letterDigits)) + uint64(max(strings.IndexByte(letterDigits, id[i]), 0))
	}
	return n
}

// loadLetters rebuilds the index.
func (b *Buffer) loadLetters(ctx context.Context) error {
	err := b.scan(ctx, b.names.letters, b.names.letterSubject+".*.*", 0, func(m message) error {
		l := b.decodeLetter(m) // without its contents when it has parts: they are in these
		b.letters.put(l.ID, letterEntry{
			sink: l.Sink, table: l.Table, state: l.State, item: b.letters.hash(l.Sink, l.ItemID), parts: m.header.Get(letterPartsHeader),
		})
		return nil
	})
	if err != nil {
		return err
	}
	return b.compareLetters(ctx)
}

// Park stores letters durably, sets their IDs and, where they are empty, At and State. A letter of an item that has one
// already replaces it. It tries again until ctx ends; after an error some may be stored, and parking them again is safe when they have an ItemID.
func (b *Buffer) Park(ctx context.Context, letters []Letter) error {
	now := time.Now().UTC()
	b.letters.mu.Lock()
	for i := range letters {
		l := &letters[i]
		l.At, l.State = cmp.Or(l.At, now), cmp.Or(l.State, LetterOpen)
		b.letters.assign(l, now)
	}
	b.letters.mu.Unlock()
	const atOnce = 64 // requests on their way
	storing := pool.New().WithContext(ctx).WithMaxGoroutines(atOnce).WithFirstError()
	for i := range letters {
		storing.Go(func(ctx context.Context) error { return b.storeLetter(ctx, letters[i]) })
	}
	return storing.Wait()
}

// UpdateLetter stores a letter that Letter or Letters returned, durably, in place of what is there.
func (b *Buffer) UpdateLetter(ctx context.Context, l Letter) error {
	b.letters.mu.Lock()
	_, ok := b.letters.byID[l.ID]
	b.letters.mu.Unlock()
	switch {
	case !ok:
		return fmt.Errorf("dead letter %s: %w", l.ID, ErrNoLetter)
	case l.Unreadable: // what is stored may be of use to somebody yet
		return fmt.Errorf("dead letter %s: %s", l.ID, l.Reason)
	}
	return b.storeLetter(ctx, l)
}

func (b *Buffer) storeLetter(ctx context.Context, l Letter) error {
	head, contents, err := b.encodeLetter(l)
	if err != nil {
		return fmt.Errorf("dead letter %s: %w", l.ID, err)
	}
	entry := letterEntry{sink: l.Sink, table: l.Table, state: l.State, item: b.letters.hash(l.Sink, l.ItemID)}
	m := &nats.Msg{Subject: b.letterSubject(l.Sink, l.ID), Data: head, Header: nats.Header{}}
	size := int(b.write.MaxPayload()) - headerBytes
	parts := (contents.length() + size - 1) / size
	if parts > 0 {
		b.letters.mu.Lock()
		b.letters.parts++
		entry.parts = fmt.Sprintf("%s-%d/%d", b.writer, b.letters.parts, parts)
		b.letters.mu.Unlock()
		m.Header.Set(letterPartsHeader, entry.parts)
	}
	b.letters.mu.Lock()
	old, replaces := b.letters.byID[l.ID]
	b.letters.mu.Unlock()
	if replaces && old.table != entry.table {
		if err := b.lowerLetters(old); err != nil {
			return fmt.Errorf("dead letter %s: %w", l.ID, err)
		}
	}
	// The parts come first: a letter whose first message is there is whole.
	for i := range parts {
		data, err := contents.next(size)
		if err != nil {
			return fmt.Errorf("dead letter %s: %w", l.ID, err)
		}
		if _, err := b.publish(ctx, &nats.Msg{Subject: b.partSubject(l.ID, entry.parts, i), Data: data}); err != nil {
			return fmt.Errorf("dead letter %s: %w", l.ID, err)
		}
	}
	if _, err := b.publish(ctx, m); err != nil {
		return fmt.Errorf("dead letter %s: %w", l.ID, err)
	}
	b.letters.mu.Lock()
	before := b.letters.byID[l.ID]
	b.letters.put(l.ID, entry)
	b.letters.mu.Unlock()
	return b.removeParts(ctx, l.ID, before.parts)
}

// encodeLetter returns the letter's first message and, when it is too large for one, the parts of its contents.
func (b *Buffer) encodeLetter(l Letter) (head []byte, contents *letterContents, err error) {
	size := int(b.write.MaxPayload()) - headerBytes
	if len(l.Item)+len(l.Change) < size {
		if head, err = marshal(l); err != nil || len(head) <= size {
			return head, nil, err
		}
	}
	contents = newLetterContents(l.Item, l.Change)
	l.Item, l.Change = nil, nil
	if head, err = marshal(l); err == nil && len(head) > size { // a key or a reason of a megabyte
		const bounded = 4 << 10
		l.Key, l.Reason = l.Key[:min(len(l.Key), bounded)], l.Reason[:min(len(l.Reason), bounded)]
		head, err = marshal(l)
	}
	return head, contents, err
}

func (b *Buffer) letterSubject(sink, id string) string {
	return b.names.letterSubject + "." + token(sink) + "." + id
}

// partSubject is where part i of those that parts (name/count) names lies.
func (b *Buffer) partSubject(id, parts string, i int) string {
	name, _, _ := strings.Cut(parts, "/")
	return b.names.letterPartSubject + "." + id + "." + name + "." + strconv.Itoa(i)
}

func (b *Buffer) removeParts(ctx context.Context, id, parts string) error {
	if parts == "" {
		return nil
	}
	name, _, _ := strings.Cut(parts, "/")
	if err := b.purge(ctx, b.names.letters, jetstream.WithPurgeSubject(b.names.letterPartSubject+"."+id+"."+name+".*")); err != nil {
		return fmt.Errorf("dead letter %s: remove parts: %w", id, err)
	}
	return nil
}

// Letter returns one letter. The cause is ErrNoLetter when there is none.
func (b *Buffer) Letter(ctx context.Context, id string) (Letter, error) {
	b.letters.mu.Lock()
	entry, ok := b.letters.byID[id]
	b.letters.mu.Unlock()
	if !ok {
		return Letter{}, fmt.Errorf("dead letter %s: %w", id, ErrNoLetter)
	}
	m, err := b.lastMessage(ctx, b.letterSubject(entry.sink, id))
	if err != nil {
		return Letter{}, fmt.Errorf("dead letter %s: %w", id, err)
	}
	return b.readLetter(ctx, m)
}

// lastMessage returns the newest letter message of a subject.
func (b *Buffer) lastMessage(ctx context.Context, subject string) (message, error) {
	var m message
	err := b.retry(ctx, "read dead letter", func(ctx context.Context) error {
		stream, err := b.js.Stream(ctx, b.names.letters)
		if err != nil {
			return err
		}
		raw, err := stream.GetLastMsgForSubject(ctx, subject)
		if err == nil {
			m = message{seq: raw.Sequence, subject: raw.Subject, header: raw.Header, data: raw.Data, at: raw.Time}
		}
		return err
	})
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		err = ErrNoLetter
	}
	return m, err
}

// decodeLetter reads a letter's first message. What cannot be decoded is a letter still, which can be listed and discarded.
func (b *Buffer) decodeLetter(m message) Letter {
	var l Letter
	sink, id, _ := strings.Cut(strings.TrimPrefix(m.subject, b.names.letterSubject+"."), ".")
	err := json.Unmarshal(m.data, &l)
	if err == nil && l.ID != id {
		err = fmt.Errorf("it says that its id is %q", l.ID)
	}
	if err != nil {
		return unreadable(Letter{ID: id, Sink: untoken(sink), At: m.at}, err)
	}
	return l
}

// unreadable keeps what is known of a letter whose record is damaged.
func unreadable(l Letter, err error) Letter {
	return Letter{
		ID: l.ID, Sink: l.Sink, At: l.At, State: LetterOpen, Unreadable: true,
		Reason: "the stored dead letter cannot be read: " + err.Error(),
	}
}

// readLetter reads a letter whole. The cause is ErrNoLetter when it was discarded meanwhile.
func (b *Buffer) readLetter(ctx context.Context, m message) (Letter, error) {
	l := b.decodeLetter(m)
	parts := m.header.Get(letterPartsHeader)
	if parts == "" || l.Unreadable {
		return l, nil
	}
	contents, err := b.letterContents(ctx, l.ID, parts)
	if errors.Is(err, ErrNoLetter) && b.hasParts(l.ID, parts) {
		return unreadable(l, errors.New("a part of it is missing")), nil
	}
	if err != nil {
		return Letter{}, fmt.Errorf("dead letter %s: %w", l.ID, err)
	}
	var full Letter
	if err := json.Unmarshal(contents, &full); err != nil {
		return unreadable(l, err), nil
	}
	l.Item, l.Change = full.Item, full.Change
	return l, nil
}

// letterContents joins the parts that parts (name/count) names. The cause is ErrNoLetter when one is not there.
func (b *Buffer) letterContents(ctx context.Context, id, parts string) ([]byte, error) {
	_, count, _ := strings.Cut(parts, "/")
	n, err := strconv.Atoi(count)
	if err != nil {
		return nil, fmt.Errorf("parts %q: %w", parts, err)
	}
	var contents []byte
	for i := range n {
		p, err := b.lastMessage(ctx, b.partSubject(id, parts, i))
		if err != nil {
			return nil, fmt.Errorf("part %d: %w", i, err)
		}
		if contents == nil {
			contents = part{count: n}.room(len(p.data))
		}
		contents = append(contents, p.data...)
	}
	return contents, nil
}

// hasParts reports whether the letter is still there with the same parts.
func (b *Buffer) hasParts(id, parts string) bool {
	b.letters.mu.Lock()
	defer b.letters.mu.Unlock()
	entry, ok := b.letters.byID[id]
	return ok && entry.parts == parts
}

// errEnough ends an iteration early.
var errEnough = errors.New("enough")

// Letters iterates over the letters that match, in the order in which they were last stored, with about a megabyte in memory
// at a time beside the one that is yielded. Letters may be stored, updated and discarded meanwhile; those that are stored
// after it began are not yielded. It ends with the first error.
func (b *Buffer) Letters(ctx context.Context, f LetterFilter) iter.Seq2[Letter, error] {
	sink := "*"
	if f.Sink != "" {
		sink = token(f.Sink)
	}
	return func(yield func(Letter, error) bool) {
		yielded := 0
		err := b.scan(ctx, b.names.letters, b.names.letterSubject+"."+sink+".*", 0, func(m message) error {
			if head := b.decodeLetter(m); !f.matches(&head) {
				return nil
			}
			l, err := b.filtered(ctx, m, f.Heads)
			if errors.Is(err, ErrNoLetter) { // its parts have been discarded meanwhile
				return nil
			}
			if err != nil {
				return err
			}
			yielded++
			if !yield(l, nil) || yielded == f.Limit {
				return errEnough
			}
			return nil
		})
		if err != nil && !errors.Is(err, errEnough) {
			yield(Letter{}, err)
		}
	}
}

func (b *Buffer) filtered(ctx context.Context, m message, head bool) (Letter, error) {
	if head {
		return b.decodeLetter(m), nil
	}
	return b.readLetter(ctx, m)
}

func (f *LetterFilter) matches(l *Letter) bool {
	switch {
	case f.Sink != "" && f.Sink != l.Sink,
		f.Mapping != "" && f.Mapping != l.Mapping,
		f.Table != "" && f.Table != l.Table,
		f.Key != nil && !f.Key(l.Key),
		f.State != "" && f.State != l.State,
		f.Reason != "" && !strings.Contains(strings.ToLower(l.Reason), strings.ToLower(f.Reason)),
		!f.After.IsZero() && l.At.Before(f.After),
		!f.Before.IsZero() && !l.At.Before(f.Before):
		return false
	}
	return true
}

// Discard removes letters for good. The cause is ErrNoLetter when one is not there; those before it are removed.
func (b *Buffer) Discard(ctx context.Context, ids ...string) error {
	for _, id := range ids {
		b.letters.mu.Lock()
		entry, ok := b.letters.byID[id]
		b.letters.mu.Unlock()
		if !ok {
			return fmt.Errorf("dead letter %s: %w", id, ErrNoLetter)
		}
		if err := b.lowerLetters(entry); err != nil {
			return fmt.Errorf("dead letter %s: %w", id, err)
		}
		if err := b.purge(ctx, b.names.letters, jetstream.WithPurgeSubject(b.letterSubject(entry.sink, id))); err != nil {
			return fmt.Errorf("dead letter %s: %w", id, err)
		}
		b.letters.mu.Lock()
		b.letters.remove(id)
		b.letters.mu.Unlock()
		if err := b.removeParts(ctx, id, entry.parts); err != nil {
			return err
		}
	}
	return nil
}

// LetterCount is how many letters of a sink are in a state. It costs nothing.
func (b *Buffer) LetterCount(sink string, state LetterState) int {
	b.letters.mu.Lock()
	defer b.letters.mu.Unlock()
	return b.letters.count[sink][state]
}

// LetterSinks are the sinks that have, or had, letters, sorted; they need not be configured any more.
func (b *Buffer) LetterSinks() []string {
	b.letters.mu.Lock()
	defer b.letters.mu.Unlock()
	return slices.Sorted(maps.Keys(b.letters.count))
}
