package sandbox

import (
	"cmp"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/cdcsync/cdcsync/internal/shape"
	"github.com/cdcsync/cdcsync/internal/sinks"
)

// maxAccounts is the page's limit of a request.
const maxAccounts = 200

// tiers is what Fanatics knows: by account and tier id, both in lower case, the approval. Server.mu guards it.
type tiers struct{ approvals map[string]map[string]bool }

func newTiers() tiers { return tiers{approvals: make(map[string]map[string]bool)} }

// fanaticsFailure is the page's error wrapper. Its codes are made up: the page shows none.
func fanaticsFailure(status int, reason string) any {
	return map[string]any{
		"errors":    []any{map[string]any{"code": fmt.Sprintf("SANDBOX-%d", status), "message": reason}},
		"rc":        strings.ToLower(rand.Text()[:16]),
		"timestamp": time.Now().UTC().Format("2006-01-02T15:04:05.000Z"),
	}
}

var accountsShape = &shape.Node{Kind: shape.Object, Fields: []shape.Field{
	{Name: "accounts", Required: true, Node: &shape.Node{Kind: shape.Array, Elem: elementShape(sinks.TypeFanatics)}},
}}

// approval is one account of a request and what becomes of it.
type approval struct {
	raw     json.RawMessage
	account string // as sent
	flags   map[string]bool

	result accountOutcome
}

type accountOutcome struct {
	Account string `json:"account_tenant_fanid"`
	Result  string `json:"result"`
	Details string `json:"details"`
}

func (s *Server) fanaticsAccounts(r *request) answer {
	scopes, valid := s.fanaticsTokens.check(bearer(r.http.Header))
	switch {
	case !valid:
		return r.refuse(http.StatusUnauthorized, "the Authorization header holds no valid Bearer token")
	case !slices.Contains(scopes, scopeOverride):
		return r.refuse(http.StatusForbidden, "the token lacks the scope "+scopeOverride)
	}
	accounts, reason := parseAccounts(r.body)
	if reason != "" {
		return r.refuse(http.StatusBadRequest, reason)
	}
	var a answer
	for i := range accounts {
		s.approve(r, &accounts[i])
		if accounts[i].result.Result == "ok" {
			a.accepted++
		} else {
			a.rejected++
		}
		a.results = append(a.results, &accounts[i].result)
	}
	a.status, a.wrap = http.StatusCreated, func(results []any) any { return map[string]any{"accounts": results} }
	return a
}

func parseAccounts(body []byte) (accounts []approval, reason string) {
	if err := document(body); err != nil {
		return nil, err.Error()
	}
	if reason := reasons(check("body", body, accountsShape), true); reason != "" { // of values, the accounts' own results speak
		return nil, reason
	}
	var request struct{ Accounts []json.RawMessage }
	if err := json.Unmarshal(body, &request); err != nil {
		return nil, "the body is malformed"
	}
	switch n := len(request.Accounts); {
	case n == 0:
		return nil, "accounts is empty"
	case n > maxAccounts:
		return nil, fmt.Sprintf("accounts has %d entries, more than %d", n, maxAccounts)
	}
	accounts = make([]approval, len(request.Accounts))
	seen := make(map[string]bool, len(accounts))
	for i, raw := range request.Accounts {
		a := &accounts[i]
		if reason := a.parse(raw); reason != "" {
			return nil, fmt.Sprintf("accounts[%d].%s", i, reason)
		}
		if id := strings.ToLower(a.account); seen[id] {
			return nil, fmt.Sprintf("accounts[%d].account_tenant_fanid is in the request twice", i)
		} else {
			seen[id] = true
		}
	}
	return accounts, ""
}

func (a *approval) parse(raw json.RawMessage) (reason string) {
	values, err := members(raw)
	if err != nil {
		return err.Error()
	}
	a.raw, a.account = raw, text(values.get("account_tenant_fanid"))
	flags, err := members(values.get("invite_approval_map"))
	switch {
	case err != nil:
		return "invite_approval_map " + err.Error()
	case len(flags) == 0:
		return "invite_approval_map is empty"
	}
	a.flags = make(map[string]bool, len(flags))
	for _, flag := range flags {
		if kindOf(flag.value) != kindBoolean {
			return fmt.Sprintf("invite_approval_map has %s and not a boolean", kindOf(flag.value))
		}
		a.flags[strings.ToLower(flag.name)] = flag.value[0] == 't'
	}
	return ""
}

// approve stores the account's flags, unless something is wrong with it, and fills its result.
func (s *Server) approve(r *request, a *approval) {
	id := strings.ToLower(a.account)
	details := s.accountFlaw(a)
	if message, hit := s.faults.rejects(Reject, r.endpoint.name, id, a.raw); hit {
		details = cmp.Or(details, message)
	}
	a.result = accountOutcome{Account: a.account, Result: "ok", Details: "success"}
	if details != "" {
		a.result.Result, a.result.Details = "nok", details
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.record.item(r, Item{Key: id, Body: a.raw, Rejected: details})
	if details != "" || s.config.CountOnly {
		return
	}
	if s.tiers.approvals[id] == nil {
		s.tiers.approvals[id] = make(map[string]bool)
	}
	maps.Copy(s.tiers.approvals[id], a.flags)
}

// accountFlaw is why the account alone fails, "" when it does not.
func (s *Server) accountFlaw(a *approval) string {
	if !isUUID(a.account) {
		return "Invalid account_tenant_fanid" // the page's own words
	}
	for tier := range a.flags {
		if !isUUID(tier) {
			return "Invalid tier id"
		}
		known := func(id string) bool { return strings.EqualFold(id, tier) }
		if len(s.config.FanaticsInviteOnly) > 0 && !slices.ContainsFunc(s.config.FanaticsInviteOnly, known) {
			return "Tier is not invite-only"
		}
	}
	return ""
}

// Approvals returns Fanatics' approvals by account and tier id, both in lower case.
func (s *Server) Approvals() map[string]map[string]bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make(map[string]map[string]bool, len(s.tiers.approvals))
	for account, flags := range s.tiers.approvals {
		all[account] = maps.Clone(flags)
	}
	return all
}
