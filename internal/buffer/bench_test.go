package buffer

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/cdcsync/cdcsync/internal/cdc"
)

// cpuTime is what the process has used, in user and system mode.
func cpuTime(tb testing.TB) time.Duration {
	tb.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		tb.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkThroughput appends blocks of full size while one sink reads and settles them. A million rows of 240 bytes are a
// thousand such blocks: CPU-ms/block is seconds for them.
func BenchmarkThroughput(b *testing.B) {
	for _, test := range []struct {
		name   string
		behind bool
	}{{"keeping up", false}, {"behind", true}} {
		b.Run(test.name, func(b *testing.B) {
			buf := opened(b, Config{Dir: b.TempDir(), Sinks: []string{"crm"}})
			crm := sinkOf(b, buf, "crm")
			data := block(256<<10, 100)
			read := func(ctx context.Context) {
				for range b.N {
					got, err := crm.Next(ctx)
					if err != nil {
						b.Error(err)
						return
					}
					crm.Settle(got.Seq, 100)
				}
			}
			b.SetBytes(int64(len(data)))
			b.ReportAllocs()
			b.ResetTimer()
			used := cpuTime(b)
			done := make(chan struct{})
			if !test.behind {
				go func() { defer close(done); read(b.Context()) }()
			}
			appendAll(b, buf, slices.Repeat([][]byte{data}, b.N)...)
			if test.behind {
				buf.mu.Lock()
				buf.recent.clear()
				buf.mu.Unlock()
				read(b.Context())
				close(done)
			}
			<-done
			b.ReportMetric(float64((cpuTime(b)-used).Microseconds())/1000/float64(b.N), "CPU-ms/block")
		})
	}
}

// BenchmarkLatency appends small blocks one after the other, with a sink that settles each, and reports the time to
// durability and the time from then to the sink.
func BenchmarkLatency(b *testing.B) {
	buf := opened(b, Config{Dir: b.TempDir(), Sinks: []string{"crm"}})
	crm := sinkOf(b, buf, "crm")
	data := block(500, 100)
	stored, wakes := make([]time.Duration, 0, b.N), make([]time.Duration, 0, b.N)
	reads := make(chan time.Time)
	go func() {
		for {
			got, err := crm.Next(b.Context())
			if err != nil {
				return
			}
			reads <- time.Now()
			crm.Settle(got.Seq, 100)
		}
	}()
	used := cpuTime(b)
	for b.Loop() {
		start := time.Now()
		appendAll(b, buf, data)
		done := time.Now()
		stored, wakes = append(stored, done.Sub(start)), append(wakes, max((<-reads).Sub(done), 0))
	}
	b.ReportMetric(float64((cpuTime(b)-used).Microseconds())/float64(b.N), "CPU-µs/block")
	for _, m := range []struct {
		name  string
		times []time.Duration
	}{{"append", stored}, {"wake", wakes}} {
		slices.Sort(m.times)
		b.ReportMetric(float64(m.times[len(m.times)/2].Microseconds()), m.name+"-p50-µs")
		b.ReportMetric(float64(m.times[len(m.times)*99/100].Microseconds()), m.name+"-p99-µs")
	}
}

// BenchmarkPark stores dead letters, a hundred at a time.
func BenchmarkPark(b *testing.B) {
	buf := opened(b, Config{Dir: b.TempDir()})
	n := 0
	for b.Loop() {
		batch := make([]Letter, 100)
		for i := range batch {
			n++
			batch[i] = letter("crm", n)
		}
		if err := buf.Park(b.Context(), batch); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "letters/s")
}

// BenchmarkBacklog fills a buffer and reports the memory that it takes, and how fast it is open again.
func BenchmarkBacklog(b *testing.B) {
	dir := b.TempDir()
	buf := open(b, Config{Dir: dir, Sinks: []string{"crm"}})
	data := block(256<<10, cdc.LSN(100))
	for b.Loop() {
		appendAll(b, buf, data)
	}
	b.ReportMetric(residentMiB(b), "RSS-MiB")
	shut(b, buf)
	start := time.Now()
	buf = open(b, Config{Dir: dir, Sinks: []string{"crm"}})
	b.ReportMetric(float64(time.Since(start).Milliseconds()), "open-ms")
	runtime.GC()
	b.ReportMetric(residentMiB(b), "RSS-MiB-opened")
	shut(b, buf)
}

// residentMiB is the process's resident memory, as Linux tells it.
func residentMiB(tb testing.TB) float64 {
	tb.Helper()
	statm, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		tb.Skip("no /proc: resident memory is not known here")
	}
	var size, resident int
	if _, err := fmt.Sscan(string(statm), &size, &resident); err != nil {
		tb.Fatal(err)
	}
	return float64(resident*os.Getpagesize()) / (1 << 20)
}
