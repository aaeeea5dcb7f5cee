package buffer

import (
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/cdcsync/cdcsync/internal/cdc"
)

// A finding that is made again and again stays one gap, which outlives a restart and grows with what is found.
func TestGapsGrowAndOutliveARestart(t *testing.T) {
	cfg := Config{Dir: t.TempDir(), Pipeline: "p"}
	b := open(t, cfg)
	found := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	gap := cdc.Gap{Cause: cdc.GapUnpublished, Table: "public.users", Reason: "not published", Since: 200, Found: found}
	first, err := b.RecordGap(t.Context(), gap)
	if err != nil {
		t.Fatal(err)
	}
	gap.Since = 100
	if _, err := b.RecordGap(t.Context(), gap); err != nil {
		t.Fatal(err)
	}
	gap.Table = "public.orders"
	if _, err := b.RecordGap(t.Context(), gap); err != nil {
		t.Fatal(err)
	}
	if err := b.Close(t.Context()); err != nil {
		t.Fatal(err)
	}

	b = opened(t, cfg)
	want := []cdc.Gap{
		{ID: "g1", Cause: cdc.GapUnpublished, State: cdc.GapOpen, Table: "public.users", Reason: "not published", Since: 100, Found: found},
		{ID: "g2", Cause: cdc.GapUnpublished, State: cdc.GapOpen, Table: "public.orders", Reason: "not published", Since: 100, Found: found},
	}
	if diff := cmp.Diff(want, b.Gaps()); diff != "" {
		t.Fatalf("gaps after a restart (-want +got):\n%s", diff)
	}
	if err := b.CloseGap(t.Context(), first.ID); err != nil {
		t.Fatal(err)
	}
	if err := b.CloseGap(t.Context(), first.ID); !errors.Is(err, ErrNoGap) {
		t.Fatalf("closing a gap twice: got %v, want ErrNoGap", err)
	}
	if diff := cmp.Diff(want[1:], b.Gaps()); diff != "" {
		t.Fatalf("gaps after one was closed (-want +got):\n%s", diff)
	}
}

// A gap whose rows were sent is open again when more is missed, and not when the same is found again.
func TestGapOpensAgainOnlyWhenMoreIsMissed(t *testing.T) {
	b := opened(t, Config{Dir: t.TempDir(), Pipeline: "p"})
	gap, err := b.RecordGap(t.Context(), cdc.Gap{Cause: cdc.GapPartition, Table: "public.ev", Reason: "detached", Since: 100, Until: 200})
	if err != nil {
		t.Fatal(err)
	}
	gap.State, gap.Backfill = cdc.GapRowsSent, "b1"
	if err := b.UpdateGap(t.Context(), gap); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		until cdc.LSN
		want  cdc.GapState
	}{{200, cdc.GapRowsSent}, {300, cdc.GapOpen}} {
		got, err := b.RecordGap(t.Context(), cdc.Gap{Cause: cdc.GapPartition, Table: "public.ev", Reason: "detached", Since: 100, Until: c.until})
		if err != nil {
			t.Fatal(err)
		}
		if got.State != c.want {
			t.Errorf("state after changes until %s were missed: got %s, want %s", c.until, got.State, c.want)
		}
	}
}

// Whoever looks through the blocks that are left, for a backfill or a recovery, finds no gap in what was settled and trimmed.
func TestLookingThroughTheBlocksIsNoGap(t *testing.T) {
	b := opened(t, Config{Dir: t.TempDir(), Sinks: []string{"crm"}})
	sink, err := b.Sink(t.Context(), "crm")
	if err != nil {
		t.Fatal(err)
	}
	defer sink.Close()
	for end := cdc.LSN(10); end <= 50; end += 10 {
		if err := b.Append(t.Context(), block(100, end)); err != nil {
			t.Fatal(err)
		}
	}
	var last Block
	for range 3 {
		if last, err = sink.Next(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	sink.Settle(last.Seq, 30)
	deadline := time.Now().Add(30 * time.Second)
	for b.firstStored() <= last.Seq {
		if time.Now().After(deadline) {
			t.Fatalf("the settled blocks are not trimmed: the first is %d, want one behind %d", b.firstStored(), last.Seq)
		}
		time.Sleep(5 * time.Millisecond)
	}
	b.mu.Lock()
	b.recent.clear() // they are read from the store
	b.mu.Unlock()
	seen := 0
	if err := b.Retained(t.Context(), func(Block) error { seen++; return nil }); err != nil {
		t.Fatal(err)
	}
	if gaps := b.Gaps(); seen != 2 || len(gaps) > 0 {
		t.Errorf("got %d blocks and gaps %v, want 2 blocks and no gap", seen, gaps)
	}
}

// Rows of a backfill that a mapping was held for lie at a position that may be older than the gap's end; the backfill does not close it.
func TestMappingGapGrowsInTime(t *testing.T) {
	b := opened(t, Config{Dir: t.TempDir(), Pipeline: "p"})
	at := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	gap := cdc.Gap{Cause: cdc.GapMapping, Table: "public.t", Mapping: "one", Sinks: []string{"crm"}, Reason: "no column", Since: 100, Until: 200, UntilTime: at}
	if _, err := b.RecordGap(t.Context(), gap); err != nil {
		t.Fatal(err)
	}
	gap.Since, gap.Until, gap.UntilTime = 150, 150, at.Add(time.Minute)
	got, err := b.RecordGap(t.Context(), gap)
	if err != nil || got.Until != 200 || !got.UntilTime.Equal(at.Add(time.Minute)) || got.State != cdc.GapOpen {
		t.Errorf("gap %+v, %v", got, err)
	}
	gap.Mapping = "other"
	if other, err := b.RecordGap(t.Context(), gap); err != nil || other.ID == got.ID {
		t.Errorf("another mapping's gap: %+v, %v", other, err)
	}
}
