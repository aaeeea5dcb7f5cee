package integration

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/sourcegraph/conc/pool"

	"github.com/cdcsync/cdcsync/internal/cdc"
	"github.com/cdcsync/cdcsync/internal/sandbox"
)

var soak = flag.Duration("soak", 20*time.Second, "how long TestSoak lets all vendors fail in every way")

// clubSchema is that of a club with all four vendors. The CPFs and e-mail addresses are planted: no log may hold one.
const clubSchema = `
create sequence versions;
create table users (id bigint primary key, version bigint not null default nextval('versions'), cpf text not null, email text not null, note text not null);
create table orders (id bigint primary key, user_id bigint not null references users on delete cascade, version bigint not null default nextval('versions'), note text not null);
create table fans (id bigint primary key, version bigint not null default nextval('versions'), cpf text not null, email text not null, born date, note text not null);
create table memberships (id bigint primary key, fan_id bigint not null references fans, version bigint not null default nextval('versions'), plan text not null, code text not null,
	started_at timestamptz not null default now());
create table tier_approvals (fan_id uuid, tier_id uuid, approved boolean not null, primary key (fan_id, tier_id));
alter table users replica identity full;
alter table orders replica identity full;
alter table fans replica identity full;
alter table memberships replica identity full;

create function planted_cpf(n bigint) returns text language sql as $$
	select '987.654.' || left(lpad((n % 100000)::text, 5, '0'), 3) || '-' || right(lpad((n % 100000)::text, 5, '0'), 2) $$;
create function planted_email(what text, n bigint) returns text language sql as $$ select what || n || '@planted.example' $$;

create table history (tbl text, op text, id text, version bigint, note text);
create function remember() returns trigger language plpgsql as $$
begin
	if tg_op = 'DELETE' then
		insert into history values (tg_table_name, 'delete', old.id, old.version, old.note);
	else
		insert into history values (tg_table_name, lower(tg_op), new.id, new.version, new.note);
	end if;
	return null;
end $$;
create trigger remember after insert or update or delete on users for each row execute function remember();
create trigger remember after insert or update or delete on orders for each row execute function remember();
create trigger remember after insert or update on fans for each row execute function remember();
`

// club is the configuration of four sinks at the sandbox, and their mappings. settings are those of every sink.
func (v *vendor) club(settings string) string {
	const yaml = `
sinks:
  crm: {type: stopchurn, url: "URL", api_key: sandbox-key, SETTINGS}
  queue: {type: fanbase_queue, url: "URL", auth: {url: "URL/api/token", client_id: sandbox-client, client_secret: sandbox-secret}, SETTINGS}
  registry: {type: fanbase_batch, url: "URL", auth: {url: "URL/api/token", client_id: sandbox-client, client_secret: sandbox-secret}, system_id: 42, SETTINGS}
  tiers: {type: fanatics_approvals, url: "URL",
    auth: {url: "URL/api/oauth2/token", client_id: sandbox-client, client_secret: sandbox-secret, scope: "tier_points:override"}, SETTINGS}
mappings:
  - {name: users, table: public.users, sink: crm, item: {brandId: 1, tableName: users, createdAt: 1700000000000, updatedAt: 1700000000000, data: {"*": {}}}}
  - {name: orders, table: public.orders, sink: crm, parents: [{mapping: users, key: $user_id}],
      item: {brandId: 1, tableName: orders, createdAt: 1700000000000, updatedAt: 1700000000000, data: {"*": {}}}}
  - {name: fandata, table: public.users, sink: queue, item: {id: =string(id), cpf: =digits(cpf)}}
  - name: fans
    table: public.fans
    sink: registry
    lookups:
      plans:
        key: $id
        sql: select fan_id, id::text as "externalId", 'Ativo' as status, started_at as data, code as "codigoCliente", plan as plano from memberships where fan_id = any($1) order by id
        many: true
    item:
      data: {identity: 0, name1: $note, socialName: =string(version), birthday: =day(born), birthMonth: =month(born), birthYear: =year(born)}
      numbers: [{numberType: 1, number: =digits(cpf), verified: 1}, {numberType: 4, number: $email}]
      memberships: =lookup.plans
      # A fan that a membership sends again is as it now is, and may be ahead of the stream.
      sysValues: [{key: from, value: '=op in ["insert", "read"] || old.version != version ? "stream" : "refresh"'}]
      pwdhash: =sha256(email)
  - {name: memberships, table: public.memberships, sink: registry, refresh: {table: public.fans, key: id, by: $fan_id}}
  - {name: approvals, table: public.tier_approvals, sink: tiers, item: {account_tenant_fanid: $fan_id, invite_approval_map: {"=tier_id": $approved}}}
`
	return strings.NewReplacer("URL", v.url, "SETTINGS", settings).Replace(yaml)
}

