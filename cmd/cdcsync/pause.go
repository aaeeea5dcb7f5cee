package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/cdcsync/cdcsync/internal/admin"
)

func newPauseCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "pause SINK",
		Short:   "Stop delivery to a sink until it is resumed",
		GroupID: groupOperate,
		Long: `pause stops delivery to one sink; requests under way end. The pause lasts over restarts, until resume. Capture and the other
sinks go on, and what the sink does not take waits in the buffer.`,
		Example:           "  cdcsync pause crm",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeSinks,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.switchSink(cmd.Context(), args[0], "paused", (*admin.Client).Pause)
		},
	}
}

func newResumeCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:               "resume SINK",
		Short:             "Go on with delivery to a sink that is paused or halted",
		GroupID:           groupOperate,
		Long:              `resume ends a pause, and the halt of a sink that had reached its limit of dead letters: it then may park as many again.`,
		Example:           "  cdcsync resume crm",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeSinks,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.switchSink(cmd.Context(), args[0], "resumed", (*admin.Client).Resume)
		},
	}
}

func (a *app) switchSink(ctx context.Context, sink, done string, do func(*admin.Client, context.Context, string) error) error {
	client, err := a.client()
	if err != nil {
		return err
	}
	defer client.Close()
	if err := do(client, ctx, sink); err != nil {
		return err
	}
	_, err = fmt.Fprintf(a.stdout, "%s is %s\n", sink, done)
	return err
}
