// Package buffer keeps captured blocks durably in NATS JetStream until every sink has settled them.
//
// Blocks lie in one stream, in order, written by one writer at a time. Each sink has a cursor in a key-value bucket of the
// same JetStream and reads at its own pace; blocks that all configured sinks have settled are trimmed. Dead letters and items
// that a vendor has accepted but not confirmed have streams of their own. JetStream is embedded by default, on a folder that
// one daemon holds at a time, or an external cluster; either way only the client API is used.
package buffer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/sourcegraph/conc/pool"

	"github.com/cdcsync/cdcsync/internal/cdc"
	"github.com/cdcsync/cdcsync/internal/pulse"
)

// Config says where the buffer is and how large it may grow.
type Config struct {
	// Dir holds the embedded JetStream. It is made when missing. Not used when NATS is set.
	Dir string
	// NATS is an external cluster instead of the embedded one.
	NATS *NATSConfig
	// Pipeline names what belongs together, such as the slot: two pipelines may share a cluster.
	Pipeline string
	// MaxSize bounds the stored blocks, in bytes; 0 sets no bound. A change is applied when the buffer is opened.
	MaxSize int64
	// Pulse watches the loops; nil for nobody.
	Pulse *pulse.Board
	// Sinks are the configured sinks. Only they hold blocks; one that was never seen begins at the end of what is stored.
	Sinks []string
	// Repair lets Open go on where it refuses since cursors or values were lost: what is not known of a sink's cursor begins at
	// the first stored block, so that everything stored is delivered again, and what else is lost becomes a gap.
	Repair bool
	// Claim verifies whose buffer it is before anything of it is used; nil for no check. It is given what it returned when the buffer
	// was opened first and what SetSource stored, nil for nothing, and returns what is to be stored, nil for nothing. It may be called
	// more than once.
	Claim func(ctx context.Context, claimed, source []byte) ([]byte, error)
}

// NATSConfig reaches an external cluster, of NATS 2.11 or newer.
type NATSConfig struct {
	URL             string // several, separated by commas; user, password or token may be part of it
	Replicas        int    // of each stream, 1 to 5; 0 means 1
	CredentialsFile string // a user's JWT and seed, as nsc writes them
	CAFile          string // PEM; empty means the system's
	CertFile        string // PEM, client certificate, with KeyFile
	KeyFile         string
}

// Error is a failure that goes on until an operator acts.
type Error struct {
	Reason   string
	Solution string
	Err      error // the cause, where there is one
}

func (e *Error) Error() string {
	s := e.Reason
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	if e.Solution != "" {
		s += "; " + e.Solution
	}
	return s
}

func (e *Error) Unwrap() error { return e.Err }

// IsPermanent says whether an operator has to act before it can go on.
func IsPermanent(err error) bool {
	var e *Error
	var t *TrimmedError
	return errors.As(err, &e) || errors.As(err, &t)
}

// ErrConflict is the cause when somebody else has appended to the blocks: two daemons run on one pipeline.
var ErrConflict = errors.New("another writer has appended to the buffer")

// Buffer is an open buffer. It is safe for concurrent use.
type Buffer struct {
	cfg     Config
	names   names
	logger  *slog.Logger
	metrics *metrics
	writer  string // distinguishes the blocks of this Buffer from those of any other

	dir      *os.File // the lock file of the folder; nil with an external cluster
	embedded embedded
	folder   *folder                // nil with an external cluster
	space    func() (uint64, error) // bytes that are free on the folder's disk; nil with an external cluster
	health   health
	census   census
	write    *nats.Conn // publishes and asks the API
	read     *nats.Conn // reads: the server answers reads in a connection's read loop, where they would hold up writes
	js       jetstream.JetStream
	values   jetstream.KeyValue
	loops    *pool.ContextPool
	stop     context.CancelFunc // ends the loops
	failed   chan error         // size 1: why a loop has ended
	broken   atomic.Bool        // a loop has ended

	appending sync.Mutex // one Append or Tail at a time
	tail      tail       // guarded by appending

	mu       sync.Mutex // guards what follows
	stored   stored
	recent   recent
	full     full
	tables   tables
	appended chan struct{} // closed and replaced when a block has been stored
	trimmed  chan struct{} // closed and replaced when room has been made

	rewind  rewind // guarded by mu
	cursors cursors
	letters letterIndex
	tracked trackLog
	gaps    gapIndex
	trim    chan struct{} // size 1: a wake-up that is pending says enough
}

