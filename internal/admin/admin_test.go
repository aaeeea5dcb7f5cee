package admin_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/sourcegraph/conc/pool"
	"go.uber.org/goleak"

	"github.com/cdcsync/cdcsync/internal/admin"
	"github.com/cdcsync/cdcsync/internal/secret"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var began = time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)

// daemon is a pipeline, dead letters and backfills in memory.
type daemon struct {
	mu        sync.Mutex
	status    admin.Status
	letters   []admin.Letter
	failAt    int // Letters fails there; 0 for never
	asked     []string
	lastWhich admin.Selection
}

func (d *daemon) Status() admin.Status {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.status
}

func (d *daemon) note(format string, args ...any) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.asked = append(d.asked, fmt.Sprintf(format, args...))
}

func (d *daemon) Pause(_ context.Context, sink string) error {
	if sink != "crm" {
		return &admin.Error{Kind: admin.KindNotFound, Reason: "there is no sink " + strconv.Quote(sink)}
	}
	d.note("pause %s", sink)
	return nil
}

func (d *daemon) Resume(_ context.Context, sink string) error {
	d.note("resume %s", sink)
	return nil
}

type letters struct{ *daemon }

func (d letters) Letters(_ context.Context, f admin.LetterFilter) iter.Seq2[admin.Letter, error] {
	return func(yield func(admin.Letter, error) bool) {
		for i, letter := range d.letters {
			if i == d.failAt && d.failAt > 0 {
				yield(admin.Letter{}, errors.New("the disk is gone"))
				return
			}
			if f.Limit > 0 && i == f.Limit || (f.Sink == "" || f.Sink == letter.Sink) && !yield(letter, nil) {
				return
			}
		}
	}
}

func (d letters) Letter(_ context.Context, id string) (admin.Letter, error) {
	i := slices.IndexFunc(d.letters, func(l admin.Letter) bool { return l.ID == id })
	if i < 0 {
		return admin.Letter{}, &admin.Error{Kind: admin.KindNotFound, Reason: "there is no dead letter " + id}
	}
	return d.letters[i], nil
}

func (d letters) Retry(_ context.Context, which admin.Selection, force bool) ([]admin.Retried, error) {
	d.note("retry force=%t", force)
	d.lastWhich = which
	return []admin.Retried{{ID: "1", Outcome: admin.RetryQueued}, {ID: "2", Outcome: "rejected", Reason: "no such column"}}, nil
}

func (d letters) Discard(_ context.Context, which admin.Selection) (int, error) {
	d.note("discard")
	d.lastWhich = which
	return 7, nil
}

type backfills struct{ *daemon }

func (d backfills) List(context.Context) ([]admin.Backfill, error) { return d.status.Backfills, nil }

func (d backfills) Start(_ context.Context, what admin.StartBackfill) (admin.Backfill, error) {
	if what.Table == "public.nothing" {
		return admin.Backfill{}, &admin.Error{Kind: admin.KindInvalid, Reason: "no mapping of public.nothing"}
	}
	return admin.Backfill{ID: "b2", State: "waiting", StartBackfill: what}, nil
}

func (d backfills) Pause(_ context.Context, id string) error  { d.note("pause %s", id); return nil }
func (d backfills) Resume(_ context.Context, id string) error { d.note("resume %s", id); return nil }

func (d backfills) Cancel(_ context.Context, id string) error {
	return &admin.Error{Kind: admin.KindConflict, Reason: "backfill " + id + " has ended"}
}

