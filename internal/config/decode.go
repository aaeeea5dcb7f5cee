package config

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"gopkg.in/yaml.v3"

	"github.com/cdcsync/cdcsync/internal/problem"
)

// key is one key of a section: all that decoding, the JSON Schema and the reference know about it.
type key struct {
	name     string
	value    value
	required bool
	fallback string // the default as one would write it; empty for none
	derived  string // the default in words, where it depends on something else
	doc      string // for the reference and for editors: sentences, in which `…` is code
	twin     string // the other key that says the same, of which only one may be written
	later    bool   // refused by name: understood, and not carried out yet
}

// section is a mapping with fixed keys.
type section interface {
	keys() []key
}

// value decodes one YAML value into the field that it is bound to.
type value interface {
	// decode reports what is wrong to d. It returns false when nothing was written after all, because variables without a value
	// left an empty text: then the default holds.
	decode(d *decoder, n *yaml.Node, path string) bool
	// kind is what the reference's type column says.
	kind() string
	// schema is the value's JSON Schema.
	schema() schema
}

// decoder walks one file. The values that it decodes keep nothing of it.
type decoder struct {
	file     string
	env      func(string) (string, bool)
	readFile func(name string) ([]byte, error) // relative to file's folder
	problems *problem.List
	places   map[place]*yaml.Node // of every value that was met, for checks that go over several
}

// place is where a value stands.
type place struct{ file, path string }

// section decodes the keys of s from n, a mapping or nothing.
func (d *decoder) section(n *yaml.Node, path string, s section) {
	d.places[place{d.file, path}] = n
	if isNull(n) {
		n = &yaml.Node{Kind: yaml.MappingNode, Line: n.Line, Column: n.Column}
	}
	if n.Kind != yaml.MappingNode {
		d.problem(n, path, "must be a mapping of keys, not "+describe(n), "")
		return
	}
	keys := s.keys()
	written := d.pairs(n, path, s, keys)
	for _, k := range keys {
		d.absent(n, path, k, keys, written)
	}
}

// pairs decodes what is written and returns the names that say something.
func (d *decoder) pairs(n *yaml.Node, path string, s section, keys []key) map[string]bool {
	written := map[string]bool{}
	for i := 0; i < len(n.Content); i += 2 {
		name, at := n.Content[i].Value, join(path, n.Content[i].Value)
		k := find(keys, name)
		switch {
		case path == "" && strings.HasPrefix(name, "x-"): // the user's own, for anchors
		case k == nil:
			d.unknown(n.Content[i], at, name, s, keys)
			written[problem.Closest(name, names(keys))] = true // a misspelt key is one mistake, not a missing key too
		case k.later:
			d.problem(n.Content[i], at, "not supported yet", "remove it")
		case k.twin != "" && written[k.twin]:
			d.problem(n.Content[i], at, k.twin+" says the same already", "write one of the two")
		default:
			written[name] = d.value(*k, n.Content[i+1], at)
		}
	}
	return written
}

func (d *decoder) value(k key, n *yaml.Node, path string) bool {
	d.places[place{d.file, path}] = n
	if isNull(n) {
		if _, scalar := k.value.(scalarValue); scalar {
			hint := "write a value, or remove the line"
			if k.fallback != "" {
				hint = "remove the line to have the default, " + k.fallback
			}
			d.problem(n, path, "has no value", hint)
			return true
		}
	}
	return k.value.decode(d, n, path)
}

// absent fills in the default of a key that was not written, or says that it is missing.
func (d *decoder) absent(n *yaml.Node, path string, k key, keys []key, written map[string]bool) {
	switch {
	case written[k.name] || k.twin != "" && written[k.twin]:
	case k.required:
		// Of twins, the first speaks for both.
		if twin := find(keys, k.twin); twin != nil && slices.IndexFunc(keys, named(k.twin)) < slices.IndexFunc(keys, named(k.name)) {
			return
		}
		d.missing(n, path, k)
	case k.fallback != "":
		k.value.decode(d, &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: k.fallback}, join(path, k.name))
	default:
		if s, ok := k.value.(sectionValue); ok {
			d.section(&yaml.Node{Kind: yaml.MappingNode, Line: n.Line, Column: n.Column}, join(path, k.name), s.section)
		}
	}
}

