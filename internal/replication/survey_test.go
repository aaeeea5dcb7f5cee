package replication

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sourcegraph/conc/pool"

	"github.com/cdcsync/cdcsync/internal/cdc"
)

// memGaps keeps gaps in memory as the buffer does.
type memGaps struct {
	memStore

	gapsMu sync.Mutex
	gaps   []cdc.Gap
}

func (g *memGaps) RecordGap(_ context.Context, gap cdc.Gap) (cdc.Gap, error) {
	g.gapsMu.Lock()
	defer g.gapsMu.Unlock()
	for i := range g.gaps {
		if known := &g.gaps[i]; known.Cause == gap.Cause && known.Table == gap.Table {
			if !strings.Contains(known.Reason, gap.Reason) {
				known.Reason += "; " + gap.Reason
			}
			if gap.Remedy != "" {
				known.Remedy = gap.Remedy
			}
			known.Until, known.NoDeletes = gap.Until, known.NoDeletes && gap.NoDeletes
			return *known, nil
		}
	}
	gap.ID, gap.State = fmt.Sprintf("g%d", len(g.gaps)+1), cdc.GapOpen
	g.gaps = append(g.gaps, gap)
	return gap, nil
}

func (g *memGaps) UpdateGap(_ context.Context, gap cdc.Gap) error {
	g.gapsMu.Lock()
	defer g.gapsMu.Unlock()
	for i := range g.gaps {
		if g.gaps[i].ID == gap.ID {
			g.gaps[i] = gap
			return nil
		}
	}
	return errors.New("no such gap")
}

func (g *memGaps) Gaps() []cdc.Gap {
	g.gapsMu.Lock()
	defer g.gapsMu.Unlock()
	return slices.Clone(g.gaps)
}

func (g *memGaps) clear() {
	g.gapsMu.Lock()
	defer g.gapsMu.Unlock()
	g.gaps = nil
}

// find returns the gap of a table and cause.
func (g *memGaps) find(table string, cause cdc.GapCause) (cdc.Gap, bool) {
	for _, gap := range g.Gaps() {
		if gap.Table == table && gap.Cause == cause {
			return gap, true
		}
	}
	return cdc.Gap{}, false
}

const surveyedSchema = `
	create table a (id int primary key, v text);
	create table b (id int primary key, v text);
	create table pt (id int primary key, v text) partition by range (id);
	create table pt1 partition of pt for values from (0) to (10);
	create table pt2 partition of pt for values from (10) to (20);
	create table loose (id int primary key, v text);
	create schema other;
	insert into a values (1, 'a'); insert into b values (1, 'b'); insert into pt values (1, 'p'), (11, 'q'); insert into loose values (21, 'l')`

func surveyed(t *testing.T, manage bool) (*live, *memGaps) {
	t.Helper()
	l := newLive(t, surveyedSchema, "a", "pt")
	gaps := &memGaps{}
	l.cfg.Gaps, l.cfg.Survey, l.cfg.Manage = gaps, 50*time.Millisecond, manage
	for i := range l.cfg.Tables {
		l.cfg.Tables[i].Truncate = true
	}
	if !manage {
		l.exec("create publication p for table a, pt with (publish_via_partition_root = true)")
		l.exec("select pg_create_logical_replication_slot($1, 'pgoutput')", l.cfg.Slot)
	}
	return l, gaps
}

// surgery is something that another tool does to the source.
type surgery struct {
	name  string
	sql   string
	table string
	cause cdc.GapCause
	// managed and unmanaged say what is expected with manage: true and false.
	managed, unmanaged expectation
	since              int // the first major version on which it can be
}

type expectation uint8

const (
	endsByItself expectation = iota + 1 // it happened, or was repaired, and a backfill is all that is needed
	goesOn                              // until an operator acts
	noDeletes                           // as endsByItself, and no delete is missing
	goesOnNoDeletes
)

