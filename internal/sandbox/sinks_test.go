package sandbox_test

import (
	"context"
	"errors"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/cdcsync/cdcsync/internal/cdc"
	"github.com/cdcsync/cdcsync/internal/sandbox"
	"github.com/cdcsync/cdcsync/internal/secret"
	"github.com/cdcsync/cdcsync/internal/sinks"
)

// The sinks and the sandbox were written from the vendors' pages each for itself: here they meet.
func TestSinksAndSandboxAgree(t *testing.T) {
	vendors := sandbox.New(sandbox.Config{QueueDelay: time.Millisecond})
	server := httptest.NewServer(vendors.Handler())
	t.Cleanup(server.Close)
	tokens := sinks.NewTokens("test", nil, nil)
	t.Cleanup(tokens.Close)
	open := func(typ string) sinks.Sink {
		auth := sinks.Auth{URL: server.URL + "/api/token", ClientID: "sandbox-client", ClientSecret: secret.New("sandbox-secret")}
		if typ == sinks.TypeFanatics {
			auth.URL, auth.Scope = server.URL+"/api/oauth2/token", "tier_points:override"
		}
		sink, err := sinks.New(sinks.Config{Name: typ, Type: typ, URL: server.URL, APIKey: secret.New("sandbox-key"), Auth: auth, SystemID: 42}, sinks.Deps{Tokens: tokens})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(sink.Close)
		return sink
	}
	fan := func(cpf string) string {
		return `{"data":{"identity":0,"name1":"N","birthday":1,"birthMonth":2,"birthYear":2000},"numbers":[{"numberType":1,"number":"` + cpf + `"}]}`
	}
	approval := func(id string) string {
		return `{"account_tenant_fanid":"` + id + `","invite_approval_map":{"12345678-1234-1234-dddd-eeeeeeeeeeee":true}}`
	}
	row := `{"brandId":1,"tableName":"user","createdAt":1694357675000,"updatedAt":1694357675000,"data":{"id":1}}`
	for _, test := range []struct {
		typ    string
		bodies []string
		want   []sinks.Status
		faults []sandbox.Fault
	}{
		{sinks.TypeStopChurn, []string{row, row}, []sinks.Status{sinks.Delivered, sinks.Delivered}, nil},
		{sinks.TypeFanbaseQueue, []string{`{"id":"1","cpf":null}`}, []sinks.Status{sinks.Accepted}, nil},
		{sinks.TypeFanbaseBatch, []string{fan("12345678901"), fan("1"), fan("12345678903")}, []sinks.Status{sinks.Delivered, sinks.Rejected, sinks.Delivered}, nil},
		{
			sinks.TypeFanbaseBatch,
			[]string{fan("12345678901"), fan("12345678902"), fan("12345678903")},
			[]sinks.Status{sinks.Delivered, sinks.Rejected, sinks.Delivered},
			[]sandbox.Fault{{Kind: sandbox.OutOfOrder}, {Kind: sandbox.RevokeTokens, Count: 1}, {Kind: sandbox.Reject, Contains: "12345678902"}},
		},
		{
			sinks.TypeFanatics,
			[]string{approval("aaaaaaaa-bbbb-cccc-dddd-000000000001"), approval("aaaaaaaa-bbbb-cccc-dddd-000000000002")},
			[]sinks.Status{sinks.Rejected, sinks.Delivered},
			[]sandbox.Fault{{Kind: sandbox.OutOfOrder}, {Kind: sandbox.RevokeTokens, Count: 1}, {Kind: sandbox.Reject, Contains: "000000000001"}},
		},
	} {
		vendors.ClearFaults()
		for _, f := range test.faults {
			f.Endpoint = test.typ
			if _, err := vendors.AddFault(f); err != nil {
				t.Fatal(err)
			}
		}
		sink := open(test.typ)
		items := make([]sinks.Item, len(test.bodies))
		for i, body := range test.bodies {
			items[i] = sinks.Item{ID: string(rune('a' + i)), Op: cdc.OpInsert, Body: []byte(body)}
		}
		outcomes, err := sink.Deliver(t.Context(), items, "key")
		if err != nil || len(outcomes) != len(test.want) {
			t.Errorf("%s: %d outcomes, %v", test.typ, len(outcomes), err)
			continue
		}
		for i, o := range outcomes {
			if o.Status != test.want[i] {
				t.Errorf("%s: item %d is %v (%s), want %v", test.typ, i, o.Status, o.Reason, test.want[i])
			}
		}
		if test.typ == sinks.TypeFanbaseQueue {
			confirm(t, sink, vendors, outcomes[0].Tracking)
		}
	}
}

func confirm(t *testing.T, sink sinks.Sink, vendors *sandbox.Server, tracking string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for vendors.Queue()[0].Status != "completed" && ctx.Err() == nil {
		time.Sleep(time.Millisecond)
	}
	queue, ok := sink.(interface {
		Confirm(ctx context.Context, tracking string) (sinks.Outcome, error)
	})
	if !ok {
		t.Fatal("the queue's sink cannot confirm")
	}
	if o, err := queue.Confirm(ctx, tracking); err != nil || o.Status != sinks.Delivered {
		t.Errorf("confirmation: %+v, %v", o, errors.Join(err, ctx.Err()))
	}
}
