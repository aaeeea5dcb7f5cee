package demo

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/cdcsync/cdcsync/internal/sandbox"
)

// Match is how the records of one kind compare.
type Match struct {
	What      string `json:"what"`
	Source    int    `json:"source"` // records that the source has
	Equal     int    `json:"equal"`
	Missing   int    `json:"missing"`   // the vendor does not have it
	Different int    `json:"different"` // the vendor has it in another state
	Extra     int    `json:"extra"`     // the vendor has it and the source does not
}

// OK says whether the vendor has what the source has.
func (m Match) OK() bool { return m.Equal == m.Source && m.Extra == 0 }

// Summary compares the source with all vendors.
type Summary []Match

// OK says whether every vendor has what the source has.
func (s Summary) OK() bool {
	for _, m := range s {
		if !m.OK() {
			return false
		}
	}
	return len(s) > 0
}

// String is one line a kind of record.
func (s Summary) String() string {
	var b strings.Builder
	for _, m := range s {
		verdict := "all there"
		if !m.OK() {
			verdict = fmt.Sprintf("%d missing, %d different, %d too many", m.Missing, m.Different, m.Extra)
		}
		fmt.Fprintf(&b, "%-32s %6d in the source, %6d equal at the vendor: %s\n", m.What, m.Source, m.Equal, verdict)
	}
	return b.String()
}

// Settle compares until all is there or ctx ends, and returns the last comparison, which it completes. The workload must have ended.
func Settle(ctx context.Context, url string, vendors *sandbox.Server) (Summary, error) {
	const every = 100 * time.Millisecond
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for {
		summary, err := Compare(context.WithoutCancel(ctx), url, vendors)
		if err != nil || summary.OK() {
			return summary, err
		}
		select {
		case <-ctx.Done():
			return summary, nil
		case <-ticker.C:
		}
	}
}

// Compare holds the source's rows, as of one moment, against what the vendors hold.
func Compare(ctx context.Context, url string, vendors *sandbox.Server) (Summary, error) {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return nil, fmt.Errorf("demo comparison: %w", err)
	}
	defer conn.Close(context.WithoutCancel(ctx))
	var summary Summary
	err = pgx.BeginTxFunc(ctx, conn, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		for _, c := range comparisons {
			source, err := read(ctx, tx, c.sql)
			if err != nil {
				return fmt.Errorf("%s: %w", c.what, err)
			}
			vendor, err := c.vendor(vendors)
			if err != nil {
				return fmt.Errorf("%s: %w", c.what, err)
			}
			summary = append(summary, match(c.what, source, vendor, c.forgets))
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("demo comparison: %w", err)
	}
	return summary, nil
}

// comparisons: the source's records as key and JSON, and the vendor's in the same form.
var comparisons = []struct {
	what   string
	sql    string
	vendor func(*sandbox.Server) (map[string]string, error)
	// forgets is set where the vendor is not told of deletes.
	forgets bool
}{
	{
		what: "StopChurn, users",
		sql: `select id::text, jsonb_build_object(
			'createdAt', floor(extract(epoch from created_at) * 1000)::bigint, 'updatedAt', floor(extract(epoch from updated_at) * 1000)::bigint,
			'data', jsonb_build_object('id', id, 'email', email, 'firstName', first_name, 'lastName', last_name, 'status', status, 'emailOptIn', email_opt_in,
				'phoneOptIn', phone_opt_in, 'fullName', first_name || ' ' || last_name,
				'marketingPreferences', jsonb_build_object('email', email_opt_in, 'phone', phone_opt_in)))::text from users`,
		vendor: func(s *sandbox.Server) (map[string]string, error) { return churned(s, "user") },
	},
	{
		what: "StopChurn, orders",
		sql: `select id::text, jsonb_build_object(
			'createdAt', floor(extract(epoch from created_at) * 1000)::bigint, 'updatedAt', floor(extract(epoch from updated_at) * 1000)::bigint,
			'data', jsonb_build_object('id', id, 'userId', user_id, 'product', product, 'quantity', quantity, 'amount', amount, 'tags', tags))::text from orders`,
		vendor: func(s *sandbox.Server) (map[string]string, error) { return churned(s, "order") },
	},
	{
		what:    "Fanbase queue, users",
		sql:     `select id::text, to_jsonb(translate(cpf, '.-', ''))::text from users`,
		vendor:  queued,
		forgets: true,
	},
	{
		what: "Fanbase batch, fans",
		sql: `select translate(cpf, '.-', ''), jsonb_build_object('name1', name, 'email', email, 'birthday', extract(day from birth_date)::int,
			'birthMonth', extract(month from birth_date)::int, 'birthYear', extract(year from birth_date)::int,
			'memberships', (select coalesce(jsonb_agg(jsonb_build_object('externalId', contract, 'status', status, 'plano', plan, 'codigoCliente', client_code,
				'data', floor(extract(epoch from started_at) * 1000)::bigint) order by m.id), '[]') from memberships m where fan_id = fans.id))::text from fans`,
		vendor:  registered,
		forgets: true,
	},
	{
		what:   "Fanatics, approvals",
		sql:    `select fan_id || '/' || tier_id, to_jsonb(approved)::text from tier_approvals where approved`,
		vendor: approved,
	},
}

