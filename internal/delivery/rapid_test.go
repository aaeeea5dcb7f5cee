package delivery

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/cdcsync/cdcsync/internal/cdc"
	"github.com/cdcsync/cdcsync/internal/sinks"
)

// chaos is a vendor that answers at random, except that poisoned values are never taken.
type chaos struct {
	mu      sync.Mutex
	rnd     *rand.Rand
	byItem  bool // has item results; otherwise one poisoned item spoils its request
	poison  func(v int) bool
	newest  map[int]int // by id: the newest v that was acknowledged
	taken   map[int]bool
	problem error
}

func (*chaos) Limits() sinks.Limits { return sinks.Limits{} }

func (c *chaos) Deliver(ctx context.Context, items []sinks.Item, _ string) ([]sinks.Outcome, error) {
	c.mu.Lock()
	delay := time.Duration(c.rnd.IntN(300)) * time.Millisecond
	c.mu.Unlock()
	select {
	case <-time.After(delay):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch c.rnd.IntN(10) {
	case 0:
		return nil, errDown
	case 1:
		return nil, &sinks.RequestError{Class: sinks.ClassThrottled, Status: 429, After: time.Second}
	case 2:
		if len(items) > 1 {
			return nil, &sinks.RequestError{Class: sinks.ClassTooLarge, Status: 413}
		}
	}
	outcomes := make([]sinks.Outcome, len(items))
	for i := range items {
		s := parse(items[i])
		switch {
		case c.poison(s.v) && c.byItem:
			outcomes[i] = sinks.Outcome{Status: sinks.Rejected, Reason: "poison"}
		case c.poison(s.v):
			return nil, &sinks.RequestError{Class: sinks.ClassBadRequest, Status: 400, Reason: "poison"}
		case c.byItem && c.rnd.IntN(8) == 0:
			outcomes[i] = sinks.Outcome{Status: sinks.Retry}
		default:
			outcomes[i] = sinks.Outcome{Status: sinks.Delivered}
		}
	}
	for i := range items {
		if outcomes[i].Status == sinks.Delivered {
			c.take(parse(items[i]))
		}
	}
	return outcomes, nil
}

func (c *chaos) take(s sent) {
	if s.v < c.newest[s.id] {
		c.problem = errors.Join(c.problem, fmt.Errorf("key %d went from %d back to %d", s.id, c.newest[s.id], s.v))
	}
	c.newest[s.id], c.taken[s.v] = s.v, true
}

// restarted forgets the order, as repeats of blocks in flight are allowed.
func (c *chaos) restarted() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.newest = make(map[int]int)
}

// settlementModel checks that nothing is settled which is not with the vendor, parked or replaced by a newer state.
type settlementModel struct {
	s      *store
	vendor *chaos
	rows   [][]row // by block
	latest bool
}

func (m *settlementModel) settled(seq uint64) { // with store.mu held
	m.vendor.mu.Lock()
	defer m.vendor.mu.Unlock()
	parked := make(map[cdc.Position]bool)
	for _, l := range m.s.letters {
		parked[l.Position] = true
	}
	for n, r := range m.rows[seq-1] {
		pos := cdc.Position{Commit: cdc.LSN(seq * 10), Ordinal: uint32(n + 1)}
		if !m.vendor.taken[r.v] && !parked[pos] && !m.replaced(r) {
			m.vendor.problem = errors.Join(m.vendor.problem, fmt.Errorf("block %d is settled without %d of key %d", seq, r.v, r.id))
		}
	}
}

// replaced says whether a newer state of the key was taken, or parked.
func (m *settlementModel) replaced(r row) bool {
	for _, rows := range m.rows {
		for _, other := range rows {
			if other.id == r.id && other.v > r.v && (m.vendor.taken[other.v] || m.latest && m.vendor.poison(other.v)) {
				return true
			}
		}
	}
	return false
}

