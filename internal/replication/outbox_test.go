package replication

import (
	"testing"
	"time"

	"github.com/cdcsync/cdcsync/internal/cdc"
)

// A quiet stream's block is taken at once; a busy one's when it is full or has waited.
func TestBusyBlocksAreLeftToFill(t *testing.T) {
	o := newOutbox(cdc.Footer{}, 0)
	receive := func(busy bool) {
		o.mu.Lock()
		defer o.mu.Unlock()
		o.busy, o.dirty = busy, true
		o.writer.Begin(7, 100, time.UnixMicro(1), 0)
		o.writer.Commit(150)
		o.offer()
	}
	signalled := func() bool {
		select {
		case <-o.work:
			return true
		default:
			return false
		}
	}
	taken := func() bool {
		p, ok := o.take()
		if ok {
			o.done(p, cdc.Resume{})
		}
		return ok
	}

	receive(false)
	if !signalled() || o.gather() || !taken() {
		t.Error("a quiet stream's block is left to grow")
	}
	receive(true)
	if !signalled() || taken() || !o.gather() {
		t.Error("a busy stream's block is not left to grow")
	}
	receive(true)
	if signalled() {
		t.Error("the publisher is woken although it waits for the block to fill")
	}
	o.ripen()
	if o.gather() || !taken() {
		t.Error("a block that has waited is not taken")
	}
	receive(true)
	o.mu.Lock()
	o.seal()
	o.offer()
	o.mu.Unlock()
	if !signalled() || !taken() {
		t.Error("a full block is not taken")
	}
	receive(true)
	if !signalled() || !o.gather() {
		t.Error("the block after that is not left to grow")
	}
	receive(false)
	if !signalled() || !taken() {
		t.Error("a block is left to grow although the stream is quiet again")
	}
}
