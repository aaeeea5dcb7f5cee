package replication

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"

	"github.com/cdcsync/cdcsync/internal/cdc"
)

// A backfill's condition comes from whoever may start one, and runs with the rights of the replication role. So it may only say
// what decides about a row: columns of the table, constants, operators, and functions of pg_catalog that neither change anything
// nor read anything else. It is read word by word here, and what is not known to be harmless is refused; the server knows which
// functions and types it came with. The connection that runs it has search_path pg_catalog, so that no other name can be meant.

// conditionWords are the keywords of the expressions that are allowed (appendix C of the manual). Sub-selects need one that is not.
var conditionWords = wordSet(`and or not is null true false unknown isnull notnull in between symmetric like ilike similar to escape
	case when then else end cast as any some all array row collate at time zone local both leading trailing from for placing distinct
	year month day hour minute second with without precision varying extract coalesce nullif greatest least overlay position substring
	trim normalize normalized nfc nfd nfkc nfkd current_date current_time current_timestamp localtime localtimestamp asymmetric`)

// conditionStatements begin what is no expression. They are refused as columns, too, unless they are quoted.
var conditionStatements = wordSet(`select with table values exists union intersect except into lateral over filter within returning window operator`)

// conditionCalls are keywords that an opening parenthesis may follow: what comes is no argument list of a function, or that of one
// that the grammar knows by itself.
var conditionCalls = wordSet(`and or not is in between symmetric asymmetric like ilike similar to escape case when then else any some all row cast
	from for placing distinct extract coalesce nullif greatest least overlay position substring trim normalize
	current_time current_timestamp localtime localtimestamp time`)

func wordSet(words string) map[string]bool {
	set := make(map[string]bool)
	for w := range strings.FieldsSeq(words) {
		set[w] = true
	}
	return set
}

// checkCondition refuses a condition that could do anything but decide about a row of rel.
func checkCondition(ctx context.Context, q querier, rel *cdc.Relation, condition string) error {
	if condition == "" {
		return nil
	}
	c := conditionCheck{table: rel.Name, columns: make(map[string]bool, len(rel.Columns))}
	for i := range rel.Columns {
		c.columns[rel.Columns[i].Name] = true
	}
	var err error
	if c.tokens, err = scanCondition(condition); err == nil {
		err = c.read()
	}
	if err == nil {
		err = c.ask(ctx, q, rel)
	}
	if refused, ok := err.(*conditionError); ok { //nolint:errorlint // it is made above and not wrapped
		return &Error{
			Reason: "the condition is refused: " + refused.reason,
			Solution: "a condition may have columns of the table, constants, operators and immutable or stable functions of pg_catalog;" +
				" for anything else make a generated column or a view of the keys, and use that",
		}
	}
	return err
}

// conditionError says what in a condition is refused.
type conditionError struct{ reason string }

func (e *conditionError) Error() string { return e.reason }

func refuse(format string, args ...any) error {
	return &conditionError{reason: fmt.Sprintf(format, args...)}
}

type tokenKind uint8

const (
	tokenEnd tokenKind = iota
	tokenWord
	tokenQuoted // an identifier in double quotes
	tokenString
	tokenNumber
	tokenSign // an operator, or one of ( ) [ ] , . : ::
)

type conditionToken struct {
	kind tokenKind
	text string // of a word in lower case, of a quoted identifier without its quotes
}

// operatorSigns are the characters of operators (section 4.1.3 of the manual).
const operatorSigns = "+-*/<>=~!@#%^&|`?"

// scanCondition reads text as Postgres does with standard_conforming_strings on (scan.l), and refuses what is not part of one expression.
func scanCondition(text string) ([]conditionToken, error) {
	if !utf8.ValidString(text) {
		return nil, refuse("it is not UTF-8")
	}
	s := conditionScanner{rest: text}
	var open []byte
	for {
		t, err := s.next()
		if err != nil || t.kind == tokenEnd {
			if err == nil && len(open) > 0 {
				err = refuse("a %c is not closed", open[len(open)-1])
			}
			return s.tokens, err
		}
		if t.kind == tokenSign {
			switch t.text {
			case "(", "[":
				open = append(open, t.text[0])
			case ")", "]":
				opening := byte('(')
				if t.text == "]" {
					opening = '['
				}
				if len(open) == 0 || open[len(open)-1] != opening {
					return nil, refuse("a %s closes nothing", t.text)
				}
				open = open[:len(open)-1]
			}
		}
		s.tokens = append(s.tokens, t)
	}
}

