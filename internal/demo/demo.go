// Package demo is the example that shows cdcsync at work: a small schema, a configuration for all four sinks, a live workload, and a
// comparison of the source's rows with what the sandbox holds.
//
// It runs no daemon itself: whoever does starts one with the configuration between Setup and Workload.Run.
package demo

import (
	"context"
	_ "embed"
	"fmt"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"
)

// Schema is the example schema as SQL. It expects an empty database.
//
//go:embed schema.sql
var Schema string

//go:embed config.yaml
var configTemplate string

// Addresses are what the demo's configuration needs to know.
type Addresses struct {
	Source  string // URL of the database
	Sandbox string // base URL of the sandbox, with the credentials that it has by default
	Buffer  string // folder
	Admin   string // host:port on the loopback interface
}

// ConfigYAML is the demo's configuration.
func ConfigYAML(a Addresses) string {
	sandbox := strings.TrimSuffix(a.Sandbox, "/")
	return strings.NewReplacer(
		"${DATABASE_URL}", strconv.Quote(a.Source),
		"${SANDBOX_URL}", sandbox,
		"${CDCSYNC_BUFFER}", strconv.Quote(a.Buffer),
		"${CDCSYNC_ADMIN}", strconv.Quote(a.Admin),
	).Replace(configTemplate)
}

// Setup makes the schema in an empty database.
func Setup(ctx context.Context, url string) error {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return fmt.Errorf("demo schema: %w", err)
	}
	defer conn.Close(context.WithoutCancel(ctx))
	if _, err := conn.Exec(ctx, Schema); err != nil {
		return fmt.Errorf("demo schema: %w", err)
	}
	return nil
}
