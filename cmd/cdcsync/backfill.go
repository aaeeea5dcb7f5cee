package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/cdcsync/cdcsync/internal/admin"
	"github.com/cdcsync/cdcsync/internal/backoff"
	"github.com/cdcsync/cdcsync/internal/buffer"
	"github.com/cdcsync/cdcsync/internal/cdc"
	"github.com/cdcsync/cdcsync/internal/config"
	"github.com/cdcsync/cdcsync/internal/mapping"
	"github.com/cdcsync/cdcsync/internal/pulse"
	"github.com/cdcsync/cdcsync/internal/replication"
)

func newBackfillCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "backfill",
		Short:   "Send existing rows to the sinks, while changes stream",
		GroupID: groupOperate,
		Long: `backfill has the running daemon send the rows that a table holds already. They are merged with the stream of changes: a sink
never gets a row that is older than what it got before, and misses no change. One backfill runs at a time; others wait.`,
	}
	cmd.AddCommand(newBackfillStartCommand(a), newBackfillListCommand(a),
		newBackfillActCommand(a, "pause", "paused", "Stop a backfill until it is resumed", (*admin.Client).PauseBackfill),
		newBackfillActCommand(a, "resume", "resumed", "Go on with a backfill that is paused or has failed", (*admin.Client).ResumeBackfill),
		newBackfillActCommand(a, "cancel", "cancelled", "End a backfill; what it has sent stays sent", (*admin.Client).CancelBackfill))
	return cmd
}

func newBackfillStartCommand(a *app) *cobra.Command {
	var what admin.StartBackfill
	cmd := &cobra.Command{
		Use:   "start --table TABLE",
		Short: "Send the rows of a table",
		Example: `  cdcsync backfill start --table public.users
  cdcsync backfill start --table public.users --sink crm --where "created_at >= '2026-01-01'" --rate 2000`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := a.client()
			if err != nil {
				return err
			}
			defer client.Close()
			started, err := client.StartBackfill(cmd.Context(), what)
			if err != nil {
				return err
			}
			if a.output == outputJSON {
				return a.printJSON(started)
			}
			_, err = fmt.Fprintf(a.stdout, "backfill %s of %s has started, about %d rows; cdcsync backfill list shows how far it is\n", started.ID, started.Table, started.EstimatedRows)
			return err
		},
	}
	a.outputFlag(cmd)
	flags := cmd.Flags()
	flags.StringVar(&what.Table, "table", "", "`schema.name` of a mapped table (required)")
	flags.StringVar(&what.Sink, "sink", "", "send to this `sink` only; without it to every sink that has a mapping of the table")
	flags.StringVar(&what.Where, "where", "", "only rows that meet this SQL `condition` over the table's columns")
	flags.Float64Var(&what.Rate, "rate", 0, "at most so many `rows` a second; 0 is unbounded")
	if err := errors.Join(cmd.MarkFlagRequired("table"), cmd.RegisterFlagCompletionFunc("sink", a.completeSinks)); err != nil {
		return cmd // cannot be: the flags exist
	}
	return cmd
}

func newBackfillListCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the backfills that wait or run, and the last of those that have ended",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := a.client()
			if err != nil {
				return err
			}
			defer client.Close()
			list, err := client.Backfills(cmd.Context())
			switch {
			case err != nil:
				return err
			case a.output == outputJSON:
				return a.printJSON(list)
			case len(list) == 0:
				_, err = fmt.Fprintln(a.stdout, "no backfills")
				return err
			}
			return admin.WriteBackfills(a.stdout, list)
		},
	}
	a.outputFlag(cmd)
	return cmd
}

func newBackfillActCommand(a *app, use, done, short string, do func(*admin.Client, context.Context, string) error) *cobra.Command {
	return &cobra.Command{
		Use:     use + " ID",
		Short:   short,
		Example: "  cdcsync backfill " + use + " 3",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.switchSink(cmd.Context(), args[0], done, do)
		},
	}
}

