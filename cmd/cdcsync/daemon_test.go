package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"iter"
	"log/slog"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/cdcsync/cdcsync/internal/admin"
	"github.com/cdcsync/cdcsync/internal/secret"
)

// fakeDaemon is what a daemon's admin listener shows, with one dead letter.
type fakeDaemon struct {
	status admin.Status
	asked  []string
	broken bool // going over the letters fails
}

func (d *fakeDaemon) Status() admin.Status { return d.status }

func (d *fakeDaemon) Pause(_ context.Context, sink string) error {
	d.asked = append(d.asked, "pause "+sink)
	return nil
}

func (d *fakeDaemon) Resume(_ context.Context, sink string) error {
	return &admin.Error{Kind: admin.KindNotFound, Reason: "there is no sink " + sink, Solution: "there are crm"}
}

func (d *fakeDaemon) Letters(_ context.Context, f admin.LetterFilter) iter.Seq2[admin.Letter, error] {
	return func(yield func(admin.Letter, error) bool) {
		if f.Sink == "" || f.Sink == "crm" {
			letter, _ := d.Letter(context.Background(), "17")
			if !yield(letter, nil) {
				return
			}
		}
		if d.broken {
			yield(admin.Letter{}, context.DeadlineExceeded)
		}
	}
}

func (d *fakeDaemon) Letter(_ context.Context, id string) (admin.Letter, error) {
	if id != "17" {
		return admin.Letter{}, &admin.Error{Kind: admin.KindNotFound, Reason: "there is no dead letter " + id}
	}
	return admin.Letter{
		ID: "17", State: admin.LetterOpen, Sink: "crm", Mapping: "users", Table: "public.users", Op: "update", Key: "42", Reason: "data.email: is not an address",
		Status: 400, Attempts: 1, ParkedAt: time.Now().Add(-90 * time.Second), Item: json.RawMessage(`{"id":42}`),
	}, nil
}

func (d *fakeDaemon) Retry(_ context.Context, which admin.Selection, force bool) ([]admin.Retried, error) {
	encoded, err := json.Marshal(which)
	d.asked = append(d.asked, "retry "+string(encoded))
	results := []admin.Retried{{ID: "17", Outcome: admin.RetryQueued}}
	if !force {
		results = append(results, admin.Retried{ID: "18", Outcome: "rejected", Reason: "no column x"})
	}
	return results, err
}

func (d *fakeDaemon) Discard(_ context.Context, which admin.Selection) (int, error) {
	encoded, err := json.Marshal(which)
	d.asked = append(d.asked, "discard "+string(encoded))
	return 3, err
}