func TestSettlement(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		seed := rapid.Uint64().Draw(rt, "seed")
		latest := rapid.Bool().Draw(rt, "latest")
		cfg := testConfig()
		cfg.Concurrency = rapid.IntRange(1, 4).Draw(rt, "lanes")
		cfg.Batch.Items = rapid.IntRange(1, 8).Draw(rt, "items")
		cfg.Batch.Wait = time.Duration(rapid.IntRange(0, 1).Draw(rt, "wait")) * 50 * time.Millisecond
		cfg.Memory = int64(rapid.SampledFrom([]int{1, 2000, 1 << 20}).Draw(rt, "memory"))
		rnd := rand.New(rand.NewPCG(seed, 1))
		vendor := &chaos{
			rnd: rnd, byItem: rapid.Bool().Draw(rt, "item results"), newest: make(map[int]int), taken: make(map[int]bool),
			poison: func(v int) bool { return v%13 == 5 },
		}
		blocks := rapid.SliceOfN(rapid.SliceOfN(rapid.IntRange(1, 6), 0, 12), 1, 12).Draw(rt, "blocks")
		lives := rapid.SliceOfN(rapid.IntRange(0, 2000), 0, 3).Draw(rt, "milliseconds until each crash")
		mapping := plainMapping
		if latest {
			mapping = latestMapping
		}
		synctest.Test(t, func(t *testing.T) { settlement(t, cfg, vendor, blocks, lives, mapping, latest) })
		if vendor.problem != nil {
			rt.Fatal(vendor.problem)
		}
	})
}

// settlement runs one history: blocks of keys, delivered with crashes in between.
func settlement(t *testing.T, cfg Config, vendor *chaos, blocks [][]int, lives []int, mapping string, latest bool) {
	t.Helper()
	s := newStore()
	model := &settlementModel{s: s, vendor: vendor, latest: latest}
	v := 0
	for n, keys := range blocks {
		var rows []row
		for _, id := range keys {
			v++
			rows = append(rows, row{op: cdc.OpUpdate, id: id, v: v})
		}
		model.rows = append(model.rows, rows)
		s.append(blockOf(cdc.LSN((n+1)*10), rows...))
	}
	last := uint64(0)
	s.onSettle = func(seq uint64) {
		for ; last < seq; last++ {
			model.settled(last + 1)
		}
	}
	for _, life := range lives { // each ends with a crash
		stop := running(t, New(cfg, testDeps(t, s, vendor, mapping)))
		time.Sleep(time.Duration(life) * time.Millisecond)
		stop()
		vendor.restarted()
	}
	w := New(cfg, testDeps(t, s, vendor, mapping))
	stop := running(t, w)
	time.Sleep(24 * time.Hour)
	stop()
	if st := w.Status(); st.PendingBytes != 0 || st.PendingBlocks != 0 {
		vendor.problem = errors.Join(vendor.problem, fmt.Errorf("left over: %+v", st))
	}
	if s.settled != uint64(len(blocks)) {
		vendor.problem = errors.Join(vendor.problem, fmt.Errorf("settled %d of %d blocks", s.settled, len(blocks)))
	}
	for _, v := range append(s.parked(LetterOpen), s.parked(LetterSuperseded)...) {
		if !vendor.poison(v) {
			vendor.problem = errors.Join(vendor.problem, fmt.Errorf("%d is a dead letter, and was not poisoned", v))
		}
	}
	model.finalStates(s)
}

// finalStates checks that of each key the newest good state is with the vendor, and that a letter is open only while no newer
// state was taken.
func (m *settlementModel) finalStates(s *store) {
	newest, good := make(map[int]int), make(map[int]int)
	for _, rows := range m.rows {
		for _, r := range rows {
			newest[r.id] = r.v
			if !m.vendor.poison(r.v) {
				good[r.id] = r.v
			}
		}
	}
	open := s.parked(LetterOpen)
	for id, v := range newest {
		if m.vendor.poison(v) && !slices.Contains(open, v) {
			m.vendor.problem = errors.Join(m.vendor.problem, fmt.Errorf("newest state %d of key %d is neither sent nor an open letter", v, id))
		}
		if !m.vendor.poison(v) && !m.vendor.taken[v] {
			m.vendor.problem = errors.Join(m.vendor.problem, fmt.Errorf("newest state %d of key %d was not sent", v, id))
		}
	}
	for _, v := range open {
		for _, rows := range m.rows {
			for _, r := range rows {
				if r.v == v && good[r.id] > v && m.vendor.taken[good[r.id]] {
					m.vendor.problem = errors.Join(m.vendor.problem, fmt.Errorf("letter %d is open although %d of its key was taken since", v, good[r.id]))
				}
			}
		}
	}
}
