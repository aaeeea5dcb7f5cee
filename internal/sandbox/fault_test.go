package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/sourcegraph/conc"
)

var bearerKey = map[string]string{"Authorization": "Bearer sandbox-key"}

// post sends a good row and returns what a client sees: "200 …" or the error's kind.
func (c *client) post(id int) string {
	c.t.Helper()
	response, err := c.try(http.MethodPost, "/client-data/update", bearerKey, rows(row("insert", "user", fmt.Sprintf(`{"id":%d}`, id))))
	if err != nil {
		return kindOfError(err)
	}
	defer response.Body.Close()
	if _, err := io.ReadAll(response.Body); err != nil {
		return fmt.Sprint(response.StatusCode, " ", kindOfError(err))
	}
	return fmt.Sprint(response.StatusCode)
}

func kindOfError(err error) string {
	switch {
	case errors.Is(err, syscall.ECONNRESET):
		return "reset"
	case errors.Is(err, io.ErrUnexpectedEOF):
		return "unexpected EOF"
	case errors.Is(err, io.EOF):
		return "EOF"
	case errors.Is(err, context.DeadlineExceeded):
		return "timeout"
	}
	return err.Error()
}

func (c *client) fault(f Fault) int {
	c.t.Helper()
	id, err := c.AddFault(f)
	if err != nil {
		c.t.Fatal(err)
	}
	return id
}

func TestFaultsAsAClientSeesThem(t *testing.T) {
	for _, test := range []struct {
		fault         Fault
		before, after string // what is seen with after_processing false and true
	}{
		{Fault{Kind: Status, Status: 503}, "503", "503"},
		{Fault{Kind: ConnReset}, "reset", "reset"},
		{Fault{Kind: HalfClose}, "EOF", "EOF"},
		{Fault{Kind: Delay, Delay: Duration(time.Millisecond)}, "200", "200"},
	} {
		t.Run(string(test.fault.Kind), func(t *testing.T) {
			c := newClient(t, Config{})
			test.fault.Count = 1
			c.fault(test.fault)
			if got := c.post(1); got != test.before {
				t.Errorf("before processing: %s, want %s", got, test.before)
			}
			if stored := len(c.Rows("")) == 1; stored != (test.fault.Kind == Delay) {
				t.Errorf("the row is stored: %t", stored)
			}
			test.fault.AfterProcessing = true
			c.fault(test.fault)
			if got := c.post(2); got != test.after {
				t.Errorf("after processing: %s, want %s", got, test.after)
			}
			if got := c.Received(Filter{Key: "2"}); len(got) != 1 {
				t.Errorf("after processing the row was taken %d times", len(got))
			}
			if got := c.post(3); got != "200" {
				t.Errorf("when the counts are used up: %s", got)
			}
		})
	}
}

func TestTruncate(t *testing.T) {
	c := newClient(t, Config{})
	c.fault(Fault{Kind: Truncate, Count: 1})
	if got := c.post(1); got != "200 unexpected EOF" {
		t.Error(got)
	}
	if len(c.Rows("")) != 1 {
		t.Error("the row was not taken")
	}
}

func TestHangEnds(t *testing.T) {
	for name, end := range map[string]func(c *client, id int, cancel func()){
		"by the client":   func(_ *client, _ int, cancel func()) { cancel() },
		"by its clearing": func(c *client, id int, _ func()) { c.ClearFaults(id) },
	} {
		t.Run(name, func(t *testing.T) {
			c := newClient(t, Config{})
			id := c.fault(Fault{Kind: Hang})
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			var wait conc.WaitGroup
			var seen atomic.Bool
			wait.Go(func() {
				request, err := http.NewRequestWithContext(ctx, http.MethodPost, c.base+"/client-data/update", strings.NewReader("{}"))
				if err != nil {
					t.Error(err)
					return
				}
				if response, err := c.http.Do(request); err == nil {
					response.Body.Close()
					t.Error("a request that hangs was answered")
				}
				seen.Store(true)
			})
			for c.Faults()[0].Hits == 0 {
				time.Sleep(time.Millisecond)
			}
			if seen.Load() {
				t.Error("it did not hang")
			}
			end(c, id, cancel)
			wait.Wait()
			if err := c.Await(t.Context(), func() bool { return len(c.Requests()) == 1 }); err != nil {
				t.Fatal(err)
			}
			if r := c.Requests()[0]; r.Status != 0 || r.Fault != "hang" {
				t.Errorf("recorded as %+v", r)
			}
		})
	}
}

