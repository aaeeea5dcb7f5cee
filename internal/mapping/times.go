package mapping

import (
	"bytes"
	"strconv"
	"time"

	"github.com/cdcsync/cdcsync/internal/shape"
)

// moment is a date or timestamp as Postgres prints it under datestyle ISO, in UTC.
type moment struct {
	seconds int64 // since 1970
	micros  int   // of the second, 0 to 999999
}

// parseMoment reads 2025-09-20, 2025-09-20 18:41:31.219 and 2025-09-20 18:41:31.219+00. A timestamp without zone is read as UTC.
func parseMoment(s []byte) (m moment, err error) {
	if m, ok := plainMoment(s); ok {
		return m, nil
	}
	if string(s) == "infinity" || string(s) == "-infinity" {
		return m, errInfinity
	}
	if bytes.HasSuffix(s, []byte(" BC")) {
		return m, errBC
	}
	year, s, ok := takeNumber(s, 4, 6)
	month, s, okMonth := takeTwo(s, '-')
	day, s, okDay := takeTwo(s, '-')
	if !ok || !okMonth || !okDay || month < 1 || month > 12 || day < 1 || day > 31 {
		return m, errMalformed
	}
	m.seconds = daysFromCivil(year, month, day) * 86400
	if len(s) == 0 {
		return m, nil
	}
	hour, s, okHour := takeTwo(s, ' ')
	minute, s, okMinute := takeTwo(s, ':')
	second, s, okSecond := takeTwo(s, ':')
	if !okHour || !okMinute || !okSecond || hour > 24 || minute > 59 || second > 60 {
		return m, errMalformed
	}
	m.seconds += int64(hour*3600 + minute*60 + second)
	if m.micros, s, ok = takeFraction(s); !ok {
		return m, errMalformed
	}
	offset, ok := parseOffset(s)
	if !ok {
		return m, errMalformed
	}
	m.seconds -= offset
	return m, nil
}

// plainMoment reads what nearly every value is, 2025-09-20 18:41:31.219+00 with or without fraction and zone, several times as
// fast. ok is false for all else, mistakes among it.
func plainMoment(s []byte) (m moment, ok bool) {
	const length = len("2025-09-20 18:41:31")
	if len(s) < length || s[4] != '-' || s[7] != '-' || s[10] != ' ' || s[13] != ':' || s[16] != ':' {
		return m, false
	}
	century, year := twoDigits(s[0], s[1]), twoDigits(s[2], s[3])
	month, day := twoDigits(s[5], s[6]), twoDigits(s[8], s[9])
	hour, minute, second := twoDigits(s[11], s[12]), twoDigits(s[14], s[15]), twoDigits(s[17], s[18])
	if century > 99 || year > 99 || month-1 > 11 || day-1 > 30 || hour > 23 || minute > 59 || second > 59 {
		return m, false
	}
	micros, rest, ok := takeFraction(s[length:])
	if !ok || len(rest) > 0 && string(rest) != "+00" {
		return m, false
	}
	m.seconds = daysFromCivil(int(century*100+year), int(month), int(day))*86400 + int64(hour*3600+minute*60+second)
	m.micros = micros
	return m, true
}

// twoDigits gives more than 99 when one of them is none.
func twoDigits(tens, ones byte) uint {
	const none = 1000
	t, o := uint(tens-'0'), uint(ones-'0')
	if t > 9 || o > 9 {
		return none
	}
	return t*10 + o
}

func takeNumber(s []byte, least, most int) (n int, rest []byte, ok bool) {
	i := 0
	for i < len(s) && i < most && isDigit(s[i]) {
		n = n*10 + int(s[i]-'0')
		i++
	}
	return n, s[i:], i >= least
}

// takeTwo reads two digits behind a separator.
func takeTwo(s []byte, before byte) (n int, rest []byte, ok bool) {
	if len(s) == 0 || s[0] != before {
		return 0, s, false
	}
	return takeNumber(s[1:], 2, 2)
}

func takeFraction(s []byte) (micros int, rest []byte, ok bool) {
	if len(s) == 0 || s[0] != '.' {
		return 0, s, true
	}
	digits := s[1:]
	n, rest, ok := takeNumber(digits, 1, 6)
	for i := len(digits) - len(rest); i < 6; i++ {
		n *= 10
	}
	return n, rest, ok
}

// parseOffset reads +00, -03:30 and +01:23:45. The session's zone is UTC, but a value read elsewhere may have another.
func parseOffset(s []byte) (seconds int64, ok bool) {
	if len(s) == 0 {
		return 0, true
	}
	sign := int64(1)
	if s[0] == '-' {
		sign = -1
	} else if s[0] != '+' {
		return 0, false
	}
	hours, s, ok := takeNumber(s[1:], 2, 2)
	seconds = int64(hours) * 3600
	for unit := int64(60); ok && len(s) > 0 && unit > 0; unit /= 60 {
		var n int
		n, s, ok = takeTwo(s, ':')
		seconds += int64(n) * unit
	}
	return sign * seconds, ok && len(s) == 0
}

