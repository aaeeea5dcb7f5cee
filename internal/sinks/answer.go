package sinks

import (
	"bytes"
	"compress/gzip"
	"compress/zlib"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
)

// answer is what the vendor said, whatever the status.
type answer struct {
	status int
	header http.Header
	body   []byte // decoded, without a byte order mark
	cut    error  // why the body is not whole: the connection broke
	opaque string // why the body cannot be read at all, as "is …"
}

// ok reports whether the status says success. Only with a body that is understood it is one.
func (a *answer) ok() bool { return a.status >= 200 && a.status <= 299 }

// exchange makes one round trip and reads at most limit bytes of the answer. The transport is used without http.Client, which
// follows redirects and puts the URL, query included, into its errors.
func exchange(transport http.RoundTripper, req *http.Request, limit int) (*answer, error) {
	req.Header.Set("Accept-Encoding", "identity") // answers are small
	resp, err := transport.RoundTrip(req)
	if err != nil {
		if cause := context.Cause(req.Context()); cause != nil {
			return nil, cause
		}
		return nil, err
	}
	defer resp.Body.Close()
	got := &answer{status: resp.StatusCode, header: resp.Header}
	got.body, got.cut = io.ReadAll(io.LimitReader(resp.Body, int64(limit)+1))
	if cause := context.Cause(req.Context()); got.cut != nil && cause != nil {
		got.cut = cause
	}
	got.decode(limit)
	return got, nil
}

// decode undoes an encoding that was not asked for, within the limit, and takes the byte order mark off.
func (a *answer) decode(limit int) {
	var reader io.Reader
	var err error
	encoding := strings.ToLower(strings.TrimSpace(a.header.Get("Content-Encoding")))
	switch {
	case a.cut != nil:
		return
	case encoding == "gzip", encoding == "x-gzip", bytes.HasPrefix(a.body, []byte{0x1f, 0x8b}):
		reader, err = gzip.NewReader(bytes.NewReader(a.body))
	case encoding == "deflate":
		reader, err = zlib.NewReader(bytes.NewReader(a.body))
	case encoding != "" && encoding != "identity":
		a.opaque = "has an encoding that was not asked for: " + bounded(encoding)
		return
	}
	if reader != nil && err == nil {
		var plain []byte
		if plain, err = io.ReadAll(io.LimitReader(reader, int64(limit)+1)); err == nil {
			a.body = plain
		}
	}
	if err != nil {
		a.opaque = "cannot be decoded as " + first(encoding, "gzip")
		return
	}
	if len(a.body) > limit {
		a.body, a.opaque = a.body[:limit], fmt.Sprintf("is longer than %d bytes", limit)
	}
	a.body = bytes.TrimPrefix(a.body, []byte("\xef\xbb\xbf"))
}

// read decodes the answer's JSON into v and returns "", or what the answer is instead of an object, as "is …". A list, a text and
// null are no object.
func (a *answer) read(v any) (instead string) {
	content := bytes.TrimSpace(a.body)
	switch {
	case a.opaque != "":
		return a.opaque
	case len(content) == 0:
		return "is empty"
	case a.html():
		return "is a page of HTML"
	case !json.Valid(content):
		return "is not JSON"
	case content[0] != '{':
		return "is not a JSON object"
	case json.Unmarshal(content, v) != nil:
		return "has a field of another type than documented"
	}
	return ""
}

// html reports whether the body is a page for people. A page comes from something in between, or from another server.
func (a *answer) html() bool {
	content := bytes.TrimSpace(a.body)
	if len(content) == 0 || content[0] == '{' || content[0] == '[' {
		return false
	}
	return strings.Contains(strings.ToLower(a.header.Get("Content-Type")), "html") || content[0] == '<'
}

// excerptBytes is how much of an answer an operator is shown.
const excerptBytes = 200

