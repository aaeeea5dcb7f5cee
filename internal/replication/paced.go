package replication

import (
	"net"
	"time"
)

// pace is how long a busy reader lets bytes gather in a unix socket, whose buffer takes some two hundred rows.
const pace = 400 * time.Microsecond

// pacedConn is a unix socket whose reader, while the stream is busy, is woken a few thousand times a second and not once per
// row, which is how a walsender writes them. SO_RCVLOWAT, which does the same for TCP, means nothing to poll on a unix socket.
// Read follows net.Conn's rules, but that it may be late for a deadline by a pace.
type pacedConn struct {
	net.Conn
	timer *time.Timer // owned by Read
	flow  flow        // owned by Read
}

func newPacedConn(conn net.Conn) *pacedConn {
	timer := time.NewTimer(pace)
	timer.Stop()
	return &pacedConn{Conn: conn, timer: timer}
}

func (c *pacedConn) Read(p []byte) (int, error) {
	if c.flow.busy {
		c.timer.Reset(pace)
		<-c.timer.C
	}
	n, err := c.Conn.Read(p)
	c.flow.add(n, time.Now())
	return n, err
}
