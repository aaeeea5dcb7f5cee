package integration

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"regexp"
	"strconv"
	"testing"
	"time"

	"github.com/cdcsync/cdcsync/internal/sandbox"
)

var backfillKills = flag.Int("backfill-kills", 5, "how often TestBackfillKill kills the daemon")

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

// neverBack fails the test when a key went back to an older version. After a kill what was in flight comes once more.
func neverBack(tb testing.TB, v *vendor, killed bool) {
	tb.Helper()
	newest := map[string]event{}
	seen := map[event]bool{}
	for i, e := range v.events(tb) {
		if killed && seen[e] {
			continue
		}
		seen[e] = true
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
	neverBack(t, v, false)
}

// A backfill goes on where a loss of power stopped it: nothing is read more than twice.
func TestBackfillKill(t *testing.T) {
	const rows = 200_000
	s, v := newSource(t), newVendor(t, sandbox.Config{})
	w := newWorkload(t, s)
	w.writers = 2
	s.exec(t, `alter table accounts disable trigger remember`)
	s.exec(t, `insert into accounts (id, name, big) select 1000 + i, 'old ' || i, 'small' from generate_series(1, $1) i`, rows)
	d := newDaemon(t, s.url, "log: {level: debug}\n"+v.crm(""))
	d.start()
	d.ready()
	r := rand.New(rand.NewPCG(*seed, 1))
	during(t, w, func() {
		id := d.backfill(map[string]any{"table": "public.accounts", "rate": 50_000})
		for range *backfillKills {
			// Some chunks further than at the start, so that no chunk is cut twice.
			var begun int64 = -1
			goal := 10_000 + r.Int64N(20_000)
			d.wait("the backfill to go on", func() (bool, string) {
				b, err := d.backfillNow(id)
				if begun < 0 && err == nil {
					begun = b.Rows
				}
				return err == nil && (b.Rows > begun+goal || b.State == "done"), fmt.Sprint(b, err)
			})
			pause(t.Context(), time.Duration(r.IntN(30))*time.Millisecond)
			d.kill()
			d.start()
			d.ready()
		}
		d.filled(id)
	})
	arrived(t, d, s, v)
	neverBack(t, v, true)

	times := make([]int, rows+10_000)
	for _, m := range regexp.MustCompile(`msg="chunk read".* after_rows=(\d+) rows=(\d+)`).FindAllStringSubmatch(d.log.String(), -1) {
		from, _ := strconv.Atoi(m[1])
		n, _ := strconv.Atoi(m[2])
		for i := from; i < min(from+n, len(times)); i++ {
			times[i]++
		}
	}
	again := 0
	for i, n := range times[:rows] {
		if n == 0 || n > 2 {
			t.Fatalf("row %d was read %d times", i, n)
		}
		again += n - 1
	}
	t.Logf("%d of %d rows were read twice", again, rows)
}
