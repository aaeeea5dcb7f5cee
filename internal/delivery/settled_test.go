package delivery

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/time/rate"

	"github.com/cdcsync/cdcsync/internal/cdc"
	"github.com/cdcsync/cdcsync/internal/sinks"
)

// once is a vendor that notes items whose success it has answered and that come again.
type once struct {
	fails func(body string) bool // such items make their request fail
	takes time.Duration
	items int
	track bool // accept, and confirm later

	mu       sync.Mutex
	taken    map[string]bool
	repeated []string
	requests int
	bodies   []string // taken, in order
}

func (o *once) Limits() sinks.Limits { return sinks.Limits{Items: o.items} }

func (o *once) Deliver(ctx context.Context, items []sinks.Item, _ string) ([]sinks.Outcome, error) {
	select {
	case <-time.After(o.takes):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.requests++
	for _, item := range items {
		if o.fails != nil && o.fails(string(item.Body)) {
			return nil, &sinks.RequestError{Class: sinks.ClassTransient, Status: 500, Reason: "internal error"}
		}
	}
	outcomes := allDelivered(items)
	for i, item := range items {
		if o.taken == nil {
			o.taken = make(map[string]bool)
		}
		if o.taken[item.ID] {
			o.repeated = append(o.repeated, item.ID)
		}
		o.taken[item.ID] = true
		o.bodies = append(o.bodies, string(item.Body))
		if o.track {
			outcomes[i] = sinks.Outcome{Status: sinks.Accepted, Tracking: item.ID}
		}
	}
	return outcomes, nil
}

func (o *once) seen() (taken int, repeated []string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.taken), slices.Clone(o.repeated)
}

func (o *once) heal() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.fails = nil
}

// confirming is once as a queue.
type confirming struct{ *once }

func (confirming) Confirm(context.Context, string) (sinks.Outcome, error) {
	return sinks.Outcome{Status: sinks.Retry}, nil
}

func failsRow(id int) func(string) bool {
	return func(body string) bool { return strings.HasPrefix(body, fmt.Sprintf(`{"id":%d,`, id)) }
}

// drained drains and checks that it takes no longer than the requests in flight and the second that it allows.
func drained(t *testing.T, w *Worker, atMost time.Duration) {
	t.Helper()
	start := time.Now()
	if err := w.Drain(t.Context()); err != nil || time.Since(start) > atMost {
		t.Fatalf("drain: %v after %s", err, time.Since(start))
	}
}

const movesMapping = `[{name: rows, table: t, key: $v, item: {id: $id, v: $v}}, {name: twice, table: t, coalesce: latest, item: {id: $id, v: $v}}]`

func TestCleanStopRepeatsNothing(t *testing.T) {
	const rows = 1446
	for name, mappings := range map[string]string{"plain": plainMapping, "latest": latestMapping, "two mappings": movesMapping} {
		for _, wait := range []time.Duration{300 * time.Millisecond, 3 * time.Second, 10 * time.Minute} {
			t.Run(fmt.Sprint(name, " ", wait), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					s := newStore()
					for i := range rows / 6 {
						block := inserts(6*i+1, 6*i+6)
						for _, r := range inserts(6*i+1, 6*i+3) { // older states of half of them
							r.op, r.v = cdc.OpUpdate, r.v+10_000
							block = append(block, r)
						}
						s.append(blockOf(cdc.LSN(10*i+10), block...))
					}
					v := &once{items: 25, fails: failsRow(700)}
					for range 3 {
						w := New(testConfig(), testDeps(t, s, v, mappings))
						stop := running(t, w)
						time.Sleep(wait)
						drained(t, w, 2*time.Second)
						stop()
					}
					v.heal()
					running(t, New(testConfig(), testDeps(t, s, v, mappings)))
					time.Sleep(time.Hour)
					if _, repeated := v.seen(); len(repeated) > 0 {
						t.Errorf("%d items sent again, the first %s", len(repeated), repeated[0])
					}
					if want := uint64(rows / 6); s.settledUpTo() != want {
						t.Errorf("settled up to block %d of %d", s.settledUpTo(), want)
					}
				})
			})
		}
	}
}

func TestCleanStopOfASlowQueueRepeatsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStore()
		for i := range 20 {
			s.append(blockOf(cdc.LSN(10*i+10), inserts(50*i+1, 50*i+50)...))
		}
		v := &once{items: 1, takes: 300 * time.Millisecond, track: true}
		for range 4 {
			w := New(testConfig(), testDeps(t, s, confirming{v}, plainMapping))
			stop := running(t, w)
			time.Sleep(10 * time.Second)
			drained(t, w, 2*time.Second)
			stop()
		}
		taken, repeated := v.seen()
		if taken < 200 || taken == 1000 || len(repeated) > 0 {
			t.Errorf("%d items accepted, %d of them again", taken, len(repeated))
		}
	})
}

func TestCrashRepeatsWhatSettledInTheLastSecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStore(blockOf(10, inserts(1, 500)...))
		v := &once{items: 10, fails: failsRow(7)}
		stop := running(t, New(testConfig(), testDeps(t, s, v, plainMapping)))
		time.Sleep(time.Minute)
		stop()
		if taken, _ := v.seen(); taken != 499 {
			t.Fatalf("%d items taken", taken)
		}
		v.heal()
		running(t, New(testConfig(), testDeps(t, s, v, plainMapping)))
		time.Sleep(time.Minute)
		if taken, repeated := v.seen(); taken != 500 || len(repeated) > 0 || s.settledUpTo() != 1 {
			t.Errorf("%d items taken, %d of them again, settled up to %d", taken, len(repeated), s.settledUpTo())
		}
	})
}

