package main

import (
	"context"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/cdcsync/cdcsync/internal/config"
)

func newRunCommand(a *app) *cobra.Command {
	var skipMissed []string
	cmd := &cobra.Command{
		Use:     "run",
		Short:   "Carry changes from the source to the sinks, until it is told to stop",
		GroupID: groupStart,
		Long: `run captures committed changes, stores them in the buffer and delivers them to every sink. It makes the publication and the slot
when they are missing (source.manage), reconnects for ever, and refuses to start where going on would lose changes.

SIGTERM or Ctrl-C ends it: requests in flight are finished within shutdown.grace, and the cursors are stored, so that the next
start repeats nothing. A second signal ends it at once; what was in flight is then sent again. SIGHUP is reserved.`,
		Example: `  cdcsync run
  cdcsync run --config /etc/cdcsync/config.yaml`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, stop := untilSignal(cmd.Context())
			defer stop()
			cfg, templates, err := a.compiled()
			if err != nil {
				return err
			}
			a.limitMemory()
			logger := a.newLogger(cfg.Log)
			p, err := newPipeline(ctx, cfg, templates, logger, skipMissed...)
			if err != nil && ctx.Err() != nil { // what was broken off is no news
				logger.InfoContext(ctx, "stopped before it had started")
				return nil
			}
			if err != nil {
				return err
			}
			return p.Run(ctx)
		},
	}
	cmd.Flags().StringSliceVar(&skipMissed, "skip-missed", nil, "let this `sink` go on although blocks were trimmed while it was not configured")
	return cmd
}

// limitMemory lets the collector work harder before the heap is large, and less while it is small, unless GOMEMLIMIT or GOGC
// say otherwise. It bounds nothing by itself: what is held at a time is bounded where it is held, to some 60 MiB with four sinks
// whose vendors are down.
func (a *app) limitMemory() {
	const (
		limit   = 112 << 20 // with 27 MiB of the binary's own pages below 150 MiB
		percent = 200       // blocks come and go by the megabyte; twice the default until the limit takes over
	)
	if _, set := a.lookupEnv("GOMEMLIMIT"); !set {
		debug.SetMemoryLimit(limit)
	}
	if _, set := a.lookupEnv("GOGC"); !set {
		debug.SetGCPercent(percent)
	}
}

// untilSignal ends the context at the first SIGTERM or SIGINT; the second then ends the process, as it does by default. SIGHUP, which
// is reserved for reading the configuration again, does nothing.
func untilSignal(ctx context.Context) (context.Context, context.CancelFunc) {
	signal.Ignore(syscall.SIGHUP)
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM, os.Interrupt)
	context.AfterFunc(ctx, stop)
	return ctx, stop
}

func (a *app) newLogger(cfg config.Log) *slog.Logger {
	level := map[config.LogLevel]slog.Level{
		config.LogDebug: slog.LevelDebug, config.LogInfo: slog.LevelInfo, config.LogWarn: slog.LevelWarn, config.LogError: slog.LevelError,
	}[cfg.Level]
	options := &slog.HandlerOptions{Level: level}
	if cfg.Format == config.LogJSON {
		return slog.New(slog.NewJSONHandler(a.stderr, options))
	}
	return slog.New(slog.NewTextHandler(a.stderr, options))
}
