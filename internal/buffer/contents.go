package buffer

import (
	"encoding/base64"
	"fmt"
	"io"
	"strings"
)

// letterContents is the JSON of a large letter's item and change, made part by part: they are in memory once already.
type letterContents struct {
	reader io.Reader
	size   int
	part   []byte
}

// newLetterContents writes what Letter's tags say.
func newLetterContents(item, change []byte) *letterContents {
	c := &letterContents{}
	var pieces []io.Reader
	text := func(s string) {
		pieces = append(pieces, strings.NewReader(s))
		c.size += len(s)
	}
	data := func(raw []byte) {
		pieces = append(pieces, &base64Reader{raw: raw})
		c.size += base64.StdEncoding.EncodedLen(len(raw))
	}
	open := `{"`
	for _, f := range []struct {
		name string
		raw  []byte
	}{{"body", item}, {"change", change}} {
		if f.raw == nil {
			continue
		}
		text(open + f.name + `":"`)
		data(f.raw)
		open = `","`
	}
	if open == `{"` {
		text("{}")
	} else {
		text(`"}`)
	}
	c.reader = io.MultiReader(pieces...)
	return c
}

// length is how much there is in all; of nil nothing.
func (c *letterContents) length() int {
	if c == nil {
		return 0
	}
	return c.size
}

// next returns the next part, valid until the one after.
func (c *letterContents) next(size int) ([]byte, error) {
	if c.part == nil {
		c.part = make([]byte, size)
	}
	n, err := io.ReadFull(c.reader, c.part[:size])
	if n == 0 {
		return nil, fmt.Errorf("contents: %w", err)
	}
	return c.part[:n], nil
}

// base64Reader gives raw in base64.
type base64Reader struct {
	raw     []byte
	pending []byte // of scratch
	scratch [4096]byte
}

func (r *base64Reader) Read(p []byte) (int, error) {
	if len(r.pending) == 0 {
		n := min(len(r.scratch)/4*3, len(r.raw)) // padding comes at the end only
		if n == 0 {
			return 0, io.EOF
		}
		base64.StdEncoding.Encode(r.scratch[:], r.raw[:n])
		r.pending, r.raw = r.scratch[:base64.StdEncoding.EncodedLen(n)], r.raw[n:]
	}
	n := copy(p, r.pending)
	r.pending = r.pending[n:]
	return n, nil
}