// excerpt is the beginning of the answer for an operator, in quotes where it is not plain text. It may hold values of rows: it is not
// for logs.
func (a *answer) excerpt(redact func(string) string) string {
	const enough = 4 << 10 // a secret that begins within the excerpt ends within these
	text := strings.TrimSpace(redact(string(a.body[:min(len(a.body), enough)])))
	if cut := text; len(cut) > excerptBytes {
		text = strings.ToValidUTF8(cut[:excerptBytes], "")
	}
	if strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) || r == unicode.ReplacementChar }) {
		return strconv.Quote(text)
	}
	return text
}

// outline is an excerpt without the values of a JSON answer, one of which may be a credential under another name than expected.
func (a *answer) outline(redact func(string) string) string {
	var members map[string]json.RawMessage
	switch content := bytes.TrimSpace(a.body); {
	case a.html() || len(content) == 0:
		return a.excerpt(redact)
	case json.Unmarshal(content, &members) != nil:
		return ""
	}
	names := slices.Sorted(maps.Keys(members))
	outlined := answer{body: []byte("a JSON object with " + strings.Join(names, ", "))}
	return outlined.excerpt(redact)
}

// notUnderstood is the error for a 2xx answer that does not say what became of the items.
func (c *caller) notUnderstood(got *answer, what string) *RequestError {
	return &RequestError{
		Class: ClassEndpoint, Status: got.status, Reason: "the answer " + what + ", which the vendor does not document: the sink's url may be wrong",
		Answer: got.excerpt(c.redact),
	}
}

// redact takes the credentials out of a text. A nil caller, as a sink without connections has, knows none.
func (c *caller) redact(text string) string {
	if c == nil {
		return text
	}
	return c.auth.redact(text)
}

// leniently counts an answer that is taken for a success although it says less than the vendor documents.
func (c *caller) leniently() {
	if c != nil {
		c.metrics.lenient.WithLabelValues(c.name).Inc()
	}
}

// failure is the error for an answer that is not 2xx.
func (c *caller) failure(got *answer, credential string) *RequestError {
	return refusal(got, c.base.Scheme, "the sink's url", func(text string) string { return redact(c.redact(text), credential) })
}

// refusal is the error for an answer that is not 2xx, by its status and by who seems to have answered.
func refusal(got *answer, scheme, where string, redact func(string) string) *RequestError {
	reason, code, trace := complaint(got.body)
	if got.html() {
		reason = ""
	}
	e := &RequestError{
		Class: classOf(got.status), Status: got.status, After: retryAfter(got.header, time.Now()),
		Reason: redact(reason), Code: code, Trace: trace, Answer: got.excerpt(redact),
		Timeout: got.status == http.StatusRequestTimeout || got.status == http.StatusGatewayTimeout,
	}
	switch {
	case got.status >= 300 && got.status <= 399:
		e.Reason = redirection(got.header, where)
	case scheme == "http" && got.status == http.StatusBadRequest && wantsTLS(got):
		e.Class, e.Reason = ClassEndpoint, "the server speaks HTTPS: begin "+where+" with https://"
	case got.html() && (e.Class == ClassBadRequest || e.Class == ClassRejected):
		e.Class = ClassEndpoint
		fallthrough
	case got.html() && e.Class == ClassEndpoint:
		e.Reason = "the answer is a page of HTML, not the vendor's: see " + where
	case e.Class == ClassEndpoint:
		e.Reason = first(e.Reason+"; see "+where, "see "+where)
	}
	return e
}

// wantsTLS reports whether a 400 says that the port is for HTTPS. The words are those of Go, nginx, Apache and Tomcat.
func wantsTLS(got *answer) bool {
	text := strings.ToLower(string(got.body))
	if json.Valid(got.body) {
		return false
	}
	return strings.Contains(text, "https") || strings.Contains(text, "ssl-enabled") || strings.Contains(text, "requires tls")
}

