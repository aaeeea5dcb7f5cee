package buffer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/cdcsync/cdcsync/internal/backoff"
)

// message is one of a stream.
type message struct {
	seq     uint64
	subject string
	header  nats.Header
	data    []byte
	at      time.Time
}

// scanner reads a stream forward by batched direct gets (ADR-31), which need no consumer and keep no state on the server.
// It is not safe for concurrent use.
type scanner struct {
	conn   *nats.Conn
	stream string
	sub    *nats.Subscription
	inbox  string
	asked  int // numbers the requests, so that an answer that comes too late is not taken for the next one's
}

func (b *Buffer) newScanner(stream string) (*scanner, error) {
	inbox := b.read.NewInbox()
	sub, err := b.read.SubscribeSync(inbox + ".*")
	if err != nil {
		return nil, fmt.Errorf("read stream %s: %w", stream, err)
	}
	if err := sub.SetPendingLimits(-1, -1); err != nil { // what is asked for is bounded
		return nil, fmt.Errorf("read stream %s: %w", stream, err)
	}
	return &scanner{conn: b.read, stream: stream, sub: sub, inbox: inbox}, nil
}

func (s *scanner) close() {
	_ = s.sub.Unsubscribe() // fails only when the connection is closed
}

type directGet struct {
	Seq       uint64 `json:"seq"`
	Batch     int    `json:"batch"`
	MaxBytes  int    `json:"max_bytes"`
	NextBySub string `json:"next_by_subj,omitempty"`
}

// fetch returns messages from seq on, in order, until they are about maxBytes; none when there are none. subject may have
// wildcards; empty means any. A transient error leaves the scanner usable.
func (s *scanner) fetch(ctx context.Context, seq uint64, subject string, maxBytes int) ([]message, error) {
	const most = 1024 // messages: those of letters and of a quiet source are small
	s.asked++
	reply := s.inbox + "." + strconv.Itoa(s.asked)
	request, err := json.Marshal(directGet{Seq: max(seq, 1), Batch: most, MaxBytes: maxBytes, NextBySub: subject})
	if err != nil {
		return nil, err
	}
	if err := s.conn.PublishRequest("$JS.API.DIRECT.GET."+s.stream, reply, request); err != nil {
		return nil, err
	}
	var messages []message
	for {
		m, err := s.sub.NextMsgWithContext(ctx)
		if err != nil {
			return nil, err
		}
		if m.Subject != reply {
			continue
		}
		switch status := m.Header.Get("Status"); status {
		case "":
			got, err := received(m)
			if err != nil {
				return nil, fmt.Errorf("read stream %s: %w", s.stream, err)
			}
			messages = append(messages, got)
		case "204", "404": // end of batch; nothing there
			return messages, nil
		case "503":
			return nil, nats.ErrNoResponders
		default:
			return nil, fmt.Errorf("read stream %s: status %s %s", s.stream, status, m.Header.Get("Description"))
		}
	}
}

func received(m *nats.Msg) (message, error) {
	seq, err := strconv.ParseUint(m.Header.Get(jetstream.SequenceHeader), 10, 64)
	if err != nil {
		return message{}, err
	}
	at, err := time.Parse(time.RFC3339Nano, m.Header.Get(jetstream.TimeStampHeaer))
	if err != nil {
		return message{}, err
	}
	return message{seq: seq, subject: m.Header.Get(jetstream.SubjectHeader), header: m.Header, data: m.Data, at: at}, nil
}

// replicaLag is how long to wait for a replica that does not have yet what the leader has acknowledged.
const replicaLag = 5 * time.Millisecond

