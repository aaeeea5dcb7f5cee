package sinks_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cdcsync/cdcsync/internal/sinks"
)

func grantFor(seconds int) answering {
	return func(w http.ResponseWriter, r *http.Request, n int) {
		say(200, fmt.Sprintf(`{"access_token":"%s%d","expires_in":%d}`, plantedToken, n, seconds))(w, r, n)
	}
}

func TestTokenRequests(t *testing.T) {
	for typ, check := range map[string]func(t *testing.T, grant, call request){
		sinks.TypeFanbaseBatch: func(t *testing.T, grant, call request) {
			t.Helper()
			query := grant.URL.Query()
			if len(query) != 4 || query.Get("grant_type") != "client_credentials" || query.Get("client_id") != "client" ||
				query.Get("client_secret") != plantedSecret || query.Get("tenant") != "a b" || grant.body != "" || grant.ContentLength != 0 {
				t.Errorf("query %v, body %q", query, grant.body)
			}
			if call.Header.Get("AccessToken") != plantedToken+"1" || call.Header.Get("Authorization") != "" {
				t.Errorf("header %v", call.Header)
			}
		},
		sinks.TypeFanatics: func(t *testing.T, grant, call request) {
			t.Helper()
			const body = "client_id=client&client_secret=s3cret+planted%260815&grant_type=client_credentials&scope=tier_points%3Aoverride"
			if grant.body != body || grant.URL.RawQuery != "tenant=a+b" || grant.Header.Get("Content-Type") != "application/x-www-form-urlencoded" {
				t.Errorf("query %s, body %s", grant.URL.RawQuery, grant.body)
			}
			if call.Header.Get("Authorization") != "Bearer "+plantedToken+"1" || call.Header.Get("AccessToken") != "" {
				t.Errorf("header %v", call.Header)
			}
		},
	} {
		t.Run(typ, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				k := kinds[typ]
				k.cfg.Auth.URL = "http://vendor.test/token?tenant=a+b"
				v := newVendor(t)
				v.answer = say(201, k.ok([]int{1}))
				if _, err := k.open(t, typ, v).Deliver(t.Context(), k.items(1), "key"); err != nil {
					t.Fatal(err)
				}
				check(t, v.grants[0], v.requests[0])
				if agent := v.grants[0].Header.Get("User-Agent"); agent != "cdcsync/1.2.3" {
					t.Error(agent)
				}
			})
		})
	}
}

// Two sinks of one client, fifty lanes: one token, and one more when the vendor refuses the first.
func TestTokenSingleFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newVendor(t)
		v.grant = func(w http.ResponseWriter, r *http.Request, n int) {
			time.Sleep(time.Second)
			grantFor(3600)(w, r, n)
		}
		v.answer = func(w http.ResponseWriter, r *http.Request, n int) {
			time.Sleep(time.Duration(n) * 100 * time.Millisecond) // some are refused only after the new token has come
			if r.Header.Get("AccessToken") == plantedToken+"1" {
				say(401, "")(w, r, n)
				return
			}
			say(201, kinds[sinks.TypeFanbaseQueue].ok([]int{1}))(w, r, n)
		}
		tokens := sinks.NewTokens("1", nil, v)
		k := kinds[sinks.TypeFanbaseQueue]
		two := []sinks.Sink{
			k.openWith(t, sinks.TypeFanbaseQueue, sinks.Deps{Tokens: tokens, Transport: v}),
			k.openWith(t, sinks.TypeFanbaseQueue, sinks.Deps{Tokens: tokens, Transport: v}),
		}
		var lanes sync.WaitGroup
		for i := range 50 {
			lanes.Go(func() {
				if _, err := two[i%2].Deliver(t.Context(), k.items(1), "key"); err != nil {
					t.Error(err)
				}
			})
		}
		lanes.Wait()
		if requests, grants := v.counts(); requests != 100 || grants != 2 {
			t.Errorf("%d requests and %d tokens", requests, grants)
		}
	})
}

// All who wait for a token that is refused hear it from one request.
func TestTokenSharedFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newVendor(t)
		v.grant = func(w http.ResponseWriter, r *http.Request, n int) {
			time.Sleep(time.Second)
			say(503, "", "Retry-After", "3")(w, r, n)
		}
		k := kinds[sinks.TypeFanatics]
		sink := k.open(t, sinks.TypeFanatics, v)
		var lanes sync.WaitGroup
		for range 50 {
			lanes.Go(func() {
				_, err := sink.Deliver(t.Context(), k.items(1), "key")
				checkError(t, err, want{sinks.ClassTransient, 503, 3 * time.Second, "token service"})
			})
		}
		lanes.Wait()
		if _, grants := v.counts(); grants != 1 {
			t.Errorf("%d requests for a token", grants)
		}
	})
}