func newDaemon() *daemon {
	d := &daemon{status: admin.Status{
		Source: admin.Source{
			Slot: "cdcsync", Publication: "cdcsync", State: admin.SourceStreaming, Since: began,
			Received: 0x16_B374D848, Stored: 0x16_B374D800, Confirmed: 0x16_B374D700, LagBytes: 72, RetainedWALBytes: 16 << 20, Reconnects: 2,
		},
		Buffer: admin.Buffer{Bytes: 12 << 20, MaxBytes: 10 << 30, Blocks: 51},
		Sinks: []admin.Sink{
			{
				Name: "crm", Type: "stopchurn", State: admin.SinkRunning, Delivered: 0x16_B374D700, LagBytes: 256, LagSeconds: 0.25,
				InFlight: 2, Concurrency: 2, Items: admin.Items{Delivered: 1234567, Rejected: 3},
			},
			{
				Name: "fans", Type: "fanbase_queue", State: admin.SinkRetrying, Reason: "503: maintenance", Since: began,
				NextAttempt: began.Add(2 * time.Minute), LagBytes: 5 << 20, LagSeconds: 75, DeadLetters: 3,
			},
		},
	}}
	for i := range 5 {
		d.letters = append(d.letters, admin.Letter{
			ID: fmt.Sprintf("0/16B3748#%d/users#1", i+1), State: admin.LetterOpen, Sink: "crm", Mapping: "users", Table: "public.users", Op: "update", Key: "42",
			Reason: "data.email: \"\" is not an address", Attempts: 1, ParkedAt: began,
			Item: json.RawMessage(`{"name":"Åse <a&b>"}`), Row: json.RawMessage(`{"id":42}`),
		})
	}
	return d
}

func newServer(t *testing.T, cfg admin.Config, d *daemon) *admin.Server {
	t.Helper()
	registry := prometheus.NewRegistry()
	registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "cdcsync_test_answer", Help: "For the test."}, func() float64 { return 42 }))
	cfg.Version = "v1.2.3"
	server, err := admin.New(cfg, admin.Parts{Pipeline: d, DeadLetters: letters{d}, Backfills: backfills{d}, Metrics: registry}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return server
}

func ask(server *admin.Server, method, target, body string, header ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, "http://127.0.0.1:8484"+target, strings.NewReader(body))
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
		if header[i] == "Host" {
			r.Host = header[i+1]
		}
	}
	w := httptest.NewRecorder()
	server.Handler().ServeHTTP(w, r)
	return w
}

var loopback = admin.Config{Listen: "127.0.0.1:8484"}

func TestHealthAndMetrics(t *testing.T) {
	server := newServer(t, loopback, newDaemon())
	if w := ask(server, "GET", "/healthz", ""); w.Code != 200 || w.Body.String() != "ok\n" {
		t.Errorf("healthz: %d %q", w.Code, w.Body)
	}
	if w := ask(server, "GET", "/metrics", ""); w.Code != 200 || !strings.Contains(w.Body.String(), "cdcsync_test_answer 42") {
		t.Errorf("metrics: %d %q", w.Code, w.Body)
	}
	if w := ask(server, "GET", "/nowhere", ""); w.Code != 404 || !strings.Contains(w.Body.String(), "no such page") {
		t.Errorf("unknown path: %d %q", w.Code, w.Body)
	}
}

func TestReadiness(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*admin.Status)
		want   string // part of the answer; empty means ready
	}{
		"streaming":      {func(*admin.Status) {}, ""},
		"vendor down":    {func(s *admin.Status) { s.Sinks[0].State = admin.SinkRetrying }, ""},
		"paused by hand": {func(s *admin.Status) { s.Sinks[0].State = admin.SinkPaused }, ""},
		"connecting":     {func(s *admin.Status) { s.Source.State, s.Source.Reason = admin.SourceConnecting, "connection refused" }, "source is connecting: connection refused"},
		"standby":        {func(s *admin.Status) { s.Source.State, s.Source.Reason = admin.SourceWaiting, "slot held by PID 7" }, "source is waiting for slot: slot held by PID 7"},
		"buffer full": {func(s *admin.Status) {
			s.Source.State, s.Buffer.Full, s.Buffer.Reason = admin.SourceFull, true, "max_size"
		}, "buffer is full: max_size: capture waits"},
		"credentials wrong": {func(s *admin.Status) { s.Sinks[1].State, s.Sinks[1].Reason = admin.SinkBlocked, "401" }, "sink fans is blocked: 401"},
		"too many letters":  {func(s *admin.Status) { s.Sinks[0].State = admin.SinkHalted }, "sink crm is halted"},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDaemon()
			c.change(&d.status)
			server := newServer(t, loopback, d)
			text, asJSON := ask(server, "GET", "/readyz", ""), ask(server, "GET", "/readyz", "", "Accept", "application/json")
			var answer admin.Readiness
			if err := json.Unmarshal(asJSON.Body.Bytes(), &answer); err != nil {
				t.Fatal(err)
			}
			wantCode := 200
			if c.want != "" {
				wantCode = 503
			}
			if text.Code != wantCode || asJSON.Code != wantCode || answer.Ready != (c.want == "") {
				t.Errorf("answered %d and %d, ready=%t; want %d", text.Code, asJSON.Code, answer.Ready, wantCode)
			}
			if !strings.Contains(text.Body.String(), c.want) || !strings.Contains(strings.Join(answer.Reasons, "\n"), c.want) {
				t.Errorf("reasons %q and %q, want %q", text.Body, answer.Reasons, c.want)
			}
		})
	}
}

