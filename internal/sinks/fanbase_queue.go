package sinks

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"

	"github.com/cdcsync/cdcsync/internal/shape"
)

const fanbaseQueuePath = "/api/v1/integration/queue"

// FanbaseQueue tells Fanbase, by POST /api/v1/integration/queue with the action update_fandata, that a fan changed. One
// request carries one item. Fanbase works on it later, and Confirm asks what became of it.
type FanbaseQueue struct {
	*caller
	auth    bearer
	confirm Confirm
}

func newFanbaseQueue(cfg Config, deps Deps) (Sink, error) {
	auth, err := fanbaseAuth(cfg, deps)
	if err != nil {
		return nil, err
	}
	const perLane = 3 // connections: one that enqueues, two that confirm
	cfg.Concurrency *= perLane
	c, err := newCaller(cfg, deps, auth)
	if err != nil {
		return nil, err
	}
	return &FanbaseQueue{c, auth, cfg.Confirm}, nil
}

// Type is TypeFanbaseQueue.
func (q *FanbaseQueue) Type() string { return TypeFanbaseQueue }

var (
	queueHead = []byte(`{"action":"update_fandata","data":`)
	queueEnd  = []byte(`}`)
)

// Limits is one item a request.
func (q *FanbaseQueue) Limits() Limits {
	return Limits{Items: 1, Frame: len(queueHead) + len(queueEnd)}
}

// queued is the vendor's answer about one object of its queue.
type queued struct {
	ID            text `json:"id"`
	ICode         text `json:"iCode"`
	IMsg          text `json:"iMsg"`
	ProcessStatus text `json:"processStatus"`
	ProcessMsg    text `json:"processMsg"`
}

// Deliver queues the item.
func (q *FanbaseQueue) Deliver(ctx context.Context, items []Item, idempotencyKey string) ([]Outcome, error) {
	if len(items) != 1 {
		return nil, &RequestError{Class: ClassTooLarge, Reason: "the queue takes one item a request"}
	}
	request := newBody(3)
	request.add(queueHead)
	request.add(items[0].Body)
	request.add(queueEnd)
	got, err := q.post(ctx, fanbaseQueuePath, request, 1, idempotencyKey)
	if err != nil {
		return nil, err
	}
	return q.settle(got)
}

func (q *FanbaseQueue) settle(got *answer) ([]Outcome, error) {
	var object queued
	if json.Unmarshal(got.body, &object) != nil || (object.ID == "" && object.ICode == "") {
		return nil, q.garbled(got, "is no object of the queue")
	}
	outcome := Outcome{Status: Accepted, Tracking: string(object.ID)}
	switch {
	case object.ICode != "0" && object.ICode != "", object.ProcessStatus == "failed":
		outcome = object.rejected()
	case object.ProcessStatus == "completed", q.confirm == ConfirmAccepted:
		outcome = Outcome{Status: Delivered}
	case object.ID == "":
		outcome = Outcome{Status: Delivered, Remark: "queued without an id: whether it was processed cannot be asked"}
	}
	return []Outcome{outcome}, nil
}

func (o *queued) rejected() Outcome {
	reason := first(string(o.ProcessMsg), string(o.IMsg), "the queue says "+string(o.ProcessStatus))
	return Outcome{Status: Rejected, Reason: bounded(reason), Code: bounded(string(o.ICode))}
}

// Confirm asks what became of an item that was Accepted: Delivered, Rejected, or Retry while it is not processed. An id that
// the queue does not know is Retry too, because it may not be seen there yet; how long to ask is the caller's decision.
func (q *FanbaseQueue) Confirm(ctx context.Context, tracking string) (Outcome, error) {
	got, err := q.read(ctx, fanbaseQueuePath+"/"+url.PathEscape(tracking))
	if failed, ok := errors.AsType[*RequestError](err); ok && failed.Status == http.StatusNotFound {
		return Outcome{Status: Retry, Reason: "the queue does not know the id"}, nil
	}
	if err != nil {
		return Outcome{}, err
	}
	var object queued
	if json.Unmarshal(got.body, &object) != nil {
		return Outcome{}, q.garbled(got, "is no object of the queue")
	}
	switch object.ProcessStatus {
	case "completed":
		if object.ICode != "0" && object.ICode != "" {
			return object.rejected(), nil
		}
		return Outcome{Status: Delivered}, nil
	case "failed":
		return object.rejected(), nil
	case "pending", "processing":
		return Outcome{Status: Retry, Reason: "the queue says " + string(object.ProcessStatus)}, nil
	}
	return Outcome{Status: Retry, Reason: bounded("the queue says " + first(string(object.ProcessStatus), "nothing"))}, nil
}

// Check takes a token, and reports when there is none.
func (q *FanbaseQueue) Check(ctx context.Context) []string {
	_, warnings := q.auth.check(ctx)
	return warnings
}

func fanbaseQueueShape() shape.Item {
	return shape.Item{Times: shape.TimesISO, Root: &shape.Node{Kind: shape.Object, Fields: []shape.Field{
		{Name: "cpf", Doc: "The fan's CPF.", Node: &shape.Node{Kind: shape.String, Nullable: true}},
		{Name: "id", Required: true, Doc: "The fan's id in this system.", Node: notBlank()},
	}}}
}