func TestStatusFault(t *testing.T) {
	c := newClient(t, Config{})
	c.fault(Fault{Kind: Status, Status: 429, RetryAfter: "7", Count: 1})
	c.fault(Fault{Kind: Status, Status: 502, Body: "<h1>Bad Gateway</h1>", Count: 1})
	response, err := c.try(http.MethodPost, "/client-data/update", bearerKey, "{}")
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusTooManyRequests || response.Header.Get("Retry-After") != "7" {
		t.Errorf("%s %v", response.Status, response.Header)
	}
	second, err := c.try(http.MethodPost, "/client-data/update", bearerKey, "{}")
	if err != nil {
		t.Fatal(err)
	}
	defer second.Body.Close()
	if body, _ := io.ReadAll(second.Body); second.StatusCode != http.StatusBadGateway || string(body) != "<h1>Bad Gateway</h1>" {
		t.Errorf("%s %s", second.Status, body)
	}
}

func TestVendorsFailInTheirOwnWords(t *testing.T) {
	c := newClient(t, Config{})
	c.fault(Fault{Kind: Status, Status: 500})
	for i := range endpoints {
		e := &endpoints[i]
		_, body := c.send(e.method, strings.Replace(e.path, "{id}", "x", 1), nil, "{}")
		want := map[string]string{"StopChurn": "statusCode", "Fanbase": "header", "Fanatics": "errors"}[e.vendor]
		if strings.HasSuffix(e.name, "_token") {
			want = "error"
		}
		if body[want] == nil {
			t.Errorf("%s: %v", e.name, body)
		}
	}
}

func TestFaultFilters(t *testing.T) {
	c := newClient(t, Config{})
	c.fault(Fault{Kind: Status, Status: 500, Endpoint: "fanbase"})
	c.fault(Fault{Kind: Status, Status: 400, Contains: `"id":13`})
	c.fault(Fault{Kind: Status, Status: 413, MinBytes: 200})
	if got := c.post(1); got != "200" {
		t.Errorf("not hit: %s", got)
	}
	if got := c.post(13); got != "400" {
		t.Errorf("contains: %s", got)
	}
	if status, _ := c.stopchurn(rows(row("insert", "user", `{"id":1}`), row("insert", "user", `{"id":2}`))); status != 413 {
		t.Errorf("min_bytes: %d", status)
	}
	if status, _ := c.send(http.MethodPost, "/api/token", nil, ""); status != 500 {
		t.Errorf("by vendor: %d", status)
	}
}

func TestShareIsDeterministic(t *testing.T) {
	run := func(seed uint64) (seen []string, failures int) {
		c := newClient(t, Config{Seed: seed})
		c.fault(Fault{Kind: Status, Status: 500, Share: 0.3})
		for i := range 200 {
			got := c.post(i)
			seen = append(seen, got)
			if got == "500" {
				failures++
			}
		}
		return seen, failures
	}
	first, failures := run(1)
	again, _ := run(1)
	other, _ := run(2)
	if failures < 40 || failures > 80 {
		t.Errorf("%d of 200 fail at a share of 0.3", failures)
	}
	if cmp.Diff(first, again) != "" || cmp.Diff(first, other) == "" {
		t.Error("the seed does not decide")
	}
}

func TestRevokeTokens(t *testing.T) {
	c := newClient(t, Config{})
	fanbase, fanatics := c.fanbaseHeader(), c.fanaticsHeader(scopeOverride)
	c.fault(Fault{Kind: RevokeTokens, Endpoint: "fanbase_batch", Count: 1})
	if status, _ := c.send(http.MethodPost, "/api/v2/IF_ID_Batch", fanbase, batchOf(simpleFan)); status != http.StatusUnauthorized {
		t.Errorf("revoked in mid-flight: %d", status)
	}
	if status, _ := c.batch(batchOf(simpleFan)); status != http.StatusOK {
		t.Errorf("with a new token: %d", status)
	}
	if status, _ := c.send(http.MethodPost, "/v2/tier-points/accounts", fanatics, accountsExample); status != http.StatusCreated {
		t.Errorf("the other vendor's token: %d", status)
	}
}

