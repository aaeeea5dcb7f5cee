package delivery

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cdcsync/cdcsync/internal/cdc"
	"github.com/cdcsync/cdcsync/internal/sinks"
)

// failsOn fails every request that holds one of the values.
func failsOn(failed *sinks.RequestError, values ...int) func(context.Context, []sent) ([]sinks.Outcome, error) {
	return func(_ context.Context, items []sent) ([]sinks.Outcome, error) {
		for _, item := range items {
			if slices.Contains(values, item.v) {
				return nil, failed
			}
		}
		return allDelivered(items), nil
	}
}

// An item with which every request fails holds only itself, however the vendor fails, and is given up after an hour.
func TestPoisonHoldsOnlyItself(t *testing.T) {
	for name, failed := range map[string]*sinks.RequestError{
		"500":               {Class: sinks.ClassTransient, Status: 500},
		"502":               {Class: sinks.ClassTransient, Status: 502},
		"503":               {Class: sinks.ClassTransient, Status: 503},
		"504":               {Class: sinks.ClassTransient, Status: 504, Timeout: true},
		"firewall's 403":    {Class: sinks.ClassUnauthorized, Status: 403, Answer: "<html>blocked"},
		"firewall's 302":    {Class: sinks.ClassEndpoint, Status: 302},
		"not understood":    {Class: sinks.ClassEndpoint, Status: 200, Answer: "null"},
		"reset":             {Class: sinks.ClassTransient, Reason: "connection reset by peer"},
		"time-out":          {Class: sinks.ClassTransient, Reason: "no whole answer", Timeout: true},
		"half an answer":    {Class: sinks.ClassTransient, Reason: "unexpected EOF"},
		"an object unknown": {Class: sinks.ClassEndpoint, Status: 201, Uncertain: true},
	} {
		for _, lanes := range []int{1, 2} {
			for _, poison := range [][]int{{1}, {137}, {500}, {3, 4, 5, 6}, {1, 2, 250, 499, 500}} {
				t.Run(fmt.Sprint(name, " ", lanes, " ", poison), func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) {
						s := newStore(blockOf(10, inserts(1, 500)...))
						v := &vendor{answer: failsOn(failed, poison...)}
						cfg := testConfig()
						cfg.Concurrency, cfg.Batch.Items = lanes, 100
						w := New(cfg, testDeps(t, s, v, plainMapping))
						running(t, w)
						time.Sleep(59 * time.Minute)
						st := w.Status()
						if want := uint64(500 - len(poison)); st.Items.Delivered != want {
							t.Fatalf("%d delivered of %d: %+v", st.Items.Delivered, want, st)
						}
						if len(st.Held) != len(poison) || st.Held[0].Attempts < 2 {
							t.Errorf("held %+v", st.Held)
						}
						if len(s.parked(LetterOpen)) > 0 {
							t.Errorf("given up %v before its time", s.parked(LetterOpen))
						}
						for n := 501; n <= 520; n++ { // the lanes go on
							s.append(blockOf(cdc.LSN(n*10), inserts(n, n)...))
						}
						time.Sleep(time.Second)
						if st := w.Status(); st.Items.Delivered != uint64(520-len(poison)) || st.State != StateRunning && failed.Status != 201 {
							t.Errorf("behind the poison: %+v", st)
						}
						time.Sleep(40 * time.Hour)
						if got := s.parked(LetterOpen); !slices.Equal(got, poison) {
							t.Errorf("letters %v", got)
						}
						for _, l := range s.letters {
							if l.Attempts < 10 || !strings.HasPrefix(l.Reason, "given up after ") {
								t.Errorf("letter %+v", l)
							}
						}
						if st := w.Status(); s.settledUpTo() != 21 || st.PendingBytes != 0 || st.HeldItems != 0 || w.memory.held.Load() != 0 || st.State != StateRunning {
							t.Errorf("settled %d, %+v", s.settledUpTo(), st)
						}
					})
				})
			}
		}
	}
}

