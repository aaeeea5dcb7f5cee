package replication

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
)

// Severity says how much a Finding matters.
type Severity string

// The severities.
const (
	Failure Severity = "failure" // capture refuses to start
	Warning Severity = "warning" // something will go wrong, or may
	Notice  Severity = "notice"  // worth knowing
)

// Finding is one thing that is to be said of the source.
type Finding struct {
	Severity Severity `json:"severity"`
	Table    string   `json:"table,omitempty"` // schema.table, when it is about one
	Message  string   `json:"message"`
	Solution string   `json:"solution,omitempty"`

	missed bool // no more is wrong than that changes of the table are missed: where it was captured before, that is a gap of it
}

// Statement is SQL that the source needs.
type Statement struct {
	SQL   string `json:"sql"`
	Why   string `json:"why"`
	Risky bool   `json:"risky"` // it changes what the application's own statements do or cost
}

// Check looks at the source without changing it. What keeps capture from starting is a Failure; the error is for what could
// not be looked at.
func Check(ctx context.Context, cfg Config) ([]Finding, error) {
	sv, err := look(ctx, &cfg)
	if failure, ok := errors.AsType[*Error](err); ok {
		message := failure.Reason
		if failure.Err != nil {
			message += " (" + failure.Err.Error() + ")"
		}
		return []Finding{{Severity: Failure, Message: message, Solution: failure.Solution}}, nil
	}
	if err != nil {
		return nil, err
	}
	return findings(sv, &cfg), nil
}

// SetupSQL gives the statements that are missing for capture to start, in the order in which they must be run. With Manage,
// capture itself makes the slot.
func SetupSQL(ctx context.Context, cfg Config) ([]Statement, error) {
	sv, err := look(ctx, &cfg)
	if err != nil {
		return nil, err
	}
	var statements []Statement
	if sv.walLevel != "logical" {
		statements = append(statements, Statement{SQL: "ALTER SYSTEM SET wal_level = 'logical'", Why: "logical decoding is off; restart the server afterwards", Risky: true})
	}
	statements = append(statements, generatedStatements(&cfg, sv)...)
	for _, t := range sv.tables {
		notFull := slices.Concat(t.strayLeaves, t.loneLeaves)
		if t.Table.NeedsFull || !t.identified {
			notFull = t.notFull
		}
		if hindered, _ := t.hindrance(sv, &cfg); !t.exists || hindered != "" {
			continue
		}
		for _, name := range notFull {
			statements = append(statements, Statement{
				SQL: "ALTER TABLE " + name + " REPLICA IDENTITY FULL", Why: fullReason(t), Risky: true,
			})
		}
	}
	statements = append(statements, publicationStatements(&cfg, sv)...)
	if sv.slot == nil && !cfg.Manage {
		statements = append(statements, Statement{SQL: createSlotSQL(cfg.Slot), Why: "the slot is missing; from here on the server keeps WAL for it"})
	}
	return statements, nil
}

func fullReason(t tableFacts) string {
	if t.Table.NeedsFull {
		return "a sink wants the whole old row of " + t.Table.String() + " (updates and deletes write more WAL)"
	}
	return "rows of " + t.Table.String() + " cannot be told apart otherwise (updates and deletes write more WAL)"
}

func createSlotSQL(slot string) string {
	return fmt.Sprintf("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", quoteLiteral(slot))
}

// look surveys. A replication connection is made, too, so that the right to do so is tried.
func look(ctx context.Context, cfg *Config) (*survey, error) {
	server, err := dialServer(ctx, cfg.URL, DefaultMaxRow)
	if err != nil {
		return nil, connectError(err, false)
	}
	defer server.close(ctx)
	return surveySource(ctx, server.asks(), cfg)
}

// findings judges a survey, the gravest first.
func findings(sv *survey, cfg *Config) []Finding {
	var list, milder []Finding
	add := func(f Finding) {
		if f.Severity == Failure {
			list = append(list, f)
		} else {
			milder = append(milder, f)
		}
	}
	judgeServer(sv, cfg, add)
	for _, t := range sv.tables {
		judgeTable(sv, &t, cfg, add)
	}
	judgePublication(sv, cfg, add)
	judgeSlot(sv, cfg, add)
	return append(list, milder...)
}

func judgeServer(sv *survey, cfg *Config, add func(Finding)) {
	if sv.walLevel != "logical" {
		e := walLevelError(sv.walLevel, nil)
		add(Finding{Severity: Failure, Message: e.Reason, Solution: e.Solution})
	}
	if sv.recovering && cfg.Manage && (sv.publication == nil || sv.slot == nil) {
		add(Finding{
			Severity: Failure, Message: "the server is a standby, on which no publication can be made",
			Solution: "let source.url name the primary (target_session_attrs=read-write)",
		})
	}
	if sv.keepSize >= 0 {
		add(Finding{
			Severity: Notice,
			Message:  fmt.Sprintf("max_slot_wal_keep_size is %d MB: a slot that falls further behind is lost", sv.keepSize),
			Solution: "keep it well above what the application writes while cdcsync is down or its buffer is full",
		})
	}
}

