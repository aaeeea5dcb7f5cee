package delivery

import (
	"bytes"
	"context"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cdcsync/cdcsync/internal/cdc"
	"github.com/cdcsync/cdcsync/internal/sinks"
)

func retry(t *testing.T, w *Worker, force bool, ids ...string) []RetryResult {
	t.Helper()
	results, err := w.RetryLetters(t.Context(), ids, force)
	if err != nil {
		t.Fatal(err)
	}
	return results
}

func TestRetriedLetterIsDeliveredInItsPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, v := newStore(blockOf(10, inserts(1, 3)...)), &vendor{answer: poisoned(2)}
		w := New(testConfig(), testDeps(t, s, v, plainMapping))
		running(t, w)
		synctest.Wait()
		const id = "letter 0/A#2/rows"
		if got := retry(t, w, false, id, "letter nobody"); got[0].Outcome != RetryQueued || got[1].Outcome != RetryUnknown {
			t.Errorf("results %+v", got)
		}
		synctest.Wait()
		if l := s.letter("0/A#2/rows"); l.State != LetterOpen || l.Attempts < 2 {
			t.Errorf("a letter that was refused again: %+v", l)
		}
		v.change(nil)
		retry(t, w, false, id)
		synctest.Wait()
		if l := s.letter("0/A#2/rows"); l.State != LetterDelivered {
			t.Errorf("letter %+v", l)
		}
		if got := vs(v.seen()); got[len(got)-1] != 2 || w.Status().OpenLetters != 0 || w.Status().PendingBytes != 0 {
			t.Errorf("sent %v, status %+v", got, w.Status())
		}
	})
}

func TestNewerStateSupersedesLetters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, v := newStore(blockOf(10, inserts(1, 2)...)), &vendor{answer: poisoned(2)}
		stop := running(t, New(testConfig(), testDeps(t, s, v, plainMapping)))
		synctest.Wait()
		stop()
		w := New(testConfig(), testDeps(t, s, v, plainMapping)) // the letters' keys survive a restart
		running(t, w)
		s.append(blockOf(20, row{op: cdc.OpUpdate, id: 2, v: 3}))
		synctest.Wait()
		if l := s.letter("0/A#2/rows"); l.State != LetterSuperseded {
			t.Fatalf("letter %+v", l)
		}
		v.change(nil)
		if got := retry(t, w, false, "letter 0/A#2/rows"); got[0].Outcome != RetrySuperseded {
			t.Errorf("results %+v", got)
		}
		synctest.Wait()
		if got := vs(v.seen()); got[len(got)-1] != 3 {
			t.Errorf("sent %v", got)
		}
		if got := retry(t, w, true, "letter 0/A#2/rows"); got[0].Outcome != RetryQueued {
			t.Errorf("forced: %+v", got)
		}
		synctest.Wait()
		if got := vs(v.seen()); got[len(got)-1] != 2 || s.letter("0/A#2/rows").State != LetterDelivered {
			t.Errorf("forced: sent %v", got)
		}
	})
}

// A newer state that waits in the lane is delivered before the retried letter, which is then not sent.
func TestLetterBehindNewerStateIsNotSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, v := newStore(blockOf(10, inserts(1, 2)...)), &vendor{answer: poisoned(2)}
		w := New(oneLane(), testDeps(t, s, v, plainMapping))
		running(t, w)
		synctest.Wait()
		v.change(func(_ context.Context, items []sent) ([]sinks.Outcome, error) {
			time.Sleep(time.Second)
			return allDelivered(items), nil
		})
		s.append(blockOf(20, row{op: cdc.OpUpdate, id: 2, v: 3}))
		synctest.Wait()
		if got := retry(t, w, false, "letter 0/A#2/rows"); got[0].Outcome != RetryQueued {
			t.Errorf("results %+v", got)
		}
		if got := retry(t, w, false, "letter 0/A#2/rows"); got[0].Outcome != RetryUnderWay {
			t.Errorf("again: %+v", got)
		}
		time.Sleep(time.Minute)
		if got := vs(v.seen()); got[len(got)-1] != 3 {
			t.Errorf("sent %v", got)
		}
		if l := s.letter("0/A#2/rows"); l.State != LetterSuperseded || w.Status().PendingBytes != 0 {
			t.Errorf("letter %+v, status %+v", l, w.Status())
		}
	})
}

func TestLettersAreStoredBeforeSettling(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, v := newStore(blockOf(10, inserts(1, 2)...)), &vendor{answer: poisoned(2)}
		s.fail(errStore)
		w := New(testConfig(), testDeps(t, s, v, plainMapping))
		running(t, w)
		time.Sleep(time.Hour)
		if st := w.Status(); st.State != StateRetrying || !strings.Contains(st.Reason, errStore.Error()) || s.settledUpTo() != 0 {
			t.Errorf("status %+v, settled %d", st, s.settledUpTo())
		}
		s.fail(nil)
		time.Sleep(time.Minute)
		if st := w.Status(); st.State != StateRunning || s.settledUpTo() != 1 || len(s.letters) != 1 {
			t.Errorf("status %+v", st)
		}
	})
}

