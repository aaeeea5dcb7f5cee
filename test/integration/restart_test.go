package integration

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/cdcsync/cdcsync/internal/sandbox"
)

// sinkState is what `status` says of a sink.
type sinkState struct {
	Name, State, Reason string
	Unconfirmed         int
	DeadLetters         int `json:"dead_letters"`
}

func (d *daemon) sink(tb testing.TB, name string) sinkState {
	tb.Helper()
	var status struct{ Sinks []sinkState }
	if err := d.status(tb.Context(), &status); err != nil {
		return sinkState{Reason: err.Error()}
	}
	for _, s := range status.Sinks {
		if s.Name == name {
			return s
		}
	}
	tb.Fatalf("no sink %s in %+v", name, status)
	return sinkState{}
}

// awaitState waits until a sink is in a state.
func (d *daemon) awaitState(tb testing.TB, name, state string) sinkState {
	tb.Helper()
	var s sinkState
	d.wait(name+" to be "+state, func() (bool, string) {
		s = d.sink(tb, name)
		return s.State == state, fmt.Sprintf("%+v", s)
	})
	return s
}

// newClub is a database with clubSchema, a sandbox and a daemon that is not started.
func newClub(tb testing.TB, cfg sandbox.Config, settings string) (*source, *vendor, *daemon) {
	tb.Helper()
	s, v := &source{url: postgres.NewDatabase(tb)}, newVendor(tb, cfg)
	s.exec(tb, clubSchema)
	return s, v, newDaemon(tb, s.url, v.club(settings))
}

const quick = "retry: {min: 10ms, max: 500ms}, timeout: 5s"

func insertUsers(tb testing.TB, s *source, from, to int, note string) {
	tb.Helper()
	s.exec(tb, `insert into users (id, cpf, email, note) select n, planted_cpf(n), planted_email('user', n), $3 from generate_series($1::bigint, $2::bigint) n`, from, to, note)
}

// An object whose id Fanbase has told is asked for after a loss of power, and not enqueued again.
func TestKnownObjectsAreNotEnqueuedAgain(t *testing.T) {
	s, v, d := newClub(t, sandbox.Config{QueueDelay: 4 * time.Second}, quick)
	v.fault(t, sandbox.Fault{Kind: sandbox.Reject, Endpoint: "fanbase_queue", Contains: `7"}`})
	d.start()
	d.ready()
	const users = 200
	insertUsers(t, s, 1, users, "first")
	d.wait("all to be accepted and settled", func() (bool, string) {
		sink := d.sink(t, "queue")
		return sink.Unconfirmed == users && v.Accepted("fanbase_queue") == users, fmt.Sprintf("%+v", sink)
	})
	d.kill()
	d.start()
	d.settled(t, s)
	if n := v.Accepted("fanbase_queue"); n != users {
		t.Errorf("%d objects for %d users", n, users)
	}
	if letters := d.letters(t); len(letters) != users/10 || len(letters[0].Item) == 0 || letters[0].Row["id"] == nil {
		t.Errorf("%d letters of %d, the first %+v", len(letters), users/10, letters[0])
	}

	// In the midst of it, what was in flight may come twice, and nothing else.
	r := rand.New(rand.NewPCG(*seed, 2))
	const kills, lanes = 3, 8
	for i := range kills {
		insertUsers(t, s, 1000*(i+1), 1000*(i+1)+300, "more")
		pause(t.Context(), time.Duration(100+r.IntN(400))*time.Millisecond)
		d.kill()
		d.start()
	}
	d.settled(t, s)
	seen, twice := map[string]bool{}, 0
	for _, item := range v.Received(sandbox.Filter{Endpoint: "fanbase_queue"}) {
		if seen[item.Key] {
			twice++
		}
		seen[item.Key] = true
	}
	if want := users + 301*kills; len(seen) != want {
		t.Errorf("%d users of %d", len(seen), want)
	}
	// Beside what is in flight, a few answers wait for the disk, the more the slower it is.
	if twice > 5*lanes*kills {
		t.Errorf("%d objects are there twice after %d kills", twice, kills)
	}
	t.Logf("%d objects came twice after %d kills", twice, kills)
}

