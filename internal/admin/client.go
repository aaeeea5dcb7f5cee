package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"syscall"
	"time"

	"github.com/cdcsync/cdcsync/internal/secret"
)

// Client asks a running daemon. Its errors are *Error. It is safe for concurrent use.
type Client struct {
	base  string
	token secret.String
	http  *http.Client
}

// NewClient asks the daemon whose admin listener is at base, such as http://127.0.0.1:8484.
func NewClient(base string, token secret.String) *Client {
	return &Client{
		base:  base,
		token: token,
		// No time-out of the whole: an export takes as long as it is long. The context bounds it.
		http: &http.Client{Transport: &http.Transport{
			DialContext:           (&net.Dialer{Timeout: 3 * time.Second}).DialContext,
			ResponseHeaderTimeout: writeTimeout,
		}},
	}
}

// Close ends idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Status is the daemon's state.
func (c *Client) Status(ctx context.Context) (Status, error) {
	var status Status
	return status, c.do(ctx, http.MethodGet, "/api/v1/status", nil, &status)
}

// Pause stops delivery to a sink.
func (c *Client) Pause(ctx context.Context, sink string) error {
	return c.do(ctx, http.MethodPost, "/api/v1/sinks/"+url.PathEscape(sink)+"/pause", nil, nil)
}

// Resume lets delivery to a sink go on.
func (c *Client) Resume(ctx context.Context, sink string) error {
	return c.do(ctx, http.MethodPost, "/api/v1/sinks/"+url.PathEscape(sink)+"/resume", nil, nil)
}

// DeadLetters lists the letters that f selects, without items and rows; at most 100 unless f.Limit says otherwise.
func (c *Client) DeadLetters(ctx context.Context, f LetterFilter) (LetterList, error) {
	var list LetterList
	return list, c.do(ctx, http.MethodGet, "/api/v1/dead-letters?"+f.query().Encode(), nil, &list)
}

// DeadLetter is one letter, whole.
func (c *Client) DeadLetter(ctx context.Context, id string) (Letter, error) {
	var letter Letter
	return letter, c.do(ctx, http.MethodGet, "/api/v1/dead-letters/"+url.PathEscape(id), nil, &letter)
}

// ExportDeadLetters writes the letters that f selects to w, one line of JSON each. After an error what was written is not all.
func (c *Client) ExportDeadLetters(ctx context.Context, f LetterFilter, w io.Writer) error {
	f.Limit = 0
	response, err := c.send(ctx, http.MethodGet, "/api/v1/dead-letters/export?"+f.query().Encode(), nil)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if _, err := io.Copy(w, response.Body); err != nil {
		return &Error{Kind: KindUnavailable, Reason: "export broken off: " + err.Error(), Solution: "what was written is incomplete", cause: err}
	}
	return nil
}

// Retry sends dead letters again with the mapping as it is now, and says for each what became of that.
func (c *Client) Retry(ctx context.Context, which Selection, force bool) (RetryAnswer, error) {
	var result RetryAnswer
	return result, c.do(ctx, http.MethodPost, "/api/v1/dead-letters/retry", retryRequest{Selection: which, Force: force}, &result)
}

// Discard forgets dead letters and returns how many.
func (c *Client) Discard(ctx context.Context, which Selection) (int, error) {
	var result Discarded
	err := c.do(ctx, http.MethodPost, "/api/v1/dead-letters/discard", which, &result)
	return result.Discarded, err
}

// Backfills lists those that run, wait or have ended.
func (c *Client) Backfills(ctx context.Context) ([]Backfill, error) {
	var backfills []Backfill
	return backfills, c.do(ctx, http.MethodGet, "/api/v1/backfills", nil, &backfills)
}

// StartBackfill begins one.
func (c *Client) StartBackfill(ctx context.Context, what StartBackfill) (Backfill, error) {
	var backfill Backfill
	return backfill, c.do(ctx, http.MethodPost, "/api/v1/backfills", what, &backfill)
}

