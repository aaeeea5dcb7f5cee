package sinks

import (
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

func TestRetryAfter(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for _, test := range []struct {
		value, date string
		want        time.Duration
	}{
		{"", "", 0},
		{"0", "", 0},
		{" 120 ", "", 2 * time.Minute},
		{"3601", "", time.Hour + time.Second},
		{"86401", "", longestAfter},
		{"99999999999999999999999999", "", longestAfter},
		{strings.Repeat("9", 400), "", longestAfter},
		{"-5", "", 0},
		{"1.5", "", 1500 * time.Millisecond},
		{".25", "", 250 * time.Millisecond},
		{"1.2.3", "", 0},
		{"1e9", "", 0},
		{"Inf", "", 0},
		{"Fri, 02 Jan 2026 03:04:35 +0000", "", 30 * time.Second},
		{"Fri, 02 Jan 2026 03:04:35 UTC", "", 30 * time.Second},
		{"2026-01-02T03:04:35Z", "", 30 * time.Second},
		{"soon", "", 0},
		{"Fri, 02 Jan 2026 03:04:35 GMT", "", 30 * time.Second},
		{"Friday, 02-Jan-26 03:04:35 GMT", "", 30 * time.Second},
		{"Fri Jan  2 03:04:35 2026", "", 30 * time.Second},
		{"Fri, 02 Jan 2026 03:04:00 GMT", "", 0},
		{"Sat, 02 Jan 2027 03:04:05 GMT", "", longestAfter},
		{"Sun, 01 Jan 1000 00:00:00 GMT", "", 0},
		{"Fri, 02 Jan 2026 05:00:30 GMT", "Fri, 02 Jan 2026 05:00:00 GMT", 30 * time.Second},
		{"Fri, 02 Jan 2026 03:04:35 GMT", "no date", 30 * time.Second},
	} {
		header := http.Header{"Retry-After": {test.value}, "Date": {test.date}}
		if got := retryAfter(header, now); got != test.want {
			t.Errorf("%q at %q: got %s, want %s", test.value, test.date, got, test.want)
		}
	}
}

func FuzzRetryAfter(f *testing.F) {
	f.Add("120", "")
	f.Add("Fri, 02 Jan 2026 03:04:35 GMT", "Fri, 02 Jan 2026 05:00:00 GMT")
	f.Add("99999999999999999999", "x")
	f.Fuzz(func(t *testing.T, value, date string) {
		got := retryAfter(http.Header{"Retry-After": {value}, "Date": {date}}, time.Unix(0, 0))
		if got < 0 || got > longestAfter {
			t.Errorf("%s", got)
		}
	})
}

func FuzzComplaint(f *testing.F) {
	for _, seed := range []string{
		`{"statusCode":400,"message":["a",{"b":1}],"error":"Bad Request"}`, `{"errors":[{"code":1,"message":null}],"rc":7}`,
		`{"header":{"codigo":2,"msg":"x"}}`, `{"iCode":5,"iMsg":"m"}`, "\xff\x00text", `{"header":"x"}`, strings.Repeat("é", reasonLimit),
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		reason, code, trace := complaint(body)
		for _, s := range []string{reason, code, trace, Masked(reason)} {
			if len(s) > reasonLimit || !utf8.ValidString(s) || strings.ContainsAny(s, "\n\r\x00") {
				t.Errorf("%q", s)
			}
		}
	})
}

// checkOutcomes holds for whatever a vendor answers: one outcome an item, each with a status, or an error that tells its class.
func checkOutcomes(t *testing.T, outcomes []Outcome, err error, items int) {
	t.Helper()
	if failed, ok := err.(*RequestError); ok && (failed.Class == 0 || outcomes != nil) { //nolint:errorlint // the error itself is returned
		t.Errorf("%+v beside %+v", outcomes, failed)
	}
	if err == nil && len(outcomes) != items {
		t.Errorf("%d outcomes for %d items", len(outcomes), items)
	}
	for _, o := range outcomes {
		if o.Status == 0 || o.Status == Rejected && o.Reason == "" {
			t.Errorf("%+v", o)
		}
	}
}

func FuzzFanbaseBatchReply(f *testing.F) {
	for _, seed := range []string{
		`{"header":{"codigo":1},"data":{"items":[{"success":true,"cpf":"1","email":"A@x"},{"success":false,"cpf":2},{"success":null}]}}`,
		`{"header":{"codigo":1},"data":{"items":[{"success":true},{"success":true},{"success":true}]}}`,
		`{"header":{"codigo":0},"data":{"items":[{"email":"b@x","account":{"success":false}}]}}`, `{"data":{"items":[{}]}}`, `[]`,
	} {
		f.Add([]byte(seed))
	}
	sink := &FanbaseBatch{auth: bearer{source: &tokenSource{}}}
	fans := []fan{{cpfs: []string{"1"}, emails: []string{"a@x"}}, {emails: []string{"b@x"}}, {cpfs: []string{"1", "2"}}}
	f.Fuzz(func(t *testing.T, body []byte) {
		outcomes, err := sink.settle(&answer{status: 200, body: body}, fans)
		checkOutcomes(t, outcomes, err, len(fans))
	})
}

func FuzzFanaticsReply(f *testing.F) {
	for _, seed := range []string{
		`{"accounts":[{"account_tenant_fanid":"A","result":"ok"},{"account_tenant_fanid":"b","result":"nok","details":"d"}],"rc":"r"}`,
		`{"errors":[{"code":1,"message":"m"}],"rc":"r"}`, `{"accounts":null}`, `{"accounts":[{"result":null}]}`,
	} {
		f.Add([]byte(seed))
	}
	sink := &Fanatics{auth: bearer{source: &tokenSource{}}}
	f.Fuzz(func(t *testing.T, body []byte) {
		outcomes, err := sink.settle(&answer{status: 201, body: body}, []string{"a", "b", "a"})
		checkOutcomes(t, outcomes, err, 3)
	})
}

func FuzzFanaticsMerge(f *testing.F) {
	f.Add([]byte(`{"account_tenant_fanid":"A","invite_approval_map":{"X":true}}`), []byte(`{"invite_approval_map":{"x":false,"y":true},"account_tenant_fanid":"a"}`))
	f.Add([]byte(`{"account_tenant_fanid":"A","invite_approval_map":{}}`), []byte(`{"account_tenant_fanid":"a","invite_approval_map":{"\"":true}}`))
	sink := &Fanatics{}
	f.Fuzz(func(t *testing.T, older, newer []byte) {
		merged, err := sink.Merge(nil, older, newer)
		if err != nil {
			return
		}
		got, err := parseApproval(merged)
		if err != nil {
			t.Fatalf("%v in %s", err, merged)
		}
		want, _ := parseApproval(newer)
		for i, wanted := range want.tiers {
			last := !slices.ContainsFunc(want.tiers[i+1:], func(later tier) bool { return later.id == wanted.id })
			if last && !slices.Contains(got.tiers, wanted) {
				t.Errorf("%s lacks %+v", merged, wanted)
			}
		}
	})
}

func FuzzQueueReply(f *testing.F) {
	f.Add([]byte(`{"id":"uuid","iCode":0,"iMsg":"m","processStatus":"pending","processMsg":null}`))
	f.Add([]byte(`{"id":1,"iCode":"7"}`))
	f.Add([]byte(`{}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		for _, confirm := range []Confirm{ConfirmAccepted, ConfirmProcessed} {
			outcomes, err := (&FanbaseQueue{confirm: confirm}).settle(&answer{status: 201, body: body})
			checkOutcomes(t, outcomes, err, 1)
		}
	})
}
