package mapping

import (
	"cmp"
	"math"
	"strconv"

	"github.com/cockroachdb/apd/v3"
)

// Decimal is a numeric value in an expression. It keeps the digits that Postgres printed and computes exactly.
type Decimal struct{ text string }

// exact computes sums and products without rounding.
var exact = apd.Context{MaxExponent: 100_000, MinExponent: -100_000, Traps: apd.DefaultTraps}

// quotientDigits bounds a quotient that does not end: more than float64 has, and more than any vendor keeps.
const quotientDigits = 20

func (d Decimal) number() (*apd.Decimal, error) {
	n, _, err := apd.NewFromString(d.text)
	if err != nil {
		return nil, failure("a number is too large to compute with")
	}
	return n, nil
}

func decimalOf(n *apd.Decimal) Decimal {
	if n.IsZero() {
		n.Negative = false // Postgres knows no negative zero
	}
	return Decimal{n.Text('f')}
}

// toDecimal converts any number of an expression; ok is false for another type.
func toDecimal(v any) (d Decimal, ok bool, err error) {
	switch v := v.(type) {
	case Decimal:
		return v, true, nil
	case int:
		return Decimal{strconv.Itoa(v)}, true, nil
	case float64:
		if math.IsNaN(v) || math.IsInf(v, 0) {
			return d, true, failure("a number " + string(errNotFinite))
		}
		return Decimal{strconv.FormatFloat(v, 'f', -1, 64)}, true, nil
	}
	return d, false, nil
}

// arithmetic computes a op b for two numbers.
func arithmetic(op string, a, b any) (any, error) {
	if x, ok := a.(int); ok {
		if y, ok := b.(int); ok {
			if n, ok := intArithmetic(op, x, y); ok {
				return n, nil
			}
		}
	}
	if x, y, ok := floats(a, b); ok {
		return floatArithmetic(op, x, y)
	}
	return decimalArithmetic(op, a, b)
}

// intArithmetic is not ok where the result is no int: an overflow, a quotient.
func intArithmetic(op string, x, y int) (n int, ok bool) {
	switch op {
	case "+":
		n = x + y
		return n, (n > x) == (y > 0)
	case "-":
		n = x - y
		return n, (n < x) == (y > 0)
	case "*":
		if x == 0 || y == 0 {
			return 0, true
		}
		n = x * y
		return n, n/y == x && (x != -1 || y != math.MinInt) && (y != -1 || x != math.MinInt)
	case "%":
		if y != 0 {
			return x % y, true
		}
	}
	return 0, false
}

// floats converts when one is a float8 and none is a numeric, as Postgres would.
func floats(a, b any) (x, y float64, ok bool) {
	x, xFloat := a.(float64)
	y, yFloat := b.(float64)
	if !xFloat && !yFloat {
		return 0, 0, false
	}
	if n, isInt := a.(int); isInt {
		x, xFloat = float64(n), true
	}
	if n, isInt := b.(int); isInt {
		y, yFloat = float64(n), true
	}
	return x, y, xFloat && yFloat
}

func floatArithmetic(op string, x, y float64) (any, error) {
	switch op {
	case "+":
		return x + y, nil
	case "-":
		return x - y, nil
	case "*":
		return x * y, nil
	}
	if y == 0 {
		return nil, failure("it divides by zero")
	}
	if op == "%" {
		return math.Mod(x, y), nil
	}
	return x / y, nil
}

func decimalArithmetic(op string, a, b any) (any, error) {
	x, y, err := decimals(a, b)
	if err != nil {
		return nil, err
	}
	n := new(apd.Decimal)
	switch op {
	case "+":
		_, err = exact.Add(n, x, y)
	case "-":
		_, err = exact.Sub(n, x, y)
	case "*":
		_, err = exact.Mul(n, x, y)
	default:
		if y.IsZero() {
			return nil, failure("it divides by zero")
		}
		if op == "%" {
			_, err = apd.BaseContext.WithPrecision(1000).Rem(n, x, y)
		} else {
			_, err = apd.BaseContext.WithPrecision(quotientDigits).Quo(n, x, y)
			n.Reduce(n)
		}
	}
	if err != nil {
		return nil, failure("a number is too large to compute with")
	}
	return decimalOf(n), nil
}

func decimals(a, b any) (x, y *apd.Decimal, err error) {
	left, ok, err := toDecimal(a)
	if err != nil || !ok {
		return nil, nil, wrongType(a, err)
	}
	right, ok, err := toDecimal(b)
	if err != nil || !ok {
		return nil, nil, wrongType(b, err)
	}
	if x, err = left.number(); err == nil {
		y, err = right.number()
	}
	return x, y, err
}

func wrongType(v any, err error) error {
	if err != nil {
		return err
	}
	return failure("a " + typeName(v) + " is used where a number is wanted")
}

// compareNumbers orders two numbers; ok is false when one is none.
func compareNumbers(a, b any) (c int, ok bool, err error) {
	if x, y, both := ints(a, b); both {
		return cmp.Compare(x, y), true, nil
	}
	if x, y, both := floats(a, b); both {
		return cmp.Compare(x, y), true, nil
	}
	if !isNumeric(a) || !isNumeric(b) {
		return 0, false, nil
	}
	x, y, err := decimals(a, b)
	if err != nil {
		return 0, true, err
	}
	return x.Cmp(y), true, nil
}

func ints(a, b any) (x, y int, ok bool) {
	x, okX := a.(int)
	y, okY := b.(int)
	return x, y, okX && okY
}

func isNumeric(v any) bool {
	switch v.(type) {
	case int, float64, Decimal:
		return true
	}
	return false
}

// rounded is d with so many digits after the point, halves away from zero, as Postgres rounds numeric.
func (d Decimal) rounded(mode apd.Rounder, places int) (Decimal, error) {
	n, err := d.number()
	if err != nil {
		return d, err
	}
	digits := n.NumDigits() + int64(n.Exponent) + int64(places) + 1
	ctx := apd.BaseContext.WithPrecision(uint32(max(digits, 1)))
	ctx.Rounding = mode
	if _, err := ctx.Quantize(n, n, int32(-places)); err != nil {
		return d, failure("a number is too large to compute with")
	}
	return decimalOf(n), nil
}
