package admin

import (
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/cdcsync/cdcsync/internal/cdc"
)

// Status is the whole daemon at one moment, as /api/v1/status gives it.
type Status struct {
	Version       string    `json:"version"`
	StartedAt     time.Time `json:"started_at"`
	UptimeSeconds float64   `json:"uptime_seconds"`
	// Ready says that changes move from the source to every sink that is not paused; Reasons says why not.
	Ready   bool     `json:"ready"`
	Reasons []string `json:"reasons,omitempty"`

	Source    Source     `json:"source"`
	Buffer    Buffer     `json:"buffer"`
	Sinks     []Sink     `json:"sinks"`
	Backfills []Backfill `json:"backfills"`
	// Hung names the daemon's own loops that hang or have died.
	Hung []string `json:"hung,omitempty"`
	// Gaps are changes that may have been missed. One whose rows were sent is no reason not to be ready.
	Gaps []Gap `json:"gaps"`
	// Hazards are what will break the application or the delivery, with what prevents it.
	Hazards []string `json:"hazards,omitempty"`
}

// SourceState is what the capture does.
type SourceState string

// The states of the source.
const (
	SourceConnecting SourceState = "connecting"       // no connection: it is tried again, Source.Reason says why
	SourceWaiting    SourceState = "waiting_for_slot" // another process holds the slot: this one stands by
	SourceStreaming  SourceState = "streaming"
	SourceFull       SourceState = "buffer_full" // waits for room in the buffer
	SourceStopped    SourceState = "stopped"     // Source.Reason says why: the daemon ends, or an operator must act
)

// Source is the capture. A lag of seconds is 0 when nothing is behind.
type Source struct {
	Slot        string      `json:"slot"`
	Publication string      `json:"publication,omitempty"`
	State       SourceState `json:"state"`
	Reason      string      `json:"reason,omitempty"`
	Since       time.Time   `json:"since,omitzero"`

	Received  cdc.LSN `json:"received_lsn"`
	Stored    cdc.LSN `json:"stored_lsn"`    // all before it is in the buffer
	Confirmed cdc.LSN `json:"confirmed_lsn"` // all before it the source may forget

	LagBytes   int64   `json:"lag_bytes"`   // WAL that the source has written and the buffer does not have; negative when it is not known
	LagSeconds float64 `json:"lag_seconds"` // age of the oldest such change, as far as it is known
	// RetainedWALBytes is what the slot makes the source keep; negative when it is not known.
	RetainedWALBytes int64  `json:"retained_wal_bytes"`
	Reconnects       uint64 `json:"reconnects"`
	// Surveyed is when the source was last asked whether anything keeps changes from the stream; Unsurveyed says why it could
	// not be asked for a while.
	Surveyed   time.Time `json:"surveyed,omitzero"`
	Unsurveyed string    `json:"unsurveyed,omitempty"`
}

// Buffer is the durable store between source and sinks.
type Buffer struct {
	Bytes    int64  `json:"bytes"`
	MaxBytes int64  `json:"max_bytes"` // 0: no limit
	Blocks   uint64 `json:"blocks"`
	Full     bool   `json:"full"`             // capture waits for room
	Reason   string `json:"reason,omitempty"` // what is full: max_size, disk with its numbers, account
	// Problem says what keeps the buffer from storing or reading, other than that it is full; empty when nothing does.
	Problem string `json:"problem,omitempty"`
}

// SinkState is what the delivery to a sink does.
type SinkState string

// The states of a sink.
const (
	SinkRunning  SinkState = "running"
	SinkRetrying SinkState = "retrying" // the vendor does not take requests now; tried again at NextAttempt
	SinkBlocked  SinkState = "blocked"  // an operator must act (credentials, a failing lookup); tried again now and then
	SinkHalted   SinkState = "halted"   // the limit of dead letters is reached: mend, then resume
	SinkPaused   SinkState = "paused"   // by an operator
	SinkFailed   SinkState = "failed"   // its delivery has ended by a defect: restart the daemon
)

// Sink is the delivery to one sink.
type Sink struct {
	Name        string    `json:"name"`
	Type        string    `json:"type"`
	State       SinkState `json:"state"`
	Reason      string    `json:"reason,omitempty"`
	Answer      string    `json:"answer,omitempty"` // how the vendor's answer behind Reason begins; it may quote a row
	Since       time.Time `json:"since,omitzero"`
	NextAttempt time.Time `json:"next_attempt,omitzero"`

	Delivered   cdc.LSN    `json:"delivered_lsn"`         // every change committed before it is settled
	DeliveredAt time.Time  `json:"delivered_at,omitzero"` // commit time of the newest settled change
	LagBytes    int64      `json:"lag_bytes"`             // WAL that the source has written and the sink has not settled; negative when it is not known
	LagSeconds  float64    `json:"lag_seconds"`           // age of the oldest change that is not settled; 0 when none is
	InFlight    int        `json:"in_flight"`             // requests under way
	Concurrency int        `json:"concurrency,omitempty"` // requests that may be
	BatchItems  int        `json:"batch_items,omitempty"` // items that a request may have now
	BatchLimit  int        `json:"batch_items_limit,omitempty"`
	HeldItems   int        `json:"held_items,omitempty"`  // set aside, since one of their key fails while others are taken; that one included
	Held        []HeldItem `json:"held,omitempty"`        // those that fail, at most ten of each lane
	Unconfirmed int        `json:"unconfirmed,omitempty"` // items that the vendor has accepted and not decided on
	Items       Items      `json:"items"`                 // since the daemon began
	DeadLetters int        `json:"dead_letters"`          // that wait for an operator
	Limit       int        `json:"dead_letters_limit,omitempty"`
}

