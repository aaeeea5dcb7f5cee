package delivery

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/cdcsync/cdcsync/internal/backoff"
	"github.com/cdcsync/cdcsync/internal/sinks"
)

// errStopped ends a wait that Drain has made pointless: what waits is left for the next start.
var errStopped = errors.New("draining")

// Numbers of the gate. See docs/delivery.md, "Load and failures".
const (
	openAfter    = 5           // consecutive failed requests open the circuit
	slowFactor   = 4           // an answer that takes so many times the usual is slow …
	slowFloor    = time.Second // … when it takes longer than this, too
	usualDrift   = 512         // the usual time follows slower answers by so small a part of the difference each
	throttleCut  = 0.5         // of the window, on 429
	slowCut      = 0.7         // of the window, on a slow answer
	windowGrowth = 1.0         // requests per window of good answers
)

// gate decides when a lane may make its request: pause, credentials, circuit, Retry-After, adaptive concurrency. It also
// knows the sink's state, since nobody else sees all reasons to wait.
type gate struct {
	log     *slog.Logger
	metrics *metrics
	retry   backoff.Range
	probe   time.Duration // between attempts while the credentials are refused

	mu       sync.Mutex
	changed  chan struct{} // closed and replaced when those who wait should look again
	waiting  int
	draining bool
	paused   Pause

	inFlight int
	window   float64 // requests that may be in flight
	most     float64 // the window's upper bound: the lanes
	cutAt    time.Time
	usual    time.Duration // what an answer takes when the vendor is well

	notBefore   time.Time // Retry-After
	consecutive int       // failed requests since the last answer
	circuit     circuit
	probing     bool
	probeAt     time.Time

	failing  map[int]failure     // lanes that back off
	troubles map[string]*trouble // of our own side, by name
	last     failure             // newest failure of a request

	state  State
	reason string
	answer string
	since  time.Time
}

type circuit uint8

const (
	circuitClosed circuit = iota + 1
	circuitFailing
	circuitBlocked
)

type failure struct {
	reason string
	answer string // how the vendor's answer begins: for operators, not for logs
	next   time.Time
}

// trouble is something besides the vendor that keeps the sink from going on.
type trouble struct {
	name   string
	what   string // it tries to do
	blocks bool   // an operator probably has to act
	final  bool   // trying again does not help before a restart

	reason string
	answer string
	next   time.Time
}

func newGate(cfg Config, log *slog.Logger, m *metrics) *gate {
	lanes := float64(cfg.Concurrency)
	return &gate{
		log: log, metrics: m, retry: cfg.Retry, probe: cfg.BlockedProbe,
		changed: make(chan struct{}), window: lanes, most: lanes, circuit: circuitClosed,
		failing: make(map[int]failure), troubles: make(map[string]*trouble),
		state: StateRunning, since: time.Now(),
	}
}

// turn is what admit answers to one who has to wait for something that has no time.
const turn = time.Duration(-1)

// acquire waits until a request may be made, not before the given time. probe is to be handed to release.
func (g *gate) acquire(ctx context.Context, notBefore time.Time) (probe bool, err error) {
	for {
		if ctx.Err() != nil {
			return false, ctx.Err()
		}
		g.mu.Lock()
		wait, hopeless := g.admit(time.Now(), notBefore)
		if wait == 0 {
			probe = g.circuit != circuitClosed
			g.probing = g.probing || probe
			g.inFlight++
			g.mu.Unlock()
			return probe, nil
		}
		if hopeless && g.draining {
			g.mu.Unlock()
			return false, errStopped
		}
		if err := g.wait(ctx, wait); err != nil {
			return false, err
		}
	}
}

// admit says how long to wait: 0 for not at all. hopeless says that the vendor takes nothing now.
func (g *gate) admit(now, notBefore time.Time) (wait time.Duration, hopeless bool) {
	if g.paused != PauseNone {
		return turn, true
	}
	if g.notBefore.After(notBefore) {
		notBefore = g.notBefore
	}
	if g.circuit != circuitClosed {
		if g.probing {
			return turn, true
		}
		notBefore = later(g.probeAt, g.notBefore)
	}
	if wait := notBefore.Sub(now); wait > 0 {
		return wait, true
	}
	if g.inFlight >= int(g.window) {
		return turn, false
	}
	return 0, false
}

