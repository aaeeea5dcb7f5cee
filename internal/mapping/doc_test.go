package mapping

import (
	"os"
	"strings"
	"testing"

	"gopkg.in/yaml.v3"
)

// TestDocumentExamples reads every mapping of docs/mapping.md.
func TestDocumentExamples(t *testing.T) {
	doc, err := os.ReadFile(mappingDoc)
	if err != nil {
		t.Fatal(err)
	}
	types := map[string]string{"crm": "stopchurn", "registry": "fanbase_batch"}
	read := 0
	for _, block := range strings.Split(string(doc), "```yaml\n")[1:] {
		block, _, _ = strings.Cut(block, "```")
		list := strings.TrimPrefix(block, "mappings:\n")
		if !strings.HasPrefix(strings.TrimSpace(list), "- table:") {
			continue
		}
		var mappings []yaml.Node
		if err := yaml.Unmarshal([]byte(list), &mappings); err != nil {
			t.Fatalf("%v in\n%s", err, block)
		}
		for i := range mappings {
			text, err := yaml.Marshal(&mappings[i])
			if err != nil {
				t.Fatal(err)
			}
			src, sink := sourceOf(t, string(text))
			if src.Item.Kind == 0 && src.Refresh == nil {
				continue // shows another part of a mapping
			}
			if _, problems := Parse(src, specs[types[sink]]); problems.Err() != nil {
				t.Errorf("%v in\n%s", problems.Err(), block)
			}
			read++
		}
	}
	if read < 3 {
		t.Errorf("%d mappings in %s", read, mappingDoc)
	}
}
