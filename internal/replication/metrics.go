package replication

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

type metrics struct {
	bytes, commits             prometheus.Counter
	changes, skipped, repeated prometheus.Counter
	oversized, reconnects      prometheus.Counter
	blocks, blockBytes         prometheus.Counter
	backfillRows, rereads      prometheus.Counter
	chunks                     prometheus.Counter
	append                     prometheus.Histogram
}

func newMetrics(reg prometheus.Registerer, status *board) *metrics {
	auto := promauto.With(reg)
	counter := func(name, help string) prometheus.Counter {
		return auto.NewCounter(prometheus.CounterOpts{Name: "cdcsync_replication_" + name, Help: help})
	}
	gauge := func(name, help string, value func(Status) float64) {
		auto.NewGaugeFunc(prometheus.GaugeOpts{Name: "cdcsync_replication_" + name, Help: help}, func() float64 { return value(status.now()) })
	}
	gauge("streaming", "1 while changes are received or could be.", func(s Status) float64 {
		if s.State == StateStreaming {
			return 1
		}
		return 0
	})
	gauge("received_lsn_bytes", "WAL position up to which everything was received.", func(s Status) float64 { return float64(s.Received) })
	gauge("stored_lsn_bytes", "WAL position up to which whole transactions are in the buffer.", func(s Status) float64 { return float64(s.Stored) })
	gauge("confirmed_lsn_bytes", "WAL position that the slot was told it may forget.", func(s Status) float64 { return float64(s.Confirmed) })
	gauge("store_lag_bytes", "WAL received whose transactions are not in the buffer whole.", func(s Status) float64 {
		return float64(max(s.Received, s.Stored) - s.Stored)
	})
	gauge("store_lag_seconds", "Commit time between the newest transaction received and the newest in the buffer.", func(s Status) float64 {
		return max(0, s.LastCommit.Sub(s.LastStored).Seconds())
	})
	gauge("last_commit_timestamp_seconds", "Commit time of the newest transaction received, in Unix time.", func(s Status) float64 {
		return unixSeconds(s.LastCommit)
	})
	gauge("last_receive_timestamp_seconds", "When the server was last heard, in Unix time.", func(s Status) float64 { return unixSeconds(s.LastReceive) })
	gauge("open_transaction_bytes", "Received of the transaction whose commit has not been received.", func(s Status) float64 {
		return float64(s.OpenTransaction)
	})
	return &metrics{
		bytes:        counter("received_bytes_total", "Bytes received on the replication connection."),
		commits:      counter("transactions_total", "Transactions received whole."),
		changes:      counter("changes_total", "Changes of mapped tables taken."),
		skipped:      counter("unmapped_changes_total", "Changes left out because no mapping wants their table."),
		repeated:     counter("repeated_changes_total", "Changes received again after a reconnect, that were stored already."),
		oversized:    counter("oversized_rows_total", "Rows longer than the limit, of which only the key was kept."),
		reconnects:   counter("reconnects_total", "Times that the replication connection was lost or could not be made."),
		blocks:       counter("blocks_total", "Blocks stored."),
		blockBytes:   counter("block_bytes_total", "Bytes of the blocks stored."),
		backfillRows: counter("backfill_rows_total", "Existing rows that backfills have put into the buffer."),
		rereads:      counter("backfill_rereads_total", "Rows that a backfill read again, since the stream had overtaken them."),
		chunks:       counter("backfill_chunks_total", "Chunks of rows that backfills have read and put into the buffer."),
		append: auto.NewHistogram(prometheus.HistogramOpts{
			Name: "cdcsync_replication_append_seconds", Help: "Time until a block was durable.",
			Buckets: prometheus.ExponentialBuckets(0.00025, 2, 16), // 0.25 ms to 8 s
		}),
	}
}

func unixSeconds(t time.Time) float64 {
	if t.IsZero() {
		return 0
	}
	return float64(t.UnixMilli()) / 1e3
}

func (m *metrics) received(t *tally) {
	m.bytes.Add(float64(t.bytes))
	m.commits.Add(float64(t.commits))
	m.changes.Add(float64(t.changes))
	m.skipped.Add(float64(t.skipped))
	m.repeated.Add(float64(t.repeated))
	m.oversized.Add(float64(t.oversized))
}

func (m *metrics) backfilled(rows, rereads int) {
	m.chunks.Inc()
	m.backfillRows.Add(float64(rows))
	m.rereads.Add(float64(rereads))
}

func (m *metrics) appended(bytes int, took time.Duration) {
	m.blocks.Inc()
	m.blockBytes.Add(float64(bytes))
	m.append.Observe(took.Seconds())
}
