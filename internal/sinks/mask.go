package sinks

import "strings"

// Masked is a vendor's text with what may be a row's value taken out, fit for a log: words that hold an "@" or five digits or
// more, and what stands in quotes.
func Masked(text string) string {
	const mask = "…"
	var out strings.Builder
	for i, part := range strings.FieldsFunc(quoted(text, mask), isSpace) {
		if i > 0 {
			out.WriteByte(' ')
		}
		if strings.Contains(part, "@") || digits(part) >= 5 {
			part = mask
		}
		out.WriteString(part)
	}
	return out.String()
}

// quoted replaces what stands between two equal quotes. An apostrophe within a word opens none.
func quoted(text, mask string) string {
	var out strings.Builder
	for text != "" {
		open := strings.IndexAny(text, `"'`+"`")
		if open < 0 {
			break
		}
		length := strings.IndexByte(text[open+1:], text[open])
		if length < 0 || (open > 0 && isLetter(text[open-1])) {
			out.WriteString(text[:open+1])
			text = text[open+1:]
			continue
		}
		out.WriteString(text[:open+1] + mask + text[open:open+1])
		text = text[open+length+2:]
	}
	return out.String() + text
}

func isSpace(r rune) bool {
	return r == ' ' || r == '\t' || r == '\n' || r == '\r' || r == ',' || r == ';'
}

func isLetter(c byte) bool { return 'a' <= c|0x20 && c|0x20 <= 'z' }

func digits(s string) (n int) {
	for i := range len(s) {
		if '0' <= s[i] && s[i] <= '9' {
			n++
		}
	}
	return n
}
