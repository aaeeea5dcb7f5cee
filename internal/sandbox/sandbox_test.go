package sandbox

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/sourcegraph/conc"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// client speaks to a sandbox over a real connection.
type client struct {
	t    *testing.T
	base string
	http *http.Client
	*Server
}

func newClient(t *testing.T, config Config) *client {
	t.Helper()
	s := New(config)
	server := httptest.NewServer(s.Handler())
	t.Cleanup(func() {
		s.ClearFaults()
		server.Close()
	})
	return &client{t: t, base: server.URL, http: server.Client(), Server: s}
}

// send returns the answer's status and decoded body.
func (c *client) send(method, path string, header map[string]string, body string) (int, map[string]any) {
	c.t.Helper()
	response, err := c.try(method, path, header, body)
	if err != nil {
		c.t.Fatalf("%s %s: %v", method, path, err)
	}
	defer response.Body.Close()
	var decoded map[string]any
	if err := json.NewDecoder(response.Body).Decode(&decoded); err != nil {
		c.t.Fatalf("%s %s: answer %d is not JSON: %v", method, path, response.StatusCode, err)
	}
	return response.StatusCode, decoded
}

func (c *client) try(method, path string, header map[string]string, body string) (*http.Response, error) {
	ctx, cancel := context.WithTimeout(c.t.Context(), 10*time.Second)
	c.t.Cleanup(cancel)
	request, err := http.NewRequestWithContext(ctx, method, c.base+path, strings.NewReader(body))
	if err != nil {
		return nil, err
	}
	request.Header.Set("Content-Type", "application/json")
	for name, value := range header {
		request.Header.Set(name, value)
	}
	return c.http.Do(request)
}

func (c *client) stopchurn(body string) (int, map[string]any) {
	c.t.Helper()
	return c.send(http.MethodPost, "/client-data/update", map[string]string{"Authorization": "Bearer sandbox-key"}, body)
}

func (c *client) fanbaseHeader() map[string]string {
	c.t.Helper()
	query := url.Values{"grant_type": {"client_credentials"}, "client_id": {"sandbox-client"}, "client_secret": {"sandbox-secret"}}
	status, body := c.send(http.MethodPost, "/api/token?"+query.Encode(), nil, "")
	if status != http.StatusOK || body["token_type"] != "Bearer" {
		c.t.Fatalf("fanbase token: %d %v", status, body)
	}
	return map[string]string{"AccessToken": body["access_token"].(string)}
}

func (c *client) fanaticsHeader(scope string) map[string]string {
	c.t.Helper()
	form := url.Values{"grant_type": {"client_credentials"}, "client_id": {"sandbox-client"}, "client_secret": {"sandbox-secret"}, "scope": {scope}}
	status, body := c.send(http.MethodPost, "/api/oauth2/token", map[string]string{"Content-Type": "application/x-www-form-urlencoded"}, form.Encode())
	if status != http.StatusOK || body["token_type"] != "Bearer" {
		c.t.Fatalf("fanatics token: %d %v", status, body)
	}
	return map[string]string{"Authorization": "Bearer " + body["access_token"].(string)}
}

func (c *client) batch(body string) (int, map[string]any) {
	c.t.Helper()
	return c.send(http.MethodPost, "/api/v2/IF_ID_Batch", c.fanbaseHeader(), body)
}

func (c *client) accounts(body string) (int, map[string]any) {
	c.t.Helper()
	return c.send(http.MethodPost, "/v2/tier-points/accounts", c.fanaticsHeader(scopeOverride), body)
}

