package admin

import (
	"encoding/json"
	"errors"
	"net/http"
)

// Kind says whose turn it is after an error.
type Kind string

// The kinds.
const (
	KindInvalid      Kind = "invalid"      // the request makes no sense as it is
	KindNotFound     Kind = "not_found"    // what it names does not exist
	KindConflict     Kind = "conflict"     // not in the state that the thing is in
	KindUnauthorized Kind = "unauthorized" // token missing or wrong
	KindUnsupported  Kind = "unsupported"  // this daemon cannot do it
	KindUnavailable  Kind = "unavailable"  // the daemon, or what it needs, does not answer
	KindInternal     Kind = "internal"     // anything else
)

// Error is what the API answers when it refuses, and what Client returns. Implementations of the interfaces of this
// package return it to choose the kind; any other error is KindInternal.
type Error struct {
	Kind     Kind   `json:"kind"`
	Reason   string `json:"error"`
	Solution string `json:"solution,omitempty"`
	cause    error
}

func (e *Error) Error() string {
	if e.Solution == "" {
		return e.Reason
	}
	return e.Reason + "; " + e.Solution
}

func (e *Error) Unwrap() error { return e.cause }

// IsKind says whether err is an *Error of the kind.
func IsKind(err error, kind Kind) bool {
	var e *Error
	return errors.As(err, &e) && e.Kind == kind
}

func (k Kind) status() int {
	switch k {
	case KindInvalid:
		return http.StatusBadRequest
	case KindNotFound:
		return http.StatusNotFound
	case KindConflict:
		return http.StatusConflict
	case KindUnauthorized:
		return http.StatusUnauthorized
	case KindUnsupported:
		return http.StatusNotImplemented
	case KindUnavailable:
		return http.StatusServiceUnavailable
	case KindInternal:
	}
	return http.StatusInternalServerError
}

// fail answers with the error; one of our own making is logged too, because nobody may read the answer.
func (s *Server) fail(w http.ResponseWriter, r *http.Request, err error) {
	var e *Error
	if !errors.As(err, &e) {
		e = &Error{Kind: KindInternal, Reason: err.Error()}
	}
	if e.Kind == KindInternal && r.Context().Err() == nil {
		s.logger.Error("admin request failed", "method", r.Method, "path", r.URL.Path, "err", err)
	}
	if e.Kind == KindUnauthorized {
		w.Header().Set("WWW-Authenticate", `Bearer realm="cdcsync"`)
	}
	answer(w, e.Kind.status(), e)
}

func answer(w http.ResponseWriter, status int, value any) { answerIndented(w, status, value, "  ") }

// answerOneLine is for what holds a row: indenting makes of n levels of nesting n² bytes.
func answerOneLine(w http.ResponseWriter, status int, value any) {
	answerIndented(w, status, value, "")
}

func answerIndented(w http.ResponseWriter, status int, value any, indent string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	encoder := json.NewEncoder(w)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", indent)
	_ = encoder.Encode(value) // the client has gone: nobody is left to tell
}
