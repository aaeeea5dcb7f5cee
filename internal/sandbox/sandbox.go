// Package sandbox emulates the vendors' endpoints, as strict as their pages, for the demo, for tests and for work on mappings.
//
// What a page does not say is decided here and named in docs/sandbox.md. Everything received can be read back, with the state that a
// vendor would hold after it; faults happen on demand. Error texts never quote a value that was received.
package sandbox

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/sourcegraph/conc/pool"
)

// Config of a sandbox. The zero Config is complete.
type Config struct {
	Logger *slog.Logger // one line a request, without bodies; nil for none
	Seed   uint64       // of the faults' shares and shuffles

	APIKey                string   // StopChurn; default sandbox-key
	FanbaseClientID       string   // default sandbox-client
	FanbaseClientSecret   string   // default sandbox-secret
	FanaticsClientID      string   // default sandbox-client
	FanaticsClientSecret  string   // default sandbox-secret
	FanaticsScopes        []string // that the client may have; default read, update and override of tier_points
	FanaticsInviteOnly    []string // tier ids that are known; empty: every UUID is
	TokenLife             time.Duration
	QueueDelay            time.Duration // from pending (first half) over processing to the end; default 200 ms
	StopChurnLooseColumns bool          // accept rows that lack columns of earlier rows

	MaxBody   int64 // bytes of a request; more is answered with 413. Default 128 MiB
	MaxLog    int   // items in the log, the oldest go first; default 1,000,000
	LogBodies Bodies
	CountOnly bool // count and forget: no log, no state, and StopChurn's bodies are not looked into
}

// Bodies says whether the log keeps the items' bodies.
type Bodies uint8

// The choices. The zero value keeps them.
const (
	KeepBodies Bodies = iota + 1
	DropBodies
)

const (
	defaultTokenLife  = time.Hour // expires_in of Fanbase's own example
	defaultQueueDelay = 200 * time.Millisecond
	defaultMaxBody    = 128 << 20
	defaultMaxLog     = 1_000_000
)

// Server is the sandbox. It is safe for concurrent use.
type Server struct {
	config         Config
	handler        http.Handler
	faults         faults
	fanbaseTokens  tokens
	fanaticsTokens tokens

	mu       sync.Mutex // guards all below
	record   record
	churn    churn
	fans     fans
	queue    queue
	tiers    tiers
	changed  chan struct{} // closed when anything below mu has changed, and replaced
	requests uint64
}

// New returns a sandbox that has received nothing.
func New(config Config) *Server {
	config.APIKey = cmp.Or(config.APIKey, "sandbox-key")
	config.FanbaseClientID = cmp.Or(config.FanbaseClientID, "sandbox-client")
	config.FanbaseClientSecret = cmp.Or(config.FanbaseClientSecret, "sandbox-secret")
	config.FanaticsClientID = cmp.Or(config.FanaticsClientID, "sandbox-client")
	config.FanaticsClientSecret = cmp.Or(config.FanaticsClientSecret, "sandbox-secret")
	if config.FanaticsScopes == nil {
		config.FanaticsScopes = []string{"tier_points:read", "tier_points:update", scopeOverride}
	}
	config.TokenLife = cmp.Or(config.TokenLife, defaultTokenLife)
	config.QueueDelay = cmp.Or(config.QueueDelay, defaultQueueDelay)
	config.MaxBody = cmp.Or(config.MaxBody, defaultMaxBody)
	config.MaxLog = cmp.Or(config.MaxLog, defaultMaxLog)
	config.LogBodies = cmp.Or(config.LogBodies, KeepBodies)
	if config.Logger == nil {
		config.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Server{config: config, changed: make(chan struct{})}
	s.fanbaseTokens.life, s.fanaticsTokens.life = config.TokenLife, config.TokenLife
	s.faults.seed(config.Seed)
	s.reset()
	s.handler = s.routes()
	return s
}

// Handler serves the vendors' endpoints and the sandbox's own on one address.
func (s *Server) Handler() http.Handler { return s.handler }

// Serve answers requests until ctx ends. Requests that a fault holds back are let go then.
func (s *Server) Serve(ctx context.Context, listener net.Listener) error {
	const grace = 2 * time.Second
	server := &http.Server{
		Handler:           s.handler,
		ReadHeaderTimeout: 10 * time.Second,
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ErrorLog:          slog.NewLogLogger(s.config.Logger.Handler(), slog.LevelWarn),
	}
	p := pool.New().WithErrors().WithContext(ctx).WithCancelOnError()
	p.Go(func(context.Context) error {
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	})
	p.Go(func(ctx context.Context) error {
		<-ctx.Done()
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace)
		defer cancel()
		if server.Shutdown(ctx) != nil {
			return server.Close()
		}
		return nil
	})
	return p.Wait()
}

// Reset forgets all that was received, the tokens and what is known of tables. Faults stay.
func (s *Server) Reset() {
	s.mu.Lock()
	s.reset()
	s.mu.Unlock()
	s.fanbaseTokens.revoke()
	s.fanaticsTokens.revoke()
}

func (s *Server) reset() {
	s.record = newRecord(s.config)
	s.churn = newChurn()
	s.fans = newFans()
	s.queue = newQueue()
	s.tiers = newTiers()
	s.announce()
}

// announce wakes those in Await. The caller holds mu.
func (s *Server) announce() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// Await returns when done does, which is asked at first and after every request; or with ctx's error.
func (s *Server) Await(ctx context.Context, done func() bool) error {
	for {
		s.mu.Lock()
		changed := s.changed
		s.mu.Unlock()
		if done() {
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-changed:
		}
	}
}
