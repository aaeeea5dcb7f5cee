package replication

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/tools/txtar"

	"github.com/cdcsync/cdcsync/internal/cdc"
)

// FuzzStream feeds a session what a broken server might send: it must end with an error or go on, and never panic or store
// a block that cannot be read.
func FuzzStream(f *testing.F) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil {
		f.Fatal(err)
	}
	for _, file := range files {
		archive, err := txtar.ParseFile(file)
		if err != nil {
			f.Fatal(err)
		}
		for _, part := range archive.Files {
			if part.Name == "stream" {
				f.Add(framesOf(f, part.Data))
			}
		}
	}
	f.Add(copyDataFrame([]byte{'k', 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 1}))
	f.Add([]byte{'E', 0, 0, 0, 20, 'S', 'F', 0, 'C', '5', '5', '0', '0', '6', 0, 'M', 'x', 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		cfg := goldenConfig()
		cfg.MaxRow = 1 << 10
		s := New(cfg, newMemLog(), slog.New(slog.DiscardHandler), nil)
		conn := &onceConn{data: data}
		ses := s.newSession(&plan{senderTimeout: time.Minute}, conn, newFrames(conn, cfg.MaxRow))
		ses.catalog = &staticCatalog{}
		if err := ses.read(context.Background()); err == nil {
			t.Error("no error at the end of the connection")
		}
		ses.out.mu.Lock()
		defer ses.out.mu.Unlock()
		ses.out.seal(blockSize)
		for _, next := range ses.out.sealed {
			readBlock(t, next.block)
		}
	})
}

// readBlock reads a block to its end. A tuple is copied unseen, so that it may turn out to be none.
func readBlock(t *testing.T, block []byte) {
	t.Helper()
	var d cdc.Decoder
	if _, err := d.Reset(block); err != nil {
		t.Fatalf("footer: %v", err)
	}
	for {
		var c cdc.Change
		ok, err := d.Next(&c)
		var corrupt *cdc.CorruptError
		if err != nil && (!errors.As(err, &corrupt) || strings.Contains(err.Error(), "frame")) {
			t.Fatalf("block: %v", err)
		}
		if !ok {
			return
		}
	}
}

func framesOf(tb testing.TB, hexLines []byte) []byte {
	tb.Helper()
	var all []byte
	for _, line := range lines(hexLines) {
		all = append(all, xlogData(unhex(tb, line))...)
	}
	return all
}

// onceConn gives its data, in small pieces, and then ends.
type onceConn struct {
	net.Conn
	data []byte
}

func (c *onceConn) Read(p []byte) (int, error) {
	const piece = 100
	if len(c.data) == 0 {
		return 0, os.ErrClosed
	}
	n := copy(p, c.data[:min(piece, len(c.data))])
	c.data = c.data[n:]
	return n, nil
}

func (c *onceConn) Write(p []byte) (int, error)      { return len(p), nil }
func (c *onceConn) SetReadDeadline(time.Time) error  { return nil }
func (c *onceConn) SetWriteDeadline(time.Time) error { return nil }
