package admin

import (
	"context"
	"encoding/json"
	"iter"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/cdcsync/cdcsync/internal/cdc"
)

// DeadLetters are the items that a vendor, or the mapping, rejected. Its methods are called concurrently.
type DeadLetters interface {
	// Letters goes over the letters that f selects, oldest first, at most f.Limit when that is set. It ends with the first error.
	Letters(ctx context.Context, f LetterFilter) iter.Seq2[Letter, error]
	// Letter returns one; an unknown id is an *Error of KindNotFound.
	Letter(ctx context.Context, id string) (Letter, error)
	// Retry renders the rows again with the mapping as it is now and puts them on their way. A letter whose key was delivered
	// in a newer state since is not sent, unless force is set. It returns when all are on their way; when ctx ends before, it
	// returns what became of those that were taken, with an error.
	Retry(ctx context.Context, which Selection, force bool) ([]Retried, error)
	// Discard forgets letters and returns how many.
	Discard(ctx context.Context, which Selection) (int, error)
}

// LetterState is where a dead letter stands.
type LetterState string

// The states of a dead letter.
const (
	LetterOpen       LetterState = "open"       // waits for an operator
	LetterReplaced   LetterState = "replaced"   // a newer letter of its key tells all that it does
	LetterUnwanted   LetterState = "unwanted"   // the mapping did not send its row any more when it was retried
	LetterSuperseded LetterState = "superseded" // a newer state of its key was delivered since; not sent again unless forced
)

// Letter is one dead letter. Item and the rows hold values of the source; they are shown, never logged.
type Letter struct {
	ID          string       `json:"id"`
	State       LetterState  `json:"state"`
	Kind        string       `json:"kind"` // item, or account: the item was delivered, and the login account that it asks for not created
	Sink        string       `json:"sink"`
	Mapping     string       `json:"mapping"`
	Table       string       `json:"table"`
	Op          string       `json:"op"`
	Key         string       `json:"key"`
	Position    cdc.Position `json:"position"`
	Reason      string       `json:"reason"`
	Code        string       `json:"code,omitempty"`   // the vendor's
	Trace       string       `json:"trace,omitempty"`  // the vendor's id for the call
	Status      int          `json:"status,omitempty"` // HTTP status; 0 when it was not sent
	Attempts    int          `json:"attempts"`
	CommittedAt time.Time    `json:"committed_at,omitzero"`
	ParkedAt    time.Time    `json:"parked_at"`
	Remark      string       `json:"remark,omitempty"`

	SupersededBy *cdc.Position `json:"superseded_by,omitempty"`

	Item json.RawMessage `json:"item,omitempty"` // as rendered, see ItemJSON; absent when it could not be
	Row  json.RawMessage `json:"row,omitempty"`  // the source's row: column → value
	Old  json.RawMessage `json:"old,omitempty"`  // as it was before, where the source says so
}

// deepest is how deep an item may be nested to be shown as JSON: deeper than any vendor's, and within what every parser takes.
const deepest = 200

// ItemJSON is an item as a Letter shows it: as it is when it is JSON that any client can read, and else as one JSON string.
func ItemJSON(item []byte) json.RawMessage {
	if len(item) == 0 {
		return nil
	}
	if depth(item) <= deepest && utf8.Valid(item) && json.Valid(item) {
		return item
	}
	text, err := json.Marshal(string(item))
	if err != nil { // a string always can be encoded
		return nil
	}
	return text
}

// depth is how deep arrays and objects are nested, without regard to whether the text is JSON.
func depth(text []byte) (most int) {
	level, quoted := 0, false
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case !quoted && (c == '[' || c == '{'):
			level++
			most = max(most, level)
		case !quoted && (c == ']' || c == '}'):
			level--
		}
	}
	return most
}

// LetterList is what a list answers.
type LetterList struct {
	Letters []Letter `json:"letters"`
	More    bool     `json:"more,omitempty"` // there are more than the limit
}

// LetterFilter selects dead letters; what is empty selects all.
type LetterFilter struct {
	Sink    string      `json:"sink,omitempty"`
	Mapping string      `json:"mapping,omitempty"`
	Table   string      `json:"table,omitempty"`
	Key     string      `json:"key,omitempty"`    // the whole key, as a list shows it
	Reason  string      `json:"reason,omitempty"` // a part of the reason, in any case
	State   LetterState `json:"state,omitempty"`
	// OlderThan and NewerThan are ages since the letter was parked.
	OlderThan Duration `json:"older_than,omitzero"`
	NewerThan Duration `json:"newer_than,omitzero"`

	Limit int `json:"-"`
}

// Selection names the letters to act on: by id, or all that the filter selects.
type Selection struct {
	IDs    []string     `json:"ids,omitempty"`
	Filter LetterFilter `json:"filter,omitzero"`
	// All must be set to act on every letter there is, so that an empty request does nothing.
	All bool `json:"all,omitempty"`
}

