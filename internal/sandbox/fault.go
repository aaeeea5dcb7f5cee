package sandbox

import (
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/cdcsync/cdcsync/internal/problem"
)

// Kind of a fault.
type Kind string

// The kinds. Those above the line are about requests, those below about the items in them.
const (
	Status       Kind = "status"        // answers Status, Body and RetryAfter
	Delay        Kind = "delay"         // waits Delay, then goes on
	Hang         Kind = "hang"          // answers nothing until the client gives up, the fault is cleared or the sandbox ends
	ConnReset    Kind = "reset"         // TCP RST
	HalfClose    Kind = "half_close"    // closes its own half of the connection without an answer, and goes on reading
	Truncate     Kind = "truncate"      // sends half of the answer's body, then closes; always after processing
	RevokeTokens Kind = "revoke_tokens" // the vendor's tokens are void from this request on

	Reject         Kind = "reject"          // the item fails: Fanbase success false or failed, Fanatics nok, StopChurn 400 for the request
	RejectAccount  Kind = "reject_account"  // fanbase_batch: the item succeeds, its SSO account fails
	OutOfOrder     Kind = "out_of_order"    // item results in another order
	MissingResults Kind = "missing_results" // the answer lacks item results: Share of them, one when there is no share
)

var kinds = []Kind{Status, Delay, Hang, ConnReset, HalfClose, Truncate, RevokeTokens, Reject, RejectAccount, OutOfOrder, MissingResults}

// Fault is something that goes wrong on demand.
type Fault struct {
	ID int `json:"id"`
	// Endpoint that it is for, such as fanbase_batch, or the beginning of names, such as fanbase; empty means all.
	Endpoint string `json:"endpoint,omitempty"`
	Kind     Kind   `json:"kind"`
	// Count ends the fault after so many requests (items, for reject and reject_account); 0 means never.
	Count int `json:"count,omitempty"`
	// Share of the requests that it hits, from 0 to 1; 0 means all. Of items it hits always the same ones.
	Share float64 `json:"share,omitempty"`
	// Contains limits it to requests, or items, whose body has this text.
	Contains string `json:"contains,omitempty"`
	// MinBytes limits it to requests of at least so many bytes.
	MinBytes int `json:"min_bytes,omitempty"`
	// AfterProcessing: the request is taken first, so that sending it again makes a duplicate. Truncate always is so.
	AfterProcessing bool `json:"after_processing,omitempty"`

	Status     int      `json:"status,omitempty"`      // status: HTTP status
	Body       string   `json:"body,omitempty"`        // status: sent as it is; empty gives the vendor's own failure body
	RetryAfter string   `json:"retry_after,omitempty"` // status: the header, seconds or an HTTP date
	Location   string   `json:"location,omitempty"`    // status: the header of a redirect
	Gzip       bool     `json:"gzip,omitempty"`        // status: the body in gzip, whatever the client accepts
	Delay      Duration `json:"delay,omitempty"`       // delay: how long
	Message    string   `json:"message,omitempty"`     // reject, reject_account: the vendor's words

	// Hits counts what it hit so far.
	Hits int `json:"hits"`

	cleared chan struct{} // closed when the fault is removed
}

// Duration is written as "1.5s" in JSON.
type Duration time.Duration

// MarshalJSON writes the duration as a string.
func (d Duration) MarshalJSON() ([]byte, error) { return json.Marshal(time.Duration(d).String()) }

// UnmarshalJSON reads what time.ParseDuration takes.
func (d *Duration) UnmarshalJSON(text []byte) error {
	var s string
	if err := json.Unmarshal(text, &s); err != nil {
		return errors.New(`a duration is a string such as "1.5s"`)
	}
	parsed, err := time.ParseDuration(s)
	*d = Duration(parsed)
	return err
}

func (f *Fault) validate() error {
	if !slices.Contains(kinds, f.Kind) {
		names := make([]string, len(kinds))
		for i, k := range kinds {
			names[i] = string(k)
		}
		return fmt.Errorf("unknown kind %q; %s", f.Kind, problem.Nearest(string(f.Kind), names))
	}
	if !slices.ContainsFunc(endpoints, func(e endpoint) bool { return strings.HasPrefix(e.name, f.Endpoint) }) {
		names := make([]string, len(endpoints))
		for i, e := range endpoints {
			names[i] = e.name
		}
		return fmt.Errorf("no endpoint's name begins with %q; known are: %s", f.Endpoint, strings.Join(names, ", "))
	}
	switch {
	case f.Share < 0 || f.Share > 1:
		return errors.New("share is from 0 to 1")
	case f.Count < 0, f.MinBytes < 0, f.Delay < 0:
		return errors.New("count, min_bytes and delay are not negative")
	case f.Kind == Status && (f.Status < 200 || f.Status > 599):
		return errors.New("status is from 200 to 599")
	case f.Kind == Delay && f.Delay == 0:
		return errors.New("a delay needs delay")
	}
	return nil
}

