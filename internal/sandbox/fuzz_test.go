package sandbox

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// FuzzEndpoints sends any body to any endpoint: the answer is JSON, and never a panic or a 5xx.
func FuzzEndpoints(f *testing.F) {
	queued := `{"action":"update_fandata","data":{"cpf":"12345678900","id":"internal_feng_id"}}`
	for i, body := range []string{stopchurnExample, "", queued, "", batchOf(simpleFan, memberFan), "grant_type=client_credentials", accountsExample} {
		f.Add(uint8(i), []byte(body))
	}
	f.Add(uint8(4), []byte(batchOf(strings.ReplaceAll(memberFan, `"1"`, `null`))))
	f.Add(uint8(0), []byte(`{"data":[{"type":"insert","data":{"brandId":1e400,"tableName":"user","data":{"id":-0},"createdAt":1e12,"updatedAt":1e12}}]}`))
	s := New(Config{MaxLog: 10})
	fanbase, fanatics := s.fanbaseTokens.issue(nil), s.fanaticsTokens.issue([]string{scopeOverride})
	f.Fuzz(func(t *testing.T, which uint8, body []byte) {
		e := &endpoints[int(which)%len(endpoints)]
		r := httptest.NewRequestWithContext(t.Context(), e.method, strings.Replace(e.path, "{id}", "x", 1), strings.NewReader(string(body)))
		r.Header.Set("Content-Type", "application/json")
		if e.form {
			r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		}
		r.Header.Set("AccessToken", fanbase)
		r.Header.Set("Authorization", "Bearer "+fanatics)
		if e.vendor == "StopChurn" {
			r.Header.Set("Authorization", "Bearer sandbox-key")
		}
		w := httptest.NewRecorder()
		s.Handler().ServeHTTP(w, r)
		if !json.Valid(w.Body.Bytes()) || w.Code >= http.StatusInternalServerError {
			t.Errorf("%s: %d %s", e.name, w.Code, w.Body)
		}
	})
}

func BenchmarkStopChurn(b *testing.B) {
	var elements []string
	for range 500 {
		elements = append(elements, row("update", "bench", `{"id":123456,"t1":"some text of a row","t2":"some text of a row","t3":"some text of a row",`+
			`"t4":"some text of a row","t5":"some text of a row","n":"12345.678","arr":["a","b","c"],"doc":{"k":"v","n":[1,2,3]},"c":1694357675000,"u":1694357675000}`))
	}
	body := rows(elements...)
	s := New(Config{MaxLog: 1000})
	for b.Loop() {
		r := httptest.NewRequestWithContext(b.Context(), http.MethodPost, "/client-data/update", strings.NewReader(body))
		r.Header.Set("Content-Type", "application/json")
		r.Header.Set("Authorization", "Bearer sandbox-key")
		w := httptest.NewRecorder()
		s.Handler().ServeHTTP(w, r)
		if w.Code != http.StatusOK {
			b.Fatal(w.Body)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N*500), "µs/row")
}

// FuzzMembers holds the scanner against encoding/json.
func FuzzMembers(f *testing.F) {
	for _, body := range []string{stopchurnExample, simpleFan, `{}`, ` { "a\"\u00e9" : [ 1 , {} , "]" ] , "b":-1.5e3,"c":null} `, `{"a":1,"a":2}`} {
		f.Add([]byte(body))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		if document(body) != nil {
			return
		}
		var want map[string]json.RawMessage
		if err := json.Unmarshal(body, &want); err != nil {
			t.Skip("not an object")
		}
		got, err := members(body)
		if err != nil {
			if !strings.Contains(err.Error(), "twice") {
				t.Error(err)
			}
			return
		}
		if len(got) != len(want) {
			t.Fatalf("%d members, encoding/json has %d", len(got), len(want))
		}
		for _, m := range got {
			if string(want[m.name]) != string(m.value) {
				t.Errorf("%q is %s, encoding/json has %s", m.name, m.value, want[m.name])
			}
			if kindOf(m.value) != kindArray {
				continue
			}
			var list []json.RawMessage
			values, err := elements(m.value)
			if json.Unmarshal(m.value, &list) != nil || err != nil || len(values) != len(list) {
				t.Errorf("%s has %d elements, encoding/json finds %d", m.value, len(values), len(list))
			}
		}
	})
}
