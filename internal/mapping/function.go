package mapping

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/cockroachdb/apd/v3"
	"github.com/expr-lang/expr/builtin"
)

// Function documents one function of the expression language.
type Function struct {
	Name    string
	Usage   string // digits(text)
	Doc     string // one sentence
	Example string // an expression; created_at is 2025-09-20 18:41:31.219+00 and birth_date 1990-08-15
	Result  string // what Example gives, as JSON
}

// function is a Function with what it does. Unless nulls is set, a null argument makes the result null.
type function struct {
	Function
	types []any // its overloads as typed function values; only their types matter
	nulls bool
	call  func(args []any) (any, error)
}

// Functions lists the functions of the expression language in alphabetical order, the ones of the language itself included.
func Functions() []Function {
	all := make([]Function, 0, len(functions)+len(languageFunctions))
	for _, f := range functions {
		all = append(all, f.Function)
	}
	all = append(all, languageFunctions...)
	slices.SortFunc(all, func(a, b Function) int { return strings.Compare(a.Name, b.Name) })
	return all
}

var (
	textToText = []any{func(string) string { return "" }}
	timeToInt  = []any{func(time.Time) int { return 0 }, func(Date) int { return 0 }}
	timeToText = []any{func(time.Time) string { return "" }, func(Date) string { return "" }}
	toNumber   = []any{func(int) int { return 0 }, func(Decimal) Decimal { return Decimal{} }, func(float64) Decimal { return Decimal{} }}
)

