package demo

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Workload changes the source's tables, a transaction at a time. Set its fields before Run.
type Workload struct {
	URL  string
	Rate float64 // transactions a second; 0 means 25
	Seed uint64  // the same seed makes the same choices

	random *rand.Rand // owned by Run
	serial int        // of users, fans and contracts; owned by Run

	inserts, updates, deletes, transactions atomic.Int64
}

// Changes counts the rows that committed transactions have changed.
type Changes struct{ Inserts, Updates, Deletes, Transactions int64 }

// Changes so far. It may be called at any time.
func (w *Workload) Changes() Changes {
	return Changes{w.inserts.Load(), w.updates.Load(), w.deletes.Load(), w.transactions.Load()}
}

// Run fills the tables with a few rows, and changes them until ctx ends; that is no error.
func (w *Workload) Run(ctx context.Context) error {
	const (
		defaultRate = 25
		firstRows   = 10 // of each table
	)
	w.random = rand.New(rand.NewPCG(w.Seed, 0)) //nolint:gosec // not for secrets
	conn, err := pgx.Connect(ctx, w.URL)
	if err != nil {
		return w.end(ctx, err)
	}
	defer conn.Close(context.WithoutCancel(ctx))
	for range firstRows {
		for _, first := range []step{insertUser, insertOrder, insertFan, insertApproval} {
			if err := w.transact(ctx, conn, first); err != nil {
				return w.end(ctx, err)
			}
		}
	}
	ticker := time.NewTicker(time.Duration(float64(time.Second) / cmp.Or(w.Rate, defaultRate)))
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		if err := w.transact(ctx, conn, w.choose()); err != nil {
			return w.end(ctx, err)
		}
	}
}

func (w *Workload) end(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil //nolint:nilerr // the end was asked for
	}
	return fmt.Errorf("demo workload: %w", err)
}

// step is one transaction. It reports its changes to t.
type step func(ctx context.Context, w *Workload, t *tally) error

// steps with their weights.
var steps = []struct {
	weight int
	step   step
}{
	{5, insertUser},
	{6, updateUser},
	{2, deleteUser},
	{5, insertOrder},
	{4, updateOrder},
	{2, deleteOrder},
	{1, insertOrders},
	{3, insertFan},
	{4, updateFan},
	{2, insertMembership},
	{4, updateMembership},
	{3, insertApproval},
	{4, updateApproval},
	{1, deleteApproval},
	{1, changeOfMind},
}

func (w *Workload) choose() step {
	total := 0
	for _, s := range steps {
		total += s.weight
	}
	n := w.random.IntN(total)
	for _, s := range steps {
		if n -= s.weight; n < 0 {
			return s.step
		}
	}
	return insertUser
}

// tally is a transaction and what it has changed.
type tally struct {
	tx pgx.Tx
	Changes
}

// exec runs one statement and counts its rows.
func (t *tally) exec(ctx context.Context, sql string, arguments ...any) error {
	tag, err := t.tx.Exec(ctx, sql, arguments...)
	if err != nil {
		return err
	}
	t.count(tag)
	return nil
}

func (t *tally) count(tag pgconn.CommandTag) {
	switch {
	case tag.Insert():
		t.Inserts += tag.RowsAffected()
	case tag.Update():
		t.Updates += tag.RowsAffected()
	case tag.Delete():
		t.Deletes += tag.RowsAffected()
	}
}

// errUndo rolls a transaction back on purpose.
var errUndo = errors.New("rolled back on purpose")

func (w *Workload) transact(ctx context.Context, conn *pgx.Conn, s step) error {
	t := &tally{}
	err := pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		t.tx = tx
		return s(ctx, w, t)
	})
	switch {
	case errors.Is(err, errUndo):
		return nil
	case err != nil:
		return err
	}
	w.inserts.Add(t.Inserts)
	w.updates.Add(t.Updates)
	w.deletes.Add(t.Deletes)
	w.transactions.Add(1)
	return nil
}

var (
	firstNames = []string{"Ana", "João", "Maria", "Pedro", "Júlia", "Lucas", "Beatriz", "Rafael", "Camila", "Mateus"}
	lastNames  = []string{"da Silva", "Santos", "Oliveira", "Souza", "Lima", "Pereira", "Costa", "Almeida"}
	products   = []string{"Home shirt", "Away shirt", "Scarf", "Season ticket", "Mug \"2026\""}
	plans      = []string{"Plano Ouro", "Plano Prata", "Plano Bronze"}
	statuses   = []string{"Ativo", "Inativo", "Inadimplente"}
	tierIDs    = []string{"b10ac910-1de0-4dcc-b752-d913e1bde70b", "12345678-1234-4234-8234-123456789abc"}
)

func pick[T any](w *Workload, from []T) T { return from[w.random.IntN(len(from))] }

func (w *Workload) name() string { return pick(w, firstNames) + " " + pick(w, lastNames) }

// cpf is a valid one, by its check digits, and nobody's twice.
func (w *Workload) cpf() (formatted, digits string) {
	w.serial++
	d := []byte(fmt.Sprintf("%09d", 100_000_000+w.serial))
	for range 2 {
		sum := 0
		for i, c := range d {
			sum += int(c-'0') * (len(d) + 1 - i)
		}
		d = append(d, '0'+byte(sum*10%11%10))
	}
	return fmt.Sprintf("%s.%s.%s-%s", d[:3], d[3:6], d[6:9], d[9:]), string(d)
}

