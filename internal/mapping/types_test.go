package mapping

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"go.uber.org/goleak"

	"github.com/cdcsync/cdcsync/internal/pgtest"
	"github.com/cdcsync/cdcsync/internal/shape"
)

var postgres pgtest.Shared

func TestMain(m *testing.M) { goleak.VerifyTestMain(postgres.Suite(m)) }

const (
	typesFile = "testdata/types.tsv" // a type, an SQL expression, and the text that Postgres gives for it
	typesDoc  = "../../docs/types.md"

	typesSetup = `
		create extension if not exists hstore;
		create extension if not exists citext;
		create type mood as enum ('sad', 'happy');
		create type address as (street text, number int4, since date);
		create domain posint as int4 check (value > 0);
		create domain email as text`
)

type typeRow struct{ typ, sql, text string }

func readTypes(t *testing.T) (rows []typeRow) {
	t.Helper()
	data, err := os.ReadFile(typesFile)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		parts := append(strings.SplitN(strings.TrimSuffix(line, "\n"), "\t", 3), "")
		rows = append(rows, typeRow{parts[0], parts[1], strings.NewReplacer(`\n`, "\n", `\\`, `\`).Replace(parts[2])})
	}
	return rows
}

// TestTypesOfPostgres compares the recorded text forms with those of a real server under the pinned settings.
func TestTypesOfPostgres(t *testing.T) {
	ctx := t.Context()
	config, err := pgx.ParseConfig(postgres.NewDatabase(t))
	if err != nil {
		t.Fatal(err)
	}
	maps.Copy(config.RuntimeParams, map[string]string{
		"datestyle": "ISO", "intervalstyle": "postgres", "extra_float_digits": "1", "bytea_output": "hex", "timezone": "UTC", "client_encoding": "UTF8", "lc_monetary": "C",
	})
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.WithoutCancel(ctx))
	if _, err := conn.Exec(ctx, typesSetup); err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	for _, row := range readTypes(t) {
		results, err := conn.PgConn().Exec(ctx, "select "+row.sql).ReadAll()
		if err != nil {
			t.Fatalf("%s: %v", row.sql, err)
		}
		text := string(results[0].Rows[0][0])
		if text != row.text && !*update {
			t.Errorf("%s gives %q, recorded is %q", row.sql, text, row.text)
		}
		fmt.Fprintf(&out, "%s\t%s\t%s\n", row.typ, row.sql, strings.NewReplacer("\n", `\n`, `\`, `\\`).Replace(text))
	}
	if *update {
		if err := os.WriteFile(typesFile, []byte(out.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

const (
	tableBegin = "<!-- types: written by go test ./internal/mapping -update -->\n"
	tableEnd   = "<!-- end -->\n"
)

// TestTypesDocument renders the recorded values and compares the table in docs/types.md.
func TestTypesDocument(t *testing.T) {
	var table strings.Builder
	table.WriteString("| Type | Value | Sent under `unix ms` | Sent under `ISO` |\n|---|---|---|---|\n")
	for _, row := range readTypes(t) {
		typ := typeOf(t, row.typ)
		millis := renderText(t, newCodec(typ, shape.TimesUnixMilli), row)
		iso := renderText(t, newCodec(typ, shape.TimesISO), row)
		if iso == millis {
			iso = "the same"
		}
		fmt.Fprintf(&table, "| `%s` | `%s` | %s | %s |\n", row.typ, strings.ReplaceAll(row.sql, "|", `\|`), millis, iso)
	}
	doc, err := os.ReadFile(typesDoc)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, _ := strings.Cut(string(doc), tableBegin)
	recorded, after, ok := strings.Cut(rest, tableEnd)
	if !ok {
		t.Fatalf("%s has no table between the markers", typesDoc)
	}
	if !*update {
		if diff := cmp.Diff(recorded, table.String()); diff != "" {
			t.Errorf("%s: -written +rendered:\n%s", typesDoc, diff)
		}
		return
	}
	if err := os.WriteFile(typesDoc, []byte(before+tableBegin+table.String()+tableEnd+after), 0o644); err != nil {
		t.Fatal(err)
	}
}

func renderText(t *testing.T, c *codec, row typeRow) string {
	t.Helper()
	got, err := c.append(nil, []byte(row.text))
	if err != nil {
		return "rejected: " + err.Error()
	}
	if !json.Valid(got) {
		t.Errorf("%s gives %s, which is not JSON", row.sql, got)
	}
	return "`" + strings.ReplaceAll(string(got), "|", `\|`) + "`"
}