// scan calls f for each message that the stream has at the moment, or that matches subject, in order of their sequences,
// until f fails. f may change the stream: what it adds is not read.
func (b *Buffer) scan(ctx context.Context, stream, subject string, from uint64, f func(message) error) error {
	info, err := b.streamInfo(ctx, stream)
	if err != nil || info.State.Msgs == 0 {
		return err
	}
	s, err := b.newScanner(stream)
	if err != nil {
		return err
	}
	defer s.close()
	const chunk = 1 << 20
	var empty time.Time // since when nothing comes
	for next := max(from, info.State.FirstSeq); next <= info.State.LastSeq; {
		var messages []message
		err := b.retry(ctx, "read stream", func(ctx context.Context) (err error) {
			messages, err = s.fetch(ctx, next, subject, chunk)
			return err
		})
		if err != nil {
			return err
		}
		if len(messages) == 0 && subject == "" && b.folder == nil { // what was purged is at the front: a replica lags behind the leader
			const most = 10 * time.Second // beyond it the messages are gone
			if empty.IsZero() {
				empty = time.Now()
			}
			if time.Since(empty) < most {
				if err := backoff.Sleep(ctx, replicaLag); err != nil {
					return err
				}
				continue
			}
		}
		if len(messages) == 0 {
			return nil
		}
		empty = time.Time{}
		for _, m := range messages {
			if m.seq > info.State.LastSeq {
				return nil
			}
			if err := f(m); err != nil {
				return err
			}
		}
		next = messages[len(messages)-1].seq + 1
	}
	return nil
}

func (b *Buffer) streamInfo(ctx context.Context, name string) (*jetstream.StreamInfo, error) {
	var info *jetstream.StreamInfo
	err := b.retry(ctx, "stream state", func(ctx context.Context) error {
		stream, err := b.js.Stream(ctx, name)
		if err == nil {
			info = stream.CachedInfo()
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("state of stream %s: %w", name, err)
	}
	return info, nil
}

// purge removes the stream's messages before seq, or, with a subject, those that match it.
func (b *Buffer) purge(ctx context.Context, stream string, option jetstream.StreamPurgeOpt) error {
	return b.retry(ctx, "purge", func(ctx context.Context) error {
		s, err := b.js.Stream(ctx, stream)
		if err != nil {
			return err
		}
		return s.Purge(ctx, option)
	})
}

// errNoMessage is what leaderGet returns for a sequence that the stream does not have.
var errNoMessage = errors.New("no such message")

// leaderGet reads one message from the stream's leader, which knows of every stored message; a direct get may be answered by a replica that does not yet.
func (b *Buffer) leaderGet(ctx context.Context, stream string, seq uint64) (message, error) {
	var answer struct {
		Error   *jetstream.APIError
		Message struct {
			Subject string    `json:"subject"`
			Hdrs    []byte    `json:"hdrs"`
			Data    []byte    `json:"data"`
			Time    time.Time `json:"time"`
		}
	}
	request := fmt.Appendf(nil, `{"seq":%d}`, seq)
	err := b.retry(ctx, "read message", func(ctx context.Context) error {
		reply, err := b.write.RequestWithContext(ctx, "$JS.API.STREAM.MSG.GET."+stream, request)
		if err != nil {
			return err
		}
		answer.Error = nil
		if err := json.Unmarshal(reply.Data, &answer); err != nil {
			return err
		}
		if answer.Error != nil {
			return answer.Error
		}
		return nil
	})
	var api *jetstream.APIError
	switch {
	case errors.As(err, &api) && api.ErrorCode == jetstream.JSErrCodeMessageNotFound:
		return message{}, errNoMessage
	case err != nil:
		return message{}, fmt.Errorf("message %d of stream %s: %w", seq, stream, err)
	}
	m := message{seq: seq, subject: answer.Message.Subject, data: answer.Message.Data, at: answer.Message.Time}
	if len(answer.Message.Hdrs) > 0 {
		if m.header, err = nats.DecodeHeadersMsg(answer.Message.Hdrs); err != nil {
			return message{}, fmt.Errorf("message %d of stream %s: %w", seq, stream, err)
		}
	}
	return m, nil
}

// publish stores one message and returns its sequence. It tries again until ctx ends, so the message may be stored twice.
func (b *Buffer) publish(ctx context.Context, m *nats.Msg) (seq uint64, err error) {
	err = b.retry(ctx, "store message", func(ctx context.Context) error {
		seq, err = b.publishOnce(ctx, m)
		return err
	})
	return seq, err
}

func (b *Buffer) publishOnce(ctx context.Context, m *nats.Msg) (uint64, error) {
	reply, err := b.write.RequestMsgWithContext(ctx, m)
	if err != nil {
		return 0, err
	}
	var ack struct {
		Error *jetstream.APIError `json:"error"`
		Seq   uint64              `json:"seq"`
	}
	if err := json.Unmarshal(reply.Data, &ack); err != nil {
		return 0, fmt.Errorf("acknowledgement: %w", err)
	}
	if ack.Error != nil {
		return 0, ack.Error
	}
	b.written()
	return ack.Seq, nil
}