// stored is what is known of the blocks stream.
type stored struct {
	end        uint64 // sequence of the last whole block
	endFirst   uint64 // sequence of its first part
	endResume  cdc.LSN
	endReach   cdc.LSN // the newest LSN of which it has anything: the commit of a transaction that is open at its end, too
	first      uint64  // first sequence in the stream
	last       uint64  // last sequence that the stream had when Tail read it
	messages   uint64
	bytes      uint64 // approximate between two trims
	lastAppend time.Time
}

// setEnd notes which block is the last.
func (s *stored) setEnd(end, first uint64, resume cdc.Resume) {
	s.end, s.endFirst, s.endResume, s.endReach = end, first, resume.End, max(resume.End, resume.Open)
}

// names are those of the streams and their subjects.
type names struct {
	blocks, letters, tracked, values               string // streams; values is a bucket
	blockSubject, letterSubject, letterPartSubject string
	trackSubject                                   string
}

func newNames(pipeline string) names {
	p := token(pipeline)
	stream, subject := "cdcsync_"+strings.ReplaceAll(p, "=", "-"), "cdcsync."+p
	return names{
		blocks: stream + "_blocks", letters: stream + "_letters", tracked: stream + "_tracked", values: stream + "_values",
		blockSubject: subject + ".blocks", letterSubject: subject + ".letters", letterPartSubject: subject + ".letterparts",
		trackSubject: subject + ".tracked",
	}
}

// token makes any text one token of a subject and part of a key: what is not a letter, digit, - or _ becomes =XX.
func token(s string) string {
	var b strings.Builder
	for i := range len(s) {
		switch c := s[i]; {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '-', c == '_':
			b.WriteByte(c)
		default:
			fmt.Fprintf(&b, "=%02X", c)
		}
	}
	return b.String()
}

// Open opens the buffer, makes what is missing, and gives each new sink its cursor. reg may be nil. An *Error says what an operator has to do.
func Open(ctx context.Context, cfg Config, logger *slog.Logger, reg prometheus.Registerer) (_ *Buffer, err error) {
	if cfg.Pipeline == "" {
		return nil, errors.New("open buffer: no pipeline name")
	}
	b := &Buffer{
		cfg: cfg, names: newNames(cfg.Pipeline), logger: logger, writer: nuid.Next(),
		appended: make(chan struct{}), trimmed: make(chan struct{}), trim: make(chan struct{}, 1),
	}
	b.cursors.init()
	b.letters.init()
	b.tracked.init()
	b.health.init()
	b.census.init()
	loops, stop := context.WithCancel(context.WithoutCancel(ctx))
	b.stop, b.loops, b.failed = stop, pool.New().WithContext(loops), make(chan error, 1)
	defer func() {
		if err != nil {
			b.stop()
			_ = b.loops.Wait() // their errors are in failed
			b.release()
		}
	}()
	if b.metrics, err = newMetrics(b, reg); err != nil {
		return nil, fmt.Errorf("open buffer: %w", err)
	}
	if err := b.connect(ctx); err != nil {
		return nil, err
	}
	if b.folder != nil {
		b.loop("folder watcher", func(ctx context.Context) {
			b.watch(ctx)
			defer pulse.Rest(ctx)()
			<-ctx.Done() // a folder that is lost is told by Lost
		})
	}
	for _, step := range []func(context.Context) error{b.claim, b.createStreams, b.enter} {
		if err := step(ctx); err != nil {
			return nil, fmt.Errorf("open buffer: %w", err)
		}
	}
	b.folder.streamsMade()
	if _, _, err := b.Tail(ctx); err != nil {
		return nil, fmt.Errorf("open buffer: %w", err)
	}
	b.readCensus()
	for _, load := range []func(context.Context) error{b.loadNames, b.loadRewind, b.loadGaps, b.loadTables, b.loadCursors, b.recordLostValues, b.loadLetters, b.loadTracked} {
		if err := load(ctx); err != nil {
			return nil, fmt.Errorf("open buffer: %w", err)
		}
	}
	b.census.ready()
	b.loop("cursor writer", b.writeCursors)
	b.loop("tracked items writer", b.writeTracked)
	b.loop("trimmer", b.trimSettled)
	return b, nil
}

