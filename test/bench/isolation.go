package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/sourcegraph/conc/pool"

	"github.com/cdcsync/cdcsync/internal/sandbox"
)

// fourSchema has a table for each of four sinks. One transaction writes a row of each, with the same number.
const fourSchema = `
create table users (id bigint primary key, name text);
alter table users replica identity full;
create table fandata (id bigint primary key, cpf text);
create table fans (id bigint primary key, name text, cpf text, born date);
create table approvals (fan_id uuid, tier_id uuid, approved boolean, primary key (fan_id, tier_id));`

const insertFour = `
with n as (select $1::bigint as n, '9' || lpad($1::text, 10, '0') as cpf),
	a as (insert into users select n, 'First Last' from n), b as (insert into fandata select n, cpf from n), c as (insert into fans select n, 'First Last', cpf, '1990-08-15' from n)
insert into approvals select ('00000000-0000-4000-8000-' || lpad(n::text, 12, '0'))::uuid, '00000000-0000-4000-8000-0000000000aa', true from n`

// member is one of the four sinks, with its mapping.
type member struct{ endpoint, path, sink, mapping string }

var members = []member{
	{
		"stopchurn", "/client-data/update",
		`crm: {type: stopchurn, url: "VENDOR", api_key: sandbox-key}`,
		`{table: users, sink: crm, item: {brandId: 1, tableName: users, createdAt: 1700000000000, updatedAt: 1700000000000, data: {"*": {}}}}`,
	},
	{
		"fanbase_queue", "/api/v1/integration/queue",
		`queue: {type: fanbase_queue, url: "VENDOR", auth: {url: "VENDOR/api/token", client_id: sandbox-client, client_secret: sandbox-secret}}`,
		`{table: fandata, sink: queue, item: {id: =string(id), cpf: $cpf}}`,
	},
	{
		"fanbase_batch", "/api/v2/IF_ID_Batch",
		`registry: {type: fanbase_batch, url: "VENDOR", auth: {url: "VENDOR/api/token", client_id: sandbox-client, client_secret: sandbox-secret}, system_id: 42}`,
		`{table: fans, sink: registry, item: {data: {identity: 0, name1: $name, birthday: =day(born), birthMonth: =month(born), birthYear: =year(born)}, numbers: [{numberType: 1, number: $cpf}]}}`,
	},
	{
		"fanatics_approvals", "/v2/tier-points/accounts",
		`tiers: {type: fanatics_approvals, url: "VENDOR", auth: {url: "VENDOR/api/oauth2/token", client_id: sandbox-client, client_secret: sandbox-secret}}`,
		`{table: approvals, sink: tiers, item: {account_tenant_fanid: $fan_id, invite_approval_map: {"=tier_id": $approved}}}`,
	},
}

// fourConfig is the configuration of the members, but for the one at a path.
func fourConfig(without string) string {
	sinks, mappings := []string{"sinks:"}, []string{"mappings:"}
	for _, m := range members {
		if m.path != without {
			sinks, mappings = append(sinks, "  "+m.sink), append(mappings, "  - "+m.mapping)
		}
	}
	return "source: {url: URL, slot: SLOT}\nbuffer: {dir: \"BUFFER\"}\nadmin: {listen: \"ADMIN\"}\n" +
		strings.Join(slices.Concat(sinks, mappings), "\n") + "\n"
}

// four is a daemon with four sinks at one sandbox in this process.
type four struct {
	*daemon
	sandbox *sandbox.Server
	ill     illness
	stop    func() error
}

// startFour makes a sandbox, and a daemon on a slot of its own, without the sink at a path. Its stop ends them.
func (b *bench) startFour(ctx context.Context, url, slot string, ill illness, without string) (*four, error) {
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	f := &four{sandbox: sandbox.New(sandbox.Config{QueueDelay: time.Millisecond}), ill: ill}
	server := &http.Server{Handler: f.ill.treat(f.sandbox.Handler()), ReadHeaderTimeout: time.Minute}
	serving := pool.New().WithErrors()
	serving.Go(func() error {
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	})
	f.daemon, err = b.launch(ctx, slot, func(buffer, admin string) string {
		return strings.NewReplacer("URL", strconv.Quote(url), "SLOT", slot, "BUFFER", buffer, "ADMIN", admin, "VENDOR", "http://"+listener.Addr().String()).Replace(fourConfig(without))
	})
	if err != nil {
		return nil, errors.Join(err, server.Close(), serving.Wait())
	}
	f.stop = func() error {
		err := f.command.Process.Kill() // a slow vendor would hold the drain
		f.waiting.Wait()
		return errors.Join(err, server.Close(), serving.Wait())
	}
	return f, f.ready(ctx)
}

