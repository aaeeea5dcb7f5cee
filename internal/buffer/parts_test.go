package buffer

import (
	"bytes"
	"testing"
)

func TestCutAndAdd(t *testing.T) {
	for _, size := range []int{0, 1, 9, 10, 11, 30, 35} {
		data := bytes.Repeat([]byte("abc"), size)[:size]
		parts := cut(data, 10)
		var a assembler
		for i, p := range parts {
			got, first, ok := a.add(uint64(5+i), part{i + 1, len(parts)}, p)
			if ok != (i == len(parts)-1) || ok && (first != 5 || !bytes.Equal(got, data)) {
				t.Errorf("%d bytes, part %d: %d bytes, first %d, %v", size, i, len(got), first, ok)
			}
		}
	}
}

func TestParsePart(t *testing.T) {
	for _, p := range []part{{1, 2}, {7, 7}} {
		if got, err := parsePart(p.String()); got != p || err != nil {
			t.Errorf("%v becomes %v, %v", p, got, err)
		}
	}
	for _, header := range []string{"0/1", "3/2", "1", "/", "a/b", "-1/-1"} {
		if _, err := parsePart(header); err == nil {
			t.Errorf("%q was taken", header)
		}
	}
}

// FuzzAssembler feeds any sequence of parts and checks what it gives against a search for whole blocks. Each byte is a part:
// the high bits its index, the low bits the count, and 0xFF a gap in the sequences.
func FuzzAssembler(f *testing.F) {
	f.Add([]byte{0x11, 0x12, 0x22, 0x11})
	f.Add([]byte{0x13, 0x23, 0x13, 0x23, 0x33})
	f.Add([]byte{0x12, 0xFF, 0x22, 0x33})
	f.Fuzz(func(t *testing.T, input []byte) {
		type stored struct {
			seq uint64
			p   part
		}
		var messages []stored
		seq := uint64(0)
		for _, c := range input {
			seq++
			if p := (part{int(c >> 4), int(c & 15)}); c != 0xFF && p.index >= 1 && p.index <= p.count {
				messages = append(messages, stored{seq, p})
			}
		}
		var want []uint64 // the last sequences of the whole blocks
		for i, m := range messages {
			if m.p.index != m.p.count || i < m.p.count-1 {
				continue
			}
			whole := true
			for j := range m.p.count {
				before := messages[i-m.p.count+1+j]
				whole = whole && before.p == part{j + 1, m.p.count} && before.seq == m.seq-uint64(m.p.count-1-j)
			}
			if whole {
				want = append(want, m.seq)
			}
		}
		var a assembler
		for _, m := range messages {
			block, first, ok := a.add(m.seq, m.p, []byte{byte(m.seq)})
			if !ok {
				continue
			}
			if len(want) == 0 || want[0] != m.seq || len(block) != m.p.count || first != m.seq-uint64(m.p.count-1) {
				t.Fatalf("%x: a block of %d parts ends at %d, want one that ends at %v", input, len(block), m.seq, want)
			}
			for i, c := range block {
				if c != byte(first+uint64(i)) {
					t.Fatalf("%x: the block that ends at %d is %x", input, m.seq, block)
				}
			}
			want = want[1:]
		}
		if len(want) > 0 {
			t.Fatalf("%x: no block ends at %v", input, want)
		}
	})
}
