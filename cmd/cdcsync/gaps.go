package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"

	"github.com/cdcsync/cdcsync/internal/admin"
	"github.com/cdcsync/cdcsync/internal/buffer"
	"github.com/cdcsync/cdcsync/internal/cdc"
	"github.com/cdcsync/cdcsync/internal/config"
	"github.com/cdcsync/cdcsync/internal/mapping"
	"github.com/cdcsync/cdcsync/internal/pulse"
	"github.com/cdcsync/cdcsync/internal/replication"
)

const gapsHelp = `A gap is a stretch of the source's history of which changes may have been missed: a table was taken out of the publication for a
while, another table has its name now, a partition came or went with rows. While one is open the daemon is not ready.

A gap is closed by sending the table's rows again: cdcsync backfill start --table TABLE, or by itself with source.repair: auto. Rows
that are gone, and that the buffer, dead letters or unconfirmed items still know, are deleted at the vendors. Of others nobody knows: then
the gap is left as rows_sent, which does not keep the daemon from being ready, until it is accepted.`

func newGapsCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "gaps",
		Short:   "Show which changes may have been missed, and what to do",
		GroupID: groupOperate,
		Long:    gapsHelp,
		Example: `  cdcsync gaps
  cdcsync gaps -o json
  cdcsync backfill start --table public.users    # closes the gaps of that table
  cdcsync gaps accept g3`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.listGaps(cmd.Context()) },
	}
	a.outputFlag(cmd)
	list := &cobra.Command{
		Use:   "list",
		Short: "List the gaps, the oldest first",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return a.listGaps(cmd.Context()) },
	}
	a.outputFlag(list)
	cmd.AddCommand(list, newGapsAcceptCommand(a))
	return cmd
}

func (a *app) listGaps(ctx context.Context) error {
	client, err := a.client()
	if err != nil {
		return err
	}
	defer client.Close()
	gaps, err := client.Gaps(ctx)
	switch {
	case err != nil:
		return err
	case a.output == outputJSON:
		return a.printJSON(gaps)
	case len(gaps) == 0:
		_, err = fmt.Fprintln(a.stdout, "no gaps")
		return err
	}
	return admin.WriteGaps(a.stdout, gaps, time.Now())
}

func newGapsAcceptCommand(a *app) *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use:   "accept ID",
		Short: "Forget a gap, whatever may be missing in it",
		Long: `accept takes a gap off the list without sending anything. What the vendors lack, or still have, stays so: compare by hand where
that matters, or send the rows first (cdcsync backfill start --table TABLE). A gap whose changes are still being missed is not
recorded again for the same reason; when that ends, what was missed is a gap anew.`,
		Example: `  cdcsync gaps accept g3
  cdcsync gaps accept g3 --yes`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return a.acceptGap(cmd.Context(), args[0], yes) },
	}
	cmd.Flags().BoolVar(&yes, "yes", false, "do not ask")
	return cmd
}

func (a *app) acceptGap(ctx context.Context, id string, yes bool) error {
	client, err := a.client()
	if err != nil {
		return err
	}
	defer client.Close()
	gaps, err := client.Gaps(ctx)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(gaps, func(g admin.Gap) bool { return g.ID == id })
	if i < 0 {
		return noGap(id)
	}
	if !yes {
		if err := admin.WriteGaps(a.stdout, gaps[i:i+1], time.Now()); err != nil {
			return err
		}
		fmt.Fprint(a.stdout, "Accept that these changes may be missing at the vendors? [y/N] ")
		line, _ := bufio.NewReader(a.stdin).ReadString('\n') // no answer is no
		if answer := strings.ToLower(strings.TrimSpace(line)); answer != "y" && answer != "yes" {
			return errors.New("nothing was done: answer y, or run it again with --yes")
		}
	}
	if err := client.AcceptGap(ctx, id); err != nil {
		return err
	}
	_, err = fmt.Fprintf(a.stdout, "gap %s is accepted\n", id)
	return err
}

func noGap(id string) error {
	return &admin.Error{Kind: admin.KindNotFound, Reason: fmt.Sprintf("no gap %q", id), Solution: "cdcsync gaps lists those there are"}
}

// AcceptGap forgets a gap.
func (w *window) AcceptGap(ctx context.Context, id string) error {
	err := w.buffer.CloseGap(ctx, id)
	if errors.Is(err, buffer.ErrNoGap) {
		return noGap(id)
	}
	if err == nil {
		w.logger.InfoContext(ctx, "gap accepted", "gap", id)
	}
	return err
}

// shownGaps are the gaps as the listener shows them.
func (w *window) shownGaps() []admin.Gap {
	var gaps []admin.Gap
	for _, g := range w.buffer.Gaps() {
		gaps = append(gaps, admin.NewGap(g))
	}
	return gaps
}

// gapMetrics counts gaps when it is asked.
type gapMetrics struct {
	buffer *buffer.Buffer
	desc   *prometheus.Desc
}

