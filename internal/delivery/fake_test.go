package delivery

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"gopkg.in/yaml.v3"

	"github.com/cdcsync/cdcsync/internal/backoff"
	"github.com/cdcsync/cdcsync/internal/cdc"
	"github.com/cdcsync/cdcsync/internal/mapping"
	"github.com/cdcsync/cdcsync/internal/shape"
	"github.com/cdcsync/cdcsync/internal/sinks"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// row is a row of the test's table: public.t (id, v). Its item is the two as text: "id:v".
type row struct {
	op    cdc.Op
	id, v int
	null  bool // v is null, which the mapping refuses
	toast bool // v is not sent
}

var (
	int8Type = &cdc.Type{OID: 20, Name: "int8", Kind: cdc.TypeBase}
	textType = &cdc.Type{OID: 25, Name: "text", Kind: cdc.TypeBase}
)

func relation(oid uint32, name string, columns ...string) *cdc.Relation {
	rel := &cdc.Relation{OID: oid, Schema: "public", Name: name, Identity: 'd', PrimaryKey: []int{0}}
	for i, c := range columns {
		typ := textType
		if c != "name" {
			typ = int8Type
		}
		rel.Columns = append(rel.Columns, cdc.Column{Name: c, Identity: i == 0, TypeMod: -1, Type: typ})
	}
	return rel
}

var testTable = relation(1, "t", "id", "v")

func value(n int) cdc.Value {
	return cdc.Value{Kind: cdc.Text, Data: strconv.AppendInt(nil, int64(n), 10)}
}

// message is pgoutput's for a row change.
func message(op cdc.Op, oid uint32, values ...cdc.Value) []byte {
	kind, mark := map[cdc.Op]byte{cdc.OpInsert: 'I', cdc.OpUpdate: 'U', cdc.OpDelete: 'D'}[op], byte('N')
	if op == cdc.OpDelete {
		mark = 'O'
	}
	return cdc.AppendTuple(append(binary.BigEndian.AppendUint32([]byte{kind}, oid), mark), values)
}

func (r row) message() []byte {
	v := value(r.v)
	if r.null {
		v = cdc.Value{Kind: cdc.Null}
	}
	if r.toast {
		v = cdc.Value{Kind: cdc.Unchanged}
	}
	return message(r.op, testTable.OID, value(r.id), v)
}

// blockOf is a block with one transaction.
func blockOf(commit cdc.LSN, rows ...row) []byte {
	return blockWith(commit, func(w *cdc.Writer) {
		w.Relation(testTable.OID, cdc.AppendRelation(nil, testTable))
		for _, r := range rows {
			w.Row(r.message())
		}
	})
}

func blockWith(commit cdc.LSN, fill func(*cdc.Writer)) []byte {
	var w cdc.Writer
	w.Begin(uint32(commit), commit, time.Now(), 0)
	fill(&w)
	w.Commit(commit + 1)
	return w.Seal(nil, nil)
}

// templates parses mappings as they stand in the YAML, for a sink whose items are any object.
func templates(tb testing.TB, text string) []*mapping.Template {
	tb.Helper()
	var list []struct {
		Name, Table string
		On          []string
		When, Key   yaml.Node
		Item        yaml.Node
		Coalesce    string
		Parents     []struct {
			Mapping string
			Key     yaml.Node
		}
		Lookups []struct {
			Name, SQL string
			Key       yaml.Node
		}
		Refresh *struct {
			Table, Key string
			By         yaml.Node
		}
	}
	if err := yaml.Unmarshal([]byte(text), &list); err != nil {
		tb.Fatal(err)
	}
	spec := mapping.Spec{
		Item: shape.Item{Root: &shape.Node{Kind: shape.Object, Open: true, Fields: []shape.Field{
			{Name: "v", Node: &shape.Node{Kind: shape.Integer}, Required: false},
		}}, Times: shape.TimesUnixMilli},
		On: []cdc.Op{cdc.OpInsert, cdc.OpUpdate, cdc.OpDelete}, Deletes: mapping.DeleteAsItem, Coalesce: mapping.CoalesceNone,
	}
	spec.Item.Root.Fields[0].Required = true
	var all []*mapping.Template
	for i, m := range list {
		src := mapping.Source{File: "test.yaml", Path: fmt.Sprintf("mappings[%d]", i), Index: i, Name: m.Name, Table: mapping.ParseTable(m.Table), Sink: "vendor", When: m.When, Key: m.Key, Item: m.Item}
		if m.Coalesce == "latest" {
			src.Coalesce = mapping.CoalesceLatest
		}
		for _, word := range m.On {
			op, _ := cdc.ParseOp(word)
			src.On = append(src.On, op)
		}
		for _, p := range m.Parents {
			src.Parents = append(src.Parents, mapping.Parent{Mapping: p.Mapping, Key: p.Key})
		}
		for _, l := range m.Lookups {
			src.Lookups = append(src.Lookups, mapping.Lookup{Name: l.Name, SQL: l.SQL, Key: l.Key})
		}
		if m.Refresh != nil {
			src.Refresh = &mapping.Refresh{Table: mapping.ParseTable(m.Refresh.Table), Key: m.Refresh.Key, By: m.Refresh.By}
		}
		template, problems := mapping.Parse(src, spec)
		if err := problems.Err(); err != nil {
			tb.Fatal(err)
		}
		all = append(all, template)
	}
	if err := mapping.Link(all).Err(); err != nil {
		tb.Fatal(err)
	}
	return all
}