// illness is what one vendor's endpoint suffers from.
type illness struct {
	name     string
	endpoint string // the path of the one that is ill; empty for none
	answer   func(w http.ResponseWriter, r *http.Request, well http.Handler)
}

func illnesses() []illness {
	return []illness{
		{name: "all well"},
		{name: "StopChurn down", endpoint: "/client-data/update", answer: func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
			w.WriteHeader(http.StatusServiceUnavailable)
		}},
		{name: "Fanbase batch slow, 10 s", endpoint: "/api/v2/IF_ID_Batch", answer: func(w http.ResponseWriter, r *http.Request, well http.Handler) {
			select {
			case <-time.After(10 * time.Second):
				well.ServeHTTP(w, r)
			case <-r.Context().Done():
			}
		}},
		{name: "Fanbase queue limited, 1/s", endpoint: "/api/v1/integration/queue", answer: limited()},
	}
}

// limited takes one request a second and answers the others with 429.
func limited() func(http.ResponseWriter, *http.Request, http.Handler) {
	var mu sync.Mutex
	var next time.Time
	return func(w http.ResponseWriter, r *http.Request, well http.Handler) {
		mu.Lock()
		now := time.Now()
		taken := now.After(next)
		if taken {
			next = now.Add(time.Second)
		}
		mu.Unlock()
		if taken {
			well.ServeHTTP(w, r)
			return
		}
		w.Header().Set("Retry-After", "1")
		w.WriteHeader(http.StatusTooManyRequests)
	}
}

func (i illness) treat(well http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if i.endpoint != "" && r.URL.Path == i.endpoint {
			i.answer(w, r, well)
			return
		}
		well.ServeHTTP(w, r)
	})
}

// isolation takes each sink's latency at a daemon of which one vendor is ill, and at a second daemon on the same database at the same time, which
// does without that sink: what else the machine does falls on both. The figures are those of the round in the middle.
func (b *bench) isolation(ctx context.Context) error {
	const share = 4 // of the latency run's rate: four sinks write four rows a transaction
	rate := max(1, b.rate/share)
	fmt.Printf("\nIsolation: %d transactions a second with a row for each of four sinks, %d rounds; commit to vendor, p99 in ms (and of a daemon beside it without the ill one)\n\n%-28s", rate, b.rounds, "")
	for _, m := range members {
		fmt.Printf("%26s", m.endpoint)
	}
	fmt.Println()
	for n, ill := range illnesses() {
		pairs := make(map[string][]pair)
		for round := range b.rounds {
			got, err := b.isolated(ctx, fmt.Sprintf("isolation_%d_%d", n, round), ill, rate)
			if err != nil {
				return fmt.Errorf("%s: %w", ill.name, err)
			}
			for endpoint, p := range got {
				pairs[endpoint] = append(pairs[endpoint], p)
			}
		}
		fmt.Printf("%-28s", ill.name)
		for _, m := range members {
			fmt.Printf("%26s", middlePair(pairs[m.endpoint]))
		}
		fmt.Println()
	}
	fmt.Println("\ntarget: the others within 20 %; the first line shows what chance does")
	return nil
}

// pair is a p99 beside an ill vendor, and without it.
type pair struct{ ill, without time.Duration }

func (p pair) ratio() float64 { return float64(p.ill) / float64(p.without) }

func middlePair(all []pair) string {
	if len(all) == 0 {
		return "ill"
	}
	slices.SortFunc(all, func(a, b pair) int { return cmp.Compare(a.ratio(), b.ratio()) })
	p := all[len(all)/2]
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
	return fmt.Sprintf("%.2f (%.2f: %+.0f %%)", ms(p.ill), ms(p.without), 100*(p.ratio()-1))
}

