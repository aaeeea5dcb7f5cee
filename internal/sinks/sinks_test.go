package sinks_test

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"

	"github.com/cdcsync/cdcsync/internal/cdc"
	"github.com/cdcsync/cdcsync/internal/secret"
	"github.com/cdcsync/cdcsync/internal/sinks"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestNewRefuses(t *testing.T) {
	tokens := sinks.NewTokens("1", nil, nil)
	const good = "https://vendor.test"
	for _, test := range []struct {
		cfg    sinks.Config
		tokens *sinks.Tokens
		want   string
	}{
		{sinks.Config{Type: "kafka", URL: good}, tokens, `sink crm: unknown type "kafka"`},
		{sinks.Config{Type: sinks.TypeStopChurn}, nil, "sink crm: url: must begin with https:// or http://"},
		{sinks.Config{Type: sinks.TypeStopChurn, URL: "vendor.test"}, nil, "sink crm: url: must begin with https:// or http://"},
		{sinks.Config{Type: sinks.TypeStopChurn, URL: "https://"}, nil, "sink crm: url: names no host"},
		{sinks.Config{Type: sinks.TypeStopChurn, URL: "https://u:planted@x"}, nil, "sink crm: url: must not hold a user or password"},
		{sinks.Config{Type: sinks.TypeStopChurn, URL: "https://planted:planted"}, nil, "sink crm: url: is not a URL"},
		{sinks.Config{Type: sinks.TypeStopChurn, URL: good, APIKey: secret.New("planted\n")}, nil, "sink crm: api_key: holds a control character, such as the end of a line"},
		{sinks.Config{Type: sinks.TypeFanatics, URL: good, Auth: sinks.Auth{URL: good}}, nil, "sink crm: no token registry"},
		{sinks.Config{Type: sinks.TypeFanbaseBatch, URL: good}, tokens, "sink crm: auth.url: must begin with https:// or http://"},
		{sinks.Config{Type: sinks.TypeFanbaseQueue, Auth: sinks.Auth{URL: good}}, tokens, "sink crm: url: must begin with https:// or http://"},
	} {
		test.cfg.Name = "crm"
		if sink, err := sinks.New(test.cfg, sinks.Deps{Tokens: test.tokens}); err == nil || err.Error() != test.want || sink != nil {
			t.Errorf("got %v, %v, want %s", sink, err, test.want)
		}
	}
}

// A URL with a path, as behind a gateway.
func TestBasePath(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newVendor(t)
		v.answer = say(200, `{"statusCode":200}`)
		k := kinds[sinks.TypeStopChurn]
		k.cfg.URL = "http://vendor.test/gateway/"
		if _, err := k.open(t, sinks.TypeStopChurn, v).Deliver(t.Context(), k.items(1), ""); err != nil {
			t.Fatal(err)
		}
		if path := v.requests[0].URL.Path; path != "/gateway/client-data/update" {
			t.Error(path)
		}
	})
}

// When Deliver has returned, its items belong to the caller again, even while the transport would go on sending them.
func TestBodiesAreReleased(t *testing.T) {
	const size = 4 << 20
	for name, http2 := range map[string]bool{"HTTP/1.1": false, "HTTP/2": true} {
		t.Run(name, func(t *testing.T) {
			server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if (r.ProtoMajor == 2) != http2 {
					t.Errorf("speaks %s", r.Proto)
				}
				w.WriteHeader(http.StatusRequestEntityTooLarge)
				w.(http.Flusher).Flush()
			}))
			server.EnableHTTP2 = http2
			server.StartTLS()
			defer server.Close()
			k := kinds[sinks.TypeStopChurn]
			k.cfg.URL = server.URL
			sink := k.openWith(t, sinks.TypeStopChurn, sinks.Deps{Transport: server.Client().Transport})
			item := sinks.Item{Op: cdc.OpInsert, Body: bytes.Repeat([]byte("1"), size)}
			for range 10 {
				_, _ = sink.Deliver(t.Context(), []sinks.Item{item, item}, "key")
				for i := 0; i < size; i += 512 {
					item.Body[i] = '2' // the race detector sees who else is reading
				}
			}
		})
	}
}

// The attempt's time is bounded with HTTP/2, too, in which the transport has other errors.
func TestTimeoutHTTP2(t *testing.T) {
	for name, answer := range map[string]answering{"before the answer": hang, "within the answer": hangHalfway} {
		t.Run(name, func(t *testing.T) {
			server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { answer(w, r, 1) }))
			server.EnableHTTP2 = true
			server.StartTLS()
			defer server.Close()
			k := kinds[sinks.TypeStopChurn]
			k.cfg.URL, k.cfg.Timeout = server.URL, 50*time.Millisecond
			_, err := k.openWith(t, sinks.TypeStopChurn, sinks.Deps{Transport: server.Client().Transport}).Deliver(t.Context(), k.items(1), "key")
			checkError(t, err, want{sinks.ClassTransient, 0, 0, "no whole answer within 50ms"})
		})
	}
}

