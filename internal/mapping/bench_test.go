package mapping

import (
	"testing"
)

const benchTable = `
table: public.users
identity: full
columns:
  - id int8 pk
  - email text
  - first_name text
  - last_name text
  - city text
  - status text
  - balance numeric
  - tags text[]
  - settings jsonb
  - created_at timestamptz
  - updated_at timestamptz
`

const benchMapping = `
table: public.users
sink: stopchurn
item:
  brandId: 1
  tableName: user
  createdAt: $created_at
  updatedAt: $updated_at
  data:
    "*": {case: camel}
`

const benchRow = `
- insert:
    id: "1234567"
    email: joao.silva.1234567@example.com
    first_name: João
    last_name: da Silva Albuquerque
    city: São Paulo
    status: active
    balance: "1234.50"
    tags: '{gold,"since 2019",newsletter}'
    settings: '{"theme": "dark", "locale": "pt-BR", "notifications": {"email": true}}'
    created_at: 2025-09-20 18:41:31.219+00
    updated_at: 2025-09-21 08:11:01.5+00
`

// benchmarkAppend renders one change over and over.
func benchmarkAppend(b *testing.B, mapping string) {
	b.Helper()
	rel := relationOf(b, benchTable)
	plan := planOf(b, mapping, rel)
	ch := changesOf(b, rel, benchRow)[0]
	var route Route
	if err := plan.Route(&route, ch); err != nil {
		b.Fatal(err)
	}
	body, err := plan.Append(nil, ch, &route.Parts[0], nil)
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(len(body)))
	b.ReportAllocs()
	for b.Loop() {
		if err := plan.Route(&route, ch); err != nil {
			b.Fatal(err)
		}
		if body, err = plan.Append(body[:0], ch, &route.Parts[0], nil); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkPlainRow is the target of docs/performance.md: 11 columns, no expression, no allocation.
func BenchmarkPlainRow(b *testing.B) { benchmarkAppend(b, benchMapping) }

func BenchmarkExpressions(b *testing.B) {
	benchmarkAppend(b, benchMapping+`
    fullName: =first_name + " " + last_name
    cents: =balance * 100
`)
}

func BenchmarkFilter(b *testing.B) { benchmarkAppend(b, benchMapping+"when: status != \"test\"\n") }

// TestPlainRowAllocatesNothing keeps the promise that BenchmarkPlainRow measures.
func TestPlainRowAllocatesNothing(t *testing.T) {
	rel := relationOf(t, benchTable)
	plan := planOf(t, benchMapping, rel)
	ch := changesOf(t, rel, benchRow)[0]
	var route Route
	body := make([]byte, 0, 4096)
	allocations := testing.AllocsPerRun(100, func() {
		if err := plan.Route(&route, ch); err != nil {
			t.Fatal(err)
		}
		if _, err := plan.Append(body, ch, &route.Parts[0], nil); err != nil {
			t.Fatal(err)
		}
	})
	if allocations != 0 {
		t.Errorf("%v allocations to render a row of plain columns, want 0", allocations)
	}
}
