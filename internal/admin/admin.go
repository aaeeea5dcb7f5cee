// Package admin is the daemon's window: health, metrics, a JSON API with its client, and a status page.
//
// It knows the pipeline through the interfaces it declares and moves no data itself. The listener speaks plain HTTP and
// is meant for loopback or for a private network behind a token; see guard for what keeps browsers and strangers out.
package admin

import (
	"bytes"
	"context"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"runtime/debug"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/sourcegraph/conc/pool"
	"golang.org/x/time/rate"

	"github.com/cdcsync/cdcsync/internal/secret"
)

// Pipeline is the running daemon. Its methods are called concurrently.
type Pipeline interface {
	// Status is the state at this moment. It asks no database and does not block.
	Status() Status
	// Pause stops delivery to a sink until Resume, also over a restart. An unknown sink is an *Error of KindNotFound.
	Pause(ctx context.Context, sink string) error
	Resume(ctx context.Context, sink string) error
}

// Config of the listener.
type Config struct {
	// Listen is host:port. Without a token the host must be loopback.
	Listen  string
	Token   secret.String
	Version string
}

// Parts are what the listener shows and acts on. Backfills and Gaps may be nil: asking for one then says that it is not supported.
type Parts struct {
	Pipeline    Pipeline
	DeadLetters DeadLetters
	Backfills   Backfills
	Gaps        Gaps
	Metrics     prometheus.Gatherer
}

// Server answers on the admin address. It is made by New.
type Server struct {
	cfg     Config
	parts   Parts
	logger  *slog.Logger
	started time.Time
	handler http.Handler

	wrongTokens *rate.Limiter // what is logged of them
}

// New makes a server; the uptime that it reports begins here. A token is required unless cfg.Listen is loopback.
func New(cfg Config, parts Parts, logger *slog.Logger) (*Server, error) {
	if err := requireToken(cfg); err != nil {
		return nil, err
	}
	s := &Server{cfg: cfg, parts: parts, logger: logger, started: time.Now(), wrongTokens: rate.NewLimiter(rate.Every(10*time.Second), 3)}
	s.handler = s.recovered(s.guard(s.routes()))
	return s, nil
}

// Handler answers every path of the listener.
func (s *Server) Handler() http.Handler { return s.handler }

func (s *Server) routes() *http.ServeMux {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", s.page)
	mux.HandleFunc("GET /healthz", s.healthz)
	mux.HandleFunc("GET /readyz", s.readyz)
	mux.Handle("GET /metrics", promhttp.HandlerFor(s.parts.Metrics, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /api/v1/status", s.status)
	mux.HandleFunc("POST /api/v1/sinks/{name}/pause", s.pause)
	mux.HandleFunc("POST /api/v1/sinks/{name}/resume", s.resume)
	mux.HandleFunc("GET /api/v1/dead-letters", s.listLetters)
	mux.HandleFunc("GET /api/v1/dead-letters/export", s.exportLetters)
	mux.HandleFunc("GET /api/v1/dead-letters/{id}", s.showLetter)
	mux.HandleFunc("POST /api/v1/dead-letters/retry", s.retryLetters)
	mux.HandleFunc("POST /api/v1/dead-letters/discard", s.discardLetters)
	mux.HandleFunc("GET /api/v1/backfills", s.listBackfills)
	mux.HandleFunc("POST /api/v1/backfills", s.startBackfill)
	mux.HandleFunc("POST /api/v1/backfills/{id}/pause", s.pauseBackfill)
	mux.HandleFunc("POST /api/v1/backfills/{id}/resume", s.resumeBackfill)
	mux.HandleFunc("POST /api/v1/backfills/{id}/cancel", s.cancelBackfill)
	mux.HandleFunc("GET /api/v1/gaps", s.listGaps)
	mux.HandleFunc("POST /api/v1/gaps/{id}/accept", s.acceptGap)
	mux.HandleFunc("GET /debug/pprof/", pprof.Index) // the profiles by name
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	mux.HandleFunc("/", s.notFound)
	return mux
}

// Listen opens the admin address; the error says what to do when it is taken.
func Listen(ctx context.Context, address string) (net.Listener, error) {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, &Error{
			Kind: KindUnavailable, Reason: "admin.listen: " + address + " is in use",
			Solution: "end the process that holds it (another cdcsync?) or choose another address",
		}
	case err != nil:
		return nil, &Error{Kind: KindUnavailable, Reason: "admin.listen: " + err.Error(), Solution: "choose an address of this machine"}
	}
	return l, nil
}

const (
	readTimeout = 15 * time.Second
	// writeTimeout leaves room for the export of many dead letters, which renews it page by page.
	writeTimeout  = time.Minute
	shutdownGrace = 2 * time.Second // what is running is short, and a browser's idle connection must not delay the end
)

// Run serves on l until ctx ends, then lets running requests finish for a moment.
func (s *Server) Run(ctx context.Context, l net.Listener) error {
	server := &http.Server{
		Handler:           s.handler,
		ReadHeaderTimeout: readTimeout,
		ReadTimeout:       readTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(s.logger.Handler(), slog.LevelDebug),
	}
	running := pool.New().WithContext(ctx).WithCancelOnError()
	running.Go(func(context.Context) error {
		if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	})
	running.Go(func(ctx context.Context) error {
		<-ctx.Done()
		ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownGrace)
		defer cancel()
		if err := server.Shutdown(ending); err != nil {
			return server.Close()
		}
		return nil
	})
	return running.Wait()
}

