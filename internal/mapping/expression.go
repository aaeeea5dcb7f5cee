package mapping

import (
	"errors"
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strings"

	"github.com/expr-lang/expr/ast"
	"github.com/expr-lang/expr/builtin"
	"github.com/expr-lang/expr/checker"
	"github.com/expr-lang/expr/compiler"
	"github.com/expr-lang/expr/conf"
	"github.com/expr-lang/expr/file"
	"github.com/expr-lang/expr/parser"
	"github.com/expr-lang/expr/types"
	"github.com/expr-lang/expr/vm"

	"github.com/cdcsync/cdcsync/internal/cdc"
	"github.com/cdcsync/cdcsync/internal/problem"
)

// scope is what the names in an expression may mean.
type scope struct {
	relation *cdc.Relation // nil: columns are not known yet, so that any name may be one
	lookups  []Lookup      // that may be used here
}

// refKind says where the value of a name comes from.
type refKind uint8

const (
	refColumn     refKind = iota + 1 // of the row that is rendered
	refOld                           // of the row before the change
	refOp                            // the operation's name
	refChanged                       // whether one of columns differs between old and new
	refLookup                        // a lookup's result
	refCommitTime                    // when the change was committed
)

// ref is one outside value that an expression uses, under the name that it has in the expression's environment. No such name
// is an identifier, so that columns and functions may be called the same.
type ref struct {
	name    string
	said    string // as the user writes it
	zero    string // an example of a value of its type
	kind    refKind
	column  int // of refColumn and refOld
	columns []int
	lookup  int
	many    bool // the lookup gives a list
	slot    int  // in the machine that runs the expression
}

// expression is a compiled expression.
type expression struct {
	program *vm.Program
	meter   *meter // of the run, which is one at a time
	refs    []ref
	typ     reflect.Type // nil when it is only known when it runs
	// whole is the only reference when the expression is nothing but a column or a lookup, which is then rendered straight from its text.
	whole *ref
}

// mistake is a problem within an expression, at an offset in its text.
type mistake struct {
	line, column int // from 1 and from 0
	message      string
	hint         string
}

// compileExpression checks and compiles source. It reports as many mistakes as can be told apart.
func compileExpression(source string, sc scope) (*expression, []mistake) {
	config := conf.CreateNew()
	config.Optimize = false // constant folding would compute with float64 what operators compute exactly
	config.Functions = functionTable
	for _, b := range builtin.Builtins {
		if !isLanguageFunction(b.Name) {
			config.Disabled[b.Name] = true
			delete(config.Builtins, b.Name)
		}
	}
	config.WithEnv(types.Map{})
	written, wrong := writeOut(source)
	if wrong != nil {
		return nil, []mistake{*wrong}
	}
	e, mistakes := compileWritten(written.text, sc, config)
	for i := range mistakes {
		written.place(&mistakes[i])
	}
	return e, mistakes
}

func compileWritten(source string, sc scope, config *conf.Config) (*expression, []mistake) {
	tree, err := parser.ParseWithConfig(source, config)
	if err != nil {
		return nil, []mistake{mistakeOf(err)}
	}
	r := resolver{scope: sc, source: tree.Source}
	r.resolve(&tree.Node)
	if len(r.mistakes) > 0 {
		return nil, r.mistakes
	}
	config.WithEnv(r.environment())
	_, _ = checker.Check(tree, config) // for the types; operators on our own types are not errors, and are replaced next
	o := overloads{}
	ast.Walk(&tree.Node, &o)
	o.forget()
	used := &meter{}
	config.Functions = used.functions(&tree.Node)
	if _, err := checker.Check(tree, config); err != nil {
		return nil, []mistake{mistakeOf(err)}
	}
	e := &expression{meter: used, refs: r.refs, typ: known(tree.Node)}
	if id, ok := tree.Node.(*ast.IdentifierNode); ok && len(r.refs) == 1 && r.refs[0].name == id.Value {
		e.whole = &r.refs[0]
	}
	stepped(&tree.Node)
	program, err := compiler.Compile(tree, config)
	if err != nil {
		return nil, []mistake{mistakeOf(err)}
	}
	e.program = program
	return e, nil
}

func isLanguageFunction(name string) bool {
	return slices.ContainsFunc(languageFunctions, func(f Function) bool { return f.Name == name })
}

