package mapping

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"
	"gopkg.in/yaml.v3"

	"github.com/cdcsync/cdcsync/internal/cdc"
	"github.com/cdcsync/cdcsync/internal/problem"
	"github.com/cdcsync/cdcsync/internal/shape"
)

var update = flag.Bool("update", false, "write the golden files")

// Specs that stand in for the sinks' own: internal/sinks has the real ones.
var specs = map[string]Spec{
	"free": {
		Item: shape.Item{Root: &shape.Node{Kind: shape.Any}, Times: shape.TimesISO},
		On:   []cdc.Op{cdc.OpInsert, cdc.OpUpdate, cdc.OpDelete}, Deletes: DeleteAsItem, Coalesce: CoalesceLatest,
	},
	"stopchurn": {
		Leave: LeaveDelete,
		Item: shape.Item{Times: shape.TimesUnixMilli, Identity: [][]string{{"brandId"}, {"tableName"}, {"data", "id"}}, Root: object(
			required("brandId", &shape.Node{Kind: shape.Integer}),
			required("tableName", &shape.Node{Kind: shape.String, Format: shape.FormatNoBlank}),
			required("data", &shape.Node{Kind: shape.Object, Open: true}),
			required("createdAt", &shape.Node{Kind: shape.Integer}),
			required("updatedAt", &shape.Node{Kind: shape.Integer}),
		)},
		On: []cdc.Op{cdc.OpInsert, cdc.OpUpdate, cdc.OpDelete}, Deletes: DeleteAsItem, Coalesce: CoalesceNone, FullRows: true,
	},
	"fanbase_queue": {
		Leave: LeaveKeep,
		Item: shape.Item{Times: shape.TimesISO, Identity: [][]string{{"id"}}, Root: object(
			required("id", &shape.Node{Kind: shape.String, Format: shape.FormatNoBlank}),
			optional("cpf", &shape.Node{Kind: shape.String, Nullable: true}),
		)},
		On: []cdc.Op{cdc.OpInsert, cdc.OpUpdate}, Deletes: DeleteAsItem, Coalesce: CoalesceLatest,
	},
	"fanbase_batch": {
		Leave: LeaveKeep,
		Item: shape.Item{
			Times: shape.TimesISO, Root: fanbaseShape(),
			People: &shape.Tagged{List: "numbers", Tag: "numberType", Value: "number", Tags: []string{"1", "4"}},
		},
		On: []cdc.Op{cdc.OpInsert, cdc.OpUpdate}, Deletes: DeleteAsItem, Coalesce: CoalesceLatest,
	},
	"fanatics_approvals": {
		Leave: LeaveDelete,
		Item: shape.Item{Times: shape.TimesISO, Identity: [][]string{{"account_tenant_fanid"}}, Root: object(
			required("account_tenant_fanid", &shape.Node{Kind: shape.String, Format: shape.FormatUUID}),
			required("invite_approval_map", &shape.Node{Kind: shape.Map, Key: shape.FormatUUID, Elem: &shape.Node{Kind: shape.Boolean}}),
		)},
		On: []cdc.Op{cdc.OpInsert, cdc.OpUpdate, cdc.OpDelete}, Deletes: DeleteWithdraw, Coalesce: CoalesceLatest,
	},
}

func object(fields ...shape.Field) *shape.Node {
	return &shape.Node{Kind: shape.Object, Fields: fields}
}

func required(name string, n *shape.Node) shape.Field {
	return shape.Field{Name: name, Required: true, Node: n}
}

func optional(name string, n *shape.Node) shape.Field { return shape.Field{Name: name, Node: n} }

func between(least, most float64) *shape.Node {
	return &shape.Node{Kind: shape.Integer, Min: &least, Max: &most}
}

