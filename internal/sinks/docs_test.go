package sinks_test

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"gopkg.in/yaml.v3"

	"github.com/cdcsync/cdcsync/internal/cdc"
	"github.com/cdcsync/cdcsync/internal/mapping"
	"github.com/cdcsync/cdcsync/internal/sinks"
)

// The pages' mappings make the pages' requests, which are the vendors' own examples.
func TestPages(t *testing.T) {
	for _, test := range []struct {
		page    string
		example int // of the page's pairs of mapping and request
		typ     string
		vendor  string
		rows    []map[string]string // the columns as "name type": text
		ops     []cdc.Op
		lookups []mapping.Rows
	}{
		{page: "stopchurn.md", typ: sinks.TypeStopChurn, vendor: "stopchurn_update.json", ops: []cdc.Op{cdc.OpInsert, cdc.OpUpdate}, rows: []map[string]string{
			{"1 id int8": "1", "2 email text": "test123@gmail.com", "3 first_name text": "pera", "4 last_name text": "peric", "5 nickname text": "perke", "6 status text": "active", "7 created_at timestamptz": "2023-09-10 14:54:35+00", "8 updated_at timestamptz": "2023-09-10 14:54:35+00"},
			{"1 id int8": "2", "2 email text": "test456@gmail.com", "3 first_name text": "mika", "4 last_name text": "mikic", "5 nickname text": "mikica", "6 status text": "active", "7 created_at timestamptz": "2023-09-10 14:54:35+00", "8 updated_at timestamptz": "2023-09-10 14:54:35+00"},
		}},
		{page: "fanbase-queue.md", typ: sinks.TypeFanbaseQueue, vendor: "fanbase_queue_update_fandata.json", ops: []cdc.Op{cdc.OpUpdate}, rows: []map[string]string{
			{"1 internal_id text": "internal_feng_id", "2 cpf text": "123.456.789-00"},
		}},
		{page: "fanbase-batch.md", typ: sinks.TypeFanbaseBatch, vendor: "fanbase_batch_simple.json", ops: []cdc.Op{cdc.OpInsert}, rows: []map[string]string{
			{"1 id int8": "1", "2 name text": "João da Silva", "3 gender text": "M", "4 nickname text": "João", "5 birth_date date": "1990-08-15", "6 nationality text": "BRA", "7 cpf text": "12345678900", "8 email text": "joao@exemplo.com", "9 member_code text": "SOC-123456", "a street text": "Rua Exemplo", "b complement text": "Apto 101", "c house_number int4": "123", "d district text": "Centro", "e zip text": "01234-567", "f city text": "São Paulo", "g state text": "SP"},
		}},
		{
			page: "fanbase-batch.md", example: 1, typ: sinks.TypeFanbaseBatch, vendor: "fanbase_batch_plan_and_account.json", ops: []cdc.Op{cdc.OpInsert},
			rows: []map[string]string{
				{"1 id int8": "2", "2 name text": "Maria Santos", "3 gender text": "F", "5 birth_date date": "1985-03-20", "7 cpf text": "98765432100", "8 email text": "maria@exemplo.com", "a street text": "Av. Principal", "c house_number int4": "500", "d district text": "Jardim América", "e zip text": "04567-890", "f city text": "São Paulo", "g state text": "SP", "h initial_password text": "senha123"},
			},
			lookups: []mapping.Rows{
				{Columns: fields("optinCode text", "optinDesc text", "optinDate timestamptz"), Rows: [][]cdc.Value{
					texts("NEWSLETTER", "Aceito receber newsletters", "2025-01-15 10:00:00+00"),
					texts("SMS", "Aceito receber SMS promocionais", "2025-01-15 10:00:00+00"),
				}},
				{
					Columns: fields("externalId text", "status text", "data timestamptz", "codigoCliente text", "plano text", "planoCode text", "parcelas int4",
						"validade timestamptz", "origem text", "ativacao timestamptz", "tipoVigencia text", "formaPagamento text"),
					Rows: [][]cdc.Value{texts("CONTRATO-2025-001", "Ativo", "2025-01-15 10:00:00+00", "98765432100", "Plano Premium Anual", "PREMIUM-ANUAL", "12",
						"2026-01-15 10:00:00+00", "Website", "2025-01-15 10:00:00+00", "Anual", "Cartão de Crédito")},
				},
			},
		},
		{page: "fanatics.md", typ: sinks.TypeFanatics, vendor: "fanatics_accounts.json", ops: []cdc.Op{cdc.OpInsert}, rows: []map[string]string{
			{"1 fan_id uuid": "aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee", "2 tier_id uuid": "12345678-1234-1234-dddd-eeeeeeeeeeee", "3 approved bool": "t"},
		}},
	} {
		t.Run(test.vendor, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				text, request := pair(t, test.page, test.example)
				var items []sinks.Item
				for i, row := range test.rows {
					rel, values := table(row)
					plan := compile(t, text, test.typ, rel)
					change := &cdc.Change{Op: test.ops[i], Relation: rel, New: values}
					var route mapping.Route
					plan.Route(&route, change)
					body, err := plan.Append(nil, change, &route.Parts[0], &mapping.Env{Lookups: test.lookups})
					if err != nil {
						t.Fatal(err)
					}
					items = append(items, sinks.Item{Op: test.ops[i], Body: body})
				}
				v := newVendor(t)
				v.answer = say(201, "{}")
				k := kinds[test.typ]
				k.cfg = sinks.Config{}
				_, _ = k.open(t, test.typ, v).Deliver(t.Context(), items, "key")
				sent := v.requests[0].body
				if want := example(t, test.vendor); sent != want {
					t.Errorf("the page's mapping makes\n%s\nthe vendor's example is\n%s", sent, want)
				}
				if compact(t, request) != sent {
					t.Errorf("the page's mapping makes\n%s\nthe page shows\n%s", sent, request)
				}
			})
		})
	}
}

