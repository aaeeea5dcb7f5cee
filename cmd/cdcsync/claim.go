package main

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/cdcsync/cdcsync/internal/backoff"
	"github.com/cdcsync/cdcsync/internal/buffer"
	"github.com/cdcsync/cdcsync/internal/config"
	"github.com/cdcsync/cdcsync/internal/replication"
)

// openBuffer opens the buffer once it is known to be this pipeline's: no cursor of another one is read and nothing of it is
// delivered. The source is asked who it is. While it does not answer, an embedded buffer is trusted that was last used with the
// source as it is configured, so that delivery goes on in an outage; any other, and a cluster, which several may share under
// one name, waits for it.
func openBuffer(ctx context.Context, cfg *config.Config, source *replication.Config, logger *slog.Logger, reg prometheus.Registerer, repair bool) (*buffer.Buffer, error) {
	c := bufferConfig(cfg)
	c.Repair, c.Pulse = repair, source.Pulse
	wait := backoff.Attempts{Range: backoff.Range{Min: 200 * time.Millisecond, Max: 5 * time.Second}}
	for {
		id, asked := identify(ctx, source)
		if replication.IsPermanent(asked) && cfg.Buffer.NATS != nil {
			return nil, asked
		}
		var unverified bool
		c.Claim = func(_ context.Context, claimed, known []byte) ([]byte, error) {
			if asked == nil {
				return id.Claim(claimed, known)
			}
			if unverified = cfg.Buffer.NATS != nil || !replication.Trusts(*source, known); unverified {
				return nil, fmt.Errorf("the source does not say whether this buffer is its own: %w", asked)
			}
			return nil, nil
		}
		b, err := buffer.Open(ctx, c, logger, reg)
		if !unverified || replication.IsPermanent(asked) || ctx.Err() != nil {
			return b, err
		}
		delay := wait.Next()
		logger.WarnContext(ctx, "waiting for the source, nothing is delivered until it says whose buffer this is", "retry_in", delay, "err", asked)
		if err := backoff.Sleep(ctx, delay); err != nil {
			return nil, err
		}
	}
}

// identify gives up soon, since deliveries wait for it.
func identify(ctx context.Context, source *replication.Config) (replication.Identity, error) {
	const patience = 5 * time.Second
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return replication.Identify(ctx, *source)
}
