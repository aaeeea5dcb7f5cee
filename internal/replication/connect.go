package replication

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/cdcsync/cdcsync/internal/cdc"
)

// parseURL reads a libpq URL with the pinned settings.
func parseURL(url string) (*pgx.ConnConfig, error) {
	cfg, err := pgx.ParseConfig(url)
	if err != nil {
		return nil, &Error{
			Reason:   "source.url cannot be read",
			Solution: "write it as postgres://user:password@host:5432/database?sslmode=verify-full",
			Err:      err, // pgconn's error leaves the password out
		}
	}
	pin(cfg.RuntimeParams)
	cfg.AfterConnect = settle
	bound(cfg)
	return cfg, nil
}

// server is one server, reached twice: by an ordinary connection, for every question, and by a walsender's.
type server struct {
	sql     *pgx.Conn
	wire    *wire
	patient *patientConn // below sql
	charset *cdc.Charset // of the database
}

// asks is sql for questions of the catalogue.
func (s *server) asks() querier { return translated(s.sql, s.charset) }

// dialServer opens both connections, and makes sure that they lead to the same server also where the URL names several hosts
// or a proxy stands between.
func dialServer(ctx context.Context, url string, maxRow int64) (_ *server, err error) {
	cfg, err := parseURL(url)
	if err != nil {
		return nil, err
	}
	cfg.RuntimeParams["statement_timeout"] = statementTimeout
	var address string
	s := &server{}
	dial := cfg.DialFunc
	cfg.DialFunc = func(ctx context.Context, network, at string) (net.Conn, error) {
		address = at
		conn, err := dial(ctx, network, at)
		if err != nil {
			return nil, err
		}
		s.patient = newPatientConn(conn, serverPatience)
		return s.patient, nil
	}
	if s.sql, err = pgx.ConnectConfig(ctx, cfg); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			s.close(ctx)
		}
	}()
	s.charset = charsetOf(s.sql.PgConn())
	if s.wire, err = dialWire(ctx, url, address, maxRow, knowsTransactionTimeout(s.sql), s.charset); err != nil {
		return nil, err
	}
	return s, s.checkSame(ctx)
}

// statementTimeout is for what is asked of the catalogue.
const statementTimeout = "30s"

const (
	// serverPatience is for an answer's next byte: the server itself ends what takes longer than statementTimeout.
	serverPatience = 40 * time.Second
	// wirePatience is for an answer to a command that waits for nothing.
	wirePatience = 40 * time.Second
)

// checkSame asks the ordinary connection for the walsender. A pooler gives process IDs of its own, with which nothing can be found.
func (s *server) checkSame(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	var self uint32
	var seen bool
	err := s.sql.QueryRow(ctx, `
		select pg_backend_pid(), exists (select from pg_stat_activity where pid = $1 and backend_type = 'walsender')`, int32(s.wire.pg.PID())).
		Scan(&self, &seen)
	if err != nil {
		return fmt.Errorf("server: %w", err)
	}
	if pooled := self != s.sql.PgConn().PID(); !seen && !pooled {
		return errors.New("the two connections to source.url lead to different servers")
	}
	return nil
}

// close says goodbye, also when ctx has ended. It may be called twice.
func (s *server) close(ctx context.Context) {
	if s.wire != nil {
		s.wire.close(ctx)
	}
	s.closeSQL(ctx)
}

func (s *server) closeSQL(ctx context.Context) { hangUp(ctx, s.sql) }

const closePatience = time.Second

// wire is a replication connection. It takes commands of the replication protocol and no SQL: from Postgres 16 on, a query
// fills the walsender's relation cache with the catalogue as it is now, by which it would then decode WAL of the past.
type wire struct {
	pg     *pgconn.PgConn
	frames *frames
	taken  net.Conn // once replication has begun

	charset *cdc.Charset // in which the server speaks
}

