package delivery

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/cdcsync/cdcsync/internal/cdc"
	"github.com/cdcsync/cdcsync/internal/sinks"
)

func inserts(from, to int) (rows []row) {
	for v := from; v <= to; v++ {
		rows = append(rows, row{op: cdc.OpInsert, id: v, v: v})
	}
	return rows
}

func vs(requests [][]sent) (all []int) {
	for _, r := range requests {
		for _, s := range r {
			all = append(all, s.v)
		}
	}
	return all
}

// oneLane is a Config in which the order of all items is that of the stream.
func oneLane() Config {
	cfg := testConfig()
	cfg.Concurrency = 1
	return cfg
}

func TestDeliversBlocksInBatches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, v := newStore(blockOf(10, inserts(1, 25)...), blockOf(20, row{op: cdc.OpUpdate, id: 1, v: 26}, row{op: cdc.OpDelete, id: 2, v: 2})), new(vendor)
		w := New(oneLane(), testDeps(t, s, v, plainMapping))
		running(t, w)
		synctest.Wait()
		got := v.seen()
		if want := append(slices.Collect(func(yield func(int) bool) {
			for i := 1; i <= 26; i++ {
				yield(i)
			}
		}), 2); !slices.Equal(vs(got), want) {
			t.Errorf("sent %v", vs(got))
		}
		for _, r := range got {
			if len(r) > 10 {
				t.Errorf("a request of %d items", len(r))
			}
		}
		if s.settled != 2 || s.resume != 21 {
			t.Errorf("settled %d, resume %s", s.settled, s.resume)
		}
		st := w.Status()
		if st.State != StateRunning || st.Items.Delivered != 27 || st.Delivered != 21 || st.Lag != 0 || st.PendingBytes != 0 || st.PendingBlocks != 0 {
			t.Errorf("status %+v", st)
		}
		if v.ids[0] != "0/A#1/rows" || len(v.keys[0]) != 32 {
			t.Errorf("id %q, key %q", v.ids[0], v.keys[0])
		}
	})
}

func TestBatchesHaveExactBytes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStore(blockOf(10, inserts(10, 99)...))
		v := &vendor{limits: sinks.Limits{Frame: 20, Overhead: 5}}
		cfg := oneLane()
		body := len(`{"id":10,"v":10}`)
		cfg.Batch = Batch{Bytes: 20 + 7*(body+5)}
		running(t, New(cfg, testDeps(t, s, v, plainMapping)))
		synctest.Wait()
		for i, r := range v.seen() {
			if len(r) > 7 || len(r) < 7 && i < 90/7 {
				t.Errorf("request %d has %d items, want 7", i, len(r))
			}
		}
		if len(vs(v.seen())) != 90 {
			t.Errorf("%d items", len(vs(v.seen())))
		}
	})
}

func TestItemLargerThanABatchGoesAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, v := newStore(blockOf(10, inserts(1, 3)...)), new(vendor)
		cfg := oneLane()
		cfg.Batch = Batch{Bytes: 1}
		cfg.Memory = 1
		running(t, New(cfg, testDeps(t, s, v, plainMapping)))
		synctest.Wait()
		if got := v.seen(); len(got) != 3 || s.settled != 1 {
			t.Errorf("%v, settled %d", got, s.settled)
		}
	})
}

func TestWaitsForFullerBatches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, v := newStore(blockOf(10, inserts(1, 2)...)), new(vendor)
		cfg := oneLane()
		cfg.Batch.Wait = time.Second
		running(t, New(cfg, testDeps(t, s, v, plainMapping)))
		time.Sleep(900 * time.Millisecond)
		s.append(blockOf(20, inserts(3, 4)...))
		synctest.Wait()
		if len(v.seen()) != 0 {
			t.Fatalf("sent %v before the wait was over", v.seen())
		}
		time.Sleep(100 * time.Millisecond)
		synctest.Wait()
		if got := v.seen(); len(got) != 1 || len(got[0]) != 4 {
			t.Errorf("sent %v, want one request of 4", got)
		}
		s.append(blockOf(30, inserts(5, 14)...)) // a full batch does not wait
		synctest.Wait()
		if got := v.seen(); len(got) != 2 || len(got[1]) != 10 {
			t.Errorf("sent %v", got)
		}
	})
}

