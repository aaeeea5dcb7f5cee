package sinks

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/cdcsync/cdcsync/internal/shape"
)

const (
	fanaticsPath = "/v2/tier-points/accounts"
	// fanaticsAccounts is the vendor's limit.
	fanaticsAccounts = 200
	// fanaticsScope is what the endpoint asks of a token. A scope that a client may not have is silently left out of its token.
	fanaticsScope = "tier_points:override"
)

// Fanatics sets and withdraws approvals for invite-only tiers by POST /v2/tier-points/accounts. Each account of a request has
// its own result.
type Fanatics struct {
	*caller
	auth bearer
}

func newFanatics(cfg Config, deps Deps) (Sink, error) {
	auth, err := fanaticsAuth(cfg, deps)
	if err != nil {
		return nil, err
	}
	c, err := newCaller(cfg, deps, auth)
	if err != nil {
		return nil, err
	}
	return &Fanatics{c, auth}, nil
}

// Type is TypeFanatics.
func (f *Fanatics) Type() string { return TypeFanatics }

var (
	fanaticsHead  = []byte(`{"accounts":[`)
	fanaticsComma = []byte(`,`)
	fanaticsEnd   = []byte(`]}`)
)

// Limits is the vendor's.
func (f *Fanatics) Limits() Limits {
	return Limits{Items: fanaticsAccounts, Frame: len(fanaticsHead) + len(fanaticsEnd), Overhead: len(fanaticsComma)}
}

// Deliver sends the items in one request, in which items of one account are one (Merge), and share its outcome. A tier that is refused
// takes those along that it was merged with: that rejection is Shared.
func (f *Fanatics) Deliver(ctx context.Context, items []Item, idempotencyKey string) ([]Outcome, error) {
	if len(items) > fanaticsAccounts {
		return nil, &RequestError{Class: ClassTooLarge, Reason: fmt.Sprintf("the endpoint takes %d accounts a request", fanaticsAccounts)}
	}
	accounts := make([]string, len(items)) // of each item
	bodies := make([][]byte, 0, len(items))
	place := make(map[string]int, len(items)) // of each account in bodies
	for i := range items {
		account, err := accountOf(items[i].Body)
		if err != nil {
			return nil, &RequestError{Class: ClassBadRequest, Reason: err.Error()}
		}
		accounts[i] = account
		at, twice := place[account]
		if !twice {
			place[account] = len(bodies)
			bodies = append(bodies, items[i].Body)
			continue
		}
		if bodies[at], err = f.Merge(nil, bodies[at], items[i].Body); err != nil {
			return nil, &RequestError{Class: ClassBadRequest, Reason: err.Error()}
		}
	}
	got, err := f.post(ctx, fanaticsPath, fanaticsBody(bodies), len(bodies), idempotencyKey)
	if err != nil {
		return nil, err
	}
	return f.settle(got, accounts)
}

func fanaticsBody(bodies [][]byte) *body {
	request := newBody(2*len(bodies) + 1)
	before := fanaticsHead
	for _, b := range bodies {
		request.add(before)
		request.add(b)
		before = fanaticsComma
	}
	request.add(fanaticsEnd)
	return request
}

// settle finds the result of each item's account. An account without one has failed: approvals cannot be read back.
func (f *Fanatics) settle(got *answer, accounts []string) ([]Outcome, error) {
	var reply struct {
		Accounts *[]struct {
			Account text `json:"account_tenant_fanid"`
			Result  text `json:"result"`
			Details text `json:"details"`
		} `json:"accounts"`
		Errors []json.RawMessage `json:"errors"`
		RC     text              `json:"rc"`
		At     text              `json:"timestamp"`
	}
	if instead := got.read(&reply); instead != "" {
		return nil, f.notUnderstood(got, instead)
	}
	results := make(map[string]Outcome, len(accounts))
	switch {
	case reply.Accounts != nil && len(*reply.Accounts) > 0:
	case len(reply.Errors) == 0:
		return nil, f.notUnderstood(got, "has no results")
	default:
		reason, code, trace := complaint(got.body)
		return nil, &RequestError{Class: ClassBadRequest, Status: got.status, Reason: f.auth.redact(reason), Code: code, Trace: trace}
	}
	for _, r := range *reply.Accounts {
		account := strings.ToLower(string(r.Account))
		switch {
		case !strings.EqualFold(string(r.Result), "ok"):
			reason := first(string(r.Details), "the vendor says "+string(r.Result))
			results[account] = Outcome{Status: Rejected, Reason: bounded(reason), Code: bounded(string(r.Result)), Trace: call(reply.RC, reply.At)}
		case results[account].Status == 0: // one nok among several results of an account stands
			results[account] = Outcome{Status: Delivered}
		}
	}
	items := make(map[string]int, len(accounts))
	for _, account := range accounts {
		items[account]++
	}
	outcomes := make([]Outcome, len(accounts))
	for i, account := range accounts {
		outcome, found := results[account]
		if !found {
			outcome = Outcome{Status: Rejected, Reason: "the answer lacks the account", Trace: call(reply.RC, reply.At)}
		}
		outcome.Shared = outcome.Status == Rejected && found && items[account] > 1
		outcomes[i] = outcome
	}
	return outcomes, nil
}