func judgeTable(sv *survey, t *tableFacts, cfg *Config, add func(Finding)) {
	name := t.Table.String()
	say := func(severity Severity, message, solution string) {
		add(Finding{Severity: severity, Table: name, Message: message, Solution: solution})
	}
	missed := func(message, solution string) {
		add(Finding{Severity: Failure, Table: name, Message: message, Solution: solution, missed: true})
	}
	full := fullAdvice(sv, t, cfg)
	switch {
	case !t.exists:
		missed(fmt.Sprintf("table %s does not exist", name), "correct the mapping's table, or create the table")
		return
	case t.kind != "r" && t.kind != "p":
		missed(fmt.Sprintf("%s is not a table (relkind %q): only tables have a stream of changes", name, t.kind), "map the tables beneath it")
		return
	case t.persistence != "p":
		missed(fmt.Sprintf("table %s is unlogged or temporary: its changes are not in the WAL", name), "ALTER TABLE "+quoteTable(t.Table)+" SET LOGGED")
	case !t.identified && (cfg.Manage || t.Table.Update || t.Table.Delete):
		say(Failure, fmt.Sprintf("table %s has no replica identity: as long as it is published, UPDATE and DELETE on it fail in the application", name),
			"give it a primary key, or "+full)
	}
	switch {
	case t.Table.NeedsFull && t.identity != "f":
		say(Warning, fmt.Sprintf("a sink wants the whole old row of %s, and the server sends its key only: %s", name, cmp.Or(t.Table.WithoutFull, "deletes become dead letters")), full)
	case !t.primaryKey:
		say(Warning, fmt.Sprintf("table %s has no primary key: its order is kept by the whole row, and values that were not sent cannot be read back", name),
			"give it a primary key")
	}
	if !t.readable {
		say(Warning, fmt.Sprintf("the role may not read %s: values that were not sent cannot be read back, and no backfill is possible", name),
			"GRANT SELECT ON "+quoteTable(t.Table)+" TO the role of source.url; with row-level security it needs BYPASSRLS, too")
	}
	judgePartitions(sv, t, cfg, say)
	judgeChildren(sv, t, cfg, say)
	judgeGenerated(sv, t, cfg, say)
}

// judgePartitions says what of a partitioned table is not captured, or not whole. Nothing of it stops other tables.
func judgePartitions(sv *survey, t *tableFacts, cfg *Config, say func(severity Severity, message, solution string)) {
	name := t.Table.String()
	if lone := strings.Join(t.loneLeaves, ", "); lone != "" && (cfg.Manage || t.Table.Update || t.Table.Delete) {
		message := fmt.Sprintf("partitions of %s have no replica identity (%s): as long as it is published, UPDATE and DELETE on them fail in the application", name, lone)
		if cfg.Manage && t.heldBack(sv.publication) {
			message = fmt.Sprintf("table %s is held back, and its changes are not captured: partitions of it have no replica identity (%s),"+
				" and once it is published UPDATE and DELETE on them fail in the application", name, lone)
		}
		say(Warning, message, "give them a primary key, or run: "+fullSQL(t.loneLeaves))
	}
	if stray := strings.Join(t.strayLeaves, ", "); stray != "" {
		message := fmt.Sprintf("partitions of %s have another replica identity than it has (%s): of their old rows Postgres sends another key,"+
			" and deletes become dead letters where they need more than that", name, stray)
		if t.identity == "f" {
			message = fmt.Sprintf("partitions of %s are not REPLICA IDENTITY FULL as it is (%s): of their old rows Postgres sends the key only;"+
				" what an update leaves out is read back, and deletes become dead letters where they need more than the key", name, stray)
		}
		say(Warning, message, strayAdvice(sv, t, cfg))
	}
	if foreign := strings.Join(t.foreign, ", "); foreign != "" {
		say(Warning, fmt.Sprintf("partitions of %s are foreign tables (%s): their rows are written on another server, in whose WAL the changes are,"+
			" so that they are not captured here; a backfill reads them", name, foreign),
			"capture them there with a daemon of its own; the other partitions are captured")
	}
}

// strayAdvice says how partitions get their root's replica identity.
func strayAdvice(sv *survey, t *tableFacts, cfg *Config) string {
	if reason, solution := t.hindrance(sv, cfg); reason != "" {
		return fmt.Sprintf("since %s: %s; only then run: %s", reason, solution, fullSQL(t.strayLeaves))
	}
	return "run: " + fullSQL(t.strayLeaves) + " (partitions inherit no replica identity: each new one needs it before it has rows)"
}

// fullSQL takes names as SQL has them.
func fullSQL(tables []string) string {
	statements := make([]Statement, len(tables))
	for i, name := range tables {
		statements[i].SQL = "ALTER TABLE " + name + " REPLICA IDENTITY FULL"
	}
	return joinSQL(statements)
}

