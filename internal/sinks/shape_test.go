package sinks_test

import (
	"encoding/json"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/cdcsync/cdcsync/internal/cdc"
	"github.com/cdcsync/cdcsync/internal/sinks"
)

// examples are the vendors' own requests, and where their items are.
var examples = []struct {
	typ, file string
	cfg       sinks.Config
	items     func(t *testing.T, request string) []sinks.Item
}{
	{sinks.TypeStopChurn, "stopchurn_update.json", sinks.Config{}, func(t *testing.T, request string) []sinks.Item {
		t.Helper()
		var parts struct {
			Data []struct {
				Type string
				Data json.RawMessage
			}
		}
		decode(t, request, &parts)
		var items []sinks.Item
		for _, p := range parts.Data {
			op, ok := cdc.ParseOp(p.Type)
			if !ok {
				t.Fatalf("type %s", p.Type)
			}
			items = append(items, sinks.Item{Op: op, Body: p.Data})
		}
		return items
	}},
	{sinks.TypeFanbaseQueue, "fanbase_queue_update_fandata.json", sinks.Config{}, func(t *testing.T, request string) []sinks.Item {
		t.Helper()
		var parts struct{ Data json.RawMessage }
		decode(t, request, &parts)
		return []sinks.Item{{Op: cdc.OpUpdate, Body: parts.Data}}
	}},
	{sinks.TypeFanbaseBatch, "fanbase_batch_simple.json", sinks.Config{}, elements("data")},
	{sinks.TypeFanbaseBatch, "fanbase_batch_plan_and_account.json", sinks.Config{}, elements("data")},
	{sinks.TypeFanatics, "fanatics_accounts.json", sinks.Config{}, elements("accounts")},
}

func decode(t *testing.T, text string, into any) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), into); err != nil {
		t.Fatal(err)
	}
}

func elements(field string) func(*testing.T, string) []sinks.Item {
	return func(t *testing.T, request string) (items []sinks.Item) {
		t.Helper()
		var fields map[string]json.RawMessage
		decode(t, request, &fields)
		var bodies []json.RawMessage
		decode(t, string(fields[field]), &bodies)
		for _, b := range bodies {
			items = append(items, sinks.Item{Op: cdc.OpInsert, Body: b})
		}
		return items
	}
}

// The vendors' own examples have the shapes, and are what a sink makes of their items, to the byte.
func TestExamples(t *testing.T) {
	for _, x := range examples {
		t.Run(x.file, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				request := example(t, x.file)
				items := x.items(t, request)
				spec, _ := sinks.SpecOf(x.typ)
				for _, item := range items {
					if err := validate(spec.Item.Root, item.Body); err != nil {
						t.Error(err)
					}
				}
				k := kinds[x.typ]
				k.cfg = x.cfg
				v := newVendor(t)
				v.answer = say(201, "{}")
				_, _ = k.open(t, x.typ, v).Deliver(t.Context(), items, "key")
				if v.requests[0].body != request {
					t.Errorf("got  %s\nwant %s", v.requests[0].body, request)
				}
			})
		})
	}
}

// edit is an example's first item after one replacement.
func edit(t *testing.T, file, old, replacement string) []byte {
	t.Helper()
	for _, x := range examples {
		if x.file != file {
			continue
		}
		body := string(x.items(t, example(t, file))[0].Body)
		if !strings.Contains(body, old) {
			t.Fatalf("%s is not in %s", old, body)
		}
		return []byte(strings.Replace(body, old, replacement, 1))
	}
	t.Fatalf("no example %s", file)
	return nil
}

// The examples that shapeCases change.
const (
	churn   = "stopchurn_update.json"
	queue   = "fanbase_queue_update_fandata.json"
	simple  = "fanbase_batch_simple.json"
	plan    = "fanbase_batch_plan_and_account.json"
	account = "fanatics_accounts.json"
)