// While nothing is taken, no item is to blame, for however long.
func TestOutageIsNoPoison(t *testing.T) {
	for name, failed := range map[string]*sinks.RequestError{
		"500":             {Class: sinks.ClassTransient, Status: 500},
		"502":             {Class: sinks.ClassTransient, Status: 502},
		"503":             errDown,
		"503 with a time": {Class: sinks.ClassTransient, Status: 503, After: time.Minute},
		"429":             {Class: sinks.ClassThrottled, Status: 429},
		"401":             {Class: sinks.ClassUnauthorized, Status: 401},
		"403":             {Class: sinks.ClassUnauthorized, Status: 403},
		"404":             {Class: sinks.ClassEndpoint, Status: 404},
		"time-out":        {Class: sinks.ClassTransient, Timeout: true},
		"reset":           {Class: sinks.ClassTransient, Reason: "reset"},
		"no host":         {Class: sinks.ClassTransient, Unsent: true},
		"no token":        {Class: sinks.ClassUnauthorized, Status: 400, Unsent: true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newStore(blockOf(10, inserts(1, 50)...))
				for n := range 20 { // all states of one key, and new ones
					s.append(blockOf(cdc.LSN(20+n), row{op: cdc.OpUpdate, id: 7, v: 100 + n}, row{op: cdc.OpInsert, id: 200 + n, v: 200 + n}))
				}
				v := &vendor{}
				v.answer = failsOn(nil)
				down := time.Now().Add(6 * time.Hour)
				up := time.Now().Add(time.Second / 10)
				v.answer = func(ctx context.Context, items []sent) ([]sinks.Outcome, error) {
					if now := time.Now(); now.Before(up) || now.After(down) {
						return allDelivered(items), nil
					}
					return nil, failed
				}
				cfg := testConfig()
				cfg.Batch.Items = 20
				w := New(cfg, testDeps(t, s, v, plainMapping))
				running(t, w)
				synctest.Wait()
				for n := range 100 {
					s.append(blockOf(cdc.LSN(1000+n), row{op: cdc.OpUpdate, id: 1 + n%10, v: 1000 + n}))
				}
				time.Sleep(5 * time.Hour)
				if n := len(s.parked(LetterOpen)); n > 0 {
					t.Errorf("%d dead letters from an outage", n)
				}
				time.Sleep(2 * time.Hour)
				if st := w.Status(); st.State != StateRunning || st.HeldItems != 0 || st.Items.Rejected != 0 || st.Items.Delivered != 190 || s.settledUpTo() != 121 {
					t.Errorf("after it: settled %d, %+v", s.settledUpTo(), st)
				}
				inOrder(t, v)
			})
		})
	}
}

// inOrder checks that no key's newest state at the vendor is an older one, and that what was taken of a key came in order.
func inOrder(t *testing.T, v *vendor) {
	t.Helper()
	newest := map[int]int{}
	for _, request := range v.seen() {
		for _, item := range request {
			if item.v < newest[item.id] {
				t.Errorf("key %d: %d after %d", item.id, item.v, newest[item.id])
			}
			newest[item.id] = item.v
		}
	}
}

// What comes later of a held key waits, and follows in order when the vendor takes the first.
func TestHeldKeyKeepsItsOrder(t *testing.T) {
	for _, mappings := range []string{plainMapping, latestMapping} {
		synctest.Test(t, func(t *testing.T) {
			s := newStore(blockOf(10, inserts(1, 20)...))
			v := &vendor{answer: failsOn(&sinks.RequestError{Class: sinks.ClassTransient, Status: 500}, 5)}
			w := New(oneLane(), testDeps(t, s, v, mappings))
			running(t, w)
			time.Sleep(10 * time.Minute)
			for n := range 50 {
				s.append(blockOf(cdc.LSN(20+n), row{op: cdc.OpUpdate, id: 5, v: 100 + n}, row{op: cdc.OpUpdate, id: 6, v: 100 + n}))
				time.Sleep(time.Second)
			}
			st := w.Status()
			if len(st.Held) != 1 || st.State != StateRunning || s.settledUpTo() != 0 {
				t.Fatalf("%+v", st)
			}
			waiting := 50
			if mappings == latestMapping {
				waiting = 1
			}
			if st.Held[0].Waiting != waiting || !strings.Contains(st.Held[0].Reason, "500") {
				t.Errorf("held %+v", st.Held[0])
			}
			v.change(failsOn(nil))
			time.Sleep(time.Minute)
			if st := w.Status(); st.HeldItems != 0 || s.settledUpTo() != 51 || st.PendingBytes != 0 || st.Items.Rejected != 0 {
				t.Errorf("settled %d, %+v", s.settledUpTo(), st)
			}
			inOrder(t, v)
			if all := v.seen(); all[len(all)-1][0].v != 149 {
				t.Errorf("the last request is %v", all[len(all)-1])
			}
		})
	}
}