// Retried says what a retry did about one letter.
type Retried struct {
	ID      string `json:"id"`
	Outcome string `json:"outcome"` // queued, superseded, under_way, unwanted, rejected, unknown
	Reason  string `json:"reason,omitempty"`
}

// RetryQueued is the outcome of a letter that is on its way: it is delivered, or a dead letter again with its new reason.
const RetryQueued = "queued"

// RetryAnswer is the answer to a retry.
type RetryAnswer struct {
	Letters []Retried `json:"letters"`
	// Unfinished says that the sinks did not take all of them in time: ask again for the rest.
	Unfinished bool `json:"unfinished,omitempty"`
}

// Duration is a time.Duration that reads in JSON as in Go, "1h30m", or as days, "2d".
type Duration time.Duration

// MarshalText is the form of time.Duration.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// UnmarshalText is the inverse of MarshalText.
func (d *Duration) UnmarshalText(text []byte) error {
	const day = 24 * time.Hour
	if days, ok := strings.CutSuffix(string(text), "d"); ok {
		n, err := strconv.ParseUint(days, 10, 16)
		*d = Duration(time.Duration(n) * day)
		return err
	}
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
	set("key", f.Key)
	set("reason", f.Reason)
	set("state", string(f.State))
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
		case "key":
			f.Key = value
		case "reason":
			f.Reason = value
		case "state":
			f.State = LetterState(value)
		case "older_than":
			err = f.OlderThan.UnmarshalText([]byte(value))
		case "newer_than":
			err = f.NewerThan.UnmarshalText([]byte(value))
		case "limit":
			f.Limit, err = strconv.Atoi(value)
		default:
			return f, &Error{
				Kind: KindInvalid, Reason: "unknown parameter " + strconv.Quote(key),
				Solution: "there are sink, mapping, table, key, reason, state, older_than, newer_than, limit",
			}
		}
		if err != nil {
			return f, &Error{Kind: KindInvalid, Reason: "parameter " + key + ": " + err.Error()}
		}
	}
	if f.Limit < 1 || f.Limit > maxLimit {
		return f, &Error{Kind: KindInvalid, Reason: "limit must be from 1 to " + strconv.Itoa(maxLimit)}
	}
	return f, f.check()
}

func (f *LetterFilter) check() error {
	switch {
	case f.State != "" && !slices.Contains([]LetterState{LetterOpen, LetterSuperseded, LetterReplaced, LetterUnwanted}, f.State):
		return &Error{Kind: KindInvalid, Reason: "state " + strconv.Quote(string(f.State)), Solution: "there are open, superseded, replaced and unwanted"}
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
	list, limit := LetterList{Letters: []Letter{}}, f.Limit
	f.Limit++ // one more says whether there are more
	for letter, err := range s.parts.DeadLetters.Letters(r.Context(), f) {
		if err != nil {
			s.fail(w, r, err)
			return
		}
		if len(list.Letters) == limit {
			list.More = true
			break
		}
		letter.Item, letter.Row, letter.Old = nil, nil, nil // they can be long, and a list is for choosing
		list.Letters = append(list.Letters, letter)
	}
	answer(w, http.StatusOK, list)
}

func (s *Server) showLetter(w http.ResponseWriter, r *http.Request) {
	letter, err := s.parts.DeadLetters.Letter(r.Context(), r.PathValue("id"))
	if err != nil {
		s.fail(w, r, err)
		return
	}
	answerOneLine(w, http.StatusOK, letter)
}

// exportLetters writes every letter that the filter selects as one line of JSON.
func (s *Server) exportLetters(w http.ResponseWriter, r *http.Request) {
	f, err := parseFilter(r.URL.Query())
	if err != nil {
		s.fail(w, r, err)
		return
	}
	f.Limit = 0
	w.Header().Set("Content-Type", "application/jsonl")
	writer, encoder := http.NewResponseController(w), json.NewEncoder(w)
	encoder.SetEscapeHTML(false)
	for letter, err := range s.parts.DeadLetters.Letters(r.Context(), f) {
		if err != nil {
			s.breakOff(writer, err)
		}
		if err := encoder.Encode(&letter); err != nil {
			return // the client has gone
		}
		_ = writer.SetWriteDeadline(time.Now().Add(writeTimeout))
	}
}

// breakOff ends a response whose status is sent already in a way that its reader cannot take for the whole.
func (s *Server) breakOff(w *http.ResponseController, err error) {
	s.logger.Error("export of dead letters broken off", "err", err)
	_ = w.Flush()
	panic(http.ErrAbortHandler) //nolint:forbidigo // net/http has no other way
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
	retried, err := s.parts.DeadLetters.Retry(ctx, request.Selection, request.Force)
	if err != nil && ctx.Err() == nil {
		s.fail(w, r, err)
		return
	}
	s.logger.Info("dead letters retried", "count", len(retried), "force", request.Force)
	answer(w, http.StatusOK, RetryAnswer{Letters: retried, Unfinished: err != nil})
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
	return which.Filter.check()
}
