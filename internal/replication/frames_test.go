package replication

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/jackc/pgx/v5/pgproto3"
)

func frameOf(kind byte, body string) []byte {
	return append(binary.BigEndian.AppendUint32([]byte{kind}, uint32(4+len(body))), body...)
}

// Rows are taken past pgconn, which gets everything else, byte by byte the same wherever a read ends.
func TestFramesGiveRows(t *testing.T) {
	stream := bytes.Join([][]byte{
		frameOf('T', "description"), frameOf('D', "one"), frameOf('N', "notice"), frameOf('D', "two"), frameOf('S', "setting"),
		frameOf('A', "told"), frameOf('D', ""), frameOf('C', "SELECT 3"), frameOf('D', "of the next query"),
	}, nil)
	for name, in := range map[string]io.Reader{
		"whole": bytes.NewReader(stream), "byte by byte": iotest.OneByteReader(bytes.NewReader(stream)),
	} {
		f := newFrames(in, 1<<10)
		description := make([]byte, len(frameOf('T', "description")))
		if _, err := io.ReadFull(f, description); err != nil || !strings.HasSuffix(string(description), "description") {
			t.Fatalf("%s: %q, %v", name, description, err)
		}
		var rows []string
		for {
			body, ok, err := f.row()
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if !ok {
				break
			}
			rows = append(rows, string(body))
		}
		if got := strings.Join(rows, "|"); got != "one|two|" {
			t.Errorf("%s: rows %q", name, got)
		}
		complete := make([]byte, len(frameOf('C', "SELECT 3")))
		if _, err := io.ReadFull(f, complete); err != nil || !strings.HasSuffix(string(complete), "SELECT 3") {
			t.Errorf("%s: after the rows comes %q, %v", name, complete, err)
		}
		if body, ok, err := f.row(); !ok || err != nil || string(body) != "of the next query" {
			t.Errorf("%s: %q, %v, %v", name, body, ok, err)
		}
		if _, _, err := f.row(); !errors.Is(err, io.EOF) {
			t.Errorf("%s: at the end comes %v", name, err)
		}
	}
}

func TestFramesRefuseLargeRows(t *testing.T) {
	const maxRow = 1 << 10
	f := newFrames(bytes.NewReader(frameOf('D', strings.Repeat("x", 2*maxRow))), maxRow)
	_, _, err := f.row()
	if e, ok := errors.AsType[*pgproto3.ExceededMaxBodyLenErr](err); !ok || e.ActualBodyLen != 2*maxRow {
		t.Errorf("a row of %d bytes gives %v", 2*maxRow, err)
	}
}
