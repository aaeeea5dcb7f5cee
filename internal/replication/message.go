package replication

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/cdcsync/cdcsync/internal/cdc"
)

// What the server sends (protocol-replication, protocol-logicalrep-message-formats and protocol-message-formats in the manual).
const (
	frameCopyData     = 'd'
	frameCopyDone     = 'c'
	frameError        = 'E'
	frameNotice       = 'N'
	frameParameter    = 'S'
	frameDataRow      = 'D'
	frameNotification = 'A'

	dataXLog      = 'w'
	dataKeepalive = 'k'

	msgBegin    = 'B'
	msgCommit   = 'C'
	msgRelation = 'R'
	msgInsert   = 'I'
	msgUpdate   = 'U'
	msgDelete   = 'D'
	msgTruncate = 'T'
	msgType     = 'Y'
	msgOrigin   = 'O'
	msgLogical  = 'M'
)

// postgresEpoch is 2000-01-01, from which Postgres counts microseconds.
var postgresEpoch = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

var errShort = errors.New("message ends too early")

func postgresTime(micros uint64) time.Time {
	return time.UnixMicro(postgresEpoch.UnixMicro() + int64(micros))
}

// xlog is XLogData's header; what follows it is a pgoutput message.
type xlog struct {
	walEnd cdc.LSN
	data   []byte
}

func parseXLog(body []byte) (xlog, error) {
	if len(body) < dataHeader+1 {
		return xlog{}, errShort
	}
	return xlog{walEnd: lsn(body[9:]), data: body[dataHeader:]}, nil
}

type keepalive struct {
	walEnd cdc.LSN
	reply  bool
}

func parseKeepalive(body []byte) (keepalive, error) {
	if len(body) != 1+8+8+1 {
		return keepalive{}, fmt.Errorf("keepalive of %d bytes", len(body))
	}
	return keepalive{walEnd: lsn(body[1:]), reply: body[17] != 0}, nil
}

type begin struct {
	commit cdc.LSN // where the commit record starts
	at     time.Time
	xid    uint32
}

func parseBegin(m []byte) (begin, error) {
	if len(m) != 1+8+8+4 {
		return begin{}, fmt.Errorf("begin of %d bytes", len(m))
	}
	return begin{commit: lsn(m[1:]), at: postgresTime(binary.BigEndian.Uint64(m[9:])), xid: binary.BigEndian.Uint32(m[17:])}, nil
}

type commit struct {
	commit cdc.LSN
	end    cdc.LSN // after the commit record
}

func parseCommit(m []byte) (commit, error) {
	if len(m) != 1+1+8+8+8 {
		return commit{}, fmt.Errorf("commit of %d bytes", len(m))
	}
	return commit{commit: lsn(m[2:]), end: lsn(m[10:])}, nil
}

// parseRelation reads a Relation message. Types have their OID only; the catalogue has the rest.
func parseRelation(m []byte) (*cdc.Relation, error) {
	f := fields{rest: m[1:]}
	rel := &cdc.Relation{OID: f.uint32(), Schema: f.text(), Name: f.text(), Identity: f.byte()}
	for range f.uint16() {
		c := cdc.Column{Identity: f.byte()&1 != 0, Name: f.text()}
		c.Type = &cdc.Type{OID: f.uint32(), Kind: cdc.TypeBase, Delimiter: ','}
		c.TypeMod = int32(f.uint32())
		if f.err != nil {
			return nil, f.err
		}
		rel.Columns = append(rel.Columns, c)
	}
	if f.err == nil && len(f.rest) > 0 {
		return nil, fmt.Errorf("%d bytes after the relation", len(f.rest))
	}
	if rel.Schema == "" && f.err == nil {
		rel.Schema = "pg_catalog" // logicalrep_write_namespace writes it as the empty string
	}
	return rel, f.err
}

// parseTruncate returns the OIDs of the tables.
func parseTruncate(m []byte) ([]uint32, error) {
	f := fields{rest: m[1:]}
	n := f.uint32()
	f.byte() // CASCADE, RESTART IDENTITY
	if f.err != nil || int64(len(f.rest)) != 4*int64(n) {
		return nil, fmt.Errorf("truncate of %d tables in %d bytes", n, len(m))
	}
	oids := make([]uint32, n)
	for i := range oids {
		oids[i] = f.uint32()
	}
	return oids, nil
}

func lsn(b []byte) cdc.LSN { return cdc.LSN(binary.BigEndian.Uint64(b)) }

// fields takes values off the front of a message. After the first error it gives zeros.
type fields struct {
	rest []byte
	err  error
}

func (f *fields) take(n int) []byte {
	if n > len(f.rest) {
		f.err, f.rest = errShort, nil
		return make([]byte, n)
	}
	b := f.rest[:n]
	f.rest = f.rest[n:]
	return b
}

func (f *fields) byte() byte     { return f.take(1)[0] }
func (f *fields) uint16() uint16 { return binary.BigEndian.Uint16(f.take(2)) }
func (f *fields) uint32() uint32 { return binary.BigEndian.Uint32(f.take(4)) }

// text reads a string that a zero byte ends.
func (f *fields) text() string {
	for i, b := range f.rest {
		if b == 0 {
			s := string(f.rest[:i])
			f.rest = f.rest[i+1:]
			return s
		}
	}
	f.err, f.rest = errShort, nil
	return ""
}