// isolated is one round: each well endpoint's p99 from commit to arrival.
func (b *bench) isolated(ctx context.Context, name string, ill illness, rate int) (p99 map[string]pair, err error) {
	url, err := b.database(ctx, name, fourSchema)
	if err != nil {
		return nil, err
	}
	measured, err := b.startFour(ctx, url, name+"_ill", ill, "")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, measured.stop()) }()
	beside, err := b.startFour(ctx, url, name+"_without", illness{}, ill.endpoint)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, beside.stop()) }()
	commits, err := writeFour(ctx, url, rate, b.period/2)
	if err != nil {
		return nil, err
	}
	well := make(map[string]bool)
	for _, m := range members {
		well[m.endpoint] = m.path != ill.endpoint
	}
	if err := errors.Join(measured.arrived(ctx, well, len(commits)), beside.arrived(ctx, well, len(commits))); err != nil {
		return nil, err
	}
	p99 = make(map[string]pair)
	control := latencies(beside.sandbox, well, commits)
	for endpoint, d := range latencies(measured.sandbox, well, commits) {
		p99[endpoint] = pair{ill: d, without: control[endpoint]}
	}
	return p99, nil
}

// writeFour commits a row for each sink, so many transactions a second, and returns when each was committed.
func writeFour(ctx context.Context, url string, rate int, period time.Duration) ([]time.Time, error) {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return nil, err
	}
	defer conn.Close(ctx)
	commits := make([]time.Time, 0, int(period.Seconds()*float64(rate)))
	began := time.Now()
	for n := range cap(commits) {
		time.Sleep(time.Until(began.Add(time.Duration(n) * time.Second / time.Duration(rate))))
		if _, err := conn.Exec(ctx, insertFour, n); err != nil {
			return nil, err
		}
		commits = append(commits, time.Now())
	}
	return commits, nil
}

// arrived waits until each endpoint that is well has taken so many items.
func (f *four) arrived(ctx context.Context, well map[string]bool, items int) error {
	const patience = 30 * time.Second
	for deadline := time.Now().Add(patience); ; {
		lacking := ""
		for endpoint, is := range well {
			if n := f.sandbox.Accepted(endpoint); is && n < uint64(items) {
				lacking = fmt.Sprintf("%s has %d of %d items", endpoint, n, items)
			}
		}
		switch {
		case lacking == "":
			return nil
		case time.Now().After(deadline):
			return fmt.Errorf("after %s %s%s", patience, lacking, f.said())
		}
		if err := f.pause(ctx, 20*time.Millisecond); err != nil {
			return err
		}
	}
}

// latencies finds each item's commit by the number in its key.
func latencies(vendors *sandbox.Server, well map[string]bool, commits []time.Time) map[string]time.Duration {
	all := make(map[string][]time.Duration)
	for _, item := range vendors.Received(sandbox.Filter{}) {
		if digits := item.Key[max(0, len(item.Key)-10):]; well[item.Endpoint] {
			n, err := strconv.Atoi(digits)
			if err == nil && n < len(commits) {
				all[item.Endpoint] = append(all[item.Endpoint], item.At.Sub(commits[n]))
			}
		}
	}
	p99 := make(map[string]time.Duration)
	for endpoint, d := range all {
		slices.SortFunc(d, cmp.Compare)
		p99[endpoint] = d[len(d)*99/100]
	}
	return p99
}

// queue takes the throughput of fanbase_queue, of which a request carries one item, at a vendor that takes 50 ms to answer.
func (b *bench) queue(ctx context.Context) (err error) {
	const (
		lanes = 8 // the default
		takes = 50 * time.Millisecond
		items = 2000
	)
	url, err := b.database(ctx, "queue", fourSchema)
	if err != nil {
		return err
	}
	f, err := b.startFour(ctx, url, "queue", illness{endpoint: "/api/v1/integration/queue", answer: func(w http.ResponseWriter, r *http.Request, well http.Handler) {
		time.Sleep(takes)
		well.ServeHTTP(w, r)
	}}, "")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.stop()) }()
	if err := execute(ctx, url, fmt.Sprintf(`insert into fandata select n, '12345678909' from generate_series(1, %d) n`, items)); err != nil {
		return err
	}
	if err := f.arrived(ctx, map[string]bool{"fanbase_queue": true}, items); err != nil {
		return err
	}
	received := f.sandbox.Received(sandbox.Filter{Endpoint: "fanbase_queue"})
	received = received[:len(received)*3/4] // as long as every lane has work: keys fall on them by chance
	took := received[len(received)-1].At.Sub(received[0].At)
	rate, most := float64(len(received)-1)/took.Seconds(), lanes/takes.Seconds()
	fmt.Printf("\nQueue: %s items of fanbase_queue, %d lanes, %s a request: %.1f items/s, %.0f %% of lanes ÷ %s\n\ntarget: at least 90 %%\n", thousands(items), lanes, takes, rate, 100*rate/most, takes)
	return nil
}
