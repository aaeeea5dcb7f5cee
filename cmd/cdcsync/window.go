package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"time"

	"github.com/cdcsync/cdcsync/internal/admin"
	"github.com/cdcsync/cdcsync/internal/buffer"
	"github.com/cdcsync/cdcsync/internal/cdc"
	"github.com/cdcsync/cdcsync/internal/delivery"
	"github.com/cdcsync/cdcsync/internal/mapping"
	"github.com/cdcsync/cdcsync/internal/replication"
)

// window is the pipeline as the admin listener sees it.
type window struct{ *pipeline }

func (w *window) Status() admin.Status {
	status := admin.Status{
		Hung: w.pulse.Troubles(time.Now()), Buffer: w.bufferStatus(), Backfills: backfills{w.pipeline}.shown(), Gaps: w.shownGaps(),
	}
	status.Source, status.Hazards = w.sourceStatus(), w.hazards()
	stored := w.buffer.Stats()
	for i, worker := range w.workers {
		sink := w.sinkStatus(i, worker.Status())
		measureSink(&sink, &status.Source, stored.Last, cursorOf(stored.Cursors, sink.Name))
		status.Sinks = append(status.Sinks, sink)
	}
	return status
}

func (w *window) sourceStatus() admin.Source {
	s := w.stream.Status()
	source := admin.Source{
		Slot: s.Slot, Publication: w.cfg.Source.Publication, State: admin.SourceState(s.State), Reason: s.Reason, Since: s.Since,
		Received: s.Received, Stored: s.Stored, Confirmed: s.Confirmed, RetainedWALBytes: -1, Reconnects: uint64(s.Reconnects),
	}
	measureSource(&source, s.ServerEnd, w.lag.Load(), time.Now())
	if s.LastCommit.After(s.LastStored) {
		source.LagSeconds = time.Since(s.LastStored).Seconds()
	}
	w.surveyed(&source)
	return source
}

// measureSource compares with the server's end of WAL as it was asked last; what was asked too long ago says nothing.
func measureSource(source *admin.Source, seen cdc.LSN, lag *replication.Lag, now time.Time) {
	const stale = 40 * time.Second // asked every 10 s
	if lag == nil || now.Sub(lag.At) > stale {
		source.LagBytes, source.RetainedWALBytes = -1, -1
		return
	}
	source.RetainedWALBytes = lag.Retained
	if end := max(seen, lag.ServerEnd); end > source.Stored {
		source.LagBytes = int64(end - source.Stored)
	}
}

// measureSink compares the sink's own cursor with the same end of WAL. A sink that has settled all that is stored is as far behind
// as the source.
func measureSink(sink *admin.Sink, source *admin.Source, last uint64, cursor buffer.CursorStats) {
	sink.Delivered = max(sink.Delivered, cursor.Resume)
	sink.LagBytes = source.LagBytes
	if cursor.Seq >= last || source.LagBytes < 0 {
		return
	}
	if source.Stored > sink.Delivered {
		sink.LagBytes += int64(source.Stored - sink.Delivered)
	}
	if sink.LagSeconds == 0 { // it has not begun with what waits
		sink.LagSeconds = max(0, time.Since(cursor.At).Seconds())
	}
}

func cursorOf(cursors []buffer.CursorStats, sink string) buffer.CursorStats {
	i := slices.IndexFunc(cursors, func(c buffer.CursorStats) bool { return c.Sink == sink })
	if i < 0 {
		return buffer.CursorStats{}
	}
	return cursors[i]
}

// surveyed tells when a survey is overdue: what would be a gap is then not seen.
func (w *window) surveyed(source *admin.Source) {
	const missed, least = 3, time.Minute // surveys
	s := w.stream.Survey()
	source.Surveyed = s.Last
	age := time.Since(s.Last)
	if source.State != admin.SourceStreaming || s.Last.IsZero() || age < max(missed*w.cfg.Source.Survey, least) {
		return
	}
	source.Unsurveyed = fmt.Sprintf("none for %s", age.Round(time.Second))
	if s.Reason != "" {
		source.Unsurveyed += ", " + s.Reason
	}
}

