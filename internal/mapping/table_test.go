package mapping

import (
	"testing"

	"gopkg.in/yaml.v3"
)

func TestParseTable(t *testing.T) {
	for text, want := range map[string]Table{
		"users": {"public", "users"}, "app.users": {"app", "users"}, `"My Schema"."T"`: {"My Schema", "T"}, `"a.b"`: {"public", "a.b"},
		"My Schema.T": {"My Schema", "T"}, // as Table.String prints it
	} {
		if got := ParseTable(text); got != want {
			t.Errorf("%s: got %+v, want %+v", text, got, want)
		}
	}
}

// A parent is named by its table as the configuration writes tables.
func TestParentInQuotes(t *testing.T) {
	var item, key yaml.Node
	if err := yaml.Unmarshal([]byte(`{id: $id}`), &item); err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal([]byte(`$parent`), &key); err != nil {
		t.Fatal(err)
	}
	parse := func(src Source) *Template {
		src.Sink, src.Item = "crm", *item.Content[0]
		template, problems := Parse(src, Spec{})
		if err := problems.Err(); err != nil {
			t.Fatal(err)
		}
		return template
	}
	root := parse(Source{Name: "root", Table: Table{"My Schema", "T.x"}})
	child := parse(Source{
		Name: "child", Path: "mappings[1]", Table: Table{"public", "c"}, Parents: []Parent{{Mapping: `"My Schema"."T.x"`, Key: *key.Content[0]}},
	})
	if err := Link([]*Template{root, child}).Err(); err != nil {
		t.Error(err)
	}
	if child.parentScopes[0] != root.scope() {
		t.Errorf("the parent's keys begin with %q, want %q", child.parentScopes[0], root.scope())
	}
}
