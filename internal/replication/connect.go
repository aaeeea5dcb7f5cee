package replication

import (
	"context"
	"fmt"
	"io"
	"maps"
	"net"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
)

// pinned are start-up parameters of every connection: settings of a role or a database must not leak into values.
var pinned = map[string]string{
	"datestyle":            "ISO",
	"intervalstyle":        "postgres",
	"extra_float_digits":   "1",
	"bytea_output":         "hex",
	"timezone":             "UTC",
	"client_encoding":      "UTF8",
	"idle_session_timeout": "0",
	"lock_timeout":         "0",
	"row_security":         "off", // rows that a policy hides are an error, not missing
}

func pin(params map[string]string) {
	maps.Copy(params, pinned)
	if params["application_name"] == "" {
		params["application_name"] = "cdcsync"
	}
}

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
	bound(cfg)
	return cfg, nil
}

// wire is an open replication connection. Until stream is called conn may be used for SQL, by the simple protocol.
type wire struct {
	conn   *pgx.Conn
	frames *frames
	taken  net.Conn // once replication has begun
}

// dialWire opens a replication connection to the database.
func dialWire(ctx context.Context, url string, maxRow int64) (*wire, error) {
	cfg, err := parseURL(url)
	if err != nil {
		return nil, err
	}
	cfg.RuntimeParams["replication"] = "database"
	cfg.RuntimeParams["statement_timeout"] = "0"               // making a slot waits for open transactions
	cfg.DefaultQueryExecMode = pgx.QueryExecModeSimpleProtocol // a walsender knows no other
	dial := cfg.DialFunc
	cfg.DialFunc = func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := dial(ctx, network, address)
		if err != nil {
			return nil, err
		}
		if _, unix := conn.(*net.UnixConn); unix {
			return newPacedConn(conn), nil
		}
		return newCalmConn(conn), nil
	}
	w := &wire{}
	cfg.BuildFrontend = func(r io.Reader, out io.Writer) *pgproto3.Frontend {
		w.frames = newFrames(r, maxRow) // of the last host that is tried, which is the one that is taken
		return pgproto3.NewFrontend(w.frames, out)
	}
	w.conn, err = pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return nil, err
	}
	return w, nil
}

// start begins replication and takes the connection from pgconn: what follows is read through w.frames only.
func (w *wire) start(ctx context.Context, command string) (net.Conn, error) {
	pg := w.conn.PgConn()
	pg.Frontend().SendQuery(&pgproto3.Query{String: command})
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
	const patience = time.Second
	if w.taken == nil {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
		defer cancel()
		_ = w.conn.Close(ctx) // nothing is open in it
		return
	}
	terminate := []byte{'X', 0, 0, 0, 4}
	if w.taken.SetDeadline(time.Now().Add(patience)) == nil {
		if _, err := w.taken.Write(terminate); err == nil { // it may be gone already
			_, _ = io.Copy(io.Discard, w.taken)
		}
	}
	_ = w.taken.Close()
}
