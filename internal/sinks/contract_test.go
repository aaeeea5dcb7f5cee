package sinks_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cdcsync/cdcsync/internal/sinks"
)

type answering = func(w http.ResponseWriter, r *http.Request, n int)

// want is the error that a request ends with.
type want struct {
	class  sinks.Class
	status int
	after  time.Duration
	reason string // part of it
}

// Every sink meets every answer to a request as a whole.
func TestContract(t *testing.T) {
	cases := []struct {
		name   string
		answer answering
		want   want
	}{
		{name: "400", answer: say(400, `{"statusCode":400,"message":"Update reception failed: no such column","error":"Bad Request"}`), want: want{sinks.ClassBadRequest, 400, 0, "Update reception failed: no such column"}},
		{name: "400 with messages", answer: say(400, `{"message":["a is wrong","b is wrong"]}`), want: want{sinks.ClassBadRequest, 400, 0, "a is wrong; b is wrong"}},
		{name: "400 without JSON", answer: say(400, "bad\x00\nrequest"), want: want{sinks.ClassBadRequest, 400, 0, "bad  request"}},
		{name: "400 of a web server", answer: say(400, "<html><h1>Bad request</h1></html>"), want: want{sinks.ClassEndpoint, 400, 0, "is a page of HTML"}},
		{name: "400 of an HTTPS port, Go", answer: say(400, "Client sent an HTTP request to an HTTPS server.\n"), want: want{sinks.ClassEndpoint, 400, 0, "begin the sink's url with https://"}},
		{name: "400 of an HTTPS port, nginx", answer: say(400, "<html><head><title>400 The plain HTTP request was sent to HTTPS port</title></head></html>"), want: want{sinks.ClassEndpoint, 400, 0, "begin the sink's url with https://"}},
		{name: "400 of an HTTPS port, Tomcat", answer: say(400, "Bad Request\r\nThis combination of host and port requires TLS.\r\n"), want: want{sinks.ClassEndpoint, 400, 0, "begin the sink's url with https://"}},
		{name: "400 without a body", answer: say(400, ""), want: want{sinks.ClassBadRequest, 400, 0, ""}},
		{name: "400 of a megabyte", answer: say(400, strings.Repeat("x", 3<<20)), want: want{sinks.ClassBadRequest, 400, 0, "xxx"}},
		{name: "401", answer: say(401, `{"message":"Invalid client api token"}`), want: want{sinks.ClassUnauthorized, 401, 0, "Invalid client api token"}},
		{name: "401 that echoes", answer: echo, want: want{sinks.ClassUnauthorized, 401, 0, "[redacted]"}},
		{name: "403", answer: say(403, `{}`), want: want{sinks.ClassUnauthorized, 403, 0, ""}},
		{name: "404", answer: say(404, "no such page"), want: want{sinks.ClassEndpoint, 404, 0, "no such page; see the sink's url"}},
		{name: "404 of a web server", answer: say(404, "<!DOCTYPE html><p>gone</p>"), want: want{sinks.ClassEndpoint, 404, 0, "is a page of HTML, not the vendor's: see the sink's url"}},
		{name: "405", answer: say(405, ""), want: want{sinks.ClassEndpoint, 405, 0, "see the sink's url"}},
		{name: "407", answer: say(407, ""), want: want{sinks.ClassEndpoint, 407, 0, "see the sink's url"}},
		{name: "410", answer: say(410, ""), want: want{sinks.ClassEndpoint, 410, 0, ""}},
		{name: "415", answer: say(415, ""), want: want{sinks.ClassEndpoint, 415, 0, ""}},
		{name: "451", answer: say(451, ""), want: want{sinks.ClassEndpoint, 451, 0, ""}},
		{name: "501", answer: say(501, ""), want: want{sinks.ClassEndpoint, 501, 0, ""}},
		{name: "511", answer: say(511, "<html>log in</html>"), want: want{sinks.ClassEndpoint, 511, 0, "is a page of HTML"}},
		{name: "408", answer: say(408, ""), want: want{sinks.ClassTransient, 408, 0, ""}},
		{name: "409", answer: say(409, ""), want: want{sinks.ClassRejected, 409, 0, ""}},
		{name: "413 of a web server", answer: say(413, "<html>413</html>"), want: want{sinks.ClassTooLarge, 413, 0, ""}},
		{name: "502 of a web server", answer: say(502, "<html>502</html>"), want: want{sinks.ClassTransient, 502, 0, ""}},
		{name: "413", answer: say(413, ""), want: want{sinks.ClassTooLarge, 413, 0, ""}},
		{name: "422", answer: say(422, ""), want: want{sinks.ClassBadRequest, 422, 0, ""}},
		{name: "425", answer: say(425, ""), want: want{sinks.ClassTransient, 425, 0, ""}},
		{name: "429", answer: say(429, ""), want: want{sinks.ClassThrottled, 429, 0, ""}},
		{name: "429 with seconds", answer: say(429, "", "Retry-After", "7"), want: want{sinks.ClassThrottled, 429, 7 * time.Second, ""}},
		{name: "429 with a date", answer: say(429, "", "Retry-After", "Sat, 01 Jan 2000 00:02:00 GMT", "Date", "Sat, 01 Jan 2000 00:00:00 GMT"), want: want{sinks.ClassThrottled, 429, 2 * time.Minute, ""}},
		{name: "500", answer: say(500, "boom"), want: want{sinks.ClassTransient, 500, 0, "boom"}},
		{name: "503 with seconds", answer: say(503, "", "Retry-After", "9"), want: want{sinks.ClassTransient, 503, 9 * time.Second, ""}},
		{name: "429 with a fraction", answer: say(429, "", "Retry-After", "1.5"), want: want{sinks.ClassThrottled, 429, 1500 * time.Millisecond, ""}},
		{name: "301", answer: say(301, "<html>moved</html>", "Location", "https://elsewhere.test/x"), want: want{sinks.ClassEndpoint, 301, 0, "redirects to https://elsewhere.test, which is not followed: see the sink's url"}},
		{name: "308", answer: say(308, "", "Location", "/login"), want: want{sinks.ClassEndpoint, 308, 0, "redirects, which is not followed"}},
		{name: "redirect", answer: say(302, "", "Location", "https://user:"+url.PathEscape(plantedKey)+"@elsewhere.test/?secret="+plantedKey), want: want{sinks.ClassEndpoint, 302, 0, "redirects to https://elsewhere.test, which is not followed"}},
		{name: "redirect to nowhere", answer: say(307, "", "Location", "::"), want: want{sinks.ClassEndpoint, 307, 0, "redirects"}},
		{name: "no JSON", answer: say(200, "<html>please log in</html>"), want: want{sinks.ClassEndpoint, 200, 0, "the answer is a page of HTML"}},
		{name: "too long", answer: say(200, `"`+strings.Repeat("x", 3<<20)+`"`), want: want{sinks.ClassEndpoint, 200, 0, "longer than"}},
		{name: "silence", answer: hang, want: want{sinks.ClassTransient, 0, 0, "no whole answer within 30s"}},
		{name: "silence in the middle", answer: hangHalfway, want: want{sinks.ClassTransient, 0, 0, "no whole answer within 30s"}},
		{name: "reset", answer: hangUp(""), want: want{sinks.ClassTransient, 0, 0, "EOF"}},
		{name: "half a body", answer: hangUp("HTTP/1.1 201 Created\r\nContent-Length: 100\r\n\r\n{\"id"), want: want{sinks.ClassTransient, 0, 0, "unexpected EOF"}},
		{name: "no HTTP", answer: hangUp("SSH-2.0-OpenSSH_9.2\r\n"), want: want{sinks.ClassEndpoint, 0, 0, "malformed HTTP"}},
		{name: "TLS", answer: hangUp("\x15\x03\x01\x00\x02\x02\x46"), want: want{sinks.ClassEndpoint, 0, 0, "begin the url with https://"}},
	}
	for typ, k := range kinds {
		for _, test := range cases {
			t.Run(typ+"/"+test.name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					v := newVendor(t)
					v.answer = test.answer
					outcomes, err := k.open(t, typ, v).Deliver(t.Context(), k.items(1), "key")
					if outcomes != nil {
						t.Errorf("outcomes %v beside an error", outcomes)
					}
					checkError(t, err, test.want)
				})
			})
		}
	}
}

