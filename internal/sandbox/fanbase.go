package sandbox

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"

	"github.com/cdcsync/cdcsync/internal/shape"
	"github.com/cdcsync/cdcsync/internal/sinks"
)

// Fan is a fan as Fanbase has it after the batches so far. Parts of an element that a later batch does not name stay as they were.
type Fan struct {
	UserID  int64                      `json:"userId"`
	CPF     string                     `json:"cpf,omitempty"`
	Email   string                     `json:"email,omitempty"`
	Parts   map[string]json.RawMessage `json:"parts"`   // data, numbers, addresses and so on as last sent; never pwd and pwdhash
	Account bool                       `json:"account"` // an SSO account was made
	Seq     uint64                     `json:"seq"`     // of the item that made it so
}

// fans is what Fanbase knows. Server.mu guards it.
type fans struct {
	byCPF, byEmail map[string]*Fan
	all            []*Fan
	lastID         int64
}

func newFans() fans {
	const before = 6011882 // the page's example is given to the first fan
	return fans{byCPF: make(map[string]*Fan), byEmail: make(map[string]*Fan), lastID: before}
}

var batchShape = &shape.Node{Kind: shape.Object, Fields: []shape.Field{
	{Name: "systemId", Required: true, Node: &shape.Node{Kind: shape.Number}},
	{Name: "data", Required: true, Node: &shape.Node{Kind: shape.Array}},
}}

// fanItem is one element of data[] and what becomes of it.
type fanItem struct {
	raw        json.RawMessage
	cpf, email string
	flaw       string // of value, which fails the item alone

	result fanResult
}

// fanResult is an element of the answer's items.
type fanResult struct {
	UserID            int64          `json:"userId"`
	Success           bool           `json:"success"`
	CPF               *string        `json:"cpf"`
	Email             *string        `json:"email"`
	AlternativeNumber *string        `json:"alternativeNumber"`
	MessageError      *string        `json:"messageError"`
	Account           *accountResult `json:"account"`
}

type accountResult struct {
	Success      bool    `json:"success"`
	Login        string  `json:"login"`
	MessageError *string `json:"messageError"`
}

// fanbaseBatch refuses the request when its shape is wrong (a type, a missing or an unknown field), and fails an item alone when a value is.
func (s *Server) fanbaseBatch(r *request) answer {
	if refused := s.fanbaseUser(r); refused != nil {
		return *refused
	}
	items, reason := parseBatch(r.body)
	if reason != "" {
		return r.refuse(http.StatusBadRequest, reason)
	}
	var a answer
	for i := range items {
		s.registerFan(r, &items[i])
		if items[i].result.Success {
			a.accepted++
		} else {
			a.rejected++
		}
		a.results = append(a.results, &items[i].result)
	}
	total, success, fail := len(items), a.accepted, a.rejected
	a.status, a.wrap = http.StatusOK, func(results []any) any {
		return map[string]any{"header": map[string]any{"codigo": 1, "msg": "Ok"}, "data": map[string]any{
			"resume": map[string]any{"total": total, "success": success, "fail": fail, "status": batchStatus(success, fail)},
			"items":  results,
		}}
	}
	return a
}

func batchStatus(success, fail int) string {
	switch {
	case fail == 0:
		return "SUCCESS"
	case success == 0:
		return "FAILURE"
	}
	return "PARTIAL_SUCCESS"
}

func parseBatch(body []byte) (items []fanItem, reason string) {
	if err := document(body); err != nil {
		return nil, err.Error()
	}
	if flaws := check("body", body, batchShape); flaws != nil {
		return nil, reasons(flaws, true)
	}
	top, err := members(body)
	if err != nil {
		return nil, err.Error()
	}
	list, err := elements(top.get("data"))
	switch {
	case err != nil:
		return nil, "data " + err.Error()
	case len(list) == 0:
		return nil, "data is empty"
	}
	element := elementShape(sinks.TypeFanbaseBatch)
	items = make([]fanItem, len(list))
	var flaws []flaw
	for i, raw := range list {
		items[i].raw = bytes.Clone(raw) // what is kept must not keep the whole body
		found := check(fmt.Sprintf("data[%d]", i), raw, element)
		flaws = append(flaws, found...)
		items[i].flaw = reasons(found, false)
	}
	if reason := reasons(flaws, true); reason != "" {
		return nil, reason
	}
	for i := range items {
		items[i].identify()
	}
	return items, ""
}

