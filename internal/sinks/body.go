package sinks

import (
	"errors"
	"io"
	"slices"
	"sync"
)

// body is a request's body in parts that belong to others, read in place. The transport may go on reading after it has
// returned (net/http.RoundTripper), which release ends.
type body struct {
	parts [][]byte
	size  int64

	mu       sync.Mutex
	released bool
}

// partLists are of bodies that were released.
var partLists = sync.Pool{New: func() any { return new([][]byte) }}

// newBody makes room for parts.
func newBody(parts int) *body {
	list, _ := partLists.Get().(*[][]byte)
	return &body{parts: slices.Grow((*list)[:0], parts)}
}

func (b *body) add(part []byte) {
	b.parts = append(b.parts, part)
	b.size += int64(len(part))
}

// release ends all reading: when it has returned, the parts may be written again.
func (b *body) release() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.released {
		return
	}
	parts := b.parts
	b.released, b.parts = true, nil
	clear(parts)
	partLists.Put(&parts)
}

// open starts reading at the beginning. Several readers may be open at a time.
func (b *body) open() io.ReadCloser { return &bodyReader{body: b} }

type bodyReader struct {
	body   *body
	part   int // the next to read
	offset int // in it
}

var errReleased = errors.New("the request is over")

func (r *bodyReader) Read(p []byte) (n int, err error) {
	r.body.mu.Lock()
	defer r.body.mu.Unlock()
	if r.body.released {
		return 0, errReleased
	}
	for r.part < len(r.body.parts) && n < len(p) {
		part := r.body.parts[r.part]
		copied := copy(p[n:], part[r.offset:])
		n += copied
		if r.offset += copied; r.offset == len(part) {
			r.part, r.offset = r.part+1, 0
		}
	}
	if n == 0 && r.part == len(r.body.parts) {
		return 0, io.EOF
	}
	return n, nil
}

func (r *bodyReader) Close() error { return nil }
