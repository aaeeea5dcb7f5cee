package sandbox

import (
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// kind is the type of a JSON value, in the words of the vendors' pages.
type kind string

const (
	kindObject  kind = "an object"
	kindArray   kind = "an array"
	kindString  kind = "a string"
	kindNumber  kind = "a number"
	kindBoolean kind = "a boolean"
	kindNull    kind = "null"
)

// kindOf looks at the first byte of a valid JSON value.
func kindOf(raw []byte) kind {
	switch raw[0] {
	case '{':
		return kindObject
	case '[':
		return kindArray
	case '"':
		return kindString
	case 't', 'f':
		return kindBoolean
	case 'n':
		return kindNull
	}
	return kindNumber
}

// field is a line in a table of a vendor's page.
type field struct {
	name     string
	kind     kind
	required bool
	nullable bool
	// value says what is wrong with a value of the right kind, "" when nothing is.
	value func(raw json.RawMessage) string
	// fields of an object, or of the objects in an array.
	fields []field
}

// flaw is what is wrong with a value. One of shape makes the request wrong, one of value the item.
type flaw struct {
	shape  bool
	reason string // begins with the path
}

// check validates an object against the fields that the page lists, and returns every flaw.
func check(path string, raw json.RawMessage, fields []field) []flaw {
	values, err := members(raw)
	if err != nil {
		return []flaw{{shape: true, reason: path + ": " + err.Error()}}
	}
	var flaws []flaw
	for i := range fields {
		f := &fields[i]
		switch value := values.get(f.name); {
		case value != nil:
			flaws = append(flaws, f.check(path+"."+f.name, value)...)
		case f.required:
			flaws = append(flaws, flaw{shape: true, reason: path + "." + f.name + " is missing"})
		}
	}
	for _, m := range values {
		if !slices.ContainsFunc(fields, func(f field) bool { return f.name == m.name }) {
			flaws = append(flaws, flaw{shape: true, reason: path + "." + m.name + " is not a field of this endpoint"})
		}
	}
	return flaws
}

func (f *field) check(path string, raw json.RawMessage) []flaw {
	switch kind := kindOf(raw); {
	case kind == kindNull && f.nullable:
		return nil
	case kind != f.kind:
		return []flaw{{shape: true, reason: fmt.Sprintf("%s is %s and not %s", path, kind, f.kind)}}
	}
	if f.value != nil {
		if reason := f.value(raw); reason != "" {
			return []flaw{{reason: path + " " + reason}}
		}
	}
	switch {
	case f.fields == nil:
		return nil
	case f.kind == kindObject:
		return check(path, raw, f.fields)
	}
	elements, err := elements(raw)
	if err != nil {
		return []flaw{{shape: true, reason: path + ": " + err.Error()}}
	}
	var flaws []flaw
	for i, element := range elements {
		flaws = append(flaws, check(fmt.Sprintf("%s[%d]", path, i), element, f.fields)...)
	}
	return flaws
}

// integer is a number's value, when that is whole.
func integer(raw json.RawMessage) (int64, bool) {
	if n, err := strconv.ParseInt(string(raw), 10, 64); err == nil {
		return n, true
	}
	f, err := strconv.ParseFloat(string(raw), 64)
	const exact = 1 << 53
	return int64(f), err == nil && f == float64(int64(f)) && f <= exact && f >= -exact
}

// oneOf allows the values, given as JSON.
func oneOf(allowed ...string) func(json.RawMessage) string {
	return func(raw json.RawMessage) string {
		if slices.Contains(allowed, string(raw)) {
			return ""
		}
		return "is none of " + strings.Join(allowed, ", ")
	}
}

// between allows whole numbers.
func between(least, most int64) func(json.RawMessage) string {
	return func(raw json.RawMessage) string {
		if n, ok := integer(raw); ok && n >= least && n <= most {
			return ""
		}
		return fmt.Sprintf("is not a whole number from %d to %d", least, most)
	}
}

func notBlank(raw json.RawMessage) string {
	if strings.TrimSpace(text(raw)) == "" {
		return "is blank"
	}
	return ""
}

// length allows strings of so many characters.
func length(n int) func(json.RawMessage) string {
	return func(raw json.RawMessage) string {
		if utf8.RuneCountInString(text(raw)) != n {
			return fmt.Sprintf("has not %d characters", n)
		}
		return ""
	}
}

// iso3 allows codes of ISO 3166-1 alpha-3 by their form.
func iso3(raw json.RawMessage) string {
	s := text(raw)
	if len(s) != 3 || strings.Trim(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZ") != "" {
		return "is not an ISO3 code such as BRA"
	}
	return ""
}

// dateTime allows ISO 8601 with date, time and zone, as in 2025-09-20T18:41:31.219Z.
func dateTime(raw json.RawMessage) string {
	if _, err := time.Parse(time.RFC3339Nano, text(raw)); err != nil {
		return "is not a date and time such as 2025-09-20T18:41:31.219Z"
	}
	return ""
}

// isUUID looks at the form only, in either case.
func isUUID(s string) bool {
	if len(s) != 36 {
		return false
	}
	for i := range len(s) {
		switch {
		case i == 8 || i == 13 || i == 18 || i == 23:
			if s[i] != '-' {
				return false
			}
		case !strings.ContainsRune("0123456789abcdefABCDEF", rune(s[i])):
			return false
		}
	}
	return true
}

func digits(s string) bool { return s != "" && strings.Trim(s, "0123456789") == "" }

// reasons joins the flaws of one sort in a stable order.
func reasons(flaws []flaw, shape bool) string {
	var texts []string
	for _, f := range flaws {
		if f.shape == shape {
			texts = append(texts, f.reason)
		}
	}
	slices.Sort(texts)
	return strings.Join(texts, "; ")
}

// parseForm reads a form-encoded body that was read already.
func parseForm(r *request) (url.Values, error) {
	if kind, _, err := mime.ParseMediaType(r.http.Header.Get("Content-Type")); err != nil || kind != "application/x-www-form-urlencoded" {
		return nil, errors.New("Content-Type is not application/x-www-form-urlencoded")
	}
	form, err := url.ParseQuery(string(r.body))
	if err != nil {
		return nil, errors.New("the form is malformed")
	}
	return form, nil
}