func fanbaseShape() *shape.Node {
	text := &shape.Node{Kind: shape.String}
	number := &shape.Node{Kind: shape.Number}
	moment := &shape.Node{Kind: shape.String, Format: shape.FormatDateTime}
	list := func(elem *shape.Node) *shape.Node { return &shape.Node{Kind: shape.Array, Elem: elem} }
	root := object(
		required("data", object(
			required("identity", &shape.Node{Kind: shape.Integer, Enum: []string{"0"}}),
			required("name1", &shape.Node{Kind: shape.String, Format: shape.FormatNoBlank}),
			optional("gender", &shape.Node{Kind: shape.String, Nullable: true, Enum: []string{`"M"`, `"F"`, `"O"`}}),
			optional("socialName", text),
			required("birthday", between(1, 31)), required("birthMonth", between(1, 12)), required("birthYear", between(1000, 9999)),
			optional("nationalityIso3", text),
		)),
		required("numbers", &shape.Node{Kind: shape.Array, MinItems: 1, Elem: object(
			required("numberType", &shape.Node{Kind: shape.Integer, Enum: []string{"1", "3", "4"}}),
			required("number", &shape.Node{Kind: shape.String, Format: shape.FormatNoBlank}),
			optional("verified", &shape.Node{Kind: shape.Integer, Enum: []string{"0", "1"}}),
		)}),
		optional("sysValues", list(object(required("key", text), required("value", text)))),
		optional("addresses", object(
			required("addressType", between(1, 2)), required("add1", text), optional("add2", text), optional("number", number),
			required("add3", text), required("zip", text), required("city", text),
			required("state", &shape.Node{Kind: shape.String, MaxLength: 2}), required("iso3", text),
		)),
		optional("memberships", list(object(
			required("externalId", text), required("status", text), required("data", moment), optional("cancelamento", moment),
			required("codigoCliente", text), required("plano", text), optional("planoCode", text), optional("parcelas", number),
			optional("validade", moment), optional("origem", text), optional("ativacao", moment), optional("tipoVigencia", text),
			optional("formaPagamento", text),
		))),
		optional("optins", list(object(
			required("optinCode", text), required("optinDesc", text), required("optinDate", moment), optional("optinCancelDate", moment),
		))),
		optional("pwd", text), optional("pwdhash", text),
	)
	root.Exclusive = []string{"pwd", "pwdhash"}
	return root
}

// relationOf reads a table: name, identity (default, full, nothing, index), and columns as "name type [pk] [identity]".
func relationOf(tb testing.TB, source string) *cdc.Relation {
	tb.Helper()
	var def struct {
		Table    string
		Identity string
		Columns  []string
	}
	if err := yaml.Unmarshal([]byte(source), &def); err != nil {
		tb.Fatal(err)
	}
	table := ParseTable(def.Table)
	rel := &cdc.Relation{OID: 16384, Schema: table.Schema, Name: table.Name, Identity: 'd'}
	if def.Identity != "" {
		rel.Identity = def.Identity[0]
	}
	for i, column := range def.Columns {
		name, rest, _ := strings.Cut(column, " ")
		if quoted, after, ok := strings.Cut(strings.TrimPrefix(column, `"`), `" `); ok && column[0] == '"' {
			name, rest = quoted, after
		}
		typeName, pk := strings.CutSuffix(rest, " pk")
		typeName, identity := strings.CutSuffix(typeName, " identity")
		if pk {
			rel.PrimaryKey = append(rel.PrimaryKey, i)
		}
		identity = identity || pk && rel.Identity == 'd' || rel.Identity == 'f'
		rel.Columns = append(rel.Columns, cdc.Column{Name: name, Identity: identity, TypeMod: -1, Type: typeOf(tb, typeName)})
	}
	return rel
}

// typeOf reads int4, text[], enum, domain:int4, range:int4, multirange:int4 and row(a int4, b text).
func typeOf(tb testing.TB, name string) *cdc.Type {
	tb.Helper()
	if elem, ok := strings.CutSuffix(name, "[]"); ok {
		delimiter := byte(',')
		if elem == "box" {
			delimiter = ';'
		}
		return &cdc.Type{Name: "_" + elem, Kind: cdc.TypeArray, Elem: typeOf(tb, elem), Delimiter: delimiter}
	}
	if fields, ok := strings.CutPrefix(name, "row("); ok {
		composite := &cdc.Type{Name: "composite", Kind: cdc.TypeComposite}
		for field := range strings.SplitSeq(strings.TrimSuffix(fields, ")"), ", ") {
			fieldName, fieldType, _ := strings.Cut(field, " ")
			composite.Fields = append(composite.Fields, cdc.Field{Name: fieldName, Type: typeOf(tb, fieldType)})
		}
		return composite
	}
	if kind, elem, ok := strings.Cut(name, ":"); ok {
		kinds := map[string]cdc.TypeKind{"domain": cdc.TypeDomain, "range": cdc.TypeRange, "multirange": cdc.TypeMultirange}
		return &cdc.Type{Name: elem + kind, Kind: kinds[kind], Elem: typeOf(tb, elem)}
	}
	if name == "enum" {
		return &cdc.Type{Name: "mood", Kind: cdc.TypeEnum}
	}
	return &cdc.Type{Name: name, Kind: cdc.TypeBase}
}

