package replication

import (
	"encoding/binary"
	"fmt"
)

// dataRow is a DataRow of the protocol: for each column the length of its text as int32, -1 for null, and the text. The zero value is ready for parse.
type dataRow struct {
	values []byte // all columns
	ends   []int  // of each column, in values
}

// parse takes the body of the message, which must have so many columns.
func (r *dataRow) parse(message []byte, columns int) error {
	if len(message) < 2 {
		return errShort
	}
	if n := int(binary.BigEndian.Uint16(message)); n != columns {
		return fmt.Errorf("row of %d columns, want %d", n, columns)
	}
	r.values, r.ends = message[2:], r.ends[:0]
	at := 0
	for range columns {
		if at += 4; at > len(r.values) {
			return errShort
		}
		switch n := int32(binary.BigEndian.Uint32(r.values[at-4:])); {
		case n > 0:
			at += int(n)
		case n < -1:
			return errShort
		}
		r.ends = append(r.ends, at)
	}
	if at != len(r.values) {
		return errShort
	}
	return nil
}

// text is that of a column, nil for null.
func (r *dataRow) text(column int) []byte {
	from := 0
	if column > 0 {
		from = r.ends[column-1]
	}
	if int32(binary.BigEndian.Uint32(r.values[from:])) < 0 {
		return nil
	}
	return r.values[from+4 : r.ends[column]]
}

// shift leaves the first column out.
func (r *dataRow) shift() {
	first := r.ends[0]
	r.values, r.ends = r.values[first:], append(r.ends[:0], r.ends[1:]...)
	for i := range r.ends {
		r.ends[i] -= first
	}
}

func (r *dataRow) appendKey(dst []byte, columns []int) []byte {
	for _, i := range columns {
		dst = appendKey(dst, r.text(i))
	}
	return dst
}
