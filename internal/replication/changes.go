package replication

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/cdcsync/cdcsync/internal/cdc"
)

// message takes one message of pgoutput. s.out.mu is held.
func (s *session) message(ctx context.Context, m []byte) error {
	switch m[0] {
	case msgInsert, msgUpdate, msgDelete:
		return s.row(ctx, m)
	case msgBegin:
		return s.begin(m)
	case msgCommit:
		return s.commit(m)
	case msgRelation:
		return s.relation(ctx, m)
	case msgTruncate:
		return s.truncate(m)
	case msgType:
		return s.typeName(m)
	case msgOrigin, msgLogical:
		return nil // they change no row
	}
	return errors.New("unknown to this version of cdcsync, which reads pgoutput's protocol 2 without streaming")
}

func (s *session) begin(m []byte) error {
	b, err := parseBegin(m)
	if err != nil {
		return err
	}
	resume := s.out.writer.Resume()
	again, err := s.history.begin(&b)
	switch {
	case err != nil:
		return err
	case s.tx.commit != 0:
		return fmt.Errorf("transaction %s begins before the end of this one", b.commit)
	case again:
		s.tx = transaction{xid: b.xid, commit: b.commit, at: b.at, again: true}
		return nil
	case b.commit < resume.End:
		return fmt.Errorf("transaction %s lies before %s, up to which everything is stored", b.commit, resume.End)
	}
	s.tx = transaction{xid: b.xid, commit: b.commit, at: b.at}
	if resume.Open == b.commit {
		s.tx.stored = resume.Ordinal
	}
	return nil
}

func (s *session) commit(m []byte) error {
	c, err := parseCommit(m)
	if err != nil {
		return err
	}
	if s.tx.commit == 0 || c.commit != s.tx.commit {
		return fmt.Errorf("commit of transaction %s", c.commit)
	}
	s.tally.commits++
	s.tally.lastCommit = s.tx.at
	if s.tx.stored > 0 && !s.tx.begun { // the log has all changes but not the end
		s.open(s.tx.ordinal)
	}
	if s.tx.begun {
		s.out.writer.Commit(c.end)
		s.out.dirty = true
	}
	s.out.writer.Witness(cdc.Witness{Commit: s.tx.commit, XID: s.tx.xid, At: s.tx.at})
	s.advance(c.end)
	s.tx = transaction{}
	s.appendPending()
	return nil
}

// count takes the next change into account and says whether it is to be written.
func (s *session) count(rel *relation) bool {
	s.tx.ordinal++
	switch {
	case s.tx.again, s.tx.ordinal <= s.tx.stored:
		s.tally.repeated++
		return false
	case !rel.mapped:
		s.tx.skipped++
		s.tally.skipped++
		return false
	}
	s.tally.changes++
	return true
}

// place makes the block ready for a change of rel with n bytes.
func (s *session) place(rel *relation, n int) {
	s.out.reserve(n + len(rel.encoded))
	if n > largeMessage {
		collect(n)
		s.out.writer.Grow(n + len(rel.encoded) + footerSlack)
	}
	if !s.tx.begun {
		s.open(s.tx.ordinal - 1)
	} else if s.tx.skipped > 0 {
		s.out.writer.Skip(s.tx.skipped)
	}
	s.tx.skipped = 0
	if !s.out.writer.Has(rel.OID) {
		s.out.writer.Relation(rel.OID, rel.encoded)
	}
	s.out.dirty = true
}

// open writes the transaction's beginning; before is how many of its changes lie before the next.
func (s *session) open(before uint32) {
	s.out.writer.Begin(s.tx.xid, s.tx.commit, s.tx.at, before)
	s.tx.begun = true
}

func (s *session) row(ctx context.Context, m []byte) error {
	if len(m) < 5 {
		return errShort
	}
	rel, err := s.known(binary.BigEndian.Uint32(m[1:]))
	if err != nil {
		return err
	}
	s.tx.bytes += int64(len(m))
	s.leaves.row(rel.Relation)
	s.leaves.correct(m)
	if rel.shifting != nil {
		if err := s.define(ctx, rel); err != nil {
			return err
		}
	}
	part, included := s.tracking.streamed(rel, s.tx.xid, m)
	if s.count(rel) {
		s.place(rel, len(m))
		if included {
			s.out.writer.Except(part, s.tracking.targets)
		}
		s.out.writer.Row(m)
	}
	return nil
}

// known finds the relation of a change of the open transaction.
func (s *session) known(oid uint32) (*relation, error) {
	if s.tx.commit == 0 {
		return nil, errors.New("change outside of a transaction")
	}
	if s.last == nil || s.last.OID != oid {
		rel := s.relations[oid]
		if rel == nil {
			return nil, fmt.Errorf("change of relation %d, which was not announced", oid)
		}
		s.last = rel
	}
	return s.last, nil
}

