package admin

import (
	"bytes"
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/cdcsync/cdcsync/internal/secret"
)

// Every write, each read of a letter and wrong tokens are in the log, the last ones rarely and slowly; no token is.
func TestAdminRequestsAreAudited(t *testing.T) {
	var log bytes.Buffer
	s, err := New(Config{Listen: "127.0.0.1:0", Token: secret.New("right-token")}, Parts{Metrics: prometheus.NewRegistry()},
		slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	s.handler = s.guard(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) }))
	ask := func(ctx context.Context, method, path, token string) int {
		r := httptest.NewRequestWithContext(ctx, method, path, http.NoBody)
		r.Header.Set("Content-Type", "application/json")
		if token != "" {
			r.Header.Set("Authorization", "Bearer "+token)
		}
		w := httptest.NewRecorder()
		s.Handler().ServeHTTP(w, r)
		return w.Code
	}
	for _, request := range [][2]string{
		{"POST", "/api/v1/sinks/crm/pause"}, {"POST", "/api/v1/dead-letters/discard"}, {"GET", "/api/v1/dead-letters/17"}, {"GET", "/api/v1/dead-letters/export"},
	} {
		log.Reset()
		if code := ask(t.Context(), request[0], request[1], "right-token"); code != http.StatusNoContent || !strings.Contains(log.String(), request[1]) {
			t.Errorf("%s: %d, log %q", request, code, log.String())
		}
	}
	log.Reset()
	start := time.Now()
	if code := ask(t.Context(), "GET", "/api/v1/status", "wrong-token"); code != http.StatusUnauthorized || time.Since(start) < 400*time.Millisecond {
		t.Errorf("a wrong token: %d after %s", code, time.Since(start))
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	for range 100 {
		ask(gone, "GET", "/api/v1/status", "wrong-token")
	}
	if text := log.String(); strings.Contains(text, "wrong-token") || strings.Count(text, "wrong token") < 1 || strings.Count(text, "wrong token") > 5 {
		t.Errorf("wrong tokens gave this log:\n%s", text)
	}
}

// The page runs nothing but its own script: no inline style or script without its hash, and each there is once.
func TestPagePolicy(t *testing.T) {
	s, err := New(Config{Listen: "127.0.0.1:0"}, Parts{Metrics: prometheus.NewRegistry()}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "http://127.0.0.1/", http.NoBody)
	w := httptest.NewRecorder()
	s.Handler().ServeHTTP(w, r)
	policy, page := w.Header().Get("Content-Security-Policy"), w.Body.String()
	if strings.Contains(policy, "unsafe") || strings.Count(policy, "'sha256-") != 2 {
		t.Errorf("policy %q", policy)
	}
	for _, once := range []string{"<style>", "</style>", "<script>", "</script>"} {
		if strings.Count(page, once) != 1 {
			t.Errorf("the page has %d times %s", strings.Count(page, once), once)
		}
	}
	for _, inline := range []string{` style="`, ` onclick=`, ` onload=`, `setAttribute("style"`, "<script "} {
		if strings.Contains(page, inline) {
			t.Errorf("the page has %s, which the policy forbids", inline)
		}
	}
}
