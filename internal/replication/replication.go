// Package replication captures committed changes from one Postgres logical replication slot into a durable log of blocks.
//
// What to know first: progress and identity are (commit LSN, ordinal in the transaction); only the end of a commit, or a
// keepalive's WAL end while no transaction is open, may be confirmed, and only once everything before it is stored. Rows are
// copied, not decoded.
package replication

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/cdcsync/cdcsync/internal/backoff"
	"github.com/cdcsync/cdcsync/internal/cdc"
	"github.com/cdcsync/cdcsync/internal/pulse"
)

// DefaultMaxRow is the largest row that is carried when Config does not say.
const DefaultMaxRow = 16 << 20

// Config says what to capture, and from where.
type Config struct {
	URL         string // libpq URL or key=value string; several hosts and target_session_attrs are honoured
	Slot        string
	Publication string
	// Manage makes the publication and the slot when they are missing, and keeps the publication in step with Tables.
	Manage bool
	Tables []Table
	// AckDelivered moves the slot only when every sink has settled, for a log whose disk does not last.
	AckDelivered bool
	// MaxRow is the largest replication message that is carried, in bytes; 0 means DefaultMaxRow. It bounds memory: one such row is held at a time.
	MaxRow int64
	// Backfills are carried while the stream runs; nil for none.
	Backfills *Backfills
	// Pulse watches the loops; nil for nobody.
	Pulse *pulse.Board
	// Gaps keeps what may have been missed; nil for a stream that is not surveyed.
	Gaps Gaps
	// Survey is how often the source is surveyed; 0 means DefaultSurvey.
	Survey time.Duration
}

// Table is one mapped table. A partitioned table is named by its root.
type Table struct {
	Schema, Name                     string
	Insert, Update, Delete, Truncate bool   // operations that a mapping wants
	NeedsFull                        bool   // a sink wants the whole old row, so that REPLICA IDENTITY FULL is asked for
	WithoutFull                      string // what is lost without it, in words
}

func (t Table) String() string { return t.Schema + "." + t.Name }

// Log is where the stream stores its blocks. It is called by one goroutine at a time, except for Delivered.
type Log interface {
	// Tail returns the footer of the last whole block; ok is false when the log has never had one.
	Tail(ctx context.Context) (footer cdc.Footer, ok bool, err error)
	// Append stores the block durably: when it returns nil, the block survives a loss of power. While the log is full it
	// waits, until ctx ends; what is on its way then is seen to its end. It retries by itself what can be retried. An error with a method Conflict() bool that gives true says that
	// somebody else has appended since Tail. The log keeps the block, which nobody writes to any more.
	Append(ctx context.Context, block []byte) error
	// Source returns what SetSource stored last, nil for nothing.
	Source(ctx context.Context) ([]byte, error)
	// SetSource stores, as durably as Append, which slot the log belongs to and how far it may have been confirmed.
	SetSource(ctx context.Context, state []byte) error
	// Delivered is the LSN up to which every sink has settled. It must not block, and may be called at any time.
	Delivered() cdc.LSN
}

// Stream captures one slot. Make it with New.
type Stream struct {
	cfg     Config
	log     Log
	logger  *slog.Logger
	metrics *metrics
	status  *board
	catalog *catalog // ordinary connections beside the stream
	loops   loops
	survey  *surveyor
}

// loops are the goroutines of a session.
type loops struct {
	reader, publisher *pulse.Loop
	backfills         *pulse.Loop // all of them
	carrier, chunks   *pulse.Loop // one of them, whose panic is the end of that one
	survey            *pulse.Loop
}

const (
	readerPatience    = 45 * time.Second // it looks at its clock every 10 s at least, and waits 10 s for the catalogue
	publisherPatience = 30 * time.Second
	carrierPatience   = time.Minute     // one chunk
	surveyPatience    = 2 * time.Minute // its questions have a minute
)

// New makes a stream; nothing is opened before Run. A nil registerer leaves the metrics unregistered.
func New(cfg Config, log Log, logger *slog.Logger, reg prometheus.Registerer) *Stream {
	if cfg.MaxRow == 0 {
		cfg.MaxRow = DefaultMaxRow
	}
	s := &Stream{cfg: cfg, log: log, logger: logger, status: newBoard(cfg.Slot)}
	s.catalog = newCatalog(cfg.URL)
	s.loops = loops{
		reader: cfg.Pulse.Loop("stream reader", readerPatience), publisher: cfg.Pulse.Loop("stream publisher", publisherPatience),
		backfills: cfg.Pulse.Loop("backfills", carrierPatience), carrier: cfg.Pulse.Loop("backfill", carrierPatience),
		chunks: cfg.Pulse.Loop("backfill's reader", carrierPatience),
		survey: cfg.Pulse.Loop("survey", surveyPatience),
	}
	s.survey = newSurveyor(s)
	s.metrics = newMetrics(reg, s.status)
	return s
}