// sourceOf reads a mapping as the configuration gives it.
func sourceOf(tb testing.TB, text string) (src Source, sink string) {
	tb.Helper()
	var def struct {
		Name     string
		Table    string
		Sink     string
		On       []string
		When     yaml.Node
		Key      yaml.Node
		Coalesce string
		Leave    string
		Item     yaml.Node
		Lookups  yaml.Node
		Refresh  *struct {
			Table, Key string
			By         yaml.Node
		}
		Parents []struct {
			Mapping string
			Key     yaml.Node
		}
	}
	if err := yaml.Unmarshal([]byte(text), &def); err != nil {
		tb.Fatal(err)
	}
	src = Source{
		File: "config.yaml", Path: "mappings[0]", Name: def.Name, Table: ParseTable(def.Table), Sink: def.Sink,
		When: def.When, Key: def.Key, Item: def.Item,
	}
	if src.Name == "" {
		src.Name = def.Table
	}
	src.Leave = map[string]Leave{"delete": LeaveDelete, "keep": LeaveKeep}[def.Leave]
	for _, name := range def.On {
		op, _ := cdc.ParseOp(name)
		src.On = append(src.On, op)
	}
	for i := 0; i+1 < len(def.Lookups.Content); i += 2 {
		var l struct {
			Key  yaml.Node
			SQL  string
			Many bool
		}
		if err := def.Lookups.Content[i+1].Decode(&l); err != nil {
			tb.Fatal(err)
		}
		src.Lookups = append(src.Lookups, Lookup{Name: def.Lookups.Content[i].Value, Key: l.Key, SQL: l.SQL, Many: l.Many})
	}
	if def.Refresh != nil {
		src.Refresh = &Refresh{Table: ParseTable(def.Refresh.Table), Key: def.Refresh.Key, By: def.Refresh.By}
	}
	for _, p := range def.Parents {
		src.Parents = append(src.Parents, Parent{Mapping: p.Mapping, Key: p.Key})
	}
	return src, def.Sink
}

// changesOf reads changes: a list of {insert|read: row}, {delete: row}, {update: {old: row, new: row}}, {truncate: } with a
// row's values as Postgres prints them. !unchanged stands for a TOASTed value that was not sent; a column that is not named is absent.
func changesOf(tb testing.TB, rel *cdc.Relation, source string) (changes []*cdc.Change) {
	tb.Helper()
	var list []map[string]yaml.Node
	if err := yaml.Unmarshal([]byte(source), &list); err != nil {
		tb.Fatal(err)
	}
	for i, entry := range list {
		for name, node := range entry {
			op, ok := cdc.ParseOp(strings.TrimSuffix(name, " key"))
			if !ok {
				tb.Fatalf("change %d: unknown operation %q", i, name)
			}
			ch := &cdc.Change{
				Op: op, Relation: rel, Position: cdc.Position{Commit: 0x16B374D848, Ordinal: uint32(i + 1)},
				CommitTime: time.Date(2023, 9, 10, 14, 54, 35, 0, time.UTC),
			}
			ch.OldIsKey = strings.HasSuffix(name, " key")
			switch op {
			case cdc.OpDelete:
				ch.Old = tupleOf(tb, rel, &node)
			case cdc.OpUpdate:
				var both struct{ Old, New yaml.Node }
				if err := node.Decode(&both); err != nil {
					tb.Fatal(err)
				}
				ch.New = tupleOf(tb, rel, &both.New)
				if both.Old.Kind != 0 {
					ch.Old = tupleOf(tb, rel, &both.Old)
				}
			case cdc.OpTruncate:
			default:
				ch.New = tupleOf(tb, rel, &node)
			}
			changes = append(changes, ch)
		}
	}
	return changes
}

