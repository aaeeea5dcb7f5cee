package backoff_test

import (
	"context"
	"errors"
	"math"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/cdcsync/cdcsync/internal/backoff"
)

// An outage may be of any length, and the configuration's times too.
func TestDelayIsWithinItsRangeForEveryOutage(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		r := backoff.Range{
			Min: time.Duration(rapid.Int64Range(0, math.MaxInt64).Draw(t, "min")),
			Max: time.Duration(rapid.Int64Range(0, math.MaxInt64).Draw(t, "max")),
		}
		n := rapid.OneOf(rapid.IntRange(0, 100), rapid.IntRange(0, math.MaxInt)).Draw(t, "n")
		if d := r.Delay(n); d < r.Min || d > max(r.Min, r.Max, 1) {
			t.Fatalf("delay %s after %d failures, want one in %s to %s", d, n, r.Min, r.Max)
		}
	})
}

func TestAttemptsAreSpacedThroughALongOutage(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		for _, least := range []time.Duration{0, 1, time.Millisecond, 9 * time.Second, time.Hour} {
			attempts := backoff.Attempts{Range: backoff.Range{Min: least, Max: least}}
			for range 200 {
				before := time.Now()
				if err := attempts.Wait(t.Context()); err != nil {
					t.Fatal(err)
				}
				if waited := time.Since(before); waited < least || waited > max(least, 1) {
					t.Fatalf("waited %s, want %s", waited, least)
				}
			}
		}
	})
}

func TestTheBoundDoubles(t *testing.T) {
	t.Parallel()
	r := backoff.Range{Min: 100 * time.Millisecond, Max: time.Hour}
	var longest time.Duration
	for range 1000 {
		longest = max(longest, r.Delay(3))
	}
	if longest > 800*time.Millisecond || longest < 400*time.Millisecond {
		t.Errorf("longest wait after 3 failures %s, want up to 800ms", longest)
	}
}

func TestSleepEndsWithItsContext(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, d := range []time.Duration{time.Hour, 0, -1} {
		if err := backoff.Sleep(ctx, d); !errors.Is(err, context.Canceled) {
			t.Errorf("sleep %s: got %v, want the context's error", d, err)
		}
	}
}
