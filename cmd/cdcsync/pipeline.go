package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/sourcegraph/conc/pool"
	"golang.org/x/time/rate"

	"github.com/cdcsync/cdcsync/internal/admin"
	"github.com/cdcsync/cdcsync/internal/backoff"
	"github.com/cdcsync/cdcsync/internal/buffer"
	"github.com/cdcsync/cdcsync/internal/cdc"
	"github.com/cdcsync/cdcsync/internal/config"
	"github.com/cdcsync/cdcsync/internal/delivery"
	"github.com/cdcsync/cdcsync/internal/mapping"
	"github.com/cdcsync/cdcsync/internal/pulse"
	"github.com/cdcsync/cdcsync/internal/replication"
	"github.com/cdcsync/cdcsync/internal/sinks"
)

// pipeline is the whole daemon: source, buffer, one worker a sink, admin listener.
type pipeline struct {
	cfg       *config.Config
	templates []*mapping.Template
	logger    *slog.Logger
	metrics   *prometheus.Registry

	buffer    *buffer.Buffer
	stream    *replication.Stream
	backfills *replication.Backfills
	reader    *replication.Reader
	sinks     []sinks.Sink       // as cfg.Sinks
	cursors   []*buffer.Sink     // as cfg.Sinks
	workers   []*delivery.Worker // as cfg.Sinks
	admin     *admin.Server
	listener  net.Listener

	pulse *pulse.Board
	lag   atomic.Pointer[replication.Lag] // what the source last said of the slot; nil before
}

// newPipeline opens the buffer, which is known to be this source's then, and the admin listener. Run goes on from there. The sinks in skipMissed go on
// although blocks are gone that they have not settled.
func newPipeline(ctx context.Context, cfg *config.Config, templates []*mapping.Template, logger *slog.Logger, skipMissed ...string) (_ *pipeline, err error) {
	p := &pipeline{cfg: cfg, templates: templates, logger: logger, metrics: prometheus.NewRegistry()}
	p.metrics.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	defer func() {
		if err != nil {
			p.close(ctx)
		}
	}()
	p.pulse = pulse.NewBoard(logger, p.metrics)
	source := sourceConfig(cfg, templates)
	source.Pulse = p.pulse
	if p.buffer, err = openBuffer(ctx, cfg, &source, logger, p.metrics, false); err != nil {
		return nil, fmt.Errorf("buffer: %w", err)
	}
	if err := refuseUnrecovered(ctx, p.buffer); err != nil {
		return nil, err
	}
	if err := refuseHalfExported(ctx, p.buffer, source, logger); err != nil {
		return nil, err
	}
	p.backfills, err = replication.NewBackfills(ctx, replication.BackfillConfig{URL: source.URL, Publication: source.Publication, MaxRow: source.MaxRow, Needs: neededColumns(templates), Delivered: p.delivered}, p.buffer, deliveries{p.buffer, cfg.Sinks}, logger)
	if err != nil {
		return nil, err
	}
	if err := p.backfills.Reconcile(ctx, mapped(templates)); err != nil {
		return nil, fmt.Errorf("backfills: %w", err)
	}
	source.Backfills, source.Gaps, source.Survey = p.backfills, p.buffer, cfg.Source.Survey
	p.metrics.MustRegister(newGapMetrics(p.buffer))
	p.stream = replication.New(source, p.buffer, logger, p.metrics)
	p.reader, err = replication.NewReader(ctx, cfg.Source.QueryURL.Reveal(), replication.ReaderOptions{StatementTimeout: cfg.Source.QueryTimeout, Publication: cfg.Source.Publication})
	if err != nil {
		return nil, fmt.Errorf("source.query_url: %w", err)
	}
	if err := p.openSinks(ctx, skipMissed); err != nil {
		return nil, err
	}
	if p.listener, err = admin.Listen(ctx, cfg.Admin.Listen); err != nil {
		return nil, err
	}
	window := &window{pipeline: p}
	p.admin, err = admin.New(admin.Config{Listen: cfg.Admin.Listen, Token: cfg.Admin.Token, Version: readBuild().Version},
		admin.Parts{Pipeline: window, DeadLetters: window, Backfills: backfills{p}, Gaps: window, Metrics: p.metrics}, logger)
	return p, err
}

