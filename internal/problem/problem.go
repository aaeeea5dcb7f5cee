// Package problem is one mistake in a user's YAML, with its place, so that all mistakes of all files can be told at once.
package problem

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Problem is one mistake. Its Error reads "file:line:column: path: message", with the way out at the end where there is one.
type Problem struct {
	File    string `json:"file"`
	Line    int    `json:"line,omitempty"`   // from 1; 0 when the place within the file is not known
	Column  int    `json:"column,omitempty"` // from 1; 0 when the place within the line is not known
	Path    string `json:"path,omitempty"`   // of the YAML value, such as sinks.crm.batch.items or mappings[2].item.data
	Message string `json:"message"`          // what is wrong, in lower case, without a full stop
	Hint    string `json:"hint,omitempty"`   // what to do, such as: did you mean "items"?
}

func (p *Problem) Error() string {
	var b strings.Builder
	b.WriteString(p.File)
	if p.Line > 0 {
		fmt.Fprintf(&b, ":%d", p.Line)
	}
	if p.Column > 0 {
		fmt.Fprintf(&b, ":%d", p.Column)
	}
	b.WriteString(": ")
	if p.Path != "" {
		b.WriteString(p.Path + ": ")
	}
	b.WriteString(p.Message)
	if p.Hint != "" {
		b.WriteString("; " + p.Hint)
	}
	return b.String()
}

// List is all that is wrong. A List with no problem is no error: return it through Err.
type List []*Problem

// Err is the list as an error, in the order of the places, or nil when it is empty.
func (l List) Err() error {
	if len(l) == 0 {
		return nil
	}
	l.Sort()
	return l
}

// Sort puts the list in the order of the places.
func (l List) Sort() {
	slices.SortStableFunc(l, func(a, b *Problem) int {
		return cmp.Or(strings.Compare(a.File, b.File), a.Line-b.Line, a.Column-b.Column)
	})
}

func (l List) Error() string {
	lines := make([]string, len(l))
	for i, p := range l {
		lines[i] = p.Error()
	}
	return strings.Join(lines, "\n")
}

// Closest is the candidate most like word, or empty when none is like it.
func Closest(word string, candidates []string) string {
	best, least := "", len(word)/3+2
	for _, c := range candidates {
		if d := distance(strings.ToLower(word), strings.ToLower(c)); d < least {
			best, least = c, d
		}
	}
	return best
}

// Nearest is a hint that names the candidate most like word, or, when none is like it, lists them all if they are few.
func Nearest(word string, candidates []string) string {
	const few = 12
	best := Closest(word, candidates)
	switch {
	case best != "":
		return fmt.Sprintf("did you mean %q?", best)
	case len(candidates) > 0 && len(candidates) <= few:
		return "known are: " + strings.Join(candidates, ", ")
	}
	return ""
}

// distance counts the single-character edits between a and b (Levenshtein), a swap of neighbours being one (Damerau).
func distance(a, b string) int {
	before, last, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range last {
		last[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(last[j]+1, row[j-1]+1, last[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, last, row = last, row, before
	}
	return last[len(b)]
}