// backfills is what the admin listener shows of the pipeline's, and does to them.
type backfills struct{ *pipeline }

func (b backfills) List(context.Context) ([]admin.Backfill, error) { return b.shown(), nil }

func (b backfills) shown() []admin.Backfill {
	var list []admin.Backfill
	for _, f := range b.backfills.List() {
		list = append(list, shownBackfill(&f))
	}
	return list
}

func shownBackfill(f *replication.Backfill) admin.Backfill {
	shown := admin.Backfill{
		ID: f.ID, State: string(f.State), StartBackfill: admin.StartBackfill{Table: f.Table.String(), Where: f.Where, Rate: f.Rate}, Reason: f.Reason,
		Sinks: f.Sinks, StartedAt: f.Started, FinishedAt: f.Finished, Rows: f.Rows, EstimatedRows: f.Estimate, RowsPerSecond: f.RowsPerSecond,
	}
	if len(f.Sinks) == 1 {
		shown.Sink = f.Sinks[0]
	}
	if left := f.Estimate - f.Rows; left > 0 && f.RowsPerSecond > 0 {
		shown.SecondsLeft = float64(left) / f.RowsPerSecond
	}
	return shown
}

func (b backfills) Start(ctx context.Context, what admin.StartBackfill) (admin.Backfill, error) {
	spec := replication.BackfillSpec{Table: tableSpec(mapping.ParseTable(what.Table)), Where: what.Where, Rate: what.Rate}
	for _, sent := range sentTables(b.templates) {
		if sent.Table == spec.Table {
			spec.Sinks = slices.DeleteFunc(sent.Sinks, func(sink string) bool { return what.Sink != "" && sink != what.Sink })
		}
	}
	if len(spec.Sinks) == 0 {
		reason := "no mapping of table " + what.Table
		if what.Sink != "" {
			reason += " to sink " + what.Sink
		}
		return admin.Backfill{}, &admin.Error{Kind: admin.KindInvalid, Reason: reason, Solution: "add one to the configuration and restart the daemon"}
	}
	started, err := b.backfills.Start(ctx, spec)
	if err != nil {
		return admin.Backfill{}, backfillError("", err)
	}
	return shownBackfill(&started), nil
}

func tableSpec(t mapping.Table) replication.Table {
	return replication.Table{Schema: t.Schema, Name: t.Name}
}

func (b backfills) Pause(ctx context.Context, id string) error {
	return backfillError(id, b.backfills.Pause(ctx, id))
}

func (b backfills) Resume(ctx context.Context, id string) error {
	return backfillError(id, b.backfills.Resume(ctx, id))
}

func (b backfills) Cancel(ctx context.Context, id string) error {
	return backfillError(id, b.backfills.Cancel(ctx, id))
}

func backfillError(id string, err error) error {
	var state *replication.BackfillStateError
	var permanent *replication.Error
	switch {
	case errors.Is(err, replication.ErrNoBackfill):
		return &admin.Error{Kind: admin.KindNotFound, Reason: fmt.Sprintf("no backfill %q", id), Solution: "cdcsync backfill list shows those there are"}
	case errors.As(err, &state):
		return &admin.Error{Kind: admin.KindConflict, Reason: fmt.Sprintf("backfill %s is %s", id, state.State)}
	case errors.As(err, &permanent):
		return &admin.Error{Kind: admin.KindInvalid, Reason: permanent.Reason, Solution: permanent.Solution}
	}
	return err
}

