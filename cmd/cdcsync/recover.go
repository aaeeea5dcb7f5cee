package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/cdcsync/cdcsync/internal/buffer"
	"github.com/cdcsync/cdcsync/internal/cdc"
	"github.com/cdcsync/cdcsync/internal/config"
	"github.com/cdcsync/cdcsync/internal/mapping"
	"github.com/cdcsync/cdcsync/internal/replication"
)

func newRecoverCommand(a *app) *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use:     "recover",
		Short:   "Go on after the slot or the buffer was lost",
		GroupID: groupOperate,
		Long: `recover is for a daemon that refuses to start since changes are lost: the slot was dropped, recreated or invalidated, or the buffer
is gone. It says what has happened, makes a new slot where the old one is of no use, and has every mapped table sent again, merged
with the changes from then on. Without --yes it only says so. The daemon must be stopped; start it afterwards.

What a backfill cannot show is a row that was deleted while nothing was captured. Rows that the buffer still has and the table
has not are sent as deletes; of rows that have left the buffer nobody knows, and the vendor keeps them.`,
		Example: `  cdcsync recover
  cdcsync recover --yes`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, stop := untilSignal(cmd.Context())
			defer stop()
			return a.recover(ctx, yes)
		},
	}
	cmd.Flags().BoolVar(&yes, "yes", false, "do it")
	return cmd
}

func (a *app) recover(ctx context.Context, yes bool) (err error) {
	cfg, templates, err := a.compiled()
	if err != nil {
		return err
	}
	logger := a.newLogger(cfg.Log)
	source := sourceConfig(cfg, templates)
	b, err := openBuffer(ctx, cfg, &source, logger, nil, yes)
	if err != nil {
		return fmt.Errorf("buffer: %w", err)
	}
	defer func() {
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		err = errors.Join(err, b.Close(grace))
	}()
	plan, err := loadRecoveryPlan(ctx, b)
	if err != nil {
		return err
	}
	r, err := replication.OpenRecovery(ctx, source, b, logger)
	if err != nil {
		return err
	}
	defer r.Close(context.WithoutCancel(ctx))
	if r.Reason == "" && plan == nil {
		_, err := fmt.Fprintln(a.stdout, "Slot and buffer belong together: there is nothing to recover. Start the daemon with cdcsync run.")
		return err
	}
	tables := sentTables(templates)
	rec := &recovery{Recovery: r, cfg: cfg, buffer: b, source: source, logger: logger, plan: plan}
	a.explainRecovery(rec, tables)
	if !yes {
		return errors.New("nothing was done: run it again with --yes")
	}
	if err := rec.run(ctx, tables); err != nil {
		return fmt.Errorf("%w; what was done is kept: run cdcsync recover --yes again", err)
	}
	a.tellRecovered(rec, tables)
	return nil
}

func (a *app) explainRecovery(r *recovery, tables []replication.BackfillSpec) {
	reason := r.Reason
	if r.plan != nil {
		reason = r.plan.Reason
		fmt.Fprintf(a.stdout, "A recovery of %s was not finished. It is gone on with.\n\n", r.plan.Begun.Format(time.DateTime))
	}
	fmt.Fprintf(a.stdout, "What happened: %s.\n\nWhat recover does:\n", reason)
	if r.NewSlot {
		fmt.Fprintf(a.stdout, "  - makes slot %q anew: changes are captured from then on\n", r.source.Slot)
	} else {
		fmt.Fprintf(a.stdout, "  - goes on with slot %q from where it stands\n", r.source.Slot)
	}
	fmt.Fprintln(a.stdout, "  - sends rows as deletes that the buffer still has and the tables have no longer")
	for _, t := range tables {
		fmt.Fprintf(a.stdout, "  - sends all rows of %s to %s, as soon as the daemon runs\n", t.Table, strings.Join(t.Sinks, ", "))
	}
	fmt.Fprintln(a.stdout, "\nWhat the buffer has for the sinks is kept and delivered.")
	fmt.Fprintln(a.stdout, "What it cannot do: rows that were deleted while nothing was captured, and that have left the buffer, stay with the vendors.")
	fmt.Fprintln(a.stdout)
}

func (a *app) tellRecovered(r *recovery, tables []replication.BackfillSpec) {
	fmt.Fprintf(a.stdout, "Done: the stream begins at %s, %d rows that vanished are deleted, %d backfills wait. Start the daemon with cdcsync run.\n",
		r.begin, r.deleted, len(tables))
	if r.vanished.Incomplete {
		fmt.Fprintln(a.stdout, "The buffer held more rows than could be compared: some that vanished may stay with the vendors.")
	}
}

