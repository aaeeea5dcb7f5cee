package replication

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/cdcsync/cdcsync/internal/cdc"
	"github.com/cdcsync/cdcsync/internal/pulse"
)

// DefaultSurvey is how often the source is surveyed when Config does not say: it bounds for how long a gap is not noticed.
const DefaultSurvey = 10 * time.Second

// Gaps keeps gaps, and what the last survey found, durably. It is called concurrently.
type Gaps interface {
	Store
	// RecordGap stores a gap; one of the same cause, table and sinks grows instead.
	RecordGap(ctx context.Context, gap cdc.Gap) (cdc.Gap, error)
	// UpdateGap stores a changed gap, unless it was closed meanwhile.
	UpdateGap(ctx context.Context, gap cdc.Gap) error
	// Gaps does no I/O.
	Gaps() []cdc.Gap
}

// surveyor asks the source, again and again, everything that capture depends on, and compares it with what it knew. What may have
// kept changes from the stream is recorded as a gap. It remembers durably: what happens while no daemon runs is found by the next.
type surveyor struct {
	s     *Stream
	gaps  Gaps
	every time.Duration
	now   chan struct{} // size 1: something looks new

	conn  *pgx.Conn      // owned by the session that surveys, as are known and view
	known *known         // nil before the first survey
	view  *catalogueView // of conn's server; nil when nothing was read

	mu        sync.Mutex // held for no I/O
	tables    map[uint32]string
	members   map[uint32]bool
	leaves    map[uint32]string  // partitions that the stream has announced, with their mapped roots
	settled   map[uint32]bool    // partitions that are gone, which is recorded
	away      map[string]cdc.LSN // up to which commit changes under another name are recorded as missed, by table
	truncated map[uint32]bool    // transactions of which the stream has sent a TRUNCATE of a mapped table
	state     SurveyStatus
}

// SurveyStatus is what is known of the surveys at one moment.
type SurveyStatus struct {
	Last    time.Time // the last that succeeded; zero for none
	Took    time.Duration
	Reason  string    // why the last one failed
	Hazards []Finding // what will break the application or the delivery
}

// Survey is safe for concurrent use.
func (s *Stream) Survey() SurveyStatus {
	if s.survey == nil {
		return SurveyStatus{}
	}
	s.survey.mu.Lock()
	defer s.survey.mu.Unlock()
	return s.survey.state
}

// newSurveyor returns nil when nobody keeps gaps: then nothing is surveyed but at the start.
func newSurveyor(s *Stream) *surveyor {
	if s.cfg.Gaps == nil {
		return nil
	}
	every := s.cfg.Survey
	if every == 0 {
		every = DefaultSurvey
	}
	return &surveyor{
		s: s, gaps: s.cfg.Gaps, every: every, now: make(chan struct{}, 1),
		leaves: make(map[uint32]string), away: make(map[string]cdc.LSN), settled: make(map[uint32]bool), truncated: make(map[uint32]bool),
	}
}

// run surveys until ctx ends. A survey that fails is told by Status; it ends nothing.
func (v *surveyor) run(ctx context.Context) error {
	tick := time.NewTicker(v.every)
	defer tick.Stop()
	for {
		beat := pulse.Rest(ctx)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		case <-v.now:
		}
		beat()
		if err := v.survey(ctx); err != nil && ctx.Err() == nil {
			v.s.logger.WarnContext(ctx, "survey failed", "err", err)
		}
	}
}

// open reads what the survey before found, whichever process made it.
func (v *surveyor) open(ctx context.Context) (err error) {
	if v == nil {
		return nil
	}
	v.close(ctx) // the session may have another server
	if v.known, err = loadKnown(ctx, v.gaps); err == nil && v.known != nil {
		v.publish(v.known)
	}
	return err
}

// knows reports whether a table was captured before.
func (v *surveyor) knows(table string) bool {
	return v != nil && v.known != nil && v.known.tables[table] != nil
}

// tolerated leaves out what concerns tables that were captured before: what they miss is a gap of theirs, and the others go on.
func (v *surveyor) tolerated(list []Finding) []Finding {
	return slices.DeleteFunc(list, func(f Finding) bool { return f.missed && v.knows(f.Table) })
}

