package config

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"gopkg.in/yaml.v3"

	"github.com/cdcsync/cdcsync/internal/cdc"
	"github.com/cdcsync/cdcsync/internal/problem"
	"github.com/cdcsync/cdcsync/internal/secret"
)

// scalarValue is a value that is written as one YAML scalar.
type scalarValue interface {
	value
	scalar()
}

// scalar is a value of type T that is parsed from a text.
type scalar[T any] struct {
	into      *T
	word      string // with its article, such as "a size"
	parse     func(text string) (T, error)
	json      schema
	sensitive bool // never quoted in a message
}

func (s scalar[T]) scalar()        {}
func (s scalar[T]) kind() string   { return strings.TrimPrefix(strings.TrimPrefix(s.word, "a "), "an ") }
func (s scalar[T]) schema() schema { return s.json }

func (s scalar[T]) decode(d *decoder, n *yaml.Node, path string) bool {
	text, read, written := d.text(n, path, s.word)
	if !read {
		return written
	}
	parsed, err := s.parse(text)
	if err != nil {
		d.refuse(n, path, err, s.sensitive)
		return true
	}
	*s.into = parsed
	return true
}

func text(into *string) value {
	return scalar[string]{into: into, word: "a text", parse: func(text string) (string, error) { return text, nil }, json: schema{"type": "string"}}
}

// matching is a text with a form of its own.
func matching(into *string, word, pattern, hint string) value {
	form := regexp.MustCompile(pattern)
	parse := func(text string) (string, error) {
		if !form.MatchString(text) {
			return "", &mistake{"is not " + word, hint}
		}
		return text, nil
	}
	return scalar[string]{into: into, word: word, parse: parse, json: schema{"type": "string"}}
}

// credential is a secret that check accepts.
func credential(into *secret.String, check func(text string) error) value {
	return scalar[secret.String]{into: into, word: "a secret", parse: func(text string) (secret.String, error) {
		return secret.New(text), check(text)
	}, json: schema{"type": "string"}, sensitive: true}
}

func anyText(string) error { return nil }

func boolean(into *bool) value {
	return scalar[bool]{into: into, word: "true or false", parse: func(text string) (bool, error) {
		if text != "true" && text != "false" {
			return false, &mistake{message: "is neither true nor false"}
		}
		return text == "true", nil
	}, json: orVariable(schema{"type": "boolean"})}
}

// whole is an integer from least to most.
func whole[T int | int64](into *T, least, most T) value {
	return scalar[T]{into: into, word: "a whole number", parse: func(text string) (T, error) {
		n, err := strconv.ParseInt(text, 10, 64)
		switch {
		case err != nil:
			return 0, &mistake{message: "is not a whole number"}
		case least == most && n != int64(least):
			return 0, &mistake{message: fmt.Sprintf("can only be %d here", least)}
		case n < int64(least) || n > int64(most):
			return 0, &mistake{message: fmt.Sprintf("is not between %d and %d", least, most)}
		}
		return T(n), nil
	}, json: orVariable(schema{"type": "integer", "minimum": least, "maximum": most})}
}

// size of at least what least says.
func size(into *Size, least string) value {
	return scalar[Size]{into: into, word: "a size", parse: func(text string) (Size, error) {
		n, err := ParseSize(text)
		if bound, _ := ParseSize(least); err == nil && n < bound {
			err = &mistake{message: "is less than " + least}
		}
		return n, err
	}, json: orVariable(schema{"type": "string", "pattern": sizePattern})}
}

func duration(into *time.Duration, least time.Duration) value {
	return scalar[time.Duration]{into: into, word: "a duration", parse: func(text string) (time.Duration, error) {
		d, err := parseDuration(text)
		if err == nil && d < least {
			err = &mistake{message: fmt.Sprintf("is less than %v", least)}
		}
		return d, err
	}, json: orVariable(schema{"type": "string", "pattern": durationPattern})}
}

func rate(into *Rate) value {
	return scalar[Rate]{into: into, word: "a rate", parse: parseRate, json: orVariable(schema{"type": "string", "pattern": ratePattern})}
}

// enum is one of a few words.
func enum[T ~string](into *T, words ...T) value {
	listed := make([]string, len(words))
	for i, w := range words {
		listed[i] = string(w)
	}
	return scalar[T]{into: into, word: "one of " + strings.Join(listed, ", "), parse: func(text string) (T, error) {
		if !slices.Contains(listed, text) {
			return "", &mistake{"is not one of " + strings.Join(listed, ", "), suggestion(text, listed)}
		}
		return T(text), nil
	}, json: orVariable(schema{"enum": listed})}
}

// suggestion is problem.Nearest without the list of all words, which the message holds already.
func suggestion(text string, words []string) string {
	if hint := problem.Nearest(text, words); strings.HasPrefix(hint, "did you mean") {
		return hint
	}
	return ""
}

