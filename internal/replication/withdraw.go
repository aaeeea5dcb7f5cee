package replication

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/cespare/xxhash/v2"

	"github.com/cdcsync/cdcsync/internal/cdc"
)

// withdraw has rows deleted at the sinks that they are known to have and that the table has no longer. It runs behind the last
// chunk, while the stream still tracks the table's keys.
func (c *carrier) withdraw(ctx context.Context) error {
	table := c.e.Table.String()
	wanted, err := c.gather(ctx)
	if err != nil || !wanted {
		return err
	}
	reader, err := NewReader(ctx, c.b.cfg.URL, ReaderOptions{Connections: 1, Publication: c.b.cfg.Publication})
	if err != nil {
		return err
	}
	defer reader.Close()
	present, err := reader.Relation(ctx, c.e.Table.Schema, c.e.Table.Name)
	if err != nil || present == nil {
		return err
	}
	for _, t := range c.had.tables {
		asked := *t.relation
		asked.OID = present.OID // another table may have the name since the rows were stored
		if err := c.withdrawGone(ctx, reader, t, &asked); err != nil {
			return fmt.Errorf("rows of %s that are gone: %w", table, err)
		}
	}
	return nil
}

// gather notes the rows that the sinks have as the log, letters and tracked items tell, and reports whether a gap wants them withdrawn.
func (c *carrier) gather(ctx context.Context) (wanted bool, err error) {
	if c.b.cfg.Delivered == nil || c.e.Where != "" {
		return false, nil
	}
	table := c.e.Table.String()
	return c.b.cfg.Delivered(ctx, table, func(change *cdc.Change) {
		if change.Relation.String() == table {
			c.had.change(change)
		}
	})
}

func (c *carrier) withdrawGone(ctx context.Context, reader *Reader, t *vanishedTable, asked *cdc.Relation) error {
	const batch = 500 // rows in one block
	key := KeyColumns(t.relation)
	var names []string
	for _, i := range key {
		names = append(names, t.relation.Columns[i].Name)
	}
	c.s.out.mu.Lock()
	alike := slices.Equal(names, c.s.tracking.key) // else it is not known which of them the stream has changed meanwhile
	c.s.out.mu.Unlock()
	if !alike {
		return nil
	}
	all := make([]string, 0, len(t.rows))
	for name := range t.rows {
		all = append(all, name)
	}
	deleted := 0
	for some := range slices.Chunk(all, batch) {
		n, err := c.withdrawSome(ctx, reader, t, asked, some)
		if err != nil {
			return err
		}
		deleted += n
	}
	if deleted > 0 {
		c.s.logger.InfoContext(ctx, "rows that are gone are withdrawn", "id", c.e.ID, "table", c.e.Table.String(), "rows", deleted)
	}
	return nil
}

// withdrawSome asks in a snapshot that sees every change of these keys that the stream has delivered. A key that the stream delivers
// a change of after that is left to it.
func (c *carrier) withdrawSome(ctx context.Context, reader *Reader, t *vanishedTable, asked *cdc.Relation, names []string) (int, error) {
	xids := c.unseen(names)
	columns := KeyColumns(asked)
	keys := make([][]string, len(names))
	for i, name := range names {
		for _, value := range splitKey([]byte(name)) {
			keys[i] = append(keys[i], string(value))
		}
		if len(keys[i]) != len(columns) {
			return 0, fmt.Errorf("a key of %d values, want %d", len(keys[i]), len(columns))
		}
	}
	present, err := reader.Rows(ctx, asked, columns, keys, xids)
	if err != nil {
		return 0, err
	}
	var gone []string
	for i := range present {
		if present[i] == nil {
			gone = append(gone, names[i])
		}
	}
	if len(gone) == 0 {
		return 0, nil
	}
	deleted := 0
	err = c.s.between(ctx, &appending{carrier: c, done: make(chan error, 1), instead: func() (err error) {
		deleted, err = c.deleteRows(t, asked, gone, xids)
		return err
	}})
	return deleted, err
}

// unseen are the transactions that changed these keys, as far as snapshots may not see them yet.
func (c *carrier) unseen(names []string) []uint32 {
	c.s.out.mu.Lock()
	defer c.s.out.mu.Unlock()
	m := &c.s.tracking.merge
	var xids []uint32
	for _, name := range names {
		if xid, ok := m.changed[xxhash.Sum64String(name)]; ok && !slices.Contains(xids, xid) {
			xids = append(xids, xid)
		}
	}
	for xid := range m.wide {
		if !slices.Contains(xids, xid) {
			xids = append(xids, xid)
		}
	}
	return xids
}

// withdrawnOrdinal keeps the positions of withdrawn rows from those of a transaction whose commit begins where they lie.
const withdrawnOrdinal = 1 << 30

// deleteRows appends deletes of full rows as a transaction of its own, in a block of its own: the relation is the table's as it is
// now, not the stream's. s.out.mu is held, and no transaction is open.
func (c *carrier) deleteRows(t *vanishedTable, present *cdc.Relation, names []string, seen []uint32) (deleted int, err error) {
	rows := make(map[string][]byte, len(names))
	for _, name := range names {
		row := t.rows[name]
		if rows[name], err = row.as(present); err != nil {
			return 0, err
		}
	}
	out, m := c.s.out, &c.s.tracking.merge
	for xid := range m.wide {
		if !slices.Contains(seen, xid) {
			return 0, nil // any key may have come back
		}
	}
	if out.dirty {
		out.seal(blockSize)
	}
	at := out.writer.Resume().End
	for _, name := range names {
		if xid, ok := m.changed[xxhash.Sum64String(name)]; ok && !slices.Contains(seen, xid) {
			continue
		}
		if deleted == 0 {
			out.writer.Begin(0, at, time.Now(), withdrawnOrdinal+c.withdrawn)
			out.writer.Relation(present.OID, cdc.AppendRelation(nil, present))
		}
		out.writer.Row(deleteMessage(present.OID, rows[name]))
		deleted++
	}
	if deleted > 0 {
		out.writer.Commit(at)
		out.dirty = true
		c.withdrawn += uint32(deleted)
		out.seal(blockSize)
		out.offer()
	}
	return deleted, nil
}