var surgeries = []surgery{
	{name: "rename swap", sql: "alter table a rename to tmp; alter table b rename to a; alter table tmp rename to b", table: "public.a", cause: cdc.GapReplaced, managed: endsByItself, unmanaged: endsByItself},
	{name: "rename swap is unpublished", sql: "alter table a rename to tmp; alter table b rename to a; alter table tmp rename to b", table: "public.a", cause: cdc.GapUnpublished, unmanaged: goesOn},
	{name: "drop and recreate", sql: "drop table a; create table a (id int primary key, v text); insert into a values (5, 'new')", table: "public.a", cause: cdc.GapReplaced, managed: endsByItself, unmanaged: endsByItself},
	{name: "drop", sql: "drop table a", table: "public.a", cause: cdc.GapDropped, managed: goesOn, unmanaged: goesOn},
	{name: "set schema", sql: "alter table a set schema other", table: "public.a", cause: cdc.GapDropped, managed: goesOn, unmanaged: goesOn},
	{name: "schema renamed", sql: "alter schema public rename to gone; create schema public", table: "public.a", cause: cdc.GapDropped, managed: goesOn, unmanaged: goesOn},
	{name: "rename and back", sql: "alter table a rename to tmp; insert into tmp values (7, 'away'); alter table tmp rename to a", table: "public.a", cause: cdc.GapReplaced, managed: endsByItself, unmanaged: endsByItself},
	{name: "replaced by a view", sql: "alter table a rename to a_data; create view a as select * from a_data", table: "public.a", cause: cdc.GapReplaced, managed: goesOn, unmanaged: goesOn},
	{name: "drop from publication", sql: "alter publication p drop table a", table: "public.a", cause: cdc.GapUnpublished, managed: endsByItself, unmanaged: goesOn},
	{name: "drop from publication and back", sql: "alter publication p drop table a; insert into a values (8, 'missed'); alter publication p add table a", table: "public.a", cause: cdc.GapUnpublished, managed: endsByItself, unmanaged: endsByItself},
	{name: "set table by another tool", sql: "alter publication p set table b", table: "public.pt", cause: cdc.GapUnpublished, managed: endsByItself, unmanaged: goesOn},
	{name: "publish inserts", sql: "alter publication p set (publish = 'insert')", table: "public.a", cause: cdc.GapUnpublished, managed: endsByItself, unmanaged: goesOn},
	{name: "publish deletes", sql: "alter publication p set (publish = 'delete, truncate')", table: "public.a", cause: cdc.GapUnpublished, managed: noDeletes, unmanaged: goesOnNoDeletes},
	{name: "publish and back", sql: "alter publication p set (publish = 'insert'); delete from a; alter publication p set (publish = 'insert, update, delete, truncate')", table: "public.a", cause: cdc.GapUnpublished, managed: endsByItself, unmanaged: endsByItself},
	{name: "root switched off", sql: "alter publication p set (publish_via_partition_root = false)", table: "public.pt", cause: cdc.GapUnpublished, managed: endsByItself, unmanaged: goesOn},
	{name: "row filter", sql: "alter publication p set table a where (id > 100), pt", table: "public.a", cause: cdc.GapUnpublished, managed: endsByItself, unmanaged: goesOn, since: 15},
	{name: "column list", sql: "alter publication p set table a (id), pt", table: "public.a", cause: cdc.GapUnpublished, managed: noDeletes, unmanaged: goesOnNoDeletes, since: 15},
	{name: "tables in another schema", sql: "alter publication p set tables in schema other", table: "public.a", cause: cdc.GapUnpublished, managed: endsByItself, unmanaged: goesOn, since: 15},
	{name: "unlogged leaf", sql: "alter table pt1 set unlogged", table: "public.pt", cause: cdc.GapUnlogged, managed: goesOn, unmanaged: goesOn},
	{name: "unlogged new leaf", sql: "create unlogged table pt3 partition of pt for values from (20) to (30)", table: "public.pt", cause: cdc.GapUnlogged, managed: goesOn, unmanaged: goesOn},
	{name: "unlogged table", sql: "alter publication p drop table a; alter table a set unlogged", table: "public.a", cause: cdc.GapUnlogged, managed: goesOn, unmanaged: goesOn},
	{name: "attach", sql: "alter table pt attach partition loose for values from (20) to (30)", table: "public.pt", cause: cdc.GapPartition, managed: noDeletes, unmanaged: noDeletes},
	{name: "attach what was made and filled in the same transaction", sql: "begin; create table pt3 (id int not null primary key, v text); insert into pt3 values (25, 'x'); alter table pt attach partition pt3 for values from (20) to (30); commit", table: "public.pt", cause: cdc.GapPartition, managed: noDeletes, unmanaged: noDeletes},
	{name: "attach a subtree", sql: "create table sub (id int primary key, v text) partition by range (id); alter table sub attach partition loose for values from (20) to (25); alter table pt attach partition sub for values from (20) to (30)", table: "public.pt", cause: cdc.GapPartition, managed: noDeletes, unmanaged: noDeletes},
	{name: "detach", sql: "alter table pt detach partition pt1", table: "public.pt", cause: cdc.GapPartition, managed: endsByItself, unmanaged: endsByItself},
	{name: "detach and attach", sql: "alter table pt detach partition pt1; delete from pt1; alter table pt attach partition pt1 for values from (0) to (10)", table: "public.pt", cause: cdc.GapPartition, managed: endsByItself, unmanaged: endsByItself},
	{name: "drop of a partition", sql: "drop table pt2", table: "public.pt", cause: cdc.GapPartition, managed: endsByItself, unmanaged: endsByItself},
	{name: "truncate of a leaf", sql: "truncate pt1", table: "public.pt", cause: cdc.GapPartition, managed: endsByItself, unmanaged: endsByItself},
	{name: "truncate of a leaf that is filled again", sql: "truncate pt1; insert into pt1 values (2, 'again')", table: "public.pt", cause: cdc.GapPartition, managed: endsByItself, unmanaged: endsByItself},
	{name: "partition made, filled and dropped", sql: "create table pt3 partition of pt for values from (20) to (30); insert into pt values (25, 'short'); drop table pt3", table: "public.pt", cause: cdc.GapPartition, managed: endsByItself, unmanaged: endsByItself},
	{name: "made a partition of a published table", sql: "create table top (id int primary key, v text) partition by range (id); alter table top attach partition a for values from (0) to (10); alter publication p set table top, pt", table: "public.a", cause: cdc.GapUnpublished, managed: endsByItself, unmanaged: goesOn},
}