// clubWorkload writes at random to the tables of clubSchema. What a vendor is to reject has a note with poison in it.
type clubWorkload struct {
	url     string
	writers int
	seed    uint64
	pause   time.Duration // between transactions of a writer, on average
}

const (
	clubKeys = 40
	poison   = "poison"
	// badTier is one that Fanatics refuses.
	badTier = "00000000-0000-4000-8000-0000000000ff"
)

func (w *clubWorkload) run(ctx context.Context) error {
	p := pool.New().WithContext(ctx).WithCancelOnError().WithFirstError()
	for i := range w.writers {
		p.Go(func(ctx context.Context) error {
			conn, err := pgx.Connect(ctx, w.url)
			if err != nil {
				return err
			}
			defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
			r := rand.New(rand.NewPCG(w.seed, uint64(i)))
			for ctx.Err() == nil {
				if err := w.transaction(context.WithoutCancel(ctx), conn, r); err != nil {
					return fmt.Errorf("workload: %w", err)
				}
				pause(ctx, rand.N(2*w.pause))
			}
			return nil
		})
	}
	return p.Wait()
}

func (w *clubWorkload) transaction(ctx context.Context, conn *pgx.Conn, r *rand.Rand) error {
	err := pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		for range 1 + r.IntN(4) {
			if err := w.statement(ctx, tx, r); err != nil {
				return err
			}
		}
		return nil
	})
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) && expectedCode(pgErr.Code) {
		return nil
	}
	return err
}