// openSinks makes a worker for each sink.
func (p *pipeline) openSinks(ctx context.Context, skipMissed []string) error {
	deps := sinks.Deps{Tokens: sinks.NewTokens(readBuild().Version, p.metrics, nil), Version: readBuild().Version, Registerer: p.metrics}
	limiters := make(map[string]*rate.Limiter) // by account
	accounts := make(map[string]*delivery.Account)
	for i := range p.cfg.Sinks {
		s := &p.cfg.Sinks[i]
		sink, err := sinks.New(sinkConfig(s), deps)
		if err != nil {
			return err
		}
		p.sinks = append(p.sinks, sink)
		cursor, err := p.openCursor(ctx, s.Name, slices.Contains(skipMissed, s.Name))
		if err != nil {
			return err
		}
		p.cursors = append(p.cursors, cursor)
		if accounts[s.Account] == nil {
			accounts[s.Account] = new(delivery.Account)
		}
		if _, ok := limiters[s.Account]; !ok && s.Rate.Per > 0 {
			limiters[s.Account] = rate.NewLimiter(rate.Limit(s.Rate.PerSecond()), max(1, s.Concurrency))
		}
		p.workers = append(p.workers, delivery.New(workerConfig(s, &p.cfg.Buffer), delivery.Deps{
			Blocks: blocks{cursor}, Letters: letters{p.buffer, s.Name}, Gaps: p.buffer, Tracks: tracks{p.buffer, s.Name}, Pauses: pauses{p.buffer, s.Name},
			Source: source{p.reader}, Sink: sink, Mappings: templatesOf(p.templates, s.Name), Limiter: limiters[s.Account], Account: accounts[s.Account],
			Logger: p.logger, Registerer: p.metrics, Pulse: p.pulse,
		}))
	}
	return nil
}

// openCursor finds where a sink goes on. One that was not configured for a while may have missed blocks, which an operator must know of.
func (p *pipeline) openCursor(ctx context.Context, sink string, skipMissed bool) (*buffer.Sink, error) {
	cursor, err := p.buffer.Sink(ctx, sink)
	var trimmed *buffer.TrimmedError
	if !errors.As(err, &trimmed) {
		return cursor, err
	}
	if !skipMissed {
		return nil, fmt.Errorf("%w; start once with --skip-missed %s to go on with what is there, then send its tables again with cdcsync backfill start", err, sink)
	}
	if err := p.buffer.Forget(ctx, trimmed); err != nil {
		return nil, err
	}
	p.logger.WarnContext(ctx, "missed blocks skipped", "sink", sink, "blocks", trimmed.Messages, "since", trimmed.Since)
	return p.buffer.Sink(ctx, sink)
}

// Run carries changes until ctx ends, then drains within shutdown.grace. Its error is one that an operator must mend, or that of
// a part that has failed.
func (p *pipeline) Run(ctx context.Context) error {
	ctx, stop := context.WithCancel(ctx) // the capture may end by itself, and any part may fail
	defer stop()
	// What lives longer than ctx: deliveries are drained after the capture has ended, and the listener shows how.
	life, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	workers := pool.New().WithContext(life)
	for _, w := range p.workers {
		workers.Go(func(ctx context.Context) error {
			_ = w.Run(ctx) // its sink is failed then, and has said so
			return nil
		})
	}
	parts := newSupervisor(life, p.logger, p.pulse, stop)
	p.watch(ctx, parts)

	p.logger.InfoContext(ctx, "started", "version", readBuild().Version, "admin", p.listener.Addr().String(), "sinks", len(p.sinks), "mappings", len(p.templates))
	err := p.pulse.Loop("capture", captureLimit).Run(ctx, func(ctx context.Context) error {
		defer pulse.Rest(ctx)() // its loops have pulses of their own
		return p.stream.Run(ctx)
	})
	stop()
	p.logger.InfoContext(ctx, "draining", "grace", p.cfg.Shutdown.Grace)
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), p.cfg.Shutdown.Grace)
	defer cancel()
	p.drain(grace)
	end()
	err = errors.Join(err, parts.err(), p.finish(ctx, workers.Wait, parts))
	p.logger.InfoContext(ctx, "stopped")
	return err
}