// recovered logs a handler's panic, which net/http would answer by hanging up and tell at debug level.
func (s *Server) recovered(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() {
			switch value := recover(); value {
			case nil:
			case http.ErrAbortHandler:
				panic(value) //nolint:forbidigo // it is for net/http
			default:
				s.logger.Error("panic", "path", r.URL.Path, "value", fmt.Sprint(value), "stack", string(debug.Stack()))
				http.Error(w, "the daemon has a defect: see its log", http.StatusInternalServerError)
			}
		}()
		h.ServeHTTP(w, r)
	})
}

func (s *Server) healthz(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, _ = w.Write([]byte("ok\n"))
}

func (s *Server) pause(w http.ResponseWriter, r *http.Request) {
	s.act(w, r, s.parts.Pipeline.Pause, "name")
}

func (s *Server) resume(w http.ResponseWriter, r *http.Request) {
	s.act(w, r, s.parts.Pipeline.Resume, "name")
}

// act does one thing to what the path names, and answers with no content.
func (s *Server) act(w http.ResponseWriter, r *http.Request, do func(context.Context, string) error, name string) {
	if err := do(r.Context(), r.PathValue(name)); err != nil {
		s.fail(w, r, err)
		return
	}
	s.logger.Info("admin request done", "method", r.Method, "path", r.URL.Path)
	w.WriteHeader(http.StatusNoContent)
}

//go:embed page.html
var pageHTML []byte

// The page's own style and script are all that a browser takes: by their hashes.
var (
	pageStyle  = inlineHash("style")
	pageScript = inlineHash("script")
)

func inlineHash(tag string) string {
	_, rest, _ := bytes.Cut(pageHTML, []byte("<"+tag+">"))
	text, _, _ := bytes.Cut(rest, []byte("</"+tag+">"))
	sum := sha256.Sum256(text)
	return "'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'"
}

func (s *Server) page(w http.ResponseWriter, _ *http.Request) {
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Security-Policy",
		"default-src 'none'; connect-src 'self'; img-src data:; style-src "+pageStyle+"; script-src "+pageScript+"; frame-ancestors 'none'; base-uri 'none'; form-action 'none'")
	_, _ = w.Write(pageHTML)
}

func (s *Server) notFound(w http.ResponseWriter, r *http.Request) {
	s.fail(w, r, &Error{Kind: KindNotFound, Reason: "no such page: " + r.Method + " " + r.URL.Path})
}
