package mapping

import (
	"runtime/debug"
	"slices"
)

// largeValue is the length from which a value is measured before it is rendered: text may become six times as long.
const largeValue = 64 << 10

// room makes place for a large value, all at once and for no more than it takes, or refuses it when the item would be too large.
func room[T string | []byte](p *Plan, dst []byte, s *step, value T) ([]byte, *RejectError) {
	const (
		rest  = 4 << 10 // what usually follows
		worth = 4 << 20 // what a row takes is bounded: from here on garbage must not stand beside it
	)
	size := renderedSize(value, s.codec == nil || s.codec.form == formText)
	if size > p.most-len(dst) {
		return dst, tooLarge(p.columnName(s))
	}
	if size >= worth {
		debug.FreeOSMemory()
	}
	return slices.Grow(dst, size+rest), nil
}

// renderedSize is how long a value will be in JSON: of text exactly, of other types about.
func renderedSize[T string | []byte](value T, text bool) int {
	size := len(value) + 2
	for i := range len(value) {
		switch b := value[i]; {
		case b == '\n' || b == '\r' || b == '\t':
			size++
		case b < 0x20:
			size += len(`\u0000`) - 1
		case text && (b == '"' || b == '\\'):
			size++
		}
	}
	return size
}

// columnName is that of the column that a step renders, empty for something computed.
func (p *Plan) columnName(s *step) string {
	if s.kind != stepColumn {
		return ""
	}
	return p.relation.Columns[s.operand.column].Name
}

func tooLarge(column string) *RejectError {
	return &RejectError{
		Column: column, Reason: "makes the item larger than buffer.max_row",
		Solution: "leave it out of the mapping, or raise buffer.max_row (at most 64MiB)",
	}
}