// recovery is under way.
type recovery struct {
	*replication.Recovery
	cfg    *config.Config
	buffer *buffer.Buffer
	source replication.Config
	logger *slog.Logger
	plan   *recoveryPlan // nil until it is stored

	begin    cdc.LSN
	vanished replication.Vanished
	deleted  int
}

// run stores its plan, then makes the slot: what is deleted from then on comes with the stream. Every step may be repeated.
func (r *recovery) run(ctx context.Context, tables []replication.BackfillSpec) (err error) {
	if err := r.readBuffer(ctx); err != nil {
		return err
	}
	if r.plan == nil {
		r.plan = &recoveryPlan{Reason: r.Reason, Begun: time.Now().UTC().Truncate(time.Second), Since: r.Since()}
		for _, t := range tables {
			r.plan.Tables = append(r.plan.Tables, plannedSend{Table: t.Table.String()})
		}
	}
	if err := r.plan.store(ctx, r.buffer); err != nil {
		return err
	}
	if r.begin, err = r.Run(ctx); err != nil {
		return err
	}
	if r.plan.Since > r.begin { // the source is at an earlier time than the buffer
		r.plan.Since = 0
	}
	if err := r.plan.recordGaps(ctx, r.buffer, tables, r.begin); err != nil {
		return err
	}
	if err := r.deleteVanished(ctx); err != nil {
		return err
	}
	if err := r.startBackfills(ctx, tables); err != nil {
		return err
	}
	return r.buffer.DeleteValue(ctx, recoveryPlanName)
}

// startBackfills begins with every table anew: what an earlier attempt has started has sent nothing yet.
func (r *recovery) startBackfills(ctx context.Context, tables []replication.BackfillSpec) error {
	backfills, err := replication.NewBackfills(ctx, replication.BackfillConfig{URL: r.source.URL, Publication: r.source.Publication, MaxRow: r.source.MaxRow}, r.buffer, deliveries{r.buffer, r.cfg.Sinks}, r.logger)
	if err != nil {
		return err
	}
	for _, f := range backfills.List() {
		if f.State == replication.BackfillWaiting || f.State == replication.BackfillRunning || f.State == replication.BackfillPaused {
			if err := backfills.Cancel(ctx, f.ID); err != nil { // the new ones send everything
				return err
			}
		}
	}
	for _, t := range tables {
		started, err := backfills.Start(ctx, t)
		if err != nil {
			return fmt.Errorf("backfill of %s: %w", t.Table, err)
		}
		if err := r.plan.closedBy(ctx, r.buffer, t.Table.String(), started.ID); err != nil {
			return err
		}
	}
	return nil
}

// readBuffer remembers the rows that the retained blocks have.
func (r *recovery) readBuffer(ctx context.Context) error {
	stats := r.buffer.Stats()
	if stats.Messages == 0 {
		return nil
	}
	slowest := -1
	for i, c := range stats.Cursors {
		if slowest < 0 || c.Seq < stats.Cursors[slowest].Seq {
			slowest = i
		}
	}
	if slowest < 0 || stats.Cursors[slowest].Seq >= stats.Last {
		return nil
	}
	sink, err := r.buffer.Sink(ctx, stats.Cursors[slowest].Sink)
	if err != nil {
		return err
	}
	defer sink.Close()
	var decoder cdc.Decoder
	for {
		block, err := sink.Next(ctx)
		if err != nil {
			return err
		}
		if err := r.vanished.Add(&decoder, block.Data); err != nil {
			return fmt.Errorf("block %d: %w", block.Seq, err)
		}
		if block.Seq >= stats.Last {
			return nil
		}
	}
}

func (r *recovery) deleteVanished(ctx context.Context) error {
	mapped := make(map[mapping.Table]bool)
	for i := range r.cfg.Mappings {
		mapped[mapping.Table(r.cfg.Mappings[i].Table)] = true
	}
	reader, err := replication.NewReader(ctx, r.source.URL, replication.ReaderOptions{})
	if err != nil {
		return err
	}
	defer reader.Close()
	return r.vanished.Find(ctx, reader, func(rel *cdc.Relation, rows [][]byte) error {
		if !mapped[mapping.Table{Schema: rel.Schema, Name: rel.Name}] {
			return nil
		}
		r.deleted += len(rows)
		return r.Delete(ctx, r.begin, rel, rows)
	})
}