var functions = []function{
	{
		Function{"digits", "digits(text)", "Keeps the digits 0 to 9 and drops everything else.", `digits("123.456.789-00")`, `"12345678900"`},
		textToText, false, onText(keepDigits),
	},
	{Function{"upper", "upper(text)", "Upper case.", `upper("sp")`, `"SP"`}, textToText, false, onText(strings.ToUpper)},
	{Function{"lower", "lower(text)", "Lower case.", `lower("A@B.com")`, `"a@b.com"`}, textToText, false, onText(strings.ToLower)},
	{Function{"trim", "trim(text)", "Without white space at both ends.", `trim("  a b ")`, `"a b"`}, textToText, false, onText(strings.TrimSpace)},
	{
		Function{"sha256", "sha256(text)", "SHA-256 of the text (or of a bytea's bytes) in lower-case hexadecimal.", `sha256("a@b.com")`, `"fb98d44ad7501a959f3f4f4a3f004fe2d9e581ea6207e218c4b02c08a4d75adf"`},
		[]any{func(string) string { return "" }, func([]byte) string { return "" }},
		false, hashSHA256,
	},
	{
		Function{"base64", "base64(text)", "Standard base64 of the text's bytes.", `base64("abc")`, `"YWJj"`},
		textToText, false,
		base64Text,
	},
	{
		Function{"replace", "replace(text, old, new)", "Every old replaced by new.", `replace("a-b-c", "-", "")`, `"abc"`},
		[]any{func(string, string, string) string { return "" }},
		false, replaceText,
	},
	{
		Function{"split", "split(text, separator)", "The parts between the separators, as a list.", `split("a,b", ",")`, `["a","b"]`},
		[]any{func(string, string) []any { return nil }},
		false, splitText,
	},
	{
		Function{"join", "join(list, separator)", "The elements as one text; nulls are left out.", `join(["a", null, "b"], " ")`, `"a b"`},
		[]any{func([]any, string) string { return "" }},
		false, joinTexts,
	},
	{
		Function{"concat", "concat(value, …)", "The values as one text; nulls are left out.", `concat("user-", 7, null)`, `"user-7"`},
		[]any{func(...any) string { return "" }},
		true, concatTexts,
	},
	{
		Function{"padStart", "padStart(text, length, fill)", "Filled at the front up to so many characters.", `padStart("42", 6, "0")`, `"000042"`},
		[]any{func(string, int, string) string { return "" }},
		false, padStart,
	},
	{
		Function{"coalesce", "coalesce(value, …)", "The first value that is not null. a ?? b does the same for two.", `coalesce(null, "x")`, `"x"`},
		[]any{func(...any) any { return nil }},
		true, firstNotNull,
	},
	{
		Function{"nullif", "nullif(value, other)", "Null where both are equal, else the value.", `nullif("", "")`, `null`},
		[]any{func(any, any) any { return nil }},
		true, nullIfEqual,
	},
	{
		Function{"string", "string(value)", "The value as text: digits of a number, JSON of a list or object.", `string(12.50 + 0)`, `"12.5"`},
		[]any{func(any) string { return "" }},
		false, toText,
	},
	{
		Function{"number", "number(text)", "The number that the text is; text that is none is rejected.", `number("12.50")`, `12.50`},
		[]any{func(string) any { return nil }, func(int) int { return 0 }, func(Decimal) Decimal { return Decimal{} }, func(float64) float64 { return 0 }},
		false, toNumberValue,
	},
	{
		Function{"int", "int(value)", "The whole number that a text or number is, cut towards zero.", `int("42")`, `42`},
		[]any{func(any) int { return 0 }},
		false, toInt,
	},
	{
		Function{"json", "json(text)", "The value that JSON text holds, for fields within it.", `json("{\"a\": 1}").a`, `1`},
		[]any{func(string) any { return nil }},
		false, parseJSONText,
	},
	{
		Function{"object", "object(list, key, value)", "An object with a field for each element; # is the element, .name its field. Null keys are left out.", `object(["a", "b"], #, true)`, `{"a":true,"b":true}`},
		[]any{func([]any) map[string]any { return nil }},
		false, objectOfPairs,
	},
	{
		Function{"ms", "ms(time)", "Milliseconds since 1970 UTC; a date is its midnight in UTC.", `ms(created_at)`, `1758393691219`},
		timeToInt, false,
		onTime(func(t time.Time, _ bool) any { return int(t.UnixMilli()) }),
	},
	{
		Function{"unix", "unix(time)", "Seconds since 1970 UTC.", `unix(created_at)`, `1758393691`},
		timeToInt, false,
		onTime(func(t time.Time, _ bool) any { return int(t.Unix()) }),
	},
	{
		Function{"iso", "iso(time)", "ISO 8601 in UTC, such as 2025-09-20T18:41:31.219Z; a date is 2025-09-20.", `iso(created_at)`, `"2025-09-20T18:41:31.219Z"`},
		timeToText, false,
		onTime(func(t time.Time, date bool) any { return isoText(t, date) }),
	},
	{
		Function{"date", "date(time)", "The day of a timestamp in UTC, such as 2025-09-20.", `date(created_at)`, `"2025-09-20"`},
		timeToText, false,
		onTime(func(t time.Time, _ bool) any { return isoText(t, true) }),
	},
	{Function{"day", "day(time)", "Day of the month, 1 to 31.", `day(birth_date)`, `15`}, timeToInt, false, onTime(func(t time.Time, _ bool) any { return t.Day() })},
	{Function{"month", "month(time)", "Month, 1 to 12.", `month(birth_date)`, `8`}, timeToInt, false, onTime(func(t time.Time, _ bool) any { return int(t.Month()) })},
	{Function{"year", "year(time)", "Year.", `year(birth_date)`, `1990`}, timeToInt, false, onTime(func(t time.Time, _ bool) any { return t.Year() })},
	{Function{"abs", "abs(number)", "Without its sign.", `abs(-2)`, `2`}, toNumber, false, absolute},
	{
		Function{"round", "round(number, places)", "Rounded, halves away from zero, to so many places (0 when left out).", `round(2.345, 2)`, `2.35`},
		append([]any{func(int, int) Decimal { return Decimal{} }, func(Decimal, int) Decimal { return Decimal{} }, func(float64, int) Decimal { return Decimal{} }}, toNumber...), false, rounding(apd.RoundHalfUp),
	},
	{Function{"floor", "floor(number)", "The next whole number down.", `floor(2.9)`, `2`}, toNumber, false, rounding(apd.RoundFloor)},
	{Function{"ceil", "ceil(number)", "The next whole number up.", `ceil(2.1)`, `3`}, toNumber, false, rounding(apd.RoundCeiling)},
	{Function{"min", "min(value, …)", "The least of numbers, texts or times.", `min(3, 1, 2)`, `1`}, []any{func(any, ...any) any { return nil }}, false, extreme(-1)},
	{Function{"max", "max(value, …)", "The greatest of numbers, texts or times.", `max(3, 1.5)`, `3`}, []any{func(any, ...any) any { return nil }}, false, extreme(1)},
}