// A child waits for its held parent, and follows it when it is given up.
func TestChildWaitsForHeldParent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mappings := `[{name: parents, table: t, item: {id: $id, v: $v}}, {name: children, table: c, item: {id: $id, v: $v}, parents: [{mapping: parents, key: $parent}]}]`
		child := relation(2, "c", "id", "v", "parent")
		s := newStore(blockOf(10, inserts(1, 8)...), blockWith(20, func(w *cdc.Writer) {
			w.Relation(testTable.OID, cdc.AppendRelation(nil, testTable))
			w.Relation(child.OID, cdc.AppendRelation(nil, child))
			for id := 1; id <= 8; id++ {
				w.Row(message(cdc.OpInsert, child.OID, value(id), value(100+id), value(id)))
			}
		}))
		v := &vendor{answer: failsOn(&sinks.RequestError{Class: sinks.ClassTransient, Status: 500}, 5)}
		cfg := oneLane()
		cfg.GiveUp = 30 * time.Minute
		w := New(cfg, testDeps(t, s, v, mappings))
		running(t, w)
		time.Sleep(20 * time.Minute)
		if st := w.Status(); st.HeldItems != 2 || len(st.Held) != 1 || slices.Contains(vs(v.seen()), 105) || st.Items.Delivered != 14 {
			t.Errorf("%+v", st)
		}
		time.Sleep(time.Hour)
		if st := w.Status(); st.HeldItems != 0 || !slices.Contains(vs(v.seen()), 105) || !slices.Equal(s.parked(LetterOpen), []int{5}) {
			t.Errorf("%+v", st)
		}
	})
}

// What passes a held item costs nothing, however much it is, and what waits behind it is bounded: then no more is read.
func TestHeldItemsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStore(blockOf(10, inserts(1, 20)...))
		v := &vendor{answer: failsOn(&sinks.RequestError{Class: sinks.ClassTransient, Status: 500}, 5)}
		cfg := testConfig()
		cfg.Memory, cfg.GiveUp = 100_000, 10*time.Hour
		w := New(cfg, testDeps(t, s, v, plainMapping))
		stop := running(t, w)
		time.Sleep(time.Minute)
		for n := range 20_000 {
			s.append(blockOf(cdc.LSN(100+n), row{op: cdc.OpUpdate, id: 6, v: 100 + n}))
		}
		time.Sleep(time.Minute)
		if st := w.Status(); st.Items.Delivered != 20_019 || st.PendingBlocks != 20_001 || st.PendingBytes != 0 {
			t.Fatalf("what passes: %+v", st)
		}
		if w.ledger.first.next == nil || w.ledger.first.next.next != nil {
			t.Error("the ledger keeps more than the held block and one for all behind it")
		}
		for n := range 2000 {
			s.append(blockOf(cdc.LSN(100_000+n), row{op: cdc.OpUpdate, id: 5, v: 100_000 + n}))
		}
		time.Sleep(time.Minute)
		st := w.Status()
		if held := w.memory.held.Load(); held > 300_000 || st.HeldItems > 500 {
			t.Errorf("%d bytes of %d items wait", held, st.HeldItems)
		}
		v.change(failsOn(nil))
		time.Sleep(time.Minute)
		if st := w.Status(); st.HeldItems != 0 || s.settledUpTo() != 22_001 {
			t.Errorf("settled %d, %+v", s.settledUpTo(), st)
		}
		inOrder(t, v)
		stop()
	})
}

// Draining leaves what is held for the next start, also when no more is read for it, and the next start sends it.
func TestDrainLeavesHeldItems(t *testing.T) {
	for _, memory := range []int64{0, 1000} {
		synctest.Test(t, func(t *testing.T) {
			s := newStore(blockOf(10, inserts(1, 20)...))
			v := &vendor{answer: failsOn(&sinks.RequestError{Class: sinks.ClassTransient, Status: 500}, 5)}
			cfg := testConfig()
			cfg.Memory = memory
			w := New(cfg, testDeps(t, s, v, plainMapping))
			running(t, w)
			time.Sleep(time.Minute)
			for n := range 10 {
				s.append(blockOf(cdc.LSN(20+n), row{op: cdc.OpUpdate, id: 5, v: 100 + n}))
			}
			time.Sleep(time.Minute)
			start := time.Now()
			if err := w.Drain(t.Context()); err != nil || time.Since(start) > 0 {
				t.Errorf("%v after %s", err, time.Since(start))
			}
			v.change(failsOn(nil))
			next := New(cfg, testDeps(t, s, v, plainMapping))
			running(t, next)
			time.Sleep(time.Minute)
			if s.settledUpTo() != 11 {
				t.Errorf("settled %d, %+v", s.settledUpTo(), next.Status())
			}
		})
	}
}