// With one item that fails, SIGTERM repeats nothing whose success was answered: neither older states behind it, nor what the queue has accepted.
func TestStopRepeatsNothing(t *testing.T) {
	s, v, d := newClub(t, sandbox.Config{QueueDelay: time.Hour}, quick)
	fault := v.fault(t, sandbox.Fault{Kind: sandbox.Status, Status: http.StatusInternalServerError, Contains: "user700@"})
	d.start()
	d.ready()
	const users = 1445
	insertUsers(t, s, 1, users, "first")
	s.exec(t, `update users set cpf = planted_cpf(id + 50000), note = 'second', version = nextval('versions') where id <> 700 and id % 3 = 0`)
	for i := range 3 {
		id := 2000 + 100*i
		insertUsers(t, s, id, id+99, "more")
		d.wait("the sinks to go on behind the item that fails", func() (bool, string) {
			crm, queue := v.Accepted("stopchurn"), v.Accepted("fanbase_queue")
			return crm >= users && queue >= users, fmt.Sprint(crm, queue)
		})
		start := time.Now()
		d.stop()
		t.Logf("stopped within %v", time.Since(start).Round(time.Millisecond))
		d.start()
		d.ready()
	}
	v.ClearFaults(fault)
	d.wait("the item that failed", func() (bool, string) {
		items := v.Received(sandbox.Filter{Endpoint: "stopchurn", Key: "700"})
		return len(items) > 0, fmt.Sprintf("%+v", d.sink(t, "crm"))
	})
	seen := make(map[string]bool)
	for _, item := range v.Received(sandbox.Filter{}) {
		id := fmt.Sprint(item.Endpoint, item.Op, item.Key, string(item.Body))
		if seen[id] {
			t.Errorf("sent again: %s", id)
		}
		seen[id] = true
	}
}

func TestPauseOutlivesARestart(t *testing.T) {
	s, v, d := newClub(t, sandbox.Config{}, quick)
	d.start()
	d.ready()
	d.run(t, "pause", "crm")
	d.kill()
	d.start()
	d.ready()
	insertUsers(t, s, 1, 10, "while it is paused")
	d.wait("another sink to have them", func() (bool, string) { return v.Accepted("fanbase_queue") == 10, "" })
	if state := d.sink(t, "crm"); state.State != "paused" || v.Accepted("stopchurn") != 0 {
		t.Errorf("crm is %+v and has sent %d", state, v.Accepted("stopchurn"))
	}
	d.run(t, "resume", "crm")
	d.settled(t, s)
	d.kill()
	d.start()
	d.ready()
	if state := d.sink(t, "crm"); state.State != "running" || v.Accepted("stopchurn") != 10 {
		t.Errorf("crm is %+v and has sent %d", state, v.Accepted("stopchurn"))
	}
}

// Too many dead letters halt the sink, over a restart too, and no other; resume allows as many again.
func TestDeadLettersHalt(t *testing.T) {
	const limit, rows = 5, 12
	s, v, d := newClub(t, sandbox.Config{}, quick+fmt.Sprintf(", dead_letters: {limit: %d}", limit))
	rule := v.fault(t, sandbox.Fault{Kind: sandbox.Reject, Endpoint: "stopchurn", Contains: poison})
	d.start()
	d.ready()
	insertUsers(t, s, 1, rows, poison)
	insertUsers(t, s, rows+1, rows+3, "clean")
	halted := d.awaitState(t, "crm", "halted")
	if halted.DeadLetters != limit || !strings.Contains(halted.Reason, "cdcsync resume") {
		t.Errorf("halted with %+v", halted)
	}
	d.wait("the queue to go on", func() (bool, string) { return v.Accepted("fanbase_queue") == rows+3, "" })
	d.kill()
	d.start()
	if halted := d.awaitState(t, "crm", "halted"); halted.DeadLetters != limit {
		t.Errorf("after a restart: %+v", halted)
	}
	d.run(t, "resume", "crm")
	d.wait("as many letters again", func() (bool, string) {
		state := d.sink(t, "crm")
		return state.State == "halted" && state.DeadLetters == 2*limit, fmt.Sprintf("%+v", state)
	})
	v.ClearFaults(rule)
	d.run(t, "resume", "crm")
	d.settled(t, s)
	letters := d.letters(t) // an item in each lane had been rejected already when the rule went
	if n := len(letters); n < 2*limit || n > 2*limit+2 {
		t.Errorf("%d letters", n)
	}
	compareClub(t, s, v, letters)
	if out := d.run(t, "dlq", "retry", "--sink", "crm"); !strings.Contains(out, fmt.Sprintf("%d of %d", len(letters), len(letters))) {
		t.Errorf("dlq retry: %s", out)
	}
	d.wait("the letters to be delivered", func() (bool, string) {
		state := d.sink(t, "crm")
		return state.DeadLetters == 0, fmt.Sprintf("%+v", state)
	})
	compareClub(t, s, v, nil)
}

