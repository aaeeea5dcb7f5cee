package main

import (
	"context"
	"encoding/json"
	"errors"
	"iter"
	"time"

	"github.com/cdcsync/cdcsync/internal/buffer"
	"github.com/cdcsync/cdcsync/internal/cdc"
	"github.com/cdcsync/cdcsync/internal/delivery"
	"github.com/cdcsync/cdcsync/internal/mapping"
	"github.com/cdcsync/cdcsync/internal/replication"
)

// The types of this file give delivery, which knows no adapter, one sink's part of the buffer, and the source to ask.

type blocks struct{ *buffer.Sink }

func (b blocks) Next(ctx context.Context) (delivery.Block, error) {
	block, err := b.Sink.Next(ctx)
	return delivery.Block(block), err
}

// letters are the dead letters of one sink.
type letters struct {
	buffer *buffer.Buffer
	sink   string
}

func (l letters) Park(ctx context.Context, parked []delivery.Letter) error {
	stored := make([]buffer.Letter, len(parked))
	for i := range parked {
		stored[i] = storedLetter(&parked[i])
	}
	if err := l.buffer.Park(ctx, stored); err != nil {
		return err
	}
	for i := range parked {
		parked[i].ID = stored[i].ID
	}
	return nil
}

func (l letters) Letter(ctx context.Context, id string) (delivery.Letter, bool, error) {
	stored, err := l.buffer.Letter(ctx, id)
	if errors.Is(err, buffer.ErrNoLetter) {
		return delivery.Letter{}, false, nil
	}
	return deliveredLetter(&stored), err == nil, err
}

func (l letters) Open(ctx context.Context) iter.Seq2[delivery.Letter, error] {
	return func(yield func(delivery.Letter, error) bool) {
		for stored, err := range l.buffer.Letters(ctx, buffer.LetterFilter{Sink: l.sink, State: buffer.LetterOpen, Heads: true}) {
			if !yield(deliveredLetter(&stored), err) {
				return
			}
		}
	}
}

func (l letters) Resolve(ctx context.Context, ids []string, state delivery.LetterState) error {
	for _, id := range ids {
		var err error
		if state == delivery.LetterDelivered {
			err = l.buffer.Discard(ctx, id)
		} else {
			err = l.mark(ctx, id, buffer.LetterState(state))
		}
		if err != nil && !errors.Is(err, buffer.ErrNoLetter) {
			return err
		}
	}
	return nil
}

func (l letters) mark(ctx context.Context, id string, state buffer.LetterState) error {
	letter, err := l.buffer.Letter(ctx, id)
	if err != nil {
		return err
	}
	letter.State = state
	return l.buffer.UpdateLetter(ctx, letter)
}

func storedLetter(l *delivery.Letter) buffer.Letter {
	return buffer.Letter{
		ID: l.ID, ItemID: l.ItemID, Sink: l.Sink, Mapping: l.Mapping, Table: l.Table, Key: l.Key, Op: l.Op.String(), Position: l.Position,
		Reason: l.Reason, Code: l.Code, Trace: l.Trace, Status: l.Status, Attempts: l.Attempts, At: l.At,
		Item: l.Item, Change: l.Change, State: buffer.LetterState(l.State),
	}
}

func deliveredLetter(l *buffer.Letter) delivery.Letter {
	op, _ := cdc.ParseOp(l.Op) // a word that is none came from no version of cdcsync
	return delivery.Letter{
		ID: l.ID, ItemID: l.ItemID, Sink: l.Sink, Mapping: l.Mapping, Table: l.Table, Key: l.Key, Op: op, Position: l.Position,
		Reason: l.Reason, Code: l.Code, Trace: l.Trace, Status: l.Status, Attempts: l.Attempts, At: l.At,
		Item: l.Item, Change: l.Change, State: delivery.LetterState(l.State),
	}
}

// tracks are the items of one sink that its vendor has accepted and not decided on.
type tracks struct {
	buffer *buffer.Buffer
	sink   string
}

func (t tracks) Track(ctx context.Context, items []delivery.Tracked) error {
	stored := make([]buffer.Tracked, len(items))
	for i := range items {
		stored[i] = buffer.Tracked{
			Sink: t.sink, ItemID: items[i].Letter.ItemID, ID: items[i].Tracking,
			AcceptedAt: items[i].AcceptedAt, Letter: storedLetter(&items[i].Letter),
		}
	}
	return t.buffer.Track(ctx, stored)
}

func (t tracks) Untrack(_ context.Context, itemIDs []string) error {
	t.buffer.Untrack(t.sink, itemIDs...)
	return nil
}

func (t tracks) Load(ctx context.Context, itemID string) (delivery.Tracked, bool, error) {
	stored, ok, err := t.buffer.TrackedItem(ctx, t.sink, itemID)
	return deliveredItem(&stored), ok, err
}

func deliveredItem(i *buffer.Tracked) delivery.Tracked {
	return delivery.Tracked{Tracking: i.ID, AcceptedAt: i.AcceptedAt, Letter: deliveredLetter(&i.Letter)}
}

func (t tracks) Tracked(ctx context.Context) iter.Seq2[delivery.Tracked, error] {
	return func(yield func(delivery.Tracked, error) bool) {
		for stored, err := range t.buffer.TrackedItems(ctx, t.sink) {
			if !yield(deliveredItem(&stored), err) {
				return
			}
		}
	}
}

// pauses remembers in the buffer whether one sink is paused.
type pauses struct {
	buffer *buffer.Buffer
	sink   string
}

func (p pauses) name() string { return "pause/" + p.sink }

func (p pauses) resumedName() string { return "resumed/" + p.sink }

func (p pauses) Resumed(ctx context.Context) (at time.Time, err error) {
	value, err := p.buffer.Value(ctx, p.resumedName())
	if err != nil || value == nil {
		return time.Time{}, err
	}
	return at, at.UnmarshalText(value)
}

func (p pauses) Paused(ctx context.Context) (delivery.Pause, error) {
	value, err := p.buffer.Value(ctx, p.name())
	if err != nil || value == nil {
		return delivery.PauseNone, err
	}
	var pause delivery.Pause
	return pause, json.Unmarshal(value, &pause)
}

func (p pauses) SetPaused(ctx context.Context, pause delivery.Pause) error {
	if pause == delivery.PauseNone {
		now, err := time.Now().UTC().MarshalText()
		if err == nil {
			err = p.buffer.SetValue(ctx, p.resumedName(), now)
		}
		return errors.Join(err, p.buffer.DeleteValue(ctx, p.name()))
	}
	value, err := json.Marshal(pause)
	if err != nil {
		return err
	}
	return p.buffer.SetValue(ctx, p.name(), value)
}

// source answers lookups and reads rows back.
type source struct{ *replication.Reader }

func (s source) Lookup(ctx context.Context, sql string, keys []string, xids []uint32) (map[string]mapping.Rows, error) {
	result, err := s.Reader.Lookup(ctx, sql, keys, xids)
	if err != nil {
		return nil, err
	}
	found := make(map[string]mapping.Rows, len(result.Records))
	for key, records := range result.Records {
		rows := mapping.Rows{Columns: result.Columns, Rows: make([][]cdc.Value, len(records))}
		for i, record := range records {
			rows.Rows[i] = record
		}
		found[key] = rows
	}
	return found, nil
}
