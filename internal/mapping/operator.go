package mapping

import (
	"cmp"
	"fmt"
	"reflect"
	"slices"
	"time"

	"github.com/expr-lang/expr/ast"
	"github.com/expr-lang/expr/builtin"
	"github.com/expr-lang/expr/checker/nature"
)

// Date is a date in an expression: a day without a time.
type Date struct{ time.Time }

// failure is why an expression cannot be computed. It never quotes a value.
type failure string

func (f failure) Error() string { return string(f) }

// errNullOperand is an operator's answer to null: the caller knows which columns are null and says so.
var errNullOperand = failure("a null operand")

// The operators that are replaced by functions of our own, which know numeric, dates and null and never wrap around.
var operatorNames = map[string]bool{
	"+": true, "-": true, "*": true, "/": true, "%": true,
	"<": true, "<=": true, ">": true, ">=": true, "==": true, "!=": true, "in": true,
}

var (
	typeInt     = reflect.TypeFor[int]()
	typeFloat   = reflect.TypeFor[float64]()
	typeDecimal = reflect.TypeFor[Decimal]()
	typeString  = reflect.TypeFor[string]()
	typeBool    = reflect.TypeFor[bool]()
	typeTime    = reflect.TypeFor[time.Time]()
	typeDate    = reflect.TypeFor[Date]()
	typeBytes   = reflect.TypeFor[[]byte]()
	typeList    = reflect.TypeFor[[]any]()
	typeObject  = reflect.TypeFor[map[string]any]()
	typeAny     = reflect.TypeFor[any]()
)

// operatorFunctions are registered under names no user can write, such as "+ numeric": one for each type of result.
func operatorFunctions(functions map[string]*builtin.Function) {
	results := []reflect.Type{typeInt, typeFloat, typeDecimal, typeString, typeBool, typeAny}
	for op := range operatorNames {
		for _, result := range results {
			f := reflect.FuncOf([]reflect.Type{typeAny, typeAny}, []reflect.Type{result}, false)
			functions[operatorName(op, result)] = &builtin.Function{
				Name: op, Types: []reflect.Type{f},
				Func: func(args ...any) (any, error) { return operate(op, args[0], args[1]) },
			}
		}
	}
}

func operatorName(op string, result reflect.Type) string { return op + " " + result.String() }

// overloads replaces operators in a checked tree. It leaves those whose types can never fit, so that the checker reports them.
type overloads struct{ patched []ast.Node }

// Visit is called for children before their parents.
func (o *overloads) Visit(node *ast.Node) {
	switch n := (*node).(type) {
	case *ast.FloatNode: // 1.1 in an expression is exactly 1.1
		d, _, _ := toDecimal(n.Value)
		ast.Patch(node, &ast.ConstantNode{Value: d})
		(*node).SetType(typeDecimal)
	case *ast.UnaryNode:
		if n.Operator == "-" && known(n.Node) != typeInt {
			o.replace(node, "-", &ast.IntegerNode{}, n.Node)
		}
	case *ast.BinaryNode:
		if operatorNames[n.Operator] {
			o.replace(node, n.Operator, n.Left, n.Right)
		}
	}
}

func (o *overloads) replace(node *ast.Node, op string, left, right ast.Node) {
	if _, ok := left.(*ast.IntegerNode); ok {
		left.SetType(typeInt)
	}
	result, ok := resultType(op, known(left), known(right))
	if !ok {
		return
	}
	call := &ast.CallNode{
		Callee:    &ast.IdentifierNode{Value: operatorName(op, result)},
		Arguments: []ast.Node{left, right},
	}
	ast.Patch(node, call)
	call.SetType(result)
	o.patched = append(o.patched, call)
}

// forget takes the types off the new calls: the checker visits the arguments only of calls that have none.
func (o *overloads) forget() {
	for _, n := range o.patched {
		n.SetNature(nature.Nature{})
	}
}

// known is a node's type, nil where it is only known when the expression runs.
func known(n ast.Node) reflect.Type {
	if _, null := n.(*ast.NilNode); null || n.Type() == typeAny {
		return nil
	}
	return n.Type()
}

