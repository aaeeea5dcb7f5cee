package main

import (
	"errors"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/cdcsync/cdcsync/internal/admin"
	"github.com/cdcsync/cdcsync/internal/config"
	"github.com/cdcsync/cdcsync/internal/problem"
)

// client reaches the running daemon that the configuration describes. Only the configuration's admin section has to be right: the
// variables and files of the rest may not be at hand where an operator asks.
func (a *app) client() (*admin.Client, error) {
	cfg, err := config.Load(a.configPath, a.lookupEnv)
	var problems problem.List
	if err != nil && !errors.As(err, &problems) {
		return nil, err
	}
	problems = slices.DeleteFunc(problems, func(p *problem.Problem) bool {
		return p.Path != "" && p.Path != "admin" && !strings.HasPrefix(p.Path, "admin.")
	})
	if err := problems.Err(); err != nil {
		return nil, err
	}
	return admin.NewClient(cfg.Admin.BaseURL(), cfg.Admin.Token), nil
}

// completeSinks offers the names of the configured sinks.
func (a *app) completeSinks(_ *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	cfg, _ := config.Load(a.configPath, a.lookupEnv) // what could be read is enough to choose from
	var names []cobra.Completion
	for i := range cfg.Sinks {
		names = append(names, cfg.Sinks[i].Name)
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}
