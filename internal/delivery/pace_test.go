package delivery

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cdcsync/cdcsync/internal/sinks"
)

// queueVendor accepts everything, and is asked about it.
type queueVendor struct {
	vendor
	asked  []time.Time
	decide func(tracking string, n int) (sinks.Outcome, error) // n counts the questions about it from 1
	count  map[string]int
	asking sync.Mutex
}

func newQueueVendor(decide func(tracking string, n int) (sinks.Outcome, error)) *queueVendor {
	v := &queueVendor{decide: decide, count: map[string]int{}}
	v.limits.Items = 1
	v.answer = func(_ context.Context, items []sent) ([]sinks.Outcome, error) {
		return []sinks.Outcome{{Status: sinks.Accepted, Tracking: fmt.Sprint(items[0].v)}}, nil
	}
	return v
}

func (v *queueVendor) Confirm(_ context.Context, tracking string) (sinks.Outcome, error) {
	v.asking.Lock()
	v.asked = append(v.asked, time.Now())
	v.count[tracking]++
	n, decide := v.count[tracking], v.decide
	v.asking.Unlock()
	time.Sleep(20 * time.Millisecond)
	return decide(tracking, n)
}

// since counts the questions from a time on.
func (v *queueVendor) since(at time.Time) (n int) {
	v.asking.Lock()
	defer v.asking.Unlock()
	for _, t := range v.asked {
		if !t.Before(at) {
			n++
		}
	}
	return n
}

func (v *queueVendor) decideAs(decide func(tracking string, n int) (sinks.Outcome, error)) {
	v.asking.Lock()
	defer v.asking.Unlock()
	v.decide = decide
}

func yes(string, int) (sinks.Outcome, error) { return sinks.Outcome{Status: sinks.Delivered}, nil }

func pending(string, int) (sinks.Outcome, error) {
	return sinks.Outcome{Status: sinks.Retry, Reason: "the queue says pending"}, nil
}

func refusing(e sinks.RequestError) func(string, int) (sinks.Outcome, error) {
	return func(string, int) (sinks.Outcome, error) { return sinks.Outcome{}, &e }
}

// All questions of a sink have one pace: what the vendor says to one, all heed, and its deliveries too.
func TestQuestionsHaveOnePace(t *testing.T) {
	for name, test := range map[string]struct {
		failed sinks.RequestError
		most   int // questions in the first half minute
	}{
		"429 with a time":    {sinks.RequestError{Class: sinks.ClassThrottled, Status: 429, After: 30 * time.Second}, 16},
		"429":                {sinks.RequestError{Class: sinks.ClassThrottled, Status: 429}, 16 + 15},
		"503":                {sinks.RequestError{Class: sinks.ClassTransient, Status: 503}, 16 + 15},
		"500":                {sinks.RequestError{Class: sinks.ClassTransient, Status: 500}, 16 + 15},
		"no answer":          {sinks.RequestError{Class: sinks.ClassTransient}, 16 + 15},
		"401":                {sinks.RequestError{Class: sinks.ClassUnauthorized, Status: 401}, 16 + 15},
		"not the endpoint's": {sinks.RequestError{Class: sinks.ClassEndpoint, Status: 404}, 16 + 15},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newStore(blockOf(10, inserts(1, 300)...))
				v := newQueueVendor(refusing(test.failed))
				cfg := testConfig()
				cfg.Concurrency, cfg.ConfirmTimeout = 8, time.Minute
				w := New(cfg, testDeps(t, s, v, plainMapping))
				running(t, w)
				time.Sleep(30 * time.Second)
				if n := v.since(time.Time{}); n > test.most {
					t.Errorf("%d questions in half a minute", n)
				}
				if st := w.Status(); st.Unconfirmed != 300 || st.State != StateRetrying && st.State != StateBlocked {
					t.Errorf("%+v", st)
				}
				if test.failed.After > 0 { // deliveries heed it
					before := len(v.seen())
					s.append(blockOf(20, inserts(1000, 1000)...))
					time.Sleep(10 * time.Millisecond)
					if len(v.seen()) > before && time.Since(v.asked[0]) < test.failed.After {
						t.Error("delivered in spite of Retry-After")
					}
				}
				time.Sleep(2 * time.Hour) // its outage does not count against the items
				hour := v.since(time.Now().Add(-time.Hour))
				if hour < 50 || hour > 150 {
					t.Errorf("%d questions in an hour", hour)
				}
				v.decideAs(yes)
				time.Sleep(2 * time.Minute)
				if st := w.Status(); st.Unconfirmed != 0 || len(s.parked(LetterOpen)) > 0 || st.State != StateRunning {
					t.Errorf("after it: %+v, %d letters", st, len(s.parked(LetterOpen)))
				}
			})
		})
	}
}