// A connection that the vendor closed while it was idle costs no attempt.
func TestStaleConnection(t *testing.T) {
	var remotes []string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		content, _ := io.ReadAll(r.Body)
		remotes = append(remotes, fmt.Sprint(r.RemoteAddr, len(content)))
		if len(remotes) == 2 {
			conn, _, _ := w.(http.Hijacker).Hijack()
			_ = conn.Close() // the second request on the connection gets no answer
			return
		}
		_, _ = io.WriteString(w, `{"statusCode":200}`)
	}))
	defer server.Close()
	k := kinds[sinks.TypeStopChurn]
	k.cfg.URL = server.URL
	sink := k.openWith(t, sinks.TypeStopChurn, sinks.Deps{})
	defer sink.Close()
	for range 2 {
		if _, err := sink.Deliver(t.Context(), k.items(1, 2, 3), "key"); err != nil {
			t.Fatal(err)
		}
	}
	if len(remotes) != 3 || remotes[0] != remotes[1] || remotes[1] == remotes[2] {
		t.Errorf("requests %v", remotes)
	}
}

func TestMetrics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reg := prometheus.NewPedanticRegistry()
		v := newVendor(t)
		tokens := sinks.NewTokens("1", reg, v)
		statuses := []int{201, 503, 999}
		v.answer = func(w http.ResponseWriter, r *http.Request, n int) {
			say(statuses[n-1], `{"id":"1","iCode":0}`)(w, r, n)
		}
		k := kinds[sinks.TypeFanbaseQueue]
		for range statuses {
			_, _ = k.openWith(t, sinks.TypeFanbaseQueue, sinks.Deps{Tokens: tokens, Registerer: reg, Transport: v}).Deliver(t.Context(), k.items(1), "key")
		}
		want := `
# HELP cdcsync_sinks_request_bytes_total Bytes of request bodies.
# TYPE cdcsync_sinks_request_bytes_total counter
cdcsync_sinks_request_bytes_total{sink="sink"} 135
# HELP cdcsync_sinks_requests_total Requests to the vendor by HTTP status; none means that there was no answer.
# TYPE cdcsync_sinks_requests_total counter
cdcsync_sinks_requests_total{sink="sink",status="201"} 1
cdcsync_sinks_requests_total{sink="sink",status="503"} 1
cdcsync_sinks_requests_total{sink="sink",status="none"} 1
# HELP cdcsync_sinks_token_requests_total Requests for a token by HTTP status; none means that there was no answer.
# TYPE cdcsync_sinks_token_requests_total counter
cdcsync_sinks_token_requests_total{status="200"} 1
`
		if err := testutil.GatherAndCompare(reg, strings.NewReader(want), "cdcsync_sinks_requests_total", "cdcsync_sinks_request_bytes_total", "cdcsync_sinks_token_requests_total"); err != nil {
			t.Error(err)
		}
	})
}

func TestMasked(t *testing.T) {
	for text, want := range map[string]string{
		"Update reception failed: user.email must be a string": "Update reception failed: user.email must be a string",
		"CPF 123.456.789-00 is taken":                          "CPF … is taken",
		"ana@x.test, 2024 and (12345)":                         "… 2024 and …",
		`value "Ana Lima" of 'name' too long`:                  `value "…" of '…' too long`,
		"the fan's name isn't 'Ana'":                           "the fan's name isn't '…'",
		"an open \"quote":                                      "an open \"quote",
		"account aaaaaaaa-bbbb-cccc-dddd-000000000001":         "account …",
		"": "",
	} {
		if diff := cmp.Diff(want, sinks.Masked(text)); diff != "" {
			t.Error(diff)
		}
	}
}

// discard is a vendor that reads requests as the transport does, and takes everything.
type discard struct{ buffer []byte }

func (d *discard) RoundTrip(req *http.Request) (*http.Response, error) {
	if _, err := io.CopyBuffer(io.Discard, onlyReader{io.LimitReader(req.Body, req.ContentLength)}, d.buffer); err != nil {
		return nil, err
	}
	return &http.Response{StatusCode: http.StatusOK, Body: http.NoBody}, nil
}

type onlyReader struct{ io.Reader }

// What a request of 500 items of 300 bytes costs beside the network.
func BenchmarkStopChurnDeliver(b *testing.B) {
	sink, err := sinks.New(sinks.Config{Type: sinks.TypeStopChurn, URL: "http://vendor.test", APIKey: secret.New("key")},
		sinks.Deps{Transport: &discard{make([]byte, 32<<10)}})
	if err != nil {
		b.Fatal(err)
	}
	items := make([]sinks.Item, 500)
	for i := range items {
		items[i] = sinks.Item{Op: cdc.OpUpdate, Body: bytes.Repeat([]byte("x"), 300)}
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := sink.Deliver(b.Context(), items, "key"); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(len(items)), "ns/item")
}
