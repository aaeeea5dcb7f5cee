package sinks

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/cdcsync/cdcsync/internal/cdc"
	"github.com/cdcsync/cdcsync/internal/shape"
)

const stopChurnPath = "/client-data/update"

// StopChurn sends row changes to POST /client-data/update. The endpoint acknowledges a request as a whole, and a 400 does not
// say whether a part of it was taken: items are full rows, so sending them again in halves does no harm.
type StopChurn struct{ *caller }

func newStopChurn(cfg Config, deps Deps) (Sink, error) {
	if !fitsHeader(cfg.APIKey.Reveal()) {
		return nil, fmt.Errorf("sink %s: api_key: holds a control character, such as the end of a line", cfg.Name)
	}
	c, err := newCaller(cfg, deps, apiKey{cfg.APIKey})
	if err != nil {
		return nil, err
	}
	return &StopChurn{c}, nil
}

// Type is TypeStopChurn.
func (s *StopChurn) Type() string { return TypeStopChurn }

// What stands before an item of each operation. All but the first item of a request begin with the end of the one before.
var (
	stopChurnFirst = [...][]byte{
		cdc.OpInsert: []byte(`{"data":[{"type":"insert","data":`),
		cdc.OpUpdate: []byte(`{"data":[{"type":"update","data":`),
		cdc.OpDelete: []byte(`{"data":[{"type":"delete","data":`),
		cdc.OpRead:   []byte(`{"data":[{"type":"insert","data":`),
	}
	stopChurnNext = [...][]byte{
		cdc.OpInsert: []byte(`},{"type":"insert","data":`),
		cdc.OpUpdate: []byte(`},{"type":"update","data":`),
		cdc.OpDelete: []byte(`},{"type":"delete","data":`),
		cdc.OpRead:   []byte(`},{"type":"insert","data":`),
	}
	stopChurnEnd = []byte(`}]}`)
)

// Limits is only the envelope: the vendor documents none.
func (s *StopChurn) Limits() Limits {
	return Limits{Frame: len(`{"data":[]}`), Overhead: len(`{"type":"insert","data":},`)}
}

// Deliver sends the items in one request, in order.
func (s *StopChurn) Deliver(ctx context.Context, items []Item, idempotencyKey string) ([]Outcome, error) {
	request := newBody(2*len(items) + 1)
	before := &stopChurnFirst
	for i := range items {
		op := items[i].Op
		if int(op) >= len(before) || before[op] == nil {
			return nil, &RequestError{Class: ClassBadRequest, Reason: "StopChurn has no operation " + op.String()}
		}
		request.add(before[op])
		request.add(items[i].Body)
		before = &stopChurnNext
	}
	request.add(stopChurnEnd)
	got, err := s.post(ctx, stopChurnPath, request, len(items), idempotencyKey)
	if err != nil {
		return nil, err
	}
	return s.settle(got, len(items))
}

// settle takes {"statusCode":200}, the only success that is documented. An answer without a body, as a gateway may make of it, is taken for
// it too, and counted.
func (s *StopChurn) settle(got *answer, items int) ([]Outcome, error) {
	if len(bytes.TrimSpace(got.body)) == 0 && got.opaque == "" {
		s.leniently()
		return delivered(items), nil
	}
	var reply struct {
		StatusCode *text `json:"statusCode"`
		Success    *bool `json:"success"`
		Error      text  `json:"error"`
	}
	if instead := got.read(&reply); instead != "" {
		return nil, s.notUnderstood(got, instead)
	}
	if reply.StatusCode == nil {
		return nil, s.notUnderstood(got, "has no statusCode")
	}
	status, err := strconv.Atoi(string(*reply.StatusCode))
	switch {
	case err == nil && status >= 400 && status <= 599: // the failures that are documented, in an answer that says success
		refused := *got
		refused.status = status
		return nil, s.failure(&refused, "")
	case err != nil || status != http.StatusOK:
		return nil, s.notUnderstood(got, "has a statusCode other than 200")
	case reply.Error != "" || reply.Success != nil && !*reply.Success:
		return nil, s.notUnderstood(got, "says both success and failure")
	}
	return delivered(items), nil
}

