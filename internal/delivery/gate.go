package delivery

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/cdcsync/cdcsync/internal/backoff"
	"github.com/cdcsync/cdcsync/internal/pulse"
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
	leaving  bool // no more requests
	paused   Pause
	causes   string // of a halt

	inFlight int
	window   float64 // requests that may be in flight
	most     float64 // the window's upper bound: the lanes
	cutAt    time.Time
	usual    time.Duration // what an answer takes when the vendor is well

	account     *Account
	maxWait     time.Duration
	size        sizer
	limit       int    // items of a request; 0 for any number
	wake        func() // makes the lanes look at what they hold
	seq         uint64 // of the last request
	goodSeq     uint64 // of the newest request that the vendor answered
	badSeq      uint64 // of the newest that failed, but for those whose items are suspected
	heard       tidings
	held        map[int]heldView // by lane
	resumedAt   time.Time
	consecutive int // failed requests since the last answer
	circuit     circuit
	probing     bool
	probeAt     time.Time

	failing  map[int]failure     // lanes that back off
	troubles map[string]*trouble // of our own side, by name
	last     failure             // newest failure of a request

	ended string // why delivery has ended; empty while it has not

	state  State
	reason string
	answer string
	since  time.Time
}

// ticket is the permission for one request.
type ticket struct {
	seq   uint64
	probe bool
	items int
}

// tidings count what makes held items due before their time.
type tidings struct{ resumes, recoveries int }

// heldView is what a lane holds, as the sink's state and status show it.
type heldView struct {
	shown       []HeldItem
	keys, items int
	unproven    failure // of an item that may be no worse than the others
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
	logged string // what a log may hold of the reason
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
	logged string
	next   time.Time
}

// newGate makes a gate for requests of at most so many items; 0 means any number.
func newGate(cfg Config, items int, account *Account, log *slog.Logger, m *metrics) *gate {
	lanes := float64(cfg.Concurrency)
	g := &gate{
		log: log, metrics: m, retry: cfg.Retry, probe: cfg.BlockedProbe,
		changed: make(chan struct{}), window: lanes, most: lanes, circuit: circuitClosed,
		failing: make(map[int]failure), troubles: make(map[string]*trouble), held: make(map[int]heldView),
		account: account, maxWait: cfg.MaxWait, size: sizer{timeout: cfg.Timeout, most: items}, limit: items, wake: func() {},
		state: StateRunning, since: time.Now(),
	}
	account.join(g)
	return g
}

// turn is what admit answers to one who has to wait for something that has no time.
const turn = time.Duration(-1)

// acquire waits until a request of so many items may be made, not before the given time, unless the sink was resumed since it was failed.
func (g *gate) acquire(ctx context.Context, failed, notBefore time.Time, items int) (ticket, error) {
	for {
		if ctx.Err() != nil {
			return ticket{}, ctx.Err()
		}
		g.mu.Lock()
		if g.leaving {
			g.mu.Unlock()
			return ticket{}, errStopped
		}
		if g.resumedAt.After(failed) {
			notBefore = time.Time{}
		}
		wait, hopeless := g.admit(time.Now(), notBefore)
		if wait == 0 {
			g.seq++
			t := ticket{seq: g.seq, probe: g.circuit != circuitClosed, items: items}
			g.probing = g.probing || t.probe
			g.inFlight++
			g.mu.Unlock()
			return t, nil
		}
		if hopeless && g.draining {
			g.mu.Unlock()
			return ticket{}, errStopped
		}
		if err := g.wait(ctx, wait); err != nil {
			return ticket{}, err
		}
	}
}