// daysFromCivil counts the days since 1970-01-01 in the proleptic Gregorian calendar, as Postgres does
// (https://howardhinnant.github.io/date_algorithms.html#days_from_civil).
func daysFromCivil(year, month, day int) int64 {
	if month <= 2 {
		year--
	}
	era := year / 400
	yearOfEra := year - era*400
	dayOfYear := (153*((month+9)%12)+2)/5 + day - 1
	dayOfEra := yearOfEra*365 + yearOfEra/4 - yearOfEra/100 + dayOfYear
	return int64(era)*146097 + int64(dayOfEra) - 719468
}

// maxISOSeconds is the first second of the year 10000.
const maxISOSeconds = 253402300800

func (m moment) time() time.Time { return time.Unix(m.seconds, int64(m.micros)*1000).UTC() }

// appendMoment renders a date or timestamp by the sink's convention. Unix milliseconds round microseconds down.
func appendMoment(dst, text []byte, date bool, times shape.Times) ([]byte, error) {
	m, err := parseMoment(text)
	if err != nil {
		return dst, err
	}
	if times == shape.TimesUnixMilli {
		return strconv.AppendInt(dst, m.seconds*1000+int64(m.micros/1000), 10), nil
	}
	if m.seconds >= maxISOSeconds {
		return dst, errYear
	}
	if date && times != timesDateTime {
		dst = append(dst, '"')
		dst = append(dst, text...)
		return append(dst, '"'), nil
	}
	return appendISO(dst, m.time()), nil
}

// timesDateTime is TimesISO where the vendor wants a date with a time: a date is sent as midnight UTC.
const timesDateTime shape.Times = 0x80

// appendISO renders RFC 3339 in UTC with milliseconds, and with microseconds where there are any.
func appendISO(dst []byte, t time.Time) []byte {
	layout := `"2006-01-02T15:04:05.000Z"`
	if t.Nanosecond()%1_000_000 != 0 {
		layout = `"2006-01-02T15:04:05.000000Z"`
	}
	return t.UTC().AppendFormat(dst, layout)
}

// appendInterval turns 1 year 2 mons -3 days 04:05:06.7 (intervalstyle postgres) into P1Y2M-3DT4H5M6.7S, the form that
// Postgres itself prints under intervalstyle iso_8601.
func appendInterval(dst, s []byte) ([]byte, error) {
	if bytes.HasSuffix(s, []byte("infinity")) {
		return dst, reason("is infinite, which is no ISO 8601 duration")
	}
	dst = append(dst, '"', 'P')
	empty := len(dst)
	for len(s) > 0 {
		var word []byte
		word, s, _ = bytes.Cut(s, []byte(" "))
		if bytes.IndexByte(word, ':') >= 0 {
			var err error
			if dst, err = appendClock(dst, word); err != nil {
				return dst, err
			}
			continue
		}
		var unit []byte
		unit, s, _ = bytes.Cut(s, []byte(" "))
		letter, ok := intervalUnits[string(unit)]
		if !ok {
			return dst, errMalformed
		}
		if dst, ok = appendSigned(dst, word); !ok {
			return dst, errMalformed
		}
		dst = append(dst, letter)
	}
	if len(dst) == empty {
		dst = append(dst, 'T', '0', 'S')
	}
	return append(dst, '"'), nil
}

var intervalUnits = map[string]byte{"year": 'Y', "years": 'Y', "mon": 'M', "mons": 'M', "day": 'D', "days": 'D'}

// appendSigned appends an integer, without the plus sign that Postgres prints after a negative part.
func appendSigned(dst, word []byte) ([]byte, bool) {
	word = bytes.TrimPrefix(word, []byte("+"))
	dst, err := appendInteger(dst, word)
	return dst, err == nil
}

// appendClock appends the time part of an interval; each number of a negative one has the sign, as in Postgres.
func appendClock(dst, word []byte) ([]byte, error) {
	negative := word[0] == '-'
	if negative || word[0] == '+' {
		word = word[1:]
	}
	parts := bytes.SplitN(word, []byte(":"), 3)
	if len(parts) != 3 {
		return dst, errMalformed
	}
	start := len(dst)
	dst = append(dst, 'T')
	for i, part := range parts {
		whole, fraction, _ := bytes.Cut(part, []byte("."))
		for _, digits := range [][]byte{whole, fraction} {
			for _, b := range digits {
				if !isDigit(b) {
					return dst, errMalformed
				}
			}
		}
		whole, fraction = bytes.TrimLeft(whole, "0"), bytes.TrimRight(fraction, "0")
		if len(whole) == 0 && len(fraction) == 0 {
			continue
		}
		if negative {
			dst = append(dst, '-')
		}
		if len(whole) == 0 {
			whole = []byte("0")
		}
		dst = append(dst, whole...)
		if len(fraction) > 0 {
			dst = append(append(dst, '.'), fraction...)
		}
		dst = append(dst, "HMS"[i])
	}
	if len(dst) == start+1 {
		dst = dst[:start] // 00:00:00
	}
	return dst, nil
}