func (w *window) hazards() []string {
	var list []string
	for _, f := range w.stream.Survey().Hazards {
		text := f.Message
		if f.Solution != "" {
			text += ": " + f.Solution
		}
		list = append(list, text)
	}
	return list
}

func (w *window) bufferStatus() admin.Buffer {
	s := w.buffer.Stats()
	return admin.Buffer{
		Bytes: int64(s.Bytes), MaxBytes: s.MaxBytes, Blocks: s.Messages, Full: !s.FullSince.IsZero(), Reason: s.FullDetail,
		Problem: w.buffer.Health(),
	}
}

func (w *window) sinkStatus(i int, s delivery.Status) admin.Sink {
	sink := admin.Sink{
		Name: s.Sink, Type: s.Type, State: admin.SinkState(s.State), Reason: s.Reason, Answer: s.Answer, Since: s.Since, NextAttempt: s.NextAttempt,
		Delivered: s.Delivered, DeliveredAt: s.DeliveredAt, LagSeconds: s.Lag.Seconds(),
		InFlight: s.InFlight, Concurrency: s.Concurrency, BatchItems: s.BatchItems, BatchLimit: s.BatchLimit, Unconfirmed: max(s.Unconfirmed, w.buffer.TrackedOf(s.Sink)), HeldItems: s.HeldItems,
		Items: admin.Items(s.Items), DeadLetters: w.buffer.LetterCount(s.Sink, buffer.LetterOpen), Limit: w.cfg.Sinks[i].DeadLetters.Limit,
	}
	for _, h := range s.Held {
		sink.Held = append(sink.Held, admin.HeldItem{
			ID: h.ID, Mapping: h.Mapping, Key: shownKey(h.Key), Since: h.Since, Attempts: h.Attempts, NextAttempt: h.Next, Waiting: h.Waiting,
			Reason: h.Reason, Answer: h.Answer,
		})
	}
	return sink
}

func (w *window) Pause(ctx context.Context, sink string) error {
	worker, err := w.worker(sink)
	if err != nil {
		return err
	}
	return worker.Pause(ctx)
}

func (w *window) Resume(ctx context.Context, sink string) error {
	worker, err := w.worker(sink)
	if err != nil {
		return err
	}
	if worker.Status().State == delivery.StateFailed {
		return &admin.Error{Kind: admin.KindConflict, Reason: "sink " + sink + " has failed: nothing delivers to it any more", Solution: "see the log, and restart cdcsync"}
	}
	return worker.Resume(ctx)
}

func (w *window) worker(sink string) (*delivery.Worker, error) {
	for i := range w.cfg.Sinks {
		if w.cfg.Sinks[i].Name == sink {
			return w.workers[i], nil
		}
	}
	return nil, &admin.Error{Kind: admin.KindNotFound, Reason: fmt.Sprintf("no sink %q", sink)}
}

// Letters lists without items and rows, which may be large.
func (w *window) Letters(ctx context.Context, f admin.LetterFilter) iter.Seq2[admin.Letter, error] {
	return func(yield func(admin.Letter, error) bool) {
		if err := w.knows(f.Sink); err != nil {
			yield(admin.Letter{}, err)
			return
		}
		for letter, err := range w.buffer.Letters(ctx, letterFilter(f)) {
			if err != nil {
				yield(admin.Letter{}, err)
				return
			}
			shown, err := shownLetter(&letter)
			if !yield(shown, err) || err != nil {
				return
			}
		}
	}
}