// resultType is the type that an operator gives; ok is false when the types never fit. nil stands for a type not known.
func resultType(op string, l, r reflect.Type) (reflect.Type, bool) {
	switch op {
	case "==", "!=":
		return typeBool, l == nil || r == nil || l == r || numericType(l) && numericType(r) || timeType(l) && timeType(r)
	case "<", "<=", ">", ">=":
		ordered := func(t reflect.Type) bool { return t == nil || numericType(t) || timeType(t) || t == typeString }
		return typeBool, ordered(l) && ordered(r) && (l == nil || r == nil || l == r || numericType(l) == numericType(r) && timeType(l) == timeType(r))
	case "in":
		return typeBool, r == nil || r.Kind() == reflect.Slice || r.Kind() == reflect.Map
	case "+":
		if l == typeString && r == typeString {
			return typeString, true
		}
		if (l == nil || l == typeString) && (r == nil || r == typeString) {
			return typeAny, true
		}
	}
	switch {
	case l != nil && !numericType(l), r != nil && !numericType(r):
		return nil, false
	case l == nil || r == nil:
		return typeAny, true
	case l == typeFloat && r != typeDecimal, r == typeFloat && l != typeDecimal:
		return typeFloat, true
	case l == typeDecimal, r == typeDecimal, op == "/":
		return typeDecimal, true
	}
	return typeInt, true
}

func numericType(t reflect.Type) bool { return t == typeInt || t == typeFloat || t == typeDecimal }

func timeType(t reflect.Type) bool { return t == typeTime || t == typeDate }

// operate computes one operator. Equality knows null; every other operator refuses it.
func operate(op string, a, b any) (any, error) {
	switch op {
	case "==", "!=":
		equal, err := equalValues(a, b)
		return equal == (op == "=="), err
	case "in":
		return contains(a, b)
	}
	if a == nil || b == nil {
		return nil, errNullOperand
	}
	switch op {
	case "<", "<=", ">", ">=":
		c, err := compare(a, b)
		return c < 0 && op[0] == '<' || c > 0 && op[0] == '>' || c == 0 && len(op) == 2, err
	}
	if op == "+" {
		if x, ok := a.(string); ok {
			if y, ok := b.(string); ok {
				if len(x)+len(y) > largestValue {
					return nil, errLargeValue
				}
				return x + y, nil
			}
		}
	}
	return arithmetic(op, a, b)
}

func equalValues(a, b any) (bool, error) {
	if a == nil || b == nil {
		return a == nil && b == nil, nil
	}
	if c, ok, err := compareNumbers(a, b); ok {
		return c == 0, err
	}
	if x, ok := instant(a); ok {
		y, ok := instant(b)
		return ok && x.Equal(y), nil
	}
	return reflect.DeepEqual(a, b), nil
}

func contains(a, b any) (any, error) {
	switch b := b.(type) {
	case nil:
		return false, nil
	case []any:
		for _, v := range b {
			if equal, err := equalValues(a, v); equal || err != nil {
				return equal, err
			}
		}
		return false, nil
	case []int: // a range such as 1..5
		n, ok := a.(int)
		return ok && slices.Contains(b, n), nil
	case map[string]any:
		key, ok := a.(string)
		if ok {
			_, ok = b[key]
		}
		return ok, nil
	}
	return nil, failure("a " + typeName(b) + " is used where a list is wanted")
}

func compare(a, b any) (int, error) {
	if c, ok, err := compareNumbers(a, b); ok {
		return c, err
	}
	if x, ok := a.(string); ok {
		if y, ok := b.(string); ok {
			return cmp.Compare(x, y), nil
		}
	}
	if x, ok := instant(a); ok {
		if y, ok := instant(b); ok {
			return x.Compare(y), nil
		}
	}
	return 0, failure(fmt.Sprintf("a %s is compared with a %s", typeName(a), typeName(b)))
}

func instant(v any) (time.Time, bool) {
	switch v := v.(type) {
	case time.Time:
		return v, true
	case Date:
		return v.Time, true
	}
	return time.Time{}, false
}

// typeName says a value's type in the words that the documentation uses.
func typeName(v any) string {
	if v == nil {
		return "null"
	}
	return typeNameOf(reflect.TypeOf(v))
}

func typeNameOf(t reflect.Type) string {
	switch t {
	case typeInt:
		return "integer"
	case typeFloat, typeDecimal:
		return "number"
	case typeString:
		return "string"
	case typeBool:
		return "boolean"
	case typeTime:
		return "timestamp"
	case typeDate:
		return "date"
	case typeBytes:
		return "bytea"
	}
	switch t.Kind() {
	case reflect.Slice:
		return "list"
	case reflect.Map:
		return "object"
	default:
		return "value of another type"
	}
}
