package replication

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/cdcsync/cdcsync/internal/cdc"
)

// system is what IDENTIFY_SYSTEM says of a server.
type system struct {
	id       string
	timeline uint32
	end      cdc.LSN // of its WAL
}

// identify asks a walsender who it is.
func (w *wire) identify(ctx context.Context) (system, error) {
	row, err := w.row(ctx, command{"IDENTIFY_SYSTEM"})
	if err == nil && len(row) < 3 {
		err = errors.New("no row")
	}
	if err != nil {
		return system{}, fmt.Errorf("identify system: %w", err)
	}
	timeline, err := strconv.ParseUint(string(row[1]), 10, 32)
	if err != nil {
		return system{}, fmt.Errorf("identify system: timeline: %w", err)
	}
	end, err := cdc.ParseLSN(string(row[2]))
	if err != nil {
		return system{}, fmt.Errorf("identify system: %w", err)
	}
	return system{id: string(row[0]), timeline: uint32(timeline), end: end}, nil
}

// fork returns where the history of the server's timeline left an earlier one; ok is false when it was never on that.
func (w *wire) fork(ctx context.Context, timeline, earlier uint32) (at cdc.LSN, ok bool, err error) {
	row, err := w.row(ctx, command{fmt.Sprintf("TIMELINE_HISTORY %d", timeline)})
	if err != nil {
		return 0, false, fmt.Errorf("history of timeline %d: %w", timeline, err)
	}
	if len(row) < 2 {
		return 0, false, fmt.Errorf("history of timeline %d: no row", timeline)
	}
	return parseFork(string(row[1]), earlier)
}

// parseFork reads a history file: a line for each timeline that was left, with its number and the LSN (timeline.c).
func parseFork(file string, earlier uint32) (at cdc.LSN, ok bool, err error) {
	for line := range strings.Lines(file) {
		fields := strings.Fields(line)
		if len(fields) < 2 || strings.HasPrefix(fields[0], "#") {
			continue
		}
		if n, err := strconv.ParseUint(fields[0], 10, 32); err != nil || uint32(n) != earlier {
			continue
		}
		at, err = cdc.ParseLSN(fields[1])
		return at, err == nil, err
	}
	return 0, false, nil
}

// witness is the last transaction of which the log knows.
func (p *plan) witness() cdc.Witness {
	if p.source.Witness.Commit > p.tail.Witness.Commit {
		return p.source.Witness
	}
	return p.tail.Witness
}

// compareHistory refuses a server whose past cannot be that of the log. What it cannot see here, history does in the stream.
func compareHistory(ctx context.Context, w *wire, now system, known *incarnation, p *plan) error {
	reached := max(p.tail.Resume.End, p.tail.Resume.Open)
	if known != nil {
		reached = max(reached, known.Confirmed)
	}
	if known != nil && known.Timeline != 0 && known.Timeline != now.timeline {
		at, ok, err := w.fork(ctx, now.timeline, known.Timeline)
		switch {
		case err != nil:
			return err
		case !ok:
			return divergedError(fmt.Sprintf("it is on timeline %d, which does not descend from timeline %d, of which the buffer has changes",
				now.timeline, known.Timeline))
		case at < reached:
			return divergedError(fmt.Sprintf("its timeline %d left timeline %d at %s, and the buffer reaches to %s", now.timeline, known.Timeline, at, reached))
		}
	}
	if now.end < reached {
		return divergedError(fmt.Sprintf("its WAL ends at %s, and the buffer reaches to %s", now.end, reached))
	}
	return nil
}

// divergedError is for a server that is not the one that the changes in the log came from, although it has its identifier.
func divergedError(why string) *Error {
	return &Error{
		Reason: "the source was restored to an earlier state, or a standby that was behind has become the primary: " + why +
			"; changes that it has made since may lie before that, and changes that were sent may never have happened there",
		Solution: "run cdcsync recover: it goes on from where the source's slot stands, and sends every mapped table again",
	}
}

// history is what a stream has to show before anything of it is stored: that it goes on from the past that the log has. The
// zero history has been shown. It is owned by read.
type history struct {
	pending bool
	witness cdc.Witness   // has to come by again; zero when it does not
	open    cdc.Witness   // comes next; zero when the log does not end within a transaction. Its XID is not known.
	reached cdc.LSN       // no other transaction lies before it
	shown   chan struct{} // closed once nothing is pending
}

func newHistory(p *plan) history {
	h := history{reached: p.start()}
	if witness := p.witness(); p.from < p.start() && p.from <= witness.Commit {
		h.witness = witness
	}
	if p.tail.Resume.Open != 0 {
		h.open = cdc.Witness{Commit: p.tail.Resume.Open, At: p.tail.LastCommit}
	}
	h.pending = p.from < p.start() || h.open.Commit != 0
	return h
}

// begin looks at a transaction that begins. again reports whether it is the witness, of which the log has everything.
func (h *history) begin(b *begin) (again bool, err error) {
	if !h.pending {
		return false, nil
	}
	came := fmt.Sprintf("transaction %d of %s at %s", b.xid, b.at.UTC().Format(timeLayout), b.commit)
	switch want := h.witness; {
	case want.Commit != 0:
		if b.commit != want.Commit || b.xid != want.XID || !b.at.Equal(want.At) {
			return false, divergedError(fmt.Sprintf("transaction %d of %s at %s, the last that is stored, should have come again, and %s has come",
				want.XID, want.At.UTC().Format(timeLayout), want.Commit, came))
		}
		h.witness = cdc.Witness{}
		return true, nil
	case h.open.Commit != 0:
		if b.commit != h.open.Commit || !b.at.Equal(h.open.At) {
			return false, divergedError(fmt.Sprintf("the rest of the transaction of %s at %s should have come, and %s has come",
				h.open.At.UTC().Format(timeLayout), h.open.Commit, came))
		}
	case b.commit < h.reached:
		return false, divergedError(fmt.Sprintf("%s has come, and of what lies before %s everything is stored", came, h.reached))
	}
	h.show()
	return false, nil
}

const timeLayout = "2006-01-02 15:04:05.999999Z07:00"

// passed takes note that the server has nothing more to send before end.
func (h *history) passed(end cdc.LSN) error {
	switch {
	case !h.pending:
		return nil
	case h.witness.Commit != 0 && end > h.witness.Commit:
		return divergedError(fmt.Sprintf("transaction %d of %s at %s, the last that is stored, has not come again",
			h.witness.XID, h.witness.At.UTC().Format(timeLayout), h.witness.Commit))
	case h.open.Commit != 0 && end > h.open.Commit:
		return divergedError(fmt.Sprintf("the rest of the transaction of %s at %s has not come", h.open.At.UTC().Format(timeLayout), h.open.Commit))
	case h.witness.Commit == 0 && h.open.Commit == 0 && end >= h.reached:
		h.show()
	}
	return nil
}

func (h *history) show() {
	h.pending = false
	close(h.shown)
}
