package mapping

import (
	"strings"

	"github.com/expr-lang/expr/ast"
	"github.com/expr-lang/expr/builtin"
)

// What a row can blow up is bounded: a row that takes more is rejected, since it would take the process down again at each start. Sizes are checked
// before anything is made.
const (
	// largestValue is the most that one value in an expression, and what is rendered from one, may be: as much as the largest row that is captured.
	largestValue = 64 << 20
	// mostMade is the most that one expression may make: a few steps, each over the largest value.
	mostMade = 3 * largestValue
	// mostRead is the most that one expression may go through, which bounds how long it takes: some seconds.
	mostRead = 8 * largestValue
	// mostSteps bounds the elements that an expression goes over, those of lists within lists included.
	mostSteps = 1_000_000
	// mostElements is the most that one list, or JSON text in all, may have; the language's own lists have the same limit.
	mostElements = 1_000_000
)

const (
	errLargeValue   = failure("a value within it would be larger than 64 MiB")
	errMade         = failure("the values within it would take more than 192 MiB")
	errRead         = failure("it would go through more than 512 MiB of values")
	errSteps        = failure("it would go over more than 1,000,000 elements")
	errManyElements = failure("a list or object within it would have more than 1,000,000 elements")
)

// meter counts what one run of an expression takes.
type meter struct{ steps, made, read int }

func (m *meter) reset() { *m = meter{} }

// goThrough charges values that are about to be read.
func (m *meter) goThrough(values ...any) error {
	for _, v := range values {
		m.read += sizeOf(v)
	}
	if m.read > mostRead {
		return errRead
	}
	return nil
}

func (m *meter) make(v any) error {
	size := sizeOf(v)
	if m.made += size; m.made > mostMade {
		return errMade
	}
	if size > largestValue {
		return errLargeValue
	}
	return nil
}

// sizeOf is about what a value takes, without what a list or an object holds.
func sizeOf(v any) int {
	const slot, element, field = 16, 48, 64
	switch v := v.(type) {
	case string:
		return slot + len(v)
	case []byte:
		return slot + len(v)
	case Decimal:
		return slot + len(v.text)
	case []any:
		return slot + element*len(v)
	case []int:
		return slot * (1 + len(v))
	case map[string]any:
		return slot + field*len(v)
	}
	return slot
}

// stepFunction goes over one element, or reads a value. No user can write its name.
const stepFunction = "a step"

// functions are those that tree calls, each charging m.
func (m *meter) functions(tree *ast.Node) map[string]*builtin.Function {
	metered := map[string]*builtin.Function{stepFunction: {Name: stepFunction, Func: m.step}}
	ast.Walk(tree, visitFunc(func(node *ast.Node) {
		call, ok := (*node).(*ast.CallNode)
		if !ok {
			return
		}
		id, ok := call.Callee.(*ast.IdentifierNode)
		if !ok || functionTable[id.Value] == nil {
			return
		}
		f := *functionTable[id.Value]
		run := f.Func
		f.Func = func(args ...any) (any, error) {
			before := m.read
			if err := m.goThrough(args...); err != nil {
				return nil, err
			}
			v, err := run(args...)
			if err != nil {
				return nil, err
			}
			switch v.(type) {
			case []any, map[string]any: // what is within it comes from the arguments
				m.made += m.read - before
			}
			return v, m.make(v)
		}
		metered[id.Value] = &f
	}))
	return metered
}

func (m *meter) step(args ...any) (any, error) {
	if m.steps++; m.steps > mostSteps {
		return nil, errSteps
	}
	return args[0], m.goThrough(args[0])
}

// stepped has what the language does by itself charged: each element that a predicate is run for, and what its own functions and operators read. It
// comes after the checks.
func stepped(tree *ast.Node) {
	ast.Walk(tree, visitFunc(func(node *ast.Node) {
		switch n := (*node).(type) {
		case *ast.PredicateNode:
			charge(&n.Node)
		case *ast.BuiltinNode:
			if len(n.Arguments) > 0 {
				charge(&n.Arguments[0])
			}
		case *ast.BinaryNode:
			switch n.Operator {
			case "contains", "startsWith", "endsWith", "matches":
				charge(&n.Left)
				charge(&n.Right)
			}
		}
	}))
}

// charge keeps the node's type, by which its parent is compiled.
func charge(node *ast.Node) {
	inner := *node
	if _, constant := inner.(*ast.StringNode); constant {
		return
	}
	call := &ast.CallNode{Callee: &ast.IdentifierNode{Value: stepFunction}, Arguments: []ast.Node{inner}}
	call.SetLocation(inner.Location())
	call.SetNature(*inner.Nature())
	*node = call
}

// tooManyElements counts the elements of JSON text, those of lists within lists included, without decoding it.
func tooManyElements(text []byte) bool {
	n, quoted := 0, false
	for i := 0; i < len(text); i++ {
		switch b := text[i]; {
		case quoted && b == '\\':
			i++
		case b == '"':
			quoted = !quoted
		case !quoted && (b == ',' || b == '[' || b == '{'):
			n++
		}
	}
	return n > mostElements
}

// replaced is how long strings.ReplaceAll would be.
func replaced(text, old, replacement string) int {
	return len(text) + strings.Count(text, old)*(len(replacement)-len(old))
}
