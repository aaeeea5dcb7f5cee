package delivery

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/cdcsync/cdcsync/internal/cdc"
	"github.com/cdcsync/cdcsync/internal/mapping"
	"github.com/cdcsync/cdcsync/internal/problem"
)

// Gaps stores, durably, which changes a mapping could not be asked for.
type Gaps interface {
	// RecordGap returns when the gap is stored. An open gap of the same cause, table, sinks and mapping grows instead.
	RecordGap(ctx context.Context, gap cdc.Gap) (cdc.Gap, error)
}

// misfit is a mapping that does not work for a table as it was when the change was made: the mapping alone stands still for it.
type misfit struct {
	*renderer
	reason string // every mistake
}

// heldBack is what a block holds of one mapping that was not rendered.
type heldBack struct {
	misfit
	counts      [ops]int
	first, last cdc.Position
	since       time.Time // commit time of the first
	deletes     bool      // a record may have to be deleted at the vendor
}

// misfitOf names every mistake once: a column may be missing in the key and in the item.
func misfitOf(r *renderer, problems problem.List) misfit {
	problems.Sort()
	var mistakes []string
	seen := make(map[string]bool)
	for _, p := range problems {
		if text := p.Error(); !seen[text] {
			seen[text] = true
			mistakes = append(mistakes, text)
		}
	}
	return misfit{renderer: r, reason: fmt.Sprintf("mapping %s does not fit the table as it was when the change was made: %s", r.name, strings.Join(mistakes, "; "))}
}

// concerns reports whether a mapping might have made something of a change of this kind, which cannot be known for certain.
func (r *renderer) concerns(op cdc.Op) bool {
	t := r.template
	switch op {
	case cdc.OpInsert, cdc.OpRead, cdc.OpDelete:
		return t.Sends(op)
	case cdc.OpUpdate: // which may take a row into the filter, out of it, or make it another record
		return t.Sends(cdc.OpUpdate) || t.Sends(cdc.OpDelete) || t.Sends(cdc.OpInsert)
	case cdc.OpTruncate:
		return true
	}
	return true
}

// hold notes that mappings make nothing of a change since they do not fit its table. A letter stays a letter.
func (d *dispatcher) hold(c *cdc.Change, t *table) {
	for _, m := range t.misfits {
		switch {
		case d.unit.only == m.renderer:
			d.unit.misfit = m.reason
		case d.unit.only == nil && m.concerns(c.Op):
			d.holdFor(c, m)
		}
	}
}

func (d *dispatcher) holdFor(c *cdc.Change, m misfit) {
	var held *heldBack
	for _, h := range d.held {
		if h.renderer == m.renderer && h.reason == m.reason {
			held = h
		}
	}
	if held == nil {
		held = &heldBack{misfit: m, first: c.Position, last: c.Position, since: c.CommitTime}
		d.held = append(d.held, held)
	}
	if c.Position.Compare(held.first) < 0 {
		held.first, held.since = c.Position, c.CommitTime
	}
	if c.Position.Compare(held.last) > 0 {
		held.last = c.Position
	}
	held.counts[c.Op]++
	held.deletes = held.deletes || c.Op != cdc.OpInsert && c.Op != cdc.OpRead
}

// recordHeld stores what the block holds of mappings that were not rendered. The block is not settled before.
func (d *dispatcher) recordHeld(ctx context.Context) error {
	for _, h := range d.held {
		if d.worker.gaps == nil { // nobody would know
			return &fatalError{errors.New(h.reason)}
		}
		gap := cdc.Gap{
			Cause: cdc.GapMapping, State: cdc.GapOpen, Table: h.table, Sinks: []string{d.worker.cfg.Sink}, Mapping: h.name, Reason: h.reason,
			Since: h.first.Commit, SinceTime: h.since, Until: h.last.Commit,
			UntilTime: time.Now().UTC(), // a backfill that began before may have rows that were held, too
			NoDeletes: !h.deletes,
		}
		err := d.worker.insist(ctx, trouble{name: "gaps", what: "store a gap", blocks: true}, func(ctx context.Context) error {
			_, err := d.worker.gaps.RecordGap(ctx, gap)
			return err
		})
		if err != nil {
			return err
		}
		d.worker.sayHeld(ctx, &h.misfit)
		for op, n := range h.counts {
			d.worker.count(h.renderer, cdc.Op(op), outcomeHeld, n)
		}
	}
	d.held = d.held[:0]
	return nil
}

// sayHeld logs a mapping's mistakes when they are new.
func (w *Worker) sayHeld(ctx context.Context, m *misfit) {
	if m.said == m.reason {
		return
	}
	m.said = m.reason
	w.log.ErrorContext(ctx, "mapping is held, its changes are a gap", "mapping", m.name, "table", m.table, "reason", m.reason)
}

// unfit is a refresh mapping whose root cannot be asked for.
func unfit(r *renderer, refresh *mapping.Refresh, why string) misfit {
	return misfit{renderer: r, reason: fmt.Sprintf("mapping %s cannot refresh %s: %s", r.name, refresh.Table, why)}
}
