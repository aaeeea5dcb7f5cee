package mapping

import (
	"strings"
	"testing"
	"time"

	"github.com/cdcsync/cdcsync/internal/cdc"
)

// blown runs an expression over a text a, a text b and JSON j, and gives its result as JSON.
func blown(t *testing.T, source, a, b, j string) (string, error) {
	t.Helper()
	rel := &cdc.Relation{Schema: "public", Name: "t", Columns: []cdc.Column{
		{Name: "a", Type: &cdc.Type{OID: 25, Name: "text", Kind: cdc.TypeBase}},
		{Name: "b", Type: &cdc.Type{OID: 25, Name: "text", Kind: cdc.TypeBase}},
		{Name: "j", Type: &cdc.Type{OID: 3802, Name: "jsonb", Kind: cdc.TypeBase}},
		{Name: "n", Type: &cdc.Type{OID: 20, Name: "int8", Kind: cdc.TypeBase}},
	}}
	e, mistakes := compileExpression(source, scope{relation: rel})
	if len(mistakes) > 0 {
		t.Fatalf("%s: %+v", source, mistakes)
	}
	slots := 0
	for i := range e.refs {
		e.refs[i].slot = slots
		slots++
	}
	m := newMachine(rel, slots)
	m.next()
	values := []cdc.Value{{Kind: cdc.Text, Data: []byte(a)}, {Kind: cdc.Text, Data: []byte(b)}, {Kind: cdc.Text, Data: []byte(j)}, {Kind: cdc.Text, Data: []byte("9000000000000000000")}}
	ch := &cdc.Change{Op: cdc.OpInsert, Relation: rel, New: values}
	v, reject := m.run(e, &row{change: ch, op: ch.Op, now: ch.New})
	if reject != nil {
		return "", reject
	}
	w := writer{}
	if err := w.value(v, nil); err != nil {
		return "", err
	}
	return string(w.dst), nil
}

