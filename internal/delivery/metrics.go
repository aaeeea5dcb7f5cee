package delivery

import (
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/cdcsync/cdcsync/internal/cdc"
)

// outcome is what became of an item.
type outcome uint8

const (
	outcomeDelivered outcome = iota
	outcomeRejected          // became a dead letter
	outcomeCoalesced         // a newer state of the same key was sent instead
	outcomeFiltered          // no item: on or when left it out, or there was nothing to tell
	outcomeLeft              // no item: the row has left when, and its record stays at the vendor
	outcomeGone              // the row to read back is not there any more: a later change says so
	outcomeHeld              // not rendered: the mapping does not fit the table, and a gap says so
	outcomeRetried           // sent and to be sent again; it is not the last outcome of the item
	outcomes
)

var outcomeNames = [outcomes]string{"delivered", "rejected", "coalesced", "filtered", "left", "gone", "held", "retried"}

const ops = int(cdc.OpRead) + 1

type metrics struct {
	items           *prometheus.CounterVec
	inFlight        prometheus.Gauge
	window          prometheus.Gauge
	states          *prometheus.GaugeVec
	confirmFailures prometheus.Counter
	letters         *prometheus.CounterVec
	givenUp         prometheus.Counter
	registerer      prometheus.Registerer
}

// newMetrics registers a worker's metrics, which all have its sink as a label.
func newMetrics(sink string, reg prometheus.Registerer) *metrics {
	if reg == nil {
		reg = prometheus.NewRegistry()
	}
	reg = prometheus.WrapRegistererWith(prometheus.Labels{"sink": sink}, reg)
	m := &metrics{
		items: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "cdcsync_delivery_items_total",
			Help: "Items by what became of them; retried counts sendings that had to be repeated.",
		}, []string{"table", "op", "outcome"}),
		inFlight: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "cdcsync_delivery_in_flight_requests", Help: "Requests under way.",
		}),
		window: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "cdcsync_delivery_concurrency", Help: "Requests that may be under way: the configured concurrency, less while the vendor is slow or throttles.",
		}),
		states: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "cdcsync_delivery_state", Help: "1 for the state that the sink is in.",
		}, []string{"state"}),
		confirmFailures: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "cdcsync_delivery_unconfirmed_total", Help: "Accepted items that the vendor then decided against, or did not decide on in time.",
		}),
		letters: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "cdcsync_delivery_dead_letters_total", Help: "Dead letters parked, by kind: item, or account for a login account that was not created beside an item that was delivered.",
		}, []string{"kind"}),
		givenUp: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "cdcsync_delivery_given_up_total", Help: "Held items that became dead letters after retry.give_up.",
		}),
		registerer: reg,
	}
	for _, kind := range []string{KindItem, KindAccount} { // so that both can be alerted on before there is one
		m.letters.WithLabelValues(kind)
	}
	reg.MustRegister(m.items, m.inFlight, m.window, m.states, m.confirmFailures, m.letters, m.givenUp)
	return m
}

// observe registers what is read off the worker when it is asked for.
func (m *metrics) observe(w *Worker) {
	gauge := func(name, help string, value func(Status) float64) {
		m.registerer.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, func() float64 {
			return value(w.Status())
		}))
	}
	gauge("cdcsync_delivery_lag_seconds", "Age of the oldest change that is not settled; 0 when none is.",
		func(s Status) float64 { return s.Lag.Seconds() })
	gauge("cdcsync_delivery_delivered_lsn", "Position up to which every change is settled.",
		func(s Status) float64 { return float64(s.Delivered) })
	gauge("cdcsync_delivery_pending_bytes", "Bytes of blocks and items that are not settled.",
		func(s Status) float64 { return float64(s.PendingBytes) })
	gauge("cdcsync_delivery_pending_blocks", "Blocks that are not settled.",
		func(s Status) float64 { return float64(s.PendingBlocks) })
	gauge("cdcsync_delivery_held", "Items that wait because one of their key fails while the vendor takes others, that one included.",
		func(s Status) float64 { return float64(s.HeldItems) })
	gauge("cdcsync_delivery_batch_items", "Items that a request may have: batch.items, less while the vendor does not answer so many in time.",
		func(s Status) float64 { return float64(s.BatchItems) })
	gauge("cdcsync_delivery_unconfirmed", "Accepted items that wait for the vendor's decision.",
		func(s Status) float64 { return float64(s.Unconfirmed) })
}

func (m *metrics) setState(state State) {
	for _, s := range []State{StateRunning, StateRetrying, StateBlocked, StateHalted, StatePaused, StateFailed} {
		value := 0.0
		if s == state {
			value = 1
		}
		m.states.WithLabelValues(string(s)).Set(value)
	}
}

// itemCounters are the counters of one table, made when they are first needed, so that no label is looked up per item.
type itemCounters struct {
	items *prometheus.CounterVec
	table string
	known [ops][outcomes]atomic.Pointer[prometheus.Counter]
}

func (c *itemCounters) of(op cdc.Op, o outcome) prometheus.Counter {
	if known := c.known[op][o].Load(); known != nil {
		return *known
	}
	counter := c.items.WithLabelValues(c.table, op.String(), outcomeNames[o])
	c.known[op][o].Store(&counter)
	return counter
}

// countItems counts items of one batch, a run of equal ones at once.
func (w *Worker) countItems(b *batch, items []int32, o outcome) {
	for from := 0; from < len(items); {
		first, to := &b.items[items[from]], from+1
		for to < len(items) && b.items[items[to]].mapping == first.mapping && b.items[items[to]].op == first.op {
			to++
		}
		w.count(first.mapping, first.op, o, to-from)
		from = to
	}
}

func (w *Worker) count(r *renderer, op cdc.Op, o outcome, n int) {
	if n > 0 {
		r.counters.of(op, o).Add(float64(n))
		w.counts[o].Add(uint64(n))
	}
}

// since is the age of t; 0 for the zero time.
func since(t time.Time) time.Duration {
	if t.IsZero() {
		return 0
	}
	return max(0, time.Since(t))
}