func (s *session) truncate(m []byte) error {
	oids, err := parseTruncate(m)
	if err != nil {
		return err
	}
	for _, oid := range oids {
		rel, err := s.known(oid)
		if err != nil {
			return err
		}
		s.tracking.unknown(rel, s.tx.xid)
		if rel.mapped {
			s.survey.truncates(s.tx.xid)
		}
		if s.count(rel) {
			s.place(rel, len(m))
			s.out.writer.Truncate(oid)
		}
	}
	return nil
}

// relation learns a table's new version.
func (s *session) relation(ctx context.Context, m []byte) error {
	rel, err := parseRelation(m)
	if err != nil {
		return err
	}
	decodeNames(rel, s.charset)
	s.leaves.announced(rel)
	for i := range rel.Columns {
		rel.Columns[i].Type.Name = s.typeNames[rel.Columns[i].Type.OID]
	}
	r := &relation{Relation: rel, announced: rel, mapped: s.mapped[rel.String()]}
	var root *relation // of a partition, whose relation comes behind that of its root
	if s.last == nil && s.announced != nil && s.announced.mapped {
		root = s.announced
	}
	s.announced = r
	if s.survey != nil {
		at := moment{LSN: s.tx.commit, Time: s.tx.at.UTC()}
		if err := s.unlocked(func() error { return s.survey.announced(ctx, rel, r.mapped, root, at) }); err != nil {
			return err
		}
	}
	if r.mapped {
		if err := s.unlocked(func() error { return s.enrich(ctx, rel) }); err != nil {
			return fmt.Errorf("catalogue entry of %s: %w", rel, err)
		}
		r.encoded, r.shifting = cdc.AppendRelation(nil, rel), s.definitions.want(rel.Columns)
		if s.out.writer.Has(rel.OID) { // the block has an older version
			s.out.writer.Relation(rel.OID, r.encoded)
		}
	}
	s.relations[rel.OID], s.last = r, nil
	return nil
}

// typeName takes a Type message, which comes before the relation whose columns have the type. The catalogue has the rest, unless
// the type was dropped.
func (s *session) typeName(m []byte) error {
	f := fields{rest: m[1:]}
	oid, schema, name := f.uint32(), f.text(), f.text()
	if f.err != nil {
		return f.err
	}
	if schema != "" && schema != "public" { // the empty string is pg_catalog
		name = schema + "." + name
	}
	s.typeNames[oid] = s.charset.DecodeName(name)
	return nil
}

// enrich asks the catalogue, which may take a while: the server hears from us before.
func (s *session) enrich(ctx context.Context, rel *cdc.Relation) error {
	const patience = 10 * time.Second
	if now := time.Now(); s.clock.due(now) {
		if err := s.tick(now); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return s.catalog.enrich(ctx, rel)
}

// oversized takes a message that is longer than MaxRow: its key is kept, the rest is passed over. s.out.mu is held, but not
// while more is awaited.
func (s *session) oversized(ctx context.Context) error {
	n, err := s.frames.length()
	if err != nil {
		return err
	}
	p := &piecewise{f: s.frames, left: n, fill: func() error {
		return s.unlocked(func() error { return s.fill(ctx) })
	}}
	head, err := p.take(frameHeader + dataHeader + 1 + 4)
	if err != nil {
		return err
	}
	kind, data, op := head[0], head[frameHeader], head[frameHeader+dataHeader]
	oid := binary.BigEndian.Uint32(head[frameHeader+dataHeader+1:])
	if kind != frameCopyData || data != dataXLog {
		return fmt.Errorf("receive: message %q of %d bytes", kind, n)
	}
	rel, err := s.known(oid)
	if err != nil {
		return err
	}
	change, ok := map[byte]cdc.Op{msgInsert: cdc.OpInsert, msgUpdate: cdc.OpUpdate, msgDelete: cdc.OpDelete}[op]
	if !ok {
		return fmt.Errorf("message %q of %d bytes", op, n)
	}
	s.leaves.row(rel.Relation)
	size := int64(n - frameHeader - dataHeader)
	s.tracking.unknown(rel, s.tx.xid)
	if s.count(rel) {
		key, err := oversizedKey(p, rel.Relation, s.charset)
		if err != nil {
			return err
		}
		s.place(rel, len(key))
		s.out.writer.Oversized(change, rel.OID, cdc.Oversized{Bytes: size, Key: key})
		s.tally.oversized++
		s.logger.WarnContext(ctx, "row is larger than cdcsync carries", "table", rel.String(), "bytes", size, "op", change)
	}
	s.tx.bytes += size
	return p.discard(p.left)
}