func (w *clubWorkload) statement(ctx context.Context, tx pgx.Tx, r *rand.Rand) error {
	id, note := r.IntN(clubKeys), fmt.Sprintf("note %d", r.IntN(1000))
	if r.IntN(20) == 0 {
		note += " " + poison
	}
	account := fmt.Sprintf("aaaaaaaa-0000-4000-8000-%012d", id%20)
	tier := []string{"00000000-0000-4000-8000-000000000001", "00000000-0000-4000-8000-000000000002", "00000000-0000-4000-8000-000000000003", badTier}[min(r.IntN(20)/6, 3)]
	var born *time.Time
	if r.IntN(20) > 0 {
		date := time.Date(1950+r.IntN(50), time.Month(1+r.IntN(12)), 1+r.IntN(28), 0, 0, 0, 0, time.UTC)
		born = &date
	}
	exec := func(sql string, args ...any) error {
		_, err := tx.Exec(ctx, sql, args...)
		return err
	}
	// A version is drawn while its key is locked, so that versions grow with the commits of a key.
	locked := func(table string, id int, sql string, args ...any) error {
		return errors.Join(exec(`select pg_advisory_xact_lock(hashtext($1), $2::int)`, table, id), exec(sql, args...))
	}
	switch r.IntN(14) {
	case 0, 1:
		return locked("users", id, `insert into users (id, cpf, email, note) values ($1, planted_cpf(currval('versions')), planted_email('user', $1), $2)
			on conflict (id) do update set version = excluded.version, cpf = planted_cpf(excluded.version), note = excluded.note`, id, note)
	case 2, 3:
		return locked("users", id, `with v as materialized (select nextval('versions') as v) update users set version = v, cpf = planted_cpf(v), note = $2 from v where id = $1`, id, note)
	case 4:
		return locked("users", id, `delete from users where id = $1`, id)
	case 5, 6:
		order := r.IntN(3 * clubKeys)
		return locked("orders", order, `insert into orders (id, user_id, note) select $1, id, $3 from users where id = $2 for share on conflict (id) do update set version = excluded.version, user_id = excluded.user_id, note = excluded.note`,
			order, id, note)
	case 7, 8:
		return locked("fans", id, `insert into fans (id, cpf, email, born, note) values ($1, planted_cpf($1), planted_email('fan', $1), $2, $3)
			on conflict (id) do update set version = excluded.version, born = excluded.born, note = excluded.note`, id, born, note)
	case 9, 10: // memberships move between fans
		return exec(`insert into memberships (id, fan_id, plan, code) select $1, id, $3, planted_cpf(id) from fans where id = $2
			on conflict (id) do update set version = excluded.version, fan_id = excluded.fan_id, plan = excluded.plan, code = excluded.code`, r.IntN(2*clubKeys), id, note)
	case 11:
		return exec(`delete from memberships where id = $1`, r.IntN(2*clubKeys))
	case 12:
		return exec(`insert into tier_approvals values ($1, $2, $3) on conflict (fan_id, tier_id) do update set approved = excluded.approved`, account, tier, r.IntN(3) > 0)
	default:
		return exec(`delete from tier_approvals where fan_id = $1 and tier_id = $2`, account, tier)
	}
}

// rules are the items that vendors reject, by what is in them. Their words quote rows, as vendors' do.
var rules = []sandbox.Fault{
	{Kind: sandbox.Reject, Endpoint: "stopchurn", Contains: poison},
	{Kind: sandbox.Reject, Endpoint: "fanbase_queue", Contains: `7"}`, Message: "CPF 98765412345 (987.654.123-45) of ana@planted.example is not registered"},
	{Kind: sandbox.Reject, Endpoint: "fanbase_batch", Contains: poison, Message: "invalid name of fan 98765412345 ana@planted.example"},
	{Kind: sandbox.Reject, Endpoint: "fanatics_approvals", Contains: badTier, Message: "Tier is not invite-only"},
	{Kind: sandbox.RejectAccount, Endpoint: "fanbase_batch", Share: 0.2, Message: "login fan1@planted.example exists"},
}

// troubles are all that a request can meet.
func troubles() []sandbox.Fault {
	return []sandbox.Fault{
		{Kind: sandbox.MissingResults, Endpoint: "fanbase_batch", Count: 4},
		{Kind: sandbox.MissingResults, Endpoint: "fanatics_approvals", Count: 3},
		{Kind: sandbox.OutOfOrder, Share: 0.4},
		{Kind: sandbox.RevokeTokens, Endpoint: "fanbase", Share: 0.005},
		{Kind: sandbox.RevokeTokens, Endpoint: "fanatics", Share: 0.03},
		{Kind: sandbox.Delay, Delay: sandbox.Duration(60 * time.Millisecond), Share: 0.15},
		{Kind: sandbox.Status, Status: 503, Share: 0.05},
		{Kind: sandbox.Status, Status: 500, Share: 0.04, AfterProcessing: true},
		{Kind: sandbox.Status, Status: 502, Body: "<html>bad gateway for ana@planted.example</html>", Share: 0.01},
		{Kind: sandbox.Status, Status: 429, RetryAfter: "1", Share: 0.01},
		{Kind: sandbox.Status, Status: 429, RetryAfter: time.Now().Add(3 * time.Second).UTC().Format(http.TimeFormat), Count: 5},
		{Kind: sandbox.ConnReset, Share: 0.02},
		{Kind: sandbox.ConnReset, Share: 0.02, AfterProcessing: true},
		{Kind: sandbox.HalfClose, Share: 0.02},
		{Kind: sandbox.Truncate, Share: 0.03},
		{Kind: sandbox.Hang, Share: 0.003},
	}
}

