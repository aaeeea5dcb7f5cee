package demo

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/sourcegraph/conc"

	"github.com/cdcsync/cdcsync/internal/config"
	"github.com/cdcsync/cdcsync/internal/pgtest"
	"github.com/cdcsync/cdcsync/internal/sandbox"
)

var postgres pgtest.Shared

func TestMain(m *testing.M) { os.Exit(postgres.Suite(m).Run()) }

func TestConfigLoads(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config.yaml")
	text := ConfigYAML(Addresses{Source: "postgres://postgres@/demo?host=/tmp/x&port=5432", Sandbox: "http://127.0.0.1:8080/", Buffer: t.TempDir(), Admin: "127.0.0.1:8484"})
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, err := config.Load(path, func(string) (string, bool) { return "", false })
	if err != nil {
		t.Fatal(err)
	}
	if len(cfg.Sinks) != 4 || len(cfg.Mappings) != 6 || len(cfg.Warnings) != 0 {
		t.Errorf("%d sinks, %d mappings, warnings %v", len(cfg.Sinks), len(cfg.Mappings), cfg.Warnings)
	}
}

// The workload's rows are sent to the sandbox by hand, as a daemon would, and compared; then the sandbox and the source are made to differ.
func TestWorkloadAndComparison(t *testing.T) {
	ctx, address := t.Context(), postgres.NewDatabase(t)
	if err := Setup(ctx, address); err != nil {
		t.Fatal(err)
	}
	w := &Workload{URL: address, Rate: 1000, Seed: 1}
	vendors := sandbox.New(sandbox.Config{QueueDelay: time.Nanosecond})
	var lines []string
	work(t, w, vendors, &lines)
	if c := w.Changes(); c.Inserts == 0 || c.Updates == 0 || c.Deletes == 0 {
		t.Errorf("changes %+v", c)
	}
	if len(lines) == 0 || !strings.Contains(lines[0], "transactions") {
		t.Errorf("lines %q", lines)
	}

	conn, err := pgx.Connect(ctx, address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(ctx)
	summary, err := Compare(ctx, address, vendors)
	if err != nil || summary.OK() || summary[0].Missing != summary[0].Source || summary[0].Source == 0 {
		t.Errorf("before anything was sent: %v\n%s", err, summary)
	}
	deliver(t, conn, vendors)
	settled, err := Settle(ctx, address, vendors)
	if err != nil || !settled.OK() || len(settled) != 5 {
		t.Fatalf("all was sent: %v\n%s", err, settled)
	}

	for _, sql := range []string{
		`update users set first_name = 'X' where id = (select min(id) from users)`,
		`delete from orders where id = (select min(id) from orders)`,
		`update memberships set status = 'X' where id = (select min(id) from memberships)`,
		`insert into fans (name, cpf, email, birth_date) values ('N', '999.999.999-99', 'n@example.com', '2000-02-29')`,
		`insert into tier_approvals values (gen_random_uuid(), gen_random_uuid(), true)`,
	} {
		if _, err := conn.Exec(ctx, sql); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
	short, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
	defer cancel()
	differing, err := Settle(short, address, vendors)
	if err != nil {
		t.Fatal(err)
	}
	var got [][3]int
	for _, m := range differing {
		got = append(got, [3]int{m.Missing, m.Different, m.Extra})
	}
	want := [][3]int{{0, 1, 0}, {0, 0, 1}, {0, 0, 0}, {1, 1, 0}, {1, 0, 0}}
	if diff := cmp.Diff(want, got); diff != "" || differing.OK() || !strings.Contains(differing.String(), "1 missing, 1 different") {
		t.Errorf("%s\n%s", diff, differing)
	}
}

// work runs the workload until it has done all sorts of things and a line was said.
func work(t *testing.T, w *Workload, vendors *sandbox.Server, lines *[]string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	var wait conc.WaitGroup
	wait.Go(func() {
		if err := w.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	err := Report(ctx, w, vendors, func(line string) {
		*lines = append(*lines, line)
		if w.Changes().Transactions > 150 {
			cancel()
		}
	})
	if err != nil {
		t.Error(err)
	}
	wait.Wait()
}

// deliver sends the source's rows to the sandbox.
func deliver(t *testing.T, conn *pgx.Conn, vendors *sandbox.Server) {
	t.Helper()
	post := func(path string, header http.Header, body string) map[string]any {
		t.Helper()
		r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, path, strings.NewReader(body))
		r.Header = header
		if r.Header.Get("Content-Type") == "" {
			r.Header.Set("Content-Type", "application/json")
		}
		w := httptest.NewRecorder()
		vendors.Handler().ServeHTTP(w, r)
		if w.Code >= http.StatusBadRequest {
			t.Fatalf("%s: %d %s", path, w.Code, w.Body)
		}
		var answer map[string]any
		if err := json.Unmarshal(w.Body.Bytes(), &answer); err != nil {
			t.Fatal(err)
		}
		return answer
	}
	text := func(sql string) string {
		t.Helper()
		var s string
		if err := conn.QueryRow(t.Context(), sql).Scan(&s); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
		return s
	}
	for i, table := range []string{"user", "order"} {
		post("/client-data/update", http.Header{"Authorization": {"Bearer sandbox-key"}}, text(`select jsonb_build_object('data', jsonb_agg(jsonb_build_object(
			'type', 'insert', 'data', r.record::jsonb || '{"brandId": 1, "tableName": "`+table+`"}')))::text from (`+comparisons[i].sql+`) r(id, record)`))
	}
	credentials := url.Values{"grant_type": {"client_credentials"}, "client_id": {"sandbox-client"}, "client_secret": {"sandbox-secret"}, "scope": {"tier_points:override"}}
	token := post("/api/token?"+credentials.Encode(), http.Header{}, "")["access_token"].(string)
	for id := range strings.FieldsSeq(text(`select string_agg(id || '/' || translate(cpf, '.-', ''), ' ') from users`)) {
		id, cpf, _ := strings.Cut(id, "/")
		post("/api/v1/integration/queue", http.Header{"Accesstoken": {token}}, `{"action":"update_fandata","data":{"id":"`+id+`","cpf":"`+cpf+`"}}`)
	}
	post("/api/v2/IF_ID_Batch", http.Header{"Accesstoken": {token}}, text(`select jsonb_build_object('systemId', 42, 'data', jsonb_agg(jsonb_build_object(
		'data', r.record::jsonb - 'email' - 'memberships' || '{"identity": 0}',
		'numbers', jsonb_build_array(jsonb_build_object('numberType', 1, 'number', r.cpf), jsonb_build_object('numberType', 4, 'number', r.record::jsonb ->> 'email')),
		'memberships', (select coalesce(jsonb_agg(jsonb_build_object('externalId', contract, 'status', status, 'plano', plan, 'codigoCliente', client_code,
			'data', to_char(started_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')) order by m.id), '[]') from memberships m where client_code = r.cpf))))::text
		from (`+comparisons[3].sql+`) r(cpf, record)`))
	form := http.Header{"Content-Type": {"application/x-www-form-urlencoded"}}
	token = post("/api/oauth2/token", form, credentials.Encode())["access_token"].(string)
	post("/v2/tier-points/accounts", http.Header{"Authorization": {"Bearer " + token}}, text(`select jsonb_build_object('accounts', jsonb_agg(jsonb_build_object(
		'account_tenant_fanid', fan_id, 'invite_approval_map', jsonb_build_object(tier_id, approved))))::text from tier_approvals`))
}

func TestCPFsAreValid(t *testing.T) {
	w := &Workload{serial: 123456789 - 100_000_000 - 1}
	if formatted, digits := w.cpf(); formatted != "123.456.789-09" || digits != "12345678909" {
		t.Errorf("%s %s", formatted, digits)
	}
}
