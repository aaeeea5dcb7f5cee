package delivery

import (
	"cmp"
	"context"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cdcsync/cdcsync/internal/cdc"
	"github.com/cdcsync/cdcsync/internal/mapping"
	"github.com/cdcsync/cdcsync/internal/sinks"
)

// Letter is an item that will not be delivered unless an operator has it sent again.
type Letter struct {
	ID       string // the store's name for it, set by Park
	ItemID   string // position, mapping, and what tells apart several items of one position
	Sink     string // its name
	Mapping  string // its name
	Table    string // schema.name
	Key      string // of the record, as mapping.Part.Key; empty when it is not known
	Op       cdc.Op
	Position cdc.Position

	Reason   string    // ours, or the vendor's words, which may quote the row
	Code     string    // the vendor's
	Trace    string    // the vendor's id for the call
	Status   int       // HTTP status, when the request was refused as a whole
	Attempts int       // sendings; 0 when the item was refused before it was sent
	At       time.Time // when it was parked

	Item   []byte // JSON as it was sent; nil when it could not be rendered
	Change []byte // the source row: a block of one change (cdc.DecodeChange)
	State  LetterState
}

// LetterState says what has become of a letter.
type LetterState string

// The states.
const (
	LetterOpen       LetterState = "open"
	LetterSuperseded LetterState = "superseded" // a newer state of its key was delivered since
	LetterReplaced   LetterState = "replaced"   // a newer letter of its key tells all that it does
	LetterUnwanted   LetterState = "unwanted"   // the mapping did not send its row any more when it was retried
	LetterDelivered  LetterState = "delivered"  // it was sent again with success: it need not be kept
)

// Letters stores dead letters. Its methods are called concurrently.
type Letters interface {
	// Park returns when the letters are stored durably, and sets their IDs. One whose ItemID is stored already is replaced, and
	// keeps its ID.
	Park(ctx context.Context, letters []Letter) error
	// Letter returns one letter, whatever its state; ok is false when there is none of that ID.
	Letter(ctx context.Context, id string) (letter Letter, ok bool, err error)
	// Open goes over the letters in state open.
	Open(ctx context.Context) iter.Seq2[Letter, error]
	// Resolve returns when the new state is stored durably. An ID that is not stored is passed over.
	Resolve(ctx context.Context, ids []string, state LetterState) error
}

// letters knows the keys of open letters, so that a newer state of such a key marks the letter, and counts towards the limit.
type letters struct {
	worker *Worker
	store  Letters

	mu      sync.Mutex
	byKey   map[string][]*openLetter // by mapping and key
	byID    map[string]*openLetter
	items   map[string]struct{} // their ItemIDs
	counted map[string]struct{} // keys of letters parked since the last resume
	causes  map[string]int      // why, for the halt's reason

	count atomic.Int64 // of byID, to pass by when there is none
}

// openLetter is what memory keeps of a letter. Its fields are guarded by letters.mu.
type openLetter struct {
	id, itemID string
	key        string // of mapping and record
	pos        cdc.Position
	item       []byte // of a Partial sink; nil when it could not be rendered
	row        string // then: which row it is of
	attempts   int
	superseded bool // or replaced
	resending  bool
	forced     bool
}

func newLetters(w *Worker, store Letters) *letters {
	return &letters{worker: w, store: store, byKey: make(map[string][]*openLetter), byID: make(map[string]*openLetter), items: make(map[string]struct{}), counted: make(map[string]struct{}), causes: make(map[string]int)}
}

// load makes the open letters known. Those that were parked since the last resume count towards the limit: a restart allows no more of them.
func (l *letters) load(ctx context.Context, resumed time.Time) error {
	for letter, err := range l.store.Open(ctx) {
		if err != nil {
			return err
		}
		l.learn(&letter)
		if letter.At.After(resumed) {
			l.mu.Lock()
			l.note(&letter)
			l.mu.Unlock()
		}
	}
	return nil
}

// note counts a letter's key and cause. Called with mu held.
func (l *letters) note(letter *Letter) {
	key := countedKey(letter)
	if _, known := l.counted[key]; known {
		return
	}
	l.counted[key] = struct{}{}
	l.causes[Cause(letter.Mapping, letter.Reason, letter.Code, letter.Status, letter.Attempts)]++
}

// countedKey is what letters of one record have in common; a key that does not tell records apart is as good as none.
func countedKey(letter *Letter) string {
	if strings.Contains(letter.Key, keyMark) {
		return letterKey(letter.Mapping, letter.Key)
	}
	return letter.ItemID
}

