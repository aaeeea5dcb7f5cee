package replication

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/url"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/sourcegraph/conc/pool"

	"github.com/cdcsync/cdcsync/internal/backoff"
)

// lagging is the same database through a line on which what the server says is late now and then, by up to most.
func lagging(t *testing.T, database string, r *rand.Rand, most time.Duration) string {
	t.Helper()
	cfg, err := pgconn.ParseConfig(database)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	line := &line{most: most, r: r}
	p := pool.New().WithErrors()
	p.Go(func() error { return line.accept(ctx, listener, cfg) })
	t.Cleanup(func() {
		cancel()
		_ = listener.Close()
		if err := p.Wait(); err != nil {
			t.Error(err)
		}
	})
	through := url.URL{
		Scheme: "postgres", User: url.UserPassword(cfg.User, cfg.Password), Host: listener.Addr().String(), Path: cfg.Database, RawQuery: "sslmode=disable",
	}
	return through.String()
}

type line struct {
	most time.Duration
	mu   sync.Mutex
	r    *rand.Rand
}

func (l *line) accept(ctx context.Context, listener net.Listener, cfg *pgconn.Config) error {
	p := pool.New().WithErrors()
	defer func() { _ = p.Wait() }() // a connection that breaks off is what tests do
	for {
		client, err := listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return err
		}
		network, address := pgconn.NetworkAddress(cfg.Host, cfg.Port)
		server, err := new(net.Dialer).DialContext(ctx, network, address)
		if err != nil {
			_ = client.Close()
			continue
		}
		closeBoth := func() { _ = client.Close(); _ = server.Close() }
		stop := context.AfterFunc(ctx, closeBoth)
		p.Go(func() error {
			defer stop()
			defer closeBoth()
			_, err := io.Copy(server, client)
			return err
		})
		p.Go(func() error {
			defer closeBoth()
			_, err := io.Copy(client, &late{Reader: server, line: l, ctx: ctx})
			return err
		})
	}
}

// late is a reader whose next bytes are sometimes held up.
type late struct {
	io.Reader
	line *line
	ctx  context.Context
}

func (r *late) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	r.line.mu.Lock()
	held := r.line.r.IntN(4) == 0
	wait := time.Duration(r.line.r.Int64N(int64(r.line.most)))
	r.line.mu.Unlock()
	if held {
		_ = backoff.Sleep(r.ctx, wait) // at the end the connection is closed anyway
	}
	return n, err
}
