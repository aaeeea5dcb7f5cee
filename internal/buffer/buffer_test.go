package buffer

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"

	"github.com/cdcsync/cdcsync/internal/cdc"
)

func TestMain(m *testing.M) {
	flag.Parse()
	if *child != "" {
		appendForEver(*child)
	}
	goleak.VerifyTestMain(m)
}

// logTo sends what the buffer logs to the test's output.
func logTo(tb testing.TB) *slog.Logger {
	tb.Helper()
	return slog.New(slog.NewTextHandler(tb.Output(), nil))
}

func open(tb testing.TB, cfg Config) *Buffer {
	tb.Helper()
	if cfg.Pipeline == "" {
		cfg.Pipeline = "test"
	}
	b, err := Open(tb.Context(), cfg, logTo(tb), prometheus.NewRegistry())
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

func shut(tb testing.TB, b *Buffer) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second) // tb.Context has ended when a cleanup runs
	defer cancel()
	if err := b.Close(ctx); err != nil {
		tb.Error(err)
	}
}

// opened is open, and shut when the test ends.
func opened(tb testing.TB, cfg Config) *Buffer {
	tb.Helper()
	b := open(tb, cfg)
	tb.Cleanup(func() { shut(tb, b) })
	return b
}

// block is a block of about size bytes whose transaction ends at end.
func block(size int, end cdc.LSN) []byte {
	var w cdc.Writer
	w.Begin(1, end-1, time.UnixMicro(1), 0)
	w.Row(append([]byte{'I'}, bytes.Repeat([]byte{byte(end)}, size)...))
	w.Commit(end)
	return w.Seal(nil, nil)
}

func endOf(tb testing.TB, block []byte) cdc.LSN {
	tb.Helper()
	footer, err := cdc.ReadFooter(block)
	if err != nil {
		tb.Fatal(err)
	}
	return footer.Resume.End
}

func appendAll(tb testing.TB, b *Buffer, blocks ...[]byte) {
	tb.Helper()
	for _, block := range blocks {
		if err := b.Append(tb.Context(), block); err != nil {
			tb.Fatal(err)
		}
	}
}

func wantTail(tb testing.TB, b *Buffer, end cdc.LSN) {
	tb.Helper()
	footer, ok, err := b.Tail(tb.Context())
	if err != nil || ok != (end != 0) || footer.Resume.End != end {
		tb.Fatalf("Tail = %v, %v, %v, want %v", footer.Resume.End, ok, err, end)
	}
}

func sinkOf(tb testing.TB, b *Buffer, name string) *Sink {
	tb.Helper()
	s, err := b.Sink(tb.Context(), name)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(s.Close)
	return s
}

// wantNext reads blocks and compares them.
func wantNext(tb testing.TB, s *Sink, want ...[]byte) (last Block) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(tb.Context(), 10*time.Second)
	defer cancel()
	for i, w := range want {
		got, err := s.Next(ctx)
		if err != nil {
			tb.Fatalf("block %d: %v", i, err)
		}
		if !bytes.Equal(got.Data, w) {
			tb.Fatalf("block %d of %d bytes that ends at %v, want %d bytes that end at %v", i, len(got.Data), endOf(tb, got.Data), len(w), endOf(tb, w))
		}
		if got.Seq <= last.Seq || got.Stored.IsZero() {
			tb.Fatalf("block %d after %d, stored %v", got.Seq, last.Seq, got.Stored)
		}
		last = got
	}
	return last
}

func wantNone(tb testing.TB, s *Sink) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(tb.Context(), 20*time.Millisecond)
	defer cancel()
	if b, err := s.Next(ctx); !errors.Is(err, context.DeadlineExceeded) {
		tb.Fatalf("Next = block %d, %v, want none", b.Seq, err)
	}
}

// eventually polls until ok or ten seconds have passed.
func eventually(tb testing.TB, what string, ok func() bool) {
	tb.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			tb.Fatalf("not within 10 s: %s", what)
		}
	}
}

