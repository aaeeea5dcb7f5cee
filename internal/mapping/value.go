package mapping

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"unicode/utf8"

	"github.com/cdcsync/cdcsync/internal/cdc"
	"github.com/cdcsync/cdcsync/internal/shape"
)

// reason is why a value cannot be sent. It never quotes the value.
type reason string

func (r reason) Error() string { return string(r) }

const (
	errNotFinite = reason("is NaN or infinite, which JSON has no number for")
	errInfinity  = reason("is infinity, which is no point in time")
	errBC        = reason("is before the year 1, which neither unix time nor ISO 8601 is agreed on for")
	errYear      = reason("is after the year 9999, which ISO 8601 has no form for")
	errUTF8      = reason("is not valid UTF-8; the database's encoding lets any byte in")
	errMalformed = reason("is not in the text form that Postgres gives this type")
)

// form is how the text of a type becomes JSON.
type form uint8

const (
	formText form = iota + 1
	formInteger
	formNumeric
	formFloat
	formBool
	formJSON
	formBytea
	formDate
	formTimestamp
	formTimestamptz
	formInterval
	formHstore
	formArray
	formComposite
	formRange
	formMultirange
	formUnknown
)

// formsByName has the types that are not sent as text, by pg_type.typname, which is the same for built-in types and extensions.
var formsByName = map[string]form{
	"bool": formBool,
	"int2": formInteger, "int4": formInteger, "int8": formInteger, "oid": formInteger,
	"numeric": formNumeric,
	"float4":  formFloat, "float8": formFloat,
	"json": formJSON, "jsonb": formJSON,
	"bytea": formBytea,
	"date":  formDate, "timestamp": formTimestamp, "timestamptz": formTimestamptz,
	"interval": formInterval,
	"hstore":   formHstore,
}

// formsByOID has the same types by their fixed OIDs (src/include/catalog/pg_type.dat).
var formsByOID = map[uint32]form{
	16: formBool,
	21: formInteger, 23: formInteger, 20: formInteger, 26: formInteger,
	1700: formNumeric,
	700:  formFloat, 701: formFloat,
	114: formJSON, 3802: formJSON,
	17:   formBytea,
	1082: formDate, 1114: formTimestamp, 1184: formTimestamptz,
	1186: formInterval,
}

// codec renders values of one type. It is built once for a column.
type codec struct {
	form      form
	times     shape.Times
	elem      *codec // of an array, range or multirange
	delimiter byte
	fields    []codecField
	unknown   reason // why nothing can be rendered
}

type codecField struct {
	name  []byte // as a JSON string, with its colon
	codec *codec
}

// newCodec builds the codec of a type under a sink's convention for times.
func newCodec(t *cdc.Type, times shape.Times) *codec {
	c := &codec{form: formText, times: times, delimiter: ','}
	if t == nil {
		return c
	}
	switch t.Kind {
	case cdc.TypeUnknown:
		c.form, c.unknown = formUnknown, errUnknown(t)
	case cdc.TypeDomain:
		return newCodec(t.Elem, times)
	case cdc.TypeArray:
		c.form, c.elem = formArray, newCodec(t.Elem, times)
		if t.Delimiter != 0 {
			c.delimiter = t.Delimiter
		}
	case cdc.TypeComposite:
		c.form = formComposite
		for _, f := range t.Fields {
			name, _ := appendString(nil, []byte(f.Name))
			c.fields = append(c.fields, codecField{name: append(name, ':'), codec: newCodec(f.Type, times)})
		}
	case cdc.TypeRange:
		c.form, c.elem = formRange, newCodec(t.Elem, times)
	case cdc.TypeMultirange:
		c.form, c.elem = formMultirange, newCodec(multirangeElem(t.Elem), times)
	case cdc.TypeEnum:
	default:
		if f, ok := formsByOID[t.OID]; ok {
			c.form = f
		} else if f, ok := formsByName[t.Name]; ok {
			c.form = f
		}
	}
	return c
}

// errUnknown says what stands in the way of reading a value by its type.
func errUnknown(t *cdc.Type) reason {
	name := t.Name
	if name == "" {
		name = fmt.Sprintf("with OID %d", t.OID)
	}
	return reason("is of the type " + name + ", which was altered or dropped about when the row was written, so that its text cannot be interpreted; the row could not be read back")
}

