package buffer

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/cdcsync/cdcsync/internal/cdc"
)

// Stats is the buffer at one moment. Bytes are approximate between two trims.
type Stats struct {
	First, Last uint64 // sequences; Last is that of the last whole block, 0 when there has been none
	Messages    uint64 // blocks; a large one has several messages
	Bytes       uint64
	MaxBytes    int64 // 0: unbounded

	// FullSince is when appending began to wait for room, zero when it does not; FullReason says for what: max_size, disk, or
	// account (the NATS account's limits).
	FullSince  time.Time
	FullReason string
	FullDetail string // the same with the disk's name and numbers

	Cursors []CursorStats // of the configured sinks, in their order
}

// CursorStats is how far one sink has settled.
type CursorStats struct {
	Sink      string
	Seq       uint64
	Resume    cdc.LSN
	At        time.Time // when it settled last
	LagBlocks uint64    // stored after the cursor
	LagBytes  uint64    // the same in bytes, by the average
}

// Stats costs nothing and may be called often.
func (b *Buffer) Stats() Stats {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := Stats{
		First: b.stored.first, Last: b.stored.end, Messages: b.stored.messages, Bytes: b.stored.bytes, MaxBytes: b.cfg.MaxSize,
		FullSince: b.full.since, FullReason: b.full.reason, FullDetail: b.full.explain(b.full.reason),
	}
	for _, sink := range b.cfg.Sinks {
		at := b.cursors.now[sink]
		c := CursorStats{Sink: sink, Seq: at.Seq, Resume: at.Resume, At: at.At}
		if at.Seq < s.Last && s.Messages > 0 {
			c.LagBlocks = min(s.Last-at.Seq, s.Messages)
			c.LagBytes = s.Bytes / s.Messages * c.LagBlocks
		}
		s.Cursors = append(s.Cursors, c)
	}
	return s
}

type metrics struct {
	reg        prometheus.Registerer
	registered []prometheus.Collector // what unregister takes back

	appendedBlocks, appendedBytes   prometheus.Counter
	appendSeconds                   prometheus.Histogram
	readBackBlocks, cursorWrites    prometheus.Counter
	trims                           prometheus.Histogram
	lag                             *prometheus.Desc
	letterGauge                     *prometheus.Desc
	bytes, maxBytes, blocks, isFull *prometheus.Desc
	trackedGauge                    *prometheus.Desc
	b                               *Buffer
}

func newMetrics(b *Buffer, reg prometheus.Registerer) (*metrics, error) {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "cdcsync_buffer_" + name, Help: help})
	}
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("cdcsync_buffer_"+name, help, labels, nil)
	}
	m := &metrics{
		b: b, reg: reg,
		appendedBlocks: counter("appended_blocks_total", "Blocks stored."),
		appendedBytes:  counter("appended_bytes_total", "Bytes of the blocks stored."),
		readBackBlocks: counter("read_back_blocks_total", "Blocks that a sink read from the stream, being too far behind to find them in memory."),
		cursorWrites:   counter("cursor_writes_total", "Times the cursors were written."),
		appendSeconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "cdcsync_buffer_append_seconds", Help: "Time to store a block durably, waiting for room included.",
			Buckets: prometheus.ExponentialBuckets(0.0001, 4, 10), // 0.1 ms to 26 s
		}),
		trims: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "cdcsync_buffer_trim_seconds", Help: "Time to remove settled blocks.",
			Buckets: prometheus.ExponentialBuckets(0.001, 4, 7), // 1 ms to 4 s
		}),
		bytes:        desc("bytes", "Bytes of the blocks in the buffer."),
		maxBytes:     desc("max_bytes", "Bytes that the blocks may take; 0 is unbounded."),
		blocks:       desc("blocks", "Blocks in the buffer."),
		isFull:       desc("full", "1 while capture waits for room."),
		lag:          desc("lag_blocks", "Blocks that a sink has not settled.", "sink"),
		letterGauge:  desc("dead_letters", "Dead letters.", "sink", "state"),
		trackedGauge: desc("tracked_items", "Items that a vendor has accepted and not confirmed."),
	}
	if reg == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{m, m.appendedBlocks, m.appendedBytes, m.readBackBlocks, m.cursorWrites, m.appendSeconds, m.trims} {
		if err := reg.Register(c); err != nil {
			m.unregister()
			return nil, err
		}
		m.registered = append(m.registered, c)
	}
	return m, nil
}

// unregister lets a buffer be opened again with the same registerer.
func (m *metrics) unregister() {
	for _, c := range m.registered {
		m.reg.Unregister(c)
	}
}

// Describe is of prometheus.Collector.
func (m *metrics) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{m.bytes, m.maxBytes, m.blocks, m.isFull, m.lag, m.letterGauge, m.trackedGauge} {
		ch <- d
	}
}

// Collect is of prometheus.Collector.
func (m *metrics) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	s := m.b.Stats()
	gauge(m.bytes, float64(s.Bytes))
	gauge(m.maxBytes, float64(s.MaxBytes))
	gauge(m.blocks, float64(s.Messages))
	isFull := 0.0
	if s.FullReason != "" {
		isFull = 1
	}
	gauge(m.isFull, isFull)
	for _, c := range s.Cursors {
		gauge(m.lag, float64(c.LagBlocks), c.Sink)
	}
	for _, sink := range m.b.LetterSinks() {
		for _, state := range []LetterState{LetterOpen, LetterSuperseded} {
			gauge(m.letterGauge, float64(m.b.LetterCount(sink, state)), sink, string(state))
		}
	}
	gauge(m.trackedGauge, float64(m.b.TrackedCount()))
}

func (m *metrics) appended(bytes int, took time.Duration) {
	m.appendedBlocks.Inc()
	m.appendedBytes.Add(float64(bytes))
	m.appendSeconds.Observe(took.Seconds())
}

func (m *metrics) readBack(blocks int)        { m.readBackBlocks.Add(float64(blocks)) }
func (m *metrics) cursorWritten()             { m.cursorWrites.Inc() }
func (m *metrics) trimmed(took time.Duration) { m.trims.Observe(took.Seconds()) }
