package replication

import (
	"context"
	"log/slog"
	"slices"
	"testing"

	"github.com/cdcsync/cdcsync/internal/cdc"
)

func (l *live) exportColumns() []string {
	l.t.Helper()
	cfg := BackfillConfig{URL: l.url, Publication: l.cfg.Publication, Manage: l.cfg.Manage}
	e, err := OpenExport(l.ctx, cfg, BackfillSpec{Table: l.cfg.Tables[0]})
	if err != nil {
		l.t.Fatal(err)
	}
	defer e.Close(l.ctx)
	return namesOfColumns(e.Relation())
}

func namesOfColumns(rel *cdc.Relation) []string {
	var names []string
	for _, c := range rel.Columns {
		names = append(names, c.Name)
	}
	return names
}

// An export reads the columns that the stream will send, whether the publication is missing, is yet to be altered, or is left alone.
func TestLiveExportReadsWhatIsStreamed(t *testing.T) {
	for name, before := range map[string]string{
		"no publication":            "",
		"an empty one":              "create publication p",
		"one without generated":     "create publication p for table a",
		"one for all tables":        "create publication p for all tables",
		"one for another table":     "create table b (id int primary key); create publication p for table b",
		"an insert-only one":        "create publication p for table a with (publish = 'insert')",
		"generated in the identity": "alter table a replica identity full",
	} {
		t.Run(name, func(t *testing.T) {
			l := newLive(t, "create table a (id int primary key, v int, g int generated always as (v * 2) stored); insert into a values (1, 1)", "a")
			if before != "" {
				l.exec(before)
			}
			exported := l.exportColumns()
			l.during(func(*Stream) {})
			if streamed := l.exportColumns(); !slices.Equal(exported, streamed) || slices.Contains(exported, "g") != (l.major() >= 18) {
				t.Errorf("before the first run %v, afterwards %v", exported, streamed)
			}
		})
	}
	t.Run("not managed", func(t *testing.T) {
		l := newLive(t, "create table a (id int primary key, v int, g int generated always as (v * 2) stored); create publication p for table a", "a")
		l.cfg.Manage = false
		if exported := l.exportColumns(); slices.Contains(exported, "g") {
			t.Errorf("the publication sends no generated column, and the export has %v", exported)
		}
	})
}

func TestLiveReservedSlotFailsOver(t *testing.T) {
	l := newLive(t, "create table a (id int primary key)", "a")
	r, err := Reserve(l.ctx, l.cfg, slog.New(slog.NewTextHandler(t.Output(), nil)), func(context.Context) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := r.Release(l.ctx, false); err != nil {
			t.Error(err)
		}
	}()
	want := "true"
	if l.major() < 17 {
		want = "none" // the column is not there
	}
	got := l.value("select coalesce(to_jsonb(s) ->> 'failover', 'none') from pg_replication_slots s where slot_name = $1", l.cfg.Slot)
	if got != want || r.Snapshot == "" {
		t.Errorf("failover of the slot is %s, want %s; snapshot %q", got, want, r.Snapshot)
	}
}

// What a killed export leaves is dropped, also while its process has not ended at the server yet.
func TestLiveReservedSlotIsDropped(t *testing.T) {
	l := newLive(t, "create table a (id int primary key)", "a")
	r, err := Reserve(l.ctx, l.cfg, slog.New(slog.NewTextHandler(t.Output(), nil)), func(context.Context) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Release(l.ctx, true); err != nil { // the slot stays
		t.Fatal(err)
	}
	for _, want := range []bool{true, false} {
		existed, err := DropReserved(l.ctx, l.cfg)
		if err != nil || existed != want {
			t.Errorf("got %t, %v, want %t", existed, err, want)
		}
		if there, err := HasSlot(l.ctx, l.cfg); err != nil || there {
			t.Errorf("after it: %t, %v", there, err)
		}
	}
}