// wait is called with mu held, and returns without.
func (g *gate) wait(ctx context.Context, d time.Duration) error {
	changed := g.changed
	g.waiting++
	g.mu.Unlock()
	err := pause(ctx, d, changed)
	g.mu.Lock()
	g.waiting--
	g.mu.Unlock()
	return err
}

// pause waits for d (turn: for ever), changed or ctx, whose error it returns.
func pause(ctx context.Context, d time.Duration, changed <-chan struct{}) error {
	var due <-chan time.Time
	if d != turn {
		timer := time.NewTimer(d)
		defer timer.Stop()
		due = timer.C
	}
	select {
	case <-due:
	case <-changed:
	case <-ctx.Done():
		return ctx.Err()
	}
	return nil
}

// release ends what acquire began.
func (g *gate) release(probe bool) {
	g.inFlight--
	if probe {
		g.probing = false
	}
}

// answered records a request that the vendor answered in d, whatever it said about the items.
func (g *gate) answered(probe bool, d time.Duration) {
	g.mu.Lock()
	defer g.unlock()
	full := g.inFlight >= int(g.window)
	g.release(probe)
	g.consecutive = 0
	g.circuit = circuitClosed
	if g.usual == 0 || d < g.usual {
		g.usual = d
	}
	switch {
	case g.slow(d):
		g.cut(slowCut, d)
	case full: // a window that was not used says nothing about a larger one
		g.window = min(g.most, g.window+windowGrowth/g.window)
	}
	g.usual += (d - g.usual) / usualDrift
}

func (g *gate) slow(d time.Duration) bool { return d > slowFloor && d > slowFactor*g.usual }

// failed records a request without a usable answer, and opens the circuit when there were too many.
func (g *gate) failed(probe bool, d, after time.Duration, throttled bool, reason, answer string) {
	g.mu.Lock()
	defer g.unlock()
	g.release(probe)
	now := time.Now()
	g.consecutive++
	g.last = failure{reason: reason, answer: answer}
	if after > 0 {
		g.notBefore = later(g.notBefore, now.Add(after))
	}
	switch {
	case throttled:
		g.cut(throttleCut, d)
	case g.slow(d):
		g.cut(slowCut, d)
	}
	if probe || g.circuit == circuitClosed && g.consecutive >= openAfter {
		g.circuit = circuitFailing
		g.probeAt = now.Add(g.retry.Delay(g.consecutive))
	}
}

// blocked records that the credentials were refused, or that the endpoint is not the vendor's.
func (g *gate) blocked(probe bool, after time.Duration, reason, answer string) {
	g.mu.Lock()
	defer g.unlock()
	g.release(probe)
	g.consecutive++
	g.last = failure{reason: reason, answer: answer}
	g.circuit = circuitBlocked
	g.probeAt = time.Now().Add(max(g.probe, after))
}

// broken records a request that ctx ended.
func (g *gate) broken(probe bool) {
	g.mu.Lock()
	defer g.unlock()
	g.release(probe)
}

// cut makes the window smaller, once for all requests that were in flight together.
func (g *gate) cut(factor float64, took time.Duration) {
	now := time.Now()
	if now.Add(-took).Before(g.cutAt) {
		return
	}
	g.cutAt = now
	g.window = max(1, g.window*factor)
}

// backOff says until when a lane waits after its n-th failure in a row; n = 0 ends it.
func (g *gate) backOff(lane, n int, after time.Duration, reason, answer string) time.Time {
	g.mu.Lock()
	defer g.unlock()
	if n == 0 {
		delete(g.failing, lane)
		return time.Time{}
	}
	next := time.Now().Add(max(after, g.retry.Delay(n)))
	g.failing[lane] = failure{reason: reason, answer: answer, next: next}
	return next
}

func (g *gate) pause(p Pause) {
	g.mu.Lock()
	defer g.unlock()
	g.paused = p
}

func (g *gate) pausedAs() Pause {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.paused
}

func (g *gate) drain() {
	g.mu.Lock()
	defer g.unlock()
	g.draining = true
}