// knows refuses the name of a sink that is neither configured nor has letters.
func (w *window) knows(sink string) error {
	known := w.buffer.LetterSinks()
	for i := range w.cfg.Sinks {
		known = append(known, w.cfg.Sinks[i].Name)
	}
	slices.Sort(known)
	known = slices.Compact(known)
	if sink == "" || slices.Contains(known, sink) {
		return nil
	}
	return &admin.Error{Kind: admin.KindInvalid, Reason: fmt.Sprintf("no sink %q", sink), Solution: "there are " + strings.Join(known, ", ")}
}

func letterFilter(f admin.LetterFilter) buffer.LetterFilter {
	filter := buffer.LetterFilter{Sink: f.Sink, Mapping: f.Mapping, Reason: f.Reason, State: buffer.LetterState(f.State), Limit: f.Limit, Heads: true}
	if f.Table != "" {
		filter.Table = mapping.ParseTable(f.Table).String()
	}
	if f.Key != "" {
		filter.Key = func(key string) bool { return shownKey(key) == f.Key }
	}
	now := time.Now()
	if f.OlderThan > 0 {
		filter.Before = now.Add(-time.Duration(f.OlderThan))
	}
	if f.NewerThan > 0 {
		filter.After = now.Add(-time.Duration(f.NewerThan))
	}
	return filter
}

func (w *window) Letter(ctx context.Context, id string) (admin.Letter, error) {
	letter, err := w.buffer.Letter(ctx, id)
	if err != nil {
		return admin.Letter{}, letterError(id, err)
	}
	return shownLetter(&letter)
}

func letterError(id string, err error) error {
	if errors.Is(err, buffer.ErrNoLetter) {
		return &admin.Error{Kind: admin.KindNotFound, Reason: fmt.Sprintf("no dead letter %q", id), Solution: "cdcsync dlq list shows those there are"}
	}
	return err
}

// shownLetter is a letter with its row decoded.
func shownLetter(l *buffer.Letter) (admin.Letter, error) {
	shown := admin.Letter{
		ID: l.ID, State: admin.LetterState(l.State), Kind: delivery.KindOf(l.ItemID), Sink: l.Sink, Mapping: l.Mapping, Table: l.Table, Op: l.Op, Key: shownKey(l.Key), Position: l.Position,
		Reason: l.Reason, Code: l.Code, Trace: l.Trace, Status: l.Status, Attempts: l.Attempts, ParkedAt: l.At, Remark: l.Remark,
		SupersededBy: l.SupersededBy, Item: admin.ItemJSON(l.Item),
	}
	if len(l.Change) == 0 {
		return shown, nil
	}
	change, err := cdc.DecodeChange(l.Change)
	if err != nil { // written by another version, or damaged: the letter is worth seeing without its row
		shown.Remark = strings.TrimSpace(shown.Remark + " The row cannot be read: " + err.Error())
		return shown, nil //nolint:nilerr // the letter says it
	}
	shown.CommittedAt = change.CommitTime
	if shown.Row, err = shownRow(change.Relation, change.New); err != nil {
		return shown, err
	}
	shown.Old, err = shownRow(change.Relation, change.Old)
	return shown, err
}

// shownKey is a key (mapping.Part.Key) without its scope: the values, separated by commas.
func shownKey(key string) string {
	const value = "\x01" // what follows the separator of a value that is not null
	_, values, ok := strings.Cut(key, "\x00")
	if !ok {
		return key
	}
	shown := strings.Split(values, "\x00")
	for i, v := range shown {
		text, known := strings.CutPrefix(v, value)
		if !known {
			text = "null"
		}
		shown[i] = text
	}
	return strings.Join(shown, ",")
}

// longestShown bounds a value that is shown; a letter is kept whole.
const longestShown = 1 << 20

func shownText(text []byte) string {
	if len(text) <= longestShown {
		return string(text)
	}
	return strings.ToValidUTF8(string(text[:longestShown]), "") + fmt.Sprintf("… (%d bytes)", len(text))
}

