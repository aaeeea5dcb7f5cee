package sinks_test

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

	"github.com/cdcsync/cdcsync/internal/shape"
)

// shapeError is a value that does not have its shape.
type shapeError struct {
	path   string // such as numbers[1].number; empty for the whole
	reason string
}

func (e *shapeError) Error() string {
	if e.path == "" {
		return e.reason
	}
	return e.path + ": " + e.reason
}

// validate is a second reading of what shape.Node means, beside mapping's. Its error is about the first difference, in the
// shape's order.
func validate(n *shape.Node, value []byte) error { return validateAt(n, "", value) }

func validateAt(n *shape.Node, path string, value []byte) error {
	if string(value) == "null" {
		if n.Nullable || n.Kind == shape.Any && n.Check == nil {
			return nil
		}
		return &shapeError{path, "is null"}
	}
	if err := validateKind(n, path, value); err != nil {
		return err
	}
	if len(n.Enum) > 0 && !slices.Contains(n.Enum, string(value)) {
		return &shapeError{path, "must be one of " + strings.Join(n.Enum, ", ")}
	}
	if n.Check != nil {
		if err := n.Check(value); err != nil {
			return &shapeError{path, err.Error()}
		}
	}
	return nil
}

func validateKind(n *shape.Node, path string, value []byte) error {
	switch n.Kind {
	case shape.Any:
		if !json.Valid(value) {
			return &shapeError{path, "is not JSON"}
		}
		return nil
	case shape.Object:
		return validateObject(n, path, value)
	case shape.Map:
		return validateMap(n, path, value)
	case shape.Array:
		return validateArray(n, path, value)
	case shape.String:
		return validateString(n, path, value)
	case shape.Number, shape.Integer:
		return validateNumber(n, path, value)
	case shape.Boolean:
		if s := string(value); s != "true" && s != "false" {
			return &shapeError{path, "must be true or false"}
		}
		return nil
	}
	return &shapeError{path, fmt.Sprintf("has a shape of unknown kind %d", n.Kind)}
}

func validateObject(n *shape.Node, path string, value []byte) error {
	var fields map[string]json.RawMessage
	if json.Unmarshal(value, &fields) != nil {
		return &shapeError{path, "must be an object"}
	}
	for i := range n.Fields {
		f := &n.Fields[i]
		inner, present := fields[f.Name]
		switch {
		case !present && f.Required:
			return &shapeError{join(path, f.Name), "is missing"}
		case !present:
			continue
		}
		if err := validateAt(f.Node, join(path, f.Name), inner); err != nil {
			return err
		}
	}
	if n.Open {
		return validateExclusive(n, path, fields)
	}
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		if _, known := n.Field(name); !known {
			return &shapeError{join(path, name), "is not a field that the vendor knows"}
		}
	}
	return validateExclusive(n, path, fields)
}

func validateExclusive(n *shape.Node, path string, fields map[string]json.RawMessage) error {
	var present []string
	for _, name := range n.Exclusive {
		if _, ok := fields[name]; ok {
			present = append(present, name)
		}
	}
	if len(present) > 1 {
		return &shapeError{path, "holds " + strings.Join(present, " and ") + ", of which only one is allowed"}
	}
	return nil
}

func validateMap(n *shape.Node, path string, value []byte) error {
	var entries map[string]json.RawMessage
	if json.Unmarshal(value, &entries) != nil {
		return &shapeError{path, "must be an object"}
	}
	for _, key := range slices.Sorted(maps.Keys(entries)) {
		if reason := flaw(n.Key, key); reason != "" {
			return &shapeError{path, "has a key that " + reason}
		}
		if n.Elem == nil {
			continue
		}
		if err := validateAt(n.Elem, path+"{}", entries[key]); err != nil {
			return err
		}
	}
	return nil
}

func validateArray(n *shape.Node, path string, value []byte) error {
	var elements []json.RawMessage
	if json.Unmarshal(value, &elements) != nil {
		return &shapeError{path, "must be an array"}
	}
	if len(elements) < n.MinItems {
		return &shapeError{path, fmt.Sprintf("must have at least %d elements", n.MinItems)}
	}
	if n.Elem == nil {
		return nil
	}
	for i, element := range elements {
		if err := validateAt(n.Elem, path+"["+strconv.Itoa(i)+"]", element); err != nil {
			return err
		}
	}
	return nil
}

func validateString(n *shape.Node, path string, value []byte) error {
	var s string
	if json.Unmarshal(value, &s) != nil {
		return &shapeError{path, "must be a string"}
	}
	if n.MaxLength > 0 && utf8.RuneCountInString(s) > n.MaxLength {
		return &shapeError{path, fmt.Sprintf("is longer than %d characters", n.MaxLength)}
	}
	if reason := flaw(n.Format, s); reason != "" {
		return &shapeError{path, reason}
	}
	return nil
}

func validateNumber(n *shape.Node, path string, value []byte) error {
	var number json.Number
	if bytes.HasPrefix(value, []byte{'"'}) || json.Unmarshal(value, &number) != nil {
		return &shapeError{path, "must be a number"}
	}
	if n.Kind == shape.Integer && strings.ContainsAny(string(value), ".eE") {
		return &shapeError{path, "must be a whole number"}
	}
	float, err := number.Float64()
	switch {
	case err != nil:
		return &shapeError{path, "is out of range"}
	case n.Min != nil && float < *n.Min:
		return &shapeError{path, fmt.Sprintf("is less than %v", *n.Min)}
	case n.Max != nil && float > *n.Max:
		return &shapeError{path, fmt.Sprintf("is more than %v", *n.Max)}
	}
	return nil
}

func flaw(f shape.Format, s string) string {
	switch f {
	case shape.FormatUUID:
		if !isUUID(s) {
			return "is no UUID"
		}
	case shape.FormatDateTime:
		if _, err := time.Parse(time.RFC3339Nano, s); err != nil {
			return "is no ISO 8601 date and time with a zone"
		}
	case shape.FormatNoBlank:
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
