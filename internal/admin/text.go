package admin

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/cdcsync/cdcsync/internal/terminal"
)

// WriteText prints the status for a person at a terminal. Times are relative to now.
func (s *Status) WriteText(w io.Writer, now time.Time) error {
	var b strings.Builder
	s.head(&b)
	s.source(&b, now)
	s.buffer(&b)
	s.sinkTable(&b, now)
	s.backfillTable(&b)
	s.gapTable(&b, now)
	_, err := io.WriteString(w, b.String())
	return err
}

func (s *Status) head(b *strings.Builder) {
	ready := "ready"
	if !s.Ready {
		ready = "NOT READY"
	}
	fmt.Fprintf(b, "cdcsync %s, up %s, %s\n", s.Version, span(s.UptimeSeconds), ready)
	for _, reason := range s.Reasons {
		fmt.Fprintf(b, "  ! %s\n", terminal.Line(reason))
	}
}

func (s *Status) source(b *strings.Builder, now time.Time) {
	src := &s.Source
	fmt.Fprintf(b, "\nSource   %s, slot %s%s\n", plain(src.State), src.Slot, since(src.Since, now))
	if src.Reason != "" {
		fmt.Fprintf(b, "         %s\n", terminal.Line(src.Reason))
	}
	fmt.Fprintf(b, "         received %s   stored %s   confirmed %s\n", src.Received, src.Stored, src.Confirmed)
	fmt.Fprintf(b, "         behind %s, %s   WAL kept %s   reconnects %d\n",
		size(src.LagBytes), span(src.LagSeconds), size(src.RetainedWALBytes), src.Reconnects)
}

func (s *Status) buffer(b *strings.Builder) {
	limit, full := "", ""
	if s.Buffer.MaxBytes > 0 {
		limit = " of " + size(s.Buffer.MaxBytes)
	}
	if s.Buffer.Full {
		full = ", FULL"
	}
	fmt.Fprintf(b, "Buffer   %s%s in %s blocks%s\n", size(s.Buffer.Bytes), limit, count(s.Buffer.Blocks), full)
	if s.Buffer.Problem != "" {
		fmt.Fprintf(b, "         %s\n", terminal.Line(s.Buffer.Problem))
	}
}

func (s *Status) sinkTable(b *strings.Builder, now time.Time) {
	b.WriteByte('\n')
	table := newTable(b)
	fmt.Fprintln(table, "SINK\tTYPE\tSTATE\tBEHIND\tIN FLIGHT\tDELIVERED\tREJECTED\tDEAD LETTERS")
	for i := range s.Sinks {
		sink := &s.Sinks[i]
		fmt.Fprintf(table, "%s\t%s\t%s\t%s, %s\t%d\t%s\t%s\t%s\n", sink.Name, sink.Type, sink.State, size(sink.LagBytes), span(sink.LagSeconds),
			sink.InFlight, count(sink.Items.Delivered), count(sink.Items.Rejected), count(uint64(max(sink.DeadLetters, 0))))
	}
	_ = table.Flush() // b takes everything
	for i := range s.Sinks {
		sink := &s.Sinks[i]
		if sink.Reason != "" {
			fmt.Fprintf(b, "  %s is %s%s: %s%s\n", sink.Name, sink.State, since(sink.Since, now), terminal.Line(sink.Reason), next(sink.NextAttempt, now))
			if sink.Answer != "" {
				fmt.Fprintf(b, "    the answer begins: %s\n", terminal.Line(sink.Answer))
			}
		}
		if sink.BatchItems < sink.BatchLimit {
			fmt.Fprintf(b, "  %s: %d items a request now, of %d: more are not answered in time\n", sink.Name, sink.BatchItems, sink.BatchLimit)
		}
		sink.heldItems(b, now)
	}
}

// heldItems lists the items that fail alone.
func (s *Sink) heldItems(b *strings.Builder, now time.Time) {
	if s.HeldItems > 0 {
		fmt.Fprintf(b, "  %s holds %d items that fail alone, or wait for one that does\n", s.Name, s.HeldItems)
	}
	for i := range s.Held {
		h := &s.Held[i]
		fmt.Fprintf(b, "    %s, key %s%s: %d attempts, %s%s\n", h.Mapping, terminal.Line(h.Key), since(h.Since, now), h.Attempts, oneLine(h.Reason), next(h.NextAttempt, now))
		if h.Answer != "" {
			fmt.Fprintf(b, "      the answer begins: %s\n", terminal.Line(h.Answer))
		}
	}
}