// All four vendors fail in every way at once; nothing is lost, keys stay in order, and what their rules reject is what waits in the dead letters.
func TestSoak(t *testing.T) {
	t.Logf("-seed %d", *seed)
	s, v := &source{url: postgres.NewDatabase(t)}, newVendor(t, sandbox.Config{Seed: *seed, TokenLife: 3 * time.Second, QueueDelay: 300 * time.Millisecond})
	s.exec(t, clubSchema)
	d := newDaemon(t, s.url, v.club("retry: {min: 10ms, max: 500ms}, timeout: 3s, dead_letters: {limit: 1000000}"))
	d.start()
	d.ready()
	for _, f := range slices.Concat(rules, troubles()) {
		v.fault(t, f)
	}

	requests := map[uint64]sandbox.Request{} // the sandbox keeps the last ones only
	w := &clubWorkload{url: s.url, writers: 4, seed: *seed, pause: 25 * time.Millisecond}
	collect := func() {
		for _, r := range v.Requests() {
			requests[r.Number] = r
		}
	}
	duringClub(t, w, func() {
		end := time.Now().Add(*soak)
		for time.Now().Before(end) {
			pause(t.Context(), time.Second)
			collect()
		}
	})
	clearTroubles(v)
	d.settled(t, s)
	collect()

	letters := d.letters(t)
	checkEvents(t, s, v, letters, poison)
	checkOrder(t, v)
	checkLetters(t, s, v, letters, requests)
	compareClub(t, s, v, letters)
	if t.Failed() {
		return
	}
	counts := map[string]uint64{}
	for _, c := range v.Counts() {
		counts[c.Endpoint] = c.Requests
	}
	var writes int
	s.each(t, `select count(*) from history`, []any{&writes}, func() {})
	t.Logf("%d writes, requests %v, %d dead letters", writes, counts, len(letters))

	mendClub(t, s, v, d, letters)
}

// duringClub runs the workload while fn does something.
func duringClub(tb testing.TB, w *clubWorkload, fn func()) {
	tb.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	writing := pool.New().WithErrors()
	writing.Go(func() error { return w.run(ctx) })
	fn()
	cancel()
	if err := writing.Wait(); err != nil {
		tb.Fatal(err)
	}
}

// clearTroubles leaves the rules.
func clearTroubles(v *vendor) {
	for _, f := range v.Faults() {
		if f.Kind != sandbox.Reject && f.Kind != sandbox.RejectAccount {
			v.ClearFaults(f.ID)
		}
	}
}