func TestNeedsATokenOffLoopback(t *testing.T) {
	for listen, allowed := range map[string]bool{
		"127.0.0.1:8484": true, "localhost:0": true, "[::1]:8484": true,
		"0.0.0.0:8484": false, ":8484": false, "10.1.2.3:8484": false, "example.org:8484": false, "8484": false,
	} {
		_, err := admin.New(admin.Config{Listen: listen}, admin.Parts{}, slog.New(slog.DiscardHandler))
		if (err == nil) != allowed {
			t.Errorf("%s without a token: %v", listen, err)
		}
	}
}

func TestWhoGetsIn(t *testing.T) {
	withToken := admin.Config{Listen: "0.0.0.0:8484", Token: secret.New("s3cret")}
	const status, pause = "/api/v1/status", "/api/v1/sinks/crm/pause"
	for name, c := range map[string]struct {
		cfg          admin.Config
		method, path string
		header       []string
		want         int
	}{
		"loopback":                     {loopback, "GET", status, nil, 200},
		"loopback by name":             {loopback, "GET", status, []string{"Host", "localhost:8484"}, 200},
		"loopback, IPv6":               {loopback, "GET", status, []string{"Host", "[::1]:8484"}, 200},
		"rebound name":                 {loopback, "GET", status, []string{"Host", "evil.example:8484"}, 401},
		"rebound name, health":         {loopback, "GET", "/healthz", []string{"Host", "evil.example:8484"}, 401},
		"a form of another page":       {loopback, "POST", pause, []string{"Content-Type", "text/plain"}, 400},
		"a POST without type":          {loopback, "POST", pause, nil, 400},
		"a POST of JSON":               {loopback, "POST", pause, []string{"Content-Type", "application/json; charset=utf-8"}, 204},
		"a GET where POST is due":      {loopback, "GET", pause, nil, 404},
		"no token":                     {withToken, "GET", status, nil, 401},
		"no token, metrics":            {withToken, "GET", "/metrics", nil, 401},
		"no token, profile":            {withToken, "GET", "/debug/pprof/goroutine", nil, 401},
		"loopback, profile":            {loopback, "GET", "/debug/pprof/goroutine", nil, 200},
		"no token, page":               {withToken, "GET", "/", nil, 200},
		"no token, health":             {withToken, "GET", "/healthz", nil, 200},
		"no token, ready":              {withToken, "GET", "/readyz", nil, 200},
		"wrong token":                  {withToken, "GET", status, []string{"Authorization", "Bearer s3cret "}, 401},
		"token as basic":               {withToken, "GET", status, []string{"Authorization", "s3cret"}, 401},
		"right token, any name":        {withToken, "GET", status, []string{"Authorization", "Bearer s3cret", "Host", "cdcsync.internal:8484"}, 200},
		"right token, POST of a form":  {withToken, "POST", pause, []string{"Authorization", "Bearer s3cret", "Content-Type", "text/plain"}, 400},
		"wrong token, nothing paused":  {withToken, "POST", pause, []string{"Authorization", "Bearer no", "Content-Type", "application/json"}, 401},
		"right token, sink not known":  {withToken, "POST", "/api/v1/sinks/other/pause", []string{"Authorization", "Bearer s3cret", "Content-Type", "application/json"}, 404},
		"right token, letters by a ID": {withToken, "GET", "/api/v1/dead-letters/none", []string{"Authorization", "Bearer s3cret"}, 404},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDaemon()
			w := ask(newServer(t, c.cfg, d), c.method, c.path, "", c.header...)
			if w.Code != c.want {
				t.Errorf("answered %d %s, want %d", w.Code, w.Body, c.want)
			}
			if w.Code >= 400 && len(d.asked) > 0 {
				t.Errorf("refused, and yet did %q", d.asked)
			}
		})
	}
}