// Readable reports whether a value's text is in the form that its type has, as far as the number of a composite type's fields goes.
func Readable(t *cdc.Type, text []byte) bool {
	_, err := newCodec(t, shape.TimesISO).append(nil, text)
	return !errors.Is(err, errMalformed)
}

// multirangeElem is the subtype, whether the catalogue gave it or the range type as the element.
func multirangeElem(t *cdc.Type) *cdc.Type {
	if t != nil && t.Kind == cdc.TypeRange {
		return t.Elem
	}
	return t
}

// append renders a value's text form as JSON. The error is a reason; dst is then to be cut back by the caller.
func (c *codec) append(dst, text []byte) ([]byte, error) {
	switch c.form {
	case formInteger:
		return appendInteger(dst, text)
	case formNumeric, formFloat:
		return appendNumber(dst, text)
	case formBool:
		return appendBool(dst, text)
	case formJSON:
		if !utf8.Valid(text) {
			return dst, errUTF8
		}
		return append(dst, text...), nil
	case formBytea:
		return appendBytea(dst, text)
	case formDate, formTimestamp, formTimestamptz:
		return appendMoment(dst, text, c.form == formDate, c.times)
	case formInterval:
		return appendInterval(dst, text)
	case formHstore:
		return appendHstore(dst, text)
	case formUnknown:
		return dst, c.unknown
	case formArray:
		return c.appendArray(dst, text)
	case formComposite:
		return c.appendComposite(dst, text)
	case formRange:
		dst, rest, err := c.appendRange(dst, text)
		if err == nil && len(rest) > 0 {
			err = errMalformed
		}
		return dst, err
	case formMultirange:
		return c.appendMultirange(dst, text)
	default:
		return appendString(dst, text)
	}
}

func appendInteger(dst, text []byte) ([]byte, error) {
	digits := text
	if len(digits) > 0 && digits[0] == '-' {
		digits = digits[1:]
	}
	if len(digits) == 0 || digits[0] == '0' && len(digits) > 1 {
		return dst, errMalformed
	}
	for _, b := range digits {
		if b < '0' || b > '9' {
			return dst, errMalformed
		}
	}
	return append(dst, text...), nil
}

// appendNumber keeps the digits as Postgres prints them: numeric in full (0.10, never 1e-1), floats in their shortest form,
// of which each, such as 1e+20 or -0, is a JSON number already.
func appendNumber(dst, text []byte) ([]byte, error) {
	if isNumber(text) {
		return append(dst, text...), nil
	}
	switch string(text) {
	case "NaN", "Infinity", "-Infinity":
		return dst, errNotFinite
	}
	return dst, errMalformed
}

// isNumber says whether text is a number as RFC 8259 section 6 has it.
func isNumber(text []byte) bool {
	i := 0
	if i < len(text) && text[i] == '-' {
		i++
	}
	start := i
	for i < len(text) && isDigit(text[i]) {
		i++
	}
	if i == start || text[start] == '0' && i > start+1 {
		return false
	}
	if i < len(text) && text[i] == '.' {
		i++
		start = i
		for i < len(text) && isDigit(text[i]) {
			i++
		}
		if i == start {
			return false
		}
	}
	if i < len(text) && (text[i] == 'e' || text[i] == 'E') {
		i++
		if i < len(text) && (text[i] == '+' || text[i] == '-') {
			i++
		}
		start = i
		for i < len(text) && isDigit(text[i]) {
			i++
		}
		if i == start {
			return false
		}
	}
	return i == len(text)
}

func isDigit(b byte) bool { return b >= '0' && b <= '9' }

func appendBool(dst, text []byte) ([]byte, error) {
	switch string(text) {
	case "t", "true": // an array's elements are t and f; a cast to text gives the words
		return append(dst, "true"...), nil
	case "f", "false":
		return append(dst, "false"...), nil
	}
	return dst, errMalformed
}

// appendBytea takes the hex form (bytea_output is pinned) and gives standard base64.
func appendBytea(dst, text []byte) ([]byte, error) {
	digits, ok := bytes.CutPrefix(text, []byte(`\x`))
	if !ok {
		return dst, errMalformed
	}
	raw := make([]byte, hex.DecodedLen(len(digits)))
	if _, err := hex.Decode(raw, digits); err != nil {
		return dst, errMalformed
	}
	dst = append(dst, '"')
	dst = base64.StdEncoding.AppendEncode(dst, raw)
	return append(dst, '"'), nil
}

