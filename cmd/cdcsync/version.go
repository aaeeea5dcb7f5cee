package main

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// version is set by the linker; see the Makefile.
var version string

func newVersionCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "version",
		Short:   "Print which build this is",
		GroupID: groupOther,
		Example: "  cdcsync version -o json",
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			b := readBuild()
			if a.output == outputJSON {
				return a.printJSON(b)
			}
			_, err := fmt.Fprintf(a.stdout, "cdcsync %s (commit %s, %s, %s)\n", b.Version, b.Commit, b.Go, b.Platform)
			return err
		},
	}
	a.outputFlag(cmd)
	return cmd
}

// build says where this binary comes from.
type build struct {
	Version  string `json:"version"`
	Commit   string `json:"commit"` // with -dirty when the tree had changes; unknown outside of a repository
	Go       string `json:"go"`
	Platform string `json:"platform"`
}

func readBuild() build {
	b := build{Version: version, Commit: "unknown", Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return b
	}
	if b.Version == "" {
		b.Version = info.Main.Version // (devel) unless it was installed by go install …@version
	}
	dirty := ""
	for _, setting := range info.Settings {
		switch {
		case setting.Key == "vcs.revision":
			b.Commit = setting.Value[:min(len(setting.Value), 12)]
		case setting.Key == "vcs.modified" && setting.Value == "true":
			dirty = "-dirty"
		}
	}
	b.Commit += dirty
	return b
}