func newGapMetrics(b *buffer.Buffer) *gapMetrics {
	return &gapMetrics{b, prometheus.NewDesc("cdcsync_gaps", "Gaps: changes that may have been missed, until they are closed or accepted.",
		[]string{"cause", "state", "table"}, nil)}
}

func (m *gapMetrics) Describe(ch chan<- *prometheus.Desc) { ch <- m.desc }

func (m *gapMetrics) Collect(ch chan<- prometheus.Metric) {
	counts := make(map[[3]string]float64)
	for _, g := range m.buffer.Gaps() {
		counts[[3]string{string(g.Cause), string(g.State), g.Table}]++
	}
	for labels, n := range counts {
		ch <- prometheus.MustNewConstMetric(m.desc, prometheus.GaugeValue, n, labels[:]...)
	}
}

// watchGaps closes gaps as backfills send their rows, and starts those backfills where that is wanted, until ctx ends.
func (p *pipeline) watchGaps(ctx context.Context) {
	const interval = time.Second
	tick := time.NewTicker(interval)
	defer tick.Stop()
	told := make(map[string]string) // by gap: an error is told once, not every second
	for {
		for _, gap := range p.buffer.Gaps() {
			pulse.Beat(ctx)
			err := p.tendGap(ctx, gap)
			if err == nil || ctx.Err() != nil || errors.Is(err, buffer.ErrNoGap) {
				delete(told, gap.ID)
				continue
			}
			if told[gap.ID] != err.Error() {
				told[gap.ID] = err.Error()
				p.logger.WarnContext(ctx, "gap not closed", "gap", gap.ID, "table", gap.Table, "retry_in", interval, "err", err)
			}
		}
		beat := pulse.Rest(ctx)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		beat()
	}
}

// tendGap sees what backfills have done for a gap since its end.
func (p *pipeline) tendGap(ctx context.Context, gap cdc.Gap) error {
	if gap.State != cdc.GapOpen || gap.Until == 0 && gap.UntilTime.IsZero() {
		return nil
	}
	wanted := p.gapTables(&gap)
	if len(wanted) == 0 {
		return nil // no mapping sends its rows: an operator accepts it
	}
	var ids []string
	done := true
	fits, err := p.fits(ctx, &gap)
	if err != nil {
		return err
	}
	for _, spec := range wanted {
		f, ok := p.covering(&gap, &spec)
		if !ok && fits && p.cfg.Source.Repair == config.RepairAuto {
			if f, err = p.backfills.Start(ctx, spec); err != nil {
				return err
			}
			p.logger.InfoContext(ctx, "backfill started to close a gap", "id", f.ID, "table", f.Table.String(), "gap", gap.ID)
			ok = true
		}
		done = done && ok && f.State == replication.BackfillDone
		if ok && f.State != replication.BackfillFailed && f.State != replication.BackfillCancelled {
			ids = append(ids, f.ID)
		}
	}
	if done && fits {
		return p.closeGap(ctx, gap)
	}
	if id := strings.Join(ids, ", "); id != gap.Backfill {
		gap.Backfill = id
		return p.buffer.UpdateGap(ctx, gap)
	}
	return nil
}

// gapTables are the tables that have to be sent, with their sinks.
func (p *pipeline) gapTables(gap *cdc.Gap) []replication.BackfillSpec {
	templates := p.templates
	if gap.Mapping != "" { // others of the table have its rows
		templates = slices.DeleteFunc(slices.Clone(templates), func(t *mapping.Template) bool { return t.Source.Name != gap.Mapping })
	}
	sent := sentTables(templates)
	for i := range sent {
		if len(gap.Sinks) > 0 {
			sent[i].Sinks = slices.DeleteFunc(sent[i].Sinks, func(s string) bool { return !slices.Contains(gap.Sinks, s) })
		}
	}
	return slices.DeleteFunc(sent, func(s replication.BackfillSpec) bool {
		return gap.Table != "" && s.Table.String() != gap.Table || len(s.Sinks) == 0
	})
}

// fits reports whether a backfill can close the gap: not as long as the mapping that missed the changes does not fit the table, since
// the rows would be missed as well.
func (p *pipeline) fits(ctx context.Context, gap *cdc.Gap) (bool, error) {
	if gap.Cause != cdc.GapMapping {
		return true, nil
	}
	for _, t := range p.templates {
		if t.Source.Name != gap.Mapping || tableSpec(t.Source.Table).String() != gap.Table {
			continue
		}
		rel, err := p.reader.Relation(ctx, t.Source.Table.Schema, t.Source.Table.Name)
		if err != nil || rel == nil {
			return false, err
		}
		if _, problems := t.Compile(rel); len(problems) > 0 {
			return false, nil
		}
	}
	return true, nil
}

