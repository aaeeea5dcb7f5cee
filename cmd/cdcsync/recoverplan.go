package main

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/cdcsync/cdcsync/internal/buffer"
	"github.com/cdcsync/cdcsync/internal/cdc"
	"github.com/cdcsync/cdcsync/internal/replication"
)

// recoveryPlan is a recovery that has begun. It is stored before anything is changed and removed when all is done, so that one
// that was interrupted is gone on with; each of its steps may be repeated.
type recoveryPlan struct {
	Reason string        `json:"reason"`
	Begun  time.Time     `json:"begun"`
	Since  cdc.LSN       `json:"since,omitempty"` // what the buffer had reached; 0 when it was ahead of the source
	Tables []plannedSend `json:"tables"`
}

// plannedSend is a table that is to be sent again, with the gap that this closes.
type plannedSend struct {
	Table string `json:"table"`
	Gap   string `json:"gap"`
}

const recoveryPlanName = "recovery" // in the buffer

func loadRecoveryPlan(ctx context.Context, b *buffer.Buffer) (*recoveryPlan, error) {
	stored, err := b.Value(ctx, recoveryPlanName)
	if err != nil || stored == nil {
		return nil, err
	}
	plan := &recoveryPlan{}
	if err := json.Unmarshal(stored, plan); err != nil {
		return nil, fmt.Errorf("the recovery that has begun: %w", err)
	}
	return plan, nil
}

func (p *recoveryPlan) store(ctx context.Context, b *buffer.Buffer) error {
	value, err := json.Marshal(p)
	if err != nil { // text and numbers always marshal
		return fmt.Errorf("store recovery: %w", err)
	}
	return b.SetValue(ctx, recoveryPlanName, value)
}

// refuseUnrecovered keeps the daemon from starting on a recovery that was not finished: tables are still to be sent.
func refuseUnrecovered(ctx context.Context, b *buffer.Buffer) error {
	plan, err := loadRecoveryPlan(ctx, b)
	if err != nil || plan == nil {
		return err
	}
	return &replication.Error{
		Reason: fmt.Sprintf("a recovery of %s was not finished, and tables are still to be sent (it was begun since: %s)",
			plan.Begun.Format(time.DateTime), plan.Reason),
		Solution: "run cdcsync recover --yes again: it goes on where it was interrupted",
	}
}

// recordGaps says durably what may be missing at the vendors until the tables have been sent again.
func (p *recoveryPlan) recordGaps(ctx context.Context, b *buffer.Buffer, tables []replication.BackfillSpec, until cdc.LSN) error {
	p.Tables = p.Tables[:0]
	for _, t := range tables {
		gap, err := b.RecordGap(ctx, cdc.Gap{
			Cause: cdc.GapSource, Table: t.Table.String(), Sinks: t.Sinks, Reason: p.Reason, Since: p.Since, Until: until, Found: p.Begun,
		})
		if err != nil {
			return fmt.Errorf("gap of %s: %w", t.Table, err)
		}
		p.Tables = append(p.Tables, plannedSend{Table: t.Table.String(), Gap: gap.ID})
	}
	return nil
}

// closedBy notes the backfill that closes the gap of a table.
func (p *recoveryPlan) closedBy(ctx context.Context, b *buffer.Buffer, table, backfill string) error {
	for _, planned := range p.Tables {
		if planned.Table != table {
			continue
		}
		for _, gap := range b.Gaps() {
			if gap.ID != planned.Gap {
				continue
			}
			gap.Backfill = backfill
			if err := b.UpdateGap(ctx, gap); err != nil {
				return fmt.Errorf("gap of %s: %w", table, err)
			}
		}
	}
	return nil
}