// admit says how long to wait: 0 for not at all. hopeless says that the vendor takes nothing now.
func (g *gate) admit(now, notBefore time.Time) (wait time.Duration, hopeless bool) {
	if g.paused != PauseNone {
		return turn, true
	}
	free := g.account.free()
	notBefore = later(notBefore, free)
	if g.circuit != circuitClosed {
		if g.probing {
			return turn, true
		}
		notBefore = later(g.probeAt, free)
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
	defer pulse.Rest(ctx)()
	select {
	case <-due:
	case <-changed:
	case <-ctx.Done():
		return ctx.Err()
	}
	return nil
}

// release ends what acquire began.
func (g *gate) release(t ticket) {
	g.inFlight--
	if t.probe {
		g.probing = false
	}
}

// answered records a request that the vendor answered in d, whatever it said about the items.
func (g *gate) answered(t ticket, d time.Duration) {
	g.mu.Lock()
	defer g.unlock()
	full := g.inFlight >= int(g.window)
	g.release(t)
	g.goodSeq = max(g.goodSeq, t.seq)
	g.size.answered(t.items, d)
	g.consecutive = 0
	if g.circuit != circuitClosed {
		g.circuit = circuitClosed
		g.heard.recoveries++
		g.wake()
	}
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
func (g *gate) failed(t ticket, d time.Duration, e *sinks.RequestError) {
	g.mu.Lock()
	defer g.unlock()
	g.release(t)
	g.bad(t, e)
	if e.After > 0 {
		g.account.leave(min(e.After, g.maxWait))
	}
	if e.Timeout {
		g.size.timedOut(t.items)
	}
	switch {
	case e.Class == sinks.ClassThrottled:
		g.cut(throttleCut, d)
	case g.slow(d):
		g.cut(slowCut, d)
	}
	if t.probe || g.circuit == circuitClosed && g.consecutive >= openAfter {
		g.circuit = circuitFailing
		g.probeAt = time.Now().Add(g.retry.Delay(g.consecutive))
	}
}

func (g *gate) bad(t ticket, e *sinks.RequestError) {
	g.badSeq = max(g.badSeq, t.seq)
	g.consecutive++
	g.last = failure{reason: e.Error(), answer: e.Answer, logged: e.Logged()}
}

// spared records a failed request whose items are suspected: it says nothing about the vendor.
func (g *gate) spared(t ticket) {
	g.mu.Lock()
	defer g.unlock()
	g.release(t)
	if t.probe {
		g.probeAt = time.Now().Add(g.retry.Delay(max(1, g.consecutive)))
	}
}

// suspects reports whether a part has failed before and the vendor has taken others since.
func (g *gate) suspects(p part) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return p.fails > 0 && g.goodSeq > p.first
}

// takes reports whether the vendor took the last request whose items are not suspected.
func (g *gate) takes() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.goodSeq > g.badSeq
}

// throttled is told that the vendor throttles another sink of the account.
func (g *gate) throttled(took time.Duration) {
	g.mu.Lock()
	defer g.unlock()
	g.cut(throttleCut, took)
}

// fits is how many items a request may have now; 0 leaves it to the limits.
func (g *gate) fits() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.size.fits()
}

func (g *gate) setHeld(lane int, view heldView) {
	g.mu.Lock()
	defer g.unlock()
	if view.items == 0 {
		delete(g.held, lane)
		return
	}
	g.held[lane] = view
}

func (g *gate) tidings() tidings {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.heard
}

// due is when the first item of a held key is tried next. One that may be no worse than others is due when the vendor is back.
func (g *gate) due(k *heldKey) time.Time {
	g.mu.Lock()
	defer g.mu.Unlock()
	if k.seen.resumes != g.heard.resumes || !k.proven && k.seen.recoveries != g.heard.recoveries {
		return time.Time{}
	}
	return k.next
}

// closed reports whether requests are made freely, and not one at a time to try the vendor.
func (g *gate) closed() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.circuit == circuitClosed
}

// resume ends all waits for a time.
func (g *gate) resume() {
	g.mu.Lock()
	defer g.unlock()
	g.resumedAt = time.Now()
	g.probeAt = time.Time{}
	for lane, f := range g.failing {
		f.next = g.resumedAt
		g.failing[lane] = f
	}
	g.heard.resumes++
	g.wake()
}

// look makes those who wait look again.
func (g *gate) look() {
	g.mu.Lock()
	g.unlock()
}

// blocked records that the credentials were refused, or that the endpoint is not the vendor's.
func (g *gate) blocked(t ticket, e *sinks.RequestError) {
	g.mu.Lock()
	defer g.unlock()
	g.release(t)
	g.bad(t, e)
	g.circuit = circuitBlocked
	g.probeAt = time.Now().Add(max(g.probe, min(e.After, g.maxWait)))
}

