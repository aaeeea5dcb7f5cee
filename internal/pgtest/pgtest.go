// Package pgtest gives tests, the demo and the benchmark a Postgres of their own: from local binaries, from Docker, or one that exists.
//
// CDCSYNC_TEST_POSTGRES chooses: "local", "docker" (or "docker:IMAGE"), or the URL of a server that runs already. Without it local
// binaries are taken when found, else Docker. CDCSYNC_TEST_PG_BIN names the folder of the local binaries; without it the newest
// installed are taken. As root the server runs as user postgres, since Postgres refuses to run as root.
//
// A server ends with the process that started it, also when that is killed.
package pgtest

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"runtime"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// ErrUnsupported is returned by operations on the server's life where the server is not ours: one in Docker or behind a URL.
var ErrUnsupported = errors.New("this Postgres cannot be stopped or restarted from here: set CDCSYNC_TEST_POSTGRES=local")

const defaultImage = "postgres:17"

// Options of a server. The zero Options are a throw-away server on a unix socket, quick and not durable.
type Options struct {
	// Where is what CDCSYNC_TEST_POSTGRES says when it is empty: local, docker, docker:IMAGE or a URL.
	Where string
	// BinDir holds initdb and postgres; when empty CDCSYNC_TEST_PG_BIN and then the newest found. Local only.
	BinDir string
	// DataDir is kept when the server stops, and used again when it holds a cluster; when empty the data is thrown away. Local only.
	DataDir string
	// Settings are added to the server's configuration; they win over the defaults of this package. Not for a URL.
	Settings map[string]string
	// TCP listens on a free port of the loopback address beside the unix socket. Docker always does.
	TCP bool
	// Durable leaves fsync on, for measurements.
	Durable bool
}

// Server is a running Postgres. Its methods are safe for concurrent use, those that stop and start it excepted.
type Server struct {
	base  url.URL // of any database; Path is replaced
	logs  *tail
	local *local // nil unless local
	close func(context.Context) error
}

// Start starts a server, or connects to the one that the options name, and returns when it answers. ctx bounds the start only;
// end the server with Stop.
func Start(ctx context.Context, o Options) (*Server, error) {
	where := o.Where
	if where == "" {
		where = os.Getenv("CDCSYNC_TEST_POSTGRES")
	}
	switch {
	case where == "local":
		bin, err := binaries(o.BinDir)
		if err != nil {
			return nil, err
		}
		return startLocal(ctx, o, bin)
	case where == "docker":
		return startDocker(ctx, o, defaultImage)
	case strings.HasPrefix(where, "docker:"):
		return startDocker(ctx, o, strings.TrimPrefix(where, "docker:"))
	case strings.HasPrefix(where, "postgres://"), strings.HasPrefix(where, "postgresql://"):
		return attach(ctx, where)
	case where != "":
		return nil, fmt.Errorf("CDCSYNC_TEST_POSTGRES is %q: it takes local, docker, docker:IMAGE or a URL that begins with postgres://", where)
	}
	bin, err := binaries(o.BinDir)
	switch {
	case err == nil:
		return startLocal(ctx, o, bin)
	case dockerAnswers(ctx):
		return startDocker(ctx, o, defaultImage)
	}
	return nil, err
}

// attach takes a server that runs already.
func attach(ctx context.Context, where string) (*Server, error) {
	base, err := url.Parse(where)
	if err != nil {
		return nil, errors.New("CDCSYNC_TEST_POSTGRES is not a URL")
	}
	s := &Server{base: *base, logs: &tail{}, close: func(context.Context) error { return nil }}
	conn, err := pgx.Connect(ctx, base.String())
	if err != nil {
		return nil, fmt.Errorf("the server that CDCSYNC_TEST_POSTGRES names: %w", err)
	}
	return s, conn.Close(ctx)
}

