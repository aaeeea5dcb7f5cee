package pgtest

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// TB is what of testing.TB is needed here; this package is part of the demo too, which does not import testing.
type TB interface {
	Helper()
	Name() string
	Context() context.Context
	Cleanup(func())
	Failed() bool
	Logf(format string, args ...any)
	Fatalf(format string, args ...any)
	Skipf(format string, args ...any)
}

// Shared is one server for the tests of a package, started when the first of them asks. Declare it at package level and end it with Suite:
//
//	var postgres pgtest.Shared
//
//	func TestMain(m *testing.M) { os.Exit(postgres.Suite(m).Run()) } // or goleak.VerifyTestMain(postgres.Suite(m))
//
//	func TestX(t *testing.T) { url := postgres.NewDatabase(t) }
type Shared struct {
	Options Options

	once   sync.Once
	server *Server
	err    error
}

// Server is the shared server. A test that needs one fails when there is none.
func (s *Shared) Server(tb TB) *Server {
	tb.Helper()
	s.once.Do(func() { s.server, s.err = Start(context.WithoutCancel(tb.Context()), s.Options) })
	if s.err != nil {
		tb.Fatalf("start Postgres: %v", s.err)
	}
	return s.server
}

// NewDatabase makes a database on the shared server; see [Server.NewDatabase].
func (s *Shared) NewDatabase(tb TB) string {
	tb.Helper()
	return s.Server(tb).NewDatabase(tb)
}

// Suite wraps the tests of a package so that the server ends after them.
func (s *Shared) Suite(m interface{ Run() int }) *Suite { return &Suite{shared: s, tests: m} }

// Suite is the tests of a package and their server.
type Suite struct {
	shared *Shared
	tests  interface{ Run() int }
}

// Run runs the tests, ends the server and returns the exit code.
func (s *Suite) Run() int {
	code := s.tests.Run()
	if s.shared.server == nil {
		return code
	}
	ctx, cancel := context.WithTimeout(context.Background(), shutdownTime)
	defer cancel()
	if err := s.shared.server.Stop(ctx); err != nil && code == 0 {
		return 1
	}
	return code
}

// Own starts a server for one test alone, one that it may stop and restart. Where that cannot be done the test is skipped, and says so.
func Own(tb TB, o Options) *Server {
	tb.Helper()
	s, err := Start(tb.Context(), o)
	if err != nil {
		tb.Fatalf("start Postgres: %v", err)
	}
	tb.Cleanup(func() {
		s.logOnFailure(tb)
		if err := s.Stop(context.WithoutCancel(tb.Context())); err != nil {
			tb.Logf("stop Postgres: %v", err)
		}
	})
	if s.local == nil {
		tb.Skipf("SKIPPED: needs a Postgres that it can restart: %v", ErrUnsupported)
	}
	return s
}

var databases atomic.Uint64

// NewDatabase makes an empty database with a name of its own and returns its URL. It goes when the test ends, its slots with it.
func (s *Server) NewDatabase(tb TB) string {
	tb.Helper()
	name := databaseName(tb.Name())
	address, err := s.CreateDatabase(tb.Context(), name)
	if err != nil {
		tb.Fatalf("create database %s: %v", name, err)
	}
	tb.Cleanup(func() {
		s.logOnFailure(tb)
		ctx, cancel := context.WithTimeout(context.WithoutCancel(tb.Context()), shutdownTime)
		defer cancel()
		if err := s.DropDatabase(ctx, name); err != nil {
			tb.Logf("%v", err)
		}
	})
	return address
}

// databaseName is like the test's name, within what Postgres allows and unique also on a server that several processes share.
func databaseName(test string) string {
	const longest = 30
	clean := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
			return r
		}
		return '_'
	}, strings.ToLower(test))
	return fmt.Sprintf("%.*s_%x_%d", longest, clean, time.Now().UnixNano(), databases.Add(1))
}

func (s *Server) logOnFailure(tb TB) {
	if tb.Failed() {
		tb.Logf("end of the server's log:\n%s", s.Logs())
	}
}
