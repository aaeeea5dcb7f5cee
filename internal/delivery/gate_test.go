package delivery

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/time/rate"

	"github.com/cdcsync/cdcsync/internal/cdc"
	"github.com/cdcsync/cdcsync/internal/sinks"
)

// slowVendor takes a time per request and counts those at once.
type slowVendor struct {
	vendor
	now, most int
	takes     func() time.Duration
	refuse    func(now int) bool
}

func newSlowVendor(takes func() time.Duration, refuse func(now int) bool) *slowVendor {
	v := &slowVendor{takes: takes, refuse: refuse}
	v.answer = func(_ context.Context, items []sent) ([]sinks.Outcome, error) {
		v.mu.Lock()
		v.now++
		v.most = max(v.most, v.now)
		refused := v.refuse(v.now)
		v.mu.Unlock()
		if !refused {
			time.Sleep(v.takes())
		}
		v.mu.Lock()
		v.now--
		v.mu.Unlock()
		if refused {
			return nil, &sinks.RequestError{Class: sinks.ClassThrottled, Status: 429}
		}
		return allDelivered(items), nil
	}
	return v
}

func backlog(s *store, blocks int) {
	for i := range blocks {
		s.append(blockOf(cdc.LSN(10*i+10), inserts(50*i+1, 50*i+50)...))
	}
}

// A vendor that takes two requests at once is asked for about two at once, without an operator setting it.
func TestConcurrencyBacksOffAndRecovers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStore()
		backlog(s, 1000)
		limit := 2
		v := newSlowVendor(func() time.Duration { return 100 * time.Millisecond }, func(now int) bool { return now > limit })
		cfg := testConfig()
		cfg.Concurrency, cfg.Batch.Items = 16, 1
		w := New(cfg, testDeps(t, s, v, plainMapping))
		running(t, w)
		time.Sleep(time.Minute)
		before := w.Status()
		if before.Concurrency > 6 {
			t.Errorf("concurrency %d for a vendor that takes 2", before.Concurrency)
		}
		time.Sleep(time.Minute)
		taken := w.Status().Items.Delivered - before.Items.Delivered
		if refused := w.Status().Items.Retried - before.Items.Retried; refused > taken/2 {
			t.Errorf("%d refused, %d taken in a minute", refused, taken)
		}
		v.mu.Lock()
		limit = 100
		v.mu.Unlock()
		time.Sleep(time.Minute)
		if n := w.Status().Concurrency; n != 16 {
			t.Errorf("concurrency %d after recovery", n)
		}
	})
}

func TestSlowAnswersLowerConcurrency(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStore()
		backlog(s, 1000)
		var takes atomic.Int64
		takes.Store(int64(100 * time.Millisecond))
		v := newSlowVendor(func() time.Duration { return time.Duration(takes.Load()) }, func(int) bool { return false })
		cfg := testConfig()
		cfg.Concurrency, cfg.Batch.Items = 16, 1
		w := New(cfg, testDeps(t, s, v, plainMapping))
		running(t, w)
		time.Sleep(10 * time.Second)
		takes.Store(int64(10 * time.Second))
		time.Sleep(2 * time.Minute)
		if n := w.Status().Concurrency; n > 8 {
			t.Errorf("concurrency %d while answers take a hundred times the usual", n)
		}
		takes.Store(int64(100 * time.Millisecond))
		time.Sleep(time.Minute)
		if n := w.Status().Concurrency; n != 16 {
			t.Errorf("concurrency %d after recovery", n)
		}
	})
}

// While the circuit is open, one request at a time tries the vendor.
func TestCircuitProbesWithOneRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStore()
		backlog(s, 10)
		v := &slowVendor{}
		v.answer = func(context.Context, []sent) ([]sinks.Outcome, error) {
			v.mu.Lock()
			v.now++
			v.most = max(v.most, v.now)
			v.mu.Unlock()
			time.Sleep(5 * time.Second)
			v.mu.Lock()
			v.now--
			v.mu.Unlock()
			return nil, errDown
		}
		cfg := testConfig()
		cfg.Concurrency = 8
		w := New(cfg, testDeps(t, s, v, plainMapping))
		running(t, w)
		time.Sleep(time.Minute)
		v.mu.Lock()
		v.most = v.now
		v.mu.Unlock()
		time.Sleep(time.Hour)
		v.mu.Lock()
		defer v.mu.Unlock()
		if v.most != 1 {
			t.Errorf("%d requests at once at a vendor that is down", v.most)
		}
	})
}

func TestRateIsSharedByTheSinksOfAnAccount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		limiter := rate.NewLimiter(5, 1)
		var vendors []*vendor
		for range 2 {
			s, v := newStore(), new(vendor)
			backlog(s, 100)
			cfg := testConfig()
			cfg.Batch.Items = 1
			deps := testDeps(t, s, v, plainMapping)
			deps.Limiter = limiter
			running(t, New(cfg, deps))
			vendors = append(vendors, v)
		}
		time.Sleep(time.Minute)
		a, b := len(vendors[0].seen()), len(vendors[1].seen())
		if a+b < 295 || a+b > 302 || a < 100 || b < 100 {
			t.Errorf("%d and %d requests in a minute at 5/s", a, b)
		}
	})
}
