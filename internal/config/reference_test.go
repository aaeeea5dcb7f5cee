package config

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"gopkg.in/yaml.v3"
)

var update = flag.Bool("update", false, "rewrite the tables of docs/configuration.md")

// entry is a key wherever it stands, with its path: sinks.* is any sink, mappings[] any mapping.
type entry struct {
	path string
	key
	types    []SinkType // of the sinks that have it; nil outside of sinks
	defaults []string   // by type
}

// entries lists all keys in the order of the reference, each once.
func entries(t *testing.T) []*entry {
	t.Helper()
	var all []*entry
	at := map[string]*entry{}
	var walk func(s section, path string, typ SinkType)
	walk = func(s section, path string, typ SinkType) {
		for _, k := range s.keys() {
			e := at[path+k.name]
			if e == nil {
				e = &entry{path: path + k.name, key: k}
				at[e.path] = e
				all = slices.Insert(all, afterSiblings(all, path), e)
			}
			if typ != "" {
				e.types = append(e.types, typ)
				e.defaults = append(e.defaults, k.fallback)
			}
			switch v := k.value.(type) {
			case sectionValue:
				walk(v.section, path+k.name+".", typ)
			case optional[NATS]:
				walk(new(NATS), path+k.name+".", typ)
			case optional[Refresh]:
				walk(new(Refresh), path+k.name+".", typ)
			case dictionary[Sink]:
				for _, typ := range SinkTypes() {
					walk(typedSink{&Sink{Type: typ}}, path+k.name+".*.", typ)
				}
			case dictionary[Lookup]:
				walk(new(Lookup), path+k.name+".*.", typ)
			case sections[Mapping]:
				walk(new(Mapping), path+k.name+"[].", typ)
			case sections[Parent]:
				walk(new(Parent), path+k.name+"[].", typ)
			}
		}
	}
	walk(file{&Config{}}, "", "")
	return all
}

// afterSiblings is where the next key below path belongs: behind all that is there already.
func afterSiblings(all []*entry, path string) int {
	for i, e := range slices.Backward(all) {
		if strings.HasPrefix(e.path+".", path) {
			return i + 1
		}
	}
	return len(all)
}

// TestExampleHasEveryKey reads the example with its alternatives switched on, and compares its keys and values with the table of keys.
func TestExampleHasEveryKey(t *testing.T) {
	data, err := os.ReadFile(examplePath)
	if err != nil {
		t.Fatal(err)
	}
	data = regexp.MustCompile(`(?m)^( *)#([a-z_]+:)`).ReplaceAll(data, []byte("$1$2"))
	root, problems := parseTree("config.example.yaml", data)
	if problems != nil {
		t.Fatal(problems)
	}
	types := map[string]SinkType{}
	found := map[string][]string{} // values by path
	var walk func(n *yaml.Node, path string)
	walk = func(n *yaml.Node, path string) {
		found[path] = append(found[path], n.Value)
		if strings.HasSuffix(path, "].item") {
			return
		}
		for i := 0; n.Kind == yaml.MappingNode && i < len(n.Content); i += 2 {
			name, value := n.Content[i].Value, n.Content[i+1]
			if path == "sinks" {
				types[name] = SinkType(value.Content[1].Value)
				name = "* " + value.Content[1].Value
			}
			if strings.HasSuffix(path, ".lookups") {
				name = "*"
			}
			walk(value, strings.TrimPrefix(path+"."+name, "."))
		}
		for _, item := range n.Content {
			if n.Kind == yaml.SequenceNode && item.Kind == yaml.MappingNode {
				walk(item, path+"[]")
			}
		}
	}
	walk(root, "")
	known := map[string]bool{"": true, "mappings[]": true, "mappings[].parents[]": true, "mappings[].lookups.*": true}
	for _, typ := range SinkTypes() {
		known["sinks.* "+string(typ)] = true
	}
	for _, e := range entries(t) {
		if e.types == nil {
			known[e.path] = true
			checkExample(t, e.path, found[e.path], e.fallback)
		}
		for i, typ := range e.types {
			path := strings.Replace(e.path, "sinks.*", "sinks.* "+string(typ), 1)
			known[path] = true
			checkExample(t, path, found[path], e.defaults[i])
		}
	}
	for path := range found {
		if !known[path] {
			t.Errorf("the example has %s, which is no key", path)
		}
	}
}

func checkExample(t *testing.T, path string, values []string, fallback string) {
	t.Helper()
	switch {
	case values == nil:
		t.Errorf("the example lacks %s", path)
	case fallback != "" && !slices.Contains(values, fallback) && path != "mappings[].lookups.*.many":
		t.Errorf("the example has %s: %s, and the default is %s", path, values[0], fallback)
	}
}