// survey looks once, and records what it finds.
func (v *surveyor) survey(ctx context.Context) (err error) {
	const patience = time.Minute
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	begun := time.Now()
	var hazards []Finding
	defer func() { v.told(ctx, begun, hazards, err) }()
	if err := v.connect(ctx); err != nil {
		return err
	}
	leaves := v.streamedLeaves() // before the facts
	sv, facts, err := v.look(ctx)
	if err != nil {
		return err
	}
	hazards = warnings(v.tolerated(findings(sv, &v.s.cfg)))
	p := &pass{surveyor: v, at: begun, kept: make(map[uint32]member), leaves: leaves, facts: facts}
	if v.known != nil {
		if err := p.compare(ctx); err != nil {
			return err
		}
	}
	repaired, err := v.repair(ctx, sv, p.facts)
	if err != nil {
		return err
	}
	if repaired {
		if _, p.facts, err = v.look(ctx); err != nil {
			return err
		}
	}
	return p.finish(ctx)
}

func warnings(list []Finding) []Finding {
	return slices.DeleteFunc(list, func(f Finding) bool { return f.Severity == Notice })
}

func (v *surveyor) connect(ctx context.Context) error {
	if v.conn != nil && !v.conn.IsClosed() {
		return nil
	}
	cfg, err := parseURL(v.s.cfg.URL)
	if err != nil {
		return err
	}
	v.view = nil // it may be another server
	cfg.RuntimeParams["statement_timeout"] = "30s"
	cfg.RuntimeParams["lock_timeout"] = "5s" // of ALTER PUBLICATION, which is tried again
	v.conn, err = pgx.ConnectConfig(ctx, cfg)
	return err
}

// asks is the connection for questions of the catalogue, whose names are in the database's encoding.
func (v *surveyor) asks() querier { return translated(v.conn, charsetOf(v.conn.PgConn())) }

// close goes on for a moment when ctx has ended.
func (v *surveyor) close(ctx context.Context) {
	if v == nil || v.conn == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	_ = v.conn.Close(ctx) // nothing is open in it
	v.conn, v.view = nil, nil
}

// told writes down how a survey went, and logs hazards that are new.
func (v *surveyor) told(ctx context.Context, begun time.Time, hazards []Finding, err error) {
	v.mu.Lock()
	before := v.state.Hazards
	v.state.Reason = ""
	if err != nil {
		v.state.Reason = err.Error()
	} else {
		v.state.Last, v.state.Took, v.state.Hazards = begun, time.Since(begun), hazards
	}
	first := before == nil
	v.mu.Unlock()
	if err != nil || first { // at the start advice is given elsewhere
		return
	}
	for _, f := range hazards {
		if !slices.Contains(before, f) {
			v.s.logger.WarnContext(ctx, "source", "table", f.Table, "finding", f.Message, "solution", f.Solution)
		}
	}
}

// repair has the publication as the mappings need it, when that is wanted. Once a stream has begun its failure ends nothing:
// what is missed meanwhile is a gap.
func (v *surveyor) repair(ctx context.Context, sv *survey, facts *sourceFacts) (repaired bool, err error) {
	if !v.s.cfg.Manage {
		return false, nil
	}
	for i := range facts.tables {
		if t := &facts.tables[i]; sv.publication != nil && (t.Filter != "" || t.Columns != nil) {
			sv.publication.narrowed = true
		}
	}
	if len(generatedStatements(&v.s.cfg, sv))+len(publicationStatements(&v.s.cfg, sv)) == 0 {
		return false, nil
	}
	err = v.s.managePublication(ctx, v.conn, sv)
	if err != nil && v.known != nil && ctx.Err() == nil {
		v.s.logger.WarnContext(ctx, "publication not repaired", "publication", v.s.cfg.Publication, "err", err)
		return true, nil
	}
	return true, err
}

// pass is one survey's comparison.
type pass struct {
	*surveyor
	facts  *sourceFacts
	at     time.Time
	leaves map[uint32]string // as surveyor's, before the facts were read
	kept   map[uint32]member // partitions about which it is too early to decide, as they were
}

// compare records what is different from what was known. Gaps are stored before anything is repaired, and without an end.
func (p *pass) compare(ctx context.Context) error {
	whole := publicationEvent(&p.known.publication, &p.facts.publication)
	for i := range p.s.cfg.Tables {
		t, now := &p.s.cfg.Tables[i], &p.facts.tables[i]
		was := p.known.tables[t.String()]
		if was == nil {
			continue
		}
		var events []event
		if whole != nil {
			events = append(events, *whole)
		} else {
			events = tableEvents(was, now)
		}
		if was.OID == now.OID && now.OID != 0 {
			found, err := p.partitions(ctx, t.String(), was, now)
			if err != nil {
				return err
			}
			events = append(events, found...)
		}
		missing, err := p.missing(ctx, i)
		if err != nil {
			return err
		}
		for _, e := range events {
			if missing[e.cause] != nil && was.Missing[e.cause] == nil {
				continue // the loss that begins says it better
			}
			if err := p.record(ctx, t.String(), e); err != nil {
				return err
			}
		}
	}
	return nil
}