type conditionScanner struct {
	rest   string
	tokens []conditionToken
}

func (s *conditionScanner) next() (conditionToken, error) {
	if err := s.skip(); err != nil || s.rest == "" {
		return conditionToken{}, err
	}
	switch c := s.rest[0]; {
	case c == '\'':
		return s.quoted(tokenString, '\'', false)
	case c == '"':
		return s.quoted(tokenQuoted, '"', false)
	case isDigit(c), c == '.' && len(s.rest) > 1 && isDigit(s.rest[1]):
		return s.number(), nil
	case strings.HasPrefix(s.rest, "::"):
		return s.take(tokenSign, len("::")), nil
	case strings.IndexByte("()[],.:", c) >= 0:
		return s.take(tokenSign, 1), nil
	case strings.IndexByte(operatorSigns, c) >= 0:
		return s.operator(), nil
	}
	return s.word()
}

// skip passes over white space and comments. Those between /* and */ nest.
func (s *conditionScanner) skip() error {
	for {
		s.rest = strings.TrimLeft(s.rest, " \t\r\n\f\v")
		switch {
		case strings.HasPrefix(s.rest, "--"):
			end := strings.IndexAny(s.rest, "\r\n")
			if end < 0 {
				end = len(s.rest)
			}
			s.rest = s.rest[end:]
		case strings.HasPrefix(s.rest, "/*"):
			length := commentLength(s.rest)
			if length == 0 {
				return refuse("a comment is not closed")
			}
			s.rest = s.rest[length:]
		default:
			return nil
		}
	}
}

// commentLength is that of the comment that text begins with; 0 when it does not end.
func commentLength(text string) int {
	depth := 0
	for i := 0; i+1 < len(text); {
		switch text[i : i+2] {
		case "/*":
			depth, i = depth+1, i+2
		case "*/":
			if depth, i = depth-1, i+2; depth == 0 {
				return i
			}
		default:
			i++
		}
	}
	return 0
}

func (s *conditionScanner) take(kind tokenKind, n int) conditionToken {
	t := conditionToken{kind: kind, text: s.rest[:n]}
	s.rest = s.rest[n:]
	return t
}

func isDigit(c byte) bool { return c >= '0' && c <= '9' }

func (s *conditionScanner) number() conditionToken {
	n := 0
	for n < len(s.rest) {
		c := s.rest[n]
		exponent := (c == '+' || c == '-') && n > 0 && (s.rest[n-1] == 'e' || s.rest[n-1] == 'E')
		if !isDigit(c) && c != '.' && c != '_' && c != 'e' && c != 'E' && !exponent {
			break
		}
		n++
	}
	return s.take(tokenNumber, n)
}

// operator ends where a comment would begin.
func (s *conditionScanner) operator() conditionToken {
	n := 1
	for n < len(s.rest) && strings.IndexByte(operatorSigns, s.rest[n]) >= 0 && !strings.HasPrefix(s.rest[n:], "--") && !strings.HasPrefix(s.rest[n:], "/*") {
		n++
	}
	return s.take(tokenSign, n)
}

func (s *conditionScanner) quoted(kind tokenKind, quote byte, escapes bool) (conditionToken, error) {
	var text []byte
	for i := 1; i < len(s.rest); i++ {
		switch {
		case escapes && s.rest[i] == '\\' && i+1 < len(s.rest):
			i++
		case s.rest[i] == quote && i+1 < len(s.rest) && s.rest[i+1] == quote:
			i++
		case s.rest[i] == quote:
			s.rest = s.rest[i+1:]
			return conditionToken{kind: kind, text: string(text)}, nil
		}
		text = append(text, s.rest[i])
	}
	return conditionToken{}, refuse("a quote (%c) is not closed", quote)
}