// Whatever keeps changes from the stream is a gap of the table that misses them: seen while the publication is managed and the stream
// runs, or found at the next start of one that is not.
func TestLiveSurgeryIsAGap(t *testing.T) {
	for _, c := range surgeries {
		for _, manage := range []bool{true, false} {
			running := manage
			want := c.unmanaged
			if manage {
				want = c.managed
			}
			if want == 0 {
				continue
			}
			t.Run(fmt.Sprintf("%s/manage=%v/running=%v", c.name, manage, running), func(t *testing.T) {
				t.Parallel()
				c.try(t, manage, running, want)
			})
		}
	}
}

func (c *surgery) try(t *testing.T, manage, running bool, want expectation) {
	l, gaps := surveyed(t, manage)
	if l.major() < c.since {
		t.Skipf("Postgres %d has no such thing", l.major())
	}
	operate := func() {
		for sql := range strings.SplitSeq(c.sql, ";") {
			l.exec(sql)
		}
	}
	found := func(s *Stream) {
		l.until("a gap of "+c.table, func() bool {
			gap, ok := gaps.find(c.table, c.cause)
			return ok && (gap.Until != 0) == (want == endsByItself || want == noDeletes)
		})
		l.surveyTwice(s)
	}
	l.running(func(s *Stream) {
		if len(gaps.Gaps()) > 0 {
			t.Fatalf("gaps before anything has happened: %v", gaps.Gaps())
		}
		l.exec("insert into pt values (2, 'streamed') on conflict do nothing")
		if running {
			operate()
			found(s)
		}
	})
	if !running {
		operate()
		l.running(found)
	}
	gap, _ := gaps.find(c.table, c.cause)
	if got, want := gap.NoDeletes, want == noDeletes || want == goesOnNoDeletes; got != want {
		t.Errorf("the gap says that no delete is missing: %v, want %v", got, want)
	}
	if gap.Since == 0 || gap.SinceTime.IsZero() || gap.Reason == "" || (gap.Until == 0) != (gap.Remedy != "") {
		t.Errorf("the gap lacks something: %+v", gap)
	}
	t.Log(gap.String(), gap.Remedy)
	// It is found once: what was seen to is not found again at the next start.
	gaps.clear()
	l.running(func(s *Stream) { l.surveyTwice(s) })
	for _, gap := range gaps.Gaps() {
		t.Errorf("found again: %v", gap.String())
	}
}

