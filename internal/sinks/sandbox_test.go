package sinks_test

import (
	"context"
	"fmt"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/cdcsync/cdcsync/internal/cdc"
	"github.com/cdcsync/cdcsync/internal/sandbox"
	"github.com/cdcsync/cdcsync/internal/secret"
	"github.com/cdcsync/cdcsync/internal/sinks"
)

// What a shape takes, the sandbox takes, and what a shape refuses, the sandbox refuses: two readings of the vendors' pages. Only
// of a guest's birthday the sandbox asks less.
func TestSandboxAgrees(t *testing.T) {
	vendors := sandbox.New(sandbox.Config{QueueDelay: time.Millisecond, StopChurnLooseColumns: true})
	server := httptest.NewServer(vendors.Handler())
	defer server.Close()
	tokens := sinks.NewTokens("1", nil, server.Client().Transport)
	for typ, tokenPath := range map[string]string{
		sinks.TypeStopChurn: "", sinks.TypeFanbaseQueue: "/api/token", sinks.TypeFanbaseBatch: "/api/token", sinks.TypeFanatics: "/api/oauth2/token",
	} {
		sink, err := sinks.New(sinks.Config{
			Name: typ, Type: typ, URL: server.URL, APIKey: secret.New("sandbox-key"), SystemID: 42,
			Auth: sinks.Auth{URL: server.URL + tokenPath, ClientID: "sandbox-client", ClientSecret: secret.New("sandbox-secret"), Scope: "tier_points:override"},
		}, sinks.Deps{Tokens: tokens, Transport: server.Client().Transport})
		if err != nil {
			t.Fatal(err)
		}
		spec, _ := sinks.SpecOf(typ)
		for _, body := range variants(t, typ) {
			refused := validate(spec.Item.Root, body)
			outcomes, err := sink.Deliver(t.Context(), []sinks.Item{{Op: cdc.OpInsert, Body: body}}, "key")
			if err == nil {
				outcomes[0] = confirmed(t, sink, outcomes[0])
			}
			if taken := err == nil && outcomes[0].Status == sinks.Delivered; taken != (refused == nil) && !strings.Contains(fmt.Sprint(refused), "guests") {
				t.Errorf("%s: the shape says %v, the sandbox %+v, %v about %s", typ, refused, outcomes, err, body)
			}
		}
	}
}

// variants are the vendor's examples, and what TestShapes makes of them.
func variants(t *testing.T, typ string) (bodies [][]byte) {
	t.Helper()
	for _, x := range examples {
		if x.typ != typ {
			continue
		}
		for _, item := range x.items(t, example(t, x.file)) {
			bodies = append(bodies, item.Body)
		}
		for _, v := range shapeCases {
			if v.file == x.file {
				bodies = append(bodies, edit(t, v.file, v.old, v.replacement))
			}
		}
	}
	return bodies
}

func confirmed(t *testing.T, sink sinks.Sink, outcome sinks.Outcome) sinks.Outcome {
	t.Helper()
	confirmer, ok := sink.(interface {
		Confirm(ctx context.Context, tracking string) (sinks.Outcome, error)
	})
	for deadline := time.Now().Add(5 * time.Second); ok && time.Now().Before(deadline) &&
		(outcome.Status == sinks.Accepted || outcome.Status == sinks.Retry && strings.HasPrefix(outcome.Reason, "the queue says p")); {
		next, err := confirmer.Confirm(t.Context(), outcome.Tracking)
		if err != nil {
			t.Fatal(err)
		}
		next.Tracking = outcome.Tracking
		outcome = next
	}
	return outcome
}
