package mapping

import (
	"encoding/base64"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cdcsync/cdcsync/internal/shape"
)

// invalid is a value that does not fit the vendor's shape: where, below what was being rendered, and why.
type invalid struct {
	path   string // ".number", "[2].externalId"; empty for the value itself
	reason string
}

func (e *invalid) Error() string { return e.path + " " + e.reason }

// writer renders values that are known only when an expression or a lookup has run, and checks them as it goes.
type writer struct {
	dst   []byte
	times shape.Times
	path  []byte
	limit int // of dst, set by the first value

	withdraw bool // every flag is false
}

func (w *writer) invalid(why string) error { return &invalid{path: string(w.path), reason: why} }

// value appends v as JSON. n says what the vendor takes; nil takes anything.
func (w *writer) value(v any, n *shape.Node) error {
	if shape.Free(n) {
		n = nil
	}
	switch v := v.(type) {
	case []any:
		return writeList(w, v, n)
	case []int: // a range such as 1..5
		return writeList(w, v, n)
	case []string:
		return writeList(w, v, n)
	case map[string]any:
		return w.object(v, n)
	}
	if err := w.room(v); err != nil {
		return err
	}
	start := len(w.dst)
	if err := w.scalar(v, n); err != nil {
		return err
	}
	if err := shape.CheckScalar(n, w.dst[start:]); err != nil {
		return w.invalid(err.Error())
	}
	return nil
}

// room refuses a value that makes what is rendered too large: a list may hold the same text a million times.
func (w *writer) room(v any) error {
	if w.limit == 0 {
		w.limit = len(w.dst) + largestValue
	}
	if s, ok := v.(string); len(w.dst) > w.limit || ok && len(w.dst)+len(s) > w.limit {
		return w.invalid("would be larger than 64 MiB")
	}
	return nil
}

func (w *writer) scalar(v any, n *shape.Node) (err error) {
	text := n != nil && n.Kind == shape.String
	if n != nil && n.Kind == shape.Boolean {
		v = w.flag(v)
	}
	switch v := v.(type) {
	case nil:
		w.dst = append(w.dst, "null"...)
	case bool:
		w.dst = strconv.AppendBool(w.dst, v)
	case string:
		if w.dst, err = appendString(w.dst, []byte(v)); err != nil {
			return w.invalid(err.Error())
		}
	case int:
		w.number(strconv.Itoa(v), text)
	case Decimal:
		w.number(v.text, text)
	case float64:
		if math.IsNaN(v) || math.IsInf(v, 0) {
			return w.invalid(string(errNotFinite))
		}
		w.number(strconv.FormatFloat(v, 'g', -1, 64), text)
	case time.Time:
		w.time(v, false, n)
	case Date:
		w.time(v.Time, true, n)
	case []byte:
		w.dst = append(w.dst, '"')
		w.dst = base64.StdEncoding.AppendEncode(w.dst, v)
		w.dst = append(w.dst, '"')
	default:
		return w.invalid(fmt.Sprintf("is a %T, which has no JSON form", v))
	}
	return nil
}

// flag is a value where the vendor wants true or false: that of a text, as Postgres reads one.
func (w *writer) flag(v any) any {
	if w.withdraw {
		return false
	}
	s, ok := v.(string)
	if !ok {
		return v
	}
	switch strings.ToLower(strings.TrimSpace(s)) { // https://www.postgresql.org/docs/current/datatype-boolean.html
	case "true", "yes", "on", "t", "y", "1":
		return true
	case "false", "no", "off", "f", "n", "0":
		return false
	}
	return v
}

// number appends digits, in quotes where the vendor wants a string: nothing is lost by that.
func (w *writer) number(digits string, text bool) {
	if text {
		w.dst = append(w.dst, '"')
	}
	w.dst = append(w.dst, digits...)
	if text {
		w.dst = append(w.dst, '"')
	}
}

func (w *writer) time(t time.Time, date bool, n *shape.Node) {
	switch times := timesFor(w.times, n); {
	case times == shape.TimesUnixMilli:
		w.dst = strconv.AppendInt(w.dst, t.UnixMilli(), 10)
	case date && times == shape.TimesISO:
		w.dst = t.AppendFormat(w.dst, `"2006-01-02"`)
	default:
		w.dst = appendISO(w.dst, t)
	}
}

// timesFor is the convention at one place: the sink's, unless the vendor's shape there decides it.
func timesFor(times shape.Times, n *shape.Node) shape.Times {
	switch {
	case n == nil:
	case n.Format == shape.FormatDateTime:
		return timesDateTime
	case n.Kind == shape.String:
		return shape.TimesISO
	case n.Kind == shape.Integer, n.Kind == shape.Number:
		return shape.TimesUnixMilli
	}
	return times
}