func TestReasonsAreForThoseWithTheToken(t *testing.T) {
	d := newDaemon()
	d.status.Source.State, d.status.Source.Reason = admin.SourceConnecting, "db.internal refuses"
	server := newServer(t, admin.Config{Listen: ":8484", Token: secret.New("s3cret")}, d)
	if w := ask(server, "GET", "/readyz", ""); w.Code != 503 || strings.Contains(w.Body.String(), "db.internal") {
		t.Errorf("without token: %d %q", w.Code, w.Body)
	}
	if w := ask(server, "GET", "/readyz", "", "Authorization", "Bearer s3cret"); w.Code != 503 || !strings.Contains(w.Body.String(), "db.internal") {
		t.Errorf("with token: %d %q", w.Code, w.Body)
	}
}

// The page asks this API only, and loads nothing from elsewhere.
func TestPage(t *testing.T) {
	w := ask(newServer(t, loopback, newDaemon()), "GET", "/", "")
	page := w.Body.String()
	if w.Code != 200 || !strings.HasPrefix(w.Header().Get("Content-Type"), "text/html") {
		t.Fatalf("%d %s", w.Code, w.Header())
	}
	for _, want := range []string{"api/v1/status", "api/v1/dead-letters", "prefers-color-scheme: dark", "sessionStorage"} {
		if !strings.Contains(page, want) {
			t.Errorf("the page lacks %q", want)
		}
	}
	for _, bad := range []string{"https://", "innerHTML", "src=\"http", "@import"} {
		if strings.Contains(page, bad) {
			t.Errorf("the page has %q", bad)
		}
	}
	if policy := w.Header().Get("Content-Security-Policy"); !strings.Contains(policy, "default-src 'none'") || !strings.Contains(policy, "connect-src 'self'") {
		t.Errorf("policy %q", policy)
	}
}

// serve runs the server on a free port until the test ends, and returns its address.
func serve(t *testing.T, cfg admin.Config, d *daemon) string {
	t.Helper()
	cfg.Listen = "127.0.0.1:0"
	listener, err := admin.Listen(t.Context(), cfg.Listen)
	if err != nil {
		t.Fatal(err)
	}
	server := newServer(t, cfg, d)
	ctx, cancel := context.WithCancel(context.Background())
	running := pool.New().WithErrors()
	running.Go(func() error { return server.Run(ctx, listener) })
	t.Cleanup(func() {
		cancel()
		if err := running.Wait(); err != nil {
			t.Error(err)
		}
	})
	return listener.Addr().String()
}

func newClient(t *testing.T, address, token string) *admin.Client {
	t.Helper()
	client := admin.NewClient("http://"+address, secret.New(token))
	t.Cleanup(client.Close)
	return client
}

