package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/cdcsync/cdcsync/internal/admin"
)

func newStatusCommand(a *app) *cobra.Command {
	var check bool
	cmd := &cobra.Command{
		Use:     "status",
		Short:   "Show what the running daemon does",
		GroupID: groupOperate,
		Long: `status asks the running daemon, over its admin listener, where the source, the buffer and each sink stand.

With --check it prints nothing but what is wrong, and exits with 1 when the pipeline makes no progress without an operator: a
health check for containers.`,
		Example: `  cdcsync status
  cdcsync status -o json
  cdcsync status --check`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := a.client()
			if err != nil {
				return err
			}
			defer client.Close()
			if check {
				return a.checkStatus(cmd.Context(), client)
			}
			return a.showStatus(cmd.Context(), client)
		},
	}
	a.outputFlag(cmd)
	cmd.Flags().BoolVar(&check, "check", false, "exit with 1, saying why, when the pipeline is not ready")
	return cmd
}

func (a *app) showStatus(ctx context.Context, client *admin.Client) error {
	status, err := client.Status(ctx)
	if err != nil {
		return err
	}
	if a.output == outputJSON {
		return a.printJSON(status)
	}
	return status.WriteText(a.stdout, time.Now())
}

func (a *app) checkStatus(ctx context.Context, client *admin.Client) error {
	status, err := client.Status(ctx)
	if err != nil {
		return err
	}
	for _, reason := range status.Reasons {
		fmt.Fprintln(a.stderr, reason)
	}
	if !status.Ready {
		return &toldError{exitFailed}
	}
	return nil
}
