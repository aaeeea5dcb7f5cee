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
	// calmWait is the longest that less than calmWater waits when the stream ends abruptly.
	calmWait = 2 * time.Millisecond
	// A stream is busy when this much has come within this time (8 MiB/s). Transactions below calmProof are never held up.
	calmProof  = 256 << 10
	calmWindow = 32 * time.Millisecond
)

// calmConn is a TCP connection whose reader is woken once per 16 KiB while the stream is busy, by means of SO_RCVLOWAT, and
// at once while it is quiet. No time-out of its own is seen above. Read and SetReadDeadline follow net.Conn's rules.
type calmConn struct {
	*net.TCPConn
	raw      syscall.RawConn
	busy     bool      // owned by Read
	since    time.Time // owned by Read: when the window began
	seen     int       // owned by Read: bytes in the window
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
	return &calmConn{TCPConn: tcp, raw: raw}
}

func (c *calmConn) Read(p []byte) (int, error) {
	if c.busy {
		n, err := c.readBusy(p)
		if n > 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
			return n, err
		}
		c.calm(false)
	}
	n, err := c.TCPConn.Read(p)
	c.observe(n)
	return n, err
}

// readBusy waits for the low-water mark, at most calmWait.
func (c *calmConn) readBusy(p []byte) (int, error) {
	if err := c.deadline.shorten(c.TCPConn, time.Now().Add(calmWait)); err != nil {
		return 0, err
	}
	n, err := c.TCPConn.Read(p)
	return n, errors.Join(err, c.deadline.restore(c.TCPConn))
}

// observe decides whether the stream is busy.
func (c *calmConn) observe(n int) {
	now := time.Now()
	if now.Sub(c.since) > calmWindow {
		c.since, c.seen = now, 0
	}
	c.seen += n
	if c.seen >= calmProof {
		c.calm(true)
	}
}

// calm sets the low-water mark. A kernel that refuses it leaves the connection as it is.
func (c *calmConn) calm(on bool) {
	water := 1
	if on {
		water = calmWater
	}
	var refused error
	err := c.raw.Control(func(fd uintptr) {
		refused = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVLOWAT, water)
	})
	c.busy = on && err == nil && refused == nil
	c.since, c.seen = time.Time{}, 0
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
