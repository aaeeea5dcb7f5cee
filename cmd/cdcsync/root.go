package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/spf13/cobra"

	"github.com/cdcsync/cdcsync/internal/problem"
	"github.com/cdcsync/cdcsync/internal/terminal"
)

// The exit codes.
const (
	exitFine   = 0
	exitFailed = 1
	exitUsage  = 2 // the command line or the configuration is wrong
)

// run is the whole program: it executes one command line and returns the exit code.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	a := &app{
		stdin: stdin, stdout: terminal.NewWriter(stdout), stderr: terminal.NewWriter(stderr), screen: stderr,
		lookupEnv: os.LookupEnv,
	}
	root := newRootCommand(a) //nolint:contextcheck // cobra hands each command its context
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	cmd, err := root.ExecuteContextC(ctx)
	return a.exit(cmd, err)
}

// app is what the commands share.
type app struct {
	stdin          io.Reader
	stdout, stderr io.Writer // they let nothing through that a terminal acts on
	screen         io.Writer // stderr for progress bars, which move the cursor
	lookupEnv      func(name string) (value string, ok bool)

	configPath string // --config
	output     string // --output, of the commands that have it
	entered    bool   // the command line was understood; what fails from here on is not a matter of usage
}

// The groups of the help.
const (
	groupStart   = "start"
	groupMapping = "mapping"
	groupOperate = "operate"
	groupOther   = "other"
)

func newRootCommand(a *app) *cobra.Command {
	root := &cobra.Command{
		Use:   "cdcsync",
		Short: "Keep vendor APIs in step with a Postgres database",
		Long: `cdcsync reads the committed changes of a Postgres database from a logical replication slot, stores them durably and
delivers them to StopChurn, Fanbase and Fanatics, in order and at least once, as YAML mappings say.`,
		Example: `  cdcsync demo --for 20s               # see it run, on this machine alone
  cdcsync check                        # is config.yaml right? all mistakes at once
  cdcsync run --config prod.yaml`,
		SilenceErrors: true, // run prints them
		SilenceUsage:  true,
		PersistentPreRunE: func(_ *cobra.Command, _ []string) error {
			if !slices.Contains([]string{"", outputText, outputJSON}, a.output) {
				return fmt.Errorf("output %q is neither text nor json", a.output)
			}
			a.entered = true
			return nil
		},
	}
	root.PersistentFlags().StringVar(&a.configPath, "config", "./config.yaml", "configuration `file`")
	if err := root.MarkPersistentFlagFilename("config", "yaml", "yml"); err != nil {
		return root // cannot be: the flag exists
	}
	commands := []*cobra.Command{
		newDemoCommand(a),
		newSandboxCommand(a),
		newRunCommand(a),
		newCheckCommand(a),
		newStatusCommand(a),
		newPauseCommand(a),
		newResumeCommand(a),
		newDLQCommand(a),
		newBackfillCommand(a),
		newGapsCommand(a),
		newExportCommand(a),
		newRecoverCommand(a),
		newSchemaCommand(a),
		newVersionCommand(a),
	}
	root.AddCommand(commands...)
	groups := []*cobra.Group{
		{ID: groupStart, Title: "Get started:"},
		{ID: groupMapping, Title: "Write mappings:"},
		{ID: groupOperate, Title: "Operate:"},
		{ID: groupOther, Title: "Other:"},
	}
	for _, group := range groups {
		if group.ID == groupOther || slices.ContainsFunc(commands, func(c *cobra.Command) bool { return c.GroupID == group.ID }) {
			root.AddGroup(group)
		}
	}
	root.SetHelpCommandGroupID(groupOther)
	root.SetCompletionCommandGroupID(groupOther)
	return root
}

// exit tells an error, once, and says which exit code it has.
func (a *app) exit(cmd *cobra.Command, err error) int {
	var problems problem.List
	var told *toldError
	switch {
	case err == nil:
		return exitFine
	case errors.As(err, &told):
		return told.code
	case errors.As(err, &problems):
		fmt.Fprintln(a.stderr, problems)
		return exitUsage
	case !a.entered:
		fmt.Fprintf(a.stderr, "cdcsync: %v\nSee '%s --help'.\n", err, cmd.CommandPath())
		return exitUsage
	}
	fmt.Fprintf(a.stderr, "cdcsync: %v\n", err)
	return exitFailed
}

// toldError ends a command that has printed what is wrong already, as part of its output.
type toldError struct{ code int }

func (e *toldError) Error() string { return fmt.Sprintf("exit %d", e.code) }

// The choices of --output.
const (
	outputText = "text"
	outputJSON = "json"
)

// outputFlag gives a command the flag -o.
func (a *app) outputFlag(cmd *cobra.Command) {
	cmd.Flags().StringVarP(&a.output, "output", "o", outputText, "`format`: text or json")
	complete := func(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective) {
		return []cobra.Completion{outputText, outputJSON}, cobra.ShellCompDirectiveNoFileComp
	}
	if err := cmd.RegisterFlagCompletionFunc("output", complete); err != nil {
		return // cannot be: the flag exists and has no other function
	}
}

// printJSON writes v to stdout, indented.
func (a *app) printJSON(v any) error { return a.printIndented(v, "  ") }

// printJSONLine is for what holds a row, which may be nested so deep that indentation would multiply its size.
func (a *app) printJSONLine(v any) error { return a.printIndented(v, "") }

func (a *app) printIndented(v any, indent string) error {
	encoder := json.NewEncoder(a.stdout)
	encoder.SetIndent("", indent)
	encoder.SetEscapeHTML(false)
	return encoder.Encode(v)
}