// resumed waits while the sink is paused.
func (g *gate) resumed(ctx context.Context) error {
	for {
		g.mu.Lock()
		if g.paused == PauseNone {
			g.mu.Unlock()
			return nil
		}
		if g.draining {
			g.mu.Unlock()
			return errStopped
		}
		if err := g.wait(ctx, turn); err != nil {
			return err
		}
	}
}

// troubled records a trouble, or its end when t.reason is empty.
func (g *gate) troubled(t trouble) {
	g.mu.Lock()
	defer g.unlock()
	if t.reason == "" {
		delete(g.troubles, t.name)
		return
	}
	g.troubles[t.name] = &t
}

// unlock publishes the state, wakes those who wait and unlocks.
func (g *gate) unlock() {
	if g.waiting > 0 {
		close(g.changed)
		g.changed = make(chan struct{})
	}
	g.publish()
	g.mu.Unlock()
}

// publish logs a change of the state; attempts within a state are not logged.
func (g *gate) publish() {
	state, why := g.assess()
	reason := why.reason
	g.reason, g.answer = why.reason, why.answer
	g.metrics.window.Set(float64(int(g.window)))
	if state == g.state {
		return
	}
	before, since := g.state, g.since
	g.state, g.since = state, time.Now()
	g.metrics.setState(state)
	switch state {
	case StateRunning:
		g.log.Info("sink delivers again", "was", before, "after", g.since.Sub(since).Round(time.Millisecond))
	case StatePaused:
		g.log.Info("sink paused", "was", before)
	case StateHalted: // the words are ours
		g.log.Warn("sink does not deliver", "state", state, "was", before, "reason", reason)
	case StateRetrying, StateBlocked:
		g.log.Warn("sink does not deliver", "state", state, "was", before, "reason", sinks.Masked(reason))
	}
}

// assess derives the state from all that is known: the gravest reason counts.
func (g *gate) assess() (State, failure) {
	switch g.paused {
	case PauseOperator:
		return StatePaused, failure{reason: "by an operator"}
	case PauseDeadLetters:
		return StateHalted, failure{reason: "too many dead letters: see them with `cdcsync dlq list`, mend the cause, then `cdcsync resume`"}
	case PauseNone:
	}
	var minor failure
	for _, t := range g.troubles {
		if t.blocks {
			return StateBlocked, failure{reason: t.reason, answer: t.answer}
		}
		minor = failure{reason: t.reason, answer: t.answer}
	}
	switch {
	case g.circuit == circuitBlocked:
		return StateBlocked, g.last
	case minor.reason != "":
		return StateRetrying, minor
	case g.circuit == circuitFailing:
		return StateRetrying, g.last
	}
	for _, f := range g.failing {
		return StateRetrying, f
	}
	return StateRunning, failure{}
}

// next is the earliest time at which something is tried again; zero when nothing waits for a time.
func (g *gate) next() time.Time {
	if g.paused != PauseNone {
		return time.Time{}
	}
	var next time.Time
	consider := func(t time.Time) {
		if next.IsZero() || t.Before(next) {
			next = t
		}
	}
	if g.circuit != circuitClosed {
		consider(later(g.probeAt, g.notBefore))
	} else {
		for _, f := range g.failing {
			consider(f.next)
		}
	}
	for _, t := range g.troubles {
		if !t.final {
			consider(t.next)
		}
	}
	return next
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// insist does fn until it succeeds, with back-off, and lets the sink's state say why it waits. It gives up when ctx ends or
// the worker drains.
func (w *Worker) insist(ctx context.Context, t trouble, fn func(context.Context) error) error {
	for n := 1; ; n++ {
		err := fn(ctx)
		if err == nil {
			if n > 1 {
				w.gate.troubled(t)
			}
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		delay := w.cfg.Retry.Delay(n)
		failed := t
		failed.reason, failed.next = t.what+": "+err.Error(), time.Now().Add(delay)
		w.gate.troubled(failed)
		if err := pause(ctx, delay, w.draining.Done()); err != nil {
			return err
		}
		if w.draining.Err() != nil {
			return errStopped
		}
	}
}
