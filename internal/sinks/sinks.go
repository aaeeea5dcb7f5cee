// Package sinks speaks to the vendors: one file per endpoint, and the HTTP, the authentication and the error classes that they share.
//
// A sink makes one request when it is asked to and reports what became of each item. It does not retry, wait or remember:
// that is delivery's.
package sinks

import (
	"time"

	"github.com/cdcsync/cdcsync/internal/cdc"
)

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
	Reason   string        // Retry and Rejected: the vendor's words, bounded
	Code     string        // the vendor's code, where there is one
	Trace    string        // the vendor's id for the call (Fanatics rc), where there is one
	Tracking string        // Accepted: what Confirm takes
	Remark   string        // worth recording although the item was delivered (Fanbase: the account was not created)
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
	ClassRejected                      // any other answer: will not be taken as it is
)

// RequestError is a request that failed as a whole: nothing is known about any of its items, except in ClassBadRequest and
// ClassRejected, where none was taken. It never holds a credential or a row's value.
type RequestError struct {
	Class  Class
	Status int           // HTTP status; 0 when there was no answer
	After  time.Duration // at least so long before the next request (Retry-After); 0 when the vendor did not say
	Reason string        // the vendor's words, bounded, or the network's
	Code   string
	Trace  string
	Err    error // the cause, when there was no answer
}
