package replication

import (
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// boundSocket bounds how long sent bytes may stay unacknowledged; keepalive probes say nothing while there are some.
func boundSocket(network, _ string, raw syscall.RawConn) error {
	if !strings.HasPrefix(network, "tcp") {
		return nil
	}
	return raw.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(peerGone.Milliseconds())) // a kernel without it has its own, longer one
	})
}
