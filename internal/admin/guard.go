package admin

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/cdcsync/cdcsync/internal/backoff"
)

// requireToken refuses an address that others can reach without a token.
func requireToken(cfg Config) error {
	host, _, err := net.SplitHostPort(cfg.Listen)
	if err != nil {
		return &Error{Kind: KindInvalid, Reason: "admin.listen: " + err.Error(), Solution: "write host:port, such as 127.0.0.1:8484"}
	}
	if cfg.Token.IsZero() && !loopback(host) {
		return &Error{
			Kind: KindInvalid, Reason: "admin.listen: " + cfg.Listen + " can be reached from other machines and no token is set",
			Solution: "set admin.token, or listen on 127.0.0.1",
		}
	}
	return nil
}

func loopback(host string) bool {
	if strings.EqualFold(host, "localhost") {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}

// guard lets in those who may.
//
// With a token, every path but the health checks and the page itself (which asks for the token) needs it. Without one,
// whoever can open a loopback socket is trusted, but not a web page in a browser on this machine: the Host header must
// be loopback, against names that are pointed here (DNS rebinding), and a POST must be JSON, which no form can send
// and no script of another origin without a preflight that is never answered.
func (s *Server) guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "no-store")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		if err := s.admit(r); err != nil {
			s.fail(w, r, err)
			return
		}
		s.audit(r)
		next.ServeHTTP(w, r)
	})
}

func (s *Server) admit(r *http.Request) error {
	open := r.URL.Path == "/" || r.URL.Path == "/healthz" || r.URL.Path == "/readyz"
	switch {
	case s.cfg.Token.IsZero() && !loopback(hostOf(r.Host)):
		return &Error{
			Kind: KindUnauthorized, Reason: "the Host header is not loopback",
			Solution: "ask by 127.0.0.1 or localhost, or set admin.token",
		}
	case !open && !s.authorized(r):
		if r.Header.Get("Authorization") != "" {
			s.wrongToken(r)
		}
		return &Error{Kind: KindUnauthorized, Reason: "token missing or wrong", Solution: "send admin.token as Authorization: Bearer"}
	case r.Method == http.MethodPost && !isJSON(r):
		return &Error{Kind: KindInvalid, Reason: "a POST needs Content-Type: application/json"}
	}
	return nil
}

// audit records who reads or exports letters and who changes something, without what they hold.
func (s *Server) audit(r *http.Request) {
	if r.Method == http.MethodPost || strings.HasPrefix(r.URL.Path, "/api/v1/dead-letters/") {
		s.logger.Info("admin request", "method", r.Method, "path", r.URL.EscapedPath(), "from", r.RemoteAddr)
	}
}

// wrongToken slows a caller down who sends a wrong token, and records one in a while.
func (s *Server) wrongToken(r *http.Request) {
	if s.wrongTokens.Allow() {
		s.logger.Warn("an admin request has a wrong token", "from", r.RemoteAddr)
	}
	const pause = 500 * time.Millisecond
	_ = backoff.Sleep(r.Context(), pause) // it is refused in any case
}

func hostOf(hostport string) string {
	if host, _, err := net.SplitHostPort(hostport); err == nil {
		return host
	}
	return strings.Trim(hostport, "[]")
}

// authorized compares digests, so that neither the length nor the first wrong byte of a guess shows in the time.
func (s *Server) authorized(r *http.Request) bool {
	if s.cfg.Token.IsZero() {
		return true
	}
	given, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	want, got := sha256.Sum256([]byte(s.cfg.Token.Reveal())), sha256.Sum256([]byte(given))
	return ok && subtle.ConstantTimeCompare(want[:], got[:]) == 1
}

func isJSON(r *http.Request) bool {
	mediaType, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	return err == nil && mediaType == "application/json"
}

// maxBody bounds a request: the largest is a list of dead letters' ids.
const maxBody = 4 << 20

// decode reads the body strictly. An empty one leaves v as it is.
func decode(w http.ResponseWriter, r *http.Request, v any) error {
	decoder := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(v); err != nil && !errors.Is(err, io.EOF) {
		return &Error{Kind: KindInvalid, Reason: "request body: " + strings.TrimPrefix(err.Error(), "json: ")}
	}
	return nil
}