// Resume does not wait for any time that was set before.
func TestResumeTriesAtOnce(t *testing.T) {
	for name, failed := range map[string]*sinks.RequestError{
		"blocked":     {Class: sinks.ClassUnauthorized, Status: 401},
		"endpoint":    {Class: sinks.ClassEndpoint, Status: 404},
		"Retry-After": {Class: sinks.ClassThrottled, Status: 429, After: time.Hour},
		"down":        errDown,
		"uncertain":   {Class: sinks.ClassEndpoint, Status: 201, Uncertain: true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newStore(blockOf(10, inserts(1, 1)...))
				v := &vendor{answer: failsOn(failed, 1)}
				cfg := testConfig()
				cfg.BlockedProbe, cfg.Retry.Min, cfg.Retry.Max = time.Hour, time.Hour, 2*time.Hour
				w := New(cfg, testDeps(t, s, v, plainMapping))
				running(t, w)
				time.Sleep(time.Second)
				v.change(failsOn(nil))
				if err := w.Resume(t.Context()); err != nil {
					t.Fatal(err)
				}
				synctest.Wait()
				if s.settledUpTo() != 1 {
					t.Errorf("%d requests, %+v", len(v.seen()), w.Status())
				}
			})
		})
	}
}

// A vendor's Retry-After is heeded, but not for longer than retry.max_wait.
func TestRetryAfterIsCapped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStore(blockOf(10, inserts(1, 1)...))
		var times []time.Time
		v := &vendor{}
		v.answer = func(_ context.Context, items []sent) ([]sinks.Outcome, error) {
			if times = append(times, time.Now()); len(times) == 1 {
				return nil, &sinks.RequestError{Class: sinks.ClassTransient, Status: 503, After: 20 * time.Hour}
			}
			return allDelivered(items), nil
		}
		cfg := oneLane()
		cfg.MaxWait = 15 * time.Minute
		running(t, New(cfg, testDeps(t, s, v, plainMapping)))
		time.Sleep(time.Hour)
		if len(times) != 2 || times[1].Sub(times[0]) != 15*time.Minute {
			t.Errorf("attempts at %v", times)
		}
	})
}

// An item of which the vendor may have made an object is sent again seldom: each time could make another.
func TestUncertainItemsAreRepeatedSeldom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStore(blockOf(10, inserts(1, 20)...))
		v := &vendor{answer: failsOn(&sinks.RequestError{Class: sinks.ClassEndpoint, Status: 201, Uncertain: true, Answer: "OK"}, slices.Collect(func(yield func(int) bool) {
			for n := range 100 {
				yield(n)
			}
		})...)}
		cfg := testConfig()
		cfg.Batch.Items = 1
		w := New(cfg, testDeps(t, s, v, plainMapping))
		running(t, w)
		time.Sleep(time.Minute)
		if st := w.Status(); st.State != StateBlocked || st.Answer != "OK" {
			t.Errorf("%+v", st)
		}
		time.Sleep(5 * time.Hour)
		times := map[int]int{}
		for _, n := range vs(v.seen()) {
			times[n]++
		}
		for n, count := range times {
			if count > 12 {
				t.Errorf("item %d was sent %d times in five hours", n, count)
			}
		}
		if len(s.parked(LetterOpen)) > 0 {
			t.Error("dead letters")
		}
		v.change(failsOn(nil))
		time.Sleep(2 * time.Hour)
		if s.settledUpTo() != 1 {
			t.Errorf("not recovered: %+v", w.Status())
		}
	})
}

// The size of requests adapts to what is answered in time.
func TestBatchSizeAdapts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const timeout = time.Second
		s := newStore()
		for n := range 40 {
			s.append(blockOf(cdc.LSN(10*n+10), inserts(500*n+1, 500*n+500)...))
		}
		per := 5 * time.Millisecond
		v := &vendor{}
		v.answer = func(_ context.Context, items []sent) ([]sinks.Outcome, error) {
			if took := time.Duration(len(items)) * per; took <= timeout {
				time.Sleep(took)
				return allDelivered(items), nil
			}
			time.Sleep(timeout)
			return nil, &sinks.RequestError{Class: sinks.ClassTransient, Timeout: true}
		}
		cfg := testConfig()
		cfg.Batch.Items, cfg.Timeout = 500, timeout
		w := New(cfg, testDeps(t, s, v, plainMapping))
		running(t, w)
		time.Sleep(30 * time.Second)
		if st := w.Status(); st.Items.Delivered < 5000 || st.BatchItems > 200 || st.BatchItems < 20 {
			t.Errorf("%+v", st)
		}
		time.Sleep(time.Minute)
		if st := w.Status(); st.Items.Delivered != 20_000 || st.HeldItems > 0 {
			t.Errorf("%+v", st)
		}
		per = time.Microsecond
		for n := range 100 {
			s.append(blockOf(cdc.LSN(10_000*n+10_000), inserts(500*n+1, 500*n+500)...))
		}
		time.Sleep(time.Minute)
		if st := w.Status(); st.BatchItems != 500 {
			t.Errorf("after it: %+v", st)
		}
	})
}

