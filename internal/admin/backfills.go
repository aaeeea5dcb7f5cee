package admin

import (
	"context"
	"net/http"
	"time"
)

// Backfills sends existing rows. Its methods are called concurrently.
type Backfills interface {
	List(ctx context.Context) ([]Backfill, error)
	// Start begins one; a table, sink or predicate that cannot be is an *Error of KindInvalid.
	Start(ctx context.Context, what StartBackfill) (Backfill, error)
	// Pause, Resume and Cancel act on one; an unknown id is an *Error of KindNotFound, one that has ended of KindConflict.
	Pause(ctx context.Context, id string) error
	Resume(ctx context.Context, id string) error
	Cancel(ctx context.Context, id string) error
}

// StartBackfill says what to send.
type StartBackfill struct {
	Table string  `json:"table"`           // schema.name
	Sink  string  `json:"sink,omitempty"`  // empty: every sink that has a mapping of the table
	Where string  `json:"where,omitempty"` // SQL over the table's columns
	Rate  float64 `json:"rate,omitempty"`  // rows a second; 0 is unbounded
}

// Backfill is one, as far as it is.
type Backfill struct {
	ID    string `json:"id"`
	State string `json:"state"` // waiting, running, paused, done, cancelled, failed
	StartBackfill
	Sinks         []string  `json:"sinks,omitempty"` // that get the rows, by name
	Reason        string    `json:"reason,omitempty"`
	StartedAt     time.Time `json:"started_at,omitzero"`
	FinishedAt    time.Time `json:"finished_at,omitzero"`
	Rows          int64     `json:"rows"`
	EstimatedRows int64     `json:"estimated_rows,omitempty"`
	RowsPerSecond float64   `json:"rows_per_second,omitempty"`
	SecondsLeft   float64   `json:"seconds_left,omitempty"`
}

var errNoBackfills = &Error{Kind: KindUnsupported, Reason: "this daemon runs no backfills"}

func (s *Server) listBackfills(w http.ResponseWriter, r *http.Request) {
	if s.parts.Backfills == nil {
		s.fail(w, r, errNoBackfills)
		return
	}
	backfills, err := s.parts.Backfills.List(r.Context())
	if err != nil {
		s.fail(w, r, err)
		return
	}
	if backfills == nil {
		backfills = []Backfill{}
	}
	answer(w, http.StatusOK, backfills)
}

func (s *Server) startBackfill(w http.ResponseWriter, r *http.Request) {
	if s.parts.Backfills == nil {
		s.fail(w, r, errNoBackfills)
		return
	}
	var what StartBackfill
	err := decode(w, r, &what)
	if err == nil && what.Table == "" {
		err = &Error{Kind: KindInvalid, Reason: "table is missing", Solution: "name it as schema.table"}
	}
	if err == nil && what.Rate < 0 {
		err = &Error{Kind: KindInvalid, Reason: "rate cannot be negative"}
	}
	if err != nil {
		s.fail(w, r, err)
		return
	}
	backfill, err := s.parts.Backfills.Start(r.Context(), what)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	s.logger.Info("backfill started", "id", backfill.ID, "table", backfill.Table, "sinks", backfill.Sinks)
	answer(w, http.StatusCreated, backfill)
}

func (s *Server) pauseBackfill(w http.ResponseWriter, r *http.Request) {
	s.actOnBackfill(w, r, Backfills.Pause)
}

func (s *Server) resumeBackfill(w http.ResponseWriter, r *http.Request) {
	s.actOnBackfill(w, r, Backfills.Resume)
}

func (s *Server) cancelBackfill(w http.ResponseWriter, r *http.Request) {
	s.actOnBackfill(w, r, Backfills.Cancel)
}

func (s *Server) actOnBackfill(w http.ResponseWriter, r *http.Request, do func(Backfills, context.Context, string) error) {
	if s.parts.Backfills == nil {
		s.fail(w, r, errNoBackfills)
		return
	}
	s.act(w, r, func(ctx context.Context, id string) error { return do(s.parts.Backfills, ctx, id) }, "id")
}