// A publication that was made again decodes nothing behind its making: while the stream runs that is a gap of every table, and no
// start goes on from a slot that stands behind it.
func TestLivePublicationMadeAgainIsAGapAndThenRefused(t *testing.T) {
	const again = "drop publication p; create publication p for table a, pt with (publish_via_partition_root = true)"
	l, gaps := surveyed(t, false)
	l.running(func(s *Stream) {
		for sql := range strings.SplitSeq(again, ";") {
			l.exec(sql)
		}
		l.until("gaps", func() bool {
			_, a := gaps.find("public.a", cdc.GapUnpublished)
			_, pt := gaps.find("public.pt", cdc.GapUnpublished)
			return a && pt
		})
	})
	err := l.stream().Run(l.ctx)
	if !IsPermanent(err) || !strings.Contains(err.Error(), "cdcsync recover") {
		t.Errorf("got %v, want a refusal that names cdcsync recover", err)
	}
}

// running runs a stream while fn does something.
func (l *live) running(fn func(*Stream)) {
	l.t.Helper()
	ctx, cancel := context.WithCancel(l.ctx)
	s := l.stream()
	p := pool.New().WithErrors()
	p.Go(func() error { return s.Run(ctx) })
	l.until("a survey", func() bool {
		status := s.Status()
		if status.State == StateStopped {
			l.t.Fatalf("stopped: %s", status.Reason)
		}
		return status.State == StateStreaming && !s.Survey().Last.IsZero()
	})
	fn(s)
	cancel()
	if err := p.Wait(); err != nil {
		l.t.Errorf("run: %v", err)
	}
}

// surveyTwice waits until a survey has begun after now.
func (l *live) surveyTwice(s *Stream) {
	now := time.Now()
	l.until("another survey", func() bool { return s.Survey().Last.After(now) })
}

// What every schema lives through is no gap.
func TestLiveHarmlessChangesAreNoGap(t *testing.T) {
	for _, sql := range []string{
		"create table pt3 partition of pt for values from (20) to (30); insert into pt values (25, 'x')",
		"begin; savepoint s; create table pt3 partition of pt for values from (20) to (30); insert into pt values (25, 'x'); commit",
		"create table pt3 partition of pt for values from (20) to (30) partition by range (id); create table pt31 partition of pt3 for values from (20) to (25); insert into pt values (22, 'x')",
		"create table empty (id int primary key, v text); alter table pt attach partition empty for values from (20) to (30)",
		"vacuum full pt1; vacuum full a",
		"cluster pt1 using pt1_pkey",
		"analyze; vacuum; reindex table pt1",
		"alter table pt alter v type varchar(100); alter table a alter v type varchar(50)",
		"alter table pt add c int not null default random() * 10; alter table a add c timestamptz default clock_timestamp()",
		"alter table a drop v; alter table pt rename v to w",
		"truncate pt",
		"truncate a",
		"begin; truncate pt; insert into pt values (3, 'new'); commit",
		"alter table pt1 rename to pt_one",
		"create table pt3 partition of pt for values from (20) to (30); alter table pt detach partition pt3",
		"alter table a replica identity full; create index on a (v)",
		"alter publication p owner to current_user",
		"delete from pt; vacuum pt",
		"create table child () inherits (b); drop table loose",
	} {
		t.Run(sql, func(t *testing.T) {
			t.Parallel()
			l, gaps := surveyed(t, true)
			l.running(func(s *Stream) {
				for statement := range strings.SplitSeq(sql, ";") {
					l.exec(statement)
				}
				l.surveyTwice(s)
			})
			l.running(func(s *Stream) { l.surveyTwice(s) })
			for _, gap := range gaps.Gaps() {
				t.Errorf("a gap: %v", gap.String())
			}
		})
	}
}
