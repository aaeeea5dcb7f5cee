package sinks

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

const fanbaseBatchPath = "/api/v2/IF_ID_Batch"

// FanbaseBatch registers fans and what belongs to them by POST /api/v2/IF_ID_Batch. Each fan of a request has its own result,
// which names the fan by CPF and e-mail only.
type FanbaseBatch struct {
	*caller
	auth bearer
	head []byte // {"systemId":42,"data":[
}

func newFanbaseBatch(cfg Config, deps Deps) (Sink, error) {
	auth, err := fanbaseAuth(cfg, deps)
	if err != nil {
		return nil, err
	}
	c, err := newCaller(cfg, deps, auth)
	if err != nil {
		return nil, err
	}
	return &FanbaseBatch{c, auth, fmt.Appendf(nil, `{"systemId":%d,"data":[`, cfg.SystemID)}, nil
}

// Type is TypeFanbaseBatch.
func (b *FanbaseBatch) Type() string { return TypeFanbaseBatch }

var (
	batchComma = []byte(`,`)
	batchEnd   = []byte(`]}`)
)

// Limits is only the envelope: the vendor documents none.
func (b *FanbaseBatch) Limits() Limits {
	return Limits{Frame: len(b.head) + len(batchEnd), Overhead: len(batchComma)}
}

// Deliver sends the items in one request. Item results are believed whatever the HTTP status, but for those statuses that
// speak of the request.
func (b *FanbaseBatch) Deliver(ctx context.Context, items []Item, idempotencyKey string) ([]Outcome, error) {
	fans := make([]fan, len(items))
	for i := range items {
		fans[i] = fanOf(items[i].Body)
	}
	request := newBody(2*len(items) + 1)
	before := b.head
	for i := range items {
		request.add(before)
		request.add(items[i].Body)
		before = batchComma
	}
	request.add(batchEnd)
	got, err := b.post(ctx, fanbaseBatchPath, request, len(items), idempotencyKey)
	failed, refused := errors.AsType[*RequestError](err)
	switch {
	case err == nil:
		return b.settle(got, fans)
	case got != nil && !got.ok() && refused && (failed.Class == ClassBadRequest || failed.Class == ClassRejected || failed.Class == ClassEndpoint):
		if outcomes, unreadable := b.settle(got, fans); unreadable == nil {
			return outcomes, nil
		}
	}
	return nil, err
}

// batchReply is the vendor's answer.
type batchReply struct {
	Header struct {
		Codigo text `json:"codigo"`
		Msg    text `json:"msg"`
	} `json:"header"`
	Data struct {
		Resume *resume     `json:"resume"`
		Items  []fanResult `json:"items"`
	} `json:"data"`
}

// resume is the vendor's own count of the results.
type resume struct {
	Success, Fail *json.Number
	Status        text
}

type fanResult struct {
	UserID       text  `json:"userId"` // 0 when the fan was not created
	Success      *bool `json:"success"`
	CPF          text  `json:"cpf"`
	Email        text  `json:"email"`
	MessageError text  `json:"messageError"`
	Account      *struct {
		Success      *bool `json:"success"`
		MessageError text  `json:"messageError"`
	} `json:"account"`
}

// settle finds the result of each fan. A header.codigo other than 1 is no success, whatever the items say: then only failures
// are believed, and the request has failed as a whole when one claims success or there are none.
func (b *FanbaseBatch) settle(got *answer, fans []fan) ([]Outcome, error) {
	var reply batchReply
	if instead := got.read(&reply); instead != "" {
		return nil, b.notUnderstood(got, instead)
	}
	results := reply.Data.Items
	claimed := slices.ContainsFunc(results, func(r fanResult) bool { return r.Success != nil && *r.Success })
	if codigo := reply.Header.Codigo; codigo != "1" && codigo != "" && (claimed || len(results) == 0) {
		return nil, &RequestError{
			Class: ClassBadRequest, Status: got.status, Code: bounded(string(codigo)), Reason: bounded(b.auth.redact(string(reply.Header.Msg))),
		}
	}
	if len(results) == 0 {
		return nil, b.notUnderstood(got, "has no results")
	}
	remark := reply.Data.Resume.contradicts(results)
	if remark != "" && claimed && reply.Data.Resume.claimsFewer(results) {
		return nil, &RequestError{Class: ClassBadRequest, Status: got.status, Reason: remark}
	}
	outcomes := make([]Outcome, len(fans))
	for i, place := range match(fans, results) {
		if place < 0 {
			outcomes[i] = Outcome{Status: Rejected, Reason: "the answer lacks the fan"}
			continue
		}
		outcomes[i] = results[place].outcome()
		outcomes[i].Remark = remark
	}
	return outcomes, nil
}

// contradicts says what of the vendor's count is not as its results say; empty when nothing is.
func (r *resume) contradicts(results []fanResult) string {
	if r == nil {
		return ""
	}
	said := func(count *json.Number, n int) bool {
		return count == nil || string(*count) == strconv.Itoa(n)
	}
	success := succeeded(results)
	all, none := success == len(results), success == 0
	switch {
	case !said(r.Success, success) || !said(r.Fail, len(results)-success):
		return "the vendor's count of successes is not that of its results"
	case strings.EqualFold(string(r.Status), "SUCCESS") && !all, strings.EqualFold(string(r.Status), "FAILURE") && !none:
		return "the vendor's status is not that of its results"
	}
	return ""
}

// claimsFewer reports whether by the vendor's count fewer fans have succeeded than by its results, which then are not believed.
func (r *resume) claimsFewer(results []fanResult) bool {
	if strings.EqualFold(string(r.Status), "FAILURE") {
		return true
	}
	fewer := func(count *json.Number, most int) bool {
		if count == nil {
			return false
		}
		n, err := count.Int64()
		return err != nil || n < int64(most)
	}
	failed := len(results) - succeeded(results)
	return fewer(r.Success, succeeded(results)) || r.Fail != nil && string(*r.Fail) != strconv.Itoa(failed) && !fewer(r.Fail, failed)
}