// initial starts backfills for mappings that ask for one and are new, once the source can be reached.
func (p *pipeline) initial(ctx context.Context) {
	const interval = 5 * time.Second
	var wanted []replication.BackfillSpec
	for i := range p.cfg.Mappings {
		if m := &p.cfg.Mappings[i]; m.Backfill == config.BackfillInitial {
			wanted = append(wanted, replication.BackfillSpec{Table: tableSpec(mapping.Table(m.Table)), Sinks: []string{m.Sink}, Mappings: []string{m.Name}})
		}
	}
	said := ""
	for len(wanted) > 0 {
		err := p.backfills.Initial(ctx, wanted)
		if err == nil || ctx.Err() != nil {
			return
		}
		if err.Error() != said { // a table that cannot be backfilled stays so for a while
			said = err.Error()
			p.logger.WarnContext(ctx, "initial backfill not started", "retry_in", interval, "err", err)
		}
		beat := pulse.Rest(ctx)
		if backoff.Sleep(ctx, interval) != nil {
			return
		}
		beat()
	}
}

// deliveries tells backfills how far the sinks are.
type deliveries struct {
	buffer *buffer.Buffer
	sinks  []config.Sink
}

func (d deliveries) Stored() uint64 { return d.buffer.Stats().Last }

func (d deliveries) Settled(ctx context.Context, sinks []string, place uint64) (last string, err error) {
	const often, seldom, share = time.Millisecond, 100 * time.Millisecond, 20 // a twentieth of the time is not noticed
	for began := time.Now(); ; {
		cursors := d.buffer.Stats().Cursors
		behind := slices.IndexFunc(cursors, func(c buffer.CursorStats) bool { return c.Seq < place && slices.Contains(sinks, c.Sink) })
		if behind < 0 {
			return last, nil
		}
		last = cursors[behind].Sink
		select {
		case <-ctx.Done():
			return last, ctx.Err()
		case <-time.After(min(max(time.Since(began)/share, often), seldom)):
		}
	}
}

func (d deliveries) Round(sink string) int {
	i := slices.IndexFunc(d.sinks, func(s config.Sink) bool { return s.Name == sink })
	if i < 0 {
		return 0
	}
	return d.sinks[i].Concurrency * d.sinks[i].Batch.Items
}

// mapped are all mappings, one spec each.
func mapped(templates []*mapping.Template) []replication.BackfillSpec {
	specs := make([]replication.BackfillSpec, 0, len(templates))
	for _, t := range templates {
		specs = append(specs, replication.BackfillSpec{Table: tableSpec(t.Source.Table), Sinks: []string{t.Source.Sink}, Mappings: []string{t.Source.Name}})
	}
	return specs
}

// neededColumns names what the mappings of a table to some sinks read; nil for all, also when a mapping does not fit the table.
func neededColumns(templates []*mapping.Template) func(replication.Table, []string, *cdc.Relation) []string {
	return func(table replication.Table, sinks []string, rel *cdc.Relation) []string {
		var needed []string
		for _, t := range templates {
			if tableSpec(t.Source.Table) != tableSpec(mapping.Table{Schema: table.Schema, Name: table.Name}) || !slices.Contains(sinks, t.Source.Sink) {
				continue
			}
			plan, problems := t.Compile(rel)
			if problems.Err() != nil {
				return nil
			}
			for _, c := range plan.Columns() {
				needed = append(needed, rel.Columns[c].Name)
			}
		}
		return needed
	}
}

// sentTables are the mapped tables whose rows a backfill can send, with their sinks.
func sentTables(templates []*mapping.Template) []replication.BackfillSpec {
	var specs []replication.BackfillSpec
	for _, t := range templates {
		if !t.Sends(cdc.OpRead) {
			continue
		}
		i := slices.IndexFunc(specs, func(s replication.BackfillSpec) bool { return s.Table == tableSpec(t.Source.Table) })
		if i < 0 {
			specs = append(specs, replication.BackfillSpec{Table: tableSpec(t.Source.Table)})
			i = len(specs) - 1
		}
		if !slices.Contains(specs[i].Sinks, t.Source.Sink) {
			specs[i].Sinks = append(specs[i].Sinks, t.Source.Sink)
		}
	}
	return specs
}
