package buffer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sys/unix"

	"github.com/cdcsync/cdcsync/internal/backoff"
)

// connect starts the embedded server, unless there is an external one, and connects to it.
func (b *Buffer) connect(ctx context.Context) (err error) {
	var options []nats.Option
	url := ""
	if b.cfg.NATS == nil {
		if err := b.startServer(); err != nil {
			return err
		}
		const again = 50 * time.Millisecond // it is a moment away
		options = append(options, nats.InProcessServer(&b.embedded), nats.ReconnectWait(again), nats.ReconnectJitter(again, again))
	} else {
		url = b.cfg.NATS.URL
		options = b.cfg.NATS.options()
	}
	options = append(
		options,
		nats.Name("cdcsync "+b.cfg.Pipeline),
		nats.MaxReconnects(-1),
		// What could not be sent is not sent behind the caller's back after a reconnect.
		nats.ReconnectBufSize(-1),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			b.logger.Warn("nats connection", "err", err)
		}),
	)
	if b.write, err = dial(url, options); err != nil {
		return err
	}
	if b.read, err = dial(url, options); err != nil {
		return err
	}
	if err := checkVersion(b.write.ConnectedServerVersion()); err != nil {
		return err
	}
	if b.js, err = jetstream.New(b.write); err != nil {
		return err
	}
	err = b.retry(ctx, "account", func(ctx context.Context) error {
		_, err := b.js.AccountInfo(ctx)
		return err
	})
	if err != nil {
		return &Error{Reason: "use JetStream", Err: err, Solution: "enable it on the servers and for the account of buffer.nats"}
	}
	return nil
}

func dial(url string, options []nats.Option) (*nats.Conn, error) {
	conn, err := nats.Connect(url, options...)
	if err != nil {
		return nil, &Error{Reason: "connect to NATS", Err: err, Solution: "check buffer.nats.url, its credentials, and that the cluster runs"}
	}
	return conn, nil
}

// checkVersion wants batched direct gets, which NATS 2.11 brought.
func checkVersion(version string) error {
	major, rest, _ := strings.Cut(version, ".")
	minor, _, _ := strings.Cut(rest, ".")
	m, errMajor := strconv.Atoi(major)
	n, errMinor := strconv.Atoi(minor)
	if err := errors.Join(errMajor, errMinor); err != nil {
		return fmt.Errorf("version %q of NATS: %w", version, err)
	}
	if m < 2 || m == 2 && n < 11 {
		return &Error{Reason: "NATS " + version + " is too old", Solution: "use 2.11 or newer"}
	}
	return nil
}

func (c *NATSConfig) options() []nats.Option {
	var options []nats.Option
	if c.CredentialsFile != "" {
		options = append(options, nats.UserCredentials(c.CredentialsFile))
	}
	if c.CAFile != "" {
		options = append(options, nats.RootCAs(c.CAFile))
	}
	if c.CertFile != "" {
		options = append(options, nats.ClientCert(c.CertFile, c.KeyFile))
	}
	return options
}

func (b *Buffer) startServer() error {
	if err := os.MkdirAll(b.cfg.Dir, 0o700); err != nil {
		return &Error{Reason: "make the buffer's folder", Err: err, Solution: "set buffer.dir to a folder that the daemon may write"}
	}
	if err := b.lock(); err != nil {
		return err
	}
	folder, err := newFolder(b.cfg.Dir, b.dir, &b.names)
	if err != nil {
		return fmt.Errorf("the buffer's folder: %w", err)
	}
	b.space = b.freeSpace
	b.releaseReserve()
	s, err := b.newServer()
	if err != nil {
		return err
	}
	b.embedded.set(s)
	b.folder = folder
	return nil
}

// forgetIndexes has the store read its files again, which cuts off what is damaged, instead of believing the index that it
// wrote when it ended: with an index and a damaged record it can neither replace the record nor, for some, even start. Where
// there are many blocks that would take too long; those are looked at when they are read.
func (b *Buffer) forgetIndexes() {
	const most = 64 << 20
	for _, stream := range []string{b.names.blocks, b.names.letters, b.names.tracked, "KV_" + b.names.values} {
		dir := streamFiles(b.cfg.Dir, stream)
		if stream != b.names.blocks || size(dir) <= most {
			_ = os.Remove(filepath.Join(dir, "index.db")) // there is none after a kill
		}
	}
}

// streamFiles is where the embedded store keeps the files of a stream.
func streamFiles(dir, stream string) string {
	return filepath.Join(dir, "jetstream", "$G", "streams", stream, "msgs")
}

// size is that of the files in a folder, in bytes.
func size(dir string) (sum int64) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return 0
	}
	for _, e := range entries {
		if st, err := e.Info(); err == nil {
			sum += st.Size()
		}
	}
	return sum
}

// newServer starts an embedded server, which recovers the streams.
func (b *Buffer) newServer() (*server.Server, error) {
	b.forgetIndexes()
	// JetStreamMaxStore: the blocks have their own bound, and free space is watched by Append.
	const unbounded = 1 << 60
	s, err := server.NewServer(&server.Options{
		ServerName: "cdcsync", DontListen: true, NoSigs: true,
		JetStream: true, StoreDir: b.cfg.Dir, SyncAlways: true,
		JetStreamMaxStore: unbounded, JetStreamMaxMemory: unbounded, DisableJetStreamBanner: true,
	})
	if err != nil {
		return nil, fmt.Errorf("embedded NATS in %s: %w", b.cfg.Dir, err)
	}
	said := &serverLog{logger: b.logger, failed: b.storeFailed}
	s.SetLogger(said, false, false)
	s.Start() // recovers the streams before it returns
	const started = 30 * time.Second
	if !s.ReadyForConnections(started) || !s.JetStreamEnabled() {
		s.Shutdown()
		s.WaitForShutdown()
		return nil, &Error{
			Reason:   strings.TrimSuffix("embedded NATS did not start in "+b.cfg.Dir+": "+said.last(), ": "),
			Solution: "the folder must be writable, its disk must have room, and its files must be intact",
		}
	}
	return s, nil
}

