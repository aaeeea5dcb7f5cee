package buffer

import (
	"context"
	"errors"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/cdcsync/cdcsync/internal/pulse"
)

// health is what is wrong with the store at the moment, by fault.
type health struct {
	mu      sync.Mutex
	reasons map[string]string
	failed  chan string // size 1: what the embedded store said when it could not write; it stores nothing more until it is opened again
}

// The faults.
const (
	writeFault = "write"
	readFault  = "read/" // and the sink
)

func (h *health) init() {
	h.reasons, h.failed = make(map[string]string), make(chan string, 1)
}

// set notes a fault; an empty reason ends it.
func (h *health) set(fault, reason string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if reason == "" {
		delete(h.reasons, fault)
		return
	}
	h.reasons[fault] = reason
}

func (h *health) has(fault string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.reasons[fault] != ""
}

// Health says what keeps the buffer from storing or reading, as sentences for an operator; empty when nothing does. It does no I/O.
func (b *Buffer) Health() string {
	if f := b.folder; f != nil {
		select {
		case <-f.lost:
			return f.intact().Error()
		default:
		}
	}
	b.health.mu.Lock()
	defer b.health.mu.Unlock()
	return strings.Join(slices.Sorted(maps.Values(b.health.reasons)), "; ")
}

// Lost is closed when the buffer's folder is no longer the one that was opened: nothing can be stored any more, and Health says
// why. It is nil, and so never closed, with an external cluster.
func (b *Buffer) Lost() <-chan struct{} {
	if b.folder == nil {
		return nil
	}
	return b.folder.lost
}

// storeFailed is told what the embedded server logs, and looks for errors of the disk: the server answers a publish that it
// cannot store with nothing at all (processJetStreamMsg in its stream.go), and refuses to write until it is started again.
func (b *Buffer) storeFailed(text string) {
	for _, sign := range []string{"ritical write error", "permission denied", "will be DISABLED"} {
		if !strings.Contains(text, sign) {
			continue
		}
		select {
		case b.health.failed <- text:
		default:
		}
		return
	}
}

// watch looks after the embedded store until ctx ends: is its folder there, did it fail to write.
func (b *Buffer) watch(ctx context.Context) {
	const interval = time.Second
	tick := time.NewTicker(interval)
	defer tick.Stop()
	waits := newAttempts()
	var opened time.Time
	for {
		pulse.Beat(ctx)
		select {
		case text := <-b.health.failed:
			const calm = time.Minute
			if time.Since(opened) > calm {
				waits.Reset()
			}
			if !b.reopenStore(ctx, text, &waits) {
				return
			}
			opened = time.Now()
		case <-tick.C:
			if err := b.folder.inspect(); err != nil {
				b.logger.Error("buffer", "err", err)
				return
			}
			b.saveCensus()
			b.keepReserve()
		case <-ctx.Done():
			return
		}
	}
}

// reopenStore starts the embedded server again after it has failed to write, as soon as the disk takes something. It reports
// false when ctx has ended. What callers want to store meanwhile waits in their retries.
func (b *Buffer) reopenStore(ctx context.Context, text string, waits *attempts) bool {
	reason := "the buffer cannot write to " + b.cfg.Dir + " (" + writeError(text) + ")"
	b.health.set(writeFault, reason+": capture waits; it goes on by itself when the disk takes it")
	b.logger.Error("buffer cannot write, capture waits", "dir", b.cfg.Dir, "text", text)
	b.releaseReserve()
	defer pulse.Rest(ctx)() // Health tells it
	for {
		if waits.Wait(ctx) != nil {
			return false
		}
		err := b.folder.intact()
		if err == nil {
			err = probe(b.cfg.Dir)
		}
		if err == nil {
			err = b.restart(ctx)
		}
		if err == nil {
			break
		}
		if _, lost := errors.AsType[*Error](b.folder.intact()); lost {
			return true // the watcher says so
		}
		b.health.set(writeFault, "the buffer cannot write to "+b.cfg.Dir+" ("+err.Error()+"): capture waits; it goes on by itself when the disk takes it")
	}
	select {
	case <-b.health.failed: // said before it was started again
	default:
	}
	b.logger.Info("buffer is open again", "dir", b.cfg.Dir)
	return true
}

// writeError is the end of what the server logs: the error itself.
func writeError(text string) string {
	const sign = "ritical write error: "
	if _, err, ok := strings.Cut(text, sign); ok {
		return err
	}
	return text
}

// written notes that something was stored.
func (b *Buffer) written() {
	if b.folder != nil && b.health.has(writeFault) {
		b.health.set(writeFault, "")
	}
}

// probe writes and syncs a small file.
func probe(dir string) error {
	const size = 64 << 10
	path := filepath.Join(dir, "probe")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(make([]byte, size))
	err = errors.Join(err, f.Sync(), f.Close())
	return errors.Join(err, os.Remove(path))
}

// restart ends the embedded server and starts it again on the same folder. The connections find the new one by themselves.
func (b *Buffer) restart(ctx context.Context) error {
	b.embedded.stop()
	s, err := b.newServer()
	if err != nil {
		return err
	}
	b.embedded.set(s)
	return ctx.Err()
}

// embedded is the server in this process: a connection that was lost asks it for a new one.
type embedded struct {
	mu     sync.Mutex
	server *server.Server // nil while there is none
}

// InProcessConn is of nats.InProcessConnProvider.
func (e *embedded) InProcessConn() (net.Conn, error) {
	e.mu.Lock()
	s := e.server
	e.mu.Unlock()
	if s == nil {
		return nil, server.ErrServerNotRunning
	}
	return s.InProcessConn()
}

func (e *embedded) set(s *server.Server) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.server = s
}

func (e *embedded) stop() {
	e.mu.Lock()
	s := e.server
	e.server = nil
	e.mu.Unlock()
	if s != nil {
		s.Shutdown()
		s.WaitForShutdown()
	}
}
