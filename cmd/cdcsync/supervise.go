package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/sourcegraph/conc/pool"

	"github.com/cdcsync/cdcsync/internal/pulse"
)

// supervisor runs the parts that all of the daemon depends on. The first that ends before it was asked to, by an error or a panic,
// is logged at once and ends the daemon, so that whoever supervises the process starts it again. A sink's worker is no such part:
// it fails alone, see delivery.StateFailed.
type supervisor struct {
	logger *slog.Logger
	pulse  *pulse.Board
	parts  *pool.ContextPool
	stop   context.CancelFunc // has the daemon end

	mu    sync.Mutex
	cause error
}

func newSupervisor(life context.Context, logger *slog.Logger, board *pulse.Board, stop context.CancelFunc) *supervisor {
	return &supervisor{logger: logger, pulse: board, parts: pool.New().WithContext(life), stop: stop}
}

var errEnded = errors.New("it has ended although nobody asked")

// keep runs a part that goes on for as long as the daemon; patience is how long it may take without a beat.
func (s *supervisor) keep(name string, patience time.Duration, run func(context.Context) error) {
	s.start(name, patience, func(ctx context.Context) error {
		err := run(ctx)
		if err == nil && ctx.Err() == nil {
			return errEnded
		}
		return err
	})
}

// once runs a part that ends by itself.
func (s *supervisor) once(name string, patience time.Duration, run func(context.Context)) {
	s.start(name, patience, func(ctx context.Context) error {
		run(ctx)
		return nil
	})
}

func (s *supervisor) start(name string, patience time.Duration, run func(context.Context) error) {
	loop := s.pulse.Loop(name, patience)
	s.parts.Go(func(ctx context.Context) error {
		err := loop.Run(ctx, run)
		_, panicked := errors.AsType[*pulse.PanicError](err)
		if err != nil && (panicked || ctx.Err() == nil) {
			s.failed(ctx, name, err)
		}
		return nil
	})
}

// failed ends the daemon.
func (s *supervisor) failed(ctx context.Context, name string, err error) {
	err = fmt.Errorf("%s: %w", name, err)
	s.mu.Lock()
	first := s.cause == nil
	if first {
		s.cause = err
	}
	s.mu.Unlock()
	if first {
		s.logger.ErrorContext(ctx, "part has failed, the daemon ends", "part", name, "err", err)
		s.stop()
	}
}

// err is why the daemon has to end; nil while nothing has failed.
func (s *supervisor) err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cause
}

// wait gives the parts, whose context has ended, a while.
func (s *supervisor) wait(ctx context.Context) error {
	return waitFor(ctx, "parts of the daemon", s.parts.Wait)
}

// waitFor bounds a wait for what may hang: the process ends all the same.
func waitFor(ctx context.Context, what string, wait func() error) error {
	done := make(chan error, 1)
	waiting := pool.New()
	waiting.Go(func() { done <- wait() })
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("%s have not ended in time", what)
	}
}