// Every function and operator that can make more than it is given rejects the row before it makes it, and no expression goes on for ever.
func TestExpressionsAreBounded(t *testing.T) {
	megabyte, half := strings.Repeat("x", 1<<20), strings.Repeat("x", largestValue/2+1)
	list := "[" + strings.Repeat("1,", 99_999) + "1]"
	many := "[" + strings.Repeat("0,", mostElements) + "0]"
	deep := strings.Repeat("[", 9000) + strings.Repeat("]", 9000)
	for _, tt := range []struct{ source, a, b, j string }{
		{`replace(a, "x", b)`, megabyte, megabyte, list},
		{`replace(a, "", b)`, megabyte, megabyte, list},
		{`replace(replace(a, "x", "xxxxxxxx"), "x", "xxxxxxxxx")`, megabyte, "", list},
		{`map(j, replace(a, "x", "xxxxxxxx"))`, megabyte, "", list},
		{`a + b`, half, half, list},
		{`a + a + a`, half, "", list},
		{`map(j, a + b)`, megabyte, megabyte, list},
		{`let c = b + b; let d = c + c; let e = d + d; let f = e + e; let g = f + f; let h = g + g; h + h`, "", megabyte, list},
		{`concat(a, b)`, half, half, list},
		{`concat(a, a, a, a, a)`, half, "", list},
		{`join([a, a, a], b)`, half, megabyte, list},
		{`join(j, a)`, megabyte, "", list},
		{`join(map(j, a), "")`, megabyte, "", list},
		{`join(map(j, concat(a, b)), "")`, megabyte, "", list},
		{`string(map(j, a))`, megabyte, "", list},
		{`string({"a": map(j, {{"b": a}})})`, megabyte, "", list},
		{`map(j, a)`, megabyte, "", list},
		{`map(j, {{"k": a}})`, megabyte, "", list},
		{`map(j, [a, a])`, megabyte, "", list},
		{`map(j, map(j, 1))`, "", "", list},
		{`map(j, j)`, "", "", list},
		{`map(1..1000, map(1..1000, map(1..1000, 1)))`, "", "", "[]"},
		{`1..n`, "", "", "[]"},
		{`len(1..2000000)`, "", "", "[]"},
		{`object(map(j, string(#) + a), #, a)`, megabyte, "", list},
		{`split(a, "")`, strings.Repeat("x", mostElements+1), "", "[]"},
		{`split(a, "x")`, strings.Repeat("x", mostElements+1), "", "[]"},
		{`map(j, split(a, ""))`, strings.Repeat("x", 10_000), "", list},
		{`json(a)`, many, "", "[]"},
		{`json("[" + a + "]")`, strings.Repeat(`{},`, mostElements) + "0", "", "[]"},
		{`len(j)`, "", "", many},
		{`map(j, json(a))`, `[1, "` + megabyte + `"]`, "", list},
		{`base64(base64(base64(a)))`, half, "", "[]"},
		{`map(j, base64(a))`, megabyte, "", list},
		{`map(j, upper(a))`, megabyte, "", list},
		{`map(j, lower(a))`, strings.ToUpper(megabyte), "", list},
		{`map(j, padStart(b, 65536, "0"))`, "", "1", list},
		{`padStart(a, n, "0")`, "1", "", "[]"},
		{`map(j, reverse(j))`, "", "", list},
		{`all(j, all(j, all(j, true)))`, "", "", list},
		{`count(j, count(j, # == 1) > 0)`, "", "", list},
		{`none(j, any(j, false))`, "", "", list},
		{`any(j, not all(j, true))`, "", "", list},
		{`filter(j, 2 in j)`, "", "", list},
		{`filter(j, a contains "y")`, megabyte, "", list},
		{`filter(j, a matches "y+z")`, megabyte, "", list},
		{`filter(j, a startsWith b)`, megabyte, megabyte, list},
		{`find(j, len(a) == 0)`, megabyte, "", list},
		{`all(j, sha256(a) != "")`, megabyte, "", list},
		{`all(j, digits(a) == "")`, megabyte, "", list},
		{`all(j, a == b)`, megabyte, megabyte, list},
		{`int(a)`, "1e2000000000", "", "[]"},
		{`int(a)`, "1e90000000", "", "[]"},
		{`round(number(a), 2)`, "1e90000000", "", "[]"},
		{`number(a) + 1`, "1e90000000", "", "[]"},
		{`number(a) * number(a)`, "1e90000", "", "[]"},
		{`floor(number(a))`, "-1e90000000", "", "[]"},
		{`abs(number(a))`, "-1e90000000", "", "[]"},
		{`number(a) % 7`, "1e90000000", "", "[]"},
		{`number(a) / 7 + 1`, "1e90000000", "", "[]"},
		{`max(map(j, j))`, deep, "", list},
	} {
		t.Run(tt.source, func(t *testing.T) {
			start := time.Now()
			got, err := blown(t, tt.source, tt.a, tt.b, tt.j)
			if err == nil {
				t.Errorf("%d bytes were made", len(got))
			} else if m := err.Error(); len(m) > 300 || strings.Contains(m, "xxxx") {
				t.Errorf("the reason quotes the row: %.200s", m)
			}
			if took := time.Since(start); took > time.Minute {
				t.Errorf("took %s", took)
			}
		})
	}
}

// What is large and legitimate goes through.
func TestExpressionsTakeLargeValues(t *testing.T) {
	large := strings.Repeat("x", 16<<20)
	list := "[" + strings.Repeat("1,", 99_999) + "1]"
	for _, tt := range []struct {
		source string
		want   int
	}{
		{`upper(trim(a))`, len(large) + 2},
		{`replace(a, "x", "yy")`, 2*len(large) + 2},
		{`a + a`, 2*len(large) + 2},
		{`len(map(j, string(#)))`, len("100000")},
		{`sha256(a)`, 66},
		{`all(j, # == 1)`, len("true")},
	} {
		got, err := blown(t, tt.source, large, "", list)
		if err != nil || len(got) != tt.want {
			t.Errorf("%s: %d bytes, %v; want %d", tt.source, len(got), err, tt.want)
		}
	}
}