func insertUser(ctx context.Context, w *Workload, t *tally) error {
	cpf, digits := w.cpf()
	return t.exec(ctx, `insert into users (email, first_name, last_name, cpf, email_opt_in, phone_opt_in, password_hash) values ($1, $2, $3, $4, $5, $6, 'secret')`,
		"user"+digits+"@example.com", pick(w, firstNames), pick(w, lastNames), cpf, w.random.IntN(2) == 0, w.random.IntN(2) == 0)
}

func updateUser(ctx context.Context, w *Workload, t *tally) error {
	return t.exec(ctx, `update users set last_name = $1, email_opt_in = $2, status = $3, updated_at = now() where id = (select id from users order by random() limit 1)`,
		pick(w, lastNames), w.random.IntN(2) == 0, pick(w, []string{"active", "dormant", "blocked"}))
}

func deleteUser(ctx context.Context, _ *Workload, t *tally) error {
	var id int64
	if err := t.tx.QueryRow(ctx, `select coalesce((select id from users order by random() limit 1), 0)`).Scan(&id); err != nil {
		return err
	}
	if err := t.exec(ctx, `delete from orders where user_id = $1`, id); err != nil {
		return err
	}
	return t.exec(ctx, `delete from users where id = $1`, id)
}

func insertOrder(ctx context.Context, w *Workload, t *tally) error {
	return t.exec(ctx, `insert into orders (user_id, product, quantity, amount, tags) select id, $1, $2, $3::numeric, $4 from users order by random() limit 1`,
		pick(w, products), 1+w.random.IntN(5), fmt.Sprintf("%d.%02d", w.random.IntN(900), w.random.IntN(100)), []string{"web", pick(w, []string{"gift", "sale"})})
}

func insertOrders(ctx context.Context, w *Workload, t *tally) error {
	const many = 20
	for range many {
		if err := insertOrder(ctx, w, t); err != nil {
			return err
		}
	}
	return nil
}

func updateOrder(ctx context.Context, w *Workload, t *tally) error {
	return t.exec(ctx, `update orders set quantity = $1, updated_at = now() where id = (select id from orders order by random() limit 1)`, 1+w.random.IntN(9))
}

func deleteOrder(ctx context.Context, _ *Workload, t *tally) error {
	return t.exec(ctx, `delete from orders where id = (select id from orders order by random() limit 1)`)
}

func insertFan(ctx context.Context, w *Workload, t *tally) error {
	cpf, digits := w.cpf()
	born := time.Date(1950+w.random.IntN(55), time.Month(1+w.random.IntN(12)), 1+w.random.IntN(28), 0, 0, 0, 0, time.UTC)
	err := t.exec(ctx, `insert into fans (name, cpf, email, birth_date) values ($1, $2, $3, $4)`, w.name(), cpf, "fan"+digits+"@example.com", born)
	if err != nil {
		return err
	}
	return t.exec(ctx, `insert into memberships (fan_id, contract, status, plan, client_code) select id, $1, 'Ativo', $2, $3 from fans where cpf = $4`,
		"C-"+digits, pick(w, plans), digits, cpf)
}

func updateFan(ctx context.Context, w *Workload, t *tally) error {
	return t.exec(ctx, `update fans set name = $1 where id = (select id from fans order by random() limit 1)`, w.name())
}

func insertMembership(ctx context.Context, w *Workload, t *tally) error {
	w.serial++
	return t.exec(ctx, `insert into memberships (fan_id, contract, status, plan, client_code)
		select id, $1, 'Ativo', $2, translate(cpf, '.-', '') from fans order by random() limit 1`, fmt.Sprintf("D-%d", w.serial), pick(w, plans))
}

func updateMembership(ctx context.Context, w *Workload, t *tally) error {
	return t.exec(ctx, `update memberships set status = $1 where id = (select id from memberships order by random() limit 1)`, pick(w, statuses))
}

func insertApproval(ctx context.Context, w *Workload, t *tally) error {
	return t.exec(ctx, `insert into tier_approvals (fan_id, tier_id, approved) values (gen_random_uuid(), $1, true)`, pick(w, tierIDs))
}

func updateApproval(ctx context.Context, _ *Workload, t *tally) error {
	return t.exec(ctx, `update tier_approvals set approved = not approved where (fan_id, tier_id) = (select fan_id, tier_id from tier_approvals order by random() limit 1)`)
}

func deleteApproval(ctx context.Context, _ *Workload, t *tally) error {
	return t.exec(ctx, `delete from tier_approvals where (fan_id, tier_id) = (select fan_id, tier_id from tier_approvals order by random() limit 1)`)
}

// changeOfMind changes much and rolls it back: nothing of it may arrive anywhere.
func changeOfMind(ctx context.Context, w *Workload, t *tally) error {
	if err := insertUser(ctx, w, t); err != nil {
		return err
	}
	if err := t.exec(ctx, `update orders set quantity = -1`); err != nil {
		return err
	}
	return errUndo
}
