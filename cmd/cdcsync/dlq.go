package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/cdcsync/cdcsync/internal/admin"
	"github.com/cdcsync/cdcsync/internal/terminal"
)

func newDLQCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "dlq",
		Short:   "List, show, retry, discard and export dead letters",
		GroupID: groupOperate,
		Long: `A dead letter is an item that a vendor, or the mapping itself, rejected. It is kept, with its source row and the reason, until it is
retried with success or discarded.`,
		Args: cobra.NoArgs,
	}
	cmd.AddCommand(newDLQListCommand(a), newDLQSummaryCommand(a), newDLQShowCommand(a), newDLQRetryCommand(a), newDLQDiscardCommand(a), newDLQExportCommand(a))
	return cmd
}

// letterFlags gives a command the flags that select dead letters.
func letterFlags(cmd *cobra.Command, f *admin.LetterFilter) {
	flags := cmd.Flags()
	flags.StringVar(&f.Sink, "sink", "", "of this `sink`")
	flags.StringVar(&f.Mapping, "mapping", "", "of this `mapping`")
	flags.StringVar(&f.Table, "table", "", "of this table, as `schema.name`")
	flags.StringVar(&f.Key, "key", "", "of the row with this `key`, as dlq list shows it")
	flags.StringVar(&f.Reason, "reason", "", "whose reason contains this `text`")
	flags.StringVar((*string)(&f.State), "state", "", "in this `state`: open, superseded, replaced or unwanted")
	flags.TextVar(&f.OlderThan, "older-than", admin.Duration(0), "parked longer ago than this `duration`, such as 90m or 2d")
	flags.TextVar(&f.NewerThan, "newer-than", admin.Duration(0), "parked within this `duration`")
}

func newDLQListCommand(a *app) *cobra.Command {
	var f admin.LetterFilter
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List dead letters, oldest first",
		Example: `  cdcsync dlq list
  cdcsync dlq list --sink crm --reason "not an address" --newer-than 1h`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.listLetters(cmd.Context(), f) },
	}
	letterFlags(cmd, &f)
	cmd.Flags().IntVar(&f.Limit, "limit", 100, "at most so many, up to 1000")
	a.outputFlag(cmd)
	return cmd
}

func (a *app) listLetters(ctx context.Context, f admin.LetterFilter) error {
	client, err := a.client()
	if err != nil {
		return err
	}
	defer client.Close()
	list, err := client.DeadLetters(ctx, f)
	if err != nil {
		return err
	}
	if a.output == outputJSON {
		return a.printJSON(list)
	}
	if len(list.Letters) == 0 {
		_, err := fmt.Fprintln(a.stdout, "no dead letters")
		return err
	}
	if list.More {
		fmt.Fprintf(a.stderr, "there are more than these %d: narrow the choice, raise --limit, or export them\n", len(list.Letters))
	}
	return admin.WriteLetters(a.stdout, list.Letters, time.Now())
}

func newDLQShowCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "show ID",
		Short:   "Show one dead letter, with the item as it was sent and its source row",
		Example: "  cdcsync dlq show 17",
		Args:    cobra.ExactArgs(1),
		RunE:    func(cmd *cobra.Command, args []string) error { return a.showLetter(cmd.Context(), args[0]) },
	}
	a.outputFlag(cmd)
	return cmd
}

func (a *app) showLetter(ctx context.Context, id string) error {
	client, err := a.client()
	if err != nil {
		return err
	}
	defer client.Close()
	letter, err := client.DeadLetter(ctx, id)
	if err != nil {
		return err
	}
	if a.output == outputJSON {
		return a.printJSONLine(letter)
	}
	return writeLetter(a.stdout, &letter)
}

// writeLetter prints what is known of a letter, one fact a line, then its item and rows.
func writeLetter(w io.Writer, l *admin.Letter) error {
	var b bytes.Buffer
	fact := func(name, value string) {
		if value != "" {
			fmt.Fprintf(&b, "%-11s %s\n", name, terminal.Line(value))
		}
	}
	fact("id", l.ID)
	fact("state", string(l.State))
	fact("kind", l.Kind)
	if l.SupersededBy != nil {
		fact("by", l.SupersededBy.String())
	}
	fact("sink", l.Sink)
	fact("mapping", l.Mapping)
	fact("table", l.Table)
	fact("op", l.Op)
	fact("key", l.Key)
	fact("position", l.Position.String())
	if !l.CommittedAt.IsZero() {
		fact("committed", l.CommittedAt.Format(time.RFC3339))
	}
	fact("parked", l.ParkedAt.Format(time.RFC3339))
	fact("attempts", strconv.Itoa(l.Attempts))
	if l.Status != 0 {
		fact("HTTP status", strconv.Itoa(l.Status))
	}
	fact("code", l.Code)
	fact("trace", l.Trace)
	fact("reason", l.Reason)
	fact("remark", l.Remark)
	for _, part := range []struct {
		name  string
		value json.RawMessage
	}{{"item, as rendered", l.Item}, {"row", l.Row}, {"row before", l.Old}} {
		if len(part.value) == 0 {
			continue
		}
		fmt.Fprintf(&b, "\n%s:\n%s\n", part.name, terminal.Line(string(part.value))) // as it is: indenting deep JSON multiplies its size
	}
	_, err := w.Write(b.Bytes())
	return err
}