func tupleOf(tb testing.TB, rel *cdc.Relation, node *yaml.Node) []cdc.Value {
	tb.Helper()
	tuple := make([]cdc.Value, len(rel.Columns))
	for i := 0; i+1 < len(node.Content); i += 2 {
		column := rel.Column(node.Content[i].Value)
		if column < 0 {
			tb.Fatalf("no column %q", node.Content[i].Value)
		}
		switch v := node.Content[i+1]; v.Tag {
		case "!unchanged":
			tuple[column] = cdc.Value{Kind: cdc.Unchanged}
		case "!!null":
			tuple[column] = cdc.Value{Kind: cdc.Null}
		default:
			tuple[column] = cdc.Value{Kind: cdc.Text, Data: []byte(v.Value)}
		}
	}
	return tuple
}

// lookupsOf reads lookup results: a list, one for each lookup, of {columns: ["name type"], rows: [[value]]}.
func lookupsOf(tb testing.TB, source string) *Env {
	tb.Helper()
	var list []struct {
		Columns []string
		Rows    [][]yaml.Node
	}
	if err := yaml.Unmarshal([]byte(source), &list); err != nil {
		tb.Fatal(err)
	}
	env := &Env{}
	for _, entry := range list {
		var rows Rows
		for _, column := range entry.Columns {
			name, typeName, _ := strings.Cut(column, " ")
			rows.Columns = append(rows.Columns, cdc.Field{Name: name, Type: typeOf(tb, typeName)})
		}
		for _, row := range entry.Rows {
			var values []cdc.Value
			for _, v := range row {
				if v.Tag == "!!null" {
					values = append(values, cdc.Value{Kind: cdc.Null})
				} else {
					values = append(values, cdc.Value{Kind: cdc.Text, Data: []byte(v.Value)})
				}
			}
			rows.Rows = append(rows.Rows, values)
		}
		env.Lookups = append(env.Lookups, rows)
	}
	return env
}

// planOf compiles a mapping that must have no problem.
func planOf(tb testing.TB, source string, rel *cdc.Relation) *Plan {
	tb.Helper()
	src, sink := sourceOf(tb, source)
	tmpl, problems := Parse(src, specs[sink])
	if err := problems.Err(); err != nil {
		tb.Fatal(err)
	}
	plan, problems := tmpl.Compile(rel)
	if err := problems.Err(); err != nil {
		tb.Fatal(err)
	}
	return plan
}

// TestGolden renders changes: testdata/*.txtar has a table, a mapping, changes and the items that they give.
func TestGolden(t *testing.T) {
	golden(t, "testdata/items/*.txtar", "items", func(t *testing.T, files map[string]string) string {
		t.Helper()
		rel := relationOf(t, files["table.yaml"])
		plan := planOf(t, files["mapping.yaml"], rel)
		env := lookupsOf(t, files["lookups.yaml"])
		var out strings.Builder
		var route Route
		for _, ch := range changesOf(t, rel, files["changes.yaml"]) {
			fmt.Fprintf(&out, "# %s\n", ch.Op)
			if missing := plan.Missing(nil, ch); len(missing) > 0 {
				fmt.Fprintf(&out, "to read back: columns %v\n", missing)
			}
			if err := plan.Route(&route, ch); err != nil {
				t.Fatal(err)
			}
			switch {
			case route.Left:
				out.WriteString("left\n")
			case len(route.Parts) == 0:
				out.WriteString("filtered\n")
			}
			for i := range route.Parts {
				writePart(&out, plan, ch, &route.Parts[i], env)
			}
		}
		checkVendor(t, files["vendor.json"], out.String())
		return out.String()
	})
}

