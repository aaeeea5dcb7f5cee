package mapping

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/tools/txtar"
	"gopkg.in/yaml.v3"

	"github.com/cdcsync/cdcsync/internal/cdc"
	"github.com/cdcsync/cdcsync/internal/shape"
)

// FuzzTemplate reads any YAML as an item: it is refused with problems, or what it renders is JSON or refused with a RejectError.
func FuzzTemplate(f *testing.F) {
	for _, pattern := range []string{"testdata/items/*.txtar", "testdata/problems/*.txtar"} {
		paths, _ := filepath.Glob(pattern)
		for _, path := range paths {
			archive, err := txtar.ParseFile(path)
			if err != nil {
				f.Fatal(err)
			}
			for _, file := range archive.Files {
				if _, item, ok := strings.Cut(string(file.Data), "item:"); ok && file.Name == "mapping.yaml" {
					f.Add("free", strings.TrimLeft(item, "\n"))
					f.Add("fanbase_batch", strings.TrimLeft(item, "\n"))
				}
			}
		}
	}
	rel := relationOf(f, benchTable)
	ch := changesOf(f, rel, benchRow)[0]
	f.Fuzz(func(t *testing.T, sink, item string) {
		var node yaml.Node
		if yaml.Unmarshal([]byte(item), &node) != nil || len(node.Content) == 0 {
			return
		}
		src := Source{File: "config.yaml", Path: "mappings[0]", Name: "fuzz", Table: Table{"public", "users"}, Item: *node.Content[0]}
		tmpl, problems := Parse(src, specs[sink])
		if tmpl == nil {
			if problems.Err() == nil {
				t.Fatal("neither a template nor a problem")
			}
			return
		}
		plan, problems := tmpl.Compile(rel)
		if plan == nil {
			if problems.Err() == nil {
				t.Fatal("neither a plan nor a problem")
			}
			return
		}
		var route Route
		if err := plan.Route(&route, ch); err != nil {
			t.Fatal(err)
		}
		for i := range route.Parts {
			if part := &route.Parts[i]; part.Reject == nil {
				renderFuzzed(t, plan, ch, part)
			}
		}
	})
}

func renderFuzzed(t *testing.T, plan *Plan, ch *cdc.Change, part *Part) {
	t.Helper()
	body, err := plan.Append(nil, ch, part, nil)
	if _, rejected := errors.AsType[*RejectError](err); err != nil && !rejected {
		t.Fatalf("%T: %v", err, err)
	}
	if err == nil && !json.Valid(body) {
		t.Fatalf("not JSON: %s", body)
	}
}

// FuzzValue renders any bytes as any type: the result is JSON or there is an error, and expressions read what is rendered.
func FuzzValue(f *testing.F) {
	data, err := os.ReadFile(typesFile)
	if err != nil {
		f.Fatal(err)
	}
	types := map[string]*cdc.Type{}
	for line := range strings.Lines(string(data)) {
		parts := strings.SplitN(strings.TrimSuffix(line, "\n"), "\t", 3)
		if strings.Contains(parts[0], "json") {
			continue // json is passed through as Postgres has checked it
		}
		types[parts[0]] = typeOf(f, parts[0])
		f.Add(parts[0], []byte(parts[2]))
	}
	f.Fuzz(func(t *testing.T, name string, text []byte) {
		typ, ok := types[name]
		if !ok {
			return
		}
		for _, times := range []shape.Times{shape.TimesUnixMilli, shape.TimesISO, timesDateTime} {
			c := newCodec(typ, times)
			got, err := c.append([]byte("x"), text)
			if err == nil && !json.Valid(got[1:]) {
				t.Fatalf("%s %q gives %s, which is not JSON", name, text, got)
			}
			if _, decodeErr := c.decode(text); err == nil && decodeErr != nil && c.form != formInteger && c.form != formFloat {
				t.Fatalf("%s %q is rendered as %s, and cannot be read: %v", name, text, got, decodeErr)
			}
		}
	})
}
