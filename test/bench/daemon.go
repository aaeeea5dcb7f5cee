package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/sourcegraph/conc"
)

// daemonConfig is what the daemon runs with: defaults but for the addresses.
const daemonConfig = `
source:
  url: %q
  slot: %s
  publication: bench
buffer:
  dir: %q
admin:
  listen: %s
sinks:
  crm:
    type: stopchurn
    url: http://%s
    api_key: bench
mappings:
  - table: public.bench
    sink: crm
    item:
      brandId: 1
      tableName: bench
      createdAt: $created_at
      updatedAt: $updated_at
      data:
        "*": {case: camel}
`

// daemon is a running cdcsync.
type daemon struct {
	command *exec.Cmd
	admin   string
	began   time.Time
	log     string // path of what it writes

	waiting conc.WaitGroup
	exited  chan struct{} // closed when it has ended, after which failed is set
	failed  error
}

// startDaemon runs cdcsync on the slot, delivering to the vendor's address.
func (b *bench) startDaemon(ctx context.Context, url, slot, vendor string) (*daemon, error) {
	return b.launch(ctx, slot, func(buffer, admin string) string {
		return fmt.Sprintf(daemonConfig, url, slot, buffer, admin, vendor)
	})
}

// launch runs cdcsync with a configuration. Its buffer is named for the slot, so that a second start on the same slot goes on
// where the first ended.
func (b *bench) launch(ctx context.Context, slot string, configure func(buffer, admin string) string) (*daemon, error) {
	admin, err := freeAddress(ctx)
	if err != nil {
		return nil, err
	}
	path := filepath.Join(b.dir, slot)
	if err := os.WriteFile(path+".yaml", []byte(configure(path, admin)), 0o600); err != nil {
		return nil, err
	}
	log, err := os.Create(path + ".log")
	if err != nil {
		return nil, err
	}
	defer log.Close() // the child has its own
	d := &daemon{admin: admin, log: log.Name(), exited: make(chan struct{})}
	d.command = exec.CommandContext(ctx, b.daemon, "run", "--config", path+".yaml")
	d.command.Cancel = func() error { return d.command.Process.Signal(syscall.SIGTERM) }
	d.command.WaitDelay = 10 * time.Second
	d.command.Stdout, d.command.Stderr = log, log
	d.began = time.Now()
	if err := d.command.Start(); err != nil {
		return nil, fmt.Errorf("%w; build it with: make build", err)
	}
	d.waiting.Go(func() {
		d.failed = d.command.Wait()
		close(d.exited)
	})
	return d, nil
}

// freeAddress is a port that is free now; nobody else on this machine is likely to take it before the daemon does.
func freeAddress(ctx context.Context) (string, error) {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}

// ready waits until the daemon streams.
func (d *daemon) ready(ctx context.Context) error {
	const patience = 30 * time.Second
	for deadline := time.Now().Add(patience); ; {
		_, err := get(ctx, "http://"+d.admin+"/readyz")
		switch {
		case err == nil:
			return nil
		case time.Now().After(deadline):
			return fmt.Errorf("the daemon is not ready after %s: %w%s", patience, err, d.said())
		}
		if err := d.pause(ctx, 10*time.Millisecond); err != nil {
			return err
		}
	}
}

// pause waits a moment, and fails when the daemon ends meanwhile.
func (d *daemon) pause(ctx context.Context, moment time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-d.exited:
		return fmt.Errorf("the daemon ended: %w%s", d.failed, d.said())
	case <-time.After(moment):
		return nil
	}
}

func (d *daemon) usage() (usage, error) { return usageOf(d.command.Process.Pid) }

// writeProfile takes a processor profile of the next seconds, once the daemon answers.
func (d *daemon) writeProfile(ctx context.Context, path string) error {
	if err := d.ready(ctx); err != nil {
		return err
	}
	profile, err := get(ctx, "http://"+d.admin+"/debug/pprof/profile?seconds=5")
	if err != nil {
		return err
	}
	return os.WriteFile(path, profile, 0o600)
}

// stop ends the daemon as an operator does, and waits.
func (d *daemon) stop() error {
	err := d.command.Process.Signal(syscall.SIGTERM)
	if errors.Is(err, os.ErrProcessDone) {
		err = nil
	}
	d.waiting.Wait()
	if err := errors.Join(err, d.failed); err != nil {
		return fmt.Errorf("stop the daemon: %w%s", err, d.said())
	}
	return nil
}

// said is the end of what the daemon wrote, for an error message.
func (d *daemon) said() string {
	const lines = 20
	text, err := os.ReadFile(d.log)
	if err != nil {
		return "; " + err.Error()
	}
	all := strings.Split(strings.TrimSpace(string(text)), "\n")
	return "; it said last:\n" + strings.Join(all[max(0, len(all)-lines):], "\n")
}