func TestLogsHoldNoValues(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		s := newStore(blockOf(10, row{op: cdc.OpInsert, id: 12345678909, v: 98765432100}))
		v := &vendor{answer: func(_ context.Context, items []sent) ([]sinks.Outcome, error) {
			return nil, &sinks.RequestError{Class: sinks.ClassTransient, Status: 500, Reason: "cannot store CPF 12345678909 of maria@example.com"}
		}}
		deps := testDeps(t, s, v, plainMapping)
		deps.Logger = slog.New(slog.NewTextHandler(&log, nil))
		w := New(testConfig(), deps)
		stop := running(t, w)
		time.Sleep(time.Hour)
		stop()
		if text := log.String(); strings.Contains(text, "12345678909") || strings.Contains(text, "maria") || strings.Count(text, "\n") != 1 {
			t.Errorf("an hour of failures gave this log:\n%s", text)
		}
	})
}

// However a vendor quotes a row, in whatever part of its answer, a log has only status, code and trace; the words are for the status.
func TestLogsHoldNoWordsOfAVendor(t *testing.T) {
	const planted = "hunter2"
	for _, words := range []string{
		"cannot store name=maria pwd=hunter2", "hunter2", `{"password": "hunter2"}`, "name: hunter2\nlevel=ERROR msg=hunter2", "<p>hunter2</p>", "don't take hunter2",
	} {
		for what, failed := range map[string]*sinks.RequestError{
			"transient":    {Class: sinks.ClassTransient, Status: 503, Reason: words, Answer: words},
			"throttled":    {Class: sinks.ClassThrottled, Status: 429, Reason: words, Answer: words},
			"unauthorized": {Class: sinks.ClassUnauthorized, Status: 403, Reason: words, Answer: words},
			"endpoint":     {Class: sinks.ClassEndpoint, Status: 404, Reason: words, Answer: words},
			"codes":        {Class: sinks.ClassTransient, Status: 500, Code: "pwd=" + words, Trace: "for " + words + "!"},
			"known codes":  {Class: sinks.ClassTransient, Status: 500, Reason: words, Code: "E17", Trace: "f3a-1"},
		} {
			synctest.Test(t, func(t *testing.T) {
				var log bytes.Buffer
				s := newStore(blockOf(10, row{op: cdc.OpInsert, id: 1, v: 2}))
				v := &vendor{answer: func(context.Context, []sent) ([]sinks.Outcome, error) { return nil, failed }}
				deps := testDeps(t, s, v, plainMapping)
				deps.Logger = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
				w := New(testConfig(), deps)
				stop := running(t, w)
				time.Sleep(time.Hour)
				shown := w.Status()
				stop()
				text := log.String()
				if strings.Contains(text, planted) || !strings.Contains(text, strconv.Itoa(failed.Status)) {
					t.Errorf("%s: %q gave this log:\n%s", what, words, text)
				}
				if what == "known codes" && !strings.Contains(text, "code E17") || what == "known codes" && !strings.Contains(text, "rc f3a-1") {
					t.Errorf("code and trace are not in the log:\n%s", text)
				}
				if what == "endpoint" && !strings.Contains(shown.Answer, planted) {
					t.Errorf("the status has no words: %+v", shown)
				}
			})
		}
	}
}

func TestLogsHoldNoRemarks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		s := newStore(blockOf(10, row{op: cdc.OpInsert, id: 1, v: 2}))
		v := &vendor{answer: func(context.Context, []sent) ([]sinks.Outcome, error) {
			return []sinks.Outcome{{Status: sinks.Delivered, Remark: "stored without pwd=hunter2", Trace: "t-1", Code: "of hunter2"}}, nil
		}}
		deps := testDeps(t, s, v, plainMapping)
		deps.Logger = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
		stop := running(t, New(testConfig(), deps))
		time.Sleep(time.Minute)
		stop()
		if text := log.String(); strings.Contains(text, "hunter2") || !strings.Contains(text, "rc=t-1") {
			t.Errorf("a remark gave this log:\n%s", text)
		}
	})
}

// queue is a sink that accepts items and decides on them later.
type queue struct {
	vendor
	decide func(tracking string) (sinks.Outcome, error)
	asked  map[string]int
}

func newQueue(answer time.Duration, decide func(string) (sinks.Outcome, error)) *queue {
	q := &queue{decide: decide, asked: make(map[string]int)}
	q.limits.Items = 1
	q.answer = func(_ context.Context, items []sent) ([]sinks.Outcome, error) {
		time.Sleep(answer)
		return []sinks.Outcome{{Status: sinks.Accepted, Tracking: string(rune('a' + items[0].v%26))}}, nil
	}
	return q
}

func (q *queue) Confirm(_ context.Context, tracking string) (sinks.Outcome, error) {
	q.mu.Lock()
	q.asked[tracking]++
	q.mu.Unlock()
	return q.decide(tracking)
}