func TestItemFaults(t *testing.T) {
	c := newClient(t, Config{})
	c.fault(Fault{Kind: Reject, Endpoint: "fanbase_batch", Contains: "joao@exemplo.com", Message: "user is blocked"})
	c.fault(Fault{Kind: RejectAccount, Endpoint: "fanbase_batch", Message: "login is taken"})
	c.fault(Fault{Kind: Reject, Endpoint: "fanatics", Count: 1})
	c.fault(Fault{Kind: Reject, Endpoint: "stopchurn", Contains: `"id":13`, Message: "poison"})

	_, body := c.batch(batchOf(simpleFan, memberFan))
	items := body["data"].(map[string]any)["items"].([]any)
	first, second := items[0].(map[string]any), items[1].(map[string]any)
	if first["messageError"] != "user is blocked" || second["success"] != true {
		t.Errorf("items %v", items)
	}
	if diff := cmp.Diff(map[string]any{"success": false, "login": "98765432100", "messageError": "login is taken"}, second["account"]); diff != "" {
		t.Error(diff)
	}
	if fans := c.Fans(); len(fans) != 1 || fans[0].Account {
		t.Errorf("fans %+v", fans)
	}
	for _, want := range []string{"nok", "ok"} {
		_, body := c.accounts(accountsExample)
		if got := body["accounts"].([]any)[0].(map[string]any)["result"]; got != want {
			t.Errorf("%v, want %s", got, want)
		}
	}
	if status, body := c.stopchurn(rows(row("insert", "user", `{"id":1}`), row("insert", "user", `{"id":13}`))); status != http.StatusBadRequest ||
		body["message"] != "Update reception failed: poison" || len(c.Rows("")) != 0 {
		t.Errorf("poison: %d %v", status, body)
	}
	if status, _ := c.stopchurn(rows(row("insert", "user", `{"id":1}`))); status != http.StatusOK {
		t.Errorf("without the poison: %d", status)
	}
}

func TestAShareOfItemsIsAlwaysTheSame(t *testing.T) {
	c := newClient(t, Config{})
	c.fault(Fault{Kind: Reject, Endpoint: "fanatics", Share: 0.5})
	var entries []string
	for i := range 100 {
		entries = append(entries, fmt.Sprintf(`{"account_tenant_fanid":"aaaaaaaa-bbbb-cccc-dddd-%012d","invite_approval_map":{"12345678-1234-1234-dddd-eeeeeeeeeeee":true}}`, i))
	}
	body := `{"accounts":[` + strings.Join(entries, ",") + `]}`
	_, first := c.accounts(body)
	_, second := c.accounts(body)
	if diff := cmp.Diff(first, second); diff != "" {
		t.Error(diff)
	}
	if n := len(c.Approvals()); n < 30 || n > 70 {
		t.Errorf("%d of 100 are taken at a share of 0.5", n)
	}
}

func TestResultsOutOfOrderAndMissing(t *testing.T) {
	c := newClient(t, Config{})
	results := func() []string {
		_, body := c.batch(batchOf(simpleFan, memberFan))
		var cpfs []string
		for _, item := range body["data"].(map[string]any)["items"].([]any) {
			cpfs = append(cpfs, item.(map[string]any)["cpf"].(string))
		}
		return cpfs
	}
	c.fault(Fault{Kind: OutOfOrder, Count: 1, Endpoint: "fanbase_batch"})
	if diff := cmp.Diff([]string{"98765432100", "12345678900"}, results()); diff != "" {
		t.Error(diff)
	}
	c.fault(Fault{Kind: MissingResults, Count: 1, Endpoint: "fanbase_batch"})
	if got := results(); len(got) != 1 {
		t.Errorf("results %v", got)
	}
	c.fault(Fault{Kind: MissingResults, Share: 1, Count: 1, Endpoint: "fanbase_batch"})
	if got := results(); len(got) != 0 {
		t.Errorf("results %v", got)
	}
	if got := results(); len(got) != 2 {
		t.Errorf("results %v", got)
	}
}

