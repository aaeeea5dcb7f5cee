package buffer

import (
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"
)

func trackedItem(n int) Tracked {
	return Tracked{
		Sink: "fans", ItemID: fmt.Sprintf("item-%d", n), ID: fmt.Sprintf("vendor-%d", n),
		AcceptedAt: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC), Letter: letter("fans", n),
	}
}

func trackedItems(tb testing.TB, b *Buffer, sink string) (ids string) {
	tb.Helper()
	for item, err := range b.TrackedItems(tb.Context(), sink) {
		if err != nil {
			tb.Fatal(err)
		}
		if item.Letter.Mapping != "users" || item.AcceptedAt.IsZero() {
			tb.Errorf("item %+v", item)
		}
		ids += item.ID + " "
	}
	return ids
}

func TestTrackedItemsSurvive(t *testing.T) {
	cfg := Config{Dir: t.TempDir()}
	b := open(t, cfg)
	if err := b.Track(t.Context(), []Tracked{trackedItem(1), trackedItem(2), trackedItem(3)}); err != nil {
		t.Fatal(err)
	}
	b.Untrack("fans", "item-2", "never tracked")
	again := trackedItem(3)
	again.ID = "vendor-3b"
	if err := b.Track(t.Context(), []Tracked{again}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if got := trackedItems(t, b, "fans"); got != "vendor-1 vendor-3b " {
			t.Errorf("tracked %s", got)
		}
		if got := trackedItems(t, b, "crm"); got != "" {
			t.Errorf("another sink tracks %s", got)
		}
		if _, ok, err := b.TrackedItem(t.Context(), "fans", "item-2"); ok || err != nil || b.TrackedCount() != 2 {
			t.Errorf("%d are tracked; %v", b.TrackedCount(), err)
		}
		if item, ok, err := b.TrackedItem(t.Context(), "fans", "item-3"); !ok || err != nil || item.ID != "vendor-3b" {
			t.Errorf("TrackedItem = %+v, %v, %v", item, ok, err)
		}
		shut(t, b)
		b = open(t, cfg)
	}
	shut(t, b)
}

func TestTrackedLogIsTidied(t *testing.T) {
	cfg := Config{Dir: t.TempDir()}
	b := open(t, cfg)
	straggler := trackedItem(-1)
	if err := b.Track(t.Context(), []Tracked{straggler}); err != nil {
		t.Fatal(err)
	}
	for i := range 10 {
		var batch []Tracked
		for j := range 1000 {
			batch = append(batch, trackedItem(i*1000+j))
		}
		if err := b.Track(t.Context(), batch); err != nil {
			t.Fatal(err)
		}
		for _, item := range batch {
			b.Untrack("fans", item.ItemID)
		}
	}
	if err := b.flushTracked(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "tidied", func() bool {
		info, err := b.streamInfo(t.Context(), b.names.tracked)
		return err == nil && info.State.Bytes < 2<<20
	})
	shut(t, b)
	b = opened(t, cfg)
	if got := trackedItems(t, b, "fans"); got != "vendor--1 " {
		t.Errorf("tracked %s", got)
	}
}

func TestTrackersShareWrites(t *testing.T) {
	b := opened(t, Config{Dir: t.TempDir()})
	start := time.Now()
	const lanes, each = 8, 250
	var wg sync.WaitGroup
	for lane := range lanes {
		wg.Go(func() {
			for i := range each {
				if err := b.Track(t.Context(), []Tracked{trackedItem(lane*each + i)}); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	t.Logf("%d items tracked one by one from %d lanes in %v", lanes*each, lanes, time.Since(start))
	if got := b.TrackedCount(); got != lanes*each {
		t.Errorf("%d tracked", got)
	}
}

func TestLargeTrackedItemLosesItsContents(t *testing.T) {
	cfg := Config{Dir: t.TempDir()}
	b := open(t, cfg)
	large := trackedItem(1)
	large.Letter.Item, _ = json.Marshal(strings.Repeat("x", 2<<20))
	if err := b.Track(t.Context(), []Tracked{large}); err != nil {
		t.Fatal(err)
	}
	shut(t, b)
	b = opened(t, cfg)
	for item, err := range b.TrackedItems(t.Context(), "fans") {
		if err != nil || item.ID != "vendor-1" || item.Letter.Item != nil || item.Letter.Remark == "" {
			t.Errorf("item %+v, %v", item, err)
		}
	}
}
