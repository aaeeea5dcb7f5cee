package replication

import (
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// manyTables makes tables t0, t1, …, of which every tenth has two partitions.
func manyTables(tb testing.TB, url string, n int) []Table {
	tb.Helper()
	conn, err := pgx.Connect(tb.Context(), url)
	if err != nil {
		tb.Fatal(err)
	}
	defer func() { _ = conn.Close(tb.Context()) }()
	var tables []Table
	var sql strings.Builder
	for i := range n {
		name := fmt.Sprintf("t%d", i)
		fmt.Fprintf(&sql, "create table %s (id bigint primary key, v text, at timestamptz)", name)
		if i%10 == 0 {
			fmt.Fprintf(&sql, " partition by range (id); create table %[1]s_a partition of %[1]s for values from (0) to (10);"+
				" create table %[1]s_b partition of %[1]s for values from (10) to (20)", name)
		}
		sql.WriteString(";")
		tables = append(tables, Table{Schema: "public", Name: name, Insert: true, Update: true, Delete: true, Truncate: true})
		if i%100 == 99 || i == n-1 { // each transaction holds the locks of its tables
			if _, err := conn.Exec(tb.Context(), sql.String()); err != nil {
				tb.Fatal(err)
			}
			sql.Reset()
		}
	}
	return tables
}

func surveyorOf(tb testing.TB, url string, tables []Table) *surveyor {
	tb.Helper()
	cfg := Config{URL: url, Slot: "cdcsync_survey", Publication: "p", Manage: true, Gaps: &memGaps{}, Tables: tables}
	v := New(cfg, newMemLog(), slog.New(slog.DiscardHandler), nil).survey
	tb.Cleanup(func() { v.close(tb.Context()) })
	if err := v.survey(tb.Context()); err != nil {
		tb.Fatal(err)
	}
	return v
}

// TestSurveyReadsTheCatalogueOnlyWhenItChanged: an unchanged catalogue is not read again, and whatever a survey depends on is a change.
func TestSurveyReadsTheCatalogueOnlyWhenItChanged(t *testing.T) {
	url := postgres.NewDatabase(t)
	v := surveyorOf(t, url, manyTables(t, url, 11))
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(t.Context()) }()
	look := func() *catalogueView {
		t.Helper()
		if _, _, err := v.look(t.Context()); err != nil {
			t.Fatal(err)
		}
		return v.view
	}
	for _, test := range []struct {
		sql  string
		kept bool
	}{
		{sql: "select 1", kept: true},
		{sql: "insert into t1 values (1, 'x', now())", kept: true},
		{sql: "insert into t0 values (1, 'x', now())", kept: true},
		{sql: "analyze t1", kept: true}, // it writes pg_class in place
		{sql: "alter table t1 rename column v to w"},
		{sql: "alter table t1 drop column w"},
		{sql: "alter table t1 replica identity full"},
		{sql: "alter publication p drop table t1"},
		{sql: "alter table t1 set unlogged"},
		{sql: "alter table t2 rename to gone"},
		{sql: "alter table t3 add g int generated always as (1) stored"},
		{sql: "alter table t3 enable row level security"},
		{sql: "revoke all on t4 from current_user"},
		{sql: "grant select (id) on t4 to current_user"},
		{sql: "alter table t4 drop constraint t4_pkey"},
		{sql: "create table t5_child () inherits (t5)"},
		{sql: "alter table t0 detach partition t0_a"},
		{sql: "truncate t0_b"},
		{sql: "truncate t6"},
		{sql: "drop table t7"},
		{sql: "create table t7 (id int)"},
		{sql: "alter publication p drop table t8"},
		{sql: "alter publication p set (publish = 'insert')"},
		{sql: "create publication other for table t8"},
		{sql: "create schema elsewhere"},
		{sql: "alter table t9 set schema elsewhere"},
		{sql: "alter schema elsewhere rename to nowhere"},
		{sql: "drop publication p"},
	} {
		before := look()
		if _, err := conn.Exec(t.Context(), test.sql); err != nil {
			t.Fatalf("%s: %v", test.sql, err)
		}
		after := look()
		if kept := before == after; kept != test.kept {
			t.Errorf("%s: the catalogue was read again: %v, want %v", test.sql, !kept, !test.kept)
		}
	}
}

// TestSurveyNotesRowsOfPartitions: whether a partition has rows is no part of the catalogue.
func TestSurveyNotesRowsOfPartitions(t *testing.T) {
	url := postgres.NewDatabase(t)
	v := surveyorOf(t, url, manyTables(t, url, 1))
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(t.Context()) }()
	rows := func() (list []bool) {
		_, facts, err := v.look(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range facts.tables[0].Members {
			list = append(list, m.Rows)
		}
		return list
	}
	for _, step := range []struct{ sql, want string }{
		{"select 1", "[false false]"},
		{"insert into t0 values (1, 'x', now())", "[true false]"},
		{"insert into t0 values (11, 'x', now())", "[true true]"},
		{"truncate t0_a", "[false true]"},
	} {
		if _, err := conn.Exec(t.Context(), step.sql); err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprint(rows()); got != step.want {
			t.Errorf("%s: rows %s, want %s", step.sql, got, step.want)
		}
	}
}

// TestSurveyIsNotQuadratic: eight times as many tables cost about eight times as much, the catalogue being read whole.
func TestSurveyIsNotQuadratic(t *testing.T) {
	const few, many, tolerable = 100, 800, 24 // squared it would be 64
	best := func(tables int) time.Duration {
		url := postgres.NewDatabase(t)
		v := surveyorOf(t, url, manyTables(t, url, tables))
		fastest := time.Hour
		for range 5 {
			v.view = nil
			begun := time.Now()
			if err := v.survey(t.Context()); err != nil {
				t.Fatal(err)
			}
			fastest = min(fastest, time.Since(begun))
		}
		return fastest
	}
	small, large := best(few), best(many)
	t.Logf("%d tables %s, %d tables %s", few, small, many, large)
	if large > tolerable*max(small, 10*time.Millisecond) {
		t.Errorf("a survey of %d tables takes %s, and one of %d takes %s", few, small, many, large)
	}
}