const (
	plainMapping  = `[{name: rows, table: t, item: {id: $id, v: $v}}]`
	latestMapping = `[{name: rows, table: t, coalesce: latest, item: {id: $id, v: $v}}]`
)

// sent is an item as the vendor sees it.
type sent struct {
	op    cdc.Op
	id, v int
}

func parse(item sinks.Item) (s sent) {
	s.op = item.Op
	if _, err := fmt.Sscanf(string(item.Body), `{"id":%d,"v":%d`, &s.id, &s.v); err != nil {
		s.id = -1
	}
	return s
}

// vendor is a scripted sink.
type vendor struct {
	limits sinks.Limits
	answer func(ctx context.Context, items []sent) ([]sinks.Outcome, error) // nil: all delivered

	mu       sync.Mutex
	requests [][]sent
	keys     []string
	ids      []string
}

func (v *vendor) Limits() sinks.Limits { return v.limits }

func (v *vendor) Deliver(ctx context.Context, items []sinks.Item, key string) ([]sinks.Outcome, error) {
	request := make([]sent, len(items))
	v.mu.Lock()
	for i, item := range items {
		request[i] = parse(item)
		v.ids = append(v.ids, item.ID)
	}
	v.requests = append(v.requests, request)
	v.keys = append(v.keys, key)
	answer := v.answer
	v.mu.Unlock()
	if answer == nil {
		return allDelivered(items), nil
	}
	return answer(ctx, request)
}

// change replaces the script while requests are under way.
func (v *vendor) change(answer func(ctx context.Context, items []sent) ([]sinks.Outcome, error)) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.answer = answer
}

func (v *vendor) seen() [][]sent {
	v.mu.Lock()
	defer v.mu.Unlock()
	return slices.Clone(v.requests)
}

func (v *vendor) idempotencyKeys() []string {
	v.mu.Lock()
	defer v.mu.Unlock()
	return slices.Clone(v.keys)
}

func allDelivered[T any](items []T) []sinks.Outcome {
	return slices.Repeat([]sinks.Outcome{{Status: sinks.Delivered}}, len(items))
}

// store is all that outlives a worker: blocks, the cursor, letters, tracked items, the pause.
type store struct {
	mu       sync.Mutex
	blocks   []Block
	appended chan struct{}
	settled  uint64
	kept     []byte
	resume   cdc.LSN
	onSettle func(seq uint64)

	letters   map[string]Letter // by ItemID
	parks     int
	failing   error // of letters, tracks and the pause
	tracks    map[string]Tracked
	pause     Pause
	resumedAt time.Time
	gaps      []cdc.Gap
}

func newStore(blocks ...[]byte) *store {
	s := &store{appended: make(chan struct{}), letters: make(map[string]Letter), tracks: make(map[string]Tracked)}
	s.append(blocks...)
	return s
}

func (s *store) append(blocks ...[]byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, data := range blocks {
		s.blocks = append(s.blocks, Block{Seq: uint64(len(s.blocks) + 1), Data: data, Stored: time.Now()})
	}
	close(s.appended)
	s.appended = make(chan struct{})
}

// cursor reads the store's blocks from what is settled on.
type cursor struct {
	*store
	read uint64
}

func (s *store) cursor() *cursor {
	s.mu.Lock()
	defer s.mu.Unlock()
	return &cursor{store: s, read: s.settled}
}

func (c *cursor) Next(ctx context.Context) (Block, error) {
	for {
		c.mu.Lock()
		appended := c.appended
		if c.read < uint64(len(c.blocks)) {
			c.read++
			b := c.blocks[c.read-1]
			c.mu.Unlock()
			return b, nil
		}
		c.mu.Unlock()
		select {
		case <-appended:
		case <-ctx.Done():
			return Block{}, ctx.Err()
		}
	}
}

