package integration

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/sourcegraph/conc"

	"github.com/cdcsync/cdcsync/internal/pgtest"
	"github.com/cdcsync/cdcsync/internal/sandbox"
)

// vendor is a sandbox of the test's own.
type vendor struct {
	*sandbox.Server
	url string
}

func newVendor(tb testing.TB, cfg sandbox.Config) *vendor {
	tb.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	v := &vendor{Server: sandbox.New(cfg), url: "http://" + listener.Addr().String()}
	ctx, cancel := context.WithCancel(context.Background())
	var wg conc.WaitGroup
	wg.Go(func() { _ = v.Serve(ctx, listener) })
	tb.Cleanup(func() { cancel(); wg.Wait() })
	return v
}

func (v *vendor) fault(tb testing.TB, f sandbox.Fault) int {
	tb.Helper()
	id, err := v.AddFault(f)
	if err != nil {
		tb.Fatal(err)
	}
	return id
}

// crm is the configuration of a StopChurn sink at the sandbox, with mappings of schema.
func (v *vendor) crm(settings string) string {
	return fmt.Sprintf("sinks:\n  crm: {type: stopchurn, url: %q, api_key: sandbox-key, retry: {min: 10ms, max: 500ms}%s}\nmappings:%s", v.url, settings, mappings)
}

// event is one write, as history has it and as StopChurn receives it.
type event struct {
	table, op, id string
	version       int64
}

func (e event) String() string { return fmt.Sprintf("%s %s %s v%d", e.op, e.table, e.id, e.version) }

// events returns what StopChurn has received, in order.
func (v *vendor) events(tb testing.TB) []event {
	tb.Helper()
	items := v.Received(sandbox.Filter{Endpoint: "stopchurn"})
	events := make([]event, 0, len(items))
	for _, item := range items {
		var body struct {
			Data struct{ Data struct{ Version int64 } }
		}
		if err := json.Unmarshal(item.Body, &body); err != nil {
			tb.Fatalf("item %d: %v", item.Seq, err)
		}
		events = append(events, event{item.Table, item.Op, item.Key, body.Data.Data.Version})
	}
	return events
}

// rows returns what StopChurn holds, in the form of expected.
func (v *vendor) rows(tb testing.TB) map[string]string {
	tb.Helper()
	rows := map[string]string{}
	for _, row := range v.Rows("") {
		rows[row.Table+" "+row.ID] = rowText(tb, row.Table, row.Data)
	}
	return rows
}

// rowText is a row's data as StopChurn gets it in the form of expected.
func rowText(tb testing.TB, table string, data []byte) string {
	tb.Helper()
	var d struct {
		Version           int64
		Name, Note, Big   string
		Amount, Bio, Kind string
		Visits            int
	}
	if err := json.Unmarshal(data, &d); err != nil {
		tb.Fatalf("row of %s: %v", table, err)
	}
	text := map[string]string{
		"accounts": d.Name + "|" + d.Big + "|" + d.Amount,
		"orders":   d.Note + "|" + d.Big,
		"profiles": fmt.Sprintf("%s|%d", d.Bio, d.Visits),
		"events":   d.Kind,
	}[table]
	return fmt.Sprintf("v%d %s", d.Version, text)
}

// source is the test's own database.
type source struct {
	url string
}

// newSource makes a database with schema.
func newSource(tb testing.TB) *source {
	tb.Helper()
	s := &source{url: postgres.NewDatabase(tb)}
	s.exec(tb, schema)
	return s
}