func TestSettledItemsOfOtherMappingsAreSentAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStore(blockOf(10, inserts(1, 50)...), blockOf(20, inserts(51, 60)...))
		v := &once{fails: failsRow(7), items: 1}
		w := New(testConfig(), testDeps(t, s, v, plainMapping))
		stop := running(t, w)
		time.Sleep(time.Minute)
		drained(t, w, 2*time.Second)
		stop()
		v.heal()
		running(t, New(testConfig(), testDeps(t, s, v, `[{name: rows, table: t, item: {id: $id, v: '=v + 1'}}]`)))
		time.Sleep(time.Minute)
		if taken, repeated := v.seen(); taken != 60 || len(repeated) != 59 {
			t.Errorf("%d items taken, %d of them again", taken, len(repeated))
		}
	})
}

func TestBlocksThatTakeASettledOnesPlaceAreSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStore(blockOf(10, inserts(1, 50)...), blockOf(20, inserts(51, 60)...), blockOf(30, inserts(61, 70)...))
		v := &once{fails: failsRow(7), items: 1}
		w := New(testConfig(), testDeps(t, s, v, plainMapping))
		stop := running(t, w)
		time.Sleep(time.Minute)
		drained(t, w, 2*time.Second)
		stop()
		s.mu.Lock()
		for i, b := range [][]byte{blockOf(10, inserts(101, 150)...), blockOf(40, inserts(151, 160)...), blockOf(30, inserts(161, 170)...)} {
			s.blocks[i].Data, s.blocks[i].Stored = b, time.Now()
		}
		s.mu.Unlock()
		running(t, New(testConfig(), testDeps(t, s, v, plainMapping)))
		time.Sleep(time.Minute)
		if n := len(v.bodies); n != 69+70 {
			t.Errorf("%d items taken", n)
		}
	})
}

func TestDrainDoesNotWaitForTheRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStore(blockOf(10, inserts(1, 50)...))
		v := &once{items: 1}
		deps := testDeps(t, s, v, plainMapping)
		deps.Limiter = rate.NewLimiter(rate.Every(time.Minute), 1)
		w := New(testConfig(), deps)
		running(t, w)
		time.Sleep(150 * time.Second)
		drained(t, w, 0)
		if taken, _ := v.seen(); taken != 3 {
			t.Errorf("%d items taken", taken)
		}
	})
}

// A random vendor, random stops: nothing comes again, each key's states come in their order, and all arrive.
func TestStopsAtAnyTimeRepeatNothing(t *testing.T) {
	for seed := range uint64(20) {
		synctest.Test(t, func(t *testing.T) {
			random := rand.New(rand.NewPCG(seed, 1))
			s := newStore()
			state := 0
			for i := range 60 {
				var block []row
				for range 1 + random.IntN(20) {
					state++
					block = append(block, row{op: cdc.OpUpdate, id: 1 + random.IntN(40), v: state})
				}
				s.append(blockOf(cdc.LSN(10*i+10), block...))
			}
			failing := 1 + random.IntN(40)
			v := &once{items: 1 + random.IntN(8), takes: time.Duration(random.IntN(200)) * time.Millisecond, fails: failsRow(failing)}
			mappings := []string{plainMapping, latestMapping}[seed%2]
			for range 6 {
				w := New(testConfig(), testDeps(t, s, v, mappings))
				stop := running(t, w)
				time.Sleep(time.Duration(random.IntN(5000)) * time.Millisecond)
				drained(t, w, 2*time.Second)
				stop()
			}
			v.heal()
			running(t, New(testConfig(), testDeps(t, s, v, mappings)))
			time.Sleep(time.Hour)
			if _, repeated := v.seen(); len(repeated) > 0 || s.settledUpTo() != 60 {
				t.Errorf("seed %d: %d items sent again, settled up to %d", seed, len(repeated), s.settledUpTo())
			}
			newest := make(map[int]int)
			for _, body := range v.bodies {
				it := parse(sinks.Item{Body: []byte(body)})
				if it.v <= newest[it.id] {
					t.Errorf("seed %d: state %d of row %d after %d", seed, it.v, it.id, newest[it.id])
				}
				newest[it.id] = it.v
			}
		})
	}
}

func TestSettledStateIsBounded(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	var s settledState
	for seq := range uint64(400) {
		p := settledPart{seq: seq + 1, sum: uint32(seq)}
		for range 200 {
			p.items = append(p.items, random.Uint64())
		}
		s.parts = append(s.parts, p)
	}
	s.runs = []settledRun{{from: 500, to: 600, resume: 70, stored: time.Unix(7, 0)}}
	value := s.encode([16]byte{1})
	if len(value) > keptBytes {
		t.Errorf("%d bytes", len(value))
	}
	back, err := decodeSettled(value, [16]byte{1})
	if err != nil || len(back.runs) != 1 || len(back.parts) < 100 || !slices.Equal(back.parts[99].items, s.parts[99].items) {
		t.Errorf("%d runs, %d parts: %v", len(back.runs), len(back.parts), err)
	}
	if other, err := decodeSettled(value, [16]byte{2}); err != nil || len(other.runs)+len(other.parts) > 0 {
		t.Error("read for other mappings")
	}
	for cut := range 40 {
		l := &ledger{}
		l.recall(value[:len(value)*cut/40], [16]byte{1}) // must not fail
		if len(l.known.parts) > 0 {
			t.Errorf("%d parts of a value that is cut short", len(l.known.parts))
		}
	}
}