func checkError(t *testing.T, err error, want want) {
	t.Helper()
	failed, ok := errors.AsType[*sinks.RequestError](err)
	if !ok {
		t.Fatalf("error %v is no *RequestError", err)
	}
	if failed.Class != want.class || failed.Status != want.status || failed.After != want.after || !strings.Contains(failed.Reason, want.reason) {
		t.Errorf("got class %d, status %d, after %s, reason %.200q\nwant %+v", failed.Class, failed.Status, failed.After, failed.Reason, want)
	}
	if const4K := 4 << 10; len(failed.Reason) > const4K {
		t.Errorf("a reason of %d bytes", len(failed.Reason))
	}
	checkSecrets(t, fmt.Sprintf("%v %+v %#v %v", err, *failed, failed, failed.Err))
}

// checkSecrets looks for what was planted.
func checkSecrets(t *testing.T, text string) {
	t.Helper()
	for _, planted := range []string{plantedKey, plantedSecret, plantedToken, "planted"} {
		if strings.Contains(text, planted) {
			t.Errorf("%q shows in %.500s", planted, text)
		}
	}
}

// echo refuses the request by quoting its credential.
func echo(w http.ResponseWriter, r *http.Request, n int) {
	say(401, "who is "+r.Header.Get("AccessToken")+r.Header.Get("Authorization"))(w, r, n)
}