// mendClub lifts the rules and has the dead letters sent again, on the way trying every dlq command.
func mendClub(t *testing.T, s *source, v *vendor, d *daemon, letters []letter) {
	t.Helper()
	id := letters[0].ID
	if out := d.run(t, "dlq", "show", id); !strings.Contains(out, id) || !strings.Contains(out, "row:") {
		t.Errorf("dlq show:\n%s", out)
	}
	if out := d.run(t, "dlq", "list", "--limit", "5", "--sink", "queue"); strings.Count(out, "\n") < 5 {
		t.Errorf("dlq list:\n%s", out)
	}
	v.ClearFaults()
	s.exec(t, `update fans set version = nextval('versions'), born = '1990-01-01' where born is null`)
	d.settled(t, s)

	mark := lastItem(v)
	out := d.run(t, "dlq", "retry", "--all")
	t.Logf("dlq retry --all: %s", out[strings.LastIndex(strings.TrimSpace(out), "\n")+1:])
	d.settled(t, s)
	d.wait("the letters to be delivered", func() (bool, string) {
		left := open(d.letters(t))
		return len(left) == 0, fmt.Sprintf("%d letters open, such as %+v", len(left), left[:min(len(left), 3)])
	})
	d.settled(t, s) // what the retries have queued is decided, too
	compareClub(t, s, v, nil)

	superseded := map[string]bool{}
	for _, l := range letters {
		if l.State == "superseded" && l.Sink != "registry" { // a refresh may send the same again with reason
			superseded[l.Sink+" "+string(l.Item)] = true
		}
	}
	for _, item := range v.Received(sandbox.Filter{After: mark}) {
		if superseded[sinkOf[item.Endpoint]+" "+vendorItem(item)] {
			t.Errorf("a superseded letter was sent: %s %s", item.Endpoint, item.Key)
		}
	}
	if out := d.run(t, "dlq", "discard", "--all"); !regexp.MustCompile(`^\d+ discarded`).MatchString(out) {
		t.Errorf("dlq discard: %s", out)
	}
	if left := d.letters(t); len(left) > 0 {
		t.Errorf("%d letters are left", len(left))
	}
}

func lastItem(v *vendor) uint64 {
	if items := v.Received(sandbox.Filter{Limit: 1}); len(items) > 0 {
		return items[0].Seq
	}
	return 0
}

var sinkOf = map[string]string{"stopchurn": "crm", "fanbase_queue": "queue", "fanbase_batch": "registry", "fanatics_approvals": "tiers"}

// vendorItem is an item as the mapping rendered it, without what the sink puts around it.
func vendorItem(item sandbox.Item) string {
	if item.Endpoint != "stopchurn" && item.Endpoint != "fanbase_queue" {
		return string(item.Body)
	}
	var body struct{ Data json.RawMessage }
	if json.Unmarshal(item.Body, &body) != nil {
		return ""
	}
	return string(body.Data)
}

// letter is a dead letter as `dlq export` writes it.
type letter struct {
	ID, Kind, State, Sink, Mapping, Table, Op, Key, Reason string
	Item                                                   json.RawMessage
	Row, Old                                               map[string]*string
}

// row is the one that was rendered.
func (l *letter) row() map[string]*string {
	if l.Row == nil {
		return l.Old
	}
	return l.Row
}

func open(letters []letter) (left []letter) {
	for _, l := range letters {
		if l.State == "open" {
			left = append(left, l)
		}
	}
	return left
}

func (d *daemon) letters(tb testing.TB) []letter {
	tb.Helper()
	text := d.run(tb, "dlq", "export")
	var all []letter
	lines := bufio.NewScanner(strings.NewReader(text))
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		var l letter
		if err := json.Unmarshal(lines.Bytes(), &l); err != nil {
			tb.Fatalf("dlq export: %v", err)
		}
		var item bytes.Buffer
		if len(l.Item) > 0 && json.Compact(&item, l.Item) == nil {
			l.Item = item.Bytes()
		}
		all = append(all, l)
	}
	return all
}

// run is a command at the daemon, which must succeed.
func (d *daemon) run(tb testing.TB, args ...string) string {
	tb.Helper()
	out, err := exec.Command(binary, append(args, "--config", d.config)...).Output()
	if failed, ok := errors.AsType[*exec.ExitError](err); ok {
		tb.Fatalf("cdcsync %s: %v\n%s", strings.Join(args, " "), err, failed.Stderr)
	}
	if err != nil {
		tb.Fatal(err)
	}
	return string(out)
}

