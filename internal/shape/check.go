package shape

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// reason is why a value does not fit. It never quotes the value.
type reason string

func (r reason) Error() string { return string(r) }

func isDigit(b byte) bool { return b >= '0' && b <= '9' }

// KindNames are the shapes in the words of error messages.
var KindNames = map[Kind]string{
	Object: "an object", Map: "an object", Array: "a list", String: "a string",
	Number: "a number", Integer: "an integer", Boolean: "true or false",
}

// Free reports whether every JSON value fits.
func Free(n *Node) bool {
	return n == nil || n.Kind == 0 || n.Kind == Any && n.Check == nil && len(n.Enum) == 0
}

// Nullable reports whether null may be sent.
func Nullable(n *Node) bool {
	return n == nil || n.Kind == 0 || n.Kind == Any && n.Check == nil || n.Nullable
}

const errNull = reason("is null, which the vendor does not take")

// CheckScalar checks one rendered scalar. It writes a UUID's letters in lower case, in place. Its error is a reason.
func CheckScalar(n *Node, value []byte) error {
	if Free(n) {
		return nil
	}
	if string(value) == "null" {
		if n.Nullable {
			return nil
		}
		return errNull
	}
	if !kindFits(n.Kind, value) {
		return reason("is " + JSONKind(value) + ", and the vendor wants " + KindNames[n.Kind])
	}
	if len(n.Enum) > 0 && !slices.Contains(n.Enum, string(value)) {
		return reason(oneOf(n.Enum))
	}
	var err error
	switch n.Kind {
	case String:
		err = checkText(n, value[1:len(value)-1])
	case Number, Integer:
		err = checkRange(n, value)
	default: // Fields and elements are checked as they are rendered.
	}
	if err == nil && n.Check != nil {
		err = checkHook(n, value)
	}
	return err
}

func oneOf(enum []string) string {
	if len(enum) == 1 {
		return "must be " + enum[0]
	}
	return "must be one of " + strings.Join(enum, ", ")
}

func checkHook(n *Node, value []byte) error {
	if err := n.Check(value); err != nil {
		return reason(err.Error())
	}
	return nil
}

func kindFits(k Kind, value []byte) bool {
	switch b := value[0]; k {
	case String:
		return b == '"'
	case Boolean:
		return b == 't' || b == 'f'
	case Number:
		return b == '-' || isDigit(b)
	case Integer:
		return (b == '-' || isDigit(b)) && isWhole(value)
	case Object, Map:
		return b == '{'
	case Array:
		return b == '['
	default:
		return true
	}
}

// isWhole says whether a JSON number has no fraction: 12 and 12.00.
func isWhole(number []byte) bool {
	if bytes.ContainsAny(number, "eE") {
		f, err := strconv.ParseFloat(string(number), 64)
		return err == nil && f == float64(int64(f))
	}
	_, fraction, _ := bytes.Cut(number, []byte("."))
	return len(bytes.Trim(fraction, "0")) == 0
}

func JSONKind(value []byte) string {
	switch value[0] {
	case '"':
		return "a string"
	case '{':
		return "an object"
	case '[':
		return "a list"
	case 't', 'f':
		return "true or false"
	case 'n':
		return "null"
	}
	if isWhole(value) {
		return "a number"
	}
	return "a number with a fraction"
}

// checkText checks what is between the quotes of a JSON string.
func checkText(n *Node, text []byte) error {
	if n.MaxLength > 0 && len(text) > n.MaxLength && characters(text) > n.MaxLength {
		return reason(fmt.Sprintf("is longer than %d characters", n.MaxLength))
	}
	return CheckFormat(n.Format, text)
}

// characters counts those of a JSON string, an escape being one.
func characters(text []byte) (n int) {
	for len(text) > 0 {
		size := 1
		switch {
		case text[0] == '\\' && len(text) > 5 && text[1] == 'u':
			size = 6
		case text[0] == '\\':
			size = 2
		case text[0] >= utf8.RuneSelf:
			_, size = utf8.DecodeRune(text)
		}
		text = text[size:]
		n++
	}
	return n
}

func CheckFormat(f Format, text []byte) error {
	switch f {
	case FormatUUID:
		if !LowerUUID(text) {
			return reason("is not a UUID")
		}
	case FormatDateTime:
		if _, err := time.Parse(time.RFC3339Nano, string(text)); err != nil {
			return reason("is not a time as ISO 8601 has it, such as 2025-09-20T18:41:31.219Z")
		}
	case FormatNoBlank:
		if len(bytes.TrimSpace(text)) == 0 {
			return reason("is empty")
		}
	}
	return nil
}

// LowerUUID checks the form 8-4-4-4-12 and writes its letters in lower case.
func LowerUUID(text []byte) bool {
	if len(text) != 36 {
		return false
	}
	for i, b := range text {
		dash := i == 8 || i == 13 || i == 18 || i == 23
		switch {
		case dash != (b == '-'):
			return false
		case b >= 'A' && b <= 'F':
			text[i] = b + 'a' - 'A'
		case !dash && !isDigit(b) && (b < 'a' || b > 'f'):
			return false
		}
	}
	return true
}

func checkRange(n *Node, number []byte) error {
	if n.Min == nil && n.Max == nil {
		return nil
	}
	f, err := strconv.ParseFloat(string(number), 64)
	switch {
	case err != nil:
		return reason("is too large")
	case n.Min != nil && f < *n.Min:
		return reason(fmt.Sprintf("is less than %v", *n.Min))
	case n.Max != nil && f > *n.Max:
		return reason(fmt.Sprintf("is more than %v", *n.Max))
	}
	return nil
}

// CheckClosed checks what can be told of a rendered object or list only when it is whole.
func CheckClosed(n *Node, value []byte) error {
	if len(n.Exclusive) > 0 {
		if err := CheckExclusive(n.Exclusive, topLevelKeys(value)); err != nil {
			return err
		}
	}
	if n.Check != nil {
		return checkHook(n, value)
	}
	return nil
}

func CheckExclusive(exclusive, present []string) error {
	var both []string
	for _, name := range exclusive {
		if slices.Contains(present, name) {
			both = append(both, name)
		}
	}
	if len(both) > 1 {
		return reason("has " + strings.Join(both, " and ") + ", of which the vendor takes one only")
	}
	return nil
}

func topLevelKeys(object []byte) []string {
	var fields map[string]json.RawMessage
	if json.Unmarshal(object, &fields) != nil {
		return nil
	}
	keys := make([]string, 0, len(fields))
	for k := range fields {
		keys = append(keys, k)
	}
	return keys
}
