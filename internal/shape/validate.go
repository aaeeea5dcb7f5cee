package shape

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// Error is a value that does not have its shape. It names the place and the rule, and never quotes the value.
type Error struct {
	Path   string // such as numbers[1].number; empty for the whole
	Reason string
}

func (e *Error) Error() string {
	if e.Path == "" {
		return e.Reason
	}
	return e.Path + ": " + e.Reason
}

// Validate says how a JSON value differs from the shape, with an *Error about the first difference in the shape's order, or nil.
func (n *Node) Validate(value []byte) error { return n.validate("", bytes.TrimSpace(value)) }

func (n *Node) validate(path string, value []byte) error {
	if string(value) == "null" {
		if n.Nullable || n.Kind == Any {
			return nil
		}
		return &Error{path, "is null"}
	}
	if err := n.validateKind(path, value); err != nil {
		return err
	}
	if len(n.Enum) > 0 && !slices.Contains(n.Enum, string(value)) {
		return &Error{path, "must be one of " + strings.Join(n.Enum, ", ")}
	}
	if n.Check != nil {
		if err := n.Check(value); err != nil {
			return &Error{path, err.Error()}
		}
	}
	return nil
}

func (n *Node) validateKind(path string, value []byte) error {
	switch n.Kind {
	case Any:
		if !json.Valid(value) {
			return &Error{path, "is not JSON"}
		}
		return nil
	case Object:
		return n.validateObject(path, value)
	case Map:
		return n.validateMap(path, value)
	case Array:
		return n.validateArray(path, value)
	case String:
		return n.validateString(path, value)
	case Number, Integer:
		return n.validateNumber(path, value)
	case Boolean:
		if s := string(value); s != "true" && s != "false" {
			return &Error{path, "must be true or false"}
		}
		return nil
	}
	return &Error{path, fmt.Sprintf("has a shape of unknown kind %d", n.Kind)}
}

func (n *Node) validateObject(path string, value []byte) error {
	var fields map[string]json.RawMessage
	if json.Unmarshal(value, &fields) != nil {
		return &Error{path, "must be an object"}
	}
	for i := range n.Fields {
		f := &n.Fields[i]
		inner, present := fields[f.Name]
		switch {
		case !present && f.Required:
			return &Error{join(path, f.Name), "is missing"}
		case !present:
			continue
		}
		if err := f.Node.validate(join(path, f.Name), inner); err != nil {
			return err
		}
	}
	if n.Open {
		return n.validateExclusive(path, fields)
	}
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		if _, known := n.Field(name); !known {
			return &Error{join(path, name), "is not a field that the vendor knows"}
		}
	}
	return n.validateExclusive(path, fields)
}

func (n *Node) validateExclusive(path string, fields map[string]json.RawMessage) error {
	var present []string
	for _, name := range n.Exclusive {
		if _, ok := fields[name]; ok {
			present = append(present, name)
		}
	}
	if len(present) > 1 {
		return &Error{path, "holds " + strings.Join(present, " and ") + ", of which only one is allowed"}
	}
	return nil
}

func (n *Node) validateMap(path string, value []byte) error {
	var entries map[string]json.RawMessage
	if json.Unmarshal(value, &entries) != nil {
		return &Error{path, "must be an object"}
	}
	for _, key := range slices.Sorted(maps.Keys(entries)) {
		if reason := n.Key.Check(key); reason != "" {
			return &Error{path, "has a key that " + reason}
		}
		if n.Elem == nil {
			continue
		}
		if err := n.Elem.validate(path+"{}", entries[key]); err != nil {
			return err
		}
	}
	return nil
}

func (n *Node) validateArray(path string, value []byte) error {
	var elements []json.RawMessage
	if json.Unmarshal(value, &elements) != nil {
		return &Error{path, "must be an array"}
	}
	if len(elements) < n.MinItems {
		return &Error{path, fmt.Sprintf("must have at least %d elements", n.MinItems)}
	}
	if n.Elem == nil {
		return nil
	}
	for i, element := range elements {
		if err := n.Elem.validate(path+"["+strconv.Itoa(i)+"]", element); err != nil {
			return err
		}
	}
	return nil
}

func (n *Node) validateString(path string, value []byte) error {
	var s string
	if json.Unmarshal(value, &s) != nil {
		return &Error{path, "must be a string"}
	}
	if n.MaxLength > 0 && utf8.RuneCountInString(s) > n.MaxLength {
		return &Error{path, fmt.Sprintf("is longer than %d characters", n.MaxLength)}
	}
	if reason := n.Format.Check(s); reason != "" {
		return &Error{path, reason}
	}
	return nil
}

func (n *Node) validateNumber(path string, value []byte) error {
	var number json.Number
	if bytes.HasPrefix(value, []byte{'"'}) || json.Unmarshal(value, &number) != nil {
		return &Error{path, "must be a number"}
	}
	if n.Kind == Integer && strings.ContainsAny(string(value), ".eE") {
		return &Error{path, "must be a whole number"}
	}
	float, err := number.Float64()
	switch {
	case err != nil:
		return &Error{path, "is out of range"}
	case n.Min != nil && float < *n.Min:
		return &Error{path, fmt.Sprintf("is less than %v", *n.Min)}
	case n.Max != nil && float > *n.Max:
		return &Error{path, fmt.Sprintf("is more than %v", *n.Max)}
	}
	return nil
}

// Check says what is wrong with s, such as "is blank"; empty means nothing. The zero Format takes any string.
func (f Format) Check(s string) string {
	switch f {
	case FormatUUID:
		if !isUUID(s) {
			return "is no UUID"
		}
	case FormatDateTime:
		if _, err := time.Parse(time.RFC3339Nano, s); err != nil {
			return "is no ISO 8601 date and time with a zone"
		}
	case FormatNoBlank:
		if strings.TrimSpace(s) == "" {
			return "is blank"
		}
	}
	return ""
}

func isUUID(s string) bool {
	if len(s) != len("xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx") {
		return false
	}
	for i := range len(s) {
		switch c := s[i]; {
		case i == 8 || i == 13 || i == 18 || i == 23:
			if c != '-' {
				return false
			}
		case c >= '0' && c <= '9', c >= 'a' && c <= 'f', c >= 'A' && c <= 'F':
		default:
			return false
		}
	}
	return true
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}