// PauseBackfill stops one until it is resumed.
func (c *Client) PauseBackfill(ctx context.Context, id string) error {
	return c.do(ctx, http.MethodPost, "/api/v1/backfills/"+url.PathEscape(id)+"/pause", nil, nil)
}

// ResumeBackfill lets one go on.
func (c *Client) ResumeBackfill(ctx context.Context, id string) error {
	return c.do(ctx, http.MethodPost, "/api/v1/backfills/"+url.PathEscape(id)+"/resume", nil, nil)
}

// CancelBackfill ends one; what it sent stays sent.
func (c *Client) CancelBackfill(ctx context.Context, id string) error {
	return c.do(ctx, http.MethodPost, "/api/v1/backfills/"+url.PathEscape(id)+"/cancel", nil, nil)
}

// do sends request, if any, as JSON and reads the answer into reply, if any.
func (c *Client) do(ctx context.Context, method, path string, request, reply any) error {
	response, err := c.send(ctx, method, path, request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if reply == nil {
		return nil
	}
	if err := json.NewDecoder(response.Body).Decode(reply); err != nil {
		return c.notOurs(fmt.Errorf("answer of %s %s: %w", method, path, err))
	}
	return nil
}

// send returns an answer of the 200s, whose body the caller closes; any other becomes an *Error.
func (c *Client) send(ctx context.Context, method, path string, request any) (*http.Response, error) {
	var body bytes.Buffer
	if request != nil {
		if err := json.NewEncoder(&body).Encode(request); err != nil {
			return nil, fmt.Errorf("request of %s %s: %w", method, path, err)
		}
	}
	r, err := http.NewRequestWithContext(ctx, method, c.base+path, &body)
	if err != nil {
		return nil, &Error{Kind: KindInvalid, Reason: "admin listener at " + c.base + ": " + err.Error(), cause: err}
	}
	if method == http.MethodPost {
		r.Header.Set("Content-Type", "application/json")
	}
	if !c.token.IsZero() {
		r.Header.Set("Authorization", "Bearer "+c.token.Reveal())
	}
	response, err := c.http.Do(r)
	if err != nil {
		return nil, c.unreachable(err)
	}
	if response.StatusCode >= 200 && response.StatusCode < 300 {
		return response, nil
	}
	defer response.Body.Close()
	return nil, c.refused(response)
}

func (c *Client) unreachable(err error) error {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return &Error{Kind: KindUnavailable, Reason: "no answer from " + c.base + " in time", cause: err}
	}
	if errors.Is(err, syscall.ECONNREFUSED) {
		return &Error{
			Kind: KindUnavailable, Reason: "nothing listens at " + c.base + ": is the daemon running?",
			Solution: `start it with "cdcsync run", or check admin.listen in the configuration`, cause: err,
		}
	}
	if inner := errors.Unwrap(err); inner != nil { // the URL around it says nothing that the address does not
		err = inner
	}
	return &Error{Kind: KindUnavailable, Reason: "no answer from " + c.base + ": " + err.Error(), cause: err}
}

const maxErrorBody = 64 << 10

func (c *Client) refused(response *http.Response) error {
	e := new(Error)
	if err := json.NewDecoder(io.LimitReader(response.Body, maxErrorBody)).Decode(e); err != nil || e.Reason == "" {
		return c.notOurs(errors.New(response.Status))
	}
	if e.Kind == KindUnauthorized {
		e.Solution = "the configuration's admin.token must be the one that the daemon was started with"
	}
	return e
}

// notOurs is for an answer that no cdcsync of this version gives.
func (c *Client) notOurs(err error) error {
	return &Error{
		Kind: KindUnavailable, Reason: "unexpected answer from " + c.base + ": " + err.Error(),
		Solution: "something other than this version of cdcsync listens there", cause: err,
	}
}