// selectionFlags gives a command the flags and arguments that name letters to act on.
func selectionFlags(cmd *cobra.Command, which *admin.Selection) {
	cmd.Args = cobra.ArbitraryArgs
	letterFlags(cmd, &which.Filter)
	cmd.Flags().BoolVar(&which.All, "all", false, "every dead letter there is")
	cmd.PreRun = func(_ *cobra.Command, args []string) { which.IDs = args }
}

func newDLQRetryCommand(a *app) *cobra.Command {
	var which admin.Selection
	var force bool
	cmd := &cobra.Command{
		Use:   "retry {ID... | --sink … | --all}",
		Short: "Render dead letters again with the mapping as it is now, and send them",
		Long: `retry takes the source rows of dead letters, renders them with the mapping as it is now and sends them, each in its place among the
changes of its key. A letter whose key was delivered in a newer state since is marked superseded and not sent, unless --force.`,
		Example: `  cdcsync dlq retry 17 18
  cdcsync dlq retry --sink crm --mapping users
  cdcsync dlq retry --all`,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.retryLetters(cmd.Context(), which, force) },
	}
	selectionFlags(cmd, &which)
	cmd.Flags().BoolVar(&force, "force", false, "also those whose key was delivered in a newer state since")
	a.outputFlag(cmd)
	return cmd
}

func (a *app) retryLetters(ctx context.Context, which admin.Selection, force bool) error {
	client, err := a.client()
	if err != nil {
		return err
	}
	defer client.Close()
	answer, err := client.Retry(ctx, which, force)
	if err != nil {
		return err
	}
	if a.output == outputJSON {
		return a.printJSON(answer)
	}
	queued := 0
	for _, r := range answer.Letters {
		if r.Outcome == admin.RetryQueued {
			queued++
			continue
		}
		fmt.Fprintf(a.stdout, "%s is %s%s\n", r.ID, r.Outcome, terminal.Line(reasonAfter(r.Reason)))
	}
	fmt.Fprintf(a.stdout, "%d of %d on their way; see dlq list for what comes back\n", queued, len(answer.Letters))
	if answer.Unfinished {
		return errors.New("the sink did not take all of them in time: say it again for the rest")
	}
	return nil
}

func reasonAfter(reason string) string {
	if reason == "" {
		return ""
	}
	return ": " + reason
}

func newDLQDiscardCommand(a *app) *cobra.Command {
	var which admin.Selection
	cmd := &cobra.Command{
		Use:   "discard {ID... | --sink … | --all}",
		Short: "Forget dead letters for good",
		Example: `  cdcsync dlq discard 17
  cdcsync dlq discard --state superseded
  cdcsync dlq discard --older-than 720h
  cdcsync dlq discard --table public.users --key 4711`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := a.client()
			if err != nil {
				return err
			}
			defer client.Close()
			n, err := client.Discard(cmd.Context(), which)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(a.stdout, "%d discarded\n", n)
			return err
		},
	}
	selectionFlags(cmd, &which)
	return cmd
}

func newDLQExportCommand(a *app) *cobra.Command {
	var f admin.LetterFilter
	var out string
	cmd := &cobra.Command{
		Use:   "export",
		Short: "Write dead letters with their items and rows, one line of JSON each",
		Example: `  cdcsync dlq export --sink crm > letters.jsonl
  cdcsync dlq export --out letters.jsonl`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := a.client()
			if err != nil {
				return err
			}
			defer client.Close()
			export := func(w io.Writer) error { return client.ExportDeadLetters(cmd.Context(), f, w) }
			if out == "" {
				return export(a.stdout)
			}
			return writeWhole(out, export)
		},
	}
	letterFlags(cmd, &f)
	cmd.Flags().StringVar(&out, "out", "", "write to this `file` instead of standard output")
	return cmd
}

// writeWhole writes a file that appears under its name only when it is whole. Only its owner can read it.
func writeWhole(path string, write func(io.Writer) error) error {
	file, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*")
	if err != nil {
		return err
	}
	err = errors.Join(write(file), file.Sync(), file.Close())
	if err == nil {
		err = os.Rename(file.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(file.Name()))
	}
	return nil
}