func TestRetriesForHoursThenRecovers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStore(blockOf(10, inserts(1, 5)...))
		down := time.Now().Add(5 * time.Hour)
		v := &vendor{}
		v.answer = func(_ context.Context, items []sent) ([]sinks.Outcome, error) {
			if time.Now().Before(down) {
				return nil, errDown
			}
			return allDelivered(items), nil
		}
		w := New(testConfig(), testDeps(t, s, v, plainMapping))
		running(t, w)
		time.Sleep(time.Hour)
		st := w.Status()
		if st.State != StateRetrying || !strings.Contains(st.Reason, "503") || st.NextAttempt.Before(time.Now()) || time.Until(st.NextAttempt) > 10*time.Second {
			t.Errorf("status %+v", st)
		}
		if st.Lag < time.Hour {
			t.Errorf("lag %s after an hour", st.Lag)
		}
		if n := len(v.seen()); n < 3600/10 || n > 3600 {
			t.Errorf("%d attempts in an hour with waits of up to 10 s", n)
		}
		keys := make(map[string]string)
		for i, request := range v.seen() {
			if content, key := fmt.Sprint(request), v.idempotencyKeys()[i]; keys[content] == "" {
				keys[content] = key
			} else if keys[content] != key {
				t.Fatalf("two idempotency keys for %s", content)
			}
		}
		time.Sleep(4*time.Hour + 20*time.Second)
		if st := w.Status(); st.State != StateRunning || s.settledUpTo() != 1 || st.Items.Delivered != 5 || st.Failures != 0 {
			t.Errorf("status %+v, settled %d", st, s.settledUpTo())
		}
	})
}

func TestRetryAfterIsObeyed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStore(blockOf(10, inserts(1, 1)...))
		var times []time.Time
		v := &vendor{}
		v.answer = func(_ context.Context, items []sent) ([]sinks.Outcome, error) {
			times = append(times, time.Now())
			if len(times) == 1 {
				return nil, &sinks.RequestError{Class: sinks.ClassThrottled, Status: 429, After: 17 * time.Minute}
			}
			return allDelivered(items), nil
		}
		stop := running(t, New(oneLane(), testDeps(t, s, v, plainMapping)))
		time.Sleep(time.Hour)
		stop()
		if len(times) != 2 || times[1].Sub(times[0]) < 17*time.Minute || times[1].Sub(times[0]) > 18*time.Minute {
			t.Errorf("attempts at %v", times)
		}
	})
}

func TestRefusedCredentialsBlock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStore(blockOf(10, inserts(1, 100)...))
		var good atomic.Bool
		v := &vendor{}
		v.answer = func(_ context.Context, items []sent) ([]sinks.Outcome, error) {
			if !good.Load() {
				return nil, &sinks.RequestError{Class: sinks.ClassUnauthorized, Status: 401, Reason: "Invalid client api token"}
			}
			return allDelivered(items), nil
		}
		w := New(testConfig(), testDeps(t, s, v, plainMapping))
		running(t, w)
		time.Sleep(time.Second)
		if st := w.Status(); st.State != StateBlocked || !strings.Contains(st.Reason, "Invalid client api token") {
			t.Errorf("status %+v", st)
		}
		before := len(v.seen())
		time.Sleep(10 * time.Minute)
		if n := len(v.seen()) - before; n < 19 || n > 20 {
			t.Errorf("%d probes in ten minutes, want one every 30 s", n)
		}
		good.Store(true)
		time.Sleep(time.Minute)
		if st := w.Status(); st.State != StateRunning || s.settledUpTo() != 1 {
			t.Errorf("status %+v", st)
		}
	})
}

// poisoned answers 400 to a request that holds one of the bad values.
func poisoned(bad ...int) func(context.Context, []sent) ([]sinks.Outcome, error) {
	return func(_ context.Context, items []sent) ([]sinks.Outcome, error) {
		for _, s := range items {
			if slices.Contains(bad, s.v) {
				return nil, &sinks.RequestError{Class: sinks.ClassBadRequest, Status: 400, Reason: "Update reception failed: no", Code: "E1"}
			}
		}
		return allDelivered(items), nil
	}
}