func hang(_ http.ResponseWriter, r *http.Request, _ int) { <-r.Context().Done() }

func hangHalfway(w http.ResponseWriter, r *http.Request, _ int) {
	w.WriteHeader(http.StatusOK)
	_, _ = w.Write([]byte(`{"da`))
	w.(http.Flusher).Flush()
	<-r.Context().Done()
}

// hangUp ends the connection after a few raw bytes.
func hangUp(raw string) answering {
	return func(w http.ResponseWriter, _ *http.Request, _ int) {
		conn, buffer, err := w.(http.Hijacker).Hijack()
		if err != nil {
			return
		}
		defer conn.Close()
		_, _ = buffer.WriteString(raw)
		_ = buffer.Flush()
	}
}

func TestContractDelivered(t *testing.T) {
	for typ, k := range kinds {
		t.Run(typ, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				numbers := []int{2, 1, 3}[:k.most]
				v := newVendor(t)
				v.answer = say(201, k.ok(numbers))
				sink := k.open(t, typ, v)
				outcomes, err := sink.Deliver(t.Context(), k.items(numbers...), "the-key")
				if err != nil {
					t.Fatal(err)
				}
				if want := slices.Repeat([]sinks.Outcome{{Status: sinks.Delivered}}, len(numbers)); !slices.Equal(outcomes, want) {
					t.Errorf("outcomes %+v", outcomes)
				}
				got := v.requests[0]
				if got.Method != http.MethodPost || got.URL.Path != k.path || got.ContentLength != int64(len(got.body)) {
					t.Errorf("%s %s with a length of %d for %d bytes", got.Method, got.URL, got.ContentLength, len(got.body))
				}
				for name, want := range map[string]string{"User-Agent": "cdcsync/1.2.3", "Idempotency-Key": "the-key", "Content-Type": "application/json"} {
					if got.Header.Get(name) != want {
						t.Errorf("%s: %q", name, got.Header.Get(name))
					}
				}
				compact(t, got.body)
				checkLimits(t, sink.Limits(), k, numbers, got.body)
			})
		})
	}
}

// checkLimits proves what delivery sizes its batches by.
func checkLimits(t *testing.T, limits sinks.Limits, k kind, numbers []int, body string) {
	t.Helper()
	most := limits.Frame
	for _, n := range numbers {
		most += limits.Overhead + len(k.item(n))
	}
	if len(body) > most || len(body) < most-len(numbers)-1 {
		t.Errorf("a request of %d bytes, where the limits say %d", len(body), most)
	}
}

func TestContractRenewal(t *testing.T) {
	for typ, k := range kinds {
		if !k.token {
			continue
		}
		t.Run(typ, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				v := newVendor(t)
				v.answer = func(w http.ResponseWriter, r *http.Request, n int) {
					if credential := r.Header.Get("AccessToken") + r.Header.Get("Authorization"); !strings.HasSuffix(credential, plantedToken+"2") {
						say(401, `{}`)(w, r, n)
						return
					}
					say(201, k.ok([]int{1}))(w, r, n)
				}
				sink := k.open(t, typ, v)
				for range 2 {
					outcomes, err := sink.Deliver(t.Context(), k.items(1), "key")
					if err != nil || outcomes[0].Status != sinks.Delivered {
						t.Fatal(outcomes, err)
					}
				}
				if requests, grants := v.counts(); requests != 3 || grants != 2 {
					t.Errorf("%d requests and %d tokens", requests, grants)
				}
				if v.requests[0].body != v.requests[1].body {
					t.Error("the second attempt sent another body")
				}
			})
		})
	}
}

func TestContractContext(t *testing.T) {
	for typ, k := range kinds {
		for name, answer := range map[string]answering{"before the answer": hang, "within the answer": hangHalfway} {
			t.Run(typ+"/"+name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					v := newVendor(t)
					v.answer = answer
					ctx, cancel := context.WithTimeout(t.Context(), time.Second)
					defer cancel()
					start := time.Now()
					_, err := k.open(t, typ, v).Deliver(ctx, k.items(1), "key")
					if !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != time.Second {
						t.Errorf("%v after %s", err, time.Since(start))
					}
				})
			})
		}
	}
}

