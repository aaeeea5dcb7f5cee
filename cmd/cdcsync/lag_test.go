package main

import (
	"testing"
	"time"

	"github.com/cdcsync/cdcsync/internal/admin"
	"github.com/cdcsync/cdcsync/internal/buffer"
	"github.com/cdcsync/cdcsync/internal/cdc"
	"github.com/cdcsync/cdcsync/internal/replication"
)

func TestLagsAreMeasuredAgainstTheServersEnd(t *testing.T) {
	t.Parallel()
	now := time.Now()
	for _, c := range []struct {
		name                 string
		lag                  *replication.Lag
		seen, stored         cdc.LSN
		cursor               buffer.CursorStats
		delivered            cdc.LSN
		source, sink, retain int64
	}{
		{name: "before the first answer", seen: 100, stored: 100, source: -1, sink: -1, retain: -1},
		{
			name: "the answer is old", lag: &replication.Lag{At: now.Add(-time.Minute), ServerEnd: 500, Retained: 400}, seen: 100, stored: 100,
			source: -1, sink: -1, retain: -1,
		},
		{
			name: "received and not stored", lag: &replication.Lag{At: now, ServerEnd: 500, Retained: 400}, seen: 500, stored: 100,
			cursor: buffer.CursorStats{Seq: 7, Resume: 100}, source: 400, sink: 400, retain: 400,
		},
		{
			name: "nothing settled since the start", lag: &replication.Lag{At: now, ServerEnd: 500}, seen: 500, stored: 500,
			cursor: buffer.CursorStats{Seq: 3, Resume: 200, At: now.Add(-time.Hour)}, source: 0, sink: 300, retain: 0,
		},
		{
			name: "all settled, and other tables write", lag: &replication.Lag{At: now, ServerEnd: 500}, seen: 500, stored: 500,
			cursor: buffer.CursorStats{Seq: 7, Resume: 200}, delivered: 200, source: 0, sink: 0, retain: 0,
		},
	} {
		source := admin.Source{Stored: c.stored}
		measureSource(&source, c.seen, c.lag, now)
		sink := admin.Sink{Delivered: c.delivered}
		measureSink(&sink, &source, 7, c.cursor)
		if source.LagBytes != c.source || sink.LagBytes != c.sink || source.RetainedWALBytes != c.retain {
			t.Errorf("%s: source %d, sink %d, retained %d; want %d, %d, %d", c.name, source.LagBytes, sink.LagBytes, source.RetainedWALBytes, c.source, c.sink, c.retain)
		}
		if want := c.cursor.Seq == 3; (sink.LagSeconds > 0) != want {
			t.Errorf("%s: lag of %g s", c.name, sink.LagSeconds)
		}
	}
}
