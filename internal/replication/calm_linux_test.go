package replication

import (
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"github.com/sourcegraph/conc/pool"
)

// tcpPair is a wrapped connection and its peer.
func tcpPair(t *testing.T) (*calmConn, net.Conn) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listener.Close() }()
	conn, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	peer, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	calm, ok := newCalmConn(conn).(*calmConn)
	if !ok {
		t.Fatal("a TCP connection is not wrapped")
	}
	t.Cleanup(func() { _, _ = calm.Close(), peer.Close() })
	return calm, peer
}

func TestCalmConnGivesAllBytesWithoutTimeouts(t *testing.T) {
	calm, peer := tcpPair(t)
	const row, rows = 300, 20000 // 6 MB, then one row by itself
	p := pool.New().WithErrors()
	p.Go(func() error {
		for range rows {
			if _, err := peer.Write(make([]byte, row)); err != nil {
				return err
			}
		}
		return nil
	})
	if _, err := io.ReadFull(calm, make([]byte, row*rows)); err != nil {
		t.Fatal(err)
	}
	if err := p.Wait(); err != nil {
		t.Fatal(err)
	}
	calm.flow.busy = true // whatever the machine made of it
	if _, err := peer.Write([]byte("last")); err != nil {
		t.Fatal(err)
	}
	last := make([]byte, 10)
	if n, err := calm.Read(last); err != nil || string(last[:n]) != "last" {
		t.Errorf("read %q, %v", last[:n], err)
	}
}

func TestCalmConnKeepsDeadlines(t *testing.T) {
	for _, busy := range []bool{false, true} {
		calm, peer := tcpPair(t)
		calm.flow.busy = busy
		if err := calm.SetReadDeadline(time.Now().Add(5 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		if _, err := calm.Read(make([]byte, 10)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("busy %v: error %v, want the deadline's", busy, err)
		}
		p := pool.New()
		p.Go(func() { // wakes the reader
			_ = calm.SetReadDeadline(time.Unix(1, 0))
		})
		if err := calm.SetReadDeadline(time.Time{}); err == nil {
			_, _ = peer.Write([]byte("x")) // in case that the wake was undone
			_, _ = calm.Read(make([]byte, 10))
		}
		p.Wait()
	}
}

func TestStreamIsBusyByRate(t *testing.T) {
	const row = 300
	at := time.Unix(1000, 0)
	for _, test := range []struct {
		name     string
		every    time.Duration
		busy     bool // before
		wantBusy bool
	}{
		{"500 a second", 2 * time.Millisecond, false, false},
		{"500 a second after a rush", 2 * time.Millisecond, true, false},
		{"100,000 a second", 10 * time.Microsecond, false, true},
		{"20,000 a second after a rush", 50 * time.Microsecond, true, true},
		{"20,000 a second", 50 * time.Microsecond, false, false},
	} {
		f := flow{busy: test.busy, since: at}
		if f.busy {
			f.before = flowProof
		}
		for n := range 5000 {
			f.add(row, at.Add(time.Duration(n)*test.every))
		}
		if f.busy != test.wantBusy {
			t.Errorf("%s: busy %v, want %v", test.name, f.busy, test.wantBusy)
		}
	}
}
