package replication

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/jackc/pgx/v5/pgproto3"
)

const (
	// readBuffer holds what one read takes from the socket: many messages, parsed in place.
	readBuffer = 256 << 10
	// frameHeader is a message's type byte and its length, which counts itself (protocol-message-formats in the manual).
	frameHeader = 1 + 4
	// dataHeader is XLogData's 'w', start, end and send time.
	dataHeader = 1 + 8 + 8 + 8
)

// frames takes the server's messages off a connection, in place. While pgconn still owns the connection it reads through it:
// then Read gives one message at a time, so that nothing of the stream stays in pgconn's own buffer.
type frames struct {
	r          io.Reader
	buf        []byte
	start, end int   // what is read and not taken yet is buf[start:end]
	handed     int   // bytes of the current message that Read has yet to give
	limit      int   // a longer message is not buffered whole
	read       int64 // bytes since the beginning
}

func newFrames(r io.Reader, maxRow int64) *frames {
	return &frames{r: r, buf: make([]byte, readBuffer), limit: frameHeader + dataHeader + int(maxRow)}
}

// Read gives bytes of one message at most.
func (f *frames) Read(p []byte) (int, error) {
	for f.handed == 0 {
		if f.end-f.start >= frameHeader {
			length, err := f.length()
			if err != nil {
				return 0, err
			}
			f.handed = length
			break
		}
		if err := f.fill(); err != nil {
			return 0, err
		}
	}
	if f.end == f.start {
		if err := f.fill(); err != nil {
			return 0, err
		}
	}
	n := copy(p, f.buf[f.start:min(f.end, f.start+f.handed)])
	f.start += n
	f.handed -= n
	return n, nil
}

// length is that of the message at start, header included; its header must be buffered.
func (f *frames) length() (int, error) {
	n := binary.BigEndian.Uint32(f.buf[f.start+1:])
	if n < 4 || n > 1<<30+readBuffer { // no Postgres message is longer than 1 GiB
		return 0, fmt.Errorf("message %q with length %d", f.buf[f.start], n)
	}
	return int(n) + 1, nil
}

// errTooLong says that the next message is longer than the limit.
var errTooLong = errors.New("message too long to buffer")

// next returns the next message if it is buffered whole. The body is valid until fill is called.
func (f *frames) next() (kind byte, body []byte, ok bool, err error) {
	if f.end-f.start < frameHeader {
		return 0, nil, false, nil
	}
	n, err := f.length()
	switch {
	case err != nil:
		return 0, nil, false, err
	case n > f.limit:
		return 0, nil, false, errTooLong
	case n > f.end-f.start:
		return 0, nil, false, nil
	}
	message := f.buf[f.start : f.start+n : f.start+n]
	f.start += n
	return message[0], message[frameHeader:], true, nil
}

// row returns the body of the next message when that is a DataRow, valid until the next call; ok is false when it is another,
// which stays. What a server says in between without being asked is passed over.
func (f *frames) row() (body []byte, ok bool, err error) {
	for {
		if f.end-f.start >= frameHeader && !amongRows(f.buf[f.start]) {
			return nil, false, nil
		}
		kind, body, whole, err := f.next()
		switch {
		case errors.Is(err, errTooLong):
			length, _ := f.length() // next has looked at it
			return nil, false, &pgproto3.ExceededMaxBodyLenErr{MaxExpectedBodyLen: f.limit - frameHeader, ActualBodyLen: length - frameHeader}
		case err != nil:
			return nil, false, err
		case whole && kind == frameDataRow:
			return body, true, nil
		case whole:
			continue
		}
		if err := f.fill(); err != nil {
			return nil, false, err
		}
	}
}

// amongRows says whether a message of the kind may come between the first and the last row.
func amongRows(kind byte) bool {
	switch kind {
	case frameDataRow, frameNotice, frameParameter, frameNotification:
		return true
	}
	return false
}

// fill reads once, after it has made room for the whole of a message that has begun.
func (f *frames) fill() error {
	f.makeRoom()
	n, err := f.r.Read(f.buf[f.end:])
	f.end += n
	f.read += int64(n)
	if n > 0 {
		return nil // an error with bytes comes again
	}
	if err == nil {
		return io.ErrNoProgress
	}
	return err
}

func (f *frames) makeRoom() {
	have := f.end - f.start
	want := readBuffer
	if have >= frameHeader {
		if n, err := f.length(); err == nil && n <= f.limit {
			want = max(want, n)
		}
	}
	switch {
	case len(f.buf) != want && have <= want: // grow for a long message, shrink after it
		collect(want)
		buf := make([]byte, want)
		copy(buf, f.buf[f.start:f.end])
		f.buf, f.start, f.end = buf, 0, have
	case f.start > 0 && (have == 0 || len(f.buf)-f.end < len(f.buf)/2):
		copy(f.buf, f.buf[f.start:f.end])
		f.start, f.end = 0, have
	}
}

// piecewise reads a message that is too long to buffer, and forgets what it has passed.
type piecewise struct {
	f    *frames
	fill func() error // reads more, and does what the clock asks for
	left int          // bytes of the message that are still to come
}

func (p *piecewise) take(n int) ([]byte, error) {
	if n > p.left || n > readBuffer/2 {
		return nil, fmt.Errorf("%d bytes wanted of a message with %d left", n, p.left)
	}
	for p.f.end-p.f.start < n {
		if err := p.fill(); err != nil {
			return nil, err
		}
	}
	b := p.f.buf[p.f.start : p.f.start+n]
	p.f.start += n
	p.left -= n
	return b, nil
}

func (p *piecewise) discard(n int) error {
	if n > p.left {
		return fmt.Errorf("%d bytes to pass over in a message with %d left", n, p.left)
	}
	p.left -= n
	for {
		have := min(n, p.f.end-p.f.start)
		p.f.start += have
		n -= have
		if n == 0 {
			return nil
		}
		if err := p.fill(); err != nil {
			return err
		}
	}
}
