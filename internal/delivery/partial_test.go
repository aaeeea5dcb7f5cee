package delivery

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/cdcsync/cdcsync/internal/cdc"
	"github.com/cdcsync/cdcsync/internal/sinks"
)

// partial is a vendor whose items tell of one part of the record each: v is 10 * part + its state.
type partial struct{ vendor }

func (*partial) Covers(newer, older []byte) bool {
	a, b := parse(sinks.Item{Body: newer}), parse(sinks.Item{Body: older})
	return a.id == b.id && a.v/10 == b.v/10
}

func updates(id int, states ...int) (rows []row) {
	for _, v := range states {
		rows = append(rows, row{op: cdc.OpUpdate, id: id, v: v})
	}
	return rows
}

func TestPartsAreNotCoalescedWithOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, v := newStore(blockOf(10, updates(1, 10, 11, 20, 12, 21, 22)...)), new(partial)
		running(t, New(oneLane(), testDeps(t, s, v, latestMapping)))
		synctest.Wait()
		if diff := cmp.Diff([]int{11, 20, 12, 22}, vs(v.seen())); diff != "" {
			t.Errorf("sent (-want +got):\n%s", diff)
		}
	})
}

func TestPartsDoNotSupersedeOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rows := append(updates(1, 10, 20), row{op: cdc.OpUpdate, id: 1, null: true}, row{op: cdc.OpUpdate, id: 2, v: 10})
		s, v := newStore(blockOf(10, rows...)), new(partial)
		v.answer = poisoned(10, 20)
		stop := running(t, New(testConfig(), testDeps(t, s, v, plainMapping)))
		synctest.Wait()
		stop()
		running(t, New(testConfig(), testDeps(t, s, v, plainMapping)))
		s.append(blockOf(20, updates(1, 11)...))
		synctest.Wait()
		states := map[string]LetterState{}
		for id, l := range s.letters {
			states[id] = l.State
		}
		want := map[string]LetterState{
			"0/A#1/rows": LetterSuperseded, // part 1 of record 1
			"0/A#2/rows": LetterOpen,       // its part 2
			"0/A#3/rows": LetterSuperseded, // the row could not be rendered: what came later of it counts
			"0/A#4/rows": LetterOpen,       // another record
		}
		if diff := cmp.Diff(want, states); diff != "" {
			t.Errorf("letters (-want +got):\n%s", diff)
		}
	})
}

func TestSharedRejectionsAreSeparated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, v := newStore(blockOf(10, append(updates(1, 10, 20, 30), updates(2, 10)...)...)), new(partial)
		v.answer = func(_ context.Context, items []sent) ([]sinks.Outcome, error) {
			outcomes := allDelivered(items)
			for i, item := range items {
				others := slices.ContainsFunc(items, func(o sent) bool { return o.id == item.id && o.v != item.v })
				if item.v == 20 || others && slices.ContainsFunc(items, func(o sent) bool { return o.id == item.id && o.v == 20 }) {
					outcomes[i] = sinks.Outcome{Status: sinks.Rejected, Reason: "no part 2", Shared: others}
				}
			}
			return outcomes, nil
		}
		w := New(oneLane(), testDeps(t, s, v, plainMapping))
		running(t, w)
		synctest.Wait()
		if diff := cmp.Diff([]int{10, 20, 30, 10, 10, 20, 30}, vs(v.seen())); diff != "" {
			t.Errorf("sent (-want +got):\n%s", diff)
		}
		if letters := s.parked(LetterOpen); !slices.Equal(letters, []int{20}) || s.settledUpTo() != 1 || w.Status().PendingBytes != 0 {
			t.Errorf("letters %v, settled %d, status %+v", letters, s.settledUpTo(), w.Status())
		}
	})
}

// A vendor may decide on a newer item of a key before an older one, which must not be sent again then.
func TestLetterOfAnOvertakenItemIsSuperseded(t *testing.T) {
	for _, restart := range []bool{false, true} {
		t.Run(fmt.Sprintf("restart=%v", restart), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				start := time.Now()
				q := newQueue(0, func(tracking string) (sinks.Outcome, error) {
					switch {
					case tracking == "c":
						return sinks.Outcome{Status: sinks.Delivered}, nil
					case time.Since(start) < time.Minute:
						return sinks.Outcome{Status: sinks.Retry}, nil
					}
					return sinks.Outcome{Status: sinks.Rejected, Reason: "failed"}, nil
				})
				s := newStore(blockOf(10, append(updates(1, 1, 2), updates(2, 3)...)...)) // b, c and d
				stop := running(t, New(testConfig(), testDeps(t, s, q, plainMapping)))
				time.Sleep(30 * time.Second)
				synctest.Wait()
				if n := tracked(s); n != 3 {
					t.Errorf("%d items are tracked: the decided one must not be forgotten before the older", n)
				}
				if restart {
					stop()
					running(t, New(testConfig(), testDeps(t, s, q, plainMapping)))
				}
				time.Sleep(time.Hour)
				synctest.Wait()
				if got := s.parked(LetterSuperseded); !slices.Equal(got, []int{1}) {
					t.Errorf("superseded %v", got)
				}
				if got := s.parked(LetterOpen); !slices.Equal(got, []int{3}) || tracked(s) != 0 {
					t.Errorf("open %v, tracked %d", got, tracked(s))
				}
			})
		})
	}
}

func tracked(s *store) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.tracks)
}

func TestConfirmationsObeyRetryAfter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue(0, func(string) (sinks.Outcome, error) {
			return sinks.Outcome{}, &sinks.RequestError{Class: sinks.ClassThrottled, Status: 429, After: 10 * time.Minute}
		})
		s := newStore(blockOf(10, updates(1, 1)...))
		w := New(testConfig(), testDeps(t, s, q, plainMapping))
		running(t, w)
		time.Sleep(9 * time.Minute)
		synctest.Wait()
		q.mu.Lock()
		defer q.mu.Unlock()
		if q.asked["b"] != 1 || w.Status().State != StateRetrying {
			t.Errorf("asked %d times, %+v", q.asked["b"], w.Status())
		}
	})
}