func TestTailSaysWhereToGoOn(t *testing.T) {
	cfg := Config{Dir: t.TempDir()}
	b := open(t, cfg)
	wantTail(t, b, 0)
	appendAll(t, b, block(10, 100), block(10, 200))
	wantTail(t, b, 200)
	shut(t, b)

	b = open(t, cfg)
	wantTail(t, b, 200)
	appendAll(t, b, block(10, 300))
	if got := b.Delivered(); got != 300 {
		t.Errorf("without sinks Delivered = %v, want what is stored", got)
	}
	shut(t, b)
}

func TestAppendAfterAnErrorWantsTail(t *testing.T) {
	b := opened(t, Config{Dir: t.TempDir()})
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := b.Append(ended, block(10, 100)); !errors.Is(err, context.Canceled) {
		t.Fatalf("Append = %v, want cancelled", err)
	}
	if err := b.Append(t.Context(), block(10, 100)); err == nil || !strings.Contains(err.Error(), "Tail") {
		t.Fatalf("Append = %v, want that it asks for Tail", err)
	}
	wantTail(t, b, 0)
	appendAll(t, b, block(10, 100))
	if err := b.Append(t.Context(), []byte("no block")); err == nil {
		t.Error("what is no block was stored")
	}
}

func TestSinkReadsInOrder(t *testing.T) {
	cfg := Config{Dir: t.TempDir(), Sinks: []string{"crm", "odd name.*"}}
	b := open(t, cfg)
	var blocks [][]byte
	for i := range 40 { // more than stays in memory
		blocks = append(blocks, block(256<<10, cdc.LSN(100+i)))
	}
	crm := sinkOf(t, b, "crm")
	for _, block := range blocks {
		appendAll(t, b, block)
		wantNext(t, crm, block)
	}
	wantNone(t, crm)
	odd := sinkOf(t, b, "odd name.*")
	wantNext(t, odd, blocks...) // from the stream first, then from memory
	wantNone(t, odd)
	shut(t, b)

	b = opened(t, cfg)
	crm = sinkOf(t, b, "crm")
	wantNext(t, crm, blocks...)
	more := block(10, 999)
	appendAll(t, b, more)
	wantNext(t, crm, more)
}

func TestNextIsWokenByAppend(t *testing.T) {
	b := opened(t, Config{Dir: t.TempDir(), Sinks: []string{"crm"}})
	crm := sinkOf(t, b, "crm")
	got := make(chan Block, 1)
	go func() {
		block, _ := crm.Next(t.Context())
		got <- block
	}()
	appendAll(t, b, block(10, 100))
	select {
	case block := <-got:
		if endOf(t, block.Data) != 100 {
			t.Error("another block")
		}
	case <-time.After(10 * time.Second):
		t.Fatal("Next sleeps on")
	}
}

func TestLargeBlocksAreStoredInParts(t *testing.T) {
	cfg := Config{Dir: t.TempDir(), Sinks: []string{"crm"}}
	b := open(t, cfg)
	blocks := [][]byte{block(10, 100), block(9<<20, 200), block(3<<20, 300), block(10, 400)}
	crm := sinkOf(t, b, "crm")
	for i, block := range blocks {
		appendAll(t, b, block)
		wantTail(t, b, cdc.LSN(100*(i+1)))
	}
	wantNext(t, crm, blocks...)
	shut(t, b)

	b = opened(t, cfg)
	wantTail(t, b, 400)
	wantNext(t, sinkOf(t, b, "crm"), blocks...)
}