// HeldItem is an item that fails alone while its sink goes on.
type HeldItem struct {
	ID          string    `json:"id"`
	Mapping     string    `json:"mapping"`
	Key         string    `json:"key"`
	Since       time.Time `json:"since"`
	Attempts    int       `json:"attempts"`
	NextAttempt time.Time `json:"next_attempt,omitzero"`
	Waiting     int       `json:"waiting,omitempty"` // newer items of its key
	Reason      string    `json:"reason"`
	Answer      string    `json:"answer,omitempty"` // how the vendor's answer begins; it may quote a row
}

// Items counts what became of the items of a sink since the daemon began.
type Items struct {
	Delivered uint64 `json:"delivered"`
	Rejected  uint64 `json:"rejected"`  // became dead letters
	Coalesced uint64 `json:"coalesced"` // a newer state of the same key was sent instead
	Filtered  uint64 `json:"filtered"`  // no mapping wants them
	Gone      uint64 `json:"gone"`      // the row to read back was deleted meanwhile: a later change says so
	Retried   uint64 `json:"retried"`   // sendings that had to be repeated
	Held      uint64 `json:"held"`      // changes of a table that a mapping does not fit: a gap lists them
}

// Unready lists why the pipeline makes no progress without an operator or, for the source, makes none now. A sink that
// an operator paused and a vendor that is down for now are no reasons: nothing is lost, and nothing here mends them.
func (s *Status) Unready() []string {
	var reasons []string
	if s.Source.State != SourceStreaming && s.Source.State != SourceFull {
		reasons = append(reasons, because("source is "+plain(s.Source.State), s.Source.Reason))
	}
	if s.Source.Unsurveyed != "" {
		reasons = append(reasons, "the source is not surveyed, so that gaps would go unseen: "+s.Source.Unsurveyed)
	}
	for i := range s.Gaps {
		if g := &s.Gaps[i]; g.State == cdc.GapOpen {
			reasons = append(reasons, fmt.Sprintf("changes of %s may be missing (gap %s): %s; %s", g.Subject(), g.ID, g.Reason, g.Next))
		}
	}
	switch {
	case s.Buffer.Problem != "":
		reasons = append(reasons, "buffer: "+s.Buffer.Problem)
	case s.Buffer.Full && strings.HasPrefix(s.Buffer.Reason, "disk"):
		reasons = append(reasons, because("buffer is full", s.Buffer.Reason)+": capture waits until the disk has room")
	case s.Buffer.Full || s.Source.State == SourceFull:
		reasons = append(reasons, because("buffer is full", s.Buffer.Reason)+": capture waits until the slowest sink has delivered")
	}
	for _, sink := range s.Sinks {
		switch sink.State {
		case SinkBlocked, SinkHalted, SinkFailed:
			reasons = append(reasons, because("sink "+sink.Name+" is "+string(sink.State), sink.Reason))
		case SinkRunning, SinkRetrying, SinkPaused:
		}
	}
	return append(reasons, s.Hung...)
}

func because(what, reason string) string {
	if reason == "" {
		return what
	}
	return what + ": " + reason
}

// plain is a state in words.
func plain(state SourceState) string { return strings.ReplaceAll(string(state), "_", " ") }

// now is the pipeline's status with what the server knows of itself.
func (s *Server) now() Status {
	status := s.parts.Pipeline.Status()
	status.Version, status.StartedAt = s.cfg.Version, s.started
	status.UptimeSeconds = time.Since(s.started).Seconds()
	status.Reasons = status.Unready()
	status.Ready = len(status.Reasons) == 0
	if status.Sinks == nil {
		status.Sinks = []Sink{}
	}
	if status.Backfills == nil {
		status.Backfills = []Backfill{}
	}
	if status.Gaps == nil {
		status.Gaps = []Gap{}
	}
	return status
}

func (s *Server) status(w http.ResponseWriter, _ *http.Request) {
	answer(w, http.StatusOK, s.now())
}

// Readiness is what /readyz answers to those who accept JSON.
type Readiness struct {
	Ready   bool     `json:"ready"`
	Reasons []string `json:"reasons,omitempty"`
}

// readyz answers 200 or 503. It is open to probes, but only who has the token reads why.
func (s *Server) readyz(w http.ResponseWriter, r *http.Request) {
	reasons := s.now().Reasons
	readiness := Readiness{Ready: len(reasons) == 0}
	if s.authorized(r) {
		readiness.Reasons = reasons
	}
	code, text := http.StatusOK, "ready\n"
	if !readiness.Ready {
		code, text = http.StatusServiceUnavailable, strings.Join(append([]string{"not ready"}, readiness.Reasons...), "\n")+"\n"
	}
	if strings.Contains(r.Header.Get("Accept"), "application/json") {
		answer(w, code, readiness)
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(code)
	_, _ = w.Write([]byte(text))
}