func (s *conditionScanner) word() (conditionToken, error) {
	n := strings.IndexFunc(s.rest, func(r rune) bool {
		return r != '_' && r != '$' && !unicode.IsLetter(r) && !unicode.IsDigit(r) && r < utf8.RuneSelf
	})
	if n < 0 {
		n = len(s.rest)
	}
	first, size := utf8.DecodeRuneInString(s.rest)
	if n == 0 || first == '$' {
		return conditionToken{}, refuse("%q is not allowed", s.rest[:max(size, 1)])
	}
	t := s.take(tokenWord, n)
	t.text = strings.Map(func(r rune) rune { // Postgres folds ASCII only where the encoding has several bytes
		if r < utf8.RuneSelf {
			return unicode.ToLower(r)
		}
		return r
	}, t.text)
	switch {
	case strings.HasPrefix(s.rest, "'") && slices.Contains([]string{"e", "b", "x", "n"}, t.text):
		return s.quoted(tokenString, '\'', t.text == "e")
	case strings.HasPrefix(s.rest, "&'"), strings.HasPrefix(s.rest, `&"`):
		if t.text == "u" {
			return conditionToken{}, refuse("Unicode escapes (U&) are not allowed")
		}
	}
	return t, nil
}

// conditionCheck goes over the tokens and gathers what the server has to be asked.
type conditionCheck struct {
	tokens  []conditionToken
	table   string
	columns map[string]bool

	used      []string // columns
	functions []string
	types     []string
}

func (c *conditionCheck) at(i int) conditionToken {
	if i < 0 || i >= len(c.tokens) {
		return conditionToken{}
	}
	return c.tokens[i]
}

func (c *conditionCheck) isSign(i int, text string) bool {
	t := c.at(i)
	return t.kind == tokenSign && t.text == text
}

func (c *conditionCheck) read() error {
	for i := 0; i < len(c.tokens); i++ {
		n, err := c.token(i)
		if err != nil {
			return err
		}
		i += n
	}
	return nil
}

// token judges the token at i, and returns how many more belong to it.
func (c *conditionCheck) token(i int) (more int, err error) {
	t := c.tokens[i]
	switch {
	case t.kind == tokenSign && t.text == "::":
		return c.typeName(i + 1)
	case t.kind == tokenSign && t.text == ".":
		return 0, refuse("a name with a dot is not allowed, but for functions of pg_catalog: name columns alone")
	case t.kind != tokenWord && t.kind != tokenQuoted:
		return 0, nil
	case t.text == "pg_catalog" && c.isSign(i+1, ".") && c.isSign(i+3, "("):
		c.functions = append(c.functions, c.at(i+2).text)
		return 2, nil
	case t.text == c.table && c.isSign(i+1, ".") && c.columns[c.at(i+2).text] && !c.isSign(i+3, "("):
		c.used = append(c.used, c.at(i+2).text) // what is no column there would be a function of the row
		return 2, nil
	case t.kind == tokenWord && t.text == "as": // of CAST
		return c.typeName(i + 1)
	case t.kind == tokenWord && t.text == "collate" && c.at(i+1).kind == tokenQuoted:
		return 1, nil
	case t.kind == tokenWord && t.text == "extract" && c.isSign(i+1, "("): // the field is a word or a string
		return 2, nil
	case t.kind == tokenWord && conditionStatements[t.text] && !conditionWords[t.text]:
		return 0, refuse("%q is not allowed; a column of that name is written in double quotes", t.text)
	case c.isSign(i+1, "("):
		c.call(t)
		return 0, nil
	case c.at(i+1).kind == tokenString && t.kind == tokenWord && !conditionWords[t.text]: // date '2026-01-01'
		c.types = append(c.types, t.text)
		return 0, nil
	case c.columns[t.text]:
		c.used = append(c.used, t.text)
		return 0, nil
	case t.kind == tokenWord && conditionWords[t.text]:
		return 0, nil
	case t.kind == tokenWord && c.literal(i):
		return 0, nil
	}
	return 0, refuse("%s is no column of the table, and no word that a condition may have", pgx.Identifier{t.text}.Sanitize())
}

// literal reports whether the word begins a typed literal of several words, such as timestamp with time zone '…'.
func (c *conditionCheck) literal(i int) bool {
	words := typeWords(c.tokens[i:])
	if len(words) < 2 || c.at(i+len(words)).kind != tokenString {
		return false
	}
	c.types = append(c.types, strings.Join(words, " "))
	return true
}

// call notes what stands before an opening parenthesis, unless it is a keyword.
func (c *conditionCheck) call(t conditionToken) {
	if t.kind != tokenWord || !conditionCalls[t.text] {
		c.functions = append(c.functions, t.text)
	}
}

