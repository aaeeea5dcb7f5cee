package delivery

import (
	"context"
	"testing"
	"testing/synctest"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/cdcsync/cdcsync/internal/cdc"
	"github.com/cdcsync/cdcsync/internal/sinks"
)

// TestFailedAccounts keeps a letter for a login account beside an item that was delivered: a newer state of the record does not
// supersede it, and sending it again ends it when the account is made.
func TestFailedAccounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, v := newStore(blockOf(10, row{op: cdc.OpInsert, id: 1, v: 1})), new(vendor)
		failing := true
		v.answer = func(_ context.Context, items []sent) ([]sinks.Outcome, error) {
			outcomes := allDelivered(items)
			for i := range items {
				if failing && items[i].v == 1 {
					outcomes[i].Account = "login taken"
				}
			}
			return outcomes, nil
		}
		deps := testDeps(t, s, v, latestMapping)
		registry := prometheus.NewRegistry()
		deps.Registerer = registry
		w := New(testConfig(), deps)
		running(t, w)
		synctest.Wait()
		letter := s.letter("0/A#1/rows/account")
		if letter.Reason != "the login account was not created: login taken" || letter.State != LetterOpen || KindOf(letter.ItemID) != KindAccount {
			t.Fatalf("letter %+v", letter)
		}
		if s.settledUpTo() != 1 {
			t.Errorf("settled %d, want 1: the item was delivered", s.settledUpTo())
		}
		if n := accountLetters(t, registry); n != 1 {
			t.Errorf("counted %v account letters, want 1", n)
		}
		retry := func(id string) {
			t.Helper()
			results, err := w.RetryLetters(t.Context(), []string{id}, false)
			if err != nil || len(results) != 1 || results[0].Outcome != RetryQueued {
				t.Fatalf("retry: %+v, %v", results, err)
			}
			synctest.Wait()
		}
		retry(letter.ID)
		if got := s.letter("0/A#1/rows/account").State; got != LetterOpen {
			t.Errorf("refused again, the letter is %s, want open", got)
		}
		s.append(blockOf(20, row{op: cdc.OpUpdate, id: 1, v: 2}))
		synctest.Wait()
		if got := s.letter("0/A#1/rows/account").State; got == LetterOpen { // sent again it would take the fan back to an older state
			t.Errorf("after a newer state the letter is %s, want superseded", got)
		}
		failing = false
		results, err := w.RetryLetters(t.Context(), []string{letter.ID}, false)
		if err != nil || len(results) != 1 || results[0].Outcome != RetrySuperseded {
			t.Errorf("retry: %+v, %v, want superseded", results, err)
		}
	})
}

func accountLetters(t *testing.T, registry *prometheus.Registry) float64 {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				if f.GetName() == "cdcsync_delivery_dead_letters_total" && l.GetValue() == KindAccount {
					return m.GetCounter().GetValue()
				}
			}
		}
	}
	return 0
}