// Cause names why letters were parked, the same for all that were for the same reason: mapping, path and reason. It holds no value of a row:
// what a vendor said is masked, what we say is not.
func Cause(mapping, reason, code string, status, attempts int) string {
	if attempts == 0 { // ours
		return "mapping " + mapping + ": " + strings.TrimPrefix(reason, "mapping "+mapping+": ")
	}
	cause := "mapping " + mapping + ": "
	if status != 0 {
		cause += fmt.Sprintf("status %d ", status)
	}
	if code != "" {
		cause += "code " + sinks.Masked(code) + " "
	}
	const longest = 200
	words := []rune(sinks.Masked(reason))
	return cause + string(words[:min(len(words), longest)])
}

// mainCauses tells the most frequent causes of the letters that count towards the limit.
func (l *letters) mainCauses() string {
	const shown = 3
	l.mu.Lock()
	defer l.mu.Unlock()
	causes := slices.SortedFunc(maps.Keys(l.causes), func(a, b string) int {
		return cmp.Or(cmp.Compare(l.causes[b], l.causes[a]), cmp.Compare(a, b))
	})
	var told []string
	for _, cause := range causes[:min(len(causes), shown)] {
		told = append(told, fmt.Sprintf("%d × %s", l.causes[cause], cause))
	}
	if len(causes) > shown {
		told = append(told, fmt.Sprintf("%d other causes", len(causes)-shown))
	}
	return strings.Join(told, "; ")
}

// learn makes a parked letter known.
func (l *letters) learn(letter *Letter) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if known := l.byID[letter.ID]; known != nil {
		known.resending, known.attempts = false, letter.Attempts
		return
	}
	open := &openLetter{id: letter.ID, itemID: letter.ItemID, key: letterKey(letter.Mapping, letter.Key), pos: letter.Position, attempts: letter.Attempts}
	switch {
	case l.worker.dispatch.partial == nil:
	case letter.Item != nil:
		open.item = append([]byte(nil), letter.Item...)
	default:
		open.row = rowOf(letter.Change)
	}
	l.byID[open.id] = open
	l.items[open.itemID] = struct{}{}
	if strings.Contains(letter.Key, keyMark) { // of an account, too: its item would take the record back to an older state
		l.byKey[open.key] = append(l.byKey[open.key], open)
	}
	l.count.Add(1)
}

// forget drops a letter that is not open any more. Called with mu held.
func (l *letters) forget(open *openLetter) {
	delete(l.byID, open.id)
	delete(l.items, open.itemID)
	l.count.Add(-1)
	rest := l.byKey[open.key]
	for i := range rest {
		if rest[i] == open {
			rest = append(rest[:i], rest[i+1:]...)
			break
		}
	}
	if len(rest) == 0 {
		delete(l.byKey, open.key)
	} else {
		l.byKey[open.key] = rest
	}
}

// keyMark is in every key that tells records apart; a key without it is a mere scope (mapping.Part.Key).
const keyMark = "\x00"

// letterKey identifies a record: by the mapping and its key, or by the vendor's own key in whatever mapping.
func letterKey(of, key string) string { return string(appendLetterKey(nil, of, []byte(key))) }

func appendLetterKey(dst []byte, of string, key []byte) []byte {
	if !mapping.IsVendorKey(key) {
		dst = append(dst, of...)
	}
	return append(append(dst, keyMark...), key...)
}

// park stores letters. When the limit is reached it halts the sink and waits for Resume.
func (l *letters) park(ctx context.Context, letters []Letter) error {
	for len(letters) > 0 {
		n, err := l.allow(ctx, letters)
		if err != nil {
			return err
		}
		some := letters[:n]
		err = l.worker.insist(ctx, trouble{name: "letters", what: "store dead letters"}, func(ctx context.Context) error {
			return l.store.Park(ctx, some)
		})
		if err != nil {
			return err
		}
		for i := range some {
			if some[i].State == LetterOpen {
				l.learn(&some[i])
			}
		}
		if err := l.replace(ctx, some); err != nil {
			return err
		}
		for i := range some {
			l.worker.metrics.letters.WithLabelValues(KindOf(some[i].ItemID)).Inc()
		}
		letters = letters[n:]
	}
	return nil
}

// replace marks the older open letters of which newer ones of the same key tell all.
func (l *letters) replace(ctx context.Context, parked []Letter) error {
	var ids []string
	l.mu.Lock()
	for i := range parked {
		newer := &parked[i]
		if newer.State != LetterOpen || KindOf(newer.ItemID) == KindAccount {
			continue
		}
		for _, open := range l.byKey[letterKey(newer.Mapping, newer.Key)] {
			if !open.superseded && !open.resending && open.pos.Compare(newer.Position) < 0 && l.covers(newer, open) {
				open.superseded = true
				ids = append(ids, open.id)
			}
		}
	}
	l.mu.Unlock()
	return l.resolve(ctx, ids, LetterReplaced)
}