func (s *Status) backfillTable(b *strings.Builder) {
	if len(s.Backfills) == 0 {
		return
	}
	b.WriteByte('\n')
	_ = WriteBackfills(b, s.Backfills) // b takes everything
}

func (s *Status) gapTable(b *strings.Builder, now time.Time) {
	if len(s.Gaps) > 0 {
		b.WriteByte('\n')
		_ = WriteGaps(b, s.Gaps, now) // b takes everything
	}
	if len(s.Hazards) > 0 {
		b.WriteString("\nHazards\n")
	}
	for _, hazard := range s.Hazards {
		fmt.Fprintf(b, "  %s\n", terminal.Line(hazard))
	}
}

// WriteBackfills prints backfills as a table.
func WriteBackfills(w io.Writer, backfills []Backfill) error {
	table := newTable(w)
	fmt.Fprintln(table, "BACKFILL\tTABLE\tSINKS\tSTATE\tROWS\tOF ABOUT\tROWS/S\tLEFT\tREASON")
	for i := range backfills {
		f := &backfills[i]
		total, left := "?", ""
		if f.EstimatedRows > 0 {
			total = count(uint64(f.EstimatedRows))
		}
		if f.SecondsLeft > 0 {
			left = span(f.SecondsLeft)
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", f.ID, terminal.Line(f.Table), strings.Join(f.Sinks, ", "), f.State, count(uint64(max(f.Rows, 0))), total,
			count(uint64(max(f.RowsPerSecond, 0))), left, terminal.Line(f.Reason))
	}
	return table.Flush()
}

// WriteLetters prints a list of dead letters as a table.
func WriteLetters(w io.Writer, letters []Letter, now time.Time) error {
	table := newTable(w)
	fmt.Fprintln(table, "ID\tSINK\tTABLE\tOP\tKEY\tAGE\tSTATE\tREASON")
	for i := range letters {
		l := &letters[i]
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", l.ID, l.Sink, terminal.Line(l.Table), l.Op, terminal.Line(l.Key),
			span(now.Sub(l.ParkedAt).Seconds()), l.State, oneLine(l.Reason))
	}
	return table.Flush()
}

func newTable(w io.Writer) *tabwriter.Writer { return tabwriter.NewWriter(w, 0, 0, 2, ' ', 0) }

// longestReason keeps a row of the table on a wide terminal's line; `dlq show` has the whole.
const longestReason = 100

func oneLine(text string) string {
	line := []rune(strings.Join(strings.Fields(terminal.Line(text)), " "))
	if len(line) > longestReason {
		return string(line[:longestReason-1]) + "…"
	}
	return string(line)
}

func since(at, now time.Time) string {
	if at.IsZero() {
		return ""
	}
	return " for " + span(now.Sub(at).Seconds())
}

func next(at, now time.Time) string {
	if !at.After(now) {
		return ""
	}
	return ", again in " + span(at.Sub(now).Seconds())
}

// span prints seconds with two units at most.
func span(seconds float64) string {
	switch {
	case seconds <= 0:
		return "0s"
	case seconds < 1:
		return fmt.Sprintf("%dms", max(1, int(seconds*1000)))
	case seconds < 10:
		return fmt.Sprintf("%.1fs", seconds)
	}
	d := time.Duration(seconds) * time.Second
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%ds", d/time.Second)
	case d < time.Hour:
		return fmt.Sprintf("%dm%02ds", d/time.Minute, d%time.Minute/time.Second)
	case d < 24*time.Hour:
		return fmt.Sprintf("%dh%02dm", d/time.Hour, d%time.Hour/time.Minute)
	}
	return fmt.Sprintf("%dd%02dh", d/(24*time.Hour), d%(24*time.Hour)/time.Hour)
}

// size prints bytes in binary units; a negative number is one that is not known.
func size(n int64) string {
	if n < 0 {
		return "?"
	}
	if n < 1<<10 {
		return strconv.FormatInt(n, 10) + " B"
	}
	value, unit := float64(n), 0
	for ; value >= 1024 && unit < 4; unit++ {
		value /= 1024
	}
	return fmt.Sprintf("%.1f %s", value, [...]string{"B", "KiB", "MiB", "GiB", "TiB"}[unit])
}

// count groups digits by thousands.
func count(n uint64) string {
	digits := strconv.FormatUint(n, 10)
	for i := len(digits) - 3; i > 0; i -= 3 {
		digits = digits[:i] + "," + digits[i:]
	}
	return digits
}