// languageFunctions are those of expr-lang that behave on our values as one expects. The others are not known: now() would
// make an item differ from one rendering to the next, and sort or sum know nothing of numeric.
var languageFunctions = []Function{
	{"len", "len(value)", "Characters of a text, elements of a list, fields of an object.", `len("abc")`, `3`},
	{"first", "first(list)", "The first element, null for an empty list.", `first([1, 2])`, `1`},
	{"last", "last(list)", "The last element, null for an empty list.", `last([1, 2])`, `2`},
	{"filter", "filter(list, condition)", "The elements that the condition holds for; # is the element, .name its field.", `filter([1, 2, 3], # > 1)`, `[2,3]`},
	{"map", "map(list, expression)", "Each element turned into something else.", `map([1, 2], # * 2)`, `[2,4]`},
	{"find", "find(list, condition)", "The first element that the condition holds for, else null.", `find([1, 2, 3], # > 1)`, `2`},
	{"count", "count(list, condition)", "How many elements the condition holds for.", `count([1, 2, 3], # > 1)`, `2`},
	{"all", "all(list, condition)", "Whether the condition holds for every element.", `all([1, 2], # > 0)`, `true`},
	{"any", "any(list, condition)", "Whether the condition holds for one element or more.", `any([1, 2], # > 1)`, `true`},
	{"none", "none(list, condition)", "Whether the condition holds for no element.", `none([1, 2], # > 2)`, `true`},
	{"keys", "keys(object)", "The names of an object's fields, in no order.", `keys({"a": 1})`, `["a"]`},
	{"values", "values(object)", "The values of an object's fields, in no order.", `values({"a": 1})`, `[1]`},
	{"reverse", "reverse(list)", "The elements from the last to the first.", `reverse([1, 2])`, `[2,1]`},
}

var functionNames, functionTable = func() (names []string, table map[string]*builtin.Function) {
	table = map[string]*builtin.Function{}
	operatorFunctions(table)
	for _, f := range functions {
		names = append(names, f.Name)
		b := &builtin.Function{Name: f.Name, Func: f.run}
		for _, t := range f.types {
			b.Types = append(b.Types, reflect.TypeOf(t))
		}
		table[f.Name] = b
	}
	for _, f := range languageFunctions {
		names = append(names, f.Name)
	}
	names = append(names, "changed", "commit_time")
	slices.Sort(names)
	return names, table
}()

func (f *function) run(args ...any) (any, error) {
	if !f.nulls && slices.Contains(args, nil) {
		return nil, nil
	}
	result, err := f.call(args)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", f.Name, err)
	}
	return result, nil
}

func wants(want string, got any) error {
	return failure("a " + typeName(got) + " is given where a " + want + " is wanted")
}

func onText(f func(string) string) func([]any) (any, error) {
	return func(args []any) (any, error) {
		s, ok := args[0].(string)
		if !ok {
			return nil, wants("string", args[0])
		}
		return f(s), nil
	}
}

func onTime(f func(t time.Time, date bool) any) func([]any) (any, error) {
	return func(args []any) (any, error) {
		t, ok := instant(args[0])
		if !ok {
			return nil, wants("date or timestamp", args[0])
		}
		_, date := args[0].(Date)
		return f(t, date), nil
	}
}

func keepDigits(s string) string {
	return strings.Map(func(r rune) rune {
		if r < '0' || r > '9' {
			return -1
		}
		return r
	}, s)
}

func isoText(t time.Time, date bool) string {
	if date {
		return t.UTC().Format(time.DateOnly)
	}
	return strings.Trim(string(appendISO(nil, t)), `"`)
}

func hashSHA256(args []any) (any, error) {
	var sum [sha256.Size]byte
	switch v := args[0].(type) {
	case string:
		sum = sha256.Sum256([]byte(v))
	case []byte:
		sum = sha256.Sum256(v)
	default:
		return nil, wants("string", v)
	}
	return hex.EncodeToString(sum[:]), nil
}

func base64Text(args []any) (any, error) {
	s, ok := args[0].(string)
	switch {
	case !ok:
		return nil, wants("string", args[0])
	case base64.StdEncoding.EncodedLen(len(s)) > largestValue:
		return nil, errLargeValue
	}
	return base64.StdEncoding.EncodeToString([]byte(s)), nil
}

// texts are the arguments when all are strings.
func texts(args []any) ([]string, error) {
	all := make([]string, len(args))
	for i, a := range args {
		s, ok := a.(string)
		if !ok {
			return nil, wants("string", a)
		}
		all[i] = s
	}
	return all, nil
}

func replaceText(args []any) (any, error) {
	s, err := texts(args)
	if err != nil {
		return nil, err
	}
	if replaced(s[0], s[1], s[2]) > largestValue {
		return nil, errLargeValue
	}
	return strings.ReplaceAll(s[0], s[1], s[2]), nil
}

func splitText(args []any) (any, error) {
	s, err := texts(args)
	if err != nil {
		return nil, err
	}
	if strings.Count(s[0], s[1]) >= mostElements {
		return nil, errManyElements
	}
	parts := []any{}
	for part := range strings.SplitSeq(s[0], s[1]) {
		parts = append(parts, part)
	}
	return parts, nil
}

func joinTexts(args []any) (any, error) {
	list, ok := args[0].([]any)
	separator, okText := args[1].(string)
	if !ok || !okText {
		return nil, failure("a list and a string are wanted")
	}
	var parts []string
	size := 0
	for _, v := range list {
		if v == nil {
			continue
		}
		s, err := textOf(v)
		if err != nil {
			return nil, err
		}
		if size += len(s) + len(separator); size > largestValue {
			return nil, errLargeValue
		}
		parts = append(parts, s)
	}
	return strings.Join(parts, separator), nil
}