// after says whether the fault comes after the request was taken.
func (f *Fault) after() bool { return f.AfterProcessing || f.Kind == Truncate }

// ends says whether the fault takes the place of the answer.
func (f *Fault) ends() bool {
	return slices.Contains([]Kind{Status, Hang, ConnReset, HalfClose, Truncate}, f.Kind)
}

// onItems says whether the fault is asked for item by item.
func (f *Fault) onItems() bool { return f.Kind == Reject || f.Kind == RejectAccount }

// faults are those that are set, in the order in which they were.
type faults struct {
	mu     sync.Mutex
	list   []*Fault
	last   int
	random *rand.Rand
	salt   uint64
}

func (fs *faults) seed(seed uint64) {
	fs.random, fs.salt = rand.New(rand.NewPCG(seed, 0)), seed //nolint:gosec // not for secrets
}

// AddFault sets a fault and returns its id.
func (s *Server) AddFault(f Fault) (int, error) {
	if err := f.validate(); err != nil {
		return 0, fmt.Errorf("fault: %w", err)
	}
	fs := &s.faults
	fs.mu.Lock()
	defer fs.mu.Unlock()
	fs.last++
	f.ID, f.Hits, f.cleared = fs.last, 0, make(chan struct{})
	fs.list = append(fs.list, &f)
	return f.ID, nil
}

// Faults lists the faults that are set, also those whose count is used up.
func (s *Server) Faults() []Fault {
	s.faults.mu.Lock()
	defer s.faults.mu.Unlock()
	list := make([]Fault, len(s.faults.list))
	for i, f := range s.faults.list {
		list[i] = *f
	}
	return list
}

// ClearFaults removes the faults with the ids, or all when none is given, and says how many it removed. What hangs is let go.
func (s *Server) ClearFaults(ids ...int) int {
	s.faults.mu.Lock()
	defer s.faults.mu.Unlock()
	before := len(s.faults.list)
	s.faults.list = slices.DeleteFunc(s.faults.list, func(f *Fault) bool {
		if len(ids) > 0 && !slices.Contains(ids, f.ID) {
			return false
		}
		close(f.cleared)
		return true
	})
	return before - len(s.faults.list)
}

// take returns the faults that hit a request, up to the first that ends it. They are counted.
func (fs *faults) take(endpoint string, body []byte) []*Fault {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	var hit []*Fault
	for _, f := range fs.list {
		if f.onItems() || !f.matches(endpoint, body) || len(body) < f.MinBytes {
			continue
		}
		if f.Kind != MissingResults && f.Share > 0 && fs.random.Float64() >= f.Share {
			continue
		}
		f.Hits++
		hit = append(hit, f)
		if f.ends() {
			return hit
		}
	}
	return hit
}

// matches says whether the fault is for the endpoint and the body, and not used up.
func (f *Fault) matches(endpoint string, body []byte) bool {
	return strings.HasPrefix(endpoint, f.Endpoint) && (f.Count == 0 || f.Hits < f.Count) &&
		(f.Contains == "" || strings.Contains(string(body), f.Contains))
}

// rejects asks whether an item is to fail, and with which words. A share hits the same keys every time.
func (fs *faults) rejects(kind Kind, endpoint, key string, item []byte) (message string, hit bool) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	for _, f := range fs.list {
		if f.Kind != kind || !f.matches(endpoint, item) || f.Share > 0 && fs.lot(f.ID, key) >= f.Share {
			continue
		}
		f.Hits++
		if f.Message != "" {
			return f.Message, true
		}
		return "rejected by a fault", true
	}
	return "", false
}

// lot is a number from 0 to 1 that is always the same for a key.
func (fs *faults) lot(id int, key string) float64 {
	h := fnv.New64a()
	fmt.Fprintf(h, "%d/%d/%s", fs.salt, id, key)
	return rand.New(rand.NewPCG(h.Sum64(), 0)).Float64() //nolint:gosec // not for secrets
}

// shuffle puts results in another order: whenever there are two, the order differs.
func (fs *faults) shuffle(results []any) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if len(results) < 2 {
		return
	}
	first := results[0]
	fs.random.Shuffle(len(results), func(i, j int) { results[i], results[j] = results[j], results[i] })
	if results[0] == first {
		slices.Reverse(results)
	}
}