// Tokens that expire or are revoked in mid-flight are renewed, and nobody hears of it.
func TestTokensAreRenewed(t *testing.T) {
	s, v, d := newClub(t, sandbox.Config{TokenLife: time.Second}, quick)
	d.start()
	d.ready()
	for i := range 30 {
		insertUsers(t, s, 10*i, 10*i+9, "note")
		s.exec(t, `insert into tier_approvals values (gen_random_uuid(), gen_random_uuid(), true)`)
		if i%10 == 5 {
			v.fault(t, sandbox.Fault{Kind: sandbox.RevokeTokens, Count: 1})
		}
		pause(t.Context(), 100*time.Millisecond)
	}
	d.settled(t, s)
	compareClub(t, s, v, nil)
	if log := d.log.String(); strings.Contains(log, "does not deliver") {
		t.Error("the log speaks of tokens that were renewed")
	}
	var issued, refused uint64
	for _, c := range v.Counts() {
		if strings.HasSuffix(c.Endpoint, "_token") {
			issued += c.Requests
		}
		refused += c.Statuses[401]
	}
	t.Logf("%d tokens, %d requests refused", issued, refused)
}

// Credentials that are wrong, or allow too little, block their own sink, which says so and nothing secret.
func TestWrongCredentialsBlock(t *testing.T) {
	s, v := &source{url: postgres.NewDatabase(t)}, newVendor(t, sandbox.Config{FanaticsScopes: []string{"tier_points:read"}})
	s.exec(t, clubSchema)
	club := v.club(quick)
	wrong := strings.Replace(club, "api_key: sandbox-key", "api_key: wrong-key", 1)
	registry := strings.Index(wrong, "registry:")
	wrong = wrong[:registry] + strings.Replace(wrong[registry:], "client_secret: sandbox-secret", "client_secret: wrong-secret", 1)
	d := newDaemon(t, s.url, wrong)
	d.start()
	d.ready()
	insertUsers(t, s, 1, 10, "note")
	s.exec(t, `insert into fans (id, cpf, email, born, note) values (1, planted_cpf(1), planted_email('fan', 1), '1990-01-01', 'a fan')`)
	s.exec(t, `insert into tier_approvals values (gen_random_uuid(), gen_random_uuid(), true)`)
	for sink, reason := range map[string]string{"crm": "401", "registry": "token service", "tiers": "403"} {
		if state := d.awaitState(t, sink, "blocked"); !strings.Contains(state.Reason, reason) {
			t.Errorf("%s is blocked since %q, which does not say %q", sink, state.Reason, reason)
		}
	}
	d.wait("the sink with the right credentials to deliver", func() (bool, string) { return v.Accepted("fanbase_queue") == 10, "" })
	d.wait("a warning of the scope", func() (bool, string) {
		log := d.log.String()
		return strings.Contains(log, "granted without the scope tier_points:override") && strings.Contains(log, "no token: "), ""
	})
	if d.readyNow(t) {
		t.Error("/readyz is green with three sinks blocked")
	}
	d.stop()
	d.configure(fmt.Sprintf("source: {url: %q, slot: %s}\nadmin: {listen: %q}\n%s", s.url, slotName(t), d.admin, club))
	d.start()
	d.wait("the others to deliver after the mistakes are mended", func() (bool, string) {
		return v.Accepted("stopchurn") == 10 && v.Accepted("fanbase_batch") == 1, fmt.Sprintf("%+v", v.Counts())
	})
}

// Losses of power, while vendors fail, leave each of four sinks with what the source has, in order.
func TestKillWithFourSinks(t *testing.T) {
	t.Logf("-seed %d", *seed)
	s, v, d := newClub(t, sandbox.Config{Seed: *seed, TokenLife: 3 * time.Second}, quick)
	for _, f := range troubles() {
		if f.Kind != sandbox.MissingResults { // makes dead letters
			v.fault(t, f)
		}
	}
	d.start()
	d.ready()
	r := rand.New(rand.NewPCG(*seed, 3))
	w := &clubWorkload{url: s.url, writers: 4, seed: *seed, pause: 20 * time.Millisecond}
	duringClub(t, w, func() {
		for range *kills / 2 {
			pause(t.Context(), time.Duration(200+r.IntN(1500))*time.Millisecond)
			d.kill()
			d.start()
		}
	})
	clearTroubles(v)
	d.settled(t, s)
	letters := d.letters(t)
	for _, l := range letters {
		if l.Sink != "registry" || l.Row["born"] != nil {
			t.Errorf("a dead letter that nothing calls for: %s of %s: %s", l.ID, l.Sink, l.Reason)
		}
	}
	checkEvents(t, s, v, letters, "")
	compareClub(t, s, v, letters)
}
