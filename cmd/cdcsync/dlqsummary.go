package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/sourcegraph/conc/pool"
	"github.com/spf13/cobra"

	"github.com/cdcsync/cdcsync/internal/admin"
	"github.com/cdcsync/cdcsync/internal/delivery"
	"github.com/cdcsync/cdcsync/internal/terminal"
)

// letterGroup are the dead letters of one cause.
type letterGroup struct {
	Sink    string            `json:"sink"`
	State   admin.LetterState `json:"state"`
	Cause   string            `json:"cause"` // mapping, path and reason; a vendor's words without what may be a row's value
	Count   int               `json:"count"`
	First   time.Time         `json:"first"`
	Last    time.Time         `json:"last"`
	Example string            `json:"example"` // the id of the newest
}

func newDLQSummaryCommand(a *app) *cobra.Command {
	var f admin.LetterFilter
	cmd := &cobra.Command{
		Use:   "summary",
		Short: "Group dead letters by sink, mapping and reason, the most frequent first",
		Example: `  cdcsync dlq summary
  cdcsync dlq summary --sink crm --newer-than 2d`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.summarizeLetters(cmd.Context(), f) },
	}
	letterFlags(cmd, &f)
	a.outputFlag(cmd)
	return cmd
}

func (a *app) summarizeLetters(ctx context.Context, f admin.LetterFilter) error {
	client, err := a.client()
	if err != nil {
		return err
	}
	defer client.Close()
	groups, err := groupLetters(func(w io.Writer) error { return client.ExportDeadLetters(ctx, f, w) })
	if err != nil {
		return err
	}
	if a.output == outputJSON {
		return a.printJSON(groups)
	}
	if len(groups) == 0 {
		_, err := fmt.Fprintln(a.stdout, "no dead letters")
		return err
	}
	table := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "COUNT\tSINK\tSTATE\tFIRST\tLAST\tEXAMPLE\tCAUSE")
	for _, g := range groups {
		fmt.Fprintf(table, "%d\t%s\t%s\t%s\t%s\t%s\t%s\n", g.Count, terminal.Line(g.Sink), g.State, g.First.Format(time.RFC3339), g.Last.Format(time.RFC3339),
			g.Example, terminal.Line(g.Cause))
	}
	return table.Flush()
}

// groupLetters reads what an export writes, a letter at a time.
func groupLetters(export func(io.Writer) error) ([]letterGroup, error) {
	type key struct {
		sink, cause string
		state       admin.LetterState
	}
	reader, writer := io.Pipe()
	exporting := pool.New().WithErrors()
	exporting.Go(func() error {
		err := export(writer)
		_ = writer.CloseWithError(err)
		return err
	})
	found := make(map[key]*letterGroup)
	decoder := json.NewDecoder(reader)
	var err error
	for {
		var l admin.Letter
		if err = decoder.Decode(&l); err != nil {
			break
		}
		k := key{l.Sink, delivery.Cause(l.Mapping, l.Reason, l.Code, l.Status, l.Attempts), l.State}
		g := found[k]
		if g == nil {
			g = &letterGroup{Sink: k.sink, State: k.state, Cause: k.cause, First: l.ParkedAt}
			found[k] = g
		}
		g.Count++
		if l.ParkedAt.Before(g.First) {
			g.First = l.ParkedAt
		}
		if !l.ParkedAt.Before(g.Last) {
			g.Last, g.Example = l.ParkedAt, l.ID
		}
	}
	_ = reader.CloseWithError(err)
	if failed := exporting.Wait(); failed != nil {
		return nil, failed
	}
	if !errors.Is(err, io.EOF) {
		return nil, err
	}
	groups := make([]letterGroup, 0, len(found))
	for _, g := range found {
		groups = append(groups, *g)
	}
	slices.SortFunc(groups, func(x, y letterGroup) int {
		return cmp.Or(cmp.Compare(y.Count, x.Count), cmp.Compare(x.Sink, y.Sink), cmp.Compare(x.Cause, y.Cause), cmp.Compare(x.State, y.State))
	})
	return groups, nil
}
