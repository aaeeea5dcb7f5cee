package delivery

import (
	"maps"
	"slices"
	"sync/atomic"
	"time"

	"github.com/cdcsync/cdcsync/internal/cdc"
)

// State is what a worker does.
type State string

// The states.
const (
	StateRunning  State = "running"
	StateRetrying State = "retrying" // the vendor does not take requests now
	StateBlocked  State = "blocked"  // an operator probably has to act; it is tried again now and then
	StateHalted   State = "halted"   // too many dead letters: mend, then Resume
	StatePaused   State = "paused"   // by Pause
	StateFailed   State = "failed"   // the delivery has ended by a defect: a restart may go on
)

// Status is a worker at one moment.
type Status struct {
	Sink, Type  string
	State       State
	Reason      string    // why it does not run; without values of rows
	Since       time.Time // of the state
	Answer      string    // how the vendor's answer behind Reason begins, which may quote a row: for operators, not for logs
	NextAttempt time.Time // zero when nothing waits for a time

	Delivered   cdc.LSN       // every transaction that ended up to here is settled; 0 before the first block since the start
	DeliveredAt time.Time     // commit time of the newest settled transaction
	Lag         time.Duration // age of the oldest transaction that is not settled; 0 when none is

	InFlight      int        // requests under way
	Concurrency   int        // requests that may be
	BatchItems    int        // items that a request may have now; 0 when only its bytes are limited
	BatchLimit    int        // items that it may have at most; 0 when only its bytes are limited
	HeldItems     int        // items set aside, those that wait behind others included
	Held          []HeldItem // those that are tried, the first ten of each lane
	Failures      int        // requests in a row without an answer
	PendingBytes  int64
	PendingBlocks int
	Unconfirmed   int // accepted items that wait for the vendor's decision
	OpenLetters   int // since the start; as Letters.Open said then, and what came to it
	Items         Items
}

// Items counts what became of items since the start.
type Items struct {
	Delivered, Rejected, Coalesced, Filtered, Gone, Retried uint64
	Held                                                    uint64 // changes of a table that a mapping does not fit: a gap lists them
}

// counts are Items as they grow.
type counts [outcomes]atomic.Uint64

// Status is the worker as it is now. It does not block.
func (w *Worker) Status() Status {
	s := Status{Sink: w.cfg.Sink, Type: w.cfg.Type, OpenLetters: int(w.letters.count.Load()), PendingBytes: w.memory.used.Load()}
	w.gate.status(&s)
	last, oldest, open := w.ledger.position()
	s.Delivered, s.DeliveredAt, s.Lag, s.PendingBlocks = last.resume, last.commit, since(oldest), open
	if w.tracker != nil {
		s.Unconfirmed = w.tracker.waiting()
	}
	s.Items = Items{
		Delivered: w.counts[outcomeDelivered].Load(), Rejected: w.counts[outcomeRejected].Load(),
		Coalesced: w.counts[outcomeCoalesced].Load(), Filtered: w.counts[outcomeFiltered].Load(),
		Gone: w.counts[outcomeGone].Load(), Held: w.counts[outcomeHeld].Load(), Retried: w.counts[outcomeRetried].Load(),
	}
	return s
}

func (g *gate) status(s *Status) {
	g.mu.Lock()
	defer g.mu.Unlock()
	s.State, s.Reason, s.Answer, s.Since, s.NextAttempt = g.state, g.reason, g.answer, g.since, g.next()
	s.InFlight, s.Concurrency, s.Failures = g.inFlight, int(g.window), g.consecutive
	s.BatchLimit = g.limit
	if s.BatchItems = g.size.fits(); s.BatchItems == 0 {
		s.BatchItems = g.limit
	}
	for _, lane := range slices.Sorted(maps.Keys(g.held)) {
		s.HeldItems += g.held[lane].items
		s.Held = append(s.Held, g.held[lane].shown...)
	}
}