// shapeCases are changes of an example, and what its shape then says.
var shapeCases = []struct{ file, old, replacement, want string }{
	{churn, `"brandId":1,`, ``, "brandId: is missing"},
	{churn, `"brandId":1`, `"brandId":"1"`, "brandId: must be a number"},
	{churn, `"id":"1"`, `"id":7`, ""},
	{churn, `"id":"1"`, `"id":true`, "data.id: must be a string or a number"},
	{churn, `"id":"1",`, ``, "data.id: is missing"},
	{churn, `"updatedAt":1694357675000`, `"updatedAt":"2023-09-10"`, "updatedAt: must be a number"},
	{churn, `"brandId":1`, `"brandID":1,"brandId":1`, "brandID: is not a field that the vendor knows"},
	{queue, `"cpf":"12345678900"`, `"cpf":null`, ""},
	{queue, `"cpf":"12345678900",`, ``, ""},
	{queue, `"internal_feng_id"`, `""`, "id: is blank"},
	{queue, `"internal_feng_id"`, `7`, "id: must be a string"},
	{simple, `"identity":0`, `"identity":1`, "data.identity: must be one of 0"},
	{simple, `"name1":"João da Silva"`, `"name1":null`, "data.name1: is null"},
	{simple, `"gender":"M"`, `"gender":null`, ""},
	{simple, `"gender":"M"`, `"gender":"X"`, `data.gender: must be one of "M", "F", "O"`},
	{simple, `"birthday":15`, `"birthday":0`, "data.birthday: is less than 1"},
	{simple, `"birthday":15,"birthMonth":8`, `"birthday":31,"birthMonth":2`, "data: has a birthday that its month does not have"},
	{simple, `"birthday":15,"birthMonth":8,"birthYear":1990`, `"birthday":29,"birthMonth":2,"birthYear":1900`, "data: has a birthday that its month does not have"},
	{simple, `"birthday":15,"birthMonth":8,"birthYear":1990`, `"birthday":29,"birthMonth":2,"birthYear":2000`, ""},
	{simple, `"birthYear":1990`, `"birthYear":90`, "data.birthYear: is less than 1000"},
	{simple, `"nationalityIso3":"BRA"`, `"nationalityIso3":"BR"`, "data.nationalityIso3: must be a country in three capitals, such as BRA"},
	{simple, `"nationalityIso3":"BRA"`, `"nationalityIso3":null`, "data.nationalityIso3: is null"},
	{simple, `"numberType":1,`, `"numberType":2,`, "numbers[0].numberType: must be one of 1, 3, 4"},
	{simple, `"number":"12345678900"`, `"number":"123.456.789-00"`, "numbers[0]: must be 11 digits as a CPF; use =digits(column)"},
	{simple, `"number":"12345678900"`, `"number":"2345678900"`, "numbers[0]: must be 11 digits as a CPF; use =digits(column)"},
	{simple, `"numberType":1,"number":"12345678900"`, `"numberType":3,"number":"+5511999998888"`, ""},
	{simple, `"numberType":1,"number":"12345678900"`, `"numberType":3,"number":"(11) 99999-8888"`, "numbers[0]: must be digits as a phone; use =digits(column)"},
	{simple, `"number":"joao@exemplo.com"`, `"number":"joao"`, "numbers[1]: is no e-mail"},
	{simple, `,{"numberType":4,"number":"joao@exemplo.com","verified":1}`, ``, ""},
	{simple, `{"numberType":1,"number":"12345678900","verified":1},{"numberType":4,"number":"joao@exemplo.com","verified":1}`, ``, "numbers: must have at least 1 elements"},
	{simple, `{"numberType":1,"number":"12345678900","verified":1},{"numberType":4,"number":"joao@exemplo.com","verified":1}`, `{"numberType":3,"number":"5511"}`, "numbers: must hold a CPF (numberType 1) or an e-mail (numberType 4)"},
	{simple, `"verified":1`, `"verified":true`, "numbers[0].verified: must be a number"},
	{simple, `"addressType":1`, `"addressType":3`, "addresses.addressType: must be one of 1, 2"},
	{simple, `"state":"SP"`, `"state":"São"`, "addresses.state: is longer than 2 characters"},
	{simple, `"state":"SP"`, `"state":"S"`, "addresses.state: must be a state in two capitals, such as SP"},
	{simple, `"state":"SP"`, `"state":"sp"`, "addresses.state: must be a state in two capitals, such as SP"},
	{simple, `"numberType":1,"number":"12345678900"`, `"numberType":3,"number":"55+11"`, "numbers[0]: must be digits as a phone; use =digits(column)"},
	{churn, `"createdAt":1694357675000`, `"createdAt":1694357675`, "createdAt: is not in milliseconds since 1970: it is in seconds, it seems; a timestamp column is sent in milliseconds by itself, and =ms(column) computes them"},
	{churn, `"createdAt":1694357675000`, `"createdAt":1694357675000000`, "createdAt: is not in milliseconds since 1970: it is too large, such as microseconds"},
	{churn, `"createdAt":1694357675000`, `"createdAt":1694357675000.5`, "createdAt: is not in milliseconds since 1970: it has a fraction"},
	{churn, `"brandId":1`, `"brandId":1.5`, "brandId: must be a whole number"},
	{churn, `"id":"1"`, `"id":" \t"`, "data.id: is blank"},
	{churn, `"id":"1"`, `"id":null`, "data.id: is null"},
	{simple, `"number":123,`, `"number":"12A",`, "addresses.number: must be a number"},
	{simple, `"value":"SOC-123456"`, `"value":1`, "sysValues[0].value: must be a string"},
	{simple, `"sysValues":[`, `"sysValue":[],"sysValues":[`, "sysValue: is not a field that the vendor knows"},
	{plan, `"pwd":"senha123"`, `"pwd":"senha123","pwdhash":"x"`, "holds pwd and pwdhash, of which only one is allowed"},
	{plan, `"pwd":"senha123"`, `"pwdhash":"x"`, ""},
	{plan, `"codigoCliente":"98765432100",`, ``, "memberships[0].codigoCliente: is missing"},
	{plan, `"data":"2025-01-15T10:00:00.000Z"`, `"data":"2025-01-15"`, "memberships[0].data: is no ISO 8601 date and time with a zone"},
	{plan, `"parcelas":12`, `"guests":[{"gender":null,"birthday":31,"birthMonth":4}]`, "memberships[0].guests[0]: has a birthday that its month does not have"},
	{plan, `"parcelas":12`, `"guests":[{"cpf":"12345678900","celular":"+5511999990000"}],"attributes":[{"type":"Card","value":"7","note":"n"}]`, ""},
	{plan, `"parcelas":12`, `"attributes":[{"type":"Card"}]`, "memberships[0].attributes[0].value: is missing"},
	{plan, `"optinCode":"NEWSLETTER",`, ``, "optins[0].optinCode: is missing"},
	{plan, `"pwd":"senha123"`, `"attributes":[{"key":"a"}]`, "attributes[0].value: is missing"},
	{plan, `"pwd":"senha123"`, `"transactions":[{"date":"2025-09-20T18:41:31.219Z","type":1,"productType":2,"productDesc":"d","productExternalCode":"c","qty":1,"value":9.90,"channel":"c","externalCode":"e","paymentMode":"Pix"}]`, ""},
	{account, `aaaaaaaa-`, `aaaaaaa-`, "account_tenant_fanid: is no UUID"},
	{account, `"12345678-1234-1234-dddd-eeeeeeeeeeee":true`, ``, "invite_approval_map: is empty"},
	{account, `"12345678-1234`, `"1234`, "invite_approval_map: has a key that is no UUID"},
	{account, `:true`, `:1`, "invite_approval_map{}: must be true or false"},
}

