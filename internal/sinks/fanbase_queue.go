package sinks

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"strings"
	"unicode"

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
		if failed, ok := errors.AsType[*RequestError](err); ok && got != nil && got.ok() { // it broke off behind a status that says success
			failed.Uncertain = true
		}
		return nil, err
	}
	return q.settle(got)
}

// settle takes an object of the queue. A success that is not understood is Uncertain: the object may be in the queue, and each repeat would
// add another.
func (q *FanbaseQueue) settle(got *answer) ([]Outcome, error) {
	var object queued
	instead := got.read(&object)
	created, known := object.created(), object.ID != "" && object.usableID()
	switch {
	case instead != "":
	case object.ICode != "" && object.ICode != "0", object.status() == "failed":
		return []Outcome{object.rejected()}, nil
	case known && (object.status() == "completed" || q.confirm == ConfirmAccepted):
		return []Outcome{{Status: Delivered}}, nil
	case known:
		return []Outcome{{Status: Accepted, Tracking: string(object.ID)}}, nil
	case created:
		q.leniently()
		return []Outcome{{Status: Delivered, Remark: "queued without an id: whether it was processed cannot be asked"}}, nil
	default:
		instead = "has no id of a queued object"
	}
	failed := q.notUnderstood(got, instead)
	failed.Uncertain = true
	return nil, failed
}

// created reports whether the vendor says in its own words that the object was made.
func (o *queued) created() bool { return o.ICode == "0" }

// usableID is false for what cannot be an id: an object, a list, or what no URL should hold.
func (o *queued) usableID() bool {
	const longest = 256
	return len(o.ID) <= longest && !strings.ContainsFunc(string(o.ID), func(r rune) bool { return r <= ' ' || strings.ContainsRune(`{}[]";`, r) || !unicode.IsPrint(r) })
}

// status is processStatus, whose letter case is not promised.
func (o *queued) status() string { return strings.ToLower(strings.TrimSpace(string(o.ProcessStatus))) }

func (o *queued) rejected() Outcome {
	reason := first(string(o.ProcessMsg), string(o.IMsg), "the queue says "+string(o.ProcessStatus))
	return Outcome{Status: Rejected, Reason: bounded(reason), Code: bounded(string(o.ICode))}
}

// Confirm asks what became of an item that was Accepted: Delivered, Rejected, or Retry while it is not processed. An id that
// the queue does not know is Retry too, because it may not be seen there yet; how long to ask is the caller's decision. A 404 that is not in
// the vendor's own form is ClassEndpoint: it may be the path that is not known.
func (q *FanbaseQueue) Confirm(ctx context.Context, tracking string) (Outcome, error) {
	got, err := q.read(ctx, fanbaseQueuePath+"/"+url.PathEscape(tracking))
	if failed, ok := errors.AsType[*RequestError](err); ok && failed.Status == http.StatusNotFound && got.read(&queued{}) == "" {
		return Outcome{Status: Retry, Reason: "the queue does not know the id"}, nil
	}
	if err != nil {
		return Outcome{}, err
	}
	var object queued
	if instead := got.read(&object); instead != "" {
		return Outcome{}, q.notUnderstood(got, instead)
	}
	if object.ID != "" && !strings.EqualFold(string(object.ID), tracking) {
		return Outcome{}, q.notUnderstood(got, "is about another object")
	}
	switch object.status() {
	case "completed":
		if object.ICode != "0" && object.ICode != "" {
			return object.rejected(), nil
		}
		return Outcome{Status: Delivered}, nil
	case "failed":
		return object.rejected(), nil
	case "":
		return Outcome{}, q.notUnderstood(got, "has no processStatus")
	}
	return Outcome{Status: Retry, Reason: bounded("the queue says " + string(object.ProcessStatus))}, nil
}

// Check takes a token, and reports when there is none.
func (q *FanbaseQueue) Check(ctx context.Context) []string {
	_, warnings := q.auth.check(ctx)
	return warnings
}

func fanbaseQueueShape() shape.Item {
	return shape.Item{Times: shape.TimesISO, Identity: [][]string{{"id"}}, Root: &shape.Node{Kind: shape.Object, Fields: []shape.Field{
		{Name: "cpf", Doc: "The fan's CPF, 11 digits, or null.", Node: &shape.Node{Kind: shape.String, Nullable: true, Check: checkCPF}},
		{Name: "id", Required: true, Doc: "The fan's id in this system.", Node: notBlank()},
	}}}
}
