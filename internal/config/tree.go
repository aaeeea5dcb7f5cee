package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"

	"gopkg.in/yaml.v3"

	"github.com/cdcsync/cdcsync/internal/problem"
)

// maxNodes bounds a file with its aliases written out, so that a few lines of nested aliases do not fill the memory.
const maxNodes = 200_000

// YAML has no plain ${NAME} within {…} and […], where people write it nonetheless. Braces of variables therefore pass the
// parser as two characters of a private-use area, which keeps all columns as they are.
const (
	openBrace, closeBrace = "\ue000", "\ue001"
)

var (
	variable = regexp.MustCompile(`\$\{([A-Za-z_][A-Za-z0-9_]*)(:-[^{}]*)?\}`)
	disguise = strings.NewReplacer("{", openBrace, "}", closeBrace)
	reveal   = strings.NewReplacer(openBrace, "{", closeBrace, "}")
)

// parseTree parses one document into plain nodes: no aliases, no merge keys, no duplicate keys, no unknown tags, so that whoever
// reads it sees only mappings, sequences and scalars. An empty document is nil.
func parseTree(file string, data []byte) (*yaml.Node, problem.List) {
	t := tree{file: file, open: map[*yaml.Node]bool{}, checked: map[*yaml.Node]bool{}}
	if bytes.ContainsAny(data, openBrace+closeBrace) {
		t.problem(nil, "", "the characters U+E000 and U+E001 are reserved", "write them as \"\\ue000\" and \"\\ue001\" in double quotes")
		return nil, t.problems
	}
	data = variable.ReplaceAllFunc(data, func(v []byte) []byte { return []byte(disguise.Replace(string(v))) })
	documents := yaml.NewDecoder(bytes.NewReader(data))
	var document, further yaml.Node
	if err := documents.Decode(&document); errors.Is(err, io.EOF) {
		return nil, nil
	} else if err != nil {
		return nil, problem.List{syntaxProblem(file, err)}
	}
	root := t.node(document.Content[0], "")
	if err := documents.Decode(&further); err == nil {
		t.problem(further.Content[0], "", "a second document begins here", "a file holds one; remove the line ---")
	} else if !errors.Is(err, io.EOF) {
		t.problems = append(t.problems, syntaxProblem(file, err))
	}
	if t.broken {
		return nil, t.problems
	}
	return root, t.problems
}

var syntaxLine = regexp.MustCompile(`^yaml: (?:line (\d+): )?(.*)$`)

// syntaxProblem places the parser's complaint. yaml.v3 counts lines from 0 where a whole construct is missing, and leaves line 1 out.
func syntaxProblem(file string, err error) *problem.Problem {
	p := &problem.Problem{File: file, Line: 1, Message: err.Error()}
	if match := syntaxLine.FindStringSubmatch(err.Error()); match != nil {
		p.Message = match[2]
		if line, err := strconv.Atoi(match[1]); err == nil {
			p.Line = line
		}
		if match[1] != "" && strings.HasPrefix(p.Message, "did not find expected") {
			p.Line++
		}
	}
	switch {
	case strings.Contains(p.Message, "tab character"), strings.Contains(p.Message, "cannot start any token"):
		p.Hint = "indent with spaces, and quote a value that begins with a special character"
	case strings.Contains(p.Message, "mapping values are not allowed"):
		p.Hint = "quote a value that contains a colon and a space"
	}
	p.Message = "not YAML: " + p.Message
	return p
}

// tree copies a parsed document into plain nodes.
type tree struct {
	file     string
	problems problem.List
	broken   bool                // beyond reading on
	nodes    int                 // copied so far
	open     map[*yaml.Node]bool // anchored nodes that are being copied, to find an alias within its own anchor
	checked  map[*yaml.Node]bool // nodes whose mistakes have been told, because an alias copies them again
}