// settled waits until each sink has settled all that is committed now, and the vendors have decided on all that they accepted.
func (d *daemon) settled(tb testing.TB, s *source) {
	tb.Helper()
	var text string
	s.each(tb, `select pg_current_wal_insert_lsn()::text`, []any{&text}, func() {})
	now, err := cdc.ParseLSN(text)
	if err != nil {
		tb.Fatal(err)
	}
	s.exec(tb, `insert into tier_approvals values ('bbbbbbbb-0000-4000-8000-000000000000', '00000000-0000-4000-8000-000000000001', false)
		on conflict (fan_id, tier_id) do update set approved = false`)
	d.wait("every sink to have settled", func() (bool, string) {
		var status struct {
			Sinks []struct {
				Name, State, Reason string
				Delivered           cdc.LSN `json:"delivered_lsn"`
				Unconfirmed         int
			}
		}
		if err := d.status(tb.Context(), &status); err != nil {
			return false, err.Error()
		}
		for _, sink := range status.Sinks {
			if sink.Delivered < now || sink.Unconfirmed > 0 {
				return false, fmt.Sprintf("%+v, awaited %s", sink, now)
			}
		}
		return len(status.Sinks) > 0, "no sinks"
	})
}

// checkEvents: StopChurn has every write of users and orders but those with the rejected word, and per key in order; those are dead letters.
func checkEvents(tb testing.TB, s *source, v *vendor, letters []letter, rejects string) {
	tb.Helper()
	want, rejected := map[event]int64{}, map[event]int{}
	var e event
	var note string
	s.each(tb, `select tbl, op, id, version, note from history where tbl in ('users', 'orders')`, []any{&e.table, &e.op, &e.id, &e.version, &note}, func() {
		if rejects != "" && strings.Contains(note, rejects) {
			rejected[e]++
		} else {
			want[e]++
		}
	})
	got := v.events(tb)
	if lacking := missing(want, got); len(lacking) > 0 {
		tb.Errorf("%d of %d writes never arrived at StopChurn, such as %v", len(lacking), len(want), lacking[:min(len(lacking), 5)])
	}
	seen, newest := map[event]bool{}, map[string]event{}
	for _, e := range got {
		if want[e] == 0 {
			tb.Errorf("StopChurn has what was never written, or should be rejected: %v", e)
		}
		key := e.table + " " + e.id
		if !seen[e] && newest[key].version > e.version {
			tb.Errorf("%v after %v", e, newest[key])
		}
		if !seen[e] {
			newest[key] = e
		}
		seen[e] = true
	}
	for _, l := range letters {
		if l.Sink != "crm" {
			continue
		}
		row := l.row()
		version, _ := strconv.ParseInt(*row["version"], 10, 64)
		e := event{strings.TrimPrefix(l.Table, "public."), l.Op, *row["id"], version}
		if rejected[e]--; rejected[e] < 0 {
			tb.Errorf("a dead letter that no rule calls for: %v: %s", e, l.Reason)
		}
	}
	for e, n := range rejected {
		if n > 0 {
			tb.Errorf("no dead letter for %v", e)
		}
	}
}

var versionInName = regexp.MustCompile(`"socialName":"(\d+)"`)

// checkOrder: what came for a key came in order, but for repeats and for fans that a membership sent ahead.
func checkOrder(tb testing.TB, v *vendor) {
	tb.Helper()
	version := map[string]func(item sandbox.Item) int{
		"fanbase_queue": func(item sandbox.Item) int {
			var body struct{ Data struct{ CPF string } }
			_ = json.Unmarshal(item.Body, &body)
			n, _ := strconv.Atoi(strings.TrimPrefix(body.Data.CPF, "987654"))
			return n
		},
		"fanbase_batch": func(item sandbox.Item) int {
			if strings.Contains(string(item.Body), `"refresh"`) {
				return 0
			}
			n, _ := strconv.Atoi(string(versionInName.FindSubmatch(item.Body)[1]))
			return n
		},
	}
	for endpoint, of := range version {
		newest, seen := map[string]int{}, map[string]bool{}
		for _, item := range v.Received(sandbox.Filter{Endpoint: endpoint}) {
			n := of(item)
			id := fmt.Sprint(item.Key, " ", n)
			if item.Endpoint != endpoint || n == 0 || seen[id] {
				continue
			}
			seen[id] = true
			if n < newest[item.Key] {
				tb.Errorf("%s: version %d of %s after %d", endpoint, n, item.Key, newest[item.Key])
			}
			newest[item.Key] = n
		}
	}
}