// broken records a request that ctx ended.
func (g *gate) broken(t ticket) {
	g.mu.Lock()
	defer g.unlock()
	g.release(t)
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
func (g *gate) backOff(lane, n int, after time.Duration, why failure) time.Time {
	g.mu.Lock()
	defer g.unlock()
	if n == 0 {
		delete(g.failing, lane)
		return time.Time{}
	}
	why.next = time.Now().Add(max(min(after, g.maxWait), g.retry.Delay(n)))
	g.failing[lane] = why
	return why.next
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

// fail is the end of the delivery; the first reason counts.
func (g *gate) fail(reason string) {
	g.mu.Lock()
	defer g.unlock()
	if g.ended == "" {
		g.ended = reason
	}
}

func (g *gate) drain() {
	g.mu.Lock()
	defer g.unlock()
	g.draining = true
}

// halt pauses the sink since there are too many dead letters, for these causes.
func (g *gate) halt(causes string) {
	g.mu.Lock()
	defer g.unlock()
	g.causes, g.paused = causes, PauseDeadLetters
}

// leave allows no more requests.
func (g *gate) leave() {
	g.mu.Lock()
	defer g.unlock()
	g.leaving = true
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
	case StateFailed:
		g.log.Error("sink has failed, nothing is delivered to it until a restart", "was", before, "reason", reason)
	case StateHalted: // the causes hold a vendor's words
		g.log.Warn("sink does not deliver", "state", state, "was", before, "reason", "too many dead letters: see `cdcsync dlq summary`, fix the cause, then `cdcsync resume`")
	case StateRetrying, StateBlocked:
		g.log.Warn("sink does not deliver", "state", state, "was", before, "reason", why.logged)
	}
}

// assess derives the state from all that is known: the gravest reason counts.
func (g *gate) assess() (State, failure) {
	if g.ended != "" {
		return StateFailed, failure{reason: g.ended + "; see the log, and restart cdcsync"}
	}
	switch g.paused {
	case PauseOperator:
		return StatePaused, failure{reason: "by an operator"}
	case PauseDeadLetters:
		return StateHalted, failure{reason: "too many dead letters: " + g.causes + "; see `cdcsync dlq summary`, fix the cause, then `cdcsync resume`"}
	case PauseNone:
	}
	var minor failure
	for _, t := range g.troubles {
		if t.blocks {
			return StateBlocked, failure{reason: t.reason, answer: t.answer, logged: t.logged}
		}
		minor = failure{reason: t.reason, answer: t.answer, logged: t.logged}
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
	for _, view := range g.held {
		if view.unproven.reason != "" {
			return StateRetrying, view.unproven
		}
	}
	return StateRunning, failure{}
}

// next is the earliest time at which something is tried again; zero when nothing waits for a time.
func (g *gate) next() time.Time {
	if g.ended != "" || g.paused != PauseNone {
		return time.Time{}
	}
	var next time.Time
	consider := func(t time.Time) {
		if next.IsZero() || t.Before(next) {
			next = t
		}
	}
	if g.circuit != circuitClosed {
		consider(later(g.probeAt, g.account.free()))
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

// allowed waits for what a rate allows, unless the worker drains; nil allows everything.
func (w *Worker) allowed(ctx context.Context, limiter *rate.Limiter) error {
	if limiter == nil {
		return nil
	}
	slot := limiter.Reserve()
	wait := slot.Delay()
	if wait == 0 {
		return nil
	}
	err := pause(ctx, wait, w.draining.Done())
	if err == nil && w.draining.Err() != nil {
		err = errStopped
	}
	if err != nil {
		slot.Cancel()
	}
	return err
}

// insist does fn until it succeeds, with back-off, and lets the sink's state say why it waits. It gives up when ctx ends or
// the worker drains.
func (w *Worker) insist(ctx context.Context, t trouble, fn func(context.Context) error) error {
	for n := 1; ; n++ {
		pulse.Beat(ctx)
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
		failed.reason, failed.logged, failed.next = t.what+": "+err.Error(), t.what+": "+logged(err), time.Now().Add(delay)
		w.gate.troubled(failed)
		if err := pause(ctx, delay, w.draining.Done()); err != nil {
			return err
		}
		if w.draining.Err() != nil {
			return errStopped
		}
	}
}

// logged is what a log may hold of an error.
func logged(err error) string {
	if failed, ok := errors.AsType[*sinks.RequestError](err); ok {
		return failed.Logged()
	}
	return sinks.Masked(err.Error()) // ours, Postgres's without a row, or the network's
}
