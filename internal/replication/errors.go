package replication

import (
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/cdcsync/cdcsync/internal/pulse"
)

// Error is a state of the source that waiting does not mend: an operator has to act.
type Error struct {
	Reason   string // what is wrong, and what is at risk
	Solution string // the command or step that mends it
	Err      error  // the server's words, where there are any

	undecodable bool // the slot that there is will never stream again
}

func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.Reason)
	if e.Err != nil {
		fmt.Fprintf(&b, " (%v)", e.Err)
	}
	if e.Solution != "" {
		b.WriteString("; " + e.Solution)
	}
	return b.String()
}

func (e *Error) Unwrap() error { return e.Err }

// IsPermanent says whether an error is for an operator, so that trying again is of no use.
func IsPermanent(err error) bool {
	_, permanent := errors.AsType[*Error](err)
	return permanent
}

func isPanic(err error) bool {
	_, panicked := errors.AsType[*pulse.PanicError](err)
	return panicked
}

// busyError says that another process reads the slot.
type busyError struct {
	slot   string
	pid    int32
	holder string // as far as the role may see it
}

func (e *busyError) Error() string {
	return fmt.Sprintf("slot %q is active for PID %d (%s)", e.slot, e.pid, e.holder)
}

// Codes of appendix A of the manual, as far as they mean something here.
const (
	codeInvalidAuthorization = "28000"
	codeInvalidPassword      = "28P01"
	codeInvalidCatalogName   = "3D000"
	codePrivilege            = "42501"
	codeUndefinedFunction    = "42883"
	codeFeatureNotSupported  = "0A000"
	codeInvalidParameter     = "22023"
	codeUndefinedObject      = "42704"
	codeObjectInUse          = "55006"
	codeNotInState           = "55000"
	codeConfigurationLimit   = "53400"
	codeUndefinedFile        = "58P01"
)

// sqlState is the server's code of an error; empty when it is none of a server.
func sqlState(err error) string {
	if pgErr, ok := errors.AsType[*pgconn.PgError](err); ok {
		return pgErr.Code
	}
	return ""
}

// rowError is what the server says of a value in a row: its words may quote it, and rows are in no log.
type rowError struct{ err *pgconn.PgError }

// withoutRow takes the words of a server out of a query's error, unless they cannot hold a row's values.
func withoutRow(err error) error {
	pgErr, ok := errors.AsType[*pgconn.PgError](err)
	if _, already := errors.AsType[*rowError](err); !ok || already || quotesNoRow(pgErr) {
		return err
	}
	return &rowError{err: pgErr}
}

// quotesNoRow knows the errors whose message is constant, or names objects and what stands in the query only. Everything else may quote a value: a cast to
// regclass does so with the code of an undefined table. A function may raise any code with any words, but then there is a context.
func quotesNoRow(e *pgconn.PgError) bool {
	const syntaxOrAccess = "42"
	if e.Where != "" || len(e.Code) < len(syntaxOrAccess) {
		return false
	}
	if e.Severity == "FATAL" || e.SeverityUnlocalized == "FATAL" { // a refusal to connect, or a session that was ended
		return true
	}
	switch e.Code[:2] { // appendix A of the manual
	case "08", "40", "53", "57": // connection, rollback, resources, intervention
		return true
	case "25": // transaction state, such as a write in a read-only transaction
		return true
	case syntaxOrAccess: // only the parser gives a position, and what it quotes is the query
		return e.Position > 0 || e.Code == codePrivilege && strings.HasPrefix(e.Message, "permission denied for ")
	}
	return false
}

func (e *rowError) Error() string {
	return fmt.Sprintf("the query fails on a row, or on its values, with SQLSTATE %s; what the server says of it may hold values of the row, and is left out: run the query by hand",
		e.err.Code)
}

func (e *rowError) Unwrap() error { return e.err }

// connectError turns a refusal to connect into an Error when an operator must act. A refusal after this process had been let
// in once is taken for a passing trouble of the authentication service.
func connectError(err error, streamed bool) error {
	if streamed {
		return fmt.Errorf("connect: %w", err)
	}
	if pooled := poolerError(err); pooled != nil {
		return pooled
	}
	switch sqlState(err) {
	case codeInvalidAuthorization, codeInvalidPassword:
		return &Error{
			Reason:   "the server does not let this role in for replication",
			Solution: "check user and password of source.url, and that pg_hba.conf has a line for the database and the role",
			Err:      err,
		}
	case codeInvalidCatalogName:
		return &Error{Reason: "the database does not exist", Solution: "correct the database name in source.url", Err: err}
	case codePrivilege:
		return privilegeError(err)
	}
	return fmt.Errorf("connect: %w", err)
}

