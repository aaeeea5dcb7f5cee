package buffer

import (
	"fmt"
	"runtime/debug"
	"strconv"
	"strings"
)

// part says which part of a block a message holds: from 1 of 1 on.
type part struct{ index, count int }

// The header that a message of a block with several parts carries.
const partHeader = "Cdcsync-Part"

func (p part) String() string { return strconv.Itoa(p.index) + "/" + strconv.Itoa(p.count) }

// room is memory for the whole block, given the length of its first part: only the last one is shorter.
func (p part) room(first int) []byte {
	const most = 128 << 20 // beyond what a header may promise, append makes room
	return make([]byte, 0, min(p.count, most/max(first, 1))*first)
}

// worthCollecting is the size of a block before which garbage is collected, since a large row's memory is bounded.
const worthCollecting = 4 << 20

// parsePart reads a part's header; without one the message is a whole block.
func parsePart(header string) (part, error) {
	if header == "" {
		return part{1, 1}, nil
	}
	index, count, _ := strings.Cut(header, "/")
	i, errIndex := strconv.Atoi(index)
	n, errCount := strconv.Atoi(count)
	if errIndex != nil || errCount != nil || i < 1 || i > n {
		return part{}, fmt.Errorf("header %s: %q is no part", partHeader, header)
	}
	return part{i, n}, nil
}

// assembler puts the messages of the blocks stream together again. Parts that are not followed by the next one belong to a
// block that was never stored whole and are left out. The zero assembler is ready.
type assembler struct {
	buf   []byte
	last  part
	seq   uint64 // of the last message
	first uint64 // of the block's first part
}

// add takes the message that follows in the stream, and returns the block that it completes, which may alias data, with the
// sequence of its first part. Sequences may have gaps, but not within a block.
func (a *assembler) add(seq uint64, p part, data []byte) (block []byte, first uint64, ok bool) {
	follows := p.index == a.last.index+1 && p.count == a.last.count && seq == a.seq+1
	switch {
	case p.count == 1:
		*a = assembler{}
		return data, seq, true
	case p.index == 1:
		*a = assembler{}
		if p.count*len(data) >= worthCollecting {
			debug.FreeOSMemory()
		}
		*a = assembler{buf: append(p.room(len(data)), data...), last: p, seq: seq, first: seq}
		return nil, 0, false
	case !follows:
		*a = assembler{}
		return nil, 0, false
	}
	a.buf, a.last, a.seq = append(a.buf, data...), p, seq
	if p.index < p.count {
		return nil, 0, false
	}
	block, first = a.buf, a.first
	*a = assembler{}
	return block, first, true
}

// cut divides data into parts of at most size bytes; nothing is one empty part.
func cut(data []byte, size int) [][]byte {
	var parts [][]byte
	for len(data) > size {
		parts = append(parts, data[:size])
		data = data[size:]
	}
	return append(parts, data)
}