func TestShapes(t *testing.T) {
	for _, test := range shapeCases {
		for _, x := range examples {
			if x.file != test.file {
				continue
			}
			spec, _ := sinks.SpecOf(x.typ)
			got := ""
			if err := validate(spec.Item.Root, edit(t, test.file, test.old, test.replacement)); err != nil {
				got = err.Error()
			}
			if got != test.want {
				t.Errorf("%s with %s: got %q, want %q", test.file, test.replacement, got, test.want)
			}
		}
	}
}

func TestInviteOnlyTiers(t *testing.T) {
	item := edit(t, "fanatics_accounts.json", "", "")
	for _, test := range []struct {
		tiers []string
		want  string
	}{
		{nil, ""},
		{[]string{"12345678-1234-1234-DDDD-eeeeeeeeeeee"}, ""},
		{[]string{"b10ac910-1de0-4dcc-b752-d913e1bde70b"}, "invite_approval_map: has a tier that is not in the sink's invite_only_tiers"},
	} {
		cfg := sinks.Config{Type: sinks.TypeFanatics, InviteOnlyTiers: test.tiers}
		spec, ok := cfg.Spec()
		got := ""
		if err := validate(spec.Item.Root, item); err != nil {
			got = err.Error()
		}
		if !ok || got != test.want {
			t.Errorf("%v: got %q, want %q", test.tiers, got, test.want)
		}
	}
}

func TestSpecs(t *testing.T) {
	for _, typ := range sinks.Types() {
		spec, ok := sinks.SpecOf(typ)
		if !ok || spec.Type != typ || spec.Item.Times == 0 || spec.Item.Root == nil || len(spec.On) == 0 || spec.BatchItems == 0 || spec.Concurrency == 0 {
			t.Errorf("%s: %+v", typ, spec)
		}
		k := kinds[typ]
		if spec.Tokens != k.token {
			t.Errorf("%s: tokens %v", typ, spec.Tokens)
		}
		sink := k.openWith(t, typ, sinks.Deps{Tokens: sinks.NewTokens("1", nil, nil)})
		if most := sink.Limits().Items; sink.Type() != typ || most > 0 && spec.BatchItems > most {
			t.Errorf("%s: %d items by default, %d at most", typ, spec.BatchItems, most)
		}
		for _, path := range spec.Item.Identity {
			node := spec.Item.Root
			for _, name := range path {
				f, ok := node.Field(name)
				if !ok {
					t.Fatalf("%s: no field %v, which identifies its records", typ, path)
				}
				node = f.Node
			}
		}
		if people := spec.Item.People; people != nil {
			if _, ok := spec.Item.Root.Field(people.List); !ok {
				t.Errorf("%s: no list %s", typ, people.List)
			}
		}
		sink.Close()
	}
	if _, ok := sinks.SpecOf("kafka"); ok {
		t.Error("knows kafka")
	}
}
