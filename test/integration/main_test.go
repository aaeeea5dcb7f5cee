// Package integration runs the daemon, as its users do, between a real Postgres and the sandbox.
package integration

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/cdcsync/cdcsync/internal/pgtest"
)

var (
	postgres pgtest.Shared
	binary   string // cdcsync, built from this tree
)

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(build(postgres.Suite(m)))
}

func build(suite interface{ Run() int }) int {
	dir, err := os.MkdirTemp("", "cdcsync-integration-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	binary = filepath.Join(dir, "cdcsync")
	if out, err := exec.Command("go", "build", "-o", binary, "github.com/cdcsync/cdcsync/cmd/cdcsync").CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build cdcsync: %v\n%s", err, out)
		return 1
	}
	return suite.Run()
}