func encode(t *testing.T, v any) string {
	t.Helper()
	text, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func row(op, table, data string) string {
	return fmt.Sprintf(`{"type":%q,"data":{"brandId":1,"tableName":%q,"data":%s,"createdAt":1694357675000,"updatedAt":1694357675000}}`, op, table, data)
}

func rows(elements ...string) string { return `{"data":[` + strings.Join(elements, ",") + `]}` }

func TestIndexShowsEverything(t *testing.T) {
	c := newClient(t, Config{})
	c.stopchurn(rows(row("insert", "user", `{"id":1}`)))
	c.batch(`{}`)
	if _, err := c.AddFault(Fault{Kind: Status, Status: 503, Count: 1, Endpoint: "stopchurn"}); err != nil {
		t.Fatal(err)
	}
	response, err := c.try(http.MethodGet, "/", nil, "")
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	page, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode != http.StatusOK {
		t.Fatal(response.Status, err)
	}
	for _, want := range append([]string{"/state/stopchurn?table=user", "status 503", "systemId is missing", "</html>", c.base + "/faults"}, endpointNames()...) {
		if !bytes.Contains(page, []byte(want)) {
			t.Errorf("the page lacks %q", want)
		}
	}
}

func endpointNames() []string {
	var names []string
	for i := range endpoints {
		names = append(names, endpoints[i].name)
	}
	return names
}

func TestReceivedFilters(t *testing.T) {
	c := newClient(t, Config{})
	for i := range 5 {
		c.stopchurn(rows(row("insert", "user", fmt.Sprintf(`{"id":%d}`, i)), row("insert", "order", fmt.Sprintf(`{"id":"%d"}`, i))))
	}
	for query, want := range map[string]string{
		"table=user":                          "1 3 5 7 9",
		"key=2":                               "5 6",
		"table=order&key=2":                   "6",
		"limit=2":                             "9 10",
		"limit=3&after=4":                     "5 6 7",
		"after=8":                             "9 10",
		"after=99":                            "",
		"endpoint=stopchurn&limit=1":          "10",
		"endpoint=fanbase":                    "",
		"request=2":                           "3 4",
		"rejected=true":                       "",
		"rejected=false&limit=1&table=user":   "9",
		"endpoint=stop&after=3&key=3&limit=1": "7",
	} {
		response, err := c.try(http.MethodGet, "/received?"+query, nil, "")
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for d := json.NewDecoder(response.Body); d.More(); {
			var item Item
			if err := d.Decode(&item); err != nil {
				t.Fatal(err)
			}
			if len(item.Body) == 0 || item.Op != "insert" || item.At.IsZero() {
				t.Errorf("item %+v", item)
			}
			got = append(got, fmt.Sprint(item.Seq))
		}
		response.Body.Close()
		if strings.Join(got, " ") != want {
			t.Errorf("%s gave %v, want %s", query, got, want)
		}
	}
	if status, body := c.send(http.MethodGet, "/received?tabel=user", nil, ""); status != http.StatusBadRequest {
		t.Errorf("unknown parameter: %d %v", status, body)
	}
	response, err := c.try(http.MethodGet, "/received?format=json&limit=1", nil, "")
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	var list []Item
	if err := json.NewDecoder(response.Body).Decode(&list); err != nil || len(list) != 1 {
		t.Errorf("as an array: %v %v", list, err)
	}
}

func TestTheLogIsBounded(t *testing.T) {
	c := newClient(t, Config{MaxLog: 10, LogBodies: DropBodies})
	for i := range 40 {
		c.stopchurn(rows(row("insert", "user", fmt.Sprintf(`{"id":%d}`, i))))
	}
	items := c.Received(Filter{})
	if len(items) < 10 || len(items) > 13 || items[len(items)-1].Seq != 40 || items[0].Body != nil {
		t.Errorf("%d items, the last %+v", len(items), items[len(items)-1])
	}
	if after := c.Received(Filter{After: 38}); len(after) != 2 || after[0].Seq != 39 {
		t.Errorf("after 38 come %+v", after)
	}
	if len(c.Rows("user")) != 40 {
		t.Errorf("%d rows", len(c.Rows("user")))
	}
}

func TestCountOnlyKeepsNothing(t *testing.T) {
	c := newClient(t, Config{CountOnly: true, QueueDelay: time.Nanosecond})
	status, body := c.stopchurn(rows(row("insert", "user", `{"id":1}`), row("delete", "user", `{"id":1,"note":"\"tableName\":"}`)))
	if status != http.StatusOK || body["message"] != "Updates received" {
		t.Errorf("%d %v", status, body)
	}
	if status, body := c.batch(`{"systemId":0,"data":[` + simpleFan + `]}`); status != http.StatusOK {
		t.Errorf("%d %v", status, body)
	}
	header := c.fanbaseHeader()
	_, queued := c.send(http.MethodPost, "/api/v1/integration/queue", header, `{"action":"update_fandata","data":{"id":"1"}}`)
	if _, shown := c.send(http.MethodGet, "/api/v1/integration/queue/"+queued["id"].(string), header, ""); shown["processStatus"] != "completed" {
		t.Errorf("queued object is %v", shown)
	}
	if n := c.Accepted("stopchurn"); n != 2 {
		t.Errorf("%d rows counted", n)
	}
	if len(c.Received(Filter{}))+len(c.Rows(""))+len(c.Fans())+len(c.Queue())+len(c.Approvals()) != 0 {
		t.Error("something was kept")
	}
}

func TestAwaitAndReset(t *testing.T) {
	c := newClient(t, Config{})
	var wait conc.WaitGroup
	defer wait.Wait()
	wait.Go(func() { c.stopchurn(rows(row("insert", "user", `{"id":1}`))) })
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := c.Await(ctx, func() bool { return len(c.Rows("")) == 1 && len(c.Requests()) == 1 }); err != nil {
		t.Fatal(err)
	}
	if status, body := c.send(http.MethodPost, "/reset", nil, ""); status != http.StatusOK || body["last_seq"] != 0.0 || len(c.Rows("")) != 0 {
		t.Errorf("%d %v", status, body)
	}
	cancel()
	if err := c.Await(ctx, func() bool { return false }); err == nil {
		t.Error("Await outlived its context")
	}
}

func TestServeEndsWithItsContext(t *testing.T) {
	s := New(Config{})
	if _, err := s.AddFault(Fault{Kind: Hang, Endpoint: "stopchurn"}); err != nil {
		t.Fatal(err)
	}
	var config net.ListenConfig
	listener, err := config.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wait conc.WaitGroup
	wait.Go(func() {
		if err := s.Serve(ctx, listener); err != nil {
			t.Error(err)
		}
	})
	wait.Go(func() {
		transport := &http.Transport{}
		defer transport.CloseIdleConnections()
		c := &client{t: t, base: "http://" + listener.Addr().String(), http: &http.Client{Transport: transport}, Server: s}
		if response, err := c.try(http.MethodPost, "/client-data/update", nil, "{}"); err == nil {
			response.Body.Close()
			t.Error("a request that hangs was answered")
		}
	})
	for s.Faults()[0].Hits == 0 {
		time.Sleep(time.Millisecond)
	}
	cancel()
	wait.Wait()
}

func TestNoValueIsLogged(t *testing.T) {
	var log bytes.Buffer
	c := newClient(t, Config{Logger: slog.New(slog.NewTextHandler(&log, nil))})
	const secret = "39053344705"
	c.stopchurn(rows(row(secret, "user", `{"id":"`+secret+`"}`)))
	c.batch(`{"systemId":0,"data":[` + strings.ReplaceAll(simpleFan, `"M"`, `"`+secret+`"`) + `]}`)
	c.batch(`{"systemId":"` + secret + `","data":[]}`)
	c.accounts(`{"accounts":[{"account_tenant_fanid":"` + secret + `","invite_approval_map":{"` + secret + `":true}}]}`)
	c.send(http.MethodPost, "/api/v1/integration/queue", c.fanbaseHeader(), `{"action":"`+secret+`","data":{"id":"1"}}`)
	for _, leak := range []string{secret, "sandbox-secret", "sandbox-key", "sandbox.", "joao@"} {
		if strings.Contains(log.String(), leak) {
			t.Errorf("the log holds %q:\n%s", leak, &log)
		}
	}
	if n := strings.Count(log.String(), "msg=request"); n != 9 {
		t.Errorf("%d lines:\n%s", n, &log)
	}
	if diff := cmp.Diff([]string{"stopchurn"}, logged(&log)[:1]); diff != "" {
		t.Error(diff)
	}
}

func logged(log *bytes.Buffer) []string {
	var names []string
	for line := range strings.Lines(log.String()) {
		_, rest, _ := strings.Cut(line, "endpoint=")
		name, _, _ := strings.Cut(rest, " ")
		names = append(names, name)
	}
	return names
}