func (s *source) connect(tb testing.TB) *pgx.Conn {
	tb.Helper()
	conn, err := pgx.Connect(context.Background(), s.url)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

func (s *source) exec(tb testing.TB, sql string, args ...any) {
	tb.Helper()
	conn, err := pgx.Connect(context.Background(), s.url)
	if err != nil {
		tb.Fatal(err)
	}
	defer func() { _ = conn.Close(context.Background()) }()
	if _, err := conn.Exec(context.Background(), sql, args...); err != nil {
		tb.Fatal(err)
	}
}

func (s *source) rows(tb testing.TB) map[string]string {
	tb.Helper()
	rows := map[string]string{}
	var table, id, text string
	var version int64
	s.each(tb, expected, []any{&table, &id, &version, &text}, func() {
		rows[table+" "+id] = fmt.Sprintf("v%d %s", version, text)
	})
	return rows
}

func (s *source) each(tb testing.TB, sql string, dst []any, fn func()) {
	tb.Helper()
	conn, err := pgx.Connect(context.Background(), s.url)
	if err != nil {
		tb.Fatal(err)
	}
	defer func() { _ = conn.Close(context.Background()) }()
	rows, err := conn.Query(context.Background(), sql)
	if err != nil {
		tb.Fatal(err)
	}
	if _, err := pgx.ForEachRow(rows, dst, func() error { fn(); return nil }); err != nil {
		tb.Fatal(err)
	}
}

// history has each write that a vendor must have seen, and its place among those of its key.
func (s *source) history(tb testing.TB) map[event]int64 {
	tb.Helper()
	events := map[event]int64{}
	var e event
	var n int64
	s.each(tb, `select n, tbl, op, id, version from history`, []any{&n, &e.table, &e.op, &e.id, &e.version}, func() { events[e] = n })
	return events
}

// settled waits until StopChurn has every write of history at least once.
func settled(tb testing.TB, d *daemon, s *source, v *vendor) {
	tb.Helper()
	want := s.history(tb)
	d.wait("every write to arrive", func() (bool, string) {
		if v.Accepted("stopchurn") < uint64(len(want)) {
			return false, fmt.Sprintf("%d of %d", v.Accepted("stopchurn"), len(want))
		}
		lacking := missing(want, v.events(tb))
		return len(lacking) == 0, fmt.Sprintf("missing %d, such as %v", len(lacking), lacking[:min(len(lacking), 5)])
	})
}

func missing(want map[event]int64, got []event) []event {
	lacking := maps.Clone(want)
	for _, e := range got {
		delete(lacking, e)
	}
	return slices.SortedFunc(maps.Keys(lacking), func(a, b event) int { return cmp.Compare(a.version, b.version) })
}

// verify compares what StopChurn has received with the source, and returns how many items came more than once.
func verify(tb testing.TB, s *source, v *vendor) (repeats int) {
	tb.Helper()
	history, got := s.history(tb), v.events(tb)
	if lacking := missing(history, got); len(lacking) > 0 {
		tb.Errorf("%d writes never arrived, such as %v", len(lacking), lacking[:min(len(lacking), 5)])
	}
	seen := make(map[event]bool, len(got))
	newest := map[string]event{}
	for i, e := range got {
		if history[e] == 0 {
			tb.Errorf("item %d was never written: %v", i, e)
		}
		if seen[e] {
			repeats++
			continue
		}
		seen[e] = true
		key := e.table + " " + e.id
		if last := newest[key]; history[last] > history[e] {
			tb.Errorf("item %d: %v after %v", i, e, last)
		}
		newest[key] = e
		if tb.Failed() {
			break
		}
	}
	compareRows(tb, s.rows(tb), v.rows(tb))
	return repeats
}

func compareRows(tb testing.TB, want, got map[string]string) {
	tb.Helper()
	var differences []string
	for key, row := range want {
		if got[key] != row {
			differences = append(differences, fmt.Sprintf("%s: source %q, vendor %q", key, short(row), short(got[key])))
		}
	}
	for key, row := range got {
		if _, ok := want[key]; !ok {
			differences = append(differences, fmt.Sprintf("%s: only the vendor has it: %q", key, short(row)))
		}
	}
	if n := len(differences); n > 0 {
		tb.Errorf("%d of %d rows differ:\n%s", n, len(want), strings.Join(differences[:min(n, 10)], "\n"))
	}
}

func short(s string) string { return s[:min(len(s), 60)] }

// during runs the workload while fn does something to the pipeline.
func during(tb testing.TB, w *workload, fn func()) {
	tb.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var wg conc.WaitGroup
	var err error
	wg.Go(func() { err = w.run(ctx, 0) })
	fn()
	cancel()
	wg.Wait()
	if err != nil {
		tb.Fatal(err)
	}
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// newOtherServer is a database with schema on a server of its own.
func newOtherServer(tb testing.TB) *source {
	tb.Helper()
	server := pgtest.Own(tb, pgtest.Options{})
	url, err := server.CreateDatabase(context.Background(), "other")
	if err != nil {
		tb.Fatal(err)
	}
	s := &source{url: url}
	s.exec(tb, schema)
	return s
}