// mistakeOf turns an error of expr-lang into the words of the documentation.
func mistakeOf(err error) mistake {
	m := mistake{line: 1, message: err.Error()}
	if e, ok := errors.AsType[*file.Error](err); ok {
		m = mistake{line: e.Line, column: e.Column, message: e.Message}
	}
	m.message = typeWords.Replace(unexpectedToken.ReplaceAllString(m.message, `unexpected "$1"`))
	m.message = strings.TrimSpace(m.message)
	switch {
	case strings.Contains(m.message, "mismatched types") && strings.Contains(m.message, "string"):
		m.hint = "string(…) makes a text, number(…) a number"
	case strings.HasSuffix(m.message, "as argument (type string) to call "+lastWord(m.message)):
		m.hint = "string(…) makes a text"
	case m.message == `unexpected ":"`:
		m.hint = "an object within map(…) or filter(…) has double braces: {{\"a\": 1}}"
	}
	return m
}

func lastWord(s string) string { return s[strings.LastIndexByte(s, ' ')+1:] }

// unexpectedToken is how expr-lang prints a token.
var unexpectedToken = regexp.MustCompile(`unexpected token \w+\("(.*)"\)`)

var typeWords = strings.NewReplacer("mapping.Decimal", "numeric", "mapping.Date", "date", "time.Time", "timestamp", "interface {}", "any", "[]any", "list",
	"[]uint8", "bytea", "map[string]any", "object", "float64", "float8", "unexpected token EOF", "unexpected end of the expression")

// resolver replaces the names in a parsed expression by references. Names that are no column, function or lookup are mistakes.
type resolver struct {
	scope    scope
	source   file.Source
	refs     []ref
	types    []reflect.Type // of refs
	mistakes []mistake
	locals   []string          // declared by let
	taken    map[ast.Node]bool // identifiers that are part of something that is resolved as a whole
}

func (r *resolver) resolve(root *ast.Node) {
	r.taken = map[ast.Node]bool{}
	ast.Walk(root, visitFunc(r.prepare))
	ast.Walk(root, visitFunc(r.replace))
}

type visitFunc func(*ast.Node)

func (f visitFunc) Visit(node *ast.Node) { f(node) }

// prepare marks the identifiers that replace must leave alone, since it sees them before the nodes that they belong to.
func (r *resolver) prepare(node *ast.Node) {
	switch n := (*node).(type) {
	case *ast.CallNode:
		r.taken[n.Callee] = true
	case *ast.VariableDeclaratorNode:
		r.locals = append(r.locals, n.Name)
	case *ast.MemberNode:
		if id, ok := n.Node.(*ast.IdentifierNode); ok && slices.Contains([]string{"old", "row", "lookup"}, id.Value) {
			r.taken[n.Node] = true
		}
	}
}

func (r *resolver) replace(node *ast.Node) {
	if r.taken[*node] {
		return
	}
	switch n := (*node).(type) {
	case *ast.IdentifierNode:
		r.identifier(node, n)
	case *ast.MemberNode:
		r.member(node, n)
	case *ast.CallNode:
		r.call(node, n)
	case *ast.BuiltinNode:
		if !isLanguageFunction(n.Name) {
			r.unknown(n, "function", n.Name, functionNames)
		}
	}
}

func (r *resolver) identifier(node *ast.Node, n *ast.IdentifierNode) {
	switch {
	case slices.Contains(r.locals, n.Value):
	case n.Value == "null":
		ast.Patch(node, &ast.NilNode{})
	case n.Value == "op":
		r.refer(node, ref{name: "the op", kind: refOp}, typeString)
	case n.Value == "old" || n.Value == "row" || n.Value == "lookup":
		r.mistake(n, n.Value+" is not a value by itself", "write "+n.Value+".name")
	default:
		r.column(node, n.Value, refColumn)
	}
}

func (r *resolver) member(node *ast.Node, n *ast.MemberNode) {
	id, ok := n.Node.(*ast.IdentifierNode)
	if !ok || !r.taken[n.Node] {
		return
	}
	name, ok := n.Property.(*ast.StringNode)
	if !ok {
		r.mistake(n, id.Value+"[…] takes a name in quotes", "")
		return
	}
	switch id.Value {
	case "old":
		r.column(node, name.Value, refOld)
	case "row":
		r.column(node, name.Value, refColumn)
	default:
		r.lookup(node, name.Value)
	}
}

// column replaces node by a reference to a column of the row or the old row.
func (r *resolver) column(node *ast.Node, name string, kind refKind) {
	rf := ref{name: "column " + name, said: name, kind: kind, column: -1}
	if kind == refOld {
		rf.name, rf.said = "old "+name, "old."+name
	}
	var t reflect.Type
	if rel := r.scope.relation; rel != nil {
		if rf.column = rel.Column(name); rf.column < 0 {
			r.unknown(*node, "column", name, columnNames(rel))
			return
		}
		t = goType(rel.Columns[rf.column].Type)
	}
	r.refer(node, rf, t)
}