func TestAcceptedItemsAreConfirmed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		q := newQueue(0, func(tracking string) (sinks.Outcome, error) {
			switch {
			case tracking == "b" && time.Since(start) > time.Minute:
				return sinks.Outcome{Status: sinks.Delivered}, nil
			case tracking == "c":
				return sinks.Outcome{Status: sinks.Rejected, Reason: "processMsg"}, nil
			}
			return sinks.Outcome{Status: sinks.Retry}, nil
		})
		s := newStore(blockOf(10, inserts(1, 3)...))
		w := New(testConfig(), testDeps(t, s, q, plainMapping))
		running(t, w)
		synctest.Wait()
		if s.settledUpTo() != 1 || len(s.tracks) != 3 || w.Status().Unconfirmed != 3 {
			t.Errorf("settled %d, tracked %v", s.settledUpTo(), s.tracks)
		}
		time.Sleep(time.Hour)
		if l := s.letter("0/A#2/rows"); l.Reason != "processMsg" || len(l.Change) == 0 || string(l.Item) == "" {
			t.Errorf("letter %+v", l)
		}
		if l := s.letter("0/A#3/rows"); !strings.Contains(l.Reason, "not confirmed within 10m0s") {
			t.Errorf("letter %+v", l)
		}
		if len(s.letters) != 2 || len(s.tracks) != 0 || w.Status().Unconfirmed != 0 {
			t.Errorf("letters %v, tracked %v", s.letters, s.tracks)
		}
		if n := q.asked["d"]; n > 60 {
			t.Errorf("asked %d times about one item in ten minutes", n)
		}
	})
}

func TestAcceptedItemsSurviveARestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		undecided := func(string) (sinks.Outcome, error) { return sinks.Outcome{Status: sinks.Retry}, nil }
		q := newQueue(100*time.Millisecond, undecided)
		var rows []row
		for n := range 40 {
			rows = append(rows, row{op: cdc.OpUpdate, id: n % 5, v: n + 1})
		}
		s := newStore(blockOf(10, rows...))
		stop := running(t, New(testConfig(), testDeps(t, s, q, plainMapping)))
		time.Sleep(950 * time.Millisecond)
		stop()
		if s.settledUpTo() != 0 || len(s.tracks) == 0 {
			t.Fatalf("settled %d, tracked %d", s.settledUpTo(), len(s.tracks))
		}
		w := New(testConfig(), testDeps(t, s, q, plainMapping))
		running(t, w)
		time.Sleep(time.Minute)
		all := vs(q.seen())
		slices.Sort(all)
		if s.settledUpTo() != 1 || w.Status().Unconfirmed != 40 {
			t.Errorf("settled %d, status %+v", s.settledUpTo(), w.Status())
		}
		if n := len(all) - len(slices.Compact(all)); n > 2 { // those that the crash cut off in flight
			t.Errorf("%d items were enqueued twice", n)
		}
	})
}

func TestRecalledPositions(t *testing.T) {
	at := func(commit cdc.LSN) cdc.Position { return cdc.Position{Commit: commit, Ordinal: 1} }
	m, key := &renderer{name: "rows"}, []byte("t\x00\x011")
	for _, c := range []struct {
		name  string
		known recalled
		pos   cdc.Position
		read  bool
		want  bool
	}{
		{"same", recalled{streamed: at(5)}, at(5), false, true},
		{"older", recalled{streamed: at(5)}, at(4), false, true},
		{"newer", recalled{streamed: at(5)}, at(6), false, false},
		{"row read", recalled{read: at(5)}, at(5), true, true},
		{"row read before the change", recalled{streamed: at(5)}, at(4), true, true},
		{"row read after the change, or before it was visible", recalled{streamed: at(5)}, at(6), true, false},
		{"change after the row", recalled{read: at(5)}, at(6), false, false},
		{"change before the row, or not visible yet", recalled{read: at(5)}, at(4), false, false},
	} {
		tr := &tracker{recalled: map[string]recalled{letterKey("rows", string(key)): c.known}}
		if got := tr.has(m, key, c.pos, c.read); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}

// An acceptance whose storing takes long keeps no lane waiting.
func TestQueueThroughput(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue(50*time.Millisecond, func(string) (sinks.Outcome, error) { return sinks.Outcome{Status: sinks.Delivered}, nil })
		s := newStore()
		for i := range 20 {
			s.append(blockOf(cdc.LSN(1000*i+10), inserts(500*i+1, 500*i+500)...))
		}
		cfg := testConfig()
		cfg.Concurrency = 8
		w := New(cfg, testDeps(t, s, q, plainMapping))
		running(t, w)
		time.Sleep(30 * time.Second)
		rate := float64(w.Status().Items.Delivered) / 30
		if rate < 0.9*160 || rate > 161 {
			t.Errorf("%.1f items/s, want 8 lanes ÷ 50 ms = 160", rate)
		}
		if n := w.Status().Unconfirmed; n > 1000 {
			t.Errorf("%d items wait for confirmation", n)
		}
	})
}