// command runs cdcsync against the daemon, if there is one, and returns what it printed.
func command(t *testing.T, d *fakeDaemon, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	address := "127.0.0.1:1" // nobody listens there
	if d != nil {
		parts := admin.Parts{Pipeline: d, DeadLetters: d, Metrics: prometheus.NewRegistry()}
		server, err := admin.New(admin.Config{Listen: address, Token: secret.New("s3cret"), Version: "v1.2.3"}, parts, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		listener := httptest.NewServer(server.Handler())
		defer listener.Close()
		address = strings.TrimPrefix(listener.URL, "http://")
	}
	path := filepath.Join(t.TempDir(), "config.yaml")
	// The rest of the configuration is not at hand here, nor is it needed.
	config := "source: {url: \"${NOT_SET_HERE}\"}\nadmin: {listen: \"" + address + "\", token: s3cret}\n"
	if err := os.WriteFile(path, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	var out, errs bytes.Buffer
	code = run(t.Context(), append(args, "--config", path), strings.NewReader(""), &out, &errs)
	return code, out.String(), errs.String()
}

func TestCommandsOfARunningDaemon(t *testing.T) {
	running := admin.Status{
		Source: admin.Source{Slot: "cdcsync", State: admin.SourceStreaming},
		Sinks:  []admin.Sink{{Name: "crm", Type: "stopchurn", State: admin.SinkRunning}},
	}
	blocked := running
	blocked.Sinks = []admin.Sink{{Name: "crm", Type: "stopchurn", State: admin.SinkBlocked, Reason: "401"}}

	for name, c := range map[string]struct {
		args   []string
		status admin.Status
		broken bool
		code   int
		want   string // in what is printed
		asked  string // of the daemon
	}{
		"status":               {args: []string{"status"}, want: "cdcsync v1.2.3, up"},
		"status as JSON":       {args: []string{"status", "-o", "json"}, want: `"slot": "cdcsync"`},
		"check, fine":          {args: []string{"status", "--check"}},
		"check, not ready":     {args: []string{"status", "--check"}, status: blocked, code: exitFailed, want: "sink crm is blocked: 401"},
		"pause":                {args: []string{"pause", "crm"}, want: "crm is paused\n", asked: "pause crm"},
		"pause nothing":        {args: []string{"pause"}, code: exitUsage, want: "accepts 1 arg"},
		"resume a wrong name":  {args: []string{"resume", "cmr"}, code: exitFailed, want: "there is no sink cmr; there are crm"},
		"list":                 {args: []string{"dlq", "list"}, want: "17  crm   public.users  update  42   1m30s  open   data.email: is not an address"},
		"list, none":           {args: []string{"dlq", "list", "--sink", "fans"}, want: "no dead letters\n"},
		"list, wrong state":    {args: []string{"dlq", "list", "--state", "dead"}, code: exitFailed, want: "there are open, superseded, replaced and unwanted"},
		"show":                 {args: []string{"dlq", "show", "17"}, want: "item, as rendered:\n{\"id\":42}\n"},
		"show a wrong id":      {args: []string{"dlq", "show", "71"}, code: exitFailed, want: "there is no dead letter 71"},
		"retry by id":          {args: []string{"dlq", "retry", "17", "18"}, want: "18 is rejected: no column x\n1 of 2 on their way", asked: `retry {"ids":["17","18"]}`},
		"retry by age":         {args: []string{"dlq", "retry", "--older-than", "1h", "--force"}, want: "1 of 1 on their way", asked: `retry {"filter":{"older_than":"1h0m0s"}}`},
		"retry nothing":        {args: []string{"dlq", "retry"}, code: exitFailed, want: "nothing is selected"},
		"discard all":          {args: []string{"dlq", "discard", "--all"}, want: "3 discarded\n", asked: `discard {"all":true}`},
		"export":               {args: []string{"dlq", "export"}, want: `"item":{"id":42}}` + "\n"},
		"export that broke":    {args: []string{"dlq", "export"}, broken: true, code: exitFailed, want: "incomplete"},
		"dlq alone says more":  {args: []string{"dlq"}, want: "Available Commands"},
		"wrong output":         {args: []string{"status", "-o", "xml"}, code: exitUsage, want: "neither text nor json"},
		"list as JSON":         {args: []string{"dlq", "list", "-o", "json"}, want: `"reason": "data.email: is not an address"`},
		"show as JSON":         {args: []string{"dlq", "show", "17", "-o", "json"}, want: `"item":{"id":42}`},
		"retry as JSON":        {args: []string{"dlq", "retry", "--all", "-o", "json"}, want: `"outcome": "queued"`, asked: `retry {"all":true}`},
		"more than the limit":  {args: []string{"dlq", "list", "--limit", "2000"}, code: exitFailed, want: "limit must be from 1 to 1000"},
		"discard superseded":   {args: []string{"dlq", "discard", "--state", "superseded"}, want: "3 discarded", asked: `discard {"filter":{"state":"superseded"}}`},
		"ids and a filter too": {args: []string{"dlq", "discard", "17", "--sink", "crm"}, code: exitFailed, want: "cannot be combined"},
	} {
		t.Run(name, func(t *testing.T) {
			d := &fakeDaemon{status: c.status, broken: c.broken}
			if c.status.Sinks == nil {
				d.status = running
			}
			code, stdout, stderr := command(t, d, c.args...)
			if code != c.code {
				t.Errorf("exit %d, want %d", code, c.code)
			}
			if !strings.Contains(stdout+stderr, c.want) {
				t.Errorf("printed %q and %q, want %q", stdout, stderr, c.want)
			}
			if got := strings.Join(d.asked, "; "); got != c.asked {
				t.Errorf("asked the daemon %q, want %q", got, c.asked)
			}
		})
	}
}

func TestNoDaemon(t *testing.T) {
	code, _, stderr := command(t, nil, "status")
	if code != exitFailed || !strings.Contains(stderr, `start it with "cdcsync run"`) {
		t.Errorf("exit %d, %q", code, stderr)
	}
}

// A file of dead letters that broke off must not look like all of them.
func TestExportToAFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "letters.jsonl")
	d := new(fakeDaemon)
	d.broken = true
	if code, _, stderr := command(t, d, "dlq", "export", "--out", path); code != exitFailed {
		t.Errorf("exit %d, %q", code, stderr)
	}
	if left, _ := filepath.Glob(filepath.Dir(path) + "/*"); len(left) != 0 {
		t.Errorf("left behind: %q", left)
	}
	d.broken = false
	if code, _, stderr := command(t, d, "dlq", "export", "--out", path); code != exitFine {
		t.Errorf("exit %d, %q", code, stderr)
	}
	if text, err := os.ReadFile(path); err != nil || strings.Count(string(text), "\n") != 1 {
		t.Errorf("%q, %v", text, err)
	}
}

func TestSinksAreCompleted(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(path, []byte("sinks: {crm: {type: stopchurn}, fans: {type: fanbase_queue}}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	run(t.Context(), []string{"__complete", "pause", "--config", path, ""}, strings.NewReader(""), &out, io.Discard)
	if !strings.HasPrefix(out.String(), "crm\nfans\n") {
		t.Errorf("offered %q", out.String())
	}
}
