package replication

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/sourcegraph/conc/pool"

	"github.com/cdcsync/cdcsync/internal/pgtest"
)

// What keeps a slot from being made is named in status, with SQL that does end it.
func TestLiveSlotBlockers(t *testing.T) {
	server := pgtest.Own(t, pgtest.Options{Settings: map[string]string{"wal_level": "logical", "max_prepared_transactions": "2"}})
	for name, test := range map[string]struct {
		open, want, solution string
	}{
		"prepared": {
			open: "begin; insert into a values (1); prepare transaction 'it''s mine'", want: "prepared transaction 'it''s mine'",
			solution: "ROLLBACK PREPARED ",
		},
		"session": {
			open: "begin; insert into a values (1)", want: "of PID ", solution: "SELECT pg_terminate_backend",
		},
	} {
		t.Run(name, func(t *testing.T) {
			l := liveOn(t, server.NewDatabase(t), "create table a (id int primary key)", "a")
			other, err := pgx.Connect(l.ctx, l.url)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = other.Close(l.ctx) }()
			if _, err := other.PgConn().Exec(l.ctx, test.open).ReadAll(); err != nil {
				t.Fatal(err)
			}
			s := l.stream()
			p := pool.New().WithErrors()
			ctx, cancel := context.WithCancel(l.ctx)
			p.Go(func() error { return s.Run(ctx) })
			var reason string
			l.until("the blocker in the status", func() bool { reason = s.Status().Reason; return strings.Contains(reason, test.want) })
			_, sql, ok := strings.Cut(reason, test.solution)
			if !ok {
				t.Fatalf("%q has no %q", reason, test.solution)
			}
			l.exec(test.solution + sql)
			l.until("streaming", func() bool { return s.Status().State == StateStreaming })
			if reason := s.Status().Reason; reason != "" {
				t.Errorf("while streaming the reason is %q", reason)
			}
			cancel()
			if err := p.Wait(); err != nil {
				t.Error(err)
			}
		})
	}
	t.Run("export", func(t *testing.T) {
		l := liveOn(t, server.NewDatabase(t), "create table a (id int primary key)", "a")
		l.exec("begin; insert into a values (1); prepare transaction 'export'")
		var log lockedText
		p := pool.New().WithErrors()
		p.Go(func() error {
			r, err := Reserve(l.ctx, l.cfg, slog.New(slog.NewTextHandler(&log, nil)), func(context.Context) error { return nil })
			if err != nil {
				return err
			}
			return r.Release(l.ctx, false)
		})
		l.until("the blocker in the log", func() bool { return strings.Contains(log.String(), "ROLLBACK PREPARED 'export'") })
		l.exec("rollback prepared 'export'")
		if err := p.Wait(); err != nil {
			t.Error(err)
		}
	})
}

// lockedText is what is written to it, for a logger and a test at once.
type lockedText struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *lockedText) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lockedText) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}
