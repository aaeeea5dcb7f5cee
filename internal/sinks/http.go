package sinks

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/cdcsync/cdcsync/internal/secret"
)

const (
	defaultTimeout = 30 * time.Second
	// answerLimit bounds what is read of an answer: the largest documented, 200 accounts, is 30 kB.
	answerLimit = 1 << 20
	// answerPerItem is added for each item, so that a large batch's item results fit.
	answerPerItem = 2 << 10
)

// caller makes the requests of one sink.
type caller struct {
	name      string
	base      *url.URL
	auth      authorizer
	timeout   time.Duration
	agent     string
	transport http.RoundTripper
	metrics   *metrics
}

// authorizer proves to the vendor who we are.
type authorizer interface {
	// authorize sets the header and returns the credential in it. Its error is a *RequestError or ctx's.
	authorize(ctx context.Context, header http.Header) (credential string, err error)
	// refused is told that the vendor did not take the credential, and says whether another one can be had.
	refused(credential string) bool
	// redact takes the credentials out of a text.
	redact(text string) string
}

func newCaller(cfg Config, deps Deps, auth authorizer) (*caller, error) {
	base, err := parseURL(cfg.URL)
	if err != nil {
		return nil, fmt.Errorf("sink %s: url: %w", cfg.Name, err)
	}
	transport := deps.Transport
	if transport == nil {
		transport = newConnections(cfg.Concurrency)
	}
	return &caller{
		name: cfg.Name, base: base, auth: auth, timeout: cfg.Timeout, agent: userAgent(deps.Version),
		transport: transport, metrics: newMetrics(deps.Registerer),
	}, nil
}

func parseURL(raw string) (*url.URL, error) {
	u, err := url.Parse(raw)
	switch {
	case err != nil:
		return nil, errors.New("is not a URL")
	case u.Scheme != "http" && u.Scheme != "https":
		return nil, errors.New("must begin with https:// or http://")
	case u.Host == "":
		return nil, errors.New("names no host")
	case u.User != nil:
		return nil, errors.New("must not hold a user or password")
	}
	return u, nil
}

func userAgent(version string) string { return "cdcsync/" + version }

// Close ends the idle connections.
func (c *caller) Close() { closeIdle(c.transport) }

func closeIdle(transport http.RoundTripper) {
	if t, ok := transport.(interface{ CloseIdleConnections() }); ok {
		t.CloseIdleConnections()
	}
}

// post sends the items' body and returns a 2xx answer that is whole. Any other answer, also a broken one, is an error, and comes along with it.
func (c *caller) post(ctx context.Context, path string, body *body, items int, idempotencyKey string) (*answer, error) {
	defer body.release()
	header := http.Header{"Content-Type": {"application/json"}}
	if idempotencyKey != "" {
		header.Set("Idempotency-Key", idempotencyKey)
	}
	return c.do(ctx, http.MethodPost, path, header, body, answerLimit+items*answerPerItem)
}

// read makes a GET request, and is otherwise like post.
func (c *caller) read(ctx context.Context, path string) (*answer, error) {
	return c.do(ctx, http.MethodGet, path, http.Header{}, nil, answerLimit)
}

// do makes the request, and once more with a new credential when the first is refused.
func (c *caller) do(ctx context.Context, method, path string, header http.Header, body *body, limit int) (*answer, error) {
	for renewed := false; ; renewed = true {
		credential, err := c.auth.authorize(ctx, header)
		if err != nil {
			return nil, err
		}
		got, err := c.attempt(ctx, method, path, header, body, limit)
		switch {
		case err != nil:
			return nil, err
		case got.status == http.StatusUnauthorized && !renewed && c.auth.refused(credential):
			continue
		case got.status == http.StatusForbidden:
			c.auth.refused(credential) // a permission granted by the next attempt is in a new token only
			return got, c.failure(got, credential)
		case !got.ok():
			return got, c.failure(got, credential)
		case got.cut != nil:
			return got, c.noAnswer(got.cut)
		}
		return got, nil
	}
}

func (c *caller) attempt(ctx context.Context, method, path string, header http.Header, body *body, limit int) (*answer, error) {
	attempt, cancel := context.WithTimeoutCause(ctx, c.timeout, &timeoutError{c.timeout})
	defer cancel()
	req, err := http.NewRequestWithContext(attempt, method, c.base.JoinPath(path).String(), http.NoBody)
	if err != nil {
		return nil, c.noAnswer(err)
	}
	req.Header = header.Clone()
	req.Header.Set("User-Agent", c.agent)
	req.Header.Set("Accept", "application/json")
	if body != nil {
		req.ContentLength = body.size
		req.GetBody = func() (io.ReadCloser, error) { return body.open(), nil }
		req.Body = body.open()
		c.metrics.bytes.WithLabelValues(c.name).Add(float64(body.size))
	}
	start := time.Now()
	got, err := exchange(c.transport, req, limit)
	c.metrics.seconds.WithLabelValues(c.name).Observe(time.Since(start).Seconds())
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if err != nil {
		renew(c.transport)
		c.metrics.requests.WithLabelValues(c.name, statusLabel(0)).Inc()
		return nil, c.noAnswer(err)
	}
	if got.cut != nil {
		renew(c.transport)
	}
	c.metrics.requests.WithLabelValues(c.name, statusLabel(got.status)).Inc()
	return got, nil
}

// timeoutError is the end of an attempt's time.
type timeoutError struct{ after time.Duration }

func (e *timeoutError) Error() string { return "no whole answer within " + e.after.String() }

// Timeout makes it a net.Error like those of the standard library.
func (e *timeoutError) Timeout() bool { return true }

// apiKey is a key that never changes, sent as a Bearer token.
type apiKey struct{ key secret.String }

func (a apiKey) authorize(_ context.Context, header http.Header) (string, error) {
	header.Set("Authorization", "Bearer "+a.key.Reveal())
	return a.key.Reveal(), nil
}

func (a apiKey) refused(string) bool { return false }

func (a apiKey) redact(text string) string { return redact(text, a.key.Reveal()) }

// fitsHeader is false for a credential with a line's end or the like in it, with which no request can be made.
func fitsHeader(credential string) bool {
	return !strings.ContainsFunc(credential, func(r rune) bool { return r < ' ' || r == 0x7f })
}

// redact replaces each secret, as it is and as a URL's query holds it.
func redact(text string, secrets ...string) string {
	for _, s := range secrets {
		if s == "" {
			continue
		}
		text = strings.ReplaceAll(text, s, "[redacted]")
		text = strings.ReplaceAll(text, url.QueryEscape(s), "[redacted]")
	}
	return text
}
