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
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

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
	status, answer := d.post("/api/v1/backfills", what)
	var started backfillState
	if err := json.Unmarshal([]byte(answer), &started); err != nil || status != http.StatusCreated {
		d.tb.Fatalf("start a backfill of %v: %d %s", what, status, answer)
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

// neverBack fails the test when a key went back to an older state. After a kill what was in flight comes once more.
func neverBack(tb testing.TB, s *source, v *vendor, killed bool) {
	tb.Helper()
	history := s.history(tb)
	place := func(e event) int64 { // a row that is read comes as an insert, whatever it was; what no history has was there before
		if e.op == "insert" {
			return max(history[e], history[event{e.table, "update", e.id, e.version}])
		}
		return history[e]
	}
	newest := map[string]event{}
	seen := map[event]bool{}
	for i, e := range v.events(tb) {
		if killed && seen[e] {
			continue
		}
		seen[e] = true
		key := e.table + " " + e.id
		if last := newest[key]; place(last) > place(e) {
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
	neverBack(t, s, v, false)
}

// A backfill goes on where a loss of power stopped it: nothing is read more than twice.
func TestBackfillKill(t *testing.T) {
	const rows = 200_000
	s, v := newSource(t), newVendor(t, sandbox.Config{})
	w := newWorkload(t, s)
	w.writers = 2
	s.exec(t, `alter table accounts disable trigger remember`)
	s.exec(t, `insert into accounts (id, name, big) select 1000 + i, 'old ' || i, 'small' from generate_series(1, $1) i`, rows)
	s.exec(t, `alter table accounts enable trigger remember`)
	d := newDaemon(t, s.url, "log: {level: debug}\n"+v.crm(""))
	d.start()
	d.ready()
	v.fault(t, sandbox.Fault{Kind: sandbox.Delay, Delay: sandbox.Duration(20 * time.Millisecond)}) // some 50,000 rows a second: the kills find it at work
	r := rand.New(rand.NewPCG(*seed, 1))
	during(t, w, func() {
		id := d.backfill(map[string]any{"table": "public.accounts"})
		for range *backfillKills {
			// Further than all that is read and not stored at a time, so that no two kills meet the same chunk.
			var begun int64 = -1
			goal := 25_000 + r.Int64N(10_000)
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
	neverBack(t, s, v, true)

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

// Rows that were there before the daemon reach all four vendors, with lookups and refreshes, while changes stream; and those that are
// sent to one sink reach no other.
func TestBackfillFourVendors(t *testing.T) {
	s, v := &source{url: postgres.NewDatabase(t)}, newVendor(t, sandbox.Config{QueueDelay: 10 * time.Millisecond})
	s.exec(t, clubSchema)
	w := &clubWorkload{url: s.url, writers: 4, seed: *seed, pause: 5 * time.Millisecond}
	duringClub(t, w, func() {
		waitFor(t, "rows", func() (bool, string) {
			var rows int
			s.each(t, `select (select count(*) from users) + (select count(*) from fans) + (select count(*) from memberships) + (select count(*) from orders)`,
				[]any{&rows}, func() {})
			return rows > 150, fmt.Sprint(rows)
		})
	})
	d := newDaemon(t, s.url, v.club("retry: {min: 10ms, max: 500ms}, dead_letters: {limit: 1000000}"))
	d.start()
	d.ready()
	duringClub(t, w, func() {
		var ids []string
		for _, table := range []string{"users", "orders", "fans", "memberships", "tier_approvals"} {
			ids = append(ids, d.backfill(map[string]any{"table": "public." + table}))
		}
		for _, id := range ids {
			d.filled(id)
		}
	})
	d.settled(t, s)
	compareClub(t, s, v, d.letters(t))

	before := accepted(v)
	d.filled(d.backfill(map[string]any{"table": "public.users", "sink": "queue"}))
	users := uint64(0)
	s.each(t, `select count(*) from users`, []any{&users}, func() {})
	before["fanbase_queue"] += users
	if diff := cmp.Diff(before, accepted(v)); diff != "" || users == 0 {
		t.Errorf("items after a backfill of %d users for the queue (-want +got):\n%s", users, diff)
	}
}

func accepted(v *vendor) map[string]uint64 {
	items := map[string]uint64{}
	for endpoint := range sinkOf {
		items[endpoint] = v.Accepted(endpoint)
	}
	return items
}

// Rows are read at the pace of the vendor, in chunks so small that a change waits behind few of them.
func TestBackfillLetsChangesPass(t *testing.T) {
	const lanes, most = 8, 300
	s, v := newSource(t), newVendor(t, sandbox.Config{})
	s.exec(t, `insert into accounts (id, name) select i, 'old ' || i from generate_series(1, 20000) i`)
	v.fault(t, sandbox.Fault{Kind: sandbox.Delay, Delay: sandbox.Duration(20 * time.Millisecond)})
	d := newDaemon(t, s.url, v.crm(fmt.Sprintf(", batch: {items: 1}, concurrency: %d", lanes)))
	d.start()
	d.ready()
	id := d.backfill(map[string]any{"table": "public.accounts"})
	d.wait("the pace to be known", func() (bool, string) { return v.Accepted("stopchurn") > 1500, fmt.Sprint(v.Accepted("stopchurn")) })
	before := len(v.events(t))
	s.exec(t, `insert into accounts (id, name) values (0, 'new')`)
	var sent int // before the change
	d.wait("the change", func() (bool, string) {
		all := v.events(t)
		sent = slices.IndexFunc(all, func(e event) bool { return e.id == "0" }) - before
		return sent >= 0, fmt.Sprint(len(all))
	})
	if sent > most {
		t.Errorf("%d rows were sent before the change, want at most %d", sent, most)
	}
	d.act(id, "cancel", http.StatusNoContent)
}

// A mapping that asks for existing rows gets them once, also when it is added later, and only its sink does.
func TestBackfillInitial(t *testing.T) {
	s, v := newSource(t), newVendor(t, sandbox.Config{})
	s.exec(t, `insert into accounts (id, name) select i, 'old ' || i from generate_series(1, 500) i`)
	s.exec(t, `insert into orders (tenant, no, note) select i, i, 'old ' || i from generate_series(1, 300) i`)
	sink := fmt.Sprintf("sinks: {crm: {type: stopchurn, url: %q, api_key: sandbox-key}}\nmappings:\n", v.url)
	accounts := `  - {table: public.accounts, sink: crm, backfill: initial, item: {brandId: 1, tableName: accounts, createdAt: $created_at, updatedAt: $updated_at, data: {"*": {}}}}` + "\n"
	orders := `  - {table: public.orders, sink: crm, backfill: initial, item: {brandId: 1, tableName: orders, createdAt: $created_at, updatedAt: $created_at, data: {id: =string(tenant), note: $note}}}` + "\n"
	d := newDaemon(t, s.url, sink+accounts)
	holds := func(items uint64) {
		t.Helper()
		d.wait(fmt.Sprint(items, " items"), func() (bool, string) { return v.Accepted("stopchurn") >= items, fmt.Sprint(v.Accepted("stopchurn")) })
	}
	d.start()
	d.ready()
	holds(500)
	d.filled("1")
	d.stop()

	d.configure(fmt.Sprintf("source: {url: %q, slot: %s}\nadmin: {listen: %q}\n%s", s.url, slotName(t), d.admin, sink+accounts+orders))
	d.start()
	d.ready()
	holds(800)
	d.filled("2")
	s.exec(t, `insert into accounts (id, name) values (1000, 'new')`)
	holds(801)
	if n := v.Accepted("stopchurn"); n != 801 {
		t.Errorf("%d items arrived, want 801", n)
	}
	if _, err := d.backfillNow("3"); err == nil {
		t.Error("a backfill that nobody asked for")
	}
}

// A paused backfill goes on where it stopped, a cancelled one does not, and what cannot be is refused with the reason.
func TestBackfillOrders(t *testing.T) {
	s, v := newSource(t), newVendor(t, sandbox.Config{})
	s.exec(t, `insert into accounts (id, name) select i, 'old ' || i from generate_series(1, 3000) i`)
	d := newDaemon(t, s.url, v.crm(""))
	d.start()
	d.ready()
	id := d.backfill(map[string]any{"table": "public.accounts", "rate": 500, "where": "id % 2 = 0"})
	d.wait("some rows", func() (bool, string) {
		b, err := d.backfillNow(id)
		return err == nil && b.Rows > 0, fmt.Sprint(b, err)
	})
	d.act(id, "pause", http.StatusNoContent)
	d.act(id, "pause", http.StatusConflict)
	d.kill()
	d.start()
	d.ready()
	b, err := d.backfillNow(id)
	if err != nil || b.State != "paused" || b.Rows == 0 || b.Rows >= 1500 {
		t.Fatalf("after a restart: %+v %v", b, err)
	}
	d.act(id, "resume", http.StatusNoContent)
	d.filled(id)
	if b, _ := d.backfillNow(id); b.Rows != 1500 {
		t.Errorf("%d rows were sent, want 1500", b.Rows)
	}
	for _, row := range v.Rows("accounts") {
		if n, _ := strconv.Atoi(row.ID); n%2 != 0 {
			t.Fatalf("row %s does not meet the condition", row.ID)
		}
	}
	id = d.backfill(map[string]any{"table": "public.accounts", "rate": 100})
	d.act(id, "cancel", http.StatusNoContent)
	d.act(id, "resume", http.StatusConflict)
	d.act("99", "pause", http.StatusNotFound)
	for _, what := range []map[string]any{
		{"table": "public.nothing"},
		{"table": "public.accounts", "sink": "nobody"},
		{"table": "public.accounts", "where": "no_such_column > 1"},
		{"table": "public.accounts", "where": "id > 1; drop table accounts"},
	} {
		if status, answer := d.post("/api/v1/backfills", what); status != http.StatusBadRequest && status != http.StatusUnprocessableEntity {
			t.Errorf("%v: %d %s", what, status, answer)
		}
	}
}

func (d *daemon) act(id, what string, want int) {
	d.tb.Helper()
	if status, answer := d.post("/api/v1/backfills/"+id+"/"+what, struct{}{}); status != want {
		d.tb.Errorf("%s %s: %d %s, want %d", what, id, status, answer, want)
	}
}

func (d *daemon) post(path string, request any) (status int, answer string) {
	d.tb.Helper()
	body, err := json.Marshal(request)
	if err != nil {
		d.tb.Fatal(err)
	}
	response, err := http.Post("http://"+d.admin+path, "application/json", bytes.NewReader(body))
	if err != nil {
		d.tb.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		d.tb.Fatal(err)
	}
	return response.StatusCode, string(text)
}