// shownRow has every column that was received in Postgres's text form; bytes that have no form in UTF-8 are written as \xNN.
func shownRow(rel *cdc.Relation, values []cdc.Value) (json.RawMessage, error) {
	if values == nil {
		return nil, nil
	}
	row := make(map[string]*string, len(values))
	for i, v := range values {
		switch v.Kind {
		case cdc.Null:
			row[rel.Columns[i].Name] = nil
		case cdc.Text:
			text := shownText(v.Data)
			row[rel.Columns[i].Name] = &text
		case cdc.Invalid:
			text := cdc.CharsetByName(rel.Encoding).Show(v.Data[:min(len(v.Data), longestShown)])
			row[rel.Columns[i].Name] = &text
		case cdc.Absent, cdc.Unchanged: // not received
		}
	}
	return json.Marshal(row)
}

func (w *window) Retry(ctx context.Context, which admin.Selection, force bool) ([]admin.Retried, error) {
	var retried []admin.Retried
	bySink, unknown, err := w.selected(ctx, which)
	if err != nil {
		return nil, err
	}
	for _, id := range unknown {
		retried = append(retried, admin.Retried{ID: id, Outcome: string(delivery.RetryUnknown), Reason: "no such dead letter"})
	}
	for sink, chosen := range bySink {
		worker, err := w.worker(sink)
		var ids []string
		for _, c := range chosen {
			switch {
			case err != nil:
				retried = append(retried, admin.Retried{ID: c.id, Outcome: string(delivery.RetryUnknown), Reason: "sink " + sink + " is not configured any more"})
			case c.unreadable != "":
				retried = append(retried, admin.Retried{ID: c.id, Outcome: string(delivery.RetryUnknown), Reason: c.unreadable})
			default:
				ids = append(ids, c.id)
			}
		}
		if len(ids) == 0 {
			continue
		}
		results, err := worker.RetryLetters(ctx, ids, force)
		for _, r := range results {
			retried = append(retried, admin.Retried{ID: r.ID, Outcome: string(r.Outcome), Reason: r.Reason})
		}
		if err != nil {
			return retried, err
		}
	}
	return retried, nil
}

// chosen is a letter that a selection names.
type chosen struct {
	id         string
	unreadable string // why it can be discarded and not retried; empty when it can
}

func choose(l *buffer.Letter) chosen {
	if l.Unreadable {
		return chosen{id: l.ID, unreadable: l.Reason}
	}
	return chosen{id: l.ID}
}

// selected resolves a selection to letters by sink.
func (w *window) selected(ctx context.Context, which admin.Selection) (bySink map[string][]chosen, unknown []string, err error) {
	bySink = make(map[string][]chosen)
	for _, id := range which.IDs {
		letter, err := w.buffer.Letter(ctx, id)
		switch {
		case errors.Is(err, buffer.ErrNoLetter):
			unknown = append(unknown, id)
		case err != nil:
			return nil, nil, err
		default:
			bySink[letter.Sink] = append(bySink[letter.Sink], choose(&letter))
		}
	}
	if len(which.IDs) > 0 {
		return bySink, unknown, nil
	}
	if err := w.knows(which.Filter.Sink); err != nil {
		return nil, nil, err
	}
	for letter, err := range w.buffer.Letters(ctx, letterFilter(which.Filter)) {
		if err != nil {
			return nil, nil, err
		}
		bySink[letter.Sink] = append(bySink[letter.Sink], choose(&letter))
	}
	return bySink, nil, nil
}

func (w *window) Discard(ctx context.Context, which admin.Selection) (int, error) {
	bySink, unknown, err := w.selected(ctx, which)
	if err != nil {
		return 0, err
	}
	if len(unknown) > 0 {
		return 0, letterError(unknown[0], buffer.ErrNoLetter)
	}
	discarded := 0
	for _, letters := range bySink {
		for _, c := range letters {
			if err := w.buffer.Discard(ctx, c.id); err != nil {
				return discarded, letterError(c.id, err)
			}
			discarded++
		}
	}
	return discarded, nil
}
