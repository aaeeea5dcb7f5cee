package delivery

import (
	"context"
	"errors"
	"strings"

	"github.com/cdcsync/cdcsync/internal/cdc"
	"github.com/cdcsync/cdcsync/internal/mapping"
)

// RetryOutcome says what RetryLetters did about one letter.
type RetryOutcome string

// The outcomes.
const (
	RetryQueued     RetryOutcome = "queued"     // on its way: it is delivered, or parked again with its new reason
	RetrySuperseded RetryOutcome = "superseded" // not sent: a newer state of its key was delivered since
	RetryUnderWay   RetryOutcome = "under_way"  // an earlier retry has not ended
	RetryUnwanted   RetryOutcome = "unwanted"   // the mapping as it is now does not send this row
	RetryRejected   RetryOutcome = "rejected"   // the mapping as it is now cannot render it: parked again, Reason says why
	RetryUnknown    RetryOutcome = "unknown"    // no letter of that ID, or its mapping is gone: Reason says which
)

// RetryResult is what RetryLetters did about one letter.
type RetryResult struct {
	ID      string       `json:"id"`
	Outcome RetryOutcome `json:"outcome"`
	Reason  string       `json:"reason,omitempty"`
}

type retryRequest struct {
	letter Letter
	force  bool
	done   chan<- RetryResult // size 1
}

// ErrNotRunning is returned when a worker that does not run is asked to do something.
var ErrNotRunning = errors.New("the sink's delivery does not run")

// RetryLetters renders the letters' rows with the mappings as they are now and sends them, each in its place among the
// changes of its key. A letter whose key has been delivered in a newer state since is not sent, unless force. It returns
// when all are on their way, which takes as long as the sink's memory is full.
func (w *Worker) RetryLetters(ctx context.Context, ids []string, force bool) ([]RetryResult, error) {
	results := make([]RetryResult, 0, len(ids))
	for _, id := range ids {
		letter, ok, err := w.letters.store.Letter(ctx, id)
		if err != nil {
			return results, err
		}
		if !ok {
			results = append(results, RetryResult{ID: id, Outcome: RetryUnknown, Reason: "no such dead letter"})
			continue
		}
		done := make(chan RetryResult, 1)
		select {
		case w.retries <- retryRequest{letter: letter, force: force, done: done}:
		case <-w.ended:
			return results, ErrNotRunning
		case <-w.draining.Done():
			return results, ErrNotRunning
		case <-ctx.Done():
			return results, ctx.Err()
		}
		select {
		case result := <-done:
			results = append(results, result)
		case <-w.ended:
			return results, ErrNotRunning
		case <-ctx.Done():
			return results, ctx.Err()
		}
	}
	return results, nil
}

// claim makes a letter the dispatcher's to send; otherwise it says why not.
func (l *letters) claim(letter *Letter, force bool) (*openLetter, RetryOutcome) {
	if letter.State != LetterOpen && letter.State != LetterUnwanted && !force {
		return nil, RetrySuperseded
	}
	l.learnAgain(letter)
	l.mu.Lock()
	defer l.mu.Unlock()
	open := l.byID[letter.ID]
	switch {
	case open.resending:
		return nil, RetryUnderWay
	case open.superseded && !force:
		return nil, RetrySuperseded
	}
	open.resending, open.forced = true, force
	return open, RetryQueued
}

// learnAgain makes a letter known that is retried by force although it was superseded.
func (l *letters) learnAgain(letter *Letter) {
	l.mu.Lock()
	_, known := l.byID[letter.ID]
	l.mu.Unlock()
	if !known {
		l.learn(letter)
	}
}

// unclaim is for a claimed letter that is not sent after all.
func (l *letters) unclaim(open *openLetter) {
	l.mu.Lock()
	defer l.mu.Unlock()
	open.resending = false
}

// letter sends a dead letter again.
func (d *dispatcher) letter(ctx context.Context, r retryRequest) error {
	result := RetryResult{ID: r.letter.ID}
	defer func() { r.done <- result }()
	var renderer *renderer
	for _, candidate := range d.renderers {
		if candidate.name == r.letter.Mapping {
			renderer = candidate
		}
	}
	if renderer == nil {
		result.Outcome, result.Reason = RetryUnknown, "there is no mapping "+r.letter.Mapping+" any more"
		return nil
	}
	open, outcome := d.worker.letters.claim(&r.letter, r.force)
	if result.Outcome = outcome; open == nil {
		return nil
	}
	return d.resend(ctx, &r.letter, renderer, open, &result)
}

// resend dispatches a letter's change alone.
func (d *dispatcher) resend(ctx context.Context, letter *Letter, r *renderer, open *openLetter, result *RetryResult) error {
	change, reason := d.open(letter)
	if reason != "" {
		d.worker.letters.unclaim(open)
		result.Outcome, result.Reason = RetryRejected, reason
		return nil
	}
	t := d.compile(change.Relation)
	b := d.worker.ledger.beginLetter(open, letter.Change)
	d.unit = unit{block: b, only: r, itemID: strings.TrimSuffix(letter.ItemID, SuffixAccount), urgent: true}
	if suffix := strings.TrimPrefix(d.unit.itemID, letter.Position.String()+"/"+r.name); strings.HasPrefix(suffix, suffixRefresh) {
		d.unit.suffix = suffix
	}
	d.unit.scan = func(yield func(*cdc.Change, *table) error) error { return yield(change, t) }
	if err := d.one(ctx, change, t); err != nil {
		d.worker.letters.unclaim(open)
		return err
	}
	switch {
	case d.unit.misfit != "":
		d.worker.letters.unclaim(open)
		result.Outcome, result.Reason = RetryRejected, d.unit.misfit
	case d.unit.sent == 0:
		d.worker.letters.unclaim(open)
		if err := d.worker.letters.resolve(ctx, []string{letter.ID}, LetterUnwanted); err != nil {
			return err
		}
		result.Outcome, result.Reason = RetryUnwanted, "mapping "+r.name+" does not send this row any more: discard the letter (dlq discard --state unwanted)"
	}
	if len(d.refuse) > 0 {
		result.Outcome, result.Reason = RetryRejected, d.refuse[0].letter.Reason
	}
	if err := d.handOver(ctx); err != nil {
		return err
	}
	b.less()
	return nil
}

// open decodes a letter's change; reason says why that is not possible.
func (d *dispatcher) open(letter *Letter) (change *cdc.Change, reason string) {
	change, err := cdc.DecodeChange(letter.Change)
	if err != nil {
		return nil, err.Error()
	}
	doubt(change)
	return change, ""
}

// doubt takes types back that do not fit the row: they were looked up when they had been altered already. The values are read back then.
func doubt(c *cdc.Change) {
	for i := range c.Relation.Columns {
		t := c.Relation.Columns[i].Type
		for _, row := range [][]cdc.Value{c.Old, c.New} {
			if t.Has(cdc.TypeComposite) && i < len(row) && row[i].Kind == cdc.Text && !mapping.Readable(t, row[i].Data) {
				c.Relation.Columns[i].Type = cdc.UnknownType(t)
			}
		}
	}
}
