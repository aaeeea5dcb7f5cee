package mapping

import (
	"encoding/binary"
	"unicode/utf8"
)

const (
	onesInBytes = 0x0101010101010101
	highBits    = 0x8080808080808080
)

// appendString appends text as a JSON string. Quote, backslash and control characters are escaped, all else is kept.
// The error is errUTF8.
func appendString(dst, text []byte) ([]byte, error) {
	clean, ascii := scanString(text)
	if !ascii && !utf8.Valid(text) {
		return dst, errUTF8
	}
	dst = append(dst, '"')
	if clean {
		dst = append(dst, text...)
	} else {
		dst = appendEscaped(dst, text)
	}
	return append(dst, '"'), nil
}

// scanString says whether text has nothing to escape, and whether it is ASCII. It looks at eight bytes at a time: a byte is
// below 0x20, or equal to a given one, when subtracting borrows into its high bit (the "haszero" trick).
func scanString(text []byte) (clean, ascii bool) {
	var special, high uint64
	for len(text) >= 8 {
		w := binary.LittleEndian.Uint64(text)
		quote := w ^ (onesInBytes * '"')
		backslash := w ^ (onesInBytes * '\\')
		special |= ((w - onesInBytes*0x20) & ^w) | ((quote - onesInBytes) & ^quote) | ((backslash - onesInBytes) & ^backslash)
		high |= w
		text = text[8:]
	}
	clean = special&highBits == 0
	for _, b := range text {
		if b < 0x20 || b == '"' || b == '\\' {
			clean = false
		}
		high |= uint64(b)
	}
	return clean, high&highBits == 0
}

const hexDigits = "0123456789abcdef"

func appendEscaped(dst, text []byte) []byte {
	start := 0
	for i, b := range text {
		if b >= 0x20 && b != '"' && b != '\\' {
			continue
		}
		dst = append(dst, text[start:i]...)
		start = i + 1
		switch b {
		case '"', '\\':
			dst = append(dst, '\\', b)
		case '\n':
			dst = append(dst, '\\', 'n')
		case '\r':
			dst = append(dst, '\\', 'r')
		case '\t':
			dst = append(dst, '\\', 't')
		default:
			dst = append(dst, '\\', 'u', '0', '0', hexDigits[b>>4], hexDigits[b&0xF])
		}
	}
	return append(dst, text[start:]...)
}