// A vendor that takes as long for one item as for many is not sent single ones.
func TestBatchSizeStaysWhenItDoesNotHelp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStore()
		for n := range 400 {
			s.append(blockOf(cdc.LSN(10*n+10), inserts(500*n+1, 500*n+500)...))
		}
		v := &vendor{}
		v.answer = func(_ context.Context, items []sent) ([]sinks.Outcome, error) {
			time.Sleep(15 * time.Second)
			return allDelivered(items), nil
		}
		cfg := testConfig()
		cfg.Batch.Items, cfg.Timeout = 500, 30*time.Second
		w := New(cfg, testDeps(t, s, v, plainMapping))
		running(t, w)
		time.Sleep(10 * time.Minute)
		if got := w.Status().Items.Delivered; got < 30_000 {
			t.Errorf("%d items in ten minutes, %d a request", got, w.Status().BatchItems)
		}
	})
}

// What one sink of an account is told, all heed.
func TestAccountsShareTheVendorsWord(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		account := new(Account)
		var workers []*Worker
		var vendors []*vendor
		for range 2 {
			s, v := newStore(), new(vendor)
			cfg := testConfig()
			cfg.Concurrency = 8
			deps := testDeps(t, s, v, plainMapping)
			deps.Account = account
			w := New(cfg, deps)
			workers, vendors = append(workers, w), append(vendors, v)
			running(t, w)
			time.Sleep(time.Second)
			if len(workers) == 1 {
				v.change(failsOn(&sinks.RequestError{Class: sinks.ClassThrottled, Status: 429, After: time.Minute}, 1))
				s.append(blockOf(10, inserts(1, 1)...))
				time.Sleep(time.Second)
				continue
			}
			if n := w.gate.window; n != 8 {
				t.Errorf("a window of %v before", n)
			}
			s.append(blockOf(10, inserts(1, 1)...))
			time.Sleep(30 * time.Second)
			if len(v.seen()) > 0 {
				t.Error("the second sink does not heed what the first was told")
			}
			vendors[0].change(failsOn(&sinks.RequestError{Class: sinks.ClassThrottled, Status: 429}, 1))
			time.Sleep(time.Minute)
			if len(v.seen()) != 1 || w.Status().Concurrency > 4 {
				t.Errorf("%d requests, %d at once", len(v.seen()), w.Status().Concurrency)
			}
		}
	})
}

// The dispatcher, too, leaves what waits for a held item: here a child of two parents in two lanes.
func TestDrainLeavesWhatWaitsForHeldParents(t *testing.T) {
	for seed := range 10 { // the lanes of keys are random
		synctest.Test(t, func(t *testing.T) {
			mappings := `[{name: parents, table: t, item: {id: $id, v: $v}}, {name: children, table: c, item: {id: $id, v: $v}, parents: [{mapping: parents, key: $a}, {mapping: parents, key: $b}]}]`
			child := relation(2, "c", "id", "v", "a", "b")
			s := newStore(blockOf(10, inserts(1, 8)...), blockWith(20, func(w *cdc.Writer) {
				w.Relation(child.OID, cdc.AppendRelation(nil, child))
				for id := 1; id <= 8; id++ {
					w.Row(message(cdc.OpInsert, child.OID, value(id), value(100+id), value(id), value((id+seed)%8+1)))
				}
			}))
			v := &vendor{answer: failsOn(&sinks.RequestError{Class: sinks.ClassTransient, Status: 500}, 1, 2, 3, 4, 5, 6)}
			w := New(testConfig(), testDeps(t, s, v, mappings))
			running(t, w)
			time.Sleep(30 * time.Minute)
			start := time.Now()
			if err := w.Drain(t.Context()); err != nil || time.Since(start) > time.Minute {
				t.Errorf("%v after %s", err, time.Since(start))
			}
			v.change(failsOn(nil))
			next := New(testConfig(), testDeps(t, s, v, mappings))
			running(t, next)
			time.Sleep(time.Minute)
			if s.settledUpTo() != 2 {
				t.Errorf("settled %d, %+v", s.settledUpTo(), next.Status())
			}
		})
	}
}