// loopPatience is for a write with all its attempts, while NATS has a moment of trouble.
const loopPatience = 30 * time.Second

// loop runs what goes on until Close.
func (b *Buffer) loop(name string, run func(context.Context)) {
	l := b.cfg.Pulse.Loop("buffer, "+name, loopPatience)
	b.loops.Go(func(ctx context.Context) error {
		err := l.Run(ctx, func(ctx context.Context) error {
			run(ctx)
			return ctx.Err()
		})
		if ctx.Err() == nil || isPanic(err) {
			b.broken.Store(true)
			select {
			case b.failed <- fmt.Errorf("%s has ended: %w", name, cmp.Or(err, errEnded)):
			default: // the first says enough
			}
		}
		return nil
	})
}

var errEnded = errors.New("nobody asked it to")

func isPanic(err error) bool {
	_, panicked := errors.AsType[*pulse.PanicError](err)
	return panicked
}

// Failed gives the error of the first loop that has ended before Close: the buffer is of no use then.
func (b *Buffer) Failed() <-chan error { return b.failed }

// Close writes the cursors, ends the embedded server and waits for it. It gives up writing, but not ending, when ctx ends.
// Nothing else may be called during or after it.
func (b *Buffer) Close(ctx context.Context) error {
	var err error
	if !b.broken.Load() { // else nobody would write them
		err = errors.Join(b.flushCursors(ctx), b.flushTracked(ctx))
	}
	b.saveTables(ctx)
	b.stop()
	err = errors.Join(err, b.loops.Wait())
	b.saveCensus()
	b.release()
	if err != nil {
		return fmt.Errorf("close buffer: %w", err)
	}
	return nil
}

// release lets go of connections, server and folder, as far as there are any.
func (b *Buffer) release() {
	if b.metrics != nil {
		b.metrics.unregister()
	}
	for _, conn := range []*nats.Conn{b.read, b.write} {
		if conn != nil {
			conn.Close()
		}
	}
	b.embedded.stop()
	if b.dir != nil {
		b.dir.Close() // gives the lock back
	}
}

func (b *Buffer) createStreams(ctx context.Context) error {
	replicas, maxBytes := 1, int64(-1)
	if b.cfg.NATS != nil && b.cfg.NATS.Replicas > 1 {
		replicas = b.cfg.NATS.Replicas
	}
	if b.cfg.MaxSize > 0 {
		maxBytes = b.cfg.MaxSize
	}
	// Lowering MaxBytes below what is stored removes nothing with DiscardNew: appending waits until trimming has made room.
	for _, cfg := range []jetstream.StreamConfig{
		{Name: b.names.blocks, Subjects: []string{b.names.blockSubject}, Discard: jetstream.DiscardNew, MaxBytes: maxBytes, Description: "captured blocks"},
		{Name: b.names.letters, Subjects: []string{b.names.letterSubject + ".>", b.names.letterPartSubject + ".>"}, MaxMsgsPerSubject: 1, Description: "dead letters"},
		{Name: b.names.tracked, Subjects: []string{b.names.trackSubject}, Description: "items that a vendor has accepted and not confirmed"},
	} {
		cfg.Storage, cfg.AllowDirect, cfg.Replicas = jetstream.FileStorage, true, replicas
		err := b.retry(ctx, "create stream", func(ctx context.Context) error {
			_, err := b.js.CreateOrUpdateStream(ctx, cfg)
			return err
		})
		if err != nil {
			return &Error{Reason: "create or update stream " + cfg.Name, Err: err, Solution: "see that the account has room, and the cluster servers, for buffer.max_size and buffer.nats.replicas"}
		}
	}
	err := b.retry(ctx, "create bucket", func(ctx context.Context) (err error) {
		b.values, err = b.js.CreateOrUpdateKeyValue(ctx, jetstream.KeyValueConfig{Bucket: b.names.values, Replicas: replicas, Description: "cursors and small values"})
		return err
	})
	if err != nil {
		return fmt.Errorf("bucket %s: %w", b.names.values, err)
	}
	return nil
}

// broadcast wakes all who wait on *ch. b.mu is held.
func broadcast(ch *chan struct{}) {
	close(*ch)
	*ch = make(chan struct{})
}

// wake sends to a channel of size 1 unless a wake-up is pending.
func wake(ch chan<- struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}