func (p *pass) record(ctx context.Context, table string, e event) error {
	return p.note(ctx, cdc.Gap{
		Cause: e.cause, Table: table, Reason: e.reason, NoDeletes: e.noDeletes, Since: p.known.at.LSN, SinceTime: p.known.at.Time,
	})
}

// note stores a gap, and logs it when it says something new.
func (v *surveyor) note(ctx context.Context, gap cdc.Gap) error {
	before := v.gaps.Gaps()
	stored, err := v.gaps.RecordGap(ctx, gap)
	if err != nil {
		return fmt.Errorf("record gap: %w", err)
	}
	same := func(g cdc.Gap) bool {
		return g.ID == stored.ID && g.State == stored.State && g.Reason == stored.Reason && g.Until == stored.Until
	}
	if slices.ContainsFunc(before, same) {
		return nil
	}
	v.s.logger.ErrorContext(ctx, "gap", "gap", stored.ID, "table", stored.Table, "cause", string(stored.Cause), "reason", stored.Reason,
		"since", stored.Since.String())
	return nil
}

// missing is why changes of a table are missed now; what began since the last survey is recorded.
func (p *pass) missing(ctx context.Context, i int) (map[cdc.GapCause]*loss, error) {
	t, now := &p.s.cfg.Tables[i], &p.facts.tables[i]
	was := p.before(i)
	away := ""
	if now.OID == 0 && was.OID != 0 {
		var err error
		if away, err = presentName(ctx, p.asks(), was.OID); err != nil {
			return nil, err
		}
	}
	list := losses(t, now, was, &p.facts.publication, away)
	for cause, l := range list {
		l.Since, l.Files = p.since(), was.files()
		if known := was.Missing[cause]; known != nil {
			l.Since, l.Files = known.Since, known.Files
			l.NoDeletes = l.NoDeletes && known.NoDeletes
			if known.Reason == l.Reason && known.NoDeletes == l.NoDeletes {
				continue
			}
		}
		err := p.note(ctx, cdc.Gap{
			Cause: cause, Table: t.String(), Reason: l.Reason, Remedy: remedy(t, now, cause, &p.s.cfg), NoDeletes: l.NoDeletes,
			Since: l.Since.LSN, SinceTime: l.Since.Time,
		})
		if err != nil {
			return nil, err
		}
	}
	return list, nil
}

// since is when the table was captured for certain.
func (p *pass) since() moment {
	if p.known != nil {
		return p.known.at
	}
	return moment{LSN: p.facts.at, Time: p.at.UTC()}
}

// before is what was known of a table; of a new one, what the publication leaves out is taken for a decision.
func (p *pass) before(i int) *knownTable {
	if p.known != nil {
		if was := p.known.tables[p.s.cfg.Tables[i].String()]; was != nil {
			return was
		}
	}
	now := &p.facts.tables[i]
	return &knownTable{BaseFilter: now.Filter, BaseColumns: now.Columns}
}

// finish ends the gaps that are over, and stores what is known now.
func (p *pass) finish(ctx context.Context) error {
	end, err := walEnd(ctx, p.conn)
	if err != nil {
		return err
	}
	over := moment{LSN: end, Time: time.Now().UTC()}
	next := &known{at: moment{LSN: p.facts.at, Time: p.at.UTC()}, publication: p.facts.publication, tables: make(map[string]*knownTable)}
	missed := make(map[string]map[cdc.GapCause]*loss)
	for i := range p.s.cfg.Tables {
		name, was := p.s.cfg.Tables[i].String(), p.before(i)
		missing, err := p.missing(ctx, i)
		if err != nil {
			return err
		}
		if err := p.again(ctx, name, was, missing); err != nil {
			return err
		}
		missed[name] = missing
		next.tables[name] = p.next(i, was, missing)
	}
	if err := p.end(ctx, missed, over); err != nil {
		return err
	}
	if err := next.save(ctx, p.gaps, p.known); err != nil {
		return err
	}
	p.known = next
	p.publish(next)
	return nil
}