// judgeChildren says what becomes of tables that inherit from the table.
func judgeChildren(sv *survey, t *tableFacts, cfg *Config, say func(severity Severity, message, solution string)) {
	var unmapped, published []string
	for i, child := range t.children {
		if slices.ContainsFunc(cfg.Tables, func(m Table) bool { return m.String() == child }) {
			continue
		}
		unmapped = append(unmapped, child)
		if !cfg.Manage && sv.publication != nil && sv.publication.named[child] {
			published = append(published, t.childrenSQL[i])
		}
	}
	if len(unmapped) > 0 {
		say(Warning, fmt.Sprintf("tables inherit from %s (%s): Postgres captures their rows under their own names, so that cdcsync publishes ONLY %s,"+
			" and what a query on it shows of them is not sent", t.Table, strings.Join(unmapped, ", "), t.Table),
			"map them as well, each with a primary key or REPLICA IDENTITY FULL, or make it a partitioned table")
	}
	if len(published) > 0 {
		say(Warning, fmt.Sprintf("publication %q names tables that inherit from %s and that no mapping wants: those without a replica identity refuse"+
			" UPDATE and DELETE in the application, also by way of %s", cfg.Publication, t.Table, t.Table),
			"ALTER PUBLICATION "+pgx.Identifier{cfg.Publication}.Sanitize()+" DROP TABLE ONLY "+strings.Join(published, ", ONLY "))
	}
}

// fullAdvice says how the table and its leaves become REPLICA IDENTITY FULL.
func fullAdvice(sv *survey, t *tableFacts, cfg *Config) string {
	statements := generatedStatements(cfg, sv)
	for _, table := range t.notFull {
		statements = append(statements, Statement{SQL: "ALTER TABLE " + table + " REPLICA IDENTITY FULL"})
	}
	reason, solution := t.hindrance(sv, cfg)
	if reason != "" {
		return fmt.Sprintf("since %s: %s; only then run: %s", reason, solution, joinSQL(statements))
	}
	return "run: " + joinSQL(statements)
}

func quoteTable(t Table) string { return pgx.Identifier{t.Schema, t.Name}.Sanitize() }

func judgePublication(sv *survey, cfg *Config, add func(Finding)) {
	p := sv.publication
	if cfg.Manage {
		if p != nil && p.allTables {
			add(Finding{
				Severity: Warning,
				Message:  fmt.Sprintf("publication %q is FOR ALL TABLES: the server decodes and sends tables that no mapping wants", cfg.Publication),
				Solution: "DROP PUBLICATION and let cdcsync make it",
			})
		}
		return
	}
	solution := joinSQL(append(generatedStatements(cfg, sv), publicationStatements(cfg, sv)...)) + ", or set manage: true"
	if p == nil {
		add(Finding{Severity: Failure, Message: fmt.Sprintf("publication %q does not exist", cfg.Publication), Solution: solution})
		return
	}
	for _, t := range cfg.Tables {
		switch {
		case !p.covered[t.String()]:
			add(Finding{
				Severity: Failure, Table: t.String(), Solution: solution, missed: true,
				Message: fmt.Sprintf("publication %q does not send changes of %s under this name", cfg.Publication, t),
			})
		case t.Insert && !p.insert, t.Update && !p.update, t.Delete && !p.delete, t.Truncate && !p.truncate:
			add(Finding{
				Severity: Failure, Table: t.String(), Solution: solution, missed: true,
				Message: fmt.Sprintf("publication %q leaves out operations that mappings of %s want", cfg.Publication, t),
			})
		}
	}
}

func judgeSlot(sv *survey, cfg *Config, add func(Finding)) {
	s := sv.slot
	switch {
	case s == nil && !cfg.Manage:
		add(Finding{
			Severity: Failure, Message: fmt.Sprintf("slot %q does not exist", cfg.Slot),
			Solution: createSlotSQL(cfg.Slot) + ", or set manage: true",
		})
	case s == nil:
	case s.plugin != "pgoutput" || s.temporary:
		add(Finding{
			Severity: Failure, Message: fmt.Sprintf("slot %q is not a permanent slot of pgoutput (plugin %s)", cfg.Slot, s.plugin),
			Solution: "choose another name in source.slot",
		})
	case s.database != sv.database:
		add(Finding{
			Severity: Failure, Message: fmt.Sprintf("slot %q belongs to database %q, and source.url names %q", cfg.Slot, s.database, sv.database),
			Solution: "correct source.url, or choose another name in source.slot",
		})
	case s.walStatus == "lost" || s.invalid != "":
		e := lostError(cfg.Slot, nil)
		add(Finding{Severity: Failure, Message: e.Reason, Solution: e.Solution})
	case s.walStatus == "unreserved":
		add(Finding{
			Severity: Warning, Message: fmt.Sprintf("slot %q is about to be lost: it is behind max_slot_wal_keep_size", cfg.Slot),
			Solution: "raise max_slot_wal_keep_size now and reload the server",
		})
	}
}
