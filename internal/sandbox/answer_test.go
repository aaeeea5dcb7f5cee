package sandbox

import (
	"compress/gzip"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// A fault may answer in gzip, and redirect.
func TestFaultAnswersInGzipAndRedirects(t *testing.T) {
	s := New(Config{})
	if _, err := s.AddFault(Fault{Kind: Status, Status: 302, Body: "moved", Gzip: true, Location: "https://elsewhere.test/x"}); err != nil {
		t.Fatal(err)
	}
	got := httptest.NewRecorder()
	s.Handler().ServeHTTP(got, httptest.NewRequest(http.MethodPost, "/client-data/update", strings.NewReader("{}")))
	plain, err := gzip.NewReader(got.Body)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(plain)
	if err != nil || string(body) != "moved" || got.Code != 302 || got.Header().Get("Location") != "https://elsewhere.test/x" {
		t.Errorf("%d, %v, %q, %v", got.Code, got.Header(), body, err)
	}
}
