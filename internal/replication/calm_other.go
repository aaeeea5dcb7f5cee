//go:build !linux

package replication

import "net"

// newCalmConn returns the connection as it is: the low-water mark is used on Linux only.
func newCalmConn(conn net.Conn) net.Conn { return conn }
