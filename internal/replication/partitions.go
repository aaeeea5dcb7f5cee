package replication

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/cdcsync/cdcsync/internal/cdc"
)

// partitions compares the partitions of a table with those that it had. What comes and goes with rows in it is in no stream:
// a root's changes are those that are made while a partition is one of it, and a partition's TRUNCATE is sent under no root's name.
func (p *pass) partitions(ctx context.Context, table string, was *knownTable, now *tableState) ([]event, error) {
	before, present := byOID(was.Members), byOID(now.Members)
	var events []event
	for i := range now.Members {
		m := &now.Members[i]
		if !m.leaf() {
			continue
		}
		old, had := before[m.OID]
		e, err := p.arrived(ctx, m, had, before, present)
		if err == nil && e == nil && had {
			e = p.emptied(m, &old)
		}
		if err != nil {
			return nil, err
		}
		if e != nil {
			events = append(events, *e)
		}
	}
	gone, err := p.gone(ctx, table, before, present)
	return append(events, gone...), err
}

func byOID(members []member) map[uint32]member {
	by := make(map[uint32]member, len(members))
	for _, m := range members {
		by[m.OID] = m
	}
	return by
}

// arrived tells of a partition that was attached since, itself or with what it belongs to, and has rows.
func (p *pass) arrived(ctx context.Context, m *member, had bool, before, present map[uint32]member) (*event, error) {
	attached := false
	for oid := m.OID; ; { // up to the root, which is no member
		up, ok := present[oid]
		if !ok {
			break
		}
		old, known := before[oid]
		attached = attached || known && old.Attached != up.Attached || !known && !up.born
		oid = up.Parent
	}
	if !attached {
		return nil, nil
	}
	_, rows, err := holdsRows(ctx, p.asks(), m.OID)
	if err != nil {
		return nil, fmt.Errorf("rows of partition %s: %w", m.Name, err)
	}
	switch {
	case had:
		return &event{cause: cdc.GapPartition, reason: "partition " + m.Name + " was detached and attached again: what changed meanwhile was not sent"}, nil
	case rows:
		return &event{cause: cdc.GapPartition, reason: "partition " + m.Name + " was attached with rows, which were not sent", noDeletes: true}, nil
	}
	return nil, nil
}

// emptied tells of a TRUNCATE of a partition. That of the whole table comes with the stream, which may be behind: then m waits as it was.
func (p *pass) emptied(m, old *member) *event {
	xid := old.Emptied
	if xid == 0 && m.File != old.File && m.emptied && (old.Rows || p.leaves[m.OID] != "") {
		xid = m.xmin
	}
	if xid == 0 {
		return nil
	}
	p.mu.Lock()
	streamed := p.truncated[xid]
	p.mu.Unlock()
	switch {
	case streamed:
		return nil
	case p.s.status.now().Received < p.facts.at:
		waits := *old
		waits.Emptied = xid
		p.kept[m.OID] = waits
		return nil
	}
	return &event{cause: cdc.GapPartition, reason: "partition " + m.Name + " was truncated, which is not in the stream: the sinks still have its rows"}
}

// gone tells of partitions that were detached or dropped although they had rows.
func (p *pass) gone(ctx context.Context, table string, before, present map[uint32]member) ([]event, error) {
	had := make(map[uint32]string)
	for oid, m := range before {
		if m.leaf() {
			had[oid] = m.Name
		}
	}
	for oid, root := range p.leaves { // also of those that came and went between two surveys
		if root == table && had[oid] == "" {
			had[oid] = fmt.Sprintf("%d (its OID)", oid)
		}
	}
	var events []event
	for _, oid := range slices.Sorted(maps.Keys(had)) {
		if _, ok := present[oid]; ok {
			continue
		}
		exists, rows, err := holdsRows(ctx, p.asks(), oid)
		if err != nil {
			return nil, fmt.Errorf("rows of partition %s: %w", had[oid], err)
		}
		if rows || before[oid].Rows || p.leaves[oid] != "" {
			what := "dropped"
			if exists {
				what = "detached"
			}
			events = append(events, event{cause: cdc.GapPartition, reason: "partition " + had[oid] + " was " + what + ": the sinks still have its rows"})
		}
		p.settle(oid)
	}
	return events, nil
}

// settle has the stream's announcements of a partition that is gone count no more.
func (v *surveyor) settle(oid uint32) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.settled[oid] = true
	delete(v.leaves, oid)
}