var fence = regexp.MustCompile("(?s)```(yaml|json)\n(.*?)```")

// pair is the nth mapping of a page, and the request after it.
func pair(t *testing.T, page string, n int) (text, request string) {
	t.Helper()
	content, err := os.ReadFile(filepath.Join("../../docs/sinks", page))
	if err != nil {
		t.Fatal(err)
	}
	for _, block := range fence.FindAllStringSubmatch(string(content), -1) {
		switch {
		case block[1] == "yaml" && strings.HasPrefix(block[2], "mappings:"):
			text = block[2]
		case block[1] == "json" && text != "":
			if n == 0 {
				return text, block[2]
			}
			n--
		}
	}
	t.Fatalf("%s has no such example", page)
	return "", ""
}

// compile reads a page's mapping as the daemon does.
func compile(t *testing.T, text, typ string, rel *cdc.Relation) *mapping.Plan {
	t.Helper()
	var file struct {
		Mappings []struct {
			Table   string
			Item    yaml.Node
			Lookups map[string]struct {
				Key  yaml.Node
				SQL  string
				Many bool
			}
		}
	}
	if err := yaml.Unmarshal([]byte(text), &file); err != nil {
		t.Fatal(err)
	}
	m := file.Mappings[0]
	source := mapping.Source{File: "page.md", Path: "mappings[0]", Name: "page", Table: mapping.ParseTable(m.Table), Sink: "sink", Item: m.Item}
	for _, name := range []string{"consents", "plans"} {
		if l, ok := m.Lookups[name]; ok {
			source.Lookups = append(source.Lookups, mapping.Lookup{Name: name, Key: l.Key, SQL: l.SQL, Many: l.Many})
		}
	}
	spec, _ := sinks.SpecOf(typ)
	template, problems := mapping.Parse(source, mapping.Spec{Item: spec.Item, On: spec.On, Deletes: mapping.DeleteAsItem, Coalesce: mapping.CoalesceNone, FullRows: spec.FullRows})
	if problems.Err() != nil {
		t.Fatal(problems)
	}
	plan, problems := template.Compile(rel)
	if problems.Err() != nil {
		t.Fatal(problems)
	}
	return plan
}

// table makes a relation and a row of columns "order name type".
func table(row map[string]string) (*cdc.Relation, []cdc.Value) {
	rel := &cdc.Relation{OID: 1, Schema: "public", Name: "t", Identity: 'f', PrimaryKey: []int{0}}
	var values []cdc.Value
	for _, key := range slices.Sorted(maps.Keys(row)) {
		rel.Columns = append(rel.Columns, cdc.Column{Name: field(key[2:]).Name, Identity: true, TypeMod: -1, Type: field(key[2:]).Type})
		values = append(values, texts(row[key])...)
	}
	return rel, values
}

var oids = map[string]uint32{"text": 25, "int4": 23, "int8": 20, "bool": 16, "date": 1082, "timestamptz": 1184, "uuid": 2950}

// field is a column "name type".
func field(text string) cdc.Field {
	var f cdc.Field
	var typ string
	_, _ = fmt.Sscan(text, &f.Name, &typ)
	f.Type = &cdc.Type{OID: oids[typ], Name: typ, Kind: cdc.TypeBase}
	return f
}

func fields(list ...string) (out []cdc.Field) {
	for _, text := range list {
		out = append(out, field(text))
	}
	return out
}

func texts(list ...string) (out []cdc.Value) {
	for _, text := range list {
		out = append(out, cdc.Value{Kind: cdc.Text, Data: []byte(text)})
	}
	return out
}