func TestBisectFindsExactlyThePoisoned(t *testing.T) {
	for _, bad := range [][]int{{1}, {50}, {17, 18}, {3, 28, 49}, {}} {
		synctest.Test(t, func(t *testing.T) {
			s, v := newStore(blockOf(10, inserts(1, 50)...)), &vendor{answer: poisoned(bad...)}
			cfg := oneLane()
			cfg.Batch.Items = 50
			w := New(cfg, testDeps(t, s, v, plainMapping))
			running(t, w)
			synctest.Wait()
			if got := s.parked(LetterOpen); !slices.Equal(got, bad) {
				t.Errorf("dead letters %v, want %v", got, bad)
			}
			if st := w.Status(); int(st.Items.Delivered) != 50-len(bad) || int(st.Items.Rejected) != len(bad) || s.settled != 1 || st.State != StateRunning {
				t.Errorf("status %+v", st)
			}
			if n := len(v.seen()); n > 1+12*len(bad) {
				t.Errorf("%d requests for %d poisoned of 50", n, len(bad))
			}
			for _, l := range s.letters {
				if l.Reason != "Update reception failed: no" || l.Status != 400 || l.Code != "E1" || l.Attempts < 6 || string(l.Item) == "" || l.Mapping != "rows" || l.Table != "public.t" || !strings.Contains(l.Key, "public.t") {
					t.Errorf("letter %+v", l)
				}
			}
		})
	}
}

func TestTooLargeHalves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, v := newStore(blockOf(10, inserts(1, 40)...)), &vendor{}
		v.answer = func(_ context.Context, items []sent) ([]sinks.Outcome, error) {
			if len(items) > 3 || items[0].v == 7 && len(items) == 1 {
				return nil, &sinks.RequestError{Class: sinks.ClassTooLarge, Status: 413, Reason: "too large"}
			}
			for _, s := range items {
				if s.v == 7 {
					return nil, &sinks.RequestError{Class: sinks.ClassTooLarge, Status: 413, Reason: "too large"}
				}
			}
			return allDelivered(items), nil
		}
		w := New(oneLane(), testDeps(t, s, v, plainMapping))
		running(t, w)
		synctest.Wait()
		if got := s.parked(LetterOpen); !slices.Equal(got, []int{7}) || w.Status().Items.Delivered != 39 {
			t.Errorf("parked %v, status %+v", got, w.Status())
		}
	})
}

func TestItemResultsSettleEachByItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rows := append(inserts(1, 6), row{op: cdc.OpUpdate, id: 2, v: 7})
		s, v := newStore(blockOf(10, rows...)), &vendor{}
		v.answer = func(_ context.Context, items []sent) ([]sinks.Outcome, error) {
			out := allDelivered(items)
			for i := range items {
				if len(v.seen()) == 1 && (items[i].v == 2 || items[i].v == 4) {
					out[i] = sinks.Outcome{Status: sinks.Retry, After: time.Minute}
				}
				if items[i].v == 5 {
					out[i] = sinks.Outcome{Status: sinks.Rejected, Reason: "no such fan", Trace: "rc1"}
				}
			}
			return out, nil
		}
		start := time.Now()
		w := New(oneLane(), testDeps(t, s, v, plainMapping))
		running(t, w)
		time.Sleep(time.Hour)
		want := [][]sent{{}, {{cdc.OpInsert, 4, 4}}} // 2 is not sent again: 7, newer of the same key, was taken
		if got := v.seen(); len(got) != 2 || !slices.Equal(got[1], want[1]) {
			t.Errorf("requests %v", got)
		}
		if got := s.parked(LetterOpen); !slices.Equal(got, []int{5}) || s.settled != 1 {
			t.Errorf("parked %v, settled %d", got, s.settled)
		}
		if l := s.letter("0/A#5/rows"); l.Trace != "rc1" || l.Attempts != 1 {
			t.Errorf("letter %+v", l)
		}
		if st := w.Status(); st.Items.Coalesced != 1 || st.Items.Retried != 2-1 || st.State != StateRunning || time.Since(start) < time.Minute {
			t.Errorf("status %+v", st)
		}
	})
}

func TestLocalRejectionsBecomeLetters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		data := blockWith(10, func(w *cdc.Writer) {
			w.Relation(testTable.OID, cdc.AppendRelation(nil, testTable))
			w.Row(row{op: cdc.OpInsert, id: 1, null: true}.message())
			w.Truncate(testTable.OID)
			w.Oversized(cdc.OpInsert, testTable.OID, cdc.Oversized{Bytes: 1 << 30, Key: "id=9"})
			w.Row(row{op: cdc.OpInsert, id: 2, v: 2}.message())
		})
		s, v := newStore(data), new(vendor)
		w := New(oneLane(), testDeps(t, s, v, plainMapping))
		running(t, w)
		synctest.Wait()
		if len(s.letters) != 3 || s.settled != 1 || !slices.Equal(vs(v.seen()), []int{2}) {
			t.Fatalf("letters %v, settled %d, sent %v", s.letters, s.settled, v.seen())
		}
		for item, want := range map[string]string{"0/A#1/rows": "v", "0/A#2/rows": "truncated", "0/A#3/rows": "larger"} {
			l := s.letter(item)
			if !strings.Contains(l.Reason, want) || l.Attempts != 0 || l.Item != nil || len(l.Change) == 0 {
				t.Errorf("letter of %s: %+v", item, l)
			}
		}
		if l := s.letter("0/A#3/rows"); l.Key != "id=9" {
			t.Errorf("key %q", l.Key)
		}
	})
}