func TestPartsOfAnUnfinishedBlockAreLeftOut(t *testing.T) {
	cfg := Config{Dir: t.TempDir(), Sinks: []string{"crm"}}
	b := open(t, cfg)
	first, second, third := block(10, 100), block(10, 200), block(10, 300)
	appendAll(t, b, first)
	// What a writer leaves that is killed in the middle of a block.
	for _, p := range []part{{1, 3}, {2, 3}} {
		m := &nats.Msg{Subject: b.names.blockSubject, Data: []byte("part"), Header: nats.Header{partHeader: {p.String()}}}
		if _, err := b.publish(t.Context(), m); err != nil {
			t.Fatal(err)
		}
	}
	shut(t, b)

	b = open(t, cfg)
	wantTail(t, b, 100)
	crm := sinkOf(t, b, "crm")
	wantNext(t, crm, first)
	wantNone(t, crm)
	appendAll(t, b, second)
	wantNext(t, crm, second)
	wantTail(t, b, 200)
	if got := b.Stats().Messages; got != 2 {
		t.Errorf("%d messages are stored, want the two blocks without the parts", got)
	}
	shut(t, b)

	b = opened(t, cfg)
	wantTail(t, b, 200)
	appendAll(t, b, third)
	wantNext(t, sinkOf(t, b, "crm"), first, second, third)
}

