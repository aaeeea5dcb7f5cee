package sandbox

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"unicode/utf8"
)

// The functions here take JSON apart without a copy: what they return aliases what they were given. That is valid JSON, as
// document has made sure once for the whole body.

// object is a JSON object's members in their order.
type object []member

type member struct {
	name  string
	value json.RawMessage
}

// get returns the member's value, nil when there is none.
func (o object) get(name string) json.RawMessage {
	for i := range o {
		if o[i].name == name {
			return o[i].value
		}
	}
	return nil
}

// document checks that body is one JSON value, and an object.
func document(body []byte) error {
	switch {
	case !utf8.Valid(body):
		return errors.New("the body is not UTF-8")
	case !json.Valid(body):
		return errors.New("the body is not JSON")
	case kindOf(bytes.TrimSpace(body)) != kindObject:
		return errors.New("the body is not an object")
	}
	return nil
}

// members returns an object's members. A name that comes twice is an error, unlike in encoding/json.
func members(raw json.RawMessage) (object, error) {
	i := space(raw, 0)
	if i >= len(raw) || raw[i] != '{' {
		return nil, errors.New("is not an object")
	}
	const usual = 12
	o := make(object, 0, usual)
	for i = space(raw, i+1); raw[i] != '}'; {
		end := value(raw, i)
		name := text(raw[i:end])
		i = space(raw, space(raw, end)+1) // past the colon
		end = value(raw, i)
		if o.get(name) != nil {
			return nil, fmt.Errorf("%s is there twice", name)
		}
		o = append(o, member{name, raw[i:end:end]})
		i = comma(raw, end)
	}
	return o, nil
}

// elements returns an array's values.
func elements(raw json.RawMessage) ([]json.RawMessage, error) {
	i := space(raw, 0)
	if i >= len(raw) || raw[i] != '[' {
		return nil, errors.New("is not an array")
	}
	var values []json.RawMessage
	for i = space(raw, i+1); raw[i] != ']'; {
		end := value(raw, i)
		values = append(values, raw[i:end:end])
		i = comma(raw, end)
	}
	return values, nil
}

// space skips white space.
func space(raw []byte, i int) int {
	for i < len(raw) && (raw[i] == ' ' || raw[i] == '\t' || raw[i] == '\n' || raw[i] == '\r') {
		i++
	}
	return i
}

// comma skips what is between two values.
func comma(raw []byte, i int) int {
	if i = space(raw, i); raw[i] == ',' {
		i = space(raw, i+1)
	}
	return i
}

// value returns the end of the value that begins at i.
func value(raw []byte, i int) int {
	depth := 0
	for ; i < len(raw); i++ {
		switch raw[i] {
		case '"':
			for i++; raw[i] != '"'; i++ {
				if raw[i] == '\\' {
					i++
				}
			}
		case '{', '[':
			depth++
			continue
		case '}', ']':
			depth--
		default:
			if depth > 0 || !ends(raw, i+1) {
				continue
			}
		}
		if depth == 0 {
			return i + 1
		}
	}
	return i
}

// ends says whether a number, true, false or null ends before i.
func ends(raw []byte, i int) bool {
	if i == len(raw) {
		return true
	}
	switch raw[i] {
	case ',', '}', ']', ' ', '\t', '\n', '\r':
		return true
	}
	return false
}

// text is a string's content, "" for any other value.
func text(raw json.RawMessage) string {
	if len(raw) == 0 || raw[0] != '"' {
		return ""
	}
	if plain := raw[1 : len(raw)-1]; bytes.IndexByte(plain, '\\') < 0 {
		return string(plain)
	}
	var s string
	_ = json.Unmarshal(raw, &s) // a string, as was checked
	return s
}
