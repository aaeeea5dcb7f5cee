package delivery

import (
	"context"
	"errors"
	"iter"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/cdcsync/cdcsync/internal/backoff"
	"github.com/cdcsync/cdcsync/internal/cdc"
	"github.com/cdcsync/cdcsync/internal/mapping"
	"github.com/cdcsync/cdcsync/internal/pulse"
	"github.com/cdcsync/cdcsync/internal/sinks"
)

// bomb panics at one of the places where a worker calls out.
type bomb struct {
	*store
	*vendor
	*cursor
	at string
}

func (b *bomb) here(place string) {
	if b.at == place {
		panic("boom at " + place)
	}
}

func (b *bomb) Next(ctx context.Context) (Block, error) {
	b.here("read")
	return b.cursor.Next(ctx)
}

func (b *bomb) Settle(seq uint64, resume cdc.LSN) {
	b.here("settle")
	b.cursor.Settle(seq, resume)
}

func (b *bomb) Park(ctx context.Context, letters []Letter) error {
	b.here("park")
	return b.store.Park(ctx, letters)
}

func (b *bomb) Track(ctx context.Context, items []Tracked) error {
	b.here("track")
	return b.store.Track(ctx, items)
}

func (b *bomb) Tracked(ctx context.Context) iter.Seq2[Tracked, error] {
	b.here("recall")
	return b.store.Tracked(ctx)
}

func (b *bomb) Deliver(ctx context.Context, items []sinks.Item, key string) ([]sinks.Outcome, error) {
	b.here("deliver")
	return b.vendor.Deliver(ctx, items, key)
}

func (b *bomb) Confirm(context.Context, string) (sinks.Outcome, error) {
	b.here("confirm")
	return sinks.Outcome{Status: sinks.Delivered}, nil
}

func (b *bomb) Limits() sinks.Limits { return b.limits }

func TestAPanicFailsItsSinkAtOnce(t *testing.T) {
	for _, place := range []string{"read", "settle", "park", "track", "recall", "deliver", "confirm", "look up"} {
		t.Run(place, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newStore(blockOf(100, row{op: cdc.OpInsert, id: 1, v: 1}, row{op: cdc.OpInsert, id: 2, v: 2}, row{op: cdc.OpInsert, id: 3, null: true}))
				b := &bomb{store: s, vendor: &vendor{}, cursor: s.cursor(), at: place}
				if place == "track" || place == "confirm" {
					b.answer = func(_ context.Context, items []sent) ([]sinks.Outcome, error) {
						outcomes := allDelivered(items)
						for i := range outcomes {
							outcomes[i] = sinks.Outcome{Status: sinks.Accepted, Tracking: "t"}
						}
						return outcomes, nil
					}
				}
				var log strings.Builder
				reg := prometheus.NewRegistry()
				deps := testDeps(t, s, b, plainMapping)
				deps.Blocks, deps.Letters, deps.Tracks, deps.Registerer = b, b, b, reg
				deps.Logger = slog.New(slog.NewTextHandler(&log, nil))
				deps.Pulse = pulse.NewBoard(deps.Logger, nil)
				if place == "look up" {
					deps.Source = sourceBomb{}
					deps.Mappings = templates(t, lookupMapping)
				}
				w := New(testConfig(), deps)
				err := w.Run(t.Context()) // ends by itself, within the time that synctest has for it
				if _, ok := errors.AsType[*pulse.PanicError](err); !ok {
					t.Fatalf("Run: got %v, want a PanicError", err)
				}
				status := w.Status()
				if status.State != StateFailed || !strings.Contains(status.Reason, "boom at "+place) || !status.NextAttempt.IsZero() {
					t.Errorf("state %s because %q, next %s", status.State, status.Reason, status.NextAttempt)
				}
				for _, want := range []string{"msg=panic", "bomb).here", `msg="sink has failed`} {
					if place != "look up" && !strings.Contains(log.String(), want) {
						t.Errorf("log without %q:\n%s", want, log.String())
					}
				}
				if troubles := deps.Pulse.Troubles(time.Now()); len(troubles) == 0 || !strings.Contains(troubles[0], "sink vendor, ") {
					t.Errorf("troubles %q", troubles)
				}
				if err := testutil.GatherAndCompare(reg, strings.NewReader(failedMetric), "cdcsync_delivery_state"); err != nil {
					t.Error(err)
				}
				if err := w.Drain(t.Context()); err != nil {
					t.Errorf("drain: %v", err)
				}
			})
		})
	}
}

type sourceBomb struct{ Source }

func (sourceBomb) Lookup(context.Context, string, []string, []uint32) (map[string]mapping.Rows, error) {
	panic("boom at look up")
}

const failedMetric = `
# HELP cdcsync_delivery_state 1 for the state that the sink is in.
# TYPE cdcsync_delivery_state gauge
cdcsync_delivery_state{sink="vendor",state="blocked"} 0
cdcsync_delivery_state{sink="vendor",state="failed"} 1
cdcsync_delivery_state{sink="vendor",state="halted"} 0
cdcsync_delivery_state{sink="vendor",state="paused"} 0
cdcsync_delivery_state{sink="vendor",state="retrying"} 0
cdcsync_delivery_state{sink="vendor",state="running"} 0
`

// A lane may also end with an error.
func TestAnEndThatNobodyAskedForFailsTheSink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStore(blockOf(100, row{op: cdc.OpInsert, id: 1, v: 1}))
		v := &vendor{answer: func(_ context.Context, items []sent) ([]sinks.Outcome, error) {
			return make([]sinks.Outcome, len(items)), nil
		}}
		w := New(testConfig(), testDeps(t, s, v, plainMapping))
		if err := w.Run(t.Context()); err == nil || w.Status().State != StateFailed {
			t.Errorf("Run: %v, state %s", err, w.Status().State)
		}
	})
}

// The back-off of a retry that is long from the first goes on for as long as the outage.
func TestALongOutageWithALongRetry(t *testing.T) {
	for _, r := range []backoff.Range{{Min: 9 * time.Second, Max: 9 * time.Second}, {Min: time.Hour, Max: time.Hour}} {
		synctest.Test(t, func(t *testing.T) {
			s := newStore(blockOf(100, row{op: cdc.OpInsert, id: 1, v: 1}))
			v := &vendor{answer: func(context.Context, []sent) ([]sinks.Outcome, error) { return nil, errDown }}
			cfg := testConfig()
			cfg.Retry = r
			w := New(cfg, testDeps(t, s, v, plainMapping))
			stop := running(t, w)
			time.Sleep(max(70*r.Max, time.Second))
			synctest.Wait()
			if state := w.Status().State; state != StateRetrying {
				t.Errorf("%+v: state %s after %d requests", r, state, len(v.seen()))
			}
			v.change(nil)
			time.Sleep(2*r.Max + time.Second)
			synctest.Wait()
			if s.settledUpTo() != 1 {
				t.Errorf("%+v: not delivered when the vendor was back, after %d requests", r, len(v.seen()))
			}
			stop()
		})
	}
}