func concatTexts(args []any) (any, error) {
	return joinTexts([]any{args, ""})
}

func padStart(args []any) (any, error) {
	s, okText := args[0].(string)
	n, okLength := args[1].(int)
	fill, okFill := args[2].(string)
	const longest = 1 << 16 // more than any identifier; a length from a column must not take the memory
	if !okText || !okLength || !okFill || utf8.RuneCountInString(fill) != 1 || n > longest {
		return nil, failure("a text, a length and one character are wanted")
	}
	return strings.Repeat(fill, max(0, n-utf8.RuneCountInString(s))) + s, nil
}

func firstNotNull(args []any) (any, error) {
	for _, a := range args {
		if a != nil {
			return a, nil
		}
	}
	return nil, nil
}

func nullIfEqual(args []any) (any, error) {
	equal, err := equalValues(args[0], args[1])
	if equal || err != nil {
		return nil, err
	}
	return args[0], nil
}

func toText(args []any) (any, error) { return textOf(args[0]) }

// textOf is a value as text: as JSON has it, without the quotes around a string.
func textOf(v any) (string, error) {
	switch v := v.(type) {
	case string:
		return v, nil
	case int:
		return strconv.Itoa(v), nil
	case Decimal:
		return v.text, nil
	case time.Time:
		return isoText(v, false), nil
	case Date:
		return isoText(v.Time, true), nil
	}
	w := writer{}
	if err := w.value(v, nil); err != nil {
		return "", failure(err.Error())
	}
	return strings.Trim(string(w.dst), `"`), nil
}

func toNumberValue(args []any) (any, error) {
	s, ok := args[0].(string)
	if !ok {
		if isNumeric(args[0]) {
			return args[0], nil
		}
		return nil, wants("string", args[0])
	}
	s = strings.TrimSpace(s)
	if !isNumber([]byte(s)) {
		return nil, failure("the text is not a number")
	}
	return numberOf(s), nil
}

// numberOf is an int where the digits are those of one, else a Decimal with the digits as they are.
func numberOf(s string) any {
	if n, err := strconv.Atoi(s); err == nil && s != "-0" {
		return n
	}
	return Decimal{s}
}

func toInt(args []any) (any, error) {
	v := args[0]
	if _, ok := v.(string); ok {
		var err error
		if v, err = toNumberValue(args); err != nil {
			return nil, err
		}
	}
	d, ok, err := toDecimal(v)
	if err != nil || !ok {
		return nil, wrongType(v, err)
	}
	whole, err := d.rounded(apd.RoundDown, 0)
	if err != nil {
		return nil, err
	}
	return numberOf(whole.text), nil
}

func parseJSONText(args []any) (any, error) {
	s, ok := args[0].(string)
	if !ok {
		return nil, wants("string", args[0])
	}
	return decodeJSON([]byte(s))
}

// decodeJSON reads JSON with the digits of its numbers kept.
func decodeJSON(text []byte) (any, error) {
	if tooManyElements(text) {
		return nil, errManyElements
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil || d.More() {
		return nil, failure("the text is not JSON")
	}
	return withNumbers(v), nil
}

func withNumbers(v any) any {
	switch v := v.(type) {
	case json.Number:
		return numberOf(string(v))
	case []any:
		for i := range v {
			v[i] = withNumbers(v[i])
		}
	case map[string]any:
		for k := range v {
			v[k] = withNumbers(v[k])
		}
	}
	return v
}

func absolute(args []any) (any, error) {
	c, ok, err := compareNumbers(args[0], 0)
	switch {
	case err != nil || !ok:
		return nil, wrongType(args[0], err)
	case c < 0:
		return arithmetic("-", 0, args[0])
	}
	return args[0], nil
}

func rounding(mode apd.Rounder) func([]any) (any, error) {
	return func(args []any) (any, error) {
		places := 0
		if len(args) == 2 {
			n, ok := args[1].(int)
			const most = 1000
			if !ok || n < -most || n > most {
				return nil, wants("number of places", args[1])
			}
			places = n
		}
		d, ok, err := toDecimal(args[0])
		if err != nil || !ok {
			return nil, wrongType(args[0], err)
		}
		d, err = d.rounded(mode, places)
		if err != nil {
			return nil, err
		}
		return numberOf(d.text), nil
	}
}

func extreme(sign int) func([]any) (any, error) {
	return func(args []any) (any, error) {
		best := args[0]
		for _, v := range args[1:] {
			c, err := compare(v, best)
			if err != nil {
				return nil, err
			}
			if c*sign > 0 {
				best = v
			}
		}
		return best, nil
	}
}
