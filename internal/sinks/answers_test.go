package sinks_test

import (
	"bytes"
	"compress/gzip"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"

	"github.com/cdcsync/cdcsync/internal/sinks"
)

var update = flag.Bool("update", false, "write the table of answers into docs/delivery.md")

// reply is an answer of a vendor, for one item.
type reply struct {
	name   string
	status int // 0: the success that the endpoint documents
	header []string
	body   string              // where ok is nil
	ok     func(string) string // makes the body of the endpoint's own success
}

func same(s string) string { return s }

func zipped(s string) string {
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	_, _ = w.Write([]byte(s))
	_ = w.Close()
	return out.String()
}

// replies are the answers that the documentation lists.
var replies = []reply{
	{name: "its documented success", ok: same},
	{name: "the same behind a byte order mark", ok: func(s string) string { return "\ufeff" + s }},
	{name: "the same in gzip, although not asked for", header: []string{"Content-Encoding", "gzip"}, ok: zipped},
	{name: "the same in gzip, without a word of it", ok: zipped},
	{name: "the same in another encoding", header: []string{"Content-Encoding", "br"}, ok: same},
	{name: "gzip that is broken", status: 200, header: []string{"Content-Encoding", "gzip"}, body: "\x1f\x8b\x08nothing"},
	{name: "gzip of more than 1 MiB", status: 200, header: []string{"Content-Encoding", "gzip"}, body: zipped("{" + strings.Repeat(" ", 8<<20) + "}")},
	{name: "200 without a body", status: 200},
	{name: "202 without a body", status: 202},
	{name: "204", status: 204},
	{name: "200 `OK`", status: 200, body: "OK"},
	{name: "200 `null`", status: 200, body: "null"},
	{name: "200 `true`", status: 200, body: "true"},
	{name: "200 `[]`", status: 200, body: "[]"},
	{name: "200 `{}`", status: 200, body: "{}"},
	{name: "202 `{\"message\": \"accepted\"}`", status: 202, body: `{"message":"accepted"}`},
	{name: "200 `{\"success\": false}`", status: 200, body: `{"success":false}`},
	{name: "200 `{\"statusCode\": 200, \"success\": false}`", status: 200, body: `{"statusCode":200,"success":false}`},
	{name: "200 `{\"statusCode\": 400, …}`", status: 200, body: `{"statusCode":400,"message":"Update reception failed: x"}`},
	{name: "200 `{\"statusCode\": 401, …}`", status: 200, body: `{"statusCode":401,"message":"Invalid client api token"}`},
	{name: "200 `{\"statusCode\": 429}`", status: 200, body: `{"statusCode":429}`},
	{name: "200 `{\"statusCode\": 500}`", status: 200, body: `{"statusCode":500}`},
	{name: "201 `{\"iCode\": 0}`", status: 201, body: `{"iCode":0}`},
	{name: "201 `{\"id\": {}, …}`", status: 201, body: `{"id":{},"processStatus":"pending"}`},
	{name: "201 `{\"id\": \"u\", \"iCode\": 12}`", status: 201, body: `{"id":"u","iCode":12,"iMsg":"no"}`},
	{name: "200 `{\"header\": {\"codigo\": 1}, \"data\": {}}`", status: 200, body: `{"header":{"codigo":1,"msg":"Ok"},"data":{}}`},
	{name: "200 `{\"header\": {\"codigo\": 7}}`", status: 200, body: `{"header":{"codigo":7,"msg":"no"}}`},
	{name: "201 `{\"accounts\": []}`", status: 201, body: `{"accounts":[]}`},
	{name: "201 `{\"errors\": […]}`", status: 201, body: `{"errors":[{"code":1,"message":"no"}]}`},
	{name: "200 with a page of HTML", status: 200, body: "<!DOCTYPE html><html><body>Please log in</body></html>"},
	{name: "301, 302, 307, 308", status: 302, header: []string{"Location", "https://elsewhere.test/x"}},
	{name: "400, 422", status: 400, body: `{"message":"no"}`},
	{name: "400 with a page of HTML, or from an HTTPS port", status: 400, body: "<html>bad</html>"},
	{name: "401 (with a new token), 403", status: 403, body: `{"message":"no"}`},
	{name: "404, 405, 407, other 4xx", status: 405},
	{name: "408, 425", status: 408},
	{name: "409", status: 409},
	{name: "413", status: 413},
	{name: "429", status: 429},
	{name: "500, 502, 503, 504, other 5xx", status: 503},
	{name: "501, 505, 511", status: 511},
}

// word is what becomes of the item, in the documentation's words.
func word(outcomes []sinks.Outcome, err error) string {
	if failed, ok := errors.AsType[*sinks.RequestError](err); ok {
		return map[sinks.Class]string{
			sinks.ClassTransient: "again", sinks.ClassThrottled: "again, slower", sinks.ClassUnauthorized: "blocked", sinks.ClassEndpoint: "blocked",
			sinks.ClassTooLarge: "halved", sinks.ClassBadRequest: "halved", sinks.ClassRejected: "halved",
		}[failed.Class]
	}
	if err != nil || len(outcomes) != 1 {
		return fmt.Sprint(outcomes, err)
	}
	return map[sinks.Status]string{
		sinks.Delivered: "delivered", sinks.Accepted: "accepted", sinks.Retry: "again", sinks.Rejected: "dead letter",
	}[outcomes[0].Status]
}