func succeeded(results []fanResult) (n int) {
	for i := range results {
		if results[i].Success != nil && *results[i].Success {
			n++
		}
	}
	return n
}

// outcome is final: which errors would pass by themselves is not documented.
func (r *fanResult) outcome() Outcome {
	switch {
	case r.Success == nil || !*r.Success:
		return Outcome{Status: Rejected, Reason: bounded(first(string(r.MessageError), "the vendor gives no reason"))}
	case r.UserID == "0":
		return Outcome{Status: Rejected, Reason: "the vendor says that the fan succeeded, and gives the userId 0 of one that was not created"}
	case r.Account != nil && r.Account.Success != nil && !*r.Account.Success:
		return Outcome{Status: Delivered, Account: bounded(first(string(r.Account.MessageError), "the vendor gives no reason"))}
	}
	return Outcome{Status: Delivered}
}

// fan is who an item is about, in a form that can be compared.
type fan struct{ cpfs, emails []string }

func fanOf(item []byte) (f fan) {
	var parts struct {
		Numbers []struct {
			Type   text `json:"numberType"`
			Number text `json:"number"`
		} `json:"numbers"`
	}
	_ = json.Unmarshal(item, &parts) // what cannot be read is matched by order
	for _, n := range parts.Numbers {
		switch n.Type {
		case numberCPF:
			f.cpfs = appendKnown(f.cpfs, plainCPF(string(n.Number)))
		case numberEmail:
			f.emails = appendKnown(f.emails, plainEmail(string(n.Number)))
		}
	}
	return f
}

func appendKnown(list []string, s string) []string {
	if s == "" {
		return list
	}
	return append(list, s)
}

// plainCPF is the digits without leading zeros, which a system that takes a CPF for a number loses.
func plainCPF(s string) string {
	return strings.TrimLeft(strings.Map(func(r rune) rune {
		if r < '0' || r > '9' {
			return -1
		}
		return r
	}, s), "0")
}

func plainEmail(s string) string { return strings.ToLower(strings.TrimSpace(s)) }

// match finds the place in results of each fan, or -1: by CPF, then by e-mail, then, when there are as many results as fans, in
// order among those left. Fans with one CPF or e-mail take the results that bear it in order, and share the last.
func match(fans []fan, results []fanResult) []int {
	m := matcher{results: results, place: make([]int, len(fans)), taken: make([]bool, len(results)), sent: map[string]bool{}}
	byCPF, byEmail := map[string][]int{}, map[string][]int{}
	for i := range results {
		cpf, email := plainCPF(string(results[i].CPF)), plainEmail(string(results[i].Email))
		byCPF[cpf] = append(byCPF[cpf], i)
		byEmail[email] = append(byEmail[email], i)
	}
	for i := range fans {
		for _, cpf := range fans[i].cpfs {
			m.sent[cpf] = true
		}
	}
	for i := range fans {
		m.place[i] = m.take(fans[i], fans[i].cpfs, byCPF)
	}
	for i := range fans {
		if m.place[i] < 0 {
			m.place[i] = m.take(fans[i], fans[i].emails, byEmail)
		}
	}
	if len(fans) == len(results) {
		m.inOrder(fans)
	}
	for i := range fans {
		if m.place[i] < 0 {
			m.place[i] = max(m.last(fans[i], fans[i].cpfs, byCPF), m.last(fans[i], fans[i].emails, byEmail))
		}
	}
	return m.place
}

type matcher struct {
	results []fanResult
	place   []int
	taken   []bool
	sent    map[string]bool // the CPFs of the request
}

// take is the first free result that bears one of the keys and is not about another fan.
func (m *matcher) take(f fan, keys []string, by map[string][]int) int {
	for _, key := range keys {
		for _, i := range by[key] {
			if !m.taken[i] && !m.aboutOther(i, f) {
				m.taken[i] = true
				return i
			}
		}
	}
	return -1
}

// aboutOther says whether a result bears the CPF of another fan in the request, two of whom may have one e-mail.
func (m *matcher) aboutOther(result int, f fan) bool {
	cpf := plainCPF(string(m.results[result].CPF))
	return m.sent[cpf] && !slices.Contains(f.cpfs, cpf)
}

func (m *matcher) inOrder(fans []fan) {
	next := 0
	for i := range fans {
		if m.place[i] >= 0 {
			continue
		}
		for m.taken[next] {
			next++
		}
		if m.results[next].mayBe(fans[i]) {
			m.place[i] = next
		}
		m.taken[next] = true
	}
}

// mayBe is false when the result bears a CPF, or without one an e-mail, and the fan others.
func (r *fanResult) mayBe(f fan) bool {
	if cpf := plainCPF(string(r.CPF)); cpf != "" && len(f.cpfs) > 0 {
		return slices.Contains(f.cpfs, cpf)
	}
	if email := plainEmail(string(r.Email)); email != "" && len(f.emails) > 0 {
		return slices.Contains(f.emails, email)
	}
	return true
}

// last is where the last result for one of the keys is: a vendor may answer once for a fan that was sent twice.
func (m *matcher) last(f fan, keys []string, by map[string][]int) int {
	for _, key := range keys {
		for _, i := range slices.Backward(by[key]) {
			if !m.aboutOther(i, f) {
				return i
			}
		}
	}
	return -1
}

// Check takes a token, and reports when there is none.
func (b *FanbaseBatch) Check(ctx context.Context) []string {
	_, warnings := b.auth.check(ctx)
	return warnings
}