// checkLetters: each item that a vendor rejected by a rule is a dead letter, and each dead letter has such an item, a null that the vendor
// does not take, or an answer that lacked it.
func checkLetters(tb testing.TB, s *source, v *vendor, letters []letter, requests map[uint64]sandbox.Request) {
	tb.Helper()
	rejected := map[string]bool{}
	isRejected := true
	for _, item := range v.Received(sandbox.Filter{Rejected: &isRejected}) {
		if item.Endpoint == "fanatics_approvals" && strings.Contains(string(item.Body), ",\"0000") {
			continue // several rows of an account: each is sent again alone
		}
		rejected[sinkOf[item.Endpoint]+" "+vendorItem(item)] = false
	}
	taken, isTaken := map[string]bool{}, false
	for _, item := range v.Received(sandbox.Filter{Rejected: &isTaken}) {
		taken[sinkOf[item.Endpoint]+" "+vendorItem(item)] = true
	}
	unlisted := map[string]bool{} // keys of items whose answer lacked a result, by sink
	for _, r := range requests {
		only := strings.Split(r.Fault, ",")
		harmless := func(kind string) bool {
			return slices.Contains([]string{"missing_results", "out_of_order", "delay", "revoke_tokens"}, kind)
		}
		if !slices.Contains(only, "missing_results") || !slices.ContainsFunc(only, harmless) || r.Status >= 300 || r.Status == 0 {
			continue
		}
		for _, item := range v.Received(sandbox.Filter{Request: r.Number}) {
			unlisted[sinkOf[item.Endpoint]+" "+item.Key] = true
		}
	}
	var local, lacking int
	for _, l := range letters {
		item := l.Sink + " " + string(l.Item)
		switch {
		case l.Sink == "crm": // checkEvents'
		case l.Kind == "account": // the fan was taken, and the login that it asks for was not made
			if !taken[item] {
				tb.Errorf("letter %s of %s is about the account of a fan that was not taken: %s", l.ID, l.Sink, l.Reason)
			}
		case strings.Contains(l.Reason, "the answer lacks"):
			lacking++
			if !unlisted[l.Sink+" "+vendorKey(l)] {
				tb.Errorf("letter %s of %s says that the answer lacks it, which it does not", l.ID, l.Sink)
			}
			if _, ok := rejected[item]; ok {
				rejected[item] = true
			}
		case l.Sink == "registry" && len(l.Item) == 0:
			local++
			if l.Row["born"] != nil {
				tb.Errorf("letter %s: %s", l.ID, l.Reason)
			}
		default:
			if _, ok := rejected[item]; !ok {
				tb.Errorf("letter %s of %s that no rule calls for: %s: %s", l.ID, l.Sink, l.Reason, l.Item)
			}
			rejected[item] = true
		}
	}
	for item, parked := range rejected {
		if !parked {
			tb.Errorf("rejected by the vendor and no dead letter: %s", item)
		}
	}
	if lacking > 0 && len(unlisted) == 0 {
		tb.Error("letters lack results that none lacked")
	}
	unborn := 0
	s.each(tb, `select count(*) from history h join fans f on h.tbl = 'fans' and f.id::text = h.id and f.version = h.version where f.born is null`, []any{&unborn}, func() {})
	if local < unborn {
		tb.Errorf("%d letters for fans without a birthday, of whom there are %d", local, unborn)
	}
}

// vendorKey is the key by which the sandbox knows a letter's record.
func vendorKey(l letter) string {
	switch l.Sink {
	case "registry":
		return strings.NewReplacer(".", "", "-", "").Replace(*l.Row["cpf"])
	case "tiers":
		return *l.row()["fan_id"]
	}
	return l.Key[strings.LastIndexByte(l.Key, ',')+1:] // brand, table, id
}

