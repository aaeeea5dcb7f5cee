package integration

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/cdcsync/cdcsync/internal/sandbox"
)

// surveyed makes a daemon that looks for gaps often.
func surveyed(t *testing.T, s *source, v *vendor, source string) *daemon {
	t.Helper()
	d := newDaemon(t, s.url, v.crm(""))
	d.configure(fmt.Sprintf("source: {url: %q, slot: %s, survey: 200ms%s}\nadmin: {listen: %q}\n%s", s.url, slotName(t), source, d.admin, v.crm("")))
	return d
}

type shownGap struct {
	ID, Cause, State, Table, Reason, Next, Backfill string
}

func (d *daemon) gaps() []shownGap {
	var status struct{ Gaps []shownGap }
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := d.status(ctx, &status); err != nil {
		return nil
	}
	return status.Gaps
}

// gap waits until a table has a gap that meets a condition.
func (d *daemon) gap(table string, ok func(shownGap) bool) shownGap {
	d.tb.Helper()
	var found shownGap
	d.wait("a gap of "+table, func() (bool, string) {
		gaps := d.gaps()
		for _, g := range gaps {
			if g.Table == table && ok(g) {
				found = g
				return true, ""
			}
		}
		return false, fmt.Sprint(gaps)
	})
	return found
}

func (d *daemon) get(path string) string {
	d.tb.Helper()
	response, err := http.Get("http://" + d.admin + path)
	if err != nil {
		d.tb.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		d.tb.Fatal(err)
	}
	return string(body)
}

func isOpen(g shownGap) bool { return g.State == "open" }

// A table that another tool took out of the publication for a while, while the daemon ran and while it did not: everybody says so,
// and a backfill makes the vendor's rows those of the table, as far as anybody can know.
func TestGapIsShownAndClosed(t *testing.T) {
	s, v := newSource(t), newVendor(t, sandbox.Config{})
	d := surveyed(t, s, v, "")
	d.start()
	d.ready()
	s.exec(t, `insert into accounts (id, name) select i, 'old ' || i from generate_series(1, 300) i`)
	arrived(t, d, s, v)
	s.exec(t, `alter publication `+slotName(t)+` set (publish = 'delete, truncate'); insert into accounts (id, name) values (1000, 'unseen')`)
	s.exec(t, `update accounts set version = nextval('versions'), name = 'unseen' where id <= 10`)
	gap := d.gap("public.accounts", func(g shownGap) bool { return isOpen(g) && strings.Contains(g.Next, "backfill start") })
	if d.readyNow(t) {
		t.Error("ready with an open gap")
	}
	want := "cdcsync backfill start --table public.accounts"
	for path, word := range map[string]string{
		"/readyz": want, "/api/v1/gaps": `"cause": "unpublished"`, "/metrics": `cdcsync_gaps{cause="unpublished",state="open",table="public.accounts"} 1`,
	} {
		if body := d.get(path); !strings.Contains(body, word) {
			t.Errorf("%s lacks %s:\n%s", path, word, tail(body, 2000))
		}
	}
	for _, command := range [][]string{{"gaps"}, {"gaps", "list", "-o", "json"}, {"status"}} {
		if out, err := d.command(command...); err != nil || !strings.Contains(out, gap.ID) || !strings.Contains(out, want) {
			t.Errorf("%v: %v\n%s", command, err, out)
		}
	}
	d.stop() // gaps outlive it
	d.start()
	d.gap("public.accounts", isOpen)
	for _, g := range d.gaps() {
		if out, err := d.command("backfill", "start", "--table", g.Table); err != nil {
			t.Fatalf("backfill: %v\n%s", err, out)
		}
	}
	d.ready()
	if gaps := d.gaps(); len(gaps) > 0 { // deletes were published all the time
		t.Errorf("gaps although no delete is missing: %v", gaps)
	}
	arrived(t, d, s, v)
	if !strings.Contains(d.log.String(), "gap closed") {
		t.Error("the log does not say that the gap is closed")
	}
}

// With repair: auto nobody has to ask. A delete that was missed is made up for where the row is still known; of others the
// operator is told, and accepts.
func TestGapIsRepairedByItself(t *testing.T) {
	s, v := newSource(t), newVendor(t, sandbox.Config{})
	d := surveyed(t, s, v, ", repair: auto")
	d.start()
	d.ready()
	s.exec(t, `insert into accounts (id, name) select i, 'old ' || i from generate_series(1, 300) i`)
	arrived(t, d, s, v)
	v.fault(t, sandbox.Fault{Kind: sandbox.Status, Status: 503}) // what comes now stays in the buffer
	s.exec(t, `insert into accounts (id, name) select i, 'kept ' || i from generate_series(301, 400) i`)
	d.wait("the rows to be stored", func() (bool, string) { return s.lag(t, slotName(t)) < 1000, "" })
	d.stop()
	s.exec(t, `alter publication `+slotName(t)+` drop table accounts`)
	s.exec(t, `delete from accounts where id between 301 and 350`)
	s.exec(t, `insert into accounts (id, name) values (1000, 'unseen')`)
	d.start()
	d.wait("the backfill to have read rows", func() (bool, string) { // what it withdraws is what the buffer had when it began
		b, err := d.backfillNow("1")
		return err == nil && b.Rows > 0, fmt.Sprint(b, err)
	})
	v.ClearFaults()
	gap := d.gap("public.accounts", func(g shownGap) bool { return g.State == "rows_sent" })
	d.ready()
	arrived(t, d, s, v)
	if !strings.Contains(gap.Next, "deletions between") {
		t.Errorf("what to do says %q", gap.Next)
	}
	if out, err := d.command("gaps", "accept", "g99", "--yes"); err == nil {
		t.Errorf("an unknown gap is accepted: %s", out)
	}
	if out, err := d.command("gaps", "accept", gap.ID); err == nil {
		t.Errorf("accepted without an answer: %s", out)
	}
	if out, err := d.command("gaps", "accept", gap.ID, "--yes"); err != nil {
		t.Errorf("accept: %v\n%s", err, out)
	}
	if gaps := d.gaps(); len(gaps) > 0 {
		t.Errorf("gaps after they were accepted: %v", gaps)
	}
}

// A dropped table is a gap of that table; the others go on, also over a reconnect and a restart.
func TestDroppedTableStopsNoOther(t *testing.T) {
	s, v := newSource(t), newVendor(t, sandbox.Config{})
	d := surveyed(t, s, v, "")
	d.start()
	d.ready()
	s.exec(t, `insert into accounts (id, name) values (1, 'before')`)
	arrived(t, d, s, v)
	s.exec(t, `drop table orders cascade`)
	gap := d.gap("public.orders", isOpen)
	if gap.Cause != "dropped" {
		t.Errorf("the gap's cause is %s", gap.Cause)
	}
	others := func(id int) {
		t.Helper()
		s.exec(t, `insert into accounts (id, name) values ($1, 'after')`, id)
		d.wait("a change of another table", func() (bool, string) {
			_, ok := v.rows(t)[fmt.Sprintf("accounts %d", id)]
			return ok, ""
		})
	}
	others(2)
	s.exec(t, `select pg_terminate_backend(active_pid) from pg_replication_slots where active_pid is not null`)
	others(3)
	d.stop()
	d.start()
	others(4)
	if d.readyNow(t) {
		t.Error("ready although a mapped table is gone")
	}
	if out, err := d.command("gaps", "accept", gap.ID, "--yes"); err != nil {
		t.Fatalf("accept: %v\n%s", err, out)
	}
	d.ready()
	others(5)
}