func (d *decoder) missing(n *yaml.Node, path string, k key) {
	hint := firstSentence(k.doc)
	if k.twin != "" {
		hint = fmt.Sprintf("or %s: %s", k.twin, hint)
	}
	if at := d.places[place{d.file, join(path, k.name)}]; at != nil {
		d.problem(at, join(path, k.name), "is empty: its variables have no value", hint)
		return
	}
	d.problem(n, join(path, k.name), "missing", hint)
}

// selective is a section whose keys depend on its type.
type selective interface {
	// misplaced says why the key is not one of this type's, although others have it; message is empty when none has.
	misplaced(key string) (message, hint string)
}

func (d *decoder) unknown(at *yaml.Node, path, name string, s section, keys []key) {
	if of, ok := s.(selective); ok {
		if message, hint := of.misplaced(name); message != "" {
			d.problem(at, path, message, hint)
			return
		}
	}
	d.problem(at, path, "unknown key", problem.Nearest(name, names(keys)))
}

func (d *decoder) problem(at *yaml.Node, path, message, hint string) {
	*d.problems = append(*d.problems, &problem.Problem{
		File: d.file, Line: at.Line, Column: at.Column, Path: path, Message: message, Hint: hint,
	})
}

var expansion = regexp.MustCompile(`\$?\$\{([^{}]*)\}`)

// expand replaces ${NAME} and ${NAME:-default} in a scalar's text; $${ is a literal ${. A variable that is set and empty has the default,
// as in a shell. ok is false when a problem was reported.
func (d *decoder) expand(n *yaml.Node, path string) (text string, ok bool) {
	ok = true
	text = expansion.ReplaceAllStringFunc(n.Value, func(match string) string {
		if strings.HasPrefix(match, "$$") {
			return match[1:]
		}
		parts := variable.FindStringSubmatch(match)
		if parts == nil || parts[0] != match {
			ok = false
			d.problem(n, path, match+" names no variable", "write ${NAME} or ${NAME:-default}, and $${ for a literal ${")
			return ""
		}
		name, fallback := parts[1], parts[2]
		value, set := d.env(name)
		switch {
		case value != "":
			return value
		case fallback != "":
			return strings.TrimPrefix(fallback, ":-")
		case !set:
			ok = false
			d.problem(n, path, "the environment has no variable "+name, fmt.Sprintf("set it, or write ${%s:-default}", name))
		}
		return ""
	})
	return text, ok
}

// text is a scalar's text with its variables. read is false when there is none: a problem was reported (written) or the variables
// left it empty (not written).
func (d *decoder) text(n *yaml.Node, path, kind string) (text string, read, written bool) {
	if n.Kind != yaml.ScalarNode || isNull(n) {
		d.problem(n, path, fmt.Sprintf("must be %s, not %s", kind, describe(n)), "")
		return "", false, true
	}
	text, ok := d.expand(n, path)
	if !ok {
		return "", false, true
	}
	if text == "" && n.Value != "" {
		return "", false, false
	}
	if text == "" {
		d.problem(n, path, "is empty", "")
		return "", false, true
	}
	return text, true, true
}

// refuse reports why a scalar is not what it should be. It quotes what the file says, not what its variables hold, and nothing
// that is sensitive.
func (d *decoder) refuse(n *yaml.Node, path string, err error, sensitive bool) {
	hint := ""
	if m := new(mistake); errors.As(err, &m) {
		hint = m.hint
	}
	message := err.Error()
	if !sensitive {
		message = fmt.Sprintf("%q %s", n.Value, message)
	}
	d.problem(n, path, message, hint)
}

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" }

// describe says in words what a node is.
func describe(n *yaml.Node) string {
	switch {
	case n.Kind == yaml.MappingNode:
		return "a mapping"
	case n.Kind == yaml.SequenceNode:
		return "a list"
	case isNull(n):
		return "nothing"
	}
	return fmt.Sprintf("%q", n.Value)
}

func find(keys []key, name string) *key {
	if i := slices.IndexFunc(keys, named(name)); i >= 0 {
		return &keys[i]
	}
	return nil
}

func named(name string) func(key) bool {
	return func(k key) bool { return k.name == name }
}

func names(keys []key) []string {
	list := make([]string, len(keys))
	for i, k := range keys {
		list[i] = k.name
	}
	return list
}

// firstSentence of a doc, as the end of an error message: without the code marks, the capital and the full stop.
func firstSentence(doc string) string {
	sentence, _, _ := strings.Cut(doc, ". ")
	sentence = strings.TrimSuffix(strings.ReplaceAll(sentence, "`", ""), ".")
	return strings.ToLower(sentence[:1]) + sentence[1:]
}