// identify reads who the fan is.
func (f *fanItem) identify() {
	var element struct {
		Numbers []struct {
			NumberType json.Number
			Number     string
		}
	}
	if err := json.Unmarshal(f.raw, &element); err != nil {
		f.flaw = cmp.Or(f.flaw, "the element is malformed")
		return
	}
	for _, n := range element.Numbers {
		switch n.NumberType {
		case "1":
			f.cpf = cmp.Or(f.cpf, n.Number)
		case "4":
			f.email = cmp.Or(f.email, n.Number)
		}
	}
}

// registerFan stores the element, unless something is wrong with it, and fills its result.
func (s *Server) registerFan(r *request, f *fanItem) {
	key := cmp.Or(f.cpf, f.email)
	f.result.CPF, f.result.Email = optional(f.cpf), optional(f.email)
	if message, hit := s.faults.rejects(Reject, r.endpoint.name, key, f.raw); hit {
		f.flaw = cmp.Or(f.flaw, message)
	}
	accountFlaw, accountFails := s.faults.rejects(RejectAccount, r.endpoint.name, key, f.raw)

	s.mu.Lock()
	defer s.mu.Unlock()
	seq := s.record.item(r, Item{Key: key, Body: f.raw, Rejected: f.flaw})
	if f.flaw != "" {
		f.result.MessageError = &f.flaw
		return
	}
	var parts map[string]json.RawMessage
	_ = json.Unmarshal(f.raw, &parts) // an object, as was checked
	withAccount := parts["pwd"] != nil || parts["pwdhash"] != nil
	delete(parts, "pwd")
	delete(parts, "pwdhash")
	f.result.Success = true
	if withAccount {
		f.result.Account = &accountResult{Success: !accountFails, Login: key}
		if accountFails {
			f.result.Account.MessageError = &accountFlaw
		}
	}
	if s.config.CountOnly {
		s.fans.lastID++
		f.result.UserID = s.fans.lastID
		return
	}
	fan := s.fans.find(f.cpf, f.email)
	fan.Seq, fan.Account = seq, fan.Account || withAccount && !accountFails
	maps.Copy(fan.Parts, parts)
	s.fans.index(fan, f.cpf, f.email)
	f.result.UserID = fan.UserID
}

// find returns the fan with the CPF; else the one with the e-mail, unless both it and the element have a CPF; else a new one.
func (fs *fans) find(cpf, email string) *Fan {
	if fan := fs.byCPF[cpf]; fan != nil && cpf != "" {
		return fan
	}
	if fan := fs.byEmail[email]; fan != nil && email != "" && (cpf == "" || fan.CPF == "") {
		return fan
	}
	fs.lastID++
	fan := &Fan{UserID: fs.lastID, Parts: make(map[string]json.RawMessage)}
	fs.all = append(fs.all, fan)
	return fan
}

// index records the fan's present CPF and e-mail.
func (fs *fans) index(fan *Fan, cpf, email string) {
	if cpf != "" {
		fan.CPF = cpf
		fs.byCPF[cpf] = fan
	}
	if email != "" {
		if fan.Email != "" && fs.byEmail[fan.Email] == fan {
			delete(fs.byEmail, fan.Email)
		}
		fan.Email = email
		fs.byEmail[email] = fan
	}
}

func optional(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

// Fans returns Fanbase's fans, ordered by CPF, then e-mail.
func (s *Server) Fans() []Fan {
	s.mu.Lock()
	all := make([]Fan, len(s.fans.all))
	for i, fan := range s.fans.all {
		all[i] = *fan
		all[i].Parts = maps.Clone(fan.Parts)
	}
	s.mu.Unlock()
	slices.SortFunc(all, func(a, b Fan) int { return cmp.Or(cmp.Compare(a.CPF, b.CPF), cmp.Compare(a.Email, b.Email)) })
	return all
}