const (
	captureLimit  = time.Minute
	listenerLimit = time.Minute
	adviceLimit   = 5 * time.Minute // it asks every vendor, too
	lagLimit      = time.Minute     // two connections are tried
	initialLimit  = 5 * time.Minute // it looks at every table
)

// watch starts what goes on beside the stream and the workers.
func (p *pipeline) watch(ctx context.Context, parts *supervisor) {
	parts.keep("admin listener", listenerLimit, func(ctx context.Context) error {
		defer pulse.Rest(ctx)() // who asks it sees whether it answers
		return p.admin.Run(ctx, p.listener)
	})
	parts.keep("pulse", listenerLimit, func(ctx context.Context) error {
		defer pulse.Rest(ctx)()
		return p.pulse.Run(ctx)
	})
	parts.keep("buffer", listenerLimit, func(ctx context.Context) error {
		defer pulse.Rest(ctx)()
		select {
		case err := <-p.buffer.Failed():
			return err
		case <-p.buffer.Lost(): // nothing can be stored any more, and the start says what is lost
			return errors.New(p.buffer.Health())
		case <-ctx.Done():
			return ctx.Err()
		}
	})
	parts.once("advice", adviceLimit, func(context.Context) { p.advise(ctx) })
	parts.once("lag watcher", lagLimit, func(life context.Context) { p.watchLag(pulse.With(ctx, life)) })
	parts.once("initial backfills", initialLimit, func(life context.Context) { p.initial(pulse.With(ctx, life)) })
	parts.once("gaps", initialLimit, func(life context.Context) { p.watchGaps(pulse.With(ctx, life)) })
}

// finish waits for what has been told to end, and closes what was opened. What hangs does not keep the process.
func (p *pipeline) finish(ctx context.Context, workers func() error, parts *supervisor) error {
	const patience = 5 * time.Second
	ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
	defer cancel()
	err := errors.Join(waitFor(ending, "sinks", workers), parts.wait(ending))
	if err == nil {
		p.close(ctx)
	}
	return err
}

// drain lets requests in flight end, so that a start after it repeats nothing.
func (p *pipeline) drain(grace context.Context) {
	draining := pool.New()
	for i, w := range p.workers {
		draining.Go(func() {
			if err := w.Drain(grace); err != nil {
				p.logger.WarnContext(grace, "sink not drained, its requests in flight are repeated at the next start", "sink", p.cfg.Sinks[i].Name, "err", err)
			}
		})
	}
	draining.Wait()
}

// close does its work also when ctx has ended.
func (p *pipeline) close(ctx context.Context) {
	const patience = 10 * time.Second // for the cursors to be written
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
	defer cancel()
	for _, c := range p.cursors {
		c.Close()
	}
	for _, s := range p.sinks {
		s.Close()
	}
	if p.reader != nil {
		p.reader.Close()
	}
	if p.buffer != nil {
		if err := p.buffer.Close(ctx); err != nil {
			p.logger.ErrorContext(ctx, "buffer not closed cleanly", "err", err)
		}
	}
	if p.listener != nil {
		_ = p.listener.Close() // it is closed already when it was served
	}
}

// advise logs what an operator should know although nothing fails yet.
func (p *pipeline) advise(ctx context.Context) {
	findings, err := replication.Check(ctx, sourceConfig(p.cfg, p.templates))
	if ctx.Err() != nil {
		return // what was asked last was broken off
	}
	if err != nil {
		p.logger.DebugContext(ctx, "source not checked", "err", err) // the stream says the same, louder
	}
	for _, f := range findings {
		p.logger.WarnContext(ctx, "source", "table", f.Table, "finding", f.Message, "solution", f.Solution)
	}
	for i, s := range p.sinks {
		checker, ok := s.(interface {
			Check(context.Context) []string
		})
		if !ok {
			continue
		}
		warnings := checker.Check(ctx)
		if ctx.Err() != nil {
			return
		}
		for _, warning := range warnings {
			p.logger.WarnContext(ctx, "sink", "sink", p.cfg.Sinks[i].Name, "finding", warning)
		}
	}
	for _, w := range p.cfg.Warnings {
		p.logger.WarnContext(ctx, "configuration", "finding", w.Error())
	}
}

