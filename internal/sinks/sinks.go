// Package sinks speaks to the vendors: one file per endpoint, and the HTTP, the authentication and the error classes that they share.
//
// A sink makes one request when it is asked to and reports what became of each item. It does not retry, wait or remember:
// that is delivery's.
package sinks

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/cdcsync/cdcsync/internal/cdc"
	"github.com/cdcsync/cdcsync/internal/secret"
)

// The types of sinks, as the configuration names them.
const (
	TypeStopChurn    = "stopchurn"
	TypeFanbaseQueue = "fanbase_queue"
	TypeFanbaseBatch = "fanbase_batch"
	TypeFanatics     = "fanatics_approvals"
)

// Sink is one endpoint of a vendor. Its methods are safe for concurrent use. Depending on the type it has also
//
//	Covers(newer, older []byte) bool                                fanatics_approvals: whether an item makes an older one of its account needless
//	Confirm(ctx context.Context, tracking string) (Outcome, error)  fanbase_queue: what became of an Accepted item
//	Check(ctx context.Context) []string                             what an operator should know at start; all but stopchurn
type Sink interface {
	// Type is one of the Type constants.
	Type() string
	Limits() Limits
	// Deliver sends the items in one request and returns one outcome per item, in order. An error is a *RequestError or ctx's,
	// and means that nothing is known about any of them. Requests that carry the same items have the same idempotencyKey.
	// The bodies are not read any more when it has returned; the outcomes are not written to.
	Deliver(ctx context.Context, items []Item, idempotencyKey string) ([]Outcome, error)
	// Close ends the idle connections.
	Close()
}

// Config of one sink. What does not belong to its type is ignored.
type Config struct {
	Name        string // in the configuration; the label of metrics
	Type        string
	URL         string        // the vendor's host, with a path in front of the endpoint's where there is one
	Timeout     time.Duration // of one attempt, from the first byte sent to the last byte read; 0 means 30 s
	Concurrency int           // how many requests are made at a time: as many connections are kept

	APIKey          secret.String // stopchurn
	Auth            Auth          // the others
	SystemID        int64         // fanbase_batch
	Confirm         Confirm       // fanbase_queue; 0 means ConfirmProcessed
	InviteOnlyTiers []string      // fanatics_approvals: the tier ids that may be sent; empty allows any
}

// Auth says where a token comes from and for whom.
type Auth struct {
	URL          string
	ClientID     string
	ClientSecret secret.String
	Scope        string // fanatics_approvals; empty asks for none
}

// Confirm says when an item of fanbase_queue counts as delivered.
type Confirm uint8

// The confirmations.
const (
	ConfirmProcessed Confirm = iota + 1 // when Fanbase has processed it
	ConfirmAccepted                     // when Fanbase has queued it
)

// Deps is what the sinks of one daemon share.
type Deps struct {
	Tokens     *Tokens // needed by all types but stopchurn
	Version    string  // of cdcsync, for the User-Agent
	Registerer prometheus.Registerer
	Transport  http.RoundTripper // in place of the sink's own connections; nil in production
}

// New makes a sink. It makes no request.
func New(cfg Config, deps Deps) (Sink, error) {
	cfg.Timeout = cmp.Or(cfg.Timeout, defaultTimeout)
	switch cfg.Type {
	case TypeStopChurn:
		return newStopChurn(cfg, deps)
	case TypeFanbaseQueue:
		return newFanbaseQueue(cfg, deps)
	case TypeFanbaseBatch:
		return newFanbaseBatch(cfg, deps)
	case TypeFanatics:
		return newFanatics(cfg, deps)
	}
	return nil, fmt.Errorf("sink %s: unknown type %q", cfg.Name, cfg.Type)
}

// Item is one rendered change, as a sink sends it.
type Item struct {
	// ID is the same whenever the same change is rendered by the same mapping for the same sink.
	ID string
	Op cdc.Op
	// Body is the JSON value that the mapping rendered, without what the sink puts around it.
	Body []byte
}

// Limits says how large a request may be. The bytes of a request are Frame + the sum over its items of Overhead + len(Body).
type Limits struct {
	Items    int // at most so many items in a request; 0 means that only the configuration limits it
	Frame    int // bytes around all items
	Overhead int // bytes around each item, at most
}

