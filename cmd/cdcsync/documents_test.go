package main

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// spoken is a command line in a text: what stands before the program's name, and what follows it on the line.
var spoken = regexp.MustCompile("(^|[`\"(]|\\$ |  )cdcsync ([a-z|-]+(?: [^`\")#\n]*)?)")

// TestDocumentsNameWhatExists reads every command line in the documents, the example, the help and the messages: its command and its
// flags exist.
func TestDocumentsNameWhatExists(t *testing.T) {
	root := newRootCommand(&app{})
	found := 0
	for _, path := range textsOfTheRepository(t) {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for number, line := range strings.Split(string(text), "\n") {
			for _, match := range spoken.FindAllStringSubmatch(line, -1) {
				found++
				code := match[1] == "`" && !strings.Contains(line, "Long:") || match[1] == "$ " || match[1] == "  " // elsewhere it may be prose: "cdcsync reads"
				wrong := unknownIn(root, match[2])
				if wrong != "" && (code || strings.Contains(wrong, " of ") || strings.Count(wrong, " ") > 1) {
					t.Errorf("%s:%d: cdcsync %s: there is no %s", path, number+1, match[2], wrong)
				}
			}
		}
	}
	if found < 100 {
		t.Errorf("got %d command lines, want at least 100: the test looks in the wrong places", found)
	}
}

func TestUnknownIn(t *testing.T) {
	root := newRootCommand(&app{})
	for line, want := range map[string]string{
		"run":                                "",
		"run --config prod.yaml":             "",
		"dlq list|show|retry":                "",
		"dlq list --sink crm -o json":        "",
		"setup":                              "command setup",
		"dlq list|mend":                      "command dlq mend",
		"dlq list --sinks crm":               "flag --sinks of dlq list",
		"backfill start --table public.user": "",
	} {
		if got := unknownIn(root, line); got != want {
			t.Errorf("%s: got %q, want %q", line, got, want)
		}
	}
}

// unknownIn returns the first command or flag of a line that does not exist. Alternatives stand between bars.
func unknownIn(root *cobra.Command, line string) string {
	words := strings.Fields(line)
	commands := []*cobra.Command{root}
	for len(words) > 0 && commands[0].HasAvailableSubCommands() && !strings.HasPrefix(words[0], "-") {
		var next []*cobra.Command
		for name := range strings.SplitSeq(words[0], "|") {
			child, _, err := commands[0].Find([]string{name})
			if child == commands[0] && child.Runnable() && child != root {
				return "" // an argument
			}
			if err != nil || child == commands[0] {
				return "command " + strings.TrimPrefix(commands[0].CommandPath()+" "+name, "cdcsync ")
			}
			next = append(next, child)
		}
		commands, words = next, words[1:]
	}
	for _, word := range words {
		name, isFlag := strings.CutPrefix(word, "--")
		name, _, _ = strings.Cut(strings.TrimRight(name, ",.;:]"), "=")
		if !isFlag || name == "" || name == "help" || name == "version" {
			continue
		}
		for _, c := range commands {
			if flagOf(c, name) == nil {
				return "flag --" + name + " of " + strings.TrimPrefix(c.CommandPath(), "cdcsync ")
			}
		}
	}
	return ""
}

func flagOf(c *cobra.Command, name string) *pflag.Flag {
	if f := c.Flags().Lookup(name); f != nil {
		return f
	}
	return c.InheritedFlags().Lookup(name)
}

// textsOfTheRepository are the documents, the example and the sources with messages; tests name commands that do not exist on purpose.
func textsOfTheRepository(t *testing.T) []string {
	t.Helper()
	var found []string
	root := filepath.Join("..", "..")
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := d.Name()
		if d.IsDir() && path != root && (strings.HasPrefix(name, ".") || name == "bin" || name == "testdata" || name == "cdcsync-data") {
			return filepath.SkipDir
		}
		source := strings.HasSuffix(name, ".go") && !strings.HasSuffix(name, "_test.go")
		if source || strings.HasSuffix(name, ".md") || strings.HasSuffix(name, ".yaml") || strings.HasSuffix(name, ".yml") {
			found = append(found, path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}
