// Package delivery carries stored changes to one sink: in order per key, at least once, for as long as it takes.
//
// A Worker reads blocks, has the mappings render their changes into batches, and hands those to lanes. A lane is a goroutine
// with one request in flight; all items of a key go through one lane. A block is settled, and never sent again, when each
// of its items is delivered, coalesced, filtered or stored as a dead letter.
package delivery

import (
	"context"
	"errors"
	"log/slog"
	"math"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/sourcegraph/conc/pool"
	"golang.org/x/time/rate"

	"github.com/cdcsync/cdcsync/internal/backoff"
	"github.com/cdcsync/cdcsync/internal/cdc"
	"github.com/cdcsync/cdcsync/internal/mapping"
	"github.com/cdcsync/cdcsync/internal/pulse"
	"github.com/cdcsync/cdcsync/internal/sinks"
)

// Config of a Worker.
type Config struct {
	Sink string // its name
	Type string // its type, for status

	Batch       Batch
	Concurrency int           // lanes: requests in flight at most
	Retry       backoff.Range // zero means 500 ms to 1 m
	// MaxWait bounds for how long the vendor's Retry-After is heeded; 0 means any time.
	MaxWait time.Duration
	// GiveUp is how long an item may fail while the vendor takes others before it becomes a dead letter; 0 means 1 h.
	GiveUp time.Duration
	// Timeout is the sink's own for one request, which the items of a request are adapted to; 0 when it is not known.
	Timeout time.Duration
	// DeadLetters is of how many keys letters may be parked since the last Resume, over restarts; the next one halts the sink. 0: any number.
	DeadLetters int

	// BlockedProbe is the time between attempts while the vendor refuses the credentials; 0 means 30 s.
	BlockedProbe time.Duration
	// ConfirmTimeout bounds how long an accepted item may stay unconfirmed; 0 means 10 m.
	ConfirmTimeout time.Duration
	// ConfirmRate is how many confirmations may be asked for per second; 0 means 250, a margin over 8 lanes of 50 ms requests.
	ConfirmRate float64
	// MaxItem is how many bytes a rendered item may have; 0 for any.
	MaxItem int
	// Memory bounds the bytes of blocks and rendered items that are not settled, but for one item; 0 means 8 MiB.
	Memory int64
	// Patience is how long one request, question or write may take before the worker counts as hung; 0 means 1 m.
	Patience time.Duration
}

// Batch limits one request.
type Batch struct {
	Items int           // at most; 0 leaves it to the vendor's limit
	Bytes int           // of the request's body; an item that is larger goes alone. 0 means 1 MiB
	Wait  time.Duration // an idle lane waits so long for more items before it sends a batch that is not full
}

// Deps are what a Worker works with.
type Deps struct {
	Blocks   Blocks
	Letters  Letters
	Gaps     Gaps // of changes that a mapping was held for
	Pauses   Pauses
	Tracks   Tracks // required when Sink is a Confirmer
	Source   Source // may be nil when no mapping has lookups or refreshes: rows with unsent TOASTed values are then rejected
	Sink     Sink
	Mappings []*mapping.Template // of this sink, linked; their order is that of a change's items
	// Limiter bounds requests; workers of one account share it. nil means no bound.
	Limiter *rate.Limiter
	// Account is what the workers of one account share besides; nil means that this is the only one.
	Account    *Account
	Logger     *slog.Logger
	Registerer prometheus.Registerer // nil: metrics are not registered
	Pulse      *pulse.Board          // nil: nobody looks
}

// Blocks is the sink's end of the buffer.
type Blocks interface {
	// Next waits for the next block after the one that it gave last, at first after the sink's cursor. The data must not change
	// afterwards; it is only read. One goroutine calls it.
	Next(ctx context.Context) (Block, error)
	// Settle says that every block up to seq is settled, and that the slot may move to resume as far as this sink goes. It
	// does not block; seq never goes back. It is called by one goroutine at a time.
	Settle(seq uint64, resume cdc.LSN)
	// Keep stores durably what is settled of blocks that Settle has not been told of, in place of what it stored before.
	Keep(ctx context.Context, settled []byte) error
	// Kept is what Keep stored last; nil when nothing was.
	Kept(ctx context.Context) ([]byte, error)
}

