package replication

import (
	"bytes"
	"encoding/binary"
	"testing"
	"time"

	"github.com/cdcsync/cdcsync/internal/cdc"
)

// A quiet stream's block is taken at once; a busy one's when it is full or has waited.
func TestBusyBlocksAreLeftToFill(t *testing.T) {
	o := newOutbox(cdc.Footer{}, 0, cdc.Witness{})
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
	o.seal(blockSize)
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

// The log keeps a block, so nothing that is written later may show in it; memory that is filled badly is not given away.
func TestBlocksAreTheLogs(t *testing.T) {
	o := newOutbox(cdc.Footer{}, 0, cdc.Witness{})
	const kinds = 3
	var blocks, copies [][]byte
	for n := range 4 * kinds {
		o.mu.Lock()
		o.aside, o.dirty = n%kinds == 2, true
		o.writer.Begin(uint32(n), cdc.LSN(100*n), time.UnixMicro(1), 0)
		row := append(binary.BigEndian.AppendUint32([]byte{'I'}, 1), bytes.Repeat([]byte{byte(n)}, 100<<(5*(n%kinds)))...)
		for range 2 {
			o.writer.Row(row)
		}
		o.writer.Commit(cdc.LSN(100*n + 50))
		o.seal(blockSize)
		o.mu.Unlock()
		p, _ := o.take()
		o.done(p, cdc.Resume{})
		if len(p.block) < cap(p.block)/2 {
			t.Errorf("a block of %d bytes holds %d", len(p.block), cap(p.block))
		}
		blocks, copies = append(blocks, p.block), append(copies, bytes.Clone(p.block))
	}
	for i := range blocks {
		if !bytes.Equal(blocks[i], copies[i]) {
			t.Errorf("block %d has changed", i)
		}
	}
}