// httpURL is the base of a vendor's endpoints, or its token endpoint.
func httpURL(into *string) value {
	return scalar[string]{into: into, word: "an http or https URL", parse: func(text string) (string, error) {
		u, err := url.Parse(text)
		switch {
		case err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "":
			return "", &mistake{"is not an http or https URL", "such as https://api.example.com"}
		case u.User != nil || u.RawQuery != "" || u.Fragment != "":
			return "", &mistake{"holds more than an address", "leave out user, password, query and fragment; credentials have keys of their own"}
		}
		return strings.TrimRight(text, "/"), nil
	}, json: schema{"type": "string"}, sensitive: true}
}

// postgresURL says what is wrong with a libpq URL or DSN without quoting it.
func postgresURL(text string) error {
	_, err := pgconn.ParseConfig(text)
	if err == nil {
		return nil
	}
	// The error's own text holds the URL and its cause may hold parts of it; what stands between them is constant.
	reason := err.Error()
	if cause := errors.Unwrap(err); cause != nil {
		reason = strings.TrimSuffix(reason, " ("+cause.Error()+")")
	}
	reason = reason[strings.LastIndex(reason, "`")+1:]
	return &mistake{"is not a libpq URL or DSN" + reason, "such as postgres://user:password@host:5432/database?sslmode=verify-full"}
}

// natsURL checks a comma-separated list of servers.
func natsURL(text string) error {
	for server := range strings.SplitSeq(text, ",") {
		u, err := url.Parse(strings.TrimSpace(server))
		if err != nil || u.Host == "" || !slices.Contains([]string{"nats", "tls", "ws", "wss"}, u.Scheme) {
			return &mistake{"is not a list of NATS servers", "such as nats://a.example.com:4222,nats://b.example.com:4222"}
		}
	}
	return nil
}

// listenAddress is host:port.
func listenAddress(into *string) value {
	return scalar[string]{into: into, word: "an address", parse: func(text string) (string, error) {
		_, port, err := net.SplitHostPort(text)
		if number, portErr := strconv.ParseUint(port, 10, 16); err != nil || portErr != nil || number == 0 {
			return "", &mistake{"is not an address to listen on", "write host:port, such as 127.0.0.1:8484"}
		}
		return text, nil
	}, json: schema{"type": "string"}}
}

// table is schema.table; a name that holds a dot, a space or a quote stands in double quotes.
func table(into *Table) value {
	return scalar[Table]{into: into, word: "a table", parse: parseTable, json: schema{"type": "string"}}
}

func parseTable(text string) (Table, error) {
	schema, name, ok := cdc.ParseTable(text)
	if !ok {
		return Table{}, errNotATable
	}
	return Table{Schema: schema, Name: name}, nil
}

var errNotATable = &mistake{"is not a table", `write schema.table, exact names, in double quotes where they hold a dot or a space: '"My Schema".users'`}

// operation is what happened to a row, as far as a mapping can choose.
func operation(into *cdc.Op) value {
	var word string
	words := []string{cdc.OpInsert.String(), cdc.OpUpdate.String(), cdc.OpDelete.String()}
	inner := enum(&word, words...).(scalar[string])
	return scalar[cdc.Op]{into: into, word: inner.word, parse: func(text string) (cdc.Op, error) {
		if _, err := inner.parse(text); err != nil {
			return 0, err
		}
		op, _ := cdc.ParseOp(text)
		return op, nil
	}, json: inner.json}
}

// uuid in lower case.
func uuid(into *string) value {
	form := regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)
	return scalar[string]{into: into, word: "a UUID", parse: func(text string) (string, error) {
		lower := strings.ToLower(text)
		if !form.MatchString(lower) {
			return "", &mistake{"is not a UUID", "such as 12345678-1234-1234-1234-123456789abc"}
		}
		return lower, nil
	}, json: schema{"type": "string"}}
}

// sectionValue is a nested section.
type sectionValue struct {
	section
}

func (s sectionValue) kind() string { return "mapping" }

func (s sectionValue) decode(d *decoder, n *yaml.Node, path string) bool {
	d.section(n, path, s.section)
	return true
}

func (s sectionValue) schema() schema { return sectionSchema(s.section) }

// optional is a section that is nil unless it is written.
type optional[T any] struct {
	into **T
	of   func(*T) section
}

func (o optional[T]) kind() string { return "mapping" }

func (o optional[T]) decode(d *decoder, n *yaml.Node, path string) bool {
	*o.into = new(T)
	d.section(n, path, o.of(*o.into))
	return true
}

func (o optional[T]) schema() schema { return sectionSchema(o.of(new(T))) }

// list is a sequence of scalars.
type list[T any] struct {
	into *[]T
	item func(into *T) value
}

func (l list[T]) kind() string { return "list of " + l.item(new(T)).kind() }

