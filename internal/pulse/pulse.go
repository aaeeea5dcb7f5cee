// Package pulse knows which of the daemon's loops live.
//
// A loop beats whenever it has done something, and rests while it waits for work, which may take any time. One that does neither
// for longer than it may hangs on a lock, a query or a request. A loop's panic is logged where it happens, at once, since a pool
// would keep it until somebody waits for the pool.
package pulse

import (
	"context"
	"fmt"
	"log/slog"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Board has all loops. A nil Board is one that nobody looks at.
type Board struct {
	logger *slog.Logger

	mu    sync.Mutex
	loops []*Loop
}

// NewBoard registers a metric; reg may be nil.
func NewBoard(logger *slog.Logger, reg prometheus.Registerer) *Board {
	b := &Board{logger: logger}
	if reg != nil {
		reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "cdcsync_pulse_hung_loops", Help: "Loops of the daemon that hang or have died.",
		}, func() float64 { return float64(len(b.Troubles(time.Now()))) }))
	}
	return b
}

// Loop is one goroutine, or one after the other, that goes on for as long as the daemon does. Its methods are safe for
// concurrent use, and of a nil Loop, too.
type Loop struct {
	board *Board
	name  string
	limit time.Duration
	beat  atomic.Int64  // Unix time of the last beat in ns; 0 while it rests or does not run
	died  atomic.Bool   // it has panicked
	told  time.Duration // owned by Board.Run: what was logged; 0 for nothing
}

// Loop adds a loop that may work for limit without a beat. The name is what status calls it.
func (b *Board) Loop(name string, limit time.Duration) *Loop {
	l := &Loop{board: b, name: name, limit: limit}
	if b != nil {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.loops = append(b.loops, l)
	}
	return l
}

// Beat says that the loop has done something and goes on.
func (l *Loop) Beat() { l.BeatAt(time.Now()) }

// BeatAt is Beat for who knows what time it is.
func (l *Loop) BeatAt(now time.Time) {
	if l != nil {
		l.beat.Store(now.UnixNano())
	}
}

// Rest says that the loop waits for something that may take any time and that its context ends.
func (l *Loop) Rest() {
	if l != nil {
		l.beat.Store(0)
	}
}

type loopKey struct{}

// Beat is Loop.Beat of the loop that ctx belongs to.
func Beat(ctx context.Context) { of(ctx).Beat() }

// Rest is Loop.Rest of the loop that ctx belongs to; what it returns ends the rest.
func Rest(ctx context.Context) (beat func()) {
	l := of(ctx)
	l.Rest()
	return l.Beat
}

// With is ctx with the loop that another context belongs to.
func With(ctx, loop context.Context) context.Context {
	return context.WithValue(ctx, loopKey{}, of(loop))
}

func of(ctx context.Context) *Loop {
	l, _ := ctx.Value(loopKey{}).(*Loop)
	return l
}

// PanicError is what a loop's panic becomes.
type PanicError struct {
	Loop  string
	Value any
	Stack []byte
}

func (e *PanicError) Error() string { return fmt.Sprintf("panic in %s: %v", e.Loop, e.Value) }

// Unwrap gives the error that was panicked with, if it was one.
func (e *PanicError) Unwrap() error {
	err, _ := e.Value.(error)
	return err
}

// Run runs the loop: a panic is logged with its stack and returned as a *PanicError, and the loop counts as dead from then on.
// The context that run gets is what Beat and Rest take.
func (l *Loop) Run(ctx context.Context, run func(context.Context) error) (err error) {
	l.Beat()
	defer func() {
		if value := recover(); value != nil {
			err = l.panicked(ctx, value)
		}
		l.Rest()
	}()
	return run(context.WithValue(ctx, loopKey{}, l))
}

// Guard is run in Run, for a pool.
func (l *Loop) Guard(run func(context.Context) error) func(context.Context) error {
	return func(ctx context.Context) error { return l.Run(ctx, run) }
}

func (l *Loop) panicked(ctx context.Context, value any) error {
	err := &PanicError{Value: value, Stack: debug.Stack()}
	if l == nil {
		return err
	}
	err.Loop = l.name
	l.died.Store(true)
	if l.board != nil {
		l.board.logger.ErrorContext(ctx, "panic", "loop", l.name, "value", fmt.Sprint(value), "stack", string(err.Stack))
	}
	return err
}

// silence is for how long a loop has not done what it should; 0 while all is well.
func (l *Loop) silence(now time.Time) time.Duration {
	beat := l.beat.Load()
	if beat == 0 {
		return 0
	}
	if silent := now.Sub(time.Unix(0, beat)); silent > l.limit {
		return silent
	}
	return 0
}

// Troubles names the loops that hang or have died.
func (b *Board) Troubles(now time.Time) []string {
	var troubles []string
	for _, l := range b.all() {
		if l.died.Load() {
			troubles = append(troubles, l.name+" has died: see the log for its panic")
		} else if silent := l.silence(now); silent > 0 {
			troubles = append(troubles, fmt.Sprintf("%s hangs: it has done nothing for %s", l.name, silent.Round(time.Second)))
		}
	}
	return troubles
}

func (b *Board) all() []*Loop {
	if b == nil {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clip(b.loops)
}

// Run logs loops that hang, and when they go on, until ctx ends.
func (b *Board) Run(ctx context.Context) error {
	const interval = 5 * time.Second
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		b.look(ctx, time.Now())
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

func (b *Board) look(ctx context.Context, now time.Time) {
	for _, l := range b.all() {
		silent := l.silence(now)
		switch {
		case silent > 0 && l.told == 0:
			b.logger.ErrorContext(ctx, "loop hangs", "loop", l.name, "silent", silent.Round(time.Second))
		case silent == 0 && l.told > 0:
			b.logger.InfoContext(ctx, "loop goes on", "loop", l.name)
		}
		l.told = silent
	}
}