// nested is one element of an array, composite, range or hstore literal.
type nested struct {
	text   []byte
	quoted bool
}

// scanNested reads an element up to one of the stop bytes, which it leaves in rest. Quotes may be doubled ("") or escaped (\").
func scanNested(s []byte, stop string) (n nested, rest []byte, err error) {
	for i, b := range s {
		switch {
		case b == '"' || b == '\\':
			return scanQuoted(s, i, stop)
		case indexByte(stop, b):
			return nested{text: s[:i]}, s[i:], nil
		}
	}
	return nested{}, nil, errMalformed
}

func indexByte(stop string, b byte) bool {
	for i := range len(stop) {
		if stop[i] == b {
			return true
		}
	}
	return false
}

// scanQuoted reads an element whose first quote or backslash is at i. It copies only when something is escaped.
func scanQuoted(s []byte, i int, stop string) (n nested, rest []byte, err error) {
	if i == 0 && s[0] == '"' {
		if end := bytes.IndexAny(s[1:], `"\`); end >= 0 && s[1+end] == '"' {
			after := s[end+2:]
			if len(after) > 0 && indexByte(stop, after[0]) {
				return nested{text: s[1 : 1+end], quoted: true}, after, nil
			}
		}
	}
	text, quoted, open := append([]byte(nil), s[:i]...), false, false
	for ; i < len(s); i++ {
		b := s[i]
		switch {
		case b == '\\':
			if i++; i == len(s) {
				return nested{}, nil, errMalformed
			}
			text, quoted = append(text, s[i]), true
		case b == '"' && open && i+1 < len(s) && s[i+1] == '"':
			text = append(text, '"')
			i++
		case b == '"':
			open, quoted = !open, true
		case !open && indexByte(stop, b):
			return nested{text: text, quoted: quoted}, s[i:], nil
		default:
			text = append(text, b)
		}
	}
	return nested{}, nil, errMalformed
}

// appendArray renders any dimension: {1,2}, {{1},{2}}, and [0:1]={1,2}, whose bounds JSON cannot say.
func (c *codec) appendArray(dst, text []byte) ([]byte, error) {
	if len(text) > 0 && text[0] == '[' {
		i := bytes.IndexByte(text, '=')
		if i < 0 {
			return dst, errMalformed
		}
		text = text[i+1:]
	}
	dst, rest, err := c.appendDimension(dst, text, 0)
	if err == nil && len(rest) > 0 {
		err = errMalformed
	}
	return dst, err
}

// maxDimensions is Postgres's own limit (MAXDIM in src/include/utils/array.h).
const maxDimensions = 6

func (c *codec) appendDimension(dst, s []byte, depth int) (_, rest []byte, err error) {
	if len(s) < 2 || s[0] != '{' || depth == maxDimensions {
		return dst, nil, errMalformed
	}
	dst, s = append(dst, '['), s[1:]
	if s[0] == '}' {
		return append(dst, ']'), s[1:], nil
	}
	stop := ",}"
	if c.delimiter != ',' {
		stop = string(c.delimiter) + "}"
	}
	for {
		if s[0] == '{' {
			dst, s, err = c.appendDimension(dst, s, depth+1)
		} else {
			dst, s, err = c.appendElement(dst, s, stop)
		}
		if err != nil {
			return dst, nil, err
		}
		if len(s) < 1 || s[0] != c.delimiter && s[0] != '}' {
			return dst, nil, errMalformed
		}
		last := s[0] == '}'
		if s = s[1:]; last {
			return append(dst, ']'), s, nil
		}
		if len(s) == 0 {
			return dst, nil, errMalformed
		}
		dst = append(dst, ',')
	}
}

func (c *codec) appendElement(dst, s []byte, stop string) (_, rest []byte, err error) {
	n, rest, err := scanNested(s, stop)
	switch {
	case err != nil:
		return dst, nil, err
	case !n.quoted && bytes.EqualFold(n.text, []byte("NULL")):
		return append(dst, "null"...), rest, nil
	case !n.quoted && len(n.text) == 0:
		return dst, nil, errMalformed
	}
	dst, err = c.elem.append(dst, n.text)
	return dst, rest, err
}

// appendComposite renders (1,"a b",) as {"id":1,"name":"a b","note":null}.
func (c *codec) appendComposite(dst, text []byte) ([]byte, error) {
	if len(text) < 2 || text[0] != '(' {
		return dst, errMalformed
	}
	dst, s := append(dst, '{'), text[1:]
	for i := range c.fields {
		if i > 0 {
			if s[0] != ',' {
				return dst, errMalformed
			}
			dst, s = append(dst, ','), s[1:]
		}
		dst = append(dst, c.fields[i].name...)
		n, rest, err := scanNested(s, ",)")
		if err != nil {
			return dst, err
		}
		if !n.quoted && len(n.text) == 0 {
			dst = append(dst, "null"...)
		} else if dst, err = c.fields[i].codec.append(dst, n.text); err != nil {
			return dst, err
		}
		s = rest
	}
	if string(s) != ")" {
		return dst, errMalformed
	}
	return append(dst, '}'), nil
}

// appendRange renders [1,10) as {"lower":1,"upper":10,"bounds":"[)"}, an open end as null and the empty range as {"empty":true}.
func (c *codec) appendRange(dst, s []byte) (_, rest []byte, err error) {
	if rest, ok := bytes.CutPrefix(s, []byte("empty")); ok {
		return append(dst, `{"empty":true}`...), rest, nil
	}
	if len(s) == 0 || s[0] != '[' && s[0] != '(' {
		return dst, nil, errMalformed
	}
	opening := s[0]
	dst = append(dst, `{"lower":`...)
	if dst, s, err = c.appendBound(dst, s[1:], ","); err != nil {
		return dst, nil, err
	}
	dst = append(dst, `,"upper":`...)
	if dst, s, err = c.appendBound(dst, s[1:], ")]"); err != nil {
		return dst, nil, err
	}
	dst = append(dst, `,"bounds":"`...)
	return append(dst, opening, s[0], '"', '}'), s[1:], nil
}

func (c *codec) appendBound(dst, s []byte, stop string) (_, rest []byte, err error) {
	n, rest, err := scanNested(s, stop)
	if err != nil {
		return dst, nil, err
	}
	if !n.quoted && len(n.text) == 0 {
		return append(dst, "null"...), rest, nil
	}
	dst, err = c.elem.append(dst, n.text)
	return dst, rest, err
}

// appendMultirange renders {[1,3),[5,9)} as an array of ranges.
func (c *codec) appendMultirange(dst, s []byte) (_ []byte, err error) {
	if len(s) < 2 || s[0] != '{' || s[len(s)-1] != '}' {
		return dst, errMalformed
	}
	dst, s = append(dst, '['), s[1:]
	for string(s) != "}" {
		if dst, s, err = c.appendRange(dst, s); err != nil {
			return dst, err
		}
		switch {
		case len(s) > 2 && s[0] == ',':
			dst, s = append(dst, ','), s[1:]
		case string(s) != "}":
			return dst, errMalformed
		}
	}
	return append(dst, ']'), nil
}

// appendHstore renders "a"=>"1", "b"=>NULL as {"a":"1","b":null}.
func appendHstore(dst, s []byte) (_ []byte, err error) {
	dst = append(dst, '{')
	for first := true; len(s) > 0; first = false {
		var ok bool
		if !first {
			if s, ok = bytes.CutPrefix(s, []byte(", ")); !ok {
				return dst, errMalformed
			}
			dst = append(dst, ',')
		}
		if dst, s, err = appendHstoreText(dst, s); err != nil {
			return dst, err
		}
		if s, ok = bytes.CutPrefix(s, []byte("=>")); !ok {
			return dst, errMalformed
		}
		dst = append(dst, ':')
		if rest, null := bytes.CutPrefix(s, []byte("NULL")); null {
			dst, s = append(dst, "null"...), rest
		} else if dst, s, err = appendHstoreText(dst, s); err != nil {
			return dst, err
		}
	}
	return append(dst, '}'), nil
}

// appendHstoreText renders the quoted key or value that s begins with.
func appendHstoreText(dst, s []byte) (_, rest []byte, err error) {
	if len(s) == 0 || s[0] != '"' {
		return dst, nil, errMalformed
	}
	var unescaped []byte
	for i, start := 1, 1; i < len(s); i++ {
		switch s[i] {
		case '\\':
			unescaped = append(unescaped, s[start:i]...)
			i++
			start = i
		case '"':
			text := s[start:i]
			if unescaped != nil || start > 1 {
				text = append(unescaped, text...)
			}
			dst, err = appendString(dst, text)
			return dst, s[i+1:], err
		}
	}
	return dst, nil, errMalformed
}