func (l list[T]) decode(d *decoder, n *yaml.Node, path string) bool {
	if n.Kind != yaml.SequenceNode {
		hint := ""
		if n.Kind == yaml.ScalarNode && !isNull(n) {
			hint = fmt.Sprintf("write [%s]", n.Value)
		}
		d.problem(n, path, "must be a list, not "+describe(n), hint)
		return true
	}
	for i, node := range n.Content {
		var item T
		at := fmt.Sprintf("%s[%d]", path, i)
		d.places[place{d.file, at}] = node
		if l.item(&item).decode(d, node, at) {
			*l.into = append(*l.into, item)
		}
	}
	return true
}

func (l list[T]) schema() schema {
	return schema{"type": "array", "items": l.item(new(T)).schema()}
}

// sections is a sequence of sections.
type sections[T any] struct {
	into *[]T
	of   func(d *decoder, n *yaml.Node, path string, into *T) section
}

func (s sections[T]) kind() string { return "list of mappings" }

func (s sections[T]) decode(d *decoder, n *yaml.Node, path string) bool {
	if n.Kind != yaml.SequenceNode {
		if !isNull(n) {
			d.problem(n, path, "must be a list, not "+describe(n), "begin each entry with a dash")
		}
		return true
	}
	for i, node := range n.Content {
		at := fmt.Sprintf("%s[%d]", path, i)
		*s.into = append(*s.into, *new(T))
		last := &(*s.into)[len(*s.into)-1]
		d.section(node, at, s.of(d, node, at, last))
	}
	return true
}

func (s sections[T]) schema() schema {
	return schema{"type": "array", "items": sectionSchema(s.of(nil, nil, "", new(T)))}
}

// dictionary is a mapping with names of the user's as keys, kept in the file's order.
type dictionary[T any] struct {
	into  *[]T
	of    func(d *decoder, n *yaml.Node, path, name string, into *T) section // nil: a problem was reported
	names string                                                             // pattern of a name
	hint  string                                                             // the pattern in words
	entry func() schema
}

func (m dictionary[T]) kind() string { return "mapping of mappings" }

func (m dictionary[T]) decode(d *decoder, n *yaml.Node, path string) bool {
	if n.Kind != yaml.MappingNode {
		if !isNull(n) {
			d.problem(n, path, "must be a mapping of names, not "+describe(n), "")
		}
		return true
	}
	form := regexp.MustCompile(m.names)
	for i := 0; i < len(n.Content); i += 2 {
		name, at := n.Content[i].Value, join(path, n.Content[i].Value)
		if !form.MatchString(name) {
			d.problem(n.Content[i], at, "not a name", m.hint)
			continue
		}
		*m.into = append(*m.into, *new(T))
		last := &(*m.into)[len(*m.into)-1]
		if s := m.of(d, n.Content[i+1], at, name, last); s != nil {
			d.section(n.Content[i+1], at, s)
		}
	}
	return true
}

func (m dictionary[T]) schema() schema {
	return schema{"type": "object", "propertyNames": schema{"pattern": m.names}, "additionalProperties": m.entry()}
}

// template is a tree that package mapping understands.
type template struct {
	into *yaml.Node
	word string
	json schema
}

func (t template) kind() string   { return t.word }
func (t template) schema() schema { return t.json }

func (t template) decode(_ *decoder, n *yaml.Node, _ string) bool {
	*t.into = *n
	return true
}

// verbatim is a text in which no variable is expanded.
type verbatim struct {
	into  *string
	check func(text string) error
}

func (v verbatim) scalar()        {}
func (v verbatim) kind() string   { return "text" }
func (v verbatim) schema() schema { return schema{"type": "string"} }

func (v verbatim) decode(d *decoder, n *yaml.Node, path string) bool {
	if n.Kind != yaml.ScalarNode || n.Value == "" {
		d.problem(n, path, "must be a text, not "+describe(n), "")
		return true
	}
	if err := v.check(n.Value); err != nil {
		d.problem(n, path, err.Error(), "")
		return true
	}
	*v.into = n.Value
	return true
}

// secretFile reads a secret from a file, relative to the folder of the configuration, without the white space around it.
type secretFile struct {
	into  *secret.String
	check func(text string) error
}

func (s secretFile) scalar()        {}
func (s secretFile) kind() string   { return "file name" }
func (s secretFile) schema() schema { return schema{"type": "string"} }

func (s secretFile) decode(d *decoder, n *yaml.Node, path string) bool {
	name, read, written := d.text(n, path, "a file name")
	if !read {
		return written
	}
	content, err := d.readFile(name)
	if err != nil {
		d.problem(n, path, err.Error(), "")
		return true
	}
	held := strings.TrimSpace(string(content))
	if held == "" {
		d.problem(n, path, "the file is empty", "")
		return true
	}
	if err := s.check(held); err != nil {
		d.refuse(n, path, fmt.Errorf("what the file holds %w", err), true)
		return true
	}
	*s.into = secret.New(held)
	return true
}