// again records what was missed since a loss was accepted while it lasted.
func (p *pass) again(ctx context.Context, table string, was *knownTable, missing map[cdc.GapCause]*loss) error {
	for cause, l := range was.Missing {
		open := func(g cdc.Gap) bool { return g.Cause == cause && g.Table == table && g.Until == 0 }
		if missing[cause] != nil || slices.ContainsFunc(p.gaps.Gaps(), open) {
			continue
		}
		err := p.note(ctx, cdc.Gap{Cause: cause, Table: table, Reason: l.Reason, NoDeletes: l.NoDeletes, Since: l.Since.LSN, SinceTime: l.Since.Time})
		if err != nil {
			return err
		}
	}
	return nil
}

// end ends the gaps of which nothing is missed any more.
func (p *pass) end(ctx context.Context, missed map[string]map[cdc.GapCause]*loss, over moment) error {
	for _, gap := range p.gaps.Gaps() {
		switch gap.Cause {
		case cdc.GapUnpublished, cdc.GapReplaced, cdc.GapPartition, cdc.GapUnlogged, cdc.GapDropped:
		case cdc.GapSource, cdc.GapBuffer, cdc.GapMapping: // others find them, and end them
			continue
		}
		if gap.Until != 0 || gap.Table == "" || missed[gap.Table][gap.Cause] != nil {
			continue
		}
		gap.Until, gap.UntilTime, gap.Remedy = over.LSN, over.Time, ""
		if err := p.gaps.UpdateGap(ctx, gap); err != nil {
			return fmt.Errorf("end gap: %w", err)
		}
		p.s.logger.InfoContext(ctx, "gap has ended", "gap", gap.ID, "table", gap.Table, "until", gap.Until.String())
	}
	return nil
}

// next is what will be known of a table.
func (p *pass) next(i int, was *knownTable, missing map[cdc.GapCause]*loss) *knownTable {
	t := &knownTable{tableState: p.facts.tables[i], BaseFilter: was.BaseFilter, BaseColumns: was.BaseColumns}
	if t.OID == 0 {
		t.tableState = was.tableState // so that it is known when it comes back
	}
	if len(missing) > 0 {
		t.Missing = missing
	}
	p.mu.Lock()
	t.Away = p.away[p.s.cfg.Tables[i].String()]
	p.mu.Unlock()
	for n := range t.Members {
		m := &t.Members[n]
		if before, ok := p.kept[m.OID]; ok {
			*m = before
		}
		m.born, m.emptied, m.xmin = false, false, 0
	}
	return t
}

// publish tells the stream's side which OIDs are known.
func (v *surveyor) publish(k *known) {
	tables, members := make(map[uint32]string, len(k.tables)), make(map[uint32]bool)
	for name, t := range k.tables {
		if t.Missing[cdc.GapDropped] == nil {
			tables[t.OID] = name
		}
		for i := range t.Members {
			members[t.Members[i].OID] = true
		}
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.tables, v.members = tables, members
	for name, t := range k.tables {
		v.away[name] = max(v.away[name], t.Away)
	}
}

// announced takes note of a relation of the stream, which a change follows; pair is the mapped table whose relation came just
// before, and which is then the root of this one. s.out.mu is not held.
func (v *surveyor) announced(ctx context.Context, rel *cdc.Relation, mapped bool, pair *relation, at moment) error {
	v.mu.Lock()
	name, known := v.tables[rel.OID]
	isNew := mapped && v.tables != nil && !known
	if !mapped && pair != nil && !v.settled[rel.OID] {
		v.leaves[rel.OID] = pair.String()
		isNew = isNew || !v.members[rel.OID]
	}
	away := !mapped && known && pair == nil && v.away[name] < at.LSN // not when the stream is read again
	v.mu.Unlock()
	if isNew || away || mapped && known && name != rel.String() {
		signal(v.now)
	}
	if !away {
		return nil
	}
	err := v.note(ctx, cdc.Gap{
		Cause: cdc.GapReplaced, Table: name, Since: at.LSN, SinceTime: at.Time,
		Reason: fmt.Sprintf("the table was called %s.%s for a time, and changes under that name were left out", rel.Schema, rel.Name),
	})
	if err == nil {
		v.mu.Lock()
		defer v.mu.Unlock()
		v.away[name] = at.LSN
	}
	return err
}

func (v *surveyor) streamedLeaves() map[uint32]string {
	v.mu.Lock()
	defer v.mu.Unlock()
	return maps.Clone(v.leaves)
}

// truncates takes note of a TRUNCATE of a mapped table, which the stream has.
func (v *surveyor) truncates(xid uint32) {
	const most = 10_000
	if v == nil {
		return
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.truncated) >= most {
		clear(v.truncated)
	}
	v.truncated[xid] = true
}