// Block is a stored block.
type Block struct {
	Seq    uint64
	Data   []byte
	Stored time.Time
}

// Sink makes requests. It is one of sinks.*; it may be a Partial or a Confirmer, too.
type Sink interface {
	Limits() sinks.Limits
	// Deliver sends the items in one request and returns one outcome per item, in order; an error (a *sinks.RequestError or
	// ctx's) means that nothing is known about any of them. Safe for concurrent use. It bounds its own time. Nobody writes to the outcomes.
	Deliver(ctx context.Context, items []sinks.Item, idempotencyKey string) ([]sinks.Outcome, error)
}

// Partial is a Sink whose item may tell a part of its record's state only: a newer item of a key does not always make an older
// one needless.
type Partial interface {
	// Covers says whether newer tells all that older tells.
	Covers(newer, older []byte) bool
}

// Confirmer is a Sink that answers Accepted.
type Confirmer interface {
	// Confirm asks what became of an accepted item. A Retry outcome means: not decided yet. Safe for concurrent use.
	Confirm(ctx context.Context, tracking string) (sinks.Outcome, error)
}

// Pauses remembers over restarts that the sink is paused.
type Pauses interface {
	Paused(ctx context.Context) (Pause, error)
	// SetPaused returns when the pause is stored durably, and with PauseNone the time.
	SetPaused(ctx context.Context, pause Pause) error
	// Resumed is when SetPaused was last told PauseNone; zero for never.
	Resumed(ctx context.Context) (time.Time, error)
}

// Pause says why a sink is paused.
type Pause string

// The pauses.
const (
	PauseNone        Pause = ""
	PauseOperator    Pause = "operator"
	PauseDeadLetters Pause = "dead_letters"
)

// Worker delivers to one sink. Its methods are safe for concurrent use.
type Worker struct {
	cfg    Config
	limits sinks.Limits // the vendor's and the configuration's together

	blocks  Blocks
	sink    Sink
	limiter *rate.Limiter
	account *Account
	log     *slog.Logger
	metrics *metrics
	pulse   *pulse.Board

	gaps     Gaps
	gate     *gate
	memory   *memory
	ledger   *ledger
	letters  *letters
	tracker  *tracker // nil when the sink confirms nothing
	keys     *keys
	lanes    []*lane
	dispatch *dispatcher
	mappings [16]byte // what the numbers of items depend on
	counts   counts

	pauses  Pauses
	pausing sync.Mutex // one Pause or Resume at a time

	retries  chan retryRequest
	draining context.Context // ends with Drain
	drain    context.CancelFunc
	leaving  context.Context // ends when, while draining, what is begun has had its time
	leave    context.CancelFunc
	stuck    context.Context // ends when, while draining, something was left for the next start
	abandon  context.CancelFunc
	ended    chan struct{} // closed when Run returns
}

const (
	defaultBatchBytes     = 1 << 20
	defaultMemory         = 8 << 20 // the batch in flight and the next one for four lanes of 1 MiB
	defaultBlockedProbe   = 30 * time.Second
	defaultConfirmTimeout = 10 * time.Minute
	defaultConfirmRate    = 250
	defaultGiveUp         = time.Hour
	defaultRetryMin       = 500 * time.Millisecond
	defaultRetryMax       = time.Minute
	defaultPatience       = time.Minute
)