// watchLag asks the source what it keeps for the slot, until ctx ends.
func (p *pipeline) watchLag(ctx context.Context) {
	const interval = 10 * time.Second
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		if lag, err := p.stream.Lag(ctx); err == nil { // the stream's own state says when the source cannot be reached
			p.lag.Store(&lag)
		}
		beat := pulse.Rest(ctx)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		beat()
	}
}

func bufferConfig(cfg *config.Config) buffer.Config {
	c := buffer.Config{Dir: cfg.Buffer.Dir, MaxSize: int64(cfg.Buffer.MaxSize), Pipeline: cfg.Source.Slot}
	for i := range cfg.Sinks {
		c.Sinks = append(c.Sinks, cfg.Sinks[i].Name)
	}
	if n := cfg.Buffer.NATS; n != nil {
		c.NATS = &buffer.NATSConfig{
			URL: n.URL.Reveal(), Replicas: n.Replicas, CredentialsFile: n.CredentialsFile,
			CAFile: n.CAFile, CertFile: n.CertFile, KeyFile: n.KeyFile,
		}
	}
	return c
}

func sourceConfig(cfg *config.Config, templates []*mapping.Template) replication.Config {
	c := replication.Config{
		URL: cfg.Source.URL.Reveal(), Slot: cfg.Source.Slot, Publication: cfg.Source.Publication, Manage: cfg.Source.Manage,
		AckDelivered: cfg.Buffer.Ack == config.AckDelivered, MaxRow: int64(cfg.Buffer.MaxRow),
	}
	at := make(map[mapping.Table]int)
	for _, t := range templates {
		i, known := at[t.Source.Table]
		if !known {
			i = len(c.Tables)
			at[t.Source.Table] = i
			c.Tables = append(c.Tables, replication.Table{Schema: t.Source.Table.Schema, Name: t.Source.Table.Name, Truncate: true})
		}
		table := &c.Tables[i]
		table.Insert = table.Insert || t.Sends(cdc.OpInsert)
		table.Update = table.Update || t.Sends(cdc.OpUpdate) || t.Sends(cdc.OpDelete) || t.Source.When.Kind != 0 // an update may be a delete, or an insert
		table.Delete = table.Delete || t.Sends(cdc.OpDelete)
		for _, lost := range t.Without() {
			table.NeedsFull = true
			if !strings.Contains(table.WithoutFull, lost) {
				table.WithoutFull = strings.TrimPrefix(table.WithoutFull+"; "+lost, "; ")
			}
		}
	}
	return c
}

func workerConfig(s *config.Sink, b *config.Buffer) delivery.Config {
	return delivery.Config{
		Sink: s.Name, Type: string(s.Type), MaxItem: int(b.MaxRow),
		Batch:          delivery.Batch{Items: s.Batch.Items, Bytes: int(s.Batch.Bytes), Wait: s.Batch.Wait},
		Concurrency:    s.Concurrency,
		Retry:          backoff.Range{Min: s.Retry.Min, Max: s.Retry.Max},
		MaxWait:        s.Retry.MaxWait,
		GiveUp:         s.Retry.GiveUp,
		Timeout:        s.Timeout,
		DeadLetters:    s.DeadLetters.Limit,
		ConfirmTimeout: s.ConfirmTimeout,
		ConfirmRate:    s.Polls.PerSecond(),
	}
}

func templatesOf(templates []*mapping.Template, sink string) []*mapping.Template {
	var of []*mapping.Template
	for _, t := range templates {
		if t.Source.Sink == sink {
			of = append(of, t)
		}
	}
	return of
}