// covers reports whether a newer letter tells all that an open one does.
func (l *letters) covers(newer *Letter, open *openLetter) bool {
	partial := l.worker.dispatch.partial
	switch {
	case partial == nil:
		return true
	case open.item != nil && newer.Item != nil:
		return partial.Covers(newer.Item, open.item)
	case open.item == nil:
		return open.row != "" && rowOf(newer.Change) == open.row
	}
	return false
}

// allow says how many of the letters may be parked now, at least one. One that is parked already, and comes again after a restart or a
// retry, does not count.
func (l *letters) allow(ctx context.Context, letters []Letter) (int, error) {
	if l.worker.cfg.DeadLetters == 0 {
		return len(letters), nil
	}
	for {
		if n := l.admit(letters); n > 0 {
			return n, nil
		}
		if err := l.worker.halt(ctx); err != nil {
			return 0, err
		}
		if err := l.worker.gate.resumed(ctx); err != nil {
			return 0, err
		}
	}
}

func (l *letters) admit(letters []Letter) (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for n = range letters {
		if _, known := l.items[letters[n].ItemID]; known {
			continue
		}
		_, counted := l.counted[countedKey(&letters[n])]
		if !counted && len(l.counted) >= l.worker.cfg.DeadLetters {
			return n
		}
		l.note(&letters[n])
	}
	return len(letters)
}

func (l *letters) allowAgain() {
	l.mu.Lock()
	defer l.mu.Unlock()
	clear(l.counted)
	clear(l.causes)
}

func (l *letters) limitReached() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.counted) >= l.worker.cfg.DeadLetters
}

// halt pauses the sink since there are too many dead letters, unless it is resumed meanwhile.
func (w *Worker) halt(ctx context.Context) error {
	return w.insist(ctx, trouble{name: "halt", what: "store the pause"}, func(ctx context.Context) error {
		w.pausing.Lock()
		defer w.pausing.Unlock()
		if !w.letters.limitReached() || w.gate.pausedAs() == PauseOperator {
			return nil
		}
		w.gate.halt(w.letters.mainCauses()) // at once, even if it cannot be stored
		return w.pauses.SetPaused(ctx, PauseDeadLetters)
	})
}

// parkItems makes dead letters of rejected items and settles them.
func (w *Worker) parkItems(ctx context.Context, b *batch, part []int32, outcomes []sinks.Outcome, places []int, status int) error {
	const atOnce = 64 // bounds the copies in memory
	for len(places) > 0 {
		some := places[:min(len(places), atOnce)]
		places = places[len(some):]
		letters := make([]Letter, 0, len(some))
		items := make([]int32, 0, len(some))
		for _, n := range some {
			letter := w.letterOf(b, &b.items[part[n]])
			o := &outcomes[n]
			letter.Reason, letter.Code, letter.Trace, letter.Status = o.Reason, o.Code, o.Trace, status
			letters, items = append(letters, letter), append(items, part[n])
		}
		if err := w.letters.park(ctx, letters); err != nil {
			return err
		}
		w.countItems(b, items, outcomeRejected)
		for _, i := range items {
			w.settleItem(b, i)
		}
	}
	return nil
}

// SuffixAccount ends the ItemID of a letter that is not about the item, which was delivered, but about the login account that the
// item asks for.
const SuffixAccount = "/account"

// The kinds of letters.
const (
	KindItem    = "item"    // the item was refused
	KindAccount = "account" // the item was delivered, and its login account not created
)

// KindOf is the kind of a letter by its ItemID.
func KindOf(itemID string) string {
	if strings.HasSuffix(itemID, SuffixAccount) {
		return KindAccount
	}
	return KindItem
}

// parkAccounts makes letters of the login accounts that were not created, and gives the items that were delivered with all they ask for.
func (w *Worker) parkAccounts(ctx context.Context, b *batch, part []int32, outcomes []sinks.Outcome, delivered []int32) ([]int32, error) {
	var accounts []Letter
	whole := delivered
	for n := range outcomes {
		o := &outcomes[n]
		if o.Status != sinks.Delivered || o.Account == "" {
			continue
		}
		letter := w.letterOf(b, &b.items[part[n]])
		letter.ItemID += SuffixAccount
		letter.Reason, letter.Code, letter.Trace = "the login account was not created: "+o.Account, o.Code, o.Trace
		accounts = append(accounts, letter)
		if open := b.items[part[n]].block.letter; open != nil && open.itemID == letter.ItemID { // it was sent again for the account
			whole = slices.DeleteFunc(slices.Clone(whole), func(i int32) bool { return i == part[n] })
		}
	}
	if len(accounts) == 0 {
		return delivered, nil
	}
	return whole, w.letters.park(ctx, accounts)
}