// read returns the records as text that is equal when they are.
func read(ctx context.Context, tx pgx.Tx, sql string) (map[string]string, error) {
	rows, err := tx.Query(ctx, sql)
	if err != nil {
		return nil, err
	}
	records := make(map[string]string)
	var key, record string
	_, err = pgx.ForEachRow(rows, []any{&key, &record}, func() error {
		text, err := canonical([]byte(record))
		records[key] = text
		return err
	})
	return records, err
}

// canonical writes JSON with its members ordered and its numbers' digits as they are.
func canonical(raw []byte) (string, error) {
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil {
		return "", err
	}
	text, err := json.Marshal(v)
	return string(text), err
}

func encode(v any) (string, error) {
	raw, err := json.Marshal(v)
	if err != nil {
		return "", err
	}
	return canonical(raw)
}

func churned(s *sandbox.Server, table string) (map[string]string, error) {
	records := make(map[string]string)
	for _, row := range s.Rows(table) {
		text, err := encode(map[string]any{"createdAt": row.CreatedAt, "updatedAt": row.UpdatedAt, "data": row.Data})
		if err != nil {
			return nil, err
		}
		records[row.ID] = text
	}
	return records, nil
}

// queued are the users whose refresh has been completed, with the CPF that was sent last.
func queued(s *sandbox.Server) (map[string]string, error) {
	records := make(map[string]string)
	for _, q := range s.Queue() {
		if q.Status != "completed" {
			continue
		}
		text, err := encode(q.CPF)
		if err != nil {
			return nil, err
		}
		records[q.DataID] = text
	}
	return records, nil
}

func registered(s *sandbox.Server) (map[string]string, error) {
	records := make(map[string]string)
	for _, fan := range s.Fans() {
		record := make(map[string]any)
		if err := json.Unmarshal(fan.Parts["data"], &record); err != nil {
			return nil, err
		}
		delete(record, "identity")
		record["email"] = fan.Email
		memberships := []map[string]any{}
		if part := fan.Parts["memberships"]; part != nil {
			if err := json.Unmarshal(part, &memberships); err != nil {
				return nil, err
			}
		}
		for _, m := range memberships {
			started, err := time.Parse(time.RFC3339Nano, fmt.Sprint(m["data"]))
			if err != nil {
				return nil, err
			}
			m["data"] = started.UnixMilli()
		}
		record["memberships"] = memberships
		text, err := encode(record)
		if err != nil {
			return nil, err
		}
		records[fan.CPF] = text
	}
	return records, nil
}

// approved are the approvals that stand: what is not approved and what was never there is the same to Fanatics.
func approved(s *sandbox.Server) (map[string]string, error) {
	records := make(map[string]string)
	for account, tiers := range s.Approvals() {
		for tier, yes := range tiers {
			if yes {
				records[account+"/"+tier] = "true"
			}
		}
	}
	return records, nil
}

func match(what string, source, vendor map[string]string, forgets bool) Match {
	m := Match{What: what, Source: len(source)}
	for key, record := range source {
		switch theirs, found := vendor[key]; {
		case !found:
			m.Missing++
		case theirs != record:
			m.Different++
		default:
			m.Equal++
		}
	}
	for key := range vendor {
		if _, found := source[key]; !found && !forgets {
			m.Extra++
		}
	}
	return m
}
