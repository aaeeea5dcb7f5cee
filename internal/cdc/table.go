package cdc

import (
	"regexp"
	"strings"
)

// tablePart is a name with what ends it; one that holds a dot, a space or a quote stands in double quotes.
var tablePart = regexp.MustCompile(`^(?:([^".\s]+)|"((?:[^"]|"")+)")(\.|$)`)

// ParseTable reads schema.table as configuration and commands take it: exact names, in double quotes where they hold a dot, a space or a
// quote, as in "My Schema".users. A name without a schema is of public. It reports whether text is a table.
func ParseTable(text string) (schema, name string, ok bool) {
	var parts []string
	for rest, more := text, true; more; {
		match := tablePart.FindStringSubmatch(rest)
		if match == nil {
			return "", "", false
		}
		parts = append(parts, match[1]+strings.ReplaceAll(match[2], `""`, `"`))
		more = match[3] == "."
		rest = rest[len(match[0]):]
	}
	switch len(parts) {
	case 1:
		return "public", parts[0], true
	case 2:
		return parts[0], parts[1], true
	}
	return "", "", false
}