// New makes a Worker. It asks nothing of its dependencies but the sink's limits.
func New(cfg Config, deps Deps) *Worker {
	cfg.setDefaults()
	w := &Worker{
		cfg: cfg, limits: deps.Sink.Limits(),
		blocks: deps.Blocks, gaps: deps.Gaps, sink: deps.Sink, limiter: deps.Limiter, pauses: deps.Pauses,
		log:     deps.Logger.With("sink", cfg.Sink),
		metrics: newMetrics(cfg.Sink, deps.Registerer),
		pulse:   deps.Pulse,
		memory:  newMemory(cfg.Memory),
		keys:    newKeys(),
		retries: make(chan retryRequest), ended: make(chan struct{}),
	}
	w.draining, w.drain = context.WithCancel(context.Background())
	w.leaving, w.leave = context.WithCancel(context.Background())
	w.stuck, w.abandon = context.WithCancel(context.Background())
	if cfg.Batch.Items > 0 && (w.limits.Items == 0 || cfg.Batch.Items < w.limits.Items) {
		w.limits.Items = cfg.Batch.Items
	}
	if w.account = deps.Account; w.account == nil {
		w.account = new(Account)
	}
	w.gate = newGate(cfg, w.limits.Items, w.account, w.log, w.metrics)
	w.ledger = &ledger{blocks: deps.Blocks, memory: w.memory}
	w.letters = newLetters(w, deps.Letters)
	if confirmer, ok := deps.Sink.(Confirmer); ok {
		w.tracker = newTracker(w, confirmer, deps.Tracks)
	}
	for n := range cfg.Concurrency {
		w.lanes = append(w.lanes, &lane{worker: w, number: n, wake: make(chan struct{}, 1)})
	}
	w.gate.wake = w.wakeLanes
	w.dispatch = newDispatcher(w, deps.Mappings, deps.Source)
	w.mappings = digest(cfg.Type, deps.Mappings)
	w.metrics.observe(w)
	return w
}

func (c *Config) setDefaults() {
	c.Concurrency = max(c.Concurrency, 1)
	setDefault(&c.Batch.Bytes, defaultBatchBytes)
	setDefault(&c.Memory, defaultMemory)
	setDefault(&c.BlockedProbe, defaultBlockedProbe)
	setDefault(&c.ConfirmTimeout, defaultConfirmTimeout)
	setDefault(&c.ConfirmRate, defaultConfirmRate)
	setDefault(&c.MaxWait, math.MaxInt64)
	setDefault(&c.GiveUp, defaultGiveUp)
	setDefault(&c.Patience, defaultPatience)
	setDefault(&c.Retry, backoff.Range{Min: defaultRetryMin, Max: defaultRetryMax})
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// Run delivers until ctx ends or Drain has finished; then it returns nil. Call it once. Any other end, a panic too, is the
// sink's state from then on, and is returned.
//
// When ctx ends, requests in flight are broken off: their items are sent again after a restart.
func (w *Worker) Run(ctx context.Context) error {
	defer close(w.ended)
	err := w.guard("worker", w.run)(ctx)
	asked := ctx.Err() != nil || w.draining.Err() != nil
	switch {
	case asked && isEnd(err):
		return nil
	case err == nil:
		err = errors.New("delivery has ended although nobody asked")
	}
	w.gate.fail(err.Error())
	return err
}

// isEnd reports whether err is how a loop ends that was asked to.
func isEnd(err error) bool {
	return err == nil || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, errStopped)
}

// guard shows a panic in the sink's state at once: a pool hands it on when all others in the pool have ended.
func (w *Worker) guard(loop string, run func(context.Context) error) func(context.Context) error {
	l := w.pulse.Loop("sink "+w.cfg.Sink+", "+loop, w.cfg.Patience)
	return func(ctx context.Context) error {
		err := l.Run(ctx, run)
		if _, panicked := errors.AsType[*pulse.PanicError](err); panicked {
			w.gate.fail(err.Error())
		}
		return err
	}
}

func (w *Worker) run(ctx context.Context) error {
	if err := w.recall(ctx); err != nil {
		return err
	}
	defer pulse.Rest(ctx)()    // who is waited for has a pulse of its own
	stored := make(chan Block) // the next block, fetched while the last one is dispatched
	life := pool.New().WithContext(ctx).WithCancelOnError().WithFirstError()
	life.Go(w.guard("reader", func(ctx context.Context) error {
		defer close(stored)
		return w.read(ctx, stored)
	}))
	life.Go(w.guard("dispatcher", func(ctx context.Context) error {
		defer w.closeLanes()
		return w.dispatch.run(ctx, stored)
	}))
	life.Go(func(ctx context.Context) error {
		lanes := pool.New().WithContext(ctx).WithCancelOnError().WithFirstError()
		for _, l := range w.lanes {
			lanes.Go(w.guard("lane "+strconv.Itoa(l.number), l.run))
		}
		err := lanes.Wait()
		if w.tracker != nil {
			w.tracker.close()
		}
		return err
	})
	if w.tracker != nil {
		life.Go(w.tracker.run)
	}
	life.Go(w.guard("settlement", w.keepSettled))
	err := life.Wait()
	if w.draining.Err() != nil {
		w.keepLast(ctx)
	}
	return err
}

