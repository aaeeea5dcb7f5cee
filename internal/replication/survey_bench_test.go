package replication

import (
	"context"
	"fmt"
	"log/slog"
	"testing"

	"github.com/jackc/pgx/v5"
)

// BenchmarkSurvey is what one survey costs, the server's part included, when nothing has changed.
func BenchmarkSurvey(b *testing.B) {
	for _, tables := range []int{50, 5000} {
		b.Run(fmt.Sprintf("tables=%d", tables), func(b *testing.B) {
			ctx := context.Background()
			cfg := Config{URL: postgres.NewDatabase(b), Slot: "cdcsync_bench", Publication: "p", Manage: true, Gaps: &memGaps{}}
			conn, err := pgx.Connect(ctx, cfg.URL)
			if err != nil {
				b.Fatal(err)
			}
			defer func() { _ = conn.Close(ctx) }()
			for n := range tables {
				name := fmt.Sprintf("t%d", n)
				sql := "create table " + name + " (id bigint primary key, v text, at timestamptz)"
				if n%10 == 0 { // every tenth has two partitions
					sql += " partition by range (id); create table " + name + "_a partition of " + name + " for values from (0) to (10); create table " +
						name + "_b partition of " + name + " for values from (10) to (20)"
				}
				if _, err := conn.Exec(ctx, sql); err != nil {
					b.Fatal(err)
				}
				cfg.Tables = append(cfg.Tables, Table{Schema: "public", Name: name, Insert: true, Update: true, Delete: true, Truncate: true})
			}
			v := New(cfg, newMemLog(), slog.New(slog.DiscardHandler), nil).survey
			defer v.close(ctx)
			if err := v.survey(ctx); err != nil {
				b.Fatal(err)
			}
			for b.Loop() {
				if err := v.survey(ctx); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
