package sandbox

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/cdcsync/cdcsync/internal/shape"
	"github.com/cdcsync/cdcsync/internal/sinks"
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

// kindsOf are the kinds as the shapes name them.
var kindsOf = map[shape.Kind]kind{
	shape.Object: kindObject, shape.Map: kindObject, shape.Array: kindArray, shape.String: kindString,
	shape.Number: kindNumber, shape.Integer: kindNumber, shape.Boolean: kindBoolean,
}

// elementShape is the shape of one item of a sink's type: the same that mappings are checked against.
func elementShape(typ string) *shape.Node {
	spec, _ := sinks.SpecOf(typ)
	return spec.Item.Root
}

// flaw is what is wrong with a value. One of shape makes the request wrong, one of value the item.
type flaw struct {
	shape  bool
	reason string // begins with the path
}

// check validates a value against the vendor's shape, and returns every flaw.
func check(path string, raw json.RawMessage, n *shape.Node) []flaw {
	found := kindOf(raw)
	wanted, typed := kindsOf[n.Kind]
	switch {
	case found == kindNull && shape.Nullable(n):
		return nil
	case typed && found != wanted:
		return []flaw{{shape: true, reason: fmt.Sprintf("%s is %s and not %s", path, found, wanted)}}
	case wanted == kindObject:
		return append(checkObject(path, raw, n), checkWhole(path, raw, n)...)
	case wanted == kindArray:
		return append(checkArray(path, raw, n), checkWhole(path, raw, n)...)
	}
	if err := shape.CheckScalar(n, bytes.Clone(raw)); err != nil {
		return []flaw{{reason: path + " " + err.Error()}}
	}
	return nil
}

// checkWhole checks what goes over several fields.
func checkWhole(path string, raw json.RawMessage, n *shape.Node) []flaw {
	if err := shape.CheckClosed(n, raw); err != nil {
		return []flaw{{reason: path + " " + err.Error()}}
	}
	return nil
}

func checkObject(path string, raw json.RawMessage, n *shape.Node) (flaws []flaw) {
	values, err := members(raw)
	if err != nil {
		return []flaw{{shape: true, reason: path + ": " + err.Error()}}
	}
	for _, f := range n.Fields {
		switch value := values.get(f.Name); {
		case value != nil:
			flaws = append(flaws, check(path+"."+f.Name, value, f.Node)...)
		case f.Required:
			flaws = append(flaws, flaw{shape: true, reason: path + "." + f.Name + " is missing"})
		}
	}
	for _, m := range values {
		_, known := n.Field(m.name)
		switch {
		case n.Kind == shape.Map:
			flaws = append(flaws, check(path+"."+m.name, m.value, n.Elem)...)
		case !known && !n.Open:
			flaws = append(flaws, flaw{shape: true, reason: path + "." + m.name + " is not a field of this endpoint"})
		}
	}
	return flaws
}

func checkArray(path string, raw json.RawMessage, n *shape.Node) (flaws []flaw) {
	list, err := elements(raw)
	if err != nil {
		return []flaw{{shape: true, reason: path + ": " + err.Error()}}
	}
	if len(list) < n.MinItems {
		flaws = append(flaws, flaw{reason: fmt.Sprintf("%s has too few elements; %d or more are wanted", path, n.MinItems)})
	}
	for i, element := range list {
		if n.Elem != nil {
			flaws = append(flaws, check(fmt.Sprintf("%s[%d]", path, i), element, n.Elem)...)
		}
	}
	return flaws
}

// integer is the value of a number that is known to be whole: it may be written with a fraction or an exponent.
func integer(raw json.RawMessage) int64 {
	if n, err := strconv.ParseInt(string(raw), 10, 64); err == nil {
		return n
	}
	f, err := strconv.ParseFloat(string(raw), 64)
	if err != nil { // its shape was checked
		return 0
	}
	return int64(f)
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
