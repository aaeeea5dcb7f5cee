package mapping

import (
	"github.com/expr-lang/expr/file"
	"github.com/expr-lang/expr/parser/lexer"
)

// written is an expression in which object(list, key, value) is written out as object(map(list, [key, value])), since the language has
// no function of ours in which # is the element.
type written struct {
	source string
	text   string
	added  []added // in order
}

// added is text that the user did not write, by its place among the runes of written.text.
type added struct{ at, length int }

// insertion is text to be added before a rune of the source.
type insertion struct {
	at   int
	text string
}

func writeOut(source string) (*written, *mistake) {
	w := &written{source: source, text: source}
	tokens, err := lexer.Lex(file.NewSource(source))
	if err != nil {
		return w, nil
	}
	var insertions []insertion
	for i, t := range tokens {
		if i+1 >= len(tokens) || !t.Is(lexer.Identifier, "object") || !tokens[i+1].Is(lexer.Bracket, "(") || i > 0 && isMember(tokens[i-1]) {
			continue
		}
		commas, end := arguments(tokens, i+1)
		if end < 0 {
			return w, nil // the parser reports what is missing
		}
		if len(commas) != 2 {
			m := mistakeOf((&file.Error{Location: t.Location, Message: "object takes a list, a key and a value"}).Bind(file.NewSource(source)))
			m.hint = "object(tiers, #, true)"
			return nil, &m
		}
		insertions = append(insertions,
			insertion{tokens[i+1].To, "map("},
			insertion{tokens[commas[0]].To, "["},
			insertion{tokens[end].From, "])"})
	}
	w.insert(insertions)
	return w, nil
}

func isMember(t lexer.Token) bool {
	return t.Is(lexer.Operator, ".") || t.Is(lexer.Operator, "?.")
}

// arguments finds the commas of a call whose bracket is at open, and the bracket that closes it, or -1.
func arguments(tokens []lexer.Token, open int) (commas []int, end int) {
	depth := 0
	for i := open; i < len(tokens); i++ {
		t := tokens[i]
		switch {
		case t.Kind == lexer.Bracket && (t.Value == "(" || t.Value == "[" || t.Value == "{"):
			depth++
		case t.Kind == lexer.Bracket:
			if depth--; depth == 0 {
				return commas, i
			}
		case depth == 1 && t.Is(lexer.Operator, ","):
			commas = append(commas, i)
		}
	}
	return nil, -1
}

// insert adds texts to the source, whose places may lie within one another.
func (w *written) insert(insertions []insertion) {
	if len(insertions) == 0 {
		return
	}
	runes := []rune(w.source)
	var out []rune
	for at := 0; at <= len(runes); at++ {
		for _, in := range insertions {
			if in.at == at {
				w.added = append(w.added, added{len(out), len([]rune(in.text))})
				out = append(out, []rune(in.text)...)
			}
		}
		if at < len(runes) {
			out = append(out, runes[at])
		}
	}
	w.text = string(out)
}

// place moves a mistake from its place in the text to that in the source.
func (w *written) place(m *mistake) {
	if len(w.added) == 0 {
		return
	}
	at, line := m.column, 1
	for i, r := range []rune(w.text) {
		if line == m.line {
			at = i + m.column
			break
		}
		if r == '\n' {
			line++
		}
	}
	shift := 0
	for _, a := range w.added {
		if a.at < at {
			shift += min(a.length, at-a.at)
		}
	}
	e := (&file.Error{Location: file.Location{From: at - shift}}).Bind(file.NewSource(w.source))
	m.line, m.column = e.Line, e.Column
}

func objectOfPairs(args []any) (any, error) {
	list, ok := args[0].([]any)
	if !ok {
		return nil, wants("list", args[0])
	}
	object := make(map[string]any, len(list))
	for _, element := range list {
		pair, ok := element.([]any)
		if !ok || len(pair) != 2 {
			return nil, failure("a list, a key and a value are wanted")
		}
		if pair[0] == nil {
			continue
		}
		key, err := textOf(pair[0])
		if err != nil {
			return nil, err
		}
		object[key] = pair[1]
	}
	return object, nil
}