// letterOf copies an item out of its batch.
func (w *Worker) letterOf(b *batch, it *item) Letter {
	letter := Letter{
		ItemID: string(it.appendID(nil)), Sink: w.cfg.Sink, Mapping: it.mapping.name, Table: it.mapping.table,
		Key: string(b.bytes(it.key)), Op: it.op, Position: it.pos, Attempts: int(it.attempts), At: time.Now(),
		Item: append([]byte(nil), b.bytes(it.body)...), State: LetterOpen,
	}
	if open := it.block.letter; open != nil {
		letter.Attempts += w.letters.attempts(open)
	}
	change, err := b.source(it)
	if err != nil { // never seen: the item came from there
		w.log.Error("dead letter without its source row", "item", letter.ItemID, "err", err)
	}
	letter.Change = change
	return letter
}

func (l *letters) attempts(open *openLetter) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return open.attempts
}

// passed marks the open letters whose keys have been delivered in a newer state. It returns when that is stored.
func (l *letters) passed(ctx context.Context, b *batch, taken []int32) error {
	if l.count.Load() == 0 {
		return nil
	}
	var ids []string
	var key []byte
	l.mu.Lock()
	for _, i := range taken {
		it := &b.items[i]
		key = appendLetterKey(key[:0], it.mapping.name, b.bytes(it.key))
		for _, open := range l.byKey[string(key)] {
			if !open.superseded && open.pos.Compare(it.pos) < 0 && l.supersedes(b, it, open) {
				open.superseded = true
				ids = append(ids, open.id)
			}
		}
	}
	l.mu.Unlock()
	return l.resolve(ctx, ids, LetterSuperseded)
}

// supersedes says whether a newer item of a letter's key tells all that the letter's own item does. What could not be
// rendered is compared by its row.
func (l *letters) supersedes(b *batch, it *item, open *openLetter) bool {
	partial := l.worker.dispatch.partial
	switch {
	case partial == nil:
		return true
	case open.item != nil:
		return partial.Covers(b.bytes(it.body), open.item)
	}
	change, err := b.source(it)
	return err == nil && open.row != "" && rowOf(change) == open.row
}

// rowOf names the row of a one-change block by its primary key; empty when it has none.
func rowOf(change []byte) string {
	c, err := cdc.DecodeChange(change)
	if err != nil || c.Relation == nil {
		return ""
	}
	values := c.New
	if values == nil {
		values = c.Old
	}
	columns := keyColumns(c.Relation)
	if len(columns) == 0 {
		return ""
	}
	row := []byte(c.Relation.String())
	for _, i := range columns {
		if i >= len(values) || values[i].Kind != cdc.Text {
			return ""
		}
		row = append(append(row, keyMark...), values[i].Data...)
	}
	return string(row)
}

// resent resolves the letters that were sent again with success.
func (l *letters) resent(ctx context.Context, b *batch, delivered []int32) error {
	for _, i := range delivered {
		if open := b.items[i].block.letter; open != nil {
			if err := l.resolve(ctx, []string{open.id}, LetterDelivered); err != nil {
				return err
			}
		}
	}
	return nil
}

func (l *letters) resolve(ctx context.Context, ids []string, state LetterState) error {
	if len(ids) == 0 {
		return nil
	}
	err := l.worker.insist(ctx, trouble{name: "letters", what: "store dead letters"}, func(ctx context.Context) error {
		return l.store.Resolve(ctx, ids, state)
	})
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, id := range ids {
		if open := l.byID[id]; open != nil && !open.resending || open != nil && state == LetterDelivered {
			l.forget(open)
		}
	}
	return nil
}

// outdated settles a letter that is about to be sent again but whose key has been delivered in a newer state meanwhile. It
// says whether there is nothing to send.
func (l *letters) outdated(b *batch, part []int32) bool {
	if len(part) != 1 || b.items[part[0]].block.letter == nil {
		return len(part) == 0
	}
	open := b.items[part[0]].block.letter
	l.mu.Lock()
	drop := open.superseded && !open.forced
	if drop {
		l.forget(open)
	}
	l.mu.Unlock()
	if drop {
		l.worker.settleItem(b, part[0])
	}
	return drop
}