func TestDeadLetterLimitHalts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, v := newStore(blockOf(10, inserts(1, 50)...)), &vendor{}
		v.answer = func(_ context.Context, items []sent) ([]sinks.Outcome, error) {
			return nil, &sinks.RequestError{Class: sinks.ClassRejected, Status: 422, Reason: "no"}
		}
		cfg := testConfig()
		cfg.DeadLetters = 7
		w := New(cfg, testDeps(t, s, v, plainMapping))
		stop := running(t, w)
		time.Sleep(time.Hour)
		if st := w.Status(); st.State != StateHalted || len(s.letters) != 7 || s.pause != PauseDeadLetters || s.settled != 0 {
			t.Fatalf("status %+v, %d letters, pause %q", st, len(s.letters), s.pause)
		}
		if err := w.Resume(t.Context()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		if st := w.Status(); st.State != StateHalted || len(s.letters) != 14 {
			t.Fatalf("after resume: status %+v, %d letters", st, len(s.letters))
		}
		stop()
		requests := len(v.seen())
		again := New(cfg, testDeps(t, s, v, plainMapping)) // halted over a restart, too
		running(t, again)
		time.Sleep(time.Hour)
		if again.Status().State != StateHalted || len(v.seen()) != requests {
			t.Errorf("after a restart: %+v", again.Status())
		}
		if err := again.Resume(t.Context()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		if st := again.Status(); st.State != StateHalted || len(s.letters) != 21 { // those that the restart repeats are not new
			t.Errorf("after a restart and resume: status %+v, %d letters", st, len(s.letters))
		}
	})
}

func TestPauseAndResume(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, v := newStore(), new(vendor)
		deps := testDeps(t, s, v, plainMapping)
		w := New(testConfig(), deps)
		stop := running(t, w)
		if err := w.Pause(t.Context()); err != nil {
			t.Fatal(err)
		}
		s.append(blockOf(10, inserts(1, 5)...))
		time.Sleep(time.Hour)
		if st := w.Status(); st.State != StatePaused || len(v.seen()) != 0 || s.settledUpTo() != 0 {
			t.Errorf("status %+v, sent %v", st, v.seen())
		}
		stop()
		w = New(testConfig(), testDeps(t, s, v, plainMapping))
		running(t, w)
		time.Sleep(time.Hour)
		if w.Status().State != StatePaused || len(v.seen()) != 0 {
			t.Errorf("a pause does not survive a restart")
		}
		if err := w.Resume(t.Context()); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if w.Status().State != StateRunning || s.settledUpTo() != 1 {
			t.Errorf("status %+v", w.Status())
		}
	})
}

func TestDrainRepeatsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStore()
		for i := range 20 {
			s.append(blockOf(cdc.LSN(10*i+10), inserts(10*i+1, 10*i+10)...))
		}
		v := &vendor{}
		v.answer = func(_ context.Context, items []sent) ([]sinks.Outcome, error) {
			time.Sleep(50 * time.Millisecond)
			return allDelivered(items), nil
		}
		w := New(testConfig(), testDeps(t, s, v, plainMapping))
		running(t, w)
		time.Sleep(120 * time.Millisecond)
		if err := w.Drain(t.Context()); err != nil {
			t.Fatal(err)
		}
		first := len(vs(v.seen()))
		if first == 0 || uint64(first) != 10*s.settledUpTo() {
			t.Errorf("%d items delivered, %d blocks of 10 settled", first, s.settledUpTo())
		}
		running(t, New(testConfig(), testDeps(t, s, v, plainMapping)))
		time.Sleep(time.Minute)
		all := vs(v.seen())
		slices.Sort(all)
		if len(all) != 200 || len(slices.Compact(all)) != 200 {
			t.Errorf("%d items sent for 200 rows", len(all))
		}
	})
}