// recall loads what outlives a restart: the pause, the keys of open letters, the items that wait for confirmation.
func (w *Worker) recall(ctx context.Context) error {
	return w.insist(ctx, trouble{name: "recall", what: "load the sink's state"}, func(ctx context.Context) error {
		pause, err := w.pauses.Paused(ctx)
		if err != nil {
			return err
		}
		resumed, err := w.pauses.Resumed(ctx)
		if err != nil {
			return err
		}
		if pause != PauseDeadLetters {
			w.gate.pause(pause)
		}
		kept, err := w.blocks.Kept(ctx)
		if err != nil {
			return err
		}
		w.ledger.recall(kept, w.mappings)
		if err := w.letters.load(ctx, resumed); err != nil {
			return err
		}
		if pause == PauseDeadLetters {
			w.gate.halt(w.letters.mainCauses())
		}
		if w.tracker != nil {
			return w.tracker.load(ctx)
		}
		return nil
	})
}

// read fetches blocks until ctx ends or the worker drains.
func (w *Worker) read(ctx context.Context, stored chan<- Block) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	defer context.AfterFunc(w.draining, stop)() //nolint:contextcheck // draining is an event, nothing is done in it
	for {
		block, err := w.next(ctx)
		if w.draining.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		beat := pulse.Rest(ctx)
		select {
		case stored <- block:
		case <-ctx.Done():
		}
		beat()
	}
}

func (w *Worker) next(ctx context.Context) (block Block, err error) {
	err = w.insist(ctx, trouble{name: "read", what: "read the buffer", blocks: true}, func(ctx context.Context) (err error) {
		defer pulse.Rest(ctx)()
		block, err = w.blocks.Next(ctx)
		return err
	})
	return block, err
}

// begunPatience is how long Drain lets what is begun be delivered, so that most stops leave nothing behind.
const begunPatience = time.Second

// Drain stops taking new blocks; then Run returns nil. What is begun is delivered if that takes no longer than a second and the vendor takes
// it at once; after that, only requests in flight are waited for. The rest is left for the next start, which repeats nothing of what was
// settled. Drain returns ctx's error when the requests take too long; the caller then ends Run's context.
func (w *Worker) Drain(ctx context.Context) error {
	w.drain()
	w.gate.drain()
	w.wakeLanes()
	patience := time.AfterFunc(begunPatience, func() {
		w.leave()
		w.abandon()
		w.gate.leave()
		w.wakeLanes()
	})
	defer patience.Stop()
	select {
	case <-w.ended:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Pause stops sending until Resume, also over a restart. Requests in flight are finished. It returns when the pause is stored.
func (w *Worker) Pause(ctx context.Context) error { return w.setPause(ctx, PauseOperator) }

// Resume ends a pause, whatever its reason, allows as many dead letters again as are configured, and tries at once what waits for a time.
func (w *Worker) Resume(ctx context.Context) error { return w.setPause(ctx, PauseNone) }

func (w *Worker) setPause(ctx context.Context, pause Pause) error {
	w.pausing.Lock()
	defer w.pausing.Unlock()
	if err := w.pauses.SetPaused(ctx, pause); err != nil {
		return err
	}
	if pause == PauseNone {
		w.letters.allowAgain()
	}
	w.gate.pause(pause)
	if pause == PauseNone {
		w.gate.resume()
		w.account.resume()
		if w.tracker != nil {
			w.tracker.resume()
		}
	}
	return nil
}
