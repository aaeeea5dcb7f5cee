package admin

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"github.com/cdcsync/cdcsync/internal/cdc"
	"github.com/cdcsync/cdcsync/internal/terminal"
)

// Gaps acts on gaps; Status lists them.
type Gaps interface {
	// AcceptGap forgets a gap, whatever may be missing in it; an unknown id is an *Error of KindNotFound.
	AcceptGap(ctx context.Context, id string) error
}

// Gap is a gap with what to do about it.
type Gap struct {
	cdc.Gap
	Next string `json:"next"` // what to do, in words
}

// NewGap finds what to do about a gap.
func NewGap(g cdc.Gap) Gap { return Gap{Gap: g, Next: remains(&g)} }

func remains(g *cdc.Gap) string {
	send := "cdcsync backfill start --table " + g.Table
	if g.Table == "" {
		send = "cdcsync backfill start for every mapped table"
	}
	switch {
	case g.State == cdc.GapRowsSent:
		return "rows sent, deletions " + g.Span() + " unknown: compare with the vendor where that matters, then run cdcsync gaps accept " + g.ID
	case g.Cause == cdc.GapMapping && g.Backfill == "":
		return fixMapping(g)
	case g.Cause == cdc.GapDropped && g.Until == 0:
		return g.Remedy + "; cdcsync gaps accept " + g.ID + " if it is gone for good"
	case g.Until == 0 && g.Remedy != "":
		return g.Remedy + "; then run " + send
	case g.Backfill != "":
		return "backfill " + g.Backfill + " sends its rows and closes it"
	}
	return "run " + send
}

// fixMapping is for a gap that goes on growing until the mapping fits its table again.
func fixMapping(g *cdc.Gap) string {
	next := fmt.Sprintf("fix mapping %s and restart, or the table; then run cdcsync backfill start --table %s", g.Mapping, g.Table)
	if len(g.Sinks) == 1 {
		next += " --sink " + g.Sinks[0]
	}
	return next
}

// WriteGaps prints gaps with what has happened and what to do.
func WriteGaps(w io.Writer, gaps []Gap, now time.Time) error {
	table := newTable(w)
	fmt.Fprintln(table, "GAP\tTABLE\tCAUSE\tSTATE\tFOUND\tCHANGES")
	for i := range gaps {
		g := &gaps[i]
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s ago\t%s\n", g.ID, terminal.Line(g.Subject()), g.Cause, g.State, span(now.Sub(g.Found).Seconds()), g.Span())
	}
	if err := table.Flush(); err != nil {
		return err
	}
	for i := range gaps {
		g := &gaps[i]
		if _, err := fmt.Fprintf(w, "  %s: %s\n    %s\n", g.ID, terminal.Line(g.Reason), terminal.Line(g.Next)); err != nil {
			return err
		}
	}
	return nil
}

func (s *Server) listGaps(w http.ResponseWriter, _ *http.Request) {
	answer(w, http.StatusOK, s.now().Gaps)
}

func (s *Server) acceptGap(w http.ResponseWriter, r *http.Request) {
	if s.parts.Gaps == nil {
		s.fail(w, r, &Error{Kind: KindUnsupported, Reason: "this daemon keeps no gaps"})
		return
	}
	s.act(w, r, s.parts.Gaps.AcceptGap, "id")
}

// Gaps lists what may have been missed, the oldest first.
func (c *Client) Gaps(ctx context.Context) ([]Gap, error) {
	var gaps []Gap
	return gaps, c.do(ctx, http.MethodGet, "/api/v1/gaps", nil, &gaps)
}

// AcceptGap has a gap forgotten.
func (c *Client) AcceptGap(ctx context.Context, id string) error {
	return c.do(ctx, http.MethodPost, "/api/v1/gaps/"+url.PathEscape(id)+"/accept", nil, nil)
}
