package admin

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/cdcsync/cdcsync/internal/cdc"
)

// DeadLetters are the items that a vendor, or the mapping, rejected. Its methods are called concurrently.
type DeadLetters interface {
	// List returns the letters that f selects, oldest first, at most f.Limit (always set), and the cursor of the next page, "" after the last.
	List(ctx context.Context, f LetterFilter) (LetterPage, error)
	// Letter returns one; an unknown id is an *Error of KindNotFound.
	Letter(ctx context.Context, id string) (Letter, error)
	// Retry renders the rows again with the mapping as it is now and sends them. A letter whose key was delivered in a newer
	// state since is marked superseded and not sent, unless force is set. When ctx ends first, the rest is counted as pending
	// and goes on.
	Retry(ctx context.Context, which Selection, force bool) (RetryResult, error)
	// Discard forgets letters and returns how many.
	Discard(ctx context.Context, which Selection) (int, error)
}

// LetterState is where a dead letter stands.
type LetterState string

// The states of a dead letter.
const (
	LetterParked     LetterState = "parked"     // waits for an operator
	LetterSuperseded LetterState = "superseded" // a newer state of its key was delivered since; not sent again unless forced
)

// Letter is one dead letter. Item and the rows hold values of the source; they are shown, never logged.
type Letter struct {
	ID          string       `json:"id"`
	State       LetterState  `json:"state"`
	Sink        string       `json:"sink"`
	Mapping     string       `json:"mapping"`
	Table       string       `json:"table"`
	Op          string       `json:"op"`
	Key         string       `json:"key"`
	Position    cdc.Position `json:"position"`
	Reason      string       `json:"reason"`
	Code        string       `json:"code,omitempty"`  // the vendor's
	Trace       string       `json:"trace,omitempty"` // the vendor's id for the call
	Attempts    int          `json:"attempts"`
	CommittedAt time.Time    `json:"committed_at,omitzero"`
	ParkedAt    time.Time    `json:"parked_at"`

	Item json.RawMessage `json:"item,omitempty"` // as rendered; absent when it could not be
	Row  json.RawMessage `json:"row,omitempty"`  // the source's row: column → value
	Old  json.RawMessage `json:"old,omitempty"`  // as it was before, where the source says so
}

// LetterPage is a part of a list.
type LetterPage struct {
	Letters []Letter `json:"letters"`
	Next    string   `json:"next,omitempty"`
}

// LetterFilter selects dead letters; what is empty selects all.
type LetterFilter struct {
	Sink    string      `json:"sink,omitempty"`
	Mapping string      `json:"mapping,omitempty"`
	Table   string      `json:"table,omitempty"`
	Reason  string      `json:"reason,omitempty"` // a part of the reason, in any case
	State   LetterState `json:"state,omitempty"`
	// OlderThan and NewerThan are ages since the letter was parked.
	OlderThan Duration `json:"older_than,omitzero"`
	NewerThan Duration `json:"newer_than,omitzero"`

	Limit  int    `json:"-"`
	Cursor string `json:"-"`
}

// Selection names the letters to act on: by id, or all that the filter selects.
type Selection struct {
	IDs    []string     `json:"ids,omitempty"`
	Filter LetterFilter `json:"filter,omitzero"`
	// All must be set to act on every letter there is, so that an empty request does nothing.
	All bool `json:"all,omitempty"`
}

// RetryResult counts what became of the letters.
type RetryResult struct {
	Delivered  int `json:"delivered"`
	Superseded int `json:"superseded"`
	Rejected   int `json:"rejected"` // again: they stay dead letters with the new reason
	Pending    int `json:"pending"`  // on their way: not settled when the answer was given
}

// Duration is a time.Duration that reads in JSON as in Go: "1h30m".
type Duration time.Duration

// MarshalText is the form of time.Duration.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// UnmarshalText is the inverse of MarshalText.
func (d *Duration) UnmarshalText(text []byte) error {
	parsed, err := time.ParseDuration(string(text))
	*d = Duration(parsed)
	return err
}

const (
	defaultLimit = 100
	maxLimit     = 1000
)

// query is the filter as a URL's query; parseFilter is its inverse.
func (f *LetterFilter) query() url.Values {
	q := make(url.Values)
	set := func(key, value string) {
		if value != "" {
			q.Set(key, value)
		}
	}
	set("sink", f.Sink)
	set("mapping", f.Mapping)
	set("table", f.Table)
	set("reason", f.Reason)
	set("state", string(f.State))
	set("cursor", f.Cursor)
	if f.OlderThan != 0 {
		set("older_than", time.Duration(f.OlderThan).String())
	}
	if f.NewerThan != 0 {
		set("newer_than", time.Duration(f.NewerThan).String())
	}
	if f.Limit != 0 {
		set("limit", strconv.Itoa(f.Limit))
	}
	return q
}

func parseFilter(q url.Values) (LetterFilter, error) {
	f := LetterFilter{Limit: defaultLimit}
	for key := range q {
		value := q.Get(key)
		var err error
		switch key {
		case "sink":
			f.Sink = value
		case "mapping":
			f.Mapping = value
		case "table":
			f.Table = value
		case "reason":
			f.Reason = value
		case "state":
			f.State = LetterState(value)
		case "cursor":
			f.Cursor = value
		case "older_than":
			err = f.OlderThan.UnmarshalText([]byte(value))
		case "newer_than":
			err = f.NewerThan.UnmarshalText([]byte(value))
		case "limit":
			f.Limit, err = strconv.Atoi(value)
		default:
			return f, &Error{
				Kind: KindInvalid, Reason: "unknown parameter " + strconv.Quote(key),
				Solution: "there are sink, mapping, table, reason, state, older_than, newer_than, limit, cursor",
			}
		}
		if err != nil {
			return f, &Error{Kind: KindInvalid, Reason: "parameter " + key + ": " + err.Error()}
		}
	}
	return f, f.check()
}