// confirm_timeout counts the time in which the vendor could be asked: neither its outage nor our own.
func TestConfirmTimeoutCountsTimeThatCounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStore(blockOf(10, inserts(1, 5)...))
		v := newQueueVendor(pending)
		cfg := testConfig()
		cfg.ConfirmTimeout = 10 * time.Minute
		stop := running(t, New(cfg, testDeps(t, s, v, plainMapping)))
		time.Sleep(5 * time.Minute)
		v.decideAs(refusing(sinks.RequestError{Class: sinks.ClassTransient, Status: 502}))
		time.Sleep(time.Hour)
		v.decideAs(pending)
		time.Sleep(3 * time.Minute)
		if n := len(s.parked(LetterOpen)); n > 0 {
			t.Fatalf("%d letters: the vendor's outage counts", n)
		}
		stop()
		time.Sleep(24 * time.Hour)
		w := New(cfg, testDeps(t, s, v, plainMapping))
		running(t, w)
		time.Sleep(5 * time.Minute)
		if n := len(s.parked(LetterOpen)); n > 0 {
			t.Fatalf("%d letters: our own downtime counts", n)
		}
		time.Sleep(10 * time.Minute)
		if n := len(s.parked(LetterOpen)); n != 5 {
			t.Errorf("%d letters after the time is over", n)
		}
	})
}

// An item about which no question is answered, while those about others are, has only itself to blame.
func TestPoisonedQuestionIsGivenUp(t *testing.T) {
	for name, failed := range map[string]sinks.RequestError{
		"500":           {Class: sinks.ClassTransient, Status: 500},
		"404 of a page": {Class: sinks.ClassEndpoint, Status: 404},
		"reset":         {Class: sinks.ClassTransient},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newStore(blockOf(10, inserts(1, 20)...))
				v := newQueueVendor(nil)
				v.decide = func(tracking string, n int) (sinks.Outcome, error) {
					switch {
					case tracking == "7":
						return refusing(failed)(tracking, n)
					case n < 5:
						return pending(tracking, n)
					}
					return yes(tracking, n)
				}
				cfg := testConfig()
				cfg.ConfirmTimeout = 10 * time.Minute
				w := New(cfg, testDeps(t, s, v, plainMapping))
				running(t, w)
				time.Sleep(time.Hour)
				if st := w.Status(); st.Unconfirmed != 0 || len(s.parked(LetterOpen)) != 1 || s.parked(LetterOpen)[0] != 7 || st.State != StateRunning {
					t.Errorf("%v, %+v", s.parked(LetterOpen), st)
				}
			})
		})
	}
}

// An accepted item that was held before settles its block.
func TestHeldItemIsAccepted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStore(blockOf(10, inserts(1, 20)...))
		v := newQueueVendor(yes)
		accept := v.answer
		v.change(failsOn(&sinks.RequestError{Class: sinks.ClassEndpoint, Status: 201, Uncertain: true}, 1, 2, 3, 4, 5))
		w := New(testConfig(), testDeps(t, s, v, plainMapping))
		running(t, w)
		time.Sleep(time.Minute)
		v.change(accept)
		time.Sleep(2 * time.Hour)
		if st := w.Status(); s.settledUpTo() != 1 || st.HeldItems != 0 || st.Unconfirmed != 0 {
			t.Errorf("settled %d, %+v", s.settledUpTo(), st)
		}
	})
}