// errMissing names the one command that mends it.
func errMissing() error {
	command := "sudo apt-get install -y postgresql"
	if runtime.GOOS == "darwin" {
		command = "brew install postgresql@17"
	}
	return fmt.Errorf("no Postgres here: neither server binaries nor a Docker engine that answers; install one with: %s", command)
}

// URL of a database on the server, as libpq and pgx read it.
func (s *Server) URL(database string) string {
	u := s.base
	u.Path = "/" + database
	return u.String()
}

// Logs is the end of what the server wrote to its log; empty for a server behind a URL.
func (s *Server) Logs() string { return s.logs.String() }

// Pid of the postmaster, 0 where the server is not ours or is down.
func (s *Server) Pid() int {
	if s.local == nil {
		return 0
	}
	return s.local.pid()
}

// Stop ends the server and removes what it left, a DataDir excepted. A server behind a URL goes on. It may be called twice.
func (s *Server) Stop(ctx context.Context) error { return s.close(ctx) }

// Mode is how a server goes down.
type Mode uint8

// The modes.
const (
	Fast      Mode = iota + 1 // connections are ended, a checkpoint is written: pg_ctl stop -m fast
	Immediate                 // no checkpoint, recovery at the next start: pg_ctl stop -m immediate
	Crash                     // the postmaster is killed
)

// Shutdown takes the server down and returns when it is; Boot brings it back on the same data and address.
func (s *Server) Shutdown(ctx context.Context, mode Mode) error {
	if s.local == nil {
		return ErrUnsupported
	}
	return s.local.shutdown(ctx, mode)
}

// Boot starts the server again after a Shutdown and returns when it answers.
func (s *Server) Boot(ctx context.Context) error {
	if s.local == nil {
		return ErrUnsupported
	}
	return s.local.boot(ctx, s.URL("postgres"))
}

// Restart is a Shutdown and a Boot.
func (s *Server) Restart(ctx context.Context, mode Mode) error {
	if err := s.Shutdown(ctx, mode); err != nil {
		return err
	}
	return s.Boot(ctx)
}

// CreateDatabase makes an empty database and returns its URL.
func (s *Server) CreateDatabase(ctx context.Context, name string) (string, error) {
	err := s.exec(ctx, "create database "+pgx.Identifier{name}.Sanitize())
	return s.URL(name), err
}

// DropDatabase removes a database with its replication slots, whoever uses them. One that does not exist is fine.
func (s *Server) DropDatabase(ctx context.Context, name string) error {
	conn, err := pgx.Connect(ctx, s.URL("postgres"))
	if err != nil {
		return fmt.Errorf("drop database %s: %w", name, err)
	}
	defer conn.Close(context.WithoutCancel(ctx))
	// A slot can be dropped when its walsender is gone, which takes a moment after it was told to.
	err = until(ctx, 10*time.Millisecond, func() error {
		_, err := conn.Exec(ctx, `select pg_terminate_backend(active_pid) from pg_replication_slots where database = $1 and active`, name)
		if err != nil {
			return err
		}
		_, err = conn.Exec(ctx, `select pg_drop_replication_slot(slot_name) from pg_replication_slots where database = $1`, name)
		return err
	})
	if err != nil {
		return fmt.Errorf("drop slots of database %s: %w", name, err)
	}
	if _, err := conn.Exec(ctx, "drop database if exists "+pgx.Identifier{name}.Sanitize()+" with (force)"); err != nil {
		return fmt.Errorf("drop database %s: %w", name, err)
	}
	return nil
}

func (s *Server) exec(ctx context.Context, sql string) error {
	conn, err := pgx.Connect(ctx, s.URL("postgres"))
	if err != nil {
		return err
	}
	_, err = conn.Exec(ctx, sql)
	return errors.Join(err, conn.Close(ctx))
}

// until calls f, every so often, until it succeeds; when ctx ends it returns what f said last.
func until(ctx context.Context, every time.Duration, f func() error) error {
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for {
		err := f()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", context.Cause(ctx), err)
		case <-ticker.C:
		}
	}
}
