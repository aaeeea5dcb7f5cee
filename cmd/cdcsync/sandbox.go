package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"time"

	"github.com/spf13/cobra"

	"github.com/cdcsync/cdcsync/internal/sandbox"
)

func newSandboxCommand(a *app) *cobra.Command {
	var listen string
	var quiet bool
	cfg := sandbox.Config{}
	cmd := &cobra.Command{
		Use:     "sandbox",
		Short:   "Serve the vendors' endpoints, as strict as their pages, on this machine",
		GroupID: groupStart,
		Long: `sandbox stands in for StopChurn, Fanbase and Fanatics: it checks what their pages ask for, keeps what it receives, shows the state
that the vendors would hold, and fails on demand. Nothing leaves this machine. Its index page says how to use it with curl.

Credentials: API key sandbox-key, client sandbox-client with secret sandbox-secret.`,
		Example: `  cdcsync sandbox
  cdcsync sandbox --listen 127.0.0.1:9090 --queue-delay 2s
  curl -s 127.0.0.1:8080/received
  curl -s 127.0.0.1:8080/faults -d '{"kind": "status", "status": 503, "share": 0.3}'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !quiet {
				cfg.Logger = slog.New(slog.NewTextHandler(a.stderr, nil))
			}
			return a.serveSandbox(cmd.Context(), cfg, listen)
		},
	}
	cmd.Flags().StringVar(&listen, "listen", "127.0.0.1:8080", "`address` to serve on")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "no line for each request")
	cmd.Flags().Uint64Var(&cfg.Seed, "seed", 0, "of the faults' shares: the same `number` hits the same requests")
	cmd.Flags().IntVar(&cfg.MaxLog, "max-log", 0, "keep so many `items`, the newest (default 1,000,000)")
	cmd.Flags().DurationVar(&cfg.QueueDelay, "queue-delay", 200*time.Millisecond, "how long Fanbase's queue takes for an object")
	cmd.Flags().DurationVar(&cfg.TokenLife, "token-life", time.Hour, "how long a token is valid")
	cmd.Flags().BoolVar(&cfg.StopChurnLooseColumns, "loose-columns", false, "let StopChurn take rows that lack columns of earlier rows of their table")
	return cmd
}

func (a *app) serveSandbox(ctx context.Context, cfg sandbox.Config, address string) error {
	ctx, stop := untilSignal(ctx)
	defer stop()
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
	if err != nil {
		return fmt.Errorf("%w; choose another address with --listen", err)
	}
	fmt.Fprintf(a.stdout, "sandbox at http://%s/\n", listener.Addr())
	return sandbox.New(cfg).Serve(ctx, listener)
}