func TestClient(t *testing.T) {
	d := newDaemon()
	client := newClient(t, serve(t, admin.Config{Token: secret.New("s3cret")}, d), "s3cret")
	ctx := t.Context()

	status, err := client.Status(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if status.Version != "v1.2.3" || !status.Ready || status.UptimeSeconds <= 0 {
		t.Errorf("status of the daemon: %+v", status)
	}
	if diff := cmp.Diff(d.status.Source, status.Source); diff != "" {
		t.Errorf("source (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(d.status.Sinks, status.Sinks); diff != "" {
		t.Errorf("sinks (-want +got):\n%s", diff)
	}
	if err := errors.Join(client.Pause(ctx, "crm"), client.Resume(ctx, "a b/c"), client.PauseBackfill(ctx, "b1"), client.ResumeBackfill(ctx, "b1")); err != nil {
		t.Error(err)
	}
	if diff := cmp.Diff([]string{"pause crm", "resume a b/c", "pause b1", "resume b1"}, d.asked); diff != "" {
		t.Errorf("asked (-want +got):\n%s", diff)
	}
	if err := client.Pause(ctx, "cmr"); !admin.IsKind(err, admin.KindNotFound) || !strings.Contains(err.Error(), `no sink "cmr"`) {
		t.Errorf("unknown sink: %v", err)
	}
	if err := client.CancelBackfill(ctx, "b1"); !admin.IsKind(err, admin.KindConflict) {
		t.Errorf("cancel: %v", err)
	}
	started, err := client.StartBackfill(ctx, admin.StartBackfill{Table: "public.users", Sink: "crm", Where: "id > 7", Rate: 100})
	if err != nil || started.ID != "b2" || started.Where != "id > 7" {
		t.Errorf("start: %+v, %v", started, err)
	}
	if _, err := client.StartBackfill(ctx, admin.StartBackfill{Table: "public.nothing"}); !admin.IsKind(err, admin.KindInvalid) {
		t.Errorf("start: %v", err)
	}
	if _, err := client.StartBackfill(ctx, admin.StartBackfill{}); !admin.IsKind(err, admin.KindInvalid) {
		t.Errorf("start without a table: %v", err)
	}
	if list, err := client.Backfills(ctx); err != nil || len(list) != 0 {
		t.Errorf("backfills: %v, %v", list, err)
	}
}

func TestDeadLetters(t *testing.T) {
	d := newDaemon()
	client := newClient(t, serve(t, admin.Config{}, d), "")
	ctx := t.Context()

	page, err := client.DeadLetters(ctx, admin.LetterFilter{Sink: "crm", Limit: 2, OlderThan: admin.Duration(time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	if len(page.Letters) != 2 || !page.More || page.Letters[0].Row != nil || page.Letters[0].Reason != d.letters[0].Reason {
		t.Errorf("page: %+v", page)
	}
	if all, err := client.DeadLetters(ctx, admin.LetterFilter{}); err != nil || len(all.Letters) != 5 || all.More {
		t.Errorf("all: %d letters, more=%t, %v", len(all.Letters), all.More, err)
	}
	letter, err := client.DeadLetter(ctx, d.letters[3].ID)
	if err != nil {
		t.Fatal(err)
	}
	var item bytes.Buffer
	if err := json.Compact(&item, letter.Item); err != nil {
		t.Fatal(err)
	}
	if letter.ID != d.letters[3].ID || item.String() != string(d.letters[3].Item) {
		t.Errorf("letter: %+v, item %s", letter, &item)
	}

	var lines bytes.Buffer
	if err := client.ExportDeadLetters(ctx, admin.LetterFilter{Sink: "crm"}, &lines); err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(lines.String(), "\n"); n != 5 || !strings.Contains(lines.String(), `"item":{"name":"Åse <a&b>"}`) {
		t.Errorf("export of %d lines:\n%s", n, &lines)
	}
	d.failAt = 4
	if err := client.ExportDeadLetters(ctx, admin.LetterFilter{}, io.Discard); err == nil || !strings.Contains(err.Error(), "incomplete") {
		t.Errorf("an export that broke off: %v", err)
	}

	result, err := client.Retry(ctx, admin.Selection{IDs: []string{d.letters[0].ID}}, true)
	want := admin.RetryAnswer{Letters: []admin.Retried{{ID: "1", Outcome: admin.RetryQueued}, {ID: "2", Outcome: "rejected", Reason: "no such column"}}}
	if diff := cmp.Diff(want, result); err != nil || diff != "" {
		t.Errorf("retry: %v (-want +got):\n%s", err, diff)
	}
	n, err := client.Discard(ctx, admin.Selection{Filter: admin.LetterFilter{Reason: "address", NewerThan: admin.Duration(90 * time.Minute)}})
	if err != nil || n != 7 || d.lastWhich.Filter.NewerThan != admin.Duration(90*time.Minute) {
		t.Errorf("discard: %d of %+v, %v", n, d.lastWhich, err)
	}
}

func TestNothingIsSelectedByAccident(t *testing.T) {
	for body, want := range map[string]int{
		``: 400, `{}`: 400, `{"filter":{}}`: 400, `{"force":true}`: 400, `{"ids":["a"],"all":true}`: 400, `{"filter":{"sik":"crm"}}`: 400,
		`{"filter":{"state":"dead"}}`: 400, `[]`: 400, `{"ids":["a"]}`: 200, `{"all":true}`: 200, `{"filter":{"sink":"crm","older_than":"1h"}}`: 200,
	} {
		d := newDaemon()
		w := ask(newServer(t, loopback, d), "POST", "/api/v1/dead-letters/retry", body, "Content-Type", "application/json")
		if w.Code != want || (len(d.asked) > 0) != (want == 200) {
			t.Errorf("%s: %d %s", body, w.Code, w.Body)
		}
	}
	server := newServer(t, loopback, newDaemon())
	for query, want := range map[string]int{"sink=crm&limit=5": 200, "snik=crm": 400, "limit=0": 400, "limit=many": 400, "older_than=soon": 400, "state=x": 400} {
		if w := ask(server, "GET", "/api/v1/dead-letters?"+query, ""); w.Code != want {
			t.Errorf("%s: %d %s", query, w.Code, w.Body)
		}
	}
}

func TestClientSaysWhatToDo(t *testing.T) {
	ctx := t.Context()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	free := l.Addr().String()
	if _, err := admin.Listen(ctx, free); err == nil || !strings.Contains(err.Error(), "is in use") {
		t.Errorf("address in use: %v", err)
	}
	l.Close()
	other := httptest.NewServer(http.NotFoundHandler())
	defer other.Close()

	guarded := serve(t, admin.Config{Token: secret.New("right")}, newDaemon())
	for name, c := range map[string]struct {
		address, token, want string
	}{
		"not running":     {free, "", `cdcsync run`},
		"something else":  {strings.TrimPrefix(other.URL, "http://"), "", "unexpected answer"},
		"without a token": {guarded, "", "admin.token must be the one"},
		"wrong token":     {guarded, "wrong", "admin.token must be the one"},
		"no such host":    {"no.such.host.invalid:1", "", "no answer from http://no.such.host.invalid:1"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := newClient(t, c.address, c.token).Status(ctx); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := newClient(t, guarded, "right").Status(cancelled); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestText(t *testing.T) {
	d := newDaemon()
	status := d.status
	status.Version, status.UptimeSeconds = "v1.2.3", 3*3600+12*60
	status.Sinks[1].State, status.Sinks[1].Reason = admin.SinkBlocked, "401 after a renewed token"
	status.Reasons = status.Unready()
	status.Backfills = []admin.Backfill{{
		ID: "b1", State: "running", StartBackfill: admin.StartBackfill{Table: "public.users"}, Sinks: []string{"crm", "fans"},
		Rows: 120000, EstimatedRows: 1000000, RowsPerSecond: 5000.4, SecondsLeft: 176,
	}}
	var out strings.Builder
	if err := status.WriteText(&out, began.Add(90*time.Second)); err != nil {
		t.Fatal(err)
	}
	want := `cdcsync v1.2.3, up 3h12m, NOT READY
  ! sink fans is blocked: 401 after a renewed token

Source   streaming, slot cdcsync for 1m30s
         received 16/B374D848   stored 16/B374D800   confirmed 16/B374D700
         behind 72 B, 0s   WAL kept 16.0 MiB   reconnects 2
Buffer   12.0 MiB of 10.0 GiB in 51 blocks

SINK  TYPE           STATE    BEHIND          IN FLIGHT  DELIVERED  REJECTED  DEAD LETTERS
crm   stopchurn      running  256 B, 250ms    2          1,234,567  3         0
fans  fanbase_queue  blocked  5.0 MiB, 1m15s  0          0          0         3
  fans is blocked for 1m30s: 401 after a renewed token, again in 30s

BACKFILL  TABLE         SINKS      STATE    ROWS     OF ABOUT   ROWS/S  LEFT   REASON
b1        public.users  crm, fans  running  120,000  1,000,000  5,000   2m56s  
`
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}

	out.Reset()
	letter := d.letters[0]
	letter.Reason = "not\nfound " + strings.Repeat("é", 200)
	if err := admin.WriteLetters(&out, []admin.Letter{letter}, began.Add(26*time.Hour)); err != nil {
		t.Fatal(err)
	}
	want = "ID                   SINK  TABLE         OP      KEY  AGE    STATE  REASON\n" +
		"0/16B3748#1/users#1  crm   public.users  update  42   1d02h  open   not found " + strings.Repeat("é", 89) + "…\n"
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