var endpoints = []string{sinks.TypeStopChurn, sinks.TypeFanbaseQueue, sinks.TypeFanbaseBatch, sinks.TypeFanatics}

// The table of answers in docs/delivery.md is what the endpoints and the token services do.
func TestAnswersPage(t *testing.T) {
	const begin, end, page = "<!-- answers: begin -->\n", "<!-- answers: end -->\n", "../../docs/delivery.md"
	var table strings.Builder
	table.WriteString("| answer | `" + strings.Join(endpoints, "` | `") + "` | token service |\n|---|---|---|---|---|---|\n")
	for _, r := range replies {
		fmt.Fprintf(&table, "| %s |", r.name)
		for _, typ := range endpoints {
			fmt.Fprintf(&table, " %s |", deliveredWord(t, typ, r))
		}
		fmt.Fprintf(&table, " %s |\n", tokenWord(t, r))
	}
	content, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, found := strings.Cut(string(content), begin)
	got, after, ends := strings.Cut(rest, end)
	if !found || !ends {
		t.Fatal("the page has no place for the table")
	}
	if *update {
		if err := os.WriteFile(page, []byte(before+begin+table.String()+end+after), 0o600); err != nil {
			t.Fatal(err)
		}
		return
	}
	if diff := cmp.Diff(table.String(), got); diff != "" {
		t.Errorf("go test ./internal/sinks -run TestAnswersPage -update writes it:\n%s", diff)
	}
}

// deliveredWord sends one item to an endpoint that answers so.
func deliveredWord(t *testing.T, typ string, r reply) (got string) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		k := kinds[typ]
		k.cfg.Confirm = sinks.ConfirmProcessed
		status, body := r.status, r.body
		if r.ok != nil {
			status, body = http.StatusCreated, r.ok(k.ok([]int{1}))
		}
		v := newVendor(t)
		v.answer = say(status, body, r.header...)
		outcomes, err := k.open(t, typ, v).Deliver(t.Context(), k.items(1), "key")
		got = word(outcomes, err)
		failed, _ := errors.AsType[*sinks.RequestError](err)
		if failed != nil && failed.Class == sinks.ClassEndpoint && strings.TrimSpace(body) != "" && failed.Answer == "" {
			t.Errorf("%s, %s: an operator is not shown how the answer begins", typ, r.name)
		}
		if failed != nil && failed.Class == sinks.ClassEndpoint && typ == sinks.TypeFanbaseQueue && failed.Uncertain != (status < 300) {
			t.Errorf("%s: uncertain %v", r.name, failed.Uncertain)
		}
		if failed != nil && len(failed.Answer) > 1000 {
			t.Errorf("%s: %d bytes of the answer are shown", r.name, len(failed.Answer))
		}
	})
	return got
}

// tokenWord asks for a token of a service that answers so.
func tokenWord(t *testing.T, r reply) (got string) {
	t.Helper()
	for _, typ := range []string{sinks.TypeFanbaseBatch, sinks.TypeFanatics} {
		synctest.Test(t, func(t *testing.T) {
			k := kinds[typ]
			status, body := r.status, r.body
			if r.ok != nil {
				status, body = http.StatusOK, r.ok(`{"access_token":"`+plantedToken+`1","token_type":"Bearer","expires_in":3600}`)
			}
			v := newVendor(t)
			v.grant, v.answer = say(status, body, r.header...), say(200, k.ok([]int{1}))
			outcomes, err := k.open(t, typ, v).Deliver(t.Context(), k.items(1), "key")
			now := word(outcomes, err)
			if now == "delivered" {
				now = "taken"
			}
			if got != "" && got != now {
				t.Errorf("%s: the token services differ: %s, %s", r.name, got, now)
			}
			if failed, ok := errors.AsType[*sinks.RequestError](err); ok && !failed.Unsent {
				t.Errorf("%s: the items may be to blame for the token", r.name)
			}
			got = now
		})
	}
	return got
}

// What an operator is shown of an answer is short, on one line, and holds neither credentials nor bytes that do something to a terminal.
func TestAnswersAreShownSafely(t *testing.T) {
	for body, want := range map[string]string{
		"OK":                           "OK",
		"<html>\u202e\x1b[2Jlog in":    `"<html>\u202e\x1b[2Jlog in"`,
		strings.Repeat("é", 300):       strings.Repeat("é", 100),
		"x" + strings.Repeat("é", 300): "x" + strings.Repeat("é", 99),
		"your key " + plantedKey:       "your key [redacted]",
		"\xff\xfeO\x00K\x00":           `"\xff\xfeO\x00K\x00"`,
		strings.Repeat("x", 190) + plantedKey + strings.Repeat("y", 9000): strings.Repeat("x", 190) + "[redacted]",
	} {
		synctest.Test(t, func(t *testing.T) {
			v := newVendor(t)
			v.answer = say(200, body)
			k := kinds[sinks.TypeStopChurn]
			_, err := k.open(t, sinks.TypeStopChurn, v).Deliver(t.Context(), k.items(1), "key")
			failed, ok := errors.AsType[*sinks.RequestError](err)
			if !ok || failed.Answer != want {
				t.Errorf("%.40q: got %q, want %q", body, failed.Answer, want)
			}
			if strings.Contains(err.Error(), "log in") {
				t.Errorf("%s would be logged", err)
			}
		})
	}
}