// checkVendor compares with the items of the vendor's own page, white space aside.
func checkVendor(t *testing.T, page, got string) {
	t.Helper()
	for d := json.NewDecoder(strings.NewReader(page)); d.More(); {
		var item json.RawMessage
		if err := d.Decode(&item); err != nil {
			t.Fatal(err)
		}
		var compact bytes.Buffer
		if err := json.Compact(&compact, item); err != nil {
			t.Fatal(err)
		}
		if !slices.Contains(strings.Split(got, "\n"), compact.String()) {
			t.Errorf("the vendor's own example is not among the items: %s", &compact)
		}
	}
}

func writePart(out *strings.Builder, plan *Plan, ch *cdc.Change, part *Part, env *Env) {
	fmt.Fprintf(out, "%s %s key %q", part.Op, plan.AppendID(nil, ch, part), part.Key)
	for _, order := range part.Orders {
		fmt.Fprintf(out, " order %q", order)
	}
	for _, parent := range part.Parents {
		fmt.Fprintf(out, " parent %q", parent)
	}
	for _, key := range part.Lookups {
		fmt.Fprintf(out, " lookup %q", key)
	}
	out.WriteByte('\n')
	switch {
	case part.Reject != nil:
		fmt.Fprintf(out, "rejected: %v\n", part.Reject)
	case part.Refresh != nil:
		fmt.Fprintf(out, "send again: %s\n", part.Refresh)
	default:
		body, err := plan.Append([]byte("x"), ch, part, env)
		if errors.Is(err, ErrNothing) {
			out.WriteString("nothing to tell\n")
			return
		}
		if err != nil {
			fmt.Fprintf(out, "rejected: %v\n", err)
			return
		}
		if !json.Valid(body[1:]) {
			out.WriteString("NOT JSON ")
		}
		fmt.Fprintf(out, "%s\n", body[1:])
	}
}

// TestProblems reports mistakes: testdata/problems/*.txtar has a mapping, perhaps a table, and what is said about it.
func TestProblems(t *testing.T) {
	golden(t, "testdata/problems/*.txtar", "problems", func(t *testing.T, files map[string]string) string {
		t.Helper()
		src, sink := sourceOf(t, files["mapping.yaml"])
		tmpl, problems := Parse(src, specs[sink])
		if tmpl != nil {
			templates := []*Template{tmpl}
			if other, ok := files["other.yaml"]; ok {
				src, sink := sourceOf(t, other)
				o, more := Parse(src, specs[sink])
				templates, problems = append(templates, o), append(problems, more...)
			}
			problems = append(problems, Link(templates)...)
		}
		if table, ok := files["table.yaml"]; ok && tmpl != nil {
			_, more := tmpl.Compile(relationOf(t, table))
			problems = append(problems, more...)
		}
		return describeProblems(problems)
	})
}

func describeProblems(problems problem.List) string {
	if err := problems.Err(); err != nil {
		return err.Error() + "\n"
	}
	return "none\n"
}

// golden compares what run makes of each archive with the archive's last file, or writes it.
func golden(t *testing.T, pattern, last string, run func(t *testing.T, files map[string]string) string) {
	t.Helper()
	paths, err := filepath.Glob(pattern)
	if err != nil || len(paths) == 0 {
		t.Fatalf("no golden files at %s: %v", pattern, err)
	}
	for _, path := range paths {
		name := strings.TrimSuffix(filepath.Base(path), ".txtar")
		t.Run(name, func(t *testing.T) {
			archive, err := txtar.ParseFile(path)
			if err != nil {
				t.Fatal(err)
			}
			files := map[string]string{}
			for _, f := range archive.Files {
				files[f.Name] = string(f.Data)
			}
			got := run(t, files)
			if !*update {
				if diff := cmp.Diff(files[last], got); diff != "" {
					t.Errorf("-want +got:\n%s", diff)
				}
				return
			}
			setFile(archive, last, got)
			if err := os.WriteFile(path, txtar.Format(archive), 0o644); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func setFile(archive *txtar.Archive, name, data string) {
	for i := range archive.Files {
		if archive.Files[i].Name == name {
			archive.Files[i].Data = []byte(data)
			return
		}
	}
	archive.Files = append(archive.Files, txtar.File{Name: name, Data: []byte(data)})
}
