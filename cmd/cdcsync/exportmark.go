package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/cdcsync/cdcsync/internal/buffer"
	"github.com/cdcsync/cdcsync/internal/replication"
)

// exportMark is an export with the slot that has begun. It is stored before the slot is made and removed when the buffer knows
// the slot, or when the slot is dropped, so that one that was killed is not taken for one that is whole.
type exportMark struct {
	Dir   string    `json:"dir"`
	Begun time.Time `json:"begun"`
	Files []string  `json:"files,omitempty"` // that may have their names already
}

const exportMarkName = "export" // in the buffer

func newExportMark(dir string) (*exportMark, error) {
	whole, err := filepath.Abs(dir)
	return &exportMark{Dir: whole, Begun: time.Now()}, err
}

func loadExportMark(ctx context.Context, b *buffer.Buffer) (*exportMark, error) {
	stored, err := b.Value(ctx, exportMarkName)
	if err != nil || stored == nil {
		return nil, err
	}
	mark := &exportMark{}
	if err := json.Unmarshal(stored, mark); err != nil {
		return nil, fmt.Errorf("the export that has begun: %w", err)
	}
	return mark, nil
}

func (m *exportMark) store(ctx context.Context, b *buffer.Buffer) error {
	value, err := json.Marshal(m)
	if err == nil {
		err = b.SetValue(ctx, exportMarkName, value)
	}
	if err != nil {
		return fmt.Errorf("store export: %w", err)
	}
	return nil
}

func forgetExport(ctx context.Context, b *buffer.Buffer) error {
	mark, err := loadExportMark(ctx, b)
	if err != nil || mark == nil {
		return err
	}
	return b.DeleteValue(ctx, exportMarkName)
}

// undoExport removes what an export that was killed has left: its slot, its files, and last its mark.
func undoExport(ctx context.Context, b *buffer.Buffer, source replication.Config, logger *slog.Logger) error {
	mark, err := loadExportMark(ctx, b)
	if err != nil || mark == nil {
		return err
	}
	dropped, err := replication.DropReserved(ctx, source)
	if err != nil {
		return err
	}
	files, err := mark.remove()
	if err != nil {
		return err
	}
	logger.InfoContext(ctx, "removed what an interrupted export has left", "begun", mark.Begun, "slot_dropped", dropped, "dir", mark.Dir, "files", files)
	return forgetExport(ctx, b)
}

// remove deletes the files, and reports how many there were.
func (m *exportMark) remove() (int, error) {
	entries, err := os.ReadDir(m.Dir)
	if errors.Is(err, os.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	named := make(map[string]bool)
	for _, name := range m.Files {
		named[name] = true
	}
	removed := 0
	for _, entry := range entries {
		partial, err := filepath.Match("*-brand-*.json"+partialSuffix, entry.Name())
		if err != nil || !partial && !named[entry.Name()] {
			continue
		}
		if err := os.Remove(filepath.Join(m.Dir, entry.Name())); err != nil {
			return removed, err
		}
		removed++
	}
	return removed, nil
}

// refuseHalfExported keeps the daemon from going on with the slot of an export that was killed: what lies before the slot is in
// no whole file. An export whose slot the buffer knows is whole; one whose slot was dropped has been given up.
func refuseHalfExported(ctx context.Context, b *buffer.Buffer, source replication.Config, logger *slog.Logger) error {
	mark, err := loadExportMark(ctx, b)
	if err != nil || mark == nil {
		return err
	}
	known, err := b.Source(ctx)
	if err != nil {
		return err
	}
	if known != nil {
		return forgetExport(ctx, b)
	}
	there, err := replication.HasSlot(ctx, source)
	if err == nil && !there {
		logger.WarnContext(ctx, "an interrupted export was given up, since its slot is gone; its files are not whole", "begun", mark.Begun, "dir", mark.Dir)
		return forgetExport(ctx, b)
	}
	return errors.Join(&replication.Error{
		Reason: fmt.Sprintf("an export with the slot, begun %s into %s, was not finished: its files are not whole, and slot %q belongs to them",
			mark.Begun.Format(time.DateTime), mark.Dir, source.Slot),
		Solution: "run cdcsync export --with-slot again, which removes what is left, or give the export up: SELECT pg_drop_replication_slot('" + source.Slot + "')",
	}, err)
}
