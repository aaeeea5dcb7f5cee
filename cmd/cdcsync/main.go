// Command cdcsync keeps vendor APIs in step with a Postgres database.
//
// Each command stands in a file of its own, as newNameCommand(*app). An exit code of 1 means that something failed, 2 that the
// command line or the configuration is wrong.
package main

import (
	"context"
	"os"
)

func main() {
	os.Exit(run(context.Background(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}