// When whoever asked for the token gives up, the others ask again.
func TestTokenLeaderGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newVendor(t)
		v.grant = func(w http.ResponseWriter, r *http.Request, n int) {
			time.Sleep(time.Second)
			grantFor(3600)(w, r, n)
		}
		k := kinds[sinks.TypeFanatics]
		v.answer = say(201, k.ok([]int{1}))
		sink := k.open(t, sinks.TypeFanatics, v)
		leader, giveUp := context.WithCancel(t.Context())
		var lanes sync.WaitGroup
		lanes.Go(func() {
			if _, err := sink.Deliver(leader, k.items(1), "key"); !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		})
		synctest.Wait()
		for range 3 {
			lanes.Go(func() {
				if _, err := sink.Deliver(t.Context(), k.items(1), "key"); err != nil {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		giveUp()
		lanes.Wait()
		if requests, grants := v.counts(); requests != 3 || grants != 2 {
			t.Errorf("%d requests and %d tokens", requests, grants)
		}
	})
}

func TestTokenRenewal(t *testing.T) {
	for _, test := range []struct {
		name, life string
		keeps      time.Duration // how long the token is used
	}{
		{"an hour", `3600`, 59 * time.Minute},
		{"text", `"3600"`, 59 * time.Minute},
		{"ten minutes", `600`, 9 * time.Minute},
		{"ten seconds", `10`, 9 * time.Second},
		{"a year", `31536000`, 24*time.Hour - time.Minute},
		{"unknown", `null`, 5*time.Minute - 30*time.Second},
		{"nonsense", `-1`, 5*time.Minute - 30*time.Second},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				k := kinds[sinks.TypeFanatics]
				v := newVendor(t)
				v.grant = func(w http.ResponseWriter, r *http.Request, n int) {
					say(200, fmt.Sprintf(`{"access_token":"%s%d","expires_in":%s}`, plantedToken, n, test.life))(w, r, n)
				}
				v.answer = say(201, k.ok([]int{1}))
				sink := k.open(t, sinks.TypeFanatics, v)
				for i, wait := range []time.Duration{0, test.keeps - time.Millisecond, time.Millisecond} {
					time.Sleep(wait)
					if _, err := sink.Deliver(t.Context(), k.items(1), "key"); err != nil {
						t.Fatal(err)
					}
					if _, grants := v.counts(); grants != 1+i/2 {
						t.Errorf("%d tokens at step %d", grants, i)
					}
				}
			})
		})
	}
}

// While the token is good, a token service that fails stops nothing, and is not asked before every request.
func TestTokenRenewalFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := kinds[sinks.TypeFanatics]
		v := newVendor(t)
		v.grant = func(w http.ResponseWriter, r *http.Request, n int) {
			if n > 1 {
				say(500, "")(w, r, n)
				return
			}
			grantFor(3600)(w, r, n)
		}
		v.answer = say(201, k.ok([]int{1}))
		sink := k.open(t, sinks.TypeFanatics, v)
		send := func() error {
			_, err := sink.Deliver(t.Context(), k.items(1), "key")
			return err
		}
		_ = send()
		time.Sleep(59 * time.Minute)
		for range 10 {
			if err := send(); err != nil {
				t.Fatal(err)
			}
		}
		if _, grants := v.counts(); grants != 2 {
			t.Errorf("asked %d times", grants)
		}
		time.Sleep(time.Minute)
		checkError(t, send(), want{sinks.ClassTransient, 500, 0, "token service"})
	})
}

// A permission that is granted while the sink is blocked comes with a new token.
func TestTokenAfterForbidden(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := kinds[sinks.TypeFanatics]
		v := newVendor(t)
		v.answer = func(w http.ResponseWriter, r *http.Request, n int) {
			if r.Header.Get("Authorization") == "Bearer "+plantedToken+"1" {
				say(403, `{"errors":[{"code":"scope","message":"forbidden"}]}`)(w, r, n)
				return
			}
			say(201, k.ok([]int{1}))(w, r, n)
		}
		sink := k.open(t, sinks.TypeFanatics, v)
		_, err := sink.Deliver(t.Context(), k.items(1), "key")
		checkError(t, err, want{sinks.ClassUnauthorized, 403, 0, "forbidden"})
		if _, err := sink.Deliver(t.Context(), k.items(1), "key"); err != nil {
			t.Error(err)
		}
		if requests, grants := v.counts(); requests != 2 || grants != 2 {
			t.Errorf("%d requests and %d tokens", requests, grants)
		}
	})
}

// Clients do not share a token with one another.
func TestTokenPerClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newVendor(t)
		tokens := sinks.NewTokens("1", nil, v)
		k := kinds[sinks.TypeFanatics]
		v.answer = say(201, k.ok([]int{1}))
		for _, scope := range []string{"a", "b", "a"} {
			k.cfg.Auth.Scope = scope
			if _, err := k.openWith(t, sinks.TypeFanatics, sinks.Deps{Tokens: tokens, Transport: v}).Deliver(t.Context(), k.items(1), "key"); err != nil {
				t.Fatal(err)
			}
		}
		if _, grants := v.counts(); grants != 2 {
			t.Errorf("%d tokens for two clients", grants)
		}
	})
}

func TestCheckScope(t *testing.T) {
	for scope, warns := range map[string]bool{
		`null`: false, `"tier_points:override"`: false, `"a tier_points:override b"`: false, `"tier_points:read"`: true, `""`: true,
	} {
		t.Run(scope, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				v := newVendor(t)
				v.grant = say(200, `{"access_token":"`+plantedToken+`1","scope":`+scope+`}`)
				for typ, k := range kinds {
					checker, ok := k.open(t, typ, v).(interface {
						Check(ctx context.Context) []string
					})
					if ok != k.token {
						t.Errorf("%s has Check: %v", typ, ok)
					}
					if !ok {
						continue
					}
					warnings := strings.Join(checker.Check(t.Context()), "\n")
					if (warnings != "") != (warns && typ == sinks.TypeFanatics) {
						t.Errorf("%s: warnings %q", typ, warnings)
					}
				}
			})
		})
	}
}
