package main

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/cdcsync/cdcsync/internal/config"
	"github.com/cdcsync/cdcsync/internal/problem"
)

func newCheckCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "check",
		Short:   "Find every mistake in the configuration and its mappings",
		GroupID: groupMapping,
		Long: `check loads, validates and compiles the configuration with all its mappings, as far as that needs no database, and prints every
mistake with its place and the way out. It exits with 2 when there is one.`,
		Example: `  cdcsync check
  cdcsync check --config prod.yaml -o json`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error { return a.check() },
	}
	a.outputFlag(cmd)
	return cmd
}

// checkReport is what check prints as JSON.
type checkReport struct {
	OK       bool         `json:"ok"`
	Sinks    []string     `json:"sinks"`
	Mappings []string     `json:"mappings"`
	Tables   []string     `json:"tables"`
	Problems problem.List `json:"problems"`
	Warnings problem.List `json:"warnings"`
}

func (a *app) check() error {
	cfg, templates, err := a.compiled()
	report, err := newCheckReport(cfg, err)
	if err != nil {
		return err
	}
	for _, t := range templates {
		report.Warnings = append(report.Warnings, t.OldRowWarnings()...)
	}
	if a.output == outputJSON {
		if err := a.printJSON(report); err != nil {
			return err
		}
		if !report.OK {
			return &toldError{exitUsage}
		}
		return nil
	}
	for _, w := range report.Warnings {
		fmt.Fprintf(a.stderr, "warning: %v\n", w)
	}
	if !report.OK {
		return report.Problems
	}
	fmt.Fprintf(a.stdout, "%s has no mistakes\n", cfg.File)
	printCounted(a.stdout, "sink", report.Sinks)
	printCounted(a.stdout, "mapping", report.Mappings)
	printCounted(a.stdout, "table", report.Tables)
	return nil
}

// newCheckReport fails when loadErr is no list of problems.
func newCheckReport(cfg *config.Config, loadErr error) (*checkReport, error) {
	r := &checkReport{OK: loadErr == nil, Sinks: []string{}, Mappings: []string{}, Tables: []string{}, Problems: problem.List{}, Warnings: problem.List{}}
	if loadErr != nil && !errors.As(loadErr, &r.Problems) {
		return nil, loadErr
	}
	r.Warnings = append(r.Warnings, cfg.Warnings...)
	for _, s := range cfg.Sinks {
		r.Sinks = append(r.Sinks, s.Name)
	}
	for i := range cfg.Mappings {
		r.Mappings = append(r.Mappings, cfg.Mappings[i].Name)
	}
	for _, t := range cfg.Tables() {
		r.Tables = append(r.Tables, t.String())
	}
	return r, nil
}

// printCounted writes "  2 sinks: crm, fans".
func printCounted(w io.Writer, noun string, names []string) {
	if len(names) != 1 {
		noun += "s"
	}
	fmt.Fprintf(w, "  %d %s: %s\n", len(names), noun, strings.Join(names, ", "))
}