// dialWire opens a replication connection to the database, at the address that the ordinary connection has reached.
func dialWire(ctx context.Context, url, address string, maxRow int64, transactionTimeouts bool, charset *cdc.Charset) (*wire, error) {
	parsed, err := parseURL(url)
	if err != nil {
		return nil, err
	}
	cfg := &parsed.Config
	cfg.RuntimeParams["replication"] = "database"
	cfg.RuntimeParams["statement_timeout"] = "0" // making a slot waits for open transactions
	if transactionTimeouts {                     // every transaction that is decoded would be bounded
		cfg.RuntimeParams[transactionTimeout] = "0"
	}
	if charset != nil {
		cfg.RuntimeParams["client_encoding"] = charset.Name()
	}
	cfg.ValidateConnect, cfg.AfterConnect = nil, nil // both ask by SQL, and did
	dial := cfg.DialFunc
	cfg.DialFunc = func(ctx context.Context, network, at string) (net.Conn, error) {
		if at != address {
			return nil, fmt.Errorf("%s is not the server that is in use", at)
		}
		conn, err := dial(ctx, network, at)
		if err != nil {
			return nil, err
		}
		if _, unix := conn.(*net.UnixConn); unix {
			return newPacedConn(conn), nil
		}
		return newCalmConn(conn), nil
	}
	w := &wire{charset: charset}
	cfg.BuildFrontend = func(r io.Reader, out io.Writer) *pgproto3.Frontend {
		w.frames = newFrames(r, maxRow) // of the last host that is tried, which is the one that is taken
		return pgproto3.NewFrontend(w.frames, out)
	}
	if w.pg, err = pgconn.ConnectConfig(ctx, cfg); err != nil {
		return nil, err
	}
	return w, nil
}

// command is one of the replication protocol's commands (manual, section "Streaming Replication Protocol"), none of which
// reads a table's definition.
type command struct{ text string }

// row is the answer to a command that waits for nothing.
func (w *wire) row(ctx context.Context, c command) ([][]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, wirePatience)
	defer cancel()
	return w.patientRow(ctx, c)
}

// patientRow waits for as long as ctx does.
func (w *wire) patientRow(ctx context.Context, c command) ([][]byte, error) {
	results, err := w.pg.Exec(ctx, c.text).ReadAll()
	if err != nil {
		return nil, err
	}
	if len(results) != 1 || len(results[0].Rows) == 0 {
		return nil, nil
	}
	return results[0].Rows[0], nil
}

// reserve makes a slot and returns where it begins, and the name of a snapshot that shows exactly what lies before. The server
// waits for the transactions that are open; watchSlot ends the wait when it has vanished.
func (w *wire) reserve(ctx context.Context, slot string, failover bool) (at cdc.LSN, snapshot string, err error) {
	options := "EXPORT_SNAPSHOT" // the spelling that versions 14 to 18 all read
	if failover {
		options = "(SNAPSHOT 'export', FAILOVER true)"
	}
	row, err := w.patientRow(ctx, command{"CREATE_REPLICATION_SLOT " + pgx.Identifier{slot}.Sanitize() + " LOGICAL pgoutput " + options})
	if err != nil {
		return 0, "", err
	}
	if len(row) < 3 {
		return 0, "", errors.New("create slot: no answer")
	}
	at, err = cdc.ParseLSN(string(row[1]))
	return at, string(row[2]), err
}

func (w *wire) drop(ctx context.Context, slot string) error {
	if _, err := w.row(ctx, command{"DROP_REPLICATION_SLOT " + pgx.Identifier{slot}.Sanitize()}); err != nil {
		return fmt.Errorf("drop slot %s: %w", slot, err)
	}
	return nil
}

// start begins replication and takes the connection from pgconn: what follows is read through w.frames only.
func (w *wire) start(ctx context.Context, c command) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, wirePatience)
	defer cancel()
	pg := w.pg
	text, err := encodeSQL(w.charset, c.text)
	if err != nil {
		return nil, err
	}
	pg.Frontend().SendQuery(&pgproto3.Query{String: text})
	if err := pg.Frontend().Flush(); err != nil {
		return nil, err
	}
	for {
		message, err := pg.ReceiveMessage(ctx)
		if err != nil {
			return nil, err
		}
		switch m := message.(type) {
		case *pgproto3.CopyBothResponse:
			hijacked, err := pg.Hijack()
			if err != nil {
				return nil, err
			}
			w.taken = hijacked.Conn
			return hijacked.Conn, nil
		case *pgproto3.ErrorResponse:
			return nil, pgconn.ErrorResponseToPgError(m)
		case *pgproto3.NoticeResponse, *pgproto3.ParameterStatus:
		default:
			return nil, fmt.Errorf("answer to START_REPLICATION: %T", m)
		}
	}
}

// close says goodbye, also when ctx has ended, and waits for the server to hang up: then the slot is free.
func (w *wire) close(ctx context.Context) {
	if w.taken == nil {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closePatience)
		defer cancel()
		_ = w.pg.Close(ctx) // nothing is open in it
		return
	}
	terminate := []byte{'X', 0, 0, 0, 4}
	if w.taken.SetDeadline(time.Now().Add(closePatience)) == nil {
		if _, err := w.taken.Write(terminate); err == nil { // it may be gone already
			_, _ = io.Copy(io.Discard, w.taken)
		}
	}
	_ = w.taken.Close()
}
