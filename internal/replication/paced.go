package replication

import (
	"net"
	"time"
)

const (
	// pace is how long a busy reader lets bytes gather in a unix socket, whose buffer takes about two hundred rows.
	pace = 400 * time.Microsecond
	// A stream stays busy while each pace brings so much (8 MiB/s, as paceProof within paceWindow is what makes it so).
	paceKeeps  = 3 << 10
	paceProof  = 256 << 10
	paceWindow = 32 * time.Millisecond
)

// pacedConn is a unix socket whose reader, while the stream is busy, is woken a few thousand times a second and not once per
// row, which is how a walsender writes them. SO_RCVLOWAT, which does the same for TCP, means nothing to poll on a unix socket.
// Read follows net.Conn's rules, but for a deadline, which it may miss by a pace.
type pacedConn struct {
	net.Conn
	timer *time.Timer // owned by Read, as is all below
	busy  bool
	since time.Time // when the window began
	seen  int       // bytes in the window
}

func newPacedConn(conn net.Conn) *pacedConn {
	timer := time.NewTimer(time.Hour)
	timer.Stop()
	return &pacedConn{Conn: conn, timer: timer}
}

func (c *pacedConn) Read(p []byte) (int, error) {
	if c.busy {
		c.timer.Reset(pace)
		<-c.timer.C
	}
	n, err := c.Conn.Read(p)
	if c.busy {
		c.busy = n >= paceKeeps
		return n, err
	}
	now := time.Now()
	if now.Sub(c.since) > paceWindow {
		c.since, c.seen = now, 0
	}
	c.seen += n
	if c.seen >= paceProof {
		c.busy, c.seen = true, 0
	}
	return n, err
}
