package cdc

import (
	"encoding/binary"
	"math"
)

// reader takes fields off the front of buf. After the first error it gives zeros; err says what was wrong.
type reader struct {
	buf []byte
	err error
}

func (r *reader) fail(format string, args ...any) {
	if r.err == nil {
		r.err = corrupt(format, args...)
	}
	r.buf = nil
}

func (r *reader) take(n int) []byte {
	if n < 0 || n > len(r.buf) {
		r.fail("%d bytes wanted, %d left", n, len(r.buf))
		return nil
	}
	b := r.buf[:n:n]
	r.buf = r.buf[n:]
	return b
}

func (r *reader) peek() byte {
	if len(r.buf) == 0 {
		return 0
	}
	return r.buf[0]
}

func (r *reader) byte() byte {
	if b := r.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (r *reader) uint32() uint32 {
	if b := r.take(4); b != nil {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

func (r *reader) uint64() uint64 {
	if b := r.take(8); b != nil {
		return binary.BigEndian.Uint64(b)
	}
	return 0
}

func (r *reader) uvarint() uint64 {
	v, n := binary.Uvarint(r.buf)
	if n <= 0 {
		r.fail("bad length")
		return 0
	}
	r.buf = r.buf[n:]
	return v
}

func (r *reader) ordinal() uint32 {
	v := r.uvarint()
	if v > math.MaxUint32 {
		r.fail("ordinal %d", v)
		return 0
	}
	return uint32(v)
}

func (r *reader) length() int {
	v := r.uvarint()
	if v > uint64(len(r.buf)) {
		r.fail("length %d, %d bytes left", v, len(r.buf))
		return 0
	}
	return int(v)
}

func (r *reader) rest() []byte { return r.take(len(r.buf)) }

func (r *reader) string() string { return string(r.take(r.length())) }

func (r *reader) names() []string {
	n := r.length()
	if n == 0 {
		return nil
	}
	names := make([]string, 0, n)
	for range n {
		names = append(names, r.string())
	}
	return names
}

func namesLen(names []string) int {
	n := uvarintLen(uint64(len(names)))
	for _, name := range names {
		n += uvarintLen(uint64(len(name))) + len(name)
	}
	return n
}

func appendNames(dst []byte, names []string) []byte {
	dst = binary.AppendUvarint(dst, uint64(len(names)))
	for _, name := range names {
		dst = appendString(dst, name)
	}
	return dst
}

func appendString(dst []byte, s string) []byte {
	return append(binary.AppendUvarint(dst, uint64(len(s))), s...)
}

func (r *reader) frame() (kind byte, payload []byte) {
	kind = r.byte()
	return kind, r.take(r.length())
}

// tuple reads pgoutput's TupleData with the given number of columns.
func (r *reader) tuple(dst []Value, columns int) []Value {
	if !r.columns(columns) {
		return dst
	}
	b := r.buf // in a register: rows are what most time is spent with
	for range columns {
		if len(b) == 0 {
			r.fail("tuple ends early")
			return dst
		}
		mark := b[0]
		b = b[1:]
		switch mark {
		case 't':
			data, rest, ok := cutText(b)
			if !ok {
				r.fail("text is longer than the %d bytes left", len(b))
				return dst
			}
			dst, b = append(dst, Value{Kind: Text, Data: data}), rest
		case 'n':
			dst = append(dst, Value{Kind: Null})
		case 'u':
			dst = append(dst, Value{Kind: Unchanged})
		default:
			r.fail("column mark %q, want 't', 'n' or 'u'", mark)
			return dst
		}
	}
	r.buf = b
	return dst
}

// values reads what AppendValues has written, behind the number of columns.
func (r *reader) values(dst []Value, columns int) []Value {
	if !r.columns(columns) {
		return dst
	}
	b := r.buf
	for range columns {
		if len(b) >= 4 && binary.BigEndian.Uint32(b) == math.MaxUint32 {
			dst, b = append(dst, Value{Kind: Null}), b[4:]
			continue
		}
		data, rest, ok := cutText(b)
		if !ok {
			r.fail("text is longer than the %d bytes left", len(b))
			return dst
		}
		dst, b = append(dst, Value{Kind: Text, Data: data}), rest
	}
	r.buf = b
	return dst
}

// columns takes the number of columns, and says whether it is the relation's.
func (r *reader) columns(want int) bool {
	head := r.take(2)
	if head == nil {
		return false
	}
	if n := int(binary.BigEndian.Uint16(head)); n != want {
		r.fail("row of %d columns, its relation has %d", n, want)
		return false
	}
	return true
}

// cutText takes a text off b, behind its length as int32.
func cutText(b []byte) (text, rest []byte, ok bool) {
	if len(b) < 4 {
		return nil, nil, false
	}
	n := uint64(binary.BigEndian.Uint32(b))
	if n > uint64(len(b)-4) {
		return nil, nil, false
	}
	return b[4 : 4+n : 4+n], b[4+n:], true
}
