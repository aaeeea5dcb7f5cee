package pulse_test

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/sourcegraph/conc/pool"

	"github.com/cdcsync/cdcsync/internal/pulse"
)

func TestALoopThatDoesNothingIsNamed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var log strings.Builder
		reg := prometheus.NewRegistry()
		b := pulse.NewBoard(slog.New(slog.NewTextHandler(&log, nil)), reg)
		ctx, cancel := context.WithCancel(t.Context())
		running := pool.New().WithContext(ctx)
		running.Go(b.Run)
		held := make(chan struct{})
		running.Go(b.Loop("lag watcher", 30*time.Second).Guard(func(ctx context.Context) error {
			beat := pulse.Rest(ctx)
			time.Sleep(time.Hour) // idle
			beat()
			<-held // hung
			pulse.Beat(ctx)
			<-ctx.Done()
			return ctx.Err()
		}))
		time.Sleep(59 * time.Minute)
		if troubles := b.Troubles(time.Now()); len(troubles) > 0 {
			t.Errorf("while it rests: %q", troubles)
		}
		time.Sleep(2 * time.Minute)
		if troubles := b.Troubles(time.Now()); len(troubles) != 1 || troubles[0] != "lag watcher hangs: it has done nothing for 1m0s" {
			t.Errorf("while it hangs: %q", troubles)
		}
		if n, err := testutil.GatherAndCount(reg, "cdcsync_pulse_hung_loops"); err != nil || n != 1 {
			t.Errorf("metric: %d, %v", n, err)
		}
		close(held)
		time.Sleep(10 * time.Second)
		if troubles := b.Troubles(time.Now()); len(troubles) > 0 {
			t.Errorf("when it goes on: %q", troubles)
		}
		cancel()
		if err := running.Wait(); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		for _, line := range []string{`msg="loop hangs" loop="lag watcher"`, `msg="loop goes on" loop="lag watcher"`} {
			if strings.Count(log.String(), line) != 1 {
				t.Errorf("log has not one %q:\n%s", line, log.String())
			}
		}
	})
}

func TestAPanicIsLoggedWhereItHappens(t *testing.T) {
	t.Parallel()
	var log strings.Builder
	b := pulse.NewBoard(slog.New(slog.NewTextHandler(&log, nil)), nil)
	err := b.Loop("lane 3", time.Minute).Run(t.Context(), func(context.Context) error { return explode(nil) })
	var panicked *pulse.PanicError
	if !errors.As(err, &panicked) || !strings.Contains(err.Error(), "panic in lane 3: ") {
		t.Fatalf("got %v, want a PanicError", err)
	}
	for _, want := range []string{"lane 3", "nil map", "explode"} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("log without %q:\n%s", want, log.String())
		}
	}
	if troubles := b.Troubles(time.Now()); len(troubles) != 1 || !strings.Contains(troubles[0], "lane 3 has died") {
		t.Errorf("troubles %q", troubles)
	}
}

func explode(m map[string]int) error {
	m["x"]++
	return nil
}

func TestWithoutABoardAPanicIsAnErrorStill(t *testing.T) {
	t.Parallel()
	var b *pulse.Board
	for _, l := range []*pulse.Loop{nil, b.Loop("loop", time.Minute)} {
		l.Rest()
		if err := l.Guard(func(context.Context) error { return explode(nil) })(t.Context()); err == nil {
			t.Error("no error")
		}
	}
	if troubles := b.Troubles(time.Now()); troubles != nil {
		t.Errorf("troubles %q", troubles)
	}
}
