package cdc

import (
	"fmt"
	"time"
)

// Gap is a stretch of the source's history of which changes may have been missed. It is stored until it is closed, and as long
// as one is open the daemon is not ready.
type Gap struct {
	ID    string   `json:"id"`
	Cause GapCause `json:"cause"`
	State GapState `json:"state"`
	// Table is schema.table; empty when changes of any mapped table may be missing.
	Table string `json:"table,omitempty"`
	// Sinks are those that may lack changes; empty means all.
	Sinks []string `json:"sinks,omitempty"`
	// Mapping is the name of the mapping that lacks them; empty when the cause is not a mapping.
	Mapping string `json:"mapping,omitempty"`
	// Reason is a sentence for the operator: what has happened.
	Reason string `json:"reason"`
	// Remedy ends what is still missed: SQL, or a step in words. Empty when nothing is to be done but to send the rows.
	Remedy string `json:"remedy,omitempty"`
	// NoDeletes: the missing changes include no delete for certain, so that a backfill closes the gap wholly.
	NoDeletes bool `json:"no_deletes,omitempty"`
	// Since and Until bound the missing changes by commit. 0 and the zero time are for what is not known; Until is 0 while
	// changes are still being missed.
	Since     LSN       `json:"since_lsn,omitempty"`
	Until     LSN       `json:"until_lsn,omitempty"`
	SinceTime time.Time `json:"since,omitzero"`
	UntilTime time.Time `json:"until,omitzero"`
	Found     time.Time `json:"found"`
	// Backfill is the id of the backfill that closes the gap, once there is one.
	Backfill string `json:"backfill,omitempty"`
}

// GapCause is the kind of event that made a gap.
type GapCause string

// The causes.
const (
	GapUnpublished GapCause = "unpublished" // the publication did not send the table, an operation, a row or a column
	GapReplaced    GapCause = "replaced"    // another table has the name now
	GapPartition   GapCause = "partition"   // a partition with rows was attached, detached, dropped or truncated
	GapUnlogged    GapCause = "unlogged"    // changes were not in the WAL
	GapDropped     GapCause = "dropped"     // the table is gone
	GapSource      GapCause = "source"      // the source's history or the slot was replaced
	GapBuffer      GapCause = "buffer"      // stored blocks were lost
	GapMapping     GapCause = "mapping"     // a mapping does not fit the table as it was, and made nothing of its changes
)

// GapState is how far a gap is closed. A gap that is closed or accepted is not stored any more.
type GapState string

// The states.
const (
	// GapOpen: rows may be missing at the vendors.
	GapOpen GapState = "open"
	// GapRowsSent: a backfill has sent every row that there is; whether keys were deleted meanwhile is not known. The daemon is
	// ready, and the gap stays listed until an operator accepts it.
	GapRowsSent GapState = "rows_sent"
)

// Subject names what the gap is about.
func (g *Gap) Subject() string {
	if g.Table == "" {
		return "all mapped tables"
	}
	return g.Table
}

// Span is when the missing changes were made, as words behind "changes".
func (g *Gap) Span() string {
	since, until := bound(g.Since, g.SinceTime), bound(g.Until, g.UntilTime)
	switch {
	case since != "" && until != "":
		return "between " + since + " and " + until
	case since != "":
		return "since " + since
	case until != "":
		return "before " + until
	}
	return "at an unknown time"
}

func bound(lsn LSN, at time.Time) string {
	switch {
	case at.IsZero() && lsn == 0:
		return ""
	case at.IsZero():
		return lsn.String()
	case lsn == 0:
		return at.Format(time.RFC3339)
	}
	return fmt.Sprintf("%s (%s)", at.Format(time.RFC3339), lsn)
}

func (g *Gap) String() string {
	return fmt.Sprintf("%s: %s (changes %s)", g.Subject(), g.Reason, g.Span())
}
