package demo

import (
	"context"
	"fmt"
	"time"

	"github.com/cdcsync/cdcsync/internal/sandbox"
)

// Report says once a second what the source changed and what the vendors took, until ctx ends.
func Report(ctx context.Context, w *Workload, vendors *sandbox.Server, say func(line string)) error {
	started := time.Now()
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
			say(line(time.Since(started), w.Changes(), vendors))
		}
	}
}

// line is such as "  12s  source: 310 transactions, 402 inserts 188 updates 61 deletes → StopChurn 480  queue 133  batch 96  Fanatics 70".
func line(elapsed time.Duration, c Changes, vendors *sandbox.Server) string {
	return fmt.Sprintf("%4ds  source: %d transactions, %d inserts %d updates %d deletes → StopChurn %d  Fanbase queue %d  Fanbase batch %d  Fanatics %d",
		int(elapsed.Round(time.Second).Seconds()), c.Transactions, c.Inserts, c.Updates, c.Deletes,
		vendors.Accepted("stopchurn"), vendors.Accepted("fanbase_queue"), vendors.Accepted("fanbase_batch"), vendors.Accepted("fanatics_approvals"))
}
