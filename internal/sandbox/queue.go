package sandbox

import (
	"cmp"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/cdcsync/cdcsync/internal/shape"
	"github.com/cdcsync/cdcsync/internal/sinks"
)

// Queued is an object in Fanbase's queue, as the queue's pages show it, with what was asked for.
type Queued struct {
	ID      string     `json:"id"`
	Created time.Time  `json:"created"`
	ICode   int        `json:"iCode"`
	IMsg    string     `json:"iMsg"`
	Process *time.Time `json:"processDate"`
	Status  string     `json:"processStatus"` // pending, processing, completed or failed
	Message *string    `json:"processMsg"`

	Seq     uint64  `json:"-"`
	DataID  string  `json:"-"` // data.id
	CPF     *string `json:"-"` // data.cpf
	failure string  // processMsg of one that will fail
}

// queue is Fanbase's queue. Server.mu guards it.
type queue struct{ objects map[string]*Queued }

func newQueue() queue { return queue{objects: make(map[string]*Queued)} }

func fanbaseFailure(_ int, reason string) any {
	return map[string]any{"header": map[string]any{"codigo": 0, "msg": reason}, "data": nil}
}

// fanbaseUser checks the AccessToken header, in which the token stands without a prefix.
func (s *Server) fanbaseUser(r *request) *answer {
	if _, valid := s.fanbaseTokens.check(r.http.Header.Get("AccessToken")); valid {
		return nil
	}
	a := r.refuse(http.StatusUnauthorized, "The AccessToken header holds no valid token")
	return &a
}

var queueShape = &shape.Node{Kind: shape.Object, Fields: []shape.Field{
	{Name: "action", Required: true, Node: &shape.Node{Kind: shape.String, Enum: []string{`"update_fandata"`}}},
	{Name: "data", Required: true, Node: elementShape(sinks.TypeFanbaseQueue)},
}}

func (s *Server) fanbaseEnqueue(r *request) answer {
	if refused := s.fanbaseUser(r); refused != nil {
		return *refused
	}
	if err := document(r.body); err != nil {
		return r.refuse(http.StatusBadRequest, err.Error())
	}
	if flaws := check("body", r.body, queueShape); flaws != nil {
		return r.refuse(http.StatusBadRequest, cmp.Or(reasons(flaws, true), reasons(flaws, false)))
	}
	var asked struct {
		Data struct {
			ID  string
			CPF *string
		}
	}
	if err := json.Unmarshal(r.body, &asked); err != nil {
		return r.refuse(http.StatusBadRequest, "the body is malformed")
	}
	q := &Queued{ID: newUUID(), Created: r.at.UTC(), DataID: asked.Data.ID, CPF: asked.Data.CPF}
	if message, hit := s.faults.rejects(Reject, r.endpoint.name, q.DataID, r.body); hit {
		q.failure = message
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	q.Seq = s.record.item(r, Item{Key: q.DataID, Body: r.body, Rejected: q.failure})
	s.queue.objects[q.ID] = q
	return answer{status: http.StatusCreated, accepted: 1, body: q.at(q.Created, s.config.QueueDelay)}
}

func (s *Server) fanbaseQueued(r *request) answer {
	if refused := s.fanbaseUser(r); refused != nil {
		return *refused
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	q := s.queue.objects[r.http.PathValue("id")]
	if q == nil {
		return r.refuse(http.StatusNotFound, "no such object in the queue")
	}
	shown := q.at(time.Now(), s.config.QueueDelay)
	if s.config.CountOnly && shown.Process != nil {
		delete(s.queue.objects, q.ID)
	}
	return answer{status: http.StatusOK, body: shown}
}

// at is the object as it is at a time: processing needs no worker, since all follows from when the object was made.
func (q *Queued) at(now time.Time, delay time.Duration) Queued {
	shown := *q
	end := q.Created.Add(delay)
	switch {
	case now.Before(q.Created.Add(delay/2)) || now.Equal(q.Created):
		shown.Status, shown.IMsg = "pending", "Object created successfully"
	case now.Before(end):
		shown.Status, shown.IMsg = "processing", "Object in processing"
	case q.failure != "":
		shown.Status, shown.IMsg, shown.Message, shown.Process = "failed", "Processed with errors", &q.failure, &end
	default:
		message := "Data updated successfully"
		shown.Status, shown.IMsg, shown.Message, shown.Process = "completed", "Processed successfully", &message, &end
	}
	return shown
}

// Queue returns the objects of Fanbase's queue as they are now, in the order in which they came.
func (s *Server) Queue() []Queued {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	objects := make([]Queued, 0, len(s.queue.objects))
	for _, q := range s.queue.objects {
		objects = append(objects, q.at(now, s.config.QueueDelay))
	}
	slices.SortFunc(objects, func(a, b Queued) int { return cmp.Compare(a.Seq, b.Seq) })
	return objects
}

// newUUID is a random one, version 4.
func newUUID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}
