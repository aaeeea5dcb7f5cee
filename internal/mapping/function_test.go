package mapping

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cdcsync/cdcsync/internal/cdc"
	"github.com/cdcsync/cdcsync/internal/shape"
)

const (
	mappingDoc     = "../../docs/mapping.md"
	functionsBegin = "<!-- functions: written by go test ./internal/mapping -update -->\n"
)

// TestFunctions computes every function's example and compares the table in docs/mapping.md.
func TestFunctions(t *testing.T) {
	rel := relationOf(t, "table: public.t\ncolumns: [created_at timestamptz, birth_date date]")
	ch := &cdc.Change{Op: cdc.OpInsert, Relation: rel, New: []cdc.Value{
		{Kind: cdc.Text, Data: []byte("2025-09-20 18:41:31.219+00")}, {Kind: cdc.Text, Data: []byte("1990-08-15")},
	}}
	var table strings.Builder
	table.WriteString("| Function | What it gives | Example | Result |\n|---|---|---|---|\n")
	for _, f := range Functions() {
		got := evaluate(t, rel, ch, f.Example)
		if got != f.Result {
			t.Errorf("%s = %s, documented is %s", f.Example, got, f.Result)
		}
		fmt.Fprintf(&table, "| `%s` | %s | `%s` | `%s` |\n", f.Usage, f.Doc, f.Example, f.Result)
	}
	doc, err := os.ReadFile(mappingDoc)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, _ := strings.Cut(string(doc), functionsBegin)
	recorded, after, ok := strings.Cut(rest, tableEnd)
	if !ok {
		t.Fatalf("%s has no table between the markers", mappingDoc)
	}
	if !*update {
		if diff := cmp.Diff(recorded, table.String()); diff != "" {
			t.Errorf("%s: -written +documented:\n%s", mappingDoc, diff)
		}
		return
	}
	if err := os.WriteFile(mappingDoc, []byte(before+functionsBegin+table.String()+tableEnd+after), 0o644); err != nil {
		t.Fatal(err)
	}
}

// evaluate gives an expression's result as JSON, or why there is none.
func evaluate(t *testing.T, rel *cdc.Relation, ch *cdc.Change, source string) string {
	t.Helper()
	e, mistakes := compileExpression(source, scope{relation: rel})
	if len(mistakes) > 0 {
		return "mistake: " + mistakes[0].message
	}
	slots := 0
	for i := range e.refs {
		e.refs[i].slot = i
		slots++
	}
	m := newMachine(rel, slots)
	m.next()
	v, reject := m.run(e, &row{change: ch, op: ch.Op, now: ch.New})
	if reject != nil {
		return "rejected: " + reject.Reason
	}
	w := writer{times: shape.TimesISO}
	if err := w.value(v, nil); err != nil {
		return "rejected: " + err.Error()
	}
	return string(w.dst)
}

// TestOperators holds the rules of docs/mapping.md on null, on numbers and on what is refused.
func TestOperators(t *testing.T) {
	rel := relationOf(t, "table: public.t\ncolumns: [i int8, n numeric, f float8, s text, b bool, at timestamptz, d date, j jsonb, none text]")
	ch := &cdc.Change{Op: cdc.OpInsert, Relation: rel}
	for _, text := range []string{"7", "10.50", "0.5", "abc", "t", "2025-09-20 00:00:00+00", "2025-09-20", `{"a": [1, 2.50, null], "s": "x"}`} {
		ch.New = append(ch.New, cdc.Value{Kind: cdc.Text, Data: []byte(text)})
	}
	ch.New = append(ch.New, cdc.Value{Kind: cdc.Null})
	for _, test := range []struct{ source, want string }{
		{"i + n", "17.50"},
		{"n - i", "3.50"},
		{"n * 0.1", "1.050"},
		{"i / 2", "3.5"},
		{"i / 0", "rejected: cannot be computed: it divides by zero"},
		{"i % 4", "3"},
		{"f + i", "7.5"},
		{"f * n", "5.250"},
		{"9223372036854775807 + i", "9223372036854775814"},
		{"-n", "-10.50"},
		{"n == 10.5", "true"},
		{"n > i && i >= 7", "true"},
		{"i in [1, 7.0]", "true"},
		{"at == d", "true"},
		{"d < at", "false"},
		{`s + "d"`, `"abcd"`},
		{`s < "abd"`, "true"},
		{`s contains "b" and s startsWith "a"`, "true"},
		{`none + "x"`, `rejected: cannot be computed, since none is null; write none ?? "", or another value to use instead of null`},
		{`none ?? "x"`, `"x"`},
		{`none == null`, "true"},
		{`none != "x"`, "true"},
		{`upper(none)`, "null"},
		{`none < "x"`, `rejected: cannot be computed, since none is null; write none ?? "", or another value to use instead of null`},
		{`none ? 1 : 2`, "mistake: non-bool expression (type string) used as condition"},
		{"j.a[1] + 1", "3.50"},
		{"j.a[2] == null", "true"},
		{"j.a[7]", "rejected: cannot be computed: an index is out of range"},
		{"j.s + 1", "rejected: cannot be computed: a string is used where a number is wanted"},
		{"j.s.deeper", "rejected: cannot be computed: a value within it has another type than is wanted, or is null"},
		{"number(s)", "rejected: cannot be computed: number: the text is not a number"},
		{"s + i", "mistake: invalid operation: + (mismatched types string and int)"},
		{"s == 1", "mistake: invalid operation: == (mismatched types string and int)"},
		{"n + b", "mistake: invalid operation: + (mismatched types numeric and bool)"},
		{"upper(i)", "mistake: cannot use int as argument (type string) to call upper"},
		{"s[0:2]", `"ab"`},
		{"s matches \"^a\"", "true"},
		{"let x = i; x * x", "49"},
		{"i | string()", `"7"`},
		{`{"b": 1, "a": n}`, `{"a":10.50,"b":1}`},
	} {
		if got := evaluate(t, rel, ch, test.source); got != test.want {
			t.Errorf("%s\n got %s\nwant %s", test.source, got, test.want)
		}
	}
}
