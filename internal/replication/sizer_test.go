package replication

import (
	"testing"
	"time"
)

// modelSink takes rounds of requests, each as long as a request and its rows need.
type modelSink struct {
	name    string
	round   int
	request time.Duration
	row     time.Duration
}

func (s modelSink) takes(rows int) time.Duration {
	rounds := (rows + s.round - 1) / s.round
	return time.Duration(rounds)*s.request + time.Duration(rows)*s.row
}

// A chunk takes its time where it can, and where it cannot, chunks are large enough that the sinks do what they can.
func TestChunkSizes(t *testing.T) {
	for name, test := range map[string]struct {
		sinks       []modelSink
		perRow      time.Duration // to read
		fill        float64       // share of a chunk's bytes that a row has
		least, most int           // the size that is right
		longest     time.Duration // of a delivery
		settled     int           // so many chunks later; 30 unless it says otherwise
	}{
		"nothing is slow": {
			sinks: []modelSink{{"fast", 1000, 10 * time.Microsecond, time.Microsecond / 2}},
			least: 50_000, most: 130_000, longest: 2 * deliveryTime,
		},
		"the table is slow": {
			sinks:  []modelSink{{"fast", 1000, 10 * time.Microsecond, time.Microsecond / 2}},
			perRow: time.Millisecond, least: 200, most: 200, longest: deliveryTime,
		},
		"rows are large": {
			sinks: []modelSink{{"fast", 1000, 10 * time.Microsecond, time.Microsecond / 2}},
			fill:  1.0 / 200, least: 170, most: 190, longest: deliveryTime, settled: 2,
		},
		"a vendor takes some rows a second": {
			sinks: []modelSink{{"slow", 8, 0, 6 * time.Millisecond}},
			least: 8, most: 12, longest: 2 * deliveryTime,
		},
		"a vendor is far away": { // half of what it could take, or more
			sinks: []modelSink{{"far", 1000, 200 * time.Millisecond, 0}},
			least: 1000, most: 1000, longest: 200 * time.Millisecond,
		},
		"one is far away, one takes a row at a time": {
			sinks: []modelSink{{"far", 1000, 200 * time.Millisecond, 0}, {"slow", 8, 50 * time.Millisecond, 0}},
			least: 15, most: 64, longest: 400 * time.Millisecond,
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := sizer{readable: firstChunk}
			settled := test.settled
			if settled == 0 {
				settled = 30
			}
			for n := range 60 {
				size := s.next()
				var last modelSink
				for _, sink := range test.sinks {
					if last.name == "" || sink.takes(size) > last.takes(size) {
						last = sink
					}
				}
				took := last.takes(size)
				fill := test.fill * float64(size)
				c := chunk{cut: fill > 1, scanned: int(float64(size) / fill)}
				s.read(c.size(size), time.Duration(size)*test.perRow, min(fill, 1))
				s.delivered(size, took, last.round)
				if n >= settled && (size < test.least || size > test.most || took > test.longest) {
					t.Errorf("chunk %d has %d rows, want %d to %d, and takes %s, want at most %s", n, size, test.least, test.most, took, test.longest)
				}
			}
		})
	}
}
