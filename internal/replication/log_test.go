package replication

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/cdcsync/cdcsync/internal/cdc"
)

// memLog is a Log in memory.
type memLog struct {
	mu        sync.Mutex
	blocks    [][]byte
	source    []byte
	delivered cdc.LSN
	rows      int           // changes appended
	discard   bool          // keep only the last block
	gate      chan struct{} // when set, Append waits until it is closed or gives a token
	fail      error         // what Append returns
	changed   chan struct{} // closed and replaced at every Append and SetSource
}

func newMemLog() *memLog { return &memLog{changed: make(chan struct{})} }

func (l *memLog) Tail(context.Context) (cdc.Footer, bool, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.blocks) == 0 {
		return cdc.Footer{}, false, nil
	}
	footer, err := cdc.ReadFooter(l.blocks[len(l.blocks)-1])
	return footer, true, err
}

func (l *memLog) Append(ctx context.Context, block []byte) error {
	l.mu.Lock()
	gate := l.gate
	l.mu.Unlock()
	if gate != nil {
		select {
		case <-gate:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fail != nil {
		return l.fail
	}
	if l.discard {
		l.blocks = l.blocks[:0]
	}
	footer, err := cdc.ReadFooter(block)
	if err != nil {
		return err
	}
	l.rows += int(footer.Changes)
	l.blocks = append(l.blocks, bytes.Clone(block))
	l.notify()
	return nil
}

func (l *memLog) notify() {
	close(l.changed)
	l.changed = make(chan struct{})
}

func (l *memLog) Source(context.Context) ([]byte, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.source, nil
}

func (l *memLog) SetSource(_ context.Context, state []byte) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.source = state
	l.notify()
	return nil
}

func (l *memLog) Rewind(context.Context, cdc.LSN) error { return nil }

func (l *memLog) Delivered() cdc.LSN {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.delivered
}

// wait returns when the log satisfies ok.
func (l *memLog) wait(ctx context.Context, tb testing.TB, what string, ok func() bool) {
	tb.Helper()
	for {
		l.mu.Lock()
		changed, done := l.changed, ok()
		l.mu.Unlock()
		if done {
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			tb.Fatalf("%s: %v", what, context.Cause(ctx))
		}
	}
}

// changes decodes all that is stored. It clones what the decoder reuses.
func (l *memLog) changes(tb testing.TB) []cdc.Change {
	tb.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	var all []cdc.Change
	var d cdc.Decoder
	for i, block := range l.blocks {
		if _, err := d.Reset(block); err != nil {
			tb.Fatalf("block %d: %v", i, err)
		}
		for {
			var c cdc.Change
			ok, err := d.Next(&c)
			if err != nil {
				tb.Fatalf("block %d: %v", i, err)
			}
			if !ok {
				break
			}
			c.Old, c.New = append([]cdc.Value(nil), c.Old...), append([]cdc.Value(nil), c.New...)
			all = append(all, c)
		}
	}
	return all
}

// describe gives one line for each change, with transactions numbered, so that it reads the same for every recording.
func describe(changes []cdc.Change) string {
	var b strings.Builder
	numbers := make(map[cdc.LSN]int)
	for _, c := range changes {
		if numbers[c.Position.Commit] == 0 {
			numbers[c.Position.Commit] = len(numbers) + 1
		}
		fmt.Fprintf(&b, "tx%d#%d %s %s", numbers[c.Position.Commit], c.Position.Ordinal, c.Op, c.Relation)
		if c.Oversized != nil {
			fmt.Fprintf(&b, " oversized %d %s", c.Oversized.Bytes, c.Oversized.Key)
		}
		if c.Old != nil {
			b.WriteString(" old" + describeTuple(c.Relation, c.Old))
		}
		if c.New != nil {
			b.WriteString(" new" + describeTuple(c.Relation, c.New))
		}
		b.WriteByte('\n')
	}
	return b.String()
}

func describeTuple(rel *cdc.Relation, values []cdc.Value) string {
	words := make([]string, len(values))
	for i, v := range values {
		word := "?"
		switch v.Kind {
		case cdc.Absent:
			word = "absent"
		case cdc.Null:
			word = "null"
		case cdc.Unchanged:
			word = "unchanged"
		case cdc.Text, cdc.Invalid:
			word = fmt.Sprintf("%q", v.Data)
			if len(v.Data) > 80 {
				word = fmt.Sprintf("%q…(%d)", v.Data[:8], len(v.Data))
			}
		}
		words[i] = rel.Columns[i].Name + "=" + word
	}
	return "(" + strings.Join(words, " ") + ")"
}
