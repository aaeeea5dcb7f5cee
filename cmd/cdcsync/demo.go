package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/sourcegraph/conc/pool"
	"github.com/spf13/cobra"

	"github.com/cdcsync/cdcsync/internal/admin"
	"github.com/cdcsync/cdcsync/internal/config"
	"github.com/cdcsync/cdcsync/internal/demo"
	"github.com/cdcsync/cdcsync/internal/pgtest"
	"github.com/cdcsync/cdcsync/internal/sandbox"
	"github.com/cdcsync/cdcsync/internal/secret"
)

func newDemoCommand(a *app) *cobra.Command {
	d := &demonstration{app: a}
	cmd := &cobra.Command{
		Use:     "demo",
		Short:   "See it run: a private Postgres, the sandbox, the daemon and a small live workload",
		GroupID: groupStart,
		Long: `demo starts a Postgres of its own (from local binaries, else Docker), the vendors' sandbox and a daemon between them, changes a few
rows a second and says what arrives. All of it is on this machine and gone afterwards.

Ctrl-C ends it; with --for it ends by itself. At the end it compares the source's rows with what the sandbox holds.`,
		Example: `  cdcsync demo
  cdcsync demo --for 20s
  CDCSYNC_TEST_POSTGRES=docker cdcsync demo`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, stop := untilSignal(cmd.Context())
			defer stop()
			return d.run(ctx)
		},
	}
	cmd.Flags().DurationVar(&d.length, "for", 0, "end after this `time`; 0 goes on until Ctrl-C")
	cmd.Flags().Float64Var(&d.rate, "rate", 0, "`transactions` a second of the workload (default 25)")
	cmd.Flags().StringVar(&d.admin, "admin", "127.0.0.1:8484", "`address` of the daemon's status page; when it is taken a free port is")
	return cmd
}

// demonstration is one run of the demo.
type demonstration struct {
	app    *app
	length time.Duration
	rate   float64
	admin  string

	dir      string
	postgres *pgtest.Server
	vendors  *sandbox.Server
	addr     demo.Addresses
}

func (d *demonstration) say(format string, args ...any) {
	fmt.Fprintf(d.app.stdout, format+"\n", args...)
}

func (d *demonstration) run(ctx context.Context) (err error) {
	if d.dir, err = os.MkdirTemp("", "cdcsync-demo-"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(d.dir)) }()
	if err := d.startPostgres(ctx); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.postgres.Stop(context.WithoutCancel(ctx))) }()

	life, end := context.WithCancel(context.WithoutCancel(ctx))
	p := pool.New().WithContext(life).WithCancelOnError().WithFirstError()
	defer func() { end(); err = errors.Join(err, p.Wait()) }()
	if err := d.startVendors(ctx, p); err != nil {
		return err
	}
	daemon, err := d.startDaemon(ctx, p)
	if err != nil {
		return err
	}
	d.say("")
	d.say("  status page   http://%s/          cdcsync --config %s status", d.addr.Admin, d.configFile())
	d.say("  sandbox       %s/", d.addr.Sandbox)
	d.say("  source        psql '%s'", d.addr.Source)
	d.say("")
	if err := d.work(ctx); err != nil {
		return err
	}
	return d.compare(ctx, daemon)
}

func (d *demonstration) startPostgres(ctx context.Context) (err error) {
	d.say("starting a private Postgres …")
	if d.postgres, err = pgtest.Start(ctx, pgtest.Options{}); err != nil {
		return err
	}
	if d.addr.Source, err = d.postgres.CreateDatabase(ctx, "demo"); err != nil {
		return errors.Join(err, d.postgres.Stop(context.WithoutCancel(ctx)))
	}
	return demo.Setup(ctx, d.addr.Source)
}

func (d *demonstration) startVendors(ctx context.Context, p *pool.ContextPool) error {
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	d.addr.Sandbox = "http://" + listener.Addr().String()
	d.vendors = sandbox.New(sandbox.Config{})
	p.Go(func(ctx context.Context) error { return d.vendors.Serve(ctx, listener) })
	return nil
}