func (c *cursor) Settle(seq uint64, resume cdc.LSN) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if seq <= c.settled {
		panic(fmt.Sprintf("settled %d after %d", seq, c.settled))
	}
	c.settled, c.resume = seq, resume
	if c.onSettle != nil {
		c.onSettle(seq)
	}
}

func (s *store) Keep(_ context.Context, settled []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failing != nil {
		return s.failing
	}
	s.kept = settled
	return nil
}

func (s *store) Kept(context.Context) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.kept, nil
}

func (s *store) Park(_ context.Context, letters []Letter) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failing != nil {
		return s.failing
	}
	s.parks++
	for i := range letters {
		letters[i].ID = "letter " + letters[i].ItemID
		s.letters[letters[i].ItemID] = letters[i]
	}
	return nil
}

func (s *store) Letter(_ context.Context, id string) (Letter, bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l, ok := s.letters[strings.TrimPrefix(id, "letter ")]
	return l, ok, nil
}

func (s *store) Open(context.Context) iter.Seq2[Letter, error] {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := maps.Clone(s.letters)
	return func(yield func(Letter, error) bool) {
		for _, l := range all {
			if l.State == LetterOpen && !yield(l, nil) {
				return
			}
		}
	}
}

func (s *store) Resolve(_ context.Context, ids []string, state LetterState) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range ids {
		item := strings.TrimPrefix(id, "letter ")
		if l, ok := s.letters[item]; ok {
			l.State = state
			s.letters[item] = l
		}
	}
	return nil
}

func (s *store) RecordGap(_ context.Context, gap cdc.Gap) (cdc.Gap, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failing != nil {
		return cdc.Gap{}, s.failing
	}
	s.gaps = append(s.gaps, gap)
	return gap, nil
}

func (s *store) recorded() []cdc.Gap {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.gaps)
}

func (s *store) Paused(context.Context) (Pause, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.pause, nil
}

func (s *store) SetPaused(_ context.Context, p Pause) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failing != nil {
		return s.failing
	}
	s.pause = p
	if p == PauseNone {
		s.resumedAt = time.Now()
	}
	return nil
}

func (s *store) Resumed(context.Context) (time.Time, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.resumedAt, nil
}

func (s *store) Track(_ context.Context, items []Tracked) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failing != nil {
		return s.failing
	}
	for _, item := range items {
		s.tracks[item.Letter.ItemID] = item
	}
	return nil
}

func (s *store) Untrack(_ context.Context, ids []string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range ids {
		delete(s.tracks, id)
	}
	return nil
}

func (s *store) Load(_ context.Context, id string) (Tracked, bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	item, ok := s.tracks[id]
	return item, ok, nil
}

func (s *store) Tracked(context.Context) iter.Seq2[Tracked, error] {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := slices.Collect(maps.Values(s.tracks))
	return func(yield func(Tracked, error) bool) {
		for _, item := range all {
			if !yield(item, nil) {
				return
			}
		}
	}
}

func (s *store) letter(item string) Letter {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.letters[item]
}

// open lists the v of open letters' rows.
func (s *store) parked(state LetterState) (vs []int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range s.letters {
		if l.State != state {
			continue
		}
		c, err := cdc.DecodeChange(l.Change)
		if err != nil {
			panic(err)
		}
		values := c.New
		if values == nil {
			values = c.Old
		}
		v, _ := strconv.Atoi(string(values[1].Data))
		vs = append(vs, v)
	}
	slices.Sort(vs)
	return vs
}

func (s *store) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failing = err
}

func (s *store) settledUpTo() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.settled
}

var errDown = &sinks.RequestError{Class: sinks.ClassTransient, Status: 503, Reason: "down"}

var errStore = errors.New("disk is full")

// testConfig is a worker of two lanes with small batches.
func testConfig() Config {
	return Config{
		Sink: "vendor", Type: "test", Batch: Batch{Items: 10}, Concurrency: 2,
		Retry: backoff.Range{Min: 100 * time.Millisecond, Max: 10 * time.Second},
	}
}

// testDeps uses one store for everything.
func testDeps(tb testing.TB, s *store, v Sink, mappings string) Deps {
	tb.Helper()
	return Deps{
		Blocks: s.cursor(), Letters: s, Gaps: s, Pauses: s, Tracks: s, Sink: v, Mappings: templates(tb, mappings),
		Logger: slog.New(slog.DiscardHandler),
	}
}

// running starts a worker; stop ends it at once, as a crash would, and waits.
func running(tb testing.TB, w *Worker) (stop func()) {
	tb.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				tb.Errorf("Run: %v", err)
			}
		})
	}
	tb.Cleanup(stop)
	return stop
}
