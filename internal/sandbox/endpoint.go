package sandbox

import (
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net/http"
	"strings"
	"time"
)

// endpoint is one of the vendors' calls.
type endpoint struct {
	name    string // as sinks and faults name it
	vendor  string
	method  string
	path    string
	purpose string
	form    bool // takes a form or a query; JSON otherwise
	serve   func(*Server, *request) answer
	// failure is the body with which the vendor refuses a whole request.
	failure func(status int, reason string) any
}

var endpoints = []endpoint{
	{
		name: "stopchurn", vendor: "StopChurn", method: http.MethodPost, path: "/client-data/update",
		purpose: "rows: insert, update, delete", serve: (*Server).stopchurnUpdate, failure: stopchurnFailure,
	},
	{
		name: "fanbase_token", vendor: "Fanbase", method: http.MethodPost, path: "/api/token",
		purpose: "access token, credentials in the query", form: true, serve: (*Server).fanbaseToken, failure: oauthFailure,
	},
	{
		name: "fanbase_queue", vendor: "Fanbase", method: http.MethodPost, path: "/api/v1/integration/queue",
		purpose: "queue an update_fandata", serve: (*Server).fanbaseEnqueue, failure: fanbaseFailure,
	},
	{
		name: "fanbase_queue_status", vendor: "Fanbase", method: http.MethodGet, path: "/api/v1/integration/queue/{id}",
		purpose: "status of a queued object", serve: (*Server).fanbaseQueued, failure: fanbaseFailure,
	},
	{
		name: "fanbase_batch", vendor: "Fanbase", method: http.MethodPost, path: "/api/v2/IF_ID_Batch",
		purpose: "register fans in a batch", serve: (*Server).fanbaseBatch, failure: fanbaseFailure,
	},
	{
		name: "fanatics_token", vendor: "Fanatics", method: http.MethodPost, path: "/api/oauth2/token",
		purpose: "access token, credentials in a form", form: true, serve: (*Server).fanaticsToken, failure: oauthFailure,
	},
	{
		name: "fanatics_approvals", vendor: "Fanatics", method: http.MethodPost, path: "/v2/tier-points/accounts",
		purpose: "approvals of invite-only tiers", serve: (*Server).fanaticsAccounts, failure: fanaticsFailure,
	},
}

// request is what a vendor's endpoint gets.
type request struct {
	endpoint *endpoint
	http     *http.Request
	body     []byte
	number   uint64
	at       time.Time
	faults   []*Fault // that apply to this request; those on items are asked for one by one
}

// answer is what a vendor says.
type answer struct {
	status int
	body   any
	// Where the vendor answers item by item: results, in the order of the request, and what goes around them.
	results []any
	wrap    func(results []any) any

	accepted, rejected int    // items
	reason             string // why the request was refused as a whole
}

// refuse is the answer to a request that is refused as a whole.
func (r *request) refuse(status int, reason string) answer {
	return answer{status: status, body: r.endpoint.failure(status, reason), reason: reason}
}

func (s *Server) routes() http.Handler {
	mux := http.NewServeMux()
	for i := range endpoints {
		e := &endpoints[i]
		mux.HandleFunc(e.method+" "+e.path, func(w http.ResponseWriter, r *http.Request) { s.handle(w, r, e) })
	}
	s.routeControl(mux)
	return mux
}

// handle is the way of every vendor request: read, faults before, the endpoint itself, faults after, record.
func (s *Server) handle(w http.ResponseWriter, hr *http.Request, e *endpoint) {
	r := &request{endpoint: e, http: hr, at: time.Now()}
	body, failure := s.read(w, r)
	r.body = body
	r.number = s.nextRequest()
	r.faults = s.faults.take(e.name, body)

	var a answer
	defer func() { s.finish(r, a) }()
	for _, f := range r.faults {
		if !f.after() && s.inject(w, r, f, &a) {
			return
		}
	}
	if failure != nil {
		a = *failure
	} else {
		a = e.serve(s, r)
	}
	s.edit(r, &a)
	for _, f := range r.faults {
		if f.after() && s.inject(w, r, f, &a) {
			return
		}
	}
	writeJSON(w, a.status, a.body)
}

// read takes the body and checks what every endpoint that takes JSON checks.
func (s *Server) read(w http.ResponseWriter, r *request) ([]byte, *answer) {
	refuse := func(status int, reason string) *answer {
		a := r.refuse(status, reason)
		return &a
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.http.Body, s.config.MaxBody))
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return body, refuse(http.StatusRequestEntityTooLarge, "the request is too large")
	case err != nil:
		return body, refuse(http.StatusBadRequest, "the request's body ended early")
	case r.http.Header.Get("Content-Encoding") != "":
		return body, refuse(http.StatusUnsupportedMediaType, "Content-Encoding is not supported")
	case r.endpoint.form || r.http.Method == http.MethodGet:
		return body, nil
	}
	if kind, _, err := mime.ParseMediaType(r.http.Header.Get("Content-Type")); err != nil || kind != "application/json" {
		return body, refuse(unsupportedMedia(r.endpoint), "Content-Type is not application/json")
	}
	return body, nil
}

// unsupportedMedia is 400 for StopChurn, whose page knows 200, 400 and 401 only.
func unsupportedMedia(e *endpoint) int {
	if e.vendor == "StopChurn" {
		return http.StatusBadRequest
	}
	return http.StatusUnsupportedMediaType
}

func (s *Server) nextRequest() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.requests++
	return s.requests
}

// edit applies the faults on item results, and makes the answer's body of what is left.
func (s *Server) edit(r *request, a *answer) {
	if a.wrap == nil {
		return
	}
	for _, f := range r.faults {
		if f.Kind == OutOfOrder {
			s.faults.shuffle(a.results)
		}
		if f.Kind == MissingResults {
			a.results = s.faults.drop(a.results, f)
		}
	}
	a.body = a.wrap(a.results)
}

// finish records the request and logs its line.
func (s *Server) finish(r *request, a answer) {
	took := time.Since(r.at)
	kinds := make([]string, len(r.faults))
	for i, f := range r.faults {
		kinds[i] = string(f.Kind)
	}
	fault := strings.Join(kinds, ",")
	s.mu.Lock()
	s.record.request(Request{
		Number: r.number, At: r.at, TookMS: float64(took.Microseconds()) / 1000, Endpoint: r.endpoint.name, Status: a.status, Fault: fault, Accepted: a.accepted,
		Rejected: a.rejected, Bytes: len(r.body), Reason: a.reason, IdempotencyKey: r.http.Header.Get("Idempotency-Key"), UserAgent: r.http.UserAgent(),
	})
	s.announce()
	s.mu.Unlock()
	s.config.Logger.Info("request", "number", r.number, "endpoint", r.endpoint.name, "status", a.status, "accepted", a.accepted,
		"rejected", a.rejected, "bytes", len(r.body), "took", took, "fault", fault, "reason", a.reason)
}

func writeJSON(w http.ResponseWriter, status int, body any) {
	text, err := json.Marshal(body)
	if err != nil { // of our own types only
		http.Error(w, "sandbox: "+err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(status)
	_, _ = w.Write(text) // the client may be gone
}

// bearer is the token of an Authorization header, "" when there is none.
func bearer(h http.Header) string {
	scheme, token, _ := strings.Cut(h.Get("Authorization"), " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return ""
	}
	return token
}
