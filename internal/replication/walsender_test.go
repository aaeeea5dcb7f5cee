package replication

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/sourcegraph/conc/pool"

	"github.com/cdcsync/cdcsync/internal/cdc"
)

// walsender is the server's end of a replication connection that has begun.
type walsender struct {
	tb      testing.TB
	conn    net.Conn
	updates chan update // size 1000: more than any test sends
}

// update is a status update as the server reads it.
type update struct {
	write, flush, apply cdc.LSN
	reply               bool
}

// offline is a session over a pipe, with what a test needs around it.
type offline struct {
	stream  *Stream
	log     *memLog
	catalog relationSource
	timeout time.Duration // wal_sender_timeout
}

func newOffline(tb testing.TB, cfg Config) *offline {
	tb.Helper()
	cfg.Slot, cfg.Publication = "slot", "publication"
	if cfg.Tables == nil {
		cfg.Tables = []Table{{Schema: "public", Name: "t", Insert: true}}
	}
	log := newMemLog()
	return &offline{
		stream: New(cfg, log, slog.New(slog.NewTextHandler(tb.Output(), nil)), nil),
		log:    log, catalog: &staticCatalog{}, timeout: time.Minute,
	}
}

// staticCatalog knows every type as int8, and that the first column is the key.
type staticCatalog struct{ fail error }

func (c *staticCatalog) enrich(_ context.Context, rel *cdc.Relation) error {
	rel.PrimaryKey = []int{0}
	return c.fail
}

func (c *staticCatalog) define(context.Context, []uint32, []uint32, uint32) (sighting, error) {
	return sighting{}, c.fail
}

// run begins a session where the log ends, lets script play the server, and returns what the session returned once the
// script has closed the connection or ctx has ended.
func (o *offline) run(ctx context.Context, tb testing.TB, script func(*walsender)) error {
	tb.Helper()
	tail, _, err := o.log.Tail(ctx)
	if err != nil {
		tb.Fatal(err)
	}
	known, err := decodeIncarnation(o.log.source)
	if err != nil {
		tb.Fatal(err)
	}
	p := &plan{tail: tail, senderTimeout: o.timeout}
	if known != nil {
		p.source = *known
	}
	ours, theirs := net.Pipe()
	server := &walsender{tb: tb, conn: theirs, updates: make(chan update, 1000)}
	o.stream.status.streaming(p.start())
	ses := o.stream.newSession(p, ours, newFrames(ours, o.stream.cfg.MaxRow))
	ses.catalog = o.catalog
	var result error
	all := pool.New()
	all.Go(func() {
		result = ses.run(ctx)
		_ = ours.Close()
	})
	all.Go(server.listen)
	all.Go(func() {
		script(server)
		_ = theirs.Close()
	})
	all.Wait()
	return result
}

// listen reads the status updates.
func (w *walsender) listen() {
	defer close(w.updates)
	for {
		m := make([]byte, 39)
		if _, err := io.ReadFull(w.conn, m); err != nil {
			return
		}
		if m[0] != 'd' || m[5] != 'r' {
			w.tb.Errorf("message from the client: %q", m)
			return
		}
		w.updates <- update{lsn(m[6:]), lsn(m[14:]), lsn(m[22:]), m[38] == 1}
	}
}

// send gives messages of pgoutput in one write.
func (w *walsender) send(messages ...[]byte) {
	var all []byte
	for _, m := range messages {
		all = append(all, xlogData(m)...)
	}
	w.raw(all)
}

func (w *walsender) raw(b []byte) {
	if _, err := w.conn.Write(b); err != nil && !errors.Is(err, io.ErrClosedPipe) {
		w.tb.Errorf("walsender: %v", err)
	}
}

func (w *walsender) keepalive(end cdc.LSN, reply bool) {
	m := binary.BigEndian.AppendUint64([]byte{'k'}, uint64(end))
	m = append(binary.BigEndian.AppendUint64(m, 0), map[bool]byte{true: 1}[reply])
	w.raw(copyDataFrame(m))
}

// confirmed waits until a status update confirms at least lsn, and returns all that came until then.
func (w *walsender) confirmed(ctx context.Context, lsn cdc.LSN) []update {
	w.tb.Helper()
	var seen []update
	for {
		select {
		case u, ok := <-w.updates:
			if !ok {
				w.tb.Errorf("the client has gone before it confirmed %s: %v", lsn, seen)
				return seen
			}
			seen = append(seen, u)
			if u.write != u.flush || u.flush != u.apply {
				w.tb.Errorf("positions differ: %+v", u)
			}
			if u.flush >= lsn {
				return seen
			}
		case <-ctx.Done():
			w.tb.Errorf("%s is not confirmed: %v", lsn, seen)
			return seen
		}
	}
}

func copyDataFrame(body []byte) []byte {
	return append(binary.BigEndian.AppendUint32([]byte{'d'}, uint32(4+len(body))), body...)
}

func xlogData(m []byte) []byte {
	return copyDataFrame(append(slices.Concat([]byte{'w'}, make([]byte, 24)), m...))
}

func beginMsg(commit cdc.LSN, xid uint32) []byte {
	m := binary.BigEndian.AppendUint64([]byte{'B'}, uint64(commit))
	return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint64(m, 0), xid)
}

func commitMsg(commit, end cdc.LSN) []byte {
	m := binary.BigEndian.AppendUint64([]byte{'C', 0}, uint64(commit))
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(m, uint64(end)), 0)
}

func relationMsg(oid uint32, name string, columns ...string) []byte {
	m := binary.BigEndian.AppendUint32([]byte{'R'}, oid)
	m = append(m, "public\x00"+name+"\x00d"...)
	m = binary.BigEndian.AppendUint16(m, uint16(len(columns)))
	for i, c := range columns {
		m = append(m, map[bool]byte{true: 1}[i == 0])
		m = append(m, c+"\x00"...)
		m = binary.BigEndian.AppendUint32(m, 20)
		m = binary.BigEndian.AppendUint32(m, 0xffffffff)
	}
	return m
}

func rowMsg(op byte, oid uint32, mark byte, values ...string) []byte {
	tuple := make([]cdc.Value, len(values))
	for i, v := range values {
		tuple[i] = cdc.Value{Kind: cdc.Text, Data: []byte(v)}
	}
	return cdc.AppendTuple(append(binary.BigEndian.AppendUint32([]byte{op}, oid), mark), tuple)
}

func insertMsg(oid uint32, values ...string) []byte { return rowMsg('I', oid, 'N', values...) }

func truncateMsg(oids ...uint32) []byte {
	m := append(binary.BigEndian.AppendUint32([]byte{'T'}, uint32(len(oids))), 0)
	for _, oid := range oids {
		m = binary.BigEndian.AppendUint32(m, oid)
	}
	return m
}