// Merge appends to dst one item for two of the same account: the approvals of both, the newer's where they differ. Ids come
// out in lower case.
func (f *Fanatics) Merge(dst, older, newer []byte) ([]byte, error) {
	a, err := parseApproval(older)
	if err != nil {
		return dst, err
	}
	b, err := parseApproval(newer)
	if err != nil {
		return dst, err
	}
	if a.account != b.account {
		return dst, errors.New("the items are of two accounts")
	}
	for _, t := range b.tiers {
		if i := slices.IndexFunc(a.tiers, func(old tier) bool { return old.id == t.id }); i >= 0 {
			a.tiers[i] = t
			continue
		}
		a.tiers = append(a.tiers, t)
	}
	return a.append(dst), nil
}

// Covers says whether newer tells of every tier that older tells of, so that older need not be sent.
func (f *Fanatics) Covers(newer, older []byte) bool {
	a, errOlder := parseApproval(older)
	b, errNewer := parseApproval(newer)
	if errOlder != nil || errNewer != nil || a.account != b.account {
		return false
	}
	return !slices.ContainsFunc(a.tiers, func(t tier) bool {
		return !slices.ContainsFunc(b.tiers, func(other tier) bool { return other.id == t.id })
	})
}

// approval is an item.
type approval struct {
	account string // in lower case
	tiers   []tier
}

type tier struct {
	id       string // in lower case
	approved bool
}

var errNotApproval = errors.New(`the item is not {"account_tenant_fanid": …, "invite_approval_map": {…}}`)

func accountOf(item []byte) (string, error) {
	var head struct {
		Account string `json:"account_tenant_fanid"`
	}
	if json.Unmarshal(item, &head) != nil || head.Account == "" {
		return "", errNotApproval
	}
	return strings.ToLower(head.Account), nil
}

func parseApproval(item []byte) (approval, error) {
	account, err := accountOf(item)
	if err != nil {
		return approval{}, err
	}
	var rest struct {
		Map json.RawMessage `json:"invite_approval_map"`
	}
	if json.Unmarshal(item, &rest) != nil {
		return approval{}, errNotApproval
	}
	tiers, err := parseTiers(rest.Map)
	return approval{account, tiers}, err
}

// parseTiers keeps the order of a map's entries, which a Go map would lose.
func parseTiers(object []byte) ([]tier, error) {
	decoder := json.NewDecoder(bytes.NewReader(object))
	if open, err := decoder.Token(); err != nil || open != json.Delim('{') {
		return nil, errNotApproval
	}
	var tiers []tier
	for decoder.More() {
		key, err := decoder.Token()
		id, isKey := key.(string)
		if err != nil || !isKey {
			return nil, errNotApproval
		}
		value, err := decoder.Token()
		approved, isBool := value.(bool)
		if err != nil || !isBool {
			return nil, errNotApproval
		}
		tiers = append(tiers, tier{strings.ToLower(id), approved})
	}
	return tiers, nil
}

func (a *approval) append(dst []byte) []byte {
	dst = append(dst, `{"account_tenant_fanid":`...)
	dst = appendJSON(dst, a.account)
	dst = append(dst, `,"invite_approval_map":{`...)
	for i, t := range a.tiers {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = append(appendJSON(dst, t.id), ':')
		dst = fmt.Append(dst, t.approved)
	}
	return append(dst, `}}`...)
}

func appendJSON(dst []byte, s string) []byte {
	encoded, _ := json.Marshal(s) // a string always has a JSON form
	return append(dst, encoded...)
}

// Check takes a token, and reports when there is none, or when it was granted without the scope that the endpoint needs.
func (f *Fanatics) Check(ctx context.Context) []string {
	t, warnings := f.auth.check(ctx)
	if t.scope != nil && !slices.Contains(strings.Fields(string(*t.scope)), fanaticsScope) {
		warnings = append(warnings, "the token was granted without the scope "+fanaticsScope+
			": approvals will be refused; set auth.scope, or ask Fanatics to allow it to the client")
	}
	return warnings
}

// fanaticsShape allows the given tiers only, or, when there are none, all.
func fanaticsShape(inviteOnly []string) shape.Item {
	return shape.Item{Times: shape.TimesISO, Identity: [][]string{{"account_tenant_fanid"}}, Root: &shape.Node{Kind: shape.Object, Fields: []shape.Field{
		{Name: "account_tenant_fanid", Required: true, Doc: "The customer's tenant-scoped FanID.", Node: &shape.Node{Kind: shape.String, Format: shape.FormatUUID}},
		{Name: "invite_approval_map", Required: true, Doc: "Invite-only tier ids, each true (approved) or false (not approved, or withdrawn).", Node: &shape.Node{
			Kind: shape.Map, Key: shape.FormatUUID, Elem: &shape.Node{Kind: shape.Boolean}, Check: checkTiers(inviteOnly),
		}},
	}}}
}

func checkTiers(inviteOnly []string) func([]byte) error {
	allowed := map[string]bool{}
	for _, id := range inviteOnly {
		allowed[strings.ToLower(id)] = true
	}
	return func(object []byte) error {
		tiers, err := parseTiers(object)
		if err != nil {
			return errors.New("must map tier ids to true or false")
		}
		if len(tiers) == 0 {
			return errors.New("is empty")
		}
		for _, t := range tiers {
			if len(allowed) > 0 && !allowed[t.id] {
				return errors.New("has a tier that is not in the sink's invite_only_tiers")
			}
		}
		return nil
	}
}