func privilegeError(err error) *Error {
	return &Error{
		Reason: "the role may not do what capture needs",
		Solution: "a superuser must run: ALTER ROLE … REPLICATION (on Amazon RDS: GRANT rds_replication TO …), and for manage: true the role" +
			" needs CREATE on the database and must own the mapped tables; backfills need SELECT, and BYPASSRLS where there is row-level security",
		Err: err,
	}
}

// streamError turns what the server says when a slot is made, started or read into an Error when an operator must act.
func streamError(cfg *Config, err error) error {
	pgErr, ok := errors.AsType[*pgconn.PgError](err)
	if !ok {
		return fmt.Errorf("replication: %w", err)
	}
	code, message := pgErr.Code, pgErr.Message
	switch {
	case code == codePrivilege:
		return privilegeError(err)
	case code == codeObjectInUse: // somebody was quicker since we looked
		return &busyError{slot: cfg.Slot, holder: message}
	case code == codeUndefinedObject && isUnpublished(pgErr):
		refused := unpublishedError(cfg)
		refused.Err = err
		return refused
	case code == codeConfigurationLimit:
		return &Error{
			Reason:   "the server has no free replication slot",
			Solution: "drop a slot that nobody uses (SELECT * FROM pg_replication_slots WHERE NOT active), or raise max_replication_slots and restart the server",
			Err:      err,
		}
	case code == codeUndefinedFile, code == codeNotInState && isLost(pgErr):
		return lostError(cfg.Slot, err)
	case code == codeNotInState && isNotLogical(pgErr):
		return walLevelError("", err)
	}
	return fmt.Errorf("replication: %w", withoutRow(err)) // a publication's row filter fails on a value
}

// unpublishedError is for a publication that was not there all the time that the slot is to be decoded for.
func unpublishedError(cfg *Config) *Error {
	return &Error{
		Reason: fmt.Sprintf("publication %q was dropped, or made anew, behind where slot %q stands: the changes up to then cannot be decoded",
			cfg.Publication, cfg.Slot),
		Solution:    startAnew(cfg.Slot),
		undecodable: true,
	}
}

// What follows tells apart errors of one SQLSTATE. The server's words are in the language of lc_messages; the name of its function is not
// translated, and words are for what stands between, such as a proxy, that leaves it out.

// isUnpublished knows that the publication does not exist (pg_publication.c and, before 15, its callers; a slot's absence is slot.c's).
func isUnpublished(e *pgconn.PgError) bool {
	switch e.Routine {
	case "get_publication_oid", "GetPublicationByName":
		return true
	}
	return strings.Contains(e.Message, "publication")
}

// isLost knows the server's ways of saying that a slot's WAL is gone: walsender.c of 14 and 15, logical.c of 16 and 17, slot.c of 18.
func isLost(e *pgconn.PgError) bool {
	switch e.Routine {
	case "StartLogicalReplication", "ReplicationSlotAcquire", "RaiseSlotInvalidationError":
		return true
	case "CreateDecodingContext": // a physical slot and one of another database have no detail, and one that is being synchronized has a hint, too
		return e.Detail != "" && e.Hint == ""
	}
	for _, words := range []string{"can no longer get changes", "can no longer access", "invalidated", "cannot read from logical replication slot"} {
		if strings.Contains(e.Message, words) {
			return true
		}
	}
	return false
}

// isNotLogical knows that wal_level is too low (logical.c).
func isNotLogical(e *pgconn.PgError) bool {
	return e.Routine == "CheckLogicalDecodingRequirements" || strings.Contains(e.Message, "wal_level")
}

func lostError(slot string, err error) *Error {
	return &Error{
		Reason: fmt.Sprintf("slot %q is lost: the server has removed or invalidated WAL that it needed, so changes since its last confirmed position will never arrive",
			slot),
		Solution:    startAnew(slot) + "; raise max_slot_wal_keep_size so that it does not happen again",
		Err:         err,
		undecodable: true,
	}
}

func walLevelError(level string, err error) *Error {
	reason := "logical decoding is off"
	if level != "" {
		reason = fmt.Sprintf("wal_level is %q, and logical replication needs \"logical\"", level)
	}
	return &Error{Reason: reason, Solution: "ALTER SYSTEM SET wal_level = 'logical'; then restart the server", Err: err}
}

func dropSlot(slot string) string {
	return fmt.Sprintf("SELECT pg_drop_replication_slot(%s)", quoteLiteral(slot))
}

// startAnew is the way out when changes are missing for good.
func startAnew(slot string) string {
	return fmt.Sprintf("run cdcsync recover: it says what is lost, makes slot %q anew where that is needed, and sends every mapped table again", slot)
}

func quoteLiteral(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" }

// isConflict says whether a Log's error means that another capture writes to it.
func isConflict(err error) bool {
	var conflict interface{ Conflict() bool }
	return errors.As(err, &conflict) && conflict.Conflict()
}