// typeName takes the name of a type at i.
func (c *conditionCheck) typeName(i int) (more int, err error) {
	if c.at(i).kind == tokenWord && c.at(i).text == "pg_catalog" && c.isSign(i+1, ".") {
		more, i = 2, i+2
	}
	if c.isSign(i+1, ".") {
		return 0, refuse("a cast to a type outside of pg_catalog is not allowed")
	}
	words := typeWords(c.tokens[min(i, len(c.tokens)):])
	if len(words) == 0 {
		return 0, refuse("a cast names no type of pg_catalog")
	}
	c.types = append(c.types, strings.Join(words, " "))
	return more + len(words), nil
}

// typeWords are the words of a type's name at the beginning of tokens. Only these types have several (section 8 of the manual).
func typeWords(tokens []conditionToken) []string {
	if len(tokens) == 0 || tokens[0].kind != tokenWord {
		return nil
	}
	words := []string{tokens[0].text}
	for _, rest := range [][]string{{"precision"}, {"varying"}, {"with", "time", "zone"}, {"without", "time", "zone"}} {
		n := 0
		for n < len(rest) && 1+n < len(tokens) && tokens[1+n] == (conditionToken{kind: tokenWord, text: rest[n]}) {
			n++
		}
		if n == len(rest) {
			return append(words, rest...)
		}
	}
	return words
}

// ask asks the server about functions, types and columns.
func (c *conditionCheck) ask(ctx context.Context, q querier, rel *cdc.Relation) error {
	var functions, types, columns []string
	err := q.QueryRow(ctx, conditionSQL, c.functions, c.types, c.used, rel.OID).Scan(&functions, &types, &columns)
	switch {
	case err != nil:
		return fmt.Errorf("functions of the condition: %w", err)
	case len(functions) > 0:
		return refuse("%s is not an immutable or stable function of pg_catalog that reads nothing but its arguments", functions[0])
	case len(types) > 0:
		return refuse("%s is not a type of pg_catalog", types[0])
	case len(columns) > 0:
		return refuse("column %s has a type whose operators and casts are not the server's own", pgx.Identifier{columns[0]}.Sanitize())
	}
	return nil
}

// conditionSQL gives what is not allowed: of the functions $1, of the types $2, and of the columns $3 of table $4.
//
// A stable function may read the database. Those that do, and the settings, are known by their names: table_to_xml and its kin,
// pg_*, current_setting, has_*_privilege.
const conditionSQL = `
	select array(
		select f.name from pg_catalog.unnest($1::pg_catalog.text[]) f(name)
		where not exists (select 1 from pg_catalog.pg_proc p where p.proname = f.name and p.pronamespace = 'pg_catalog'::pg_catalog.regnamespace)
			or exists (select 1 from pg_catalog.pg_proc p where p.proname = f.name and p.pronamespace = 'pg_catalog'::pg_catalog.regnamespace
				and (p.prokind <> 'f' or p.proretset or p.provolatile = 'v'
					or p.provolatile = 's' and p.proname ~ '(_to_xml)|(^pg_)|(^has_)|(^current_setting$)|(_description$)|(^to_reg)|(^row_security)|(^txid_)|(^inet_)')))
	, array(
		select t.name from pg_catalog.unnest($2::pg_catalog.text[]) t(name)
		where not exists (select 1 from pg_catalog.pg_type p
			where p.oid = pg_catalog.to_regtype(t.name) and p.typnamespace = 'pg_catalog'::pg_catalog.regnamespace))
	, array(
		with recursive base(name, oid) as (
			select a.attname::pg_catalog.text, a.atttypid from pg_catalog.pg_attribute a where a.attrelid = $4 and a.attname = any($3::pg_catalog.text[])
			union
			select b.name, case when t.typtype = 'd' then t.typbasetype else t.typelem end
			from base b join pg_catalog.pg_type t on t.oid = b.oid
			where t.typtype = 'd' or t.typelem <> 0 and t.typnamespace <> 'pg_catalog'::pg_catalog.regnamespace
		)
		select b.name from base b join pg_catalog.pg_type t on t.oid = b.oid
		where t.typnamespace <> 'pg_catalog'::pg_catalog.regnamespace and t.typtype not in ('d', 'e') and t.typelem = 0)`