// comparisons reads each kind of record from source and vendor in one form.
func compareClub(tb testing.TB, s *source, v *vendor, letters []letter) {
	tb.Helper()
	want, got := map[string]string{}, map[string]string{}
	var key, text string
	s.each(tb, `
		select 'crm users ' || id, version || ' ' || cpf || ' ' || email || ' ' || note from users
		union all select 'crm orders ' || id, version || ' ' || user_id || ' ' || note from orders
		union all select 'queue ' || id, translate(cpf, '.-', '') from users
		union all select 'registry ' || translate(cpf, '.-', ''), version || ' ' || note || ' ' || to_char(born, 'YYYY-FMMM-FMDD') || ' ' ||
			coalesce((select string_agg(m.id || ':' || plan || ':' || code, ';' order by m.id) from memberships m where fan_id = fans.id), '') from fans where born is not null
		union all select 'tiers ' || fan_id || ' ' || tier_id, 'true' from tier_approvals where approved`,
		[]any{&key, &text}, func() { want[key] = text })
	maps.Copy(got, churned(tb, v))
	for _, q := range v.Queue() {
		if q.Status == "completed" {
			got["queue "+q.DataID] = *q.CPF
		}
	}
	maps.Copy(got, registered(tb, v))
	for account, tiers := range v.Approvals() {
		for tier, yes := range tiers {
			if yes {
				got["tiers "+account+" "+tier] = "true"
			}
		}
	}
	for _, l := range open(letters) {
		key := l.Sink + " " + vendorKey(l)
		if l.Sink == "crm" {
			key = "crm " + strings.TrimPrefix(l.Table, "public.") + " " + vendorKey(l)
		}
		for _, side := range []map[string]string{want, got} {
			maps.DeleteFunc(side, func(k, _ string) bool { return k == key || strings.HasPrefix(k, key+" ") })
		}
	}
	for key := range got { // Fanbase is not told of deletes
		if _, ok := want[key]; !ok && (strings.HasPrefix(key, "queue ") || strings.HasPrefix(key, "registry ")) {
			delete(got, key)
		}
	}
	compareRows(tb, want, got)
}

func churned(tb testing.TB, v *vendor) map[string]string {
	tb.Helper()
	rows := map[string]string{}
	for _, row := range v.Rows("") {
		var d struct {
			Version          int64
			CPF, Email, Note string
			UserID           int64 `json:"user_id"`
		}
		if err := json.Unmarshal(row.Data, &d); err != nil {
			tb.Fatal(err)
		}
		text := fmt.Sprint(d.Version, " ", d.CPF, " ", d.Email, " ", d.Note)
		if row.Table == "orders" {
			text = fmt.Sprint(d.Version, " ", d.UserID, " ", d.Note)
		}
		rows["crm "+row.Table+" "+row.ID] = text
	}
	return rows
}

func registered(tb testing.TB, v *vendor) map[string]string {
	tb.Helper()
	fans := map[string]string{}
	for _, fan := range v.Fans() {
		var data struct {
			Name1, SocialName               string
			Birthday, BirthMonth, BirthYear int
		}
		var memberships []struct{ ExternalID, Plano, CodigoCliente string }
		if err := errors.Join(json.Unmarshal(fan.Parts["data"], &data), json.Unmarshal(fan.Parts["memberships"], &memberships)); err != nil {
			tb.Fatal(err)
		}
		plans := make([]string, len(memberships))
		for i, m := range memberships {
			plans[i] = m.ExternalID + ":" + m.Plano + ":" + m.CodigoCliente
		}
		fans["registry "+fan.CPF] = fmt.Sprintf("%s %s %d-%d-%d %s", data.SocialName, data.Name1, data.BirthYear, data.BirthMonth, data.Birthday, strings.Join(plans, ";"))
	}
	return fans
}