// Run captures until ctx ends, and then returns nil after a last status update. It reconnects for ever; the only errors it
// returns are those that an operator must mend (see IsPermanent), and defects: a *pulse.PanicError. Call it once.
func (s *Stream) Run(ctx context.Context) error {
	defer s.catalog.close(ctx)
	defer s.survey.close(ctx)
	wait := backoff.Attempts{Range: reconnects}
	for {
		before := s.status.storedLSN()
		err := s.session(ctx)
		switch {
		case ctx.Err() != nil:
			s.status.stopped("shutting down")
			return nil
		case IsPermanent(err), isPanic(err):
			s.status.stopped(err.Error())
			return s.refuse(ctx, err)
		case s.status.storedLSN() > before:
			wait.Reset()
		}
		delay := wait.Next()
		s.retrying(ctx, err, delay)
		_ = backoff.Sleep(ctx, delay) // the session looks at ctx, too
	}
}

// refuse has the log remember what only the stream can know, so that a Recovery knows it, too.
func (s *Stream) refuse(ctx context.Context, err error) error {
	if refused, ok := errors.AsType[*Error](err); !ok || !refused.undecodable {
		return err
	}
	state, readErr := s.log.Source(ctx)
	known, decodeErr := decodeIncarnation(state)
	if readErr != nil || decodeErr != nil || known == nil {
		return errors.Join(err, readErr, decodeErr)
	}
	known.Refused = err.Error()
	return errors.Join(err, s.log.SetSource(ctx, known.encode()))
}

// retrying tells why there is no stream now.
func (s *Stream) retrying(ctx context.Context, err error, delay time.Duration) {
	if busy, ok := errors.AsType[*busyError](err); ok {
		s.status.waiting(busy.Error())
		s.logger.WarnContext(ctx, "replication slot is in use, standing by",
			"slot", s.cfg.Slot, "pid", busy.pid, "holder", busy.holder, "retry_in", delay)
		return
	}
	s.status.reconnecting(err.Error())
	s.metrics.reconnects.Inc()
	s.logger.WarnContext(ctx, "replication interrupted", "slot", s.cfg.Slot, "retry_in", delay, "err", err)
}

// reconnects are the waits between attempts. A standby takes over at most Max after the slot is free.
var reconnects = backoff.Range{Min: 100 * time.Millisecond, Max: 5 * time.Second}

// incarnation is what the log keeps to know its slot again.
type incarnation struct {
	System    string  `json:"system"`    // system identifier of the cluster
	Slot      string  `json:"slot"`      // name
	Created   cdc.LSN `json:"created"`   // where the slot began
	Confirmed cdc.LSN `json:"confirmed"` // may have been confirmed without a block that says so

	Timeline    uint32      `json:"timeline,omitempty"`    // 0 in what an early version stored, as for what follows
	Witness     cdc.Witness `json:"witness,omitzero"`      // the last transaction before Confirmed
	Database    uint32      `json:"database,omitempty"`    // OID
	Name        string      `json:"name,omitempty"`        // of the database
	Address     string      `json:"address,omitempty"`     // of the source as it is configured
	Publication string      `json:"publication,omitempty"` // name
	Refused     string      `json:"refused,omitempty"`     // why the slot could not be streamed any more
	Publisher   uint32      `json:"publisher,omitempty"`   // OID of the publication

	// Types are the composite types, by the OIDs of the columns' types.
	Types map[uint32]definition `json:"types,omitempty"`
}

func decodeIncarnation(state []byte) (*incarnation, error) {
	if len(state) == 0 {
		return nil, nil
	}
	var inc incarnation
	if err := json.Unmarshal(state, &inc); err != nil {
		return nil, &Error{
			Reason:   "what the buffer says of its slot cannot be read: " + err.Error(),
			Solution: "run the version of cdcsync that wrote the buffer",
		}
	}
	return &inc, nil
}

func (inc *incarnation) encode() []byte {
	encoded, err := json.Marshal(inc)
	if err != nil { // strings and LSNs always marshal
		return nil
	}
	return encoded
}