// Status is what became of an item.
type Status uint8

// The statuses.
const (
	Delivered Status = iota + 1 // the vendor has it
	Accepted                    // the vendor has queued it, and Outcome.Tracking asks for the result later
	Retry                       // not taken now; the same item may be sent again
	Rejected                    // will not be taken as it is, however often it is sent
)

// Outcome of one item.
type Outcome struct {
	Status   Status
	After    time.Duration // Retry: not before so long from now; 0 leaves it to the caller
	Reason   string        // Retry and Rejected: the vendor's words, bounded; they may quote the row, see Masked
	Code     string        // the vendor's code, where there is one
	Trace    string        // the vendor's id for the call (Fanatics rc), where there is one
	Tracking string        // Accepted: what Confirm takes
	Shared   bool          // Rejected: the verdict is on several items of the request together; alone, each may be taken
	Remark   string        // worth recording although the item was delivered
	Account  string        // Delivered: why the login account that the item asks for was not created (Fanbase)
}

// Class says what to do about a request that failed as a whole.
type Class uint8

// The classes.
const (
	ClassTransient    Class = iota + 1 // network, time-out, 408, 425, 5xx: the same again, later
	ClassThrottled                     // 429: the same again, later and slower
	ClassUnauthorized                  // 401 with a renewed token, 403, bad credentials: an operator has to act; try again now and then
	ClassTooLarge                      // 413: the same in halves
	ClassBadRequest                    // 400 without item results: something in it is wrong, bisect
	ClassRejected                      // 409: something in it will not be taken as it is, bisect
	// ClassEndpoint is an answer that is not the documented endpoint's: a wrong path, host or port, something in between, or a success that
	// is not understood. An operator has to act; try again now and then.
	ClassEndpoint
)

// RequestError is a request that failed as a whole: nothing is known about any of its items, except in ClassBadRequest and
// ClassRejected, where none was taken. It never holds a credential. Reason may quote a row when the vendor's words do: it is
// for dead letters and for whoever may see rows. Error masks it, and may be logged.
type RequestError struct {
	Class  Class
	Status int           // HTTP status; 0 when there was no answer
	After  time.Duration // at least so long before the next request (Retry-After); 0 when the vendor did not say
	Reason string        // the vendor's words, bounded, or the network's
	Code   string
	Trace  string
	Err    error // the cause, when there was no answer

	// Answer is how the answer begins, for an operator: it may quote rows, and is not for logs.
	Answer    string
	Unsent    bool // no item left: the failure says nothing about them
	Timeout   bool // the answer took too long, which fewer items may mend
	Uncertain bool // the vendor may have taken the items, and sending them again would make others: as seldom as possible
}

func (e *RequestError) Error() string {
	text := "no answer"
	if e.Status != 0 {
		text = fmt.Sprintf("status %d %s", e.Status, http.StatusText(e.Status))
	}
	if e.Reason != "" {
		text += ": " + Masked(e.Reason)
	}
	if e.Code != "" {
		text += " (code " + e.Code + ")"
	}
	if e.Trace != "" {
		text += " (rc " + e.Trace + ")"
	}
	return text
}

// Logged is what a log may hold of the error: none of the vendor's words, which may quote a row, however they are masked.
func (e *RequestError) Logged() string {
	if e.Status == 0 && e.Err == nil { // the words are ours, or of an answer that could not be read
		return "no answer that can be used"
	}
	text := "no answer"
	if e.Status != 0 {
		text = fmt.Sprintf("status %d %s", e.Status, http.StatusText(e.Status))
	} else {
		text += ": " + Masked(e.Reason) // the network's words
	}
	if code := Plain(e.Code); code != "" {
		text += " (code " + code + ")"
	}
	if trace := Plain(e.Trace); trace != "" {
		text += " (rc " + trace + ")"
	}
	return text
}

// Plain is a vendor's code or trace id, or nothing where it is none: a log holds no words of a vendor.
func Plain(id string) string {
	const longest = 64
	if len(id) > longest {
		return ""
	}
	for _, r := range id {
		if (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && !strings.ContainsRune("-_.:/", r) {
			return ""
		}
	}
	return id
}

func (e *RequestError) Unwrap() error { return e.Err }