func TestDrainLeavesWhatCannotBeDelivered(t *testing.T) {
	for name, broken := range map[string]func(*store, *Worker){
		"down":   func(*store, *Worker) {},
		"paused": func(_ *store, w *Worker) { _ = w.Pause(context.Background()) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newStore(blockOf(10, inserts(1, 5)...))
				v := &vendor{answer: func(context.Context, []sent) ([]sinks.Outcome, error) { return nil, errDown }}
				w := New(testConfig(), testDeps(t, s, v, plainMapping))
				running(t, w)
				broken(s, w)
				time.Sleep(time.Minute)
				start := time.Now()
				if err := w.Drain(t.Context()); err != nil || time.Since(start) > time.Second {
					t.Errorf("drain: %v after %s", err, time.Since(start))
				}
				if s.settledUpTo() != 0 {
					t.Error("settled what was not delivered")
				}
			})
		})
	}
}

func TestMemoryIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStore()
		size := 0
		for i := range 100 {
			data := blockOf(cdc.LSN(10*i+10), inserts(50*i+1, 50*i+50)...)
			size = len(data)
			s.append(data)
		}
		var up atomic.Bool
		v := &vendor{answer: func(_ context.Context, items []sent) ([]sinks.Outcome, error) {
			if !up.Load() {
				return nil, errDown
			}
			return allDelivered(items), nil
		}}
		cfg := testConfig()
		cfg.Memory = int64(5 * size)
		w := New(cfg, testDeps(t, s, v, plainMapping))
		running(t, w)
		time.Sleep(time.Hour)
		if st := w.Status(); st.PendingBytes > cfg.Memory+int64(size)+1000 || st.PendingBlocks > 6 {
			t.Errorf("pending %d bytes in %d blocks with a limit of %d", st.PendingBytes, st.PendingBlocks, cfg.Memory)
		}
		up.Store(true)
		time.Sleep(time.Minute)
		if s.settledUpTo() != 100 || w.Status().PendingBytes != 0 {
			t.Errorf("settled %d, status %+v", s.settledUpTo(), w.Status())
		}
	})
}

func TestCoalescing(t *testing.T) {
	i, u, d := cdc.OpInsert, cdc.OpUpdate, cdc.OpDelete
	for _, c := range []struct {
		name string
		rows []row
		want []sent
	}{
		{"insert, update", []row{{op: i, id: 1, v: 1}, {op: u, id: 1, v: 2}}, []sent{{i, 1, 2}}},
		{"update, update", []row{{op: u, id: 1, v: 1}, {op: u, id: 1, v: 2}}, []sent{{u, 1, 2}}},
		{"insert, delete", []row{{op: i, id: 1, v: 1}, {op: d, id: 1, v: 1}}, []sent{{d, 1, 1}}},
		{"update, delete", []row{{op: u, id: 1, v: 1}, {op: d, id: 1, v: 2}}, []sent{{d, 1, 2}}},
		{"delete, insert", []row{{op: d, id: 1, v: 1}, {op: i, id: 1, v: 2}}, []sent{{i, 1, 2}}},
		{"insert, delete, insert, update", []row{{op: i, id: 1, v: 1}, {op: d, id: 1, v: 1}, {op: i, id: 1, v: 2}, {op: u, id: 1, v: 3}}, []sent{{i, 1, 3}}},
		{"others in between", []row{{op: i, id: 1, v: 1}, {op: i, id: 2, v: 2}, {op: u, id: 1, v: 3}, {op: d, id: 2, v: 4}}, []sent{{i, 1, 3}, {d, 2, 4}}},
		{"a delete goes to its place", []row{{op: i, id: 1, v: 1}, {op: i, id: 2, v: 2}, {op: d, id: 1, v: 3}}, []sent{{i, 2, 2}, {d, 1, 3}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, v := newStore(), new(vendor)
				cfg := oneLane()
				cfg.Batch.Wait = time.Second
				w := New(cfg, testDeps(t, s, v, latestMapping))
				for n, r := range c.rows { // over several blocks, which stay unsettled until the last state is delivered
					s.append(blockOf(cdc.LSN(10*n+10), r))
				}
				running(t, w)
				synctest.Wait()
				if s.settledUpTo() != 0 {
					t.Errorf("settled %d before anything was sent", s.settledUpTo())
				}
				time.Sleep(time.Second)
				synctest.Wait()
				var got []sent
				for _, r := range v.seen() {
					got = append(got, r...)
				}
				if diff := cmp.Diff(c.want, got, cmp.AllowUnexported(sent{})); diff != "" {
					t.Errorf("(-want +got):\n%s", diff)
				}
				if s.settledUpTo() != uint64(len(c.rows)) || w.Status().PendingBytes != 0 {
					t.Errorf("settled %d of %d", s.settledUpTo(), len(c.rows))
				}
			})
		})
	}
}