var allDelivered atomic.Pointer[[]Outcome]

// delivered says of n items that they are. The outcomes are shared: nobody writes to them.
func delivered(n int) []Outcome {
	if all := allDelivered.Load(); all != nil && len(*all) >= n {
		return (*all)[:n:n]
	}
	outcomes := make([]Outcome, n)
	for i := range outcomes {
		outcomes[i].Status = Delivered
	}
	allDelivered.Store(&outcomes) // of two at a time either is right
	return outcomes
}

func stopChurnShape() shape.Item {
	return shape.Item{Times: shape.TimesUnixMilli, Identity: [][]string{{"brandId"}, {"tableName"}, {"data", "id"}}, Root: &shape.Node{Kind: shape.Object, Fields: []shape.Field{
		{Name: "brandId", Required: true, Doc: "The brand's id in StopChurn.", Node: &shape.Node{Kind: shape.Number, Check: checkBrand}},
		{Name: "tableName", Required: true, Doc: "The table as it is named in StopChurn's Back Office.", Node: notBlank()},
		{Name: "data", Required: true, Doc: "The whole row: every column of the table's definition.", Node: &shape.Node{
			Kind: shape.Object, Open: true, Fields: []shape.Field{
				{Name: "id", Required: true, Doc: "The row's identifier, a string or a number.", Node: &shape.Node{Kind: shape.Any, Check: checkID}},
			},
		}},
		{Name: "createdAt", Required: true, Doc: "When the row was created, in unix milliseconds.", Node: milliseconds()},
		{Name: "updatedAt", Required: true, Doc: "When the row was updated, in unix milliseconds.", Node: milliseconds()},
	}}}
}

// milliseconds refuses what must be another unit: seconds of 1973 to 5138, and microseconds. What is less is a day of January 1970, or a constant.
func milliseconds() *shape.Node {
	const seconds, least, most = 100_000_000, 100_000_000_000, 100_000_000_000_000
	return &shape.Node{Kind: shape.Number, Check: func(value []byte) error {
		f, err := parseNumber(value)
		switch size := math.Abs(f); {
		case err != nil || size > most:
			return errors.New("is not in milliseconds since 1970: it is too large, such as microseconds")
		case f != math.Trunc(f):
			return errors.New("is not in milliseconds since 1970: it has a fraction")
		case size >= seconds && size < least:
			return errors.New("is not in milliseconds since 1970: it is in seconds, it seems; a timestamp column is sent in milliseconds by itself, and =ms(column) computes them")
		}
		return nil
	}}
}

// parseNumber parses a JSON number, mostly one of digits only, for which nothing is allocated.
func parseNumber(value []byte) (float64, error) {
	n, exact := 0, len(value) < len("1000000000000000000")
	for _, b := range value {
		exact = exact && '0' <= b && b <= '9'
		n = 10*n + int(b-'0')
	}
	if exact {
		return float64(n), nil
	}
	return strconv.ParseFloat(string(value), 64)
}

// checkBrand wants a whole number.
func checkBrand(value []byte) error {
	if f, err := parseNumber(value); err != nil || f != math.Trunc(f) {
		return errors.New("must be a whole number")
	}
	return nil
}

func checkID(value []byte) error {
	if len(value) == 0 || value[0] != '"' && value[0] != '-' && (value[0] < '0' || value[0] > '9') {
		return errors.New("must be a string or a number")
	}
	if value[0] == '"' && blank(value[1:len(value)-1]) {
		return errors.New("is blank")
	}
	return nil
}

// blank reports whether a JSON string's content has nothing but white space, which may be escaped.
func blank(content []byte) bool {
	var s string
	return json.Unmarshal(append(append([]byte{'"'}, content...), '"'), &s) == nil && strings.TrimSpace(s) == ""
}