func (d *demonstration) configFile() string { return filepath.Join(d.dir, "config.yaml") }

// startDaemon returns when the daemon's slot is there, so that no change of the workload comes too early. The function that it
// returns drains and ends the daemon.
func (d *demonstration) startDaemon(ctx context.Context, p *pool.ContextPool) (end func(), err error) {
	if d.addr.Admin, err = freeAddress(ctx, d.admin); err != nil {
		return nil, err
	}
	d.addr.Buffer = filepath.Join(d.dir, "buffer")
	if err := os.WriteFile(d.configFile(), []byte(demo.ConfigYAML(d.addr)), 0o600); err != nil {
		return nil, err
	}
	daemon := *d.app
	daemon.configPath = d.configFile()
	cfg, templates, err := daemon.compiled()
	if err != nil {
		return nil, err
	}
	logger := daemon.newLogger(config.Log{Level: config.LogWarn, Format: cfg.Log.Format})
	pipeline, err := newPipeline(ctx, cfg, templates, logger)
	if err != nil {
		return nil, err
	}
	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	ended := make(chan struct{})
	p.Go(func(context.Context) error {
		defer close(ended)
		return pipeline.Run(running)
	})
	return func() { stop(); <-ended }, awaitReady(ctx, d.addr.Admin, ended, logger)
}

// freeAddress is the address itself, or one with a free port when it is taken.
func freeAddress(ctx context.Context, address string) (string, error) {
	var config net.ListenConfig
	l, err := config.Listen(ctx, "tcp", address)
	if err != nil {
		host, _, _ := net.SplitHostPort(address)
		if l, err = config.Listen(ctx, "tcp", net.JoinHostPort(host, "0")); err != nil {
			return "", err
		}
	}
	defer func() { _ = l.Close() }()
	return l.Addr().String(), nil
}

// awaitReady waits until the daemon's pipeline stands.
func awaitReady(ctx context.Context, address string, ended <-chan struct{}, logger *slog.Logger) error {
	const patience, pace = 30 * time.Second, 50 * time.Millisecond
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	client := admin.NewClient("http://"+address, secret.String{})
	defer client.Close()
	tick := time.NewTicker(pace)
	defer tick.Stop()
	for {
		status, err := client.Status(ctx)
		if err == nil && status.Ready {
			return nil
		}
		select {
		case <-ctx.Done():
			logger.ErrorContext(ctx, "daemon is not ready", "err", err)
			return errors.New("the daemon did not get ready; what it logged says why")
		case <-ended:
			return nil // its own error is told when it is waited for
		case <-tick.C:
		}
	}
}

// work changes the source and tells what arrives, until ctx or --for ends.
func (d *demonstration) work(ctx context.Context) error {
	if d.length > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, d.length)
		defer cancel()
	}
	w := &demo.Workload{URL: d.addr.Source, Rate: d.rate, Seed: uint64(time.Now().UnixNano())}
	p := pool.New().WithContext(ctx).WithCancelOnError().WithFirstError()
	p.Go(w.Run)
	p.Go(func(ctx context.Context) error {
		return demo.Report(ctx, w, d.vendors, func(line string) { d.say("%s", line) })
	})
	return p.Wait()
}

// compare waits for what is under way, ends the daemon, and holds the vendors against the source.
func (d *demonstration) compare(ctx context.Context, stopDaemon func()) error {
	const patience = 30 * time.Second
	defer stopDaemon()
	settle, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
	defer cancel()
	summary, err := demo.Settle(settle, d.addr.Source, d.vendors)
	if err != nil {
		return err
	}
	d.say("")
	d.say("%s", summary)
	if !summary.OK() {
		return fmt.Errorf("the vendors do not hold what the source does after %s", patience)
	}
	d.say("The vendors hold what the source does.")
	return nil
}
