package integration

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"testing"

	"github.com/cdcsync/cdcsync/internal/sandbox"
)

// backfillState is one of what /api/v1/backfills lists.
type backfillState struct {
	ID, State, Reason string
	Rows              int64
	EstimatedRows     int64 `json:"estimated_rows"`
}

// backfill asks the daemon for one and returns its id.
func (d *daemon) backfill(what map[string]any) string {
	d.tb.Helper()
	body, err := json.Marshal(what)
	if err != nil {
		d.tb.Fatal(err)
	}
	response, err := http.Post("http://"+d.admin+"/api/v1/backfills", "application/json", bytes.NewReader(body))
	if err != nil {
		d.tb.Fatal(err)
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(response.Body)
	if err != nil {
		d.tb.Fatal(err)
	}
	var started backfillState
	if err := json.Unmarshal(answer, &started); err != nil || response.StatusCode != http.StatusCreated {
		d.tb.Fatalf("start a backfill of %v: %s %s", what, response.Status, answer)
	}
	return started.ID
}

func (d *daemon) backfillNow(id string) (backfillState, error) {
	response, err := http.Get("http://" + d.admin + "/api/v1/backfills")
	if err != nil {
		return backfillState{}, err
	}
	defer response.Body.Close()
	var list []backfillState
	if err := json.NewDecoder(response.Body).Decode(&list); err != nil {
		return backfillState{}, err
	}
	for _, b := range list {
		if b.ID == id {
			return b, nil
		}
	}
	return backfillState{}, fmt.Errorf("no backfill %s", id)
}

// filled waits until the backfill is done.
func (d *daemon) filled(id string) {
	d.tb.Helper()
	d.wait("backfill "+id, func() (bool, string) {
		b, err := d.backfillNow(id)
		if b.State == "failed" || b.State == "cancelled" {
			d.tb.Fatalf("backfill %s: %+v", id, b)
		}
		return err == nil && b.State == "done", fmt.Sprint(b, err)
	})
}

// arrived waits until StopChurn holds what the source does, and fails the test when it has not.
func arrived(tb testing.TB, d *daemon, s *source, v *vendor) {
	tb.Helper()
	want := s.rows(tb)
	d.wait("every row to arrive", func() (bool, string) {
		got := v.rows(tb)
		if len(got) != len(want) {
			return false, fmt.Sprintf("%d of %d rows", len(got), len(want))
		}
		for key, row := range want {
			if got[key] != row {
				return false, fmt.Sprintf("%s: source %q, vendor %q", key, short(row), short(got[key]))
			}
		}
		return true, ""
	})
}

// neverBack fails the test when a key went back to an older version.
func neverBack(tb testing.TB, v *vendor) {
	tb.Helper()
	newest := map[string]event{}
	for i, e := range v.events(tb) {
		key := e.table + " " + e.id
		if last := newest[key]; last.version > e.version {
			tb.Fatalf("item %d: %v after %v", i, e, last)
		}
		newest[key] = e
	}
}

var backfilled = []string{"public.accounts", "public.orders", "public.profiles", "public.events"}

// The rows that were there before the daemon arrive, merged with what is written meanwhile.
func TestBackfill(t *testing.T) {
	s, v := newSource(t), newVendor(t, sandbox.Config{})
	w := newWorkload(t, s)
	w.writers = 12
	if err := w.run(t.Context(), 100); err != nil {
		t.Fatal(err)
	}
	s.exec(t, `insert into accounts (id, name, big) select 1000 + i, 'old ' || i, 'small' from generate_series(1, 20000) i`)
	d := newDaemon(t, s.url, v.crm(""))
	d.start()
	d.ready()
	during(t, w, func() {
		var ids []string
		for _, table := range backfilled {
			ids = append(ids, d.backfill(map[string]any{"table": table}))
		}
		for _, id := range ids {
			d.filled(id)
		}
	})
	arrived(t, d, s, v)
	neverBack(t, v)
}