func (t *tree) node(n *yaml.Node, path string) *yaml.Node {
	if n.Kind == yaml.AliasNode {
		return t.alias(n, path)
	}
	t.nodes++
	if t.nodes > maxNodes {
		if t.nodes == maxNodes+1 {
			t.problem(n, path, fmt.Sprintf("more than %d values with all aliases written out", maxNodes), "")
			t.broken = true
		}
		return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!null", Line: n.Line, Column: n.Column}
	}
	t.open[n] = true
	defer delete(t.open, n)
	t.checkTag(n, path)
	plain := &yaml.Node{Kind: n.Kind, Style: n.Style, Tag: n.Tag, Value: reveal.Replace(n.Value), Line: n.Line, Column: n.Column}
	if n.Kind == yaml.MappingNode {
		t.mapping(plain, n, path)
	}
	if n.Kind == yaml.SequenceNode {
		for i, item := range n.Content {
			plain.Content = append(plain.Content, t.node(item, fmt.Sprintf("%s[%d]", path, i)))
		}
	}
	t.checked[n] = true
	return plain
}

func (t *tree) alias(n *yaml.Node, path string) *yaml.Node {
	if t.open[n.Alias] {
		t.problem(n, path, fmt.Sprintf("alias *%s stands within what it stands for", n.Value), "")
		t.broken = true
		return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!null", Line: n.Line, Column: n.Column}
	}
	return t.node(n.Alias, path)
}

// mapping copies n's pairs into plain, then those of its merge keys that it does not have itself.
func (t *tree) mapping(plain, n *yaml.Node, path string) {
	first := map[string]*yaml.Node{}
	var merges []*yaml.Node
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		name := reveal.Replace(key.Value)
		switch {
		case key.Kind != yaml.ScalarNode:
			t.once(n, key, path, "a key must be plain text", "")
		case key.ShortTag() == "!!merge":
			merges = append(merges, value)
		case first[name] != nil:
			t.once(n, key, join(path, name), "duplicate key", fmt.Sprintf("it stands on line %d already", first[name].Line))
		default:
			first[name] = key
			plain.Content = append(plain.Content, t.node(key, join(path, name)), t.below(key, value, join(path, name)))
		}
	}
	for _, value := range merges {
		t.merge(plain, value, path, first)
	}
}

// below copies the value of a key. A mapping or list that begins on another line, or is an alias, is found where its key stands.
func (t *tree) below(key, value *yaml.Node, path string) *yaml.Node {
	plain := t.node(value, path)
	if plain.Kind != yaml.ScalarNode && plain.Line != key.Line {
		plain.Line, plain.Column = key.Line, key.Column
	}
	return plain
}

// merge adds the pairs of value, a mapping or a sequence of them, whose keys are not there yet.
func (t *tree) merge(plain, value *yaml.Node, path string, have map[string]*yaml.Node) {
	merged := t.node(value, join(path, "<<"))
	sources := []*yaml.Node{merged}
	if merged.Kind == yaml.SequenceNode {
		sources = merged.Content
	}
	for _, source := range sources {
		if source.Kind != yaml.MappingNode {
			t.problem(value, join(path, "<<"), "only mappings can be merged", "")
			continue
		}
		for i := 0; i < len(source.Content); i += 2 {
			if key := source.Content[i]; have[key.Value] == nil {
				have[key.Value] = key
				plain.Content = append(plain.Content, key, source.Content[i+1])
			}
		}
	}
}

func (t *tree) checkTag(n *yaml.Node, path string) {
	switch n.ShortTag() {
	case "!!map", "!!seq", "!!str", "!!int", "!!float", "!!bool", "!!null", "!!timestamp", "!!merge":
	default:
		t.once(n, n, path, "unknown tag "+n.Tag, "quote a value that begins with an exclamation mark")
	}
}

// once tells a mistake within owner the first time that it is copied.
func (t *tree) once(owner, at *yaml.Node, path, message, hint string) {
	if !t.checked[owner] {
		t.problem(at, path, message, hint)
	}
}

func (t *tree) problem(at *yaml.Node, path, message, hint string) {
	p := &problem.Problem{File: t.file, Path: path, Message: message, Hint: hint}
	if at != nil {
		p.Line, p.Column = at.Line, at.Column
	}
	t.problems = append(t.problems, p)
}

// join extends a path by a key, quoted when it would be read as something else.
func join(path, key string) string {
	if key == "" || strings.ContainsAny(key, ". []\"\n") {
		key = strconv.Quote(key)
	}
	if path == "" {
		return key
	}
	return path + "." + key
}