const lockName = "lock"

// lock holds the folder for as long as the process lives or until it is closed: flock is given back by a kill too.
func (b *Buffer) lock() error {
	path := filepath.Join(b.cfg.Dir, lockName)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return &Error{Reason: "lock the buffer's folder", Err: err, Solution: "set buffer.dir to a folder that the daemon may write"}
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		const pid = 20
		holder, _ := io.ReadAll(io.LimitReader(f, pid)) // best effort: it only makes the message better
		f.Close()
		return &Error{
			Reason:   fmt.Sprintf("buffer folder %s is in use by process %s", b.cfg.Dir, strings.TrimSpace(string(holder))),
			Err:      err,
			Solution: "stop the other daemon, or give this one a buffer.dir of its own",
		}
	}
	b.dir = f
	// The number makes a message better, no more: a full disk does not take it.
	if err := f.Truncate(0); err == nil {
		_, _ = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	}
	return nil
}

// freeSpace is what the daemon may still write on the folder's disk, in bytes.
func (b *Buffer) freeSpace() (uint64, error) {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(b.dir.Fd()), &st); err != nil {
		return 0, fmt.Errorf("free space of %s: %w", b.cfg.Dir, err)
	}
	return st.Bavail * uint64(st.Bsize), nil
}

// serverLog passes on what the embedded server has to complain of, and to failed what may be a failure to write.
type serverLog struct {
	logger *slog.Logger
	failed func(text string)

	mu    sync.Mutex
	error string // the last one
}

// last is the last error.
func (l *serverLog) last() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.error
}

// Warnf is of server.Logger.
func (l *serverLog) Warnf(format string, v ...any) {
	text := fmt.Sprintf(format, v...)
	l.logger.Warn("embedded nats", "text", text)
	l.failed(text)
}

// Errorf is of server.Logger.
func (l *serverLog) Errorf(format string, v ...any) {
	text := fmt.Sprintf(format, v...)
	l.logger.Error("embedded nats", "text", text)
	l.mu.Lock()
	l.error = text
	l.mu.Unlock()
	l.failed(text)
}

// Fatalf is of server.Logger.
func (l *serverLog) Fatalf(format string, v ...any) { l.Errorf(format, v...) }

// Noticef is of server.Logger, as what follows.
func (*serverLog) Noticef(string, ...any) {}

// Debugf says nothing.
func (*serverLog) Debugf(string, ...any) {}

// Tracef says nothing.
func (*serverLog) Tracef(string, ...any) {}

// attemptTimeout is for one request. Trying again is safe, so it need not outlast a leader election.
const attemptTimeout = 5 * time.Second

// retry calls f until it succeeds, fails for good, or ctx ends. f gets a context for one attempt.
func (b *Buffer) retry(ctx context.Context, what string, f func(context.Context) error) error {
	waits := newAttempts()
	for {
		attempt, cancel := context.WithTimeout(ctx, attemptTimeout)
		err := f(attempt)
		cancel()
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if !b.isTransient(err) {
			return err
		}
		if lost := b.folder.known(); lost != nil {
			return lost
		}
		if waits.tell() {
			b.logger.Warn("buffer request will be tried again", "request", what, "err", err)
		}
		if err := waits.Wait(ctx); err != nil {
			return err
		}
	}
}

// isTransient is the function, but for an embedded server: it does without JetStream only until it is started again.
func (b *Buffer) isTransient(err error) bool {
	if b.folder != nil && (errors.Is(err, jetstream.ErrJetStreamNotEnabled) || errors.Is(err, jetstream.ErrJetStreamNotEnabledForAccount)) {
		return true
	}
	return isTransient(err)
}

// isTransient says whether the same request may succeed later without an operator.
func isTransient(err error) bool {
	if errors.Is(err, jetstream.ErrJetStreamNotEnabled) || errors.Is(err, jetstream.ErrJetStreamNotEnabledForAccount) {
		return false
	}
	for _, e := range []error{
		context.DeadlineExceeded, io.EOF, nats.ErrTimeout, nats.ErrNoResponders, nats.ErrDisconnected, nats.ErrReconnectBufExceeded,
		nats.ErrConnectionReconnecting, nats.ErrStaleConnection, nats.ErrNoServers, jetstream.ErrNoStreamResponse,
	} {
		if errors.Is(err, e) {
			return true
		}
	}
	if _, ok := errors.AsType[net.Error](err); ok {
		return true
	}
	var api *jetstream.APIError
	if errors.Is(err, server.ErrServerNotRunning) { // while it is opened again
		return true
	}
	const unavailable, notAssigned, notLeader = 503, 10007, 10009 // while servers start or elect
	return errors.As(err, &api) && (api.Code == unavailable || api.ErrorCode == notAssigned || api.ErrorCode == notLeader)
}

// attempts are those of one request, which is logged now and then.
type attempts struct {
	backoff.Attempts
	told time.Time
}

func newAttempts() attempts {
	const first, most = 10 * time.Millisecond, 2 * time.Second
	return attempts{Attempts: backoff.Attempts{Range: backoff.Range{Min: first, Max: most}}}
}

// tell reports whether it is time to log that something is being tried again.
func (a *attempts) tell() bool {
	const every = 30 * time.Second
	if now := time.Now(); now.Sub(a.told) >= every {
		a.told = now
		return true
	}
	return false
}
