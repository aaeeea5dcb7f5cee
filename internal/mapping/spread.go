package mapping

import (
	"fmt"
	"slices"
	"strings"
	"unicode"

	"gopkg.in/yaml.v3"

	"github.com/cdcsync/cdcsync/internal/cdc"
	"github.com/cdcsync/cdcsync/internal/problem"
)

// spread is "*": every column of the row as a field.
type spread struct {
	yaml   *yaml.Node
	path   string
	except []*yaml.Node
	only   []*yaml.Node
	style  string
	rename []*yaml.Node // column, name, column, name …
}

var (
	spreadKeys = []string{"except", "only", "case", "rename"}
	caseStyles = []string{"none", "camel", "pascal", "snake", "kebab"}
)

func (p *templateParser) spread(y *yaml.Node, path string) *spread {
	s := &spread{yaml: y, path: path, style: "none"}
	if y.Kind == yaml.AliasNode {
		y = y.Alias
	}
	if y.Kind == yaml.ScalarNode && (y.ShortTag() == "!!null" || y.Value == "true") {
		return s
	}
	if y.Kind != yaml.MappingNode {
		p.report(y, path, "must be an object", `"*": {except: [password], case: camel}`)
		return s
	}
	for i := 0; i+1 < len(y.Content); i += 2 {
		p.spreadKey(s, y.Content[i], y.Content[i+1])
	}
	if len(s.except) > 0 && len(s.only) > 0 {
		p.report(y, path, "except and only exclude one another", "")
	}
	return s
}

func (p *templateParser) spreadKey(s *spread, key, value *yaml.Node) {
	path := s.path + "." + key.Value
	switch key.Value {
	case "except":
		s.except = p.columnList(value, path)
	case "only":
		s.only = p.columnList(value, path)
	case "case":
		s.style = value.Value
		if !slices.Contains(caseStyles, value.Value) {
			p.report(value, path, fmt.Sprintf("unknown case %q", value.Value), problem.Nearest(value.Value, caseStyles))
		}
	case "rename":
		if value.Kind != yaml.MappingNode {
			p.report(value, path, "must be an object of column: name", "rename: {usr_nm: userName}")
			return
		}
		s.rename = value.Content
	default:
		p.report(key, path, fmt.Sprintf("unknown key %q", key.Value), problem.Nearest(key.Value, spreadKeys))
	}
}

func (p *templateParser) columnList(y *yaml.Node, path string) []*yaml.Node {
	if y.Kind != yaml.SequenceNode {
		p.report(y, path, "must be a list of columns", "[password, notes]")
		return nil
	}
	return y.Content
}

// fields gives the columns of the relation as fields, without those that the template gives itself.
func (s *spread) fields(r *reporter, rel *cdc.Relation, n *templateNode) (fields []templateField) {
	names := columnNames(rel)
	for _, list := range [][]*yaml.Node{s.except, s.only} {
		for _, y := range list {
			s.column(r, y, names)
		}
	}
	renamed := map[string]string{}
	for i := 0; i+1 < len(s.rename); i += 2 {
		s.column(r, s.rename[i], names)
		renamed[s.rename[i].Value] = s.rename[i+1].Value
	}
	from := map[string]string{}
	for _, column := range names {
		if listed(s.except, column) || len(s.only) > 0 && !listed(s.only, column) {
			continue
		}
		name, ok := renamed[column]
		if !ok {
			name = inCase(column, s.style)
		}
		if slices.ContainsFunc(n.fields, func(f templateField) bool { return f.key == nil && f.spread == nil && f.name == name }) {
			continue // what is written wins
		}
		if other, twice := from[name]; twice {
			r.report(s.yaml, s.path, fmt.Sprintf("columns %s and %s both become %s", other, column, name), "rename one of them, or list it in except")
			continue
		}
		from[name] = column
		value := &templateNode{kind: templateColumn, yaml: s.yaml, path: n.path + "." + name, text: column}
		fields = append(fields, templateField{yaml: s.yaml, name: name, value: value})
	}
	return fields
}

func (s *spread) column(r *reporter, y *yaml.Node, names []string) {
	if !slices.Contains(names, y.Value) {
		r.report(y, s.path, fmt.Sprintf("unknown column %q", y.Value), problem.Nearest(y.Value, names))
	}
}

func listed(list []*yaml.Node, name string) bool {
	return slices.ContainsFunc(list, func(y *yaml.Node) bool { return y.Value == name })
}

// inCase writes a column's name in another style. Words are what underscores, hyphens, blanks and inner capitals separate.
func inCase(name, style string) string {
	if style == "none" {
		return name
	}
	words := wordsOf(name)
	for i, w := range words {
		if style == "pascal" || style == "camel" && i > 0 {
			runes := []rune(w)
			runes[0] = unicode.ToUpper(runes[0])
			words[i] = string(runes)
		}
	}
	separator := map[string]string{"snake": "_", "kebab": "-"}[style]
	return strings.Join(words, separator)
}

func wordsOf(name string) []string {
	var b strings.Builder
	var before rune
	for _, r := range name {
		if unicode.IsUpper(r) && (unicode.IsLower(before) || unicode.IsDigit(before)) {
			b.WriteByte(' ')
		}
		before = r
		if r == '_' || r == '-' {
			r = ' '
		}
		b.WriteRune(unicode.ToLower(r))
	}
	words := strings.Fields(b.String())
	if len(words) == 0 {
		return []string{name}
	}
	return words
}
