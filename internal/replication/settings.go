package replication

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// pinned are the settings that every connection of ours has: those of a role, a database or the server must leak neither into values nor into
// the way that statements are read, nor end them. lc_messages cannot be among them, since only a superuser may set it.
var pinned = map[string]string{
	// How values are written and read. The encoding becomes the database's own once it is known.
	"client_encoding":    "UTF8",
	"datestyle":          "ISO",
	"intervalstyle":      "postgres",
	"timezone":           "UTC",
	"extra_float_digits": "1",
	"bytea_output":       "hex",
	"xmloption":          "content",
	"xmlbinary":          "base64",
	"array_nulls":        "on",
	// How statements are read and planned.
	"standard_conforming_strings": "on",
	"backslash_quote":             "safe_encoding",
	"transform_null_equals":       "off",
	"quote_all_identifiers":       "off",
	searchPath:                    "pg_catalog, pg_temp", // whoever may create in a schema of the role's path would run code as the role (CVE-2018-1058)
	"plan_cache_mode":             "auto",
	"jit":                         "off", // a catalogue query that is estimated high takes ms, and its compilation seconds
	"gin_fuzzy_search_limit":      "0",   // it would leave rows out
	// What a transaction may do.
	"default_transaction_read_only":  "off",
	"default_transaction_isolation":  "read committed",
	"default_transaction_deferrable": "off",
	"row_security":                   "off", // rows that a policy hides are an error, not missing
	// What ends a session or a statement; statement_timeout is each connection's own.
	"idle_session_timeout":                "0",
	"idle_in_transaction_session_timeout": "0",
	"lock_timeout":                        "0",
	"exit_on_error":                       "off",
}

const (
	applicationName = "cdcsync"
	searchPath      = "search_path"
	// witness is a parameter of ours that a server takes as it takes the others, and that a pooler which drops parameters drops.
	witness = "cdcsync.pinned"
	// transactionTimeout is known from Postgres 17 on; an older server refuses a connection that names it.
	transactionTimeout        = "transaction_timeout"
	transactionTimeoutVersion = 17
)

// pin makes the settings parameters of the connection's start, which win over those of role and database.
func pin(params map[string]string) {
	maps.Copy(params, pinned)
	params[witness] = "on"
	if params["application_name"] == "" {
		params["application_name"] = applicationName
	}
	if !choosesRole(params) {
		params["role"] = "none"
	}
}

// choosesRole reports whether a URL says SET ROLE, which is meant. Where a role's own settings do, it would lose REPLICATION.
func choosesRole(params map[string]string) bool {
	return params["role"] != "" || strings.Contains(params["options"], "role")
}

// settle finishes what the start of an ordinary connection could not: a setting that not every server knows, and the encoding. It refuses a connection whose
// parameters were dropped on the way.
func settle(ctx context.Context, conn *pgconn.PgConn) error {
	results, err := conn.Exec(ctx, "select pg_catalog.current_setting('"+witness+"', true), "+setTransactionTimeout(false)+
		", pg_catalog.set_config('client_encoding', "+ownEncoding+", false)").ReadAll()
	if err != nil {
		return fmt.Errorf("settings: %w", err)
	}
	if len(results) == 1 && len(results[0].Rows) == 1 && string(results[0].Rows[0][0]) == "on" {
		return nil
	}
	return &Error{
		Reason:   "the settings that cdcsync needs were dropped on the way to the server: a pooler is in front of it",
		Solution: poolerSolution,
	}
}

const poolerSolution = "let source.url name the server itself, since replication needs it anyway; only source.query_url may lead through a pooler"

// setTransactionTimeout is an expression that switches the time-out off where there is one.
func setTransactionTimeout(local bool) string {
	return fmt.Sprintf("pg_catalog.set_config(case when pg_catalog.current_setting('%[1]s', true) is null then 'cdcsync.unknown' else '%[1]s' end, '0', %[2]v)", transactionTimeout, local)
}

// knowsTransactionTimeout reports whether the server that a connection leads to has the setting.
func knowsTransactionTimeout(conn *pgx.Conn) bool {
	version, _, _ := strings.Cut(conn.PgConn().ParameterStatus("server_version"), ".")
	digits := strings.IndexFunc(version, func(r rune) bool { return r < '0' || r > '9' }) // 17devel
	if digits >= 0 {
		version = version[:digits]
	}
	major, err := strconv.Atoi(version)
	return err == nil && major >= transactionTimeoutVersion
}

// pinTransaction is a list of expressions that pin the settings within the transaction that evaluates it. So they hold through a pooler, which
// drops parameters, or gives every transaction another session. A user's own query (ours is false) has the role's search_path.
func pinTransaction(params map[string]string, statementTimeout int64, ours bool) string {
	settings := maps.Clone(pinned)
	if !ours {
		delete(settings, searchPath)
	}
	settings["statement_timeout"] = strconv.FormatInt(statementTimeout, 10)
	if !choosesRole(params) {
		settings["role"] = "none"
	}
	names := slices.Sorted(maps.Keys(settings))
	list := make([]string, 0, len(names)+1)
	for _, name := range names {
		value := quoteLiteral(settings[name])
		if name == "client_encoding" {
			value = ownEncoding
		}
		list = append(list, fmt.Sprintf("pg_catalog.set_config('%s', %s, true)", name, value))
	}
	return strings.Join(append(list, setTransactionTimeout(true)), ", ")
}

// poolerError explains a pooler's refusal of a parameter, which is its own and not a server's; nil when err is something else.
func poolerError(err error) *Error {
	const protocolViolation = "08P01"
	pgErr, ok := errors.AsType[*pgconn.PgError](err)
	if !ok || pgErr.Code != protocolViolation || !strings.Contains(pgErr.Message, "startup parameter") {
		return nil
	}
	return &Error{Reason: "a pooler in front of the server takes neither replication nor the settings that cdcsync needs", Solution: poolerSolution, Err: err}
}
