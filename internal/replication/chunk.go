package replication

import (
	"bytes"
	"encoding/binary"
	"slices"
	"time"

	"github.com/cdcsync/cdcsync/internal/cdc"
)

const (
	// chunkBytes bounds the rows of a chunk, which is in memory whole, but for one row.
	chunkBytes = 4 << 20
	// chunkKeys bounds the keys of a chunk in bytes, since they are stored beside it as one value.
	chunkKeys = 128 << 10
)

// chunk is a page of a table's rows, read in one snapshot, and the rows that an earlier chunk left to be read again.
type chunk struct {
	relation *cdc.Relation
	encoded  []byte   // the relation
	keyNames []string // names of its columns; none for a table without one
	columns  int      // values of which a row's key is made
	snapshot snapshot
	lsn      cdc.LSN // L: the end of the WAL after the snapshot was taken
	at       time.Time

	rows   []chunkRow
	asked  int    // so many of the place's keys were asked for again
	again  int    // so many of rows, the first, are of them
	frames []byte // see cdc.AppendRead
	keys   []byte // see appendKey

	scanned int    // rows of the page, those included that the condition leaves out; of a table without a key, blocks
	next    []byte // where the page ended
	end     bool   // it was the table's last
	cut     bool   // the page ended before it was as long as it should have been
	took    time.Duration
}

// chunkRow ends at these places of frames and keys, and begins where the one before ends.
type chunkRow struct {
	frame, key int
	oversized  int64 // its length when it is not carried: the frame then is its key, for people
}

// reset keeps the memory, unless a large row has stretched it.
func (c *chunk) reset() {
	if cap(c.frames) > 2*chunkBytes {
		c.frames = nil
	}
	*c = chunk{rows: c.rows[:0], frames: c.frames[:0], keys: c.keys[:0], next: c.next[:0]}
}

// fill is the share that the chunk has of what one may hold.
func (c *chunk) fill() float64 {
	return max(float64(len(c.frames))/chunkBytes, float64(len(c.keys))/chunkKeys)
}

// size is how long the page would have been asked for, had it been known how large its rows are.
func (c *chunk) size(asked int) int {
	if c.cut {
		return c.scanned + c.again
	}
	return asked
}

// from is where the frame of a row begins.
func (c *chunk) from(i int) int {
	if i == 0 {
		return 0
	}
	return c.rows[i-1].frame
}

func (c *chunk) key(i int) []byte {
	from := 0
	if i > 0 {
		from = c.rows[i-1].key
	}
	return c.keys[from:c.rows[i].key]
}

// appendKey joins the values of a key's columns so that different keys never look alike. A nil value is null.
func appendKey(dst []byte, values ...[]byte) []byte {
	for _, v := range values {
		if v == nil {
			dst = append(dst, 0)
			continue
		}
		dst = append(binary.AppendUvarint(dst, uint64(len(v))+1), v...)
	}
	return dst
}

// splitKey is the inverse of appendKey for a key without nulls; nil when it is none.
func splitKey(key []byte) [][]byte {
	var values [][]byte
	for len(key) > 0 {
		n, size := binary.Uvarint(key)
		if size <= 0 || n == 0 || n-1 > uint64(len(key)-size) {
			return nil
		}
		end := size + int(n-1)
		values = append(values, key[size:end])
		key = key[end:]
	}
	return values
}

// keyLength is that of the first key in s, 0 when there is none.
func keyLength(s string, columns int) int {
	at := 0
	for range columns {
		n, shift := uint64(0), 0
		for ; at < len(s); at++ {
			n |= uint64(s[at]&0x7f) << shift
			if shift += 7; s[at] < 0x80 {
				break
			}
		}
		at++
		if n > 0 {
			at += int(n - 1)
		}
		if at > len(s) || at < 0 {
			return 0
		}
	}
	return at
}

// place is how far a backfill has come, and so where it goes on.
type place struct {
	Chunk   int      `json:"chunk"`             // chunks that were appended
	Rows    int64    `json:"rows"`              // rows that were
	Scanned int64    `json:"scanned,omitempty"` // about how much of the table was read to find them, in rows or blocks
	After   []byte   `json:"after,omitempty"`   // the page begins behind it: a key or, of a table without one, a block's number; empty at the table's start
	Again   [][]byte `json:"again,omitempty"`   // keys to be read again
	End     bool     `json:"end,omitempty"`     // there is no page any more
}

func (p *place) done() bool { return p.End && len(p.Again) == 0 }

// leads says whether a chunk that was read behind p is what follows now. Since p was told, keys to be read again may have been added.
func (p *place) leads(now *place) bool {
	return bytes.Equal(p.After, now.After) && p.End == now.End &&
		len(p.Again) <= len(now.Again) && slices.EqualFunc(p.Again, now.Again[:len(p.Again)], bytes.Equal)
}