// classOf is what a status says by itself. Statuses that no vendor documents and that speak of the request line, of a proxy or of the
// connection come from a wrong endpoint, and not from the items.
func classOf(status int) Class {
	switch status {
	case http.StatusTooManyRequests:
		return ClassThrottled
	case http.StatusRequestTimeout, http.StatusTooEarly:
		return ClassTransient
	case http.StatusUnauthorized, http.StatusForbidden:
		return ClassUnauthorized
	case http.StatusRequestEntityTooLarge:
		return ClassTooLarge
	case http.StatusBadRequest, http.StatusUnprocessableEntity:
		return ClassBadRequest
	case http.StatusConflict:
		return ClassRejected
	case http.StatusNotImplemented, http.StatusHTTPVersionNotSupported, http.StatusNetworkAuthenticationRequired:
		return ClassEndpoint
	}
	if status >= 500 {
		return ClassTransient
	}
	return ClassEndpoint
}

// redirection names the host only: the rest of a Location may hold what is secret.
func redirection(header http.Header, where string) string {
	target, err := url.Parse(header.Get("Location"))
	if err != nil || target.Host == "" {
		return "the vendor redirects, which is not followed: see " + where
	}
	return "the vendor redirects to " + bounded(target.Scheme+"://"+target.Host) + ", which is not followed: see " + where
}

// noAnswer is the error for a request of which it is not known what became.
func (c *caller) noAnswer(err error) *RequestError {
	return transient(err, c.redact)
}

// transient is the error for a request without a usable answer: by default the same again, later. What no waiting changes, such as
// a certificate that does not fit, is the endpoint's.
func transient(err error, redact func(string) string) *RequestError {
	err = withoutURL(err)
	if text := err.Error(); redact(text) != text {
		err = errors.New(redact(text))
	}
	e := &RequestError{Class: ClassTransient, Reason: bounded(err.Error()), Err: err}
	_, e.Timeout = errors.AsType[*timeoutError](err)
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "dial" || errors.Is(err, errProxy) {
		e.Unsent = true
	}
	if _, ok := errors.AsType[*proxyError](err); ok {
		e.Class, e.Unsent = ClassEndpoint, true
	}
	if wrong, hint := otherProtocol(err); wrong {
		e.Class, e.Unsent, e.Reason = ClassEndpoint, true, bounded(err.Error()+hint)
	}
	return e
}

// otherProtocol reports whether the other side is none that can ever answer: no TLS, no HTTP, or not who it should be. Some of these errors
// have only their text (net/http).
func otherProtocol(err error) (wrong bool, hint string) {
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return true, ""
	}
	if _, ok := errors.AsType[tls.AlertError](err); ok {
		return true, ""
	}
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "remote error" { // an alert of the other side
		return true, ""
	}
	if _, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		return true, ": the server does not speak HTTPS"
	}
	text := err.Error()
	switch {
	case strings.Contains(text, `\x15\x03`):
		return true, ": the server speaks HTTPS, begin the url with https://"
	case strings.Contains(text, "server gave HTTP response to HTTPS client"):
		return true, ": begin the url with http://, or see its port"
	case strings.Contains(text, "malformed HTTP"):
		return true, ": the server does not speak HTTP"
	}
	return false, ""
}

// errProxy is a proxy that makes no connection for now.
var errProxy = errors.New("the proxy makes no connection")

// proxyAnswered reads the answer to CONNECT, of which net/http would only keep the status's text.
func proxyAnswered(status int) error {
	switch {
	case status == http.StatusOK:
		return nil
	case status >= 500 || status == http.StatusTooManyRequests:
		return fmt.Errorf("%w: status %d", errProxy, status)
	}
	return &proxyError{status}
}

// proxyError is a proxy that refuses.
type proxyError struct{ status int }

func (e *proxyError) Error() string {
	return fmt.Sprintf("the proxy refuses the connection with status %d %s", e.status, http.StatusText(e.status))
}

// withoutURL is what happened without the URL, whose query and user information may hold a credential.
func withoutURL(err error) error {
	if u, ok := errors.AsType[*url.Error](err); ok {
		return withoutURL(u.Err)
	}
	return err
}
