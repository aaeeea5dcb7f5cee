package replication

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/cdcsync/cdcsync/internal/pgtest"
)

// refusal is what a server says to a command on a replication connection or, with sql, on an ordinary one.
func refusal(t *testing.T, url, command string, sql bool) *pgconn.PgError {
	t.Helper()
	cfg, err := pgx.ParseConfig(url)
	if err != nil {
		t.Fatal(err)
	}
	if !sql {
		cfg.RuntimeParams["replication"] = "database"
	}
	conn, err := pgconn.ConnectConfig(t.Context(), &cfg.Config)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.Background()) }()
	_, err = conn.Exec(t.Context(), command).ReadAll()
	refused, ok := errors.AsType[*pgconn.PgError](err)
	if !ok {
		t.Fatalf("%s: %v", command, err)
	}
	return refused
}

// What a server says is known in any language.
func TestServerErrorsAreKnownInAnyLanguage(t *testing.T) {
	server := pgtest.Own(t, pgtest.Options{Settings: map[string]string{"wal_level": "logical", "max_slot_wal_keep_size": "1MB"}})
	low := pgtest.Own(t, pgtest.Options{Settings: map[string]string{"wal_level": "replica"}})
	url, other := server.NewDatabase(t), server.NewDatabase(t)
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	exec := func(sql string) {
		t.Helper()
		if _, err := conn.Exec(t.Context(), sql); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
	exec("select pg_create_logical_replication_slot('lost', 'pgoutput')")
	exec("create table a (id int primary key)")
	for range 4 { // segments of 16 MB
		exec("insert into a select coalesce(max(id), 0) + 1 from a")
		exec("select pg_switch_wal()")
	}
	exec("checkpoint")
	exec("select pg_create_logical_replication_slot('whole', 'pgoutput'), pg_create_physical_replication_slot('physical', true)")
	exec("insert into a values (100)")
	start := func(slot string) string {
		return fmt.Sprintf(`START_REPLICATION SLOT %s LOGICAL 0/0 (proto_version '1', publication_names 'none')`, slot)
	}
	cfg := &Config{Slot: "s", Publication: "none"}
	type refused struct {
		said *pgconn.PgError
		want string // of the reason; empty for an error that is no operator's
	}
	tests := map[string]refused{
		"slot lost":          {refusal(t, url, start("lost"), false), "is lost"},
		"wal_level":          {refusal(t, low.NewDatabase(t), "CREATE_REPLICATION_SLOT x LOGICAL pgoutput", false), "logical decoding is off"},
		"no such slot":       {refusal(t, url, start("missing"), false), ""},
		"physical slot":      {refusal(t, url, start("physical"), false), ""},
		"another database's": {refusal(t, other, start("whole"), false), ""},
	}
	if conn.PgConn().ParameterStatus("server_version") < "18" { // which goes on without a publication that does not exist
		peek := "select pg_logical_slot_peek_binary_changes('whole', null, null, 'proto_version', '1', 'publication_names', 'none')"
		tests["publication"] = refused{refusal(t, url, peek, true), "was dropped"}
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			for _, text := range []string{test.said.Message, "o servidor diz outra coisa"} {
				translated := *test.said
				translated.Message = text
				err := streamError(cfg, &translated)
				known, ok := errors.AsType[*Error](err)
				if ok != (test.want != "") || ok && !strings.Contains(known.Reason, test.want) {
					t.Errorf("%s in %s (%q): %v", test.said.Code, test.said.Routine, text, err)
				}
			}
		})
	}
	untold := pgconn.PgError{Code: codeNotInState, Message: `can no longer get changes from replication slot "s"`} // by a proxy that passes no more on
	if err := streamError(cfg, &untold); !IsPermanent(err) {
		t.Errorf("words alone: %v", err)
	}
}
