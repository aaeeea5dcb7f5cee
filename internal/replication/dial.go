package replication

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	// connectPatience is for one server to let us in, where the URL has no connect_timeout.
	connectPatience = 15 * time.Second
	// peerGone is after how long without any answer the kernel gives a connection up.
	peerGone = 30 * time.Second
)

// bound gives a connection's configuration the deadlines that it lacks: to connect, and for a peer that has vanished. A peer
// that is there and says nothing is the business of who reads.
func bound(cfg *pgx.ConnConfig) {
	if cfg.ConnectTimeout == 0 {
		cfg.ConnectTimeout = connectPatience
	}
	const probes = 3
	dialer := &net.Dialer{
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: peerGone / 2, Interval: peerGone / (2 * probes), Count: probes},
		Control:         boundSocket,
	}
	cfg.DialFunc = dialer.DialContext
}

// connect opens an ordinary connection.
func connect(ctx context.Context, cfg *pgx.ConnConfig) (*pgx.Conn, error) {
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if pooled := poolerError(err); pooled != nil {
		return nil, pooled
	}
	if err != nil {
		return nil, fmt.Errorf("connect: %w", err)
	}
	return conn, nil
}

// hangUp says goodbye, also when ctx has ended.
func hangUp(ctx context.Context, conn *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	_ = conn.Close(ctx) // at most a read-only transaction is open in it
}

// patientConn fails a read during which nothing has come for a while, so that an answer may take any time as long as it goes on.
type patientConn struct {
	net.Conn

	mu       sync.Mutex // not held while reading
	patience time.Duration
	above    time.Time // the deadline that the layers above have set
}

func newPatientConn(conn net.Conn, patience time.Duration) *patientConn {
	return &patientConn{Conn: conn, patience: patience}
}

func (c *patientConn) Read(p []byte) (int, error) {
	ours, err := c.arm()
	if err != nil {
		return 0, err
	}
	n, err := c.Conn.Read(p)
	if ours && n == 0 && errors.Is(err, os.ErrDeadlineExceeded) {
		err = fmt.Errorf("nothing from the server for a while: %w", err)
	}
	return n, err
}

// arm reports whether the deadline is ours.
func (c *patientConn) arm() (ours bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	until := time.Now().Add(c.patience)
	if ours = c.patience > 0 && (c.above.IsZero() || until.Before(c.above)); !ours {
		until = c.above
	}
	return ours, c.Conn.SetReadDeadline(until)
}

// setPatience is for the reads to come; 0 is for a question that may take any time.
func (c *patientConn) setPatience(patience time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.patience = patience
}

func (c *patientConn) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.above = t
	return c.Conn.SetReadDeadline(t)
}

func (c *patientConn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}
