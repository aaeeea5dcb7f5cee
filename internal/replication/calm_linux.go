package replication

import (
	"errors"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// calmWater is how much must lie in the socket before a busy reader is woken: a walsender makes a packet of every row.
	calmWater = 16 << 10
	// calmWait is the longest that less than calmWater waits.
	calmWait = 2 * time.Millisecond
)

// calmConn is a TCP connection whose reader is woken once per 16 KiB while the stream is busy, by means of SO_RCVLOWAT, and
// at once while it is quiet. No time-out of its own is seen above. Read and SetReadDeadline follow net.Conn's rules.
type calmConn struct {
	*net.TCPConn
	raw      syscall.RawConn
	water    int  // owned by Read: the low-water mark that is set
	flow     flow // owned by Read
	deadline deadline
}

// newCalmConn wraps a TCP connection; any other is returned as it is (poll on unix sockets disregards the low-water mark).
func newCalmConn(conn net.Conn) net.Conn {
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return conn
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return conn
	}
	return &calmConn{TCPConn: tcp, raw: raw, water: 1}
}

func (c *calmConn) Read(p []byte) (int, error) {
	n, err := c.readBusy(p)
	if n == 0 && err == nil {
		c.mark(1) // what is there, or the next byte
		n, err = c.TCPConn.Read(p)
	}
	c.flow.add(n, time.Now())
	return n, err
}

// readBusy waits for the low-water mark, at most calmWait. It returns nothing when that has passed, or the stream is not busy.
func (c *calmConn) readBusy(p []byte) (int, error) {
	if !c.flow.busy || !c.mark(calmWater) {
		return 0, nil
	}
	if err := c.deadline.shorten(c.TCPConn, time.Now().Add(calmWait)); err != nil {
		return 0, err
	}
	n, err := c.TCPConn.Read(p)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = nil // a deadline from above is met again by the next read
	}
	return n, errors.Join(err, c.deadline.restore(c.TCPConn))
}

// mark sets the low-water mark, and reports whether the kernel took it.
func (c *calmConn) mark(water int) bool {
	if c.water == water {
		return true
	}
	var refused error
	err := c.raw.Control(func(fd uintptr) {
		refused = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVLOWAT, water)
	})
	if err != nil || refused != nil {
		return false
	}
	c.water = water
	return true
}

func (c *calmConn) SetReadDeadline(t time.Time) error { return c.deadline.set(c.TCPConn, t) }

func (c *calmConn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

// deadline keeps the read deadline that the layers above have set apart from the short one of a busy read. The deadline above
// may be set at any time, also to wake a reader.
type deadline struct {
	mu    sync.Mutex
	above time.Time
	until time.Time // the short one; zero when there is none
}

func (d *deadline) set(conn *net.TCPConn, t time.Time) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.above = t
	return conn.SetReadDeadline(d.sooner())
}

func (d *deadline) shorten(conn *net.TCPConn, until time.Time) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.until = until
	return conn.SetReadDeadline(d.sooner())
}

func (d *deadline) restore(conn *net.TCPConn) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.until = time.Time{}
	return conn.SetReadDeadline(d.above)
}

func (d *deadline) sooner() time.Time {
	if d.above.IsZero() || (!d.until.IsZero() && d.until.Before(d.above)) {
		return d.until
	}
	return d.above
}
