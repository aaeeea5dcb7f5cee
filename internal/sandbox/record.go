package sandbox

import (
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"time"
)

// Item is one thing that was received within a request that was understood: a row, a fan, a queued object, an account.
type Item struct {
	Seq      uint64    `json:"seq"` // from 1, in the order in which the items took effect
	Request  uint64    `json:"request"`
	At       time.Time `json:"at"`
	Endpoint string    `json:"endpoint"`
	Op       string    `json:"op,omitempty"`    // StopChurn: insert, update or delete
	Table    string    `json:"table,omitempty"` // StopChurn: tableName
	Key      string    `json:"key"`             // the row's id; CPF, else e-mail; data.id; account_tenant_fanid in lower case
	// Rejected says why the item alone was refused; an item with it changed nothing.
	Rejected string          `json:"rejected,omitempty"`
	Body     json.RawMessage `json:"body,omitempty"`

	IdempotencyKey string `json:"idempotency_key,omitempty"`
}

// Request is one request to a vendor's endpoint.
type Request struct {
	Number         uint64    `json:"number"`
	At             time.Time `json:"at"`
	TookMS         float64   `json:"took_ms"`
	Endpoint       string    `json:"endpoint"`
	Status         int       `json:"status"`           // 0 when the connection was broken instead of an answer
	Fault          string    `json:"fault,omitempty"`  // kinds of the faults that hit it
	Reason         string    `json:"reason,omitempty"` // why it was refused as a whole
	Accepted       int       `json:"accepted"`         // items
	Rejected       int       `json:"rejected"`
	Bytes          int       `json:"bytes"`
	IdempotencyKey string    `json:"idempotency_key,omitempty"`
	UserAgent      string    `json:"user_agent,omitempty"`
}

// Counts of one endpoint.
type Counts struct {
	Endpoint string         `json:"endpoint"`
	Requests uint64         `json:"requests"`
	Statuses map[int]uint64 `json:"statuses"`
	Accepted uint64         `json:"accepted"` // items
	Rejected uint64         `json:"rejected"`
	Bytes    uint64         `json:"bytes"`
	Last     time.Time      `json:"last,omitzero"`
}

// Filter chooses items. A zero field chooses all.
type Filter struct {
	Endpoint string // or the beginning of names
	Table    string
	Key      string
	After    uint64 // items with a greater sequence number
	Request  uint64
	Rejected *bool
	Limit    int // with After the first so many, else the last so many; 0 means all
}

// maxRequests bounds the list of requests.
const maxRequests = 10_000

// record is what was received. Server.mu guards it.
type record struct {
	config   Config
	items    []Item // the newest last; Seq has no gaps
	last     uint64
	requests []Request
	counts   map[string]*Counts
}

func newRecord(config Config) record {
	r := record{config: config, counts: make(map[string]*Counts, len(endpoints))}
	for i := range endpoints {
		name := endpoints[i].name
		r.counts[name] = &Counts{Endpoint: name, Statuses: make(map[int]uint64)}
	}
	return r
}

// item logs an item of r and returns its sequence number.
func (rec *record) item(r *request, item Item) uint64 {
	rec.last++
	if rec.config.CountOnly {
		return rec.last
	}
	item.Seq, item.Request, item.At, item.Endpoint = rec.last, r.number, r.at, r.endpoint.name
	item.IdempotencyKey = r.http.Header.Get("Idempotency-Key")
	if rec.config.LogBodies == DropBodies {
		item.Body = nil
	}
	rec.items = trim(append(rec.items, item), rec.config.MaxLog)
	return rec.last
}

// request logs a request and counts it.
func (rec *record) request(r Request) {
	rec.requests = trim(append(rec.requests, r), maxRequests)
	c := rec.counts[r.Endpoint]
	c.Requests++
	c.Statuses[r.Status]++
	c.Accepted += uint64(r.Accepted)
	c.Rejected += uint64(r.Rejected)
	c.Bytes += uint64(r.Bytes)
	c.Last = r.At
}

// trim keeps the last limit of the list, moving them a quarter of the limit at a time.
func trim[T any](list []T, limit int) []T {
	if len(list) <= limit+limit/4 {
		return list
	}
	return append(make([]T, 0, limit+limit/4+1), list[len(list)-limit:]...)
}

func (f *Filter) matches(item *Item) bool {
	return strings.HasPrefix(item.Endpoint, f.Endpoint) &&
		(f.Table == "" || f.Table == item.Table) &&
		(f.Key == "" || f.Key == item.Key) &&
		(f.Request == 0 || f.Request == item.Request) &&
		(f.Rejected == nil || *f.Rejected == (item.Rejected != ""))
}

// Received returns the items that the filter chooses, the newest last. Bodies are shared: do not change them.
func (s *Server) Received(f Filter) []Item {
	s.mu.Lock()
	defer s.mu.Unlock()
	items := s.record.items
	if len(items) > 0 && f.After >= items[0].Seq {
		items = items[min(f.After-items[0].Seq+1, uint64(len(items))):]
	}
	var chosen []Item
	if f.Limit == 0 || f.After > 0 {
		for i := range items {
			if f.matches(&items[i]) {
				if chosen = append(chosen, items[i]); len(chosen) == f.Limit {
					break
				}
			}
		}
		return chosen
	}
	for i := len(items) - 1; i >= 0 && len(chosen) < f.Limit; i-- {
		if f.matches(&items[i]) {
			chosen = append(chosen, items[i])
		}
	}
	slices.Reverse(chosen)
	return chosen
}

// Requests returns the last requests, at most 10,000, the newest last.
func (s *Server) Requests() []Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.record.requests)
}

// Counts returns what each endpoint received since the start or the last Reset, in a fixed order.
func (s *Server) Counts() []Counts {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]Counts, len(endpoints))
	for i := range endpoints {
		c := *s.record.counts[endpoints[i].name]
		c.Statuses = maps.Clone(c.Statuses)
		all[i] = c
	}
	return all
}

// Accepted is the number of items that an endpoint has taken.
func (s *Server) Accepted(endpoint string) uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := s.record.counts[endpoint]; c != nil {
		return c.Accepted
	}
	return 0
}