// TestEveryDefaultIsValid decodes each default through its own key.
func TestEveryDefaultIsValid(t *testing.T) {
	for _, e := range entries(t) {
		if e.doc == "" || !strings.HasSuffix(e.doc, ".") && !strings.Contains(e.doc, ": `") {
			t.Errorf("%s: doc %q is no sentence", e.path, e.doc)
		}
		for _, written := range append(e.defaults, e.fallback) {
			if written == "" {
				continue
			}
			c := decoder{file: "x", problems: nil, places: map[place]*yaml.Node{}}
			root, problems := parseTree("x", []byte(e.name+": "+written))
			c.problems = &problems
			c.value(e.key, root.Content[1], e.path)
			if problems != nil {
				t.Errorf("%s: default %s: %v", e.path, written, problems)
			}
		}
	}
}

// The reference's tables stand between <!-- keys PREFIX --> and <!-- end -->: the keys below PREFIX, but those that have a table of
// their own. The PREFIX of the top is a dot.
var tableMark = regexp.MustCompile(`(?s)<!-- keys (\S*) -->\n.*?<!-- end -->`)

func TestReferenceTables(t *testing.T) {
	const path = "../../docs/configuration.md"
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var prefixes []string
	for _, match := range tableMark.FindAllSubmatch(data, -1) {
		prefixes = append(prefixes, string(match[1]))
	}
	all := entries(t)
	seen := map[*entry]bool{}
	want := tableMark.ReplaceAllFunc(data, func(mark []byte) []byte {
		prefix := string(tableMark.FindSubmatch(mark)[1])
		return referenceTable(prefix, all, prefixes, seen)
	})
	for _, e := range all {
		if !seen[e] && !slices.Contains(prefixes, e.path) {
			t.Errorf("no table has %s", e.path)
		}
	}
	if *update {
		if err := os.WriteFile(path, want, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if string(want) != string(data) {
		t.Errorf("the tables of %s are not those of the keys: go test ./internal/config -run TestReferenceTables -update", path)
	}
}

func referenceTable(prefix string, all []*entry, prefixes []string, seen map[*entry]bool) []byte {
	var b strings.Builder
	fmt.Fprintf(&b, "<!-- keys %s -->\n| Key | Type | Default | Meaning |\n|---|---|---|---|\n", prefix)
	for _, e := range all {
		name, below := strings.CutPrefix(e.path, prefix+".")
		if prefix == "." {
			name, below = e.path, !strings.Contains(e.path, ".")
		}
		elsewhere := slices.ContainsFunc(prefixes, func(p string) bool {
			return len(p) > len(prefix) && strings.HasPrefix(e.path, p+".")
		})
		if !below || elsewhere {
			continue
		}
		seen[e] = true
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s%s |\n", name, strings.ReplaceAll(e.value.kind(), "|", "\\|"), e.defaultText(), e.onlyText(), e.doc)
	}
	b.WriteString("<!-- end -->")
	return []byte(b.String())
}

// defaultText is the default, with the types where they differ.
func (e *entry) defaultText() string {
	if e.required {
		if e.twin != "" {
			return "**required**, or `" + e.twin + "`"
		}
		return "**required**"
	}
	distinct := slices.Compact(slices.Sorted(slices.Values(e.defaults)))
	switch {
	case len(distinct) > 1:
		var parts []string
		for i, typ := range e.types {
			parts = append(parts, fmt.Sprintf("`%s` %s", e.defaults[i], typ))
		}
		return strings.Join(parts, ", ")
	case e.fallback != "":
		return "`" + e.fallback + "`"
	}
	return e.derived
}

// onlyText says which types have the key, where not all do.
func (e *entry) onlyText() string {
	if e.types == nil || len(e.types) == len(SinkTypes()) {
		return ""
	}
	return "*" + strings.Join(typeNames(e.types), ", ") + ".* "
}

func TestSchemasAreCompleteJSON(t *testing.T) {
	for _, document := range [][]byte{Schema(), MappingsSchema()} {
		var root struct {
			Properties map[string]struct{ Description string }
		}
		if err := json.Unmarshal(document, &root); err != nil {
			t.Fatal(err)
		}
		if root.Properties["mappings"].Description == "" {
			t.Errorf("no description of mappings in %.200s", document)
		}
	}
	for _, e := range entries(t) {
		if !strings.Contains(string(Schema()), fmt.Sprintf("%q: {", e.name)) {
			t.Errorf("the schema lacks %s", e.path)
		}
	}
}