func writeList[T any](w *writer, list []T, n *shape.Node) error {
	var elem *shape.Node
	if n != nil {
		if n.Kind != shape.Array {
			return w.invalid("is a list, and the vendor wants " + shape.KindNames[n.Kind])
		}
		if len(list) < n.MinItems {
			return w.invalid(tooFew(n.MinItems))
		}
		elem = n.Elem
	}
	start, path := len(w.dst), len(w.path)
	w.dst = append(w.dst, '[')
	for i, v := range list {
		if i > 0 {
			w.dst = append(w.dst, ',')
		}
		w.path = fmt.Appendf(w.path[:path], "[%d]", i)
		if err := w.value(v, elem); err != nil {
			return err
		}
	}
	w.path = w.path[:path]
	w.dst = append(w.dst, ']')
	return w.closed(start, n)
}

func tooFew(least int) string {
	return fmt.Sprintf("has too few elements; the vendor wants %d or more", least)
}

// closed checks the object or list that begins at start, now that it is whole.
func (w *writer) closed(start int, n *shape.Node) error {
	if n == nil {
		return nil
	}
	if err := shape.CheckClosed(n, w.dst[start:]); err != nil {
		return w.invalid(err.Error())
	}
	return nil
}

// object renders fields in the vendor's order, and those that the vendor does not name after them by name: an expression's
// objects have no order of their own.
func (w *writer) object(fields map[string]any, n *shape.Node) error {
	names := slices.Sorted(maps.Keys(fields))
	if n != nil {
		slices.SortStableFunc(names, func(a, b string) int { return rank(n, a) - rank(n, b) })
	}
	o, err := w.open(n)
	if err != nil {
		return err
	}
	for _, name := range names {
		node, skip, err := o.field(name, fields[name] == nil)
		if err != nil {
			return err
		}
		if skip {
			continue
		}
		if err := w.value(fields[name], node); err != nil {
			return err
		}
	}
	return o.close()
}

// rank is a field's place in the vendor's order.
func rank(n *shape.Node, name string) int {
	if i := slices.IndexFunc(n.Fields, func(f shape.Field) bool { return f.Name == name }); i >= 0 {
		return i
	}
	return len(n.Fields)
}

// openObject is an object that is being rendered field by field.
type openObject struct {
	w       *writer
	n       *shape.Node
	start   int // in dst
	path    int // length of the writer's path around it
	present []string
}

func (w *writer) open(n *shape.Node) (*openObject, error) {
	if n != nil && n.Kind != shape.Object && n.Kind != shape.Map {
		return nil, w.invalid("is an object, and the vendor wants " + shape.KindNames[n.Kind])
	}
	o := &openObject{w: w, n: n, start: len(w.dst), path: len(w.path)}
	w.dst = append(w.dst, '{')
	return o, nil
}

// field begins a field and gives its shape. skip says that it is null, optional and so left out.
func (o *openObject) field(name string, null bool) (n *shape.Node, skip bool, err error) {
	w := o.w
	f, known := child(o.n, name)
	w.path = append(append(w.path[:o.path], '.'), name...)
	if o.n != nil && o.n.Kind == shape.Map {
		w.path = append(w.path[:o.path], ".*"...) // the keys are the row's
	}
	switch {
	case !known:
		return nil, false, w.invalid("is a field that the vendor does not have")
	case null && !f.Required && !shape.Nullable(f.Node):
		return nil, true, nil
	}
	if len(w.dst) > o.start+1 {
		w.dst = append(w.dst, ',')
	}
	at := len(w.dst)
	if w.dst, err = appendString(w.dst, []byte(name)); err != nil {
		return nil, false, w.invalid(err.Error())
	}
	if o.n != nil && o.n.Kind == shape.Map {
		if err := shape.CheckFormat(o.n.Key, w.dst[at+1:len(w.dst)-1]); err != nil {
			return nil, false, w.invalid("has a key that " + err.Error())
		}
	}
	w.dst = append(w.dst, ':')
	o.present = append(o.present, name)
	return f.Node, false, nil
}

func (o *openObject) close() error {
	o.w.path = o.w.path[:o.path]
	o.w.dst = append(o.w.dst, '}')
	if o.n == nil {
		return nil
	}
	for _, f := range o.n.Fields {
		if f.Required && !slices.Contains(o.present, f.Name) {
			return o.w.invalid("lacks " + f.Name + ", which the vendor requires")
		}
	}
	return o.w.closed(o.start, o.n)
}
