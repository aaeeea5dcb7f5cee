package sandbox

import (
	"bufio"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"html/template"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

// Totals is the sandbox in numbers.
type Totals struct {
	Endpoints []Counts       `json:"endpoints"`
	Rows      map[string]int `json:"rows"` // StopChurn, by table
	Fans      int            `json:"fans"`
	Queue     map[string]int `json:"queue"` // by status
	Approvals int            `json:"approvals"`
	Last      uint64         `json:"last_seq"`
}

// Totals counts what was received and the state that came of it.
func (s *Server) Totals() Totals {
	t := Totals{Endpoints: s.Counts(), Rows: make(map[string]int), Queue: make(map[string]int)}
	s.mu.Lock()
	defer s.mu.Unlock()
	for key := range s.churn.rows {
		t.Rows[key.table]++
	}
	now := time.Now()
	for _, q := range s.queue.objects {
		t.Queue[q.at(now, s.config.QueueDelay).Status]++
	}
	t.Fans, t.Approvals, t.Last = len(s.fans.all), len(s.tiers.approvals), s.record.last
	return t
}

// routeControl adds the sandbox's own endpoints.
func (s *Server) routeControl(mux *http.ServeMux) {
	mux.HandleFunc("GET /{$}", s.serveIndex)
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, http.StatusOK, map[string]string{"status": "ok"})
	})
	mux.HandleFunc("GET /received", s.serveReceived)
	mux.HandleFunc("GET /requests", func(w http.ResponseWriter, r *http.Request) { writeLines(w, r, s.Requests()) })
	mux.HandleFunc("GET /state", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, http.StatusOK, s.Totals()) })
	mux.HandleFunc("GET /state/stopchurn", func(w http.ResponseWriter, r *http.Request) { writeLines(w, r, s.Rows(r.URL.Query().Get("table"))) })
	mux.HandleFunc("GET /state/fanbase", func(w http.ResponseWriter, r *http.Request) { writeLines(w, r, s.Fans()) })
	mux.HandleFunc("GET /state/queue", s.serveQueue)
	mux.HandleFunc("GET /state/fanatics", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, http.StatusOK, s.Approvals()) })
	mux.HandleFunc("POST /reset", func(w http.ResponseWriter, _ *http.Request) {
		s.Reset()
		writeJSON(w, http.StatusOK, s.Totals())
	})
	mux.HandleFunc("GET /faults", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, http.StatusOK, s.Faults()) })
	mux.HandleFunc("POST /faults", s.serveAddFault)
	mux.HandleFunc("DELETE /faults", func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, http.StatusOK, map[string]int{"removed": s.ClearFaults()})
	})
	mux.HandleFunc("DELETE /faults/{id}", s.serveClearFault)
}

// serveReceived gives items: the last 100, or what the query asks for.
func (s *Server) serveReceived(w http.ResponseWriter, r *http.Request) {
	filter, err := parseFilter(r.URL.Query())
	if err != nil {
		controlError(w, http.StatusBadRequest, err)
		return
	}
	writeLines(w, r, s.Received(filter))
}

func parseFilter(query url.Values) (Filter, error) {
	const defaultLimit = 100
	f := Filter{Limit: defaultLimit}
	for name, values := range query {
		value := values[0]
		var err error
		switch name {
		case "endpoint":
			f.Endpoint = value
		case "table":
			f.Table = value
		case "key":
			f.Key = value
		case "after":
			f.After, err = strconv.ParseUint(value, 10, 64)
		case "request":
			f.Request, err = strconv.ParseUint(value, 10, 64)
		case "limit":
			f.Limit, err = strconv.Atoi(value)
			if f.Limit < 0 {
				err = errors.New("limit is negative")
			}
		case "rejected":
			var rejected bool
			rejected, err = strconv.ParseBool(value)
			f.Rejected = &rejected
		case "format": // of writeLines
		default:
			err = errors.New("known are endpoint, table, key, after, request, limit, rejected, format")
		}
		if err != nil {
			return f, fmt.Errorf("query %s: %w", name, err)
		}
	}
	return f, nil
}

// serveQueue adds to the vendor's view of each object what was asked for.
func (s *Server) serveQueue(w http.ResponseWriter, r *http.Request) {
	type line struct {
		Queued
		Seq    uint64  `json:"seq"`
		DataID string  `json:"data_id"`
		CPF    *string `json:"data_cpf"`
	}
	objects := s.Queue()
	lines := make([]line, len(objects))
	for i, q := range objects {
		lines[i] = line{Queued: q, Seq: q.Seq, DataID: q.DataID, CPF: q.CPF}
	}
	writeLines(w, r, lines)
}

func (s *Server) serveAddFault(w http.ResponseWriter, r *http.Request) {
	const largest = 1 << 20
	d := json.NewDecoder(http.MaxBytesReader(w, r.Body, largest))
	d.DisallowUnknownFields()
	var f Fault
	if err := d.Decode(&f); err != nil {
		controlError(w, http.StatusBadRequest, err)
		return
	}
	id, err := s.AddFault(f)
	if err != nil {
		controlError(w, http.StatusBadRequest, err)
		return
	}
	writeJSON(w, http.StatusCreated, map[string]int{"id": id})
}

func (s *Server) serveClearFault(w http.ResponseWriter, r *http.Request) {
	id, err := strconv.Atoi(r.PathValue("id"))
	if err != nil || s.ClearFaults(id) == 0 {
		controlError(w, http.StatusNotFound, errors.New("no such fault"))
		return
	}
	writeJSON(w, http.StatusOK, map[string]int{"removed": 1})
}

func controlError(w http.ResponseWriter, status int, err error) {
	writeJSON(w, status, map[string]string{"error": err.Error()})
}

// writeLines writes one JSON value a line, or with ?format=json an array.
func writeLines[T any](w http.ResponseWriter, r *http.Request, list []T) {
	if r.URL.Query().Get("format") == "json" {
		if list == nil {
			list = []T{}
		}
		writeJSON(w, http.StatusOK, list)
		return
	}
	w.Header().Set("Content-Type", "application/x-ndjson; charset=utf-8")
	buffered := bufio.NewWriter(w)
	encoder := json.NewEncoder(buffered)
	for i := range list {
		if encoder.Encode(list[i]) != nil {
			return // the client is gone
		}
	}
	_ = buffered.Flush()
}

//go:embed index.html
var indexHTML string

var indexTemplate = template.Must(template.New("index").Parse(indexHTML))

func (s *Server) serveIndex(w http.ResponseWriter, r *http.Request) {
	const shown = 15
	requests := s.Requests()
	requests = requests[max(0, len(requests)-shown):]
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	_ = indexTemplate.Execute(w, map[string]any{ // fails when the client is gone
		"Base": "http://" + r.Host, "Totals": s.Totals(), "Faults": s.Faults(), "Requests": requests, "Endpoints": describe(s.Counts()),
	})
}

type described struct {
	Counts
	Vendor, Method, Path, Purpose string
}

func describe(counts []Counts) []described {
	all := make([]described, len(counts))
	for i, c := range counts {
		e := &endpoints[i]
		all[i] = described{Counts: c, Vendor: e.vendor, Method: e.method, Path: e.path, Purpose: e.purpose}
	}
	return all
}