func TestFaultsOverHTTP(t *testing.T) {
	c := newClient(t, Config{})
	status, body := c.send(http.MethodPost, "/faults", nil, `{"endpoint":"stopchurn","kind":"delay","delay":"1ms","share":0.5}`)
	if status != http.StatusCreated || body["id"] != 1.0 {
		t.Errorf("%d %v", status, body)
	}
	want := []Fault{{ID: 1, Endpoint: "stopchurn", Kind: Delay, Delay: Duration(time.Millisecond), Share: 0.5}}
	got := c.Faults()
	for i := range got {
		got[i].cleared = nil
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(Fault{})); diff != "" {
		t.Error(diff)
	}
	for fault, want := range map[string]string{
		`{"kind":"statsu"}`:                      `did you mean "status"?`,
		`{"kind":"status"}`:                      "status is from 200 to 599",
		`{"kind":"delay"}`:                       "a delay needs delay",
		`{"kind":"delay","delay":5}`:             "a duration is a string",
		`{"kind":"hang","share":2}`:              "share is from 0 to 1",
		`{"kind":"hang","count":-1}`:             "not negative",
		`{"kind":"hang","endpoint":"stopchrun"}`: "known are: stopchurn, fanbase_token",
		`{"kind":"hang","endpiont":"stopchurn"}`: "unknown field",
		`{`:                                      "EOF",
	} {
		status, body := c.send(http.MethodPost, "/faults", nil, fault)
		if message, _ := body["error"].(string); status != http.StatusBadRequest || !strings.Contains(message, want) {
			t.Errorf("%s: %d %v", fault, status, body)
		}
	}
	for path, want := range map[string]int{"/faults/2": http.StatusNotFound, "/faults/x": http.StatusNotFound, "/faults/1": http.StatusOK} {
		if status, _ := c.send(http.MethodDelete, path, nil, ""); status != want {
			t.Errorf("%s: %d", path, status)
		}
	}
	c.fault(Fault{Kind: Hang})
	if status, body := c.send(http.MethodDelete, "/faults", nil, ""); status != http.StatusOK || body["removed"] != 1.0 || len(c.Faults()) != 0 {
		t.Errorf("%d %v", status, body)
	}
}

func TestManyAtOnce(t *testing.T) {
	c := newClient(t, Config{MaxLog: 500})
	c.fault(Fault{Kind: Status, Status: 500, Share: 0.1})
	c.fault(Fault{Kind: Delay, Delay: Duration(time.Microsecond), Share: 0.1, AfterProcessing: true})
	fanbase := c.fanbaseRetry()
	var wait conc.WaitGroup
	for worker := range 8 {
		wait.Go(func() {
			for i := range 20 {
				id := worker*1000 + i
				for c.post(id) != "200" {
					continue
				}
				for {
					if status, _ := c.send(http.MethodPost, "/api/v1/integration/queue", fanbase, fmt.Sprintf(`{"action":"update_fandata","data":{"id":"%d"}}`, id)); status == http.StatusCreated {
						break
					}
				}
				c.Received(Filter{Limit: 10})
				c.Totals()
			}
		})
	}
	wait.Wait()
	if rows, queued := len(c.Rows("")), len(c.Queue()); rows != 160 || queued != 160 {
		t.Errorf("%d rows and %d queued objects of 160", rows, queued)
	}
	last := uint64(0)
	for _, item := range c.Received(Filter{}) {
		if item.Seq <= last {
			t.Fatalf("item %d after %d", item.Seq, last)
		}
		last = item.Seq
	}
}

// fanbaseRetry gets a token although a fault may hit the request.
func (c *client) fanbaseRetry() map[string]string {
	for {
		status, body := c.send(http.MethodPost, "/api/token?grant_type=client_credentials&client_id=sandbox-client&client_secret=sandbox-secret", nil, "")
		if status == http.StatusOK {
			return map[string]string{"AccessToken": body["access_token"].(string)}
		}
	}
}
