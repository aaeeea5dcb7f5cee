package main

import (
	"errors"
	"flag"
	"os/exec"
	"slices"
	"strconv"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/cdcsync/cdcsync/internal/config"
	"github.com/cdcsync/cdcsync/internal/sinks"
)

var update = flag.Bool("update", false, "rewrite what the scripts compare with")

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"cdcsync": main})
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		UpdateScripts:       *update,
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Cmds:                map[string]func(ts *testscript.TestScript, neg bool, args []string){"exits": exits},
	})
}

// exits runs a command and wants its exit code: exits 2 cdcsync check.
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits code command args...")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	err = ts.Exec(args[1], args[2:]...)
	got := 0
	if failed := new(exec.ExitError); errors.As(err, &failed) {
		got = failed.ExitCode()
	} else {
		ts.Check(err)
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}

// What a newcomer copies compiles, templates and all.
func TestExampleCompiles(t *testing.T) {
	a := &app{configPath: "../../config.example.yaml", lookupEnv: func(name string) (string, bool) {
		if name == "DATABASE_URL" {
			return "postgres://app@localhost/app", true
		}
		return "https://" + name + ".example.com", true
	}}
	if _, templates, err := a.compiled(); err != nil || len(templates) == 0 {
		t.Errorf("%d templates, %v", len(templates), err)
	}
}

// The defaults of the configuration and those that the sinks state are the same, and so are the types.
func TestSinkDefaults(t *testing.T) {
	var types []string
	for _, typ := range config.SinkTypes() {
		types = append(types, string(typ))
		spec, ok := sinks.SpecOf(string(typ))
		if !ok {
			continue
		}
		if path := config.EndpointPath(typ); path == "" || path != sinks.Path(string(typ)) {
			t.Errorf("%s: the configuration knows the path %q", typ, path)
		}
		items, concurrency := config.Defaults(typ)
		if items != spec.BatchItems || concurrency != spec.Concurrency {
			t.Errorf("%s: the configuration has %d items and %d lanes, the sink %d and %d", typ, items, concurrency, spec.BatchItems, spec.Concurrency)
		}
	}
	slices.Sort(types)
	if !slices.Equal(types, sinks.Types()) {
		t.Errorf("the configuration has the types %v, the sinks %v", types, sinks.Types())
	}
}