// drop leaves out the fault's share of the results, but at least one.
func (fs *faults) drop(results []any, f *Fault) []any {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	for n := max(1, int(f.Share*float64(len(results)))); n > 0 && len(results) > 0; n-- {
		i := fs.random.IntN(len(results))
		results = slices.Delete(results, i, i+1)
	}
	return results
}

// inject carries out a fault on a request, and reports whether it took the place of the answer.
func (s *Server) inject(w http.ResponseWriter, r *request, f *Fault, a *answer) bool {
	switch f.Kind {
	case Delay:
		wait := time.NewTimer(time.Duration(f.Delay))
		defer wait.Stop()
		select {
		case <-wait.C:
		case <-f.cleared:
		case <-r.http.Context().Done():
		}
		return false
	case RevokeTokens:
		s.revoke(r.endpoint.vendor)
		return false
	case Status:
		s.injectStatus(w, r, f, a)
		return true
	case Hang:
		a.status = 0
		select {
		case <-f.cleared:
		case <-r.http.Context().Done():
		}
		breakConnection(w, func(conn net.Conn) { conn.Close() })
		return true
	case ConnReset:
		a.status = 0
		breakConnection(w, reset)
		return true
	case HalfClose:
		a.status = 0
		breakConnection(w, halfClose)
		return true
	case Truncate:
		truncate(w, a)
		return true
	case Reject, RejectAccount, OutOfOrder, MissingResults: // the endpoint's and edit's
		return false
	}
	return false
}

func (s *Server) revoke(vendor string) {
	switch vendor {
	case "Fanbase":
		s.fanbaseTokens.revoke()
	case "Fanatics":
		s.fanaticsTokens.revoke()
	}
}

func (s *Server) injectStatus(w http.ResponseWriter, r *request, f *Fault, a *answer) {
	a.status, a.reason = f.Status, "fault"
	if f.RetryAfter != "" {
		w.Header().Set("Retry-After", f.RetryAfter)
	}
	if f.Location != "" {
		w.Header().Set("Location", f.Location)
	}
	if f.Gzip {
		w.Header().Set("Content-Encoding", "gzip")
		w.WriteHeader(f.Status)
		zipped := gzip.NewWriter(w)
		_, _ = io.WriteString(zipped, f.Body)
		_ = zipped.Close()
		return
	}
	if f.Body == "" {
		writeJSON(w, f.Status, r.endpoint.failure(f.Status, "injected fault"))
		return
	}
	w.WriteHeader(f.Status)
	_, _ = io.WriteString(w, f.Body)
}

// breakConnection takes the connection from net/http, and lets break end it.
func breakConnection(w http.ResponseWriter, end func(net.Conn)) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil { // a recorder in a test, or HTTP/2: there is no connection of our own
		http.Error(w, "sandbox: this connection cannot be broken", http.StatusInternalServerError)
		return
	}
	end(conn)
}

// tcp is the connection below TLS, if any.
func tcp(conn net.Conn) *net.TCPConn {
	if wrapped, ok := conn.(interface{ NetConn() net.Conn }); ok {
		conn = wrapped.NetConn()
	}
	below, _ := conn.(*net.TCPConn)
	return below
}

// reset closes with RST and not with FIN.
func reset(conn net.Conn) {
	if below := tcp(conn); below != nil {
		_ = below.SetLinger(0)
		below.Close()
		return
	}
	conn.Close()
}

// halfClose sends FIN, and reads until the client closes too.
func halfClose(conn net.Conn) {
	const patience = 10 * time.Second
	defer conn.Close()
	if below := tcp(conn); below != nil {
		_ = below.CloseWrite()
		_ = below.SetReadDeadline(time.Now().Add(patience))
		_, _ = io.Copy(io.Discard, below)
	}
}

// truncate promises the whole answer and sends half of it.
func truncate(w http.ResponseWriter, a *answer) {
	text, err := json.Marshal(a.body)
	if err != nil {
		http.Error(w, "sandbox: "+err.Error(), http.StatusInternalServerError)
		return
	}
	breakConnection(w, func(conn net.Conn) {
		defer conn.Close()
		head := "HTTP/1.1 " + strconv.Itoa(a.status) + " " + http.StatusText(a.status) + "\r\nContent-Type: application/json; charset=utf-8\r\nContent-Length: " +
			strconv.Itoa(len(text)) + "\r\n\r\n"
		_, _ = io.WriteString(conn, head+string(text[:len(text)/2]))
	})
}