// covering finds the newest backfill of a whole table that began after the gap's end; one that was cancelled or failed says that
// an operator has to see to it.
func (p *pipeline) covering(gap *cdc.Gap, spec *replication.BackfillSpec) (f replication.Backfill, ok bool) {
	for _, b := range p.backfills.List() {
		if b.Table.String() != spec.Table.String() || b.Where != "" || !b.Created.After(gap.UntilTime) {
			continue
		}
		if !slices.ContainsFunc(spec.Sinks, func(s string) bool { return !slices.Contains(b.Sinks, s) }) {
			f, ok = b, true
		}
	}
	return f, ok
}

func (p *pipeline) closeGap(ctx context.Context, gap cdc.Gap) error {
	if gap.NoDeletes {
		if err := p.buffer.CloseGap(ctx, gap.ID); err != nil {
			return err
		}
		p.logger.InfoContext(ctx, "gap closed, its rows are sent", "gap", gap.ID, "table", gap.Table)
		return nil
	}
	gap.State, gap.Backfill = cdc.GapRowsSent, ""
	if err := p.buffer.UpdateGap(ctx, gap); err != nil {
		return err
	}
	p.logger.WarnContext(ctx, "gap: rows sent, deletions unknown", "gap", gap.ID, "table", gap.Table, "since", gap.Since.String(), "until", gap.Until.String())
	return nil
}

// delivered gives every row of a table that sinks may have and that is still known here.
func (p *pipeline) delivered(ctx context.Context, table string, visit func(*cdc.Change)) (bool, error) {
	missing := func(g cdc.Gap) bool {
		return g.State == cdc.GapOpen && !g.NoDeletes && (g.Table == "" || g.Table == table)
	}
	if !slices.ContainsFunc(p.buffer.Gaps(), missing) {
		return false, nil
	}
	missed := slices.DeleteFunc(p.buffer.Gaps(), func(g cdc.Gap) bool { return g.State != cdc.GapOpen || g.Cause != cdc.GapMapping || g.Table != table })
	var decoder cdc.Decoder
	err := p.buffer.Retained(ctx, func(block buffer.Block) error {
		if _, err := decoder.Reset(block.Data); err != nil {
			return fmt.Errorf("block %d: %w", block.Seq, err)
		}
		var c cdc.Change
		for {
			ok, err := decoder.Next(&c)
			if err != nil || !ok {
				return err
			}
			for _, known := range undeleted(&c, table, missed) {
				visit(known)
			}
		}
	})
	if err != nil {
		return false, err
	}
	return true, p.parked(ctx, table, visit)
}

// undeleted is a change as a comparison with the table takes it. A row that it deletes is still at the vendor when a mapping made
// nothing of the change.
func undeleted(c *cdc.Change, table string, missed []cdc.Gap) []*cdc.Change {
	within := func(g cdc.Gap) bool { return g.Since <= c.Position.Commit && c.Position.Commit <= g.Until }
	if c.Old == nil || c.Relation.String() != table || !slices.ContainsFunc(missed, within) || c.New != nil && sameKey(c) {
		return []*cdc.Change{c}
	}
	kept := *c
	kept.Op, kept.Old, kept.New = cdc.OpDelete, nil, slices.Clone(c.Old)
	if c.OldIsKey {
		for i := range kept.New {
			if !slices.Contains(replication.KeyColumns(c.Relation), i) {
				kept.New[i] = cdc.Value{Kind: cdc.Unchanged}
			}
		}
	}
	if c.New == nil {
		return []*cdc.Change{&kept}
	}
	moved := *c // without the old key, which stays known
	moved.Old = nil
	return []*cdc.Change{&kept, &moved}
}

// sameKey reports whether an update leaves the row's key as it is.
func sameKey(c *cdc.Change) bool {
	return !slices.ContainsFunc(replication.KeyColumns(c.Relation), func(i int) bool {
		return i < len(c.Old) && i < len(c.New) && c.New[i].Kind == cdc.Text && !bytes.Equal(c.Old[i].Data, c.New[i].Data)
	})
}

// parked gives the rows of open dead letters and of items that await a vendor's word.
func (p *pipeline) parked(ctx context.Context, table string, visit func(*cdc.Change)) error {
	see := func(l *buffer.Letter) error {
		if l.Table != table || len(l.Change) == 0 {
			return nil
		}
		change, err := cdc.DecodeChange(l.Change)
		if err == nil && change.New != nil { // the letter of a delete is no sign of a row
			visit(change)
		}
		return err
	}
	for i := range p.cfg.Sinks {
		for letter, err := range p.buffer.Letters(ctx, buffer.LetterFilter{Sink: p.cfg.Sinks[i].Name, Table: table, State: buffer.LetterOpen}) {
			if err != nil {
				return err
			}
			if err := see(&letter); err != nil {
				return fmt.Errorf("dead letter %s: %w", letter.ID, err)
			}
		}
		for item, err := range p.buffer.TrackedItems(ctx, p.cfg.Sinks[i].Name) {
			if err != nil {
				return err
			}
			if err := see(&item.Letter); err != nil {
				return fmt.Errorf("unconfirmed item %s: %w", item.Letter.ItemID, err)
			}
		}
	}
	return nil
}
