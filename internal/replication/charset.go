package replication

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/cdcsync/cdcsync/internal/cdc"
)

// ownEncoding is an expression: the encoding that a connection asks for. It is the database's, so that the server converts nothing, where
// cdc.Charset knows it. It is evaluated under any search_path.
const ownEncoding = `case when pg_catalog.current_setting('server_encoding') operator(pg_catalog.=) any (array['EUC_TW', 'EUC_JIS_2004', 'MULE_INTERNAL'])
	then 'UTF8' else pg_catalog.current_setting('server_encoding') end`

// charsetOf is that of the database which a connection leads to.
func charsetOf(conn *pgconn.PgConn) *cdc.Charset {
	return cdc.CharsetByName(conn.ParameterStatus("server_encoding"))
}

// translated asks in UTF-8 what conn asks in the database's encoding: statements, text among the arguments, text in the answers.
func translated(conn querier, charset *cdc.Charset) querier {
	if charset == nil {
		return conn
	}
	return &translator{conn: conn, charset: charset}
}

// encodingOf is the database's, as a cdc.Relation has it.
func encodingOf(q querier) string {
	if t, ok := q.(*translator); ok {
		return t.charset.Name()
	}
	return ""
}

type translator struct {
	conn    querier
	charset *cdc.Charset
}

func (t *translator) Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error) {
	sql, args, err := t.question(sql, args)
	if err != nil {
		return nil, err
	}
	rows, err := t.conn.Query(ctx, sql, args...)
	if err != nil {
		return nil, err
	}
	return &translatedRows{Rows: rows, charset: t.charset}, nil
}

func (t *translator) QueryRow(ctx context.Context, sql string, args ...any) pgx.Row {
	sql, args, err := t.question(sql, args)
	if err != nil {
		return failedRow{err}
	}
	return &translatedRow{row: t.conn.QueryRow(ctx, sql, args...), charset: t.charset}
}

func (t *translator) question(sql string, args []any) (string, []any, error) {
	sql, err := encodeSQL(t.charset, sql)
	if err != nil {
		return "", nil, err
	}
	encoded := make([]any, len(args))
	for i, arg := range args {
		switch a := arg.(type) {
		case string:
			encoded[i], err = t.charset.EncodeName(a)
		case []string:
			list := make([]string, len(a))
			for j := 0; j < len(a) && err == nil; j++ {
				list[j], err = t.charset.EncodeName(a[j])
			}
			encoded[i] = list
		default:
			encoded[i] = arg
		}
		if err != nil {
			return "", nil, notExpressible(err)
		}
	}
	return sql, encoded, nil
}

// encodeSQL converts a statement for the server.
func encodeSQL(charset *cdc.Charset, sql string) (string, error) {
	encoded, err := charset.EncodeName(sql)
	if err != nil {
		return "", notExpressible(err)
	}
	return encoded, nil
}

func notExpressible(err error) *Error {
	return &Error{Reason: fmt.Sprintf("a statement or a name in it cannot be said to the server: %v", err), Solution: "correct the name, condition or lookup"}
}

type failedRow struct{ err error }

func (r failedRow) Scan(...any) error { return r.err }

type translatedRow struct {
	row     pgx.Row
	charset *cdc.Charset
}

func (r *translatedRow) Scan(into ...any) error {
	err := r.row.Scan(into...)
	translate(r.charset, into)
	return err
}

type translatedRows struct {
	pgx.Rows

	charset *cdc.Charset
}

func (r *translatedRows) Scan(into ...any) error {
	if len(into) == 1 {
		if scanner, ok := into[0].(pgx.RowScanner); ok { // pgx scans into structs so; it comes back with their fields
			return scanner.ScanRow(r)
		}
	}
	err := r.Rows.Scan(into...)
	translate(r.charset, into)
	return err
}

func translate(charset *cdc.Charset, into []any) {
	for _, target := range into {
		switch t := target.(type) {
		case *string:
			*t = charset.DecodeName(*t)
		case **string:
			if *t != nil {
				**t = charset.DecodeName(**t)
			}
		case *[]string:
			for i := range *t {
				(*t)[i] = charset.DecodeName((*t)[i])
			}
		}
	}
}

// decodeNames converts the names of a relation of the stream.
func decodeNames(rel *cdc.Relation, charset *cdc.Charset) {
	rel.Encoding = charset.Name()
	rel.Schema, rel.Name = charset.DecodeName(rel.Schema), charset.DecodeName(rel.Name)
	for i := range rel.Columns {
		rel.Columns[i].Name = charset.DecodeName(rel.Columns[i].Name)
	}
}
