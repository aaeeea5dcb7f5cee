package mapping

import (
	"encoding/hex"
	"strconv"
	"strings"
)

// decode gives a value of an expression. Lists and objects hold what their JSON form holds, times within them as text.
func (c *codec) decode(text []byte) (any, error) {
	switch c.form {
	case formInteger:
		n, err := strconv.Atoi(string(text))
		if err != nil {
			return nil, errMalformed
		}
		return n, nil
	case formNumeric:
		if !isNumber(text) {
			_, err := appendNumber(nil, text)
			return nil, err
		}
		return Decimal{string(text)}, nil
	case formFloat:
		if _, err := appendNumber(nil, text); err != nil {
			return nil, err
		}
		f, err := strconv.ParseFloat(string(text), 64)
		if err != nil {
			return nil, errMalformed
		}
		return f, nil
	case formBool:
		return string(text) == "t" || string(text) == "true", nil
	case formBytea:
		raw, err := hex.DecodeString(strings.TrimPrefix(string(text), `\x`))
		if err != nil {
			return nil, errMalformed
		}
		return raw, nil
	case formDate, formTimestamp, formTimestamptz:
		m, err := parseMoment(text)
		if err != nil {
			return nil, err
		}
		if c.form == formDate {
			return Date{m.time()}, nil
		}
		return m.time(), nil
	case formText:
		return string(text), nil
	default:
		rendered, err := c.append(nil, text)
		if err != nil {
			return nil, err
		}
		return decodeJSON(rendered)
	}
}
