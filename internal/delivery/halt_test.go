package delivery

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cdcsync/cdcsync/internal/cdc"
	"github.com/cdcsync/cdcsync/internal/sinks"
)

// rejecting rejects every item of some rows.
func rejecting(bad func(s sent) bool) *vendor {
	return &vendor{answer: func(_ context.Context, items []sent) ([]sinks.Outcome, error) {
		outcomes := allDelivered(items)
		for i, s := range items {
			if bad(s) {
				outcomes[i] = sinks.Outcome{Status: sinks.Rejected, Reason: "number 987654321 is not allowed", Code: "E1"}
			}
		}
		return outcomes, nil
	}}
}

func TestOneRowRefusedOftenHaltsNothing(t *testing.T) {
	for name, mappings := range map[string]string{"plain": plainMapping, "latest": latestMapping} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newStore()
				const states = 1100
				for i := range states {
					s.append(blockOf(cdc.LSN(10*i+10), row{op: cdc.OpUpdate, id: 1, v: i + 1}, row{op: cdc.OpUpdate, id: 2, v: i + 1}))
				}
				cfg := testConfig()
				cfg.DeadLetters = 3
				w := New(cfg, testDeps(t, s, rejecting(func(s sent) bool { return s.id == 1 }), mappings))
				running(t, w)
				time.Sleep(time.Minute)
				if state := w.Status().State; state != StateRunning || s.settledUpTo() != states {
					t.Fatalf("%s at block %d", state, s.settledUpTo())
				}
				if open := s.parked(LetterOpen); len(open) != 1 || open[0] != states {
					t.Errorf("open are the letters of states %v", open)
				}
			})
		})
	}
}

// A restart allows no more keys, even one before the limit is reached, and the reason names the causes without values.
func TestLimitOfDeadLettersOutlivesRestarts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStore()
		add := func(i int) {
			bad := row{op: cdc.OpInsert, id: i + 1, v: 1}
			if i%5 == 0 {
				bad = row{op: cdc.OpInsert, id: i + 1, null: true}
			}
			s.append(blockOf(cdc.LSN(10*i+10), bad))
		}
		for i := range 15 { // fewer than the limit
			add(i)
		}
		cfg := testConfig()
		cfg.DeadLetters = 20
		cfg.Concurrency = 1
		v := rejecting(func(sent) bool { return true })
		stop := running(t, New(cfg, testDeps(t, s, v, plainMapping)))
		time.Sleep(time.Minute)
		stop()
		for i := 15; i < 50; i++ {
			add(i)
		}
		for range 4 {
			w := New(cfg, testDeps(t, s, v, plainMapping))
			stop := running(t, w)
			time.Sleep(time.Minute)
			status := w.Status()
			if n := len(s.parked(LetterOpen)); status.State != StateHalted || n != 20 {
				t.Errorf("%s with %d letters", status.State, n)
			}
			for _, cause := range []string{" × mapping rows: code E1 number … is not allowed", " × mapping rows: item.v: column v is null"} {
				if !strings.Contains(status.Reason, cause) {
					t.Errorf("halted: %s, and not %q", status.Reason, cause)
				}
			}
			stop()
		}
		w := New(cfg, testDeps(t, s, v, plainMapping))
		running(t, w)
		time.Sleep(time.Second)
		if err := w.Resume(t.Context()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if n := len(s.parked(LetterOpen)); n != 40 {
			t.Errorf("%d letters after resume", n)
		}
	})
}

func TestCauseKeepsOurWords(t *testing.T) {
	for _, c := range []struct {
		reason, want string
		attempts     int
	}{
		{`mapping users: item.data.email: column "email@home" is 12345678 bytes`, `mapping users: item.data.email: column "email@home" is 12345678 bytes`, 0},
		{"e-mail a@b.example is taken", "mapping users: status 400 e-mail … is taken", 1},
		{strings.Repeat("long ", 100), "mapping users: status 400 " + strings.Repeat("long ", 40), 1},
	} {
		status := 400
		if c.attempts == 0 {
			status = 0
		}
		if got := Cause("users", c.reason, "", status, c.attempts); got != c.want {
			t.Errorf("got %s, want %s", got, c.want)
		}
	}
}