func TestAppendKnowsItsOwnBlockAgain(t *testing.T) {
	b := opened(t, Config{Dir: t.TempDir(), Sinks: []string{"crm"}})
	// An attempt that was stored and whose acknowledgement was lost: the next attempt is refused, with the same id there.
	lost := block(10, 100)
	m := &nats.Msg{Subject: b.names.blockSubject, Data: lost, Header: nats.Header{idHeader: {b.writer + ".1"}}}
	if _, err := b.publish(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	next := block(10, 200)
	appendAll(t, b, lost, next)
	crm := sinkOf(t, b, "crm")
	wantNext(t, crm, lost, next)
	wantNone(t, crm)
	if got := b.Stats().Messages; got != 2 {
		t.Errorf("%d blocks are stored, want 2", got)
	}
}

func TestFullBufferWaitsUntilSinksSettle(t *testing.T) {
	const size = 100 << 10
	b := opened(t, Config{Dir: t.TempDir(), MaxSize: 1 << 20, Sinks: []string{"crm", "fans"}})
	crm, fans := sinkOf(t, b, "crm"), sinkOf(t, b, "fans")
	done := make(chan error, 1)
	const blocks = 50
	go func() {
		for i := range blocks {
			if err := b.Append(t.Context(), block(size, cdc.LSN(100+i))); err != nil {
				done <- err
				return
			}
		}
		done <- nil
	}()
	eventually(t, "full", func() bool { return b.Stats().FullReason == "max_size" })
	if got := b.Stats(); got.Bytes > 1<<20 || got.FullSince.IsZero() {
		t.Errorf("full with %d bytes, since %v", got.Bytes, got.FullSince)
	}
	settle := func(s *Sink, i int) {
		got := wantNext(t, s, block(size, cdc.LSN(100+i)))
		s.Settle(got.Seq, cdc.LSN(100+i))
	}
	for i := range 5 {
		settle(crm, i) // one of two does not make room
	}
	if err := crm.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if first := b.Stats().First; first > 1 {
		t.Errorf("blocks before %d were trimmed, which a sink has not settled", first)
	}
	for i := range blocks {
		settle(fans, i)
		if i >= 5 {
			settle(crm, i)
		}
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if got := b.Stats(); got.FullReason != "" || !got.FullSince.IsZero() {
		t.Errorf("still full: %+v", got)
	}
	if got := b.Delivered(); got != 100+blocks-1 {
		t.Errorf("Delivered = %v", got)
	}
	eventually(t, "only the last block is left", func() bool { return b.Stats().Messages == 1 })
	wantTail(t, b, 100+blocks-1)
}

func TestLargeBlockWaitsBeforeItsFirstPart(t *testing.T) {
	b := opened(t, Config{Dir: t.TempDir(), MaxSize: 6 << 20, Sinks: []string{"crm"}})
	crm := sinkOf(t, b, "crm")
	small, large := block(900<<10, 100), block(4<<20, 900)
	for range 4 {
		appendAll(t, b, small)
	}
	done := make(chan error, 1)
	go func() { done <- b.Append(t.Context(), large) }()
	eventually(t, "full", func() bool { return b.Stats().FullReason == "max_size" })
	if got := b.Stats().Messages; got != 4 {
		t.Errorf("%d messages, want none of the large block", got)
	}
	for range 4 {
		crm.Settle(wantNext(t, crm, small).Seq, 100)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	wantNext(t, crm, large)
}

func TestBlockThatNeverFitsIsAnOperatorsMatter(t *testing.T) {
	b := opened(t, Config{Dir: t.TempDir(), MaxSize: 2 << 20, Sinks: []string{"crm"}})
	for _, size := range []int{3 << 20, 900 << 10} {
		err := b.Append(t.Context(), block(size, 100))
		if size < 1<<20 {
			if err != nil {
				t.Fatal(err)
			}
			break
		}
		if !IsPermanent(err) || !strings.Contains(err.Error(), "raise buffer.max_size") {
			t.Fatalf("Append = %v, want that max_size be raised", err)
		}
		wantTail(t, b, 0)
	}
}

func TestFullDiskPausesBeforeNATSMeetsIt(t *testing.T) {
	b := opened(t, Config{Dir: t.TempDir()})
	var free atomic.Uint64
	b.space = func() (uint64, error) { return free.Load(), nil }
	done := make(chan error, 1)
	go func() { done <- b.Append(t.Context(), block(10, 100)) }()
	eventually(t, "full", func() bool { return b.Stats().FullReason == "disk" })
	if err := b.SetValue(t.Context(), "name", []byte("value")); err != nil {
		t.Errorf("a small value on the reserve: %v", err)
	}
	free.Store(1 << 40)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func TestMetrics(t *testing.T) {
	reg := prometheus.NewRegistry()
	b, err := Open(t.Context(), Config{Dir: t.TempDir(), Pipeline: "test", Sinks: []string{"crm"}}, logTo(t), reg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { shut(t, b) })
	appendAll(t, b, block(10, 100), block(10, 200))
	if err := b.Park(t.Context(), []Letter{letter("crm", 1)}); err != nil {
		t.Fatal(err)
	}
	const want = `
# HELP cdcsync_buffer_appended_blocks_total Blocks stored.
# TYPE cdcsync_buffer_appended_blocks_total counter
cdcsync_buffer_appended_blocks_total 2
# HELP cdcsync_buffer_dead_letters Dead letters.
# TYPE cdcsync_buffer_dead_letters gauge
cdcsync_buffer_dead_letters{sink="crm",state="open"} 1
cdcsync_buffer_dead_letters{sink="crm",state="superseded"} 0
# HELP cdcsync_buffer_lag_blocks Blocks that a sink has not settled.
# TYPE cdcsync_buffer_lag_blocks gauge
cdcsync_buffer_lag_blocks{sink="crm"} 2
`
	err = testutil.GatherAndCompare(reg, strings.NewReader(want), "cdcsync_buffer_appended_blocks_total", "cdcsync_buffer_dead_letters", "cdcsync_buffer_lag_blocks")
	if err != nil {
		t.Error(err)
	}
	if problems, err := testutil.GatherAndLint(reg); err != nil || len(problems) > 0 {
		t.Errorf("lint: %v, %v", problems, err)
	}
}

func TestMaxSizeIsAppliedAtOpen(t *testing.T) {
	cfg := Config{Dir: t.TempDir(), MaxSize: 10 << 20, Sinks: []string{"crm"}}
	b := open(t, cfg)
	var blocks [][]byte
	for i := range 20 {
		blocks = append(blocks, block(100<<10, cdc.LSN(100+i)))
	}
	appendAll(t, b, blocks...)
	shut(t, b)

	cfg.MaxSize = 1 << 20 // below what is there
	b = open(t, cfg)
	if got := b.Stats(); got.Messages != 20 || got.MaxBytes != 1<<20 {
		t.Fatalf("stats %+v, want all blocks kept", got)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := b.Append(ctx, block(10, 200)); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("Append = %v, want that it waits", err)
	}
	wantNext(t, sinkOf(t, b, "crm"), blocks...)
	shut(t, b)

	cfg.MaxSize = 10 << 20
	b = opened(t, cfg)
	appendAll(t, b, block(10, 200))
}

func TestDirIsHeldByOne(t *testing.T) {
	dir := t.TempDir()
	opened(t, Config{Dir: dir})
	_, err := Open(t.Context(), Config{Dir: dir, Pipeline: "test"}, logTo(t), nil)
	if !IsPermanent(err) || !strings.Contains(err.Error(), dir) {
		t.Fatalf("Open = %v, want an error that names %s", err, dir)
	}
}

func TestCursorsSurvive(t *testing.T) {
	cfg := Config{Dir: t.TempDir(), Sinks: []string{"crm", "fans"}}
	b := open(t, cfg)
	blocks := [][]byte{block(10, 100), block(10, 200), block(10, 300)}
	appendAll(t, b, blocks...)
	crm, fans := sinkOf(t, b, "crm"), sinkOf(t, b, "fans")
	at := wantNext(t, crm, blocks[0], blocks[1]).Seq
	crm.Settle(at, 200)
	crm.Settle(at-1, 100) // never back
	fans.Settle(wantNext(t, fans, blocks[0]).Seq, 100)
	if got := b.Delivered(); got != 100 {
		t.Errorf("Delivered = %v, want the least", got)
	}
	shut(t, b)

	cfg.Sinks = []string{"fans", "fresh", "crm"}
	b = opened(t, cfg)
	wantNext(t, sinkOf(t, b, "crm"), blocks[2])
	wantNext(t, sinkOf(t, b, "fans"), blocks[1], blocks[2])
	fresh := sinkOf(t, b, "fresh") // from now on
	wantNone(t, fresh)
	if got := b.Stats().Cursors; got[0].LagBlocks != 2 || got[1].LagBlocks != 0 || got[2].LagBlocks != 1 || got[2].LagBytes == 0 {
		t.Errorf("lags %+v", got)
	}
	next := block(10, 400)
	appendAll(t, b, next)
	wantNext(t, fresh, next)
	if _, err := b.Sink(t.Context(), "nobody"); err == nil {
		t.Error("a sink that is not configured was opened")
	}
}

func TestSinkThatReturnsIsToldWhatItMissed(t *testing.T) {
	cfg := Config{Dir: t.TempDir(), Sinks: []string{"crm", "fans"}}
	b := open(t, cfg)
	blocks := [][]byte{block(10, 100), block(10, 200), block(10, 300)}
	appendAll(t, b, blocks...)
	shut(t, b)

	cfg.Sinks = []string{"crm"}
	b = open(t, cfg)
	crm := sinkOf(t, b, "crm")
	crm.Settle(wantNext(t, crm, blocks...).Seq, 300)
	eventually(t, "trimmed", func() bool { return b.Stats().Messages == 1 })
	shut(t, b)

	cfg.Sinks = []string{"crm", "fans"}
	b = opened(t, cfg)
	_, err := b.Sink(t.Context(), "fans")
	var trimmed *TrimmedError
	if !errors.As(err, &trimmed) || trimmed.Messages != 2 || trimmed.Sink != "fans" || !IsPermanent(err) {
		t.Fatalf("Sink = %v, want that 2 blocks were trimmed", err)
	}
	if err := b.Forget(t.Context(), trimmed); err != nil {
		t.Fatal(err)
	}
	wantNext(t, sinkOf(t, b, "fans"), blocks[2])
}

func TestSourceAndValues(t *testing.T) {
	cfg := Config{Dir: t.TempDir()}
	b := open(t, cfg)
	if got, err := b.Source(t.Context()); got != nil || err != nil {
		t.Fatalf("Source = %q, %v", got, err)
	}
	if got, err := b.Value(t.Context(), "pause.crm"); got != nil || err != nil {
		t.Fatalf("Value = %q, %v", got, err)
	}
	for name, value := range map[string]string{"pause.crm": "1", "pause.odd näme": "2", "backfill/x": "3", "gone": "4"} {
		if err := b.SetValue(t.Context(), name, []byte(value)); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(b.SetSource(t.Context(), []byte("slot")), b.DeleteValue(t.Context(), "gone"), b.DeleteValue(t.Context(), "never")); err != nil {
		t.Fatal(err)
	}
	shut(t, b)

	b = opened(t, cfg)
	got, err := b.Values(t.Context(), "pause.")
	if err != nil || fmt.Sprintf("%s", got) != "map[pause.crm:1 pause.odd näme:2]" {
		t.Errorf("Values = %s, %v", got, err)
	}
	if all, err := b.Values(t.Context(), ""); err != nil || len(all) != 3 {
		t.Errorf("Values = %s, %v", all, err)
	}
	if got, err := b.Source(t.Context()); string(got) != "slot" || err != nil {
		t.Errorf("Source = %q, %v", got, err)
	}
}

// listen starts a NATS server of its own on a loopback port.
func listen(tb testing.TB) (url string) {
	tb.Helper()
	s, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: server.RANDOM_PORT, JetStream: true, StoreDir: tb.TempDir(), NoSigs: true, NoLog: true})
	if err != nil {
		tb.Fatal(err)
	}
	s.Start()
	tb.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
	if !s.ReadyForConnections(10 * time.Second) {
		tb.Fatal("no NATS server")
	}
	return s.ClientURL()
}

func TestTwoWritersDoNotInterleave(t *testing.T) {
	cfg := Config{NATS: &NATSConfig{URL: listen(t)}, Sinks: []string{"crm"}}
	active, standby := opened(t, cfg), opened(t, cfg)
	first, second, third := block(10, 100), block(10, 200), block(10, 300)
	appendAll(t, active, first)
	crm := sinkOf(t, active, "crm")
	crm.Settle(wantNext(t, crm, first).Seq, 100)
	if err := crm.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	err := standby.Append(t.Context(), second)
	if !errors.Is(err, ErrConflict) || !IsPermanent(err) {
		t.Fatalf("Append = %v, want a conflict", err)
	}
	// The standby takes over.
	wantTail(t, standby, 100)
	appendAll(t, standby, second)
	if err := active.Append(t.Context(), third); !errors.Is(err, ErrConflict) {
		t.Fatalf("Append = %v, want a conflict", err)
	}
	crm = sinkOf(t, standby, "crm") // its cursor is the one that the other wrote
	crm.Settle(wantNext(t, crm, second).Seq, 200)
	wantNone(t, crm)
	if err := crm.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantTail(t, active, 200)
	wantNone(t, sinkOf(t, active, "crm"))
}

func TestServerWithoutJetStream(t *testing.T) {
	s, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: server.RANDOM_PORT, NoSigs: true, NoLog: true})
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
	if !s.ReadyForConnections(10 * time.Second) {
		t.Fatal("no NATS server")
	}
	_, err = Open(t.Context(), Config{NATS: &NATSConfig{URL: s.ClientURL()}, Pipeline: "test"}, logTo(t), nil)
	if !IsPermanent(err) || !strings.Contains(err.Error(), "enable it") {
		t.Fatalf("Open = %v", err)
	}
}

func TestNoServer(t *testing.T) {
	_, err := Open(t.Context(), Config{NATS: &NATSConfig{URL: "nats://127.0.0.1:1"}, Pipeline: "test"}, logTo(t), nil)
	if !IsPermanent(err) || !strings.Contains(err.Error(), "buffer.nats.url") {
		t.Fatalf("Open = %v", err)
	}
}
