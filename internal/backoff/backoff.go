// Package backoff spaces attempts: how long to wait before the next one, and a wait that ends with the work.
package backoff

import (
	"context"
	"math"
	"math/rand/v2"
	"time"
)

// Range is exponential with full jitter: each wait is a random time between Min and a bound that doubles up to Max.
type Range struct{ Min, Max time.Duration }

// Delay is the wait after the n-th failure in a row, n from 1 on. It is defined for every Range and every n.
func (r Range) Delay(n int) time.Duration {
	least := max(r.Min, 0)
	return least + rand.N(min(r.bound(n)-least, math.MaxInt64-1)+1)
}

// bound doubles step by step: a shift by the number of failures overflows, after hours, where Min is long.
func (r Range) bound(n int) time.Duration {
	bound, most := max(r.Min, 1), max(r.Min, r.Max, 1)
	for ; n > 0 && bound < most; n-- {
		if bound > most/2 {
			return most
		}
		bound *= 2
	}
	return bound
}

// Attempts counts failures in a row. The zero number of them is ready.
type Attempts struct {
	Range
	failed int
}

// Next is the wait after one more failure.
func (a *Attempts) Next() time.Duration {
	a.failed = min(a.failed, math.MaxInt-1) + 1
	return a.Delay(a.failed)
}

// Reset is called after a success.
func (a *Attempts) Reset() { a.failed = 0 }

// Wait sleeps for Next.
func (a *Attempts) Wait(ctx context.Context) error { return Sleep(ctx, a.Next()) }

// Sleep waits for d or until ctx ends, and then returns its error.
func Sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
