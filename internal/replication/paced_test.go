package replication

import (
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/sourcegraph/conc"
)

// A busy reader of a unix socket is woken seldom and loses nothing; a quiet one is woken by every byte.
func TestPacedReads(t *testing.T) {
	listener, err := net.Listen("unix", filepath.Join(t.TempDir(), "socket"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listener.Close() }()
	const writes, size = 20_000, 300
	var wg conc.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		defer func() { _ = conn.Close() }()
		for range writes {
			if _, err := conn.Write(make([]byte, size)); err != nil {
				return
			}
		}
	})
	conn, err := net.Dial("unix", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	paced := newPacedConn(conn)
	defer func() { _ = paced.Close() }()
	buf := make([]byte, readBuffer)
	total, reads, late := 0, 0, 0
	for total < writes*size {
		n, err := paced.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		total += n
		reads++
		if paced.flow.busy {
			late++
		}
	}
	if late == 0 {
		t.Error("the stream never became busy")
	}
	if late > writes/10 {
		t.Errorf("a busy reader was woken %d times for %d writes", late, writes)
	}
	if err := paced.SetReadDeadline(time.Now().Add(-time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := paced.Read(buf); err == nil {
		t.Error("a deadline that is past is not seen")
	}
}