func TestContractTokenService(t *testing.T) {
	cases := []struct {
		name  string
		grant answering
		want  want
	}{
		{"400", say(400, `{"error":"invalid_request","error_description":"The informed Client ID is invalid."}`), want{sinks.ClassUnauthorized, 400, 0, "token service: The informed Client ID is invalid."}},
		{"401 that echoes", say(401, `{"error":"`+plantedSecret+`"}`), want{sinks.ClassUnauthorized, 401, 0, "token service: [redacted]"}},
		{"403", say(403, ""), want{sinks.ClassUnauthorized, 403, 0, ""}},
		{"404", say(404, ""), want{sinks.ClassEndpoint, 404, 0, "see auth.url"}},
		{"405", say(405, ""), want{sinks.ClassEndpoint, 405, 0, ""}},
		{"413", say(413, ""), want{sinks.ClassUnauthorized, 413, 0, ""}},
		{"404 of a web server", say(404, "<html>nothing</html>"), want{sinks.ClassEndpoint, 404, 0, "token service: the answer is a page of HTML, not the vendor's: see auth.url"}},
		{"redirect", say(301, "", "Location", "https://login.test/?"+plantedSecret), want{sinks.ClassEndpoint, 301, 0, "https://login.test"}},
		{"429", say(429, "", "Retry-After", "60"), want{sinks.ClassTransient, 429, time.Minute, ""}},
		{"500", say(500, ""), want{sinks.ClassTransient, 500, 0, ""}},
		{"503", say(503, "", "Retry-After", "5"), want{sinks.ClassTransient, 503, 5 * time.Second, ""}},
		{"no JSON", say(200, "hello"), want{sinks.ClassEndpoint, 200, 0, "token service: the answer is not JSON: see auth.url"}},
		{"empty", say(204, ""), want{sinks.ClassEndpoint, 204, 0, "is empty"}},
		{"HTML", say(200, "<html>log in</html>"), want{sinks.ClassEndpoint, 200, 0, "is a page of HTML"}},
		{"list", say(200, `["`+plantedToken+`"]`), want{sinks.ClassEndpoint, 200, 0, "is not a JSON object"}},
		{"no token", say(200, `{"access_token":""}`), want{sinks.ClassEndpoint, 200, 0, "no access_token"}},
		{"a token of another name", say(200, `{"token":"`+plantedToken+`"}`), want{sinks.ClassEndpoint, 200, 0, "no access_token"}},
		{"another type of token", say(200, `{"access_token":"`+plantedToken+`","token_type":"mac"}`), want{sinks.ClassEndpoint, 200, 0, "token_type"}},
		{"two lines", say(200, `{"access_token":"a\r\nHost: b"}`), want{sinks.ClassEndpoint, 200, 0, "no access_token"}},
		{"silence", hang, want{sinks.ClassTransient, 0, 0, "token service: no whole answer within 30s"}},
		{"reset", hangUp(""), want{sinks.ClassTransient, 0, 0, "token service: EOF"}},
		{"half", hangUp("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{\"ac"), want{sinks.ClassTransient, 0, 0, "token service: unexpected EOF"}},
	}
	for typ, k := range kinds {
		if !k.token {
			continue
		}
		for _, test := range cases {
			t.Run(typ+"/"+test.name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					v := newVendor(t)
					v.grant = test.grant
					sink := k.open(t, typ, v)
					_, err := sink.Deliver(t.Context(), k.items(1), "key")
					checkError(t, err, test.want)
					warnings := sink.(interface {
						Check(ctx context.Context) []string
					}).Check(t.Context())
					if len(warnings) != 1 || !strings.HasPrefix(warnings[0], "no token: ") {
						t.Errorf("warnings %q", warnings)
					}
					checkSecrets(t, strings.Join(warnings, "\n"))
					if requests, _ := v.counts(); requests != 0 {
						t.Errorf("%d requests without a token", requests)
					}
				})
			})
		}
	}
}

// A host that is not there, and one that speaks another language, as the network says it.
func TestContractNoHost(t *testing.T) {
	for typ, k := range kinds {
		t.Run(typ, func(t *testing.T) {
			k.cfg.URL = "http://127.0.0.1:1"
			k.cfg.Auth.URL = "http://127.0.0.1:1/token?and=" + "more"
			sink := k.openWith(t, typ, sinks.Deps{Tokens: sinks.NewTokens("1", nil, nil), Version: "1"})
			defer sink.Close()
			_, err := sink.Deliver(t.Context(), k.items(1), "key")
			checkError(t, err, want{sinks.ClassTransient, 0, 0, "connection refused"})
		})
	}
}