func (f *LetterFilter) check() error {
	switch {
	case f.State != "" && f.State != LetterParked && f.State != LetterSuperseded:
		return &Error{Kind: KindInvalid, Reason: "state " + strconv.Quote(string(f.State)), Solution: "there are parked and superseded"}
	case f.Limit < 1 || f.Limit > maxLimit:
		return &Error{Kind: KindInvalid, Reason: "limit must be from 1 to " + strconv.Itoa(maxLimit)}
	case f.OlderThan < 0 || f.NewerThan < 0:
		return &Error{Kind: KindInvalid, Reason: "an age cannot be negative"}
	}
	return nil
}

func (s *Server) listLetters(w http.ResponseWriter, r *http.Request) {
	f, err := parseFilter(r.URL.Query())
	if err != nil {
		s.fail(w, r, err)
		return
	}
	page, err := s.parts.DeadLetters.List(r.Context(), f)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	if page.Letters == nil {
		page.Letters = []Letter{}
	}
	for i := range page.Letters { // a list is for choosing; what a letter holds can be long and is asked for by id
		page.Letters[i].Item, page.Letters[i].Row, page.Letters[i].Old = nil, nil, nil
	}
	answer(w, http.StatusOK, page)
}

func (s *Server) showLetter(w http.ResponseWriter, r *http.Request) {
	letter, err := s.parts.DeadLetters.Letter(r.Context(), r.PathValue("id"))
	if err != nil {
		s.fail(w, r, err)
		return
	}
	answer(w, http.StatusOK, letter)
}

// exportLetters writes every letter that the filter selects as one line of JSON, page by page. After the first byte an
// error can only be told by breaking the connection off.
func (s *Server) exportLetters(w http.ResponseWriter, r *http.Request) {
	f, err := parseFilter(r.URL.Query())
	if err != nil {
		s.fail(w, r, err)
		return
	}
	f.Limit = maxLimit
	page, err := s.parts.DeadLetters.List(r.Context(), f)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	w.Header().Set("Content-Type", "application/jsonl")
	writer := http.NewResponseController(w)
	encoder := json.NewEncoder(w)
	encoder.SetEscapeHTML(false)
	for {
		for i := range page.Letters {
			if err := encoder.Encode(&page.Letters[i]); err != nil {
				return
			}
		}
		if page.Next == "" {
			return
		}
		_ = writer.Flush() // the reader sees what there is, and a break afterwards as one
		f.Cursor = page.Next
		if page, err = s.parts.DeadLetters.List(r.Context(), f); err != nil {
			s.logger.Error("export of dead letters broken off", "err", err)
			panic(http.ErrAbortHandler) //nolint:forbidigo // net/http's way to break a response off, so that the reader does not take it for whole
		}
		_ = writer.SetWriteDeadline(time.Now().Add(writeTimeout))
	}
}

// retryWait is how long a retry is watched before it is answered: well within writeTimeout.
const retryWait = 30 * time.Second

type retryRequest struct {
	Selection
	Force bool `json:"force,omitempty"`
}

func (s *Server) retryLetters(w http.ResponseWriter, r *http.Request) {
	var request retryRequest
	if err := decodeSelection(w, r, &request, &request.Selection); err != nil {
		s.fail(w, r, err)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), retryWait)
	defer cancel()
	result, err := s.parts.DeadLetters.Retry(ctx, request.Selection, request.Force)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	s.logger.Info("dead letters retried", "delivered", result.Delivered, "superseded", result.Superseded, "rejected", result.Rejected, "pending", result.Pending)
	answer(w, http.StatusOK, result)
}

// Discarded is the answer to a discard.
type Discarded struct {
	Discarded int `json:"discarded"`
}

func (s *Server) discardLetters(w http.ResponseWriter, r *http.Request) {
	var which Selection
	if err := decodeSelection(w, r, &which, &which); err != nil {
		s.fail(w, r, err)
		return
	}
	n, err := s.parts.DeadLetters.Discard(r.Context(), which)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	s.logger.Warn("dead letters discarded", "count", n)
	answer(w, http.StatusOK, Discarded{Discarded: n})
}

// decodeSelection reads a body into v, of which which is a part, and refuses one that selects nothing by intent.
func decodeSelection(w http.ResponseWriter, r *http.Request, v any, which *Selection) error {
	if err := decode(w, r, v); err != nil {
		return err
	}
	filtered := which.Filter != LetterFilter{}
	switch {
	case len(which.IDs) > 0 && (filtered || which.All):
		return &Error{Kind: KindInvalid, Reason: "ids cannot be combined with a filter or all"}
	case len(which.IDs) == 0 && !filtered && !which.All:
		return &Error{Kind: KindInvalid, Reason: "nothing is selected", Solution: "give ids or a filter, or all for every dead letter"}
	}
	which.Filter.Limit = maxLimit
	return which.Filter.check()
}