func (r *resolver) lookup(node *ast.Node, name string) {
	for i, l := range r.scope.lookups {
		if l.Name != name {
			continue
		}
		t := typeObject
		if l.Many {
			t = typeList
		}
		r.refer(node, ref{name: "lookup " + name, said: "lookup." + name, kind: refLookup, lookup: i, many: l.Many}, t)
		return
	}
	var names []string
	for _, l := range r.scope.lookups {
		names = append(names, l.Name)
	}
	if len(names) == 0 {
		r.mistake(*node, fmt.Sprintf("lookup.%s: no lookup can be used here", name), "lookups are declared beside item, and used in item only")
		return
	}
	r.unknown(*node, "lookup", name, names)
}

func (r *resolver) call(node *ast.Node, n *ast.CallNode) {
	id, ok := n.Callee.(*ast.IdentifierNode)
	switch {
	case !ok:
		r.mistake(n, "only functions can be called", problemFunctions)
	case id.Value == "changed":
		r.changed(node, n)
	case id.Value == "commit_time":
		if len(n.Arguments) > 0 {
			r.mistake(n, "commit_time takes no argument", "commit_time()")
			return
		}
		r.refer(node, ref{name: "the commit time", said: "commit_time()", kind: refCommitTime}, typeTime)
	case !slices.Contains(functionNames, id.Value):
		r.unknown(n.Callee, "function", id.Value, functionNames)
	}
}

const problemFunctions = "docs/mapping.md lists them"

// changed replaces changed("a", "b") by one reference, computed from the tuples without decoding them.
func (r *resolver) changed(node *ast.Node, n *ast.CallNode) {
	rf := ref{name: "changed", kind: refChanged}
	if len(n.Arguments) == 0 {
		r.mistake(n, "changed takes the names of one or more columns in quotes", `changed("email", "phone")`)
		return
	}
	for _, a := range n.Arguments {
		s, ok := a.(*ast.StringNode)
		if !ok {
			r.mistake(a, "changed takes the names of columns in quotes", `changed("email", "phone")`)
			return
		}
		rf.name += " " + s.Value
		if rel := r.scope.relation; rel != nil {
			c := rel.Column(s.Value)
			if c < 0 {
				r.unknown(a, "column", s.Value, columnNames(rel))
				return
			}
			rf.columns = append(rf.columns, c)
		}
	}
	r.refer(node, rf, typeBool)
}

func (r *resolver) refer(node *ast.Node, rf ref, t reflect.Type) {
	ast.Patch(node, &ast.IdentifierNode{Value: rf.name})
	rf.zero = zeroOf(t)
	if !slices.ContainsFunc(r.refs, func(other ref) bool { return other.name == rf.name }) {
		r.refs = append(r.refs, rf)
		r.types = append(r.types, t)
	}
}

// zeroOf is how a value of a type may be written in an expression.
func zeroOf(t reflect.Type) string {
	switch {
	case t == typeBool:
		return "false"
	case numericType(t):
		return "0"
	case t == typeList:
		return "[]"
	case t == typeObject:
		return "{}"
	}
	return `""`
}

func (r *resolver) environment() types.Map {
	env := types.Map{}
	for i, rf := range r.refs {
		if env[rf.name] = types.Any; r.types[i] != nil {
			env[rf.name] = types.TypeOf(reflect.Zero(r.types[i]).Interface())
		}
	}
	return env
}

func (r *resolver) unknown(n ast.Node, what, name string, known []string) {
	r.mistake(n, fmt.Sprintf("unknown %s %q", what, name), problem.Nearest(name, known))
}

func (r *resolver) mistake(n ast.Node, message, hint string) {
	at := (&file.Error{Location: n.Location()}).Bind(r.source)
	r.mistakes = append(r.mistakes, mistake{line: at.Line, column: at.Column, message: message, hint: hint})
}

func columnNames(rel *cdc.Relation) []string {
	names := make([]string, len(rel.Columns))
	for i := range rel.Columns {
		names[i] = rel.Columns[i].Name
	}
	return names
}

// goType is the type that a column's values have in expressions, nil where it differs from value to value.
func goType(t *cdc.Type) reflect.Type {
	switch c := newCodec(t, 0); c.form {
	case formInteger:
		return typeInt
	case formNumeric:
		return typeDecimal
	case formFloat:
		return typeFloat
	case formBool:
		return typeBool
	case formJSON, formUnknown:
		return nil
	case formBytea:
		return typeBytes
	case formDate:
		return typeDate
	case formTimestamp, formTimestamptz:
		return typeTime
	case formArray, formMultirange:
		return typeList
	case formHstore, formComposite, formRange:
		return typeObject
	default:
		return typeString
	}
}
